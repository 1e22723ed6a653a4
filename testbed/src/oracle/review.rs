//! That every payment has come to the end that its token has ([`super::ending`]); and what is before a person: every contradiction, and
//! nothing that needs none.
//!
//! Causes of a review are three. A PSP contradicts itself: the simulator tells which orders it has lied about. A PSP states another
//! amount or currency than was asked for: a matter of the payment's token. Or a PSP never tells how it stands, and the executor has asked
//! as often as its ladder says: only for the tokens of which the PSP can be silent for good.

use std::collections::{BTreeMap, HashMap, HashSet};

use uuid::Uuid;

use super::books::{Contradicted, Order};
use super::ending::{Ending, ending, may_stay_untold};
use super::{Index, Promise, Verdict};

const REVIEW: &str = "NEEDS_REVIEW";
const EXHAUSTED: &str = "RESOLUTION_EXHAUSTED";

pub(super) fn examine(index: &Index<'_>, verdict: &mut Verdict) {
    let books = index.books;
    let contradicted = contradicted(&books.contradictions, verdict);
    let tokens: HashMap<&str, &str> = (books.sent.iter())
        .map(|sent| (sent.merchant_reference.as_str(), sent.payment_method.as_str()))
        .collect();
    let exhausted: HashSet<Uuid> = (books.executor.results.iter())
        .filter(|result| result.error_code.as_deref() == Some(EXHAUSTED))
        .map(|result| result.payment_order_id)
        .collect();
    for order in &books.payments.orders {
        let id = order.payment_order_id;
        let in_review = order.state == REVIEW;
        // Also of a payment of which the client was told nothing: it may be there.
        let payment = index.payments.get(&order.payment_id);
        let token = payment.and_then(|payment| tokens.get(payment.merchant_reference.as_str()).copied());
        let contradiction = contradicted.get(&id);
        let charged = index.charges_by_order.contains_key(id.to_string().as_str());
        let misstated = charged && token.and_then(ending) == Some(Ending::Misstated);
        let untold = exhausted.contains(&id) && token.is_some_and(may_stay_untold);
        if let Some(contradiction) = contradiction.filter(|one| one.acknowledged && !in_review) {
            let Contradicted { kind, reference, .. } = contradiction;
            let text = format!("{kind} under {reference} was received, and it is {}", order.state);
            verdict.report(Promise::Reviewed, id, text);
        }
        if let Some(text) = token.and_then(|token| wrong_end(order, token, charged)) {
            verdict.report(Promise::Reviewed, id, text);
        }
        if in_review && contradiction.is_none() && !misstated && !untold {
            let token = token.unwrap_or("a token that nobody knows");
            let asked = if exhausted.contains(&id) { ", the PSP having been asked in vain" } else { "" };
            verdict.report(
                Promise::Reviewed,
                id,
                format!("it is before a person without a cause: {token}{asked}"),
            );
        }
    }
}

/// What is wrong with how an order stands, by its token. That it stands in the middle is another promise, and so is whether it may be
/// before a person; a success without a charge is found with the money.
fn wrong_end(order: &Order, token: &str, charged: bool) -> Option<String> {
    let state = order.state.as_str();
    let meant = match ending(token) {
        None => Some("nobody knows how it has to end"),
        Some(Ending::Paid | Ending::Misstated) if state == "FAILED" => Some("nothing stood in its way"),
        // One of which the PSP says nothing may be one that it never heard of.
        Some(Ending::Paid | Ending::Misstated)
            if !charged && state != "SUCCESSFUL" && !may_stay_untold(token) =>
        {
            Some("nothing stood in its way")
        }
        Some(Ending::Misstated) if charged && state != REVIEW => {
            Some("it was charged otherwise than asked for")
        }
        Some(Ending::Declined | Ending::Untold) if charged => Some("no charge could come of it"),
        Some(Ending::Declined) if state == "SUCCESSFUL" => Some("it was declined"),
        Some(Ending::Untold) if matches!(state, "SUCCESSFUL" | "FAILED") => {
            Some("the PSP never said how it stands")
        }
        Some(Ending::Paid | Ending::Declined | Ending::Misstated | Ending::Untold) => None,
    }?;
    let charged = if charged { "charged" } else { "never charged" };
    Some(format!("{meant} ({token}), and it is {state} and {charged}"))
}

/// Contradictions by order. One that names no order of ours is none that could be seen: nobody can have made it.
fn contradicted<'a>(
    contradictions: &'a [Contradicted],
    verdict: &mut Verdict,
) -> BTreeMap<Uuid, &'a Contradicted> {
    let mut by_order = BTreeMap::new();
    for one in contradictions {
        match one.payment_order_id.as_deref().map(Uuid::try_parse) {
            Some(Ok(order)) => {
                by_order.insert(order, one);
            }
            Some(Err(_)) | None => {
                verdict.report(Promise::Consistent, &one.reference, "contradicted, and of no payment order");
            }
        }
    }
    by_order
}
