//! Results that contradict what is known, end to end: each reaches a person, and no outcome is changed into another.

use rdkafka::Offset;
use uuid::Uuid;

use crate::world::{Result_, TRANSITIONS, World, applied, result, with};

fn success(order: Uuid, reference: &str) -> Result_ {
    with(result(order, "SUCCESSFUL"), |event| event.reference = Some(reference.to_owned()))
}

fn mismatch(order: Uuid) -> Result_ {
    with(result(order, "UNKNOWN"), |event| event.code = Some("AMOUNT_MISMATCH".into()))
}

type Case = (&'static str, fn(Uuid) -> Vec<Result_>, &'static str, &'static str);

/// Name, results, the outcome that the order had, and why it is in review.
const CASES: &[Case] = &[
    ("late success", |o| vec![result(o, "FAILED"), success(o, "a")], "FAILED", "LATE_SUCCESS"),
    ("second success", |o| vec![success(o, "a"), success(o, "b")], "SUCCESSFUL", "SECOND_SUCCESS"),
    (
        "failure after success",
        |o| vec![success(o, "a"), result(o, "FAILED")],
        "SUCCESSFUL",
        "FAILURE_AFTER_SUCCESS",
    ),
    ("wrong amount after success", |o| vec![success(o, "a"), mismatch(o)], "SUCCESSFUL", "AMOUNT_MISMATCH"),
    ("wrong amount after failure", |o| vec![result(o, "FAILED"), mismatch(o)], "FAILED", "AMOUNT_MISMATCH"),
];

#[tokio::test]
async fn every_contradiction_reaches_review_and_nothing_leaves_it() {
    let world = World::new().await;
    let orders = world.orders(i32::try_from(CASES.len() * 2).unwrap()).await;
    let service = world.start(&[]).await;
    // Half of them in one batch each, half of them one by one, with what went before in the database.
    let (together, apart) = orders.split_at(CASES.len());
    for ((_, events, ..), order) in CASES.iter().zip(together) {
        for event in events(*order) {
            world.send(&event).await;
        }
    }
    for round in 0..2 {
        for ((_, events, ..), order) in CASES.iter().zip(apart) {
            world.send(&events(*order)[round]).await;
        }
        world.until(TRANSITIONS, i64::try_from(CASES.len() * (3 + round)).unwrap()).await;
    }
    for ((name, _, outcome, reason), order) in CASES.iter().chain(CASES).zip(&orders) {
        assert_eq!(world.state(*order).await, ("NEEDS_REVIEW".into(), Some((*reason).into())), "{name}");
        assert_eq!(
            world.history(*order).await,
            applied(&[(outcome, "APPLIED"), ("NEEDS_REVIEW", "CONFLICT")]),
            "{name}"
        );
    }

    // Whatever comes now, the reviews stay, and so do their payments'.
    for order in &orders {
        for event in
            [success(*order, "c"), result(*order, "FAILED"), result(*order, "PENDING"), mismatch(*order)]
        {
            world.send(&event).await;
        }
    }
    world.until(TRANSITIONS, i64::try_from(CASES.len() * 2 * 6).unwrap()).await;
    for table in ["payment_orders WHERE state", "payments WHERE status"] {
        let left = format!("SELECT count(*) FROM payments.{table} <> 'NEEDS_REVIEW'");
        let left: i64 = sqlx::query_scalar(sqlx::AssertSqlSafe(left)).fetch_one(&world.pool).await.unwrap();
        assert_eq!(left, 0, "{table}");
    }
    world.audit_agrees().await;
    service.stop().await;
}

#[tokio::test]
async fn a_double_charge_stays_one_whatever_comes_and_however_often() {
    let world = World::new().await;
    let first = world.order().await;
    let second = Uuid::now_v7();
    sqlx::query(
        "WITH o AS (
             INSERT INTO payments.payment_orders
             SELECT $2, payment_id, 2, psp, payment_method, 'CREATED', NULL, NULL, NULL, NULL, traceparent, expires_at, now(), now(), NULL
             FROM payments.payment_orders WHERE payment_order_id = $1)
         INSERT INTO payments.payment_order_transitions (payment_order_id, to_state, decision, trace_id) VALUES ($2, 'CREATED', 'APPLIED', repeat('a', 32))",
    )
    .bind(first)
    .bind(second)
    .execute(&world.pool)
    .await
    .unwrap();
    let service = world.start(&[]).await;
    let events = [success(first, "a"), success(second, "b")];
    world.send_all(&events).await;
    world.until(TRANSITIONS, 2).await;
    let payment = || async {
        let row: (String, Option<String>) =
            sqlx::query_as("SELECT status, review_reason FROM payments.payments")
                .fetch_one(&world.pool)
                .await
                .unwrap();
        row
    };
    assert_eq!(payment().await, ("NEEDS_REVIEW".into(), Some("DOUBLE_CHARGE".into())));
    world.send_all(&[result(first, "PENDING"), success(first, "a"), result(second, "FAILED")]).await;
    world.until(TRANSITIONS, 5).await;
    assert_eq!(payment().await.0, "NEEDS_REVIEW");
    assert_eq!(world.state(first).await.0, "SUCCESSFUL", "what it had said stays said");
    service.stop().await;
    world.reset_offsets(Offset::Offset(0));
    let service = world.start(&[]).await;
    for _ in 0..200 {
        if service.metric(r#"events_processed_total{decision="REDELIVERED"}"#).await > 4.0 {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    assert_eq!((payment().await.0.as_str(), world.count(TRANSITIONS).await), ("NEEDS_REVIEW", 5));
    world.audit_agrees().await;
    service.stop().await;
}
