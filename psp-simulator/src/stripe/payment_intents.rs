//! PaymentIntents: what each operation does to them.
//!
//! ```text
//! requires_payment_method ─▶ requires_confirmation ─┬───────────────▶ succeeded (once, and for good)
//!          ▲                        ▲    │          ├─ processing ──────▲
//!          └──────── declined ──────│────┘          └─ requires_action, to be confirmed again
//!                                   └─ all but succeeded ─▶ canceled (for good)
//! ```
//!
//! Every change is made under the PaymentIntent's own lock and without waiting, so it happens whole or not at all,
//! whatever becomes of the connection that asked for it. A slow confirmation marks the PaymentIntent busy instead.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};

use time::OffsetDateTime;

use super::answer::Answer;
use super::errors::Refusal;
use super::objects::{Charge, Expand, Intent, Live, Method, Snapshot, State, Status};
use super::params::{Cancel, Confirm, Confirmation, Create, List, Retrieve};
use super::{ids, methods};
use crate::held;
use crate::ledger::{self, Ledger};
use crate::outcome::{self, Desk};
use crate::scenario::{
    Action, Course, Decline, Delivery, Obstacle, Psp, Statement, Step, Timing, Verdict, Waiting,
};

type Outcome = outcome::Outcome<Answer, Pending>;

/// A confirmation that the issuer has not answered yet.
#[derive(Debug)]
pub(crate) struct Pending {
    intent: Arc<Intent>,
    method: Method,
    verdict: Verdict,
    expand: Expand,
}

#[derive(Debug)]
pub(crate) struct PaymentIntents {
    shelf: Mutex<Shelf>,
    capacity: usize,
}

#[derive(Debug, Default)]
struct Shelf {
    by_id: HashMap<Arc<str>, Arc<Intent>>,
    in_order: Vec<Arc<Intent>>,
}

impl PaymentIntents {
    pub(crate) fn new(capacity: usize) -> Self {
        Self { shelf: Mutex::default(), capacity }
    }

    /// `retry_name` is what a repetition of this request has in common with it.
    pub(crate) fn create(&self, create: Create, retry_name: &str, desk: Desk<'_>) -> Outcome {
        let now = desk.now.unix_timestamp();
        let Create { terms, payment_method, confirm, expand } = create;
        let method = match payment_method.as_deref().map(|token| resolve(token, None, now)).transpose() {
            Ok(method) => method,
            Err(refusal) => return Outcome::answered(refusal),
        };
        if let (Some(confirmation), Some(_)) = (confirm, &method)
            && let Err(refusal) = check_redirects(terms.allow_redirects, confirmation)
        {
            return Outcome::answered(refusal);
        }
        // What this request goes through: the creation's, and if it confirms, too, also the payment's.
        let course = method.as_ref().map(|method| method.test.course);
        let course = course.filter(|course| confirm.is_some() || course.step == Step::Creation);
        match course.map_or(Obstacle::None, |course| desk.obstacles.meet(course.obstacle, retry_name)) {
            Obstacle::None => {}
            met => return Outcome::Hindered(met),
        }
        let delivery = course.map_or(Delivery::Sent, |course| course.delivery);
        if course.is_some_and(never_created) {
            return Outcome::Executed { answer: Refusal::server_error().into(), delivery, pending: None };
        }
        let status =
            if method.is_some() { Status::RequiresConfirmation } else { Status::RequiresPaymentMethod };
        let state = State {
            status,
            method: method.clone(),
            latest_charge: None,
            failure: None,
            canceled_at: None,
            cancellation_reason: None,
            statement: Statement::True,
        };
        let Some(intent) = self.keep(|sequence| Intent {
            id: ids::new("pi_").into(),
            sequence,
            created: now,
            terms,
            live: Mutex::new(Live { state, busy: false }),
        }) else {
            return Outcome::NotExecuted(Refusal::full().into());
        };
        match (confirm, method) {
            (None, _) => {
                let answer = Answer::Intent(intent.snapshot(), expand);
                Outcome::Executed { answer, delivery, pending: None }
            }
            (Some(_), None) => Outcome::answered(missing_method(intent.snapshot())),
            (Some(confirmation), Some(method)) => {
                let live = held(&intent.live);
                attempt(&intent, live, (method, delivery), confirmation, expand, desk)
            }
        }
    }

