//! What was told, how it has to end, and what the payment service's database says: every difference is a broken promise. Pure.

use std::collections::{BTreeMap, HashMap, HashSet};

use sqlx::FromRow;
use uuid::Uuid;

use super::super::report::{Counts, Verdict};
use super::story::{End, Story};
use crate::results::Place;

/// Examples that are kept of each finding.
const EXAMPLES: usize = 5;

/// What each witness says about the same payments.
#[derive(Clone, Debug, Default)]
pub struct Books {
    /// Payments that something was said about, with how they have to end.
    pub stories: Vec<Story>,
    /// Where each event that was told lies first.
    pub told: HashMap<Uuid, Place>,
    /// Where records lie that are no results.
    pub garbage: Vec<Place>,
    /// Records of a result that had been told before.
    pub copies: usize,
    /// Their orders.
    pub orders: Vec<StoredOrder>,
    /// The payments.
    pub payments: Vec<StoredPayment>,
    /// The orders' audit, in the order in which it was written.
    pub transitions: Vec<Transition>,
    /// Events that are marked as processed.
    pub processed: Vec<Uuid>,
    /// Everything that was set aside.
    pub quarantine: Vec<SetAside>,
}

/// A row of `payments.payment_orders`.
#[derive(Clone, Debug, FromRow)]
pub struct StoredOrder {
    /// The order.
    pub payment_order_id: Uuid,
    /// Its state.
    pub state: String,
    /// Why a person must look.
    pub review_reason: Option<String>,
}

/// A row of `payments.payments`.
#[derive(Clone, Debug, FromRow)]
pub struct StoredPayment {
    /// The payment.
    pub payment_id: Uuid,
    /// Its state.
    pub status: String,
    /// Why a person must look.
    pub review_reason: Option<String>,
}

/// A row of the audit.
#[derive(Clone, Debug, FromRow)]
pub struct Transition {
    /// The order.
    pub payment_order_id: Uuid,
    /// None: its creation.
    pub event_id: Option<Uuid>,
    /// The state before.
    pub from_state: Option<String>,
    /// The state after.
    pub to_state: String,
    /// What was decided.
    pub decision: String,
    /// Where the record lies.
    pub partition: Option<i32>,
    /// Where the record lies.
    pub record_offset: Option<i64>,
}

/// A row of the quarantine.
#[derive(Clone, Debug, FromRow)]
pub struct SetAside {
    /// Where the record lies.
    pub partition: i32,
    /// Where the record lies.
    pub record_offset: i64,
    /// UNDECODABLE, ORPHAN or REFUSED.
    pub reason_code: String,
    /// Whether it was applied later.
    pub settled: bool,
}

/// What the books come to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Payment orders that something was said about.
    pub orders: usize,
    /// Events that were told.
    pub events: usize,
    /// Records of a result that had been told before.
    pub copies: usize,
    /// Events without a transition, records without a row of the quarantine, orphans that were never applied.
    pub lost: usize,
    /// What stands in the database and was never told.
    pub ghosts: usize,
    /// Events with more than one transition.
    pub applied_twice: usize,
    /// Payments with two successful orders that no person is asked to look at.
    pub double_charged: usize,
    /// Orders and payments that do not end as their story says.
    pub wrong_ends: usize,
    /// Orders whose transitions do not lead to their state, step by step.
    pub unfolded: usize,
    /// Transitions without the mark of their event, and marks without a transition.
    pub unmarked: usize,
    /// Transitions of another record than the first of their event, or in another order than the records'.
    pub inversions: usize,
    /// Some of what was found.
    pub examples: Vec<String>,
}

#[derive(Default)]
struct Findings {
    examples: BTreeMap<&'static str, Vec<String>>,
}

impl Findings {
    fn found(&mut self, what: &'static str, count: &mut usize, text: impl FnOnce() -> String) {
        *count += 1;
        let examples = self.examples.entry(what).or_default();
        if examples.len() < EXAMPLES {
            examples.push(format!("{what}: {}", text()));
        }
    }
}

/// Compares them.
pub fn examine(books: &Books) -> Tally {
    let (mut tally, mut findings) = (Tally::default(), Findings::default());
    tally.orders = books.stories.iter().map(|story| story.orders.len()).sum();
    tally.events = books.told.len();
    tally.copies = books.copies;
    compare_events(books, &mut tally, &mut findings);
    compare_ends(books, &mut tally, &mut findings);
    fold(books, &mut tally, &mut findings);
    compare_quarantine(books, &mut tally, &mut findings);
    tally.examples = findings.examples.into_values().flatten().collect();
    tally
}

fn compare_events(books: &Books, tally: &mut Tally, findings: &mut Findings) {
    let mut effects: HashMap<Uuid, Vec<&Transition>> = HashMap::new();
    for transition in &books.transitions {
        if let Some(event_id) = transition.event_id {
            effects.entry(event_id).or_default().push(transition);
        }
    }
    let processed: HashSet<Uuid> = books.processed.iter().copied().collect();
    let late: HashSet<Uuid> = (books.stories.iter().filter(|story| story.late))
        .flat_map(|story| &story.orders)
        .map(|order| order.payment_order_id)
        .collect();
    for (event_id, place) in &books.told {
        if !effects.contains_key(event_id) {
            findings.found("lost", &mut tally.lost, || format!("event {event_id}, {place:?}"));
        }
    }
    for (event_id, transitions) in &effects {
        let order = transitions[0].payment_order_id;
        if transitions.len() > 1 {
            findings.found("applied twice", &mut tally.applied_twice, || {
                format!("event {event_id} of order {order}, {} times", transitions.len())
            });
        }
        if !processed.contains(event_id) {
            findings.found("unmarked", &mut tally.unmarked, || format!("event {event_id} of order {order}"));
        }
        let Some(place) = books.told.get(event_id) else {
            findings.found("ghost", &mut tally.ghosts, || format!("event {event_id} of order {order}"));
            continue;
        };
        // An orphan is applied when its order is there, out of the quarantine or by a copy that comes only then.
        if !late.contains(&order)
            && (transitions[0].partition, transitions[0].record_offset)
                != (Some(place.partition), Some(place.offset))
        {
            findings.found("out of order", &mut tally.inversions, || {
                format!("event {event_id} lies first at {place:?}: {:?}", transitions[0])
            });
        }
    }
    for event_id in processed.iter().filter(|event_id| !effects.contains_key(event_id)) {
        findings.found("unmarked", &mut tally.unmarked, || format!("event {event_id} has no transition"));
    }
}

