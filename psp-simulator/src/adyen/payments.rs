//! Payments: what each operation does to them.
//!
//! ```text
//!  /payments ─┬────────────────────────▶ authorised (and captured), partly authorised, refused: for good
//!             ├─ with the issuer ───────────▲
//!             ├─ waiting (Pending, Received) ▲ ──── cancel ─▶ cancelled, for good
//!             └─ an action of the shopper ──▲ (if he acts)
//! ```
//!
//! A cancel of what waits for the shopper is taken, and changes nothing: Adyen cancels what is authorised, or is about to be at the
//! issuer (docs.adyen.com: AuthorisedPending), and nothing is. Its webhook says that it was not carried out.
//!
//! Every change is made under the payment's own lock and without waiting, so it happens whole or not at all, whatever
//! becomes of the connection that asked for it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use time::OffsetDateTime;
use uuid::Uuid;

use super::answer::{Answer, Effect, Receipt};
use super::errors::Refusal;
use super::params::{Cancel, Pay, Terms};
use crate::held;
use crate::ledger::{self, Ledger};
use crate::outcome::{self, Desk};
use crate::scenario::{Action, Decline, Obstacle, Psp, Statement, Timing, Verdict, Waiting};

type Outcome = outcome::Outcome<Answer, Pending>;

/// A payment: what never changes, and its state.
#[derive(Debug)]
pub(crate) struct Payment {
    pub(crate) psp_reference: Arc<str>,
    pub(crate) terms: Terms,
    /// What the wire says of the amount.
    pub(crate) statement: Statement,
    state: Mutex<State>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    /// The request waits for the issuer.
    WithIssuer,
    /// The request was answered, the issuer was not heard yet.
    Waiting(Waiting),
    ActionRequired(Action),
    /// Money was taken, in minor units.
    Authorised {
        taken: i64,
    },
    Refused(Decline),
    Cancelled,
}

/// A payment that the issuer has not answered yet.
#[derive(Debug)]
pub(crate) struct Pending {
    payment: Arc<Payment>,
    verdict: Verdict,
}

#[derive(Debug)]
pub(crate) struct Payments {
    shelf: Mutex<Shelf>,
    capacity: usize,
}

#[derive(Debug, Default)]
struct Shelf {
    by_psp_reference: HashMap<Arc<str>, Arc<Payment>>,
    /// Merchant references need not be unique.
    by_reference: HashMap<Box<str>, Vec<Arc<Payment>>>,
}

impl Payments {
    pub(crate) fn new(capacity: usize) -> Self {
        Self { shelf: Mutex::default(), capacity }
    }

    /// `retry_name` is what a repetition of this request has in common with it.
    pub(crate) fn pay(&self, pay: Pay, retry_name: &str, desk: Desk<'_>) -> Outcome {
        let Pay { terms, course } = pay;
        match desk.obstacles.meet(course.obstacle, retry_name) {
            Obstacle::None => {}
            met => return Outcome::Hindered(met),
        }
        let (verdict, delivery) = (course.verdict, course.delivery);
        if verdict == Verdict::Unasked {
            let answer = Answer::refused(Refusal::server_error());
            return Outcome::Executed { answer, delivery, pending: None };
        }
        let state = match course.timing {
            Timing::AtOnce | Timing::Slow => State::WithIssuer,
            Timing::Deferred(waiting) => State::Waiting(waiting),
        };
        let payment = Arc::new(Payment {
            psp_reference: psp_reference().into(),
            terms,
            statement: course.statement,
            state: Mutex::new(state),
        });
        if !self.keep(&payment) {
            return Outcome::NotExecuted(Answer::refused(Refusal::full()));
        }
        let pending = Pending { payment: Arc::clone(&payment), verdict };
        match course.timing {
            Timing::AtOnce => {
                let answer = pending.settle(desk.ledger, desk.now).unwrap_or_else(|stands| stands);
                Outcome::Executed { answer, delivery, pending: None }
            }
            Timing::Slow => Outcome::Pending(pending, delivery),
            Timing::Deferred(_) => {
                let answer = Answer::Payment(payment, state);
                Outcome::Executed { answer, delivery, pending: Some(pending) }
            }
        }
    }

