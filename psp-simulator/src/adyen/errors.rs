//! Adyen's error answers (`ServiceError`), as Adyen words them.

use axum::http::StatusCode;
use serde::Serialize;

/// An error answer.
#[derive(Debug, Clone)]
pub(crate) struct Refusal {
    pub(crate) status: StatusCode,
    code: &'static str,
    kind: Kind,
    message: Box<str>,
    /// The header `transient-error`: whether the same key may be tried again later.
    pub(crate) transient: Option<bool>,
}

#[derive(Debug, Clone, Copy, Serialize)]
#[serde(rename_all = "lowercase")]
enum Kind {
    Configuration,
    Internal,
    Security,
    Validation,
}

/// The error on the wire.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ErrorBody<'a> {
    status: u16,
    error_code: &'static str,
    message: &'a str,
    error_type: Kind,
    psp_reference: &'a str,
}

impl Refusal {
    fn new(status: StatusCode, kind: Kind, code: &'static str, message: impl Into<Box<str>>) -> Self {
        Self { status, code, kind, message: message.into(), transient: None }
    }

    fn transient(mut self, transient: bool) -> Self {
        self.transient = Some(transient);
        self
    }

    /// 422 for a request that can be read and not be carried out.
    pub(crate) fn invalid(code: &'static str, message: impl Into<Box<str>>) -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, Kind::Validation, code, message)
    }

    /// 400 for a request that cannot be read.
    pub(crate) fn unreadable(message: impl Into<Box<str>>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, Kind::Validation, "702", message)
    }

    pub(crate) fn with_status(mut self, status: StatusCode) -> Self {
        self.status = status;
        self
    }

    pub(crate) fn unknown_fields(structure: &str, names: &[&str]) -> Self {
        Self::unreadable(format!(
            "Structure of {structure} contains the following unknown fields: [{}]",
            names.join(", ")
        ))
    }

    /// Adyen knows this, the simulator does not: better to say so than to ignore it.
    pub(crate) fn not_simulated(what: &str) -> Self {
        Self::invalid("702", format!("The simulator does not simulate {what}."))
    }

    pub(crate) fn unauthorized() -> Self {
        let message = "HTTP Status Response - Unauthorized";
        Self::new(StatusCode::UNAUTHORIZED, Kind::Security, "000", message)
    }

    pub(crate) fn merchant_account() -> Self {
        Self::new(StatusCode::FORBIDDEN, Kind::Security, "901", "Invalid Merchant Account")
    }

    /// The first request with this key is still executing: 422 or 409, Adyen documents both.
    pub(crate) fn in_progress(conflict: bool) -> Self {
        let status = if conflict { StatusCode::CONFLICT } else { StatusCode::UNPROCESSABLE_ENTITY };
        let refusal = Self::invalid("704", "request already processed or in progress");
        refusal.with_status(status).transient(true)
    }

    /// The key was first used for another request: trying again will not help.
    pub(crate) fn other_parameters() -> Self {
        Self::invalid("704", "request already processed or in progress").transient(false)
    }

    pub(crate) fn not_found() -> Self {
        Self::new(StatusCode::NOT_FOUND, Kind::Validation, "00_404", "Not found")
    }

    pub(crate) fn no_such_payment() -> Self {
        Self::invalid("167", "Original pspReference required for this operation")
    }

    pub(crate) fn server_error() -> Self {
        let message = "Something went wrong on our side.";
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, Kind::Internal, "999", message)
    }

    /// 500 that a repetition does not get.
    pub(crate) fn passing_server_error() -> Self {
        Self::server_error().transient(true)
    }

    /// 503, with the advice to try again or not to. 703 is what Adyen says when it cannot look up keys.
    pub(crate) fn unavailable(try_again: bool) -> Self {
        let message = "required resource temporarily unavailable";
        Self::new(StatusCode::SERVICE_UNAVAILABLE, Kind::Internal, "703", message).transient(try_again)
    }

    pub(crate) fn rate_limit() -> Self {
        let message = "Too many requests";
        Self::new(StatusCode::TOO_MANY_REQUESTS, Kind::Internal, "429", message).transient(true)
    }

    /// 503: the simulator's memory bound.
    pub(crate) fn full() -> Self {
        let message = "The simulator holds as many payments as it may (--capacity).";
        Self::new(StatusCode::SERVICE_UNAVAILABLE, Kind::Configuration, "703", message).transient(false)
    }

    /// The error on the wire; `psp_reference` is that of the request.
    pub(crate) fn body<'a>(&'a self, psp_reference: &'a str) -> ErrorBody<'a> {
        ErrorBody {
            status: self.status.as_u16(),
            error_code: self.code,
            message: &self.message,
            error_type: self.kind,
            psp_reference,
        }
    }
}
