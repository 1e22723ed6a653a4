//! What a PSP result means for a payment order: a pure function, and the only place that decides.
//!
//! | state \ result | SUCCESSFUL | FAILED | PENDING, UNKNOWN | UNKNOWN, given up (1) | UNKNOWN, AMOUNT_MISMATCH |
//! | --- | --- | --- | --- | --- | --- |
//! | CREATED, PENDING, UNKNOWN | SUCCESSFUL | FAILED | that state (2) | NEEDS_REVIEW | NEEDS_REVIEW |
//! | SUCCESSFUL | (3), else review SECOND_SUCCESS | review FAILURE_AFTER_SUCCESS | STALE | STALE | review AMOUNT_MISMATCH |
//! | FAILED | review LATE_SUCCESS | DUPLICATE | STALE | STALE | review AMOUNT_MISMATCH |
//! | NEEDS_REVIEW | stays (4) | stays (4) | STALE | STALE or DUPLICATE | stays (4) |
//!
//! 1. `RESOLUTION_EXHAUSTED`, `EXPIRED`, `IDEMPOTENCY_MISMATCH` say "nobody knows, a person must look". They call a person while the
//!    outcome is open and mean nothing once it is known: a replayed request topic makes an EXPIRED for every old payment, and must not
//!    shake those that were paid. `AMOUNT_MISMATCH` is different: it says that money moved, and contradicts either outcome.
//! 2. Among states that are not final the order in the partition counts. The same again is DUPLICATE.
//! 3. The same charge again is DUPLICATE. A success without a reference proves no second charge; a reference that was missing is learned.
//! 4. Only a person closes a review. A result that the review does not know of yet is CONFLICT, and a success turns a review that
//!    was opened for want of an answer into LATE_SUCCESS, so that nobody closes it as unpaid.
//!
//! A contradiction is a success beside a failure, two successes under different references, or an amount mismatch beside either
//! outcome. Whatever the order of arrival, an order with a contradiction ends in NEEDS_REVIEW, and one with an outcome and
//! neither contradiction nor call for a person ends in that outcome. The event time decides nothing: clocks differ.

use schema::psp_result_update::{PspResultUpdateEvent, PspStatus};
use serde::Deserialize;
use utoipa::ToSchema;

/// Declares an enum together with the words that stand for it in the database and in answers.
macro_rules! words {
    ($(#[$meta:meta])* $name:ident { $($(#[$variant_meta:meta])* $variant:ident = $word:literal,)+ }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize, ToSchema)]
        #[serde(rename_all = "SCREAMING_SNAKE_CASE")]
        pub enum $name {
            $($(#[$variant_meta])* $variant,)+
        }

        impl $name {
            /// Every value.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The word in the database and in answers.
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $word,)+
                }
            }

            /// The value that a word stands for.
            pub fn from_word(word: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|value| value.as_str() == word)
            }
        }
    };
}

pub(crate) use words;

words! {
    /// State of a payment order, and of a payment.
    State {
        /// Asked for; no PSP has answered yet.
        Created = "CREATED",
        /// The PSP accepted it and will say more later.
        Pending = "PENDING",
        /// Nobody knows yet.
        Unknown = "UNKNOWN",
        /// Paid. Final.
        Successful = "SUCCESSFUL",
        /// No money moved. Final.
        Failed = "FAILED",
        /// A person must look; only a person leaves it.
        NeedsReview = "NEEDS_REVIEW",
    }
}

words! {
    /// What was decided about an event.
    Decision {
        /// It changed the order.
        Applied = "APPLIED",
        /// It says what is known already.
        Duplicate = "DUPLICATE",
        /// It was overtaken: the outcome is known, or a person is looking.
        Stale = "STALE",
        /// It contradicts what is known: a person must look.
        Conflict = "CONFLICT",
        /// Its payment order does not exist.
        Orphan = "ORPHAN",
    }
}

words! {
    /// Why a person must look.
    ReviewReason {
        /// Success after failure, or after a person was called: money moved for an order thought dead.
        LateSuccess = "LATE_SUCCESS",
        /// Success under two references: perhaps charged twice.
        SecondSuccess = "SECOND_SUCCESS",
        /// Failure after success.
        FailureAfterSuccess = "FAILURE_AFTER_SUCCESS",
        /// The PSP has another amount or currency than we asked for.
        AmountMismatch = "AMOUNT_MISMATCH",
        /// The PSP was asked again and again, and never told.
        ResolutionExhausted = "RESOLUTION_EXHAUSTED",
        /// The order was too old to be tried for the first time.
        Expired = "EXPIRED",
        /// The PSP knows the idempotency key with another request.
        IdempotencyMismatch = "IDEMPOTENCY_MISMATCH",
        /// Two orders of one payment succeeded. Of payments alone.
        DoubleCharge = "DOUBLE_CHARGE",
    }
}

