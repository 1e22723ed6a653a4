//! Deliveries: tried again until acknowledged, bounded, and never in the way of a request.

use std::time::Duration;

use clap::Parser;
use psp_simulator::Config;
use serde_json::Value;
use tokio::net::TcpListener;

use crate::receiver::{Office, simulator};
use crate::running::Simulator;

#[tokio::test]
async fn what_is_not_acknowledged_comes_again_unchanged() {
    let office = Office::calm().await;
    office.mail.answer([500, 302]);
    office.pay_stripe("order", "success").await.expect(200);
    let received = office.mail.until(3).await;
    assert!(received.iter().all(|again| again.body == received[0].body));
    let report = office.until_report(|report| report["stripe"]["acknowledged"] == 1).await;
    assert_eq!((&report["stripe"]["sent"], &report["stripe"]["refused"]), (&3.into(), &2.into()));
    assert_eq!(report["stripe"]["queued"], 0);
    assert_eq!(report["adyen"]["sent"], 0, "each PSP has its own post");
}

#[tokio::test]
async fn a_webhook_is_given_up_in_the_end() {
    let office = Office::with(&["--webhook-attempts", "3"]).await;
    office.mail.answer([500; 3]);
    office.pay_adyen("order", "success").await.expect(200);
    let report = office.until_report(|report| report["adyen"]["given_up"] == 1).await;
    assert_eq!((&report["adyen"]["sent"], &report["adyen"]["queued"]), (&3.into(), &0.into()));
    assert_eq!(office.mail.all().len(), 3);
}

#[tokio::test]
async fn the_clock_ends_the_wait_for_the_next_try() {
    let office = Office::with(&["--webhook-backoff", "1h", "--webhook-backoff-max", "2h"]).await;
    office.mail.answer([503]);
    office.pay_stripe("order", "success").await.expect(200);
    office.until_report(|report| report["stripe"]["queued"] == 1 && report["stripe"]["refused"] == 1).await;
    office.simulator.advance(3600).await.expect(200);
    // Signed with the machine's time: the receiver, whose clock did not move, takes it.
    office.until_report(|report| report["stripe"]["acknowledged"] == 1).await;
}

#[tokio::test]
async fn a_receiver_that_is_away_stops_no_payment() {
    // Bound and never listened to by anyone who answers.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = format!("http://{}", silent.local_addr().unwrap());
    let simulator = simulator(&base, &["--webhook-queue", "5"]).await;
    let office = Office { simulator, mail: std::sync::Arc::default() };
    for number in 0..60 {
        office.pay_adyen(&format!("order-{number}"), "success").await.expect(200);
    }
    // 32 are on their way, five are kept.
    let report = office.until_report(|report| report["adyen"]["dropped_queue_full"] != 0).await;
    assert!(report["adyen"]["queued"].as_u64().unwrap() <= 5);
    let summary = office.simulator.get("/simulator/ledger/summary").await.expect(200);
    assert_eq!(summary.body["charges"], 60);
}

#[tokio::test]
async fn nobody_is_told_who_did_not_ask() {
    let simulator = Simulator::with(&[]).await;
    let report = simulator.get("/simulator/webhooks").await.expect(200).body;
    assert_eq!((&report["stripe"], &report["adyen"]), (&Value::Null, &Value::Null));
}

#[tokio::test]
async fn settings_that_cannot_work_are_refused_at_the_start() {
    let parse = |settings: &[&str]| {
        Config::try_parse_from(["psp-simulator"].into_iter().chain(settings.iter().copied()))
    };
    assert!(parse(&["--stripe-webhook-url", "http://127.0.0.1:1/"]).is_err());
    assert!(parse(&["--adyen-webhook-url", "http://127.0.0.1:1/"]).is_err());
    assert!(parse(&["--webhook-mode", "drop=101"]).is_err());
    assert!(parse(&["--adyen-webhook-user", "x"]).is_err());
    let broken = parse(&["--adyen-webhook-url", "http://127.0.0.1:1/", "--adyen-webhook-hmac-key", "xyz"]);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let stopped = psp_simulator::run(listener, broken.unwrap(), tokio_util::sync::CancellationToken::new());
    let error = tokio::time::timeout(Duration::from_secs(5), stopped).await.unwrap().unwrap_err();
    assert!(error.to_string().contains("hexadecimal"), "{error:#}");
}
