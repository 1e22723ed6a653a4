//! Answers: what is kept for a replay, and the bytes that it gives.

use axum::http::StatusCode;
use serde::Serialize;

use super::errors::Refusal;
use super::objects::{Expand, Snapshot};
use super::wire::IntentBody;

/// An answer of the Stripe API.
#[derive(Debug, Clone)]
pub(crate) enum Answer {
    Intent(Snapshot, Expand),
    List { intents: Vec<Snapshot>, has_more: bool, expand: Expand },
    Refused(Box<Refusal>),
}

#[derive(Debug, Serialize)]
struct ListBody<'a> {
    object: &'static str,
    data: Vec<IntentBody<'a>>,
    has_more: bool,
    url: &'static str,
}

impl From<Refusal> for Answer {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(Box::new(refusal))
    }
}

impl Answer {
    pub(crate) fn status(&self) -> StatusCode {
        match self {
            Self::Intent(..) | Self::List { .. } => StatusCode::OK,
            Self::Refused(refusal) => refusal.status,
        }
    }

    /// What `Stripe-Should-Retry` says of it.
    pub(crate) fn should_retry(&self) -> Option<bool> {
        match self {
            Self::Intent(..) | Self::List { .. } => None,
            Self::Refused(refusal) => refusal.should_retry(),
        }
    }

    /// The body, which is a function of the answer and of the id of the request that it was first given to.
    pub(crate) fn render(&self, request: &str) -> serde_json::Result<Vec<u8>> {
        match self {
            Self::Intent(snapshot, expand) => serde_json::to_vec_pretty(&snapshot.body(*expand)),
            Self::List { intents, has_more, expand } => serde_json::to_vec_pretty(&ListBody {
                object: "list",
                data: intents.iter().map(|snapshot| snapshot.body(*expand)).collect(),
                has_more: *has_more,
                url: "/v1/payment_intents",
            }),
            Self::Refused(refusal) => serde_json::to_vec_pretty(&refusal.body(request)),
        }
    }
}
