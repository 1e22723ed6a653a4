//! Books in which everything is right, and the means to say what must be found when it is not.

use serde_json::json;
use testbed::oracle::books::{
    Attempt, Books, Charge, Order, OutboxEvent, Payment, PspResult, Record, Sent, Told, Transition,
};
use testbed::oracle::{Promise, Verdict, examine};
use time::OffsetDateTime;
use uuid::Uuid;

pub(crate) const PAID: u128 = 1;
pub(crate) const DECLINED: u128 = 2;
/// Its first answer was lost: two results.
pub(crate) const RESOLVED: u128 = 3;

pub(crate) fn payment(n: u128) -> Uuid {
    Uuid::from_u128(0x1000 + n)
}

pub(crate) fn order(n: u128) -> Uuid {
    Uuid::from_u128(0x2000 + n)
}

pub(crate) fn request(n: u128) -> Uuid {
    Uuid::from_u128(0x3000 + n)
}

/// The `number`th result event of an order.
pub(crate) fn result(n: u128, number: u128) -> Uuid {
    Uuid::from_u128(0x1_0000 * number + 0x4000 + n)
}

pub(crate) fn traceparent(n: u128) -> String {
    format!("00-{n:032x}-00000000000000aa-01")
}

pub(crate) fn reference(n: u128) -> String {
    format!("pi_{n}")
}

/// Puts one payment into the books, with everything that belongs to it.
pub(crate) fn pay(books: &mut Books, n: u128, statuses: &[&str]) {
    let amount_minor = 1_000 + i64::try_from(n).unwrap();
    let merchant_reference = format!("order-{n}");
    let outcome = Told::Accepted { payment_id: payment(n), payment_order_id: order(n) };
    let currency = "EUR".to_owned();
    let payment_method = match *statuses.last().unwrap() {
        "SUCCESSFUL" => "pm_card_visa",
        "FAILED" => "pm_card_chargeDeclined",
        _ => "pm_sim_processing",
    };
    books.sent.push(Sent {
        merchant_reference: merchant_reference.clone(),
        amount_minor,
        currency: currency.clone(),
        psp: "STRIPE".to_owned(),
        payment_method: payment_method.to_owned(),
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
            error_code: None,
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

pub(crate) fn charge(books: &mut Books, n: u128, id: &str) {
    books.charges.push(Charge {
        charge_id: format!("{id}_{n}"),
        payment_intent: reference(n),
        payment_order_id: Some(order(n).to_string()),
        amount_minor: 1_000 + i64::try_from(n).unwrap(),
        currency: "eur".to_owned(),
    });
}

pub(crate) fn publish(
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

pub(crate) fn transition(books: &mut Books, n: u128, event_id: Option<Uuid>, from: Option<&str>, to: &str) {
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

pub(crate) fn clean() -> Books {
    let mut books = Books::default();
    pay(&mut books, PAID, &["SUCCESSFUL"]);
    pay(&mut books, DECLINED, &["FAILED"]);
    pay(&mut books, RESOLVED, &["UNKNOWN", "SUCCESSFUL"]);
    books
}

/// Exactly these promises are broken, each for exactly one subject, and one of the findings says `text`.
#[track_caller]
pub(crate) fn reports(plant: impl FnOnce(&mut Books), promises: &[Promise], text: &str) -> Verdict {
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

pub(crate) fn of(n: u128) -> impl Fn(&Order) -> bool {
    move |found| found.payment_order_id == order(n)
}

pub(crate) fn edit_order(books: &mut Books, n: u128) -> &mut Order {
    books.payments.orders.iter_mut().find(|found| of(n)(found)).unwrap()
}

pub(crate) fn record_of(records: &[Record], event_id: Uuid) -> usize {
    records.iter().position(|record| record.event_id() == Some(event_id)).unwrap()
}
