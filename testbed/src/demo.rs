//! `testbed demo`: payments through the whole circle while processes are killed, and the proof that nothing was lost.
//!
//! ```text
//! circle of its own ─▶ load at a fixed rate ─┐
//!                      kills, in turn ───────┴─▶ all settled ─▶ books ─▶ oracle ─▶ report
//! ```
//! Databases and topics are new, so that the books hold this run and nothing else. What it starts ends with it, the shared stack
//! too if that was not running before. When a promise is broken, logs and books stay in a folder that the report names.

pub mod elsewhere;
pub mod kills;
mod warm_up;
mod watch;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use serde::Serialize;
use time::OffsetDateTime;
use tokio::time::Instant;

use crate::circle::{Circle, Options};
use crate::load::{Load, Mixture, Progress, Tokens};
use crate::oracle::books::{Books, Sent, Told};
use crate::oracle::gather::{Witnesses, gather};
use crate::oracle::{Verdict, examine};
use crate::report::Report;
use crate::stack::home::Home;
use crate::stack::{Identity, Stack};
use crate::store::Databases;
use crate::topic::Topics;
use kills::Kill;
use watch::Scene;

/// How long a client asks for one payment.
const GIVE_UP_AFTER: Duration = Duration::from_mins(1);
/// Looks in a row at which nothing waits to be sent.
const QUIET_LOOKS: usize = 20;
/// A lie that follows a webhook which was given up, or lost, is never sent.
const LIE_LIMIT: Duration = Duration::from_secs(30);
/// For the PSPs to tell everything that they have to tell.
const TOLD_LIMIT: Duration = Duration::from_mins(2);

/// What the PSPs do to payments, and how much of everything there is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Scenario {
    /// One executor, Stripe, one payment in twenty ambiguous.
    #[default]
    Plain,
    /// Three executors, both PSPs, every token of theirs, and webhooks that come twice, late, early, in the wrong order, not at all, or
    /// with a lie.
    Hostile,
}

/// What to do.
#[derive(Clone, Copy, Debug)]
pub struct Demo {
    /// Payments to send.
    pub payments: usize,
    /// Payments per second.
    pub rate: f64,
    /// Processes to kill.
    pub kills: usize,
    /// Draws the payments, and the moments of the kills.
    pub seed: u64,
    /// What the PSPs do to payments.
    pub scenario: Scenario,
    /// Whether the broker may be made to stand still for a moment, so that a relay dies with records that are under way: for a
    /// broker that nobody else needs at this time.
    pub stall_broker: bool,
    /// Keep logs and books even if all goes well.
    pub keep: bool,
}

/// What a run has shown.
#[derive(Debug)]
pub struct Outcome {
    /// Figures and verdict.
    pub report: Report,
    /// Where logs and books are, if they were kept.
    pub kept: Option<PathBuf>,
}

/// Runs on the shared stack, which is started, and ended again, if it does not run. None if `interrupt` came first.
pub async fn run(demo: &Demo, interrupt: impl Future<Output = ()>) -> Result<Option<Outcome>> {
    let ran_before = Stack::running().await?.is_some();
    let performing = async {
        let (stack, _) = Stack::up().await?;
        if !ran_before {
            warm_up::warm_up(&stack.kafka_bootstrap(), &stack.unique("warm-up")).await?;
        }
        perform(demo, &stack).await.map(Some)
    };
    let outcome = tokio::select! {
        outcome = performing => outcome,
        () = interrupt => Ok(None),
    };
    if !ran_before {
        Stack::down().await?;
    }
    outcome
}

/// Runs on this stack.
pub async fn perform(demo: &Demo, stack: &Stack) -> Result<Outcome> {
    ensure!(demo.rate.is_finite() && demo.rate > 0.0, "the rate must be more than 0");
    let mut evidence = Evidence { folder: Home::locate()?.private_folder("demo")?, keep: false };
    let report = in_folder(demo, stack, &evidence.folder).await;
    evidence.keep = demo.keep || report.as_ref().map_or(true, |report| !report.broken.is_empty());
    let report = report.with_context(|| format!("the logs are in {}", evidence.folder.display()))?;
    Ok(Outcome { report, kept: evidence.keep.then(|| evidence.folder.clone()) })
}

