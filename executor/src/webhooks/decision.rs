//! What follows from an event, by what is known of its order: a pure function.
//!
//! | order \ event | paid, another amount | failed | anything else |
//! | --- | --- | --- | --- |
//! | not there yet | wait | wait | wait, then give up |
//! | to be carried out, to be asked about | record | record | have the PSP asked now |
//! | a call is under way | record | wait for its answer, which says why | wait for its answer |
//! | settled, or a person looks | record | record, unless that failure is known | known; a decline of what was paid: record |
//!
//! "Record" is never "overwrite": [`crate::record`] adds what is new, and what contradicts is published for a person to look at.

use std::time::Duration;

use schema::psp_result_update::{PspResultUpdateEvent, PspStatus};
use serde_json::Value;
use time::OffsetDateTime;
use uuid::Uuid;

use super::{Meaning, Sender, adyen, stripe};
use crate::{
    psp::{Answer, Order, Verdict, code},
    record::State,
};

/// A stored event.
#[derive(Clone, Debug)]
pub struct Stored {
    /// Its row.
    pub webhook_id: i64,
    /// Who sent it.
    pub psp: String,
    /// The PSP's name for its kind.
    pub event_type: String,
    /// The order that it says it is about.
    pub payment_order_id: Option<Uuid>,
    /// What is kept of it.
    pub body: Vec<u8>,
    /// When it came.
    pub received_at: OffsetDateTime,
    /// How often it was taken up.
    pub tries: i32,
    /// The step in which it came, if spans were made then.
    pub traceparent: Option<String>,
}

/// What is known of an order, read under its lock.
#[derive(Clone, Debug)]
pub struct Known {
    /// The order.
    pub order: Order,
    /// How far it has come.
    pub state: State,
    /// It is claimed, and the lease runs.
    pub held: bool,
    /// The PSP's id of its payment, as far as it was learnt.
    pub reference: Option<String>,
    /// It was paid.
    pub successful: bool,
    /// The references under which failures are recorded.
    pub failed: Vec<Option<String>>,
    /// The trace it belongs to.
    pub traceparent: String,
}

/// What became of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// A new result.
    Recorded,
    /// Nothing new.
    Known,
    /// The PSP is asked now.
    Woke,
    /// Not a kind that matters here.
    Ignored,
    /// Not about an order of ours.
    Unrelated,
    /// Live where test is expected, or the reverse.
    WrongMode,
    /// Not an event.
    Unreadable,
    /// Its order did not turn up in time.
    UnknownOrder,
    /// Given up after too many failures.
    Refused,
}

impl Outcome {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::Recorded,
        Self::Known,
        Self::Woke,
        Self::Ignored,
        Self::Unrelated,
        Self::WrongMode,
        Self::Unreadable,
        Self::UnknownOrder,
        Self::Refused,
    ];

    /// As it stands in the database and in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Recorded => "RECORDED",
            Self::Known => "KNOWN",
            Self::Woke => "WOKE",
            Self::Ignored => "IGNORED",
            Self::Unrelated => "UNRELATED",
            Self::WrongMode => "WRONG_MODE",
            Self::Unreadable => "UNREADABLE",
            Self::UnknownOrder => "UNKNOWN_ORDER",
            Self::Refused => "REFUSED",
        }
    }
}

/// What follows from an event. Pure data.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Turn {
    /// Nothing is left to do.
    Done(Outcome),
    /// The order is not there yet, or its own call is about to say the same, with its cause.
    Again,
    /// The PSP is to be asked now; its id of the payment, if the event tells it.
    Wake(Option<String>),
    /// There is a result.
    Record(PspResultUpdateEvent),
}

/// Rules of working off.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// How long an event waits for its order.
    pub orphans_for: Duration,
    /// How many events of a PSP may wait for orders that are not known.
    pub strangers_max: i64,
    /// How long an event is kept once it is worked off.
    pub retention: Duration,
    /// Events of the live mode are expected, and not those of the test mode.
    pub live: bool,
}

