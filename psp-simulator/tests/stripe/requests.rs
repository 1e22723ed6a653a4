//! What a request must look like, and what an answer looks like.

use reqwest::Method;
use serde_json::{Value, json};

use crate::simulator::{Simulator, TERMS, cancel_path, confirm_path, send};

const INTENTS: &str = "/v1/payment_intents";

#[tokio::test]
async fn a_payment_intent_has_the_fields_of_stripe() {
    let simulator = Simulator::start().await;
    let more = [
        ("payment_method", "pm_card_visa"),
        ("metadata[payment_order_id]", "o-1"),
        ("metadata[empty]", ""),
        ("description", "two & two"),
        ("expand[]", "latest_charge"),
        ("expand[]", "payment_method"),
    ];
    let request = simulator.form(INTENTS, &[&TERMS[..], &more].concat());
    let created = send(request.header("Stripe-Version", "2025-01-27.acacia")).await.expect(200);
    assert_eq!(created.header("stripe-version"), Some("2025-01-27.acacia"));
    assert_eq!(created.header("content-type"), Some("application/json"));
    assert!(created.header("request-id").unwrap().starts_with("req_"));
    assert_eq!(created.header("original-request"), None);
    let body = &created.body;
    let id = created.id();
    assert!(id.starts_with("pi_") && id.len() > 20);
    for (field, value) in [
        ("object", json!("payment_intent")),
        ("amount", json!(1099)),
        ("amount_received", json!(0)),
        ("automatic_payment_methods", json!({ "enabled": true, "allow_redirects": "never" })),
        ("canceled_at", Value::Null),
        ("capture_method", json!("automatic_async")),
        ("confirmation_method", json!("automatic")),
        ("currency", json!("eur")),
        ("description", json!("two & two")),
        ("last_payment_error", Value::Null),
        ("latest_charge", Value::Null),
        ("livemode", json!(false)),
        ("metadata", json!({ "payment_order_id": "o-1" })),
        ("status", json!("requires_confirmation")),
    ] {
        assert_eq!(body.get(field), Some(&value), "{field}");
    }
    assert!(body["client_secret"].as_str().unwrap().starts_with(&format!("{id}_secret_")));
    let method = body["payment_method"]["id"].as_str().unwrap();
    assert!(method.starts_with("pm_") && method != "pm_card_visa");

    // Its own method may be named again; the charge shows up, whole when asked for.
    let form = [("payment_method", method), ("expand[]", "latest_charge")];
    let paid = simulator.post(&confirm_path(&id), &form).await.expect(200);
    assert_eq!(paid.body["payment_method"], method);
    let charge = &paid.body["latest_charge"];
    assert_eq!((&charge["object"], &charge["paid"]), (&json!("charge"), &json!(true)));
    assert_eq!((&charge["payment_intent"], &charge["metadata"]), (&json!(id), &body["metadata"]));
    let read =
        simulator.get(&format!("{INTENTS}/{id}?expand[]=latest_charge&expand%5B%5D=payment_method")).await;
    let read = read.expect(200);
    assert_eq!(read.body["latest_charge"], *charge);
    assert_eq!(read.body["payment_method"]["id"], method);
}

/// A form, and the code and the parameter that its refusal names.
type Case<'a> = (&'a [(&'a str, &'a str)], Option<&'a str>, Option<&'a str>);

