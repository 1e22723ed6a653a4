//! compose.yaml, Dockerfile and observability/ against each other and against the sources: what a typing error breaks there
//! is otherwise seen only where there is a container daemon.
//!
//! A rule takes what was read and returns what is wrong with it, so that each can be given a planted fault as well.

#![allow(clippy::unwrap_used, reason = "a file that cannot be read fails the test")]

mod containers;
mod watching;

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde_json::Value;

/// The folder of the workspace.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// A text of the workspace.
fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// A YAML document of the workspace, its anchors and merges resolved.
fn yaml(path: &str) -> Value {
    testbed::yaml::read(&read(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// A container of compose.yaml.
struct Service<'a> {
    name: &'a str,
    value: &'a Value,
}

/// The containers of a compose file.
fn services(compose: &Value) -> Vec<Service<'_>> {
    let all = compose["services"].as_object().unwrap();
    all.iter().map(|(name, value)| Service { name, value }).collect()
}

impl<'a> Service<'a> {
    fn text(&self, key: &str) -> &'a str {
        self.value[key].as_str().unwrap_or_default()
    }

    /// The texts of a list, or the keys of a map.
    fn list(&self, key: &str) -> Vec<&'a str> {
        match &self.value[key] {
            Value::Array(items) => items.iter().filter_map(Value::as_str).collect(),
            Value::Object(map) => map.keys().map(String::as_str).collect(),
            _ => Vec::new(),
        }
    }

    /// The words of the command, also of one that goes to a shell.
    fn command(&self) -> Vec<&'a str> {
        self.list("command").into_iter().flat_map(str::split_whitespace).collect()
    }

    fn is_ours(&self) -> bool {
        self.text("image").starts_with("payment-outbox:")
    }

    fn is_job(&self) -> bool {
        self.text("restart") == "no"
    }
}

/// Every text between two marks.
fn between<'a>(text: &'a str, before: &str, after: &str) -> Vec<&'a str> {
    text.split(before).skip(1).filter_map(|rest| rest.split_once(after)).map(|(inner, _)| inner).collect()
}

/// Fails with everything that a rule has found.
fn none(problems: &[String]) {
    assert!(problems.is_empty(), "\n{}", problems.join("\n"));
}

/// Fails unless the rule has found the planted fault, and nothing else.
fn only(problems: &[String], fault: &str) {
    assert!(
        !problems.is_empty() && problems.iter().all(|problem| problem.contains(fault)),
        "planted: {fault}; found: {problems:?}"
    );
}
