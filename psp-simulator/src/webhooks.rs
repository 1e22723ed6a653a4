//! Webhooks: what PSPs tell of themselves, and the tricks that the network plays on it.
//!
//! ```text
//!  outcome ──▶ publish ──▶ mischief ──▶ queue ──▶ post ──▶ receiver
//!  (of a PSP)              (by seed)    (bounded)  (signs, retries)
//! ```
//!
//! Requests never wait for a webhook, with one exception that is asked for: an early one is sent before the answer to
//! its request. What is drawn for a webhook depends on the seed and on its name alone, and not on what happens beside it.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde::Serialize;
use time::OffsetDateTime;
use tokio::sync::oneshot;

pub(crate) use self::mischief::Contradiction;
pub use self::mischief::Mischief;
use self::mischief::{Duplicate, Plan};
pub(crate) use self::post::run;
use self::post::{Counts, Message, Post, Role};
use crate::config::Config;
use crate::scenario::Psp;
use crate::{World, adyen, held, stripe};

mod mischief;
mod post;
mod queue;

/// A webhook that is not early is sent this long after its outcome, so that the answer usually arrives first.
const BEHIND_THE_ANSWER: Duration = Duration::from_millis(20);
/// What an answer waits for its early webhook at most.
const EARLY_PATIENCE: Duration = Duration::from_secs(2);
/// Contradictions remembered; there are no more than these.
const MAX_CONTRADICTIONS: usize = 100_000;

/// Something that a PSP has to tell.
#[derive(Debug)]
pub(crate) enum Event {
    Stripe(stripe::webhook::Event),
    Adyen(adyen::webhook::Event),
}

/// What of an event decides about its way.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Subject<'a> {
    pub(crate) payment_order_id: Option<&'a str>,
    /// The PSP's reference of the payment.
    pub(crate) reference: &'a str,
    pub(crate) kind: &'a str,
    /// Whether this is the last word, and a success.
    pub(crate) success: Option<bool>,
}

/// Who gets told, and how.
#[derive(Debug)]
pub(crate) struct Webhooks {
    stripe: Option<Post>,
    adyen: Option<Post>,
    seed: u64,
    /// How long an issuer takes who does not answer at once: what is to be overtaken is held back longer.
    slow: Duration,
    mischief: Mutex<Mischief>,
    contradictions: Mutex<Vec<Contradicted>>,
}

/// A payment order that was lied about.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Contradicted {
    psp: Psp,
    payment_order_id: Option<Box<str>>,
    /// The reference that the contradicting webhook names.
    reference: Box<str>,
    kind: Contradiction,
    sent: bool,
    acknowledged: bool,
}

/// What `GET /simulator/webhooks` shows.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    seed: u64,
    mode: Mischief,
    stripe: Option<Counts>,
    adyen: Option<Counts>,
    contradictions: Vec<Contradicted>,
}

impl Event {
    fn psp(&self) -> Psp {
        match self {
            Self::Stripe(_) => Psp::Stripe,
            Self::Adyen(_) => Psp::Adyen,
        }
    }

    fn subject(&self) -> Subject<'_> {
        match self {
            Self::Stripe(event) => event.subject(),
            Self::Adyen(event) => event.subject(),
        }
    }

    fn contradicting(&self, kind: Contradiction, world: &World, now: OffsetDateTime) -> Option<Self> {
        match self {
            Self::Stripe(event) => event.contradicting(kind, &world.stripe.intents, now).map(Self::Stripe),
            Self::Adyen(event) => Some(Self::Adyen(event.contradicting(kind, now))),
        }
    }
}

impl Webhooks {
    pub(crate) fn new(config: &Config) -> anyhow::Result<Self> {
        Ok(Self {
            stripe: Post::to_stripe(config)?,
            adyen: Post::to_adyen(config)?,
            seed: config.seed,
            slow: config.slow,
            mischief: Mutex::new(config.webhook_mode),
            contradictions: Mutex::default(),
        })
    }

