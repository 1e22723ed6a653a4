//! What the relay reports to Prometheus.

use prometheus::{Gauge, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, Opts, Registry};

use crate::catalogue::Catalogue;

/// From 1 ms (a healthy relay) to an hour (an outage that was caught up).
const LAG_BUCKETS: &[f64] = &[
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0,
    3600.0,
];

/// The relay's metrics.
#[derive(Clone, Debug)]
pub struct Metrics {
    /// 1 while this process leads.
    pub leader: IntGauge,
    /// Times that this process became the leader.
    pub leader_transitions: IntCounter,
    /// Times that a save met a newer leader's.
    pub fenced: IntCounter,
    /// Events acknowledged by the brokers.
    pub published: IntCounterVec,
    /// Terms that ended with an error, by what failed.
    pub failures: IntCounterVec,
    /// From the append to the brokers' acknowledgement.
    pub publish_duration: Histogram,
    /// Events per batch.
    pub batch_size: Histogram,
    /// Saves of progress.
    pub saves: IntCounter,
    /// Events that wait, counted up to 100,000; sampled by the leader.
    pub pending: IntGauge,
    /// Age of the oldest that waits; sampled by the leader.
    pub oldest_pending_age: Gauge,
}

/// Values of the label `reason` of [`Metrics::failures`].
pub const FAILURE_REASONS: [&str; 4] = ["database", "kafka", "leadership", "unpublishable"];

impl Metrics {
    /// Registers the metrics, every label set beginning at 0.
    pub fn new(registry: &Registry, catalogue: &Catalogue) -> anyhow::Result<Self> {
        let metrics = Self {
            leader: IntGauge::new("relay_leader", "1 while this process leads.")?,
            leader_transitions: IntCounter::new(
                "relay_leader_transitions_total",
                "Times that this process became the leader.",
            )?,
            fenced: IntCounter::new("relay_fenced_total", "Times that a save met a newer leader's.")?,
            published: IntCounterVec::new(
                Opts::new("outbox_published_total", "Events acknowledged by the brokers."),
                &["topic"],
            )?,
            failures: IntCounterVec::new(
                Opts::new(
                    "outbox_publish_failures_total",
                    "Terms of leadership that ended with an error, by what failed.",
                ),
                &["reason"],
            )?,
            publish_duration: Histogram::with_opts(
                HistogramOpts::new(
                    "outbox_publish_duration_seconds",
                    "From the append to the brokers' acknowledgement.",
                )
                .buckets(LAG_BUCKETS.to_vec()),
            )?,
            batch_size: Histogram::with_opts(
                HistogramOpts::new("outbox_batch_size", "Events per batch.")
                    .buckets(vec![1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1_000.0, 3_000.0, 10_000.0]),
            )?,
            saves: IntCounter::new("outbox_progress_saves_total", "Saves of progress.")?,
            pending: IntGauge::new(
                "outbox_pending_events",
                "Events not published yet, counted up to 100000, sampled by the leader.",
            )?,
            oldest_pending_age: Gauge::new(
                "outbox_oldest_pending_age_seconds",
                "Age of the oldest event not published yet, sampled by the leader.",
            )?,
        };
        for topic in catalogue.topics.keys() {
            metrics.published.with_label_values(&[topic]).inc_by(0);
        }
        for reason in FAILURE_REASONS {
            metrics.failures.with_label_values(&[reason]).inc_by(0);
        }
        registry.register(Box::new(metrics.leader.clone()))?;
        registry.register(Box::new(metrics.leader_transitions.clone()))?;
        registry.register(Box::new(metrics.fenced.clone()))?;
        registry.register(Box::new(metrics.published.clone()))?;
        registry.register(Box::new(metrics.failures.clone()))?;
        registry.register(Box::new(metrics.publish_duration.clone()))?;
        registry.register(Box::new(metrics.batch_size.clone()))?;
        registry.register(Box::new(metrics.saves.clone()))?;
        registry.register(Box::new(metrics.pending.clone()))?;
        registry.register(Box::new(metrics.oldest_pending_age.clone()))?;
        Ok(metrics)
    }
}
