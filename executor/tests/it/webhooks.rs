//! What PSPs tell by themselves: early, late, twice, out of order, contradicting, and about strangers.

use std::time::Duration;

use chassis::telemetry::TraceContext;
use executor::psp::Operation;
use reqwest::StatusCode;
use sqlx::PgPool;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::{
    sender::{Psp, adyen_item, start, stripe_event},
    setup::{World, request},
};

/// An order in this state, which nothing else than a webhook will look at for an hour; returns its trace, too.
async fn order(world: &World, psp: &str, state: &str) -> (Uuid, TraceContext) {
    let (id, trace) = (Uuid::new_v4(), TraceContext::new_trace());
    sqlx::query(
        "INSERT INTO executor.inbox (payment_order_id, psp, amount_minor, currency, payment_method, merchant_reference, expires_at,
                                     traceparent, state, step, first_attempt_at, psp_status, due_at, rung)
         VALUES ($1, $2, 1999, 'EUR', 'pm_card_visa', 'm', now() + interval '1 h', $3, $4,
                 CASE WHEN $4 <> 'QUEUED' THEN 'CREATE' END, CASE WHEN $4 <> 'QUEUED' THEN now() END,
                 CASE WHEN $4 <> 'QUEUED' THEN 'UNKNOWN' END, now() + interval '1 h', 3)",
    )
    .bind(id)
    .bind(psp)
    .bind(trace.traceparent())
    .bind(state)
    .execute(&world.pool)
    .await
    .unwrap();
    (id, trace)
}

fn result(status: &str, code: Option<&str>, source: &str) -> (String, Option<String>, String) {
    (status.to_owned(), code.map(str::to_owned), source.to_owned())
}

async fn outcomes(world: &World, id: Uuid) -> Vec<String> {
    sqlx::query_scalar(
        "SELECT coalesce(outcome, '') FROM executor.webhooks WHERE payment_order_id = $1 ORDER BY webhook_id",
    )
    .bind(id)
    .fetch_all(&world.pool)
    .await
    .unwrap()
}

