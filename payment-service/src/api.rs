//! The HTTP API, in the order in which a request passes through it.
//!
//! ```text
//! guard (concurrency, time, metrics) -> route -> bearer token -> body (size, time, type) -> checks -> one transaction -> answer
//! ```
//! Every refusal is `application/problem+json`. A client that hangs up drops the handler, never the transaction: that one is a task of
//! its own, and its answer waits under the Idempotency-Key.

use std::{sync::Arc, time::Duration};

use axum::{
    Extension, Json, Router,
    body::Body,
    extract::{MatchedPath, Path, Request, State, rejection::PathRejection},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    middleware::{Next, from_fn_with_state},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use chassis::{
    postgres::{Disposition, disposition},
    telemetry::TraceContext,
};
use futures::StreamExt as _;
use serde::Serialize;
use sqlx::PgPool;
use tokio::{
    sync::Semaphore,
    time::{Instant, timeout},
};
use tower_http::catch_panic::CatchPanicLayer;
use uuid::Uuid;

use crate::{
    metrics::Metrics,
    payments::{self, Creation, Origin, PaymentCreated},
    problem::Problem,
    request::{PaymentRequest, check_idempotency_key},
    store::{self, OrderRow, PaymentRow, TransitionRow},
    tokens::{Caller, Tokens},
};

/// Largest body that is read.
pub const BODY_MAX_BYTES: usize = 64 * 1024;
/// A larger body is read on and thrown away up to here, so that its sender gets to read the answer.
const BODY_DISCARDED_MAX_BYTES: usize = 4 * 1024 * 1024;
/// Longest `tracestate` that is carried along (W3C Trace Context, section 3.3.1.5).
const TRACESTATE_MAX_BYTES: usize = 512;

/// What the API works with.
#[derive(Clone, Debug)]
pub struct Api(Arc<Parts>);

#[derive(Debug)]
struct Parts {
    pool: PgPool,
    metrics: Arc<Metrics>,
    tokens: Tokens,
    order_lifetime: Duration,
    request_timeout: Duration,
    permits: Semaphore,
}

/// Limits and rules of the API.
#[derive(Clone, Debug)]
pub struct ApiSettings {
    /// How long a payment order may wait for its first attempt.
    pub order_lifetime: Duration,
    /// Longest time for one request.
    pub request_timeout: Duration,
    /// Most requests at once.
    pub requests_max: usize,
}

impl Api {
    /// An API on this database.
    pub fn new(pool: PgPool, metrics: Arc<Metrics>, settings: ApiSettings) -> Self {
        let ApiSettings { order_lifetime, request_timeout, requests_max } = settings;
        let tokens = Tokens::new(pool.clone());
        let permits = Semaphore::new(requests_max.min(Semaphore::MAX_PERMITS));
        Self(Arc::new(Parts { pool, metrics, tokens, order_lifetime, request_timeout, permits }))
    }

    /// Its routes.
    pub fn router(self) -> Router {
        Router::new()
            .route("/v1/payments", post(create_payment))
            .route("/v1/payments/{payment_id}", get(show_payment))
            .route("/v1/payment-orders/{payment_order_id}", get(show_payment_order))
            .route_layer(from_fn_with_state(self.clone(), authenticate))
            .fallback(async || Problem::not_found())
            .method_not_allowed_fallback(async || Problem::method_not_allowed())
            .layer(CatchPanicLayer::custom(|_: Box<dyn std::any::Any + Send>| {
                Problem::internal().into_response()
            }))
            .layer(from_fn_with_state(self.clone(), guard))
            .with_state(self)
    }
}

/// Bounds what one request may take, and measures it.
async fn guard(State(Api(api)): State<Api>, request: Request, next: Next) -> Response {
    let began = Instant::now();
    // A label must not be made of what strangers send.
    let route = request
        .extensions()
        .get::<MatchedPath>()
        .map_or_else(|| "other".to_owned(), |path| path.as_str().to_owned());
    let method = match request.method().as_str() {
        known @ ("GET" | "HEAD" | "POST" | "PUT" | "PATCH" | "DELETE" | "OPTIONS") => known.to_owned(),
        _ => "other".to_owned(),
    };
    let response = match api.permits.try_acquire() {
        Err(_) => Problem::unavailable("too many requests at once").into_response(),
        Ok(_permit) => timeout(api.request_timeout, next.run(request))
            .await
            .unwrap_or_else(|_| Problem::unavailable("the request took too long").into_response()),
    };
    let status = response.status();
    let histogram = api.metrics.http.with_label_values(&[method.as_str(), &route, status.as_str()]);
    histogram.observe(began.elapsed().as_secs_f64());
    response
}

async fn authenticate(State(Api(api)): State<Api>, mut request: Request, next: Next) -> Response {
    let token = request.headers().get(header::AUTHORIZATION).and_then(bearer_token);
    let Some(token) = token else { return Problem::unauthorized().into_response() };
    match api.tokens.find(token).await {
        Ok(Some(caller)) => {
            request.extensions_mut().insert(caller);
            next.run(request).await
        }
        Ok(None) => Problem::unauthorized().into_response(),
        // Whose token it is nobody knows: that is not to say that it is nobody's.
        Err(error) => database_problem(&error, "").into_response(),
    }
}

fn bearer_token(header: &HeaderValue) -> Option<&[u8]> {
    let (scheme, token) = header.as_bytes().split_at_checked("Bearer ".len())?;
    scheme.eq_ignore_ascii_case(b"Bearer ").then(|| token.trim_ascii())
}

async fn create_payment(
    State(Api(api)): State<Api>,
    Extension(caller): Extension<Caller>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let mut keys = headers.get_all("idempotency-key").iter();
    let idempotency_key = check_idempotency_key(keys.next().map(HeaderValue::as_bytes))?;
    if keys.next().is_some() {
        return Err(Problem::malformed("the header Idempotency-Key must occur once"));
    }
    if !is_json(&headers) {
        return Err(Problem::not_json());
    }
    let body =
        timeout(api.request_timeout / 2, read_body(body)).await.map_err(|_| Problem::body_too_slow())??;
    let request = PaymentRequest::read(&body)?;
    let (trace, tracestate) = trace_of(&headers);
    let origin = Origin { caller: caller.name, idempotency_key, trace, tracestate };
    let psp = request.psp.as_str();
    let created = payments::create(&api.pool, origin, request, api.order_lifetime).await;
    let count = |result: &str| api.metrics.idempotency.with_label_values(&[result]).inc();
    match created {
        Ok(Creation::New(payment)) => {
            count("new");
            api.metrics.payments_created.with_label_values(&[psp]).inc();
            let (payment_id, payment_order_id) = (payment.payment_id, payment.payment_order_id);
            tracing::info!(trace_id = payment.trace_id, %payment_order_id, %payment_id, "payment created");
            Ok(created_answer(&payment, false))
        }
        Ok(Creation::Replayed(payment)) => {
            count("replay");
            Ok(created_answer(&payment, true))
        }
        Ok(Creation::KeyReused) => {
            count("mismatch");
            Err(Problem::key_reused())
        }
        Err(error) => {
            let problem = creation_problem(&error, &trace);
            if matches!(sqlstate(&error).as_deref(), Some("55P03")) {
                count("in_flight");
            }
            Err(problem)
        }
    }
}

fn created_answer(payment: &PaymentCreated, replayed: bool) -> Response {
    let location = format!("/v1/payments/{}", payment.payment_id);
    let mut response = (StatusCode::CREATED, [(header::LOCATION, location)], Json(payment)).into_response();
    if replayed {
        response.headers_mut().insert("idempotency-replayed", HeaderValue::from_static("true"));
    }
    response
}

fn sqlstate(error: &sqlx::Error) -> Option<String> {
    error.as_database_error().and_then(sqlx::error::DatabaseError::code).map(std::borrow::Cow::into_owned)
}

fn creation_problem(error: &sqlx::Error, trace: &TraceContext) -> Problem {
    let constraint = error.as_database_error().and_then(sqlx::error::DatabaseError::constraint);
    match sqlstate(error).as_deref() {
        // The row of the key is locked by the first request.
        Some("55P03") => Problem::in_flight(),
        Some("23505") if constraint == Some("payment_orders_pkey") => Problem::key_used_up(),
        _ => database_problem(error, &trace.trace_id()),
    }
}

fn database_problem(error: &sqlx::Error, trace_id: &str) -> Problem {
    tracing::error!(trace_id, error = %error, "the database did not do what a request needed");
    match disposition(error) {
        Disposition::Wait => Problem::unavailable("the database cannot be reached or is busy"),
        Disposition::Culprit | Disposition::Fault => Problem::internal(),
    }
}

fn is_json(headers: &HeaderMap) -> bool {
    let content_type =
        headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let media_type = content_type.split(';').next().unwrap_or_default().trim();
    media_type.eq_ignore_ascii_case("application/json")
}

async fn read_body(body: Body) -> Result<Vec<u8>, Problem> {
    let mut stream = body.into_data_stream();
    let (mut bytes, mut length) = (Vec::new(), 0_usize);
    while let Some(chunk) = stream.next().await {
        let chunk = chunk.map_err(|_| Problem::malformed("the body ended before its announced length"))?;
        length = length.saturating_add(chunk.len());
        if length <= BODY_MAX_BYTES {
            bytes.extend_from_slice(&chunk);
        } else if length > BODY_DISCARDED_MAX_BYTES {
            break;
        }
    }
    if length > BODY_MAX_BYTES { Err(Problem::too_large(BODY_MAX_BYTES)) } else { Ok(bytes) }
}

/// The caller's trace, continued; a new one if there is none or it cannot be read.
fn trace_of(headers: &HeaderMap) -> (TraceContext, Option<String>) {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    match text("traceparent").and_then(TraceContext::parse) {
        None => (TraceContext::new_trace(), None),
        Some(trace) => {
            let state = text("tracestate").filter(|state| (1..=TRACESTATE_MAX_BYTES).contains(&state.len()));
            (trace.child(), state.map(str::to_owned))
        }
    }
}

#[derive(Serialize)]
struct PaymentAnswer {
    #[serde(flatten)]
    payment: PaymentRow,
    payment_orders: Vec<OrderRow>,
}

async fn show_payment(
    State(Api(api)): State<Api>,
    Extension(caller): Extension<Caller>,
    id: Result<Path<Uuid>, PathRejection>,
) -> Result<Response, Problem> {
    let Path(payment_id) = id.map_err(|_| Problem::not_found())?;
    let found = store::payment(&api.pool, &caller.name, payment_id)
        .await
        .map_err(|error| database_problem(&error, ""))?;
    let (payment, payment_orders) = found.ok_or_else(Problem::not_found)?;
    Ok(Json(PaymentAnswer { payment, payment_orders }).into_response())
}

#[derive(Serialize)]
struct PaymentOrderAnswer {
    #[serde(flatten)]
    payment_order: OrderRow,
    transitions: Vec<TransitionRow>,
}

async fn show_payment_order(
    State(Api(api)): State<Api>,
    Extension(caller): Extension<Caller>,
    id: Result<Path<Uuid>, PathRejection>,
) -> Result<Response, Problem> {
    let Path(id) = id.map_err(|_| Problem::not_found())?;
    let found = store::payment_order(&api.pool, &caller.name, id)
        .await
        .map_err(|error| database_problem(&error, ""))?;
    let (payment_order, transitions) = found.ok_or_else(Problem::not_found)?;
    Ok(Json(PaymentOrderAnswer { payment_order, transitions }).into_response())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scheme_is_bearer_in_any_case() {
        let header = HeaderValue::from_static;
        assert_eq!(bearer_token(&header("Bearer x")), Some(b"x".as_slice()));
        assert_eq!(bearer_token(&header("bearer  x ")), Some(b"x".as_slice()));
        assert_eq!(bearer_token(&header("Basic eDp4")), None);
        assert_eq!(bearer_token(&header("Bearer")), None);
    }
}
