//! What a finding changes, by how its order stands. Pure.

use std::time::Duration;

use schema::psp_result_update::{PspResultUpdateEvent, PspStatus};
use time::OffsetDateTime;

use super::{Change, Finding, Moved, Outcome, Standing, State};
use crate::psp::code;

/// First and longest pause after calls that were not executed.
const AGAIN_FIRST: Duration = Duration::from_millis(250);
const AGAIN_MAX: Duration = Duration::from_secs(10);

/// After so many calls in a row that were not executed, an order that exists at the PSP, or may, takes a step of the ladder.
const LATER_MAX: i16 = 10;

/// What this finding changes.
pub(super) fn settle(
    standing: &Standing,
    finding: Finding,
    ladder: &[Duration],
    now: OffsetDateTime,
) -> Change {
    let ours = standing.claimed_by.is_none() || standing.claimed_by == finding.claim;
    let open = match standing.state {
        State::Queued | State::InFlight | State::Resolving => ours,
        State::Settled | State::Review => false,
    };
    let mut change = Change {
        payment_order_id: finding.payment_order_id,
        source: finding.source,
        event_id: finding.event_id,
        result: None,
        standing: None,
        finished: finding.finished,
    };
    let told = match &finding.outcome {
        Outcome::Result(result) => result.psp_reference.clone(),
        Outcome::Nothing | Outcome::Later { .. } => None,
    };
    let learnt = change.finished.as_ref().and_then(|finished| finished.answer.reference.clone()).or(told);
    let moved = |state, due_in, rung, failures| {
        Some(Moved { state, psp_reference: learnt.clone(), due_in, rung, failures })
    };
    let begun = learnt.is_some() || standing.psp_reference.is_some() || finding.in_doubt;
    match finding.outcome {
        Outcome::Result(result) => {
            match ends(&result) {
                Some(state) if !matches!(standing.state, State::Settled | State::Review) => {
                    change.standing = moved(state, Duration::ZERO, standing.rung, 0);
                }
                None if open => return look_again(standing, change, Some(result), learnt, ladder, now),
                // What is settled stays settled, and what a person must look at stays so: the event says the rest.
                Some(_) | None => {}
            }
            change.result = Some(result);
        }
        Outcome::Nothing if open => return look_again(standing, change, None, learnt, ladder, now),
        // A payment that exists at the PSP, or may, and cannot be asked about is in doubt: it takes a step of the ladder, which ends.
        // The first one says so.
        Outcome::Later { failed: true } if open && begun && standing.failures >= LATER_MAX => {
            let doubt = (!standing.known).then(|| doubt(standing, &change, learnt.clone(), now));
            return look_again(standing, change, doubt, learnt, ladder, now);
        }
        Outcome::Later { failed } if open => {
            let state = if standing.known { State::Resolving } else { State::Queued };
            let failures = if failed { standing.failures.saturating_add(1) } else { standing.failures };
            let due_in = if failed { pause(standing.failures) } else { Duration::ZERO };
            change.standing = moved(state, due_in, standing.rung, failures);
        }
        Outcome::Nothing | Outcome::Later { .. } => {}
    }
    change
}

/// The state in which a result ends an order; None if it does not.
fn ends(result: &PspResultUpdateEvent) -> Option<State> {
    match result.psp_status {
        PspStatus::Successful | PspStatus::Failed => Some(State::Settled),
        PspStatus::Pending => None,
        PspStatus::Unknown => match result.error_code.as_deref() {
            Some(
                code::AMOUNT_MISMATCH
                | code::IDEMPOTENCY_MISMATCH
                | code::EXPIRED
                | code::RESOLUTION_EXHAUSTED,
            ) => Some(State::Review),
            _ => None,
        },
    }
}

/// What is said of an order that may have been charged, and of which nothing was said yet.
fn doubt(
    standing: &Standing,
    change: &Change,
    learnt: Option<String>,
    now: OffsetDateTime,
) -> PspResultUpdateEvent {
    let code = change.finished.as_ref().and_then(|finished| finished.answer.error_code.clone());
    PspResultUpdateEvent {
        payment_order_id: standing.payment_order_id,
        psp_status: PspStatus::Unknown,
        psp_reference: standing.psp_reference.clone().or(learnt),
        event_time: now.replace_microsecond(now.microsecond()).unwrap_or(now),
        error_code: Some(code.unwrap_or_else(|| code::PSP_ERROR.to_owned())),
        error_message: Some("a call may have been executed, and the PSP takes no further one".to_owned()),
    }
}

