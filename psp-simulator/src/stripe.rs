//! Stripe: PaymentIntents of API v1, with form bodies.
//!
//! ```text
//!  api ──────────▶ idempotency ──▶ form, params ──▶ payment_intents ──▶ ledger
//!  (key, headers)   (replay?)       (valid?)         (what happens)
//!  answer ◀─────── kept under the key ◀── answer (objects, errors) ◀──┘
//! ```

use std::sync::Arc;

use crate::idempotency::Idempotency;

mod answer;
pub(crate) mod api;
mod declines;
mod errors;
mod form;
mod ids;
pub(crate) mod methods;
mod objects;
mod params;
mod payment_intents;
mod reader;
pub(crate) mod webhook;
mod wire;

/// After this, the same key makes a new charge.
const KEY_LIFETIME_SECONDS: i64 = 24 * 60 * 60;

/// What Stripe knows.
#[derive(Debug)]
pub(crate) struct Stripe {
    pub(crate) intents: payment_intents::PaymentIntents,
    pub(crate) keys: Arc<Idempotency<api::Stored>>,
}

impl Stripe {
    pub(crate) fn new(capacity: usize) -> Self {
        Self {
            intents: payment_intents::PaymentIntents::new(capacity),
            // A payment takes two keys (create, confirm), and a third if it is cancelled.
            keys: Arc::new(Idempotency::new(KEY_LIFETIME_SECONDS, capacity.saturating_mul(3))),
        }
    }
}
