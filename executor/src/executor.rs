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

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use chassis::{backoff::Backoff, postgres::transaction, shutdown::Shutdown, telemetry::TraceContext};
use schema::{
    decode::Event as _,
    psp_result_update::{PspResultUpdateEvent, PspStatus},
};
use sqlx::PgPool;
use time::OffsetDateTime;
use tokio::{
    sync::{Notify, OwnedSemaphorePermit, Semaphore},
    task::{JoinError, JoinSet},
};
use uuid::Uuid;

use crate::{
    clock::Clock,
    config::{Config, LEASE_MARGIN},
    course::{self, Known, Next, Reason},
    group::{Group, NotWritten},
    metrics::Metrics,
    psp::{Answer, Call, Operation, Order, Psp, Psps},
    record::{self, Finding, Outcome, Recorded, Source},
    store::{self, Advance, Candidate, Finished, Queue, Started},
};

/// Most orders claimed at once.
const CLAIM_MAX: usize = 64;
/// Most calls for one order in one go; a look-up and a cancellation could otherwise follow each other for ever.
const CALLS_MAX: usize = 6;
/// Groups written side by side.
const WRITERS: usize = 2;

/// Everything that carrying out an order needs. Clones share it.
#[derive(Clone, Debug)]
pub struct Executor {
    clock: Clock,
    pool: PgPool,
    psps: Psps,
    metrics: Metrics,
    shutdown: Shutdown,
    lease: Duration,
    psp_timeout: Duration,
    advances: Group<Advance, Option<f64>>,
    findings: Group<Finding, Recorded>,
}

/// Where a loop of claims takes its orders, and how often it looks.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Which orders.
    pub queue: Queue,
    /// Orders carried out at once.
    pub concurrency: usize,
    /// Pause between two looks for a second after the last order was found.
    pub busy: Duration,
    /// Pause between two looks otherwise.
    pub idle: Duration,
}

/// An order that is ours until its lease ends.
struct Claimed {
    order: Order,
    trace_id: String,
    reference: Option<String>,
    source: Source,
    claim: Uuid,
    /// By our own clock, counted from before the claim: it ends before the database's lease does.
    lease_end: Instant,
    turn: Turn,
}

/// What is to be done with it.
enum Turn {
    /// A call that is written down.
    Call { psp: Arc<dyn Psp>, call: Call, started: Started },
    /// There is nothing to call for.
    Concluded(Outcome),
}

impl Executor {
    /// Starts the writers.
    pub fn new(config: &Config, pool: PgPool, psps: Psps, metrics: Metrics, shutdown: Shutdown) -> Self {
        let (lease, psp_timeout) = (config.lease(), config.psp_timeout);
        let (needed, to_advance) = (psp_timeout + LEASE_MARGIN, pool.clone());
        let advances = Group::start("attempts", WRITERS, &shutdown, move |group: Vec<Advance>| {
            let pool = to_advance.clone();
            async move { store::advance(&pool, lease, needed, psp_timeout, &group).await }
        });
        let (ladder, to_record) = (record::Ladder::of(config), pool.clone());
        let findings = Group::start("results", WRITERS, &shutdown, move |group| {
            record::record(to_record.clone(), ladder.clone(), group)
        });
        Self {
            clock: config.clock.clone(),
            pool,
            psps,
            metrics,
            shutdown,
            lease,
            psp_timeout,
            advances,
            findings,
        }
    }

