use std::time::Duration;

use rdkafka::{Offset, message::OwnedHeaders};
use schema::{registry::Registry, wire};
use uuid::Uuid;

use crate::world::{Result_, TRANSITIONS, World, applied, result, with};

/// Records that are no results, of every kind we can think of. Returns how many.
async fn send_garbage(world: &World, good: &Result_) -> usize {
    let registry = Registry::new(&world.registry_url).unwrap();
    let foreign = r#"{"type":"record","name":"Foreign","namespace":"elsewhere","fields":[{"name":"a","type":"string"}]}"#;
    let foreign_id = registry.register(&format!("{}-foreign", world.topic), foreign).await.unwrap();
    let body = world.body(good);
    let key = good.order.to_string();
    let framed = |id: u32, rest: &[u8]| {
        let mut bytes = Vec::new();
        wire::begin_frame(id, &mut bytes);
        bytes.extend_from_slice(rest);
        bytes
    };
    let mut values: Vec<Option<Vec<u8>>> = vec![
        None,
        Some(vec![]),
        Some(vec![0]),
        Some(b"not avro at all".to_vec()),
        Some([&[1], &body[1..]].concat()),
        Some(framed(world.schema_id, &[])),
        Some(framed(2_000_000_000, &body[5..])),
        Some(framed(foreign_id, b"\x02x")),
        Some([body.as_slice(), b"x"].concat()),
        Some(vec![0xff; 900_000]),
        Some(framed(world.schema_id, &[0xfe; 64])),
    ];
    values.extend((5..body.len()).map(|length| Some(body[..length].to_vec())));
    let mut sent = values.len();
    for value in &values {
        world.send_raw(Some(key.as_bytes()), value.as_deref(), OwnedHeaders::new()).await;
    }
    // A good body under a wrong key, and under none.
    world.send_raw(Some(b"another"), Some(&body), OwnedHeaders::new()).await;
    world.send_raw(None, Some(&body), OwnedHeaders::new()).await;
    sent += 2;
    sent
}

