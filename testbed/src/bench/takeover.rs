//! `testbed bench-takeover`: how long nobody publishes after the SIGKILL of a leader, beside millions of events that wait.
//!
//! ```text
//! site of its own ─▶ backlog ─▶ leader drains, another stands by ─▶ SIGKILL ─▶ the other one leads, and saves what it has published
//!                                              ▲───────── started again, to stand by ─────────┘
//! ```
//! All times are the outbox's own, out of `outbox.batches`; the moment of the kill is of the same machine's clock.

use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use serde::Serialize;
use sqlx::PgConnection;

use super::backlog::{fill, settle};
use super::drain::terminate;
use super::say;
use super::site::{RELAY, Site, TOPIC};
use super::topics::Watch;
use crate::processes::Service;
use crate::stack::home::Home;
use crate::stack::{OWNER, tail};

/// Saved by a leader before it is killed: it is in the middle of the backlog then.
const RUN_UP: i64 = 50_000;
/// For a leader to come as far as that, the first time beside all that waits.
const LIMIT: Duration = Duration::from_mins(2);
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// What to measure.
#[derive(Clone, Copy, Debug)]
pub struct Takeovers {
    /// Events that wait at the beginning.
    pub pending: u32,
    /// Leaders that are killed, one after the other.
    pub kills: u32,
}

/// What came of it: the last line. Its fields are part of what `make bench-takeover` promises.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Measured {
    /// Events that still waited at the last kill.
    pub pending: i64,
    /// Leaders that were killed.
    pub takeovers: usize,
    /// From SIGKILL to the next leader's first save, which fences the one before.
    pub fenced_ms: Times,
    /// From SIGKILL until the next leader has published, acknowledged and saved something.
    pub published_ms: Times,
    /// From the very first leader's fence to its first progress, with all events in one window.
    pub first_ms: f64,
    /// Records beyond one per event.
    pub published_again: i64,
}

/// Milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Times {
    /// Half were faster.
    pub p50: f64,
    /// The slowest.
    pub max: f64,
}

impl Times {
    fn of(mut ms: Vec<f64>) -> Times {
        ms.sort_by(f64::total_cmp);
        let at = |place: usize| ms.get(place).copied().map_or(f64::NAN, |ms| (ms * 10.0).round() / 10.0);
        Times { p50: at(ms.len() / 2), max: at(ms.len().saturating_sub(1)) }
    }
}

impl Measured {
    /// For people.
    pub fn table(&self) -> String {
        let mut text = String::new();
        let mut line = |what: &str, value: String| {
            // Writing into a string does not fail.
            writeln!(text, "  {what:<28}{value}").ok();
        };
        let times = |times: Times| format!("p50 {:.1}, max {:.1}", times.p50, times.max);
        line("events that wait", self.pending.to_string());
        line("leaders killed", self.takeovers.to_string());
        line("SIGKILL to fence, ms", times(self.fenced_ms));
        line("SIGKILL to progress, ms", times(self.published_ms));
        line("first fence to progress, ms", format!("{:.1}", self.first_ms));
        line("published again", self.published_again.to_string());
        text
    }

    /// The last line.
    pub fn json(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }
}

/// Measures on parts of its own, which end with it. None if `interrupt` came first.
pub async fn run(takeovers: Takeovers, interrupt: impl Future<Output = ()>) -> Result<Option<Measured>> {
    ensure!(takeovers.kills > 0, "no leader is killed");
    ensure!(i64::from(takeovers.pending) > RUN_UP, "at most {RUN_UP} events are no backlog");
    let folder = Home::locate()?.private_folder("bench")?;
    let measured = tokio::select! {
        measured = measure(takeovers, &folder) => measured.map(Some),
        () = interrupt => Ok(None),
    };
    // Logs that say what went wrong stay.
    let measured = measured.with_context(|| format!("the relays' logs are in {}", folder.display()))?;
    fs::remove_dir_all(&folder).ok();
    Ok(measured)
}

