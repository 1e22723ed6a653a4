//! What is missing, and what has no cause.

use serde_json::json;
use testbed::oracle::Promise::{Consistent, NoGhost, NothingLost, Settled};
use testbed::oracle::books::{Books, PspResult, Quarantined, Record, Sent, Told};
use uuid::Uuid;

use crate::clean_books::*;

// --------------------------------------------------------------------------------------------------------------- lost

#[test]
fn lost_a_payment_that_the_client_was_promised() {
    let told = Told::Accepted { payment_id: payment(9), payment_order_id: order(9) };
    let sent = Sent { merchant_reference: "order-9".into(), outcome: told, ..clean().sent[0].clone() };
    reports(|books| books.sent.push(sent), &[NothingLost], "the client was told that payment");
}

#[test]
fn lost_an_order_whose_request_was_never_written() {
    let plant = |books: &mut Books| {
        books.payments.outbox.remove(0);
        books.requests.remove(0);
    };
    reports(plant, &[NothingLost], "it has no request event");
}

#[test]
fn lost_events_that_are_not_on_their_topic() {
    reports(|books| drop(books.requests.remove(0)), &[NothingLost], "its request event");
    reports(|books| drop(books.results.remove(0)), &[NothingLost], "is not on the topic");
}

#[test]
fn lost_a_request_that_the_executor_never_took_in() {
    reports(|books| books.executor.inbox.truncate(2), &[NothingLost], "the executor never took it in");
    let plant = |books: &mut Books| {
        books.executor.inbox.remove(0);
        books.executor.quarantine.push((0, 0));
    };
    reports(plant, &[NothingLost], "it is in the executor's quarantine");
}

#[test]
fn lost_a_result_that_was_recorded_without_its_event() {
    let plant = |books: &mut Books| {
        let event_id = result(DECLINED, 2);
        let psp_status = "UNKNOWN".to_owned();
        books.executor.results.push(PspResult {
            payment_order_id: order(DECLINED),
            event_id,
            psp_status,
            psp_reference: None,
            error_code: None,
        });
    };
    reports(plant, &[NothingLost], "has no event");
}

#[test]
fn lost_a_result_that_was_never_applied() {
    let unapplied = |books: &mut Books| {
        books.payments.transitions.retain(|line| line.event_id != Some(result(DECLINED, 1)));
        edit_order(books, DECLINED).state = "CREATED".to_owned();
        books.payments.payments[1].status = "CREATED".to_owned();
    };
    let skipped = |books: &mut Books| {
        unapplied(books);
        books.payments.processed.retain(|event_id| *event_id != result(DECLINED, 1));
    };
    reports(skipped, &[NothingLost, Settled], "was never applied");
    reports(unapplied, &[NothingLost, Settled], "was marked as taken, but never applied");
    let orphaned = |books: &mut Books| {
        skipped(books);
        let (reason_code, reason) = ("ORPHAN".to_owned(), "its payment order does not exist".to_owned());
        let event_id = Some(result(DECLINED, 1));
        books.payments.quarantine.push(Quarantined { event_id, reason_code, reason, settled: false });
    };
    reports(orphaned, &[NothingLost, Settled], "in quarantine as ORPHAN");
}

#[test]
fn lost_a_charge_that_nobody_knows_of() {
    reports(
        |books| books.charges[0].payment_order_id = None,
        &[NothingLost, Consistent],
        "names no payment order",
    );
    let strange = |books: &mut Books| {
        charge(books, PAID, "other");
        books.charges.last_mut().unwrap().payment_order_id = Some(order(9).to_string());
    };
    reports(strange, &[NothingLost], "is for a payment order that does not exist");
}

#[test]
fn lost_a_charge_whose_order_never_heard_of_it() {
    let plant = |books: &mut Books| {
        edit_order(books, RESOLVED).state = "UNKNOWN".to_owned();
        books.payments.payments[2].status = "UNKNOWN".to_owned();
        books.payments.transitions.pop();
        books.payments.processed.pop();
        books.executor.results.pop();
        books.executor.outbox.pop();
        books.results.pop();
    };
    reports(plant, &[NothingLost, Settled], "was made, and its order is UNKNOWN");
}

// -------------------------------------------------------------------------------------------------------------- ghost

#[test]
fn ghost_events_without_a_row() {
    reports(
        |books| drop(books.executor.outbox.remove(0)),
        &[NoGhost, NothingLost],
        "that no row of the outbox stands for",
    );
    let plant = |books: &mut Books| {
        let mut ghost = books.requests[0].clone();
        (ghost.offset, ghost.headers[0].1) = (77, Uuid::from_u128(0xbad).to_string());
        books.requests.push(ghost);
    };
    reports(plant, &[NoGhost], "a request event in partition 0 offset 77");
}

#[test]
fn ghost_a_record_without_an_id() {
    let plant = |books: &mut Books| {
        let stranger = Record { offset: 77, headers: Vec::new(), ..books.results[0].clone() };
        books.results.push(stranger);
    };
    let verdict = reports(plant, &[NoGhost], "a result record without ce_id in partition 0 offset 77");
    assert_eq!(verdict.figures.events_published, 8);
}

#[test]
fn ghost_an_event_without_a_result() {
    reports(|books| drop(books.executor.results.remove(0)), &[NoGhost], "without a recorded result");
}

#[test]
fn ghost_a_request_of_an_order_that_does_not_exist() {
    let plant = |books: &mut Books| {
        let payload = json!({"amountMinor": 5, "currency": "EUR"});
        publish(&mut books.payments.outbox, &mut books.requests, 9, request(9), payload);
    };
    reports(plant, &[NoGhost], "that does not exist");
}

#[test]
fn ghost_a_state_without_an_event() {
    let plant = |books: &mut Books| {
        let event_id = Uuid::from_u128(0xbad);
        transition(books, PAID, Some(event_id), Some("SUCCESSFUL"), "SUCCESSFUL");
        books.payments.processed.push(event_id);
    };
    reports(plant, &[NoGhost], "in no row of the executor's outbox");
}
