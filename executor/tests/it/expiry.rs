//! Time: a request has its day, doubt has its ladder, and neither a restored database nor a forgetful PSP makes a second charge.

use std::time::{Duration, Instant};

use executor::psp::Operation;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::{
    doubt::died,
    setup::{PATIENCE, World, request},
};

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_was_put_back_charges_nobody_again() {
    let mut world = World::new("put_back").await;
    let events: Vec<_> = (0..20).map(|_| request("pm_card_visa")).collect();
    world.send_all(&events).await;
    let running = world.start(&[]);
    world.wait_for_count("SELECT count(*) FROM executor.inbox WHERE state = 'SETTLED'", 20).await;
    running.stop().await;
    assert_eq!(world.ledger().await.len(), 20);

    // A database from before the charges, the topic from its beginning, and a day later: the PSP has forgotten the keys.
    world.move_to(world.stack.database("put_back_again").await.unwrap()).await;
    world.advance_psp(Duration::from_hours(25)).await;
    let config = world.config(&[&format!("--consumer-group={}", world.stack.unique("rewound"))]);
    config.clock.advance(Duration::from_hours(25));
    let running = World::start_with(config);
    world.wait_for_count("SELECT count(*) FROM executor.inbox WHERE state = 'REVIEW'", 20).await;
    assert_eq!(world.ledger().await.len(), 20, "no new charge");
    assert_eq!(
        world.count("SELECT count(*) FROM executor.psp_attempts").await,
        0,
        "nothing was even asked for"
    );
    for event in &events {
        let expired = ("UNKNOWN".to_owned(), Some("EXPIRED".to_owned()), "REPLY".to_owned());
        assert_eq!(world.results(event.payment_order_id).await, [expired]);
    }
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_put_back_to_the_middle_of_a_call_charges_nobody_again() {
    let world = World::new("put_back_middle").await;
    let event = request("pm_card_visa");
    world.send_all(std::slice::from_ref(&event)).await;
    let running = world.start(&[]);
    world.wait_for_state(event.payment_order_id, "SETTLED").await;
    running.stop().await;
    // As it was when the creation was written down, and its answer was not.
    sqlx::query("TRUNCATE executor.inbox, executor.psp_attempts, executor.psp_results")
        .execute(&world.pool)
        .await
        .unwrap_err();
    for sql in [
        "ALTER TABLE executor.psp_results DISABLE TRIGGER psp_results_append_only",
        "TRUNCATE executor.inbox, executor.psp_attempts, executor.psp_results",
        "ALTER TABLE executor.psp_results ENABLE TRIGGER psp_results_append_only",
    ] {
        sqlx::query(sql).execute(&world.pool).await.unwrap();
    }
    died(&world, &event, Operation::Create, None).await;
    world.advance_psp(Duration::from_hours(25)).await;
    let config = world.config(&["--resolve-after=50ms", "--resolve-then=50ms"]);
    config.clock.advance(Duration::from_hours(25));
    let running = World::start_with(config);
    let id = event.payment_order_id;
    world.wait_for_state(id, "REVIEW").await;
    assert_eq!(world.results(id).await[0].1.as_deref(), Some("RESOLUTION_EXHAUSTED"));
    assert_eq!(world.ledger().await.len(), 1, "no new charge");
    running.stop().await;
}

async fn rung(world: &World, id: Uuid) -> (i16, String) {
    sqlx::query_as("SELECT rung, state FROM executor.inbox WHERE payment_order_id = $1")
        .bind(id)
        .fetch_one(&world.pool)
        .await
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_whole_ladder_takes_five_days_and_ends_with_a_person() {
    let world = World::new("five_days").await;
    let event = request("pm_card_visa");
    let id = event.payment_order_id;
    // An id that this PSP does not know: each look-up fails, and proves nothing.
    died(&world, &event, Operation::Confirm, Some("pi_unknown")).await;
    let config = world.config(&["--resolve-after=5s", "--resolve-then=30s,5m,1h,24h,24h,24h,24h,24h"]);
    let (clock, ladder) = (config.clock.clone(), config.ladder());
    assert_eq!(ladder.iter().sum::<Duration>(), Duration::from_secs(5 + 30 + 300 + 3600 + 5 * 86_400));
    let running = World::start_with(config);
    for (step, wait) in (1_i16..).zip(&ladder) {
        let begun = Instant::now();
        while rung(&world, id).await != (step, "RESOLVING".to_owned()) {
            assert!(begun.elapsed() < PATIENCE, "step {step}: {:?}", rung(&world, id).await);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        // Not a moment too early: it is left alone until its time has come.
        if *wait > Duration::from_mins(1) {
            clock.advance(wait.saturating_sub(Duration::from_secs(30)));
            tokio::time::sleep(Duration::from_millis(400)).await;
            assert_eq!(rung(&world, id).await.0, step);
            clock.advance(Duration::from_secs(30));
        } else {
            clock.advance(*wait);
        }
    }
    world.wait_for_state(id, "REVIEW").await;
    let exhausted = ("UNKNOWN".to_owned(), Some("RESOLUTION_EXHAUSTED".to_owned()), "RESOLVER".to_owned());
    assert_eq!(world.results(id).await, [exhausted]);
    let looks = world.calls(id).await.iter().filter(|(operation, _)| operation == "GET").count();
    assert_eq!(looks, 10, "when the lease ran out, and nine steps");
    let said_at: OffsetDateTime = sqlx::query_scalar("SELECT event_time FROM executor.psp_results")
        .fetch_one(&world.pool)
        .await
        .unwrap();
    assert!(said_at > OffsetDateTime::now_utc() + Duration::from_hours(5 * 24));
    running.stop().await;
}
