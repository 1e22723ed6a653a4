use std::time::Duration;

use rdkafka::{
    Message as _, Offset,
    message::{Headers as _, OwnedHeaders},
};
use schema::{registry::Registry, wire};
use sqlx::{Connection as _, PgConnection};
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

const SHOWN: &str = "SELECT count(*) FROM payments.quarantine";

#[tokio::test]
async fn what_was_mended_is_redriven_once_and_the_rest_is_given_up() {
    let world = World::new().await;
    let (order, other) = (world.order().await, world.order().await);
    // Refused by a constraint, which is mended below.
    sqlx::query(
        "ALTER TABLE payments.payment_orders ADD CONSTRAINT too_strict CHECK (psp_reference <> 'pi_long')",
    )
    .execute(&world.pool)
    .await
    .unwrap();
    let refused = with(result(order, "SUCCESSFUL"), |event| event.reference = Some("pi_long".into()));
    let service = world.start(&[]).await;
    world.send(&refused).await;
    world.send(&result(Uuid::now_v7(), "SUCCESSFUL")).await; // An orphan for ever.
    let (partition, offset) = world.send_raw(None, Some(b"nonsense"), OwnedHeaders::new()).await;
    world.send(&result(other, "SUCCESSFUL")).await;
    world.until(SHOWN, 3).await;
    world.until(TRANSITIONS, 1).await;

    let listed = world.operate_json(&["quarantine", "list"]).await;
    let reasons: Vec<_> =
        listed.as_array().unwrap().iter().map(|row| row["reason_code"].as_str().unwrap()).collect();
    assert_eq!(
        {
            let mut sorted = reasons.clone();
            sorted.sort_unstable();
            sorted
        },
        ["ORPHAN", "REFUSED", "UNDECODABLE"]
    );
    let (_, text) = world.operate(&["quarantine", "list", "--reason", "REFUSED"]).await;
    assert!(text.contains("too_strict") && text.contains("1 in quarantine"), "{text}");

    // Dry: nothing happens, nothing is written down.
    let dry = world.operate_json(&["quarantine", "redrive", "--reason", "REFUSED"]).await;
    assert_eq!((dry["selected"].as_i64(), dry["result"].is_null()), (Some(1), true), "{dry}");
    assert_eq!(world.count("SELECT count(*) FROM payments.commands").await, 0);
    for wrong in [
        &["quarantine", "redrive"][..],
        &["quarantine", "redrive", "--all", "--reason", "ORPHAN"],
        &["quarantine", "redrive", "--all", "--execute"],
        &["quarantine", "redrive", "--all", "--execute", "--operator", " ", "--note", "x"],
    ] {
        assert_ne!(world.operate(wrong).await.0, 0, "{wrong:?}");
    }
    assert_eq!(world.count("SELECT count(*) FROM payments.commands").await, 0);

    // Before the mend: it stays, and says why.
    let by = ["--execute", "--operator", "ada", "--note", "the constraint is gone"];
    let again = world.operate_json(&[&["quarantine", "redrive", "--all"][..], &by].concat()).await;
    assert_eq!((&again["result"]["refused"], &again["result"]["open"]), (&3.into(), &0.into()), "{again}");
    assert_eq!(
        world
            .count("SELECT count(*) FROM payments.quarantine WHERE attempts = 2 AND settled_at IS NULL")
            .await,
        3
    );

    // After it: once, however often it is asked for, and under ada's name.
    sqlx::query("ALTER TABLE payments.payment_orders DROP CONSTRAINT too_strict")
        .execute(&world.pool)
        .await
        .unwrap();
    let redrive = [&["quarantine", "redrive", "--reason", "REFUSED"][..], &by].concat();
    let (one, two) = tokio::join!(world.operate_json(&redrive), world.operate_json(&redrive));
    let applied = |ordered: &serde_json::Value| ordered["result"]["applied"].as_i64().unwrap();
    assert_eq!(applied(&one) + applied(&two), 1, "{one} {two}");
    assert_eq!(world.history(order).await, applied_once());
    assert_eq!(world.applied_twice().await, 0);
    let asked: (String, String, i64) = sqlx::query_as(
        "SELECT t.operator, c.requested_by, c.id FROM payments.payment_order_transitions t JOIN payments.commands c ON c.id = t.command_id",
    )
    .fetch_one(&world.pool)
    .await
    .unwrap();
    assert_eq!((asked.0.as_str(), asked.1.as_str()), ("ada", "operator"));

    let here = [partition.to_string(), offset.to_string()];
    let place = [
        "--topic",
        &world.topic,
        "--partition",
        &here[0],
        "--from-offset",
        &here[1],
        "--to-offset",
        &here[1],
    ];
    let discard = [&["quarantine", "discard"][..], &place, &by].concat();
    let discarded = world.operate_json(&discard).await;
    assert_eq!(discarded["result"]["discarded"], 1, "{discarded}");
    assert_eq!(world.operate_json(&discard).await["result"]["selected"], 0, "it is gone");
    assert_eq!(world.operate_json(&["quarantine", "list"]).await.as_array().unwrap().len(), 1);
    world.audit_agrees().await;

    // The copies: each record once, with its bytes and its reason.
    let copies = world.copies(3).await;
    let nonsense = copies.iter().find(|copy| copy.payload() == Some(b"nonsense")).expect("its copy");
    let reason =
        nonsense.headers().unwrap().iter().find(|header| header.key == "quarantine_reason_code").unwrap();
    assert_eq!(reason.value, Some(b"UNDECODABLE".as_slice()));
    world.until("SELECT count(*) FROM payments.quarantine WHERE copied_at IS NULL", 0).await;
    service.stop().await;
}

