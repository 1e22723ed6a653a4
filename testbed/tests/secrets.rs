//! A full run with secrets of every kind, and with card numbers wherever somebody could send one: afterwards neither is in any log, in
//! either database, on either topic or in any span.
//!
//! Beside what was planted, anything that could be a card number is looked for: 13 to 19 digits with a right check digit, alone or in
//! groups of four. The search is its own; with the masking of the processes it shares no code.
#![allow(clippy::unwrap_used, reason = "what goes wrong in a test has to end it")]

use std::fs;
use std::time::{Duration, Instant};

use hmac::{Hmac, KeyInit, Mac};
use reqwest::{Client, StatusCode};
use serde_json::{Value, json};
use sha2::Sha256;
use testbed::circle::{Circle, Options};
use testbed::collector::Collector;
use testbed::stack::{Stack, free_port};
use testbed::store::Databases;
use testbed::topic::Topics;
use time::OffsetDateTime;

const LIMIT: Duration = Duration::from_mins(1);

const STRIPE_KEY: &str = "sk_test_planted_0123456789";
const STRIPE_SECRET: &str = "whsec_planted_0123456789";
const ADYEN_KEY: &str = "planted-adyen-key-0123456789";
const ADYEN_HMAC: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
const ADYEN_USER: &str = "planted-user:planted-password";
/// Beside the tokens of the API, which are drawn anew each time.
const SECRETS: [&str; 5] = [STRIPE_KEY, STRIPE_SECRET, ADYEN_KEY, ADYEN_HMAC, ADYEN_USER];
/// Whole and in groups.
const CARDS: [&str; 4] =
    ["4111111111111111", "5555555555554444", "4242 4242 4242 4242", "2223-0031-2200-3222"];

/// One place in which something could be found, and what is there.
type Place = (String, String);

