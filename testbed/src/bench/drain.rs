//! A backlog, drained by the relay: from its first save of progress, with which it takes over, to the save that covers the last event.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use sqlx::PgConnection;

use super::costs::{cpu_seconds, cpu_seconds_with_children, peak_mib};
use super::site::{RELAY, Site};
use super::topics::Watch;
use crate::processes::Service;
use crate::stack::tail;

const LOOK_EVERY: Duration = Duration::from_millis(50);
/// Without one event saved for so long something is wrong.
const SILENCE_LIMIT: Duration = Duration::from_mins(1);
const STOP_LIMIT: Duration = Duration::from_secs(20);

/// How a drain went.
#[derive(Clone, Debug, Default)]
pub(super) struct Drain {
    /// Events that were drained.
    pub(super) events: u32,
    /// Between the first save and the last, by the database's clock.
    pub(super) seconds: f64,
    /// Records beyond one per event.
    pub(super) again: i64,
    /// Saves of progress.
    pub(super) saves: i64,
    /// CPU seconds from the relay's start on.
    pub(super) cpu: Cpu,
    /// The relay's memory at its peak.
    pub(super) peak_mib: f64,
}

/// CPU seconds.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Cpu {
    pub(super) relay: f64,
    pub(super) postgres: f64,
    pub(super) broker: f64,
}

impl Drain {
    pub(super) fn per_second(&self) -> f64 {
        f64::from(self.events) / self.seconds
    }
}

/// Starts a relay, waits until it has saved so many events, and ends it.
pub(super) async fn drain(site: &Site, watch: &Watch, events: u32) -> Result<Drain> {
    let mut operator = site.session("operator").await?;
    let newest: i64 = sqlx::query_scalar("SELECT coalesce(max(seq), 0) FROM outbox.batches WHERE relay = $1")
        .bind(RELAY)
        .fetch_one(&mut operator)
        .await
        .context("the newest save")?;
    let records = watch.records().await?;
    let (postgres, broker) = (site.postgres.pid()?, site.kafka.pid()?);
    let before = (cpu_seconds_with_children(postgres)?, cpu_seconds(broker)?);
    let relay = site.relay()?;
    relay.start()?;
    wait_until_saved(&mut operator, &relay, newest, i64::from(events)).await?;
    let pid = relay.pid()?;
    let cpu = Cpu {
        relay: cpu_seconds(pid)?,
        postgres: cpu_seconds_with_children(postgres)? - before.0,
        broker: cpu_seconds(broker)? - before.1,
    };
    let peak_mib = peak_mib(pid)?;
    terminate(&relay).await?;
    let (seconds, saves) = times(&mut operator, newest, i64::from(events)).await?;
    let again = watch.records().await? - records - i64::from(events);
    ensure!(again >= 0, "{} events of {events} were saved and are not on the topic", -again);
    Ok(Drain { events, seconds, again, saves, cpu, peak_mib })
}

/// An orderly end.
pub(super) async fn terminate(relay: &Service) -> Result<()> {
    let status = relay.terminate(STOP_LIMIT).await?;
    ensure!(status.success(), "the relay ended with {status}\n{}", tail(relay.log()));
    Ok(())
}

async fn wait_until_saved(
    operator: &mut PgConnection,
    relay: &Service,
    newest: i64,
    events: i64,
) -> Result<()> {
    let mut last = (0, Instant::now());
    loop {
        let saved: i64 = sqlx::query_scalar(
            "SELECT coalesce(sum(count), 0)::bigint FROM outbox.batches WHERE relay = $1 AND seq > $2",
        )
        .bind(RELAY)
        .bind(newest)
        .fetch_one(&mut *operator)
        .await
        .context("how far the relay is")?;
        if saved >= events {
            return Ok(());
        }
        if saved != last.0 {
            last = (saved, Instant::now());
        }
        if !relay.running() || last.1.elapsed() > SILENCE_LIMIT {
            bail!("the relay has stopped after {saved} of {events} events\n{}", tail(relay.log()));
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Seconds between the first save and the one that covers the last event, and how many saves there were between.
async fn times(operator: &mut PgConnection, newest: i64, events: i64) -> Result<(f64, i64)> {
    sqlx::query_as(
        "SELECT extract(epoch FROM min(saved_at) FILTER (WHERE total >= $3) - min(saved_at))::float8,
                count(*) FILTER (WHERE total - count < $3) - 1
         FROM (SELECT saved_at, count, sum(count) OVER (ORDER BY seq) AS total
               FROM outbox.batches WHERE relay = $1 AND seq > $2) AS saves",
    )
    .bind(RELAY)
    .bind(newest)
    .bind(events)
    .fetch_one(operator)
    .await
    .context("the times of the saves")
}
