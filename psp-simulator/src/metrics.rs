//! What the simulator reports to Prometheus.

use axum::{
    extract::{MatchedPath, Request, State},
    http::header::CONTENT_TYPE,
    middleware::Next,
    response::{IntoResponse, Response},
};
use prometheus::{IntCounterVec, IntGauge, Opts, Registry, TextEncoder};

use crate::ledger::Summary;

/// The simulator's metrics.
#[derive(Clone, Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    requests: IntCounterVec,
    charges: IntGauge,
    double_charged: IntGauge,
}

impl Metrics {
    /// Registers the metrics.
    pub(crate) fn new() -> anyhow::Result<Self> {
        let metrics = Self {
            registry: Registry::new(),
            requests: IntCounterVec::new(
                Opts::new("psp_simulator_requests_total", "Requests answered, by route and HTTP status."),
                &["route", "status"],
            )?,
            charges: IntGauge::new("psp_simulator_charges", "Charges in the ledger.")?,
            double_charged: IntGauge::new(
                "psp_simulator_double_charged",
                "Payment orders with more than one charge.",
            )?,
        };
        metrics.registry.register(Box::new(metrics.requests.clone()))?;
        metrics.registry.register(Box::new(metrics.charges.clone()))?;
        metrics.registry.register(Box::new(metrics.double_charged.clone()))?;
        Ok(metrics)
    }

    /// The text that Prometheus reads; the ledger is looked at when it is asked for.
    pub(crate) fn scrape(&self, ledger: &Summary) -> Response {
        self.charges.set(i64::try_from(ledger.charges).unwrap_or(i64::MAX));
        self.double_charged.set(i64::try_from(ledger.double_charged).unwrap_or(i64::MAX));
        match TextEncoder::new().encode_to_string(&self.registry.gather()) {
            Ok(text) => ([(CONTENT_TYPE, prometheus::TEXT_FORMAT)], text).into_response(),
            Err(error) => (axum::http::StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
        }
    }
}

/// Counts every answer under its route; what is withheld is not answered.
pub(crate) async fn count(State(metrics): State<Metrics>, request: Request, next: Next) -> Response {
    let route = request.extensions().get::<MatchedPath>().map(|path| path.as_str().to_owned());
    let response = next.run(request).await;
    let route = route.as_deref().unwrap_or("none");
    metrics.requests.with_label_values(&[route, response.status().as_str()]).inc();
    response
}
