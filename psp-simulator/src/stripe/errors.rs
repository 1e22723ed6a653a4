//! Stripe's error answers, as Stripe words them.

use axum::http::StatusCode;
use serde::Serialize;
use serde_json::Value;

use super::declines::words;
use super::objects::{Charge, Expand, Snapshot, Status};
use super::wire::{IntentBody, doc_url};
use crate::scenario::Decline;

/// An error answer.
#[derive(Debug, Clone)]
pub(crate) struct Refusal {
    pub(crate) status: StatusCode,
    kind: Kind,
    code: Option<&'static str>,
    message: Box<str>,
    param: Option<Box<str>>,
    /// `Stripe-Should-Retry`, where it is not what the status says.
    advice: Option<bool>,
    /// The PaymentIntent concerned, as it was left.
    intent: Option<Box<Snapshot>>,
}

#[derive(Debug, Clone, Copy, Serialize)]
enum Kind {
    #[serde(rename = "api_error")]
    Api,
    #[serde(rename = "card_error")]
    Card,
    #[serde(rename = "idempotency_error")]
    Idempotency,
    #[serde(rename = "invalid_request_error")]
    InvalidRequest,
}

/// The error on the wire.
#[derive(Debug, Serialize)]
pub(crate) struct ErrorBody<'a> {
    error: ErrorFields<'a>,
}

#[derive(Debug, Serialize)]
struct ErrorFields<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    advice_code: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    charge: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    code: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    decline_code: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    doc_url: Option<String>,
    message: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    param: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    payment_intent: Option<IntentBody<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    payment_method: Option<Value>,
    request_log_url: String,
    #[serde(rename = "type")]
    kind: Kind,
}

impl Refusal {
    fn new(status: StatusCode, kind: Kind, code: Option<&'static str>, message: impl Into<Box<str>>) -> Self {
        Self { status, kind, code, message: message.into(), param: None, advice: None, intent: None }
    }

    /// 400 for a request that cannot be carried out as it is.
    pub(crate) fn invalid(code: Option<&'static str>, message: impl Into<Box<str>>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, Kind::InvalidRequest, code, message)
    }

    /// Says which parameter is to blame.
    pub(crate) fn about(mut self, param: impl Into<Box<str>>) -> Self {
        self.param = Some(param.into());
        self
    }

    pub(crate) fn with_status(mut self, status: StatusCode) -> Self {
        self.status = status;
        self
    }

    fn advising(mut self, try_again: bool) -> Self {
        self.advice = Some(try_again);
        self
    }

    pub(crate) fn should_retry(&self) -> Option<bool> {
        self.advice.or_else(|| match self.status {
            StatusCode::CONFLICT | StatusCode::TOO_MANY_REQUESTS => Some(true),
            status if status.is_client_error() => Some(false),
            _ => None,
        })
    }

    pub(crate) fn unknown_parameters(names: &[String]) -> Self {
        let plural = if names.len() > 1 { "s" } else { "" };
        let refusal = Self::invalid(
            Some("parameter_unknown"),
            format!("Received unknown parameter{plural}: {}", names.join(", ")),
        );
        match names.first() {
            Some(first) => refusal.about(first.as_str()),
            None => refusal,
        }
    }

    pub(crate) fn missing(name: &str) -> Self {
        Self::invalid(Some("parameter_missing"), format!("Missing required param: {name}.")).about(name)
    }

    pub(crate) fn empty(name: &str) -> Self {
        Self::invalid(
            Some("parameter_invalid_empty"),
            format!(
                "You passed an empty string for '{name}'. We assume empty values are an attempt to unset a parameter; \
                 however '{name}' cannot be unset. You should remove '{name}' from your request or supply a \
                 non-empty value."
            ),
        )
        .about(name)
    }

    /// Stripe knows this, the simulator does not: better to say so than to ignore it.
    pub(crate) fn not_simulated(what: &str) -> Self {
        Self::invalid(None, format!("The simulator does not simulate {what}.")).about(what)
    }

    pub(crate) fn no_such_intent(id: &str) -> Self {
        Self::invalid(Some("resource_missing"), format!("No such payment_intent: '{id}'"))
            .about("intent")
            .with_status(StatusCode::NOT_FOUND)
    }

    pub(crate) fn no_such_method(token: &str) -> Self {
        Self::invalid(Some("resource_missing"), format!("No such PaymentMethod: '{token}'"))
            .about("payment_method")
    }

    pub(crate) fn unexpected_state(snapshot: Snapshot, message: impl Into<Box<str>>) -> Self {
        let mut refusal = Self::invalid(Some("payment_intent_unexpected_state"), message);
        refusal.intent = Some(Box::new(snapshot));
        refusal
    }

    pub(crate) fn cannot_confirm(snapshot: Snapshot) -> Self {
        let message = match snapshot.state.status {
            Status::Succeeded => {
                "You cannot confirm this PaymentIntent because it has already succeeded after being previously \
                 confirmed."
                    .to_owned()
            }
            other => format!(
                "You cannot confirm this PaymentIntent because it has a status of {}. Only a PaymentIntent with one of \
                 the following statuses may be confirmed: requires_confirmation, requires_payment_method, \
                 requires_action.",
                other.name()
            ),
        };
        Self::unexpected_state(snapshot, message)
    }

