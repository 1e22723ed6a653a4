//! Witnesses that contradict each other.

use serde_json::json;
use testbed::oracle::Promise::{Consistent, NothingLost, Reviewed, Settled};
use testbed::oracle::books::{Books, Contradicted, Told};
use testbed::oracle::examine;

use crate::clean_books::*;

#[test]
fn a_success_without_a_charge_and_a_failure_with_one() {
    reports(|books| drop(books.charges.remove(0)), &[Consistent], "it is SUCCESSFUL without a charge");
    reports(
        |books| charge(books, DECLINED, "ch"),
        &[NothingLost, Consistent, Reviewed],
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

// ------------------------------------------------------------------------------------------------------------- review

/// The simulator has lied about an order.
fn lie(books: &mut Books, n: u128, acknowledged: bool) {
    books.contradictions.push(Contradicted {
        payment_order_id: Some(order(n).to_string()),
        reference: "pi_other".to_owned(),
        kind: "second_success".to_owned(),
        acknowledged,
    });
}

fn review(books: &mut Books, n: u128) {
    "NEEDS_REVIEW".clone_into(&mut edit_order(books, n).state);
    let place = usize::try_from(n - 1).unwrap();
    "NEEDS_REVIEW".clone_into(&mut books.payments.payments[place].status);
    let line = books.payments.transitions.iter_mut().rfind(|line| line.payment_order_id == order(n)).unwrap();
    "NEEDS_REVIEW".clone_into(&mut line.to_state);
}

#[test]
fn a_contradiction_that_was_swallowed() {
    reports(
        |books| lie(books, PAID, true),
        &[Reviewed],
        "second_success under pi_other was received, and it is SUCCESSFUL",
    );
    // One that never arrived is nobody's fault.
    let mut books = clean();
    lie(&mut books, PAID, false);
    assert!(examine(&books).clean());
    let seen = |books: &mut Books| {
        lie(books, PAID, true);
        review(books, PAID);
    };
    let mut books = clean();
    seen(&mut books);
    assert!(examine(&books).clean(), "{}", examine(&books).describe(20));
}

#[test]
fn a_contradiction_about_nobodys_order() {
    let plant = |books: &mut Books| {
        lie(books, PAID, true);
        review(books, PAID);
        lie(books, DECLINED, true);
        books.contradictions[1].payment_order_id = None;
    };
    reports(plant, &[Consistent], "contradicted, and of no payment order");
}

#[test]
fn a_review_without_a_cause() {
    reports(|books| review(books, PAID), &[Reviewed], "before a person without a cause: pm_card_visa");
    let exhausted = |books: &mut Books| {
        review(books, PAID);
        books.executor.results[0].error_code = Some("RESOLUTION_EXHAUSTED".to_owned());
    };
    // The PSP could have told.
    reports(exhausted, &[Reviewed], "pm_card_visa, the PSP having been asked in vain");
    let mut books = clean();
    exhausted(&mut books);
    books.sent[0].payment_method = "shopper-adyen_sim_error_after_charge".to_owned();
    assert!(examine(&books).clean(), "{}", examine(&books).describe(20));
}

#[test]
fn another_amount_than_asked_for_that_nobody_sees() {
    let other = |books: &mut Books| books.sent[0].payment_method = "pm_sim_amount_mismatch".to_owned();
    reports(other, &[Reviewed], "it was charged otherwise than asked for");
    let mut books = clean();
    other(&mut books);
    review(&mut books, PAID);
    assert!(examine(&books).clean(), "{}", examine(&books).describe(20));
}

/// The payment of this number had this token.
fn token(books: &mut Books, n: u128, token: &str) {
    token.clone_into(&mut books.sent[usize::try_from(n - 1).unwrap()].payment_method);
}

#[test]
fn payments_that_should_have_worked_and_did_not() {
    for paid in ["pm_card_visa", "pm_card_mastercard", "shopper-adyen_sim_success", "pm_sim_slow"] {
        let plant = |books: &mut Books| token(books, DECLINED, paid);
        let text = format!("nothing stood in its way ({paid}), and it is FAILED and never charged");
        reports(plant, &[Reviewed], &text);
    }
    // A person may look at what was said to be misstated; that it was never charged is wrong.
    let uncharged = |books: &mut Books| {
        token(books, DECLINED, "pm_card_visa");
        lie(books, DECLINED, true);
        review(books, DECLINED);
    };
    reports(uncharged, &[Reviewed], "and it is NEEDS_REVIEW and never charged");
}

/// The plain demo's books if nobody was ever charged.
#[test]
fn every_payment_failed() {
    let mut books = clean();
    books.charges.clear();
    books.payments.transitions.iter_mut().for_each(|line| {
        line.to_state = line.to_state.replace("SUCCESSFUL", "FAILED");
    });
    let events = books.executor.outbox.iter_mut().map(|event| &mut event.payload);
    let records = books.results.iter_mut().filter_map(|record| record.body.as_mut().ok());
    for body in events.chain(records).filter(|body| body["pspStatus"] == "SUCCESSFUL") {
        body["pspStatus"] = "FAILED".into();
    }
    let results = books.executor.results.iter_mut().map(|result| &mut result.psp_status);
    let orders = books.payments.orders.iter_mut().map(|order| &mut order.state);
    let payments = books.payments.payments.iter_mut().map(|payment| &mut payment.status);
    for state in results.chain(orders).chain(payments).filter(|state| *state == "SUCCESSFUL") {
        "FAILED".clone_into(state);
    }
    let verdict = examine(&books);
    assert_eq!(verdict.broken(Reviewed), 2, "{}", verdict.describe(20));
    assert_eq!(verdict.findings.len(), 2, "{}", verdict.describe(20));
}

#[test]
fn payments_that_should_have_failed_and_did_not() {
    for declined in ["pm_card_chargeDeclinedLostCard", "pm_card_authenticationRequired", "pm_sim_cancelled"] {
        let plant = |books: &mut Books| token(books, PAID, declined);
        reports(plant, &[Reviewed], "no charge could come of it");
    }
    let uncharged = |books: &mut Books| {
        token(books, PAID, "pm_card_chargeDeclined");
        books.charges.remove(0);
    };
    reports(
        uncharged,
        &[Consistent, Reviewed],
        "it was declined (pm_card_chargeDeclined), and it is SUCCESSFUL",
    );
    let untold = |books: &mut Books| token(books, DECLINED, "pm_sim_error_before_charge");
    reports(untold, &[Reviewed], "the PSP never said how it stands");
}

#[test]
fn a_charge_after_the_payment_was_called_off_that_nobody_sees() {
    let other = |books: &mut Books| token(books, PAID, "shopper-1-adyen_sim_action_then_authorised");
    reports(other, &[Reviewed], "it was charged after it was called off");
    let mut books = clean();
    other(&mut books);
    review(&mut books, PAID);
    assert!(examine(&books).clean(), "{}", examine(&books).describe(20));
}

#[test]
fn a_token_that_no_table_has() {
    reports(|books| token(books, PAID, "pm_sim_novelty"), &[Reviewed], "nobody knows how it has to end");
}

#[test]
fn an_end_is_wrong_also_if_the_client_was_told_nothing() {
    let plant = |books: &mut Books| {
        token(books, DECLINED, "pm_card_visa");
        books.sent[1].outcome = Told::Unknown("no answer".to_owned());
    };
    reports(plant, &[Reviewed], "nothing stood in its way");
}
