//! The relay against real PostgreSQL, Kafka and registry.

mod commands;
mod encoding;
mod leadership;
mod plan;
mod publication;
mod rig;
mod tailing;
mod workload;
