//! The one way in which a result is recorded, whoever brought it.
//!
//! ```text
//! one transaction:  lock the order  ->  insert the result, if it says something new  ->  append its event, only then
//!                                   ->  move the order on  ->  finish the call that brought it           -> commit
//! ```
//! The lock gives an order's events their order. What was said before is no event again, nor is a failure in other words. A claim that was lost meanwhile does not
//! matter here: an answer in hand is evidence, and is always recorded.
//!
//! If the process dies before the commit, nothing of this has happened: the call stays STARTED, and the resolver asks the PSP. If it
//! dies after the commit, everything has; a commit whose answer was lost is simply written again, which then finds itself.

mod settlement;

use std::{collections::HashSet, str::FromStr, sync::Arc, time::Duration};

use chassis::{
    postgres::transaction,
    telemetry::TraceContext,
    trace::{Span, Step},
};
use outbox::NewEvent;
use schema::{decode::Event as _, psp_result_update::PspResultUpdateEvent};
use sqlx::{PgConnection, PgPool};
use uuid::Uuid;

use crate::{
    clock::Clock,
    config::Config,
    failpoints,
    store::{Finished, results},
};

/// Who brought a result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The reply to the first try.
    Reply,
    /// The PSP, by itself.
    Webhook,
    /// The resolver, by asking.
    Resolver,
    /// A person.
    Operator,
}

impl Source {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Reply, Self::Webhook, Self::Resolver, Self::Operator];

    /// As it stands in the database and in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Reply => "REPLY",
            Self::Webhook => "WEBHOOK",
            Self::Resolver => "RESOLVER",
            Self::Operator => "OPERATOR",
        }
    }
}

/// How far an order has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// To be carried out.
    Queued,
    /// Claimed.
    InFlight,
    /// The PSP is to be asked.
    Resolving,
    /// Final.
    Settled,
    /// A person must look.
    Review,
}

impl State {
    /// As it stands in the database.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "QUEUED",
            Self::InFlight => "IN_FLIGHT",
            Self::Resolving => "RESOLVING",
            Self::Settled => "SETTLED",
            Self::Review => "REVIEW",
        }
    }
}

/// The database holds a state that this version does not know.
#[derive(Debug, thiserror::Error)]
#[error("unknown state {0:?}")]
pub struct UnknownState(String);

impl FromStr for State {
    type Err = UnknownState;

    fn from_str(text: &str) -> Result<Self, UnknownState> {
        let all = [Self::Queued, Self::InFlight, Self::Resolving, Self::Settled, Self::Review];
        all.into_iter().find(|state| state.as_str() == text).ok_or_else(|| UnknownState(text.to_owned()))
    }
}

/// What is to be recorded about an order.
#[derive(Clone, Debug)]
pub struct Finding {
    /// The order.
    pub payment_order_id: Uuid,
    /// Who brings it.
    pub source: Source,
    /// The claim under which it was found.
    pub claim: Option<Uuid>,
    /// The call that brought it.
    pub finished: Option<Finished>,
    /// The finding itself.
    pub outcome: Outcome,
    /// A call for the order may have been executed: not all of them were turned away.
    pub in_doubt: bool,
    /// Id of the event, should it become one: drawn before, so that writing it twice is writing it once.
    pub event_id: Uuid,
    /// The step in which it was found, if spans are made.
    pub within: Option<TraceContext>,
}

/// What was found.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// A result.
    Result(PspResultUpdateEvent),
    /// A look-up gave no answer: what is known stays.
    Nothing,
    /// Nothing was executed: to be taken up again, after a pause if `failed`.
    Later {
        /// False if it was our own wish, as at the end of the process.
        failed: bool,
    },
}

/// What became of a finding.
#[derive(Clone, Debug)]
pub struct Recorded {
    /// The event that was written; None if there was nothing new to say.
    pub event: Option<PspResultUpdateEvent>,
    /// Where the order stands now.
    pub state: State,
}

/// How an order stands, read under its lock.
#[derive(Clone, Debug)]
pub struct Standing {
    /// The order.
    pub payment_order_id: Uuid,
    /// How far it has come.
    pub state: State,
    /// There was a result before.
    pub known: bool,
    /// The PSP's id of the payment.
    pub psp_reference: Option<String>,
    /// Who holds it.
    pub claimed_by: Option<Uuid>,
    /// Steps of the ladder used.
    pub rung: i16,
    /// Calls in a row that were not executed.
    pub failures: i16,
    /// The trace it belongs to.
    pub traceparent: String,
    /// The trace's state.
    pub tracestate: Option<String>,
}

/// What is written about an order.
#[derive(Clone, Debug)]
pub struct Change {
    /// The order.
    pub payment_order_id: Uuid,
    /// Who brought it.
    pub source: Source,
    /// Id of the event, if the result is new.
    pub event_id: Uuid,
    /// A result.
    pub result: Option<PspResultUpdateEvent>,
    /// Where the order goes; None if it stays.
    pub standing: Option<Moved>,
    /// The call that is finished by it.
    pub finished: Option<Finished>,
}

/// Where an order goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Moved {
    /// How far it has come.
    pub state: State,
    /// The PSP's id of the payment, if it was learnt now.
    pub psp_reference: Option<String>,
    /// When it is to be taken up.
    pub due_in: Duration,
    /// Steps of the ladder used.
    pub rung: i16,
    /// Calls in a row that were not executed.
    pub failures: i16,
}

