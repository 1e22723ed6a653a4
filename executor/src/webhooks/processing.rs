//! Working off what was stored, in one transaction per batch, beside as many other processes as there are.
//!
//! ```text
//! lock what is due ─▶ lock its orders ─▶ decide (pure) ─▶ record | wake ─▶ mark ─▶ commit
//! ```
//! A batch holds one event per order; what follows of the same order comes in the next one. If the process dies before the commit,
//! nothing has happened; whoever looks next begins again. An event whose order is not there yet, or is being carried out, is taken up
//! again after a pause. One that the database refuses is tried alone, then less and less often, then given up; the row stays.

use std::{collections::HashSet, sync::Arc, time::Duration};

use chassis::{
    backoff::Backoff,
    postgres::{Disposition, disposition, transaction},
    shutdown::Shutdown,
    telemetry::TraceContext,
};
use schema::{
    decode::Event as _,
    psp_result_update::{PspResultUpdateEvent, PspStatus},
};
use serde_json::Value;
use sqlx::{PgConnection, PgPool};
use time::OffsetDateTime;
use tokio::sync::Notify;
use uuid::Uuid;

use super::{Meaning, Sender, adyen, stripe};
use crate::{
    clock::Clock,
    metrics::Metrics,
    psp::{Answer, Order, Psps, Verdict, code},
    record::{self, Finding, Ladder, Recorded, Source, State},
    store::webhooks as store,
};

/// Most events of one transaction.
const BATCH_MAX: i64 = 50;
/// How often to look when nobody says that something was stored.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// Shortest and longest pause before an event is taken up again.
const AGAIN_FIRST: Duration = Duration::from_millis(250);
const AGAIN_MAX: Duration = Duration::from_secs(60);
/// First pause after the database has refused what follows from an event, doubled each time, and how often that may happen.
const AFTER_FAILURE: Duration = Duration::from_secs(1);
const FAILURES_MAX: i32 = 12;
/// How often the gauges are brought up to date, and old rows deleted.
const HOUSEKEEPING_EVERY: Duration = Duration::from_secs(5);
/// Both databases keep so much of a reference.
const REFERENCE_MAX_CHARS: usize = 255;

/// A stored event.
#[derive(Clone, Debug)]
pub struct Stored {
    /// Its row.
    pub webhook_id: i64,
    /// Who sent it.
    pub psp: String,
    /// The PSP's name for its kind.
    pub event_type: String,
    /// The order that it says it is about.
    pub payment_order_id: Option<Uuid>,
    /// What is kept of it.
    pub body: Vec<u8>,
    /// When it came.
    pub received_at: OffsetDateTime,
    /// How often it was taken up.
    pub tries: i32,
}

/// What is known of an order, read under its lock.
#[derive(Clone, Debug)]
pub struct Known {
    /// The order.
    pub order: Order,
    /// How far it has come.
    pub state: State,
    /// It is claimed, and the lease runs.
    pub held: bool,
    /// It was paid.
    pub successful: bool,
    /// The references under which failures are recorded.
    pub failed: Vec<Option<String>>,
    /// The trace it belongs to.
    pub traceparent: String,
}

/// What became of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// A new result.
    Recorded,
    /// Nothing new.
    Known,
    /// The PSP is asked now.
    Woke,
    /// Not a kind that matters here.
    Ignored,
    /// Not about an order of ours.
    Unrelated,
    /// Live where test is expected, or the reverse.
    WrongMode,
    /// Not an event.
    Unreadable,
    /// Its order did not turn up in time.
    UnknownOrder,
    /// Given up after too many failures.
    Refused,
}

impl Outcome {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::Recorded,
        Self::Known,
        Self::Woke,
        Self::Ignored,
        Self::Unrelated,
        Self::WrongMode,
        Self::Unreadable,
        Self::UnknownOrder,
        Self::Refused,
    ];

    /// As it stands in the database and in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Recorded => "RECORDED",
            Self::Known => "KNOWN",
            Self::Woke => "WOKE",
            Self::Ignored => "IGNORED",
            Self::Unrelated => "UNRELATED",
            Self::WrongMode => "WRONG_MODE",
            Self::Unreadable => "UNREADABLE",
            Self::UnknownOrder => "UNKNOWN_ORDER",
            Self::Refused => "REFUSED",
        }
    }
}

