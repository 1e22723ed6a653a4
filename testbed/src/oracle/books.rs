//! What the oracle compares, as plain data: each list is what one witness says, in that witness's own words.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use sqlx::FromRow;
use time::OffsetDateTime;
use uuid::Uuid;

/// Everything that is compared.
#[derive(Clone, Debug, Default)]
pub struct Books {
    /// What the client asked for, and what it was told.
    pub sent: Vec<Sent>,
    /// The PSPs' ledger: the only honest witness of charges.
    pub charges: Vec<Charge>,
    /// Where the PSPs have contradicted themselves on purpose.
    pub contradictions: Vec<Contradicted>,
    /// The executor's database.
    pub executor: ExecutorBooks,
    /// The payment service's database.
    pub payments: PaymentBooks,
    /// The topic of requests, in offset order per partition.
    pub requests: Vec<Record>,
    /// The topic of results, in offset order per partition.
    pub results: Vec<Record>,
}

/// The executor's database.
#[derive(Clone, Debug, Default)]
pub struct ExecutorBooks {
    /// Requests taken in.
    pub inbox: Vec<Uuid>,
    /// Records of the topic that were set aside: their partitions and offsets.
    pub quarantine: Vec<(i32, i64)>,
    /// Calls to the PSP.
    pub attempts: Vec<Attempt>,
    /// What the PSP said.
    pub results: Vec<PspResult>,
    /// Events of results, by id.
    pub outbox: Vec<OutboxEvent>,
}

/// The payment service's database.
#[derive(Clone, Debug, Default)]
pub struct PaymentBooks {
    /// Payments.
    pub payments: Vec<Payment>,
    /// Their orders.
    pub orders: Vec<Order>,
    /// The audit, in its own order.
    pub transitions: Vec<Transition>,
    /// Event ids marked as taken.
    pub processed: Vec<Uuid>,
    /// Records that were set aside.
    pub quarantine: Vec<Quarantined>,
    /// Events of requests, by id.
    pub outbox: Vec<OutboxEvent>,
}

/// One payment that the client asked for.
#[derive(Clone, Debug, Serialize)]
pub struct Sent {
    /// The client's own id.
    pub merchant_reference: String,
    /// In minor units.
    pub amount_minor: i64,
    /// ISO 4217 code.
    pub currency: String,
    /// Which PSP was to be asked.
    pub psp: String,
    /// Token of the PSP: decides what happens there.
    pub payment_method: String,
    /// What it was told.
    pub outcome: Told,
}

/// What the client was told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub enum Told {
    /// 201.
    Accepted {
        /// The payment.
        payment_id: Uuid,
        /// Its order.
        payment_order_id: Uuid,
    },
    /// A final no.
    Refused(String),
    /// No answer that says yes or no: it may exist or not.
    Unknown(String),
}

/// A charge in the PSP's ledger.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Charge {
    /// The PSP's id of the charge.
    pub charge_id: String,
    /// The PSP's id of the payment.
    pub payment_intent: String,
    /// From the metadata that the executor sent.
    pub payment_order_id: Option<String>,
    /// In minor units.
    pub amount_minor: i64,
    /// ISO 4217 code, in whatever case the PSP writes it.
    pub currency: String,
}

/// An order of which a PSP has said two things that cannot both be true, by webhook.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Contradicted {
    /// As the PSP knows it.
    pub payment_order_id: Option<String>,
    /// The reference that the contradicting webhook names.
    pub reference: String,
    /// `failure_after_success`, `second_success` or `success_after_failure`.
    pub kind: String,
    /// Whether the receiver has said that it has it.
    pub acknowledged: bool,
}

/// A call to the PSP, written down before it was made.
#[derive(Clone, Debug, FromRow)]
pub struct Attempt {
    /// Its order.
    pub payment_order_id: Uuid,
    /// CREATE, CONFIRM, GET or CANCEL.
    pub operation: String,
}

