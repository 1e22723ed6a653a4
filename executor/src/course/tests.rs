//! The table of every answer, and what must hold whatever the answer is.

use std::time::Duration;

use super::*;

const TWO_STEPS: Capabilities =
    Capabilities { two_step: true, looks_up: true, remembers_keys_for: Duration::from_hours(23) };
const ONE_STEP: Capabilities =
    Capabilities { two_step: false, looks_up: false, remembers_keys_for: Duration::from_hours(30 * 24) };

const VERDICTS: [Verdict; 14] = [
    Verdict::Succeeded,
    Verdict::Processing,
    Verdict::Unconfirmed,
    Verdict::ActionRequired,
    Verdict::Declined,
    Verdict::Cancelled,
    Verdict::CancelAccepted,
    Verdict::Refused,
    Verdict::WrongState,
    Verdict::AmountMismatch,
    Verdict::IdempotencyMismatch,
    Verdict::Unclear,
    Verdict::BeingExecuted,
    Verdict::Later,
];

fn answer(verdict: Verdict) -> Answer {
    Answer { reference: Some("pi_1".into()), ..Answer::new(verdict) }
}

fn situation(psp: Capabilities, expired: bool, in_doubt: bool) -> Situation {
    Situation { psp, expired, in_doubt }
}

fn waiting_for_shopper() -> Option<Cancelling> {
    let mut cancelling = None;
    let asked = answer(Verdict::ActionRequired).error(code::AUTHENTICATION_REQUIRED, "act");
    next(situation(ONE_STEP, false, false), Operation::Confirm, &asked, &mut cancelling);
    cancelling
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

fn letters(situation: Situation, operation: Operation, cancelling: Option<&Cancelling>) -> String {
    VERDICTS
        .iter()
        .map(|&verdict| letter(&next(situation, operation, &answer(verdict), &mut cancelling.cloned())))
        .collect()
}

#[test]
fn what_follows_from_each_answer_in_two_steps() {
    // In the order of VERDICTS.
    let rows = [
        (Operation::Create, false, "GGCGGGGFGUUUll"),
        (Operation::Create, true, "GGXGGGGFGUUUll"),
        (Operation::Confirm, false, "SPUXXGUXGUUUll"),
        (Operation::Confirm, true, "SPUXXGUXGUUUll"),
        (Operation::Get, false, "SPCXXFnnnUnnll"),
        (Operation::Get, true, "SPXXXFnnnUnnll"),
        (Operation::Cancel, false, "SPUUUFUUGUUUll"),
        (Operation::Cancel, true, "SPUUUFUUGUUUll"),
    ];
    for (operation, expired, expected) in rows {
        for in_doubt in [false, true] {
            let found = letters(situation(TWO_STEPS, expired, in_doubt), operation, None);
            assert_eq!(found, expected, "{operation:?}, expired: {expired}, in doubt: {in_doubt}");
        }
    }
}

#[test]
fn what_follows_from_each_answer_in_one_step() {
    let shopper = waiting_for_shopper();
    let rows = [
        (Operation::Confirm, false, &None, "SPUXFFUFUUUUll"),
        (Operation::Confirm, true, &None, "SPUXFFUUUUUUll"),
        (Operation::Cancel, false, &None, "SPUUUFUUUUUUll"),
        (Operation::Cancel, false, &shopper, "SPUUUFFUUUUUll"),
        (Operation::Cancel, true, &shopper, "SPUUUFFUUUUUll"),
    ];
    for (operation, in_doubt, cancelling, expected) in rows {
        for expired in [false, true] {
            let found = letters(situation(ONE_STEP, expired, in_doubt), operation, cancelling.as_ref());
            assert_eq!(found, expected, "{operation:?}, expired: {expired}, in doubt: {in_doubt}");
        }
    }
}

#[test]
fn failed_is_only_concluded_when_nothing_can_be_charged_any_more() {
    for psp in [TWO_STEPS, ONE_STEP] {
        for (operation, cancelling) in
            Operation::ALL.into_iter().flat_map(|o| [(o, None), (o, waiting_for_shopper())])
        {
            if operation == Operation::Create && !psp.two_step {
                continue;
            }
            for (verdict, in_doubt) in VERDICTS.into_iter().flat_map(|v| [(v, false), (v, true)]) {
                let concluded = next(
                    situation(psp, false, in_doubt),
                    operation,
                    &answer(verdict),
                    &mut cancelling.clone(),
                );
                if letter(&concluded) != 'F' {
                    continue;
                }
                let closed = verdict == Verdict::Cancelled;
                let never_created =
                    psp.two_step && operation == Operation::Create && verdict == Verdict::Refused;
                let one_step = !psp.two_step && operation == Operation::Confirm;
                let final_word = one_step && verdict == Verdict::Declined;
                let turned_away = one_step && verdict == Verdict::Refused && !in_doubt;
                let nobody_can_act = operation == Operation::Cancel
                    && verdict == Verdict::CancelAccepted
                    && cancelling.as_ref().is_some_and(|cancelling| cancelling.waits_for_shopper);
                assert!(
                    closed || never_created || final_word || turned_away || nobody_can_act,
                    "{psp:?} {operation:?} {verdict:?}"
                );
            }
        }
    }
}

#[test]
fn a_psp_is_asked_for_nothing_that_it_cannot_do() {
    let now = OffsetDateTime::now_utc();
    for operation in Operation::ALL {
        for cancelling in [None, waiting_for_shopper()] {
            for (expired, in_doubt) in [(false, false), (false, true), (true, false), (true, true)] {
                let found = letters(situation(ONE_STEP, expired, in_doubt), operation, cancelling.as_ref());
                assert!(!found.contains(['G', 'c']), "{operation:?} {found}");
            }
        }
    }
    for first_attempt_at in [None, Some(now)] {
        let known = Known { has_reference: true, first_attempt_at, in_doubt: true, expires_at: now };
        assert!(!['G', 'c'].contains(&letter(&first(known, ONE_STEP, now))));
    }
}

#[test]
fn the_cause_of_a_failure_is_kept_over_the_cancellation() {
    let plain = situation(TWO_STEPS, false, false);
    let mut cancelling = None;
    let declined = answer(Verdict::Declined).error("card_declined/lost_card", "Your card was declined.");
    assert_eq!(next(plain, Operation::Confirm, &declined, &mut cancelling), Next::Call(Operation::Cancel));
    let code_of = |next: Next| match next {
        Next::Conclude(PspStatus::Failed, cause) => cause.code,
        other => panic!("not failed: {other:?}"),
    };
    let cancelled = next(plain, Operation::Cancel, &answer(Verdict::Cancelled), &mut cancelling);
    assert_eq!(code_of(cancelled).as_deref(), Some("card_declined/lost_card"));
    let found = next(plain, Operation::Get, &answer(Verdict::Cancelled), &mut None);
    assert_eq!(code_of(found).as_deref(), Some(code::CANCELLED));
    let taken = next(
        situation(ONE_STEP, false, false),
        Operation::Cancel,
        &answer(Verdict::CancelAccepted),
        &mut waiting_for_shopper(),
    );
    assert_eq!(code_of(taken).as_deref(), Some(code::AUTHENTICATION_REQUIRED));
}

#[test]
fn what_comes_first() {
    let now = OffsetDateTime::now_utc();
    let (fresh, old) = (now + Duration::from_mins(1), now - Duration::from_mins(1));
    let ago = |hours: u64| Some(now - Duration::from_hours(hours));
    let almost = |hours: u64| Some(now - Duration::from_hours(hours) + Duration::from_secs(1));
    // With a reference, the first attempt, in doubt, expires: in two steps, in one.
    let rows = [
        (false, None, false, fresh, 'c', 'C'),
        (false, None, false, old, 'U', 'U'),
        (false, None, false, now, 'U', 'U'),
        (false, ago(1), false, fresh, 'c', 'C'),
        // Turned away each time, and too late now: nothing that takes money at once is sent any more.
        (false, ago(1), false, old, 'c', 'U'),
        (false, ago(1), true, old, 'c', 'C'),
        (false, almost(23), true, old, 'c', 'C'),
        (false, ago(23), true, old, 'U', 'C'),
        (false, almost(30 * 24), true, old, 'U', 'C'),
        (false, ago(30 * 24), true, old, 'U', 'U'),
        (true, Some(now), true, fresh, 'G', 'C'),
        (true, ago(90), true, old, 'G', 'C'),
    ];
    for (has_reference, first_attempt_at, in_doubt, expires_at, two_steps, one_step) in rows {
        let known = Known { has_reference, first_attempt_at, in_doubt, expires_at };
        assert_eq!(letter(&first(known, TWO_STEPS, now)), two_steps, "{known:?}");
        assert_eq!(letter(&first(known, ONE_STEP, now)), one_step, "{known:?}");
    }
}

#[test]
fn no_call_that_could_be_the_first_to_charge_begins_too_late() {
    let now = OffsetDateTime::now_utc();
    let (fresh, old) = (now + Duration::from_micros(1), now);
    // When it expires, the first attempt, in doubt: which of create, confirm, get and cancel may begin, in two steps and in one.
    let rows = [
        (fresh, None, false, "cCGX", "cCGX"),
        (old, None, false, "GX", "GX"),
        (old, Some(now), false, "cGX", "cGX"),
        (old, Some(now), true, "cGX", "cCGX"),
    ];
    for (expires_at, first_attempt_at, in_doubt, two_steps, one_step) in rows {
        let known = Known { has_reference: true, first_attempt_at, in_doubt, expires_at };
        for (psp, expected) in [(TWO_STEPS, two_steps), (ONE_STEP, one_step)] {
            let may = Operation::ALL.into_iter().filter(|&operation| may_begin(operation, known, psp, now));
            let found: String = may.map(|operation| letter(&Next::Call(operation))).collect();
            assert_eq!(found, expected, "{known:?} {psp:?}");
        }
    }
}

#[test]
fn what_cannot_be_sent_fails_only_if_nothing_was_sent_before() {
    let known = |first_attempt_at| Known {
        has_reference: false,
        first_attempt_at,
        in_doubt: false,
        expires_at: OffsetDateTime::UNIX_EPOCH,
    };
    let Next::Conclude(PspStatus::Failed, reason) = unsendable(known(None), "why") else { panic!() };
    assert_eq!((reason.code.as_deref(), reason.message.as_deref()), (Some(code::UNSUPPORTED), Some("why")));
    assert_eq!(unsendable(known(Some(OffsetDateTime::UNIX_EPOCH)), "why"), Next::Nothing);
}
