//! The OpenAPI document: made from the handlers and the types of their answers, and served to everybody.

use std::{collections::BTreeMap, sync::Arc};

use axum::{
    Extension,
    http::header,
    response::{IntoResponse as _, Response},
};
use utoipa::{
    IntoParams, IntoResponses, OpenApi,
    openapi::{
        Content, Header, HeaderBuilder, Object, Ref, RefOr, Response as Documented, ResponseBuilder, Type,
        security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme},
    },
};

use crate::problem::{Kind, ProblemBody};

/// The name of the bearer tokens in the document.
const SCHEME: &str = "token";

/// What the document says beside its routes.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "payment-outbox",
        description = "Payments, and what becomes of them. Every refusal is `application/problem+json` (RFC 9457); docs/api.md has \
                       the types, the rules of Idempotency-Key and the limits."
    ),
    components(schemas(ProblemBody<'static>)),
    tags(
        (name = "payments", description = "What a merchant wants to be paid"),
        (name = "payment orders", description = "One try at one PSP: at most one charge")
    )
)]
struct Head;

/// The document without routes.
pub(super) fn head() -> utoipa::openapi::OpenApi {
    let mut document = Head::openapi();
    let scheme = HttpBuilder::new()
        .scheme(HttpAuthScheme::Bearer)
        .description(Some("A token of a merchant or of an operator"))
        .build();
    let components = document.components.get_or_insert_default();
    components.add_security_scheme(SCHEME, SecurityScheme::Http(scheme));
    document.security = Some(vec![SecurityRequirement::new::<&str, [&str; 0], &str>(SCHEME, [])]);
    document
}

/// The document as it is served.
#[derive(Clone, Debug)]
pub(super) struct Served(Arc<str>);

impl Served {
    pub(super) fn new(document: &utoipa::openapi::OpenApi) -> Self {
        // Nothing in it can fail to be JSON: all keys are texts.
        Self(document.to_json().unwrap_or_default().into())
    }
}

/// This document.
#[utoipa::path(
    get, path = "/v1/openapi.json", tag = "document", operation_id = "showDocument", security(()),
    responses((status = 200, description = "The document", content_type = "application/json", body = serde_json::Value), Open),
)]
pub(super) async fn show(Extension(Served(document)): Extension<Served>) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], document.to_string()).into_response()
}

/// What every POST must have.
#[derive(IntoParams)]
#[into_params(parameter_in = Header)]
#[expect(dead_code, reason = "for the document alone: the header is read from its bytes")]
pub(super) struct IdempotencyKey {
    /// Names this request: sent again under the same key, it is carried out once and answered alike. 1 to 255 visible ASCII characters.
    #[param(
        rename = "Idempotency-Key",
        min_length = 1,
        max_length = 255,
        pattern = "^[!-~]{1,255}$",
        required = true
    )]
    idempotency_key: String,
}

/// One answer per status, and in each the kinds of problems that may come with it.
fn problems(kinds: &[Kind]) -> BTreeMap<String, RefOr<Documented>> {
    let mut of_status: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for kind in kinds {
        of_status.entry(kind.status().as_str().to_owned()).or_default().push(kind.word());
    }
    let answer = |status: &str, words: Vec<&str>| {
        let schema = Ref::from_schema_name("Problem");
        let answer = ResponseBuilder::new()
            .description(words.join(", "))
            .content("application/problem+json", Content::new(Some(schema)));
        let answer = match refusal_header(status) {
            Some((name, header)) => answer.header(name, header),
            None => answer,
        };
        answer.build().into()
    };
    of_status.into_iter().map(|(status, words)| (status.clone(), answer(&status, words))).collect()
}

/// What a refusal of this status has beside its body: always, or for some of its kinds (409).
fn refusal_header(status: &str) -> Option<(&'static str, Header)> {
    let header = |kind, words| {
        HeaderBuilder::new().schema(Some(Object::with_type(kind))).description(Some(words)).build()
    };
    match status {
        "401" => Some(("WWW-Authenticate", header(Type::String, "Bearer"))),
        "409" => Some((
            "Retry-After",
            header(
                Type::Integer,
                "Of a request that is being worked on: seconds until its answer may be there",
            ),
        )),
        "429" | "503" => {
            Some(("Retry-After", header(Type::Integer, "Seconds until the request may be sent again")))
        }
        _ => None,
    }
}

/// Declares what a sort of route may refuse, on top of what every one may.
macro_rules! refusals {
    ($($(#[$meta:meta])* $name:ident: $($kind:ident),*;)+) => {
        $(
            $(#[$meta])*
            pub(super) enum $name {}

            impl IntoResponses for $name {
                fn responses() -> BTreeMap<String, RefOr<Documented>> {
                    problems(&[Kind::Internal, Kind::Unavailable, $(Kind::$kind),*])
                }
            }
        )+
    };
}

refusals! {
    /// Of a route that is open to all.
    Open:;
    /// Of one thing.
    Showing: Unauthorized, TooManyRequests, NotFound;
    /// Of many.
    Listing: Unauthorized, TooManyRequests, InvalidRequest;
    /// Of a new payment.
    Making: Unauthorized, Forbidden, TooManyRequests, MalformedRequest, RequestTimeout, RequestInFlight, IdempotencyKeyUsed,
        BodyTooLarge, UnsupportedMediaType, InvalidRequest, IdempotencyKeyReused;
    /// Of another try.
    Retrying: Unauthorized, Forbidden, TooManyRequests, NotFound, MalformedRequest, RequestTimeout, RequestInFlight,
        IdempotencyKeyUsed, RetryRefused, BodyTooLarge, UnsupportedMediaType, InvalidRequest, IdempotencyKeyReused;
    /// Of a person's decision.
    Resolving: Unauthorized, Forbidden, TooManyRequests, NotFound, MalformedRequest, RequestTimeout, RequestInFlight,
        ResolutionRefused, BodyTooLarge, UnsupportedMediaType, InvalidRequest, IdempotencyKeyReused;
}