async fn measure(takeovers: Takeovers, folder: &Path) -> Result<Measured> {
    say("starting PostgreSQL, Kafka and the schema registry");
    let site = Site::start(&[], folder.to_path_buf()).await?;
    let (mut owner, mut superuser) = (site.session(OWNER).await?, site.session("postgres").await?);
    say(&format!("writing {} events", takeovers.pending));
    fill(&mut owner, "pending", takeovers.pending).await?;
    settle(&mut superuser).await?;
    let mut operator = site.session("operator").await?;
    let watch = Watch::new(&site.bootstrap(), TOPIC)?;

    let (mut leader, mut standby) = (site.relay_named("relay-1")?, site.relay_named("relay-2")?);
    leader.start()?;
    let (mut fenced, mut published, mut pending) = (Vec::new(), Vec::new(), 0);
    let first = until_progress(&mut operator, &leader, UNIX_EPOCH).await?;
    let first_ms = first.progress_ms - first.fence_ms;
    say(&format!("the first leader: {first_ms:.0} ms from its fence to its first progress"));
    for number in 1..=takeovers.kills {
        standby.start()?;
        standby.wait_ready().await?;
        let so_far = saved(&mut operator).await?;
        until_saved(&mut operator, &leader, so_far + RUN_UP).await?;
        pending = i64::from(takeovers.pending) - saved(&mut operator).await?;
        ensure!(pending > 0, "nothing waits any more at kill {number}: more events are needed");
        let killed_at = SystemTime::now();
        leader.kill();
        let next = until_progress(&mut operator, &standby, killed_at).await?;
        say(&format!(
            "kill {number}: fence after {:.0} ms, progress after {:.0} ms, {pending} events wait",
            next.fence_ms, next.progress_ms
        ));
        fenced.push(next.fence_ms);
        published.push(next.progress_ms);
        std::mem::swap(&mut leader, &mut standby);
    }
    terminate(&leader).await?;
    let published_again = watch.records().await? - saved(&mut operator).await?;
    ensure!(published_again >= 0, "{} events were saved and are not on the topic", -published_again);
    Ok(Measured {
        pending,
        takeovers: published.len(),
        fenced_ms: Times::of(fenced),
        published_ms: Times::of(published),
        first_ms: (first_ms * 10.0).round() / 10.0,
        published_again,
    })
}

/// Of one leader, in milliseconds after a moment.
struct Began {
    /// Its first save.
    fence_ms: f64,
    /// Its first save past an event.
    progress_ms: f64,
}

/// Waits until the leader that saved last, and saved for the first time after this moment, has made progress.
async fn until_progress(operator: &mut PgConnection, relay: &Service, after: SystemTime) -> Result<Began> {
    let after = after.duration_since(UNIX_EPOCH).context("a clock before 1970")?.as_secs_f64();
    let begun = Instant::now();
    loop {
        let found: Option<(f64, Option<f64>)> = sqlx::query_as(
            "SELECT (extract(epoch FROM min(saved_at)) - $2)::float8 * 1000,
                    (extract(epoch FROM min(saved_at) FILTER (WHERE count > 0)) - $2)::float8 * 1000
             FROM outbox.batches WHERE relay = $1
             GROUP BY leader_token HAVING extract(epoch FROM min(saved_at)) > $2
             ORDER BY max(seq) DESC LIMIT 1",
        )
        .bind(RELAY)
        .bind(after)
        .fetch_optional(&mut *operator)
        .await
        .context("how far the next leader is")?;
        if let Some((fence_ms, Some(progress_ms))) = found {
            return Ok(Began { fence_ms, progress_ms });
        }
        still(relay, begun)?;
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

async fn until_saved(operator: &mut PgConnection, relay: &Service, events: i64) -> Result<()> {
    let begun = Instant::now();
    while saved(operator).await? < events {
        still(relay, begun)?;
        tokio::time::sleep(LOOK_EVERY).await;
    }
    Ok(())
}

fn still(relay: &Service, begun: Instant) -> Result<()> {
    ensure!(relay.running(), "{} has ended\n{}", relay.name(), tail(relay.log()));
    ensure!(begun.elapsed() < LIMIT, "{} makes no progress\n{}", relay.name(), tail(relay.log()));
    Ok(())
}

async fn saved(operator: &mut PgConnection) -> Result<i64> {
    sqlx::query_scalar("SELECT coalesce(sum(count), 0)::bigint FROM outbox.batches WHERE relay = $1")
        .bind(RELAY)
        .fetch_one(operator)
        .await
        .context("how far the relay is")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_line_has_the_promised_keys_in_their_order() {
        let measured = Measured {
            pending: 9,
            takeovers: 3,
            fenced_ms: Times::of(vec![3.0, 1.04, 2.0]),
            published_ms: Times::of(vec![7.0]),
            first_ms: 1.5,
            published_again: 0,
        };
        let json = "{\"pending\":9,\"takeovers\":3,\"fenced_ms\":{\"p50\":2.0,\"max\":3.0},\
                    \"published_ms\":{\"p50\":7.0,\"max\":7.0},\"first_ms\":1.5,\"published_again\":0}";
        assert_eq!(measured.json(), json);
        assert!(measured.table().contains("p50 2.0, max 3.0"), "{}", measured.table());
    }
}
