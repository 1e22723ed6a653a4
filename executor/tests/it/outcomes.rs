//! What a definite answer of the PSP becomes.

use chassis::telemetry::TraceContext;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use crate::setup::{World, request};

#[tokio::test(flavor = "multi_thread")]
async fn a_payment_succeeds_and_its_event_continues_the_trace() {
    let world = World::new("success").await;
    let running = world.start(&[]);
    let (event, trace) = (request("pm_card_visa"), TraceContext::new_trace());
    let sent_at = OffsetDateTime::now_utc();
    world.send(&event, &trace).await;
    let id = event.payment_order_id;
    world.wait_for_state(id, "SETTLED").await;
    assert_eq!(world.results(id).await, [("SUCCESSFUL".to_owned(), None, "REPLY".to_owned())]);
    let called = |operation: &str, verdict: &str| (operation.to_owned(), Some(verdict.to_owned()));
    assert_eq!(world.calls(id).await, [called("CREATE", "UNCONFIRMED"), called("CONFIRM", "SUCCEEDED")]);
    let events = world.events(id).await;
    assert_eq!(events.len(), 1);
    let (event_id, payload, traceparent) = &events[0];
    assert_eq!(
        (payload["paymentOrderId"].as_str(), payload["pspStatus"].as_str()),
        (Some(&*id.to_string()), Some("SUCCESSFUL"))
    );
    let charge = &world.ledger().await[0];
    assert_eq!(payload["pspReference"], charge["payment_intent"]);
    assert_eq!(
        (charge["amount_minor"].as_i64(), charge["payment_order_id"].as_str()),
        (Some(1999), Some(&*id.to_string()))
    );
    let event_time = OffsetDateTime::parse(payload["eventTime"].as_str().unwrap(), &Rfc3339).unwrap();
    assert!(event_time >= sent_at && event_time <= OffsetDateTime::now_utc());
    assert!(payload.get("errorCode").is_none() && payload.get("errorMessage").is_none());
    let continued = TraceContext::parse(traceparent).unwrap();
    assert_eq!(continued.trace_id(), trace.trace_id());
    assert_ne!(traceparent, &trace.traceparent());
    let result: uuid::Uuid =
        sqlx::query_scalar("SELECT event_id FROM executor.psp_results").fetch_one(&world.pool).await.unwrap();
    assert_eq!(result, *event_id);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_decline_fails_with_its_code_and_is_cancelled_at_the_psp_first() {
    let world = World::new("declines").await;
    let running = world.start(&[]);
    let rows = [
        ("pm_card_chargeDeclined", "card_declined/generic_decline"),
        ("pm_card_chargeDeclinedInsufficientFunds", "card_declined/insufficient_funds"),
        ("pm_card_chargeDeclinedLostCard", "card_declined/lost_card"),
        ("pm_card_chargeDeclinedExpiredCard", "expired_card"),
        ("pm_card_authenticationRequired", "AUTHENTICATION_REQUIRED"),
    ];
    for (payment_method, code) in rows {
        let id = world.request(payment_method).await;
        world.wait_for_state(id, "SETTLED").await;
        assert_eq!(
            world.results(id).await,
            [("FAILED".to_owned(), Some(code.to_owned()), "REPLY".to_owned())],
            "{payment_method}"
        );
        let calls = world.calls(id).await;
        let last = calls.last().unwrap();
        assert_eq!((last.0.as_str(), last.1.as_deref()), ("CANCEL", Some("CANCELLED")), "{calls:?}");
        let events = world.events(id).await;
        assert_eq!((events.len(), events[0].1["errorCode"].as_str()), (1, Some(code)));
        assert!(events[0].1["errorMessage"].as_str().is_some_and(|text| !text.is_empty()), "{events:?}");
        assert_eq!(world.charges(id).await, 0);
    }
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_psp_does_not_accept_fails_without_a_payment() {
    let world = World::new("refused").await;
    let running = world.start(&[]);
    let id = world.request("pm_that_nobody_has").await;
    world.wait_for_state(id, "SETTLED").await;
    let results = world.results(id).await;
    assert_eq!((results.len(), results[0].0.as_str()), (1, "FAILED"), "{results:?}");
    assert_eq!(world.charges(id).await, 0);
    running.stop().await;
}
