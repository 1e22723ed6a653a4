//! Adyen: payments and cancels of Checkout API v71, with JSON bodies.
//!
//! ```text
//!  api ──────────▶ idempotency ──▶ params ──▶ payments ──▶ ledger
//!  (key, headers)   (replay?)       (valid?)   (what happens)
//!  answer ◀────── kept under the key ◀── answer (errors) ◀──┘
//! ```
//!
//! There is no way to ask for a payment: a replay of its key and its webhook are all that tell of it. Payments are
//! captured as they are authorised.

use std::sync::Arc;

use crate::idempotency::Idempotency;

mod answer;
pub(crate) mod api;
mod errors;
mod params;
mod payments;
mod reader;
mod refusals;
pub(crate) mod webhook;

/// What the tokens of the scenarios begin with.
pub(crate) const TOKEN_PREFIX: &str = "adyen_sim_";

/// "A minimum period of 31 days": after this, the same key makes a new charge.
const KEY_LIFETIME_SECONDS: i64 = 31 * 24 * 60 * 60;

/// What Adyen knows.
#[derive(Debug)]
pub(crate) struct Adyen {
    pub(crate) payments: payments::Payments,
    pub(crate) keys: Arc<Idempotency<answer::Answer>>,
}

impl Adyen {
    pub(crate) fn new(capacity: usize) -> Self {
        Self {
            payments: payments::Payments::new(capacity),
            // A payment takes a key, and a second if it is cancelled.
            keys: Arc::new(Idempotency::new(KEY_LIFETIME_SECONDS, capacity.saturating_mul(2))),
        }
    }
}
