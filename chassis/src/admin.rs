//! The port for operators: `/metrics` (Prometheus text format); `/livez`: the process runs, and its loops turn; `/readyz`: it does all of
//! its work; `/readyz/requests`: it answers requests, for whoever sends it some. What is missing stands in the answer.

use std::{
    net::SocketAddr,
    sync::{
        Once,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::Context as _;
use axum::{
    Router, extract::State, http::StatusCode, http::header::CONTENT_TYPE, response::IntoResponse,
    routing::get,
};
use prometheus::{Encoder as _, IntCounter, IntGauge, IntGaugeVec, Registry, TextEncoder};
use tokio::net::TcpListener;
use tower_http::timeout::TimeoutLayer;

use crate::{config::AdminConfig, shutdown::Shutdown};

pub use crate::needs::Readiness;

crate::metrics! {
    struct BuildMetrics {
        /// Always 1; the version is a label.
        build: IntGaugeVec = "build_info" by ["version"],
    }
}

crate::metrics! {
    /// What changes while the process runs.
    #[derive(Clone, Debug)]
    struct ProcessMetrics {
        /// 1 while the process can do its work, as `/readyz` says.
        ready: IntGauge = "process_ready",
        /// Panics, whatever became of them: of a task, the end of the process; of a request, an answer 500.
        panics: IntCounter = "panics_total",
        /// Tasks of the asynchronous runtime that have not ended.
        tasks: IntGauge = "tokio_alive_tasks",
        /// Tasks that are ready to go on and wait for a thread of the runtime.
        queued: IntGauge = "tokio_global_queue_tasks",
    }
}

/// A panic hook belongs to the process, so its count does.
static PANICS: AtomicU64 = AtomicU64::new(0);

fn count_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let told = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            PANICS.fetch_add(1, Ordering::Relaxed);
            told(panic);
        }));
    });
}

/// A metrics registry with what every process reports: memory, CPU, open files, and its version.
pub fn new_metrics_registry(version: &str) -> anyhow::Result<Registry> {
    let registry = Registry::new();
    registry.register(Box::new(prometheus::process_collector::ProcessCollector::for_self()))?;
    BuildMetrics::register(&registry)?.build.with_label_values(&[version]).set(1);
    Ok(registry)
}

/// Binds the admin port and serves it until shutdown. Bind before any work begins, so that a taken port is found at once.
pub async fn serve(
    config: &AdminConfig,
    registry: Registry,
    readiness: Readiness,
    shutdown: &Shutdown,
) -> anyhow::Result<SocketAddr> {
    count_panics();
    let metrics = ProcessMetrics::register(&registry)?;
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
        .with_state(readiness.clone())
        .route("/metrics", get(scraped).with_state((registry, metrics, readiness)))
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

async fn scraped(
    State((registry, metrics, readiness)): State<(Registry, ProcessMetrics, Readiness)>,
) -> impl IntoResponse {
    metrics.ready.set(i64::from(readiness.ready()));
    metrics.panics.inc_by(PANICS.load(Ordering::Relaxed).saturating_sub(metrics.panics.get()));
    let runtime = tokio::runtime::Handle::current().metrics();
    metrics.tasks.set(i64::try_from(runtime.num_alive_tasks()).unwrap_or(i64::MAX));
    metrics.queued.set(i64::try_from(runtime.global_queue_depth()).unwrap_or(i64::MAX));
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
