//! The course of a payment order at its PSP: which operation comes first, and what follows from each answer. Pure.
//!
//! ```text
//!            nothing begun ─▶ CREATE ─▶ CONFIRM ─▶ succeeded: SUCCESSFUL       processing: PENDING      no clear answer: UNKNOWN
//!  created, outcome unknown ─▶ GET ──▶ as it stands: result, CONFIRM, or CANCEL     │ declined, shopper must act, too late
//!                                                                                  ▼
//!                                                                     CANCEL ─▶ cancelled: FAILED
//! ```
//! FAILED is concluded only when no money can move any more: nothing was created, or what was created is cancelled at the PSP.

use schema::psp_result_update::PspStatus;
use time::OffsetDateTime;

use crate::psp::{Answer, Capabilities, Operation, Verdict, code};

/// What is known of an order when it is taken up.
#[derive(Clone, Copy, Debug)]
pub struct Known {
    /// The PSP's id of the payment is stored.
    pub has_reference: bool,
    /// When its first call was written down.
    pub first_attempt_at: Option<OffsetDateTime>,
    /// No charge is begun after this.
    pub expires_at: OffsetDateTime,
}

/// Why a payment is being cancelled: what is published once it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reason {
    /// The PSP's code, or one of ours.
    pub code: Option<String>,
    /// Text for people.
    pub message: Option<String>,
}

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// Call the PSP.
    Call(Operation),
    /// There is a result.
    Conclude(PspStatus, Reason),
    /// A look-up failed: what is known stays as it is.
    Nothing,
    /// Nothing was executed: take the order up again later.
    Later,
}

impl Reason {
    fn of(answer: &Answer) -> Self {
        Self { code: answer.error_code.clone(), message: answer.error_message.clone() }
    }

    fn ours(code: &str, message: &str) -> Self {
        Self { code: Some(code.to_owned()), message: Some(message.to_owned()) }
    }
}

/// What comes first for an order that was just claimed.
pub fn first(known: Known, psp: Capabilities, now: OffsetDateTime) -> Next {
    if known.has_reference && psp.looks_up {
        return Next::Call(Operation::Get);
    }
    match known.first_attempt_at {
        // Nothing was ever sent under this key, or it was so long ago that the PSP may have forgotten: this could be the
        // second charge of a database that was put back.
        None if now >= known.expires_at => Next::Conclude(
            PspStatus::Unknown,
            Reason::ours(code::EXPIRED, "the request was too old to be begun"),
        ),
        None => Next::Call(Operation::Create),
        // The key is remembered: the same again gives the same payment, not another one.
        Some(first) if now < first + psp.remembers_keys_for => Next::Call(Operation::Create),
        Some(_) => Next::Conclude(
            PspStatus::Unknown,
            Reason::ours(code::RESOLUTION_EXHAUSTED, "the PSP may have forgotten the idempotency key"),
        ),
    }
}

/// What follows from an answer. `reason` is why the payment is being cancelled, if it is; `expired`, whether it is too late to begin a
/// charge.
pub fn next(operation: Operation, answer: &Answer, reason: &mut Option<Reason>, expired: bool) -> Next {
    match operation {
        Operation::Create => after_create(answer, reason, expired),
        Operation::Confirm => after_confirm(answer, reason),
        Operation::Get => after_get(answer, reason, expired),
        Operation::Cancel => after_cancel(answer, reason),
    }
}

fn after_create(answer: &Answer, reason: &mut Option<Reason>, expired: bool) -> Next {
    match answer.verdict {
        Verdict::Unconfirmed => begin_charge(reason, expired),
        // Nothing exists at the PSP.
        Verdict::Refused => Next::Conclude(PspStatus::Failed, Reason::of(answer)),
        // The answer of another operation: the key was used by someone else, or the PSP's rules have changed.
        Verdict::Succeeded
        | Verdict::Processing
        | Verdict::ActionRequired
        | Verdict::Declined
        | Verdict::Cancelled
        | Verdict::WrongState => look_up_or_unknown(answer),
        Verdict::AmountMismatch | Verdict::IdempotencyMismatch | Verdict::Unclear => unknown(answer),
        Verdict::Later => Next::Later,
    }
}

