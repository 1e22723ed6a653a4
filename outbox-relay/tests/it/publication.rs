//! What lies on the topic, and what the relay does while a part is away.

use std::time::Duration;

use outbox_relay::{store, window::Cursor};
use schema::wire::header;
use testbed::stack::Registry;

use crate::{
    rig::{Rig, SCHEMA, eventually},
    tailing::step_of,
};

const TRACEPARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

#[tokio::test(flavor = "multi_thread")]
async fn a_row_becomes_a_framed_record_with_cloudevents_and_trace_headers() -> anyhow::Result<()> {
    let rig = Rig::new("record").await?;
    let mut service = rig.connect("executor").await?;
    let event_id = uuid::Uuid::now_v7();
    outbox::append(
        &mut service,
        outbox::NewEvent {
            event_id,
            event_type: "Stepped",
            aggregate_id: "k-1",
            payload: serde_json::json!({"key": "k-1", "step": 7, "note": "né"}),
            traceparent: Some(TRACEPARENT),
            tracestate: Some("a=b"),
        },
    )
    .await?;
    let relay = Rig::relay(rig.run_config()?);
    rig.drained(Duration::from_secs(10)).await?;
    relay.stop().await?;
    let records = rig.records().await?;
    let [record] = &records[..] else { panic!("{records:?}") };
    let registry = schema::registry::Registry::new(&rig.stack.registry_url())?;
    let id = registry.id_of(&schema::wire::value_subject(&rig.topic), SCHEMA).await?;
    // Golden bytes: 0, the id, then Avro: string "k-1", long 7, branch 1, string.
    let body = [&[6u8][..], b"k-1", &[14, 2, 6], "né".as_bytes()].concat();
    assert_eq!(record.value, [&[0u8][..], &id.to_be_bytes(), &body].concat());
    assert_eq!(record.key, "k-1");
    for (name, value) in [
        (header::CE_SPECVERSION, "1.0"),
        (header::CE_ID, &event_id.to_string()),
        (header::CE_TYPE, "Stepped"),
        (header::CE_SOURCE, "/test"),
        (header::CONTENT_TYPE, "application/avro"),
        (header::TRACEPARENT, TRACEPARENT),
        (header::TRACESTATE, "a=b"),
    ] {
        assert_eq!(record.header(name), Some(value), "{name}");
    }
    let time = time::OffsetDateTime::parse(
        record.header(header::CE_TIME).unwrap(),
        &time::format_description::well_known::Rfc3339,
    )?;
    assert!((time::OffsetDateTime::now_utc() - time).abs() < time::Duration::minutes(1));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn progress_is_saved_behind_the_records_and_a_restart_goes_on_from_there() -> anyhow::Result<()> {
    let rig = Rig::new("restart").await?;
    let mut service = rig.connect("executor").await?;
    for round in 0..3 {
        let relay = Rig::relay(rig.run_config()?);
        for step in 1..=50 {
            rig.append(&mut service, "k", round * 50 + step).await?;
        }
        rig.drained(Duration::from_secs(10)).await?;
        relay.stop().await?;
    }
    let steps: Vec<i64> = rig.records().await?.iter().map(|record| step_of(&record.value)).collect();
    assert_eq!(steps, (1..=150).collect::<Vec<_>>(), "in order, each once: a clean restart repeats nothing");
    let mut operator = rig.connect("operator").await?;
    let saved: i64 =
        sqlx::query_scalar("SELECT sum(count) FROM outbox.batches").fetch_one(&mut operator).await?;
    assert_eq!(saved, 150);
    let offsets: serde_json::Value =
        sqlx::query_scalar("SELECT partition_offsets FROM outbox.cursors").fetch_one(&mut operator).await?;
    let next: i64 =
        offsets[&rig.topic].as_object().unwrap().values().map(|offset| offset.as_i64().unwrap()).sum();
    assert_eq!(next, 150, "the offsets after the last records: {offsets}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backlog_larger_than_many_pages_is_drained_in_order() -> anyhow::Result<()> {
    let rig = Rig::new("backlog").await?;
    let mut service = rig.connect("executor").await?;
    sqlx::query(
        "SELECT count(outbox.append('Stepped', 'k-' || n % 7, json_build_object('key', 'k-' || n % 7, 'step', n)))
         FROM generate_series(1, 20000) n",
    )
    .execute(&mut service)
    .await?;
    let mut config = rig.run_config()?;
    config.page_rows = 700;
    // A queue so small that it is full all the time: back-pressure, not loss.
    config.in_flight_max_kib = 64;
    let relay = Rig::relay(config);
    rig.drained(Duration::from_mins(1)).await?;
    relay.stop().await?;
    let mut last = std::collections::BTreeMap::new();
    let records = rig.records().await?;
    assert_eq!(records.len(), 20_000);
    for record in records {
        let step = step_of(&record.value);
        assert!(
            last.insert(record.key.clone(), step).is_none_or(|before| before < step),
            "{} {step}",
            record.key
        );
    }
    Ok(())
}

/// Large events must not come into memory by the thousand: a page ends before they are too much, and what was left out of it is read
/// again, in order.
#[tokio::test(flavor = "multi_thread")]
async fn pages_of_large_events_are_cut_by_their_bytes() -> anyhow::Result<()> {
    let rig = Rig::new("large").await?;
    let mut service = rig.connect("executor").await?;
    // Every fiftieth is larger than a page may be.
    sqlx::query(
        "SELECT count(outbox.append('Stepped', 'k-' || n % 7, json_build_object(
                    'key', 'k-' || n % 7, 'step', n, 'note', repeat('x', CASE WHEN n % 50 = 0 THEN 100000 ELSE 6000 END))))
         FROM generate_series(1, 400) n",
    )
    .execute(&mut service)
    .await?;
    let mut reader = rig.connect("relay").await?;
    let start = Cursor::start();
    let opened = store::open_window(&mut reader, &start.to).await?;
    let window = start.open_next(opened.to, opened.floor);
    let cut = store::page(&mut reader, &window, 5_000, 64 * 1024, |_| ()).await?;
    assert_eq!((cut.rows, cut.more), (10, true), "ten events of 6,036 bytes fit into 64 KiB");
    let single = store::page(&mut reader, &window, 5_000, 1, |_| ()).await?;
    assert_eq!((single.rows, single.more), (1, true), "one event is always read");

    let mut config = rig.run_config()?;
    config.page_max_kib = 64;
    let relay = Rig::relay(config);
    rig.drained(Duration::from_mins(1)).await?;
    relay.stop().await?;
    let mut steps = std::collections::BTreeMap::<String, Vec<i64>>::new();
    for record in rig.records().await? {
        steps.entry(record.key.clone()).or_default().push(step_of(&record.value));
    }
    for (key, steps) in &steps {
        assert!(steps.is_sorted(), "{key}: {steps:?}");
    }
    let mut all: Vec<i64> = steps.into_values().flatten().collect();
    all.sort_unstable();
    assert_eq!(all, (1..=400).collect::<Vec<_>>());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_is_away_is_waited_for() -> anyhow::Result<()> {
    let rig = Rig::without_topic("noregistry").await?;
    let registry = Registry::private("relay-registry").await?;
    let mut setup = rig.setup_config()?;
    setup.registry.schema_registry_url = registry.url();
    outbox_relay::commands::setup(&setup).await?;
    registry.kill9();
    let mut config = rig.run_config()?;
    config.registry.schema_registry_url = registry.url();
    let relay = Rig::relay(config);
    let mut service = rig.connect("executor").await?;
    rig.append(&mut service, "k", 1).await?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(rig.records().await?.len(), 0, "nothing can be published without a schema id");
    assert!(!relay.task.is_finished(), "the relay waits");
    registry.restart().await?;
    // The registry of this test keeps its schemas in a file, so that it still has ours.
    eventually(Duration::from_secs(30), "published once the registry is back", async || {
        Ok(rig.records().await?.len() == 1)
    })
    .await?;
    relay.stop().await
}
