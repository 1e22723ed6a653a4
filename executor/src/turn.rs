//! What is to be done with an order that is ours: its next call, ready to be sent and written down, or what there is to record.

use std::time::Instant;

use chassis::telemetry::TraceContext;
use schema::psp_result_update::{PspResultUpdateEvent, PspStatus};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::{
    course::{self, Known, Next, Reason},
    lane::Lane,
    psp::{Call, Order},
    record::{Outcome, Source},
    store::{Candidate, Queue, Started},
};

/// From so many claims on that ran out, with no answer recorded in between, each takes a step of the ladder instead of a call: whatever
/// it is that the database refuses, or that the process dies of, ends with a person.
const LAPSES_MAX: i16 = 3;

/// An order that is ours until its lease ends.
pub(crate) struct Claimed {
    pub(crate) order: Order,
    pub(crate) known: Known,
    pub(crate) trace_id: String,
    /// The step that all that is done now belongs to.
    pub(crate) trace: Option<TraceContext>,
    pub(crate) reference: Option<String>,
    pub(crate) source: Source,
    pub(crate) claim: Uuid,
    /// By our own clock, counted from before the claim: it ends before the database's lease does.
    pub(crate) lease_end: Instant,
    pub(crate) turn: Turn,
}

/// What is to be done with it.
pub(crate) enum Turn {
    /// A call that is written down.
    Call { call: Call, started: Started },
    /// There is nothing to call for.
    Concluded(Outcome),
}

impl Turn {
    /// The call as it is written down.
    pub(crate) fn started(&self) -> Option<&Started> {
        match self {
            Self::Call { started, .. } => Some(started),
            Self::Concluded(_) => None,
        }
    }
}

/// What is to be done with an order that was just claimed.
pub(crate) fn begin(
    lane: &Lane,
    candidate: Candidate,
    queue: Queue,
    (claim, lease_end): (Uuid, Instant),
    now: OffsetDateTime,
) -> Claimed {
    let Candidate { order, traceparent, reference, first_attempt_at, in_doubt, lapses } = candidate;
    let known = Known {
        has_reference: reference.is_some(),
        first_attempt_at,
        in_doubt,
        expires_at: order.expires_at,
    };
    let trace = TraceContext::parse(&traceparent);
    let mut claimed = Claimed {
        trace_id: trace.map(|trace| trace.trace_id()).unwrap_or_default(),
        trace,
        source: if queue == Queue::Queued { Source::Reply } else { Source::Resolver },
        order,
        known,
        reference,
        claim,
        lease_end,
        turn: Turn::Concluded(Outcome::Nothing),
    };
    if lapses.is_some_and(|lapses| lapses >= LAPSES_MAX) {
        let payment_order_id = claimed.order.payment_order_id;
        tracing::error!(trace_id = claimed.trace_id, %payment_order_id, lapses, "claims run out, one after the other: left alone for a while");
        return claimed;
    }
    claimed.turn = turn(lane, course::first(known, lane.psp.capabilities(), now), &claimed, now);
    claimed
}

/// What is next, made ready. `at` is when it was known.
pub(crate) fn turn(lane: &Lane, next: Next, claimed: &Claimed, at: OffsetDateTime) -> Turn {
    let conclude = |status, reason| {
        Turn::Concluded(result(&claimed.order, status, reason, claimed.reference.clone(), at))
    };
    match next {
        Next::Call(operation) => {
            match lane.psp.prepare(operation, &claimed.order, claimed.reference.as_deref()) {
                Ok(call) => Turn::Call { started: Started::of(&call), call },
                Err(error) => {
                    let payment_order_id = claimed.order.payment_order_id;
                    tracing::error!(trace_id = claimed.trace_id, %payment_order_id, %error, "no request can be made");
                    match course::unsendable(claimed.known, &error.to_string()) {
                        Next::Conclude(status, reason) => conclude(status, reason),
                        Next::Call(_) | Next::Nothing | Next::Later => Turn::Concluded(Outcome::Nothing),
                    }
                }
            }
        }
        Next::Conclude(status, reason) => conclude(status, reason),
        Next::Nothing => Turn::Concluded(Outcome::Nothing),
        Next::Later => Turn::Concluded(Outcome::Later { failed: true }),
    }
}

fn result(
    order: &Order,
    status: PspStatus,
    reason: Reason,
    reference: Option<String>,
    at: OffsetDateTime,
) -> Outcome {
    Outcome::Result(PspResultUpdateEvent {
        payment_order_id: order.payment_order_id,
        psp_status: status,
        psp_reference: reference,
        // To the microsecond, as the wire and PostgreSQL keep it: outbox row, record and result are to say the same.
        event_time: at.replace_microsecond(at.microsecond()).unwrap_or(at),
        error_code: reason.code,
        error_message: reason.message,
    })
}
