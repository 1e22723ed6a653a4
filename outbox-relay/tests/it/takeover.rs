//! What a new leader finds on the topic is not published again; any failed delivery goes the same way.

use std::{collections::BTreeSet, time::Duration};

use sqlx::Connection as _;
use testbed::stack::Kafka;

use crate::{
    rig::{Operator, Rig, eventually},
    tailing::step_of,
};

/// Rows that no save may pass: the leader publishes, and cannot say so.
const BLOCK_SAVES: &str = "BEGIN; LOCK TABLE outbox.batches IN SHARE MODE";

#[tokio::test(flavor = "multi_thread")]
async fn what_a_killed_leader_had_published_but_not_saved_is_not_published_again() -> anyhow::Result<()> {
    let rig = Rig::new("tail").await?;
    let operator = Operator::new(&rig, &[]);
    let mut service = rig.connect("executor").await?;
    let leader = operator.relay("first")?;
    leader.start()?;
    leader.wait_ready().await?;
    rig.append(&mut service, "k", 1).await?;
    rig.drained(Duration::from_secs(20)).await?;

    let mut blocking = rig.connect("payment_outbox").await?;
    sqlx::raw_sql(BLOCK_SAVES).execute(&mut blocking).await?;
    // One transaction, one batch: a leader that cannot save stops after a number of batches.
    let many = "SELECT count(outbox.append('Stepped', 'k', json_build_object('key', 'k', 'step', n))) FROM generate_series(2, 300) n";
    sqlx::query(many).execute(&mut service).await?;
    eventually(Duration::from_secs(4), "all of it is on the topic", async || {
        Ok(rig.records().await?.len() == 300)
    })
    .await?;
    leader.kill();
    // The server has not noticed: the save that waits would still come through.
    sqlx::query("SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE application_name = 'outbox-relay save' AND datname = current_database()")
        .execute(&mut rig.connect("postgres").await?)
        .await?;
    sqlx::raw_sql("ROLLBACK").execute(&mut blocking).await?;
    let unsaved: i64 = sqlx::query_scalar("SELECT count(*) FROM outbox.pending")
        .fetch_one(&mut rig.connect("operator").await?)
        .await?;
    assert_eq!(unsaved, 299, "as far as the outbox knows");

    let next = operator.relay("next")?;
    next.start()?;
    next.wait_ready().await?;
    rig.append(&mut service, "k", 301).await?;
    rig.drained(Duration::from_secs(20)).await?;
    assert_eq!(next.metric("outbox_skipped_total").await?, Some(299.0));
    let steps: Vec<i64> = rig.records().await?.iter().map(|record| step_of(&record.value)).collect();
    assert_eq!(steps, (1..=301).collect::<Vec<_>>(), "each once, in order");
    let counted: i64 = sqlx::query_scalar("SELECT sum(count) FROM outbox.batches")
        .fetch_one(&mut rig.connect("operator").await?)
        .await?;
    assert_eq!(counted, 301, "found events are accounted for like published ones");
    let status = next.terminate(Duration::from_secs(20)).await?;
    assert_eq!(status.code(), Some(0), "an orderly end");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_was_there_before_is_not_read_and_one_made_anew_is_read_from_its_beginning()
-> anyhow::Result<()> {
    let rig = Rig::new("anew").await?;
    let mut service = rig.connect("executor").await?;
    let relay = Rig::relay(rig.run_config()?);
    for step in 1..=5 {
        rig.append(&mut service, "k", step).await?;
    }
    rig.drained(Duration::from_secs(20)).await?;
    relay.stop().await?;
    // As an accident would: the topic is removed and made again.
    let admin: rdkafka::admin::AdminClient<rdkafka::client::DefaultClientContext> =
        rdkafka::ClientConfig::new().set("bootstrap.servers", rig.stack.kafka_bootstrap()).create()?;
    admin.delete_topics(&[&rig.topic], &rdkafka::admin::AdminOptions::new()).await?;
    eventually(Duration::from_secs(20), "the topic is there again", async || {
        rig.setup().await?;
        Ok(rig.records().await.is_ok_and(|records| records.is_empty()))
    })
    .await?;
    rig.append(&mut service, "k", 6).await?;
    let relay = Rig::relay(rig.run_config()?);
    rig.drained(Duration::from_secs(30)).await?;
    relay.stop().await?;
    let steps: Vec<i64> = rig.records().await?.iter().map(|record| step_of(&record.value)).collect();
    assert_eq!(steps, [6]);
    // The place saved is of the new topic, not the old one's.
    let offsets: serde_json::Value = sqlx::query_scalar("SELECT partition_offsets FROM outbox.cursors")
        .fetch_one(&mut rig.connect("operator").await?)
        .await?;
    let highest =
        offsets[&rig.topic].as_object().unwrap().values().filter_map(serde_json::Value::as_i64).max();
    assert_eq!(highest, Some(1), "{offsets}");
    Ok(())
}

/// Brokers away: the relay waits as the leader, holds no snapshot that would stop vacuum, and goes on. With
/// `RELAY_TEST_BROKER_AWAY_SECONDS` for as long as one likes.
#[tokio::test(flavor = "multi_thread")]
async fn while_the_broker_is_away_no_session_holds_a_snapshot_and_afterwards_all_drains() -> anyhow::Result<()>
{
    let away: u64 =
        std::env::var("RELAY_TEST_BROKER_AWAY_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(6);
    let kafka = Kafka::private("relay-broker").await?;
    let rig = Rig::without_topic("away").await?;
    let bootstrap = kafka.bootstrap();
    let operator = Operator::new(
        &rig,
        &[("KAFKA_BOOTSTRAP", &bootstrap), ("PAGE_ROWS", "100"), ("IN_FLIGHT_MAX_KIB", "64")],
    );
    operator.setup().await?;
    let mut service = rig.connect("executor").await?;
    let relay = operator.relay("waiting")?;
    relay.start()?;
    relay.wait_ready().await?;
    rig.append(&mut service, "k", 1).await?;
    rig.drained(Duration::from_secs(20)).await?;
    kafka.kill9();
    let many = "SELECT count(outbox.append('Stepped', 'k', json_build_object('key', 'k', 'step', n))) FROM generate_series(2, 5000) n";
    sqlx::query(many).execute(&mut service).await?;
    let mut superuser = rig.connect("postgres").await?;
    let (until, mut looks, mut longest) = (std::time::Instant::now() + Duration::from_secs(away), 0, 0.0f64);
    while std::time::Instant::now() < until {
        tokio::time::sleep(Duration::from_millis(100)).await;
        // A statement that runs at this very moment has a snapshot; none may keep one while it waits for the broker.
        let oldest: Option<f64> = sqlx::query_scalar(
            "SELECT extract(epoch FROM max(clock_timestamp() - least(xact_start, query_start)))::float8 FROM pg_stat_activity
             WHERE usename = 'relay' AND datname = current_database() AND backend_xmin IS NOT NULL",
        )
        .fetch_one(&mut superuser)
        .await?;
        longest = longest.max(oldest.unwrap_or_default());
        looks += 1;
    }
    println!("{looks} looks in {away} s: the oldest snapshot of a relay session was {longest:.3} s old");
    assert!(longest < 2.0, "a session of the relay held a snapshot for {longest} s");
    assert!(relay.running(), "it waits");
    kafka.restart().await?;
    rig.drained(Duration::from_mins(1)).await?;
    let found = operator.ask(&["verify", "--since", "2020-01-01T00:00:00Z"]).await?;
    assert_eq!((found["events"].as_i64(), found["missing"].as_i64()), (Some(5_000), Some(0)), "{found}");
    relay.terminate(Duration::from_secs(20)).await?;
    service.close().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn published_events_without_a_row_are_listed_and_nothing_is_lost() -> anyhow::Result<()> {
    let rig = Rig::new("ghosts").await?;
    let mut service = rig.connect("executor").await?;
    let relay = Rig::relay(rig.run_config()?);
    rig.append(&mut service, "k", 1).await?;
    rig.drained(Duration::from_secs(20)).await?;
    let mut owner = rig.connect("payment_outbox").await?;
    let reached: i64 =
        sqlx::query_scalar("SELECT max(seq) FROM outbox.batches").fetch_one(&mut owner).await?;
    for step in 2..=4 {
        rig.append(&mut service, "k", step).await?;
    }
    rig.drained(Duration::from_secs(20)).await?;
    relay.stop().await?;
    // What a standby that was not up to date would have: neither the last rows nor the progress past them.
    sqlx::query("DELETE FROM outbox.batches WHERE seq > $1").bind(reached).execute(&mut owner).await?;
    let lost: Vec<uuid::Uuid> = sqlx::query_scalar(
        "DELETE FROM outbox.events WHERE (payload->>'step')::int IN (3, 4) RETURNING event_id",
    )
    .fetch_all(&mut owner)
    .await?;
    sqlx::query("UPDATE outbox.batches SET timeline = timeline - 1").execute(&mut owner).await?;
    let relay = Rig::relay(rig.run_config()?);
    rig.append(&mut service, "k", 5).await?;
    rig.drained(Duration::from_secs(20)).await?;
    relay.stop().await?;
    let ghosts: Vec<uuid::Uuid> =
        sqlx::query_scalar("SELECT event_id FROM outbox.ghosts").fetch_all(&mut owner).await?;
    assert_eq!(ghosts.into_iter().collect::<BTreeSet<_>>(), lost.into_iter().collect());
    let steps: Vec<i64> = rig.records().await?.iter().map(|record| step_of(&record.value)).collect();
    assert_eq!(steps, [1, 2, 3, 4, 5], "2 was on the topic, and is not published again");
    Ok(())
}
