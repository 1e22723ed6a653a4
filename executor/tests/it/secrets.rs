//! A real process, its log at its loudest, and everything that was planted: secrets and card numbers are found nowhere.

use std::{fs::File, process::Stdio, time::Duration};

use reqwest::StatusCode;
use serde_json::{Value, json};
use sqlx::AssertSqlSafe;
use tokio::process::{Child, Command};
use uuid::Uuid;

use crate::{
    sender::{ADYEN_KEY, ADYEN_USER, Psp, STRIPE_SECRET, adyen_item, stripe_event},
    setup::{World, request},
};

const API_KEY: &str = "sk_test_planted_0123456789";
const PLANTED: [&str; 5] = [API_KEY, STRIPE_SECRET, ADYEN_KEY, ADYEN_USER, "YWR5ZW46cGFzc3dvcmQ="];
/// Whole and in groups.
const CARDS: [&str; 6] = [
    "4111111111111111",
    "5555555555554444",
    "378282246310005",
    "6011111111111117",
    "4242 4242 4242 4242",
    "2223-0031-2200-3222",
];

fn executor(world: &World, listen: &str, log: &File) -> Child {
    Command::new(env!("CARGO_BIN_EXE_executor"))
        .arg("run")
        .env_clear()
        .env("LOG", "trace")
        .env("DATABASE_URL", world.database.url("executor"))
        .env("KAFKA_BOOTSTRAP", world.stack.kafka_bootstrap())
        .env("SCHEMA_REGISTRY_URL", world.stack.registry_url())
        .env("REQUESTS_TOPIC", &world.topic)
        .env("CONSUMER_GROUP", &world.topic)
        .env("STRIPE_BASE_URL", &world.psp_url)
        .env("STRIPE_SECRET_KEY", API_KEY)
        .env("STRIPE_WEBHOOK_SECRETS", STRIPE_SECRET)
        .env("ADYEN_HMAC_KEYS", ADYEN_KEY)
        .env("ADYEN_WEBHOOK_AUTH", ADYEN_USER)
        .env("WEBHOOKS_LISTEN", listen)
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log.try_clone().unwrap())
        .kill_on_drop(true)
        .spawn()
        .unwrap()
}

/// The tables and columns of these schemas in which a text stands.
async fn found(world: &World, text: &str) -> Vec<String> {
    let columns: Vec<(String, String, String, String)> = sqlx::query_as(
        "SELECT c.table_schema::text, c.table_name::text, c.column_name::text, c.data_type::text
         FROM information_schema.columns c JOIN information_schema.tables t USING (table_schema, table_name)
         WHERE c.table_schema IN ('executor', 'outbox') AND t.table_type = 'BASE TABLE'",
    )
    .fetch_all(&world.pool)
    .await
    .unwrap();
    assert!(columns.len() > 60, "{}", columns.len());
    let mut places = vec![];
    for (schema, table, column, kind) in columns {
        let shown = if kind == "bytea" {
            format!("encode(\"{column}\", 'escape')")
        } else {
            format!("\"{column}\"::text")
        };
        let sql = format!("SELECT count(*) FROM \"{schema}\".\"{table}\" WHERE strpos({shown}, $1) > 0");
        let count: i64 =
            sqlx::query_scalar(AssertSqlSafe(sql)).bind(text).fetch_one(&world.pool).await.unwrap();
        if count > 0 {
            places.push(format!("{schema}.{table}.{column}"));
        }
    }
    places
}

/// Tells everything that must not be kept.
async fn plant(world: &World, psp: &Psp) {
    let [visa, mastercard, amex, discover, grouped, dashed] = CARDS;
    for (payment_method, merchant_reference) in [
        (visa, "m"),
        ("pm_card_visa", mastercard),
        ("pm_card_visa", grouped),
        ("pm_5555555555554444", dashed),
    ] {
        let mut event = request(payment_method);
        event.merchant_reference = format!("order of {merchant_reference}");
        world.send(&event, &chassis::telemetry::TraceContext::new_trace()).await;
    }
    world.send_raw(visa, format!("{{\"card\":\"{amex}\"}}").as_bytes(), grouped).await;
    world.wait_for_count("SELECT count(*) FROM executor.quarantine", 5).await;
    let id = Uuid::new_v4();
    let mut event: Value = serde_json::from_slice(&stripe_event(
        "evt_1",
        "payment_intent.succeeded",
        "succeeded",
        id,
        "pi_1",
        1999,
    ))
    .unwrap();
    event["data"]["object"]["description"] = format!("paid with {visa} or {grouped}").into();
    event["data"]["object"]["number"] = json!(4_111_111_111_111_111_u64);
    event["data"]["object"]["last_payment_error"] = json!({"message": discover});
    assert_eq!(psp.stripe(event.to_string().into_bytes()).await, StatusCode::OK);
    assert_eq!(psp.stripe(format!("\"{amex}\"").into_bytes()).await, StatusCode::OK);
    let mut item = adyen_item("PSP1", "AUTHORISATION", "true", id, 1999);
    item["additionalData"]["cardNumber"] = mastercard.into();
    item["reason"] = dashed.into();
    assert_eq!(psp.adyen(&[item.clone()]).await, StatusCode::OK);
    item["success"] = "false".into();
    assert_eq!(psp.adyen(&[item]).await, StatusCode::BAD_REQUEST);
}

#[tokio::test(flavor = "multi_thread")]
async fn planted_secrets_and_card_numbers_are_found_nowhere() {
    let world = World::new("secrets").await;
    let listen = format!("127.0.0.1:{}", testbed::stack::free_port().unwrap());
    let path = std::env::temp_dir().join(format!("executor-secrets-{}.log", Uuid::new_v4()));
    let mut process = executor(&world, &listen, &File::create(&path).unwrap());
    let psp = Psp::to(&format!("http://{listen}")).await;
    plant(&world, &psp).await;
    let paid = world.request("pm_card_visa").await;
    world.wait_for_state(paid, "SETTLED").await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    process.kill().await.unwrap();

    let log = std::fs::read_to_string(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    // The search finds what is there.
    assert!(
        log.contains("record set aside")
            && log.contains("webhook refused")
            && log.contains(&paid.to_string())
    );
    assert!(!found(&world, &paid.to_string()).await.is_empty());
    assert!(!found(&world, "****************").await.is_empty(), "masked, and kept");
    for text in PLANTED.iter().chain(&CARDS).chain(&["pm_card_visa"]) {
        assert!(!log.contains(text), "{text} is in the log");
    }
    for text in PLANTED.iter().chain(&CARDS) {
        assert_eq!(found(&world, text).await, [""; 0], "{text}");
    }
    let masked = "SELECT count(*) FROM executor.quarantine WHERE masked AND reason_code IN ('CARD_NUMBER', 'UNDECODABLE')";
    assert_eq!(world.count(masked).await, 5);
    assert_eq!(world.count("SELECT count(*) FROM executor.webhooks WHERE body_masked").await, 3);
}