/// A result that the executor recorded.
#[derive(Clone, Debug, FromRow)]
pub struct PspResult {
    /// Its order.
    pub payment_order_id: Uuid,
    /// The event that it was published as.
    pub event_id: Uuid,
    /// SUCCESSFUL, FAILED, PENDING or UNKNOWN.
    pub psp_status: String,
    /// The PSP's id of the payment.
    pub psp_reference: Option<String>,
    /// The PSP's code, or one of ours.
    pub error_code: Option<String>,
}

/// A row of `outbox.events`.
#[derive(Clone, Debug, FromRow)]
pub struct OutboxEvent {
    /// Publication order.
    pub id: i64,
    /// Travels as `ce_id`.
    pub event_id: Uuid,
    /// The Kafka key.
    pub aggregate_id: String,
    /// The event as JSON.
    pub payload: Value,
    /// Travels as a header.
    pub traceparent: Option<String>,
}

/// A payment.
#[derive(Clone, Debug, FromRow)]
pub struct Payment {
    /// Its id.
    pub payment_id: Uuid,
    /// In minor units.
    pub amount_minor: i64,
    /// ISO 4217 code.
    pub currency: String,
    /// The client's own id.
    pub merchant_reference: String,
    /// Derived from its orders.
    pub status: String,
    /// The trace that everything about it belongs to.
    pub trace_id: String,
}

/// A payment order.
#[derive(Clone, Debug, FromRow)]
pub struct Order {
    /// Its id, the Kafka key.
    pub payment_order_id: Uuid,
    /// Its payment.
    pub payment_id: Uuid,
    /// Counts the orders of a payment.
    pub number: i32,
    /// Its state.
    pub state: String,
    /// The PSP's id of the payment.
    pub psp_reference: Option<String>,
}

/// A line of the audit.
#[derive(Clone, Debug, FromRow)]
pub struct Transition {
    /// Its place in the audit.
    pub transition_id: i64,
    /// The order.
    pub payment_order_id: Uuid,
    /// None for the creation.
    pub event_id: Option<Uuid>,
    /// None for the creation.
    pub from_state: Option<String>,
    /// The state afterwards.
    pub to_state: String,
    /// APPLIED, DUPLICATE, STALE or CONFLICT.
    pub decision: String,
    /// When the PSP's answer was obtained.
    pub event_time: Option<OffsetDateTime>,
    /// The trace.
    pub trace_id: String,
    /// When it was decided, all but the commit.
    pub decided_at: OffsetDateTime,
}

/// A record that the payment service set aside.
#[derive(Clone, Debug, FromRow)]
pub struct Quarantined {
    /// Its event.
    pub event_id: Option<Uuid>,
    /// UNDECODABLE, ORPHAN or REFUSED.
    pub reason_code: String,
    /// In words.
    pub reason: String,
    /// It has become a transition since.
    pub settled: bool,
}

/// A record of a topic.
#[derive(Clone, Debug, Serialize)]
pub struct Record {
    /// Where it lies.
    pub partition: i32,
    /// Where it lies in the partition.
    pub offset: i64,
    /// Its key.
    pub key: Option<String>,
    /// Names and values, as far as they are text.
    pub headers: Vec<(String, String)>,
    /// Its value as the registry's schema reads it, timestamps in RFC 3339; or why it cannot be read.
    pub body: Result<Value, String>,
}

impl Record {
    /// A header; of one that occurs twice the last counts.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().rev().find(|(header, _)| header == name).map(|(_, value)| value.as_str())
    }

    /// `ce_id`.
    pub fn event_id(&self) -> Option<Uuid> {
        self.header("ce_id").and_then(|id| Uuid::try_parse(id).ok())
    }

    /// Where it lies, for people.
    pub fn place(&self) -> String {
        format!("partition {} offset {}", self.partition, self.offset)
    }
}

/// The trace id of a `traceparent`.
pub fn trace_id(traceparent: &str) -> Option<&str> {
    traceparent.split('-').nth(1)
}