fn applied_once() -> Vec<(String, String)> {
    applied(&[("SUCCESSFUL", "APPLIED")])
}

#[tokio::test]
async fn a_topic_made_anew_hides_nothing() {
    let world = World::new().await;
    let service = world.start(&[]).await;
    world.send_raw(Some(b"k"), Some(b"first"), OwnedHeaders::new()).await;
    world.until(SHOWN, 1).await;
    // As if the topic had been made anew: another record at the same place.
    sqlx::query("UPDATE payments.quarantine SET topic = 'elsewhere', digest = sha256('x') WHERE record_value = 'first'")
        .execute(&world.pool)
        .await
        .unwrap();
    sqlx::query("UPDATE payments.quarantine SET topic = $1")
        .bind(&world.topic)
        .execute(&world.pool)
        .await
        .unwrap();
    service.stop().await;
    world.reset_offsets(Offset::Offset(0));
    let service = world.start(&[]).await;
    world.until(SHOWN, 2).await;
    // The same record again is no other one.
    service.stop().await;
    world.reset_offsets(Offset::Offset(0));
    let service = world.start(&[]).await;
    let order = world.order().await;
    world.send(&result(order, "SUCCESSFUL")).await;
    world.until(TRANSITIONS, 1).await;
    assert_eq!(world.count(SHOWN).await, 2);
    service.stop().await;
}

