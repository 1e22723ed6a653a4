//! Alerts, runbook, dashboards and docs/metrics.md against each other, and against what the processes really say.
//!
//! A rule takes what was read and returns what is wrong with it, so that each can be given a planted fault as well.

#![allow(clippy::unwrap_used, reason = "what goes wrong in a test has to end it")]

mod alerts;
mod catalogue;
mod dashboards;
mod promql;
mod real;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// The folder of the workspace.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// A text of the workspace.
fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Prometheus' own tool; fails with what it says.
fn promtool(arguments: &[&str], input: Option<&str>) {
    let mut command = Command::new("promtool");
    command.args(arguments).current_dir(root());
    if let Some(input) = input {
        let file = std::env::temp_dir().join(format!("promtool-{}", uuid::Uuid::now_v7()));
        fs::write(&file, input).unwrap();
        command.stdin(fs::File::open(&file).unwrap());
        fs::remove_file(file).unwrap();
    }
    let output = command
        .output()
        .unwrap_or_else(|error| panic!("promtool ({error}): `make setup OBSERVABILITY=1` installs it"));
    assert!(
        output.status.success(),
        "promtool {}\n{}{}",
        arguments.join(" "),
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
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
