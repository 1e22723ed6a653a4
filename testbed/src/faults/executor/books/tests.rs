//! Each check is shown books with an anomaly, and has to find it and nothing else.

use serde_json::json;

use super::*;

fn id(n: u128) -> Uuid {
    Uuid::from_u128(n)
}

/// One order that was paid, one that was declined.
fn clean() -> Books {
    let mut books = Books { topic: Some(Vec::new()), ..Books::default() };
    for (n, status, token) in [(1, "SUCCESSFUL", "pm_card_visa"), (2, "FAILED", "pm_card_chargeDeclined")] {
        let order = id(n);
        books.asked.push(Asked { payment_order_id: order, ..Asked::new(token) });
        books.inbox.push(Taken { payment_order_id: order, state: "SETTLED".into(), open_attempts: 0 });
        add_result(&mut books, n, 100 + n, status, &format!("pi_{n}"));
    }
    books.charges.push(charge(1, "ch_1"));
    books
}

fn charge(n: u128, charge_id: &str) -> Charge {
    serde_json::from_value(json!({
        "charge_id": charge_id, "psp": "stripe", "payment_intent": format!("pi_{n}"), "psp_reference": format!("pi_{n}"),
        "payment_order_id": id(n), "amount_minor": 1_999, "currency": "eur"
    }))
    .unwrap()
}

fn add_result(books: &mut Books, n: u128, event: u128, status: &str, reference: &str) {
    let row = i64::try_from(books.outbox.len()).unwrap() + 1;
    let payload = json!({"paymentOrderId": id(n), "pspStatus": status, "pspReference": reference});
    books.results.push(PspResult {
        payment_order_id: id(n),
        event_id: id(event),
        psp_status: status.into(),
        psp_reference: Some(reference.into()),
        error_code: None,
    });
    books.outbox.push(OutboxEvent {
        id: row,
        event_id: id(event),
        aggregate_id: id(n).to_string(),
        payload: payload.clone(),
        traceparent: None,
    });
    books.topic.as_mut().unwrap().push(Record {
        partition: 0,
        offset: row,
        key: Some(id(n).to_string()),
        headers: vec![("ce_id".into(), id(event).to_string())],
        body: Ok(payload),
    });
}

/// Exactly these kinds are found, each once.
#[track_caller]
fn found(plant: impl FnOnce(&mut Books), expected: &[&str]) {
    let mut books = clean();
    plant(&mut books);
    let tally = examine(&books);
    let found: Vec<(&str, usize)> = tally.findings().into_iter().filter(|(_, count)| *count > 0).collect();
    let expected: Vec<(&str, usize)> = expected.iter().map(|kind| (*kind, 1)).collect();
    assert_eq!(found, expected, "{:#?}", tally.examples);
}

#[test]
fn clean_books_are_clean_and_copies_on_the_topic_are_counted() {
    found(|_| {}, &[]);
    let mut books = clean();
    let copy = Record { offset: 9, ..books.topic.as_ref().unwrap()[0].clone() };
    books.topic.as_mut().unwrap().push(copy);
    let tally = examine(&books);
    assert_eq!((tally.duplicates, tally.orders, tally.charges), (1, 2, 1));
    assert!(tally.findings().iter().all(|(_, count)| *count == 0), "{:?}", tally.examples);
}

#[test]
fn what_is_lost_is_found() {
    found(|books| drop(books.inbox.remove(1)), &["lost"]);
    found(|books| books.inbox[1].state = "RESOLVING".into(), &["unsettled"]);
    found(|books| books.inbox[1].open_attempts = 1, &["unsettled"]);
    found(|books| drop(books.topic.as_mut().unwrap().remove(0)), &["lost"]);
    // The result that tells of the charge, with its event: the charge is lost.
    let forget = |books: &mut Books| {
        drop((books.results.remove(0), books.outbox.remove(0)));
        books.topic.as_mut().unwrap().remove(0);
    };
    found(forget, &["lost", "wrong ends"]);
    let eventless = |books: &mut Books| {
        books.outbox.remove(1);
        books.topic.as_mut().unwrap().remove(1);
    };
    found(eventless, &["lost"]);
}