/// What is known about a payment order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Order {
    /// Its state.
    pub state: State,
    /// The PSP's id of the charge.
    pub psp_reference: Option<String>,
    /// Code of the last result that changed the order.
    pub error_code: Option<String>,
    /// Its text for people.
    pub error_message: Option<String>,
    /// Why a person must look; set in NEEDS_REVIEW alone.
    pub review_reason: Option<ReviewReason>,
}

impl Order {
    /// An order that no PSP has said anything about.
    pub fn created() -> Self {
        Self {
            state: State::Created,
            psp_reference: None,
            error_code: None,
            error_message: None,
            review_reason: None,
        }
    }

    /// The order in this state, with what the event says about it.
    fn told(&self, state: State, event: &PspResultUpdateEvent) -> Self {
        // Of a success only its own reference counts: that is the charge.
        let known = if state == State::Successful { None } else { self.psp_reference.clone() };
        Self {
            state,
            psp_reference: event.psp_reference.clone().or(known),
            error_code: event.error_code.clone(),
            error_message: event.error_message.clone(),
            review_reason: None,
        }
    }

    fn under_review(self, reason: ReviewReason) -> Self {
        Self { state: State::NeedsReview, review_reason: Some(reason), ..self }
    }
}

/// A decision and what is known after it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// What was decided.
    pub decision: Decision,
    /// The order afterwards.
    pub next: Order,
}

/// A result, sorted by what it can do to an order.
#[derive(Clone, Copy)]
enum Said {
    Success,
    Failure,
    Pending,
    Unknown,
    /// Nobody knows, and nobody will find out by waiting.
    GivenUp(ReviewReason),
    /// Money moved, but not the amount we asked for.
    WrongAmount,
}

fn said(event: &PspResultUpdateEvent) -> Said {
    match event.psp_status {
        PspStatus::Successful => Said::Success,
        PspStatus::Failed => Said::Failure,
        PspStatus::Pending => Said::Pending,
        PspStatus::Unknown => match event.error_code.as_deref() {
            Some("AMOUNT_MISMATCH") => Said::WrongAmount,
            Some("RESOLUTION_EXHAUSTED") => Said::GivenUp(ReviewReason::ResolutionExhausted),
            Some("EXPIRED") => Said::GivenUp(ReviewReason::Expired),
            Some("IDEMPOTENCY_MISMATCH") => Said::GivenUp(ReviewReason::IdempotencyMismatch),
            Some(_) | None => Said::Unknown,
        },
    }
}

/// What `event` means for `order`.
pub fn decide(order: &Order, event: &PspResultUpdateEvent) -> Verdict {
    use Said::{Failure, GivenUp, Pending, Success, Unknown, WrongAmount};
    use State as S;
    let said = said(event);
    match (order.state, said) {
        (S::Created | S::Pending | S::Unknown, Success) => applied(order.told(S::Successful, event)),
        (S::Created | S::Pending | S::Unknown, Failure) => applied(order.told(S::Failed, event)),
        (S::Created | S::Pending | S::Unknown, Pending) => {
            applied_if_new(order, order.told(S::Pending, event))
        }
        (S::Created | S::Pending | S::Unknown, Unknown) => {
            applied_if_new(order, order.told(S::Unknown, event))
        }
        (S::Created | S::Pending | S::Unknown, GivenUp(reason)) => {
            applied(order.told(S::Unknown, event).under_review(reason))
        }
        (S::Created | S::Pending | S::Unknown, WrongAmount) => {
            applied(order.told(S::Unknown, event).under_review(ReviewReason::AmountMismatch))
        }
        (S::Successful, Success) => success_again(order, event),
        (S::Successful, Failure) => conflict(order.clone().under_review(ReviewReason::FailureAfterSuccess)),
        (S::Failed, Success) => {
            conflict(order.told(S::Successful, event).under_review(ReviewReason::LateSuccess))
        }
        (S::Failed, Failure) => unchanged(order, Decision::Duplicate),
        (S::Successful | S::Failed, Pending | Unknown | GivenUp(_)) => unchanged(order, Decision::Stale),
        (S::Successful | S::Failed, WrongAmount) => {
            conflict(order.clone().under_review(ReviewReason::AmountMismatch))
        }
        (S::NeedsReview, Success | Failure | Pending | Unknown | GivenUp(_) | WrongAmount) => {
            decide_in_review(order, event, said)
        }
    }
}

