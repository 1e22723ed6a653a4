//! Metrics of the payment service. Every label set exists from the start, so that a rate over it is right from the first event on.

use std::{sync::Arc, time::Duration};

use chassis::kafka::ConsumerMetrics;
use prometheus::{
    Gauge, Histogram, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Registry,
};
use schema::psp_result_update::PspStatus;

use crate::{decision::Decision, intake::QuarantineReason, intervention::Resolution};

/// From a PSP's answer to a state: milliseconds when all is well, minutes to hours after an outage.
const LAG_BUCKETS: &[f64] =
    &[0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0];
/// Of an API whose requests end after seconds.
const HTTP_BUCKETS: &[f64] =
    &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];
/// Records of a batch.
const BATCH_BUCKETS: &[f64] = &[1.0, 2.0, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1000.0, 5000.0];

/// Routes of the API, as labels.
pub const ROUTES: &[(&str, &str)] = &[
    ("GET", "/v1/payments"),
    ("POST", "/v1/payments"),
    ("POST", "/v1/payments/{payment_id}/retry"),
    ("POST", "/v1/payment-orders/{payment_order_id}/resolve"),
    ("GET", "/v1/payments/{payment_id}"),
    ("GET", "/v1/payment-orders/{payment_order_id}"),
];

chassis::metrics! {
    /// All metrics of this process.
    #[derive(Debug)]
    pub struct Metrics {
        /// The consumer of results.
        pub consumer: ConsumerMetrics,
        /// Payments created, by PSP.
        pub payments_created: IntCounterVec = "payments_created_total" by ["psp"],
        /// Payment orders that were opened after a failure, by PSP.
        pub payments_retried: IntCounterVec = "payments_retried_total" by ["psp"],
        /// Reviews that a person has ended, by the outcome.
        pub reviews_resolved: IntCounterVec = "reviews_resolved_total" by ["outcome"],
        /// Requests that need an idempotency key, by what their key led to.
        pub idempotency: IntCounterVec = "idempotency_requests_total" by ["result"],
        /// Duration of the requests of API and console.
        pub http: HistogramVec =
            "http_server_request_duration_seconds" by ["method", "route", "status"] in HTTP_BUCKETS,
        /// Records per transaction of the consumer.
        pub batch_size: Histogram = "batch_records" in BATCH_BUCKETS,
        /// From the first record of a batch to its commit.
        pub batch_seconds: Histogram = "event_processing_duration_seconds" in HTTP_BUCKETS,
        /// Times that a batch had to wait, by what for.
        pub waits: IntCounterVec = "consumer_waits_total" by ["reason"],
        /// 1 while a batch waits for the database or the schema registry.
        pub waiting: IntGauge = "consumer_waiting",
        /// Partitions whose committed offset is no longer in the topic: reading them has stopped until somebody decides where to go on.
        pub offsets_out_of_range: IntCounter = "kafka_consumer_offsets_out_of_range_total",
        /// Partitions without a committed offset whose first records are gone: what was there may never have been read.
        pub offsets_missing: IntCounter = "kafka_consumer_offsets_missing_total",
        /// How long ago the consumer's thread last came round.
        pub consumer_beat_age: Gauge = "consumer_beat_age_seconds",
        /// Payments that wait for a person. The same in every instance.
        pub payments_in_review: IntGauge = "payments_in_review",
        /// Records in quarantine that nobody has settled, by reason. The same in every instance.
        pub quarantine: IntGaugeVec = "quarantine_records" by ["reason"],
        /// Records in quarantine that have no copy on the topic of copies. The same in every instance.
        pub quarantine_uncopied: IntGauge = "quarantine_uncopied_records",
        /// When the gauges that are counted in the database were last read, in seconds since 1970; of the relays the leader reads them.
        pub gauges_read: Gauge = "gauges_read_timestamp_seconds",
        /// Copies of quarantined records that the brokers have acknowledged.
        pub quarantine_copies: IntCounter = "quarantine_copies_total",
        /// Rounds of copying quarantined records that left something behind.
        pub quarantine_copy_failures: IntCounter = "quarantine_copy_failures_total",
        /// Results by decision; REDELIVERED: taken before.
        processed: IntCounterVec = "events_processed_total" by ["decision"],
        /// New results by what the PSP said.
        results: IntCounterVec = "psp_results_total" by ["status"],
        /// Records set aside, by reason.
        quarantined: IntCounterVec = "events_quarantined_total" by ["reason"],
        /// From the PSP's answer (eventTime) to the committed state.
        event_lag: Histogram = "event_lag_seconds" in LAG_BUCKETS,
    }
}

impl Metrics {
    /// Registers all metrics, every label set at 0.
    pub fn new(registry: &Registry) -> anyhow::Result<Arc<Self>> {
        let metrics = Self::register(registry)?;
        metrics.consumer.initialise();
        metrics.initialise();
        Ok(Arc::new(metrics))
    }

    fn initialise(&self) {
        for decision in Decision::ALL {
            self.processed.with_label_values(&[decision.as_str()]);
        }
        self.processed.with_label_values(&["REDELIVERED"]);
        for status in [PspStatus::Successful, PspStatus::Failed, PspStatus::Pending, PspStatus::Unknown] {
            self.results.with_label_values(&[status.as_str()]);
        }
        for reason in QuarantineReason::ALL {
            self.quarantined.with_label_values(&[reason.as_str()]);
            self.quarantine.with_label_values(&[reason.as_str()]);
        }
        for reason in ["database", "registry"] {
            self.waits.with_label_values(&[reason]);
        }
        for psp in ["STRIPE", "ADYEN"] {
            self.payments_created.with_label_values(&[psp]);
            self.payments_retried.with_label_values(&[psp]);
        }
        for outcome in Resolution::ALL {
            self.reviews_resolved.with_label_values(&[outcome.as_str()]);
        }
        for result in ["new", "replay", "mismatch", "in_flight"] {
            self.idempotency.with_label_values(&[result]);
        }
        for (method, route) in ROUTES {
            let makes = *method == "POST" && !route.ends_with("/resolve");
            for status in [if makes { "201" } else { "200" }, "500", "503"] {
                self.http.with_label_values(&[method, route, status]);
            }
        }
    }

    /// Counts a new result. A lag below zero is a clock that differs.
    pub fn processed(&self, decision: Decision, status: PspStatus, lag: time::Duration) {
        self.processed.with_label_values(&[decision.as_str()]).inc();
        self.results.with_label_values(&[status.as_str()]).inc();
        self.event_lag.observe(Duration::try_from(lag).unwrap_or_default().as_secs_f64());
    }

    /// Counts results that had been taken before.
    pub fn redelivered(&self, count: usize) {
        self.processed.with_label_values(&["REDELIVERED"]).inc_by(u64::try_from(count).unwrap_or(u64::MAX));
    }

    /// Counts a record that was set aside.
    pub fn quarantined(&self, reason: QuarantineReason) {
        self.quarantined.with_label_values(&[reason.as_str()]).inc();
        if reason == QuarantineReason::Orphan {
            self.processed.with_label_values(&[Decision::Orphan.as_str()]).inc();
        }
    }
}
