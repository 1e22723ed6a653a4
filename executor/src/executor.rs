//! Carrying out payment orders: claim, call, record.
//!
//! ```text
//! claim ──────────────────────▶ call ─────────▶ next? ──▶ advance ──────────▶ call … ──▶ record (see `record`)
//! one transaction per batch:    no transaction  (course)  one statement per group:
//! lock what is due, take it,    is open here              finish the call, write down
//! write down the first calls                              the next one, keep the lease
//! ```
//! A call is written down, with its idempotency key and its hash, and committed, before it is made. If the process dies before a
//! call, during it, or before its answer is recorded, the attempt stays STARTED and the lease runs out; whoever claims the order
//! then (`resolver`) asks the PSP. A claim is exclusive while its lease lasts, and no call is made that could outlast it.
//!
//! If the database refuses a claim for one order's sake, the orders are claimed one by one; the one that is refused alone is set aside
//! (`executor.parked`), and tried again later and later, until it can be claimed. What else the database says is waited out.
//!
//! Orders are claimed per PSP, each PSP in its own loop with its own room (`lane`): one that stalls holds up nobody else's orders, and one
//! that fails is left alone while its orders wait in the database. Orders of a PSP that this process has no adapter for are left to a
//! process that has one.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use chassis::{
    backoff::Backoff,
    group::{Group, Patience},
    postgres::{Disposition, disposition, transaction},
    shutdown::Shutdown,
    trace::{Span, SpanKind},
};
use schema::{decode::Event as _, psp_result_update::PspResultUpdateEvent};
use sqlx::PgPool;
use tokio::{
    sync::{Notify, OwnedSemaphorePermit, Semaphore},
    task::{JoinError, JoinSet},
};
use uuid::Uuid;

use crate::{
    clock::Clock,
    config::{Config, LEASE_MARGIN},
    course::{self, Next, Situation},
    failpoints,
    lane::{Lane, Lanes},
    metrics::Metrics,
    psp::{Answer, Call, Psps, Verdict},
    record::{self, Finding, Outcome, Recorded, Source},
    store::{self, Advance, Finished, Queue, Started},
    turn::{Claimed, Turn, begin, turn},
};

/// Most orders claimed at once.
const CLAIM_MAX: usize = 64;
/// Most calls for one order in one go; a look-up and a cancellation could otherwise follow each other for ever.
const CALLS_MAX: usize = 6;
/// First and longest pause before an order whose claim was refused is tried again.
const PARKED_FOR: (Duration, Duration) = (Duration::from_secs(1), Duration::from_hours(1));
/// Groups written side by side.
const WRITERS: usize = 2;

/// Everything that carrying out an order needs. Clones share it.
#[derive(Clone, Debug)]
pub struct Executor {
    clock: Clock,
    pool: PgPool,
    lanes: Arc<Lanes>,
    metrics: Metrics,
    shutdown: Shutdown,
    lease: Duration,
    psp_timeout: Duration,
    advances: Group<Advance, Option<f64>>,
    findings: Group<Finding, Recorded>,
}

/// A claim that was rolled back, and the order that was alone in it, with its trace.
struct Refused {
    error: sqlx::Error,
    alone: Option<(Uuid, String)>,
}

impl From<sqlx::Error> for Refused {
    fn from(error: sqlx::Error) -> Self {
        Self { error, alone: None }
    }
}

/// Where the loops of claims take their orders, and how often they look.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Which orders.
    pub queue: Queue,
    /// Orders of one PSP carried out at once.
    pub concurrency: usize,
    /// Pause between two looks for a second after the last order was found.
    pub busy: Duration,
    /// Pause between two looks otherwise.
    pub idle: Duration,
}

impl Executor {
    /// Starts the writers.
    pub fn new(config: &Config, pool: PgPool, psps: &Psps, metrics: Metrics, shutdown: Shutdown) -> Self {
        let lanes = Arc::new(Lane::all(config, psps, &metrics, &shutdown));
        let (lease, psp_timeout) = (config.lease(), config.psp_timeout);
        let (needed, to_advance) = (psp_timeout + LEASE_MARGIN, pool.clone());
        let advances =
            Group::start("attempts", WRITERS, Patience::Endless, &shutdown, move |group: Vec<Advance>| {
                let pool = to_advance.clone();
                async move { store::advance(&pool, lease, needed, psp_timeout, &group).await }
            });
        let (ladder, to_record) = (record::Ladder::of(config), pool.clone());
        let findings = Group::start("results", WRITERS, Patience::Endless, &shutdown, move |group| {
            record::record(to_record.clone(), ladder.clone(), group)
        });
        let clock = config.clock.clone();
        Self { clock, pool, lanes, metrics, shutdown, lease, psp_timeout, advances, findings }
    }