#[tokio::test(flavor = "multi_thread")]
async fn secrets_and_card_numbers_are_in_no_log_no_database_and_on_no_topic() {
    let stack = Stack::get().await.unwrap();
    let webhooks = format!("127.0.0.1:{}", free_port().unwrap());
    let collector = Collector::start().await.unwrap();
    let circle = Circle::start(&stack, &options(&webhooks, &collector)).await.unwrap();
    let client = Client::builder().no_proxy().timeout(LIMIT).build().unwrap();
    let [visa, mastercard, grouped, dashed] = CARDS;

    // What the API refuses.
    for (key, method, reference) in [
        (visa, "pm_card_visa", "order"),
        ("key-1", mastercard, "order"),
        ("key-2", "pm_card_visa", grouped),
        ("key-3", "pm_card_visa", dashed),
    ] {
        let refused = pay(&client, &circle, key, method, "STRIPE", reference).await;
        assert!(refused.0.is_client_error(), "{key} {method} {reference}: {refused:?}");
    }
    // What goes through everything.
    let mut paid = Vec::new();
    for (number, (psp, method)) in [
        ("STRIPE", "pm_card_visa"),
        ("ADYEN", "shopper-1-adyen_sim_success"),
        ("STRIPE", "pm_card_chargeDeclined"),
        ("ADYEN", "shopper-1-adyen_sim_decline_generic"),
        ("STRIPE", "pm_sim_error_after_charge"),
    ]
    .into_iter()
    .enumerate()
    {
        let created = pay(&client, &circle, &format!("paid-{number}"), method, psp, "order").await;
        assert_eq!(created.0, StatusCode::CREATED, "{created:?}");
        paid.push(created.1["payment_order_id"].as_str().unwrap().to_owned());
        settled(&client, &circle, &created.1, &["SUCCESSFUL", "FAILED"]).await;
    }
    // What a PSP says in its own words ends on the topic of results: a failure of what was paid, with a card number in each text.
    let event = json!({"id": "evt_planted", "object": "event", "livemode": false, "type": "payment_intent.payment_failed",
        "data": {"object": {"object": "payment_intent", "id": "pi_planted", "status": "requires_payment_method",
            "amount": 1_234, "amount_received": 0, "currency": "eur", "description": format!("card {dashed}"),
            "metadata": {"payment_order_id": paid[0]},
            "last_payment_error": {"code": "card_declined", "decline_code": format!("declined {mastercard}"),
                "message": format!("the card {visa}, also known as {grouped}, was declined")}}}});
    let told = tell(&client, &webhooks, &event).await;
    assert_eq!(told, StatusCode::OK);
    let first = json!({"payment_order_id": paid[0]});
    order_state(&client, &circle, &first, "NEEDS_REVIEW").await;

    let (payments, executions) = (circle.payments.url("operator"), circle.executions.url("operator"));
    let databases = Databases::connect(&payments, &executions).await.unwrap();
    let topics = Topics { bootstrap: stack.kafka_bootstrap(), registry_url: stack.registry_url() };
    let mut places = Vec::new();
    for topic in [&circle.requests_topic, &circle.results_topic] {
        on_topic(&topics, topic, &mut places).await;
    }
    in_databases(&databases, &mut places).await;
    circle.shutdown().await.unwrap();
    for service in circle.services() {
        let log = fs::read(service.log()).unwrap();
        places.push((format!("log of {}", service.name()), String::from_utf8_lossy(&log).into_owned()));
    }
    // The processes have handed over the last of them before they ended.
    places.extend(
        collector.spans().into_iter().map(|span| (format!("span of {}", span.service), format!("{span:?}"))),
    );

    // The search finds what is there: the order in every kind of place, and what was masked.
    for place in [
        "log of executor",
        "log of payment-service",
        "payments.",
        "executor.",
        "topic payment-order",
        "topic psp-result",
        "span of executor",
        "span of payment-service",
        "span of outbox-relay",
    ] {
        let found = places.iter().any(|(name, text)| name.starts_with(place) && text.contains(&paid[0]));
        assert!(found, "the order is not even in {place}");
    }
    let tokens = [circle.api_token.as_str(), circle.operator_token.as_str()];
    assert!(tokens.iter().all(|token| token.starts_with("po_") && token.len() == 46), "tokens of the API");
    let found: Vec<String> = places.iter().flat_map(|(place, text)| leaks(place, text, &tokens)).collect();
    assert_eq!(found, [""; 0]);
    let masked = |name: &str| {
        places.iter().any(|(place, text)| place.starts_with(name) && text.contains("****************"))
    };
    assert!(masked("topic psp-result") && masked("executor."), "what was told was kept, and masked");
}

/// The circle with planted secrets, every process at its loudest of our own.
fn options(webhooks: &str, collector: &Collector) -> Options {
    let given = [
        ("STRIPE_SECRET_KEY", STRIPE_KEY),
        ("STRIPE_WEBHOOK_SECRETS", STRIPE_SECRET),
        ("ADYEN_API_KEY", ADYEN_KEY),
        ("ADYEN_HMAC_KEYS", ADYEN_HMAC),
        ("ADYEN_WEBHOOK_AUTH", ADYEN_USER),
        ("WEBHOOKS_LISTEN", webhooks),
    ];
    let own = |(name, value): (&str, &str)| ("executor".to_owned(), name.to_owned(), value.to_owned());
    let otlp_endpoint = Some(collector.endpoint().to_owned());
    let environment = given.map(own).to_vec();
    Options { log: "trace".to_owned(), otlp_endpoint, environment, ..Options::default() }
}

async fn pay(
    client: &Client,
    circle: &Circle,
    key: &str,
    payment_method: &str,
    psp: &str,
    merchant_reference: &str,
) -> (StatusCode, Value) {
    let body = json!({"amount_minor": 1_234, "currency": "EUR", "payment_method": payment_method, "psp": psp,
        "merchant_reference": merchant_reference});
    let request = client.post(format!("{}/v1/payments", circle.api_url)).bearer_auth(&circle.api_token);
    let answer = request.header("Idempotency-Key", key).json(&body).send().await.unwrap();
    (answer.status(), answer.json().await.unwrap_or_default())
}

