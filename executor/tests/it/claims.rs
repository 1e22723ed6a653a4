//! Several executors on one database.

use std::time::{Duration, Instant};

use chassis::telemetry::TraceContext;
use executor::{
    psp::{Answer, Operation, Verdict},
    record::{Finding, Ladder, Outcome, Source, record},
    store::{Advance, Finished, Started},
};
use schema::{
    payment_order_requested::PaymentOrderRequestedEvent,
    psp_result_update::{PspResultUpdateEvent, PspStatus},
};
use sqlx::Connection as _;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::{
    doubt::{claimed, died},
    setup::{World, request},
};

#[tokio::test(flavor = "multi_thread")]
async fn two_executors_never_make_the_same_call() {
    let world = World::new("two").await;
    let (first, second) = (world.start(&[]), world.start(&[]));
    let events: Vec<_> = (0..300).map(|_| request("pm_card_visa")).collect();
    world.send_all(&events).await;
    world.wait_for_count("SELECT count(*) FROM executor.inbox WHERE state = 'SETTLED'", 300).await;
    let twice = "SELECT count(*) FROM (SELECT FROM executor.psp_attempts GROUP BY payment_order_id, operation HAVING count(*) > 1) AS x";
    assert_eq!(world.count(twice).await, 0);
    assert_eq!(world.count("SELECT count(*) FROM executor.psp_attempts WHERE status = 'STARTED'").await, 0);
    assert_eq!(world.ledger().await.len(), 300);
    assert_eq!(world.count("SELECT count(*) FROM outbox.events").await, 300);
    first.stop().await;
    second.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_stops_in_the_middle_and_another_goes_on_without_waiting_for_a_lease() {
    let world = World::new("handover").await;
    let first = world.start(&["--lease=1m", "--concurrency=4"]);
    let events: Vec<_> = (0..200).map(|_| request("pm_card_visa")).collect();
    world.send_all(&events).await;
    first.stop().await;
    let second = world.start(&["--lease=1m"]);
    let begun = Instant::now();
    world.wait_for_count("SELECT count(*) FROM executor.inbox WHERE state = 'SETTLED'", 200).await;
    assert!(begun.elapsed() < Duration::from_secs(30));
    assert_eq!(world.ledger().await.len(), 200);
    second.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_transaction_is_open_while_the_psp_is_called() {
    let world = World::new("no_transaction").await;
    let running = world.start(&["--psp-timeout=6s"]);
    let events: Vec<_> = (0..20).map(|_| request("pm_sim_timeout_before_charge")).collect();
    world.send_all(&events).await;
    let stalled =
        "SELECT count(*) FROM executor.psp_attempts WHERE status = 'STARTED' AND operation = 'CONFIRM'";
    world.wait_for_count(stalled, 20).await;
    // The loops go on looking for work, in transactions of a few milliseconds: none may stay.
    let open = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'executor'
                AND (state LIKE 'idle in transaction%' OR state = 'active') AND xact_start < clock_timestamp() - interval '500 ms'";
    let mut looks = 0;
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_millis(1500) {
        assert_eq!(world.count(open).await, 0);
        looks += 1;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(looks > 10);
    assert_eq!(world.count(stalled).await, 20, "they still wait for the PSP");
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_that_was_lost_makes_no_further_call_and_its_answer_counts_all_the_same() {
    let world = World::new("fenced").await;
    let running = world.start(&["--psp-timeout=6s"]);
    let id = world.request("pm_sim_slow").await;
    let calling =
        "SELECT count(*) FROM executor.psp_attempts WHERE status = 'STARTED' AND operation = 'CONFIRM'";
    world.wait_for_count(calling, 1).await;
    // Somebody else takes it, and does not do anything.
    let take =
        "UPDATE executor.inbox SET claimed_by = gen_random_uuid(), lease_until = now() + interval '1 h'";
    sqlx::query(take).execute(&world.pool).await.unwrap();
    let before = world.calls(id).await.len();
    world.wait_for_state(id, "SETTLED").await;
    assert_eq!(world.results(id).await, [("SUCCESSFUL".to_owned(), None, "REPLY".to_owned())]);
    assert_eq!((world.calls(id).await.len(), world.charges(id).await), (before, 1));

    // A further call needs the claim: under another one it is not even written down.
    let other = world.request("pm_sim_timeout_before_charge").await;
    world.wait_for_count(calling, 1).await;
    let lost = Advance {
        payment_order_id: other,
        claim: Uuid::new_v4(),
        finished: Finished { attempt_id: Uuid::new_v4(), answer: Answer::new(Verdict::Unconfirmed) },
        started: Started {
            attempt_id: Uuid::now_v7(),
            operation: Operation::Cancel,
            idempotency_key: Some("key".to_owned()),
            request_hash: "hash".to_owned(),
        },
    };
    let service = sqlx::PgPool::connect(&world.database.url("executor")).await.unwrap();
    let second = Duration::from_secs(1);
    let left = executor::store::advance(&service, second, second, second, &[lost]).await.unwrap();
    assert_eq!(left, [None]);
    let cancels = "SELECT count(*) FROM executor.psp_attempts WHERE operation = 'CANCEL'";
    assert_eq!(world.count(cancels).await, 0);
    running.stop().await;
}

/// A claim can be committed without its process ever knowing: the connection is gone before the answer. If somebody else then brings the
/// result, nobody claims the order again.
#[tokio::test(flavor = "multi_thread")]
async fn an_order_that_has_come_to_an_end_has_no_open_call_and_a_late_answer_still_counts() {
    let world = World::new("no_open_call").await;
    let event = request("pm_card_visa");
    let payment_order_id = event.payment_order_id;
    claimed(&world, &event, Operation::Confirm, Some("pi_1"), "1 h").await;
    let service = sqlx::PgPool::connect(&world.database.url("executor")).await.unwrap();
    let ladder = Ladder::of(&world.config(&[]));
    let told = |finished| {
        let result = PspResultUpdateEvent {
            payment_order_id,
            psp_status: PspStatus::Successful,
            psp_reference: Some("pi_1".to_owned()),
            event_time: OffsetDateTime::now_utc(),
            error_code: None,
            error_message: None,
        };
        Finding {
            payment_order_id,
            source: Source::Reply,
            claim: Some(Uuid::new_v4()),
            finished,
            outcome: Outcome::Result(result),
            in_doubt: false,
            event_id: Uuid::now_v7(),
            within: None,
        }
    };
    record(service.clone(), ladder.clone(), vec![told(None)]).await.unwrap();
    world.wait_for_state(payment_order_id, "SETTLED").await;
    let open = "SELECT count(*) FROM executor.psp_attempts WHERE status = 'STARTED'";
    assert_eq!(world.count(open).await, 0);
    let (attempt_id, verdict): (Uuid, String) =
        sqlx::query_as("SELECT attempt_id, verdict FROM executor.psp_attempts WHERE operation = 'CONFIRM'")
            .fetch_one(&world.pool)
            .await
            .unwrap();
    assert_eq!(verdict, "ABANDONED");
    // There was somebody after all.
    let late = Finished { attempt_id, answer: Answer::new(Verdict::Succeeded) };
    record(service, ladder, vec![told(Some(late))]).await.unwrap();
    let answered =
        "SELECT count(*) FROM executor.psp_attempts WHERE operation = 'CONFIRM' AND verdict = 'SUCCEEDED'";
    assert_eq!(world.count(answered).await, 1);
    assert_eq!(world.events(payment_order_id).await.len(), 1, "what agrees is one event");
}

/// Whatever it is that the database has against one order, the others of its PSP are carried out.
#[tokio::test(flavor = "multi_thread")]
async fn an_order_whose_claim_is_refused_is_set_aside_and_holds_nobody_up() {
    let world = World::new("set_aside").await;
    for sql in [
        "CREATE FUNCTION public.poison() RETURNS trigger LANGUAGE plpgsql AS $$
         BEGIN RAISE EXCEPTION 'poison' USING ERRCODE = 'check_violation'; END $$",
        "CREATE TRIGGER poison BEFORE UPDATE ON executor.inbox FOR EACH ROW
         WHEN (NEW.merchant_reference = 'poison' AND NEW.state = 'IN_FLIGHT') EXECUTE FUNCTION public.poison()",
    ] {
        sqlx::query(sql).execute(&world.pool).await.unwrap();
    }
    let poisoned =
        || PaymentOrderRequestedEvent { merchant_reference: "poison".to_owned(), ..request("pm_card_visa") };
    // One to be carried out, one whose process is gone; each the first in its queue.
    let (fresh, left) = (poisoned(), poisoned());
    died(&world, &left, Operation::Create, None).await;
    let fine = request("pm_card_visa");
    world.send(&fresh, &TraceContext::new_trace()).await;
    let running = world.start(&[]);
    world.wait_for_count("SELECT count(*) FROM executor.parked", 2).await;
    died(&world, &fine, Operation::Create, None).await;
    let others: Vec<_> = (0..100).map(|_| request("pm_card_visa")).collect();
    world.send_all(&others).await;
    world.wait_for_count("SELECT count(*) FROM executor.inbox WHERE state = 'SETTLED'", 101).await;
    world
        .wait_for_count(
            "SELECT count(*) FROM executor.parked WHERE refusals >= 3 AND sqlstate = '23514' AND reason LIKE '%poison%'",
            2,
        )
        .await;
    for event in [&fresh, &left] {
        assert_eq!(world.charges(event.payment_order_id).await, 0);
        assert_eq!(world.results(event.payment_order_id).await, []);
    }
    sqlx::query("DROP TRIGGER poison ON executor.inbox").execute(&world.pool).await.unwrap();
    sqlx::query("UPDATE executor.parked SET again_at = now()").execute(&world.pool).await.unwrap();
    for event in [&fresh, &left] {
        world.wait_for_state(event.payment_order_id, "SETTLED").await;
        assert_eq!(world.charges(event.payment_order_id).await, 1);
    }
    assert_eq!(world.count("SELECT count(*) FROM executor.parked").await, 0);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn orders_are_locked_in_the_order_of_their_ids_whatever_the_order_of_the_answers() {
    let world = World::new("lock_order").await;
    let mut events: Vec<_> = (0..8).map(|_| request("pm_card_visa")).collect();
    events.sort_by_key(|event| std::cmp::Reverse(event.payment_order_id));
    for event in &events {
        claimed(&world, event, Operation::Create, None, "1 h").await;
    }
    let mut advances = Vec::new();
    for event in &events {
        let payment_order_id = event.payment_order_id;
        let (claim, attempt_id) = sqlx::query_as(
            "SELECT i.claimed_by, a.attempt_id FROM executor.inbox i JOIN executor.psp_attempts a USING (payment_order_id)
             WHERE payment_order_id = $1",
        )
        .bind(payment_order_id)
        .fetch_one(&world.pool)
        .await
        .unwrap();
        let started = Started {
            attempt_id: Uuid::now_v7(),
            operation: Operation::Confirm,
            idempotency_key: Some("key".to_owned()),
            request_hash: "hash".to_owned(),
        };
        let finished = Finished { attempt_id, answer: Answer::new(Verdict::Unconfirmed) };
        advances.push(Advance { payment_order_id, claim, finished, started });
    }
    let (largest, smallest) = (events[0].payment_order_id, events[7].payment_order_id);
    let lock = "SELECT FROM executor.inbox WHERE payment_order_id = $1 FOR NO KEY UPDATE NOWAIT";
    let mut connection = world.pool.acquire().await.unwrap();
    let mut other = connection.begin().await.unwrap();
    sqlx::query(lock).bind(smallest).execute(&mut *other).await.unwrap();
    let service = sqlx::PgPool::connect(&world.database.url("executor")).await.unwrap();
    let second = Duration::from_secs(1);
    let advanced = tokio::spawn(async move {
        executor::store::advance(&service, second, second, second, &advances).await.unwrap()
    });
    let waits = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
    world.wait_for_count(waits, 1).await;
    // It waits for the smallest id, and holds none that follows.
    sqlx::query(lock).bind(largest).execute(&mut *other).await.unwrap();
    other.commit().await.unwrap();
    assert!(advanced.await.unwrap().iter().all(Option::is_some));
    let finished =
        "SELECT count(*) FROM executor.psp_attempts WHERE verdict = 'UNCONFIRMED' AND status = 'FINISHED'";
    assert_eq!(world.count(finished).await, 8);
}