fn compare_ends(books: &Books, tally: &mut Tally, findings: &mut Findings) {
    let orders: HashMap<Uuid, (&str, Option<&str>)> = (books.orders.iter())
        .map(|order| (order.payment_order_id, (order.state.as_str(), order.review_reason.as_deref())))
        .collect();
    let payments: HashMap<Uuid, (&str, Option<&str>)> = (books.payments.iter())
        .map(|payment| (payment.payment_id, (payment.status.as_str(), payment.review_reason.as_deref())))
        .collect();
    let mut compare = |what: &str, id: Uuid, end: End, is: Option<&(&str, Option<&str>)>| {
        if is != Some(&end) {
            findings.found("wrong end", &mut tally.wrong_ends, || {
                format!("{what} {id}: {is:?}, and not {end:?}")
            });
        }
    };
    for story in &books.stories {
        for order in &story.orders {
            compare("order", order.payment_order_id, order.end, orders.get(&order.payment_order_id));
        }
        compare("payment", story.payment_id, story.end, payments.get(&story.payment_id));
    }
    for story in &books.stories {
        let paid = |order: &&super::story::Order| {
            orders.get(&order.payment_order_id).is_some_and(|(state, _)| *state == "SUCCESSFUL")
        };
        let review = payments.get(&story.payment_id).is_some_and(|(status, _)| *status == "NEEDS_REVIEW");
        if story.orders.iter().filter(paid).count() > 1 && !review {
            findings.found("double charge unseen", &mut tally.double_charged, || {
                format!("payment {}", story.payment_id)
            });
        }
    }
}

/// The transitions of an order, from its creation, lead to its state, in the order of its records.
fn fold(books: &Books, tally: &mut Tally, findings: &mut Findings) {
    let mut by_order: HashMap<Uuid, Vec<&Transition>> = HashMap::new();
    for transition in &books.transitions {
        by_order.entry(transition.payment_order_id).or_default().push(transition);
    }
    for order in &books.orders {
        let transitions = by_order.remove(&order.payment_order_id).unwrap_or_default();
        let mut state: Option<&str> = None;
        let mut whole = true;
        let mut offset = None;
        for transition in transitions {
            whole &= transition.from_state.as_deref() == state;
            let changes = matches!(transition.decision.as_str(), "APPLIED" | "CONFLICT");
            whole &= changes || transition.from_state.as_deref() == Some(transition.to_state.as_str());
            state = Some(&transition.to_state);
            if transition.record_offset.is_some() && transition.record_offset < offset {
                findings.found("out of order", &mut tally.inversions, || format!("{transition:?}"));
            }
            offset = offset.max(transition.record_offset);
        }
        if !whole || state != Some(order.state.as_str()) {
            findings.found("unfolded", &mut tally.unfolded, || {
                format!(
                    "order {} is {}, its transitions lead to {state:?}",
                    order.payment_order_id, order.state
                )
            });
        }
    }
}

fn compare_quarantine(books: &Books, tally: &mut Tally, findings: &mut Findings) {
    let garbage: HashSet<Place> = books.garbage.iter().copied().collect();
    let mut aside = HashSet::new();
    for row in &books.quarantine {
        let place = Place { partition: row.partition, offset: row.record_offset };
        match row.reason_code.as_str() {
            "UNDECODABLE" if garbage.contains(&place) => {
                aside.insert(place);
            }
            "ORPHAN" if row.settled => {}
            "ORPHAN" => findings.found("lost", &mut tally.lost, || format!("the orphan at {place:?}")),
            _ => findings.found("ghost", &mut tally.ghosts, || format!("{row:?}")),
        }
    }
    for place in garbage.difference(&aside) {
        findings.found("lost", &mut tally.lost, || format!("the record at {place:?}, which is no result"));
    }
}

impl Tally {
    /// What has to be 0, by its name.
    pub fn findings(&self) -> Vec<(&'static str, usize)> {
        vec![
            ("lost", self.lost),
            ("ghosts", self.ghosts),
            ("applied twice", self.applied_twice),
            ("double charges unseen", self.double_charged),
            ("wrong ends", self.wrong_ends),
            ("unfolded", self.unfolded),
            ("unmarked", self.unmarked),
            ("order inversions", self.inversions),
        ]
    }

    /// For the report.
    pub fn verdict(self) -> Verdict {
        Verdict {
            counts: Counts {
                lost: self.lost,
                applied_twice: self.applied_twice,
                double_charged: self.double_charged,
                duplicates: self.copies,
                order_inversions: self.inversions,
            },
            ghosts: self.ghosts,
            findings: self.findings(),
            figures: vec![("payment orders", self.orders), ("events", self.events)],
            examples: self.examples,
        }
    }
}

#[cfg(test)]
mod tests;
