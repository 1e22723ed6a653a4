//! What the relay reports to Prometheus.

use prometheus::{
    Gauge, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, Opts, Registry, core::Collector,
};

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
    /// What interrupted publication, by what failed.
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
    /// Events found on the topics after a takeover, and not published again.
    pub skipped: IntCounter,
    /// Events parked because they cannot be published.
    pub parked_total: IntCounter,
    /// Events held behind a parked one of their key.
    pub held_total: IntCounter,
    /// Parked events that are not released; sampled by the leader.
    pub parked: IntGauge,
    /// Held events that are not released; sampled by the leader.
    pub held: IntGauge,
    /// What the last verification found missing; sampled by the leader.
    pub missing: IntGauge,
    /// Published events without a row; sampled by the leader.
    pub ghosts: IntGauge,
    /// 1 while this relay refuses to run.
    pub halted: IntGauge,
    /// Leaves of the ring emptied.
    pub recycled: IntCounter,
    /// Rounds of retention that failed.
    pub retention_failures: IntCounter,
}

/// Values of the label `reason` of [`Metrics::failures`].
pub const FAILURE_REASONS: [&str; 5] = ["database", "halted", "kafka", "leadership", "registry"];

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
                Opts::new("outbox_publish_failures_total", "Interruptions of publication, by what failed."),
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
            skipped: IntCounter::new(
                "outbox_skipped_total",
                "Events found on the topics after a takeover, and not published again.",
            )?,
            parked_total: IntCounter::new(
                "outbox_parked_total",
                "Events parked because they cannot be published.",
            )?,
            held_total: IntCounter::new(
                "outbox_held_total",
                "Events held behind a parked one of their key.",
            )?,
            parked: IntGauge::new(
                "outbox_parked_events",
                "Parked events not released, sampled by the leader.",
            )?,
            held: IntGauge::new("outbox_held_events", "Held events not released, sampled by the leader.")?,
            missing: IntGauge::new(
                "outbox_missing_events",
                "Events that the last verify found missing on the topics, sampled by the leader.",
            )?,
            ghosts: IntGauge::new(
                "outbox_ghost_events",
                "Published events whose row the database has lost, sampled by the leader.",
            )?,
            halted: IntGauge::new(
                "relay_halted",
                "1 while this relay refuses to run until rebase or adopt.",
            )?,
            recycled: IntCounter::new("outbox_ring_recycled_total", "Leaves of the ring emptied.")?,
            retention_failures: IntCounter::new(
                "outbox_retention_failures_total",
                "Rounds of retention that failed.",
            )?,
        };
        metrics.register(registry, catalogue)?;
        Ok(metrics)
    }

    fn register(&self, registry: &Registry, catalogue: &Catalogue) -> anyhow::Result<()> {
        for topic in catalogue.published_topics() {
            self.published.with_label_values(&[&topic]).inc_by(0);
        }
        for reason in FAILURE_REASONS {
            self.failures.with_label_values(&[reason]).inc_by(0);
        }
        let collectors: [Box<dyn Collector>; 20] = [
            Box::new(self.leader.clone()),
            Box::new(self.leader_transitions.clone()),
            Box::new(self.fenced.clone()),
            Box::new(self.published.clone()),
            Box::new(self.failures.clone()),
            Box::new(self.publish_duration.clone()),
            Box::new(self.batch_size.clone()),
            Box::new(self.saves.clone()),
            Box::new(self.pending.clone()),
            Box::new(self.oldest_pending_age.clone()),
            Box::new(self.skipped.clone()),
            Box::new(self.parked_total.clone()),
            Box::new(self.held_total.clone()),
            Box::new(self.parked.clone()),
            Box::new(self.held.clone()),
            Box::new(self.missing.clone()),
            Box::new(self.ghosts.clone()),
            Box::new(self.halted.clone()),
            Box::new(self.recycled.clone()),
            Box::new(self.retention_failures.clone()),
        ];
        for collector in collectors {
            registry.register(collector)?;
        }
        Ok(())
    }
}
