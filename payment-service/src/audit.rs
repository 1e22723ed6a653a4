//! What the audit says of an order, folded line by line, and whether that is what the order says of itself. Pure.
//!
//! Every line of an event is decided anew, by the same function, from what the lines before it have left: an audit from which a line was
//! taken, or in which one was changed, does not come out at the order's state.

use schema::psp_result_update::{PspResultUpdateEvent, PspStatus};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::{
    decision::{Decision, Order, ReviewReason, State, decide},
    intervention::{Resolution, resolve},
};

/// One line of the audit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// Its number.
    pub transition_id: i64,
    /// State before it; None in the first line.
    pub from: Option<State>,
    /// State after it.
    pub to: State,
    /// PSP's id of the charge: the event's, or what a hand has set.
    pub psp_reference: Option<String>,
    /// Code: the event's, or what a hand has set.
    pub error_code: Option<String>,
    /// What made it.
    pub cause: Cause,
}

/// What made a line of the audit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The order was created.
    Creation,
    /// A result was decided upon.
    Event {
        /// What the PSP said.
        status: PspStatus,
        /// When.
        event_time: OffsetDateTime,
        /// What was decided.
        decision: Decision,
    },
    /// Somebody changed the order without an event.
    Hand {
        /// Why a person must look, as it was set.
        review_reason: Option<ReviewReason>,
    },
    /// A person has resolved it.
    Resolution,
}

/// The fold over the lines of one order, in the order of their numbers.
#[derive(Clone, Debug)]
pub struct Fold {
    payment_order_id: Uuid,
    known: Option<Order>,
    /// The first thing that does not add up.
    finding: Option<String>,
}

impl Fold {
    /// Before the first line.
    pub fn new(payment_order_id: Uuid) -> Self {
        Self { payment_order_id, known: None, finding: None }
    }

    /// Takes the next line in.
    pub fn line(&mut self, line: &Line) {
        let before = self.known.as_ref().map(|order| order.state);
        if line.from != before {
            let words = |state: Option<State>| state.map_or("nothing", State::as_str);
            self.found(format!(
                "line {} begins at {}, the one before it ended at {}",
                line.transition_id,
                words(line.from),
                words(before)
            ));
        }
        let order = self.known.take().unwrap_or_else(Order::created);
        let next = match &line.cause {
            Cause::Creation => Order::created(),
            Cause::Hand { review_reason } => Order {
                state: line.to,
                psp_reference: line.psp_reference.clone(),
                error_code: line.error_code.clone(),
                error_message: None,
                review_reason: *review_reason,
            },
            Cause::Event { status, event_time, decision } => {
                self.decide_again(&order, line, (*status, *event_time), *decision)
            }
            Cause::Resolution => self.resolve_again(&order, line),
        };
        if next.state != line.to {
            self.found(format!(
                "line {} ends at {}, its event leads to {}",
                line.transition_id,
                line.to.as_str(),
                next.state.as_str()
            ));
        }
        self.known = Some(Order { state: line.to, ..next });
    }

    fn decide_again(
        &mut self,
        order: &Order,
        line: &Line,
        (psp_status, event_time): (PspStatus, OffsetDateTime),
        decision: Decision,
    ) -> Order {
        let event = PspResultUpdateEvent {
            payment_order_id: self.payment_order_id,
            psp_status,
            psp_reference: line.psp_reference.clone(),
            event_time,
            error_code: line.error_code.clone(),
            error_message: None,
        };
        let verdict = decide(order, &event);
        // The text for people is not in the audit, and a new text alone makes an open order's result a new one.
        let new_text = (decision, verdict.decision) == (Decision::Applied, Decision::Duplicate);
        if decision != verdict.decision && !new_text {
            self.found(format!(
                "line {} was decided to be {}, by this version's rules it is {}",
                line.transition_id,
                decision.as_str(),
                verdict.decision.as_str()
            ));
        }
        verdict.next
    }

    fn resolve_again(&mut self, order: &Order, line: &Line) -> Order {
        // Whether another order of the payment had succeeded is not told by the lines of this one.
        let in_double_charge = order.state == State::Successful;
        let resolved = Resolution::from_word(line.to.as_str()).and_then(|resolution| {
            resolve(order, in_double_charge, resolution, line.psp_reference.as_deref()).ok()
        });
        let Some(next) = resolved else {
            self.found(format!("line {} resolves what needed no person", line.transition_id));
            return order.clone();
        };
        if (&next.psp_reference, &next.error_code) != (&line.psp_reference, &line.error_code) {
            self.found(format!(
                "line {} has another reference or code than follows from it",
                line.transition_id
            ));
        }
        next
    }

    fn found(&mut self, text: String) {
        self.finding.get_or_insert(text);
    }

    /// What does not add up between the lines and the order itself.
    pub fn finish(self, order: &Order) -> Option<String> {
        if self.finding.is_some() {
            return self.finding;
        }
        let Some(known) = self.known else { return Some("it has no line in the audit".to_owned()) };
        let folded = Order { error_message: order.error_message.clone(), ..known };
        (folded != *order).then(|| format!("it is {}, its audit ends at {}", words(order), words(&folded)))
    }
}

