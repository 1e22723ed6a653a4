//! `testbed bench-relay`: what the relay can do, what it costs, and what a rival does on the same machine in the same run.
//!
//! ```text
//! site of its own ─▶ warm up ─▶ raw, drain, raw, drain beside an old snapshot, drain, raw
//!                 ─▶ latency at each rate ─▶ idle ─▶ saves beside an old snapshot ─▶ dead tuples ─▶ rival ─▶ report
//! ```
//! Rates are compared within one run only: raw producer and relay take turns, so that a machine that is slower at times is slower for
//! both. Between measurements vacuum and a checkpoint are made, so that they fall into none. `docs/performance.md` says what each figure means.

pub mod api;
mod backlog;
pub mod consumer;
mod costs;
mod drain;
pub mod executor;
mod held;
mod latency;
mod peer;
mod raw;
mod report;
mod site;
pub mod takeover;
mod topics;

use std::fs;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use rdkafka::ClientConfig;
use sqlx::PgConnection;

use crate::processes::Service;
use crate::stack::OWNER;
use crate::stack::home::Home;
use backlog::{fill, settle};
use costs::{cpu_seconds, cpu_seconds_with_children};
use drain::{Drain, drain, terminate};
use held::{Snapshot, dead_tuples, saves};
use latency::{Latency, Writer};
use raw::Raw;
use report::{Idle, Measured};
use site::{Site, TOPIC};
use topics::{Published, Watch};

pub use report::Report;

/// Where the raw producer's records go.
const RAW_TOPIC: &str = "raw";
/// Records that the raw producer sends over and over: more than fits into the processors' caches.
const SAMPLE_MAX: u32 = 100_000;
/// Until the broker's code is compiled.
const WARM_UP_MAX: u32 = 1_000_000;
/// After its last event the relay looks for more at a quick pace, for a second.
const CALM: Duration = Duration::from_secs(3);

/// What to measure.
#[derive(Clone, Debug)]
pub struct Bench {
    /// Events of a backlog.
    pub events: u32,
    /// Events per second at which latency is measured.
    pub rates: Vec<u32>,
    /// How long at each rate, and how long idle.
    pub seconds: u32,
    /// Saves of progress beside an old snapshot.
    pub saves: u32,
    /// Whom to compare with.
    pub peer: Option<Peer>,
}

/// A rival.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Peer {
    /// Debezium's PostgreSQL connector with its EventRouter, in Kafka Connect.
    Debezium,
}

/// Measures on parts of its own, which end with it. None if `interrupt` came first.
pub async fn run(bench: &Bench, interrupt: impl Future<Output = ()>) -> Result<Option<Report>> {
    ensure!(bench.events >= 100, "fewer than 100 events are no backlog");
    ensure!(bench.seconds > 0 && bench.saves >= 10, "too little to measure");
    ensure!(bench.rates.iter().all(|rate| *rate > 0), "a rate must be more than 0");
    let folder = Home::locate()?.private_folder("bench")?;
    let measured = tokio::select! {
        measured = measure(bench, &folder) => measured.map(Some),
        () = interrupt => Ok(None),
    };
    // Logs that say what went wrong stay.
    let measured = measured.with_context(|| format!("the relay's log is in {}", folder.display()))?;
    fs::remove_dir_all(&folder).ok();
    Ok(measured.map(|measured| Report::new(bench, &measured)))
}

async fn measure(bench: &Bench, folder: &Path) -> Result<Measured> {
    say("starting PostgreSQL, Kafka and the schema registry");
    // The rival needs it; then both are measured with it.
    let settings: &[_] = if bench.peer.is_some() { &[("wal_level", "logical")] } else { &[] };
    let mut scene = Scene::open(bench, Site::start(settings, folder.to_path_buf()).await?).await?;
    let mut measured = scene.throughput().await?;
    let relay = scene.site.relay()?;
    relay.start()?;
    relay.wait_ready().await?;
    for &rate in &bench.rates {
        measured.latency.push(scene.latency(rate).await?);
    }
    measured.idle = scene.idle(&relay).await?;
    terminate(&relay).await?;
    say(&format!("{} saves of progress beside an old snapshot", bench.saves));
    let snapshot = Snapshot::hold(&scene.site).await?;
    measured.saves = saves(&scene.site, bench.saves).await?;
    // What has died since the snapshot was taken cannot have been removed.
    measured.dead_tuples = measured.dead_tuples.max(dead_tuples(&mut scene.superuser).await?);
    snapshot.release().await?;
    if bench.peer == Some(Peer::Debezium) {
        say("Debezium: a first backlog, a second one that is measured, and latency");
        measured.peer = Some(peer::measure(&scene.site, bench, &scene.sample).await?);
    }
    Ok(measured)
}

struct Scene<'a> {
    bench: &'a Bench,
    site: Site,
    owner: PgConnection,
    superuser: PgConnection,
    watch: Watch,
    producer: ClientConfig,
    sample: Arc<Vec<Published>>,
}

