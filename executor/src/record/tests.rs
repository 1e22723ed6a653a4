//! What a finding changes, by how its order stands.

use super::*;
use crate::psp::{Answer, Verdict};

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
