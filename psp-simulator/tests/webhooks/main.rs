//! Webhooks over real HTTP, to a receiver that verifies them with code of its own.
#![expect(clippy::unwrap_used, reason = "the receiver of the tests fails by panicking, as the tests do")]

mod adyen;
mod delivery;
mod mischief;
mod receiver;
#[path = "../running/mod.rs"]
#[expect(dead_code, reason = "the ledger is looked at as a whole here")]
mod running;
mod stripe;
mod verification;
