//! Stripe's events, and the signature of the messages that carry them.

use std::fmt;
use std::sync::Arc;

use axum::http::{HeaderValue, header};
use hmac::{Hmac, KeyInit, Mac};
use reqwest::RequestBuilder;
use serde::Serialize;
use sha2::Sha256;
use time::OffsetDateTime;

use super::answer::Answer;
use super::api::API_VERSION;
use super::ids;
use super::objects::{Charge, Expand, Snapshot, Status};
use super::payment_intents::PaymentIntents;
use super::wire::IntentBody;
use crate::scenario::{Decline, Statement};
use crate::webhooks::{Contradiction, Subject};

/// Something that happened to a PaymentIntent.
#[derive(Debug)]
pub(crate) struct Event {
    id: Box<str>,
    created: i64,
    kind: &'static str,
    success: Option<bool>,
    /// The PaymentIntent as it was then.
    snapshot: Snapshot,
    request: Option<Origin>,
}

/// The request that made it happen.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Origin {
    pub(crate) id: Box<str>,
    pub(crate) idempotency_key: Option<Box<str>>,
}

#[derive(Debug, Serialize)]
struct EventBody<'a> {
    id: &'a str,
    object: &'static str,
    api_version: &'static str,
    created: i64,
    data: Data<'a>,
    livemode: bool,
    pending_webhooks: u8,
    request: Request<'a>,
    #[serde(rename = "type")]
    kind: &'static str,
}

#[derive(Debug, Serialize)]
struct Data<'a> {
    object: IntentBody<'a>,
}

#[derive(Debug, Serialize)]
struct Request<'a> {
    id: Option<&'a str>,
    idempotency_key: Option<&'a str>,
}

impl Event {
    /// What the outcome of an operation tells the world, if anything.
    pub(crate) fn of(outcome: &Answer, now: OffsetDateTime, request: Option<Origin>) -> Option<Self> {
        let snapshot = match outcome {
            Answer::Intent(snapshot, _) => snapshot,
            Answer::Refused(refusal) => refusal.declined_intent()?,
            Answer::List { .. } => return None,
        };
        let (kind, success) = match snapshot.state.status {
            Status::Succeeded => ("payment_intent.succeeded", Some(true)),
            Status::RequiresPaymentMethod if snapshot.state.failure.is_some() => {
                ("payment_intent.payment_failed", Some(false))
            }
            Status::Canceled => ("payment_intent.canceled", None),
            Status::Processing => ("payment_intent.processing", None),
            Status::RequiresAction => ("payment_intent.requires_action", None),
            Status::RequiresPaymentMethod | Status::RequiresConfirmation | Status::UnderObservation => {
                return None;
            }
        };
        Some(Self::new(kind, success, snapshot.clone(), now, request))
    }

    fn new(
        kind: &'static str,
        success: Option<bool>,
        snapshot: Snapshot,
        now: OffsetDateTime,
        request: Option<Origin>,
    ) -> Self {
        Self { id: ids::new("evt_").into(), created: now.unix_timestamp(), kind, success, snapshot, request }
    }

