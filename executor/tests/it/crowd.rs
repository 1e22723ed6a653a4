//! Hundreds of payments whose answers are lost in the same way: each is charged once, and each is known to be, in the end.

use std::collections::HashMap;

use schema::payment_order_requested::PaymentOrderRequestedEvent;

use crate::setup::{World, request};

const CROWD: usize = 500;

/// All of them under this token: nobody is charged twice, everybody is SUCCESSFUL, and it was found out by asking.
async fn all_are_charged_once(payment_method: &str) {
    let world = World::new("crowd").await;
    // A timeout as short as can be: most of the calls wait for it.
    // And no pause worth speaking of when they have: that is another test.
    let running = world.start(&[
        "--psp-timeout=500ms",
        "--lease=2s",
        "--resolve-concurrency=64",
        "--breaker-pause=20ms",
    ]);
    let events: Vec<PaymentOrderRequestedEvent> = (0..CROWD).map(|_| request(payment_method)).collect();
    world.send_all(&events).await;
    let count = i64::try_from(CROWD).unwrap();
    world.wait_for_count("SELECT count(*) FROM executor.inbox WHERE state = 'SETTLED'", count).await;
    let mut charges: HashMap<String, usize> = HashMap::new();
    for charge in world.ledger().await {
        *charges.entry(charge["payment_order_id"].as_str().unwrap().to_owned()).or_default() += 1;
    }
    for event in &events {
        assert_eq!(charges.remove(&event.payment_order_id.to_string()), Some(1), "{payment_method}");
    }
    assert!(charges.is_empty(), "charges that nobody asked for: {charges:?}");
    for (sql, expected) in [
        (
            "SELECT count(DISTINCT payment_order_id) FROM executor.psp_results WHERE psp_status = 'SUCCESSFUL'",
            count,
        ),
        ("SELECT count(*) FROM executor.psp_results WHERE psp_status IN ('FAILED', 'PENDING')", 0),
        (
            "SELECT count(*) FROM executor.psp_results WHERE psp_status = 'UNKNOWN' AND source = 'REPLY'",
            count,
        ),
        (
            "SELECT count(*) FROM executor.psp_results r FULL JOIN outbox.events e USING (event_id)
          WHERE r.event_id IS NULL OR e.event_id IS NULL",
            0,
        ),
    ] {
        assert_eq!(world.count(sql).await, expected, "{payment_method}: {sql}");
    }
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn five_hundred_whose_answers_never_come() {
    all_are_charged_once("pm_sim_timeout_after_charge").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn five_hundred_that_are_answered_with_an_error() {
    all_are_charged_once("pm_sim_error_after_charge").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn five_hundred_whose_connections_are_reset() {
    all_are_charged_once("pm_sim_reset_after_charge").await;
}