fn after_confirm(answer: &Answer, reason: &mut Option<Reason>) -> Next {
    match answer.verdict {
        Verdict::Succeeded => Next::Conclude(PspStatus::Successful, Reason::default()),
        Verdict::Processing => Next::Conclude(PspStatus::Pending, Reason::of(answer)),
        Verdict::Declined | Verdict::ActionRequired | Verdict::Refused => cancel(answer, reason),
        Verdict::Cancelled | Verdict::WrongState => Next::Call(Operation::Get),
        Verdict::Unconfirmed | Verdict::AmountMismatch | Verdict::IdempotencyMismatch | Verdict::Unclear => {
            unknown(answer)
        }
        Verdict::Later => Next::Later,
    }
}

fn after_get(answer: &Answer, reason: &mut Option<Reason>, expired: bool) -> Next {
    match answer.verdict {
        Verdict::Succeeded => Next::Conclude(PspStatus::Successful, Reason::default()),
        Verdict::Processing => Next::Conclude(PspStatus::Pending, Reason::of(answer)),
        // Not charged, or not yet: the same confirmation again. A payment succeeds once.
        Verdict::Unconfirmed => begin_charge(reason, expired),
        Verdict::Declined | Verdict::ActionRequired => cancel(answer, reason),
        Verdict::Cancelled => failed(answer, reason),
        Verdict::AmountMismatch => unknown(answer),
        // "No such payment" is no proof: the id was given by this PSP. Wrong account, perhaps.
        Verdict::Refused | Verdict::WrongState | Verdict::IdempotencyMismatch | Verdict::Unclear => {
            Next::Nothing
        }
        Verdict::Later => Next::Later,
    }
}

fn after_cancel(answer: &Answer, reason: &mut Option<Reason>) -> Next {
    match answer.verdict {
        Verdict::Cancelled => failed(answer, reason),
        Verdict::Succeeded => Next::Conclude(PspStatus::Successful, Reason::default()),
        Verdict::Processing => Next::Conclude(PspStatus::Pending, Reason::of(answer)),
        // It has moved on meanwhile: paid, or cancelled before.
        Verdict::WrongState => Next::Call(Operation::Get),
        Verdict::Unconfirmed
        | Verdict::ActionRequired
        | Verdict::Declined
        | Verdict::Refused
        | Verdict::AmountMismatch
        | Verdict::IdempotencyMismatch
        | Verdict::Unclear => unknown(answer),
        Verdict::Later => Next::Later,
    }
}

fn begin_charge(reason: &mut Option<Reason>, expired: bool) -> Next {
    if expired {
        *reason =
            Some(Reason::ours(code::EXPIRED, "cancelled before a charge was begun: the request is too old"));
        return Next::Call(Operation::Cancel);
    }
    Next::Call(Operation::Confirm)
}

fn cancel(answer: &Answer, reason: &mut Option<Reason>) -> Next {
    *reason = Some(Reason::of(answer));
    Next::Call(Operation::Cancel)
}

/// What the PSP keeps as the cause counts first, then why we cancelled.
fn failed(answer: &Answer, reason: &mut Option<Reason>) -> Next {
    let own = Reason::of(answer);
    let known = if own.code.is_some() { Some(own) } else { reason.take() };
    Next::Conclude(
        PspStatus::Failed,
        known.unwrap_or_else(|| Reason::ours(code::CANCELLED, "cancelled at the PSP")),
    )
}

fn look_up_or_unknown(answer: &Answer) -> Next {
    if answer.reference.is_some() { Next::Call(Operation::Get) } else { unknown(answer) }
}

