//! What the relay reports to Prometheus.

use prometheus::{Gauge, Histogram, IntCounter, IntCounterVec, IntGauge, Registry};

use crate::catalogue::Catalogue;

/// From 1 ms (a healthy relay) to an hour (an outage that was caught up).
const LAG_BUCKETS: &[f64] = &[
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0,
    3600.0,
];
/// From a single event to a whole page of a backlog.
const SIZE_BUCKETS: &[f64] = &[1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1_000.0, 3_000.0, 10_000.0];

chassis::metrics! {
    /// The relay's metrics. What is sampled by the leader is 0 in every other process, so that sums over processes are right.
    #[derive(Clone, Debug)]
    pub struct Metrics {
        /// 1 while this process leads.
        pub leader: IntGauge = "relay_leader",
        /// Times that this process became the leader.
        pub leader_transitions: IntCounter = "relay_leader_transitions_total",
        /// Times that a save met a newer leader's.
        pub fenced: IntCounter = "relay_fenced_total",
        /// Events acknowledged by the brokers, by topic.
        pub published: IntCounterVec = "outbox_published_total" by ["topic"],
        /// What interrupted publication, by what failed.
        pub failures: IntCounterVec = "outbox_publish_failures_total" by ["reason"],
        /// From the append to the brokers' acknowledgement.
        pub publish_duration: Histogram = "outbox_publish_duration_seconds" in LAG_BUCKETS,
        /// Events per batch.
        pub batch_size: Histogram = "outbox_batch_size" in SIZE_BUCKETS,
        /// Saves of progress.
        pub saves: IntCounter = "outbox_progress_saves_total",
        /// Events not published yet, counted up to 100000; sampled by the leader.
        pub pending: IntGauge = "outbox_pending_events",
        /// Age of the oldest event not published yet; sampled by the leader.
        pub oldest_pending_age: Gauge = "outbox_oldest_pending_age_seconds",
        /// Events found on the topics after a takeover, and not published again.
        pub skipped: IntCounter = "outbox_skipped_total",
        /// Events parked because they cannot be published.
        pub parked_total: IntCounter = "outbox_parked_total",
        /// Events held behind a parked one of their key.
        pub held_total: IntCounter = "outbox_held_total",
        /// Parked events that are not released; sampled by the leader.
        pub parked: IntGauge = "outbox_parked_events",
        /// Held events that are not released; sampled by the leader.
        pub held: IntGauge = "outbox_held_events",
        /// Events that the last verify found missing on the topics; sampled by the leader.
        pub missing: IntGauge = "outbox_missing_events",
        /// When the last verify ended, in seconds since 1970; 0 if there was none; sampled by the leader.
        pub verified: Gauge = "outbox_verified_timestamp_seconds",
        /// Published events whose row the database has lost; sampled by the leader.
        pub ghosts: IntGauge = "outbox_ghost_events",
        /// Size of the events' tables with their indexes; sampled by the leader.
        pub table_bytes: IntGauge = "outbox_table_bytes",
        /// When the gauges that are counted in the database were last read, in seconds since 1970; of the relays the leader reads them.
        pub gauges_read: Gauge = "gauges_read_timestamp_seconds",
        /// 1 while this relay refuses to run until rebase or adopt.
        pub halted: IntGauge = "relay_halted",
        /// Leaves of the ring emptied.
        pub recycled: IntCounter = "outbox_ring_recycled_total",
        /// Rounds of retention that failed.
        pub retention_failures: IntCounter = "outbox_retention_failures_total",
        /// Records in the leader's producer that are not acknowledged yet.
        pub producer_queue: IntGauge = "kafka_producer_queue_messages",
        /// Times that the brokers refused the producer for good, and it was made anew.
        pub producer_fatal: IntCounter = "kafka_producer_fatal_errors_total",
        /// 1 if the schema registry has answered when it was last asked; every relay asks.
        pub registry_up: IntGauge = "schema_registry_up",
    }
}

/// Values of the label `reason` of [`Metrics::failures`].
pub const FAILURE_REASONS: [&str; 5] = ["database", "halted", "kafka", "leadership", "registry"];

impl Metrics {
    /// Registers the metrics, every label set beginning at 0.
    pub fn new(registry: &Registry, catalogue: &Catalogue) -> anyhow::Result<Self> {
        let metrics = Self::register(registry)?;
        for topic in catalogue.published_topics() {
            metrics.published.with_label_values(&[&topic]);
        }
        for reason in FAILURE_REASONS {
            metrics.failures.with_label_values(&[reason]);
        }
        // Until it was asked.
        metrics.registry_up.set(1);
        Ok(metrics)
    }

    /// What is sampled by the leader, once this process is none any more.
    pub(crate) fn no_longer_sampled(&self) {
        for gauge in [
            &self.pending,
            &self.parked,
            &self.held,
            &self.missing,
            &self.ghosts,
            &self.table_bytes,
            &self.producer_queue,
        ] {
            gauge.set(0);
        }
        for gauge in [&self.oldest_pending_age, &self.verified] {
            gauge.set(0.0);
        }
    }
}