/// Logs and books, which nobody needs when all went well, or when the run was broken off.
struct Evidence {
    folder: PathBuf,
    keep: bool,
}

impl Drop for Evidence {
    fn drop(&mut self) {
        if !self.keep {
            fs::remove_dir_all(&self.folder).ok();
        }
    }
}

async fn in_folder(demo: &Demo, stack: &Stack, folder: &Path) -> Result<Report> {
    let circle = Circle::start(stack, &options(demo, folder)).await.context("start the circle")?;
    let operator = "operator";
    let databases =
        Databases::connect(&circle.payments.url(operator), &circle.executions.url(operator)).await?;
    let begun = Instant::now();
    let (sent, kills) = drive(demo, stack, &circle, &databases).await?;
    let seconds = begun.elapsed().as_secs_f64();
    let witnesses = Witnesses {
        databases: databases.clone(),
        topics: Topics { bootstrap: stack.kafka_bootstrap(), registry_url: stack.registry_url() },
        requests_topic: circle.requests_topic.clone(),
        results_topic: circle.results_topic.clone(),
        simulator_url: circle.simulator_url.clone(),
        webhooks: demo.scenario == Scenario::Hostile,
    };
    let books = gather(&witnesses, sent).await.context("gather the books")?;
    let verdict = examine(&books);
    let orderly_end = circle.shutdown().await;
    let report = Report::new(demo, &books, &verdict, &kills, seconds, orderly_end.err());
    if demo.keep || !report.broken.is_empty() {
        keep(folder, &databases, &books, &verdict).await.context("keep the books")?;
    }
    Ok(report)
}

/// Ambiguous payments are to settle within seconds, and a member of a consumer group that comes back is to have its partitions at
/// once: both are settings that an installation has too, with longer times.
fn options(demo: &Demo, folder: &Path) -> Options {
    let hostile = demo.scenario == Scenario::Hostile;
    let seed = demo.seed.to_string();
    // A PSP that is silent for good is asked for half a minute: held back webhooks come sooner, those that are dropped never.
    let ladder = if hostile { "1s,2s,3s,5s,8s,10s" } else { "1s,2s,5s,10s,20s,60s" };
    let given = [
        // As many as two cores can use: each has to learn every statement.
        ("executor", "DATABASE_POOL_SIZE", "6"),
        ("payment-service", "DATABASE_POOL_SIZE", "6"),
        ("executor", "RESOLVE_AFTER", "1s"),
        ("executor", "RESOLVE_THEN", ladder),
        ("psp-simulator", "SEED", seed.as_str()),
        ("payment-service", "CONSUMER_INSTANCE", "payment-service-1"),
    ];
    let own =
        |(process, name, value): (&str, &str, &str)| (process.to_owned(), name.to_owned(), value.to_owned());
    Options {
        folder: Some(folder.to_path_buf()),
        relays: 2,
        executors: if hostile { 3 } else { 1 },
        webhooks: hostile.then(|| "hostile".to_owned()),
        psp_timeout: Duration::from_secs(2),
        environment: given.map(own).to_vec(),
        ..Options::default()
    }
}