/// Nothing but a person ends a review; but what a person will see must hold the worst that is known.
#[expect(clippy::match_same_arms, reason = "in the order of the results, to be read beside the table")]
fn decide_in_review(order: &Order, event: &PspResultUpdateEvent, said: Said) -> Verdict {
    use ReviewReason as R;
    // A row in review without a reason cannot exist (a constraint); were it there, it would be taken as one without an answer.
    let reason = order.review_reason.unwrap_or(R::ResolutionExhausted);
    match (said, reason) {
        (Said::Pending | Said::Unknown, _) => unchanged(order, Decision::Stale),
        (Said::GivenUp(again), _) if again == reason => unchanged(order, Decision::Duplicate),
        (Said::GivenUp(_), _) => unchanged(order, Decision::Stale),
        (Said::Failure, R::LateSuccess | R::FailureAfterSuccess) => unchanged(order, Decision::Duplicate),
        (
            Said::Failure,
            R::SecondSuccess
            | R::AmountMismatch
            | R::ResolutionExhausted
            | R::Expired
            | R::IdempotencyMismatch
            | R::DoubleCharge,
        ) => unchanged(order, Decision::Conflict),
        (Said::Success, R::ResolutionExhausted | R::Expired | R::IdempotencyMismatch) => {
            conflict(order.told(State::Successful, event).under_review(R::LateSuccess))
        }
        (Said::Success, R::LateSuccess | R::SecondSuccess | R::FailureAfterSuccess) => {
            success_again(order, event)
        }
        (Said::Success, R::AmountMismatch | R::DoubleCharge) => unchanged(order, Decision::Conflict),
        (Said::WrongAmount, R::AmountMismatch) => unchanged(order, Decision::Duplicate),
        (Said::WrongAmount, R::ResolutionExhausted | R::Expired | R::IdempotencyMismatch) => {
            conflict(order.told(State::Unknown, event).under_review(R::AmountMismatch))
        }
        (Said::WrongAmount, R::LateSuccess | R::SecondSuccess | R::FailureAfterSuccess | R::DoubleCharge) => {
            unchanged(order, Decision::Conflict)
        }
    }
}

/// A success for an order of which one success is known.
fn success_again(order: &Order, event: &PspResultUpdateEvent) -> Verdict {
    match (&order.psp_reference, &event.psp_reference) {
        (None, Some(_)) => applied(Order { psp_reference: event.psp_reference.clone(), ..order.clone() }),
        (Some(known), Some(other)) if known != other => {
            conflict(order.clone().under_review(ReviewReason::SecondSuccess))
        }
        (Some(_), Some(_)) | (Some(_) | None, None) => unchanged(order, Decision::Duplicate),
    }
}

fn applied(next: Order) -> Verdict {
    Verdict { decision: Decision::Applied, next }
}

fn conflict(next: Order) -> Verdict {
    Verdict { decision: Decision::Conflict, next }
}

fn unchanged(order: &Order, decision: Decision) -> Verdict {
    Verdict { decision, next: order.clone() }
}

fn applied_if_new(order: &Order, next: Order) -> Verdict {
    if next == *order { unchanged(order, Decision::Duplicate) } else { applied(next) }
}

/// The state of a payment, from the states of its orders in the order of their tries.
///
/// An order in review puts its payment in review; so do two orders that succeeded. Otherwise a success counts, and without one
/// the last try.
pub fn payment_state(orders: &[(State, Option<ReviewReason>)]) -> (State, Option<ReviewReason>) {
    let successes = orders.iter().filter(|(state, _)| *state == State::Successful).count();
    if successes > 1 {
        return (State::NeedsReview, Some(ReviewReason::DoubleCharge));
    }
    if let Some(in_review) = orders.iter().find(|(state, _)| *state == State::NeedsReview) {
        return *in_review;
    }
    if successes == 1 {
        return (State::Successful, None);
    }
    orders.last().copied().unwrap_or((State::Created, None))
}

#[cfg(test)]
#[path = "decision_tests.rs"]
mod tests;
