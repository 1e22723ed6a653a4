//! The way out of a review: by an operator, with a reason, in the audit; and by nothing else.

use futures::future::join_all;
use reqwest::Client;
use serde_json::{Value as Json, json};
use sqlx::AssertSqlSafe;
use uuid::Uuid;

use crate::{
    client::{get, pay, post_to, resolve, retry, send},
    world::{OPERATOR_TOKEN, TOKEN, TRANSITIONS, World, result, with},
};

/// Decision, by whom, why: of the lines that no event made.
async fn by_people(world: &World, order: Uuid) -> Vec<(String, String, Option<String>, Option<String>)> {
    sqlx::query_as(
        "SELECT from_state || ' ' || to_state, decision, operator, note FROM payments.payment_order_transitions
         WHERE payment_order_id = $1 AND event_id IS NULL AND from_state IS NOT NULL ORDER BY transition_id",
    )
    .bind(order)
    .fetch_all(&world.pool)
    .await
    .unwrap()
}

/// A payment of the shop whose order has been told these: status, reference.
async fn told(world: &World, order: Uuid, results: &[(&'static str, &str)]) {
    let before = world.count(TRANSITIONS).await;
    for (status, reference) in results {
        world
            .send(&with(result(order, status), |event| event.reference = Some((*reference).to_owned())))
            .await;
    }
    world.until(TRANSITIONS, before + i64::try_from(results.len()).unwrap()).await;
}

#[tokio::test]
async fn an_operator_ends_a_review_and_the_audit_says_so() {
    let world = World::new().await;
    let service = world.start(&[]).await;
    for (number, decision) in ["SUCCESSFUL", "FAILED"].into_iter().enumerate() {
        let (payment, order) = pay(&service, decision).await;
        told(&world, order, &[("FAILED", "a"), ("SUCCESSFUL", "a")]).await;
        assert_eq!(world.state(order).await, ("NEEDS_REVIEW".into(), Some("LATE_SUCCESS".into())));
        let resolved = resolve(&service, order, "key", decision).await;
        let (resolved, again) = if number == 0 {
            (resolved, resolve(&service, order, "key", decision).await)
        } else {
            // The key of the other order's resolution.
            assert_eq!((resolved.status, resolved.problem()), (422, "idempotency-key-reused"));
            let resolved = resolve(&service, order, "key-2", decision).await;
            (resolved, resolve(&service, order, "key-2", decision).await)
        };
        assert_eq!((resolved.status, &resolved.json["state"]), (200, &json!(decision)), "{resolved:?}");
        assert_eq!(resolved.json["operator"], "ada");
        assert_eq!(
            (&resolved.json["payment_status"], &resolved.json["psp_reference"]),
            (&json!(decision), &json!("a"))
        );
        assert_eq!((again.status, &again.text), (resolved.status, &resolved.text));
        assert_eq!(again.header("idempotency-replayed"), Some("true"));
        assert_eq!(world.state(order).await, (decision.to_owned(), None));
        let shown = get(&service, &format!("/v1/payments/{payment}"), TOKEN).await;
        assert_eq!(shown.json["status"], decision);
        let line = (
            format!("NEEDS_REVIEW {decision}"),
            "RESOLVED".into(),
            Some("ada".into()),
            Some("the bank says so".into()),
        );
        assert_eq!(by_people(&world, order).await, [line]);
        // Names and notes are for those who work here.
        let path = format!("/v1/payment-orders/{order}");
        let last = |shown: Json| shown["transitions"].as_array().unwrap().last().unwrap().clone();
        let (merchants, operators) =
            (get(&service, &path, TOKEN).await.json, get(&service, &path, OPERATOR_TOKEN).await.json);
        assert_eq!(
            (&last(merchants.clone())["decision"], &last(merchants)["operator"]),
            (&json!("RESOLVED"), &json!(null))
        );
        assert_eq!(
            (&last(operators.clone())["operator"], &last(operators)["note"]),
            (&json!("ada"), &json!("the bank says so"))
        );
    }
    world.audit_agrees().await;
    assert!((service.metric(r#"reviews_resolved_total{outcome="FAILED"}"#).await - 1.0).abs() < 0.1);
    service.stop().await;
}

#[tokio::test]
async fn what_contradicts_a_person_brings_the_order_back_before_one() {
    let world = World::new().await;
    let service = world.start(&[]).await;
    for (decision, later, reason) in [
        ("SUCCESSFUL", ("FAILED", "a"), Some("FAILURE_AFTER_SUCCESS")),
        ("SUCCESSFUL", ("SUCCESSFUL", "b"), Some("SECOND_SUCCESS")),
        ("SUCCESSFUL", ("SUCCESSFUL", "a"), None),
        ("SUCCESSFUL", ("PENDING", "a"), None),
        ("FAILED", ("SUCCESSFUL", "a"), Some("LATE_SUCCESS")),
        ("FAILED", ("FAILED", "a"), None),
        ("FAILED", ("UNKNOWN", "a"), None),
    ] {
        let key = Uuid::now_v7().to_string();
        let (_, order) = pay(&service, &key).await;
        // Nobody knew; the person has found the charge, or that there is none.
        let before = world.count(TRANSITIONS).await;
        world
            .send(&with(result(order, "UNKNOWN"), |event| {
                (event.code, event.reference) = (Some("RESOLUTION_EXHAUSTED".into()), None);
            }))
            .await;
        world.until(TRANSITIONS, before + 1).await;
        let mut body = json!({"decision": decision, "reason": "the bank says so"});
        if decision == "SUCCESSFUL" {
            body["psp_reference"] = json!("a");
        }
        let path = format!("/v1/payment-orders/{order}/resolve");
        let resolved = send(post_to(&service, &path, OPERATOR_TOKEN, &key).json(&body)).await;
        assert_eq!((resolved.status, &resolved.json["state"]), (200, &json!(decision)), "{resolved:?}");
        told(&world, order, &[later]).await;
        let expected = match reason {
            Some(reason) => ("NEEDS_REVIEW".to_owned(), Some(reason.to_owned())),
            None => (decision.to_owned(), None),
        };
        assert_eq!(world.state(order).await, expected, "{decision}, then {later:?}");
        if reason.is_some() {
            let again = resolve(&service, order, &format!("{key}-again"), "FAILED").await;
            assert_eq!((again.status, &again.json["state"]), (200, &json!("FAILED")), "{again:?}");
        }
    }
    world.audit_agrees().await;
    service.stop().await;
}

#[tokio::test]
async fn a_double_charge_is_resolved_by_what_was_given_back() {
    let world = World::new().await;
    let service = world.start(&[]).await;
    let mut payments = Vec::new();
    for key in ["one", "two"] {
        let (payment, first) = pay(&service, key).await;
        told(&world, first, &[("FAILED", "a")]).await;
        let second = retry(&service, payment, key, json!({})).await.id("payment_order_id");
        told(&world, second, &[("SUCCESSFUL", "b")]).await;
        // The first one was charged after all.
        told(&world, first, &[("SUCCESSFUL", "a")]).await;
        let resolved = resolve(&service, first, &format!("{key}-stands"), "SUCCESSFUL").await;
        assert_eq!(resolved.json["payment_review_reason"], "DOUBLE_CHARGE", "{resolved:?}");
        payments.push((payment, first, second));
    }
    let (payment, first, second) = payments[0];
    let stands = resolve(&service, first, "both", "SUCCESSFUL").await;
    assert_eq!((stands.status, stands.problem()), (409, "resolution-refused"));
    assert!(stands.text.contains("give one charge back"), "{stands:?}");
    let given_back = resolve(&service, second, "given-back", "FAILED").await;
    assert_eq!(
        (given_back.status, &given_back.json["payment_status"]),
        (200, &json!("SUCCESSFUL")),
        "{given_back:?}"
    );
    let shown = get(&service, &format!("/v1/payments/{payment}"), OPERATOR_TOKEN).await;
    assert_eq!((&shown.json["status"], &shown.json["review_reason"]), (&json!("SUCCESSFUL"), &json!(null)));
    // Two who give a charge back at once, each the other one: one of them is told.
    let (_, first, second) = payments[1];
    let at_once = join_all([first, second].map(|order| {
        let service = &service;
        async move { resolve(service, order, &order.to_string(), "FAILED").await.status }
    }))
    .await;
    assert!(at_once == [200, 409] || at_once == [409, 200], "{at_once:?}");
    world.audit_agrees().await;
    service.stop().await;
}

#[tokio::test]
async fn what_needs_no_person_is_not_resolved_and_nothing_is_without_a_reason() {
    let world = World::new().await;
    let service = world.start(&[]).await;
    let (_, order) = pay(&service, "key").await;
    let path = format!("/v1/payment-orders/{order}/resolve");
    let asked = |key: &str, body: Json| send(post_to(&service, &path, OPERATOR_TOKEN, key).json(&body));
    for state in ["CREATED", "PENDING", "SUCCESSFUL"] {
        if state != "CREATED" {
            told(&world, order, &[(state, "a")]).await;
        }
        let answer = resolve(&service, order, state, "FAILED").await;
        assert_eq!((answer.status, answer.problem()), (409, "resolution-refused"), "{state}: {answer:?}");
        assert_eq!(world.state(order).await.0, state);
    }
    told(&world, order, &[("FAILED", "a")]).await;
    for body in [
        json!({"decision": "FAILED"}),
        json!({"decision": "FAILED", "reason": ""}),
        json!({"decision": "FAILED", "reason": "  "}),
        json!({"decision": "FAILED", "reason": "x".repeat(1001)}),
        json!({"decision": "FAILED", "reason": "card 4111 1111 1111 1111"}),
        json!({"decision": "UNKNOWN", "reason": "r"}),
        json!({"decision": "FAILED", "reason": "r", "psp_reference": ""}),
        json!({"decision": "FAILED", "reason": "r", "operator": "bob"}),
    ] {
        let answer = asked("wrong", body.clone()).await;
        assert_eq!((answer.status, answer.problem()), (422, "invalid-request"), "{body}: {answer:?}");
    }
    let unknown = format!("http://{}/v1/payment-orders/{}/resolve", service.api, Uuid::now_v7());
    let request = Client::new().post(unknown).bearer_auth(OPERATOR_TOKEN).header("Idempotency-Key", "k");
    assert_eq!(send(request.json(&json!({"decision": "FAILED", "reason": "r"}))).await.status, 404);
    // Two who decide otherwise, at once.
    let at_once = join_all(["SUCCESSFUL", "FAILED"].map(|decision| {
        let service = &service;
        async move { resolve(service, order, &format!("at-once-{decision}"), decision).await.status }
    }))
    .await;
    assert!(at_once == [200, 409] || at_once == [409, 200], "{at_once:?}");
    world.audit_agrees().await;
    service.stop().await;
}

#[tokio::test]
async fn the_database_opens_no_other_way_out_of_a_review() {
    let world = World::new().await;
    let order = world.order().await;
    let pool = &world.pool;
    let sql = |text: String| async move { sqlx::query(AssertSqlSafe(text)).execute(pool).await };
    let set = |state: &str, reason: &str| {
        format!(
            "UPDATE payments.payment_orders SET state = '{state}', review_reason = {reason}, settled_at = now()
             WHERE payment_order_id = '{order}'"
        )
    };
    let line = |from: &str, to: &str, operator: &str, note: &str| {
        format!(
            "INSERT INTO payments.payment_order_transitions (payment_order_id, from_state, to_state, decision, trace_id, operator, note)
             VALUES ('{order}', '{from}', '{to}', 'RESOLVED', repeat('a', 32), {operator}, {note})"
        )
    };
    let pay = |status: &str| {
        format!(
            "UPDATE payments.payments SET status = '{status}', review_reason = CASE WHEN '{status}' = 'NEEDS_REVIEW' THEN 'EXPIRED' END"
        )
    };
    sql(set("NEEDS_REVIEW", "'EXPIRED'")).await.unwrap();
    sql(pay("NEEDS_REVIEW")).await.unwrap();
    for to in ["SUCCESSFUL", "FAILED", "CREATED"] {
        assert!(sql(set(to, "NULL")).await.is_err(), "without a line: {to}");
        assert!(sql(pay(to)).await.is_err(), "the order is in review: {to}");
    }
    for (operator, note) in
        [("NULL", "'n'"), ("'ada'", "NULL"), ("' '", "'n'"), ("'ada'", "''"), ("repeat('x', 101)", "'n'")]
    {
        assert!(sql(line("NEEDS_REVIEW", "FAILED", operator, note)).await.is_err(), "{operator} {note}");
    }
    // A line that says something else, and one that is not the newest any more.
    sql(line("NEEDS_REVIEW", "SUCCESSFUL", "'ada'", "'n'")).await.unwrap();
    assert!(sql(set("FAILED", "NULL")).await.is_err());
    sql(line("NEEDS_REVIEW", "FAILED", "'ada'", "'n'")).await.unwrap();
    assert!(sql(set("SUCCESSFUL", "NULL")).await.is_err());
    assert!(sql(set("CREATED", "NULL")).await.is_err());
    sql(set("FAILED", "NULL")).await.unwrap();
    assert!(sql(pay("SUCCESSFUL")).await.is_err(), "its order has failed");
    sql(pay("FAILED")).await.unwrap();
}
