//! From an accepted payment to its state: was every request taken in, every result published and applied, once, and does the
//! audit add up to the present?

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use uuid::Uuid;

use super::books::{Order, OutboxEvent, PspResult, Record, Told, Transition, trace_id};
use super::{Index, Promise, Verdict};

const FINAL: [&str; 2] = ["SUCCESSFUL", "FAILED"];
const REVIEW: &str = "NEEDS_REVIEW";

pub(super) fn examine(index: &Index<'_>, verdict: &mut Verdict) {
    accepted(index, verdict);
    requests(index, verdict);
    results(index, verdict);
    applied(index, verdict);
    audit(index, verdict);
    payments(index, verdict);
}

/// What the client was told, against what is stored.
fn accepted(index: &Index<'_>, verdict: &mut Verdict) {
    let payments = &index.books.payments.payments;
    let mut by_reference: HashMap<&str, Vec<Uuid>> = HashMap::new();
    for payment in payments {
        by_reference.entry(&payment.merchant_reference).or_default().push(payment.payment_id);
    }
    for sent in &index.books.sent {
        let reference = sent.merchant_reference.as_str();
        let stored = by_reference.get(reference).map_or(&[][..], Vec::as_slice);
        if stored.len() > 1 {
            let text = format!("asked for once, stored as the payments {stored:?}");
            verdict.report(Promise::Consistent, reference, text);
        }
        match &sent.outcome {
            Told::Accepted { payment_id, payment_order_id } => {
                let payment = index.payments.get(payment_id);
                let order =
                    index.orders.get(payment_order_id).filter(|order| order.payment_id == *payment_id);
                let (Some(payment), Some(_)) = (payment, order) else {
                    let text = format!("the client was told that payment {payment_id} exists; it does not");
                    verdict.report(Promise::NothingLost, payment_order_id, text);
                    continue;
                };
                let asked = (reference, sent.amount_minor, sent.currency.as_str());
                let got =
                    (payment.merchant_reference.as_str(), payment.amount_minor, payment.currency.as_str());
                if asked != got {
                    let text = format!("payment {payment_id} is {got:?}, asked for was {asked:?}");
                    verdict.report(Promise::Consistent, reference, text);
                }
            }
            Told::Refused(reason) if !stored.is_empty() => {
                verdict.report(Promise::Consistent, reference, format!("refused ({reason}), and yet stored"));
            }
            // Nobody was told anything: it may be there or not, but not half (that is what the other checks see).
            Told::Refused(_) | Told::Unknown(_) => {}
        }
    }
}

/// Every order has its request, in the outbox and at the executor.
fn requests(index: &Index<'_>, verdict: &mut Verdict) {
    let books = index.books;
    let requested: HashSet<&str> =
        books.payments.outbox.iter().map(|event| event.aggregate_id.as_str()).collect();
    for order in &books.payments.orders {
        if !requested.contains(order.payment_order_id.to_string().as_str()) {
            verdict.report(Promise::NothingLost, order.payment_order_id, "it has no request event");
        }
    }
    let taken: HashSet<Uuid> = books.executor.inbox.iter().copied().collect();
    for event in &books.payments.outbox {
        let Some(order) = index.order(&event.aggregate_id) else {
            let text = format!("a request event of order {} that does not exist", event.aggregate_id);
            verdict.report(Promise::NoGhost, event.event_id, text);
            continue;
        };
        let payment = index.payments.get(&order.payment_id);
        let asked = (event.payload["amountMinor"].as_i64(), event.payload["currency"].as_str());
        let meant = payment.map(|payment| (Some(payment.amount_minor), Some(payment.currency.as_str())));
        if meant.is_some_and(|meant| meant != asked) {
            let text = format!("its request event asks for {asked:?}, its payment is {meant:?}");
            verdict.report(Promise::Consistent, order.payment_order_id, text);
        }
        if !taken.contains(&order.payment_order_id) {
            let aside = set_aside(&books.requests, &books.executor.quarantine, event.event_id);
            let text = format!("the executor never took it in{aside}");
            verdict.report(Promise::NothingLost, order.payment_order_id, text);
        }
    }
}

