use proptest::{prelude::*, sample::subsequence};
use time::macros::datetime;
use uuid::Uuid;

use super::*;

fn event(status: PspStatus, reference: Option<&str>, code: Option<&str>) -> PspResultUpdateEvent {
    PspResultUpdateEvent {
        payment_order_id: Uuid::nil(),
        psp_status: status,
        psp_reference: reference.map(str::to_owned),
        event_time: datetime!(2026-01-01 00:00 UTC),
        error_code: code.map(str::to_owned),
        error_message: None,
    }
}

fn fold(events: &[PspResultUpdateEvent]) -> (Order, Vec<Decision>) {
    let mut order = Order::created();
    let mut decisions = Vec::new();
    for event in events {
        let verdict = decide(&order, event);
        assert!(verdict.decision != Decision::Orphan, "an order that exists has no orphans");
        assert_eq!((verdict.next.state == State::NeedsReview), verdict.next.review_reason.is_some());
        if matches!(order.state, State::Successful | State::Failed) && verdict.next.state != order.state {
            assert_eq!(verdict.next.state, State::NeedsReview, "a final state is left for review alone");
        }
        if order.state == State::NeedsReview {
            assert_eq!(verdict.next.state, State::NeedsReview, "only a person leaves a review");
        }
        assert!(verdict.next.state != State::Created);
        if matches!(verdict.decision, Decision::Duplicate | Decision::Stale) {
            assert_eq!(verdict.next, order, "these decisions change nothing");
        }
        decisions.push(verdict.decision);
        order = verdict.next;
    }
    (order, decisions)
}

const S: PspStatus = PspStatus::Successful;
const F: PspStatus = PspStatus::Failed;
const P: PspStatus = PspStatus::Pending;
const U: PspStatus = PspStatus::Unknown;

