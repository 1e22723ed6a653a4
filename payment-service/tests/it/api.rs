use std::time::Duration;

use reqwest::{Client, RequestBuilder, StatusCode};
use serde_json::{Value as Json, json};
use tokio::{io::AsyncReadExt as _, io::AsyncWriteExt as _, net::TcpStream};
use uuid::Uuid;

use crate::world::{OTHER_TOKEN, Running, TOKEN, World, order_body};

fn post(service: &Running, key: &str) -> RequestBuilder {
    let request = Client::new().post(format!("http://{}/v1/payments", service.api));
    request.bearer_auth(TOKEN).header("Idempotency-Key", key)
}

async fn get(service: &Running, path: &str, token: &str) -> (StatusCode, Json) {
    let answer =
        Client::new().get(format!("http://{}{path}", service.api)).bearer_auth(token).send().await.unwrap();
    (answer.status(), answer.json().await.unwrap())
}

async fn expect_problem(request: RequestBuilder, status: u16, kind: &str) {
    let answer = request.send().await.unwrap();
    assert_eq!(answer.headers()["content-type"], "application/problem+json", "{kind}");
    assert_eq!(answer.status(), status, "{kind}");
    let problem: Json = answer.json().await.unwrap();
    assert_eq!(problem["status"], status);
    assert_eq!(problem["type"], format!("urn:payment-outbox:problem:{kind}"), "{problem}");
    assert!(problem["title"].is_string());
}

const ROWS: &str =
    "SELECT (SELECT count(*) FROM payments.payments) + (SELECT count(*) FROM payments.payment_orders)
    + (SELECT count(*) FROM payments.idempotency_keys) + (SELECT count(*) FROM outbox.events)
    + (SELECT count(*) FROM payments.payment_order_transitions)";

