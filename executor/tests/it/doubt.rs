//! What is not known is asked for, until it is known, and charged once.

use std::{sync::Arc, time::Duration};

use chassis::telemetry::TraceContext;
use executor::psp::{Operation, Order, Psp, http::Site, stripe::Stripe};
use schema::payment_order_requested::PaymentOrderRequestedEvent;
use secrecy::SecretString;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::setup::{World, request};

#[tokio::test(flavor = "multi_thread")]
async fn lost_answers_are_settled_by_asking_with_exactly_one_charge() {
    let world = World::new("lost_answers").await;
    let running = world.start(&["--psp-timeout=1s"]);
    let methods = [
        "pm_sim_timeout_after_charge",
        "pm_sim_error_after_charge",
        "pm_sim_timeout_before_charge",
        "pm_sim_slow",
    ];
    let events: Vec<PaymentOrderRequestedEvent> =
        (0..24).map(|n| request(methods[n % methods.len()])).collect();
    world.send_all(&events).await;
    for event in &events {
        let id = event.payment_order_id;
        world.wait_for_state(id, "SETTLED").await;
        let results = world.results(id).await;
        assert_eq!(
            results.last().unwrap(),
            &("SUCCESSFUL".to_owned(), None, "RESOLVER".to_owned()),
            "{results:?}"
        );
        assert_eq!((results[0].0.as_str(), results[0].2.as_str()), ("UNKNOWN", "REPLY"), "{results:?}");
        assert!(results.iter().all(|(status, ..)| status != "FAILED"), "{results:?}");
        assert_eq!(world.charges(id).await, 1, "{}", event.payment_method);
        let events = world.events(id).await;
        assert_eq!(events.len(), results.len(), "each result is one event");
    }
    running.stop().await;
}

/// The rows of an executor that died, its lease just over, after it had written down its last operation.
pub(crate) async fn died(
    world: &World,
    event: &PaymentOrderRequestedEvent,
    last: Operation,
    reference: Option<&str>,
) {
    claimed(world, event, last, reference, "100 ms").await;
}

/// The rows of an executor that is at it, for so long.
pub(crate) async fn claimed(
    world: &World,
    event: &PaymentOrderRequestedEvent,
    last: Operation,
    reference: Option<&str>,
    lease: &str,
) {
    let id = event.payment_order_id;
    sqlx::query(
        "INSERT INTO executor.inbox (payment_order_id, psp, amount_minor, currency, payment_method, merchant_reference, expires_at,
                                     traceparent, state, step, first_attempt_at, psp_reference, claimed_by, lease_until)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, 'IN_FLIGHT', $9, now(), $10, gen_random_uuid(), now() + $11::text::interval)",
    )
    .bind(id)
    .bind(&event.psp)
    .bind(event.amount_minor)
    .bind(&event.currency)
    .bind(&event.payment_method)
    .bind(&event.merchant_reference)
    .bind(event.expires_at)
    .bind(TraceContext::new_trace().traceparent())
    .bind(last.as_str())
    .bind(reference)
    .bind(lease)
    .execute(&world.pool)
    .await
    .unwrap();
    sqlx::query(
        "INSERT INTO executor.psp_attempts (attempt_id, payment_order_id, operation, try, idempotency_key, request_hash, deadline_at)
         VALUES (gen_random_uuid(), $1, $2, 1, 'key', 'hash', now() + interval '50 ms')",
    )
    .bind(id)
    .bind(last.as_str())
    .execute(&world.pool)
    .await
    .unwrap();
}

fn stripe(world: &World) -> (Arc<Stripe>, impl Fn(&PaymentOrderRequestedEvent) -> Order) {
    let site = Site::new(&world.psp_url, Duration::from_secs(5));
    let stripe = Stripe::new(&site, &SecretString::from("sk_test_executor")).unwrap();
    let order = |event: &PaymentOrderRequestedEvent| Order {
        payment_order_id: event.payment_order_id,
        psp: event.psp.clone(),
        amount_minor: event.amount_minor,
        currency: event.currency.clone(),
        payment_method: SecretString::from(event.payment_method.clone()),
        merchant_reference: event.merchant_reference.clone(),
        expires_at: event.expires_at,
    };
    (Arc::new(stripe), order)
}

