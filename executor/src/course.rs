//! The course of a payment order at its PSP: which operation comes first, and what follows from each answer. Pure.
//!
//! ```text
//! in two steps (Stripe)
//!            nothing begun ─▶ CREATE ─▶ CONFIRM ─▶ succeeded: SUCCESSFUL       processing: PENDING      no clear answer: UNKNOWN
//!  created, outcome unknown ─▶ GET ──▶ as it stands: result, CONFIRM, or CANCEL     │ declined, shopper must act, too late
//!                                                                                  ▼
//!                                                                     CANCEL ─▶ cancelled: FAILED
//! in one step (Adyen)
//!            nothing begun ─▶ CONFIRM ─▶ succeeded, processing, no clear answer: as above      declined: FAILED
//!       in doubt, a step due ─▶ CONFIRM under the same key: the first answer, again  │ shopper must act
//!                                                                                    ▼
//!                                                                     CANCEL ─▶ cancellation taken: FAILED
//! ```
//! FAILED is concluded only when no money can move any more.
//! - In two steps: nothing was created, or what was created is cancelled at the PSP. Its word on that is immediate.
//! - In one step, a refusal is the PSP's last word on the payment. That a request was not acceptable proves nothing if an earlier one under
//!   the same key may have been executed: UNKNOWN.
//! - In one step, where the shopper would have to act, the cancellation is taken and carried out later. The payment waits for something
//!   that only the holder of that very answer can give it: the address of a redirect, the data of a challenge, a voucher. Nobody has it:
//!   answers are read for their codes and never stored. We assume, as no document of Adyen's says it, that nothing can be authorised
//!   from the moment of that answer on, and that the cancellation closes what is left. FAILED waits for it to be taken, not for its
//!   webhook: as we read Adyen, the cancellation of a payment that was never authorised is reported as unsuccessful, and such orders
//!   would all wait for a person. Should the PSP authorise all the same, its webhook brings a SUCCESSFUL beside the FAILED, which always
//!   ends in review.
//!
//! After expiresAt nothing is sent that could be the first to move money, with one exception: in one step, a call that may have been
//! executed is sent again under its key, as nothing else can tell. If it never arrived, this one charges: late, and once.
//!
//! A PSP without look-up is never asked how a payment stands. Doubt is settled by the same request under the same key, by its webhooks, or
//! by a person at the end of the ladder.

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
    /// One of its calls may have been executed: not all of them were turned away.
    pub in_doubt: bool,
    /// See [`crate::psp::Order::expires_at`].
    pub expires_at: OffsetDateTime,
}

/// How things stand when an answer has come.
#[derive(Clone, Copy, Debug)]
pub struct Situation {
    /// What the PSP can do.
    pub psp: Capabilities,
    /// It is too late to begin a charge.
    pub expired: bool,
    /// An earlier call may have been executed.
    pub in_doubt: bool,
}

/// Why a payment is being cancelled: what is published once it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reason {
    /// The PSP's code, or one of ours.
    pub code: Option<String>,
    /// Text for people.
    pub message: Option<String>,
}

/// A cancellation under way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cancelling {
    reason: Reason,
    /// The PSP said that the payment waits for the shopper: nothing is authorised, and nobody can do what it waits for.
    waits_for_shopper: bool,
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
    let begin = if psp.two_step { Operation::Create } else { Operation::Confirm };
    let too_old = Next::Conclude(
        PspStatus::Unknown,
        Reason::ours(code::EXPIRED, "the request was too old to be begun"),
    );
    match known.first_attempt_at {
        // Nothing was ever sent under this key, or it was so long ago that the PSP may have forgotten: this could be the
        // second charge of a database that was put back.
        None if now >= known.expires_at => too_old,
        None => Next::Call(begin),
        // All that was sent was turned away: what is sent now would be the first, and it takes money at once.
        Some(_) if !psp.two_step && !known.in_doubt && now >= known.expires_at => too_old,
        // The key is remembered: the same again gives the same payment, not another one.
        Some(first) if now < first + psp.remembers_keys_for => Next::Call(begin),
        Some(_) => Next::Conclude(
            PspStatus::Unknown,
            Reason::ours(code::RESOLUTION_EXHAUSTED, "the PSP may have forgotten the idempotency key"),
        ),
    }
}