/// Load and kills side by side, then waits until everything has come to rest.
async fn drive(
    demo: &Demo,
    stack: &Stack,
    circle: &Circle,
    databases: &Databases,
) -> Result<(Vec<Sent>, Vec<Kill>)> {
    let mixture = match demo.scenario {
        Scenario::Plain => Mixture::Plain,
        Scenario::Hostile => Mixture::Hostile(Arc::new(Tokens::of_simulator(&circle.simulator_url).await?)),
    };
    let load = Load {
        mixture,
        api_url: circle.api_url.clone(),
        api_token: circle.api_token.clone(),
        payments: demo.payments,
        rate: demo.rate,
        seed: demo.seed,
        give_up_after: GIVE_UP_AFTER,
    };
    let progress = Arc::new(Progress::default());
    let scene = Scene::new(demo, databases, &progress);
    let driving = async {
        let mut all = load.run_ahead(&progress, async |sent| scene.until_settled_or_slow(sent).await).await?;
        scene.until_some_are_settled(load.ahead()).await?;
        let loading = async {
            let sent = load.run(&progress).await?;
            scene.load_has_ended();
            Ok(sent)
        };
        let broker = if demo.stall_broker { Some(broker(stack)?) } else { None };
        let killing = kills::carry_out(demo, &scene, circle, broker);
        let (sent, kills) = tokio::try_join!(loading, killing)?;
        all.extend(sent);
        scene.until_settled().await?;
        if demo.scenario == Scenario::Hostile {
            // The last webhooks come when everything else is over, and one of them may be a lie.
            until_told(&circle.simulator_url).await?;
            scene.until_settled().await?;
        }
        anyhow::Ok((all, kills))
    };
    tokio::select! {
        driven = driving => {
            scene.last_line().await;
            driven
        }
        never = scene.show() => never,
    }
}

/// Waits until the PSPs have nothing more to tell: every webhook is acknowledged, and every lie that was to follow one.
async fn until_told(simulator_url: &str) -> Result<()> {
    let client = reqwest::Client::builder().no_proxy().timeout(TOLD_LIMIT).build()?;
    let begun = Instant::now();
    let mut quiet = 0;
    loop {
        let answer = client.get(format!("{simulator_url}/simulator/webhooks")).send().await;
        let answer = answer.and_then(reqwest::Response::error_for_status).context("ask for the webhooks")?;
        let report: serde_json::Value = answer.json().await.context("read what is said of the webhooks")?;
        let queued = ["stripe", "adyen"].map(|psp| report[psp]["queued"].as_u64());
        let told = report["contradictions"]
            .as_array()
            .is_some_and(|all| all.iter().all(|one| one["acknowledged"] == true));
        // What is on its way counts as queued neither before nor after: so it is looked at twice.
        quiet = if queued == [Some(0), Some(0)] { quiet + 1 } else { 0 };
        if quiet > QUIET_LOOKS && (told || begun.elapsed() > LIE_LIMIT) {
            return Ok(());
        }
        ensure!(begun.elapsed() < TOLD_LIMIT, "webhooks still wait after {TOLD_LIMIT:?}: {report}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

fn broker(stack: &Stack) -> Result<Identity> {
    let kafka = stack.parts().into_iter().find(|(name, _, _)| *name == "Kafka");
    kafka.and_then(|(_, pid, _)| Identity::of(pid)).context("the stack has no broker")
}

/// Everything that the verdict rests on, as one JSON value per line, beside the logs.
async fn keep(folder: &Path, databases: &Databases, books: &Books, verdict: &Verdict) -> Result<()> {
    let folder = folder.join("books");
    fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
    for (table, rows) in databases.everything().await? {
        write(&folder.join(format!("{table}.jsonl")), &rows)?;
    }
    write(&folder.join("topic.requests.jsonl"), &books.requests)?;
    write(&folder.join("topic.results.jsonl"), &books.results)?;
    write(&folder.join("ledger.jsonl"), &books.charges)?;
    write(&folder.join("sent.jsonl"), &books.sent)?;
    fs::write(folder.join("findings.txt"), verdict.describe(usize::MAX)).context("write the findings")
}

fn write<T: Serialize>(path: &Path, rows: &[T]) -> Result<()> {
    let lines: Result<Vec<String>, _> = rows.iter().map(serde_json::to_string).collect();
    fs::write(path, lines.context("encode")?.join("\n")).with_context(|| format!("write {}", path.display()))
}

/// Payments that the client knows to exist.
pub(crate) fn accepted(sent: &[Sent]) -> usize {
    sent.iter().filter(|sent| matches!(sent.outcome, Told::Accepted { .. })).count()
}

/// A span of time that a kill has touched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// When the process was killed.
    pub from: OffsetDateTime,
    /// When what had piled up meanwhile was through.
    pub to: OffsetDateTime,
}
