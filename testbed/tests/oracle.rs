//! The oracle must see what is wrong: each test plants one anomaly into books that are clean, and says what must be reported.
#![allow(clippy::unwrap_used, reason = "what goes wrong in a test has to end it")]

use serde_json::json;
use testbed::oracle::books::{
    Attempt, Books, Charge, Order, OutboxEvent, Payment, PspResult, Quarantined, Record, Sent, Told,
    Transition,
};
use testbed::oracle::{Promise, Verdict, examine};
use time::OffsetDateTime;
use uuid::Uuid;

const PAID: u128 = 1;
const DECLINED: u128 = 2;
/// Its first answer was lost: two results.
const RESOLVED: u128 = 3;

fn payment(n: u128) -> Uuid {
    Uuid::from_u128(0x1000 + n)
}

fn order(n: u128) -> Uuid {
    Uuid::from_u128(0x2000 + n)
}

fn request(n: u128) -> Uuid {
    Uuid::from_u128(0x3000 + n)
}

/// The `number`th result event of an order.
fn result(n: u128, number: u128) -> Uuid {
    Uuid::from_u128(0x1_0000 * number + 0x4000 + n)
}

fn traceparent(n: u128) -> String {
    format!("00-{n:032x}-00000000000000aa-01")
}

fn reference(n: u128) -> String {
    format!("pi_{n}")
}

/// Puts one payment into the books, with everything that belongs to it.
fn pay(books: &mut Books, n: u128, statuses: &[&str]) {
    let amount_minor = 1_000 + i64::try_from(n).unwrap();
    let merchant_reference = format!("order-{n}");
    let outcome = Told::Accepted { payment_id: payment(n), payment_order_id: order(n) };
    let currency = "EUR".to_owned();
    books.sent.push(Sent {
        merchant_reference: merchant_reference.clone(),
        amount_minor,
        currency: currency.clone(),
        outcome,
    });
    let state = (*statuses.last().unwrap()).to_owned();
    books.payments.payments.push(Payment {
        payment_id: payment(n),
        amount_minor,
        currency,
        merchant_reference,
        status: state.clone(),
        trace_id: format!("{n:032x}"),
    });
    books.payments.orders.push(Order {
        payment_order_id: order(n),
        payment_id: payment(n),
        number: 1,
        state,
        psp_reference: Some(reference(n)),
    });
    transition(books, n, None, None, "CREATED");
    let payload = json!({"paymentOrderId": order(n), "amountMinor": amount_minor, "currency": "EUR", "expiresAt": "2030-01-01T00:00:00.5Z"});
    publish(&mut books.payments.outbox, &mut books.requests, n, request(n), payload);
    books.executor.inbox.push(order(n));
    for operation in ["CREATE", "CONFIRM"] {
        books.executor.attempts.push(Attempt { payment_order_id: order(n), operation: operation.to_owned() });
    }
    let mut from = "CREATED";
    for (number, status) in (1..).zip(statuses) {
        let event_id = result(n, number);
        books.executor.results.push(PspResult {
            payment_order_id: order(n),
            event_id,
            psp_status: (*status).to_owned(),
            psp_reference: Some(reference(n)),
        });
        let payload = json!({"paymentOrderId": order(n), "pspStatus": status, "pspReference": reference(n), "eventTime": "2026-01-01T00:00:00.25Z"});
        publish(&mut books.executor.outbox, &mut books.results, n, event_id, payload);
        transition(books, n, Some(event_id), Some(from), status);
        books.payments.processed.push(event_id);
        from = status;
    }
    if statuses.contains(&"SUCCESSFUL") {
        charge(books, n, "ch");
    }
}

fn charge(books: &mut Books, n: u128, id: &str) {
    books.charges.push(Charge {
        charge_id: format!("{id}_{n}"),
        payment_intent: reference(n),
        payment_order_id: Some(order(n).to_string()),
        amount_minor: 1_000 + i64::try_from(n).unwrap(),
        currency: "eur".to_owned(),
    });
}

fn publish(
    outbox: &mut Vec<OutboxEvent>,
    topic: &mut Vec<Record>,
    n: u128,
    event_id: Uuid,
    payload: serde_json::Value,
) {
    let id = i64::try_from(outbox.len()).unwrap() + 1;
    let aggregate_id = order(n).to_string();
    // On the wire a field without a value is there, as null, and a time has its own number of digits.
    let mut body = payload.clone();
    body["errorCode"] = json!(null);
    if payload.get("eventTime").is_some() {
        body["eventTime"] = json!("2026-01-01T00:00:00.250000Z");
    }
    topic.push(Record {
        partition: 0,
        offset: id - 1,
        key: Some(aggregate_id.clone()),
        headers: vec![("ce_id".to_owned(), event_id.to_string()), ("traceparent".to_owned(), traceparent(n))],
        body: Ok(body),
    });
    outbox.push(OutboxEvent { id, event_id, aggregate_id, payload, traceparent: Some(traceparent(n)) });
}