    /// Cancels whatever can be cancelled under the merchant's own reference; the answer does not tell, the webhook does.
    pub(crate) fn cancel_by_reference(&self, cancel: Cancel) -> Outcome {
        let reference = cancel.payment_reference.as_deref().unwrap_or_default();
        let found = held(&self.shelf).by_reference.get(reference).cloned().unwrap_or_default();
        let of_merchant =
            found.into_iter().filter(|payment| payment.terms.merchant_account == cancel.merchant_account);
        let payments: Vec<_> = of_merchant.collect();
        let cancelled = payments.iter().filter(|payment| payment.cancel()).count();
        let effect = Effect {
            success: cancelled > 0,
            found: !payments.is_empty(),
            technical: true,
            original: payments.into_iter().next_back(),
        };
        Outcome::answered(Answer::Cancel(Arc::new(Receipt::new(psp_reference().into(), cancel, effect))))
    }

    pub(crate) fn cancel_of_payment(&self, id: &str, cancel: Cancel) -> Outcome {
        let found = held(&self.shelf).by_psp_reference.get(id).cloned();
        let of_merchant = found.filter(|payment| payment.terms.merchant_account == cancel.merchant_account);
        let Some(payment) = of_merchant else {
            return Outcome::answered(Answer::refused(Refusal::no_such_payment()));
        };
        let effect =
            Effect { success: payment.cancel(), found: true, technical: false, original: Some(payment) };
        Outcome::answered(Answer::Cancel(Arc::new(Receipt::new(psp_reference().into(), cancel, effect))))
    }

    fn keep(&self, payment: &Arc<Payment>) -> bool {
        let mut shelf = held(&self.shelf);
        if shelf.by_psp_reference.len() >= self.capacity {
            return false;
        }
        shelf.by_psp_reference.insert(Arc::clone(&payment.psp_reference), Arc::clone(payment));
        shelf.by_reference.entry(payment.terms.reference.clone()).or_default().push(Arc::clone(payment));
        true
    }
}

impl Payment {
    /// Whether there was something left to cancel.
    fn cancel(&self) -> bool {
        let mut state = held(&self.state);
        match *state {
            State::Waiting(Waiting::Processing | Waiting::Received | Waiting::Unheard) => {
                *state = State::Cancelled;
                true
            }
            // Nothing is authorised, or what is authorised is captured already.
            State::Waiting(Waiting::Shopper(_))
            | State::ActionRequired(_)
            | State::WithIssuer
            | State::Authorised { .. }
            | State::Refused(_)
            | State::Cancelled => false,
        }
    }
}

impl Pending {
    /// The issuer has answered: the outcome. An error if he is too late, as the payment was cancelled meanwhile: how it
    /// stands. Money taken is in the ledger when this returns.
    pub(crate) fn settle(self, ledger: &Ledger, now: OffsetDateTime) -> Result<Answer, Answer> {
        let Self { payment, verdict } = self;
        let mut state = held(&payment.state);
        match *state {
            State::WithIssuer | State::Waiting(_) => {}
            stands @ (State::ActionRequired(_)
            | State::Authorised { .. }
            | State::Refused(_)
            | State::Cancelled) => {
                drop(state);
                return Err(Answer::Payment(payment, stands));
            }
        }
        let amount = payment.terms.amount;
        let outcome = match verdict {
            Verdict::Approved => State::Authorised { taken: amount },
            Verdict::PartlyApproved => State::Authorised { taken: (amount / 2).max(1) },
            Verdict::Declined(decline) => State::Refused(decline),
            Verdict::CalledOff => State::Cancelled,
            Verdict::Authenticate => State::ActionRequired(Action::Challenge),
            Verdict::Action(action) => State::ActionRequired(action),
            // Decided before there was a payment.
            Verdict::Unasked => *state,
        };
        if let State::Authorised { taken } = outcome {
            ledger.append(entry(&payment, taken, now));
        }
        *state = outcome;
        drop(state);
        Ok(Answer::Payment(payment, outcome))
    }
}

fn entry(payment: &Payment, taken: i64, charged_at: OffsetDateTime) -> ledger::Charge {
    ledger::Charge {
        sequence: 0,
        id: Arc::clone(&payment.psp_reference),
        psp: Psp::Adyen,
        reference: Arc::clone(&payment.psp_reference),
        payment_intent: Arc::clone(&payment.psp_reference),
        payment_order_id: Some(payment.terms.reference.clone()),
        amount_minor: taken,
        currency: payment.terms.currency.clone().into(),
        charged_at,
    }
}

/// 16 characters, as Adyen's.
pub(crate) fn psp_reference() -> String {
    const ALPHABET: &[u8; 36] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789";
    let mut number = Uuid::new_v4().as_u128();
    let mut next = || {
        let digit = usize::try_from(number % 36).unwrap_or(0);
        number /= 36;
        char::from(ALPHABET[digit])
    };
    (0..16).map(|_| next()).collect()
}
