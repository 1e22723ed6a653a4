//! One payment can be followed through everything: its trace id is in the logs of every process that touched it, in the headers
//! of both topics, and in what the API says about it.
#![allow(clippy::unwrap_used, reason = "what goes wrong in a test has to end it")]

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use testbed::circle::{Circle, Options};
use testbed::oracle::books::trace_id;
use testbed::processes::Service;
use testbed::stack::Stack;
use testbed::topic::Topics;

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const LIMIT: Duration = Duration::from_secs(30);

#[tokio::test]
async fn a_payment_has_one_trace_in_every_log_and_on_both_topics() {
    let stack = Stack::get().await.unwrap();
    let circle = Circle::start(&stack, &Options::default()).await.unwrap();
    let client = reqwest::Client::builder().no_proxy().timeout(LIMIT).build().unwrap();
    // Somebody else's payment, which must not be mixed up with ours.
    let other = pay(&client, &circle, "other", None).await;
    let ours = pay(&client, &circle, "ours", Some(&format!("00-{TRACE}-00f067aa0ba902b7-01"))).await;
    let of_other = other["trace_id"].as_str().unwrap();
    assert_eq!((ours["trace_id"].as_str(), of_other.len()), (Some(TRACE), 32));
    assert_ne!(of_other, TRACE);
    for created in [&other, &ours] {
        settled(&client, &circle, created).await;
    }

    let order_id = ours["payment_order_id"].as_str().unwrap();
    let services =
        [&circle.payment_service, &circle.request_relays[0], &circle.executors[0], &circle.result_relays[0]];
    for service in services {
        logged(service, order_id).await;
    }
    every_stage_is_logged_once(&circle, order_id);
    let topics = Topics { bootstrap: stack.kafka_bootstrap(), registry_url: stack.registry_url() };
    for topic in [&circle.requests_topic, &circle.results_topic] {
        let records = topics.read(topic).await.unwrap();
        assert_eq!(records.len(), 2, "{records:?}");
        let record = records.iter().find(|record| record.key.as_deref() == Some(order_id)).unwrap();
        assert_eq!(record.header("traceparent").and_then(trace_id), Some(TRACE), "{topic}: {record:?}");
        assert!(record.event_id().is_some() && record.body.is_ok(), "{topic}: {record:?}");
    }
    let order = get(&client, &circle, &format!("/v1/payment-orders/{order_id}")).await;
    let transitions = order["transitions"].as_array().unwrap();
    assert_eq!(transitions.len(), 2, "{order}");
    for transition in transitions {
        assert_eq!(transition["trace_id"], TRACE, "{order}");
    }
    circle.shutdown().await.unwrap();
}

async fn pay(client: &reqwest::Client, circle: &Circle, key: &str, traceparent: Option<&str>) -> Value {
    let body = json!({
        "amount_minor": 1_234, "currency": "EUR", "payment_method": "pm_card_visa", "merchant_reference": format!("order-{key}"),
    });
    let mut request = client
        .post(format!("{}/v1/payments", circle.api_url))
        .bearer_auth(&circle.api_token)
        .header("Idempotency-Key", format!("key-{key}"))
        .json(&body);
    if let Some(traceparent) = traceparent {
        request = request.header("traceparent", traceparent);
    }
    let response = request.send().await.unwrap();
    assert_eq!(response.status(), 201);
    response.json().await.unwrap()
}

async fn get(client: &reqwest::Client, circle: &Circle, path: &str) -> Value {
    let request = client.get(format!("{}{path}", circle.api_url)).bearer_auth(&circle.api_token);
    request.send().await.unwrap().error_for_status().unwrap().json().await.unwrap()
}

async fn settled(client: &reqwest::Client, circle: &Circle, created: &Value) {
    let path = format!("/v1/payments/{}", created["payment_id"].as_str().unwrap());
    let begun = Instant::now();
    loop {
        let payment = get(client, circle, &path).await;
        if payment["status"] == "SUCCESSFUL" {
            return;
        }
        assert!(begun.elapsed() < LIMIT, "{payment}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Stage, process, and what its line names beside trace, span and payment order.
const STAGES: [(&str, &str, &[&str]); 6] = [
    ("payment created", "payment-service", &["payment_id"]),
    ("event published", "relay-requests-1", &["event_id", "topic", "partition", "offset"]),
    ("request taken in", "executor", &["event_id", "partition", "offset"]),
    ("result recorded", "executor", &["event_id", "psp_reference", "psp_status"]),
    ("event published", "relay-results-1", &["event_id", "topic", "partition", "offset"]),
    ("result applied", "payment-service", &["event_id", "psp_reference", "decision", "lag_ms"]),
];

/// By the id of a payment order, every stage of its payment is found in the logs, once; and the stages that handle an event name the same.
fn every_stage_is_logged_once(circle: &Circle, order_id: &str) {
    let mut events = Vec::new();
    for (stage, process, names) in STAGES {
        let service = circle.services().find(|service| service.name() == process).unwrap();
        let lines = service.log_lines().unwrap();
        let found: Vec<&Value> = lines
            .iter()
            .filter(|line| line["message"] == stage && line.to_string().contains(order_id))
            .collect();
        let [line] = found.as_slice() else { panic!("{process}, {stage}: {found:#?}") };
        let order =
            if line["aggregate_id"].is_string() { &line["aggregate_id"] } else { &line["payment_order_id"] };
        assert_eq!((&line["trace_id"], order), (&json!(TRACE), &json!(order_id)), "{line}");
        let hexadecimal = |id: &str| id.len() == 16 && id.bytes().all(|digit| digit.is_ascii_hexdigit());
        assert!(line["span_id"].as_str().is_some_and(hexadecimal), "{line}");
        for name in names {
            assert!(!line[*name].is_null(), "{stage} of {process} has no {name}: {line}");
        }
        events.extend(line["event_id"].as_str().map(str::to_owned));
    }
    let [asked, taken, recorded, published, applied] = events.as_slice() else { panic!("{events:?}") };
    assert_eq!(asked, taken);
    assert!(recorded == published && published == applied && asked != applied, "{events:?}");
}

/// The process has a line with the trace and the payment order. Nobody waits for a log to be written, so it may come late.
async fn logged(service: &Service, order_id: &str) {
    let begun = Instant::now();
    loop {
        let lines = service.log_lines().unwrap();
        // A field of the line, or of the span that it belongs to.
        let of_trace = |line: &&Value| line["trace_id"] == TRACE || line["span"]["trace_id"] == TRACE;
        let ours: Vec<&Value> = lines.iter().filter(of_trace).collect();
        if ours.iter().any(|line| line.to_string().contains(order_id)) {
            return;
        }
        assert!(
            begun.elapsed() < LIMIT,
            "{} has no line with trace and order; with the trace: {ours:?}",
            service.name()
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