async fn get(client: &Client, circle: &Circle, path: &str) -> Value {
    let request = client.get(format!("{}{path}", circle.api_url)).bearer_auth(&circle.api_token);
    request.send().await.unwrap().error_for_status().unwrap().json().await.unwrap()
}

async fn settled(client: &Client, circle: &Circle, created: &Value, wanted: &[&str]) {
    let path = format!("/v1/payments/{}", created["payment_id"].as_str().unwrap());
    until(async || {
        let payment = get(client, circle, &path).await;
        (wanted.iter().any(|status| payment["status"] == *status), payment)
    })
    .await;
}

async fn order_state(client: &Client, circle: &Circle, created: &Value, wanted: &str) {
    let path = format!("/v1/payment-orders/{}", created["payment_order_id"].as_str().unwrap());
    until(async || {
        let order = get(client, circle, &path).await;
        (order.to_string().contains(wanted), order)
    })
    .await;
}

async fn until(look: impl AsyncFn() -> (bool, Value)) {
    let begun = Instant::now();
    loop {
        let (done, seen) = look().await;
        if done {
            return;
        }
        assert!(begun.elapsed() < LIMIT, "{seen}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// As Stripe sends it.
async fn tell(client: &Client, webhooks: &str, event: &Value) -> StatusCode {
    let (body, at) = (event.to_string(), OffsetDateTime::now_utc().unix_timestamp());
    let mut mac = Hmac::<Sha256>::new_from_slice(STRIPE_SECRET.as_bytes()).unwrap();
    mac.update(format!("{at}.{body}").as_bytes());
    let signature = format!("t={at},v1={}", hex::encode(mac.finalize().into_bytes()));
    let request =
        client.post(format!("http://{webhooks}/webhooks/stripe")).header("Stripe-Signature", signature);
    request.body(body).send().await.unwrap().status()
}

// ---------------------------------------------------------------------------------------------------------- where to look

/// Keys, headers and bodies as they are decoded, and the values byte by byte, in case that a decoder leaves something out.
async fn on_topic(topics: &Topics, topic: &str, places: &mut Vec<Place>) {
    let records = topics.read(topic).await.unwrap();
    assert!(records.len() >= 5, "{topic}: {}", records.len());
    for record in &records {
        let body = record.body.as_ref().unwrap().to_string();
        let headers = record.headers.iter().map(|(name, value)| format!("{name}: {value}\n"));
        let text =
            format!("{}\n{}{body}", record.key.as_deref().unwrap_or_default(), headers.collect::<String>());
        places.push((format!("topic {topic}, {}", record.place()), text));
    }
    for value in topics.values(topic).await.unwrap() {
        places.push((format!("topic {topic}, bytes"), printable(&value)));
    }
}

/// Every value of every row.
async fn in_databases(databases: &Databases, places: &mut Vec<Place>) {
    let tables = databases.everything().await.unwrap();
    assert!(tables.len() > 15, "{}", tables.len());
    for (table, rows) in tables {
        for row in rows {
            let mut text = String::new();
            spell_out(&row, &mut text);
            places.push((table.clone(), text));
        }
    }
}

/// Names and values, one a line; bytes, which stand there in hexadecimal, as what they are.
fn spell_out(value: &Value, text: &mut String) {
    match value {
        Value::Object(fields) => fields.iter().for_each(|(name, value)| {
            text.push_str(name);
            text.push('\n');
            spell_out(value, text);
        }),
        Value::Array(values) => values.iter().for_each(|value| spell_out(value, text)),
        Value::String(value) => match value.strip_prefix("\\x").and_then(|value| hex::decode(value).ok()) {
            Some(bytes) => text.push_str(&printable(&bytes)),
            None => text.push_str(value),
        },
        other => text.push_str(&other.to_string()),
    }
    text.push('\n');
}

/// What is no printable ASCII ends a word.
fn printable(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| if (b' '..=b'~').contains(byte) { char::from(*byte) } else { '\n' }).collect()
}

// -------------------------------------------------------------------------------------------------------- what must not be

/// What is in a text and belongs nowhere.
fn leaks(place: &str, text: &str, tokens: &[&str]) -> Vec<String> {
    let planted = SECRETS.iter().chain(&CARDS).chain(tokens).filter(|planted| text.contains(**planted));
    let mut found: Vec<String> = planted.map(|planted| format!("{place}: {planted}")).collect();
    found.extend(
        card_numbers(text).into_iter().map(|number| format!("{place}: could be a card number: {number}")),
    );
    found
}

/// Digits that could be a card number, alone or in groups of four. All cards in trade begin with 2 to 6; a time in microseconds begins
/// with 1. Digits that are part of a longer word, as in hashes and trace ids, or the fraction of a number, are none.
fn card_numbers(text: &str) -> Vec<String> {
    let bytes = text.as_bytes();
    let digit = |at: usize| bytes.get(at).is_some_and(u8::is_ascii_digit);
    let letter = |at: usize| bytes.get(at).is_some_and(u8::is_ascii_alphabetic);
    let mut found = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        if !digit(at) {
            at += 1;
            continue;
        }
        let alone = at == 0 || !letter(at - 1);
        let fraction = at > 1 && bytes[at - 1] == b'.' && digit(at - 2);
        let run = (at..bytes.len()).take_while(|at| digit(*at)).count();
        let groups = grouped(bytes, at);
        let end = groups.unwrap_or(at + run);
        let number: String = text[at..end].chars().filter(char::is_ascii_digit).collect();
        if alone && !fraction && !letter(end) && (b'2'..=b'6').contains(&bytes[at]) && is_card_number(&number)
        {
            found.push(text[at..end].to_owned());
        }
        at += run;
    }
    found
}

/// Where four groups of four digits end that begin here, joined by spaces or hyphens.
fn grouped(bytes: &[u8], at: usize) -> Option<usize> {
    let whole = bytes.get(at..at + 19)?;
    let fits = whole.iter().enumerate().all(|(place, byte)| match place % 5 {
        4 => matches!(byte, b' ' | b'-'),
        _ => byte.is_ascii_digit(),
    });
    let ends = !bytes.get(at + 19).is_some_and(|byte| byte.is_ascii_alphanumeric() || *byte == b'-');
    let begins = at == 0 || !matches!(bytes[at - 1], b'-' | b'0'..=b'9');
    (fits && ends && begins).then_some(at + 19)
}

/// Luhn.
fn is_card_number(digits: &str) -> bool {
    let sum: u32 = (digits.bytes().rev().enumerate())
        .map(|(place, digit)| {
            let digit = u32::from(digit - b'0');
            if place % 2 == 0 { digit } else { digit * 2 / 10 + digit * 2 % 10 }
        })
        .sum();
    (13..=19).contains(&digits.len()) && sum.is_multiple_of(10)
}

#[test]
fn card_numbers_are_found_wherever_they_stand_and_nothing_else_is() {
    for card in CARDS {
        assert_eq!(card_numbers(card), [card]);
        assert_eq!(card_numbers(&format!("{{\"card\":\"{card}\"}}, pi_{card}.")), [card, card]);
    }
    assert_eq!(card_numbers("378282246310005, and 6304000000000000001"), ["378282246310005"]);
    for other in [
        "4111111111111112",
        "41111111111111",
        "1764057600000008",
        "a4111111111111111",
        "4111111111111111f",
        "0.4111111111111111",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        "41111111-1111-4111-8111-111111111111",
    ] {
        assert_eq!(card_numbers(other), [""; 0], "{other}");
    }
    assert_eq!(leaks("log", "Bearer po_x", &["po_x"]), ["log: po_x"]);
    let told = leaks("topic", &printable(b"\x00\x104111111111111111"), &[]);
    assert_eq!(told.len(), 2, "{told:?}");
}
