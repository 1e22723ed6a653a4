//! The HTTP API, in the order in which a request passes through it.
//!
//! ```text
//! guard (concurrency, time, metrics) -> route -> access (token, rate, role) -> body (key, size, time, type) -> checks -> one transaction
//!   -> answers
//! ```
//! Every refusal is `application/problem+json`. A client that hangs up drops the handler, never the transaction: that one is a task of
//! its own, and its answer waits under the Idempotency-Key.

mod access;
mod answers;
mod body;
mod guard;
mod openapi;
mod payment_orders;
mod payments;

use std::{num::NonZeroU32, sync::Arc, time::Duration};

use axum::{Extension, Router, middleware::from_fn_with_state, response::IntoResponse as _};
use chassis::{shutdown::Shutdown, telemetry::TraceContext};
use sqlx::PgPool;
use tokio::sync::Semaphore;
use tower_http::catch_panic::CatchPanicLayer;
use utoipa_axum::{router::OpenApiRouter, routes};

pub use self::body::BODY_MAX_BYTES;
use crate::{metrics::Metrics, payments::Creations, problem::Problem, tokens::Tokens};

/// What the API works with.
#[derive(Clone, Debug)]
pub struct Api(Arc<Parts>);

/// The span that a request is answered in, if there is one.
#[derive(Clone, Copy, Debug)]
struct Within(TraceContext);

#[derive(Debug)]
struct Parts {
    pool: PgPool,
    creations: Creations,
    metrics: Arc<Metrics>,
    tokens: Tokens,
    rates: access::Rates,
    settings: ApiSettings,
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
    /// Requests per second of one token.
    pub rate_per_token: NonZeroU32,
}

impl Api {
    /// An API on this database.
    pub fn new(
        pool: PgPool,
        metrics: Arc<Metrics>,
        tokens: Tokens,
        settings: ApiSettings,
        shutdown: &Shutdown,
    ) -> Self {
        let creations = Creations::start(pool.clone(), settings.order_lifetime, shutdown);
        let permits = Semaphore::new(settings.requests_max.min(Semaphore::MAX_PERMITS));
        let rates = access::Rates::new(settings.rate_per_token);
        Self(Arc::new(Parts { pool, creations, metrics, tokens, rates, settings, permits }))
    }

    /// Its routes. Every one of them is in the document: there is no other way to add one.
    pub fn router(self) -> Router {
        let (router, document) = self.documented().split_for_parts();
        router
            .layer(Extension(openapi::Served::new(&document)))
            .fallback(async || Problem::not_found())
            .method_not_allowed_fallback(async || Problem::method_not_allowed())
            .layer(CatchPanicLayer::custom(|_: Box<dyn std::any::Any + Send>| {
                Problem::internal().into_response()
            }))
            .layer(from_fn_with_state(self.clone(), guard::guard))
            .with_state(self)
    }

    fn documented(&self) -> OpenApiRouter<Self> {
        let closed = OpenApiRouter::default()
            .routes(routes!(payments::list, payments::create))
            .routes(routes!(payments::show))
            .routes(routes!(payments::retry))
            .routes(routes!(payment_orders::show))
            .routes(routes!(payment_orders::resolve))
            .route_layer(from_fn_with_state(self.clone(), access::authenticate));
        OpenApiRouter::with_openapi(openapi::head()).merge(closed).routes(routes!(openapi::show))
    }

    /// How long a body may take: so that what is done with it is done in time as well.
    fn body_within(&self) -> Duration {
        self.0.settings.request_timeout / 2
    }
}
