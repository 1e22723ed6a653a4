//! The console: three pages for operators, rendered here, that work without a script.
//!
//! ```text
//! guard (room, time, metrics, headers) -> route -> session -> (POST: Origin, form token) -> page -> one look at each database -> HTML
//!
//! /console/payments            what there is                                          payments
//! /console/payments/{id}       one payment, from the request to its state             payment, timeline
//! /console/attention           what needs a person                                    attention
//! /console/attention/...       what is asked, and confirmed; what came of it          actions, resolve, outcome
//! ```
//! It reads and asks through connections of its own, as a role that may do what an operator may and nothing else
//! (`payments.grant_console()`); the executor's database is looked at where a way to it is given. What is away is said to be away on the
//! page; everything else is shown all the same.
//!
//! Whoever signs in shows an operator's token, and gets a session: 256 random bits in a cookie that no script and no other site can
//! use. What is changed bears the operator's name and a reason.

mod actions;
mod attempts;
mod attention;
mod glance;
mod outcome;
mod pages;
mod payment;
mod payments;
mod resolve;
mod session;
mod timeline;

use std::{sync::Arc, time::Duration};

use anyhow::Context as _;
use axum::{
    Extension, Router,
    extract::{DefaultBodyLimit, MatchedPath, Request, State},
    http::{HeaderValue, StatusCode, header},
    middleware::{Next, from_fn_with_state},
    response::{IntoResponse, Redirect, Response},
    routing::{get, post},
};
use secrecy::SecretString;
use sqlx::{PgPool, postgres::PgPoolOptions};
use tokio::{
    sync::Semaphore,
    time::{Instant, timeout},
};
use tower_http::catch_panic::CatchPanicLayer;

use self::{
    attempts::Attempts,
    pages::{Frame, Room, Trouble, message},
    session::{Origin, SignedIn},
};
use crate::{config::ConsoleConfig, metrics::Metrics, tokens::Tokens};

/// Largest form that is read.
const FORM_MAX_BYTES: usize = 16 * 1024;
/// Connections to each database. A page takes up to four at once.
const POOL_SIZE: u32 = 8;
/// Longest time that a page waits for one of them, and for one statement. A database that is away must not take the page with it.
const CONNECT_MAX: Duration = Duration::from_secs(2);
const STATEMENT_MAX: &str = "3s";
/// Longest time for one page.
const PAGE_MAX: Duration = Duration::from_secs(15);
/// Most pages at once. Operators are few, and payments come first.
const PAGES_MAX: usize = 16;

/// What the console works with.
#[derive(Clone, Debug)]
pub(crate) struct Console(Arc<Parts>);

#[derive(Debug)]
struct Parts {
    /// The payment service's database, as the console's role.
    payments: PgPool,
    /// The executor's database, where a way to it is given.
    executor: Option<PgPool>,
    /// The payment service's database as the service: what changes a payment goes the same way as through the API.
    service: PgPool,
    tokens: Tokens,
    metrics: Arc<Metrics>,
    origin: Origin,
    session_lifetime: Duration,
    attempts: Attempts,
    permits: Semaphore,
    stylesheet: pages::Stylesheet,
}

/// A pool for looking: it opens connections when they are needed, plans each statement for what it is given, and gives up soon.
fn pool(url: &SecretString, application: &str) -> anyhow::Result<PgPool> {
    let options = chassis::postgres::connect_options(url, application)?.options([
        ("statement_timeout", STATEMENT_MAX),
        ("plan_cache_mode", "force_custom_plan"),
        ("jit", "off"),
    ]);
    Ok(PgPoolOptions::new()
        .max_connections(POOL_SIZE)
        .acquire_timeout(CONNECT_MAX)
        .idle_timeout(Duration::from_mins(1))
        .connect_lazy_with(options))
}

/// Whether it is known how browsers call the console.
pub(crate) fn check_origin(config: &ConsoleConfig, listen: std::net::SocketAddr) -> anyhow::Result<()> {
    Origin::new(config.console_origin.as_deref(), listen).map(drop)
}

impl Console {
    /// The console, if a way to its database is set. `listen` is where it will be reached, unless its origin is set.
    pub(crate) fn new(
        config: &ConsoleConfig,
        listen: std::net::SocketAddr,
        (service, tokens): (PgPool, Tokens),
        metrics: Arc<Metrics>,
    ) -> anyhow::Result<Option<Self>> {
        let Some(url) = &config.console_database_url else {
            tracing::info!("the console is off: CONSOLE_DATABASE_URL is not set, and /console answers 404");
            return Ok(None);
        };
        let origin = Origin::new(config.console_origin.as_deref(), listen)?;
        let executor = if let Some(url) = &config.executor_database_url {
            Some(pool(url, "payment-service console").context("EXECUTOR_DATABASE_URL")?)
        } else {
            tracing::info!("the console shows nothing of the executor: EXECUTOR_DATABASE_URL is not set");
            None
        };
        tracing::info!(origin = %origin, "the console is on");
        Ok(Some(Self(Arc::new(Parts {
            payments: pool(url, "payment-service console").context("CONSOLE_DATABASE_URL")?,
            executor,
            service,
            tokens,
            metrics,
            origin,
            session_lifetime: config.console_session.into(),
            attempts: Attempts::default(),
            permits: Semaphore::new(PAGES_MAX),
            stylesheet: pages::Stylesheet::new(),
        }))))
    }