#[tokio::test]
async fn parameters_are_checked_as_stripe_checks_them() {
    let simulator = Simulator::start().await;
    let (missing, unknown) = ("parameter_missing", "parameter_unknown");
    let (integer, empty) = ("parameter_invalid_integer", "parameter_invalid_empty");
    let table: [Case<'_>; 19] = [
        (&[("currency", "eur")], Some(missing), Some("amount")),
        (&[("amount", "1")], Some(missing), Some("currency")),
        (&[("amount", ""), ("currency", "eur")], Some(empty), Some("amount")),
        (&[("amount", "ten"), ("currency", "eur")], Some(integer), Some("amount")),
        (&[("amount", "10.5"), ("currency", "eur")], Some(integer), Some("amount")),
        (&[("amount", "0"), ("currency", "eur")], Some(integer), Some("amount")),
        (&[("amount", "-5"), ("currency", "eur")], Some(integer), Some("amount")),
        (&[("amount", "100000000"), ("currency", "eur")], Some("amount_too_large"), Some("amount")),
        (&[("amount", "1"), ("currency", "xxx")], None, Some("currency")),
        (&[("amount", "1"), ("currency", "eur"), ("amuont", "1")], Some(unknown), Some("amuont")),
        (&[("amount", "1"), ("currency", "eur"), ("confirm", "yes")], None, Some("confirm")),
        (&[("amount", "1"), ("currency", "eur"), ("off_session", "true")], None, Some("off_session")),
        (&[("amount", "1"), ("currency", "eur"), ("metadata", "text")], None, Some("metadata")),
        (&[("amount", "1"), ("currency", "eur"), ("metadata[a][b]", "1")], None, Some("metadata[a]")),
        (&[("amount", "1"), ("currency", "eur"), ("expand[]", "secrets")], None, Some("expand")),
        (
            &[("amount", "1"), ("currency", "eur"), ("capture_method", "manual")],
            None,
            Some("capture_method=manual"),
        ),
        (&[("amount", "1"), ("currency", "eur"), ("shipping[name]", "x")], None, Some("shipping")),
        (
            &[("amount", "1"), ("currency", "eur"), ("automatic_payment_methods[on]", "true")],
            Some(unknown),
            Some("automatic_payment_methods[on]"),
        ),
        (
            &[("amount", "1"), ("currency", "eur"), ("payment_method", "pm_none")],
            Some("resource_missing"),
            Some("payment_method"),
        ),
    ];
    for (form, code, param) in table {
        let refused = simulator.post(INTENTS, form).await;
        let refused = refused.expect_error(400, "invalid_request_error", code);
        assert_eq!(refused.body["error"]["param"].as_str(), param, "{form:?}");
    }
    let list = simulator.get(INTENTS).await.expect(200);
    assert_eq!(list.body["data"], json!([]), "nothing of this was created");

    let intent = simulator.create("pm_card_visa", "order").await;
    let unknown = simulator.post(&confirm_path(&intent), &[("amount", "1")]).await;
    let unknown = unknown.expect_error(400, "invalid_request_error", Some("parameter_unknown"));
    assert_eq!(unknown.body["error"]["message"], "Received unknown parameter: amount");
    simulator.post(&cancel_path(&intent), &[("cancellation_reason", "boredom")]).await.expect(400);
    simulator.get(&format!("{INTENTS}/{intent}?color=red")).await.expect(400);
    assert_eq!(simulator.status(&intent).await, "requires_confirmation");
}

#[tokio::test]
async fn redirects_need_somewhere_to_return_to() {
    let simulator = Simulator::start().await;
    let form = [("amount", "1"), ("currency", "eur"), ("payment_method", "pm_card_visa")];
    let intent = simulator.post(INTENTS, &form).await.expect(200).id();
    let refused = simulator.post(&confirm_path(&intent), &[]).await.expect(400);
    assert!(refused.text.contains("you must provide a `return_url`"), "{}", refused.text);
    simulator.post(&confirm_path(&intent), &[("return_url", "https://shop.example")]).await.expect(200);
}

#[tokio::test]
async fn only_test_keys_open_the_door() {
    let simulator = Simulator::start().await;
    let url = format!("{}{INTENTS}", simulator.base);
    let request = || simulator.client.post(&url).form(&TERMS);
    let closed = send(request()).await.expect_error(401, "invalid_request_error", None);
    assert_eq!(closed.header("www-authenticate"), Some("Basic realm=\"Stripe\""));
    for secret in ["sk_live_verysecretindeed", "sk_test_", "nonsense"] {
        let closed = send(request().bearer_auth(secret)).await.expect(401);
        assert!(!closed.text.contains("verysecretindeed"));
    }
    send(request().bearer_auth("sk_test_1")).await.expect(200);
    send(request().basic_auth("sk_test_1", None::<&str>)).await.expect(200);
    send(request().basic_auth("sk_live_1", None::<&str>)).await.expect(401);
}

