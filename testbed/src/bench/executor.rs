//! `testbed bench-executor`: how many results the executor brings in, and how soon after its request a result is committed.
//!
//! ```text
//! parts of its own ─▶ a first backlog, to warm up ─▶ backlog: requests on the topic, the executor started, until all is settled
//!                  ─▶ at each rate: record readable ─▶ result committed ─▶ report
//! ```
//! PSP simulator, PostgreSQL, broker and registry share the machine with it. Each order takes two calls to the PSP, and leaves two
//! finished attempts, one result and one outbox event: that the simulator's ledger has exactly one charge per order is checked, or
//! nothing is reported. `docs/performance.md` says what each figure means.

mod latency;
mod report;

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use sqlx::PgConnection;

use super::backlog::settle;
use super::costs::{cpu_seconds, cpu_seconds_with_children, peak_mib};
use super::drain::terminate;
use super::say;
use super::site::Site;
use crate::processes::Service;
use crate::requests::{Asked, Requests};
use crate::stack::home::Home;
use crate::stack::tail;
use latency::Latency;

pub use report::Report;

/// Where requests come from.
const TOPIC: &str = "payment-order-requests";
/// It is charged at once, with two calls.
const PAYMENT_METHOD: &str = "pm_card_visa";
/// Of the backlog, before anything counts: the broker's code is compiled, and every statement planned.
const WARM_UP_PART: u32 = 4;
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// Without one result for so long something is wrong.
const SILENCE_LIMIT: Duration = Duration::from_mins(1);

/// What to measure.
#[derive(Clone, Debug)]
pub struct Bench {
    /// Payment orders of a backlog.
    pub orders: u32,
    /// Requests per second at which latency is measured; the last one is the one that is promised.
    pub rates: Vec<u32>,
    /// How long at each rate.
    pub seconds: u32,
}

/// Everything that was measured.
#[derive(Debug)]
struct Measured {
    backlog: Backlog,
    latency: Vec<Latency>,
}

/// How a backlog was carried out.
#[derive(Clone, Copy, Debug)]
struct Backlog {
    orders: u32,
    /// From the first request taken in to the last result recorded, by the database's clock.
    seconds: f64,
    /// Calls to the PSP meanwhile.
    calls: i64,
    /// CPU seconds from the executor's start on.
    cpu: Cpu,
    /// The executor's memory at its peak.
    peak_mib: f64,
}

/// CPU seconds.
#[derive(Clone, Copy, Debug)]
struct Cpu {
    executor: f64,
    postgres: f64,
    simulator: f64,
    broker: f64,
}

/// Measures on parts of its own, which end with it. None if `interrupt` came first.
pub async fn run(bench: &Bench, interrupt: impl Future<Output = ()>) -> Result<Option<Report>> {
    ensure!(bench.orders >= 100, "fewer than 100 orders are no backlog");
    ensure!(bench.seconds > 0, "too little to measure");
    ensure!(
        !bench.rates.is_empty() && bench.rates.iter().all(|rate| *rate > 0),
        "a rate must be more than 0"
    );
    let folder = Home::locate()?.private_folder("bench-executor")?;
    let measured = tokio::select! {
        measured = measure(bench, &folder) => measured.map(Some),
        () = interrupt => Ok(None),
    };
    // Logs that say what went wrong stay.
    let measured = measured.with_context(|| format!("the logs are in {}", folder.display()))?;
    fs::remove_dir_all(&folder).ok();
    Ok(measured.map(|measured| Report::new(&measured)))
}

async fn measure(bench: &Bench, folder: &Path) -> Result<Measured> {
    say("starting PostgreSQL, Kafka, the schema registry and the PSP simulator");
    let site = Site::start(&[], folder.to_path_buf()).await?;
    site.migrate_executor().await?;
    let simulator = site.simulator()?;
    simulator.start()?;
    simulator.wait_ready().await?;
    let executor = site.executor(simulator.admin_url())?;
    let requests = Requests::new(&site.bootstrap(), &site.registry_url(), TOPIC).await?;
    let superuser = site.session("postgres").await?;
    let mut scene = Scene { site, simulator, executor, requests, superuser, orders: 0 };
    say("warming up");
    scene.backlog(bench.orders.div_ceil(WARM_UP_PART)).await.context("warm the executor up")?;
    let backlog = scene.backlog(bench.orders).await?;
    say(&format!("backlog of {}: {:.0} results/s", bench.orders, backlog.per_second()));
    scene.executor.start()?;
    scene.executor.wait_ready().await?;
    let mut latency = Vec::new();
    for &rate in &bench.rates {
        settle(&mut scene.superuser).await?;
        let one = latency::measure(rate, bench.seconds, &scene.site, &scene.requests).await?;
        say(&format!("latency at {rate}/s: {} orders", one.orders));
        scene.orders += one.sent;
        latency.push(one);
    }
    terminate(&scene.executor).await?;
    scene.check_ledger().await?;
    Ok(Measured { backlog, latency })
}

