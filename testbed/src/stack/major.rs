//! Which PostgreSQL the stack has: the newest, or the oldest that the outbox works on. Everything that runs at one time has the same.

use std::{env, fmt};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

/// The environment variable that asks for a major version; `make test PG=15` sets it.
pub const VERSION_VARIABLE: &str = "PAYMENT_OUTBOX_POSTGRES";

/// A major version of PostgreSQL that is among the downloaded parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Major(u32);

impl Major {
    /// Each has an item of its own in the pom.
    pub const ALL: [Major; 2] = [Major(15), Major(18)];
    /// What runs when nothing else is asked for.
    pub const NEWEST: Major = Major(18);

    /// The one that the environment asks for.
    pub fn asked_for() -> Result<Major> {
        match env::var(VERSION_VARIABLE) {
            Ok(text) if !text.is_empty() => Major::parse(&text),
            _ => Ok(Major::NEWEST),
        }
    }

    fn parse(text: &str) -> Result<Major> {
        let known = Major::ALL.into_iter().find(|major| major.to_string() == text);
        let all = Major::ALL.map(|major| major.to_string()).join(" and ");
        known.with_context(|| format!("{VERSION_VARIABLE} is {text:?}: the versions at hand are {all}"))
    }

    /// As a number.
    pub fn number(self) -> u32 {
        self.0
    }
}

impl fmt::Display for Major {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_versions_at_hand_can_be_asked_for() {
        assert_eq!(Major::parse("15").unwrap(), Major(15));
        assert_eq!(Major::parse("18").unwrap(), Major::NEWEST);
        for text in ["16", "15.3", "v18", " 18"] {
            let error = Major::parse(text).unwrap_err().to_string();
            assert!(error.contains(text) && error.contains("15 and 18"), "{error}");
        }
    }
}
