//! The payment service against real PostgreSQL, Kafka and schema registry.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::missing_panics_doc, reason = "tests")]

mod access;
mod api;
mod client;
mod console;
mod consumer;
mod contradictions;
mod database;
mod hang_ups;
mod limits;
mod malformed;
mod offsets;
mod process;
mod quarantine;
mod resolutions;
mod retries;
mod search;
mod sqlstates;
mod tokens;
mod world;
