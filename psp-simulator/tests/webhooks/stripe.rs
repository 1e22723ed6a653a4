//! Stripe's events.

use serde_json::Value;

use crate::receiver::Office;

#[tokio::test]
async fn a_success_is_told_with_its_payment_intent() {
    let office = Office::calm().await;
    let paid = office.pay_stripe("order", "success").await.expect(200);
    let received = office.mail.until(1).await;
    let event = &received[0].json;
    assert!(event["id"].as_str().unwrap().starts_with("evt_"));
    assert_eq!(event["object"], "event");
    assert_eq!(event["type"], "payment_intent.succeeded");
    assert_eq!(event["livemode"], false);
    assert_eq!(event["data"]["object"], paid.body);
    assert_eq!(event["request"]["id"].as_str(), paid.header("request-id"));
    assert_eq!(event["request"]["idempotency_key"], "order");
    let report = office.until_report(|report| report["stripe"]["acknowledged"] == 1).await;
    assert_eq!((&report["stripe"]["events"], &report["stripe"]["sent"]), (&1.into(), &1.into()));
}

#[tokio::test]
async fn every_outcome_has_its_event() {
    let office = Office::calm().await;
    for (scenario, kinds) in [
        ("decline_fraud", &["payment_intent.payment_failed"][..]),
        ("processing", &["payment_intent.processing", "payment_intent.succeeded"]),
        ("processing_then_failure", &["payment_intent.processing", "payment_intent.payment_failed"]),
        ("slow", &["payment_intent.succeeded"]),
        ("error_after_charge", &["payment_intent.succeeded"]),
        ("action_redirect", &["payment_intent.requires_action"]),
        ("unknown_status", &["payment_intent.succeeded"]),
        ("cancelled", &["payment_intent.canceled"]),
        // Nothing happened.
        ("error_before_charge", &[]),
    ] {
        let before = office.mail.all().len();
        office.pay_stripe(scenario, scenario).await;
        let received = office.mail.until(before + kinds.len()).await;
        let told: Vec<_> = received[before..].iter().map(|received| received.event().0.to_owned()).collect();
        assert_eq!(told, kinds, "{scenario}");
    }
    assert_eq!(office.report().await["stripe"]["events"], 10);
    let failed = office.mail.all().into_iter().find(|received| received.event().0.ends_with("failed"));
    let failed = failed.unwrap();
    assert_eq!(failed.event().1["last_payment_error"]["decline_code"], "fraudulent");
    assert_eq!(failed.event().1["status"], "requires_payment_method");
}

#[tokio::test]
async fn a_cancelled_payment_intent_is_told() {
    let office = Office::calm().await;
    let asked = office.pay_stripe("order", "action_challenge").await.expect(200);
    let path = format!("/v1/payment_intents/{}/cancel", asked.body["id"].as_str().unwrap());
    let cancel = office.simulator.request(reqwest::Method::POST, &path);
    crate::running::send(cancel).await.expect(200);
    let received = office.mail.until(2).await;
    let (kind, intent) = received[1].event();
    assert_eq!((kind, &intent["status"]), ("payment_intent.canceled", &Value::from("canceled")));
    assert_eq!(received[1].json["request"]["idempotency_key"], Value::Null);
}