/// What is marked on an event's row.
#[derive(Clone, Copy, Debug)]
pub enum End {
    /// It is worked off.
    Done(Outcome),
    /// It is to be taken up again.
    Again(Duration),
}

impl End {
    pub(crate) fn outcome(self) -> Option<Outcome> {
        match self {
            Self::Done(outcome) => Some(outcome),
            Self::Again(_) => None,
        }
    }

    pub(crate) fn due_in(self) -> Option<Duration> {
        match self {
            Self::Done(_) => None,
            Self::Again(due_in) => Some(due_in),
        }
    }
}

/// An event and what became of it.
#[derive(Clone, Copy, Debug)]
pub struct Worked {
    /// Its row.
    pub webhook_id: i64,
    /// What became of it.
    pub end: End,
}

/// What follows from an event. Pure data.
#[derive(Clone, Debug, PartialEq)]
enum Turn {
    Done(Outcome),
    /// The order is not there yet, or its own call is about to say the same, with its cause.
    Again,
    Wake(Option<String>),
    Record(PspResultUpdateEvent),
}

/// Rules of working off.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// How long an event waits for its order.
    pub orphans_for: Duration,
    /// How long an event is kept once it is worked off.
    pub retention: Duration,
    /// Events of the live mode are expected, and not those of the test mode.
    pub live: bool,
}

/// Works off what was stored.
#[derive(Clone, Debug)]
pub struct Processing {
    /// The database.
    pub pool: PgPool,
    /// When orders whose result is not final are looked at.
    pub ladder: Ladder,
    /// How PSPs count amounts.
    pub psps: Psps,
    /// Metrics.
    pub metrics: Metrics,
    /// What time it is.
    pub clock: Clock,
    /// Rules.
    pub rules: Rules,
}

/// A transaction that was rolled back, and the event that was alone in it.
struct Failed {
    error: sqlx::Error,
    alone: Option<i64>,
}

impl From<sqlx::Error> for Failed {
    fn from(error: sqlx::Error) -> Self {
        Self { error, alone: None }
    }
}

/// What is said once a batch is committed.
struct Line {
    stored: Stored,
    end: End,
    recorded: Option<Recorded>,
    traceparent: Option<String>,
}