#[tokio::test]
async fn a_payment_is_created_shown_and_asked_for() {
    let world = World::new().await;
    let service = world.start(&[]).await;
    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    let answer = post(&service, "key-1")
        .header("traceparent", format!("00-{trace}-00f067aa0ba902b7-01"))
        .header("tracestate", "vendor=1")
        .json(&order_body())
        .send()
        .await
        .unwrap();
    assert_eq!(answer.status(), 201);
    assert!(answer.headers().get("idempotency-replayed").is_none());
    let location = answer.headers()["location"].to_str().unwrap().to_owned();
    let created: Json = answer.json().await.unwrap();
    assert_eq!(location, format!("/v1/payments/{}", created["payment_id"].as_str().unwrap()));
    assert_eq!((&created["status"], &created["trace_id"]), (&json!("CREATED"), &json!(trace)));

    let (status, payment) = get(&service, &location, TOKEN).await;
    assert_eq!(status, 200);
    assert_eq!(payment["status"], "CREATED");
    assert_eq!(payment["payment_orders"][0]["payment_order_id"], created["payment_order_id"]);
    assert_eq!(payment["payment_orders"][0]["psp"], "STRIPE");
    let order_path = format!("/v1/payment-orders/{}", created["payment_order_id"].as_str().unwrap());
    let (status, order) = get(&service, &order_path, TOKEN).await;
    assert_eq!(status, 200);
    assert_eq!((&order["state"], &order["trace_id"]), (&json!("CREATED"), &json!(trace)));
    assert_eq!(order["transitions"].as_array().unwrap().len(), 1);
    assert_eq!(order["transitions"][0]["to_state"], "CREATED");

    for path in [&location, &order_path] {
        assert_eq!(get(&service, path, OTHER_TOKEN).await.0, 404, "another caller's");
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
    for path in ["/v1/payments".to_owned(), format!("/v1/payments/{id}"), format!("/v1/payment-orders/{id}")]
    {
        let method = if path == "/v1/payments" { reqwest::Method::POST } else { reqwest::Method::GET };
        let request =
            || client.request(method.clone(), url(&path)).header("Idempotency-Key", "k").json(&order_body());
        expect_problem(request(), 401, "unauthorized").await;
        expect_problem(request().bearer_auth("wrong"), 401, "unauthorized").await;
        expect_problem(request().header("authorization", "Basic eDp4"), 401, "unauthorized").await;
        if method == reqwest::Method::GET {
            expect_problem(request().bearer_auth(TOKEN), 404, "not-found").await;
        }
        let answer = client.delete(url(&path)).bearer_auth(TOKEN).send().await.unwrap();
        assert!(answer.headers().contains_key("allow"), "{path}");
        expect_problem(client.delete(url(&path)).bearer_auth(TOKEN), 405, "method-not-allowed").await;
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
async fn a_body_that_never_ends_is_a_timeout() {
    let world = World::new().await;
    let service = world.start(&["--request-timeout", "1s"]).await;
    let mut stream = TcpStream::connect(service.api).await.unwrap();
    let head = format!(
        "POST /v1/payments HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {TOKEN}\r\nidempotency-key: k\r\n\
         content-type: application/json\r\ncontent-length: 100\r\n\r\n{{"
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = vec![0; 1024];
    let length =
        tokio::time::timeout(Duration::from_secs(5), stream.read(&mut answer)).await.unwrap().unwrap();
    let answer = String::from_utf8_lossy(&answer[..length]).into_owned();
    assert!(answer.starts_with("HTTP/1.1 408 ") && answer.contains("application/problem+json"), "{answer}");
    service.stop().await;
}

#[tokio::test]
async fn a_key_makes_one_payment_whoever_asks_how_often() {
    let world = World::new().await;
    let service = world.start(&[]).await;
    let answers = futures::future::join_all((0..100).map(|_| async {
        let answer = post(&service, "the-key").json(&order_body()).send().await.unwrap();
        let replayed =
            answer.headers().get("idempotency-replayed").map(|value| value.to_str().unwrap().to_owned());
        (answer.status().as_u16(), replayed, answer.text().await.unwrap())
    }))
    .await;
    assert!(answers.iter().all(|(status, _, body)| *status == 201 && *body == answers[0].2), "{answers:?}");
    assert_eq!(answers.iter().filter(|(_, replayed, _)| replayed.is_none()).count(), 1);
    assert_eq!(world.count(ROWS).await, 5, "one row in each table");

    // The same request, written otherwise.
    let same = r#"{ "psp":"STRIPE", "merchant_reference":"order\u00201", "payment_method":"pm_card_visa","currency":"EUR","amount_minor":1234 }"#;
    let again =
        post(&service, "the-key").header("content-type", "application/json; charset=utf-8").body(same);
    let again = again.send().await.unwrap();
    assert_eq!((again.status().as_u16(), again.text().await.unwrap()), (201, answers[0].2.clone()));

    let mut other = order_body();
    other["amount_minor"] = json!(1235);
    expect_problem(post(&service, "the-key").json(&other), 422, "idempotency-key-reused").await;
    // A key belongs to its caller.
    let request = post(&service, "the-key").json(&other).build().unwrap();
    let mut request = request.try_clone().unwrap();
    request.headers_mut().insert("authorization", format!("Bearer {OTHER_TOKEN}").parse().unwrap());
    assert_eq!(Client::new().execute(request).await.unwrap().status(), 201);
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
    assert_eq!(post(&service, "stuck").json(&order_body()).send().await.unwrap().status(), 201);
    service.stop().await;
}

#[tokio::test]
async fn clients_that_hang_up_break_nothing() {
    let world = World::new().await;
    let service = world.start(&["--database-pool-size", "3"]).await;
    let body = order_body().to_string();
    for round in 0..300_u64 {
        let mut stream = TcpStream::connect(service.api).await.unwrap();
        let request = format!(
            "POST /v1/payments HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {TOKEN}\r\nidempotency-key: hang-up-{round}\r\n\
             content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        stream.flush().await.unwrap();
        // Somewhere between before the BEGIN and after the COMMIT.
        tokio::time::sleep(Duration::from_micros(round * 37 % 6_000)).await;
        drop(stream);
    }
    // Every key that got its payment got all of it, and the pool works.
    for round in 0..300 {
        let answer = post(&service, &format!("hang-up-{round}")).json(&order_body()).send().await.unwrap();
        assert_eq!(answer.status(), 201, "{round}");
    }
    for table in
        ["payments.payments", "payments.payment_orders", "payments.idempotency_keys", "outbox.events"]
    {
        let count: i64 = sqlx::query_scalar(sqlx::AssertSqlSafe(format!("SELECT count(*) FROM {table}")))
            .fetch_one(&world.pool)
            .await
            .unwrap();
        assert_eq!(count, 300, "{table}");
    }
    let open = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND usename = 'payment_service'
                AND state LIKE 'idle in transaction%'";
    world.until(open, 0).await;
    service.stop().await;
}

#[tokio::test]
async fn too_many_requests_at_once_are_asked_to_come_again() {
    let world = World::new().await;
    let service = world.start(&["--requests-max", "1"]).await;
    let mut stream = TcpStream::connect(service.api).await.unwrap();
    let head = format!(
        "POST /v1/payments HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {TOKEN}\r\nidempotency-key: k\r\n\
         content-type: application/json\r\ncontent-length: 100\r\n\r\n{{"
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut last = 0;
    for _ in 0..50 {
        last = get(&service, "/v1/payments/x", TOKEN).await.0.as_u16();
        if last == 503 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(last, 503);
    drop(stream);
    service.stop().await;
}
