//! The PSP's ledger against the orders: is every charge known, wanted, made once, and of the right amount?

use std::collections::{BTreeMap, HashSet};

use uuid::Uuid;

use super::books::{Charge, Order};
use super::{Index, Promise, Verdict};

pub(super) fn examine(index: &Index<'_>, verdict: &mut Verdict) {
    let confirmed: HashSet<Uuid> = (index.books.executor.attempts.iter())
        .filter(|attempt| attempt.operation == "CONFIRM")
        .map(|attempt| attempt.payment_order_id)
        .collect();
    for charge in &index.books.charges {
        let Some(order_id) = &charge.payment_order_id else {
            verdict.report(Promise::NothingLost, &charge.charge_id, "a charge that names no payment order");
            continue;
        };
        let Some(order) = index.order(order_id) else {
            let text = format!("charge {} is for a payment order that does not exist", charge.charge_id);
            verdict.report(Promise::NothingLost, order_id, text);
            continue;
        };
        of_order(index, charge, order, verdict);
        if !confirmed.contains(&order.payment_order_id) {
            let text = format!("charge {} was made without being written down before", charge.charge_id);
            verdict.report(Promise::Consistent, order_id, text);
        }
    }
    for order in index.books.payments.orders.iter().filter(|order| order.state == "SUCCESSFUL") {
        if !index.charges_by_order.contains_key(order.payment_order_id.to_string().as_str()) {
            verdict.report(Promise::Consistent, order.payment_order_id, "it is SUCCESSFUL without a charge");
        }
    }
    twice(index, verdict);
}

fn of_order(index: &Index<'_>, charge: &Charge, order: &Order, verdict: &mut Verdict) {
    let state = order.state.as_str();
    // Under review a person sees it: it is not lost.
    if !matches!(state, "SUCCESSFUL" | "NEEDS_REVIEW") {
        let text = format!("charge {} was made, and its order is {state}", charge.charge_id);
        verdict.report(Promise::NothingLost, order.payment_order_id, text);
    }
    if state == "FAILED" {
        let text = format!("it is FAILED, and charge {} was made", charge.charge_id);
        verdict.report(Promise::Consistent, order.payment_order_id, text);
    }
    if state != "SUCCESSFUL" {
        return;
    }
    if order.psp_reference.as_deref() != Some(&charge.payment_intent) {
        let text =
            format!("its reference is {:?}, charged was {}", order.psp_reference, charge.payment_intent);
        verdict.report(Promise::Consistent, order.payment_order_id, text);
    }
    let charged = (charge.amount_minor, charge.currency.to_ascii_uppercase());
    let meant =
        index.payments.get(&order.payment_id).map(|payment| (payment.amount_minor, payment.currency.clone()));
    if meant.as_ref() != Some(&charged) {
        let text = format!("charged was {charged:?}, meant was {meant:?}");
        verdict.report(Promise::Consistent, order.payment_order_id, text);
    }
}

/// Charges are counted by what the client asked for once: by order, by payment, and by the client's own id of it.
fn twice(index: &Index<'_>, verdict: &mut Verdict) {
    let mut by_wish: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (order_id, charges) in &index.charges_by_order {
        let order = index.order(order_id);
        let payment = order.and_then(|order| index.payments.get(&order.payment_id));
        let wish = payment.map_or(*order_id, |payment| payment.merchant_reference.as_str());
        by_wish.entry(wish).or_default().extend(charges.iter().map(|charge| charge.charge_id.as_str()));
    }
    for (wish, charges) in by_wish.iter().filter(|(_, charges)| charges.len() > 1) {
        verdict.report(Promise::ChargedOnce, wish, format!("the charges {charges:?}"));
    }
}