/// What follows from an event, by what is known of its order. Pure.
pub(super) fn decide(stored: &Stored, known: Option<&Known>, rules: Rules, now: OffsetDateTime) -> Turn {
    let event = serde_json::from_slice::<Value>(&stored.body).ok().filter(Value::is_object);
    let (Some(sender), Some(event)) = (Sender::from_name(&stored.psp), event) else {
        return Turn::Done(Outcome::Unreadable);
    };
    let (concerns, live) = match sender {
        Sender::Stripe => (stripe::concerns(&stored.event_type), stripe::live(&event)),
        Sender::Adyen => (adyen::concerns(&stored.event_type), adyen::live(&event)),
    };
    if stored.event_type.is_empty() {
        return Turn::Done(Outcome::Unreadable);
    }
    if live.is_some_and(|live| live != rules.live) {
        return Turn::Done(Outcome::WrongMode);
    }
    if !concerns {
        return Turn::Done(Outcome::Ignored);
    }
    if stored.payment_order_id.is_none() {
        return Turn::Done(Outcome::Unrelated);
    }
    let Some(known) = known else {
        let late = now - stored.received_at >= rules.orphans_for;
        return if late { Turn::Done(Outcome::UnknownOrder) } else { Turn::Again };
    };
    if known.order.psp != stored.psp {
        return Turn::Done(Outcome::Unrelated);
    }
    let meaning = match sender {
        Sender::Stripe => stripe::meaning(&event, &known.order),
        Sender::Adyen => adyen::meaning(&event, &known.order),
    };
    match meaning {
        Meaning::Nothing => Turn::Done(Outcome::Ignored),
        Meaning::Evidence(answer) => evidence(known, answer.keepable(), stored.received_at),
        Meaning::Hint(answer) => hint(known, answer.keepable(), stored.received_at),
    }
}

/// How the payment ended. While a call for the order is under way only what is about money counts at once: what else there is to say
/// the answer says better, with its cause.
fn evidence(known: &Known, answer: Answer, at: OffsetDateTime) -> Turn {
    let money = matches!(answer.verdict, Verdict::Succeeded | Verdict::AmountMismatch);
    if known.held && !money {
        return Turn::Again;
    }
    let Some((status, error_code)) = ended(&answer) else { return hint(known, answer, at) };
    let mut psp_reference = answer.reference;
    if status == PspStatus::Failed {
        // What names no payment is about the one that is known: Adyen's TECHNICAL_CANCEL goes by our own reference, and need not tell its.
        psp_reference = psp_reference.or_else(|| known.reference.clone());
        if is_known_failure(&known.failed, psp_reference.as_deref()) {
            return Turn::Done(Outcome::Known);
        }
    }
    Turn::Record(PspResultUpdateEvent {
        payment_order_id: known.order.payment_order_id,
        psp_status: status,
        psp_reference,
        event_time: at.replace_microsecond(at.microsecond()).unwrap_or(at),
        error_code,
        error_message: answer.error_message,
    })
}

/// That it failed is known, perhaps under a code that says more. Only a failure under another reference is news: about another payment.
fn is_known_failure(failed: &[Option<String>], reference: Option<&str>) -> bool {
    failed.iter().any(|known| known.as_deref().is_none_or(|known| reference.is_none_or(|told| told == known)))
}

/// The status that an answer settles, with its code.
fn ended(answer: &Answer) -> Option<(PspStatus, Option<String>)> {
    let or = |ours: &str| Some(answer.error_code.clone().unwrap_or_else(|| ours.to_owned()));
    match answer.verdict {
        Verdict::Succeeded => Some((PspStatus::Successful, None)),
        Verdict::Cancelled => Some((PspStatus::Failed, or(code::CANCELLED))),
        Verdict::AmountMismatch => Some((PspStatus::Unknown, or(code::AMOUNT_MISMATCH))),
        Verdict::Processing
        | Verdict::Unconfirmed
        | Verdict::ActionRequired
        | Verdict::Declined
        | Verdict::CancelAccepted
        | Verdict::Refused
        | Verdict::WrongState
        | Verdict::IdempotencyMismatch
        | Verdict::Unclear
        | Verdict::BeingExecuted
        | Verdict::Later => None,
    }
}

/// It is worth asking, if the outcome is open. A decline of what was paid is a contradiction, and nobody will ask about that any more.
fn hint(known: &Known, answer: Answer, at: OffsetDateTime) -> Turn {
    match known.state {
        State::InFlight if known.held => Turn::Again,
        State::Queued | State::InFlight | State::Resolving => Turn::Wake(answer.reference),
        State::Settled if known.successful && answer.verdict == Verdict::Declined => {
            let declined = Answer { verdict: Verdict::Cancelled, ..answer };
            evidence(known, declined, at)
        }
        State::Settled | State::Review => Turn::Done(Outcome::Known),
    }
}

