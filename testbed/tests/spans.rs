//! What a payment goes through is one tree of spans, from the POST to the change of its state, over all processes; the logs name the same
//! ids. And nobody waits for whoever takes spans.
#![allow(clippy::unwrap_used, reason = "what goes wrong in a test has to end it")]

use std::collections::{BTreeSet, HashSet};
use std::time::{Duration, Instant};

use reqwest::Client;
use serde_json::{Value, json};
use testbed::circle::{Circle, Options};
use testbed::collector::{Collector, Span};
use testbed::stack::{Stack, free_port};
use uuid::Uuid;

const LIMIT: Duration = Duration::from_secs(30);
/// The span of whoever called the API.
const CALLER: &str = "00f067aa0ba902b7";

#[tokio::test]
async fn a_payment_is_one_tree_of_spans_from_the_post_to_its_state() {
    let (stack, collector) = (Stack::get().await.unwrap(), Collector::start().await.unwrap());
    let options = Options {
        otlp_endpoint: Some(collector.endpoint().to_owned()),
        webhooks: Some("calm".to_owned()),
        log: "debug".to_owned(),
        ..Options::default()
    };
    let circle = Circle::start(&stack, &options).await.unwrap();
    let client = Client::builder().no_proxy().timeout(LIMIT).build().unwrap();

    // One that the PSP answers at once, and one that it answers later, by a webhook alone. Another that nobody wants to see.
    let [replied, told, unseen] = [(); 3].map(|()| Uuid::new_v4().simple().to_string());
    let orders = [
        pay(&client, &circle, "pm_card_visa", &replied, "01").await,
        pay(&client, &circle, "pm_sim_processing", &told, "01").await,
        pay(&client, &circle, "pm_card_visa", &unseen, "00").await,
    ];

    let of_reply = collector.trace(&replied, LIMIT, settled).await.unwrap();
    check(&circle, &of_reply, "execute payment order", "REPLY", &orders[0]);
    let of_webhook = collector.trace(&told, LIMIT, settled).await.unwrap();
    check(&circle, &of_webhook, "process webhook", "WEBHOOK", &orders[1]);
    webhooks_are_linked(&collector, &of_webhook).await;
    polls_are_linked(&collector, &circle, &of_reply);
    let seen: Vec<Span> = collector.spans().into_iter().filter(|span| span.trace_id == unseen).collect();
    assert_eq!(seen, [], "a trace that is not sampled has no spans");

    circle.shutdown().await.unwrap();
    // What came until the end.
    let spans = collector.spans();
    logs_name_the_same_ids(&circle, &spans, &[(&replied, &orders[0]), (&told, &orders[1])]);
}

/// The state has changed for good, and all has come that led to it: every parent, and of every record that was made, sending and handling.
fn settled(spans: &[Span]) -> bool {
    let here = |id: &String| id == CALLER || spans.iter().any(|span| span.span_id == *id);
    let children =
        |span: &Span| spans.iter().filter(|child| child.parent_id.as_ref() == Some(&span.span_id)).count();
    spans.iter().any(|span| span.attribute("to_state") == "SUCCESSFUL")
        && spans.iter().all(|span| span.parent_id.as_ref().is_none_or(here))
        && spans.iter().filter(|span| span.kind == "PRODUCER").all(|span| children(span) >= 2)
}