    /// Claims and carries out orders until asked to stop; then finishes the calls in flight.
    pub async fn run(self, pace: Pace, wake: Arc<Notify>) -> anyhow::Result<()> {
        let slots = Arc::new(Semaphore::new(pace.concurrency));
        let mut tasks = JoinSet::new();
        let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(2));
        let mut last_found = Instant::now();
        while let Some(free) = self.free(&slots).await {
            while let Some(ended) = tasks.try_join_next() {
                log_panic(ended);
            }
            let limit = free.len();
            let found = match self.claim(pace.queue, limit).await {
                Ok(found) => found,
                Err(error) => {
                    let delay = backoff.next_delay();
                    tracing::warn!(%error, queue = ?pace.queue, delay_ms = delay.as_millis(), "orders could not be claimed");
                    self.shutdown.sleep(delay).await;
                    continue;
                }
            };
            backoff.reset();
            if !found.is_empty() {
                last_found = Instant::now();
            }
            let more = found.len() == limit;
            for (claimed, slot) in found.into_iter().zip(free) {
                let executor = self.clone();
                tasks.spawn(async move {
                    executor.carry_out(claimed).await;
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
        Ok(())
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

    /// Takes up to `limit` orders that are due, and writes down the first call of each.
    async fn claim(&self, queue: Queue, limit: usize) -> Result<Vec<Claimed>, sqlx::Error> {
        let executor = self.clone();
        let (claim, lease_end) = (Uuid::now_v7(), Instant::now() + self.lease);
        transaction(&self.pool, move |tx| {
            Box::pin(async move {
                let candidates = store::lock_due(
                    tx,
                    queue,
                    i64::try_from(limit).unwrap_or(i64::MAX),
                    executor.clock.ahead(),
                )
                .await?;
                if candidates.is_empty() {
                    return Ok(vec![]);
                }
                let begin = |candidate| executor.begin(candidate, queue, claim, lease_end);
                let claimed: Vec<Claimed> = candidates.into_iter().map(begin).collect();
                let rows: Vec<_> =
                    claimed.iter().map(|c| (c.order.payment_order_id, c.turn.started().cloned())).collect();
                store::claim(tx, claim, executor.lease, executor.psp_timeout, &rows).await?;
                Ok(claimed)
            })
        })
        .await
    }

    fn begin(&self, candidate: Candidate, queue: Queue, claim: Uuid, lease_end: Instant) -> Claimed {
        let Candidate { order, traceparent, reference, first_attempt_at } = candidate;
        let known =
            Known { has_reference: reference.is_some(), first_attempt_at, expires_at: order.expires_at };
        let turn = match self.psps.get(&order.psp) {
            // It was taken in when there was an adapter.
            None => Turn::Concluded(Outcome::Later { failed: true }),
            Some(psp) => match course::first(known, psp.capabilities(), self.clock.now()) {
                Next::Call(operation) => Turn::of(psp, operation, &order, reference.as_deref()),
                Next::Conclude(status, reason) => {
                    Turn::Concluded(result(&order, status, reason, reference.clone(), self.clock.now()))
                }
                Next::Nothing => Turn::Concluded(Outcome::Nothing),
                Next::Later => Turn::Concluded(Outcome::Later { failed: true }),
            },
        };
        Claimed {
            trace_id: TraceContext::parse(&traceparent).map(|trace| trace.trace_id()).unwrap_or_default(),
            source: if queue == Queue::Queued { Source::Reply } else { Source::Resolver },
            order,
            reference,
            claim,
            lease_end,
            turn,
        }
    }

    /// Calls the PSP until there is something to record, and records it.
    async fn carry_out(&self, mut claimed: Claimed) {
        let mut reason = None;
        let mut finished = None;
        for calls_left in (0..CALLS_MAX).rev() {
            let (psp, call, started) = match &claimed.turn {
                Turn::Call { psp, call, started } => (Arc::clone(psp), call, started),
                Turn::Concluded(_) => break,
            };
            if Instant::now() + self.psp_timeout > claimed.lease_end {
                self.lost(&claimed);
                return;
            }
            let answer = psp.send(call, &claimed.order).await;
            self.observe(&claimed, &*psp, call, &answer);
            let reference = answer.reference.clone().or_else(|| claimed.reference.take());
            let expired = self.clock.now() >= claimed.order.expires_at;
            let next = course::next(call.operation, &answer, &mut reason, expired);
            let obtained_at = answer.obtained_at;
            let answered = Finished { attempt_id: started.attempt_id, answer };
            claimed.reference.clone_from(&reference);
            claimed.turn = match next {
                // Between two calls is a good moment to stop: whoever comes next looks up how it stands.
                Next::Call(_) if self.shutdown.requested() => {
                    Turn::Concluded(Outcome::Later { failed: false })
                }
                Next::Call(_) if calls_left == 0 => Turn::Concluded(Outcome::Nothing),
                Next::Call(operation) => Turn::of(&psp, operation, &claimed.order, reference.as_deref()),
                Next::Conclude(status, reason) => {
                    Turn::Concluded(result(&claimed.order, status, reason, reference, obtained_at))
                }
                Next::Nothing => Turn::Concluded(Outcome::Nothing),
                Next::Later => Turn::Concluded(Outcome::Later { failed: true }),
            };
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
        self.record(claimed, finished).await;
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

    async fn record(&self, claimed: Claimed, finished: Option<Finished>) {
        let Claimed { order, trace_id, reference, source, claim, turn: Turn::Concluded(outcome), .. } =
            claimed
        else {
            return;
        };
        let payment_order_id = order.payment_order_id;
        let event_id = Uuid::now_v7();
        let finding = Finding { payment_order_id, source, claim: Some(claim), finished, outcome, event_id };
        match self.findings.write(finding).await {
            Ok(Recorded { event: Some(event), state }) => {
                self.metrics
                    .results_recorded
                    .with_label_values(&[event.psp_status.as_str(), source.as_str()])
                    .inc();
                self.metrics.outbox_inserts.with_label_values(&[PspResultUpdateEvent::TYPE]).inc();
                tracing::info!(
                    trace_id,
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
                tracing::info!(trace_id, %payment_order_id, psp_reference = reference, state, "nothing new to record");
            }
            Err(NotWritten) => {
                tracing::error!(trace_id, %payment_order_id, psp_reference = reference, "result not recorded; the PSP will be asked");
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

    fn observe(&self, claimed: &Claimed, psp: &dyn Psp, call: &Call, answer: &Answer) {
        let labels = [psp.label(), call.operation.label(), answer.label()];
        self.metrics.psp_requests.with_label_values(&labels).inc();
        self.metrics.psp_request_duration.with_label_values(&labels[..2]).observe(answer.took.as_secs_f64());
        tracing::debug!(
            trace_id = claimed.trace_id,
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
}

impl Turn {
    /// The call for an operation. What cannot even be asked for was not executed.
    fn of(psp: &Arc<dyn Psp>, operation: Operation, order: &Order, reference: Option<&str>) -> Self {
        match psp.prepare(operation, order, reference) {
            Ok(call) => Self::Call { psp: Arc::clone(psp), started: Started::of(&call), call },
            Err(error) => {
                let payment_order_id = order.payment_order_id;
                tracing::error!(%payment_order_id, error = format!("{error:#}"), "no request could be made");
                Self::Concluded(Outcome::Later { failed: true })
            }
        }
    }

    fn started(&self) -> Option<&Started> {
        match self {
            Self::Call { started, .. } => Some(started),
            Self::Concluded(_) => None,
        }
    }
}

fn result(
    order: &Order,
    status: PspStatus,
    reason: Reason,
    reference: Option<String>,
    at: OffsetDateTime,
) -> Outcome {
    Outcome::Result(PspResultUpdateEvent {
        payment_order_id: order.payment_order_id,
        psp_status: status,
        psp_reference: reference,
        // To the microsecond, as the wire and PostgreSQL keep it: outbox row, record and result are to say the same.
        event_time: at.replace_microsecond(at.microsecond()).unwrap_or(at),
        error_code: reason.code,
        error_message: reason.message,
    })
}

fn log_panic(ended: Result<(), JoinError>) {
    if let Err(error) = ended {
        tracing::error!(%error, "carrying out an order failed; its lease will run out, and the PSP will be asked");
    }
}
