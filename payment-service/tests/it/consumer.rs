use std::time::Duration;

use rdkafka::Offset;
use serde_json::Value as Json;
use uuid::Uuid;

use crate::world::{TOKEN, TRANSITIONS, World, applied, result, with};

#[tokio::test]
async fn results_are_applied_and_shown_with_their_transitions() {
    let world = World::new().await;
    let order = world.order().await;
    let service = world.start(&[]).await;
    world.send(&result(order, "PENDING")).await;
    let success = result(order, "SUCCESSFUL");
    let (partition, offset) = world.send(&success).await;
    world.until(TRANSITIONS, 2).await;

    let url = format!("http://{}/v1/payment-orders/{order}", service.api);
    let answer = reqwest::Client::new().get(url).bearer_auth(TOKEN).send().await.unwrap();
    let shown: Json = answer.json().await.unwrap();
    assert_eq!(
        (shown["state"].as_str(), shown["psp_reference"].as_str()),
        (Some("SUCCESSFUL"), Some("pi_1"))
    );
    let last = &shown["transitions"][2];
    assert_eq!(last["event_id"], success.id.to_string());
    assert_eq!(
        (&last["from_state"], &last["to_state"], &last["decision"]),
        (&"PENDING".into(), &"SUCCESSFUL".into(), &"APPLIED".into())
    );
    assert_eq!(
        (&last["topic"], &last["partition"], &last["record_offset"]),
        (&world.topic.clone().into(), &partition.into(), &offset.into())
    );
    assert_eq!((&last["trace_id"], &last["psp_reference"]), (&"a".repeat(32).into(), &"pi_1".into()));
    let payment: String =
        sqlx::query_scalar("SELECT status FROM payments.payments").fetch_one(&world.pool).await.unwrap();
    assert_eq!(payment, "SUCCESSFUL");

    // A lag that is told honestly: after the event, and not by much.
    let lag_ms: f64 = sqlx::query_scalar(
        "SELECT max(extract(epoch FROM decided_at - event_time) * 1000)::float8 FROM payments.payment_order_transitions",
    )
    .fetch_one(&world.pool)
    .await
    .unwrap();
    assert!((0.0..30_000.0).contains(&lag_ms), "{lag_ms}");
    assert!((service.metric(r#"events_processed_total{decision="APPLIED"}"#).await - 2.0).abs() < 0.1);
    assert!((service.metric("event_lag_seconds_count").await - 2.0).abs() < 0.1);
    assert!((service.metric(r#"events_processed_total{decision="CONFLICT"}"#).await).abs() < 0.1);
    service.stop().await;
    assert_eq!(world.committed().await, 2, "offsets are committed when the service has stopped");
}

#[tokio::test]
async fn duplicates_stale_results_and_contradictions_are_told_apart() {
    let world = World::new().await;
    let (paid, twice, late, expired) =
        (world.order().await, world.order().await, world.order().await, world.order().await);
    let service = world.start(&[]).await;
    let success = result(paid, "SUCCESSFUL");
    world.send(&success).await;
    world.send(&success).await; // The same event again: no row.
    world.send(&with(success.clone(), |event| event.id = Uuid::now_v7())).await; // The same said again: DUPLICATE.
    world.send(&result(paid, "PENDING")).await; // Overtaken: STALE.

    world.send(&result(twice, "SUCCESSFUL")).await;
    world.send(&with(result(twice, "SUCCESSFUL"), |event| event.reference = Some("pi_2".into()))).await;
    world.send(&result(late, "FAILED")).await;
    world.send(&result(late, "SUCCESSFUL")).await;
    world.send(&with(result(expired, "UNKNOWN"), |event| event.code = Some("EXPIRED".into()))).await;
    world.until(TRANSITIONS, 8).await;
    service.stop().await;

    assert_eq!(
        world.history(paid).await,
        applied(&[("SUCCESSFUL", "APPLIED"), ("SUCCESSFUL", "DUPLICATE"), ("SUCCESSFUL", "STALE")])
    );
    assert_eq!(
        world.history(twice).await,
        applied(&[("SUCCESSFUL", "APPLIED"), ("NEEDS_REVIEW", "CONFLICT")])
    );
    assert_eq!(world.state(twice).await, ("NEEDS_REVIEW".into(), Some("SECOND_SUCCESS".into())));
    assert_eq!(world.state(late).await, ("NEEDS_REVIEW".into(), Some("LATE_SUCCESS".into())));
    assert_eq!(world.state(expired).await, ("NEEDS_REVIEW".into(), Some("EXPIRED".into())));
    assert_eq!(world.count("SELECT count(*) FROM payments.payments WHERE status = 'NEEDS_REVIEW'").await, 3);
    assert_eq!(world.count("SELECT count(*) FROM payments.processed_events").await, 8);
    assert_eq!(world.applied_twice().await, 0);
}

#[tokio::test]
async fn two_successful_orders_of_one_payment_are_a_double_charge() {
    let world = World::new().await;
    let first = world.order().await;
    let second = Uuid::now_v7();
    sqlx::query(
        "INSERT INTO payments.payment_orders
         SELECT $2, payment_id, 2, psp, payment_method, 'CREATED', NULL, NULL, NULL, NULL, traceparent, expires_at, now(), now(), NULL
         FROM payments.payment_orders WHERE payment_order_id = $1",
    )
    .bind(first)
    .bind(second)
    .execute(&world.pool)
    .await
    .unwrap();
    let services = [world.start(&[]).await, world.start(&[]).await];
    world.send_all(&[result(first, "SUCCESSFUL"), result(second, "SUCCESSFUL")]).await;
    world.until(TRANSITIONS, 2).await;
    let payment: (String, String) = sqlx::query_as("SELECT status, review_reason FROM payments.payments")
        .fetch_one(&world.pool)
        .await
        .unwrap();
    assert_eq!(payment, ("NEEDS_REVIEW".into(), "DOUBLE_CHARGE".into()));
    for order in [first, second] {
        assert_eq!(world.state(order).await.0, "SUCCESSFUL");
    }
    for service in services {
        service.stop().await;
    }
}

#[tokio::test]
async fn a_group_without_offsets_starts_at_the_first_record() {
    let world = World::new().await;
    let order = world.order().await;
    world.send(&result(order, "SUCCESSFUL")).await;
    let service = world.start(&[]).await;
    world.until(TRANSITIONS, 1).await;
    service.stop().await;
}

#[tokio::test]
async fn records_that_come_again_are_known() {
    let world = World::new().await;
    let orders = world.orders(200).await;
    let mut events = Vec::new();
    for order in &orders {
        events.push(result(*order, "PENDING"));
        events.push(result(*order, "SUCCESSFUL"));
    }
    for pair in events.chunks(2) {
        world.send(&pair[0]).await;
        world.send(&pair[1]).await;
    }
    let service = world.start(&[]).await;
    world.until(TRANSITIONS, 400).await;
    service.stop().await;
    assert_eq!(world.committed().await, 400);

    // As after a crash between the database's commit and the offsets'.
    world.reset_offsets(Offset::Offset(0));
    let service = world.start(&[]).await;
    for _ in 0..200 {
        if service.metric(r#"events_processed_total{decision="REDELIVERED"}"#).await > 399.0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    service.stop().await;
    assert_eq!(world.count(TRANSITIONS).await, 400);
    assert_eq!(
        world.count("SELECT count(*) FROM payments.payment_orders WHERE state = 'SUCCESSFUL'").await,
        200
    );
    assert_eq!(world.applied_twice().await, 0);
    assert_eq!(world.committed().await, 400);
}

#[tokio::test]
async fn while_the_database_is_locked_up_the_batch_waits_and_is_applied_afterwards() {
    let world = World::new().await;
    let orders = world.orders(20).await;
    let service = world.start(&[]).await;
    world.send(&result(orders[0], "PENDING")).await;
    world.until(TRANSITIONS, 1).await;
    let mut lock = world.pool.acquire().await.unwrap();
    sqlx::query("BEGIN").execute(&mut *lock).await.unwrap();
    sqlx::query("LOCK TABLE payments.processed_events").execute(&mut *lock).await.unwrap();
    let events: Vec<_> = orders.iter().map(|order| result(*order, "SUCCESSFUL")).collect();
    world.send_all(&events).await;
    for _ in 0..200 {
        if service.metric(r#"consumer_waits_total{reason="database"}"#).await > 0.0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!((service.metric("consumer_waiting ").await - 1.0).abs() < 0.1);
    assert!(world.committed().await <= 1, "nothing of it is committed");
    sqlx::query("ROLLBACK").execute(&mut *lock).await.unwrap();
    world.until(TRANSITIONS, 21).await;
    assert_eq!(
        world.count("SELECT count(*) FROM payments.quarantine").await,
        0,
        "waiting is no reason to set aside"
    );
    service.stop().await;
    assert_eq!(world.committed().await, 21);
}

#[tokio::test]
async fn while_the_registry_is_away_the_batch_waits() {
    let mut world = World::new().await;
    let order = world.order().await;
    world.send(&result(order, "SUCCESSFUL")).await;
    let nobody = format!("http://127.0.0.1:{}", testbed::stack::free_port().unwrap());
    let registry_url = std::mem::replace(&mut world.registry_url, nobody);
    let service = world.start(&[]).await;
    for _ in 0..400 {
        if service.metric(r#"consumer_waits_total{reason="registry"}"#).await > 0.0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    service.stop().await;
    assert_eq!((world.count(TRANSITIONS).await, world.committed().await), (0, 0));
    assert_eq!(world.count("SELECT count(*) FROM payments.quarantine").await, 0);
    world.registry_url = registry_url;
    let service = world.start(&[]).await;
    world.until(TRANSITIONS, 1).await;
    service.stop().await;
}

#[tokio::test]
async fn an_offset_that_points_nowhere_is_for_a_person() {
    let world = World::new().await;
    let order = world.order().await;
    world.send(&result(order, "SUCCESSFUL")).await;
    world.reset_offsets(Offset::Offset(1_000_000));
    let service = world.start(&[]).await;
    for _ in 0..600 {
        if service.metric("kafka_consumer_offsets_out_of_range_total").await > 0.0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(service.metric("kafka_consumer_offsets_out_of_range_total").await > 0.0);
    assert_eq!(world.count(TRANSITIONS).await, 0, "no silent jump");
    service.stop().await;
    assert_eq!(world.committed().await, 3_000_000, "nor a new offset");
}

#[tokio::test]
async fn instances_share_the_work_while_they_come_and_go() {
    let world = World::new().await;
    let orders = world.orders(600).await;
    let sending = async {
        for part in orders.chunks(20) {
            let pending: Vec<_> = part.iter().map(|order| result(*order, "PENDING")).collect();
            let success: Vec<_> = part.iter().map(|order| result(*order, "SUCCESSFUL")).collect();
            world.send_all(&pending).await;
            world.send_all(&success).await;
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    let coming_and_going = async {
        let stays = world.start(&[]).await;
        for _ in 0..3 {
            let comes = world.start(&[]).await;
            tokio::time::sleep(Duration::from_millis(700)).await;
            comes.stop().await;
        }
        stays
    };
    let ((), stays) = tokio::join!(sending, coming_and_going);
    world.until(TRANSITIONS, 1_200).await;
    stays.stop().await;
    assert_eq!(world.applied_twice().await, 0);
    assert_eq!(
        world.count("SELECT count(*) FROM payments.payment_orders WHERE state = 'SUCCESSFUL'").await,
        600
    );
    let in_order = "SELECT count(*) FROM payments.payment_order_transitions WHERE decision <> 'APPLIED'";
    assert_eq!(world.count(in_order).await, 0, "no PENDING was applied after its SUCCESSFUL");
    assert_eq!(world.committed().await, 1_200);
}
