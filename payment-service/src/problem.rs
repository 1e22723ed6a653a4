//! Every refusal of the API: RFC 9457, `application/problem+json`.

use axum::{
    http::{HeaderName, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::Serialize;
use utoipa::{
    PartialSchema, ToSchema,
    openapi::{ObjectBuilder, RefOr, Schema, Type},
};

/// Declares the kinds of problems: the last part of `type`, the status and the title of each.
macro_rules! kinds {
    ($($(#[$meta:meta])* $name:ident = $word:literal, $status:ident, $title:literal;)+) => {
        /// What kind of problem it is, for programs.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Kind {
            $($(#[$meta])* $name,)+
        }

        impl Kind {
            /// Every kind.
            pub const ALL: &'static [Self] = &[$(Self::$name),+];

            /// The last part of `type`.
            pub fn word(self) -> &'static str {
                match self { $(Self::$name => $word,)+ }
            }

            /// The status that it is answered with.
            #[allow(clippy::match_same_arms, reason = "several kinds share a status")]
            pub fn status(self) -> StatusCode {
                match self { $(Self::$name => StatusCode::$status,)+ }
            }

            /// The same for people.
            pub fn title(self) -> &'static str {
                match self { $(Self::$name => $title,)+ }
            }
        }
    };
}

kinds! {
    /// Cannot be read.
    MalformedRequest = "malformed-request", BAD_REQUEST, "The request cannot be read";
    /// No token, or a wrong one.
    Unauthorized = "unauthorized", UNAUTHORIZED, "A valid bearer token is required";
    /// The token's role may not do this.
    Forbidden = "forbidden", FORBIDDEN, "The role of this token does not allow it";
    /// Nothing here, or nothing for this caller.
    NotFound = "not-found", NOT_FOUND, "There is no such resource";
    /// The resource has other methods.
    MethodNotAllowed = "method-not-allowed", METHOD_NOT_ALLOWED, "The resource does not have this method";
    /// The body did not come in time.
    RequestTimeout = "request-timeout", REQUEST_TIMEOUT, "The body did not arrive in time";
    /// The first request with this key is still being worked on.
    RequestInFlight = "request-in-flight", CONFLICT, "A request with this Idempotency-Key is being worked on";
    /// The key was used before, and its answer is no longer kept.
    IdempotencyKeyUsed = "idempotency-key-used", CONFLICT, "This Idempotency-Key has been used before";
    /// The payment is not in a state to be tried again.
    RetryRefused = "retry-refused", CONFLICT, "The payment cannot be tried again";
    /// The payment order needs no person, or not this decision.
    ResolutionRefused = "resolution-refused", CONFLICT, "The payment order cannot be resolved so";
    /// More than is read.
    BodyTooLarge = "body-too-large", PAYLOAD_TOO_LARGE, "The body is too large";
    /// Another type than JSON.
    UnsupportedMediaType = "unsupported-media-type", UNSUPPORTED_MEDIA_TYPE, "The body must be application/json";
    /// Can be read, but not carried out.
    InvalidRequest = "invalid-request", UNPROCESSABLE_ENTITY, "The request cannot be carried out";
    /// The key belongs to another request.
    IdempotencyKeyReused = "idempotency-key-reused", UNPROCESSABLE_ENTITY,
        "This Idempotency-Key was used for a request with another body";
    /// This token has asked for more than its share.
    TooManyRequests = "too-many-requests", TOO_MANY_REQUESTS, "This token has sent too many requests";
    /// Our fault. What it was is in the log.
    Internal = "internal", INTERNAL_SERVER_ERROR, "The service failed";
    /// Not now.
    Unavailable = "unavailable", SERVICE_UNAVAILABLE, "The service cannot answer now";
}

impl Kind {
    /// `type` as a whole.
    pub fn urn(self) -> String {
        format!("urn:payment-outbox:problem:{}", self.word())
    }
}

impl Serialize for Kind {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.urn())
    }
}

impl PartialSchema for Kind {
    fn schema() -> RefOr<Schema> {
        let words = Self::ALL.iter().map(|kind| kind.urn());
        ObjectBuilder::new().schema_type(Type::String).enum_values(Some(words)).into()
    }
}

impl ToSchema for Kind {}

/// Why a request was not carried out.
#[derive(Clone, Debug)]
pub struct Problem {
    kind: Kind,
    detail: Option<String>,
    header: Option<(HeaderName, HeaderValue)>,
}

/// The body of every refusal (RFC 9457).
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Problem)]
pub struct ProblemBody<'a> {
    /// What kind of problem it is, for programs.
    #[serde(rename = "type")]
    kind: Kind,
    /// The same for people.
    title: &'a str,
    /// The status of the answer.
    status: u16,
    /// What was wrong with this request, for people.
    detail: Option<&'a str>,
}

