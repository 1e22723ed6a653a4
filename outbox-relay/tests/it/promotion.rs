//! A real standby is promoted that had not received everything: commits that the old primary had acknowledged, and that the relay
//! had published, are gone.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use anyhow::Context as _;
use outbox_relay::config::RunConfig;
use sqlx::PgConnection;
use testbed::{
    proxy::Proxy,
    stack::{Postgres, TestDatabase},
};
use uuid::Uuid;

use crate::rig::{Rig, RunningRelay, eventually};

/// A primary with an outbox, a standby that follows it, and an address that leads to the one that is the primary.
struct Pair {
    rig: Rig,
    primary: Postgres,
    standby: Postgres,
    /// Between the standby and its primary.
    line: Proxy,
    /// Where the relay looks for its database.
    address: Proxy,
}

impl Pair {
    async fn new() -> anyhow::Result<Self> {
        // What the standby has not fetched yet is kept for it.
        let primary = Postgres::private_with("promotion-primary", &[("wal_keep_size", "256MB")]).await?;
        let mut rig = Rig::new("promotion").await?;
        rig.database = primary.database("promotion").await?;
        rig.migrate().await?;
        let line = Proxy::start(primary.server().port).await?;
        let standby = primary.standby("promotion-standby", line.port()).await?;
        let address = Proxy::start(primary.server().port).await?;
        Ok(Self { rig, primary, standby, line, address })
    }

    fn relay_config(&self) -> anyhow::Result<RunConfig> {
        let mut config = self.rig.run_config()?;
        let (port, name) = (self.address.port(), &self.rig.database.name);
        config.postgres.database_url = format!("postgres://relay@127.0.0.1:{port}/{name}").into();
        Ok(config)
    }

    /// The same database on the standby.
    async fn replica(&self) -> anyhow::Result<TestDatabase> {
        self.standby.server().named_database(&self.rig.database.name).await
    }

    /// Waits until the standby has all that the primary has now.
    async fn replicated(&self) -> anyhow::Result<()> {
        let at: String = sqlx::query_scalar("SELECT pg_current_wal_lsn()::text")
            .fetch_one(&mut self.rig.connect("postgres").await?)
            .await?;
        let url = self.replica().await?.url("postgres");
        let mut standby = <PgConnection as sqlx::Connection>::connect(&url).await?;
        eventually(Duration::from_secs(20), "the standby has replayed everything", async || {
            Ok(sqlx::query_scalar("SELECT coalesce(pg_last_wal_replay_lsn() >= $1::pg_lsn, false)")
                .bind(&at)
                .fetch_one(&mut standby)
                .await?)
        })
        .await
    }

    /// The primary dies, the standby takes over with what it has, and the address moves.
    async fn fail_over(&mut self) -> anyhow::Result<()> {
        self.primary.kill9();
        self.standby.promote().await?;
        self.rig.database = self.replica().await?;
        Ok(())
    }
}

async fn append(rig: &Rig, key: &str, steps: impl IntoIterator<Item = i64>) -> anyhow::Result<()> {
    let mut service = rig.connect("executor").await?;
    for step in steps {
        rig.append(&mut service, key, step).await?;
    }
    Ok(())
}

async fn rows(rig: &Rig) -> anyhow::Result<BTreeSet<Uuid>> {
    let ids: Vec<Uuid> = sqlx::query_scalar("SELECT event_id FROM outbox.events")
        .fetch_all(&mut rig.connect("operator").await?)
        .await?;
    Ok(ids.into_iter().collect())
}

/// How often each event is on the topic.
async fn published(rig: &Rig) -> anyhow::Result<BTreeMap<Uuid, usize>> {
    let mut published = BTreeMap::new();
    for record in rig.records().await? {
        let id = record.header("ce_id").context("no ce_id")?.parse()?;
        *published.entry(id).or_default() += 1;
    }
    Ok(published)
}

async fn ghosts(rig: &Rig) -> anyhow::Result<BTreeSet<Uuid>> {
    let ghosts: Vec<Uuid> = sqlx::query_scalar("SELECT event_id FROM outbox.ghosts")
        .fetch_all(&mut rig.connect("operator").await?)
        .await?;
    Ok(ghosts.into_iter().collect())
}

