use futures::future::join_all;
use serde_json::{Value as Json, json};
use uuid::Uuid;

use crate::{
    client::{Answer, get, pay, retry},
    world::{TOKEN, World, result, with},
};

async fn set(world: &World, order: Uuid, state: &str) {
    let reason = if state == "NEEDS_REVIEW" { "'EXPIRED'" } else { "NULL" };
    for sql in [
        format!(
            "UPDATE payments.payment_orders SET state = '{state}', review_reason = {reason}, settled_at = now()
             WHERE payment_order_id = '{order}'"
        ),
        format!(
            "UPDATE payments.payments SET status = '{state}', review_reason = {reason}
             WHERE payment_id = (SELECT payment_id FROM payments.payment_orders WHERE payment_order_id = '{order}')"
        ),
    ] {
        sqlx::query(sqlx::AssertSqlSafe(sql)).execute(&world.pool).await.unwrap();
    }
}

fn refused(answer: &Answer) -> bool {
    (answer.status, answer.problem()) == (409, "retry-refused")
}

#[tokio::test]
async fn a_payment_is_tried_again_after_a_definite_failure_alone() {
    let world = World::new().await;
    let service = world.start(&[]).await;
    for state in ["CREATED", "PENDING", "UNKNOWN", "SUCCESSFUL", "NEEDS_REVIEW"] {
        let (payment, order) = pay(&service, state).await;
        if state != "CREATED" {
            set(&world, order, state).await;
        }
        let answer = retry(&service, payment, &format!("retry-{state}"), json!({})).await;
        assert!(refused(&answer), "{state}: {answer:?}");
        assert!(!answer.json["detail"].as_str().unwrap().is_empty());
        let shown = get(&service, &format!("/v1/payments/{payment}"), TOKEN).await;
        assert_eq!(shown.json["payment_orders"].as_array().unwrap().len(), 1, "{state}");
        assert_eq!(shown.json["status"], state);
    }
    assert_eq!(world.count("SELECT count(*) FROM outbox.events").await, 5);

    let (payment, first) = pay(&service, "FAILED").await;
    world.send(&result(first, "FAILED")).await;
    world.until("SELECT count(*) FROM payments.payments WHERE status = 'FAILED'", 1).await;
    let opened =
        retry(&service, payment, "again", json!({"psp": "ADYEN", "payment_method": "shopper-1-card"})).await;
    assert_eq!(opened.status, 201, "{opened:?}");
    assert_eq!(opened.header("location"), Some(format!("/v1/payments/{payment}").as_str()));
    assert_eq!((&opened.json["try"], &opened.json["status"]), (&json!(2), &json!("CREATED")));
    let second = opened.id("payment_order_id");
    assert_eq!(second, payment_service::payments::retry_order_id("shop", "again"));
    let shown = get(&service, &format!("/v1/payments/{payment}"), TOKEN).await.json;
    let orders = shown["payment_orders"].as_array().unwrap();
    assert_eq!((&shown["status"], orders.len()), (&json!("CREATED"), 2));
    assert_eq!((&orders[1]["psp"], &orders[1]["state"]), (&json!("ADYEN"), &json!("CREATED")));
    assert_eq!(orders[0]["trace_id"], orders[1]["trace_id"], "of one trace");
    let payload: Json = sqlx::query_scalar("SELECT payload FROM outbox.events WHERE aggregate_id = $1")
        .bind(second.to_string())
        .fetch_one(&world.pool)
        .await
        .unwrap();
    assert_eq!((&payload["psp"], &payload["paymentMethod"]), (&json!("ADYEN"), &json!("shopper-1-card")));
    assert_eq!((&payload["amountMinor"], &payload["merchantReference"]), (&json!(1234), &json!("order 1")));

    // While that one is open, nothing is opened; and whoever was refused stays refused under his key.
    let early = retry(&service, payment, "early", json!({})).await;
    assert!(refused(&early), "{early:?}");
    world.send(&result(second, "FAILED")).await;
    world.until("SELECT count(*) FROM payments.payments WHERE status = 'FAILED'", 1).await;
    let late = retry(&service, payment, "early", json!({})).await;
    assert_eq!((late.status, &late.text), (409, &early.text), "a copy that comes late charges nobody");
    assert_eq!(late.header("idempotency-replayed"), Some("true"));
    let third = retry(&service, payment, "third", json!({})).await;
    assert_eq!((third.status, &third.json["try"], &third.json["psp"]), (201, &json!(3), &json!("ADYEN")));

    // It succeeds, and is paid; then the first one turns out to have been charged as well.
    world
        .send(&with(result(third.id("payment_order_id"), "SUCCESSFUL"), |event| {
            event.reference = Some("a".into());
        }))
        .await;
    world.until("SELECT count(*) FROM payments.payments WHERE status = 'SUCCESSFUL'", 2).await;
    world.send(&with(result(first, "SUCCESSFUL"), |event| event.reference = Some("b".into()))).await;
    world.until("SELECT count(*) FROM payments.payments WHERE review_reason = 'LATE_SUCCESS'", 1).await;
    world.audit_agrees().await;
    service.stop().await;
}

