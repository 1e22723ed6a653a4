//! The ring turns without anybody waiting for it, and never over what is still needed.

use std::time::Duration;

use sqlx::PgConnection;

use crate::rig::{Operator, Rig, eventually};

/// Rows of days ago, in the leaf of their day, as they would lie there.
async fn of_days_ago(
    owner: &mut PgConnection,
    days: i32,
    key: &str,
    event_type: &str,
    rows: i32,
) -> anyhow::Result<()> {
    sqlx::query(
        "INSERT INTO outbox.events (slot, event_id, event_type, aggregate_id, payload, created_at)
         SELECT ((floor(extract(epoch FROM now()) / 86400)::bigint - $1) % 8)::smallint, gen_random_uuid(), $3, $2,
                json_build_object('key', $2, 'step', n), now() - make_interval(days => $1)
         FROM generate_series(1, $4) n",
    )
    .bind(days)
    .bind(key)
    .bind(event_type)
    .bind(rows)
    .execute(owner)
    .await?;
    Ok(())
}

async fn rows(owner: &mut PgConnection, key: &str) -> anyhow::Result<i64> {
    Ok(sqlx::query_scalar("SELECT count(*) FROM outbox.events WHERE aggregate_id = $1")
        .bind(key)
        .fetch_one(owner)
        .await?)
}

#[tokio::test(flavor = "multi_thread")]
async fn old_leaves_are_emptied_and_what_is_young_parked_or_unpublished_stays() -> anyhow::Result<()> {
    let rig = Rig::new("ring").await?;
    let mut owner = rig.connect("payment_outbox").await?;
    of_days_ago(&mut owner, 3, "old", "Stepped", 1_000).await?;
    of_days_ago(&mut owner, 4, "poison", "Unheard", 1).await?;
    of_days_ago(&mut owner, 1, "young", "Stepped", 10).await?;
    rig.append(&mut rig.connect("executor").await?, "today", 1).await?;
    // Nothing goes before it is published, however old.
    let refused: Option<String> = sqlx::query_scalar(
        "SELECT refused FROM outbox.recycle(((floor(extract(epoch FROM now()) / 86400)::bigint - 3) % 8)::smallint, '2 days')",
    )
    .fetch_one(&mut owner)
    .await?;
    assert_eq!(refused.as_deref(), Some("no relay has ever run"));
    let mut config = rig.run_config()?;
    (config.retention, config.retention_every) = (Duration::from_hours(48), Duration::from_millis(100));
    let relay = Rig::relay(config);
    eventually(Duration::from_secs(20), "the old leaf is empty", async || {
        Ok(rows(&mut owner, "old").await? == 0)
    })
    .await?;
    tokio::time::sleep(Duration::from_millis(500)).await;
    for (key, left) in [("poison", 1), ("young", 10), ("today", 1)] {
        assert_eq!(rows(&mut owner, key).await?, left, "{key}");
    }
    assert_eq!(rig.records().await?.len(), 1_011, "all that can be published was");
    let operator = Operator::new(&rig, &[]);
    operator
        .ask(&["discard", "--key", "poison", "--execute", "--operator", "ada", "--note", "never meant to be"])
        .await?;
    eventually(Duration::from_secs(20), "the leaf of the poison is empty", async || {
        Ok(rows(&mut owner, "poison").await? == 0)
    })
    .await?;
    relay.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn old_progress_goes_and_the_cursor_stays() -> anyhow::Result<()> {
    let rig = Rig::new("trim").await?;
    let mut service = rig.connect("executor").await?;
    let relay = Rig::relay(rig.run_config()?);
    for step in 1..=20 {
        rig.append(&mut service, "k", step).await?;
        tokio::time::sleep(Duration::from_millis(30)).await;
    }
    rig.drained(Duration::from_secs(20)).await?;
    relay.stop().await?;
    let mut owner = rig.connect("payment_outbox").await?;
    sqlx::query("UPDATE outbox.batches SET saved_at = saved_at - interval '7 days'")
        .execute(&mut owner)
        .await?;
    let mut session = rig.connect("relay").await?;
    let (mut removed, mut rounds) = (0, 0);
    loop {
        let chunk: i64 =
            sqlx::query_scalar("SELECT outbox.trim('6 days', 3)").fetch_one(&mut session).await?;
        assert!(chunk <= 3);
        removed += chunk;
        rounds += 1;
        if chunk == 0 {
            break;
        }
    }
    assert!(removed > 3 && rounds > 2, "{removed} rows in {rounds} rounds");
    let left: i64 = sqlx::query_scalar("SELECT count(*) FROM outbox.batches").fetch_one(&mut owner).await?;
    assert_eq!(left, 1, "the cursor");
    let relay = Rig::relay(rig.run_config()?);
    rig.append(&mut service, "k", 21).await?;
    rig.drained(Duration::from_secs(20)).await?;
    relay.stop().await?;
    assert_eq!(rig.records().await?.len(), 21, "nothing twice");
    Ok(())
}

/// An operator's SELECT that goes on and on, a writer idle in its transaction, retention that would like to truncate, and in the end a
/// relay that stands still: an append that waits for a lock for 200 ms fails this test.
#[tokio::test(flavor = "multi_thread")]
async fn no_append_waits_for_a_long_select_an_idle_writer_retention_or_a_stopped_relay() -> anyhow::Result<()>
{
    let rig = Rig::new("nowait").await?;
    let mut owner = rig.connect("payment_outbox").await?;
    of_days_ago(&mut owner, 3, "old", "Stepped", 1_000).await?;
    let operator = Operator::new(&rig, &[("RETENTION", "48h"), ("RETENTION_EVERY", "50ms")]);
    let relay = operator.relay("relay")?;
    let mut select = rig.connect("operator").await?;
    sqlx::raw_sql("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM outbox.events")
        .execute(&mut select)
        .await?;
    let mut idle = rig.connect("executor").await?;
    sqlx::raw_sql("BEGIN").execute(&mut idle).await?;
    rig.append(&mut idle, "idle", 1).await?;
    relay.start()?;
    relay.wait_ready().await?;
    let mut service = rig.connect("executor").await?;
    sqlx::raw_sql("SET lock_timeout = '200ms'").execute(&mut service).await?;
    let mut slowest = Duration::ZERO;
    for step in 1..=1_000 {
        if step == 700 {
            relay.pause()?;
        }
        let begun = std::time::Instant::now();
        rig.append(&mut service, "k", step).await?;
        slowest = slowest.max(begun.elapsed());
        tokio::time::sleep(Duration::from_millis(4)).await;
    }
    println!("slowest of 1,000 appends: {slowest:?}");
    assert_eq!(rows(&mut owner, "old").await?, 1_000, "a leaf that somebody reads is not taken away");
    relay.resume()?;
    // A relay that was stopped for so long ends itself, or goes on: either way, all is published in the end.
    tokio::time::sleep(Duration::from_millis(200)).await;
    sqlx::raw_sql("COMMIT").execute(&mut idle).await?;
    sqlx::raw_sql("COMMIT").execute(&mut select).await?;
    if !relay.running() {
        relay.start()?;
    }
    rig.drained(Duration::from_secs(30)).await?;
    eventually(Duration::from_secs(20), "the old leaf goes as soon as nobody reads it", async || {
        Ok(rows(&mut owner, "old").await? == 0)
    })
    .await?;
    relay.terminate(Duration::from_secs(20)).await?;
    Ok(())
}