/// Whether a try of this call may begin now. A claim and a first try lie behind some of them: time has passed.
pub fn may_begin(operation: Operation, known: Known, psp: Capabilities, now: OffsetDateTime) -> bool {
    let in_time = now < known.expires_at;
    match operation {
        Operation::Get | Operation::Cancel => true,
        // It moves no money. What may have been created is asked for by its key, to be cancelled.
        Operation::Create => in_time || known.first_attempt_at.is_some() || known.in_doubt,
        // Whether an earlier one was executed is looked up.
        Operation::Confirm if psp.two_step => in_time,
        // Whether an earlier one was executed only the same again can tell.
        Operation::Confirm => in_time || known.in_doubt,
    }
}

/// What follows if no request can be made of the order: it never could, or it is known already and stays as it is.
pub fn unsendable(known: Known, why: &str) -> Next {
    match known.first_attempt_at {
        None => Next::Conclude(PspStatus::Failed, Reason::ours(code::UNSUPPORTED, why)),
        Some(_) => Next::Nothing,
    }
}

/// What follows from an answer. `cancelling` is the cancellation under way, if there is one.
pub fn next(
    situation: Situation,
    operation: Operation,
    answer: &Answer,
    cancelling: &mut Option<Cancelling>,
) -> Next {
    match operation {
        Operation::Create => after_create(situation, answer, cancelling),
        Operation::Confirm => after_confirm(situation, answer, cancelling),
        Operation::Get => after_get(situation, answer, cancelling),
        Operation::Cancel => after_cancel(situation, answer, cancelling),
    }
}

fn after_create(situation: Situation, answer: &Answer, cancelling: &mut Option<Cancelling>) -> Next {
    match answer.verdict {
        Verdict::Unconfirmed => begin_charge(situation, cancelling),
        // Nothing exists at the PSP, or something that takes no money by itself.
        Verdict::Refused => Next::Conclude(PspStatus::Failed, Reason::of(answer)),
        // The answer of another operation: the key was used by someone else, or the PSP's rules have changed.
        Verdict::Succeeded
        | Verdict::Processing
        | Verdict::ActionRequired
        | Verdict::Declined
        | Verdict::Cancelled
        | Verdict::CancelAccepted
        | Verdict::WrongState
            if answer.reference.is_some() =>
        {
            look_up(situation, answer)
        }
        Verdict::Succeeded
        | Verdict::Processing
        | Verdict::ActionRequired
        | Verdict::Declined
        | Verdict::Cancelled
        | Verdict::CancelAccepted
        | Verdict::WrongState
        | Verdict::AmountMismatch
        | Verdict::IdempotencyMismatch
        | Verdict::Unclear => unknown(answer),
        Verdict::BeingExecuted | Verdict::Later => Next::Later,
    }
}

fn after_confirm(situation: Situation, answer: &Answer, cancelling: &mut Option<Cancelling>) -> Next {
    let two_step = situation.psp.two_step;
    match answer.verdict {
        Verdict::Succeeded => Next::Conclude(PspStatus::Successful, Reason::default()),
        Verdict::Processing => Next::Conclude(PspStatus::Pending, Reason::of(answer)),
        Verdict::ActionRequired => cancel(answer, cancelling),
        // Still open at the PSP.
        Verdict::Declined | Verdict::Refused if two_step => cancel(answer, cancelling),
        Verdict::Cancelled if two_step => look_up(situation, answer),
        Verdict::Declined | Verdict::Cancelled => failed(answer, cancelling),
        Verdict::Refused if situation.in_doubt => unknown(answer),
        Verdict::Refused => Next::Conclude(PspStatus::Failed, Reason::of(answer)),
        Verdict::WrongState => look_up(situation, answer),
        Verdict::Unconfirmed
        | Verdict::CancelAccepted
        | Verdict::AmountMismatch
        | Verdict::IdempotencyMismatch
        | Verdict::Unclear => unknown(answer),
        Verdict::BeingExecuted | Verdict::Later => Next::Later,
    }
}

