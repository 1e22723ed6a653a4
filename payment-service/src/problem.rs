//! Every refusal of the API: RFC 9457, `application/problem+json`.

use axum::{
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde_json::json;

/// Why a request was not carried out.
#[derive(Clone, Debug)]
pub struct Problem {
    status: StatusCode,
    /// What kind of problem, for programs: the last part of `type`.
    kind: &'static str,
    title: &'static str,
    detail: Option<String>,
    header: Option<(&'static str, &'static str)>,
}

impl Problem {
    fn new(status: StatusCode, kind: &'static str, title: &'static str) -> Self {
        Self { status, kind, title, detail: None, header: None }
    }

    fn because(self, detail: impl Into<String>) -> Self {
        Self { detail: Some(detail.into()), ..self }
    }

    fn with(self, name: &'static str, value: &'static str) -> Self {
        Self { header: Some((name, value)), ..self }
    }

    /// 400: cannot be read.
    pub fn malformed(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "malformed-request", "The request cannot be read").because(detail)
    }

    /// 401: no token, or a wrong one.
    pub fn unauthorized() -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "unauthorized", "A valid bearer token is required")
            .with("www-authenticate", "Bearer")
    }

    /// 404: nothing here, or nothing for this caller.
    pub fn not_found() -> Self {
        Self::new(StatusCode::NOT_FOUND, "not-found", "There is no such resource")
    }

    /// 405.
    pub fn method_not_allowed() -> Self {
        Self::new(
            StatusCode::METHOD_NOT_ALLOWED,
            "method-not-allowed",
            "The resource does not have this method",
        )
    }

    /// 408: the body did not come in time.
    pub fn body_too_slow() -> Self {
        Self::new(StatusCode::REQUEST_TIMEOUT, "request-timeout", "The body did not arrive in time")
    }

    /// 409: the first request with this key is still being worked on.
    pub fn in_flight() -> Self {
        Self::new(
            StatusCode::CONFLICT,
            "request-in-flight",
            "A request with this Idempotency-Key is being worked on",
        )
        .because("send the same request again in a moment")
        .with("retry-after", "1")
    }

    /// 409: the key was used before, and its answer is no longer kept.
    pub fn key_used_up() -> Self {
        Self::new(StatusCode::CONFLICT, "idempotency-key-used", "This Idempotency-Key has been used before")
            .because("its answer is no longer kept; use a new key for a new payment")
    }

    /// 413.
    pub fn too_large(limit: usize) -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "body-too-large", "The body is too large")
            .because(format!("at most {limit} bytes are read"))
    }

    /// 415.
    pub fn not_json() -> Self {
        Self::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "unsupported-media-type",
            "The body must be application/json",
        )
    }

    /// 422: can be read, but not carried out.
    pub fn invalid(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid-request", "The request cannot be carried out")
            .because(detail)
    }

    /// 422: the key belongs to another request.
    pub fn key_reused() -> Self {
        Self::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            "idempotency-key-reused",
            "This Idempotency-Key was used for a request with another body",
        )
    }

    /// 500: our fault. What it was is in the log.
    pub fn internal() -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", "The service failed").because(
            "whether the request was carried out is not known: send it again with the same Idempotency-Key",
        )
    }

    /// 503: not now.
    pub fn unavailable(detail: &'static str) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable", "The service cannot answer now")
            .because(detail)
            .with("retry-after", "1")
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let body = json!({
            "type": format!("urn:payment-outbox:problem:{}", self.kind),
            "title": self.title,
            "status": self.status.as_u16(),
            "detail": self.detail,
        });
        let headers = [(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"))];
        let mut response = (self.status, headers, body.to_string()).into_response();
        if let Some((name, value)) = self.header {
            response.headers_mut().insert(name, HeaderValue::from_static(value));
        }
        response
    }
}
