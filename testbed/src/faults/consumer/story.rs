//! What PSPs say about a payment, and how it has to end: the truth, drawn before anything is said.
//!
//! The ends are written down here by hand, beside what leads to them, and not derived by a rule: a rule could share a mistake with the
//! payment service's own.

use uuid::Uuid;

use crate::load::Random;
use crate::results::Said;

/// A state, and why a person must look.
pub type End = (&'static str, Option<&'static str>);

/// One payment.
#[derive(Clone, Debug)]
pub struct Story {
    /// The payment.
    pub payment_id: Uuid,
    /// How it has to end.
    pub end: End,
    /// Its orders, by try.
    pub orders: Vec<Order>,
    /// Its rows are made only after everything was said.
    pub late: bool,
}

/// One payment order.
#[derive(Clone, Debug)]
pub struct Order {
    /// The order.
    pub payment_order_id: Uuid,
    /// How it has to end.
    pub end: End,
    /// What is said about it, in this order.
    pub said: Vec<Said>,
}

/// Status, number of the charge, code.
type Line = (&'static str, Option<u8>, Option<&'static str>);

struct Script {
    /// How often it is drawn, beside the others.
    weight: usize,
    lines: &'static [Line],
    end: End,
}

const SUCCESS: Line = ("SUCCESSFUL", Some(1), None);
const OTHER_SUCCESS: Line = ("SUCCESSFUL", Some(2), None);
const FAILURE: Line = ("FAILED", None, Some("card_declined"));
const PENDING: Line = ("PENDING", Some(1), None);
const UNKNOWN: Line = ("UNKNOWN", None, Some("TIMEOUT"));

const SCRIPTS: [Script; 14] = [
    Script { weight: 30, lines: &[SUCCESS], end: ("SUCCESSFUL", None) },
    Script { weight: 10, lines: &[FAILURE], end: ("FAILED", None) },
    Script { weight: 12, lines: &[PENDING, SUCCESS], end: ("SUCCESSFUL", None) },
    Script { weight: 8, lines: &[UNKNOWN, PENDING, SUCCESS, PENDING], end: ("SUCCESSFUL", None) },
    Script { weight: 8, lines: &[PENDING, UNKNOWN, FAILURE, FAILURE], end: ("FAILED", None) },
    Script { weight: 4, lines: &[SUCCESS, SUCCESS, UNKNOWN], end: ("SUCCESSFUL", None) },
    Script { weight: 3, lines: &[PENDING], end: ("PENDING", None) },
    Script { weight: 3, lines: &[PENDING, UNKNOWN], end: ("UNKNOWN", None) },
    Script { weight: 4, lines: &[SUCCESS, FAILURE], end: ("NEEDS_REVIEW", Some("FAILURE_AFTER_SUCCESS")) },
    Script { weight: 4, lines: &[FAILURE, SUCCESS], end: ("NEEDS_REVIEW", Some("LATE_SUCCESS")) },
    Script { weight: 4, lines: &[SUCCESS, OTHER_SUCCESS], end: ("NEEDS_REVIEW", Some("SECOND_SUCCESS")) },
    Script {
        weight: 3,
        lines: &[PENDING, ("UNKNOWN", Some(1), Some("AMOUNT_MISMATCH"))],
        end: ("NEEDS_REVIEW", Some("AMOUNT_MISMATCH")),
    },
    Script {
        weight: 3,
        lines: &[("UNKNOWN", None, Some("RESOLUTION_EXHAUSTED")), FAILURE],
        end: ("NEEDS_REVIEW", Some("RESOLUTION_EXHAUSTED")),
    },
    Script {
        weight: 4,
        lines: &[("UNKNOWN", None, Some("EXPIRED")), SUCCESS],
        end: ("NEEDS_REVIEW", Some("LATE_SUCCESS")),
    },
];

/// Two tries of one payment, whichever is heard of first.
const PAIRS: [([&Script; 2], End); 3] = [
    ([&SCRIPTS[1], &SCRIPTS[0]], ("SUCCESSFUL", None)),
    ([&SCRIPTS[1], &SCRIPTS[1]], ("FAILED", None)),
    ([&SCRIPTS[0], &SCRIPTS[2]], ("NEEDS_REVIEW", Some("DOUBLE_CHARGE"))),
];

impl Story {
    /// The next one.
    pub fn draw(random: &mut Random) -> Story {
        let (scripts, end, late) = match random.below(100) {
            // Of one event: an order's later ones would not wait for an orphan.
            0..3 => (vec![&SCRIPTS[0]], SCRIPTS[0].end, true),
            3..15 => {
                let (scripts, end) = PAIRS[random.below(PAIRS.len())];
                (scripts.to_vec(), end, false)
            }
            _ => {
                let script = any(random);
                (vec![script], script.end, false)
            }
        };
        let orders = scripts.into_iter().map(Script::order).collect();
        Story { payment_id: Uuid::new_v4(), end, orders, late }
    }
}

fn any(random: &mut Random) -> &'static Script {
    let mut drawn = random.below(SCRIPTS.iter().map(|script| script.weight).sum());
    for script in &SCRIPTS {
        if drawn < script.weight {
            return script;
        }
        drawn -= script.weight;
    }
    &SCRIPTS[0]
}

impl Script {
    fn order(&self) -> Order {
        let payment_order_id = Uuid::new_v4();
        let said = self.lines.iter().map(|(status, charge, code)| Said {
            event_id: Uuid::now_v7(),
            payment_order_id,
            status,
            reference: charge.map(|charge| format!("pi_{}_{charge}", payment_order_id.simple())),
            code: *code,
        });
        Order { payment_order_id, end: self.end, said: said.collect() }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn a_few_hundred_stories_have_every_end() {
        let mut random = Random::new(1, 0);
        let stories: Vec<Story> = (0..600).map(|_| Story::draw(&mut random)).collect();
        let ends: HashSet<End> =
            stories.iter().flat_map(|story| &story.orders).map(|order| order.end).collect();
        assert_eq!(ends.len(), SCRIPTS.iter().map(|script| script.end).collect::<HashSet<_>>().len());
        for (_, end) in PAIRS {
            assert!(stories.iter().any(|story| story.orders.len() == 2 && story.end == end), "{end:?}");
        }
        let late: Vec<_> = stories.iter().filter(|story| story.late).collect();
        assert!(!late.is_empty() && late.iter().all(|story| story.orders[0].said.len() == 1));
    }
}
