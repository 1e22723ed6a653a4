//! The metrics of the process. Every set of labels exists from the start, at 0.

use chassis::kafka::ConsumerMetrics;
use prometheus::{Gauge, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Registry};
use schema::{decode::Event as _, psp_result_update::PspResultUpdateEvent};

use crate::{
    breaker::State,
    psp::{Answer, Operation, Psps, declines::Kind},
    record::Source,
    request::Reason,
    webhooks::{Refusal, Sender, decision::Outcome},
};

/// A PSP answers within milliseconds on loopback, and within the timeout otherwise.
const PSP_BUCKETS: &[f64] = &[0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];
const STATUSES: [&str; 4] = ["SUCCESSFUL", "FAILED", "PENDING", "UNKNOWN"];

chassis::metrics! {
    /// All of them.
    #[derive(Clone, Debug)]
    pub struct Metrics {
        /// The consumer of requests.
        pub consumer: ConsumerMetrics,
        /// Requests read from the topic and taken in, duplicates included.
        pub requests_received: IntCounter = "requests_received_total",
        /// Requests that were known already.
        pub requests_duplicate: IntCounter = "requests_duplicate_total",
        /// Records that could not be taken in, by reason.
        pub requests_quarantined: IntCounterVec = "requests_quarantined_total" by ["reason"],
        /// Calls to PSPs, by what came of them; each try is one.
        pub psp_requests: IntCounterVec = "psp_requests_total" by ["psp", "operation", "outcome"],
        /// Tries after the first of a call to a PSP.
        pub psp_retries: IntCounterVec = "psp_retries_total" by ["psp", "operation"],
        /// Declines, by what kind of "no" they are.
        pub psp_declines: IntCounterVec = "psp_declines_total" by ["psp", "kind"],
        /// Circuit breaker to a PSP: 0 closed, 1 half open, 2 open.
        pub psp_circuit_state: IntGaugeVec = "psp_circuit_state" by ["psp"],
        /// How often the circuit to a PSP was opened.
        pub psp_circuit_opened: IntCounterVec = "psp_circuit_opened_total" by ["psp"],
        /// How long calls to PSPs took.
        pub psp_request_duration: HistogramVec =
            "psp_request_duration_seconds" by ["psp", "operation"] in PSP_BUCKETS,
        /// Results recorded, by who brought them. What was known already is not counted.
        pub results_recorded: IntCounterVec = "results_recorded_total" by ["psp_status", "source"],
        /// Events written to the outbox.
        pub outbox_inserts: IntCounterVec = "outbox_inserts_total" by ["event_type"],
        /// Orders whose PSP is still to be asked. The same in every instance.
        pub attempts_unknown: IntGauge = "payment_attempts_unknown",
        /// Age of the oldest order whose PSP is still to be asked; 0 if there is none. The same in every instance.
        pub attempt_unknown_oldest_age: IntGauge = "payment_attempt_unknown_oldest_age_seconds",
        /// Orders that a person must look at. The same in every instance.
        pub orders_in_review: IntGauge = "payment_orders_in_review",
        /// Orders that the database refuses to have claimed: set aside, and tried again. The same in every instance.
        pub orders_parked: IntGauge = "payment_orders_parked",
        /// When the gauges that are counted in the database were last read, in seconds since 1970; of the relays the leader reads them.
        pub gauges_read: Gauge = "gauges_read_timestamp_seconds",
        /// Claims lost to another executor before a call: leases that were too short.
        pub claims_lost: IntCounter = "claims_lost_total",
        /// Events in webhooks that were verified: new, there already (duplicate), or about no order at all (foreign), which are not stored.
        pub webhooks_received: IntCounterVec = "webhook_received_total" by ["psp", "outcome"],
        /// Webhook requests that were refused; nothing of them is stored.
        pub webhooks_rejected: IntCounterVec = "webhook_rejected_total" by ["psp", "reason"],
        /// Stored events that were worked off, by what became of them.
        pub webhooks_processed: IntCounterVec = "webhook_processed_total" by ["psp", "outcome"],
        /// Stored events of known orders that wait to be worked off. The same in every instance.
        pub webhooks_waiting: IntGauge = "webhook_waiting",
        /// Stored events that wait for an order that is not known. The same in every instance.
        pub webhooks_of_strangers: IntGauge = "webhook_strangers",
        /// Age of the oldest stored event of a known order that waits to be worked off. The same in every instance.
        pub webhook_oldest_waiting_age: IntGauge = "webhook_oldest_waiting_age_seconds",
        /// 1 while the intake of requests holds a batch back, by what it waits for.
        pub waiting: IntGaugeVec = "intake_waiting" by ["on"],
    }
}

/// The values of the label `on` of `intake_waiting`.
pub const WAITING_ON: [&str; 2] = ["registry", "database"];

impl Metrics {
    /// Registers all metrics, every set of labels at 0.
    pub fn new(registry: &Registry, psps: &Psps) -> anyhow::Result<Self> {
        let metrics = Self::register(registry)?;
        metrics.consumer.initialise();
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
