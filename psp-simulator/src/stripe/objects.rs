//! Stripe's objects: what is kept of them.
//!
//! A [`Snapshot`] is an object at one moment. Answers are kept as snapshots and rendered when they are sent: the same
//! snapshot always gives the same bytes, and a kept answer costs a fraction of its text.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use serde::Serialize;

use super::ids;
use super::methods::TestMethod;
use crate::held;
use crate::scenario::{Decline, Statement};

/// A PaymentIntent: what never changes, and what does.
#[derive(Debug)]
pub(crate) struct Intent {
    pub(crate) id: Arc<str>,
    /// Position in the order of creation.
    pub(crate) sequence: usize,
    pub(crate) created: i64,
    pub(crate) terms: Terms,
    pub(crate) live: Mutex<Live>,
}

/// What a PaymentIntent was created with.
#[derive(Debug, Clone)]
pub(crate) struct Terms {
    pub(crate) amount: i64,
    pub(crate) currency: Arc<str>,
    pub(crate) capture_method: &'static str,
    pub(crate) confirmation_method: &'static str,
    /// None if the caller listed payment method types itself.
    pub(crate) allow_redirects: Option<&'static str>,
    pub(crate) customer: Option<Box<str>>,
    pub(crate) description: Option<Box<str>>,
    pub(crate) receipt_email: Option<Box<str>>,
    pub(crate) setup_future_usage: Option<&'static str>,
    pub(crate) statement_descriptor: Option<Box<str>>,
    pub(crate) statement_descriptor_suffix: Option<Box<str>>,
    pub(crate) metadata: BTreeMap<Box<str>, Box<str>>,
}

/// The part of a PaymentIntent that requests contend for.
#[derive(Debug)]
pub(crate) struct Live {
    pub(crate) state: State,
    /// A confirmation is with the issuer: other changes must wait.
    pub(crate) busy: bool,
}

#[derive(Debug, Clone)]
pub(crate) struct State {
    pub(crate) status: Status,
    pub(crate) method: Option<Method>,
    pub(crate) latest_charge: Option<Arc<Charge>>,
    /// The declined charge behind `last_payment_error`.
    pub(crate) failure: Option<Arc<Charge>>,
    pub(crate) canceled_at: Option<i64>,
    pub(crate) cancellation_reason: Option<&'static str>,
    /// What the wire says of the amount.
    pub(crate) statement: Statement,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Status {
    RequiresPaymentMethod,
    RequiresConfirmation,
    RequiresAction,
    Processing,
    Succeeded,
    Canceled,
    /// Not one of Stripe's.
    UnderObservation,
}

/// A payment method made from a test token: it has an id of its own, as at Stripe.
#[derive(Debug, Clone)]
pub(crate) struct Method {
    pub(crate) id: Arc<str>,
    pub(crate) created: i64,
    pub(crate) test: TestMethod,
}

/// One attempt to take the money.
#[derive(Debug)]
pub(crate) struct Charge {
    pub(crate) id: Arc<str>,
    pub(crate) created: i64,
    pub(crate) method: Method,
    /// What was taken, in minor units: nothing if it was declined.
    pub(crate) taken: i64,
    pub(crate) decline: Option<Decline>,
}

/// A PaymentIntent at one moment.
#[derive(Debug, Clone)]
pub(crate) struct Snapshot {
    pub(crate) intent: Arc<Intent>,
    pub(crate) state: State,
}

/// Which ids are replaced by their objects (`expand[]`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Expand {
    pub(crate) latest_charge: bool,
    pub(crate) payment_method: bool,
}

impl Status {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::RequiresPaymentMethod => "requires_payment_method",
            Self::RequiresConfirmation => "requires_confirmation",
            Self::RequiresAction => "requires_action",
            Self::Processing => "processing",
            Self::Succeeded => "succeeded",
            Self::Canceled => "canceled",
            Self::UnderObservation => "under_observation",
        }
    }
}

impl Method {
    pub(crate) fn new(test: TestMethod, now: i64) -> Self {
        Self { id: ids::new("pm_").into(), created: now, test }
    }
}

impl Intent {
    pub(crate) fn snapshot(self: &Arc<Self>) -> Snapshot {
        Snapshot { intent: Arc::clone(self), state: held(&self.live).state.clone() }
    }
}
