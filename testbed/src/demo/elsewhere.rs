//! The demo on an installation that somebody else has started, such as that of compose.yaml: the same load, the same books, the same oracle.
//! It kills nothing itself; whoever looks on may.
//!
//! Every payment has to be in the client's own book, so it is for an installation whose databases are new.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use clap::Args;
use tokio::time::Instant;

use super::watch::Scene;
use super::{Demo, GIVE_UP_AFTER, Scenario, until_told};
use crate::load::{Load, Mixture, Progress};
use crate::oracle::examine;
use crate::oracle::gather::{Witnesses, gather};
use crate::processes::{binary, run_once};
use crate::report::Report;
use crate::store::Databases;
use crate::topic::Topics;

/// Where everything is.
#[derive(Args, Clone, Debug)]
pub struct Elsewhere {
    /// Base of the payment service's API.
    #[arg(long, env = "API_URL")]
    pub api_url: String,
    /// Base of the PSP simulator.
    #[arg(long, env = "SIMULATOR_URL")]
    pub simulator_url: String,
    /// A broker.
    #[arg(long, env = "KAFKA_BOOTSTRAP")]
    pub kafka_bootstrap: String,
    /// The schema registry.
    #[arg(long, env = "SCHEMA_REGISTRY_URL")]
    pub schema_registry_url: String,
    /// The topic of requests.
    #[arg(long, env = "REQUESTS_TOPIC", default_value = "payment-order-requests")]
    pub requests_topic: String,
    /// The topic of results.
    #[arg(long, env = "RESULTS_TOPIC", default_value = "psp-result-updates")]
    pub results_topic: String,
    /// File with the operator's URL of the payment service's database.
    #[arg(long, env = "PAYMENTS_DATABASE_URL_FILE")]
    pub payments_database_url_file: PathBuf,
    /// File with the operator's URL of the executor's database.
    #[arg(long, env = "EXECUTOR_DATABASE_URL_FILE")]
    pub executor_database_url_file: PathBuf,
    /// Payments to send.
    #[arg(long, env = "PAYMENTS", default_value_t = 500)]
    pub payments: usize,
    /// Payments per second.
    #[arg(long, env = "RATE", default_value_t = 50.0)]
    pub rate: f64,
    /// Draws the payments.
    #[arg(long, env = "SEED", default_value_t = 1)]
    pub seed: u64,
}

/// Sends the payments, waits until all have come to rest, and holds all books against each other.
pub async fn run(elsewhere: &Elsewhere) -> Result<Report> {
    ensure!(elsewhere.rate.is_finite() && elsewhere.rate > 0.0, "the rate must be more than 0");
    let url = |file: &PathBuf| {
        let text = fs::read_to_string(file).with_context(|| format!("read {}", file.display()))?;
        anyhow::Ok(text.trim_end().to_owned())
    };
    let payments = url(&elsewhere.payments_database_url_file)?;
    let databases = Databases::connect(&payments, &url(&elsewhere.executor_database_url_file)?).await?;
    let made = ["token", "create", "--caller", "demo", "--role", "merchant", "--operator", "demo"];
    let token =
        run_once(&binary("payment-service")?, &made, &[("DATABASE_URL".to_owned(), payments)]).await?;
    let load = Load {
        mixture: Mixture::Plain,
        api_url: elsewhere.api_url.clone(),
        api_token: token.trim_end().to_owned(),
        payments: elsewhere.payments,
        rate: elsewhere.rate,
        seed: elsewhere.seed,
        give_up_after: GIVE_UP_AFTER,
    };
    let demo = Demo {
        payments: elsewhere.payments,
        rate: elsewhere.rate,
        kills: 0,
        seed: elsewhere.seed,
        scenario: Scenario::Plain,
        stall_broker: false,
        keep: false,
    };
    let begun = Instant::now();
    let progress = Arc::new(Progress::default());
    let scene = Scene::new(&demo, &databases, &progress);
    let driving = async {
        let mut all = load.run_ahead(&progress, async |sent| scene.until_settled_or_slow(sent).await).await?;
        scene.until_some_are_settled(load.ahead()).await?;
        all.extend(load.run(&progress).await?);
        scene.load_has_ended();
        scene.until_settled().await?;
        // A webhook may say once more what is known.
        until_told(&elsewhere.simulator_url).await?;
        scene.until_settled().await?;
        anyhow::Ok(all)
    };
    let sent = tokio::select! {
        driven = driving => {
            scene.last_line().await;
            driven?
        }
        never = scene.show() => never?,
    };
    let seconds = begun.elapsed().as_secs_f64();
    let witnesses = Witnesses {
        databases: databases.clone(),
        topics: Topics {
            bootstrap: elsewhere.kafka_bootstrap.clone(),
            registry_url: elsewhere.schema_registry_url.clone(),
        },
        requests_topic: elsewhere.requests_topic.clone(),
        results_topic: elsewhere.results_topic.clone(),
        simulator_url: elsewhere.simulator_url.clone(),
        webhooks: true,
    };
    let books = gather(&witnesses, sent).await.context("gather the books")?;
    let verdict = examine(&books);
    Ok(Report::new(&demo, &books, &verdict, &[], seconds, None))
}
