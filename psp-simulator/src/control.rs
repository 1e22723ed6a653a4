//! What testers ask of the simulator itself: ledger, clock, scenarios, webhooks, metrics.

use std::sync::Arc;

use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::{Value, json};
use time::format_description::well_known::Rfc3339;

use crate::scenario::{Psp, SCENARIOS};
use crate::webhooks::Mischief;
use crate::{World, adyen, stripe};

type Shared = State<Arc<World>>;

pub(crate) fn routes() -> Router<Arc<World>> {
    Router::new()
        .route("/simulator/ledger", get(ledger))
        .route("/simulator/ledger/summary", get(summary))
        .route("/simulator/clock", get(clock).post(advance))
        .route("/simulator/scenarios", get(scenarios))
        .route("/simulator/webhooks", get(webhooks).post(set_webhooks))
        .route("/metrics", get(async |State(world): Shared| world.metrics.scrape(&world.ledger.summary())))
        .route("/livez", get(async || "ok\n"))
}

#[derive(Debug, Deserialize)]
struct PageQuery {
    #[serde(default)]
    after: usize,
    limit: Option<usize>,
}

async fn ledger(State(world): Shared, Query(page): Query<PageQuery>) -> Response {
    Json(world.ledger.page(page.after, page.limit)).into_response()
}

async fn summary(State(world): Shared) -> Response {
    Json(world.ledger.summary()).into_response()
}

async fn clock(State(world): Shared) -> Response {
    show_clock(&world)
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Advance {
    advance_seconds: i64,
}

async fn advance(State(world): Shared, Json(by): Json<Advance>) -> Response {
    if !world.clock.advance(by.advance_seconds) {
        let error =
            json!({ "error": "advance_seconds is negative, or takes the clock more than ten years ahead" });
        return (StatusCode::BAD_REQUEST, Json(error)).into_response();
    }
    tracing::info!(advance_seconds = by.advance_seconds, "the clock was moved on");
    show_clock(&world)
}

fn show_clock(world: &World) -> Response {
    match world.clock.now().format(&Rfc3339) {
        Ok(now) => Json(json!({ "now": now, "ahead_seconds": world.clock.ahead_seconds() })).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

async fn webhooks(State(world): Shared) -> Response {
    Json(world.webhooks.report()).into_response()
}

/// What is not named stops.
async fn set_webhooks(State(world): Shared, Json(mischief): Json<Mischief>) -> Response {
    if let Err(error) = mischief.check() {
        return (StatusCode::BAD_REQUEST, Json(json!({ "error": error }))).into_response();
    }
    world.webhooks.set_mischief(mischief);
    tracing::info!(?mischief, "the tricks played on webhooks were changed");
    Json(world.webhooks.report()).into_response()
}

async fn scenarios() -> Response {
    let prefixes = [(Psp::Stripe, stripe::methods::PREFIX), (Psp::Adyen, adyen::TOKEN_PREFIX)];
    let scenarios = SCENARIOS.iter().map(|scenario| {
        let tokens: serde_json::Map<String, Value> = (prefixes.iter())
            .filter(|(psp, _)| scenario.at(*psp))
            .map(|(psp, prefix)| (psp.name().to_owned(), format!("{prefix}{}", scenario.name).into()))
            .collect();
        json!({ "name": scenario.name, "what_happens": scenario.what_happens, "tokens": tokens })
    });
    let scenarios: Vec<Value> = scenarios.collect();
    Json(json!({ "scenarios": scenarios })).into_response()
}
