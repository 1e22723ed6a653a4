//! From the request's record to the committed result, at a fixed rate.
//!
//! An open loop: when a request is sent depends on the clock alone. The clock of an order begins when a consumer outside of the executor
//! has its record, and ends when another session of the database sees its outbox event, which is committed with the result. That
//! session looks every millisecond: what it sees late counts as late.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use sqlx::PgConnection;
use tokio::task::JoinSet;
use uuid::Uuid;

use super::super::site::Site;
use super::super::topics::Watch;
use super::{PAYMENT_METHOD, TOPIC};
use crate::report::nearest_rank;
use crate::requests::{Asked, Requests};

/// Not counted: connections are made, caches filled.
const WARM_UP_SECONDS: u32 = 2;
const ARRIVAL_LIMIT: Duration = Duration::from_secs(30);
const LOOK_EVERY: Duration = Duration::from_millis(1);

/// What latency was at a rate.
#[derive(Clone, Copy, Debug)]
pub(super) struct Latency {
    /// Requests per second, as asked for.
    pub(super) rate: u32,
    /// Results per second that came.
    pub(super) reached: f64,
    /// Orders that were asked for.
    pub(super) sent: u32,
    /// Orders that count.
    pub(super) orders: usize,
    pub(super) p50_ms: Option<f64>,
    pub(super) p99_ms: Option<f64>,
    pub(super) max_ms: Option<f64>,
}

/// Asks at the rate, and waits for every result.
pub(super) async fn measure(rate: u32, seconds: u32, site: &Site, requests: &Requests) -> Result<Latency> {
    let ahead = rate * WARM_UP_SECONDS.min(seconds);
    let count = ahead + rate * seconds;
    let arrivals = Watch::new(&site.bootstrap(), TOPIC)?.arrivals("ce_id").await?;
    let watching = watch_results(site.session("postgres").await?, usize::try_from(count)?);
    let begun = Instant::now();
    let sending = async {
        let (mut asked, mut sends) = (Vec::new(), JoinSet::new());
        for number in 0..count {
            tokio::time::sleep_until(
                (begun + Duration::from_secs_f64(f64::from(number) / f64::from(rate))).into(),
            )
            .await;
            let one = Asked::new(PAYMENT_METHOD);
            asked.push(one.clone());
            let requests = requests.clone();
            sends.spawn(async move { requests.send(&one).await });
        }
        while let Some(sent) = sends.join_next().await {
            sent.context("send a request")??;
        }
        anyhow::Ok(asked)
    };
    let (asked, committed) = tokio::try_join!(sending, watching)?;
    let readable = arrivals.of(asked.len(), ARRIVAL_LIMIT).await?;
    evaluate(rate, count, &asked[usize::try_from(ahead)?..], &readable, &committed)
}

/// When each order's event was first seen, once there are so many new ones: what is visible now and was not at the last look.
async fn watch_results(mut session: PgConnection, orders: usize) -> Result<HashMap<Uuid, Instant>> {
    for setting in ["SET plan_cache_mode = force_generic_plan", "SET enable_seqscan = off"] {
        sqlx::query(setting).execute(&mut session).await.context(setting)?;
    }
    let mut snapshot: String = sqlx::query_scalar("SELECT pg_current_snapshot()::text")
        .fetch_one(&mut session)
        .await
        .context("the first snapshot")?;
    let mut seen: HashMap<Uuid, Instant> = HashMap::with_capacity(orders);
    let mut last = Instant::now();
    while seen.len() < orders {
        let (now_visible, found): (String, Vec<String>) = sqlx::query_as(
            "SELECT pg_current_snapshot()::text,
                    array(SELECT aggregate_id FROM outbox.events WHERE xid >= pg_snapshot_xmin($1::pg_snapshot)
                          AND NOT pg_visible_in_snapshot(xid, $1::pg_snapshot))",
        )
        .bind(&snapshot)
        .fetch_one(&mut session)
        .await
        .context("look for results")?;
        let now = Instant::now();
        snapshot = now_visible;
        for order in found {
            seen.entry(Uuid::try_parse(&order).context("an aggregate id")?).or_insert(now);
            last = now;
        }
        if last.elapsed() > ARRIVAL_LIMIT {
            bail!("{} of {orders} results after {} s of silence", seen.len(), ARRIVAL_LIMIT.as_secs());
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    Ok(seen)
}

fn evaluate(
    rate: u32,
    sent: u32,
    asked: &[Asked],
    readable: &HashMap<Uuid, Instant>,
    committed: &HashMap<Uuid, Instant>,
) -> Result<Latency> {
    let mut took = Vec::with_capacity(asked.len());
    let (mut first, mut last): (Option<Instant>, Option<Instant>) = (None, None);
    for one in asked {
        let from = readable.get(&one.event_id).context("a request was never readable")?;
        let to = committed.get(&one.payment_order_id).context("an order has no result")?;
        took.push(to.saturating_duration_since(*from).as_secs_f64() * 1_000.0);
        first = Some(first.map_or(*to, |first| first.min(*to)));
        last = Some(last.map_or(*to, |last| last.max(*to)));
    }
    took.sort_by(f64::total_cmp);
    let span = first.zip(last).map_or(Duration::ZERO, |(first, last)| last - first).as_secs_f64();
    Ok(Latency {
        rate,
        // Between n results there are n - 1 pauses.
        reached: f64::from(u32::try_from(asked.len())?.saturating_sub(1)) / span,
        sent,
        orders: asked.len(),
        p50_ms: nearest_rank(&took, 50),
        p99_ms: nearest_rank(&took, 99),
        max_ms: nearest_rank(&took, 100),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_runs_from_the_record_to_the_result_and_a_missing_one_is_no_latency() {
        let begun = Instant::now();
        let asked: Vec<Asked> = (0..100).map(|_| Asked::new(PAYMENT_METHOD)).collect();
        let at = |ms: u64| begun + Duration::from_millis(ms);
        let readable = (0..).zip(&asked).map(|(n, one)| (one.event_id, at(n * 10))).collect();
        let mut committed: HashMap<Uuid, Instant> =
            (0..).zip(&asked).map(|(n, one)| (one.payment_order_id, at(n * 10 + 7))).collect();
        committed.insert(asked[0].payment_order_id, at(90));
        let latency = evaluate(100, 100, &asked, &readable, &committed).unwrap();
        assert_eq!((latency.p50_ms, latency.p99_ms, latency.max_ms), (Some(7.0), Some(7.0), Some(90.0)));
        committed.remove(&asked[7].payment_order_id);
        assert!(evaluate(100, 100, &asked, &readable, &committed).is_err());
    }
}
