//! The relay against real PostgreSQL, Kafka and registry.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod commands;
mod encoding;
mod interleavings;
mod leadership;
mod plan;
mod publication;
mod rig;
mod strangers;
mod tailing;
mod workload;