fn set_aside(records: &[Record], quarantine: &[(i32, i64)], event_id: Uuid) -> &'static str {
    let mut places = records.iter().filter(|record| record.event_id() == Some(event_id));
    let aside = places.any(|record| quarantine.contains(&(record.partition, record.offset)));
    if aside { ": it is in the executor's quarantine" } else { "" }
}

/// Every result that was recorded has its event, and every event its result.
fn results(index: &Index<'_>, verdict: &mut Verdict) {
    let recorded: HashMap<Uuid, &PspResult> =
        index.books.executor.results.iter().map(|result| (result.event_id, result)).collect();
    for (event_id, result) in &recorded {
        if !index.results.contains_key(event_id) {
            let text = format!("its result {} has no event {event_id} in the outbox", result.psp_status);
            verdict.report(Promise::NothingLost, result.payment_order_id, text);
        }
    }
    for event in &index.books.executor.outbox {
        let Some(result) = recorded.get(&event.event_id) else {
            let text = format!("a result event of order {} without a recorded result", event.aggregate_id);
            verdict.report(Promise::NoGhost, event.event_id, text);
            continue;
        };
        let order = result.payment_order_id.to_string();
        let of_result = (order.as_str(), result.psp_status.as_str(), result.psp_reference.as_deref());
        let text = |field: &str| event.payload[field].as_str();
        let of_event = (
            event.aggregate_id.as_str(),
            text("pspStatus").unwrap_or_default(),
            event.payload.get("pspReference").and_then(|reference| reference.as_str()),
        );
        if of_result != of_event || text("paymentOrderId") != Some(&event.aggregate_id) {
            let text = format!("the event says {of_event:?}, the recorded result {of_result:?}");
            verdict.report(Promise::Consistent, event.event_id, text);
        }
    }
}

/// Every result event has changed, or left unchanged, its order exactly once.
fn applied(index: &Index<'_>, verdict: &mut Verdict) {
    let processed: HashSet<Uuid> = index.books.payments.processed.iter().copied().collect();
    for event in &index.books.executor.outbox {
        let lines = index.transitions_by_event.get(&event.event_id).map_or(&[][..], Vec::as_slice);
        if lines.is_empty() {
            let marked = if processed.contains(&event.event_id) { "marked as taken, but " } else { "" };
            let aside = quarantined(index, event);
            let text = format!("its result event {} was {marked}never applied{aside}", event.event_id);
            verdict.report(Promise::NothingLost, &event.aggregate_id, text);
        }
        if let Some(stranger) =
            lines.iter().find(|line| line.payment_order_id.to_string() != event.aggregate_id)
        {
            let text = format!("an event of order {} was applied to another", event.aggregate_id);
            verdict.report(Promise::Consistent, stranger.payment_order_id, text);
        }
    }
    let events: BTreeMap<Uuid, &Vec<&Transition>> =
        index.transitions_by_event.iter().map(|(event_id, lines)| (*event_id, lines)).collect();
    for (event_id, lines) in events {
        if lines.len() > 1 {
            let decisions: Vec<&str> = lines.iter().map(|line| line.decision.as_str()).collect();
            let text = format!("{} lines of the audit, with the decisions {decisions:?}", lines.len());
            verdict.report(Promise::AppliedOnce, event_id, text);
        }
        if !index.results.contains_key(&event_id) {
            verdict.report(Promise::NoGhost, event_id, "applied, but in no row of the executor's outbox");
        }
        if !processed.contains(&event_id) {
            let text = "applied, but not marked as taken: it would be applied again";
            verdict.report(Promise::Consistent, event_id, text);
        }
    }
}

fn quarantined(index: &Index<'_>, event: &OutboxEvent) -> String {
    let mut rows = index.books.payments.quarantine.iter();
    let row = rows.find(|row| row.event_id == Some(event.event_id) && !row.settled);
    row.map(|row| format!(": in quarantine as {} ({})", row.reason_code, row.reason)).unwrap_or_default()
}

