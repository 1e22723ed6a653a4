//! The metrics of the process. Every set of labels exists from the start, at 0.

use prometheus::{
    HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
    core::Collector,
};
use schema::{decode::Event as _, psp_result_update::PspResultUpdateEvent};

use crate::{
    breaker::State,
    psp::{Answer, Operation, Psps, declines::Kind},
    record::Source,
    request::Reason,
    webhooks::{Refusal, Sender, decision::Outcome},
};

/// A PSP answers within milliseconds on loopback, and within the timeout otherwise.
const PSP_BUCKETS: [f64; 12] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];
const STATUSES: [&str; 4] = ["SUCCESSFUL", "FAILED", "PENDING", "UNKNOWN"];

/// All of them.
#[derive(Clone, Debug)]
pub struct Metrics {
    /// Requests read from the topic and taken in, duplicates included.
    pub requests_received: IntCounter,
    /// Requests that were known already.
    pub requests_duplicate: IntCounter,
    /// Records that could not be taken in, by reason.
    pub requests_quarantined: IntCounterVec,
    /// Calls to PSPs, by what came of them; each try is one.
    pub psp_requests: IntCounterVec,
    /// Tries after the first of a call.
    pub psp_retries: IntCounterVec,
    /// Declines, by what kind of "no" they are.
    pub psp_declines: IntCounterVec,
    /// Circuit breakers: 0 closed, 1 half open, 2 open.
    pub psp_circuit_state: IntGaugeVec,
    /// How often a circuit was opened.
    pub psp_circuit_opened: IntCounterVec,
    /// How long calls to PSPs took.
    pub psp_request_duration: HistogramVec,
    /// Results recorded, by who brought them. What was known already is not counted.
    pub results_recorded: IntCounterVec,
    /// Events written to the outbox.
    pub outbox_inserts: IntCounterVec,
    /// Orders whose PSP is still to be asked.
    pub attempts_unknown: IntGauge,
    /// Age of the oldest of them.
    pub attempt_unknown_oldest_age: IntGauge,
    /// Orders that a person must look at.
    pub orders_in_review: IntGauge,
    /// Orders that the database refuses to have claimed.
    pub orders_parked: IntGauge,
    /// Claims lost to another executor before a call: leases that were too short.
    pub claims_lost: IntCounter,
    /// Events in webhooks that were verified: new, there already, or about no order at all, which are not stored.
    pub webhooks_received: IntCounterVec,
    /// Webhook requests that were refused; nothing of them is stored.
    pub webhooks_rejected: IntCounterVec,
    /// Stored events that were worked off, by what became of them.
    pub webhooks_processed: IntCounterVec,
    /// Stored events of known orders that wait to be worked off.
    pub webhooks_waiting: IntGauge,
    /// Stored events that wait for an order that is not known.
    pub webhooks_of_strangers: IntGauge,
    /// Age of the oldest of them.
    pub webhook_oldest_waiting_age: IntGauge,
    /// What each part of the process waits for, 1 while it waits.
    pub waiting: IntGaugeVec,
}

/// The values of the label `on` of `executor_waiting`.
pub const WAITING_ON: [&str; 2] = ["registry", "database"];

