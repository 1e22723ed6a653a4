//! From the commit to the topic: events at a fixed rate, one transaction each, and a consumer that notes when it has them.
//!
//! An open loop: when an event is due depends on the clock alone, and any session that is free takes the next one. The clock of an event
//! begins when its commit has returned to the writer; a record that was there before that counts as 0.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::json;
use sqlx::{Connection, PgConnection};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::task::JoinSet;
use uuid::Uuid;

use super::topics::Arrivals;
use crate::report::nearest_rank;

/// Enough for 3,000 commits a second on a disk that takes 5 ms for each.
const SESSIONS: u32 = 16;
/// Not counted: connections are made, statements planned, caches filled.
const WARM_UP_SECONDS: u32 = 2;
const ARRIVAL_LIMIT: Duration = Duration::from_secs(30);

/// What latency was at a rate.
#[derive(Clone, Copy, Debug)]
pub(super) struct Latency {
    /// Events per second, as asked for.
    pub(super) rate: u32,
    /// Events per second that were committed.
    pub(super) reached: f64,
    /// Events that count.
    pub(super) events: usize,
    /// Of them on the topic before their commit had returned.
    pub(super) early: usize,
    /// From the commit's return.
    pub(super) p50_ms: Option<f64>,
    /// From the commit's return.
    pub(super) p99_ms: Option<f64>,
    /// From the moment before the statement was sent: writing and committing are part of it.
    pub(super) p99_from_call_ms: Option<f64>,
}

/// Writes one event in a transaction of its own.
#[derive(Clone, Debug)]
pub(super) enum Writer {
    /// With `outbox.append`, as the executor does.
    Outbox,
    /// Into the peer's table, with the wire bytes of an event.
    Peer(Arc<Vec<u8>>),
}

#[derive(Clone, Copy, Debug)]
struct Sent {
    id: Uuid,
    number: u32,
    called: Instant,
    committed: Instant,
}

/// Writes at the rate over sessions of their own to `url`.
pub(super) async fn measure(
    rate: u32,
    seconds: u32,
    url: &str,
    writer: &Writer,
    arrivals: Arrivals,
) -> Result<Latency> {
    let ahead = rate * WARM_UP_SECONDS.min(seconds);
    let events = ahead + rate * seconds;
    let mut sessions = Vec::new();
    for _ in 0..SESSIONS {
        sessions.push(PgConnection::connect(url).await.context("connect a writer")?);
    }
    let (next, begun) = (Arc::new(AtomicU32::new(0)), Instant::now());
    let mut writing = JoinSet::new();
    for session in sessions {
        let (writer, next) = (writer.clone(), Arc::clone(&next));
        writing.spawn(async move { write(session, &writer, &next, begun, rate, events).await });
    }
    let mut sent = Vec::new();
    while let Some(written) = writing.join_next().await {
        sent.extend(written.context("write events")??);
    }
    let arrived = arrivals.of(sent.len(), ARRIVAL_LIMIT).await?;
    sent.retain(|event| event.number >= ahead);
    evaluate(rate, &sent, &arrived)
}

async fn write(
    mut session: PgConnection,
    writer: &Writer,
    next: &AtomicU32,
    begun: Instant,
    rate: u32,
    events: u32,
) -> Result<Vec<Sent>> {
    let mut sent = Vec::new();
    loop {
        let number = next.fetch_add(1, Ordering::Relaxed);
        if number >= events {
            session.close().await.context("close a session")?;
            return Ok(sent);
        }
        let due = begun + Duration::from_secs_f64(f64::from(number) / f64::from(rate));
        tokio::time::sleep_until(due.into()).await;
        let id = Uuid::now_v7();
        let called = Instant::now();
        writer.write(&mut session, id).await.context("write an event")?;
        sent.push(Sent { id, number, called, committed: Instant::now() });
    }
}