struct Scene {
    site: Site,
    simulator: Service,
    executor: Service,
    requests: Requests,
    superuser: PgConnection,
    /// Asked for until now.
    orders: u32,
}

impl Backlog {
    fn per_second(&self) -> f64 {
        f64::from(self.orders) / self.seconds
    }
}

impl Scene {
    /// Puts requests on the topic, starts the executor, waits until all of them are settled, and ends it.
    async fn backlog(&mut self, orders: u32) -> Result<Backlog> {
        let asked: Vec<Asked> = (0..orders).map(|_| Asked::new(PAYMENT_METHOD)).collect();
        self.requests.send_all(&asked).await?;
        settle(&mut self.superuser).await?;
        let [postgres, broker] = [self.site.postgres.pid()?, self.site.kafka.pid()?];
        let simulator = self.simulator.pid()?;
        let used = || -> Result<[f64; 3]> {
            Ok([cpu_seconds_with_children(postgres)?, cpu_seconds(simulator)?, cpu_seconds(broker)?])
        };
        let (before, calls_before) = (used()?, self.calls().await?);
        self.executor.start()?;
        let target = self.orders + orders;
        self.wait_until_settled(target.into()).await?;
        let (after, pid) = (used()?, self.executor.pid()?);
        let cpu = Cpu {
            executor: cpu_seconds(pid)?,
            postgres: after[0] - before[0],
            simulator: after[1] - before[1],
            broker: after[2] - before[2],
        };
        let peak_mib = peak_mib(pid)?;
        terminate(&self.executor).await?;
        let seconds = self.seconds(orders).await?;
        let calls = self.calls().await? - calls_before;
        self.orders = target;
        self.check_ledger().await?;
        Ok(Backlog { orders, seconds, calls, cpu, peak_mib })
    }

    async fn wait_until_settled(&mut self, orders: i64) -> Result<()> {
        let mut last = (0, Instant::now());
        loop {
            let settled: i64 = sqlx::query_scalar("SELECT count(*) FROM executor.psp_results")
                .fetch_one(&mut self.superuser)
                .await
                .context("how far the executor is")?;
            if settled >= orders {
                return Ok(());
            }
            if settled != last.0 {
                last = (settled, Instant::now());
            }
            if !self.executor.running() || last.1.elapsed() > SILENCE_LIMIT {
                let log = tail(self.executor.log());
                bail!("the executor has stopped after {settled} of {orders} results\n{log}");
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Of the last so many orders, from the first that was taken in to the last result.
    async fn seconds(&mut self, orders: u32) -> Result<f64> {
        sqlx::query_scalar(
            "SELECT extract(epoch FROM max(r.recorded_at) - min(i.received_at))::float8
             FROM (SELECT payment_order_id, received_at FROM executor.inbox ORDER BY received_at DESC LIMIT $1) AS i
                  JOIN executor.psp_results r USING (payment_order_id)",
        )
        .bind(i64::from(orders))
        .fetch_one(&mut self.superuser)
        .await
        .context("the time of a backlog")
    }

    async fn calls(&mut self) -> Result<i64> {
        sqlx::query_scalar("SELECT count(*) FROM executor.psp_attempts WHERE status = 'FINISHED'")
            .fetch_one(&mut self.superuser)
            .await
            .context("count the calls")
    }

    /// One charge, one successful result and one event per order: or the figures are worth nothing.
    async fn check_ledger(&mut self) -> Result<()> {
        #[derive(Deserialize)]
        struct Summary {
            charges: u32,
            payment_orders: u32,
        }
        let url = format!("{}/simulator/ledger/summary", self.simulator.admin_url());
        let answer = reqwest::Client::builder().no_proxy().build()?.get(url).send().await;
        let Summary { charges, payment_orders } = answer
            .and_then(reqwest::Response::error_for_status)
            .context("ask for the ledger")?
            .json()
            .await?;
        let (results, events): (i64, i64) = sqlx::query_as(
            "SELECT (SELECT count(*) FROM executor.psp_results WHERE psp_status = 'SUCCESSFUL'),
                    (SELECT count(*) FROM outbox.events)",
        )
        .fetch_one(&mut self.superuser)
        .await
        .context("count the results")?;
        let orders = self.orders;
        ensure!(
            (charges, payment_orders, results, events)
                == (orders, orders, i64::from(orders), i64::from(orders)),
            "{orders} orders have {charges} charges of {payment_orders} orders, {results} successful results and {events} events"
        );
        Ok(())
    }
}
