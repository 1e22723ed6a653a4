//! One leader at a time; a standby takes over; a zombie is fenced.

use std::time::{Duration, Instant};

use outbox_relay::{leadership, store, window::Cursor};
use testbed::proxy::{Direction, Proxy};

use crate::rig::{Rig, eventually};

fn nothing_published() -> store::Progress {
    store::Progress::at(Cursor::start())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_waits_without_holding_a_snapshot_and_takes_over_when_the_leader_stops()
-> anyhow::Result<()> {
    let rig = Rig::new("standby").await?;
    let mut operator = rig.connect("postgres").await?;
    let mut service = rig.connect("executor").await?;
    let first = Rig::relay(rig.run_config()?);
    rig.append(&mut service, "k", 1).await?;
    rig.drained(Duration::from_secs(10)).await?;
    let second = Rig::relay(rig.run_config()?);
    tokio::time::sleep(Duration::from_millis(700)).await;
    let tokens: i64 = sqlx::query_scalar("SELECT count(DISTINCT leader_token) FROM outbox.batches")
        .fetch_one(&mut operator)
        .await?;
    assert_eq!(tokens, 1, "the standby has saved nothing");
    let pinning: i64 = sqlx::query_scalar(
        "SELECT count(*) FROM pg_stat_activity
         WHERE usename = 'relay' AND datname = current_database() AND application_name = 'outbox-relay lock' AND backend_xmin IS NOT NULL",
    )
    .fetch_one(&mut operator)
    .await?;
    assert_eq!(pinning, 0, "a standby must not stop vacuum");
    first.stop().await?;
    let stopped_at = Instant::now();
    rig.append(&mut service, "k", 2).await?;
    eventually(
        Duration::from_secs(10),
        "the standby publishes",
        async || Ok(rig.records().await?.len() == 2),
    )
    .await?;
    println!("published by the standby {} ms after the leader had stopped", stopped_at.elapsed().as_millis());
    second.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_whose_number_is_taken_is_fenced_and_ends() -> anyhow::Result<()> {
    let rig = Rig::new("fenced").await?;
    let mut service = rig.connect("executor").await?;
    let zombie = Rig::relay(rig.run_config()?);
    rig.append(&mut service, "k", 1).await?;
    rig.drained(Duration::from_secs(10)).await?;
    // What a newer leader does first.
    let mut newer = rig.connect("relay").await?;
    let seq = store::load_cursor(&mut newer, "relay").await?.unwrap().seq;
    let other = rig.signature("relay").await?;
    let offsets = store::PartitionOffsets::default();
    store::save(&mut newer, &other, seq + 1, &nothing_published(), &offsets).await?;
    rig.append(&mut service, "k", 2).await?;
    let error = tokio::time::timeout(Duration::from_secs(10), zombie.task).await??.unwrap_err();
    assert!(format!("{error:#}").contains("fenced"), "{error:#}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_number_can_be_saved_once() -> anyhow::Result<()> {
    let rig = Rig::without_topic("number").await?;
    let mut connection = rig.connect("relay").await?;
    let (mine, offsets) = (rig.signature("r").await?, store::PartitionOffsets::default());
    store::save(&mut connection, &mine, 1, &nothing_published(), &offsets).await?;
    let again = store::save(&mut connection, &mine, 1, &nothing_published(), &offsets).await;
    assert!(matches!(again, Err(store::SaveError::Fenced(1))), "{again:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_lost_its_session_knows_it_before_it_produces_again() -> anyhow::Result<()> {
    let rig = Rig::without_topic("lost").await?;
    let shutdown = chassis::shutdown::Shutdown::new();
    let url = rig.database.url("relay").into();
    let lock = leadership::acquire(&url, "relay", &shutdown, |_| {}).await?.unwrap();
    lock.proof().ensure_proven()?;
    let mut superuser = rig.connect("postgres").await?;
    sqlx::query("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'outbox-relay lock' AND datname = current_database()")
        .execute(&mut superuser)
        .await?;
    let lost =
        tokio::time::timeout(leadership::PROOF_MAX_AGE + Duration::from_secs(2), lock.lost.cancelled()).await;
    assert!(lost.is_ok(), "the ping must notice");
    assert!(lock.proof().ensure_proven().is_err());
    lock.release().await;
    Ok(())
}

/// The answer to a try comes late, and its session is gone by then: nothing is led, and nobody ends.
#[tokio::test(flavor = "multi_thread")]
async fn a_standby_whose_session_ends_at_the_moment_it_gets_the_lock_stands_by_again() -> anyhow::Result<()> {
    let rig = Rig::without_topic("late").await?;
    let mut superuser = rig.connect("postgres").await?;
    let proxy = Proxy::start(rig.database.server().port).await?;
    let shutdown = chassis::shutdown::Shutdown::new();
    let mut leader = rig.connect("relay").await?;
    let key = store::lock_key(&mut leader, "relay").await?;
    assert!(store::try_lock(&mut leader, key).await?);
    let url = format!("postgres://relay@127.0.0.1:{}/{}", proxy.port(), rig.database.name).into();
    let waiting = shutdown.clone();
    let standby = tokio::spawn(async move { leadership::acquire(&url, "relay", &waiting, |_| {}).await });
    let standing_by = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'outbox-relay lock' \
                       AND query LIKE '%try_advisory%'";
    let mut session: Option<i32> = None;
    eventually(Duration::from_secs(10), "it stands by", async || {
        session = sqlx::query_scalar(standing_by).fetch_optional(&mut superuser).await?;
        Ok(session.is_some())
    })
    .await?;
    proxy.stall(Direction::Down);
    store::unlock(&mut leader, key).await?;
    eventually(Duration::from_secs(10), "it has the lock, and does not know it", async || {
        Ok(sqlx::query_scalar(
            "SELECT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND pid = $1)",
        )
        .bind(session)
        .fetch_one(&mut superuser)
        .await?)
    })
    .await?;
    sqlx::query("SELECT pg_terminate_backend($1, 5000)").bind(session).execute(&mut superuser).await?;
    proxy.heal();
    let lock = tokio::time::timeout(Duration::from_secs(20), standby).await??;
    let lock = lock?.unwrap();
    lock.proof().ensure_proven()?;
    lock.release().await;
    Ok(())
}
