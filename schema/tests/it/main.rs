//! The contracts against a real registry and another Avro implementation.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod decoding;
mod registry;