fn transition(books: &mut Books, n: u128, event_id: Option<Uuid>, from: Option<&str>, to: &str) {
    books.payments.transitions.push(Transition {
        transition_id: i64::try_from(books.payments.transitions.len()).unwrap() + 1,
        payment_order_id: order(n),
        event_id,
        from_state: from.map(str::to_owned),
        to_state: to.to_owned(),
        decision: "APPLIED".to_owned(),
        event_time: event_id.map(|_| OffsetDateTime::UNIX_EPOCH),
        trace_id: format!("{n:032x}"),
        decided_at: OffsetDateTime::UNIX_EPOCH,
    });
}

fn clean() -> Books {
    let mut books = Books::default();
    pay(&mut books, PAID, &["SUCCESSFUL"]);
    pay(&mut books, DECLINED, &["FAILED"]);
    pay(&mut books, RESOLVED, &["UNKNOWN", "SUCCESSFUL"]);
    books
}

/// Exactly these promises are broken, each for exactly one subject, and one of the findings says `text`.
#[track_caller]
fn reports(plant: impl FnOnce(&mut Books), promises: &[Promise], text: &str) -> Verdict {
    let mut books = clean();
    plant(&mut books);
    let verdict = examine(&books);
    let all = verdict.describe(20);
    for promise in Promise::ALL {
        let expected = usize::from(promises.contains(&promise));
        assert_eq!(verdict.broken(promise), expected, "{promise:?} in:\n{all}");
    }
    assert!(all.contains(text), "{text:?} is not in:\n{all}");
    assert!(!verdict.clean());
    verdict
}

fn of(n: u128) -> impl Fn(&Order) -> bool {
    move |found| found.payment_order_id == order(n)
}

fn edit_order(books: &mut Books, n: u128) -> &mut Order {
    books.payments.orders.iter_mut().find(|found| of(n)(found)).unwrap()
}

fn record_of(records: &[Record], event_id: Uuid) -> usize {
    records.iter().position(|record| record.event_id() == Some(event_id)).unwrap()
}

use Promise::{AppliedOnce, ChargedOnce, Consistent, InOrder, NoGhost, NothingLost, Settled};

#[test]
fn clean_books_are_clean() {
    let verdict = examine(&clean());
    assert!(verdict.clean(), "{}", verdict.describe(20));
    let figures = verdict.figures;
    assert_eq!((figures.payments, figures.successful, figures.failed, figures.unsettled), (3, 2, 1, 0));
    assert_eq!((figures.psp_charges, figures.events_published, figures.duplicates_published), (2, 7, 0));
}

#[test]
fn duplicates_on_a_topic_are_counted_and_break_no_promise() {
    let mut books = clean();
    for (at, offset) in [(0, 90), (2, 91), (0, 92)] {
        let copy = Record { offset, ..books.results[at].clone() };
        books.results.push(copy);
    }
    let verdict = examine(&books);
    assert!(verdict.clean(), "{}", verdict.describe(20));
    assert_eq!((verdict.figures.events_published, verdict.figures.duplicates_published), (7, 3));
}

#[test]
fn a_review_with_a_charge_is_seen_by_a_person_and_so_not_lost() {
    let mut books = clean();
    books.payments.orders[0].state = "NEEDS_REVIEW".to_owned();
    books.payments.payments[0].status = "NEEDS_REVIEW".to_owned();
    books.payments.transitions[1].to_state = "NEEDS_REVIEW".to_owned();
    let verdict = examine(&books);
    assert!(verdict.clean(), "{}", verdict.describe(20));
    assert_eq!(verdict.figures.needs_review, 1);
}

// ------------------------------------------------------------------------------------------------------------------ lost