    pub(crate) fn confirm(&self, id: &str, confirm: &Confirm, desk: Desk<'_>) -> Outcome {
        let Some(intent) = self.find(id) else {
            return Outcome::answered(Refusal::no_such_intent(id));
        };
        let live = held(&intent.live);
        if live.busy {
            return Outcome::NotExecuted(Refusal::lock_timeout().into());
        }
        let snapshot = || Snapshot { intent: Arc::clone(&intent), state: live.state.clone() };
        let own = live.state.method.as_ref();
        let method = match (confirm.payment_method.as_deref(), own) {
            (Some(token), own) => match resolve(token, own, desk.now.unix_timestamp()) {
                Ok(method) => method,
                Err(refusal) => return Outcome::answered(refusal),
            },
            (None, Some(own)) => own.clone(),
            (None, None) => return Outcome::answered(missing_method(snapshot())),
        };
        match live.state.status {
            Status::RequiresPaymentMethod | Status::RequiresConfirmation | Status::RequiresAction => {}
            Status::Processing | Status::UnderObservation | Status::Succeeded | Status::Canceled => {
                return Outcome::answered(Refusal::cannot_confirm(snapshot()));
            }
        }
        if let Err(refusal) = check_redirects(intent.terms.allow_redirects, confirm.confirmation) {
            return Outcome::answered(refusal);
        }
        let course = Some(method.test.course).filter(|course| course.step == Step::Payment);
        match course.map_or(Obstacle::None, |course| desk.obstacles.meet(course.obstacle, id)) {
            Obstacle::None => {}
            met => return Outcome::Hindered(met),
        }
        let delivery = course.map_or(Delivery::Sent, |course| course.delivery);
        attempt(&intent, live, (method, delivery), confirm.confirmation, confirm.expand, desk)
    }

    pub(crate) fn cancel(&self, id: &str, cancel: &Cancel, now: i64) -> Outcome {
        let Some(intent) = self.find(id) else {
            return Outcome::answered(Refusal::no_such_intent(id));
        };
        let mut live = held(&intent.live);
        if live.busy {
            return Outcome::NotExecuted(Refusal::lock_timeout().into());
        }
        match live.state.status {
            Status::RequiresPaymentMethod
            | Status::RequiresConfirmation
            | Status::RequiresAction
            | Status::Processing
            | Status::UnderObservation => {
                live.state.status = Status::Canceled;
                live.state.canceled_at = Some(now);
                live.state.cancellation_reason = cancel.reason;
                Outcome::answered(answer(&intent, &live, cancel.expand))
            }
            Status::Succeeded | Status::Canceled => {
                let snapshot = Snapshot { intent: Arc::clone(&intent), state: live.state.clone() };
                Outcome::answered(Refusal::cannot_cancel(snapshot))
            }
        }
    }

    pub(crate) fn retrieve(&self, id: &str, retrieve: &Retrieve) -> Answer {
        match self.find(id) {
            Some(intent) => Answer::Intent(intent.snapshot(), retrieve.expand),
            None => Refusal::no_such_intent(id).into(),
        }
    }

    /// Newest first.
    pub(crate) fn list(&self, list: &List) -> Answer {
        let position = |id: &Option<String>| match id {
            None => Ok(None),
            Some(id) => match self.find(id) {
                Some(intent) => Ok(Some(intent.sequence)),
                None => Err(Refusal::no_such_intent(id)),
            },
        };
        let (older_than, newer_than) = match (position(&list.starting_after), position(&list.ending_before)) {
            (Ok(older), Ok(newer)) => (older, newer),
            (Err(refusal), _) | (_, Err(refusal)) => return refusal.into(),
        };
        let (found, has_more) = {
            let shelf = held(&self.shelf);
            let to = older_than.unwrap_or(shelf.in_order.len());
            let from = newer_than.map_or(0, |sequence| sequence + 1).min(to);
            let count = list.limit.min(to - from);
            // Going back towards newer ones, those next to the cursor come first.
            let page = if newer_than.is_some() { from..from + count } else { to - count..to };
            (shelf.in_order[page].to_vec(), count < to - from)
        };
        let intents = found.iter().rev().map(Intent::snapshot).collect();
        Answer::List { intents, has_more, expand: list.expand }
    }