    /// Claims and carries out orders until asked to stop, in each lane by itself; then finishes the calls in flight.
    pub async fn run(self, pace: Pace, wake: Arc<Notify>) -> anyhow::Result<()> {
        let mut lanes = JoinSet::new();
        let mut wakes = Vec::new();
        for lane in self.lanes.values() {
            let wake = Arc::new(Notify::new());
            wakes.push(Arc::clone(&wake));
            lanes.spawn(self.clone().work(Arc::clone(lane), pace, wake));
        }
        let ended = loop {
            tokio::select! {
                () = wake.notified() => wakes.iter().for_each(|lane| lane.notify_one()),
                ended = lanes.join_next() => break ended,
            }
        };
        // A lane ends when it is asked to. One that fails is an end for all of them.
        if let Some(Err(error)) = ended {
            return Err(error).context("a lane failed");
        }
        while let Some(ended) = lanes.join_next().await {
            ended.context("a lane failed")?;
        }
        Ok(())
    }

    async fn work(self, lane: Arc<Lane>, pace: Pace, wake: Arc<Notify>) {
        let slots = Arc::new(Semaphore::new(pace.concurrency));
        let mut tasks = JoinSet::new();
        let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(2));
        let mut last_found = Instant::now();
        // After a claim was refused so many orders are claimed one by one, so that one cannot hold up the others.
        let mut singly = 0_usize;
        let mut waits = false;
        while let Some(free) = self.free(&slots).await {
            while let Some(ended) = tasks.try_join_next() {
                log_panic(ended);
            }
            let Some(room) = lane.admitted(free.len()).await else { break };
            let limit = if singly > 0 { room.min(1) } else { room };
            let found = match self.claim(&lane, pace.queue, limit).await {
                Ok(found) => found,
                Err(refused) => {
                    lane.found_nothing();
                    singly = self.refused(refused, pace.queue, singly, (&mut backoff, &mut waits)).await;
                    continue;
                }
            };
            backoff.reset();
            waits = false;
            singly = if found.is_empty() { 0 } else { singly.saturating_sub(1) };
            // Orders that end without a call, expired ones for instance, say nothing about the PSP.
            if found.iter().all(|claimed| claimed.turn.started().is_none()) {
                lane.found_nothing();
            }
            if !found.is_empty() {
                last_found = Instant::now();
            }
            let more = found.len() == limit;
            for (claimed, slot) in found.into_iter().zip(free) {
                let (executor, lane) = (self.clone(), Arc::clone(&lane));
                tasks.spawn(async move {
                    executor.carry_out(&lane, claimed).await;
                    drop(slot);
                });
            }
            if !more {
                let pause = if last_found.elapsed() < Duration::from_secs(1) { pace.busy } else { pace.idle };
                tokio::select! {
                    () = wake.notified() => {}
                    _ = self.shutdown.sleep(pause) => {}
                }
            }
        }
        while let Some(ended) = tasks.join_next().await {
            log_panic(ended);
        }
    }

    /// The free slots, at least one; None at the end.
    async fn free(&self, slots: &Arc<Semaphore>) -> Option<Vec<OwnedSemaphorePermit>> {
        let mut free = tokio::select! {
            slot = Arc::clone(slots).acquire_owned() => vec![slot.ok()?],
            () = self.shutdown.wait() => return None,
        };
        while free.len() < CLAIM_MAX
            && let Ok(slot) = Arc::clone(slots).try_acquire_owned()
        {
            free.push(slot);
        }
        (!self.shutdown.requested()).then_some(free)
    }

    /// Takes up to `limit` orders of this PSP that are due, and writes down the first call of each.
    async fn claim(&self, lane: &Arc<Lane>, queue: Queue, limit: usize) -> Result<Vec<Claimed>, Refused> {
        let (executor, lane) = (self.clone(), Arc::clone(lane));
        let (claim, lease_end) = (Uuid::now_v7(), Instant::now() + self.lease);
        transaction(&self.pool, move |tx| {
            Box::pin(async move {
                let limit = i64::try_from(limit).unwrap_or(i64::MAX);
                let candidates =
                    store::lock_due(tx, queue, lane.psp.name(), limit, executor.clock.ahead()).await?;
                if candidates.is_empty() {
                    return Ok(vec![]);
                }
                let now = executor.clock.now();
                let begin = |candidate| begin(&lane, candidate, queue, (claim, lease_end), now);
                let claimed: Vec<Claimed> = candidates.into_iter().map(begin).collect();
                let rows: Vec<_> =
                    claimed.iter().map(|c| (c.order.payment_order_id, c.turn.started().cloned())).collect();
                match store::claim(tx, claim, executor.lease, executor.psp_timeout, &rows).await {
                    Ok(()) => Ok(claimed),
                    Err(error) => {
                        let one = claimed.first().filter(|_| claimed.len() == 1);
                        let alone = one.map(|one| (one.order.payment_order_id, one.trace_id.clone()));
                        Err(Refused { error, alone })
                    }
                }
            })
        })
        .await
    }

    /// Sets aside the order that was alone in a refused claim, or waits; returns how many are to be claimed one by one from now on.
    async fn refused(
        &self,
        Refused { error, alone }: Refused,
        queue: Queue,
        singly: usize,
        (backoff, waits): (&mut Backoff, &mut bool),
    ) -> usize {
        let culprit = disposition(&error) == Disposition::Culprit;
        if culprit && alone.is_none() && singly == 0 {
            return CLAIM_MAX;
        }
        if let Some((payment_order_id, trace_id)) = alone.filter(|_| culprit) {
            match store::park(&self.pool, payment_order_id, &error, PARKED_FOR).await {
                Ok(refusals) => {
                    tracing::error!(trace_id, %payment_order_id, %error, refusals, "the database refuses the claim of an order: it is set aside");
                    return singly.saturating_sub(1);
                }
                Err(error) => {
                    tracing::warn!(trace_id, %payment_order_id, %error, "an order could not be set aside");
                }
            }
        }
        let delay = backoff.next_delay();
        // Said when it begins, and not each time.
        if !std::mem::replace(waits, true) {
            tracing::warn!(%error, ?queue, "orders cannot be claimed; trying again");
        }
        self.shutdown.sleep(delay).await;
        singly
    }

    /// Calls the PSP until there is something to record, and records it.
    async fn carry_out(&self, lane: &Lane, mut claimed: Claimed) {
        let span = step(&claimed);
        claimed.trace = span.context().or(claimed.trace);
        let mut cancelling = None;
        let mut finished = None;
        for calls_left in (0..CALLS_MAX).rev() {
            let Turn::Call { call, started } = &claimed.turn else { break };
            let deadline = Instant::now() + self.psp_timeout;
            if deadline > claimed.lease_end {
                self.lost(&claimed);
                return;
            }
            failpoints::reached("E1");
            let answering = lane.call(call, &claimed.order, claimed.known, deadline, claimed.trace);
            let answer = failpoints::called(answering).await;
            failpoints::reached("E3");
            log_answer(&claimed, call, &answer);
            claimed.reference = answer.reference.clone().or_else(|| claimed.reference.take());
            let situation = Situation {
                psp: lane.psp.capabilities(),
                expired: self.clock.now() >= claimed.order.expires_at,
                in_doubt: claimed.known.in_doubt || answer.in_doubt,
            };
            claimed.known.first_attempt_at.get_or_insert(answer.obtained_at);
            claimed.known.in_doubt = situation.in_doubt || answer.verdict != Verdict::Later;
            let next = match course::next(situation, call.operation, &answer, &mut cancelling) {
                // Between two calls is a good moment to stop: whoever comes next looks up how it stands.
                Next::Call(_) if self.shutdown.requested() || lane.is_open() => {
                    Turn::Concluded(Outcome::Later { failed: false })
                }
                Next::Call(_) if calls_left == 0 => Turn::Concluded(Outcome::Nothing),
                next => turn(lane, next, &claimed, answer.obtained_at),
            };
            let answered = Finished { attempt_id: started.attempt_id, answer };
            claimed.turn = next;
            if let Some(started) = claimed.turn.started() {
                let Some(lease_end) = self.advance(&claimed, answered, started.clone()).await else {
                    self.lost(&claimed);
                    return;
                };
                claimed.lease_end = lease_end;
            } else {
                finished = Some(answered);
            }
        }
        self.record(claimed, finished, span).await;
    }

    /// Finishes one call and writes down the next; the new end of the lease, or None if no call may be made.
    async fn advance(&self, claimed: &Claimed, finished: Finished, started: Started) -> Option<Instant> {
        let before = Instant::now();
        let advance = Advance {
            payment_order_id: claimed.order.payment_order_id,
            claim: claimed.claim,
            finished,
            started,
        };
        let seconds = self.advances.write(advance).await.ok().flatten()?;
        Duration::try_from_secs_f64(seconds).ok().map(|remaining| before + remaining)
    }

    async fn record(&self, claimed: Claimed, finished: Option<Finished>, mut span: Span) {
        let Claimed {
            order,
            known,
            trace_id,
            trace,
            reference,
            source,
            claim,
            turn: Turn::Concluded(outcome),
            ..
        } = claimed
        else {
            return;
        };
        let payment_order_id = order.payment_order_id;
        let event_id = Uuid::now_v7();
        let (claim, in_doubt) = (Some(claim), known.in_doubt);
        let within = trace.filter(|_| span.is_recording());
        let finding =
            Finding { payment_order_id, source, claim, finished, outcome, in_doubt, event_id, within };
        let span_id = trace.map(|trace| trace.span_id());
        match self.findings.write(finding).await {
            Ok(Recorded { event: Some(event), state }) => {
                self.metrics
                    .results_recorded
                    .with_label_values(&[event.psp_status.as_str(), source.as_str()])
                    .inc();
                self.metrics.outbox_inserts.with_label_values(&[PspResultUpdateEvent::TYPE]).inc();
                span.set("psp_status", event.psp_status.as_str());
                span.set_if("psp_reference", event.psp_reference.clone());
                span.set_if("error_code", event.error_code.clone());
                tracing::info!(
                    trace_id,
                    span_id,
                    %payment_order_id,
                    %event_id,
                    psp_reference = event.psp_reference,
                    psp_status = event.psp_status.as_str(),
                    error_code = event.error_code,
                    source = source.as_str(),
                    state = state.as_str(),
                    "result recorded"
                );
            }
            Ok(Recorded { event: None, state }) => {
                let state = state.as_str();
                tracing::info!(trace_id, span_id, %payment_order_id, psp_reference = reference, state, "nothing new to record");
            }
            Err(reason) => {
                span.fail("not_recorded");
                tracing::error!(trace_id, span_id, %payment_order_id, psp_reference = reference, %reason, "result not recorded; the PSP will be asked");
            }
        }
    }

    fn lost(&self, claimed: &Claimed) {
        self.metrics.claims_lost.inc();
        tracing::warn!(
            trace_id = claimed.trace_id,
            payment_order_id = %claimed.order.payment_order_id,
            psp_reference = claimed.reference,
            "the claim is no longer ours, or too short for a call: left to the resolver"
        );
    }
}

