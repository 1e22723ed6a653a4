//! The contracts against a real registry and another Avro implementation.

mod decoding;
mod registry;
