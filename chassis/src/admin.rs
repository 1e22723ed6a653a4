//! The port for operators: `/metrics` (Prometheus text format), `/livez` (the process runs), `/readyz` (it does its work).

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::Context as _;
use axum::{
    Router, extract::State, http::StatusCode, http::header::CONTENT_TYPE, response::IntoResponse,
    routing::get,
};
use prometheus::{Encoder as _, IntGaugeVec, Opts, Registry, TextEncoder};
use tokio::net::TcpListener;
use tower_http::timeout::TimeoutLayer;

use crate::{config::AdminConfig, shutdown::Shutdown};

/// Whether the process does its work; set by the process, read by `/readyz`.
#[derive(Clone, Debug, Default)]
pub struct Readiness(Arc<AtomicBool>);

impl Readiness {
    /// Says whether the process does its work now.
    pub fn set(&self, ready: bool) {
        self.0.store(ready, Ordering::Release);
    }

    /// What was said last.
    pub fn ready(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

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
        .route("/livez", get(async || "alive\n"))
        .route("/readyz", get(readyz))
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

async fn readyz(State(readiness): State<Readiness>) -> (StatusCode, &'static str) {
    if readiness.ready() {
        (StatusCode::OK, "ready\n")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "not ready\n")
    }
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
