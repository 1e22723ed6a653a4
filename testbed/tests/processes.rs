//! Every process of a circle comes back from SIGKILL under its old addresses, and ends in order when it is asked to.
#![allow(clippy::unwrap_used, reason = "what goes wrong in a test has to end it")]

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use testbed::circle::{Circle, Options};
use testbed::stack::Stack;

async fn pay(circle: &Circle, key: &str, method: &str) -> String {
    let response = reqwest::Client::new()
        .post(format!("{}/v1/payments", circle.api_url))
        .bearer_auth(&circle.api_token)
        .header("Idempotency-Key", key)
        .json(&json!({
            "amount_minor": 1234, "currency": "EUR", "payment_method": method, "merchant_reference": key,
        }))
        .send()
        .await
        .unwrap();
    let (status, body) = (response.status(), response.text().await.unwrap());
    assert_eq!(status, 201, "{body}");
    serde_json::from_str::<Value>(&body).unwrap()["payment_id"].as_str().unwrap().to_owned()
}

async fn settled(circle: &Circle, payment: &str) -> String {
    let begun = Instant::now();
    loop {
        let response = reqwest::Client::new()
            .get(format!("{}/v1/payments/{payment}", circle.api_url))
            .bearer_auth(&circle.api_token)
            .send()
            .await
            .unwrap();
        let body: Value = response.error_for_status().unwrap().json().await.unwrap();
        let status = body["status"].as_str().unwrap();
        if ["SUCCESSFUL", "FAILED", "NEEDS_REVIEW"].contains(&status) {
            return status.to_owned();
        }
        assert!(begun.elapsed() < Duration::from_mins(1), "{payment} is not settled: {body}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_payment_goes_round_also_after_every_process_was_killed() {
    let stack = Stack::get().await.unwrap();
    let circle = Circle::start(&stack, &Options::default()).await.unwrap();

    for service in circle.services() {
        service.healthcheck().await.unwrap();
    }

    let payment = pay(&circle, "first", "pm_card_visa").await;
    assert_eq!(settled(&circle, &payment).await, "SUCCESSFUL");

    // Killing the simulator would lose the truth about the first charge.
    for service in circle.services().filter(|service| service.name() != circle.simulator.name()) {
        service.restart().await.unwrap();
    }
    let payment = pay(&circle, "second", "pm_card_chargeDeclined").await;
    assert_eq!(settled(&circle, &payment).await, "FAILED");

    let ledger = reqwest::get(format!("{}/simulator/ledger", circle.simulator_url)).await.unwrap();
    let ledger: Value = ledger.json().await.unwrap();
    assert_eq!(ledger["charges"].as_array().unwrap().len(), 1, "{ledger}");
    for service in circle.services() {
        assert!(service.running(), "{}", service.name());
        assert!(!service.log_lines().unwrap().is_empty(), "{} has logged nothing", service.name());
    }
    circle.executors[0].pause().unwrap();
    let silent = circle.executors[0].healthcheck().await.unwrap_err().to_string();
    assert!(silent.contains("did not answer within 2s"), "{silent}");
    circle.executors[0].resume().unwrap();
    circle.shutdown().await.unwrap();
    for service in circle.services() {
        service.healthcheck().await.unwrap_err();
    }
}