#[cfg(test)]
mod tests {

    use serde_json::json;

    use super::*;

    const RULES: Rules = Rules {
        orphans_for: Duration::from_mins(10),
        strangers_max: 100,
        retention: Duration::from_hours(1),
        live: false,
    };

    fn known(state: State) -> Known {
        Known {
            order: Order::sample("STRIPE"),
            state,
            held: false,
            reference: None,
            successful: false,
            failed: vec![],
            traceparent: String::new(),
        }
    }

    fn stored(kind: &str, status: &str) -> Stored {
        let decline = json!({"code": "card_declined", "decline_code": "lost_card", "message": "no"});
        let event = json!({"id": "evt_1", "livemode": false, "type": kind, "data": {"object": {
            "object": "payment_intent", "id": "pi_1", "status": status, "amount": 1234, "currency": "eur",
            "amount_received": if status == "succeeded" { 1234 } else { 0 },
            "last_payment_error": if status == "requires_payment_method" { decline } else { Value::Null }}}});
        Stored {
            webhook_id: 1,
            psp: "STRIPE".into(),
            event_type: kind.into(),
            payment_order_id: Some(Uuid::nil()),
            body: event.to_string().into_bytes(),
            received_at: OffsetDateTime::UNIX_EPOCH,
            traceparent: None,
            tries: 0,
        }
    }

    fn decided(stored: &Stored, known: Option<&Known>) -> Turn {
        decide(stored, known, RULES, OffsetDateTime::UNIX_EPOCH)
    }

    /// R record, W wake, a again, k known.
    fn letter(turn: &Turn) -> char {
        match turn {
            Turn::Record(_) => 'R',
            Turn::Wake(_) => 'W',
            Turn::Again => 'a',
            Turn::Done(Outcome::Known) => 'k',
            Turn::Done(_) => '-',
        }
    }

    #[test]
    fn what_follows_depends_on_how_the_order_stands() {
        let with = |state, change: fn(&mut Known)| {
            let mut order = known(state);
            change(&mut order);
            order
        };
        // succeeded, canceled, processing, payment_failed.
        let rows = [
            (known(State::Queued), "RRWW"),
            (known(State::Resolving), "RRWW"),
            // Its process is gone.
            (known(State::InFlight), "RRWW"),
            // A call is under way: it is about to say the same, and more.
            (with(State::InFlight, |k| k.held = true), "Raaa"),
            // Settled as paid: what contradicts is recorded, what was overtaken is not.
            (with(State::Settled, |k| k.successful = true), "RRkR"),
            (with(State::Settled, |k| k.failed = vec![Some("pi_1".into())]), "Rkkk"),
            // It failed under another reference, or under none: one of its own then is no news.
            (with(State::Settled, |k| k.failed = vec![Some("pi_2".into())]), "RRkk"),
            (with(State::Settled, |k| k.failed = vec![None]), "Rkkk"),
            (known(State::Review), "RRkk"),
        ];
        let events = [
            stored("payment_intent.succeeded", "succeeded"),
            stored("payment_intent.canceled", "canceled"),
            stored("payment_intent.processing", "processing"),
            stored("payment_intent.payment_failed", "requires_payment_method"),
        ];
        for (order, expected) in rows {
            let found: String = events.iter().map(|event| letter(&decided(event, Some(&order)))).collect();
            assert_eq!(found, expected, "{order:?}");
        }
    }

    #[test]
    fn a_result_says_what_the_event_says() {
        let result = |kind, status, order: &Known| match decided(&stored(kind, status), Some(order)) {
            Turn::Record(result) => result,
            other => panic!("{other:?}"),
        };
        let open = known(State::Resolving);
        let paid = result("payment_intent.succeeded", "succeeded", &open);
        assert_eq!((paid.psp_status, paid.psp_reference.as_deref()), (PspStatus::Successful, Some("pi_1")));
        assert_eq!((paid.error_code, paid.event_time), (None, OffsetDateTime::UNIX_EPOCH));
        let cancelled = result("payment_intent.canceled", "canceled", &open);
        assert_eq!(
            (cancelled.psp_status, cancelled.error_code.as_deref()),
            (PspStatus::Failed, Some(code::CANCELLED))
        );
        let mut settled = known(State::Settled);
        settled.successful = true;
        let late = result("payment_intent.payment_failed", "requires_payment_method", &settled);
        assert_eq!(
            (late.psp_status, late.error_code.as_deref()),
            (PspStatus::Failed, Some("card_declined/lost_card"))
        );
        let mut cheap = known(State::Resolving);
        cheap.order.amount_minor = 1;
        let mismatch = result("payment_intent.succeeded", "succeeded", &cheap);
        assert_eq!(
            (mismatch.psp_status, mismatch.error_code.as_deref()),
            (PspStatus::Unknown, Some(code::AMOUNT_MISMATCH))
        );
    }

