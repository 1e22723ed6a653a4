use reqwest::Client;
use serde_json::{Value as Json, json};
use uuid::Uuid;

use crate::{
    client::{expect_problem, get, post, post_to, send},
    world::{OTHER_TOKEN, TOKEN, World, order_body},
};

const ROWS: &str =
    "SELECT (SELECT count(*) FROM payments.payments) + (SELECT count(*) FROM payments.payment_orders)
    + (SELECT count(*) FROM payments.idempotency_keys) + (SELECT count(*) FROM outbox.events)
    + (SELECT count(*) FROM payments.payment_order_transitions)";

#[tokio::test]
async fn a_payment_is_created_shown_and_asked_for() {
    let world = World::new().await;
    let service = world.start(&[]).await;
    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    let request = post(&service, "key-1")
        .header("traceparent", format!("00-{trace}-00f067aa0ba902b7-01"))
        .header("tracestate", "vendor=1");
    let created = send(request.json(&order_body())).await;
    assert_eq!((created.status, created.header("idempotency-replayed")), (201, None));
    let location = created.header("location").unwrap().to_owned();
    let created = created.json;
    assert_eq!(location, format!("/v1/payments/{}", created["payment_id"].as_str().unwrap()));
    assert_eq!((&created["status"], &created["trace_id"]), (&json!("CREATED"), &json!(trace)));

    let payment = get(&service, &location, TOKEN).await;
    assert_eq!((payment.status, &payment.json["status"]), (200, &json!("CREATED")));
    let order = &payment.json["payment_orders"][0];
    assert_eq!((&order["payment_order_id"], &order["psp"]), (&created["payment_order_id"], &json!("STRIPE")));
    let order_path = format!("/v1/payment-orders/{}", created["payment_order_id"].as_str().unwrap());
    let order = get(&service, &order_path, TOKEN).await;
    assert_eq!(
        (order.status, &order.json["state"], &order.json["trace_id"]),
        (200, &json!("CREATED"), &json!(trace))
    );
    assert_eq!(order.json["transitions"].as_array().unwrap().len(), 1);
    assert_eq!(order.json["transitions"][0]["to_state"], "CREATED");

    for path in [&location, &order_path] {
        assert_eq!(get(&service, path, OTHER_TOKEN).await.status, 404, "another caller's");
    }
    let (payload, traceparent, tracestate, aggregate): (Json, String, String, String) =
        sqlx::query_as("SELECT payload, traceparent, tracestate, aggregate_id FROM outbox.events")
            .fetch_one(&world.pool)
            .await
            .unwrap();
    assert_eq!(payload["amountMinor"], 1234);
    assert_eq!(payload["expiresAt"], created["expires_at"]);
    assert_eq!(aggregate, created["payment_order_id"].as_str().unwrap());
    assert!(traceparent.starts_with(&format!("00-{trace}-")) && !traceparent.contains("00f067aa0ba902b7"));
    assert_eq!(tracestate, "vendor=1");
    service.stop().await;
}

