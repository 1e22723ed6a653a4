//! The oracle must see what is wrong: each test plants one anomaly into books that are clean, and says what must be reported.
#![allow(clippy::unwrap_used, reason = "what goes wrong in a test has to end it")]

mod clean_books;
mod contradictions;
mod effects;
mod loss;

use testbed::oracle::books::Record;
use testbed::oracle::examine;

use clean_books::clean;

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
    books.sent[0].payment_method = "pm_sim_amount_mismatch".to_owned();
    let verdict = examine(&books);
    assert!(verdict.clean(), "{}", verdict.describe(20));
    assert_eq!(verdict.figures.needs_review, 1);
}