    pub(crate) fn cannot_cancel(snapshot: Snapshot) -> Self {
        let message = format!(
            "You cannot cancel this PaymentIntent because it has a status of {}. Only a PaymentIntent with one of the \
             following statuses may be canceled: requires_payment_method, requires_capture, requires_confirmation, \
             requires_action, processing.",
            snapshot.state.status.name()
        );
        Self::unexpected_state(snapshot, message)
    }

    /// The PaymentIntent that the issuer declined to pay, if this is about that.
    pub(crate) fn declined_intent(&self) -> Option<&Snapshot> {
        match self.kind {
            Kind::Card => self.intent.as_deref(),
            Kind::Api | Kind::Idempotency | Kind::InvalidRequest => None,
        }
    }

    /// 402: the issuer declined. The snapshot's last failure says why.
    pub(crate) fn declined(decline: Decline, snapshot: Snapshot) -> Self {
        let words = words(decline);
        let mut refusal =
            Self::new(StatusCode::PAYMENT_REQUIRED, Kind::Card, Some(words.code), words.message);
        refusal.param = words.param.map(Into::into);
        refusal.intent = Some(Box::new(snapshot));
        refusal
    }

    pub(crate) fn server_error() -> Self {
        Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            Kind::Api,
            None,
            "An unknown error occurred. If you have any questions, we can help at https://support.stripe.com/.",
        )
    }

    /// 500 that a repetition does not get.
    pub(crate) fn passing_server_error() -> Self {
        Self::server_error().advising(true)
    }

    /// 503 with the advice to try again, or not to.
    pub(crate) fn unavailable(try_again: bool) -> Self {
        Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            Kind::Api,
            None,
            "Stripe is temporarily unavailable. Please try again later.",
        )
        .advising(try_again)
    }

    /// 503: the simulator's memory bound.
    pub(crate) fn full() -> Self {
        Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            Kind::Api,
            None,
            "The simulator holds as many objects as it may (--capacity).",
        )
    }

    pub(crate) fn rate_limit() -> Self {
        Self::invalid(
            Some("rate_limit"),
            "Request rate limit exceeded. You can learn more about rate limits here \
             https://stripe.com/docs/rate-limits.",
        )
        .with_status(StatusCode::TOO_MANY_REQUESTS)
    }

    pub(crate) fn lock_timeout() -> Self {
        Self::invalid(
            Some("lock_timeout"),
            "This object cannot be accessed right now because another API request or Stripe process is currently \
             accessing it. If you see this error intermittently, retry the request. If you see this error \
             frequently and are making multiple concurrent requests to a single object, make your requests serially \
             or at a lower rate.",
        )
        .with_status(StatusCode::TOO_MANY_REQUESTS)
    }

    pub(crate) fn key_in_use(key: &str) -> Self {
        Self::invalid(
            Some("idempotency_key_in_use"),
            format!(
                "There is currently another in-progress request using this Idempotent Key (that probably means you \
                 submitted twice, and the other request is still going through): {key}. Please try again later."
            ),
        )
        .with_status(StatusCode::CONFLICT)
    }

    fn idempotency(message: String) -> Self {
        Self::new(StatusCode::BAD_REQUEST, Kind::Idempotency, None, message)
    }

    pub(crate) fn other_parameters(key: &str) -> Self {
        Self::idempotency(format!(
            "Keys for idempotent requests can only be used with the same parameters they were first used with. Try \
             using a key other than '{key}' if you meant to execute a different request."
        ))
    }

    pub(crate) fn other_endpoint(key: &str, endpoint: &str, first: &str) -> Self {
        Self::idempotency(format!(
            "Keys for idempotent requests can only be used for the same endpoint they were first used for \
             ('{endpoint}' vs '{first}'). Try using a key other than '{key}' if you meant to execute a different \
             request."
        ))
    }

    pub(crate) fn unauthorized(message: impl Into<Box<str>>) -> Self {
        Self::invalid(None, message).with_status(StatusCode::UNAUTHORIZED)
    }

    pub(crate) fn unrecognized_url(method: &str, path: &str) -> Self {
        Self::invalid(
            None,
            format!(
                "Unrecognized request URL ({method}: {path}). Please see https://stripe.com/docs or we can help at \
                 https://support.stripe.com/."
            ),
        )
        .with_status(StatusCode::NOT_FOUND)
    }

    /// The error on the wire; `request` is the id of the request that it was first given to.
    pub(crate) fn body(&self, request: &str) -> ErrorBody<'_> {
        let failure: Option<&Charge> =
            self.declined_intent().and_then(|snapshot| snapshot.state.failure.as_deref());
        let words = failure.and_then(|charge| charge.decline).map(words);
        ErrorBody {
            error: ErrorFields {
                advice_code: words.as_ref().and_then(|words| words.advice_code),
                charge: failure.map(|charge| &*charge.id),
                code: self.code,
                decline_code: words.as_ref().and_then(|words| words.decline_code),
                doc_url: self.code.map(doc_url),
                message: &self.message,
                param: self.param.as_deref(),
                payment_intent: self.intent.as_ref().map(|snapshot| snapshot.body(Expand::default())),
                payment_method: failure.map(|charge| charge.method.body()),
                request_log_url: format!("https://dashboard.stripe.com/test/logs/{request}"),
                kind: self.kind,
            },
        }
    }
}