#[tokio::test]
async fn what_is_no_result_is_set_aside_and_stops_nobody() {
    let world = World::new().await;
    let (first, last) = (world.order().await, world.order().await);
    world.send(&result(first, "SUCCESSFUL")).await;
    let garbage = send_garbage(&world, &result(first, "FAILED")).await;
    world.send(&result(last, "SUCCESSFUL")).await;
    let service = world.start(&[]).await;
    world.until(TRANSITIONS, 2).await;
    let garbage = i64::try_from(garbage).unwrap();
    world.until("SELECT count(*) FROM payments.quarantine", garbage).await;
    service.stop().await;
    assert_eq!(world.committed().await, garbage + 2, "they are behind us");
    assert_eq!(
        world.count("SELECT count(*) FROM payments.quarantine WHERE reason_code = 'REFUSED'").await,
        2,
        "wrong keys"
    );
    assert_eq!(world.count("SELECT count(*) FROM payments.quarantine WHERE reason = ''").await, 0);
    assert_eq!(
        world.count("SELECT max(length(record_value))::bigint FROM payments.quarantine").await,
        900_000,
        "original bytes"
    );
    assert_eq!(world.state(first).await.0, "SUCCESSFUL");

    // Read again, they are there already.
    world.reset_offsets(Offset::Offset(0));
    let service = world.start(&[]).await;
    for _ in 0..200 {
        if service.metric(r#"events_processed_total{decision="REDELIVERED"}"#).await > 1.0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    service.stop().await;
    assert_eq!(world.count("SELECT count(*) FROM payments.quarantine").await, garbage);
}

#[tokio::test]
async fn a_record_without_our_headers_is_a_result_too() {
    let world = World::new().await;
    let order = world.order().await;
    let event = result(order, "SUCCESSFUL");
    let (key, body) = (order.to_string(), world.body(&event));
    for _ in 0..3 {
        world.send_raw(Some(key.as_bytes()), Some(&body), OwnedHeaders::new()).await;
    }
    let service = world.start(&[]).await;
    world.until(TRANSITIONS, 1).await;
    service.stop().await;
    assert_eq!(
        (world.count(TRANSITIONS).await, world.committed().await),
        (1, 3),
        "its id follows from its content"
    );
}

#[tokio::test]
async fn an_orphan_is_applied_when_its_order_appears() {
    let world = World::new().await;
    let (order, other) = (Uuid::now_v7(), world.order().await);
    let service = world.start(&[]).await;
    world.send(&result(order, "PENDING")).await;
    world.send(&result(order, "SUCCESSFUL")).await;
    world.send(&result(other, "SUCCESSFUL")).await;
    world
        .until(
            "SELECT count(*) FROM payments.quarantine WHERE reason_code = 'ORPHAN' AND settled_at IS NULL",
            2,
        )
        .await;
    world.until(TRANSITIONS, 1).await;
    assert_eq!(
        world.count("SELECT count(*) FROM payments.processed_events").await,
        1,
        "an orphan is not marked"
    );

    sqlx::query(
        "WITH p AS (INSERT INTO payments.payments SELECT gen_random_uuid(), 'shop', 1, 'EUR', 'm', 'CREATED', NULL, repeat('a', 32), now(), now() RETURNING payment_id)
         INSERT INTO payments.payment_orders
         SELECT $1, payment_id, 1, 'STRIPE', 'pm', 'CREATED', NULL, NULL, NULL, NULL, '', now(), now(), now(), NULL FROM p",
    )
    .bind(order)
    .execute(&world.pool)
    .await
    .unwrap();
    world.until("SELECT count(*) FROM payments.quarantine WHERE settled_at IS NOT NULL", 2).await;
    assert_eq!(world.history(order).await, applied(&[("PENDING", "APPLIED"), ("SUCCESSFUL", "APPLIED")]));
    service.stop().await;
}

#[tokio::test]
async fn a_result_that_the_database_refuses_is_found_among_good_ones() {
    let world = World::new().await;
    let orders = world.orders(60).await;
    let mut events: Vec<_> = orders.iter().map(|order| result(*order, "SUCCESSFUL")).collect();
    let mut culprits = 0;
    for (index, event) in events.iter_mut().enumerate() {
        match index {
            3 => event.reference = Some("r".repeat(256)),    // A constraint.
            17 => event.reference = Some("nul\0nul".into()), // No text in PostgreSQL.
            31 => event.micros = -377_000_000_000_000_000,   // Before its calendar begins.
            32 => event.code = Some(String::new()),
            _ => continue,
        }
        culprits += 1;
    }
    events[5].message = Some("far too long ".repeat(100)); // Text for people is cut, not refused.
    world.send_all(&events).await;
    // Two events with one id, of different orders: the second must not vanish as "known".
    let stolen = with(result(orders[3], "FAILED"), |event| event.id = events[0].id);
    world.send(&stolen).await;
    let service = world.start(&[]).await;
    world.until("SELECT count(*) FROM payments.quarantine WHERE reason_code = 'REFUSED'", culprits + 1).await;
    world.until(TRANSITIONS, 60 - culprits).await;
    assert!((service.metric(r#"events_quarantined_total{reason="REFUSED"}"#).await - 5.0).abs() < 0.1);
    service.stop().await;
    assert_eq!(world.committed().await, 61);
    let reasons: Vec<String> =
        sqlx::query_scalar("SELECT reason FROM payments.quarantine").fetch_all(&world.pool).await.unwrap();
    assert!(reasons.iter().all(|reason| !reason.is_empty()), "{reasons:?}");
}

#[tokio::test]
async fn an_orphan_that_is_refused_in_the_end_is_not_tried_for_ever() {
    let world = World::new().await;
    let order = Uuid::now_v7();
    let service = world.start(&[]).await;
    world.send(&with(result(order, "SUCCESSFUL"), |event| event.reference = Some("r".repeat(300)))).await;
    world.until("SELECT count(*) FROM payments.quarantine WHERE reason_code = 'ORPHAN'", 1).await;
    sqlx::query(
        "WITH p AS (INSERT INTO payments.payments SELECT gen_random_uuid(), 'shop', 1, 'EUR', 'm', 'CREATED', NULL, repeat('a', 32), now(), now() RETURNING payment_id)
         INSERT INTO payments.payment_orders
         SELECT $1, payment_id, 1, 'STRIPE', 'pm', 'CREATED', NULL, NULL, NULL, NULL, '', now(), now(), now(), NULL FROM p",
    )
    .bind(order)
    .execute(&world.pool)
    .await
    .unwrap();
    world
        .until(
            "SELECT count(*) FROM payments.quarantine WHERE reason_code = 'REFUSED' AND settled_at IS NULL",
            1,
        )
        .await;
    service.stop().await;
}