/// Three events published and their progress replicated, two replicated before they were published, three that the standby never saw.
async fn lose_the_tail(pair: &Pair) -> anyhow::Result<(RunningRelay, BTreeSet<Uuid>)> {
    let relay = Rig::relay(pair.relay_config()?);
    append(&pair.rig, "k", 1..=3).await?;
    pair.rig.drained(Duration::from_secs(20)).await?;
    pair.address.refuse();
    append(&pair.rig, "k", 4..=5).await?;
    pair.replicated().await?;
    pair.line.refuse();
    let kept = rows(&pair.rig).await?;
    pair.address.heal();
    append(&pair.rig, "k", 6..=7).await?;
    append(&pair.rig, "other", 1..=1).await?;
    pair.rig.drained(Duration::from_secs(20)).await?;
    let lost = &rows(&pair.rig).await? - &kept;
    assert_eq!((kept.len(), lost.len()), (5, 3));
    Ok((relay, lost))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_promoted_without_the_last_commits_loses_nothing_of_its_own_and_lists_what_is_gone()
-> anyhow::Result<()> {
    let mut pair = Pair::new().await?;
    let (relay, lost) = lose_the_tail(&pair).await?;
    pair.fail_over().await?;
    // The services are back first, on the new primary, which hands out the transaction ids of the lost commits again.
    append(&pair.rig, "k", 6..=8).await?;
    append(&pair.rig, "third", 1..=300).await?;
    let of_the_standby = rows(&pair.rig).await?;
    assert_eq!(of_the_standby.len(), 5 + 3 + 300);
    // The same relay process, which knows nothing of all this: its address leads elsewhere.
    pair.address.lead_to(pair.standby.server().port);
    append(&pair.rig, "k", 9..=9).await?;
    pair.rig.drained(Duration::from_secs(30)).await?;

    let (rows, published) = (rows(&pair.rig).await?, published(&pair.rig).await?);
    assert_eq!(rows.len(), 5 + 3 + 300 + 1);
    for id in &rows {
        assert_eq!(published.get(id), Some(&1), "{id}: every row of the new primary is on the topic, once");
    }
    let without_row: BTreeSet<Uuid> = published.keys().filter(|id| !rows.contains(id)).copied().collect();
    assert_eq!(without_row, lost, "what was published and is gone");
    assert_eq!(ghosts(&pair.rig).await?, lost, "is what is listed");
    let steps: Vec<i64> = pair
        .rig
        .records()
        .await?
        .iter()
        .filter(|record| record.key == "k")
        .map(|record| crate::tailing::step_of(&record.value))
        .collect();
    assert_eq!(
        steps,
        [1, 2, 3, 4, 5, 6, 7, 6, 7, 8, 9],
        "in order: the ghosts, then what came instead of them"
    );
    let halts: i64 = sqlx::query_scalar("SELECT count(*) FROM outbox.halts")
        .fetch_one(&mut pair.rig.connect("operator").await?)
        .await?;
    assert_eq!(halts, 0, "a failover is no reason to stop");

    // A further term finds nothing of it again.
    relay.stop().await?;
    let relay = Rig::relay(pair.relay_config()?);
    append(&pair.rig, "k", 10..=10).await?;
    pair.rig.drained(Duration::from_secs(30)).await?;
    relay.stop().await?;
    let published = self::published(&pair.rig).await?;
    assert_eq!(published.len(), 5 + 3 + 3 + 300 + 2);
    assert!(published.values().all(|count| *count == 1), "nothing twice");
    assert_eq!(ghosts(&pair.rig).await?, lost);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_is_not_relayed_from_until_it_is_promoted() -> anyhow::Result<()> {
    let mut pair = Pair::new().await?;
    append(&pair.rig, "k", 1..=2).await?;
    pair.replicated().await?;
    pair.address.lead_to(pair.standby.server().port);
    let relay = Rig::relay(pair.relay_config()?);
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(published(&pair.rig).await?.is_empty());
    assert!(!relay.task.is_finished(), "it waits for the promotion");
    pair.fail_over().await?;
    pair.rig.drained(Duration::from_secs(30)).await?;
    assert_eq!(published(&pair.rig).await?.keys().copied().collect::<BTreeSet<_>>(), rows(&pair.rig).await?);
    relay.stop().await
}