#[tokio::test]
async fn without_the_topic_of_copies_the_consumer_goes_on() {
    let world = World::new().await;
    let order = world.order().await;
    let missing = format!("{}.nowhere", world.topic);
    let service = world.start(&["--dlq-topic", &missing]).await;
    world.send_raw(Some(b"k"), Some(b"nonsense"), OwnedHeaders::new()).await;
    world.send(&result(order, "SUCCESSFUL")).await;
    world.until(TRANSITIONS, 1).await;
    for _ in 0..400 {
        if service.metric("quarantine_copy_failures_total").await > 0.0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(service.metric("quarantine_copy_failures_total").await > 0.0);
    assert_eq!(world.count("SELECT count(*) FROM payments.quarantine WHERE copied_at IS NULL").await, 1);
    service.stop().await;
    // It is copied when the topic is there.
    let service = world.start(&[]).await;
    world.until("SELECT count(*) FROM payments.quarantine WHERE copied_at IS NULL", 0).await;
    service.stop().await;
    assert_eq!(world.copies(1).await[0].payload(), Some(b"nonsense".as_slice()));
}

#[tokio::test]
async fn what_does_not_add_up_in_the_audit_is_found() {
    let world = World::new().await;
    let orders = world.orders(3).await;
    let service = world.start(&[]).await;
    let events: Vec<_> = orders.iter().map(|order| result(*order, "SUCCESSFUL")).collect();
    world.send_all(&events).await;
    world.send(&result(orders[0], "PENDING")).await;
    world.until(TRANSITIONS, 4).await;
    service.stop().await;
    world.audit_agrees().await;

    // By hand, said so: written down by the database, under the name that was given, and all still adds up.
    let mut hand = world.pool.acquire().await.unwrap();
    for sql in [
        "SET payments.operator = 'ada'",
        "SET payments.note = 'the bank says so'",
        "UPDATE payments.payment_orders SET state = 'NEEDS_REVIEW', review_reason = 'AMOUNT_MISMATCH' WHERE payment_order_id = (SELECT min(payment_order_id::text)::uuid FROM payments.payment_orders)",
        "UPDATE payments.payments p SET status = o.state, review_reason = o.review_reason FROM payments.payment_orders o WHERE o.payment_id = p.payment_id",
        "RESET ALL",
    ] {
        sqlx::query(sql).execute(&mut *hand).await.unwrap();
    }
    let by_hand: (String, String, String, String) = sqlx::query_as(
        "SELECT from_state, to_state, operator, note FROM payments.payment_order_transitions WHERE decision = 'BY_HAND'",
    )
    .fetch_one(&world.pool)
    .await
    .unwrap();
    let expected = ["SUCCESSFUL", "NEEDS_REVIEW", "ada", "the bank says so"].map(str::to_owned);
    assert_eq!([by_hand.0, by_hand.1, by_hand.2, by_hand.3], expected);
    assert_eq!(world.operate_json(&["verify-audit"]).await["by_hand"], 1);

    // Behind the audit's back, each undone again.
    let mut superuser = PgConnection::connect(&world.db.url("postgres")).await.unwrap();
    sqlx::query("SET session_replication_role = replica").execute(&mut superuser).await.unwrap();
    for (does, undoes) in [
        (
            "UPDATE payments.payment_orders SET state = 'FAILED' WHERE state = 'SUCCESSFUL'",
            "UPDATE payments.payment_orders SET state = 'SUCCESSFUL' WHERE state = 'FAILED'",
        ),
        (
            "UPDATE payments.payment_orders SET psp_reference = 'x'",
            "UPDATE payments.payment_orders SET psp_reference = 'pi_1'",
        ),
        (
            "UPDATE payments.payments SET status = 'PENDING' WHERE status = 'SUCCESSFUL'",
            "UPDATE payments.payments SET status = 'SUCCESSFUL' WHERE status = 'PENDING'",
        ),
        (
            "DELETE FROM payments.processed_events",
            "INSERT INTO payments.processed_events SELECT event_id, payment_order_id FROM payments.payment_order_transitions WHERE event_id IS NOT NULL",
        ),
        (
            "CREATE TABLE taken AS TABLE payments.payment_order_transitions; DELETE FROM payments.payment_order_transitions WHERE decision = 'STALE'",
            "INSERT INTO payments.payment_order_transitions OVERRIDING SYSTEM VALUE SELECT * FROM taken WHERE decision = 'STALE'; DROP TABLE taken",
        ),
        (
            "INSERT INTO payments.payment_order_transitions OVERRIDING SYSTEM VALUE SELECT 1000000, t.payment_order_id, t.event_id, t.from_state, t.to_state, t.decision, t.psp_status, t.psp_reference, t.error_code, t.event_time, t.topic, t.partition, t.record_offset, t.trace_id FROM payments.payment_order_transitions t WHERE decision = 'STALE'",
            "DELETE FROM payments.payment_order_transitions WHERE transition_id = 1000000",
        ),
    ] {
        sqlx::raw_sql(does).execute(&mut superuser).await.unwrap();
        let (code, out) = world.operate(&["verify-audit", "--json"]).await;
        let found: serde_json::Value = serde_json::from_str(&out).unwrap();
        assert_eq!((code, found["findings_total"].as_u64() > Some(0)), (1, true), "{does}: {out}");
        sqlx::raw_sql(undoes).execute(&mut superuser).await.unwrap();
        world.audit_agrees().await;
    }
}
