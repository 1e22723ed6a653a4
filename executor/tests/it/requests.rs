//! What comes from the topic: once, whatever it is.

use std::time::Duration;

use chassis::telemetry::TraceContext;
use schema::payment_order_requested::PaymentOrderRequestedEvent;
use uuid::Uuid;

use crate::setup::{World, request};

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_comes_twice_is_carried_out_once() {
    let world = World::new("duplicates").await;
    let event = request("pm_card_visa");
    for _ in 0..3 {
        world.send(&event, &TraceContext::new_trace()).await;
    }
    let running = world.start(&[]);
    let id = event.payment_order_id;
    world.wait_for_state(id, "SETTLED").await;
    world.send(&event, &TraceContext::new_trace()).await;
    let last = world.request("pm_card_visa").await;
    world.wait_for_state(last, "SETTLED").await;
    assert_eq!(
        (world.calls(id).await.len(), world.charges(id).await, world.events(id).await.len()),
        (2, 1, 1)
    );
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_a_request_is_set_aside_and_holds_nobody_up() {
    let world = World::new("quarantine").await;
    let running = world.start(&[]);
    let event = request("pm_card_visa");
    let (key, whole) = (event.payment_order_id.to_string(), world.encode(&event));
    let traceparent = TraceContext::new_trace().traceparent();
    world.send_raw(&key, b"\x01not framed", &traceparent).await;
    world.send_raw(&key, &[0, 0x7f, 0xff, 0xff, 0xff, 1, 2, 3], &traceparent).await;
    world.send_raw(&key, &whole[..whole.len() - 3], &traceparent).await;
    world.send_raw("another key", &whole, &traceparent).await;
    let changes: [fn(&mut PaymentOrderRequestedEvent); 6] = [
        |e| e.amount_minor = 0,
        |e| e.psp = "NOBODY".to_owned(),
        |e| e.currency = "euro".to_owned(),
        |e| e.payment_method = "4111111111111111".to_owned(),
        |e| e.merchant_reference = "NUL \0".to_owned(),
        |e| e.expires_at += Duration::from_hours(13),
    ];
    for change in changes {
        let mut event = request("pm_card_visa");
        change(&mut event);
        world.send(&event, &TraceContext::new_trace()).await;
    }
    world.wait_for_count("SELECT count(*) FROM executor.quarantine", 10).await;
    let last = world.request("pm_card_visa").await;
    world.wait_for_state(last, "SETTLED").await;
    let reasons: Vec<String> =
        sqlx::query_scalar("SELECT DISTINCT reason_code FROM executor.quarantine ORDER BY 1")
            .fetch_all(&world.pool)
            .await
            .unwrap();
    let expected =
        ["AMOUNT", "CARD_NUMBER", "KEY_MISMATCH", "LIFETIME", "TEXT", "UNDECODABLE", "UNKNOWN_PSP"];
    assert_eq!(reasons, expected);
    let kept: (Vec<u8>, Vec<u8>, serde_json::Value) = sqlx::query_as(
        "SELECT record_key, record_value, headers FROM executor.quarantine WHERE reason_code = 'UNDECODABLE' AND record_value = $1",
    )
    .bind(&b"\x01not framed"[..])
    .fetch_one(&world.pool)
    .await
    .unwrap();
    assert_eq!(kept.0, key.as_bytes());
    assert_eq!(kept.2[1]["text"].as_str(), Some(traceparent.as_str()));
    assert_eq!(world.count("SELECT count(*) FROM executor.inbox").await, 1);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn offsets_follow_the_database_and_reading_again_changes_nothing() {
    let world = World::new("offsets").await;
    let events: Vec<_> = (0..60).map(|_| request("pm_card_visa")).collect();
    world.send_all(&events).await;
    let running = world.start(&[]);
    world.wait_for_count("SELECT count(*) FROM executor.inbox WHERE state = 'SETTLED'", 60).await;
    running.stop().await;
    // Another group reads everything again, as after a crash before the offsets were committed.
    let again = world.start(&[&format!("--consumer-group={}", world.stack.unique("again"))]);
    let last = world.request("pm_card_visa").await;
    world.wait_for_state(last, "SETTLED").await;
    again.stop().await;
    // And the first group goes on where it stopped: after the 60, of which it needs none again.
    let first = world.start(&[]);
    let last = world.request("pm_card_visa").await;
    world.wait_for_state(last, "SETTLED").await;
    first.stop().await;
    assert_eq!(world.ledger().await.len(), 62);
    assert_eq!(world.count("SELECT count(*) FROM outbox.events").await, 62);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_is_away_is_waited_for_and_nothing_is_lost() {
    let postgres = testbed::stack::Postgres::private("executor-away").await.unwrap();
    let mut world = World::new("away").await;
    world.move_to(postgres.database("away").await.unwrap()).await;
    let running = world.start(&[]);
    let before = world.request("pm_card_visa").await;
    world.wait_for_state(before, "SETTLED").await;
    postgres.kill9();
    let during: Vec<Uuid> = futures::future::join_all((0..20).map(|_| world.request("pm_card_visa"))).await;
    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    postgres.restart().await.unwrap();
    world.wait_for_count("SELECT count(*) FROM executor.inbox WHERE state = 'SETTLED'", 21).await;
    for id in during {
        assert_eq!(world.charges(id).await, 1);
    }
    assert_eq!(world.count("SELECT count(*) FROM executor.quarantine").await, 0);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_is_away_is_waited_for_and_nothing_is_set_aside() {
    let registry = testbed::stack::Registry::private("executor-away").await.unwrap();
    let mut world = World::new("registry").await;
    world.register_at(&registry.url()).await;
    registry.pause().unwrap();
    let running = world.start(&[&format!("--schema-registry-url={}", registry.url())]);
    let id = world.request("pm_card_visa").await;
    tokio::time::sleep(std::time::Duration::from_secs(4)).await;
    assert_eq!(world.state(id).await, None);
    registry.resume().unwrap();
    world.wait_for_state(id, "SETTLED").await;
    assert_eq!(world.count("SELECT count(*) FROM executor.quarantine").await, 0);
    running.stop().await;
}