    /// Another PaymentIntent with the same terms that is said to have succeeded. No charge belongs to it. None if there
    /// is no room.
    pub(crate) fn double(&self, snapshot: &Snapshot, now: i64) -> Option<Snapshot> {
        let mut state = snapshot.state.clone();
        let method = state.method.clone()?;
        let taken = snapshot.intent.terms.amount;
        let charge = Charge { id: ids::new("ch_").into(), created: now, method, taken, decline: None };
        state.latest_charge = Some(Arc::new(charge));
        let intent = self.keep(|sequence| Intent {
            id: ids::new("pi_").into(),
            sequence,
            created: now,
            terms: snapshot.intent.terms.clone(),
            live: Mutex::new(Live { state, busy: false }),
        })?;
        Some(intent.snapshot())
    }

    fn find(&self, id: &str) -> Option<Arc<Intent>> {
        held(&self.shelf).by_id.get(id).cloned()
    }

    fn keep(&self, make: impl FnOnce(usize) -> Intent) -> Option<Arc<Intent>> {
        let mut kept = held(&self.shelf);
        if kept.in_order.len() >= self.capacity {
            return None;
        }
        let intent = Arc::new(make(kept.in_order.len()));
        kept.in_order.push(Arc::clone(&intent));
        kept.by_id.insert(Arc::clone(&intent.id), Arc::clone(&intent));
        Some(intent)
    }
}

impl Pending {
    /// The issuer has answered: the outcome. An error if he is too late, as the payment was cancelled while it was
    /// processing: how it stands.
    pub(crate) fn settle(self, ledger: &Ledger, now: OffsetDateTime) -> Result<Answer, Answer> {
        let mut live = held(&self.intent.live);
        live.busy = false;
        if live.state.status == Status::Canceled {
            return Err(answer(&self.intent, &live, self.expand));
        }
        Ok(decide(&self.intent, &mut live, self.method, self.verdict, self.expand, ledger, now))
    }
}

/// A token becomes a payment method of its own; the id of the PaymentIntent's own method is known, too.
fn resolve(token: &str, own: Option<&Method>, now: i64) -> Result<Method, Refusal> {
    if let Some(own) = own.filter(|own| &*own.id == token) {
        return Ok(own.clone());
    }
    methods::find(token).map(|test| Method::new(test, now)).ok_or_else(|| Refusal::no_such_method(token))
}

fn check_redirects(allowed: Option<&str>, confirmation: Confirmation) -> Result<(), Refusal> {
    if allowed != Some("always") || confirmation.has_return_url {
        return Ok(());
    }
    Err(Refusal::invalid(
        None,
        "This PaymentIntent is configured to accept payment methods enabled in your Dashboard. Because some of these \
         payment methods might redirect your customer off of your page, you must provide a `return_url`. If you don't \
         want to accept redirect-based payment methods, set `automatic_payment_methods[enabled]` to `true` and \
         `automatic_payment_methods[allow_redirects]` to `never` when creating Setup Intents and Payment Intents.",
    ))
}

fn missing_method(snapshot: Snapshot) -> Answer {
    Refusal::unexpected_state(
        snapshot,
        "You cannot confirm this PaymentIntent because it's missing a payment method. You can either update the \
         PaymentIntent with a payment method and then confirm it again, or confirm it again directly with a payment \
         method or ConfirmationToken.",
    )
    .into()
}

/// The request ends before there is a PaymentIntent.
fn never_created(course: Course) -> bool {
    course.step == Step::Creation && course.verdict == Verdict::Unasked
}