fn after_get(situation: Situation, answer: &Answer, cancelling: &mut Option<Cancelling>) -> Next {
    match answer.verdict {
        Verdict::Succeeded => Next::Conclude(PspStatus::Successful, Reason::default()),
        Verdict::Processing => Next::Conclude(PspStatus::Pending, Reason::of(answer)),
        // Not charged, or not yet: the same confirmation again. A payment succeeds once.
        Verdict::Unconfirmed => begin_charge(situation, cancelling),
        Verdict::Declined | Verdict::ActionRequired => cancel(answer, cancelling),
        Verdict::Cancelled => failed(answer, cancelling),
        Verdict::AmountMismatch => unknown(answer),
        // "No such payment" is no proof: the id was given by this PSP. Wrong account, perhaps.
        Verdict::Refused
        | Verdict::WrongState
        | Verdict::CancelAccepted
        | Verdict::IdempotencyMismatch
        | Verdict::Unclear => Next::Nothing,
        Verdict::BeingExecuted | Verdict::Later => Next::Later,
    }
}

fn after_cancel(situation: Situation, answer: &Answer, cancelling: &mut Option<Cancelling>) -> Next {
    match answer.verdict {
        Verdict::Cancelled => failed(answer, cancelling),
        Verdict::CancelAccepted
            if cancelling.as_ref().is_some_and(|cancelling| cancelling.waits_for_shopper) =>
        {
            failed(answer, cancelling)
        }
        Verdict::Succeeded => Next::Conclude(PspStatus::Successful, Reason::default()),
        Verdict::Processing => Next::Conclude(PspStatus::Pending, Reason::of(answer)),
        // It has moved on meanwhile: paid, or cancelled before.
        Verdict::WrongState => look_up(situation, answer),
        Verdict::Unconfirmed
        | Verdict::ActionRequired
        | Verdict::Declined
        | Verdict::CancelAccepted
        | Verdict::Refused
        | Verdict::AmountMismatch
        | Verdict::IdempotencyMismatch
        | Verdict::Unclear => unknown(answer),
        Verdict::BeingExecuted | Verdict::Later => Next::Later,
    }
}

fn begin_charge(situation: Situation, cancelling: &mut Option<Cancelling>) -> Next {
    if situation.expired {
        let reason =
            Reason::ours(code::EXPIRED, "cancelled before a charge was begun: the request is too old");
        *cancelling = Some(Cancelling { reason, waits_for_shopper: false });
        return Next::Call(Operation::Cancel);
    }
    Next::Call(Operation::Confirm)
}

fn cancel(answer: &Answer, cancelling: &mut Option<Cancelling>) -> Next {
    let waits_for_shopper = answer.verdict == Verdict::ActionRequired;
    *cancelling = Some(Cancelling { reason: Reason::of(answer), waits_for_shopper });
    Next::Call(Operation::Cancel)
}

/// What the PSP keeps as the cause counts first, then why we cancelled.
fn failed(answer: &Answer, cancelling: &mut Option<Cancelling>) -> Next {
    let own = Reason::of(answer);
    let known =
        if own.code.is_some() { Some(own) } else { cancelling.take().map(|cancelling| cancelling.reason) };
    Next::Conclude(
        PspStatus::Failed,
        known.unwrap_or_else(|| Reason::ours(code::CANCELLED, "cancelled at the PSP")),
    )
}

fn look_up(situation: Situation, answer: &Answer) -> Next {
    if situation.psp.looks_up { Next::Call(Operation::Get) } else { unknown(answer) }
}

fn unknown(answer: &Answer) -> Next {
    let mut reason = Reason::of(answer);
    reason.code.get_or_insert_with(|| code::PSP_UNREADABLE.to_owned());
    Next::Conclude(PspStatus::Unknown, reason)
}

#[cfg(test)]
mod tests;
