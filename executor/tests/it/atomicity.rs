//! A result and its event: both or neither.

use std::time::Duration;

use executor::{
    clock::Clock,
    psp::Operation,
    record::{Finding, Ladder, Outcome, Recorded, Source, State, record},
};
use schema::psp_result_update::{PspResultUpdateEvent, PspStatus};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::{
    doubt::claimed,
    setup::{World, request},
};

fn finding(id: Uuid, status: PspStatus, reference: &str, claim: Option<Uuid>) -> Finding {
    let result = PspResultUpdateEvent {
        payment_order_id: id,
        psp_status: status,
        psp_reference: Some(reference.to_owned()),
        event_time: OffsetDateTime::now_utc(),
        error_code: None,
        error_message: None,
    };
    let (source, outcome) = (Source::Resolver, Outcome::Result(result));
    let event_id = Uuid::now_v7();
    let (finished, in_doubt, within) = (None, false, None);
    Finding { payment_order_id: id, source, claim, finished, outcome, in_doubt, event_id, within }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_agrees_is_one_event_and_what_contradicts_is_never_hidden() {
    let world = World::new("evidence").await;
    let id = Uuid::new_v4();
    // Somebody else holds it: the evidence of a lost claim counts all the same.
    sqlx::query(
        "INSERT INTO executor.inbox (payment_order_id, psp, amount_minor, currency, payment_method, merchant_reference, expires_at,
                                     traceparent, state, claimed_by, lease_until)
         VALUES ($1, 'STRIPE', 1, 'EUR', 'pm_card_visa', 'm', now(), 'none', 'IN_FLIGHT', gen_random_uuid(), now() + interval '1 h')",
    )
    .bind(id)
    .execute(&world.pool)
    .await
    .unwrap();
    let service = sqlx::PgPool::connect(&world.database.url("executor")).await.unwrap();
    let ladder = Ladder { waits: vec![Duration::from_secs(1)].into(), clock: Clock::default() };
    let say = async |findings: Vec<Finding>| record(service.clone(), ladder.clone(), findings).await.unwrap();
    let stale = Some(Uuid::new_v4());
    let states =
        |recorded: &[Recorded]| recorded.iter().map(|r| (r.event.is_some(), r.state)).collect::<Vec<_>>();

    let unknown = say(vec![finding(id, PspStatus::Unknown, "pi_1", stale)]).await;
    assert_eq!(states(&unknown), [(true, State::InFlight)], "recorded, and the claim of the other stays");
    // Twice in one batch, and by many at once.
    let success = || finding(id, PspStatus::Successful, "pi_1", stale);
    let twice = say(vec![success(), success()]).await;
    assert_eq!(states(&twice), [(true, State::Settled), (false, State::Settled)]);
    let many = futures::future::join_all((0..8).map(|_| say(vec![success()]))).await;
    assert!(many.iter().flatten().all(|recorded| recorded.event.is_none()));
    let second = say(vec![
        finding(id, PspStatus::Successful, "pi_2", None),
        finding(id, PspStatus::Failed, "pi_1", None),
    ])
    .await;
    assert_eq!(states(&second), [(true, State::Settled), (true, State::Settled)]);
    let late = say(vec![finding(id, PspStatus::Pending, "pi_1", None)]).await;
    assert_eq!(states(&late), [(true, State::Settled)]);
    let said: Vec<_> =
        world.events(id).await.into_iter().map(|(_, payload, _)| payload["pspStatus"].to_string()).collect();
    assert_eq!(said, ["\"UNKNOWN\"", "\"SUCCESSFUL\"", "\"SUCCESSFUL\"", "\"FAILED\"", "\"PENDING\""]);
    assert_eq!(world.results(id).await.len(), 5);
}