#[test]
fn what_has_no_cause_is_found() {
    found(|books| drop(books.charges.remove(0)), &["ghosts"]);
    found(|books| books.charges.push(charge(9, "ch_9")), &["ghosts"]);
    found(|books| drop(books.results.remove(1)), &["ghosts", "wrong ends"]);
    found(|books| books.inbox.push(Taken { payment_order_id: id(9), ..books.inbox[0].clone() }), &["ghosts"]);
    let stranger = |books: &mut Books| {
        let topic = books.topic.as_mut().unwrap();
        let mut record = topic[0].clone();
        (record.offset, record.headers[0].1) = (9, id(0xbad).to_string());
        topic.push(record);
    };
    found(stranger, &["ghosts"]);
}

/// Order 1 was paid, order 2 declined; what is planted is what they should have come to.
#[test]
fn what_should_have_worked_and_did_not_is_found_and_the_reverse() {
    for paid in ["pm_card_visa", "pm_card_mastercard", "pm_sim_timeout_after_charge", "pm_sim_slow"] {
        found(|books| books.asked[1].payment_method = paid, &["wrong ends"]);
    }
    for declined in ["pm_card_chargeDeclinedExpiredCard", "pm_card_authenticationRequired"] {
        found(|books| books.asked[0].payment_method = declined, &["wrong ends"]);
    }
    let silently = |books: &mut Books| {
        drop((books.results.remove(1), books.outbox.remove(1)));
        books.topic.as_mut().unwrap().remove(1);
    };
    found(silently, &["wrong ends"]);
    found(|books| books.asked[0].payment_method = "pm_sim_novelty", &["wrong ends"]);
}

#[test]
fn a_review_that_the_token_does_not_explain_is_found() {
    let reviewed = |books: &mut Books, psp, token| {
        let Books { asked, inbox, results, outbox, topic, .. } = books;
        inbox[0].state = "REVIEW".into();
        (asked[0].psp, asked[0].payment_method) = (psp, token);
        results[0].psp_status = "UNKNOWN".into();
        outbox[0].payload["pspStatus"] = json!("UNKNOWN");
        topic.as_mut().unwrap()[0].body = Ok(outbox[0].payload.clone());
    };
    for (psp, token) in [
        ("STRIPE", "pm_card_visa"),
        ("STRIPE", "pm_sim_error_after_charge"),
        ("ADYEN", "shopper-1-adyen_sim_success"),
        ("ADYEN", "shopper-1-adyen_sim_timeout_after_charge"),
        // Told by webhooks alone, and told.
        ("ADYEN", "shopper-1-adyen_sim_error_after_charge"),
        ("ADYEN", "shopper-1-adyen_sim_processing"),
    ] {
        found(|books| reviewed(books, psp, token), &["wrong ends"]);
    }
    found(|books| reviewed(books, "ADYEN", "shopper-1-adyen_sim_partially_authorised"), &[]);
    found(|books| reviewed(books, "STRIPE", "pm_sim_amount_mismatch"), &[]);
    // What must end there, and has not.
    found(|books| books.asked[0].payment_method = "pm_sim_error_before_charge", &["wrong ends"]);
}

#[test]
fn what_has_happened_twice_is_found() {
    found(|books| books.charges.push(charge(1, "ch_2")), &["double charged"]);
    found(|books| add_result(books, 1, 900, "SUCCESSFUL", "pi_1"), &["applied twice"]);
    found(|books| books.outbox.push(OutboxEvent { id: 9, ..books.outbox[0].clone() }), &["applied twice"]);
}

#[test]
fn contradictions_and_disorder_are_found() {
    found(|books| books.charges[0].amount_minor = 1, &["contradictions"]);
    found(|books| add_result(books, 1, 900, "FAILED", "pi_1"), &["contradictions"]);
    // The event is on the topic as it was written, and is not what was recorded.
    let altered = |books: &mut Books| {
        books.outbox[0].payload["pspReference"] = json!("pi_other");
        books.topic.as_mut().unwrap()[0].body = Ok(books.outbox[0].payload.clone());
    };
    found(altered, &["contradictions"]);
    let garbled = |books: &mut Books| {
        books.topic.as_mut().unwrap()[0].body.as_mut().unwrap()["pspStatus"] = json!("FAILED");
    };
    found(garbled, &["contradictions"]);
    found(|books| books.topic.as_mut().unwrap()[1].key = Some("other".into()), &["contradictions"]);
    let swapped = |books: &mut Books| {
        add_result(books, 1, 900, "UNKNOWN", "pi_1");
        books.topic.as_mut().unwrap().swap(0, 2);
    };
    found(swapped, &["order inversions"]);
}