#[test]
fn every_cell_of_the_table() {
    use Decision::{Applied, Conflict, Duplicate, Stale};
    type Said<'a> = (PspStatus, Option<&'a str>, Option<&'a str>);
    let expired: Said<'_> = (U, None, Some("EXPIRED"));
    let mismatch: Said<'_> = (U, Some("a"), Some("AMOUNT_MISMATCH"));
    let cases: &[(&[Said<'_>], Decision, State, Option<ReviewReason>)] = &[
        (&[(S, Some("a"), None)], Applied, State::Successful, None),
        (&[(F, None, Some("card_declined"))], Applied, State::Failed, None),
        (&[(P, Some("a"), None)], Applied, State::Pending, None),
        (&[(U, None, Some("TIMEOUT"))], Applied, State::Unknown, None),
        (&[(P, None, None), (U, None, None)], Applied, State::Unknown, None),
        (&[(U, None, None), (P, None, None)], Applied, State::Pending, None),
        (&[(P, Some("a"), None), (P, Some("a"), None)], Duplicate, State::Pending, None),
        (&[(U, None, None), (U, None, None)], Duplicate, State::Unknown, None),
        (&[(U, None, None), (S, Some("a"), None)], Applied, State::Successful, None),
        (&[(S, Some("a"), None), (S, Some("a"), None)], Duplicate, State::Successful, None),
        (&[(S, Some("a"), None), (S, None, None)], Duplicate, State::Successful, None),
        (&[(S, None, None), (S, Some("a"), None)], Applied, State::Successful, None),
        (&[(S, Some("a"), None), (P, None, None)], Stale, State::Successful, None),
        (&[(S, Some("a"), None), (U, None, None)], Stale, State::Successful, None),
        (&[(S, Some("a"), None), expired], Stale, State::Successful, None),
        (&[(F, None, None), expired], Stale, State::Failed, None),
        (&[(F, None, None), (F, None, Some("other"))], Duplicate, State::Failed, None),
        // Contradictions.
        (
            &[(S, Some("a"), None), (F, None, None)],
            Conflict,
            State::NeedsReview,
            Some(ReviewReason::FailureAfterSuccess),
        ),
        (
            &[(F, None, None), (S, Some("a"), None)],
            Conflict,
            State::NeedsReview,
            Some(ReviewReason::LateSuccess),
        ),
        (
            &[(S, Some("a"), None), (S, Some("b"), None)],
            Conflict,
            State::NeedsReview,
            Some(ReviewReason::SecondSuccess),
        ),
        (&[(S, Some("a"), None), mismatch], Conflict, State::NeedsReview, Some(ReviewReason::AmountMismatch)),
        (&[(F, None, None), mismatch], Conflict, State::NeedsReview, Some(ReviewReason::AmountMismatch)),
        // Calls for a person.
        (&[expired], Applied, State::NeedsReview, Some(ReviewReason::Expired)),
        (
            &[(U, None, Some("RESOLUTION_EXHAUSTED"))],
            Applied,
            State::NeedsReview,
            Some(ReviewReason::ResolutionExhausted),
        ),
        (
            &[(U, None, Some("IDEMPOTENCY_MISMATCH"))],
            Applied,
            State::NeedsReview,
            Some(ReviewReason::IdempotencyMismatch),
        ),
        (&[mismatch], Applied, State::NeedsReview, Some(ReviewReason::AmountMismatch)),
        // In review.
        (&[expired, expired], Duplicate, State::NeedsReview, Some(ReviewReason::Expired)),
        (&[expired, (P, None, None)], Stale, State::NeedsReview, Some(ReviewReason::Expired)),
        (&[expired, (F, None, None)], Conflict, State::NeedsReview, Some(ReviewReason::Expired)),
        (&[expired, (S, Some("a"), None)], Conflict, State::NeedsReview, Some(ReviewReason::LateSuccess)),
        (&[expired, mismatch], Conflict, State::NeedsReview, Some(ReviewReason::AmountMismatch)),
        (&[mismatch, mismatch], Duplicate, State::NeedsReview, Some(ReviewReason::AmountMismatch)),
        (&[mismatch, (S, Some("a"), None)], Conflict, State::NeedsReview, Some(ReviewReason::AmountMismatch)),
        (
            &[(F, None, None), (S, Some("a"), None), (S, Some("b"), None)],
            Conflict,
            State::NeedsReview,
            Some(ReviewReason::SecondSuccess),
        ),
        (
            &[(F, None, None), (S, Some("a"), None), (F, None, None)],
            Duplicate,
            State::NeedsReview,
            Some(ReviewReason::LateSuccess),
        ),
    ];
    for (said, decision, state, reason) in cases {
        let events: Vec<_> =
            said.iter().map(|(status, reference, code)| event(*status, *reference, *code)).collect();
        let (order, decisions) = fold(&events);
        assert_eq!(
            (decisions.last(), order.state, order.review_reason),
            (Some(decision), *state, *reason),
            "{said:?}"
        );
    }
}

#[test]
fn a_late_success_names_the_charge_to_look_at() {
    let (order, _) = fold(&[event(F, Some("pi_old"), Some("declined")), event(S, Some("pi_new"), None)]);
    assert_eq!(order.psp_reference.as_deref(), Some("pi_new"));
    let (order, _) = fold(&[event(S, Some("pi_first"), None), event(S, Some("pi_second"), None)]);
    assert_eq!(order.psp_reference.as_deref(), Some("pi_first"));
}

#[test]
fn the_state_of_a_payment_follows_its_orders() {
    use State::{Created, Failed, NeedsReview, Successful, Unknown};
    type Known = (State, Option<ReviewReason>);
    let late = Some(ReviewReason::LateSuccess);
    let cases: &[(&[Known], State, Option<ReviewReason>)] = &[
        (&[(Created, None)], Created, None),
        (&[(Failed, None)], Failed, None),
        (&[(Failed, None), (Unknown, None)], Unknown, None),
        (&[(Failed, None), (Successful, None)], Successful, None),
        (&[(Successful, None), (Created, None)], Successful, None),
        (&[(NeedsReview, late), (Successful, None)], NeedsReview, late),
        (&[(Successful, None), (Successful, None)], NeedsReview, Some(ReviewReason::DoubleCharge)),
        (
            &[(NeedsReview, late), (Successful, None), (Successful, None)],
            NeedsReview,
            Some(ReviewReason::DoubleCharge),
        ),
    ];
    for (orders, state, reason) in cases {
        assert_eq!(payment_state(orders), (*state, *reason), "{orders:?}");
    }
}

/// Results that are not final and call nobody.
fn open_results() -> Vec<PspResultUpdateEvent> {
    vec![
        event(P, None, None),
        event(P, Some("a"), None),
        event(P, Some("x"), Some("requires_capture")),
        event(U, None, None),
        event(U, Some("a"), Some("TIMEOUT")),
        event(U, Some("y"), Some("api_error")),
    ]
}

fn calls_for_a_person() -> Vec<PspResultUpdateEvent> {
    ["EXPIRED", "RESOLUTION_EXHAUSTED", "IDEMPOTENCY_MISMATCH"].map(|code| event(U, None, Some(code))).into()
}

/// `seeds`, some of them again, in any order.
fn shuffled(seeds: Vec<PspResultUpdateEvent>) -> impl Strategy<Value = Vec<PspResultUpdateEvent>> {
    let count = seeds.len();
    (Just(seeds.clone()), subsequence(seeds, 0..=count), any::<bool>())
        .prop_map(|(mut all, again, thrice)| {
            if thrice {
                all.extend(again.clone());
            }
            all.extend(again);
            all
        })
        .prop_shuffle()
}

fn some_of(events: Vec<PspResultUpdateEvent>) -> impl Strategy<Value = Vec<PspResultUpdateEvent>> {
    let count = events.len();
    subsequence(events, 0..=count)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn without_contradiction_a_success_is_found_in_any_order(
        events in (some_of(open_results()), any::<bool>(), any::<bool>()).prop_flat_map(|(mut events, referenced, both)| {
            if referenced || both {
                events.push(event(S, Some("a"), None));
            }
            if !referenced || both {
                events.push(event(S, None, None));
            }
            shuffled(events)
        })
    ) {
        let (order, decisions) = fold(&events);
        prop_assert_eq!(order.state, State::Successful);
        prop_assert!(!decisions.contains(&Decision::Conflict));
        let named = events.iter().any(|event| event.psp_status == S && event.psp_reference.is_some());
        prop_assert_eq!(order.psp_reference.as_deref(), named.then_some("a"), "the reference of the success, in any order");
    }

    #[test]
    fn without_contradiction_a_failure_is_found_in_any_order(
        events in (some_of(open_results()), any::<bool>()).prop_flat_map(|(mut events, another)| {
            events.push(event(F, Some("a"), Some("card_declined")));
            if another {
                events.push(event(F, None, Some("canceled")));
            }
            shuffled(events)
        })
    ) {
        let (order, decisions) = fold(&events);
        prop_assert_eq!(order.state, State::Failed);
        prop_assert!(!decisions.contains(&Decision::Conflict));
    }

    #[test]
    fn without_an_outcome_the_last_result_counts(events in some_of(open_results()).prop_flat_map(shuffled)) {
        let (order, _) = fold(&events);
        let expected = match events.last().map(|event| event.psp_status) {
            Some(P) => State::Pending,
            Some(_) => State::Unknown,
            None => State::Created,
        };
        prop_assert_eq!(order.state, expected);
    }

    #[test]
    fn a_contradiction_ends_in_review_in_any_order(
        events in (some_of(open_results()), some_of(calls_for_a_person()), 0..5_usize).prop_flat_map(|(mut events, calls, kind)| {
            events.extend(calls);
            let wrong_amount = event(U, Some("a"), Some("AMOUNT_MISMATCH"));
            events.extend(match kind {
                0 => vec![event(S, Some("a"), None), event(F, Some("a"), None)],
                1 => vec![event(S, Some("a"), None), event(S, Some("b"), None)],
                2 => vec![event(S, Some("a"), None), wrong_amount],
                3 => vec![event(F, None, None), wrong_amount],
                _ => vec![event(S, None, None), event(S, Some("a"), None), event(S, Some("b"), None)],
            });
            shuffled(events)
        })
    ) {
        let (order, decisions) = fold(&events);
        prop_assert_eq!(order.state, State::NeedsReview);
        let reasons = [ReviewReason::LateSuccess, ReviewReason::SecondSuccess, ReviewReason::FailureAfterSuccess, ReviewReason::AmountMismatch];
        let called_first = order.review_reason.is_some_and(|reason| !reasons.contains(&reason));
        prop_assert!(decisions.contains(&Decision::Conflict), "a contradiction is counted");
        // Two failures cannot be told from one once a person was called; every success is.
        prop_assert!(!called_first || !events.iter().any(|event| event.psp_status == S));
    }

    #[test]
    fn a_call_for_a_person_counts_only_while_the_outcome_is_open(
        events in (some_of(open_results()), subsequence(calls_for_a_person(), 1..=3)).prop_flat_map(|(mut events, calls)| {
            events.extend(calls);
            events.push(event(S, Some("a"), None));
            shuffled(events)
        })
    ) {
        let calls = calls_for_a_person();
        let first_call = events.iter().position(|event| calls.contains(event));
        let first_success = events.iter().position(|event| event.psp_status == S);
        let (order, _) = fold(&events);
        if first_call < first_success {
            prop_assert_eq!((order.state, order.review_reason), (State::NeedsReview, Some(ReviewReason::LateSuccess)));
        } else {
            prop_assert_eq!(order.state, State::Successful);
        }
    }
}

// ------------------------------------------------------------------------------------------- the table of ARCHITECTURE.md

const TABLE_BEGINS: &str = "<!-- The table is written by the tests of decision.rs: begin. -->\n";
const TABLE_ENDS: &str = "<!-- end. -->";

/// What an order of the table's rows is, by name.
fn rows() -> Vec<(String, Order)> {
    let known = |state| Order { state, psp_reference: Some("a".into()), ..Order::created() };
    let mut rows = vec![
        ("CREATED".to_owned(), Order::created()),
        ("PENDING".to_owned(), Order { state: State::Pending, ..Order::created() }),
        ("UNKNOWN".to_owned(), Order { state: State::Unknown, ..Order::created() }),
        ("SUCCESSFUL as *a*".to_owned(), known(State::Successful)),
        (
            "SUCCESSFUL, reference not known".to_owned(),
            Order { psp_reference: None, ..known(State::Successful) },
        ),
        ("FAILED".to_owned(), known(State::Failed)),
    ];
    // A double charge is of payments alone.
    for reason in ReviewReason::ALL.iter().filter(|reason| **reason != ReviewReason::DoubleCharge) {
        rows.push((format!("review: {}", reason.as_str()), known(State::NeedsReview).under_review(*reason)));
    }
    rows
}

fn columns() -> Vec<(&'static str, PspResultUpdateEvent)> {
    vec![
        ("SUCCESSFUL as *a*", event(S, Some("a"), None)),
        ("SUCCESSFUL as *b*", event(S, Some("b"), None)),
        ("SUCCESSFUL without reference", event(S, None, None)),
        ("FAILED", event(F, None, None)),
        ("PENDING", event(P, None, None)),
        ("UNKNOWN", event(U, None, None)),
        ("UNKNOWN: RESOLUTION_EXHAUSTED", event(U, None, Some("RESOLUTION_EXHAUSTED"))),
        ("UNKNOWN: EXPIRED", event(U, None, Some("EXPIRED"))),
        ("UNKNOWN: IDEMPOTENCY_MISMATCH", event(U, None, Some("IDEMPOTENCY_MISMATCH"))),
        ("UNKNOWN: AMOUNT_MISMATCH", event(U, Some("a"), Some("AMOUNT_MISMATCH"))),
    ]
}

fn cell(order: &Order, event: &PspResultUpdateEvent) -> String {
    let Verdict { decision, next } = decide(order, event);
    let stays = (next.state, next.review_reason) == (order.state, order.review_reason);
    let learns = stays && next.psp_reference != order.psp_reference;
    match next.review_reason {
        _ if learns => format!("{}, learns *{}*", decision.as_str(), next.psp_reference.unwrap_or_default()),
        _ if stays => decision.as_str().to_owned(),
        Some(reason) => format!("{} → review: {}", decision.as_str(), reason.as_str()),
        None => format!("{} → {}", decision.as_str(), next.state.as_str()),
    }
}

#[test]
fn the_table_of_the_architecture_is_the_function() {
    let (rows, columns) = (rows(), columns());
    let states: std::collections::HashSet<_> = rows.iter().map(|(_, order)| order.state).collect();
    assert_eq!(states.len(), State::ALL.len(), "every state has a row");
    let names: Vec<&str> = columns.iter().map(|(name, _)| &**name).collect();
    let names = names.join(" | ");
    let row = |(name, order): &(_, Order)| {
        let cells: Vec<String> = columns.iter().map(|(_, event)| cell(order, event)).collect();
        format!("| **{name}** | {} |\n", cells.join(" | "))
    };
    let rule = " --- |".repeat(columns.len() + 1);
    let lines: String = rows.iter().map(row).collect();
    let table = format!("| order \\ result | {names} |\n|{rule}\n{lines}");
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../ARCHITECTURE.md");
    let text = std::fs::read_to_string(path).unwrap();
    let (before, rest) = text.split_once(TABLE_BEGINS).expect("the table's beginning is marked");
    let (written, after) = rest.split_once(TABLE_ENDS).expect("the table's end is marked");
    if std::env::var_os("WRITE_TABLE").is_some() {
        std::fs::write(path, format!("{before}{TABLE_BEGINS}{table}{TABLE_ENDS}{after}")).unwrap();
    } else {
        assert!(
            written == table,
            "ARCHITECTURE.md does not say what decide() does; WRITE_TABLE=1 writes it:\n{table}"
        );
    }
}

// --------------------------------------------------------------------------------------------------- two orders of a payment

proptest! {
    #[test]
    fn a_payment_leaves_success_for_review_alone_and_review_never(
        events in (
            (some_of(open_results()), some_of(calls_for_a_person()), 0..4_usize),
            (some_of(open_results()), some_of(calls_for_a_person()), 0..4_usize),
        ).prop_flat_map(|(first, second)| {
            let of = |(mut events, calls, kind): (Vec<PspResultUpdateEvent>, Vec<_>, usize), order: usize| {
                events.extend(calls);
                events.extend(match kind {
                    0 => vec![event(S, Some("a"), None)],
                    1 => vec![event(F, None, None)],
                    2 => vec![event(S, Some("a"), None), event(F, None, None)],
                    _ => vec![],
                });
                events.into_iter().map(move |event| (order, event)).collect::<Vec<_>>()
            };
            Just([of(first, 0), of(second, 1)].concat()).prop_shuffle()
        })
    ) {
        let mut orders = [Order::created(), Order::created()];
        let mut payment = State::Created;
        for (number, event) in &events {
            orders[*number] = decide(&orders[*number], event).next;
            let states: Vec<_> = orders.iter().map(|order| (order.state, order.review_reason)).collect();
            let (next, reason) = payment_state(&states);
            prop_assert_eq!(next == State::NeedsReview, reason.is_some());
            match payment {
                State::NeedsReview => prop_assert_eq!(next, State::NeedsReview),
                State::Successful => prop_assert!(matches!(next, State::Successful | State::NeedsReview)),
                State::Created | State::Pending | State::Unknown | State::Failed => {}
            }
            payment = next;
        }
        let both = [0, 1].iter().all(|number| {
            events.iter().any(|(order, event)| order == number && event.psp_status == S)
        });
        prop_assert!(!both || payment == State::NeedsReview, "two orders that succeeded");
    }
}