#[test]
fn lost_a_payment_that_the_client_was_promised() {
    let told = Told::Accepted { payment_id: payment(9), payment_order_id: order(9) };
    let sent =
        Sent { merchant_reference: "order-9".into(), amount_minor: 1, currency: "EUR".into(), outcome: told };
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

// ----------------------------------------------------------------------------------------------------------------- ghost

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

// --------------------------------------------------------------------------------------------------------- applied twice

#[test]
fn applied_twice_whatever_the_decision() {
    for decision in ["APPLIED", "DUPLICATE", "STALE"] {
        let plant = |books: &mut Books| {
            transition(books, PAID, Some(result(PAID, 1)), Some("SUCCESSFUL"), "SUCCESSFUL");
            books.payments.transitions.last_mut().unwrap().decision = decision.to_owned();
        };
        reports(plant, &[AppliedOnce], "2 lines of the audit");
    }
}

#[test]
fn an_event_that_is_not_marked_would_be_applied_again() {
    reports(|books| books.payments.processed.truncate(3), &[Consistent], "not marked as taken");
}

#[test]
fn an_event_of_one_order_applied_to_another_is_seen() {
    let plant = |books: &mut Books| books.payments.transitions[1].payment_order_id = order(DECLINED);
    let mut books = clean();
    plant(&mut books);
    assert!(examine(&books).describe(20).contains("was applied to another"));
}

// --------------------------------------------------------------------------------------------------------- charged twice

#[test]
fn charged_twice_for_one_order() {
    reports(|books| charge(books, PAID, "again"), &[ChargedOnce], r#"the charges ["ch_1", "again_1"]"#);
}

#[test]
fn charged_twice_for_one_payment() {
    let plant = |books: &mut Books| {
        pay(books, 4, &["SUCCESSFUL"]);
        books.payments.payments.pop();
        books.sent.pop();
        let second = edit_order(books, 4);
        (second.payment_id, second.number) = (payment(PAID), 2);
    };
    let mut books = clean();
    plant(&mut books);
    let verdict = examine(&books);
    assert_eq!(verdict.broken(ChargedOnce), 1, "{}", verdict.describe(20));
    assert!(verdict.describe(20).contains(r#"is SUCCESSFUL, its orders are ["SUCCESSFUL", "SUCCESSFUL"]"#));
}

#[test]
fn charged_twice_for_two_payments_of_one_wish() {
    let plant = |books: &mut Books| {
        pay(books, 4, &["SUCCESSFUL"]);
        books.sent.pop();
        books.payments.payments.last_mut().unwrap().merchant_reference = "order-1".to_owned();
    };
    reports(plant, &[ChargedOnce, Consistent], "asked for once, stored as the payments");
}

// ----------------------------------------------------------------------------------------------------------------- order

#[test]
fn out_of_order_on_the_topic() {
    let swap = |books: &mut Books| {
        let first = record_of(&books.results, result(RESOLVED, 1));
        let second = record_of(&books.results, result(RESOLVED, 2));
        books.results.swap(first, second);
        let offset = books.results[first].offset;
        books.results[first].offset = books.results[second].offset;
        books.results[second].offset = offset;
    };
    reports(swap, &[InOrder], "before that of row");
    let repeated = |books: &mut Books| {
        // A copy that comes later excuses nothing: the first occurrences count.
        swap(books);
        let copy =
            Record { offset: 99, ..books.results[record_of(&books.results, result(RESOLVED, 2))].clone() };
        books.results.push(copy);
    };
    reports(repeated, &[InOrder], "before that of row");
}

#[test]
fn a_copy_that_comes_late_does_not_change_the_order() {
    let mut books = clean();
    let copy = Record { offset: 99, ..books.results[record_of(&books.results, result(RESOLVED, 1))].clone() };
    books.results.push(copy);
    let verdict = examine(&books);
    assert!(verdict.clean(), "{}", verdict.describe(20));
}

#[test]
fn a_key_in_two_partitions_has_no_order() {
    let plant = |books: &mut Books| {
        let second = record_of(&books.results, result(RESOLVED, 2));
        books.results[second].partition = 3;
    };
    reports(plant, &[InOrder], "lie in the partitions {0, 3}");
}

// --------------------------------------------------------------------------------------------------------- contradictions

#[test]
fn a_success_without_a_charge_and_a_failure_with_one() {
    reports(|books| drop(books.charges.remove(0)), &[Consistent], "it is SUCCESSFUL without a charge");
    reports(
        |books| charge(books, DECLINED, "ch"),
        &[NothingLost, Consistent],
        "it is FAILED, and charge ch_2 was made",
    );
}

#[test]
fn a_charge_of_another_amount_currency_or_reference() {
    reports(|books| books.charges[0].amount_minor += 1, &[Consistent], "charged was (1002,");
    reports(|books| books.charges[0].currency = "usd".to_owned(), &[Consistent], "USD");
    reports(|books| books.charges[0].payment_intent = "pi_x".to_owned(), &[Consistent], "charged was pi_x");
}

#[test]
fn a_charge_that_was_not_written_down_before() {
    let plant = |books: &mut Books| {
        books.executor.attempts.retain(|a| a.payment_order_id != order(PAID) || a.operation != "CONFIRM");
    };
    reports(plant, &[Consistent], "without being written down before");
}

#[test]
fn a_payment_that_is_not_what_was_asked_for() {
    reports(|books| books.sent[1].amount_minor = 7, &[Consistent], "asked for was");
    let refused = |books: &mut Books| books.sent[1].outcome = Told::Refused("422".to_owned());
    reports(refused, &[Consistent], "refused (422), and yet stored");
    let mut books = clean();
    books.sent[1].outcome = Told::Unknown("no answer".to_owned());
    assert!(examine(&books).clean());
}

#[test]
fn a_request_that_asks_for_another_amount() {
    let plant = |books: &mut Books| {
        books.payments.outbox[0].payload["amountMinor"] = json!(1);
        books.requests[0].body.as_mut().unwrap()["amountMinor"] = json!(1);
    };
    reports(plant, &[Consistent], "its request event asks for");
}

#[test]
fn a_record_that_is_not_its_row() {
    let status = |books: &mut Books| books.results[0].body.as_mut().unwrap()["pspStatus"] = json!("FAILED");
    reports(status, &[Consistent], "the result in partition 0 offset 0 says");
    reports(|books| books.results[0].body = Err("cut".to_owned()), &[Consistent], "cannot be decoded: cut");
    reports(|books| books.results[0].key = None, &[Consistent], "has the key None");
    reports(|books| books.results[0].headers[1].1 = traceparent(8), &[Consistent], "has the traceparent");
    let copy = |books: &mut Books| {
        let mut copy = books.results[0].clone();
        copy.offset = 99;
        copy.body.as_mut().unwrap()["pspStatus"] = json!("FAILED");
        books.results.push(copy);
    };
    reports(copy, &[Consistent], "offset 99 says");
}

#[test]
fn an_event_that_says_otherwise_than_its_result() {
    let plant = |books: &mut Books| books.executor.results[0].psp_status = "FAILED".to_owned();
    reports(plant, &[Consistent], "the recorded result");
}

#[test]
fn an_audit_that_does_not_add_up() {
    // Lines 1 and 2 are PAID, 3 and 4 DECLINED, 5 to 7 RESOLVED.
    let state = |books: &mut Books| edit_order(books, PAID).state = "FAILED".to_owned();
    let mut books = clean();
    state(&mut books);
    assert!(examine(&books).describe(20).contains("it is FAILED, its audit ends at"));
    let gap = |books: &mut Books| books.payments.transitions[6].from_state = Some("PENDING".to_owned());
    reports(gap, &[Consistent], "begins at Some(\"PENDING\")");
    let creation = |books: &mut Books| drop(books.payments.transitions.remove(0));
    reports(creation, &[Consistent], "the one before ended at None");
    let reopened = |books: &mut Books| {
        books.payments.transitions[5].to_state = "FAILED".to_owned();
        books.payments.transitions[6].from_state = Some("FAILED".to_owned());
    };
    reports(reopened, &[Consistent], "goes from Some(\"FAILED\") to SUCCESSFUL");
    let idle = |books: &mut Books| books.payments.transitions[1].decision = "STALE".to_owned();
    reports(idle, &[Consistent], "is STALE and yet changes the state");
    let orphan = |books: &mut Books| {
        transition(books, 9, None, None, "CREATED");
    };
    reports(orphan, &[Consistent], "there is an audit of it, but no such order");
}

#[test]
fn a_payment_that_is_not_what_its_orders_are() {
    let plant = |books: &mut Books| books.payments.payments[0].status = "PENDING".to_owned();
    reports(plant, &[Consistent], "is PENDING, its orders are");
    let homeless = |books: &mut Books| {
        books.payments.payments.remove(1);
    };
    let mut books = clean();
    homeless(&mut books);
    assert!(examine(&books).describe(20).contains("it has orders, but does not exist"));
}

#[test]
fn a_broken_trace() {
    let audit = |books: &mut Books| books.payments.transitions[1].trace_id = "f".repeat(32);
    reports(audit, &[Consistent], "line 2 of the audit has another trace");
    let event = |books: &mut Books| {
        books.executor.outbox[0].traceparent = Some(traceparent(8));
        books.results[0].headers[1].1 = traceparent(8);
    };
    reports(event, &[Consistent], "has another trace than its payment");
}

#[test]
fn an_order_without_an_end() {
    let plant = |books: &mut Books| {
        pay(books, 4, &["PENDING"]);
    };
    let verdict = reports(plant, &[Settled], "it is still PENDING");
    assert_eq!(verdict.figures.unsettled, 1);
}

#[test]
fn only_so_many_examples_are_printed_and_all_are_counted() {
    let mut books = clean();
    for n in 10..40 {
        pay(&mut books, n, &["PENDING"]);
    }
    let verdict = examine(&books);
    assert_eq!(verdict.broken(Settled), 30);
    assert_eq!(verdict.describe(20).lines().count(), 21);
    assert!(verdict.describe(20).ends_with("unsettled: and 10 more"));
}
