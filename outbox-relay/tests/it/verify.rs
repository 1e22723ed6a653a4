//! What a broker loses is found and published again; and what the views say of what was published.

use std::{collections::BTreeSet, time::Duration};

use rdkafka::{
    ClientConfig, Offset, TopicPartitionList,
    admin::{AdminClient, AdminOptions},
    client::DefaultClientContext,
};

use crate::rig::{Operator, Rig};

const SINCE: &str = "2020-01-01T00:00:00Z";

#[tokio::test(flavor = "multi_thread")]
async fn records_that_a_broker_lost_are_found_and_published_again() -> anyhow::Result<()> {
    let rig = Rig::new("verify").await?;
    let mut service = rig.connect("executor").await?;
    for step in 1..=300 {
        rig.append(&mut service, &format!("k-{}", step % 7), step).await?;
    }
    let operator = Operator::new(&rig, &[("RELAY_NAME", "relay")]);
    let relay = Rig::relay(rig.run_config()?);
    rig.drained(Duration::from_secs(20)).await?;
    let sound = operator.ask(&["verify", "--since", SINCE]).await?;
    assert_eq!((sound["events"].as_i64(), sound["missing"].as_i64()), (Some(300), Some(0)), "{sound}");

    // The first records of every partition go.
    let admin: AdminClient<DefaultClientContext> =
        ClientConfig::new().set("bootstrap.servers", rig.stack.kafka_bootstrap()).create()?;
    let mut before = TopicPartitionList::new();
    for partition in 0..3 {
        before.add_partition_offset(&rig.topic, partition, Offset::Offset(40))?;
    }
    admin.delete_records(&before, &AdminOptions::new()).await?;
    let left = rig.records().await?;
    let ids = |records: &[crate::rig::Record]| -> BTreeSet<String> {
        records.iter().filter_map(|record| record.header("ce_id").map(str::to_owned)).collect()
    };
    let lost = 300 - ids(&left).len();
    assert!(lost > 30, "{lost}");
    let looked = operator.ask(&["verify", "--since", SINCE]).await?;
    assert_eq!(
        (looked["missing"].as_u64(), looked["command"].as_i64()),
        (Some(lost as u64), None),
        "{looked}"
    );
    assert_eq!(rig.records().await?.len(), left.len(), "to look changes nothing");
    let mended = operator.ask(&["verify", "--since", SINCE, "--execute", "--operator", "ada"]).await?;
    assert_eq!(mended["missing"].as_u64(), Some(lost as u64), "{mended}");
    let records = rig.records().await?;
    assert_eq!((records.len(), ids(&records).len()), (300, 300), "everything is there again, each once");
    let sound = operator.ask(&["verify", "--since", SINCE]).await?;
    assert_eq!(sound["missing"], 0, "{sound}");
    let kept: Vec<(i64, String)> = sqlx::query_as(
        "SELECT v.missing, coalesce(c.operator, '') FROM outbox.verifications v LEFT JOIN outbox.commands c ON c.id = v.command_id
         ORDER BY v.id",
    )
    .fetch_all(&mut rig.connect("operator").await?)
    .await?;
    let lost = i64::try_from(lost)?;
    assert_eq!(
        kept,
        [(0, String::new()), (lost, String::new()), (lost, "ada".to_owned()), (0, String::new())]
    );
    relay.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_views_say_when_an_event_was_published_by_whom_and_where_and_who_leads() -> anyhow::Result<()> {
    let rig = Rig::new("published").await?;
    let mut service = rig.connect("executor").await?;
    let mut operator = rig.connect("operator").await?;
    let relay = Rig::relay(rig.run_config()?);
    for step in 1..=40 {
        rig.append(&mut service, "k", step).await?;
        if step % 10 == 0 {
            rig.drained(Duration::from_secs(20)).await?;
        }
    }
    let (pid, leader): (Option<i32>, String) =
        sqlx::query_as("SELECT lock_session_pid, leader FROM outbox.leaders")
            .fetch_one(&mut operator)
            .await?;
    assert!(pid.is_some());
    assert!(leader.ends_with(&format!(":{}", std::process::id())), "{leader}");
    relay.stop().await?;
    let pid: Option<i32> =
        sqlx::query_scalar("SELECT lock_session_pid FROM outbox.leaders").fetch_one(&mut operator).await?;
    assert_eq!(pid, None, "nobody leads");
    let rows: Vec<(i64, String, serde_json::Value)> =
        sqlx::query_as("SELECT id, leader, ranges FROM outbox.published ORDER BY id")
            .fetch_all(&mut operator)
            .await?;
    assert_eq!(rows.len(), 40, "each once");
    // One key, one partition: the ranges follow each other, and every event's place is within its own.
    let partition = rows[0].2[&rig.topic].as_object().unwrap().keys().next().unwrap().clone();
    for (place, (_, by, ranges)) in (0i64..).zip(&rows) {
        let range = &ranges[&rig.topic][&partition];
        let (first, last) = (range[0].as_i64().unwrap(), range[1].as_i64().unwrap());
        assert!((first..=last).contains(&place), "event {place}: {ranges}");
        assert_eq!(by, &leader);
    }
    rig.append(&mut service, "k", 41).await?;
    let published: i64 =
        sqlx::query_scalar("SELECT count(*) FROM outbox.published").fetch_one(&mut operator).await?;
    assert_eq!(published, 40, "what is pending is not published");
    let status = Operator::new(&rig, &[]).ask(&["status"]).await?;
    assert_eq!(
        (status[0]["pending"].as_i64(), status[0]["led"].as_bool()),
        (Some(1), Some(false)),
        "{status}"
    );
    Ok(())
}