/// The step in which an order is carried out, or asked about: from its claim to its result.
fn step(claimed: &Claimed) -> Span {
    let name = match claimed.source {
        Source::Resolver => "resolve payment order",
        Source::Reply | Source::Webhook | Source::Operator => "execute payment order",
    };
    let mut span = Span::start(SpanKind::Internal, name, claimed.trace);
    if span.is_recording() {
        span.set("payment_order_id", claimed.order.payment_order_id.to_string());
        span.set("psp", claimed.order.psp.clone());
        span.set("source", claimed.source.as_str());
    }
    span
}

fn log_answer(claimed: &Claimed, call: &Call, answer: &Answer) {
    tracing::debug!(
        trace_id = claimed.trace_id,
        span_id = claimed.trace.map(|trace| trace.span_id()),
        payment_order_id = %claimed.order.payment_order_id,
        psp_reference = answer.reference,
        operation = call.operation.label(),
        verdict = answer.verdict.as_str(),
        error_code = answer.error_code,
        http_status = answer.http_status,
        psp_request_id = answer.request_id,
        took_ms = answer.took.as_millis(),
        "PSP answered"
    );
}

fn log_panic(ended: Result<(), JoinError>) {
    if let Err(error) = ended {
        tracing::error!(%error, "carrying out an order failed; its lease will run out, and the PSP will be asked");
    }
}
