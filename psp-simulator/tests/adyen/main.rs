//! Adyen's side of the simulator over real HTTP, as an executor sees it.
#![expect(clippy::unwrap_used, reason = "the client of the tests fails by panicking, as the tests do")]

mod cancels;
mod client;
mod idempotency;
mod requests;
#[path = "../running/mod.rs"]
mod running;
mod scenarios;