/// Everything of a payment's tree: who did what, as part of what. `outcome` is the step in which the PSP's answer was recorded.
fn check(circle: &Circle, spans: &[Span], outcome: &str, source: &str, order: &str) {
    let (requests, results) = (&circle.requests_topic, &circle.results_topic);
    let [send_request, take_in] = [format!("send {requests}"), format!("process {requests}")];
    let [send_result, apply] = [format!("send {results}"), format!("process {results}")];
    let request = "create PaymentOrderRequestedEvent";
    let result = "create PspResultUpdateEvent";
    let wanted = [
        ("payment-service", "SERVER", "POST /v1/payments", CALLER),
        ("payment-service", "PRODUCER", request, "POST /v1/payments"),
        ("outbox-relay", "CLIENT", &send_request, request),
        ("executor", "CONSUMER", &take_in, request),
        ("executor", "INTERNAL", "execute payment order", &take_in),
        ("executor", "CLIENT", "POST stripe/create", "execute payment order"),
        ("executor", "CLIENT", "POST stripe/confirm", "execute payment order"),
        ("executor", "PRODUCER", result, outcome),
        ("outbox-relay", "CLIENT", &send_result, result),
        ("payment-service", "CONSUMER", &apply, result),
    ];
    let ids: HashSet<&str> = spans.iter().map(|span| span.span_id.as_str()).collect();
    assert_eq!(ids.len(), spans.len(), "each span comes once");
    let parent = |span: &Span| spans.iter().find(|other| Some(&other.span_id) == span.parent_id.as_ref());
    let name_of_parent =
        |span: &Span| parent(span).map_or_else(|| span.parent_id.clone(), |parent| Some(parent.name.clone()));
    for (service, kind, name, within) in wanted {
        let found = spans.iter().any(|span| {
            span.service == service
                && span.kind == kind
                && span.name == name
                && name_of_parent(span).as_deref() == Some(within)
        });
        assert!(found, "no {kind} {name} of {service} within {within} in {spans:#?}");
    }
    // Connected: whatever there is hangs below the POST, and that below its caller.
    for span in spans {
        let mut at = span;
        while let Some(above) = parent(at) {
            at = above;
        }
        assert_eq!(
            (at.name.as_str(), at.parent_id.as_deref()),
            ("POST /v1/payments", Some(CALLER)),
            "{span:?}"
        );
        assert!(!span.failed && span.began <= span.ended, "{span:?}");
    }

    let only = |name: &str, source: &str| {
        let of_source =
            |span: &&Span| parent(span).is_some_and(|parent| parent.name == source) || source.is_empty();
        spans.iter().find(|span| span.name == name && of_source(span)).unwrap()
    };
    let post = only("POST /v1/payments", "");
    for (name, value) in [
        ("http.request.method", "POST"),
        ("http.route", "/v1/payments"),
        ("http.response.status_code", "201"),
    ] {
        assert_eq!(post.attribute(name), value, "{post:?}");
    }
    let made = only(result, outcome);
    let psp_call = only("POST stripe/confirm", "execute payment order");
    for (name, value) in [
        ("http.request.method", "POST"),
        ("http.response.status_code", "200"),
        ("server.address", "127.0.0.1"),
    ] {
        assert_eq!(psp_call.attribute(name), value, "{psp_call:?}");
    }
    let applied = spans
        .iter()
        .find(|span| span.name == apply && span.parent_id.as_ref() == Some(&made.span_id))
        .unwrap_or_else(|| panic!("{source} was not applied: {spans:#?}"));
    assert_eq!((applied.attribute("decision"), applied.attribute("to_state")), ("APPLIED", "SUCCESSFUL"));
    assert!(applied.attribute("psp_reference").starts_with("pi_"), "{applied:?}");
    // As OpenTelemetry names things.
    for span in
        spans.iter().filter(|span| [&send_request, &take_in, &send_result, &apply].contains(&&span.name))
    {
        let (operation, topic) = span.name.split_once(' ').unwrap();
        for (name, value) in [
            ("messaging.system", "kafka"),
            ("messaging.operation.name", operation),
            ("messaging.operation.type", operation),
            ("messaging.destination.name", topic),
            ("messaging.kafka.message.key", order),
        ] {
            assert_eq!(span.attribute(name), value, "{span:?}");
        }
        for name in ["messaging.destination.partition.id", "messaging.kafka.offset"] {
            assert!(span.attribute(name).parse::<u64>().is_ok(), "{name}: {span:?}");
        }
        assert!(span.attribute("messaging.message.id").parse::<Uuid>().is_ok(), "{span:?}");
        let created = parent(span).unwrap();
        assert_eq!(span.links, [(created.trace_id.clone(), created.span_id.clone())], "{span:?}");
        let group = span.attribute("messaging.consumer.group.name");
        assert_eq!(operation == "process", !group.is_empty(), "{span:?}");
    }
}

/// What follows from a webhook names the request that it came with, which is of a trace of its own: whose payment it is about was not known
/// yet.
async fn webhooks_are_linked(collector: &Collector, spans: &[Span]) {
    let processed =
        spans.iter().find(|span| span.name == "process webhook" && span.attribute("outcome") == "RECORDED");
    let [(trace_id, span_id)] = processed.unwrap().links.as_slice() else { panic!("{processed:?}") };
    let of_request = |spans: &[Span]| spans.iter().any(|span| span.span_id == *span_id);
    let spans = collector.trace(trace_id, LIMIT, of_request).await.unwrap();
    let received = &spans[0];
    assert_eq!((received.name.as_str(), received.kind), ("POST /webhooks/stripe", "SERVER"));
    assert_eq!(
        (received.parent_id.as_deref(), received.attribute("http.response.status_code")),
        (None, "200")
    );
}

/// Batches are of no payment's trace, and linked to all that they held.
fn polls_are_linked(collector: &Collector, circle: &Circle, spans: &[Span]) {
    for (topic, made) in [
        (&circle.requests_topic, "create PaymentOrderRequestedEvent"),
        (&circle.results_topic, "create PspResultUpdateEvent"),
    ] {
        let made = spans.iter().find(|span| span.name == made).unwrap();
        let link = (made.trace_id.clone(), made.span_id.clone());
        let all = collector.spans();
        let poll = all.iter().find(|span| span.name == format!("poll {topic}") && span.links.contains(&link));
        let poll = poll.unwrap_or_else(|| panic!("nobody polled {topic} with {link:?}"));
        assert_eq!((poll.kind, poll.attribute("messaging.operation.type")), ("CLIENT", "receive"));
        assert!(poll.attribute("messaging.batch.message_count").parse::<u32>().unwrap() > 0, "{poll:?}");
    }
}

