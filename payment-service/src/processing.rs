//! `ProcessPaymentService`: applies the results of one batch in one transaction.
//!
//! ```text
//! lock orders (by id) -> mark events as taken -> decide, per order in offset order -> update orders
//!   -> lock payments, derive their states -> quarantine what has no order -> append to the audit -> COMMIT
//! ```
//! The marks and what they stand for are one transaction: if the process dies before the commit, nothing has happened and the records
//! come again; if it dies after, they come again and every mark is there already. An unknown outcome of the commit needs no
//! special care for the same reason.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::SystemTime,
};

use chassis::{
    postgres::{Disposition, disposition, transaction},
    telemetry::TraceContext,
    trace::{self, Span, Step},
};
use sqlx::{PgConnection, PgPool};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::{
    decision::{Decision, Order, State, decide, payment_state},
    failpoints,
    intake::{QuarantineReason, RawRecord, ResultUpdate, SetAside},
    metrics::Metrics,
    store::{
        quarantine::{self, Settled},
        results::{self, LockedOrder, NewTransition},
    },
};

/// What is applied in one transaction, in offset order per partition.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    /// Results.
    pub updates: Vec<Arc<ResultUpdate>>,
    /// Records that are none.
    pub aside: Vec<SetAside>,
}

/// Applies PSP results to payments.
#[derive(Clone, Debug)]
pub struct ProcessPaymentService {
    pool: PgPool,
    metrics: Arc<Metrics>,
    /// The group that the results are consumed in, for those who read spans.
    consumer_group: Arc<str>,
}

/// What became of one new result.
#[derive(Debug)]
struct Outcome {
    update: Arc<ResultUpdate>,
    decision: Decision,
    from: State,
    to: State,
    trace_id: String,
}

/// What a transaction did.
#[derive(Debug, Default)]
struct Done {
    outcomes: Vec<Outcome>,
    /// Results that had been taken before.
    redelivered: usize,
    /// Records that were set aside and had not been before.
    quarantined: Vec<SetAside>,
}

impl ProcessPaymentService {
    /// A service on this database.
    pub fn new(pool: PgPool, metrics: Arc<Metrics>, consumer_group: &str) -> Self {
        Self { pool, metrics, consumer_group: Arc::from(consumer_group) }
    }

