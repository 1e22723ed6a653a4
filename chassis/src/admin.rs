//! The port for operators: `/metrics` (Prometheus text format); `/livez`: the process runs, and its loops turn; `/readyz`: it does all of
//! its work; `/readyz/requests`: it answers requests, for whoever sends it some. What is missing stands in the answer.

use std::{net::SocketAddr, time::Duration};

use anyhow::Context as _;
use axum::{
    Router, extract::State, http::StatusCode, http::header::CONTENT_TYPE, response::IntoResponse,
    routing::get,
};
use prometheus::{Encoder as _, IntGaugeVec, Opts, Registry, TextEncoder};
use tokio::net::TcpListener;
use tower_http::timeout::TimeoutLayer;

use crate::{config::AdminConfig, shutdown::Shutdown};

pub use crate::needs::Readiness;

/// A metrics registry with what every process reports: memory, CPU, open files, and its version.
pub fn new_metrics_registry(version: &str) -> anyhow::Result<Registry> {
    let registry = Registry::new();
    registry.register(Box::new(prometheus::process_collector::ProcessCollector::for_self()))?;
    let build = IntGaugeVec::new(Opts::new("build_info", "Always 1; the version is a label."), &["version"])?;
    build.with_label_values(&[version]).set(1);
    registry.register(Box::new(build))?;
    Ok(registry)
}

/// Binds the admin port and serves it until shutdown. Bind before any work begins, so that a taken port is found at once.
pub async fn serve(
    config: &AdminConfig,
    registry: Registry,
    readiness: Readiness,
    shutdown: &Shutdown,
) -> anyhow::Result<SocketAddr> {
    let listener = TcpListener::bind(config.admin_listen)
        .await
        .with_context(|| format!("admin port {} could not be opened", config.admin_listen))?;
    let address = listener.local_addr()?;
    let app = Router::new()
        .route("/livez", get(livez))
        .route("/readyz", get(async |State(readiness): State<Readiness>| ready(&readiness.waits_for(false))))
        .route(
            "/readyz/requests",
            get(async |State(readiness): State<Readiness>| ready(&readiness.waits_for(true))),
        )
        .with_state(readiness)
        .route("/metrics", get(metrics).with_state(registry))
        .layer(TimeoutLayer::with_status_code(StatusCode::SERVICE_UNAVAILABLE, Duration::from_secs(5)));
    let stop = shutdown.clone();
    shutdown.spawn("admin port", async move {
        axum::serve(listener, app)
            .with_graceful_shutdown(async move { stop.wait().await })
            .await
            .context("admin port")
    });
    tracing::info!(%address, "admin port open");
    Ok(address)
}

async fn livez(State(readiness): State<Readiness>) -> (StatusCode, String) {
    let stuck = readiness.stuck();
    if stuck.is_empty() { (StatusCode::OK, "alive\n".to_owned()) } else { not(&stuck, "stuck") }
}

fn ready(waits_for: &[String]) -> (StatusCode, String) {
    if waits_for.is_empty() { (StatusCode::OK, "ready\n".to_owned()) } else { not(waits_for, "not ready") }
}

fn not(reasons: &[String], what: &str) -> (StatusCode, String) {
    (StatusCode::SERVICE_UNAVAILABLE, format!("{what}\n{}\n", reasons.join("\n")))
}

async fn metrics(State(registry): State<Registry>) -> impl IntoResponse {
    let mut body = Vec::new();
    match TextEncoder::new().encode(&registry.gather(), &mut body) {
        Ok(()) => (StatusCode::OK, [(CONTENT_TYPE, prometheus::TEXT_FORMAT)], body),
        Err(error) => (
            StatusCode::INTERNAL_SERVER_ERROR,
            [(CONTENT_TYPE, "text/plain")],
            error.to_string().into_bytes(),
        ),
    }
}
