//! The relay against real PostgreSQL, Kafka and registry.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod commands;
mod encoding;
mod guards;
mod interleavings;
mod leadership;
mod parking;
mod plan;
mod promotion;
mod publication;
mod retention;
mod rig;
mod strangers;
mod tailing;
mod takeover;
mod upgrade;
mod verify;
mod workload;