    #[test]
    fn a_failure_that_names_no_payment_is_that_of_the_known_one() {
        let item = json!({"pspReference": "CANCEL1", "eventCode": "TECHNICAL_CANCEL", "success": "true"});
        let event = json!({"live": "false", "notificationItems": [{"NotificationRequestItem": item}]});
        let event = Stored {
            psp: "ADYEN".into(),
            event_type: "TECHNICAL_CANCEL".into(),
            body: event.to_string().into_bytes(),
            ..stored("", "")
        };
        let order = |reference: Option<&str>, failed: &[Option<&str>]| Known {
            order: Order::sample("ADYEN"),
            reference: reference.map(str::to_owned),
            failed: failed.iter().map(|failed| failed.map(str::to_owned)).collect(),
            ..known(if failed.is_empty() { State::Resolving } else { State::Settled })
        };
        for (reference, failed) in [
            (Some("PSP1"), &[Some("PSP1")][..]),
            (None, &[Some("PSP1")]),
            (None, &[None]),
            (Some("PSP1"), &[None]),
        ] {
            let turn = decided(&event, Some(&order(reference, failed)));
            assert_eq!(turn, Turn::Done(Outcome::Known), "{reference:?} {failed:?}");
        }
        for reference in [Some("PSP1"), None] {
            let Turn::Record(result) = decided(&event, Some(&order(reference, &[]))) else { panic!() };
            assert_eq!((result.psp_status, result.psp_reference.as_deref()), (PspStatus::Failed, reference));
        }
    }

    #[test]
    fn a_reference_that_cannot_be_kept_is_left_out_and_the_rest_counts() {
        let odd = |kind, status| {
            let event = stored(kind, status);
            let body = String::from_utf8(event.body).unwrap().replace("\"pi_1\"", "\"pi_\\u0000\"");
            Stored { body: body.into_bytes(), ..event }
        };
        let open = known(State::Resolving);
        let Turn::Record(paid) = decided(&odd("payment_intent.succeeded", "succeeded"), Some(&open)) else {
            panic!()
        };
        assert_eq!((paid.psp_status, paid.psp_reference), (PspStatus::Successful, None));
        let hint = decided(&odd("payment_intent.processing", "processing"), Some(&open));
        assert_eq!(hint, Turn::Wake(None));
    }

    #[test]
    fn what_is_not_ours_changes_nothing() {
        let open = known(State::Resolving);
        let event = || stored("payment_intent.succeeded", "succeeded");
        let mut live = event();
        live.body = String::from_utf8(live.body)
            .unwrap()
            .replace("\"livemode\":false", "\"livemode\":true")
            .into_bytes();
        let rows = [
            (live, Outcome::WrongMode),
            (stored("charge.succeeded", "succeeded"), Outcome::Ignored),
            (Stored { payment_order_id: None, ..event() }, Outcome::Unrelated),
            (Stored { body: b"not json".to_vec(), ..event() }, Outcome::Unreadable),
            (Stored { event_type: String::new(), ..event() }, Outcome::Unreadable),
        ];
        for (stored, outcome) in rows {
            assert_eq!(decided(&stored, Some(&open)), Turn::Done(outcome));
        }
        let mut other = known(State::Resolving);
        other.order.psp = "ADYEN".into();
        assert_eq!(decided(&event(), Some(&other)), Turn::Done(Outcome::Unrelated));
    }

    #[test]
    fn an_event_waits_for_its_order_for_a_while() {
        let event = stored("payment_intent.succeeded", "succeeded");
        for (seconds, turn) in
            [(0, Turn::Again), (599, Turn::Again), (600, Turn::Done(Outcome::UnknownOrder))]
        {
            let now = OffsetDateTime::UNIX_EPOCH + Duration::from_secs(seconds);
            assert_eq!(decide(&event, None, RULES, now), turn, "{seconds}");
        }
    }
}