/// Has the PSP charge an order, without a word to the database; returns the PSP's id of the payment.
pub(crate) async fn pay(world: &World, id: Uuid) -> String {
    let (stripe, order) = stripe(world);
    let event = PaymentOrderRequestedEvent { payment_order_id: id, ..request("pm_card_visa") };
    let order = order(&event);
    let create = stripe.prepare(Operation::Create, &order, None).unwrap();
    let reference = stripe.send(&create, &order).await.reference.unwrap();
    let confirm = stripe.prepare(Operation::Confirm, &order, Some(&reference)).unwrap();
    stripe.send(&confirm, &order).await;
    reference
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_crash_the_psp_is_asked_wherever_it_happened() {
    let world = World::new("crashes").await;
    let (stripe, order) = stripe(&world);
    let call = async |event: &PaymentOrderRequestedEvent, operation, reference: Option<String>| {
        let order = order(event);
        let call = stripe.prepare(operation, &order, reference.as_deref()).unwrap();
        stripe.send(&call, &order).await.reference
    };
    // Before the creation was sent, after it, after its id was stored, after the confirmation; and a decline.
    let not_sent = request("pm_card_visa");
    died(&world, &not_sent, Operation::Create, None).await;
    let created = request("pm_card_visa");
    call(&created, Operation::Create, None).await.unwrap();
    died(&world, &created, Operation::Create, None).await;
    let stored = request("pm_card_visa");
    let reference = call(&stored, Operation::Create, None).await;
    died(&world, &stored, Operation::Confirm, reference.as_deref()).await;
    let confirmed = request("pm_card_visa");
    let reference = call(&confirmed, Operation::Create, None).await;
    call(&confirmed, Operation::Confirm, reference.clone()).await.unwrap();
    died(&world, &confirmed, Operation::Confirm, reference.as_deref()).await;
    let declined = request("pm_card_chargeDeclinedLostCard");
    let reference = call(&declined, Operation::Create, None).await;
    call(&declined, Operation::Confirm, reference.clone()).await.unwrap();
    died(&world, &declined, Operation::Confirm, reference.as_deref()).await;

    let running = world.start(&[]);
    for (event, charges) in [(&not_sent, 1), (&created, 1), (&stored, 1), (&confirmed, 1), (&declined, 0)] {
        let id = event.payment_order_id;
        world.wait_for_state(id, "SETTLED").await;
        assert_eq!(world.charges(id).await, charges);
        let (status, code) = if charges == 1 {
            ("SUCCESSFUL", None)
        } else {
            ("FAILED", Some("card_declined/lost_card".to_owned()))
        };
        assert_eq!(world.results(id).await, [(status.to_owned(), code, "RESOLVER".to_owned())]);
        assert_eq!(world.calls(id).await[0].1.as_deref(), Some("ABANDONED"));
    }
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_is_too_old_is_never_begun() {
    let world = World::new("expired").await;
    let running = world.start(&[]);
    let mut event = request("pm_card_visa");
    event.expires_at = OffsetDateTime::now_utc() - Duration::from_secs(1);
    world.send(&event, &TraceContext::new_trace()).await;
    let id = event.payment_order_id;
    world.wait_for_state(id, "REVIEW").await;
    assert_eq!(
        world.results(id).await,
        [("UNKNOWN".to_owned(), Some("EXPIRED".to_owned()), "REPLY".to_owned())]
    );
    assert_eq!((world.calls(id).await.len(), world.ledger().await.len()), (0, 0));
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_was_created_in_time_but_not_confirmed_is_cancelled_when_it_is_too_late() {
    let world = World::new("too_late").await;
    let (stripe, order) = stripe(&world);
    let mut event = request("pm_card_visa");
    let order = order(&event);
    let create = stripe.prepare(Operation::Create, &order, None).unwrap();
    let reference = stripe.send(&create, &order).await.reference;
    event.expires_at = OffsetDateTime::now_utc() - Duration::from_secs(1);
    died(&world, &event, Operation::Confirm, reference.as_deref()).await;
    let running = world.start(&[]);
    let id = event.payment_order_id;
    world.wait_for_state(id, "SETTLED").await;
    assert_eq!(
        world.results(id).await,
        [("FAILED".to_owned(), Some("EXPIRED".to_owned()), "RESOLVER".to_owned())]
    );
    assert_eq!(world.ledger().await.len(), 0);
    running.stop().await;
}

/// An order that was never taken up, of which a webhook told the PSP's id already.
async fn told_before_it_was_begun(world: &World, event: &PaymentOrderRequestedEvent, reference: &str) {
    sqlx::query(
        "INSERT INTO executor.inbox (payment_order_id, psp, amount_minor, currency, payment_method, merchant_reference, expires_at,
                                     traceparent, psp_reference)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
    )
    .bind(event.payment_order_id)
    .bind(&event.psp)
    .bind(event.amount_minor)
    .bind(&event.currency)
    .bind(&event.payment_method)
    .bind(&event.merchant_reference)
    .bind(event.expires_at)
    .bind(TraceContext::new_trace().traceparent())
    .bind(reference)
    .execute(&world.pool)
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_whose_first_call_is_a_look_up_is_carried_out_like_any_other() {
    let world = World::new("look_up_first").await;
    let (stripe, order) = stripe(&world);
    let (fresh, mut old) = (request("pm_card_visa"), request("pm_card_visa"));
    old.expires_at = OffsetDateTime::now_utc() - Duration::from_secs(1);
    for event in [&fresh, &old] {
        let order = order(event);
        let create = stripe.prepare(Operation::Create, &order, None).unwrap();
        let reference = stripe.send(&create, &order).await.reference.unwrap();
        told_before_it_was_begun(&world, event, &reference).await;
    }
    let running = world.start(&[]);
    for (event, status, last) in [(&fresh, "SUCCESSFUL", "CONFIRM"), (&old, "FAILED", "CANCEL")] {
        let id = event.payment_order_id;
        world.wait_for_state(id, "SETTLED").await;
        assert_eq!(world.results(id).await[0].0, status);
        let made: Vec<String> = world.calls(id).await.into_iter().map(|(operation, _)| operation).collect();
        assert_eq!(made, ["GET", last]);
    }
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn after_the_psp_may_have_forgotten_the_key_nothing_is_sent_again() {
    let world = World::new("forgotten").await;
    let event = request("pm_card_visa");
    died(&world, &event, Operation::Create, None).await;
    sqlx::query("UPDATE executor.inbox SET first_attempt_at = now() - interval '23 hours'")
        .execute(&world.pool)
        .await
        .unwrap();
    let running = world.start(&[]);
    let id = event.payment_order_id;
    world.wait_for_state(id, "REVIEW").await;
    let expected = ("UNKNOWN".to_owned(), Some("RESOLUTION_EXHAUSTED".to_owned()), "RESOLVER".to_owned());
    assert_eq!(world.results(id).await, [expected]);
    assert_eq!(world.ledger().await.len(), 0);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_ladder_ends_in_review_and_never_in_failure() {
    let world = World::new("ladder").await;
    let event = request("pm_card_visa");
    // An id that this PSP does not know: each look-up fails, and proves nothing.
    died(&world, &event, Operation::Confirm, Some("pi_unknown")).await;
    let running = world.start(&["--resolve-after=100ms", "--resolve-then=100ms,100ms"]);
    let id = event.payment_order_id;
    world.wait_for_state(id, "REVIEW").await;
    let expected = ("UNKNOWN".to_owned(), Some("RESOLUTION_EXHAUSTED".to_owned()), "RESOLVER".to_owned());
    assert_eq!(world.results(id).await, [expected]);
    let looked = world.calls(id).await.iter().filter(|(operation, _)| operation == "GET").count();
    assert_eq!(looked, 4, "when the lease ran out, and three steps");
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_psp_that_is_not_there_is_tried_again_with_the_same_key() {
    let world = World::new("psp_down").await;
    let port = testbed::stack::free_port().unwrap();
    let url = format!("--stripe-base-url=http://127.0.0.1:{port}");
    let running = world.start(&[&url]);
    let id = world.request("pm_card_visa").await;
    world.wait_for_count("SELECT count(*) FROM executor.inbox WHERE failures >= 2", 1).await;
    assert_eq!(world.results(id).await, [], "nothing was executed: there is no result");
    let stop = tokio_util::sync::CancellationToken::new();
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", port)).await.unwrap();
    let config = <psp_simulator::Config as clap::Parser>::parse_from(["psp-simulator"]);
    tokio::spawn(psp_simulator::run(listener, config, stop.clone()));
    world.wait_for_state(id, "SETTLED").await;
    assert_eq!(world.results(id).await[0].0, "SUCCESSFUL");
    let keys = world.count("SELECT count(DISTINCT idempotency_key || request_hash) FROM executor.psp_attempts WHERE operation = 'CREATE'");
    let tries = world.count("SELECT max(try)::bigint FROM executor.psp_attempts WHERE operation = 'CREATE'");
    assert_eq!(keys.await, 1);
    assert!(tries.await >= 3);
    running.stop().await;
    stop.cancel();
}