    /// Applies a batch. When this returns Ok, every record of it is in the database: as a transition, as known before, or in
    /// quarantine. Err says nothing about how much of it is: do it again.
    ///
    /// If the database refuses somebody's data, the batch is halved until the culprit is alone; that one goes to quarantine, the
    /// others are applied.
    pub async fn process_psp_result(&self, batch: Batch) -> Result<(), sqlx::Error> {
        let began = trace::exporting().then(SystemTime::now);
        let mut to_do = vec![batch];
        while let Some(mut batch) = to_do.pop() {
            match self.apply(batch.clone()).await {
                Ok(done) => self.report(&done, began),
                Err(error) if disposition(&error) == Disposition::Culprit && !batch.updates.is_empty() => {
                    if let [culprit] = batch.updates.as_slice() {
                        let reason = format!("refused by the database: {error}");
                        batch.aside.push(SetAside::result(culprit, QuarantineReason::Refused, &reason));
                        batch.updates.clear();
                        to_do.push(batch);
                    } else {
                        let second = batch.updates.split_off(batch.updates.len() / 2);
                        to_do.push(Batch { updates: second, aside: Vec::new() });
                        to_do.push(batch);
                    }
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    async fn apply(&self, batch: Batch) -> Result<Done, sqlx::Error> {
        transaction(&self.pool, move |tx| {
            Box::pin(async move {
                let done = apply_in(tx, batch).await?;
                failpoints::committing(tx).await?;
                Ok(done)
            })
        })
        .await
    }

    fn report(&self, done: &Done, began: Option<SystemTime>) {
        let now = OffsetDateTime::now_utc();
        for outcome in &done.outcomes {
            let (update, decision) = (&outcome.update, outcome.decision);
            let lag = now - update.event.event_time;
            self.metrics.processed(decision, update.event.psp_status, lag);
            let span = self.processed(outcome, began);
            let span_id = span.context().or(update.trace).map(|context| context.span_id());
            macro_rules! line {
                ($level:ident, $text:literal) => {
                    tracing::$level!(
                        trace_id = outcome.trace_id,
                        span_id,
                        payment_order_id = %update.event.payment_order_id,
                        psp_reference = update.event.psp_reference.as_deref(),
                        event_id = %update.event_id,
                        decision = decision.as_str(),
                        from = outcome.from.as_str(),
                        to = outcome.to.as_str(),
                        lag_ms = i64::try_from(lag.whole_milliseconds()).unwrap_or(i64::MAX),
                        $text
                    )
                };
            }
            match decision {
                Decision::Applied => {
                    line!(info, "result applied");
                }
                Decision::Duplicate | Decision::Stale | Decision::Orphan => {
                    line!(info, "result changes nothing");
                }
                Decision::Conflict => {
                    line!(error, "result contradicts what is known: a person must look");
                }
            }
        }
        self.metrics.redelivered(done.redelivered);
        for aside in &done.quarantined {
            self.metrics.quarantined(aside.reason_code);
            let span = self.set_aside(aside, began);
            let context = span.context().or(aside.trace);
            tracing::warn!(
                trace_id = context.map(|context| context.trace_id()),
                span_id = context.map(|context| context.span_id()),
                payment_order_id = aside.payment_order_id.map(tracing::field::display),
                event_id = aside.event_id.map(tracing::field::display),
                partition = aside.record.partition,
                offset = aside.record.offset,
                reason_code = aside.reason_code.as_str(),
                reason = aside.reason,
                "record set aside in quarantine"
            );
        }
    }

    /// The step in which a result was decided upon, from the beginning of its batch to its commit.
    fn processed(&self, outcome: &Outcome, began: Option<SystemTime>) -> Span {
        let update = &outcome.update;
        let mut span = self.step(&update.record, update.trace, began);
        if span.is_recording() {
            span.set("messaging.message.id", update.event_id.to_string());
            span.set("payment_order_id", update.event.payment_order_id.to_string());
            span.set_if("psp_reference", update.event.psp_reference.clone());
            span.set("psp_status", update.event.psp_status.as_str());
            span.set("decision", outcome.decision.as_str());
            span.set("from_state", outcome.from.as_str());
            span.set("to_state", outcome.to.as_str());
        }
        span
    }

    fn set_aside(&self, aside: &SetAside, began: Option<SystemTime>) -> Span {
        let mut span = self.step(&aside.record, aside.trace, began);
        if span.is_recording() {
            span.set_if("messaging.message.id", aside.event_id.map(|id| id.to_string()));
            span.set_if("payment_order_id", aside.payment_order_id.map(|id| id.to_string()));
            span.fail(aside.reason_code.as_str());
        }
        span
    }

    /// A child of the step that made the record, and linked to it. None for a record without a trace.
    fn step(&self, record: &RawRecord, trace: Option<TraceContext>, began: Option<SystemTime>) -> Span {
        let Some(created) = trace else { return Span::none() };
        let mut span = Span::messaging_since(Step::Process, &record.topic, Some(created), &[created], began);
        if span.is_recording() {
            span.set("messaging.consumer.group.name", self.consumer_group.to_string());
            span.set("messaging.client.id", "payment-service");
            span.set_position(record.partition, record.offset);
            let key = record.key.as_deref().and_then(|key| std::str::from_utf8(key).ok());
            span.set_if("messaging.kafka.message.key", key.map(str::to_owned));
        }
        span
    }
}

async fn apply_in(tx: &mut PgConnection, mut batch: Batch) -> Result<Done, sqlx::Error> {
    failpoints::reached("C2");
    only_unsettled(tx, &mut batch).await?;
    let mut aside = batch.aside;
    let mut orders = lock_orders_of(tx, &batch.updates).await?;
    let (updates, orphans): (Vec<_>, Vec<_>) =
        batch.updates.into_iter().partition(|update| orders.contains_key(&update.event.payment_order_id));
    aside.extend(orphans.iter().map(|orphan| {
        SetAside::result(orphan, QuarantineReason::Orphan, "its payment order does not exist")
    }));

    let Sorted { fresh, known, foreign } = take_once(tx, updates).await?;
    failpoints::reached("C3");
    let reason = "its event id belongs to an event of another payment order";
    aside.extend(foreign.iter().map(|update| SetAside::result(update, QuarantineReason::Refused, reason)));
    let outcomes = decide_all(&fresh, &mut orders);
    update_states(tx, &outcomes, &orders).await?;

    let mut done = Done { redelivered: known.len(), ..Done::default() };
    let (again, mut new): (Vec<_>, Vec<_>) =
        aside.into_iter().partition(|aside| aside.quarantine_id.is_some());
    if !new.is_empty() {
        let inserted: HashSet<(i32, i64)> = quarantine::insert(tx, &new).await?.into_iter().collect();
        failpoints::reached("C8");
        new.retain(|aside| inserted.contains(&(aside.record.partition, aside.record.offset)));
        done.quarantined = new;
    }
    if !again.is_empty() {
        quarantine::keep(tx, &again).await?;
    }
    let settled = |updates: &[Arc<ResultUpdate>], outcome| -> Vec<(i64, Settled)> {
        let again = updates.iter().filter_map(|update| update.again.as_ref());
        again.map(|again| (again.quarantine_id, outcome)).collect()
    };
    let settled = [settled(&fresh, Settled::Applied), settled(&known, Settled::Known)].concat();
    if !settled.is_empty() {
        quarantine::settle(tx, &settled).await?;
    }
    if !outcomes.is_empty() {
        let rows: Vec<_> = outcomes.iter().map(as_transition).collect();
        results::insert_transitions(tx, &rows).await?;
    }
    done.outcomes = outcomes;
    Ok(done)
}

/// Of records that are tried again, leaves those that nobody has settled meanwhile, and keeps everybody else from them: another instance
/// may try the same, and an operator may discard what is just being tried.
async fn only_unsettled(tx: &mut PgConnection, batch: &mut Batch) -> Result<(), sqlx::Error> {
    let id_of = |update: &Arc<ResultUpdate>| update.again.as_ref().map(|again| again.quarantine_id);
    let ids: Vec<i64> = batch
        .updates
        .iter()
        .filter_map(id_of)
        .chain(batch.aside.iter().filter_map(|aside| aside.quarantine_id))
        .collect();
    if ids.is_empty() {
        return Ok(());
    }
    let ours: HashSet<i64> = quarantine::lock_unsettled(tx, &ids).await?.into_iter().collect();
    batch.updates.retain(|update| id_of(update).is_none_or(|id| ours.contains(&id)));
    batch.aside.retain(|aside| aside.quarantine_id.is_none_or(|id| ours.contains(&id)));
    Ok(())
}

type Orders = HashMap<Uuid, LockedOrder>;

async fn lock_orders_of(tx: &mut PgConnection, updates: &[Arc<ResultUpdate>]) -> Result<Orders, sqlx::Error> {
    let mut ids: Vec<Uuid> = updates.iter().map(|update| update.event.payment_order_id).collect();
    ids.sort_unstable();
    ids.dedup();
    if ids.is_empty() {
        return Ok(Orders::new());
    }
    let locked = results::lock_orders(tx, &ids).await?;
    Ok(locked.into_iter().map(|order| (order.payment_order_id, order)).collect())
}

/// Results by whether their event had been taken before.
#[derive(Default)]
struct Sorted {
    /// It had not: each event once, in the order in which they came.
    fresh: Vec<Arc<ResultUpdate>>,
    /// It had.
    known: Vec<Arc<ResultUpdate>>,
    /// An event with this id had been taken for another payment order. A producer breaks the contract, and a result must not vanish
    /// as "known".
    foreign: Vec<Arc<ResultUpdate>>,
}

/// Marks the events as taken.
async fn take_once(tx: &mut PgConnection, updates: Vec<Arc<ResultUpdate>>) -> Result<Sorted, sqlx::Error> {
    let mut sorted = Sorted::default();
    if updates.is_empty() {
        return Ok(sorted);
    }
    let event_ids: Vec<Uuid> = updates.iter().map(|update| update.event_id).collect();
    let order_ids: Vec<Uuid> = updates.iter().map(|update| update.event.payment_order_id).collect();
    let mut new = results::mark_processed(tx, (&event_ids, &order_ids)).await?;
    for update in updates {
        let list = if new.remove(&update.event_id) { &mut sorted.fresh } else { &mut sorted.known };
        list.push(update);
    }
    if !sorted.known.is_empty() {
        let ids: Vec<Uuid> = sorted.known.iter().map(|update| update.event_id).collect();
        let owners: HashMap<Uuid, Uuid> = results::orders_of_events(tx, &ids).await?.into_iter().collect();
        let owned =
            |update: &Arc<ResultUpdate>| owners.get(&update.event_id) == Some(&update.event.payment_order_id);
        (sorted.known, sorted.foreign) = sorted.known.into_iter().partition(owned);
    }
    Ok(sorted)
}

/// Folds the new results into their orders, in the order in which they came.
fn decide_all(fresh: &[Arc<ResultUpdate>], orders: &mut Orders) -> Vec<Outcome> {
    let mut outcomes = Vec::with_capacity(fresh.len());
    for update in fresh {
        let Some(locked) = orders.get_mut(&update.event.payment_order_id) else { continue };
        let verdict = decide(&locked.order, &update.event);
        let stored_trace = || TraceContext::parse(&locked.traceparent).map(|trace| trace.trace_id());
        outcomes.push(Outcome {
            update: Arc::clone(update),
            decision: verdict.decision,
            from: locked.order.state,
            to: verdict.next.state,
            trace_id: stored_trace()
                .or_else(|| update.trace.map(|trace| trace.trace_id()))
                .unwrap_or_default(),
        });
        locked.order = verdict.next;
    }
    outcomes
}

/// Writes the orders that changed, and the payments whose state follows from them.
async fn update_states(
    tx: &mut PgConnection,
    outcomes: &[Outcome],
    orders: &Orders,
) -> Result<(), sqlx::Error> {
    let changes = |outcome: &&Outcome| matches!(outcome.decision, Decision::Applied | Decision::Conflict);
    let mut changed: Vec<Uuid> =
        outcomes.iter().filter(changes).map(|outcome| outcome.update.event.payment_order_id).collect();
    changed.sort_unstable();
    changed.dedup();
    let changed: Vec<&LockedOrder> = changed.iter().filter_map(|id| orders.get(id)).collect();
    if changed.is_empty() {
        return Ok(());
    }
    let rows: Vec<(Uuid, &Order)> =
        changed.iter().map(|locked| (locked.payment_order_id, &locked.order)).collect();
    results::update_orders(tx, &rows).await?;

    let payments: HashSet<Uuid> = changed.iter().map(|locked| locked.payment_id).collect();
    let payments: Vec<Uuid> = payments.into_iter().collect();
    // Locked before the states of their orders are read: of two transactions that each settle one order of a payment, the second
    // sees the first one's, and a double charge cannot hide between them.
    let locked = results::lock_payments(tx, &payments).await?;
    let mut states: HashMap<Uuid, Vec<_>> = HashMap::new();
    for (payment_id, state, reason) in results::orders_of_payments(tx, &payments).await? {
        states.entry(payment_id).or_default().push((state, reason));
    }
    let mut changed = Vec::new();
    for (payment_id, state, reason) in locked {
        let derived = payment_state(states.get(&payment_id).map_or(&[], Vec::as_slice));
        if derived != (state, reason) {
            changed.push((payment_id, derived.0, derived.1));
        }
    }
    if changed.is_empty() { Ok(()) } else { results::update_payments(tx, &changed).await }
}

fn as_transition(outcome: &Outcome) -> NewTransition<'_> {
    NewTransition {
        update: &outcome.update,
        from: outcome.from,
        to: outcome.to,
        decision: outcome.decision,
        trace_id: &outcome.trace_id,
    }
}