/// When an order whose result is not final is looked at again.
#[derive(Clone, Debug)]
pub struct Ladder {
    /// The wait before each look, counted from the last; after them a person has to look.
    pub waits: Arc<[Duration]>,
    /// What time it is.
    pub clock: Clock,
}

impl Ladder {
    /// As the settings say.
    pub fn of(config: &Config) -> Self {
        Self { waits: config.ladder().into(), clock: config.clock.clone() }
    }
}

/// Records findings in a transaction; returns what became of each, in their order.
pub async fn record(
    pool: PgPool,
    ladder: Ladder,
    findings: Vec<Finding>,
) -> Result<Vec<Recorded>, sqlx::Error> {
    let recorded = transaction(&pool, move |tx| {
        Box::pin(async move {
            let recorded = record_in(tx, &ladder, findings).await?;
            failpoints::committing(tx).await?;
            Ok(recorded)
        })
    })
    .await;
    if recorded.is_ok() {
        failpoints::reached("E7");
    }
    recorded
}

/// Records findings in a transaction of the caller's: one that has locked no order but these, or these in the order of their ids.
pub async fn record_in(
    tx: &mut PgConnection,
    ladder: &Ladder,
    findings: Vec<Finding>,
) -> Result<Vec<Recorded>, sqlx::Error> {
    let mut recorded = vec![None; findings.len()];
    let mut rest: Vec<usize> = (0..findings.len()).collect();
    while !rest.is_empty() {
        // Two findings about one order are recorded one after the other. The first round locks all orders, in the order of their ids.
        let mut orders = HashSet::new();
        let (round, later): (Vec<_>, Vec<_>) =
            rest.into_iter().partition(|&n| orders.insert(findings[n].payment_order_id));
        let batch: Vec<Finding> = round.iter().map(|&n| findings[n].clone()).collect();
        let results = record_round(tx, ladder, batch).await?;
        for (n, result) in round.into_iter().zip(results) {
            recorded[n] = Some(result);
        }
        rest = later;
    }
    Ok(recorded.into_iter().flatten().collect())
}

async fn record_round(
    tx: &mut PgConnection,
    ladder: &Ladder,
    batch: Vec<Finding>,
) -> Result<Vec<Recorded>, sqlx::Error> {
    let ids: Vec<Uuid> = batch.iter().map(|finding| finding.payment_order_id).collect();
    let standings = results::lock_orders(tx, &ids).await?;
    let mut pairs = Vec::with_capacity(batch.len());
    for finding in batch {
        let standing =
            standings.iter().find(|standing| standing.payment_order_id == finding.payment_order_id);
        // Findings are about orders that were taken in: rows that are never deleted.
        let standing = standing.ok_or(sqlx::Error::RowNotFound)?;
        let parent = finding.within.or_else(|| TraceContext::parse(&standing.traceparent));
        let change = settlement::settle(standing, finding, &ladder.waits, ladder.clock.now());
        pairs.push((standing, change, parent));
    }
    let changes: Vec<Change> = pairs.iter().map(|(_, change, _)| change.clone()).collect();
    let new = results::insert_results(tx, &changes).await?;
    failpoints::reached("E4");
    append(tx, &pairs, &new).await?;
    results::apply(tx, &changes, ladder.clock.ahead()).await?;
    let recorded = |(standing, change, _): (&Standing, Change, _)| Recorded {
        event: change.result.filter(|_| new.contains(&change.event_id)),
        state: change.standing.map_or(standing.state, |moved| moved.state),
    };
    Ok(pairs.into_iter().map(recorded).collect())
}

async fn append(
    tx: &mut PgConnection,
    pairs: &[(&Standing, Change, Option<TraceContext>)],
    new: &[Uuid],
) -> Result<(), sqlx::Error> {
    let mut events = Vec::with_capacity(new.len());
    for (standing, change, parent) in pairs.iter().filter(|(_, change, _)| new.contains(&change.event_id)) {
        let payload =
            serde_json::to_value(&change.result).map_err(|error| sqlx::Error::Encode(Box::new(error)))?;
        let created = parent.map(|parent| created(change, parent).unwrap_or_else(|| parent.child()));
        let traceparent = created.map(|created| created.traceparent());
        events.push((
            change,
            change.payment_order_id.to_string(),
            payload,
            traceparent,
            standing.tracestate.as_deref(),
        ));
    }
    if events.is_empty() {
        return Ok(());
    }
    let events = events.iter().map(|(change, aggregate_id, payload, traceparent, tracestate)| NewEvent {
        event_id: change.event_id,
        event_type: PspResultUpdateEvent::TYPE,
        aggregate_id,
        payload: payload.clone(),
        traceparent: traceparent.as_deref(),
        tracestate: *tracestate,
    });
    outbox::append_all(tx, events.collect()).await
}

/// The step that makes an event: its context goes with the event, wherever it is carried.
fn created(change: &Change, parent: TraceContext) -> Option<TraceContext> {
    let mut span = Span::messaging(Step::Create, PspResultUpdateEvent::TYPE, Some(parent), &[]);
    if span.is_recording() {
        span.set("messaging.message.id", change.event_id.to_string());
        span.set("payment_order_id", change.payment_order_id.to_string());
        let result = change.result.as_ref();
        span.set_if("psp_status", result.map(|result| result.psp_status.as_str()));
        span.set_if("psp_reference", result.and_then(|result| result.psp_reference.clone()));
    }
    span.context()
}
