//! Working off what was stored, in one transaction per batch, beside as many other processes as there are.
//!
//! ```text
//! lock what is due ─▶ lock its orders ─▶ decide (pure) ─▶ record | wake ─▶ mark ─▶ commit
//! ```
//! A batch holds one event per order; what follows of the same order comes in the next one. If the process dies before the commit,
//! nothing has happened; whoever looks next begins again. An event whose order is not there yet, or is being carried out, is taken up
//! again after a pause. Those whose order is not there wait apart, so that what another system on the same account is told holds up nothing of
//! ours: they are looked at after all others, a few at a time, less and less often, and the oldest are given up if they become too many.
//! An order that turns up finds them (`intake`). One that the database refuses is tried alone, then less and less often, then given up; the row stays.

use std::{collections::HashSet, sync::Arc, time::Duration};

use chassis::{
    backoff::Backoff,
    postgres::{Disposition, disposition, transaction},
    shutdown::Shutdown,
    telemetry::TraceContext,
    trace::{Span, SpanKind},
};
use schema::{decode::Event as _, psp_result_update::PspResultUpdateEvent};
use sqlx::{PgConnection, PgPool};
use tokio::sync::Notify;
use uuid::Uuid;

use super::{
    Sender,
    decision::{Outcome, Rules, Stored, Turn, decide},
};
use crate::{
    clock::Clock,
    metrics::Metrics,
    record::{self, Finding, Ladder, Recorded, Source},
    store::webhooks as store,
};

/// Most events of one transaction.
const BATCH_MAX: i64 = 50;
/// How often to look when nobody says that something was stored.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// Shortest and longest pause before an event is taken up again.
const AGAIN_FIRST: Duration = Duration::from_millis(250);
const AGAIN_MAX: Duration = Duration::from_mins(1);
/// The longest for one whose order is not known: the order itself, when it turns up, says so.
const STRANGER_AGAIN_MAX: Duration = Duration::from_hours(1);
/// First pause after the database has refused what follows from an event, doubled each time, and how often that may happen.
const AFTER_FAILURE: Duration = Duration::from_secs(1);
const FAILURES_MAX: i32 = 12;
/// How often the gauges are brought up to date, and old rows deleted.
const HOUSEKEEPING_EVERY: Duration = Duration::from_secs(5);

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
    /// Its order is not known.
    pub stranger: bool,
}

/// Works off what was stored.
#[derive(Clone, Debug)]
pub struct Processing {
    /// The database.
    pub pool: PgPool,
    /// When orders whose result is not final are looked at.
    pub ladder: Ladder,
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
    stranger: bool,
    recorded: Option<Recorded>,
    trace: Option<TraceContext>,
    span: Span,
    event_id: Uuid,
}