impl Metrics {
    /// Registers all metrics.
    pub fn new(registry: &Registry, psps: &Psps) -> anyhow::Result<Self> {
        let counter = |name: &str, help: &str| add(registry, IntCounter::new(name, help)?);
        let counters = |name: &str, help: &str, labels: &[&str]| {
            add(registry, IntCounterVec::new(Opts::new(name, help), labels)?)
        };
        let gauge = |name: &str, help: &str| add(registry, IntGauge::new(name, help)?);
        let duration = HistogramOpts::new("psp_request_duration_seconds", "How long calls to PSPs took.")
            .buckets(PSP_BUCKETS.to_vec());
        let metrics = Self {
            requests_received: counter(
                "requests_received_total",
                "Requests read from the topic and taken in, duplicates included.",
            )?,
            requests_duplicate: counter("requests_duplicate_total", "Requests that were known already.")?,
            requests_quarantined: counters(
                "requests_quarantined_total",
                "Records that could not be taken in.",
                &["reason"],
            )?,
            psp_requests: counters("psp_requests_total", "Calls to PSPs.", &["psp", "operation", "outcome"])?,
            psp_retries: counters(
                "psp_retries_total",
                "Tries after the first of a call to a PSP.",
                &["psp", "operation"],
            )?,
            psp_declines: counters("psp_declines_total", "Declines, by their kind.", &["psp", "kind"])?,
            psp_circuit_state: add(
                registry,
                IntGaugeVec::new(
                    Opts::new(
                        "psp_circuit_state",
                        "Circuit breaker to a PSP: 0 closed, 1 half open, 2 open.",
                    ),
                    &["psp"],
                )?,
            )?,
            psp_circuit_opened: counters(
                "psp_circuit_opened_total",
                "How often the circuit to a PSP was opened.",
                &["psp"],
            )?,
            psp_request_duration: add(registry, HistogramVec::new(duration, &["psp", "operation"])?)?,
            results_recorded: counters(
                "results_recorded_total",
                "Results recorded.",
                &["psp_status", "source"],
            )?,
            outbox_inserts: counters(
                "outbox_inserts_total",
                "Events written to the outbox.",
                &["event_type"],
            )?,
            attempts_unknown: gauge("payment_attempts_unknown", "Orders whose PSP is still to be asked.")?,
            attempt_unknown_oldest_age: gauge(
                "payment_attempt_unknown_oldest_age_seconds",
                "Age of the oldest of them.",
            )?,
            orders_in_review: gauge("payment_orders_in_review", "Orders that a person must look at.")?,
            orders_parked: gauge(
                "payment_orders_parked",
                "Orders that the database refuses to have claimed: set aside, and tried again.",
            )?,
            claims_lost: counter("claims_lost_total", "Claims lost to another executor before a call.")?,
            webhooks_received: counters(
                "webhook_received_total",
                "Events in webhooks that were verified; those that name no order (foreign) are not stored.",
                &["psp", "outcome"],
            )?,
            webhooks_rejected: counters(
                "webhook_rejected_total",
                "Webhook requests that were refused; nothing of them is stored.",
                &["psp", "reason"],
            )?,
            webhooks_processed: counters(
                "webhook_processed_total",
                "Stored events that were worked off.",
                &["psp", "outcome"],
            )?,
            webhooks_waiting: gauge(
                "webhook_waiting",
                "Stored events of known orders that wait to be worked off.",
            )?,
            webhooks_of_strangers: gauge(
                "webhook_strangers",
                "Stored events that wait for an order that is not known.",
            )?,
            webhook_oldest_waiting_age: gauge(
                "webhook_oldest_waiting_age_seconds",
                "Age of the oldest stored event of a known order that waits to be worked off.",
            )?,
            waiting: add(
                registry,
                IntGaugeVec::new(Opts::new("intake_waiting", "1 while the intake waits for it."), &["on"])?,
            )?,
        };
        metrics.initialise(psps);
        Ok(metrics)
    }

    fn initialise(&self, psps: &Psps) {
        for reason in Reason::ALL {
            self.requests_quarantined.with_label_values(&[reason.as_str()]);
        }
        for psp in psps.iter() {
            self.psp_circuit_state.with_label_values(&[psp.label()]).set(State::Closed.gauge());
            self.psp_circuit_opened.with_label_values(&[psp.label()]);
            for kind in Kind::ALL {
                self.psp_declines.with_label_values(&[psp.label(), kind.label()]);
            }
            for operation in Operation::ALL {
                self.psp_retries.with_label_values(&[psp.label(), operation.label()]);
                self.psp_request_duration.with_label_values(&[psp.label(), operation.label()]);
                for outcome in Answer::LABELS {
                    self.psp_requests.with_label_values(&[psp.label(), operation.label(), outcome]);
                }
            }
        }
        for status in STATUSES {
            for source in Source::ALL {
                self.results_recorded.with_label_values(&[status, source.as_str()]);
            }
        }
        self.outbox_inserts.with_label_values(&[PspResultUpdateEvent::TYPE]);
        for psp in Sender::ALL.map(Sender::label) {
            for outcome in ["new", "duplicate", "foreign"] {
                self.webhooks_received.with_label_values(&[psp, outcome]);
            }
            for reason in Refusal::ALL {
                self.webhooks_rejected.with_label_values(&[psp, reason.as_str()]);
            }
            for outcome in Outcome::ALL {
                self.webhooks_processed.with_label_values(&[psp, outcome.as_str()]);
            }
        }
        for on in WAITING_ON {
            self.waiting.with_label_values(&[on]).set(0);
        }
    }
}

fn add<C: Collector + Clone + 'static>(registry: &Registry, collector: C) -> anyhow::Result<C> {
    registry.register(Box::new(collector.clone()))?;
    Ok(collector)
}