impl<'a> Scene<'a> {
    /// Warms everything up. What the relay publishes meanwhile is what the raw producer, and the rival, get to send.
    async fn open(bench: &'a Bench, site: Site) -> Result<Scene<'a>> {
        say("warming up");
        let (mut owner, mut superuser) = (site.session(OWNER).await?, site.session("postgres").await?);
        let watch = Watch::new(&site.bootstrap(), TOPIC)?;
        let sample = (bench.events / 10).clamp(1, SAMPLE_MAX);
        // Half of a backlog: until then the broker still compiles its code, on the cores that are to be measured.
        let warm_up = (bench.events / 2).max(sample);
        fill(&mut owner, "warm-up", warm_up).await?;
        settle(&mut superuser).await?;
        drain(&site, &watch, warm_up).await.context("warm the relay up")?;
        let sample = Arc::new(watch.first(usize::try_from(sample)?).await?);
        topics::create(&site.bootstrap(), RAW_TOPIC).await?;
        let producer = site.producer().await?;
        let broker = site.kafka.pid()?;
        raw::produce(&producer, broker, RAW_TOPIC, &sample, bench.events.min(WARM_UP_MAX)).await?;
        Ok(Scene { bench, site, owner, superuser, watch, producer, sample })
    }

    /// Raw producer and relay in turns.
    async fn throughput(&mut self) -> Result<Measured> {
        self.fill("first").await?;
        let first_raw = self.raw().await?;
        let first = self.drain("").await?;
        let second_raw = self.raw().await?;

        let snapshot = Snapshot::hold(&self.site).await?;
        self.fill("second").await?;
        let held_drain = self.drain(" beside an old snapshot").await?;
        let dead_tuples = dead_tuples(&mut self.superuser).await?;
        snapshot.release().await?;

        self.fill("third").await?;
        let last = self.drain("").await?;
        let last_raw = self.raw().await?;
        Ok(Measured {
            raw: vec![first_raw, second_raw, last_raw],
            drains: vec![first, last],
            held_drain,
            dead_tuples,
            latency: Vec::new(),
            idle: Idle::default(),
            saves: held::Saves::default(),
            peer: None,
        })
    }

    async fn fill(&mut self, name: &str) -> Result<()> {
        fill(&mut self.owner, name, self.bench.events).await?;
        settle(&mut self.superuser).await
    }

    async fn raw(&self) -> Result<Raw> {
        let (broker, events) = (self.site.kafka.pid()?, self.bench.events);
        let raw = raw::produce(&self.producer, broker, RAW_TOPIC, &self.sample, events).await?;
        say(&format!("raw producer: {:.0} events/s", raw.per_second()));
        Ok(raw)
    }

    async fn drain(&self, how: &str) -> Result<Drain> {
        let drain = drain(&self.site, &self.watch, self.bench.events).await?;
        say(&format!("drain{how}: {:.0} events/s", drain.per_second()));
        Ok(drain)
    }

    async fn latency(&mut self, rate: u32) -> Result<Latency> {
        settle(&mut self.superuser).await?;
        let url = self.site.database.url("executor");
        let arrivals = self.watch.arrivals("ce_id").await?;
        let latency = latency::measure(rate, self.bench.seconds, &url, &Writer::Outbox, arrivals).await?;
        say(&format!("latency at {rate}/s: {} events", latency.events));
        Ok(latency)
    }

    /// What a relay costs that has nothing to publish.
    async fn idle(&mut self, relay: &Service) -> Result<Idle> {
        settle(&mut self.superuser).await?;
        tokio::time::sleep(CALM).await;
        let (relay, postgres) = (relay.pid()?, self.site.postgres.pid()?);
        let sessions: Vec<i32> =
            sqlx::query_scalar("SELECT pid FROM pg_stat_activity WHERE usename = 'relay'")
                .fetch_all(&mut self.superuser)
                .await
                .context("the relay's sessions")?;
        let used = || -> Result<[f64; 3]> {
            // A session that has ended meanwhile counts with the server alone.
            let own = sessions.iter().filter_map(|session| cpu_seconds(*session).ok()).sum();
            Ok([cpu_seconds(relay)?, cpu_seconds_with_children(postgres)?, own])
        };
        let before = used()?;
        tokio::time::sleep(Duration::from_secs(self.bench.seconds.into())).await;
        let after = used()?;
        let percent = |which: usize| (after[which] - before[which]) / f64::from(self.bench.seconds) * 100.0;
        say("idle: measured");
        Ok(Idle { relay: percent(0), postgres: percent(1), sessions: percent(2).max(0.0) })
    }
}

fn say(text: &str) {
    // A terminal that is gone is no reason to stop.
    writeln!(std::io::stderr(), "bench: {text}").ok();
}