    fn post(&self, psp: Psp) -> Option<&Post> {
        match psp {
            Psp::Stripe => self.stripe.as_ref(),
            Psp::Adyen => self.adyen.as_ref(),
        }
    }

    /// Whether anybody wants to be told.
    pub(crate) fn wanted(&self, psp: Psp) -> bool {
        self.post(psp).is_some()
    }

    pub(crate) fn set_mischief(&self, mischief: Mischief) {
        *held(&self.mischief) = mischief;
    }

    pub(crate) fn report(&self) -> Report {
        Report {
            seed: self.seed,
            mode: *held(&self.mischief),
            stripe: self.stripe.as_ref().map(Post::counts),
            adyen: self.adyen.as_ref().map(Post::counts),
            contradictions: held(&self.contradictions).clone(),
        }
    }

    /// Hands the event to its post; for an early one, gives what tells when it was sent.
    fn hand_over(&self, world: &World, event: Event) -> Option<oneshot::Receiver<()>> {
        let post = self.post(event.psp())?;
        let now = world.clock.now();
        let plan = self.plan(&event);
        post.counts.event();
        if plan.drop {
            post.counts.drop_on_purpose();
            return None;
        }
        let lie = plan.contradict.and_then(|kind| {
            let lie = event.contradicting(kind, world, now)?;
            let number = self.note(&lie, kind)?;
            Some((Arc::new(lie), number))
        });
        // A message of Stripe's is one event.
        let together = plan.duplicate == Some(Duplicate::SameMessage) && event.psp() == Psp::Adyen;
        let items = if together { 2 } else { 1 };
        let (told, early) = plan.early.then(oneshot::channel).unzip();
        let event = Arc::new(event);
        let due = now + if plan.early { Duration::ZERO } else { BEHIND_THE_ANSWER + plan.delay };
        post.counts.tricks(&plan);
        if plan.duplicate.is_some() && !together {
            let again = Message::new(Arc::clone(&event), Role::Duplicate, 1);
            post.enqueue(due + plan.duplicate_after, again);
        }
        let mut message = Message::new(event, Role::Truth { lie, lie_after: plan.contradict_after }, items);
        message.told = told;
        post.enqueue(due, message);
        early
    }

    fn plan(&self, event: &Event) -> Plan {
        let subject = event.subject();
        let name = format!(
            "{}:{}:{}",
            event.psp().name(),
            subject.payment_order_id.unwrap_or(subject.reference),
            subject.kind
        );
        held(&self.mischief).plan(self.seed, &name, subject.success, self.slow)
    }

    /// The number of the lie, if there is room for another one.
    fn note(&self, lie: &Event, kind: Contradiction) -> Option<usize> {
        let subject = lie.subject();
        let mut contradictions = held(&self.contradictions);
        if contradictions.len() >= MAX_CONTRADICTIONS {
            return None;
        }
        contradictions.push(Contradicted {
            psp: lie.psp(),
            payment_order_id: subject.payment_order_id.map(Into::into),
            reference: subject.reference.into(),
            kind,
            sent: false,
            acknowledged: false,
        });
        Some(contradictions.len() - 1)
    }

    fn lied(&self, number: usize, acknowledged: bool) {
        if let Some(contradicted) = held(&self.contradictions).get_mut(number) {
            contradicted.sent = true;
            contradicted.acknowledged |= acknowledged;
        }
    }
}

/// Tells whoever wants to be told. Returns when the answer to the request may be sent: at once, except before an early
/// webhook.
pub(crate) async fn publish(world: &World, event: Option<Event>) {
    let Some(event) = event else { return };
    if let Some(early) = world.webhooks.hand_over(world, event)
        && tokio::time::timeout(EARLY_PATIENCE, early).await.is_err()
    {
        tracing::warn!("an early webhook was not sent in time, the answer goes first");
    }
}
