//! What executing a request came to, at either PSP.

use time::OffsetDateTime;

use crate::ledger::Ledger;
use crate::obstacles::Obstacles;
use crate::scenario::{Delivery, Obstacle};

/// `A` is an answer, `P` what the issuer has not answered yet.
#[derive(Debug)]
pub(crate) enum Outcome<A, P> {
    /// Executed. What the issuer says later, if anything, changes the payment and not this answer.
    Executed { answer: A, delivery: Delivery, pending: Option<P> },
    /// With the issuer, who takes his time: the answer is that of the settlement.
    Pending(P, Delivery),
    /// Collided with another request, or found no room: nothing is kept.
    NotExecuted(A),
    /// Met an obstacle before it executed.
    Hindered(Obstacle),
}

impl<A, P> Outcome<A, P> {
    pub(crate) fn answered(answer: impl Into<A>) -> Self {
        Self::Executed { answer: answer.into(), delivery: Delivery::Sent, pending: None }
    }
}

/// What an operation works with.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Desk<'a> {
    pub(crate) ledger: &'a Ledger,
    pub(crate) obstacles: &'a Obstacles,
    pub(crate) now: OffsetDateTime,
}