impl Processing {
    /// Works off what is due until asked to stop; `wake` says that something was stored.
    pub async fn run(self, wake: Arc<Notify>, shutdown: Shutdown) -> anyhow::Result<()> {
        let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(2));
        // After a batch was refused its events are tried one by one, so that one cannot hold up the others.
        let mut singly = 0;
        let mut waits = false;
        while !shutdown.requested() {
            let limit = if singly > 0 { 1 } else { BATCH_MAX };
            match self.batch(limit).await {
                Ok(0) => {
                    waits = false;
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
                    (Disposition::Culprit, Some(id)) => {
                        singly = (singly - 1).max(0);
                        self.refused(id, &error, FAILURES_MAX).await;
                    }
                    // A missing privilege, say: no event's fault, and no reason to give one up.
                    (Disposition::Fault, Some(id)) => {
                        singly = (singly - 1).max(0);
                        self.refused(id, &error, i32::MAX).await;
                    }
                    (Disposition::Culprit | Disposition::Fault, None) if limit > 1 => singly = BATCH_MAX,
                    (Disposition::Wait | Disposition::Culprit | Disposition::Fault, _) => {
                        let delay = backoff.next_delay();
                        // Said when it begins, and not each time.
                        if !std::mem::replace(&mut waits, true) {
                            tracing::warn!(%error, "webhooks cannot be worked off; trying again");
                        }
                        shutdown.sleep(delay).await;
                    }
                },
            }
        }
        Ok(())
    }

    /// Keeps the gauges, gives up strangers that are too many, and deletes what is old, a thousand rows at a time.
    pub async fn watch(self, shutdown: Shutdown) -> anyhow::Result<()> {
        while shutdown.sleep(HOUSEKEEPING_EVERY).await {
            match store::waiting(&self.pool).await {
                Ok((count, oldest_seconds, strangers)) => {
                    self.metrics.webhooks_waiting.set(count);
                    self.metrics.webhook_oldest_waiting_age.set(oldest_seconds);
                    self.metrics.webhooks_of_strangers.set(strangers);
                }
                Err(error) => tracing::debug!(%error, "the gauges could not be brought up to date"),
            }
            for sender in Sender::ALL {
                self.give_up_strangers(sender).await;
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

    async fn give_up_strangers(&self, sender: Sender) {
        let psp = sender.label();
        match store::give_up_strangers(&self.pool, sender.name(), self.rules.strangers_max).await {
            Ok(0) => {}
            Ok(given_up) => {
                let labels = [psp, Outcome::UnknownOrder.as_str()];
                self.metrics.webhooks_processed.with_label_values(&labels).inc_by(given_up);
                tracing::warn!(
                    psp,
                    given_up,
                    "too many webhooks wait for orders that nobody knows: the oldest were given up"
                );
            }
            Err(error) => tracing::warn!(psp, %error, "webhooks could not be given up"),
        }
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
            self.say(line);
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
            let trace = known.and_then(|known| TraceContext::parse(&known.traceparent));
            let span = step(&stored, trace);
            let event_id = Uuid::now_v7();
            let mut finding = false;
            let end = match decide(&stored, known, self.rules, now) {
                Turn::Done(outcome) => End::Done(outcome),
                Turn::Again if known.is_none() => End::Again(pause(stored.tries, STRANGER_AGAIN_MAX)),
                Turn::Again => End::Again(pause(stored.tries, AGAIN_MAX)),
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
                        in_doubt: false,
                        event_id,
                        within: span.context(),
                    });
                    finding = true;
                    End::Done(Outcome::Recorded)
                }
            };
            lines.push((stored, end, finding, (known.is_some(), trace, span, event_id)));
        }
        let mut recorded = record::record_in(tx, &self.ladder, findings).await?.into_iter();
        store::wake(tx, &wakes, self.clock.ahead()).await?;
        let lines: Vec<Line> = lines
            .into_iter()
            .map(|(stored, end, finding, (known, trace, span, event_id))| {
                let recorded = if finding { recorded.next() } else { None };
                let nothing_new = recorded.as_ref().is_some_and(|recorded| recorded.event.is_none());
                let end = if nothing_new { End::Done(Outcome::Known) } else { end };
                let stranger = !known && stored.payment_order_id.is_some();
                Line { stored, end, stranger, recorded, trace, span, event_id }
            })
            .collect();
        let worked = |line: &Line| Worked {
            webhook_id: line.stored.webhook_id,
            end: line.end,
            stranger: line.stranger,
        };
        let worked: Vec<Worked> = lines.iter().map(worked).collect();
        store::mark(tx, &worked, self.clock.ahead()).await?;
        Ok(lines)
    }

    async fn refused(&self, webhook_id: i64, error: &sqlx::Error, failures_max: i32) {
        tracing::error!(webhook_id, %error, "the database refused what follows from a webhook");
        match store::failed(&self.pool, webhook_id, AFTER_FAILURE, failures_max, self.clock.ahead()).await {
            Ok(Some(psp)) => {
                let labels = [Sender::from_name(&psp).map_or("", Sender::label), Outcome::Refused.as_str()];
                self.metrics.webhooks_processed.with_label_values(&labels).inc();
                tracing::error!(psp, webhook_id, "a webhook was given up; its row stays");
            }
            Ok(None) => {}
            Err(error) => tracing::warn!(webhook_id, %error, "a webhook could not be put off"),
        }
    }

    fn say(&self, line: Line) {
        let Line { stored, end, recorded, trace, mut span, event_id, stranger: _ } = line;
        let trace_id = trace.map(|trace| trace.trace_id()).unwrap_or_default();
        let span_id = span.context().or(trace).map(|trace| trace.span_id());
        let payment_order_id = stored.payment_order_id.map(tracing::field::display);
        let (webhook_id, event_type) = (stored.webhook_id, stored.event_type.as_str());
        let psp = Sender::from_name(&stored.psp).map_or("", Sender::label);
        if let Some(event) = recorded.as_ref().and_then(|recorded| recorded.event.as_ref()) {
            let status = event.psp_status.as_str();
            self.metrics.results_recorded.with_label_values(&[status, Source::Webhook.as_str()]).inc();
            self.metrics.outbox_inserts.with_label_values(&[PspResultUpdateEvent::TYPE]).inc();
            span.set("psp_status", status);
            span.set_if("psp_reference", event.psp_reference.clone());
            tracing::info!(
                trace_id,
                span_id,
                payment_order_id,
                %event_id,
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
                span.set("outcome", outcome);
                self.metrics.webhooks_processed.with_label_values(&[psp, outcome]).inc();
                tracing::info!(
                    trace_id,
                    span_id,
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
                span.set("outcome", "AGAIN");
                tracing::debug!(
                    trace_id,
                    span_id,
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

/// The step in which an event is worked off: of the payment's trace, and linked to the step in which it came. None for a stranger's.
fn step(stored: &Stored, trace: Option<TraceContext>) -> Span {
    let Some(trace) = trace else { return Span::none() };
    let received = stored.traceparent.as_deref().and_then(TraceContext::parse);
    let mut span = Span::begin(SpanKind::Internal, "process webhook", Some(trace), received.as_slice(), None);
    if span.is_recording() {
        span.set_if("payment_order_id", stored.payment_order_id.map(|id| id.to_string()));
        span.set("psp", stored.psp.clone());
        span.set("webhook.id", stored.webhook_id);
        span.set("webhook.type", stored.event_type.clone());
    }
    span
}

/// Doubles with each try.
fn pause(tries: i32, longest: Duration) -> Duration {
    let doublings = u32::try_from(tries.clamp(0, 16)).unwrap_or(0);
    AGAIN_FIRST.saturating_mul(1 << doublings).min(longest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_a_minute_and_those_of_strangers_up_to_an_hour() {
        let pauses = |longest| [0, 1, 2, 8, 14, 30, i32::MAX].map(|tries| pause(tries, longest).as_millis());
        assert_eq!(pauses(AGAIN_MAX), [250, 500, 1000, 60_000, 60_000, 60_000, 60_000]);
        let hour = 3_600_000;
        assert_eq!(pauses(STRANGER_AGAIN_MAX), [250, 500, 1000, 64_000, hour, hour, hour]);
    }
}