impl Writer {
    /// One statement outside of any transaction block is a transaction: it has committed when it has returned.
    async fn write(&self, session: &mut PgConnection, id: Uuid) -> Result<()> {
        let key = Uuid::new_v4().to_string();
        match self {
            Writer::Outbox => {
                let digest = id.simple().to_string();
                let payload = json!({
                    "paymentOrderId": key,
                    "pspStatus": "FAILED",
                    "pspReference": format!("pi_{}", &digest[..24]),
                    "eventTime": OffsetDateTime::now_utc().format(&Rfc3339)?,
                    "errorCode": "insufficient_funds",
                    "errorMessage": "Your card has insufficient funds.",
                });
                let traceparent = format!("00-{digest}-{}-01", &digest[16..]);
                sqlx::query("SELECT outbox.append('PspResultUpdateEvent', $1, $2::json, $3, NULL, $4)")
                    .bind(&key)
                    .bind(payload.to_string())
                    .bind(traceparent)
                    .bind(id)
                    .execute(session)
                    .await?;
            }
            Writer::Peer(value) => {
                sqlx::query(
                    "INSERT INTO outbox (id, aggregatetype, aggregateid, type, payload) VALUES ($1, 'results', $2, 'PspResultUpdateEvent', $3)",
                )
                .bind(id)
                .bind(&key)
                .bind(value.as_slice())
                .execute(session)
                .await?;
            }
        }
        Ok(())
    }
}

fn evaluate(rate: u32, sent: &[Sent], arrived: &HashMap<Uuid, Instant>) -> Result<Latency> {
    let (mut after_commit, mut after_call) = (Vec::with_capacity(sent.len()), Vec::with_capacity(sent.len()));
    let mut early = 0;
    for event in sent {
        let at = arrived.get(&event.id).with_context(|| format!("the event {} has not arrived", event.id))?;
        early += usize::from(*at < event.committed);
        after_commit.push(at.saturating_duration_since(event.committed).as_secs_f64() * 1_000.0);
        after_call.push(at.saturating_duration_since(event.called).as_secs_f64() * 1_000.0);
    }
    after_commit.sort_by(f64::total_cmp);
    after_call.sort_by(f64::total_cmp);
    let first = sent.iter().map(|event| event.committed).min();
    let last = sent.iter().map(|event| event.committed).max();
    let span = first.zip(last).map_or(Duration::ZERO, |(first, last)| last - first).as_secs_f64();
    Ok(Latency {
        rate,
        // Between n events there are n - 1 pauses.
        reached: f64::from(u32::try_from(sent.len())?.saturating_sub(1)) / span,
        events: sent.len(),
        early,
        p50_ms: nearest_rank(&after_commit, 50),
        p99_ms: nearest_rank(&after_commit, 99),
        p99_from_call_ms: nearest_rank(&after_call, 99),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_arrives_before_the_commit_returns_counts_as_nothing() {
        let begun = Instant::now();
        let at = |ms| begun + Duration::from_millis(ms);
        let sent: Vec<Sent> = (0..100_u32)
            .map(|number| Sent {
                id: Uuid::from_u128(number.into()),
                number,
                called: at(u64::from(number) * 10),
                committed: at(u64::from(number) * 10 + 5),
            })
            .collect();
        let mut arrived: HashMap<Uuid, Instant> =
            sent.iter().map(|event| (event.id, event.committed + Duration::from_millis(4))).collect();
        arrived.insert(sent[0].id, sent[0].called + Duration::from_millis(3));
        arrived.insert(sent[1].id, sent[1].committed + Duration::from_millis(40));
        let latency = evaluate(100, &sent, &arrived).unwrap();
        assert_eq!((latency.events, latency.early), (100, 1));
        assert_eq!((latency.p50_ms, latency.p99_ms), (Some(4.0), Some(4.0)));
        assert_eq!(latency.p99_from_call_ms, Some(9.0));
        assert!((latency.reached - 100.0).abs() < 1e-6, "{latency:?}");
        arrived.remove(&sent[7].id);
        assert!(evaluate(100, &sent, &arrived).is_err(), "an event that never came is no latency");
    }
}