const WAITING: &str = "SELECT count(*) FROM executor.webhooks WHERE processed_at IS NULL";
const DONE: &str = "SELECT count(*) FROM executor.webhooks WHERE processed_at IS NOT NULL";

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_replays_at_once_have_one_effect() {
    let world = World::new("replays").await;
    let (running, url) = start(&world, &["--webhooks-concurrency=1024"]);
    let psp = Psp::to(&url).await;
    let (id, trace) = order(&world, "STRIPE", "RESOLVING").await;
    let (adyens, _) = order(&world, "ADYEN", "RESOLVING").await;
    let event = stripe_event("evt_1", "payment_intent.succeeded", "succeeded", id, "pi_1", 1999);
    let all = futures::future::join_all((0..1000).map(|n| {
        let (psp, event) = (&psp, event.clone());
        async move {
            if n % 2 == 0 {
                psp.stripe(event).await
            } else {
                psp.adyen(&[adyen_item("PSP1", "AUTHORISATION", "true", adyens, 1999)]).await
            }
        }
    }));
    assert!(all.await.iter().all(|status| *status == StatusCode::OK));
    for id in [id, adyens] {
        world.wait_for_state(id, "SETTLED").await;
        assert_eq!(world.results(id).await, [result("SUCCESSFUL", None, "WEBHOOK")]);
        assert_eq!(world.events(id).await.len(), 1);
        assert_eq!(outcomes(&world, id).await, ["RECORDED"]);
    }
    let events = world.events(id).await;
    assert_eq!(TraceContext::parse(&events[0].2).unwrap().trace_id(), trace.trace_id(), "the trace goes on");
    assert_eq!(events[0].1["pspReference"], "pi_1");
    assert_eq!(world.ledger().await.len(), 0, "nobody was asked");
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_comes_late_is_evidence_and_what_contradicts_is_published() {
    let world = World::new("late").await;
    let (running, url) = start(&world, &[]);
    let psp = Psp::to(&url).await;
    let id = world.request("pm_card_visa").await;
    world.wait_for_state(id, "SETTLED").await;
    let intent: String =
        sqlx::query_scalar("SELECT psp_reference FROM executor.inbox").fetch_one(&world.pool).await.unwrap();
    let tell = async |event: &str, kind: &str, status: &str, intent: &str| {
        let before = world.count(DONE).await;
        assert_eq!(psp.stripe(stripe_event(event, kind, status, id, intent, 1999)).await, StatusCode::OK);
        world.wait_for_count(DONE, before + 1).await;
    };
    // Overtaken, and what is known.
    tell("evt_1", "payment_intent.created", "requires_payment_method", &intent).await;
    tell("evt_2", "payment_intent.succeeded", "succeeded", &intent).await;
    tell("evt_3", "payment_intent.processing", "processing", &intent).await;
    assert_eq!(world.results(id).await, [result("SUCCESSFUL", None, "REPLY")]);
    // Contradictions: a failure of what was paid, and a second success.
    tell("evt_4", "payment_intent.payment_failed", "requires_payment_method", &intent).await;
    tell("evt_5", "payment_intent.canceled", "canceled", &intent).await;
    tell("evt_6", "payment_intent.succeeded", "succeeded", "pi_another").await;
    assert_eq!(outcomes(&world, id).await, ["KNOWN", "KNOWN", "KNOWN", "RECORDED", "KNOWN", "RECORDED"]);
    let said: Vec<(String, String)> = world
        .events(id)
        .await
        .into_iter()
        .map(|(_, payload, _)| (payload["pspStatus"].to_string(), payload["pspReference"].to_string()))
        .collect();
    let quoted = |text: &str| format!("\"{text}\"");
    assert_eq!(
        said,
        [
            (quoted("SUCCESSFUL"), quoted(&intent)),
            (quoted("FAILED"), quoted(&intent)),
            (quoted("SUCCESSFUL"), quoted("pi_another"))
        ]
    );
    assert_eq!(world.state(id).await.as_deref(), Some("SETTLED"));
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_comes_before_its_order_waits_for_it() {
    let world = World::new("early").await;
    let (running, url) = start(&world, &["--webhook-orphans-for=1500ms"]);
    let psp = Psp::to(&url).await;
    let unknown = Uuid::new_v4();
    psp.stripe(stripe_event("evt_0", "payment_intent.succeeded", "succeeded", unknown, "pi_0", 1999)).await;
    world.wait_for_count(WAITING, 1).await;
    // Told before anything was begun, as after a database was put back.
    let (id, _) = order(&world, "STRIPE", "QUEUED").await;
    psp.stripe(stripe_event("evt_1", "payment_intent.succeeded", "succeeded", id, "pi_1", 1999)).await;
    world.wait_for_state(id, "SETTLED").await;
    assert_eq!(world.results(id).await, [result("SUCCESSFUL", None, "WEBHOOK")]);
    assert_eq!(world.calls(id).await, [], "the first call is not made any more");
    world.wait_for_count(WAITING, 0).await;
    assert_eq!(outcomes(&world, unknown).await, ["UNKNOWN_ORDER"], "given up, counted, and still there");
    let tries: i32 =
        sqlx::query_scalar("SELECT tries FROM executor.webhooks WHERE outcome = 'UNKNOWN_ORDER'")
            .fetch_one(&world.pool)
            .await
            .unwrap();
    assert!(tries > 2, "{tries}");
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_that_turns_up_finds_the_event_that_waited() {
    let world = World::new("turns_up").await;
    let (running, url) = start(&world, &[]);
    let psp = Psp::to(&url).await;
    let event = request("pm_card_visa");
    let id = event.payment_order_id;
    psp.stripe(stripe_event("evt_1", "payment_intent.canceled", "canceled", id, "pi_gone", 1999)).await;
    world
        .wait_for_count("SELECT count(*) FROM executor.webhooks WHERE tries >= 2 AND processed_at IS NULL", 1)
        .await;
    sqlx::query(
        "INSERT INTO executor.inbox (payment_order_id, psp, amount_minor, currency, payment_method, merchant_reference, expires_at,
                                     traceparent, due_at)
         VALUES ($1, 'STRIPE', 1999, 'EUR', 'pm_card_visa', 'm', now() + interval '1 h', $2, now() + interval '1 h')",
    )
    .bind(id)
    .bind(TraceContext::new_trace().traceparent())
    .execute(&world.pool)
    .await
    .unwrap();
    world.wait_for_state(id, "SETTLED").await;
    assert_eq!(world.results(id).await, [result("FAILED", Some("CANCELLED"), "WEBHOOK")]);
    running.stop().await;
}

/// As many events as these, all due, of orders that nobody here knows.
async fn strangers(world: &World, count: i32) {
    sqlx::query(
        "INSERT INTO executor.webhooks (psp, dedup_key, event_type, payment_order_id, body, body_masked, received_at, due_at, stranger)
         SELECT 'STRIPE', 'evt_strange_' || n, 'payment_intent.succeeded', gen_random_uuid(), '{}', false, now(),
                now() - interval '1 h', true
         FROM generate_series(1, $1) n",
    )
    .bind(count)
    .execute(&world.pool)
    .await
    .unwrap();
}

/// The account is shared with another system, whose events are many, and come before ours.
#[tokio::test(flavor = "multi_thread")]
async fn what_strangers_are_told_holds_up_nothing_of_ours() {
    let world = World::new("strangers").await;
    let (mut ours, mut events) = (vec![], vec![]);
    for n in 0..20 {
        let (id, _) = order(&world, "STRIPE", "RESOLVING").await;
        let (event, intent) = (format!("evt_{n}"), format!("pi_{n}"));
        events.push(stripe_event(&event, "payment_intent.succeeded", "succeeded", id, &intent, 1999));
        ours.push(id);
    }
    strangers(&world, 20_000).await;
    let (running, url) = start(&world, &[]);
    let psp = Psp::to(&url).await;
    for event in events {
        assert_eq!(psp.stripe(event).await, StatusCode::OK);
    }
    for id in &ours {
        world.wait_for_state(*id, "SETTLED").await;
    }
    let looked_at = "SELECT count(*) FROM executor.webhooks WHERE stranger AND tries > 0";
    let before = world.count(looked_at).await;
    assert!(before < 20_000, "all of them came first");
    // They are looked at, too, and wait ever longer.
    world
        .wait_for_count(
            "SELECT least(count(*), 1000) FROM executor.webhooks WHERE stranger AND tries > 0",
            1000,
        )
        .await;
    // An event is told apart when it comes.
    let unknown = Uuid::new_v4();
    psp.stripe(stripe_event("evt_x", "payment_intent.succeeded", "succeeded", unknown, "pi_x", 1999)).await;
    let apart = "SELECT count(*) FROM executor.webhooks WHERE dedup_key = 'evt_x' AND stranger";
    assert_eq!(world.count(apart).await, 1);
    running.stop().await;
}

/// Those beyond the limit are given up, the oldest first; what names no order is not even stored.
#[tokio::test(flavor = "multi_thread")]
async fn only_so_many_events_of_strangers_are_kept_waiting() {
    let world = World::new("strangers_max").await;
    strangers(&world, 150).await;
    let (running, url) = start(&world, &["--webhook-strangers-max=100"]);
    let psp = Psp::to(&url).await;
    let waiting = "SELECT count(*) FROM executor.webhooks WHERE processed_at IS NULL AND stranger";
    world.wait_for_count(waiting, 100).await;
    let kept = "SELECT count(*) FROM executor.webhooks WHERE processed_at IS NULL AND substr(dedup_key, 13)::int > 50";
    assert_eq!(world.count(kept).await, 100, "the newest");
    let given_up = "SELECT count(*) FROM executor.webhooks WHERE outcome = 'UNKNOWN_ORDER'";
    assert_eq!(world.count(given_up).await, 50);
    let foreign = r#"{"id": "evt_f", "type": "customer.created", "livemode": false, "data": {"object": {"object": "customer"}}}"#;
    assert_eq!(psp.stripe(foreign.into()).await, StatusCode::OK);
    assert_eq!(world.count("SELECT count(*) FROM executor.webhooks WHERE dedup_key = 'evt_f'").await, 0);
    running.stop().await;
}

/// Told before the request was read, as after a database was put back: the request itself has the event looked at.
#[tokio::test(flavor = "multi_thread")]
async fn a_request_finds_the_event_that_came_before_it_at_once() {
    let world = World::new("request_after").await;
    let (running, url) = start(&world, &[]);
    let psp = Psp::to(&url).await;
    let event = request("pm_sim_timeout_before_charge");
    let id = event.payment_order_id;
    psp.stripe(stripe_event("evt_1", "payment_intent.succeeded", "succeeded", id, "pi_1", 1999)).await;
    // By itself it would be looked at in an hour.
    let put_off = "WITH u AS (UPDATE executor.webhooks SET tries = 20, due_at = now() + interval '1 h'
                              WHERE stranger AND tries > 0 RETURNING 1) SELECT count(*) FROM u";
    world.wait_for_count(put_off, 1).await;
    world.send(&event, &TraceContext::new_trace()).await;
    world.wait_for_state(id, "SETTLED").await;
    assert_eq!(world.results(id).await[0], result("SUCCESSFUL", None, "WEBHOOK"));
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hint_has_the_psp_asked_at_once_and_uses_up_no_step() {
    let world = World::new("hints").await;
    let (running, url) = start(&world, &["--resolve-after=1h", "--resolve-then=1h,1h,1h,1h"]);
    let psp = Psp::to(&url).await;
    // Created and confirmed at the PSP by somebody who died; the next look is due in an hour.
    let (paid, _) = order(&world, "STRIPE", "RESOLVING").await;
    let intent = crate::doubt::pay(&world, paid).await;
    psp.stripe(stripe_event("evt_1", "payment_intent.processing", "processing", paid, &intent, 1999)).await;
    world.wait_for_state(paid, "SETTLED").await;
    assert_eq!(world.results(paid).await, [result("SUCCESSFUL", None, "RESOLVER")]);
    assert_eq!(world.calls(paid).await, [("GET".to_owned(), Some("SUCCEEDED".to_owned()))]);
    assert_eq!(world.charges(paid).await, 1);
    // A PSP that does not know it: hint after hint leads to look-ups, and not to the end of the ladder.
    let (lost, _) = order(&world, "STRIPE", "RESOLVING").await;
    for n in 0..5 {
        let event = format!("evt_lost_{n}");
        psp.stripe(stripe_event(&event, "payment_intent.processing", "processing", lost, "pi_lost", 1999))
            .await;
        let looks =
            "SELECT count(*) FROM executor.psp_attempts WHERE operation = 'GET' AND status = 'FINISHED'";
        world.wait_for_count(looks, 2 + n).await;
        world.wait_for_count("SELECT count(*) FROM executor.inbox WHERE state = 'RESOLVING'", 1).await;
    }
    let rung = "SELECT rung::bigint FROM executor.inbox WHERE state = 'RESOLVING'";
    assert_eq!(world.count(rung).await, 3, "as before the hints");
    assert_eq!(world.results(lost).await, []);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_amount_calls_a_person() {
    let world = World::new("webhook_amount").await;
    let (running, url) = start(&world, &[]);
    let psp = Psp::to(&url).await;
    let (stripes, _) = order(&world, "STRIPE", "RESOLVING").await;
    let (adyens, _) = order(&world, "ADYEN", "RESOLVING").await;
    psp.stripe(stripe_event("evt_1", "payment_intent.succeeded", "succeeded", stripes, "pi_1", 2000)).await;
    psp.adyen(&[adyen_item("PSP1", "AUTHORISATION", "true", adyens, 1998)]).await;
    for id in [stripes, adyens] {
        world.wait_for_state(id, "REVIEW").await;
        assert_eq!(world.results(id).await, [result("UNKNOWN", Some("AMOUNT_MISMATCH"), "WEBHOOK")]);
    }
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn adyen_says_what_became_of_what_nobody_can_look_up() {
    let world = World::new("adyen_webhooks").await;
    let (running, url) = start(&world, &[]);
    let psp = Psp::to(&url).await;
    let (paid, _) = order(&world, "ADYEN", "RESOLVING").await;
    let (refused, _) = order(&world, "ADYEN", "RESOLVING").await;
    let (strange, _) = order(&world, "STRIPE", "RESOLVING").await;
    // Several in one request, and one that is not about our orders at all.
    let items = [
        adyen_item("PSP1", "AUTHORISATION", "true", paid, 1999),
        adyen_item("PSP2", "AUTHORISATION", "false", refused, 1999),
        adyen_item("PSP3", "AUTHORISATION", "true", strange, 1999),
        adyen_item("PSP4", "REPORT_AVAILABLE", "true", paid, 0),
    ];
    assert_eq!(psp.adyen(&items).await, StatusCode::OK);
    world.wait_for_state(paid, "SETTLED").await;
    world.wait_for_state(refused, "SETTLED").await;
    assert_eq!(world.results(paid).await, [result("SUCCESSFUL", None, "WEBHOOK")]);
    assert_eq!(world.results(refused).await, [result("FAILED", Some("refused"), "WEBHOOK")]);
    world.wait_for_count(WAITING, 0).await;
    assert_eq!(outcomes(&world, strange).await, ["UNRELATED"]);
    assert_eq!(outcomes(&world, paid).await, ["RECORDED", "IGNORED"]);
    running.stop().await;
}

/// Adyen's TECHNICAL_CANCEL goes by our reference, and need not name the payment.
#[tokio::test(flavor = "multi_thread")]
async fn a_cancellation_that_names_no_payment_says_nothing_new() {
    let world = World::new("cancelled_once").await;
    let (running, url) = start(&world, &[]);
    let psp = Psp::to(&url).await;
    let (cancelled, _) = order(&world, "ADYEN", "RESOLVING").await;
    let (refused, _) = order(&world, "ADYEN", "RESOLVING").await;
    let tell = async |item| {
        let before = world.count(DONE).await;
        assert_eq!(psp.adyen(&[item]).await, StatusCode::OK);
        world.wait_for_count(DONE, before + 1).await;
    };
    // Whichever comes first: one result.
    tell(adyen_item("CANCEL1", "TECHNICAL_CANCEL", "true", cancelled, 1999)).await;
    tell(adyen_item("PSP1", "AUTHORISATION", "false", cancelled, 1999)).await;
    tell(adyen_item("PSP2", "AUTHORISATION", "false", refused, 1999)).await;
    tell(adyen_item("CANCEL2", "TECHNICAL_CANCEL", "true", refused, 1999)).await;
    for (id, code) in [(cancelled, "CANCELLED"), (refused, "refused")] {
        assert_eq!(world.results(id).await, [result("FAILED", Some(code), "WEBHOOK")]);
        assert_eq!(world.events(id).await.len(), 1);
        assert_eq!(outcomes(&world, id).await, ["RECORDED", "KNOWN"]);
    }
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn several_processes_share_the_work_and_each_event_counts_once() {
    let world = World::new("share").await;
    let (first, url) = start(&world, &[]);
    let (second, other) = start(&world, &[]);
    let (one, two) = (Psp::to(&url).await, Psp::to(&other).await);
    let mut orders = vec![];
    for _ in 0..100 {
        orders.push(order(&world, "STRIPE", "RESOLVING").await.0);
    }
    let all = futures::future::join_all(orders.iter().enumerate().map(|(n, id)| {
        let psp = if n % 2 == 0 { &one } else { &two };
        let event = |kind: &str, status: &str| {
            stripe_event(&format!("evt_{n}_{kind}"), kind, status, *id, "pi_1", 1999)
        };
        // In the wrong order, and twice.
        let (late, early) = (
            event("payment_intent.succeeded", "succeeded"),
            event("payment_intent.processing", "processing"),
        );
        async move {
            psp.stripe(late.clone()).await;
            psp.stripe(early).await;
            psp.stripe(late).await
        }
    }));
    assert!(all.await.iter().all(|status| *status == StatusCode::OK));
    world.wait_for_count(DONE, 200).await;
    world.wait_for_count("SELECT count(*) FROM executor.inbox WHERE state = 'SETTLED'", 100).await;
    assert_eq!(
        world.count("SELECT count(*) FROM executor.psp_results WHERE psp_status = 'SUCCESSFUL'").await,
        100
    );
    assert_eq!(world.count("SELECT count(*) FROM executor.psp_results").await, 100);
    assert_eq!(world.count("SELECT count(*) FROM outbox.events").await, 100);
    first.stop().await;
    second.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_written_is_tried_again_and_holds_nobody_up() {
    let world = World::new("webhook_refused").await;
    let (running, url) = start(&world, &[]);
    let psp = Psp::to(&url).await;
    let (poison, _) = order(&world, "STRIPE", "RESOLVING").await;
    let (fine, _) = order(&world, "STRIPE", "RESOLVING").await;
    sqlx::query(
        "CREATE FUNCTION executor.poison() RETURNS trigger LANGUAGE plpgsql AS $$
         BEGIN IF NEW.psp_reference = 'pi_poison' THEN RAISE EXCEPTION 'poison'; END IF; RETURN NEW; END $$",
    )
    .execute(&world.pool)
    .await
    .unwrap();
    sqlx::query("CREATE TRIGGER poison BEFORE INSERT ON executor.psp_results FOR EACH ROW EXECUTE FUNCTION executor.poison()")
        .execute(&world.pool)
        .await
        .unwrap();
    psp.stripe(stripe_event("evt_1", "payment_intent.succeeded", "succeeded", poison, "pi_poison", 1999))
        .await;
    psp.stripe(stripe_event("evt_2", "payment_intent.succeeded", "succeeded", fine, "pi_2", 1999)).await;
    world.wait_for_state(fine, "SETTLED").await;
    world
        .wait_for_count(
            "SELECT count(*) FROM executor.webhooks WHERE failures >= 1 AND processed_at IS NULL",
            1,
        )
        .await;
    assert_eq!(world.results(poison).await, []);
    sqlx::query("DROP TRIGGER poison ON executor.psp_results").execute(&world.pool).await.unwrap();
    world.wait_for_state(poison, "SETTLED").await;
    assert_eq!(world.results(poison).await, [result("SUCCESSFUL", None, "WEBHOOK")]);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_worked_off_is_deleted_after_a_while_and_nothing_else() {
    let world = World::new("webhook_retention").await;
    sqlx::query(
        "INSERT INTO executor.webhooks (psp, dedup_key, event_type, body, body_masked, received_at, due_at, processed_at, outcome)
         SELECT 'STRIPE', 'evt_' || n, 'x', '', false, now() - interval '90 days', now() + interval '1 h',
                CASE WHEN n > 5 THEN now() - CASE WHEN n > 10 THEN interval '46 days' ELSE interval '44 days' END END,
                CASE WHEN n > 5 THEN 'IGNORED' END
         FROM generate_series(1, 2510) AS n",
    )
    .execute(&world.pool)
    .await
    .unwrap();
    let service = PgPool::connect(&world.database.url("executor")).await.unwrap();
    let before = OffsetDateTime::now_utc() - Duration::from_hours(24 * 45);
    let mut deleted = vec![];
    for _ in 0..4 {
        deleted.push(executor::store::webhooks::delete_old(&service, before).await.unwrap());
    }
    assert_eq!(deleted, [1000, 1000, 500, 0], "in pieces");
    assert_eq!(
        world.count("SELECT count(*) FROM executor.webhooks").await,
        10,
        "what waits, and what is young"
    );
    assert_eq!(executor::store::webhooks::waiting(&service).await.unwrap().0, 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_answer_of_a_call_under_way_comes_first_unless_money_moved() {
    let world = World::new("under_way").await;
    let (running, url) = start(&world, &[]);
    let psp = Psp::to(&url).await;
    let hold = async |operation: Operation| {
        let event = request("pm_card_visa");
        crate::doubt::claimed(&world, &event, operation, Some("pi_1"), "5 s").await;
        event.payment_order_id
    };
    let (closed, paid) = (hold(Operation::Cancel).await, hold(Operation::Confirm).await);
    psp.stripe(stripe_event("evt_1", "payment_intent.canceled", "canceled", closed, "pi_1", 1999)).await;
    psp.stripe(stripe_event("evt_2", "payment_intent.succeeded", "succeeded", paid, "pi_1", 1999)).await;
    world.wait_for_state(paid, "SETTLED").await;
    assert_eq!(world.results(closed).await, [], "the call is about to say why");
    assert_eq!(outcomes(&world, closed).await, [""]);
    // Nobody answers: then the webhook does.
    world.wait_for_state(closed, "SETTLED").await;
    assert_eq!(world.results(closed).await, [result("FAILED", Some("CANCELLED"), "WEBHOOK")]);
    running.stop().await;
}
