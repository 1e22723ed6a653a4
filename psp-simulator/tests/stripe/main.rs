//! The simulator over real HTTP, as an executor sees it.
#![expect(clippy::unwrap_used, reason = "the client of the tests fails by panicking, as the tests do")]

mod deliveries;
mod idempotency;
mod ledger;
mod process;
mod requests;
#[path = "../running/mod.rs"]
mod running;
mod scenarios;
mod simulator;
