//! From one version to the next, with nothing stopped: an outbox of the first migration grows up with events in it, and relays of two
//! versions hand leadership to each other both ways.
//!
//! The other version is the binary that OLD_RELAY names (`make test-upgrade FROM=...` builds it); without it, this version plays both
//! parts: the steps are the same, and only what a version changed is not tried.

use std::{borrow::Cow, collections::HashMap, path::PathBuf, time::Duration};

use anyhow::{Context as _, ensure};
use sqlx::PgConnection;
use testbed::processes::{Service, binary, run_once};
use tokio_util::sync::CancellationToken;

use crate::{
    rig::{Operator, Record, Rig, eventually},
    tailing::step_of,
};

const KEYS: i64 = 7;
const LIMIT: Duration = Duration::from_secs(30);

/// Every step of every key once, in order; what comes again is a copy of what was there before.
fn check(records: &[Record], steps: &HashMap<String, i64>) -> anyhow::Result<usize> {
    let mut last: HashMap<&str, i64> = HashMap::new();
    let mut again = 0;
    let mut seen = std::collections::HashSet::new();
    for record in records {
        let id = record.header("ce_id").context("a record without ce_id")?;
        if !seen.insert(id) {
            again += 1;
            continue;
        }
        let step = last.entry(&record.key).or_default();
        *step += 1;
        let wanted = step_of(&record.value);
        ensure!(wanted == *step, "key {}: step {wanted} where {step} was to come", record.key);
    }
    for (key, step) in steps {
        ensure!(
            last.get(key.as_str()) == Some(step),
            "key {key}: {:?} of {step} steps",
            last.get(key.as_str())
        );
    }
    Ok(again)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outbox_of_the_first_migration_grows_up_with_events_in_it() -> anyhow::Result<()> {
    let mut rig = Rig::new("upgrade").await?;
    rig.database = rig.stack.database("upgrade_old").await?;
    let mut first = outbox_relay::commands::migrations();
    let oldest = first.migrations[..1].to_vec();
    first.migrations = Cow::Owned(oldest);
    chassis::postgres::migrate(&rig.database.url("payment_outbox").into(), first, "outbox").await?;
    let mut owner = rig.connect("payment_outbox").await?;
    for grant in ["grant_writer('executor')", "grant_relay('relay')"] {
        sqlx::raw_sql(sqlx::AssertSqlSafe(format!("SELECT outbox.{grant}"))).execute(&mut owner).await?;
    }
    let mut writer = rig.connect("executor").await?;
    let mut steps = HashMap::new();
    for number in 0..100 {
        step(&rig, &mut writer, number % KEYS, &mut steps).await?;
    }
    // The writer's session lives through it, and goes on.
    rig.migrate().await?;
    for number in 0..100 {
        step(&rig, &mut writer, number % KEYS, &mut steps).await?;
    }
    let relay = Operator::new(&rig, &[]).relay("relay")?;
    relay.start()?;
    relay.wait_ready().await?;
    rig.drained(LIMIT).await?;
    ensure!(check(&rig.records().await?, &steps)? == 0, "nobody was killed, and something came again");
    ensure!(relay.terminate(LIMIT).await?.success());
    Ok(())
}

async fn step(
    rig: &Rig,
    writer: &mut PgConnection,
    key: i64,
    steps: &mut HashMap<String, i64>,
) -> anyhow::Result<()> {
    let key = format!("key-{key}");
    let step = steps.entry(key.clone()).or_default();
    *step += 1;
    rig.append(writer, &key, *step).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn relays_of_two_versions_hand_over_to_each_other() -> anyhow::Result<()> {
    let new = binary("outbox-relay")?;
    let old = std::env::var_os("OLD_RELAY").map_or_else(|| new.clone(), PathBuf::from);
    let mut rig = Rig::new("rolling").await?;
    // As the old version made it.
    rig.database = rig.stack.database("rolling_old").await?;
    let owner = [("DATABASE_URL".to_owned(), rig.database.url("payment_outbox"))];
    let migrate = ["migrate", "--writer", "executor", "--relay", "relay", "--operator", "operator"];
    run_once(&old, &migrate, &owner).await?;
    let operator = Operator::new(&rig, &[]);
    let old = operator.relay_of(&old, "old")?;
    let relay = operator.relay_of(&new, "new")?;
    old.start()?;
    leads(&rig, &old).await?;

    let stop = CancellationToken::new();
    let writing = write(&rig, stop.clone());
    let handing = async {
        // The database first, under the old version.
        run_once(&new, &migrate, &owner).await?;
        relay.start()?;
        leads(&rig, &old).await?;
        ensure!(old.terminate(LIMIT).await?.success(), "the old version did not end in order");
        leads(&rig, &relay).await?;
        // And back: a version that is found wanting is taken out.
        old.start()?;
        old.wait_ready().await?;
        relay.kill();
        leads(&rig, &old).await?;
        relay.start()?;
        relay.wait_ready().await?;
        old.kill();
        leads(&rig, &relay).await?;
        stop.cancel();
        anyhow::Ok(())
    };
    let (steps, ()) = tokio::try_join!(writing, handing)?;
    rig.drained(LIMIT).await?;
    let records = rig.records().await?;
    let again = check(&records, &steps)?;
    println!("{} records, {again} of them again", records.len());
    ensure!(relay.terminate(LIMIT).await?.success());
    Ok(())
}

/// Waits until it is this process that saves progress past a new event.
async fn leads(rig: &Rig, relay: &Service) -> anyhow::Result<()> {
    relay.wait_ready().await?;
    let process = format!(":{}", relay.pid()?);
    let mut connection = rig.connect("operator").await?;
    let before: Option<i64> =
        sqlx::query_scalar("SELECT max(seq) FROM outbox.batches").fetch_one(&mut connection).await?;
    eventually(LIMIT, "it leads and saves", async || {
        let saved: Option<(i64, String)> =
            sqlx::query_as("SELECT seq, leader FROM outbox.batches ORDER BY seq DESC LIMIT 1")
                .fetch_optional(&mut connection)
                .await?;
        Ok(saved.is_some_and(|(seq, leader)| {
            leader.ends_with(&process) && before.is_none_or(|before| seq > before)
        }))
    })
    .await
}

/// Appends until it is asked to stop, one event per transaction; returns how many steps each key has.
async fn write(rig: &Rig, stop: CancellationToken) -> anyhow::Result<HashMap<String, i64>> {
    let mut writer = rig.connect("executor").await?;
    let mut steps = HashMap::new();
    for number in 0.. {
        if stop.is_cancelled() {
            break;
        }
        step(rig, &mut writer, number % KEYS, &mut steps).await?;
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    Ok(steps)
}