/// Every line that names a span names one that was exported, of the trace that it names too; and every process has such lines.
fn logs_name_the_same_ids(circle: &Circle, spans: &[Span], payments: &[(&String, &String)]) {
    let known: HashSet<(&str, &str)> =
        spans.iter().map(|span| (span.trace_id.as_str(), span.span_id.as_str())).collect();
    let ours: BTreeSet<&str> = payments.iter().map(|(trace, _)| trace.as_str()).collect();
    for service in circle.services().filter(|service| service.name() != "psp-simulator") {
        let lines = service.log_lines().unwrap();
        let ids = |line: &Value| {
            let id = |name: &str| line[name].as_str().map(str::to_owned);
            Some((id("trace_id").filter(|trace| ours.contains(trace.as_str()))?, id("span_id")?))
        };
        let named: Vec<_> = lines.iter().filter_map(|line| Some((ids(line)?, line))).collect();
        for ((trace, span), line) in &named {
            let seen = known.contains(&(trace.as_str(), span.as_str()));
            assert!(seen, "{} names a span that nobody has seen: {line}", service.name());
        }
        for (trace, order) in payments {
            let found =
                named.iter().any(|((id, _), line)| id == *trace && line.to_string().contains(order.as_str()));
            assert!(found, "{} says nothing of {order}", service.name());
        }
    }
}

#[tokio::test]
async fn payments_do_not_wait_for_a_collector_that_is_away_or_hangs() {
    let stack = Stack::get().await.unwrap();
    // Takes connections, and never says a word.
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let hanging = format!("http://{}", silent.local_addr().unwrap());
    let away = format!("http://127.0.0.1:{}", free_port().unwrap());
    let mut without = Duration::MAX;
    for (endpoint, refused) in [(None, false), (Some(away), true), (Some(hanging), false)] {
        let options = Options { otlp_endpoint: endpoint.clone(), ..Options::default() };
        let circle = Circle::start(&stack, &options).await.unwrap();
        let client = Client::builder().no_proxy().timeout(LIMIT).build().unwrap();
        let begun = Instant::now();
        for _ in 0..20 {
            let trace = Uuid::new_v4().simple().to_string();
            let order = pay(&client, &circle, "pm_card_visa", &trace, "01").await;
            until_successful(&client, &circle, &order).await;
        }
        // Whoever waited for a collector would wait for seconds each time. What else goes on on the machine is not this test's.
        let took = begun.elapsed();
        println!("20 payments, spans to {endpoint:?}: {took:?}");
        match endpoint {
            None => without = took,
            Some(_) => {
                assert!(took < without * 3 + Duration::from_secs(10), "{took:?}, and {without:?} without");
            }
        }
        if refused {
            let said = || {
                let lines = circle.payment_service.log_lines().unwrap();
                lines.iter().filter(|line| line.to_string().contains("spans are not taken")).count()
            };
            let waiting = Instant::now();
            while said() == 0 && waiting.elapsed() < LIMIT {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            tokio::time::sleep(Duration::from_secs(2)).await;
            assert_eq!(said(), 1, "said once, not each time");
        }
        // The end does not wait for it longer than it may.
        let ending = Instant::now();
        circle.shutdown().await.unwrap();
        assert!(ending.elapsed() < Duration::from_secs(10), "{:?}", ending.elapsed());
    }
}

async fn pay(client: &Client, circle: &Circle, method: &str, trace: &str, flags: &str) -> String {
    let body = json!({"amount_minor": 1_234, "currency": "EUR", "payment_method": method, "merchant_reference": "order"});
    let request = client.post(format!("{}/v1/payments", circle.api_url)).bearer_auth(&circle.api_token);
    let request = request
        .header("Idempotency-Key", trace)
        .header("traceparent", format!("00-{trace}-{CALLER}-{flags}"));
    let answer = request.json(&body).send().await.unwrap();
    assert_eq!(answer.status(), 201);
    let created: Value = answer.json().await.unwrap();
    assert_eq!(created["trace_id"], trace, "the caller's trace goes on");
    created["payment_order_id"].as_str().unwrap().to_owned()
}

async fn until_successful(client: &Client, circle: &Circle, order: &str) {
    let begun = Instant::now();
    loop {
        let request = client
            .get(format!("{}/v1/payment-orders/{order}", circle.api_url))
            .bearer_auth(&circle.api_token);
        let found: Value = request.send().await.unwrap().error_for_status().unwrap().json().await.unwrap();
        if found["state"] == "SUCCESSFUL" {
            return;
        }
        assert!(begun.elapsed() < LIMIT, "{found}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