    pub(crate) fn subject(&self) -> Subject<'_> {
        Subject {
            payment_order_id: self.snapshot.intent.terms.metadata.get("payment_order_id").map(|id| &**id),
            reference: &self.snapshot.intent.id,
            kind: self.kind,
            success: self.success,
        }
    }

    /// An event that never happened. None if there is no room for the PaymentIntent that it takes.
    pub(crate) fn contradicting(
        &self,
        kind: Contradiction,
        intents: &PaymentIntents,
        now: OffsetDateTime,
    ) -> Option<Self> {
        let mut snapshot = match kind {
            Contradiction::FailureAfterSuccess | Contradiction::SuccessAfterFailure => self.snapshot.clone(),
            Contradiction::SecondSuccess => intents.double(&self.snapshot, now.unix_timestamp())?,
        };
        let state = &mut snapshot.state;
        let event = match kind {
            Contradiction::SecondSuccess => ("payment_intent.succeeded", true),
            Contradiction::FailureAfterSuccess => {
                let method = state.method.take()?;
                let decline = Some(Decline::Generic);
                let id = ids::new("ch_").into();
                let charge =
                    Arc::new(Charge { id, created: now.unix_timestamp(), method, taken: 0, decline });
                state.status = Status::RequiresPaymentMethod;
                (state.latest_charge, state.failure) = (Some(Arc::clone(&charge)), Some(charge));
                ("payment_intent.payment_failed", false)
            }
            Contradiction::SuccessAfterFailure => {
                let method = state.failure.take()?.method.clone();
                let taken = snapshot.intent.terms.amount;
                let id = ids::new("ch_").into();
                let charge = Charge {
                    id,
                    created: now.unix_timestamp(),
                    method: method.clone(),
                    taken,
                    decline: None,
                };
                state.status = Status::Succeeded;
                state.statement = Statement::True;
                (state.latest_charge, state.method) = (Some(Arc::new(charge)), Some(method));
                ("payment_intent.succeeded", true)
            }
        };
        Some(Self::new(event.0, Some(event.1), snapshot, now, None))
    }

    /// Pretty-printed, as Stripe's are: who signs other bytes than those of the wire is found out.
    fn render(&self) -> Vec<u8> {
        let request = self.request.as_ref();
        let body = EventBody {
            id: &self.id,
            object: "event",
            api_version: API_VERSION,
            created: self.created,
            data: Data { object: self.snapshot.body(Expand::default()) },
            livemode: false,
            pending_webhooks: 1,
            request: Request {
                id: request.map(|request| &*request.id),
                idempotency_key: request.and_then(|request| request.idempotency_key.as_deref()),
            },
            kind: self.kind,
        };
        serde_json::to_vec_pretty(&body).unwrap_or_default()
    }
}

/// The endpoint's signing secret, as a whole: `whsec_` is part of it.
pub(crate) struct Secret(Box<[u8]>);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

impl Secret {
    pub(crate) fn new(secret: &str) -> Self {
        Self(secret.as_bytes().into())
    }

    /// Signed with the machine's time, whatever the simulator's clock says: that is what receivers compare it with.
    pub(crate) fn seal(&self, event: &Event, request: RequestBuilder) -> RequestBuilder {
        let body = event.render();
        let signed_at = OffsetDateTime::now_utc().unix_timestamp();
        let signature = format!("t={signed_at},v1={}", self.sign(signed_at, &body));
        request
            .header(header::CONTENT_TYPE, HeaderValue::from_static("application/json; charset=utf-8"))
            .header(header::USER_AGENT, "Stripe/1.0 (+https://stripe.com/docs/webhooks)")
            .header("stripe-signature", signature)
            .body(body)
    }

    fn sign(&self, signed_at: i64, body: &[u8]) -> String {
        let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(&self.0) else { return String::new() };
        mac.update(format!("{signed_at}.").as_bytes());
        mac.update(body);
        hex::encode(mac.finalize().into_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// stripe-dotnet's EventUtilityTest, and the body of stripe-python's test_webhook.py.
    #[test]
    fn signatures_are_those_of_the_sdks() {
        let dotnet = "{\n  \"id\": \"evt_123\",\n  \"object\": \"event\",\n  \"account\": \"acct_123\",\n  \
            \"api_version\": \"2017-05-25\",\n  \"created\": 1533204620,\n  \"data\": {\n    \"object\": {\n      \
            \"id\": \"cus_123\",\n      \"object\": \"customer\",\n      \"created\": 123456789,\n      \
            \"email\": \"test@stripe.com\",\n      \"livemode\": false,\n      \"metadata\": {}\n    }\n  },\n  \
            \"livemode\": false,\n  \"pending_webhooks\": 1,\n  \"request\": {\n    \"id\": \"req_123\",\n    \
            \"idempotency_key\": \"idempotency-key-123\"\n  },\n  \"type\": \"customer.created\"\n}\n";
        assert_eq!(
            Secret::new("webhook_secret").sign(1_533_204_620, dotnet.as_bytes()),
            "2220f87ef101a04665f11cdf770523143f875572008577fa0f20882ddb9cc3c7"
        );
        let python = "{\n  \"id\": \"evt_test_webhook\",\n  \"object\": \"event\",\n  \"data\": { \"object\": { \"id\": \
            \"rdr_123\", \"object\": \"terminal.reader\" } }\n}";
        assert_eq!(
            Secret::new("whsec_test_secret").sign(12345, python.as_bytes()),
            "07b1ede164afb7b5de91267ffa656f568c65d6e0783ce0ac55ee094643578eda"
        );
    }
}