/// The next step of the ladder, or its end: never a failure, however old the order is.
fn look_again(
    standing: &Standing,
    mut change: Change,
    result: Option<PspResultUpdateEvent>,
    learnt: Option<String>,
    ladder: &[Duration],
    now: OffsetDateTime,
) -> Change {
    let next = usize::try_from(standing.rung).ok().and_then(|rung| ladder.get(rung));
    let Some(&due_in) = next else {
        change.result = Some(PspResultUpdateEvent {
            payment_order_id: standing.payment_order_id,
            psp_status: PspStatus::Unknown,
            psp_reference: learnt.clone().or_else(|| standing.psp_reference.clone()),
            event_time: now.replace_microsecond(now.microsecond()).unwrap_or(now),
            error_code: Some(code::RESOLUTION_EXHAUSTED.to_owned()),
            error_message: Some("the PSP was asked as often as the ladder says".to_owned()),
        });
        change.standing = Some(Moved {
            state: State::Review,
            psp_reference: learnt,
            due_in: Duration::ZERO,
            rung: standing.rung,
            failures: 0,
        });
        return change;
    };
    change.result = result;
    change.standing = Some(Moved {
        state: State::Resolving,
        psp_reference: learnt,
        due_in,
        rung: standing.rung.saturating_add(1),
        failures: 0,
    });
    change
}

/// Doubles with each failure in a row.
fn pause(failures: i16) -> Duration {
    let doublings = u32::try_from(failures.clamp(0, 16)).unwrap_or(0);
    AGAIN_FIRST.saturating_mul(1 << doublings).min(AGAIN_MAX)
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::{super::Source, *};
    use crate::{
        psp::{Answer, Verdict},
        store::Finished,
    };

    fn standing(known: bool, failures: i16) -> Standing {
        Standing {
            payment_order_id: Uuid::nil(),
            state: State::InFlight,
            known,
            psp_reference: None,
            claimed_by: Some(Uuid::nil()),
            rung: 0,
            failures,
            traceparent: String::new(),
            tracestate: None,
        }
    }

    fn turned_away(in_doubt: bool) -> Finding {
        let answer = Answer::new(Verdict::Later).error(code::PSP_UNREACHABLE, "refused");
        Finding {
            payment_order_id: Uuid::nil(),
            source: Source::Resolver,
            claim: Some(Uuid::nil()),
            finished: Some(Finished { attempt_id: Uuid::nil(), answer }),
            outcome: Outcome::Later { failed: true },
            in_doubt,
            event_id: Uuid::nil(),
            within: None,
        }
    }

    #[test]
    fn an_order_in_doubt_whose_calls_are_all_turned_away_says_so_and_takes_the_ladder() {
        let (ladder, now) = ([Duration::from_secs(5)], OffsetDateTime::UNIX_EPOCH);
        let settled = |standing: &Standing, in_doubt| settle(standing, turned_away(in_doubt), &ladder, now);
        let state = |change: &Change| change.standing.as_ref().map(|moved| (moved.state, moved.rung));
        // Nothing was ever executed: as often as it takes, and nothing to say.
        let silent = settled(&standing(false, i16::MAX), false);
        assert_eq!((state(&silent), silent.result), (Some((State::Queued, 0)), None));
        let early = settled(&standing(false, LATER_MAX - 1), true);
        assert_eq!((state(&early), early.result), (Some((State::Queued, 0)), None));
        let first = settled(&standing(false, LATER_MAX), true);
        assert_eq!(state(&first), Some((State::Resolving, 1)));
        let said = first.result.unwrap();
        let code = said.error_code.as_deref();
        assert_eq!((said.psp_status, code), (PspStatus::Unknown, Some(code::PSP_UNREACHABLE)));
        // It is said once, and the ladder ends.
        let next = settled(&standing(true, LATER_MAX), true);
        assert_eq!((state(&next), next.result), (Some((State::Resolving, 1)), None));
        let last = settled(&Standing { rung: 1, ..standing(true, LATER_MAX) }, true);
        assert_eq!(state(&last), Some((State::Review, 1)));
        assert_eq!(last.result.unwrap().error_code.as_deref(), Some(code::RESOLUTION_EXHAUSTED));
    }

    /// A PSP that takes another amount and then says that it failed has not settled anything.
    #[test]
    fn what_a_person_must_look_at_is_not_settled_by_what_comes_later() {
        for (status, reference) in
            [(PspStatus::Failed, None), (PspStatus::Successful, Some("pi_2".to_owned()))]
        {
            let result = PspResultUpdateEvent {
                payment_order_id: Uuid::nil(),
                psp_status: status,
                psp_reference: reference,
                event_time: OffsetDateTime::UNIX_EPOCH,
                error_code: None,
                error_message: None,
            };
            let told = || Finding {
                payment_order_id: Uuid::nil(),
                source: Source::Webhook,
                claim: None,
                finished: None,
                outcome: Outcome::Result(result.clone()),
                in_doubt: false,
                event_id: Uuid::nil(),
                within: None,
            };
            for (state, moves) in [
                (State::Queued, true),
                (State::InFlight, true),
                (State::Resolving, true),
                (State::Settled, false),
                (State::Review, false),
            ] {
                let standing = Standing { state, ..standing(true, 0) };
                let change = settle(&standing, told(), &[], OffsetDateTime::UNIX_EPOCH);
                assert_eq!(
                    change.standing.map(|moved| moved.state),
                    moves.then_some(State::Settled),
                    "{state:?}"
                );
                assert_eq!(change.result, Some(result.clone()), "it is recorded all the same");
            }
        }
    }
}