impl Processing {
    /// Works off what is due until asked to stop; `wake` says that something was stored.
    pub async fn run(self, wake: Arc<Notify>, shutdown: Shutdown) -> anyhow::Result<()> {
        let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(2));
        // After a batch was refused its events are tried one by one, so that one cannot hold up the others.
        let mut singly = 0;
        while !shutdown.requested() {
            let limit = if singly > 0 { 1 } else { BATCH_MAX };
            match self.batch(limit).await {
                Ok(0) => {
                    singly = 0;
                    backoff.reset();
                    tokio::select! {
                        () = wake.notified() => {}
                        _ = shutdown.sleep(LOOK_EVERY) => {}
                    }
                }
                Ok(_) => {
                    singly = (singly - 1).max(0);
                    backoff.reset();
                }
                Err(Failed { error, alone }) => match (disposition(&error), alone) {
                    (Disposition::Culprit | Disposition::Fault, Some(id)) => {
                        singly = (singly - 1).max(0);
                        self.refused(id, &error).await;
                    }
                    (Disposition::Culprit | Disposition::Fault, None) if limit > 1 => singly = BATCH_MAX,
                    (Disposition::Wait | Disposition::Culprit | Disposition::Fault, _) => {
                        let delay = backoff.next_delay();
                        tracing::warn!(%error, delay_ms = delay.as_millis(), "webhooks could not be worked off");
                        shutdown.sleep(delay).await;
                    }
                },
            }
        }
        Ok(())
    }

    /// Keeps the gauges, and deletes what is old, a thousand rows at a time.
    pub async fn watch(self, shutdown: Shutdown) -> anyhow::Result<()> {
        while shutdown.sleep(HOUSEKEEPING_EVERY).await {
            match store::waiting(&self.pool).await {
                Ok((count, oldest_seconds)) => {
                    self.metrics.webhooks_waiting.set(count);
                    self.metrics.webhook_oldest_waiting_age.set(oldest_seconds);
                }
                Err(error) => tracing::debug!(%error, "the gauges could not be brought up to date"),
            }
            let before = self.clock.now() - self.rules.retention;
            match store::delete_old(&self.pool, before).await {
                Ok(0) => {}
                Ok(deleted) => tracing::info!(deleted, "old webhooks deleted"),
                Err(error) => tracing::warn!(%error, "old webhooks could not be deleted"),
            }
        }
        Ok(())
    }

    /// Works off up to `limit` events; returns how many it had in hand.
    async fn batch(&self, limit: i64) -> Result<usize, Failed> {
        let this = self.clone();
        let lines = transaction(&self.pool, move |tx| {
            Box::pin(async move {
                let due = store::lock_due(tx, limit, this.clock.ahead()).await?;
                let alone = due.first().map(|stored| stored.webhook_id).filter(|_| limit == 1);
                this.work_off(tx, due).await.map_err(|error| Failed { error, alone })
            })
        })
        .await?;
        let count = lines.len();
        for line in lines {
            self.say(&line);
        }
        Ok(count)
    }

    async fn work_off(&self, tx: &mut PgConnection, mut due: Vec<Stored>) -> Result<Vec<Line>, sqlx::Error> {
        if due.is_empty() {
            return Ok(vec![]);
        }
        let mut orders = HashSet::new();
        due.retain(|stored| stored.payment_order_id.is_none_or(|id| orders.insert(id)));
        let ids: Vec<Uuid> = orders.into_iter().collect();
        let known = store::lock_orders(tx, &ids).await?;
        let now = self.clock.now();
        let (mut lines, mut findings, mut wakes) = (vec![], vec![], vec![]);
        for stored in due {
            let known =
                known.iter().find(|known| Some(known.order.payment_order_id) == stored.payment_order_id);
            let mut finding = false;
            let end = match decide(&stored, known, &self.psps, self.rules, now) {
                Turn::Done(outcome) => End::Done(outcome),
                Turn::Again => End::Again(pause(stored.tries)),
                Turn::Wake(reference) => {
                    wakes.extend(stored.payment_order_id.map(|id| (id, reference)));
                    End::Done(Outcome::Woke)
                }
                Turn::Record(result) => {
                    findings.push(Finding {
                        payment_order_id: result.payment_order_id,
                        source: Source::Webhook,
                        claim: None,
                        finished: None,
                        outcome: record::Outcome::Result(result),
                        event_id: Uuid::now_v7(),
                    });
                    finding = true;
                    End::Done(Outcome::Recorded)
                }
            };
            lines.push((stored, end, finding, known.map(|known| known.traceparent.clone())));
        }
        let mut recorded = record::record_in(tx, &self.ladder, findings).await?.into_iter();
        store::wake(tx, &wakes, self.clock.ahead()).await?;
        let lines: Vec<Line> = lines
            .into_iter()
            .map(|(stored, end, finding, traceparent)| {
                let recorded = if finding { recorded.next() } else { None };
                let known = recorded.as_ref().is_some_and(|recorded| recorded.event.is_none());
                let end = if known { End::Done(Outcome::Known) } else { end };
                Line { stored, end, recorded, traceparent }
            })
            .collect();
        let worked: Vec<Worked> =
            lines.iter().map(|line| Worked { webhook_id: line.stored.webhook_id, end: line.end }).collect();
        store::mark(tx, &worked, self.clock.ahead()).await?;
        Ok(lines)
    }

    async fn refused(&self, webhook_id: i64, error: &sqlx::Error) {
        tracing::error!(webhook_id, %error, "the database refused what follows from a webhook");
        match store::failed(&self.pool, webhook_id, AFTER_FAILURE, FAILURES_MAX, self.clock.ahead()).await {
            Ok(Some(psp)) => {
                let labels = [Sender::from_name(&psp).map_or("", Sender::label), Outcome::Refused.as_str()];
                self.metrics.webhooks_processed.with_label_values(&labels).inc();
                tracing::error!(psp, webhook_id, "a webhook was given up; its row stays");
            }
            Ok(None) => {}
            Err(error) => tracing::warn!(webhook_id, %error, "a webhook could not be put off"),
        }
    }

    fn say(&self, line: &Line) {
        let Line { stored, end, recorded, traceparent } = line;
        let trace = traceparent.as_deref().and_then(TraceContext::parse);
        let trace_id = trace.map(|trace| trace.trace_id()).unwrap_or_default();
        let payment_order_id = stored.payment_order_id.map(tracing::field::display);
        let (webhook_id, event_type) = (stored.webhook_id, stored.event_type.as_str());
        let psp = Sender::from_name(&stored.psp).map_or("", Sender::label);
        if let Some(event) = recorded.as_ref().and_then(|recorded| recorded.event.as_ref()) {
            let status = event.psp_status.as_str();
            self.metrics.results_recorded.with_label_values(&[status, Source::Webhook.as_str()]).inc();
            self.metrics.outbox_inserts.with_label_values(&[PspResultUpdateEvent::TYPE]).inc();
            tracing::info!(
                trace_id,
                payment_order_id,
                psp_reference = event.psp_reference,
                psp_status = status,
                error_code = event.error_code,
                source = Source::Webhook.as_str(),
                "result recorded"
            );
        }
        match end {
            End::Done(outcome) => {
                let outcome = outcome.as_str();
                self.metrics.webhooks_processed.with_label_values(&[psp, outcome]).inc();
                tracing::info!(
                    trace_id,
                    payment_order_id,
                    psp,
                    webhook_id,
                    event_type,
                    outcome,
                    "webhook worked off"
                );
            }
            End::Again(due_in) => {
                let due_in_ms = due_in.as_millis();
                tracing::debug!(
                    trace_id,
                    payment_order_id,
                    psp,
                    webhook_id,
                    event_type,
                    due_in_ms,
                    "webhook put off"
                );
            }
        }
    }
}