impl Problem {
    fn new(kind: Kind) -> Self {
        Self { kind, detail: None, header: None }
    }

    /// What was wrong, for people.
    pub(crate) fn detail(&self) -> Option<&str> {
        self.detail.as_deref()
    }

    fn because(self, detail: impl Into<String>) -> Self {
        Self { detail: Some(detail.into()), ..self }
    }

    fn with(self, name: HeaderName, value: HeaderValue) -> Self {
        Self { header: Some((name, value)), ..self }
    }

    /// The client may come again after so many seconds.
    fn later(self, seconds: u64) -> Self {
        self.with(header::RETRY_AFTER, seconds.into())
    }

    /// 400: cannot be read.
    pub fn malformed(detail: impl Into<String>) -> Self {
        Self::new(Kind::MalformedRequest).because(detail)
    }

    /// 401: no token, or a wrong one.
    pub fn unauthorized() -> Self {
        Self::new(Kind::Unauthorized).with(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"))
    }

    /// 403: a valid token of another role.
    pub fn forbidden(detail: &'static str) -> Self {
        Self::new(Kind::Forbidden).because(detail)
    }

    /// 404: nothing here, or nothing for this caller.
    pub fn not_found() -> Self {
        Self::new(Kind::NotFound)
    }

    /// 405.
    pub fn method_not_allowed() -> Self {
        Self::new(Kind::MethodNotAllowed)
    }

    /// 408: the body did not come in time.
    pub fn body_too_slow() -> Self {
        Self::new(Kind::RequestTimeout)
    }

    /// 409: the first request with this key is still being worked on.
    pub fn in_flight() -> Self {
        Self::new(Kind::RequestInFlight).because("send the same request again in a moment").later(1)
    }

    /// 409: the key was used before, and its answer is no longer kept.
    pub fn key_used_up() -> Self {
        Self::new(Kind::IdempotencyKeyUsed)
            .because("its answer is no longer kept; use a new key for a new payment")
    }

    /// 409: the payment is not in a state to be tried again.
    pub fn retry_refused(detail: impl Into<String>) -> Self {
        Self::new(Kind::RetryRefused).because(detail)
    }

    /// 409: the payment order needs no person, or not this decision.
    pub fn resolution_refused(detail: impl Into<String>) -> Self {
        Self::new(Kind::ResolutionRefused).because(detail)
    }

    /// 413.
    pub fn too_large(limit: usize) -> Self {
        Self::new(Kind::BodyTooLarge).because(format!("at most {limit} bytes are read"))
    }

    /// 415.
    pub fn not_json() -> Self {
        Self::new(Kind::UnsupportedMediaType)
    }

    /// 422: can be read, but not carried out.
    pub fn invalid(detail: impl Into<String>) -> Self {
        Self::new(Kind::InvalidRequest).because(detail)
    }

    /// 422: the key belongs to another request.
    pub fn key_reused() -> Self {
        Self::new(Kind::IdempotencyKeyReused)
    }

    /// 429: this token has asked for more than its share.
    pub fn too_many_requests(retry_after_seconds: u64) -> Self {
        Self::new(Kind::TooManyRequests).later(retry_after_seconds)
    }

    /// 500: our fault. What it was is in the log.
    pub fn internal() -> Self {
        Self::new(Kind::Internal).because(
            "whether the request was carried out is not known: send it again with the same Idempotency-Key",
        )
    }

    /// 503: not now.
    pub fn unavailable(detail: &'static str) -> Self {
        Self::new(Kind::Unavailable).because(detail).later(1)
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = self.kind.status();
        let body = ProblemBody {
            kind: self.kind,
            title: self.kind.title(),
            status: status.as_u16(),
            detail: self.detail.as_deref(),
        };
        let mut response = (status, axum::Json(body)).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        headers.extend(self.header);
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Clients are written against it.
    #[test]
    fn every_kind_of_problem_is_documented() {
        let documented = include_str!("../../docs/api.md");
        for kind in Kind::ALL {
            let row = format!("| {} | `{}` |", kind.status().as_u16(), kind.word());
            assert!(documented.contains(&row), "docs/api.md has no row {row}");
        }
    }
}
