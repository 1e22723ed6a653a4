//! The payment service against real PostgreSQL, Kafka and schema registry.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::missing_panics_doc, reason = "tests")]

mod api;
mod consumer;
mod contradictions;
mod database;
mod malformed;
mod offsets;
mod process;
mod quarantine;
mod sqlstates;
mod tokens;
mod world;