/// An answer and a webhook give a failure different codes, and need not both name the payment.
#[tokio::test(flavor = "multi_thread")]
async fn a_failure_is_one_event_in_whatever_words_and_another_payments_failure_is_another() {
    let world = World::new("failures").await;
    let service = sqlx::PgPool::connect(&world.database.url("executor")).await.unwrap();
    let ladder = Ladder { waits: vec![Duration::from_secs(1)].into(), clock: Clock::default() };
    for (told, events) in [
        (&[(Some("pi_1"), "refused/not_enough_balance"), (Some("pi_1"), "refused")][..], 1),
        (&[(Some("pi_1"), "refused"), (None, "CANCELLED")], 1),
        (&[(None, "CANCELLED"), (Some("pi_1"), "refused"), (Some("pi_2"), "refused")], 1),
        (&[(Some("pi_1"), "refused"), (Some("pi_2"), "refused")], 2),
    ] {
        let event = request("pm_card_visa");
        let id = event.payment_order_id;
        claimed(&world, &event, Operation::Confirm, None, "1 h").await;
        for (reference, code) in told {
            let mut failed = finding(id, PspStatus::Failed, "", None);
            if let Outcome::Result(result) = &mut failed.outcome {
                result.psp_reference = reference.map(str::to_owned);
                result.error_code = Some((*code).to_owned());
            }
            record(service.clone(), ladder.clone(), vec![failed]).await.unwrap();
        }
        assert_eq!(world.events(id).await.len(), events, "{told:?}");
        assert_eq!(world.results(id).await.len(), events, "{told:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_result_whose_event_cannot_be_written_is_not_written_either() {
    let world = World::new("atomic").await;
    let revoke = "REVOKE EXECUTE ON FUNCTION outbox.append(text, text, json, text, text, uuid) FROM executor";
    sqlx::query(revoke).execute(&world.pool).await.unwrap();
    let running = world.start(&["--psp-timeout=1s", "--lease=2500ms"]);
    let id = world.request("pm_card_visa").await;
    // The PSP has charged, and nothing of it can be recorded.
    world.wait_for_count("SELECT count(*) FROM executor.psp_attempts WHERE operation = 'CONFIRM'", 1).await;
    world
        .wait_for_count("SELECT count(*) FROM executor.psp_attempts WHERE operation = 'GET' AND try = 1", 1)
        .await;
    assert_eq!(world.charges(id).await, 1);
    assert_eq!(world.results(id).await, []);
    assert_eq!(world.state(id).await.as_deref(), Some("IN_FLIGHT"));
    let grant = "SELECT outbox.grant_writer('executor')";
    sqlx::query(grant).execute(&world.pool).await.unwrap();
    world.wait_for_state(id, "SETTLED").await;
    assert_eq!(world.results(id).await, [("SUCCESSFUL".to_owned(), None, "RESOLVER".to_owned())]);
    assert_eq!((world.events(id).await.len(), world.charges(id).await), (1, 1));
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_database_refuses_for_good_ends_with_a_person() {
    let world = World::new("refused_for_good").await;
    for sql in [
        "CREATE FUNCTION public.poison() RETURNS trigger LANGUAGE plpgsql AS $$
         BEGIN RAISE EXCEPTION 'poison' USING ERRCODE = 'check_violation'; END $$",
        "CREATE TRIGGER poison BEFORE INSERT ON executor.psp_attempts FOR EACH ROW WHEN (NEW.operation = 'CONFIRM')
         EXECUTE FUNCTION public.poison()",
    ] {
        sqlx::query(sql).execute(&world.pool).await.unwrap();
    }
    let times = ["--psp-timeout=100ms", "--lease=1200ms", "--resolve-after=50ms", "--resolve-then=50ms"];
    let running = world.start(&times);
    let id = world.request("pm_card_visa").await;
    world.wait_for_state(id, "REVIEW").await;
    let exhausted = ("UNKNOWN".to_owned(), Some("RESOLUTION_EXHAUSTED".to_owned()), "RESOLVER".to_owned());
    assert_eq!(world.results(id).await, [exhausted]);
    assert_eq!((world.events(id).await.len(), world.charges(id).await), (1, 0));
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn results_can_only_be_added_and_only_through_their_role() {
    let world = World::new("append_only").await;
    let running = world.start(&[]);
    let id = world.request("pm_card_visa").await;
    world.wait_for_state(id, "SETTLED").await;
    running.stop().await;
    for change in [
        "UPDATE executor.psp_results SET psp_status = 'FAILED'",
        "DELETE FROM executor.psp_results",
        "TRUNCATE executor.psp_results",
    ] {
        let refused = sqlx::query(change).execute(&world.pool).await.unwrap_err();
        assert_eq!(refused.as_database_error().unwrap().code().as_deref(), Some("23001"), "{change}");
    }
    let service = sqlx::PgPool::connect(&world.database.url("executor")).await.unwrap();
    let operator = sqlx::PgPool::connect(&world.database.url("operator")).await.unwrap();
    let stranger = sqlx::PgPool::connect(&world.database.url("relay")).await.unwrap();
    let denied = async |pool: &sqlx::PgPool, sql: &'static str| {
        let code = sqlx::query(sql)
            .execute(pool)
            .await
            .unwrap_err()
            .as_database_error()
            .unwrap()
            .code()
            .map(String::from);
        assert_eq!(code.as_deref(), Some("42501"), "{sql}");
    };
    denied(&service, "UPDATE executor.psp_results SET psp_status = 'FAILED'").await;
    denied(&service, "DELETE FROM executor.inbox").await;
    denied(&service, "INSERT INTO outbox.events (slot) VALUES (0)").await;
    denied(&operator, "UPDATE executor.inbox SET state = 'QUEUED'").await;
    denied(&stranger, "SELECT FROM executor.inbox").await;
    sqlx::query("SELECT FROM executor.psp_results").execute(&operator).await.unwrap();
}