/// What follows from an event, by what is known of its order. Pure.
fn decide(stored: &Stored, known: Option<&Known>, psps: &Psps, rules: Rules, now: OffsetDateTime) -> Turn {
    let event = serde_json::from_slice::<Value>(&stored.body).ok().filter(Value::is_object);
    let (Some(sender), Some(event)) = (Sender::from_name(&stored.psp), event) else {
        return Turn::Done(Outcome::Unreadable);
    };
    let (concerns, live) = match sender {
        Sender::Stripe => (stripe::concerns(&stored.event_type), stripe::live(&event)),
        Sender::Adyen => (adyen::concerns(&stored.event_type), adyen::live(&event)),
    };
    if stored.event_type.is_empty() {
        return Turn::Done(Outcome::Unreadable);
    }
    if live.is_some_and(|live| live != rules.live) {
        return Turn::Done(Outcome::WrongMode);
    }
    if !concerns {
        return Turn::Done(Outcome::Ignored);
    }
    if stored.payment_order_id.is_none() {
        return Turn::Done(Outcome::Unrelated);
    }
    let Some(known) = known else {
        let late = now - stored.received_at >= rules.orphans_for;
        return if late { Turn::Done(Outcome::UnknownOrder) } else { Turn::Again };
    };
    if known.order.psp != stored.psp {
        return Turn::Done(Outcome::Unrelated);
    }
    let meaning = match sender {
        Sender::Stripe => stripe::meaning(&event, &known.order),
        Sender::Adyen => adyen::meaning(&event, &known.order, amount(&known.order, psps)),
    };
    match meaning {
        Meaning::Nothing => Turn::Done(Outcome::Ignored),
        Meaning::Evidence(answer) => evidence(known, answer, stored.received_at),
        Meaning::Hint(answer) => hint(known, answer, stored.received_at),
    }
}

/// The order's amount as its PSP counts it; None if it cannot be expressed.
fn amount(order: &Order, _psps: &Psps) -> Option<i64> {
    Some(order.amount_minor)
}

/// How the payment ended. While a call for the order is under way only what is about money counts at once: what else there is to say
/// the answer says better, with its cause.
fn evidence(known: &Known, answer: Answer, at: OffsetDateTime) -> Turn {
    let money = matches!(answer.verdict, Verdict::Succeeded | Verdict::AmountMismatch);
    if known.held && !money {
        return Turn::Again;
    }
    let Some((status, error_code)) = ended(&answer) else { return hint(known, answer, at) };
    // That it failed under this reference is known, perhaps under a code that says more.
    if status == PspStatus::Failed && known.failed.contains(&answer.reference) {
        return Turn::Done(Outcome::Known);
    }
    let reference = answer.reference.filter(|text| {
        (1..=REFERENCE_MAX_CHARS).contains(&text.chars().count()) && !text.contains(char::is_control)
    });
    Turn::Record(PspResultUpdateEvent {
        payment_order_id: known.order.payment_order_id,
        psp_status: status,
        psp_reference: reference,
        event_time: at.replace_microsecond(at.microsecond()).unwrap_or(at),
        error_code,
        error_message: answer.error_message,
    })
}

