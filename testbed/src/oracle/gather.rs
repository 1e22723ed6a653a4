//! Fills the oracle's books: databases as the operator, topics from their first record to their last, the ledger over HTTP.
//!
//! The topics are read first, then the databases: an event that is published in between has its row by then. To be called when
//! everything has come to rest, or what is under way is reported as lost.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use super::books::{Books, Charge, Contradicted, Sent};
use crate::store::Databases;
use crate::topic::Topics;

const PAGE: usize = 2_000;
/// More charges than any run makes.
const PAGES_MAX: usize = 10_000;
const PAGE_LIMIT: Duration = Duration::from_secs(20);

/// Where the witnesses are.
#[derive(Clone, Debug)]
pub struct Witnesses {
    /// Both databases.
    pub databases: Databases,
    /// Broker and registry.
    pub topics: Topics,
    /// Name of the topic of requests.
    pub requests_topic: String,
    /// Name of the topic of results.
    pub results_topic: String,
    /// Base of the PSP simulator.
    pub simulator_url: String,
    /// Whether the simulator sends webhooks, which may lie.
    pub webhooks: bool,
}

/// Reads everything. `sent` is what the client knows.
pub async fn gather(witnesses: &Witnesses, sent: Vec<Sent>) -> Result<Books> {
    let (requests, results) = tokio::try_join!(
        witnesses.topics.read(&witnesses.requests_topic),
        witnesses.topics.read(&witnesses.results_topic)
    )?;
    let (executor, payments, charges, contradictions) = tokio::try_join!(
        witnesses.databases.executor_books(),
        witnesses.databases.payment_books(),
        ledger(&witnesses.simulator_url),
        contradictions(witnesses)
    )?;
    Ok(Books { sent, charges, contradictions, executor, payments, requests, results })
}

#[derive(Deserialize)]
struct Page {
    charges: Vec<Numbered>,
    has_more: bool,
}

#[derive(Deserialize)]
struct Numbered {
    sequence: usize,
    #[serde(flatten)]
    charge: Charge,
}

/// Which orders the PSPs have contradicted themselves about.
async fn contradictions(witnesses: &Witnesses) -> Result<Vec<Contradicted>> {
    #[derive(Deserialize)]
    struct Report {
        contradictions: Vec<Contradicted>,
    }
    if !witnesses.webhooks {
        return Ok(Vec::new());
    }
    let client =
        reqwest::Client::builder().no_proxy().timeout(PAGE_LIMIT).build().context("build a client")?;
    let answer = client.get(format!("{}/simulator/webhooks", witnesses.simulator_url)).send().await;
    let report: Report = answer
        .and_then(reqwest::Response::error_for_status)
        .context("ask the simulator for its webhooks")?
        .json()
        .await
        .context("read what the simulator says of its webhooks")?;
    Ok(report.contradictions)
}

/// The PSP's ledger, page by page.
async fn ledger(simulator: &str) -> Result<Vec<Charge>> {
    let client =
        reqwest::Client::builder().no_proxy().timeout(PAGE_LIMIT).build().context("build a client")?;
    let mut charges = Vec::new();
    let mut after = 0;
    for _ in 0..PAGES_MAX {
        let url = format!("{simulator}/simulator/ledger?after={after}&limit={PAGE}");
        let response = client.get(&url).send().await.and_then(reqwest::Response::error_for_status);
        let page: Page = response.context("ask for the ledger")?.json().await.context("read the ledger")?;
        after = page.charges.last().map_or(after, |last| last.sequence);
        charges.extend(page.charges.into_iter().map(|numbered| numbered.charge));
        if !page.has_more {
            return Ok(charges);
        }
    }
    bail!("the ledger has more than {} charges", charges.len())
}