#[tokio::test]
async fn what_is_not_there_is_404() {
    let simulator = Simulator::start().await;
    for reply in [
        simulator.get(&format!("{INTENTS}/pi_none")).await,
        simulator.post(&confirm_path("pi_none"), &[]).await,
        simulator.post(&cancel_path("pi_none"), &[]).await,
    ] {
        let reply = reply.expect_error(404, "invalid_request_error", Some("resource_missing"));
        assert_eq!(reply.body["error"]["message"], "No such payment_intent: 'pi_none'");
        assert_eq!(reply.body["error"]["param"], "intent");
    }
    let unknown = simulator.get("/v1/nonsense").await.expect_error(404, "invalid_request_error", None);
    assert!(unknown.text.contains("Unrecognized request URL (GET: /v1/nonsense)"), "{}", unknown.text);
    send(simulator.request(Method::DELETE, INTENTS)).await.expect(404);
    simulator.get("/livez").await.expect(200);
}

#[tokio::test]
async fn bodies_and_keys_are_bounded_and_of_the_right_kind() {
    let simulator = Simulator::start().await;
    let huge = "x".repeat(70 * 1024);
    simulator.post(INTENTS, &[&TERMS[..], &[("description", &huge)]].concat()).await.expect(413);
    let json = simulator.request(Method::POST, INTENTS).json(&json!({ "amount": 1099, "currency": "eur" }));
    let json = send(json).await.expect_error(400, "invalid_request_error", None);
    assert!(json.text.contains("application/x-www-form-urlencoded"), "{}", json.text);
    simulator.post_with_key(INTENTS, &"k".repeat(255), &TERMS).await.expect(200);
    simulator.post_with_key(INTENTS, &"k".repeat(256), &TERMS).await.expect(400);
    let broken = simulator.request(Method::POST, INTENTS).body("amount[=1&currency=eur");
    let broken = broken.header("content-type", "application/x-www-form-urlencoded; charset=utf-8");
    send(broken).await.expect(400);
}

#[tokio::test]
async fn too_many_requests_at_once_are_turned_away() {
    let simulator = Simulator::with(&["--concurrency", "1"]).await;
    let intent = simulator.create("pm_sim_slow", "order").await;
    let meanwhile = async {
        tokio::time::sleep(crate::simulator::SLOW / 4).await;
        let turned = simulator.get(INTENTS).await;
        let turned = turned.expect_error(429, "invalid_request_error", Some("rate_limit"));
        assert_eq!(turned.header("stripe-should-retry"), Some("true"));
    };
    let (paid, ()) = tokio::join!(simulator.confirm(&intent, "confirm"), meanwhile);
    paid.expect(200);

    let full = Simulator::with(&["--capacity", "1"]).await;
    full.post_with_key(INTENTS, "one", &TERMS).await.expect(200);
    full.post_with_key(INTENTS, "two", &TERMS).await.expect_error(503, "api_error", None);
}

#[tokio::test]
async fn lists_run_from_the_newest_and_page_both_ways() {
    let simulator = Simulator::start().await;
    let mut made = Vec::new();
    for _ in 0..5 {
        made.insert(0, simulator.post(INTENTS, &TERMS).await.expect(200).id());
    }
    let ids = |reply: crate::simulator::Reply| {
        let reply = reply.expect(200);
        let data = reply.body["data"].as_array().unwrap();
        let ids: Vec<_> = data.iter().map(|intent| intent["id"].as_str().unwrap().to_owned()).collect();
        (ids, reply.body["has_more"].as_bool().unwrap())
    };
    let page = |query: String| {
        let simulator = &simulator;
        async move { ids(simulator.get(&format!("{INTENTS}?{query}")).await) }
    };
    assert_eq!(page(String::new()).await, (made.clone(), false));
    assert_eq!(page("limit=2".into()).await, (made[..2].to_vec(), true));
    assert_eq!(page(format!("limit=2&starting_after={}", made[1])).await, (made[2..4].to_vec(), true));
    assert_eq!(page(format!("limit=2&starting_after={}", made[3])).await, (made[4..].to_vec(), false));
    assert_eq!(page(format!("limit=2&ending_before={}", made[3])).await, (made[1..3].to_vec(), true));
    simulator.get(&format!("{INTENTS}?limit=101")).await.expect(400);
    simulator.get(&format!("{INTENTS}?starting_after=pi_none")).await.expect(404);
}