fn words(order: &Order) -> String {
    let Order { state, psp_reference, error_code, error_message: _, review_reason } = order;
    let mut text = state.as_str().to_owned();
    for (name, value) in [
        ("review reason", review_reason.map(ReviewReason::as_str)),
        ("PSP reference", psp_reference.as_deref()),
        ("code", error_code.as_deref()),
    ] {
        if let Some(value) = value {
            text.extend([", ", name, " ", value]);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;

    fn line(from: Option<State>, to: State, cause: Cause) -> Line {
        Line { transition_id: 7, from, to, psp_reference: None, error_code: None, cause }
    }

    fn event(status: PspStatus, decision: Decision) -> Cause {
        Cause::Event { status, event_time: datetime!(2026-01-01 00:00 UTC), decision }
    }

    fn paid() -> (Vec<Line>, Order) {
        let success = event(PspStatus::Successful, Decision::Applied);
        let lines = vec![
            line(None, State::Created, Cause::Creation),
            line(Some(State::Created), State::Pending, event(PspStatus::Pending, Decision::Applied)),
            Line {
                psp_reference: Some("a".into()),
                ..line(Some(State::Pending), State::Successful, success)
            },
            line(Some(State::Successful), State::Successful, event(PspStatus::Pending, Decision::Stale)),
        ];
        let order = Order { state: State::Successful, psp_reference: Some("a".into()), ..Order::created() };
        (lines, order)
    }

    fn fold(lines: &[Line], order: &Order) -> Option<String> {
        let mut fold = Fold::new(Uuid::nil());
        for line in lines {
            fold.line(line);
        }
        fold.finish(order)
    }

    #[test]
    fn an_audit_that_was_not_touched_comes_out_at_the_order() {
        let (mut lines, order) = paid();
        assert_eq!(fold(&lines, &order), None);
        // By hand, and on from there.
        let hand = Cause::Hand { review_reason: Some(ReviewReason::Expired) };
        lines.push(Line {
            psp_reference: Some("a".into()),
            ..line(Some(State::Successful), State::NeedsReview, hand)
        });
        let in_review =
            Order { state: State::NeedsReview, review_reason: Some(ReviewReason::Expired), ..order };
        assert_eq!(fold(&lines, &in_review), None);
    }

    #[test]
    fn a_resolution_leads_out_of_a_review_and_out_of_nothing_else() {
        let (mut lines, paid) = paid();
        let failure = event(PspStatus::Failed, Decision::Conflict);
        lines.push(line(Some(State::Successful), State::NeedsReview, failure));
        lines.push(Line {
            psp_reference: Some("a".into()),
            ..line(Some(State::NeedsReview), State::Successful, Cause::Resolution)
        });
        assert_eq!(fold(&lines, &paid), None);
        // What comes then is decided upon as ever.
        lines.push(line(
            Some(State::Successful),
            State::NeedsReview,
            event(PspStatus::Failed, Decision::Conflict),
        ));
        let again = Order {
            state: State::NeedsReview,
            review_reason: Some(ReviewReason::FailureAfterSuccess),
            ..paid.clone()
        };
        assert_eq!(fold(&lines, &again), None);

        let mut without_review = lines.clone();
        without_review.remove(4);
        assert!(fold(&without_review, &again).is_some());
        let mut open = lines[..2].to_vec();
        open.push(line(Some(State::Pending), State::Failed, Cause::Resolution));
        let failed = Order { state: State::Failed, ..Order::created() };
        assert!(fold(&open, &failed).unwrap().contains("needed no person"));
        lines.truncate(6);
        lines[5].psp_reference = None;
        assert!(fold(&lines, &paid).is_some(), "the line forgets the charge");
    }

    #[test]
    fn every_line_that_is_taken_out_or_changed_is_found() {
        let (lines, order) = paid();
        // A stale line changes nothing: its absence shows in the events (`processed_events`), not here.
        for index in 0..3 {
            let mut fewer = lines.clone();
            fewer.remove(index);
            assert!(fold(&fewer, &order).is_some(), "without line {index}");
        }
        assert!(fold(&[], &order).unwrap().contains("no line"));
        let changes: [fn(&mut Vec<Line>, &mut Order); 7] = [
            |lines, _| lines[1].to = State::Unknown,
            |lines, _| lines[2].from = Some(State::Created),
            |lines, _| lines[2].psp_reference = Some("b".into()),
            |lines, _| lines[3].cause = event(PspStatus::Failed, Decision::Stale),
            |_, order| order.state = State::Failed,
            |_, order| order.psp_reference = None,
            |_, order| order.error_code = Some("x".into()),
        ];
        for (index, change) in changes.into_iter().enumerate() {
            let (mut lines, mut order) = paid();
            change(&mut lines, &mut order);
            assert!(fold(&lines, &order).is_some(), "change {index}");
        }
    }
}