/// Takes the payment to the issuer.
fn attempt(
    intent: &Arc<Intent>,
    mut live: MutexGuard<'_, Live>,
    (method, delivery): (Method, Delivery),
    confirmation: Confirmation,
    expand: Expand,
    desk: Desk<'_>,
) -> Outcome {
    let course = method.test.course;
    let verdict = verdict(course.verdict, confirmation);
    let pending = |method| Pending { intent: Arc::clone(intent), method, verdict, expand };
    match course.timing {
        Timing::AtOnce => {
            let answer = decide(intent, &mut live, method, verdict, expand, desk.ledger, desk.now);
            Outcome::Executed { answer, delivery, pending: None }
        }
        Timing::Slow => {
            live.busy = true;
            Outcome::Pending(pending(method), delivery)
        }
        Timing::Deferred(waiting) => {
            let state = &mut live.state;
            state.status = match waiting {
                Waiting::Processing | Waiting::Received | Waiting::Shopper(_) => Status::Processing,
                Waiting::Unheard => Status::UnderObservation,
            };
            (state.failure, state.method) = (None, Some(method.clone()));
            let answer = answer(intent, &live, expand);
            Outcome::Executed { answer, delivery, pending: Some(pending(method)) }
        }
    }
}

/// What the issuer says, given what the caller can do about a request to authenticate.
fn verdict(verdict: Verdict, confirmation: Confirmation) -> Verdict {
    match verdict {
        Verdict::Authenticate if confirmation.off_session => {
            Verdict::Declined(Decline::AuthenticationRequired)
        }
        Verdict::Authenticate if confirmation.error_on_requires_action => {
            Verdict::Declined(Decline::AuthenticationNotHandled)
        }
        Verdict::Authenticate => Verdict::Action(Action::Challenge),
        Verdict::Approved
        | Verdict::PartlyApproved
        | Verdict::Declined(_)
        | Verdict::CalledOff
        | Verdict::Action(_)
        | Verdict::Unasked => verdict,
    }
}

/// Carries out what the issuer said. Money taken is in the ledger when this returns.
fn decide(
    intent: &Arc<Intent>,
    live: &mut Live,
    method: Method,
    verdict: Verdict,
    expand: Expand,
    ledger: &Ledger,
    now: OffsetDateTime,
) -> Answer {
    let created = now.unix_timestamp();
    let amount = intent.terms.amount;
    let charge = |taken, decline| {
        Arc::new(Charge { id: ids::new("ch_").into(), created, method: method.clone(), taken, decline })
    };
    let state = &mut live.state;
    match verdict {
        Verdict::Approved | Verdict::PartlyApproved => {
            let taken = if verdict == Verdict::Approved { amount } else { (amount / 2).max(1) };
            let charge = charge(taken, None);
            ledger.append(entry(intent, &charge, now));
            state.status = Status::Succeeded;
            state.latest_charge = Some(charge);
            state.failure = None;
            state.statement = method.test.course.statement;
            state.method = Some(method);
        }
        Verdict::Declined(decline) => {
            let charge = charge(0, Some(decline));
            state.status = Status::RequiresPaymentMethod;
            state.latest_charge = Some(Arc::clone(&charge));
            state.failure = Some(charge);
            state.method = None;
            let snapshot = Snapshot { intent: Arc::clone(intent), state: state.clone() };
            return Refusal::declined(decline, snapshot).into();
        }
        Verdict::CalledOff => {
            state.status = Status::Canceled;
            state.canceled_at = Some(created);
            state.cancellation_reason = Some("automatic");
        }
        Verdict::Action(_) | Verdict::Authenticate => {
            state.status = Status::RequiresAction;
            state.failure = None;
            state.method = Some(method);
        }
        Verdict::Unasked => {}
    }
    answer(intent, live, expand)
}

fn answer(intent: &Arc<Intent>, live: &Live, expand: Expand) -> Answer {
    Answer::Intent(Snapshot { intent: Arc::clone(intent), state: live.state.clone() }, expand)
}

fn entry(intent: &Intent, charge: &Charge, charged_at: OffsetDateTime) -> ledger::Charge {
    ledger::Charge {
        sequence: 0,
        id: Arc::clone(&charge.id),
        psp: Psp::Stripe,
        reference: Arc::clone(&intent.id),
        payment_intent: Arc::clone(&intent.id),
        payment_order_id: intent.terms.metadata.get("payment_order_id").cloned(),
        amount_minor: charge.taken,
        currency: Arc::clone(&intent.terms.currency),
        charged_at,
    }
}