/// The audit of an order, folded, is its state.
fn audit(index: &Index<'_>, verdict: &mut Verdict) {
    let mut lines: BTreeMap<Uuid, Vec<&Transition>> = BTreeMap::new();
    for line in &index.books.payments.transitions {
        lines.entry(line.payment_order_id).or_default().push(line);
    }
    for order in &index.books.payments.orders {
        let state = order.state.as_str();
        if !FINAL.contains(&state) && state != REVIEW {
            verdict.report(Promise::Settled, order.payment_order_id, format!("it is still {state}"));
        }
        let mut lines = lines.remove(&order.payment_order_id).unwrap_or_default();
        lines.sort_by_key(|line| line.transition_id);
        if let Some(text) = fold(&lines, state) {
            verdict.report(Promise::Consistent, order.payment_order_id, text);
        }
        let trace = index.payments.get(&order.payment_id).map(|payment| payment.trace_id.as_str());
        if let Some(line) = lines.iter().find(|line| Some(line.trace_id.as_str()) != trace) {
            let text = format!("line {} of the audit has another trace than its payment", line.transition_id);
            verdict.report(Promise::Consistent, order.payment_order_id, text);
        }
    }
    for stranger in lines.into_keys() {
        verdict.report(Promise::Consistent, stranger, "there is an audit of it, but no such order");
    }
    for event in index.requests.values().chain(index.results.values()) {
        let payment =
            index.order(&event.aggregate_id).and_then(|order| index.payments.get(&order.payment_id));
        let trace = event.traceparent.as_deref().and_then(trace_id);
        if payment.is_some_and(|payment| trace != Some(payment.trace_id.as_str())) {
            let text = format!("event {} has another trace than its payment", event.event_id);
            verdict.report(Promise::Consistent, &event.aggregate_id, text);
        }
    }
}

/// What does not add up.
fn fold(lines: &[&Transition], state: &str) -> Option<String> {
    let mut current: Option<&str> = None;
    for line in lines {
        let (from, to) = (line.from_state.as_deref(), line.to_state.as_str());
        let number = line.transition_id;
        if from != current {
            return Some(format!(
                "line {number} of the audit begins at {from:?}, the one before ended at {current:?}"
            ));
        }
        let changes = from != Some(to);
        let legal = match from {
            None => to == "CREATED",
            Some(from) if FINAL.contains(&from) => !changes || to == REVIEW,
            Some(REVIEW) => !changes,
            Some(_) => true,
        };
        if !legal {
            return Some(format!("line {number} of the audit goes from {from:?} to {to}"));
        }
        if changes && !matches!(line.decision.as_str(), "APPLIED" | "CONFLICT") {
            return Some(format!(
                "line {number} of the audit is {} and yet changes the state",
                line.decision
            ));
        }
        current = Some(to);
    }
    (current != Some(state)).then(|| format!("it is {state}, its audit ends at {current:?}"))
}

/// A payment's status follows from its orders.
fn payments(index: &Index<'_>, verdict: &mut Verdict) {
    let mut orders: HashMap<Uuid, Vec<&Order>> = HashMap::new();
    for order in &index.books.payments.orders {
        orders.entry(order.payment_id).or_default().push(order);
    }
    for payment in &index.books.payments.payments {
        let mut of_payment = orders.remove(&payment.payment_id).unwrap_or_default();
        of_payment.sort_by_key(|order| order.number);
        let expected = status(&of_payment);
        if expected != Some(payment.status.as_str()) {
            let states: Vec<&str> = of_payment.iter().map(|order| order.state.as_str()).collect();
            let text =
                format!("payment {} is {}, its orders are {states:?}", payment.payment_id, payment.status);
            verdict.report(Promise::Consistent, payment.payment_id, text);
        }
    }
    let homeless: BTreeSet<Uuid> = orders.into_keys().collect();
    for payment_id in homeless {
        verdict.report(Promise::Consistent, payment_id, "it has orders, but does not exist");
    }
}

fn status<'a>(orders: &[&'a Order]) -> Option<&'a str> {
    let in_review = orders.iter().any(|order| order.state == REVIEW);
    let successes = orders.iter().filter(|order| order.state == FINAL[0]).count();
    match successes {
        0 if !in_review => orders.last().map(|order| order.state.as_str()),
        1 if !in_review => Some(FINAL[0]),
        _ => Some(REVIEW),
    }
}
