//! What is before a person: every contradiction, and nothing that needs none. And that what should have worked has.
//!
//! Causes of a review are three. A PSP contradicts itself: the simulator tells which orders it has lied about. A PSP states another
//! amount or currency than was asked for: a matter of the payment's token. Or a PSP never tells how it stands, and the executor has asked
//! as often as its ladder says: only for the tokens of which the PSP can be silent for good.

use std::collections::{BTreeMap, HashMap, HashSet};

use uuid::Uuid;

use super::books::{Contradicted, Sent, Told};
use super::{Index, Promise, Verdict};

const REVIEW: &str = "NEEDS_REVIEW";
/// What the simulator's tokens begin with; then comes the name of the scenario.
const PREFIXES: [&str; 2] = ["pm_sim_", "adyen_sim_"];
/// The PSP charges, and states something else than was asked for.
const MISSTATED: [&str; 3] = ["amount_mismatch", "currency_mismatch", "partially_authorised"];
/// Its answer is an error for ever, or its outcome comes by webhook alone, which may be dropped.
const SILENT: [&str; 10] = [
    "error_before_charge",
    "error_after_charge",
    "processing",
    "processing_then_failure",
    "received",
    "received_then_failure",
    "unknown_status",
    "timeout_while_processing",
    "slow",
    "slow_decline",
];
const EXHAUSTED: &str = "RESOLUTION_EXHAUSTED";

pub(super) fn examine(index: &Index<'_>, verdict: &mut Verdict) {
    let books = index.books;
    let contradicted = contradicted(&books.contradictions, verdict);
    let tokens: HashMap<Uuid, &str> = books.sent.iter().filter_map(of_order).collect();
    let exhausted: HashSet<Uuid> = (books.executor.results.iter())
        .filter(|result| result.error_code.as_deref() == Some(EXHAUSTED))
        .map(|result| result.payment_order_id)
        .collect();
    for order in &books.payments.orders {
        let id = order.payment_order_id;
        let in_review = order.state == REVIEW;
        let scenario = tokens.get(&id).copied().and_then(scenario);
        let contradiction = contradicted.get(&id);
        let charged = index.charges_by_order.contains_key(id.to_string().as_str());
        let misstated = charged && scenario.is_some_and(|scenario| MISSTATED.contains(&scenario));
        let silent = exhausted.contains(&id) && scenario.is_some_and(|scenario| SILENT.contains(&scenario));
        if let Some(contradiction) = contradiction.filter(|one| one.acknowledged && !in_review) {
            let Contradicted { kind, reference, .. } = contradiction;
            let text = format!("{kind} under {reference} was received, and it is {}", order.state);
            verdict.report(Promise::Reviewed, id, text);
        }
        if scenario == Some("success") && !charged {
            let text = format!("nothing stood in its way, and it was never charged: it is {}", order.state);
            verdict.report(Promise::Reviewed, id, text);
        }
        if misstated && !in_review {
            let text = format!("charged otherwise than asked for ({scenario:?}), and it is {}", order.state);
            verdict.report(Promise::Reviewed, id, text);
        }
        if in_review && contradiction.is_none() && !misstated && !silent {
            let token = tokens.get(&id).copied().unwrap_or("a token that nobody knows");
            let asked = if exhausted.contains(&id) { ", the PSP having been asked in vain" } else { "" };
            verdict.report(
                Promise::Reviewed,
                id,
                format!("it is before a person without a cause: {token}{asked}"),
            );
        }
    }
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

fn of_order(sent: &Sent) -> Option<(Uuid, &str)> {
    match &sent.outcome {
        Told::Accepted { payment_order_id, .. } => Some((*payment_order_id, &sent.payment_method)),
        Told::Refused(_) | Told::Unknown(_) => None,
    }
}

fn scenario(token: &str) -> Option<&str> {
    // At Adyen the shopper comes first.
    let stored = token.rsplit_once('-').map_or(token, |(_, stored)| stored);
    PREFIXES.iter().find_map(|prefix| stored.strip_prefix(prefix))
}