fn unknown(answer: &Answer) -> Next {
    let mut reason = Reason::of(answer);
    reason.code.get_or_insert_with(|| code::PSP_UNREADABLE.to_owned());
    Next::Conclude(PspStatus::Unknown, reason)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const PSP: Capabilities = Capabilities { looks_up: true, remembers_keys_for: Duration::from_hours(23) };

    const VERDICTS: [Verdict; 12] = [
        Verdict::Succeeded,
        Verdict::Processing,
        Verdict::Unconfirmed,
        Verdict::ActionRequired,
        Verdict::Declined,
        Verdict::Cancelled,
        Verdict::Refused,
        Verdict::WrongState,
        Verdict::AmountMismatch,
        Verdict::IdempotencyMismatch,
        Verdict::Unclear,
        Verdict::Later,
    ];

    fn answer(verdict: Verdict) -> Answer {
        Answer { reference: Some("pi_1".into()), ..Answer::new(verdict) }
    }

    /// C confirm, G get, X cancel, S P F U results, n nothing, l later.
    fn letter(next: &Next) -> char {
        match next {
            Next::Call(Operation::Create) => 'c',
            Next::Call(Operation::Confirm) => 'C',
            Next::Call(Operation::Get) => 'G',
            Next::Call(Operation::Cancel) => 'X',
            Next::Conclude(PspStatus::Successful, _) => 'S',
            Next::Conclude(PspStatus::Pending, _) => 'P',
            Next::Conclude(PspStatus::Failed, _) => 'F',
            Next::Conclude(PspStatus::Unknown, _) => 'U',
            Next::Nothing => 'n',
            Next::Later => 'l',
        }
    }

    #[test]
    fn what_follows_from_each_answer() {
        // In the order of VERDICTS.
        let rows = [
            (Operation::Create, false, "GGCGGGFGUUUl"),
            (Operation::Create, true, "GGXGGGFGUUUl"),
            (Operation::Confirm, false, "SPUXXGXGUUUl"),
            (Operation::Confirm, true, "SPUXXGXGUUUl"),
            (Operation::Get, false, "SPCXXFnnUnnl"),
            (Operation::Get, true, "SPXXXFnnUnnl"),
            (Operation::Cancel, false, "SPUUUFUGUUUl"),
            (Operation::Cancel, true, "SPUUUFUGUUUl"),
        ];
        for (operation, expired, expected) in rows {
            let found: String = VERDICTS
                .iter()
                .map(|&verdict| letter(&next(operation, &answer(verdict), &mut None, expired)))
                .collect();
            assert_eq!(found, expected, "{operation:?}, expired: {expired}");
        }
    }

    #[test]
    fn failed_is_only_concluded_when_nothing_can_be_charged_any_more() {
        for operation in Operation::ALL {
            for verdict in VERDICTS {
                let concluded = next(operation, &answer(verdict), &mut None, false);
                if letter(&concluded) == 'F' {
                    let closed = verdict == Verdict::Cancelled;
                    let never_created = operation == Operation::Create && verdict == Verdict::Refused;
                    assert!(closed || never_created, "{operation:?} {verdict:?}");
                }
            }
        }
    }

    #[test]
    fn the_cause_of_a_failure_is_kept_over_the_cancellation() {
        let mut reason = None;
        let declined = answer(Verdict::Declined).error("card_declined/lost_card", "Your card was declined.");
        assert_eq!(next(Operation::Confirm, &declined, &mut reason, false), Next::Call(Operation::Cancel));
        let Next::Conclude(PspStatus::Failed, cause) =
            next(Operation::Cancel, &answer(Verdict::Cancelled), &mut reason, false)
        else {
            panic!("not failed");
        };
        assert_eq!(cause.code.as_deref(), Some("card_declined/lost_card"));
        let Next::Conclude(PspStatus::Failed, cause) =
            next(Operation::Get, &answer(Verdict::Cancelled), &mut None, false)
        else {
            panic!("not failed");
        };
        assert_eq!(cause.code.as_deref(), Some(code::CANCELLED));
    }

    #[test]
    fn what_comes_first() {
        let now = OffsetDateTime::now_utc();
        let (fresh, old) = (now + Duration::from_mins(1), now - Duration::from_mins(1));
        let rows = [
            (false, None, fresh, 'c'),
            (false, None, old, 'U'),
            (false, None, now, 'U'),
            (false, Some(now - Duration::from_hours(1)), old, 'c'),
            (false, Some(now - (Duration::from_hours(23) - Duration::from_secs(1))), old, 'c'),
            (false, Some(now - Duration::from_hours(23)), old, 'U'),
            (true, Some(now), fresh, 'G'),
            (true, Some(now - Duration::from_hours(90)), old, 'G'),
        ];
        for (has_reference, first_attempt_at, expires_at, expected) in rows {
            let known = Known { has_reference, first_attempt_at, expires_at };
            assert_eq!(letter(&first(known, PSP, now)), expected, "{known:?}");
        }
    }
}