/// The status that an answer settles, with its code.
fn ended(answer: &Answer) -> Option<(PspStatus, Option<String>)> {
    let or = |ours: &str| Some(answer.error_code.clone().unwrap_or_else(|| ours.to_owned()));
    match answer.verdict {
        Verdict::Succeeded => Some((PspStatus::Successful, None)),
        Verdict::Cancelled => Some((PspStatus::Failed, or(code::CANCELLED))),
        Verdict::AmountMismatch => Some((PspStatus::Unknown, or(code::AMOUNT_MISMATCH))),
        Verdict::Processing
        | Verdict::Unconfirmed
        | Verdict::ActionRequired
        | Verdict::Declined
        | Verdict::Refused
        | Verdict::WrongState
        | Verdict::IdempotencyMismatch
        | Verdict::Unclear
        | Verdict::Later => None,
    }
}

/// It is worth asking, if the outcome is open. A decline of what was paid is a contradiction, and nobody will ask about that any more.
fn hint(known: &Known, answer: Answer, at: OffsetDateTime) -> Turn {
    match known.state {
        State::InFlight if known.held => Turn::Again,
        State::Queued | State::InFlight | State::Resolving => Turn::Wake(answer.reference),
        State::Settled if known.successful && answer.verdict == Verdict::Declined => {
            let declined = Answer { verdict: Verdict::Cancelled, ..answer };
            evidence(known, declined, at)
        }
        State::Settled | State::Review => Turn::Done(Outcome::Known),
    }
}

/// Doubles with each try.
fn pause(tries: i32) -> Duration {
    let doublings = u32::try_from(tries.clamp(0, 16)).unwrap_or(0);
    AGAIN_FIRST.saturating_mul(1 << doublings).min(AGAIN_MAX)
}

#[cfg(test)]
mod tests {
    use secrecy::SecretString;
    use serde_json::json;

    use super::*;

    const RULES: Rules =
        Rules { orphans_for: Duration::from_mins(10), retention: Duration::from_hours(1), live: false };

    fn known(state: State) -> Known {
        Known {
            order: Order {
                payment_order_id: Uuid::nil(),
                psp: "STRIPE".into(),
                amount_minor: 1234,
                currency: "EUR".into(),
                payment_method: SecretString::from("pm_card_visa"),
                merchant_reference: "m".into(),
                expires_at: OffsetDateTime::UNIX_EPOCH,
            },
            state,
            held: false,
            successful: false,
            failed: vec![],
            traceparent: String::new(),
        }
    }

    fn stored(kind: &str, status: &str) -> Stored {
        let decline = json!({"code": "card_declined", "decline_code": "lost_card", "message": "no"});
        let event = json!({"id": "evt_1", "livemode": false, "type": kind, "data": {"object": {
            "object": "payment_intent", "id": "pi_1", "status": status, "amount": 1234, "currency": "eur",
            "amount_received": if status == "succeeded" { 1234 } else { 0 },
            "last_payment_error": if status == "requires_payment_method" { decline } else { Value::Null }}}});
        Stored {
            webhook_id: 1,
            psp: "STRIPE".into(),
            event_type: kind.into(),
            payment_order_id: Some(Uuid::nil()),
            body: event.to_string().into_bytes(),
            received_at: OffsetDateTime::UNIX_EPOCH,
            tries: 0,
        }
    }

    fn decided(stored: &Stored, known: Option<&Known>) -> Turn {
        decide(stored, known, &Psps::new([]), RULES, OffsetDateTime::UNIX_EPOCH)
    }

    /// R record, W wake, a again, k known.
    fn letter(turn: &Turn) -> char {
        match turn {
            Turn::Record(_) => 'R',
            Turn::Wake(_) => 'W',
            Turn::Again => 'a',
            Turn::Done(Outcome::Known) => 'k',
            Turn::Done(_) => '-',
        }
    }

