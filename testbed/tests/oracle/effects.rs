//! What has happened twice, or in the wrong order.

use testbed::oracle::Promise::{AppliedOnce, ChargedOnce, Consistent, InOrder};
use testbed::oracle::books::{Books, Record};
use testbed::oracle::examine;

use crate::clean_books::*;

// ------------------------------------------------------------------------------------------------------ applied twice

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

// ------------------------------------------------------------------------------------------------------ charged twice

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

// -------------------------------------------------------------------------------------------------------------- order

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
