use super::super::story::Order;
use super::*;
use crate::results::Said;

fn id(number: u128) -> Uuid {
    Uuid::from_u128(number)
}

/// A payment with one order, PENDING and then SUCCESSFUL, and a record that is no result.
fn clean() -> Books {
    let said = |event: u128, status| Said {
        event_id: id(event),
        payment_order_id: id(10),
        status,
        reference: None,
        code: None,
    };
    let end = ("SUCCESSFUL", None);
    let order =
        Order { payment_order_id: id(10), end, said: vec![said(1, "PENDING"), said(2, "SUCCESSFUL")] };
    let transition = |event: Option<u128>, from: Option<&str>, to: &str, offset| Transition {
        payment_order_id: id(10),
        event_id: event.map(id),
        from_state: from.map(str::to_owned),
        to_state: to.to_owned(),
        decision: "APPLIED".to_owned(),
        partition: event.map(|_| 0),
        record_offset: offset,
    };
    Books {
        stories: vec![Story { payment_id: id(100), end, orders: vec![order], late: false }],
        told: HashMap::from([
            (id(1), Place { partition: 0, offset: 5 }),
            (id(2), Place { partition: 0, offset: 6 }),
        ]),
        garbage: vec![Place { partition: 1, offset: 0 }],
        copies: 3,
        orders: vec![StoredOrder {
            payment_order_id: id(10),
            state: "SUCCESSFUL".to_owned(),
            review_reason: None,
        }],
        payments: vec![StoredPayment {
            payment_id: id(100),
            status: "SUCCESSFUL".to_owned(),
            review_reason: None,
        }],
        transitions: vec![
            transition(None, None, "CREATED", None),
            transition(Some(1), Some("CREATED"), "PENDING", Some(5)),
            transition(Some(2), Some("PENDING"), "SUCCESSFUL", Some(6)),
        ],
        processed: vec![id(1), id(2)],
        quarantine: vec![SetAside {
            partition: 1,
            record_offset: 0,
            reason_code: "UNDECODABLE".to_owned(),
            settled: false,
        }],
    }
}

/// What is found after this was done to clean books.
fn found(change: impl FnOnce(&mut Books)) -> Vec<(&'static str, usize)> {
    let mut books = clean();
    change(&mut books);
    let tally = examine(&books);
    let found: Vec<_> = tally.findings().into_iter().filter(|(_, count)| *count > 0).collect();
    assert_eq!(found.is_empty(), tally.examples.is_empty(), "{tally:?}");
    found
}

#[test]
fn clean_books_are_clean() {
    assert_eq!(found(|_| {}), []);
    let tally = examine(&clean());
    assert_eq!((tally.orders, tally.events, tally.copies), (1, 2, 3));
}

#[test]
fn an_event_without_a_transition_is_lost_and_its_order_ends_wrong() {
    let lost = found(|books| {
        books.transitions.pop();
        books.processed.pop();
        books.orders[0].state = "PENDING".to_owned();
    });
    assert_eq!(lost, [("lost", 1), ("wrong ends", 1)]);
    assert_eq!(found(|books| books.quarantine.clear()), [("lost", 1)]);
    let open = |books: &mut Books| {
        books.quarantine.push(SetAside {
            partition: 2,
            record_offset: 9,
            reason_code: "ORPHAN".to_owned(),
            settled: false,
        });
    };
    assert_eq!(found(open), [("lost", 1)]);
}

#[test]
fn a_second_transition_of_an_event_is_applied_twice() {
    let twice = found(|books| {
        let mut again = books.transitions[2].clone();
        again.from_state = Some("SUCCESSFUL".to_owned());
        again.decision = "DUPLICATE".to_owned();
        books.transitions.push(again);
    });
    assert_eq!(twice, [("applied twice", 1)]);
}

#[test]
fn what_was_never_told_is_a_ghost() {
    let ghost = found(|books| {
        books.told.remove(&id(1));
    });
    assert_eq!(ghost, [("ghosts", 1)]);
    let refused = |books: &mut Books| books.quarantine[0].reason_code = "REFUSED".to_owned();
    assert_eq!(found(refused), [("lost", 1), ("ghosts", 1)]);
}

#[test]
fn transitions_lead_to_the_state_in_the_order_of_the_records() {
    assert_eq!(
        found(|books| books.transitions[2].from_state = Some("CREATED".to_owned())),
        [("unfolded", 1)]
    );
    let changed_nothing = |books: &mut Books| books.transitions[2].decision = "STALE".to_owned();
    assert_eq!(found(changed_nothing), [("unfolded", 1)]);
    let copy = |books: &mut Books| books.transitions[2].record_offset = Some(8);
    assert_eq!(found(copy), [("order inversions", 1)]);
    let orphan = |books: &mut Books| {
        books.stories[0].late = true;
        books.transitions[2].record_offset = Some(8);
    };
    assert_eq!(found(orphan), []);
}

#[test]
fn marks_and_transitions_belong_together() {
    assert_eq!(found(|books| books.processed.truncate(1)), [("unmarked", 1)]);
    assert_eq!(found(|books| books.processed.push(id(9))), [("unmarked", 1)]);
}

#[test]
fn states_are_those_of_the_story() {
    let wrong = found(|books| {
        books.payments[0].status = "NEEDS_REVIEW".to_owned();
        books.payments[0].review_reason = Some("DOUBLE_CHARGE".to_owned());
    });
    assert_eq!(wrong, [("wrong ends", 1)]);
    let unseen = found(|books| {
        let mut second = books.stories[0].orders[0].clone();
        second.payment_order_id = id(11);
        books.stories[0].orders.push(second);
        books.orders.push(StoredOrder { payment_order_id: id(11), ..books.orders[0].clone() });
        let mut more = books.transitions.clone();
        for transition in &mut more {
            transition.payment_order_id = id(11);
        }
        for (transition, event) in more[1..].iter_mut().zip([3, 4]) {
            transition.event_id = Some(id(event));
            books.processed.push(id(event));
            let offset = transition.record_offset.unwrap() + 10;
            transition.record_offset = Some(offset);
            books.told.insert(id(event), Place { partition: 0, offset });
        }
        books.transitions.extend(more);
    });
    assert_eq!(unseen, [("double charges unseen", 1)]);
}