    #[test]
    fn what_follows_depends_on_how_the_order_stands() {
        let with = |state, change: fn(&mut Known)| {
            let mut order = known(state);
            change(&mut order);
            order
        };
        // succeeded, canceled, processing, payment_failed.
        let rows = [
            (known(State::Queued), "RRWW"),
            (known(State::Resolving), "RRWW"),
            // Its process is gone.
            (known(State::InFlight), "RRWW"),
            // A call is under way: it is about to say the same, and more.
            (with(State::InFlight, |k| k.held = true), "Raaa"),
            // Settled as paid: what contradicts is recorded, what was overtaken is not.
            (with(State::Settled, |k| k.successful = true), "RRkR"),
            (with(State::Settled, |k| k.failed = vec![Some("pi_1".into())]), "Rkkk"),
            // It failed under another reference, or under none.
            (with(State::Settled, |k| k.failed = vec![None, Some("pi_2".into())]), "RRkk"),
            (known(State::Review), "RRkk"),
        ];
        let events = [
            stored("payment_intent.succeeded", "succeeded"),
            stored("payment_intent.canceled", "canceled"),
            stored("payment_intent.processing", "processing"),
            stored("payment_intent.payment_failed", "requires_payment_method"),
        ];
        for (order, expected) in rows {
            let found: String = events.iter().map(|event| letter(&decided(event, Some(&order)))).collect();
            assert_eq!(found, expected, "{order:?}");
        }
    }

    #[test]
    fn a_result_says_what_the_event_says() {
        let result = |kind, status, order: &Known| match decided(&stored(kind, status), Some(order)) {
            Turn::Record(result) => result,
            other => panic!("{other:?}"),
        };
        let open = known(State::Resolving);
        let paid = result("payment_intent.succeeded", "succeeded", &open);
        assert_eq!((paid.psp_status, paid.psp_reference.as_deref()), (PspStatus::Successful, Some("pi_1")));
        assert_eq!((paid.error_code, paid.event_time), (None, OffsetDateTime::UNIX_EPOCH));
        let cancelled = result("payment_intent.canceled", "canceled", &open);
        assert_eq!((cancelled.psp_status, cancelled.error_code.as_deref()), (PspStatus::Failed, Some(code::CANCELLED)));
        let mut settled = known(State::Settled);
        settled.successful = true;
        let late = result("payment_intent.payment_failed", "requires_payment_method", &settled);
        assert_eq!((late.psp_status, late.error_code.as_deref()), (PspStatus::Failed, Some("card_declined/lost_card")));
        let mut cheap = known(State::Resolving);
        cheap.order.amount_minor = 1;
        let mismatch = result("payment_intent.succeeded", "succeeded", &cheap);
        assert_eq!((mismatch.psp_status, mismatch.error_code.as_deref()), (PspStatus::Unknown, Some(code::AMOUNT_MISMATCH)));
    }

    #[test]
    fn what_is_not_ours_changes_nothing() {
        let open = known(State::Resolving);
        let event = || stored("payment_intent.succeeded", "succeeded");
        let mut live = event();
        live.body = String::from_utf8(live.body).unwrap().replace("\"livemode\":false", "\"livemode\":true").into_bytes();
        let rows = [
            (live, Outcome::WrongMode),
            (stored("charge.succeeded", "succeeded"), Outcome::Ignored),
            (Stored { payment_order_id: None, ..event() }, Outcome::Unrelated),
            (Stored { body: b"not json".to_vec(), ..event() }, Outcome::Unreadable),
            (Stored { event_type: String::new(), ..event() }, Outcome::Unreadable),
        ];
        for (stored, outcome) in rows {
            assert_eq!(decided(&stored, Some(&open)), Turn::Done(outcome));
        }
        let mut other = known(State::Resolving);
        other.order.psp = "ADYEN".into();
        assert_eq!(decided(&event(), Some(&other)), Turn::Done(Outcome::Unrelated));
    }

    #[test]
    fn an_event_waits_for_its_order_for_a_while() {
        let event = stored("payment_intent.succeeded", "succeeded");
        for (seconds, turn) in [(0, Turn::Again), (599, Turn::Again), (600, Turn::Done(Outcome::UnknownOrder))] {
            let now = OffsetDateTime::UNIX_EPOCH + Duration::from_secs(seconds);
            assert_eq!(decide(&event, None, &Psps::new([]), RULES, now), turn, "{seconds}");
        }
        let pauses: Vec<u128> = [0, 1, 2, 8, 30, i32::MAX].map(|tries| pause(tries).as_millis()).to_vec();
        assert_eq!(pauses, [250, 500, 1000, 60_000, 60_000, 60_000]);
    }
}
