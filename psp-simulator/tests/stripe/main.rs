//! The simulator over real HTTP, as an executor sees it.
#![expect(clippy::unwrap_used, reason = "the client of the tests fails by panicking, as the tests do")]

mod idempotency;
mod ledger;
mod process;
mod requests;
mod scenarios;
mod simulator;
