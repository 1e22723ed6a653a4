//! Metrics of the payment service. Every label set exists from the start, so that a rate over it is right from the first event on.

use std::{sync::Arc, time::Duration};

use prometheus::{
    Gauge, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry, core::Collector,
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

/// All metrics of this process.
#[derive(Debug)]
pub struct Metrics {
    /// Payments created, by PSP.
    pub payments_created: IntCounterVec,
    /// Payment orders that were opened after a failure, by PSP.
    pub payments_retried: IntCounterVec,
    /// Reviews that a person has ended, by the outcome.
    pub reviews_resolved: IntCounterVec,
    /// Requests with a known idempotency key, by what they got.
    pub idempotency: IntCounterVec,
    /// Duration of requests.
    pub http: HistogramVec,
    /// Records per transaction.
    pub batch_size: Histogram,
    /// Duration from the first record of a batch to its commit.
    pub batch_seconds: Histogram,
    /// Times that a batch had to wait, by what for.
    pub waits: IntCounterVec,
    /// 1 while a batch waits for the database or the schema registry.
    pub waiting: IntGauge,
    /// Records between the newest of a partition and the last that was read.
    pub consumer_lag: IntGaugeVec,
    /// Assignments and revocations of partitions.
    pub rebalances: IntCounterVec,
    /// Offset commits that the broker refused or did not answer.
    pub commit_failures: IntCounter,
    /// Partitions whose committed offset is no longer in the topic: somebody must decide where to go on.
    pub offsets_out_of_range: IntCounter,
    /// Partitions without a committed offset whose first records are gone: what was there may never have been read.
    pub offsets_missing: IntCounter,
    /// How long ago the consumer's thread last came round, in seconds.
    pub consumer_beat_age: Gauge,
    /// Times that the consumer was too slow to stay in its group.
    pub max_poll_exceeded: IntCounter,
    /// Errors of the Kafka client that were not fatal.
    pub consumer_errors: IntCounter,
    /// Payments that wait for a person. The same in every instance.
    pub payments_in_review: IntGauge,
    /// Records in quarantine that nobody has settled, by reason. The same in every instance.
    pub quarantine: IntGaugeVec,
    /// Records in quarantine that have no copy on the topic of copies. The same in every instance.
    pub quarantine_uncopied: IntGauge,
    /// Copies that the brokers have acknowledged.
    pub quarantine_copies: IntCounter,
    /// Rounds of copying that left something behind.
    pub quarantine_copy_failures: IntCounter,
    processed: IntCounterVec,
    results: IntCounterVec,
    quarantined: IntCounterVec,
    event_lag: Histogram,
}

impl Metrics {
    /// Registers all metrics.
    #[expect(clippy::too_many_lines, reason = "a list, one metric after the other")]
    pub fn new(registry: &Registry) -> anyhow::Result<Arc<Self>> {
        let of = Make(registry);
        let metrics = Self {
            payments_created: of.counters("payments_created_total", "Payments created.", &["psp"])?,
            payments_retried: of.counters(
                "payments_retried_total",
                "Payment orders opened after a failure.",
                &["psp"],
            )?,
            reviews_resolved: of.counters(
                "reviews_resolved_total",
                "Reviews that a person has ended, by the outcome.",
                &["outcome"],
            )?,
            idempotency: of.counters(
                "idempotency_requests_total",
                "Creating requests by what their key led to.",
                &["result"],
            )?,
            http: of.keep(HistogramVec::new(
                HistogramOpts::new("http_server_request_duration_seconds", "Duration of API requests.")
                    .buckets(HTTP_BUCKETS.to_vec()),
                &["method", "route", "status"],
            )?)?,
            batch_size: of.histogram(
                "batch_records",
                "Records per transaction of the consumer.",
                BATCH_BUCKETS,
            )?,
            batch_seconds: of.histogram(
                "event_processing_duration_seconds",
                "From a batch's first record to its commit.",
                HTTP_BUCKETS,
            )?,
            waits: of.counters(
                "consumer_waits_total",
                "Times a batch had to wait, by what for.",
                &["reason"],
            )?,
            waiting: of.keep(IntGauge::new(
                "consumer_waiting",
                "1 while a batch waits for the database or the registry.",
            )?)?,
            consumer_lag: of.gauges(
                "kafka_consumer_lag_records",
                "Records not read yet.",
                &["topic", "partition"],
            )?,
            rebalances: of.counters(
                "kafka_consumer_rebalances_total",
                "Partitions assigned or revoked, by kind.",
                &["kind"],
            )?,
            commit_failures: of
                .counter("kafka_consumer_commit_failures_total", "Offset commits that failed.")?,
            offsets_out_of_range: of.counter(
                "kafka_consumer_offsets_out_of_range_total",
                "Partitions whose committed offset is not in the topic: reading them has stopped.",
            )?,
            offsets_missing: of.counter(
                "kafka_consumer_offsets_missing_total",
                "Partitions without a committed offset whose first records are gone: read from what is left.",
            )?,
            consumer_beat_age: of.keep(Gauge::new(
                "consumer_beat_age_seconds",
                "How long ago the consumer's thread last came round.",
            )?)?,
            max_poll_exceeded: of.counter(
                "kafka_consumer_max_poll_exceeded_total",
                "Times the consumer was too slow for its group.",
            )?,
            consumer_errors: of
                .counter("kafka_consumer_errors_total", "Errors of the Kafka client that were not fatal.")?,
            payments_in_review: of.keep(IntGauge::new(
                "payments_in_review",
                "Payments in NEEDS_REVIEW; the same in every instance.",
            )?)?,
            quarantine: of.gauges(
                "quarantine_records",
                "Unsettled records in quarantine; the same in every instance.",
                &["reason"],
            )?,
            quarantine_uncopied: of.keep(IntGauge::new(
                "quarantine_uncopied_records",
                "Records in quarantine without a copy on the topic; the same in every instance.",
            )?)?,
            quarantine_copies: of
                .counter("quarantine_copies_total", "Copies of quarantined records on their topic.")?,
            quarantine_copy_failures: of.counter(
                "quarantine_copy_failures_total",
                "Times that quarantined records could not be copied to their topic.",
            )?,
            processed: of.counters(
                "events_processed_total",
                "Results by decision; REDELIVERED: taken before.",
                &["decision"],
            )?,
            results: of.counters("psp_results_total", "New results by what the PSP said.", &["status"])?,
            quarantined: of.counters(
                "events_quarantined_total",
                "Records set aside, by reason.",
                &["reason"],
            )?,
            event_lag: of.histogram(
                "event_lag_seconds",
                "From the PSP's answer (eventTime) to the committed state.",
                LAG_BUCKETS,
            )?,
        };
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
        for kind in ["assign", "revoke", "error"] {
            self.rebalances.with_label_values(&[kind]);
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
            let status = if makes { "201" } else { "200" };
            self.http.with_label_values(&[method, route, status]);
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

/// Makes and registers.
struct Make<'a>(&'a Registry);

impl Make<'_> {
    fn keep<C: Collector + Clone + 'static>(&self, collector: C) -> anyhow::Result<C> {
        self.0.register(Box::new(collector.clone()))?;
        Ok(collector)
    }

    fn counter(&self, name: &str, help: &str) -> anyhow::Result<IntCounter> {
        self.keep(IntCounter::new(name, help)?)
    }

    fn counters(&self, name: &str, help: &str, labels: &[&str]) -> anyhow::Result<IntCounterVec> {
        self.keep(IntCounterVec::new(Opts::new(name, help), labels)?)
    }

    fn gauges(&self, name: &str, help: &str, labels: &[&str]) -> anyhow::Result<IntGaugeVec> {
        self.keep(IntGaugeVec::new(Opts::new(name, help), labels)?)
    }

    fn histogram(&self, name: &str, help: &str, buckets: &[f64]) -> anyhow::Result<Histogram> {
        self.keep(Histogram::with_opts(HistogramOpts::new(name, help).buckets(buckets.to_vec()))?)
    }
}