#[tokio::test]
async fn retries_at_once_open_one_payment_order() {
    let world = World::new().await;
    let service = world.start(&[]).await;
    let mut opened = Vec::new();
    for round in 0..5 {
        let (payment, order) = pay(&service, &format!("round-{round}")).await;
        set(&world, order, "FAILED").await;
        // Half of them under keys of their own, half of them under one.
        let keys = (0..20).map(|n| if n % 2 == 0 { format!("{round}-{n}") } else { format!("{round}-same") });
        let answers =
            join_all(keys.map(async |key| (key.clone(), retry(&service, payment, &key, json!({})).await)))
                .await;
        let (made, others): (Vec<_>, Vec<_>) =
            answers.into_iter().partition(|(_, answer)| answer.status == 201);
        assert!(others.iter().all(|(_, answer)| refused(answer)), "{others:?}");
        assert!(
            made.iter().all(|(key, answer)| (key, &answer.text) == (&made[0].0, &made[0].1.text)),
            "{made:?}"
        );
        assert!(!made.is_empty());
        let of_one = others.iter().filter(|(key, _)| key.ends_with("same")).count();
        assert!([0, 10].contains(&of_one), "one key, one answer: {of_one}");
        opened.push(made[0].1.id("payment_order_id"));
        let orders = get(&service, &format!("/v1/payments/{payment}"), TOKEN).await;
        assert_eq!(orders.json["payment_orders"].as_array().unwrap().len(), 2);
    }
    opened.dedup();
    assert_eq!(opened.len(), 5);
    assert_eq!(world.count("SELECT count(*) FROM outbox.events").await, 10);
    world.audit_agrees().await;
    service.stop().await;
}

#[tokio::test]
async fn a_key_belongs_to_one_request_of_one_operation() {
    let world = World::new().await;
    let service = world.start(&[]).await;
    let (one, order) = pay(&service, "key").await;
    let (other, other_order) = pay(&service, "other").await;
    set(&world, order, "FAILED").await;
    set(&world, other_order, "FAILED").await;
    // The key of the payment is free for a retry.
    let opened = retry(&service, one, "key", json!({})).await;
    assert_eq!(opened.status, 201, "{opened:?}");
    assert_eq!(retry(&service, one, "key", json!({})).await.text, opened.text);
    for (payment, body) in [(other, json!({})), (one, json!({"payment_method": "pm_other"}))] {
        let answer = retry(&service, payment, "key", body).await;
        assert_eq!((answer.status, answer.problem()), (422, "idempotency-key-reused"));
    }
    // Two payments' retries at once under one key: one of them has it.
    let (third, third_order) = pay(&service, "third").await;
    set(&world, third_order, "FAILED").await;
    let answers = join_all([other, third].map(|payment| retry(&service, payment, "shared", json!({})))).await;
    let mut statuses: Vec<u16> = answers.iter().map(|answer| answer.status).collect();
    statuses.sort_unstable();
    assert_eq!(statuses, [201, 422], "{answers:?}");
    assert_eq!(world.count("SELECT count(*) FROM payments.payment_orders WHERE try = 2").await, 2);
    // What is not accepted takes no key.
    for body in [
        json!({"psp": "ADYEN"}),
        json!({"payment_method": "with blank"}),
        json!({"amount_minor": 1}),
        json!([]),
    ] {
        let answer = retry(&service, other, "mended", body).await;
        assert_eq!((answer.status, answer.problem()), (422, "invalid-request"), "{answer:?}");
    }
    assert_eq!(retry(&service, Uuid::now_v7(), "mended", json!({})).await.status, 404);
    assert!([201, 409].contains(&retry(&service, other, "mended", json!({})).await.status));
    world.audit_agrees().await;
    service.stop().await;
}

#[tokio::test]
async fn a_payment_is_not_tried_for_ever() {
    let world = World::new().await;
    let service = world.start(&[]).await;
    let (payment, mut order) = pay(&service, "key").await;
    for number in 2..=20 {
        set(&world, order, "FAILED").await;
        let opened = retry(&service, payment, &format!("try-{number}"), json!({})).await;
        assert_eq!((opened.status, &opened.json["try"]), (201, &json!(number)));
        order = opened.id("payment_order_id");
    }
    set(&world, order, "FAILED").await;
    let answer = retry(&service, payment, "try-21", json!({})).await;
    assert!(refused(&answer) && answer.text.contains("20 times"), "{answer:?}");
    service.stop().await;
}