    /// Its routes.
    pub(crate) fn router(self) -> Router {
        let signed_in = Router::new()
            .route("/console", get(async || Redirect::to("/console/payments")))
            .route("/console/", get(async || Redirect::to("/console/payments")))
            .route("/console/payments", get(payments::show))
            .route("/console/payments/{payment_id}", get(payment::show))
            .route("/console/attention", get(attention::show))
            .route("/console/attention/review/{payment_order_id}", get(resolve::ask).post(resolve::perform))
            .route(
                "/console/attention/quarantine/{id}/{kind}",
                get(actions::ask_quarantine).post(actions::perform_quarantine),
            )
            .route(
                "/console/attention/outbox/{outbox}/{event_id}/{kind}",
                get(actions::ask_outbox).post(actions::perform_outbox),
            )
            .route("/console/outcomes/review/{payment_order_id}", get(resolve::outcome))
            .route("/console/outcomes/quarantine/{command}", get(outcome::quarantine))
            .route("/console/outcomes/outbox/{outbox}/{command}", get(outcome::outbox))
            .route("/console/sign-out", post(session::sign_out))
            .route("/console/{*nothing}", get(nothing))
            .route_layer(from_fn_with_state(self.clone(), session::require));
        Router::new()
            .route("/console/sign-in", get(session::ask).post(session::sign_in))
            .route(self.0.stylesheet.path(), get(pages::stylesheet))
            .merge(signed_in)
            .method_not_allowed_fallback(async |State(console): State<Self>| {
                message(
                    &console,
                    StatusCode::METHOD_NOT_ALLOWED,
                    "This page cannot be asked for like that",
                    "",
                )
            })
            .layer(DefaultBodyLimit::max(FORM_MAX_BYTES))
            .layer(CatchPanicLayer::custom(|_: Box<dyn std::any::Any + Send>| {
                StatusCode::INTERNAL_SERVER_ERROR.into_response()
            }))
            .layer(from_fn_with_state(self.clone(), guard))
            .with_state(self)
    }

    /// What every page of this operator has around it.
    async fn frame(&self, who: &SignedIn, room: Room) -> Frame {
        Frame::new(self, Some(who), room, glance::look(self).await)
    }
}

/// A page that is not there.
async fn nothing(State(console): State<Console>, Extension(who): Extension<SignedIn>) -> Response {
    Trouble::NotFound("There is no such page.").page(&console, &who)
}

/// Nothing from elsewhere is part of a page, no other site may show or send it, and no cache keeps it.
const HEADERS: [(&str, &str); 6] = [
    (
        "content-security-policy",
        "default-src 'none'; style-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    ),
    ("x-content-type-options", "nosniff"),
    ("x-frame-options", "DENY"),
    // Not `no-referrer`: a browser would then send `Origin: null` with our own forms.
    ("referrer-policy", "same-origin"),
    ("cross-origin-opener-policy", "same-origin"),
    ("cross-origin-resource-policy", "same-origin"),
];

/// Bounds what one page may take, and measures it.
async fn guard(State(console): State<Console>, request: Request, next: Next) -> Response {
    let began = Instant::now();
    let parts = &console.0;
    let route = request
        .extensions()
        .get::<MatchedPath>()
        .map_or_else(|| "other".to_owned(), |path| path.as_str().to_owned());
    let method = match request.method().as_str() {
        known @ ("GET" | "HEAD" | "POST") => known.to_owned(),
        _ => "other".to_owned(),
    };
    let mut response = match parts.permits.try_acquire() {
        Err(_) => message(
            &console,
            StatusCode::SERVICE_UNAVAILABLE,
            "Too many pages at once",
            "Try again in a moment.",
        ),
        Ok(_permit) => timeout(PAGE_MAX, next.run(request)).await.unwrap_or_else(|_| {
            message(
                &console,
                StatusCode::SERVICE_UNAVAILABLE,
                "The page took too long",
                "What was asked for may have been done: look before you ask again.",
            )
        }),
    };
    let headers = response.headers_mut();
    for (name, value) in HEADERS {
        headers.insert(name, HeaderValue::from_static(value));
    }
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    let status = response.status();
    let histogram = parts.metrics.http.with_label_values(&[method.as_str(), &route, status.as_str()]);
    histogram.observe(began.elapsed().as_secs_f64());
    response
}