#[tokio::test]
async fn whatever_is_wrong_is_a_problem_and_stores_nothing() {
    let world = World::new().await;
    let service = world.start(&["--request-timeout", "2s"]).await;
    let url = |path: &str| format!("http://{}{path}", service.api);
    let client = Client::new();
    let with = |field: &str, value: Json| {
        let mut body = order_body();
        body[field] = value;
        post(&service, "key").json(&body)
    };
    for (field, value) in [
        ("amount_minor", json!(0)),
        ("amount_minor", json!(-1)),
        ("amount_minor", json!(12.5)),
        ("amount_minor", json!("12")),
        ("amount_minor", json!(null)),
        ("amount_minor", json!(10_i64.pow(12))),
        ("currency", json!("EURO")),
        ("currency", json!("eur")),
        ("currency", json!("XXX")),
        ("payment_method", json!("")),
        ("payment_method", json!("pm with blank")),
        ("payment_method", json!("4242424242424242")),
        ("payment_method", json!("p".repeat(256))),
        ("merchant_reference", json!("card 4111 1111 1111 1111")),
        ("merchant_reference", json!("a\u{0}b")),
        ("merchant_reference", json!("   ")),
        ("psp", json!("PAYPAL")),
        ("unknown_field", json!(1)),
    ] {
        expect_problem(with(field, value), 422, "invalid-request").await;
    }
    for field in ["amount_minor", "currency", "payment_method", "merchant_reference"] {
        let mut body = order_body();
        body.as_object_mut().unwrap().remove(field);
        expect_problem(post(&service, "key").json(&body), 422, "invalid-request").await;
    }
    let json_post =
        |key: &str, body: Vec<u8>| post(&service, key).header("content-type", "application/json").body(body);
    expect_problem(json_post("key", br#"[1234,"EUR","pm","m"]"#.to_vec()), 422, "invalid-request").await;
    for body in ["", "{", "{\"amount_minor\":1,", "\u{feff}{}", &format!("{}x", order_body())] {
        expect_problem(json_post("key", body.as_bytes().to_vec()), 400, "malformed-request").await;
    }
    expect_problem(json_post("key", b"\xff\xfe".to_vec()), 400, "malformed-request").await;
    expect_problem(json_post("key", vec![b' '; 65 * 1024]), 413, "body-too-large").await;
    expect_problem(json_post("key", vec![b'x'; 3_000_000]), 413, "body-too-large").await;
    expect_problem(json_post("4242424242424242", order_body().to_string().into()), 422, "invalid-request")
        .await;
    expect_problem(json_post(&"k".repeat(256), order_body().to_string().into()), 400, "malformed-request")
        .await;
    expect_problem(json_post("a b", order_body().to_string().into()), 400, "malformed-request").await;
    expect_problem(
        json_post("a", order_body().to_string().into()).header("Idempotency-Key", "b"),
        400,
        "malformed-request",
    )
    .await;
    expect_problem(
        client.post(url("/v1/payments")).bearer_auth(TOKEN).json(&order_body()),
        400,
        "malformed-request",
    )
    .await;
    expect_problem(post(&service, "key").body(order_body().to_string()), 415, "unsupported-media-type").await;
    expect_problem(
        post(&service, "key").header("content-type", "text/plain").body("{}"),
        415,
        "unsupported-media-type",
    )
    .await;

    // Routes.
    let id = Uuid::now_v7();
    for path in [
        "/v1/payments".to_owned(),
        format!("/v1/payments/{id}"),
        format!("/v1/payments/{id}/retry"),
        format!("/v1/payment-orders/{id}"),
        format!("/v1/payment-orders/{id}/resolve"),
        "/v1/openapi.json".to_owned(),
    ] {
        let answer =
            expect_problem(client.delete(url(&path)).bearer_auth(TOKEN), 405, "method-not-allowed").await;
        assert!(answer.header("allow").is_some(), "{path}");
    }
    for path in [format!("/v1/payments/{id}"), format!("/v1/payment-orders/{id}")] {
        expect_problem(client.get(url(&path)).bearer_auth(TOKEN), 404, "not-found").await;
    }
    for path in ["/", "/v1", "/v1/payments/", "/v2/payments", "/metrics", "/v1/payment-orders"] {
        expect_problem(client.get(url(path)).bearer_auth(TOKEN), 404, "not-found").await;
    }
    for path in ["/v1/payments/x", "/v1/payments/%00", "/v1/payment-orders/%FF"] {
        expect_problem(client.get(url(path)).bearer_auth(TOKEN), 404, "not-found").await;
    }
    assert_eq!(world.count(ROWS).await, 0);
    service.stop().await;
}

#[tokio::test]
async fn a_key_makes_one_payment_whoever_asks_how_often() {
    let world = World::new().await;
    let service = world.start(&[]).await;
    let answers =
        futures::future::join_all((0..100).map(|_| send(post(&service, "the-key").json(&order_body()))))
            .await;
    assert!(
        answers.iter().all(|answer| (answer.status, &answer.text) == (201, &answers[0].text)),
        "{answers:?}"
    );
    assert!(answers.iter().all(|answer| answer.header("location") == answers[0].header("location")));
    let replayed = |answer: &&crate::client::Answer| answer.header("idempotency-replayed") == Some("true");
    assert_eq!(answers.iter().filter(replayed).count(), 99);
    assert_eq!(world.count(ROWS).await, 5, "one row in each table");

    // The same request, written otherwise.
    let same = r#"{ "psp":"STRIPE", "merchant_reference":"order\u00201", "payment_method":"pm_card_visa","currency":"EUR","amount_minor":1234 }"#;
    let again =
        post(&service, "the-key").header("content-type", "application/json; charset=utf-8").body(same);
    let again = send(again).await;
    assert_eq!((again.status, &again.text), (201, &answers[0].text));

    let mut other = order_body();
    other["amount_minor"] = json!(1235);
    expect_problem(post(&service, "the-key").json(&other), 422, "idempotency-key-reused").await;
    // A key belongs to its caller.
    let request = post_to(&service, "/v1/payments", OTHER_TOKEN, "the-key");
    assert_eq!(send(request.json(&other)).await.status, 201);
    assert_eq!(world.count("SELECT count(*) FROM payments.payments").await, 2);
    service.stop().await;
}

#[tokio::test]
async fn a_request_whose_first_copy_is_stuck_is_told_to_come_again() {
    let world = World::new().await;
    let service = world.start(&[]).await;
    let mut first = world.pool.acquire().await.unwrap();
    sqlx::query("BEGIN").execute(&mut *first).await.unwrap();
    sqlx::query(
        "INSERT INTO payments.idempotency_keys (caller, idempotency_key, fingerprint, payment_id, status_code, response)
         VALUES ('shop', 'stuck', sha256('x'), gen_random_uuid(), 201, '{}')",
    )
    .execute(&mut *first)
    .await
    .unwrap();
    expect_problem(post(&service, "stuck").json(&order_body()), 409, "request-in-flight").await;
    sqlx::query("ROLLBACK").execute(&mut *first).await.unwrap();
    assert_eq!(send(post(&service, "stuck").json(&order_body())).await.status, 201);
    service.stop().await;
}
