//! What happens to a payment, by the payment method's token: `pm_sim_<name>` at Stripe, `adyen_sim_<name>` at Adyen.
//!
//! [`SCENARIOS`] is the table. A scenario is a [`Course`]: what stands in the way of the first requests, how long the
//! issuer takes, what he says, what the answer claims of it, and how the answer travels. Both PSPs walk the same
//! courses; how each of them words what came of it is in their folders.

use serde::Serialize;

/// A way for a payment to go.
#[derive(Debug, Serialize)]
pub(crate) struct Scenario {
    pub(crate) name: &'static str,
    pub(crate) what_happens: &'static str,
    #[serde(skip)]
    pub(crate) only: Option<Psp>,
    #[serde(skip)]
    pub(crate) course: Course,
}

/// Who is being simulated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Psp {
    Stripe,
    Adyen,
}

/// Everything that a scenario decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Course {
    /// Which request the obstacle and the delivery are about.
    pub(crate) step: Step,
    pub(crate) obstacle: Obstacle,
    pub(crate) timing: Timing,
    pub(crate) verdict: Verdict,
    pub(crate) statement: Statement,
    pub(crate) delivery: Delivery,
}

/// The requests of a payment, where there are two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// The one that takes the money.
    Payment,
    /// The one before it, which takes none.
    Creation,
}

/// What the first requests of a payment meet before anything executes; the next one passes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Obstacle {
    None,
    /// One request is never answered.
    Lost,
    /// The connection of one request is reset.
    Reset,
    /// `--refusals` requests are answered 429.
    RateLimited,
    /// `--refusals` requests are answered 503, with the advice to try again or not to.
    Unavailable {
        try_again: bool,
    },
}

/// When the issuer answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Timing {
    AtOnce,
    /// The PSP's answer waits for him (`--slow`).
    Slow,
    /// The PSP answers at once that it is waiting, and hears from him later (`--slow`).
    Deferred(Waiting),
}

/// How a PSP says that it has no outcome yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Waiting {
    /// Stripe's `processing`, Adyen's `Pending`.
    Processing,
    /// Adyen's `Received`.
    Received,
    /// In a word that its documentation does not know.
    Unheard,
    /// Adyen's `RedirectShopper` or `ChallengeShopper`; the shopper acts, whoever calls the payment off meanwhile.
    Shopper(Action),
}

/// What the issuer says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    Approved,
    /// Half of the amount.
    PartlyApproved,
    Declined(Decline),
    /// The PSP calls the payment off.
    CalledOff,
    /// He wants to see the shopper: a decline off-session, an action otherwise.
    Authenticate,
    /// The PSP asks for an action of the shopper, whatever the request said.
    Action(Action),
    /// He is never asked.
    Unasked,
}

/// What the shopper is asked to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    Redirect,
    Challenge,
}

/// What the PSP's answers and webhooks say of a charge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Statement {
    True,
    /// One minor unit too much.
    OtherAmount,
    OtherCurrency,
}

/// How the first answer travels after its request has executed. A replay always arrives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Delivery {
    Sent,
    /// Never answered.
    Withheld,
    /// The connection is reset instead.
    Reset,
    /// The connection ends in the middle of the body.
    Truncated,
    /// A proxy's page arrives instead, with status 200.
    Garbled,
    /// 500 instead of the outcome, and again to every replay.
    ErrorKept,
    /// 500 once; a replay tells the outcome.
    ErrorOnce,
}

/// Why an issuer declines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Decline {
    Generic,
    DoNotHonor,
    InsufficientFunds,
    VelocityExceeded,
    TryAgainLater,
    IssuerUnavailable,
    ProcessingError,
    LostCard,
    StolenCard,
    ExpiredCard,
    IncorrectCvc,
    Fraud,
    NotPermitted,
    Revoked,
    DoNotTryAgain,
    /// Off-session, and the issuer wants to see the shopper.
    AuthenticationRequired,
    /// The caller asked for an error instead of an action (Stripe's `error_on_requires_action`).
    AuthenticationNotHandled,
    /// For a reason that no list has.
    Unlisted,
}

/// Nothing goes wrong.
pub(crate) const SUCCESS: Course = Course {
    step: Step::Payment,
    obstacle: Obstacle::None,
    timing: Timing::AtOnce,
    verdict: Verdict::Approved,
    statement: Statement::True,
    delivery: Delivery::Sent,
};

/// The issuer declines.
pub(crate) const fn declined(decline: Decline) -> Course {
    Course { verdict: Verdict::Declined(decline), ..SUCCESS }
}

const fn of(verdict: Verdict) -> Course {
    Course { verdict, ..SUCCESS }
}

const fn after(obstacle: Obstacle) -> Course {
    Course { obstacle, ..SUCCESS }
}

const fn told(delivery: Delivery) -> Course {
    Course { delivery, ..SUCCESS }
}

const fn stated(statement: Statement) -> Course {
    Course { statement, ..SUCCESS }
}

const fn waiting(waiting: Waiting, verdict: Verdict) -> Course {
    Course { timing: Timing::Deferred(waiting), verdict, ..SUCCESS }
}

const fn created(course: Course) -> Course {
    Course { step: Step::Creation, ..course }
}

const fn both(name: &'static str, course: Course, what_happens: &'static str) -> Scenario {
    Scenario { name, what_happens, only: None, course }
}

const fn adyen(name: &'static str, course: Course, what_happens: &'static str) -> Scenario {
    Scenario { name, what_happens, only: Some(Psp::Adyen), course }
}

const fn stripe(name: &'static str, course: Course, what_happens: &'static str) -> Scenario {
    Scenario { name, what_happens, only: Some(Psp::Stripe), course }
}

/// All of them.
pub(crate) static SCENARIOS: [Scenario; 52] = [
    both("success", SUCCESS, "succeeds"),
    both("decline_generic", declined(Decline::Generic), "soft decline without a reason"),
    both("decline_do_not_honor", declined(Decline::DoNotHonor), "soft decline: do not honor"),
    both(
        "decline_insufficient_funds",
        declined(Decline::InsufficientFunds),
        "soft decline: not enough balance",
    ),
    both("decline_velocity_exceeded", declined(Decline::VelocityExceeded), "soft decline: too often"),
    both("decline_try_again_later", declined(Decline::TryAgainLater), "soft decline: try again later"),
    both(
        "decline_issuer_unavailable",
        declined(Decline::IssuerUnavailable),
        "the issuer could not be reached",
    ),
    both(
        "decline_processing_error",
        declined(Decline::ProcessingError),
        "the acquirer failed; no money moved",
    ),
    both("decline_lost_card", declined(Decline::LostCard), "hard decline: lost card"),
    both("decline_stolen_card", declined(Decline::StolenCard), "hard decline: stolen card"),
    both("decline_expired_card", declined(Decline::ExpiredCard), "hard decline: expired card"),
    both("decline_incorrect_cvc", declined(Decline::IncorrectCvc), "hard decline: wrong security code"),
    both("decline_fraud", declined(Decline::Fraud), "hard decline: suspected fraud"),
    both("decline_not_permitted", declined(Decline::NotPermitted), "hard decline: transaction not permitted"),
    both("decline_revoked", declined(Decline::Revoked), "hard decline: the authorization was revoked"),
    both("decline_do_not_try_again", declined(Decline::DoNotTryAgain), "hard decline: never try this again"),
    both("decline_unlisted", declined(Decline::Unlisted), "declined with a code that is in no list"),
    both(
        "authentication_required",
        of(Verdict::Authenticate),
        "off-session (or ContAuth): declined for want of authentication; otherwise an action of the shopper",
    ),
    both(
        "action_redirect",
        of(Verdict::Action(Action::Redirect)),
        "asks for a redirect of the shopper, also off-session; nothing is charged",
    ),
    both(
        "action_challenge",
        of(Verdict::Action(Action::Challenge)),
        "asks for a challenge of the shopper, also off-session; nothing is charged",
    ),
    both(
        "processing",
        waiting(Waiting::Processing, Verdict::Approved),
        "no outcome yet, then success after --slow, unless cancelled",
    ),
    both(
        "processing_then_failure",
        waiting(Waiting::Processing, Verdict::Declined(Decline::InsufficientFunds)),
        "no outcome yet, then declined after --slow",
    ),
    both(
        "unknown_status",
        waiting(Waiting::Unheard, Verdict::Approved),
        "answers with a status that is in no documentation, then success after --slow",
    ),
    both(
        "slow",
        Course { timing: Timing::Slow, ..SUCCESS },
        "answers after --slow, and succeeds, also when the client has hung up",
    ),
    both(
        "slow_decline",
        Course { timing: Timing::Slow, ..declined(Decline::Generic) },
        "answers after --slow, and declines, also when the client has hung up",
    ),
    both(
        "timeout_before_charge",
        after(Obstacle::Lost),
        "the first request is lost before it executes and is never answered; a repetition succeeds",
    ),
    both(
        "timeout_after_charge",
        told(Delivery::Withheld),
        "charges, then never answers; a replay tells the truth",
    ),
    both(
        "reset_before_charge",
        after(Obstacle::Reset),
        "the connection of the first request is reset before it executes; a repetition succeeds",
    ),
    both(
        "reset_after_charge",
        told(Delivery::Reset),
        "charges, then resets the connection; a replay tells the truth",
    ),
    both(
        "truncated_after_charge",
        told(Delivery::Truncated),
        "charges, then breaks off in the middle of the answer; a replay tells the truth",
    ),
    both(
        "garbled_after_charge",
        told(Delivery::Garbled),
        "charges, then answers 200 with a web page; a replay tells the truth",
    ),
    both(
        "error_before_charge",
        Course { verdict: Verdict::Unasked, ..told(Delivery::ErrorKept) },
        "answers 500 without charging, and again to every replay of the key",
    ),
    both(
        "error_after_charge",
        told(Delivery::ErrorKept),
        "charges, then answers 500, and again to every replay of the key",
    ),
    both(
        "error_once_after_charge",
        told(Delivery::ErrorOnce),
        "charges, then answers 500 with the advice to try again; a replay tells the truth",
    ),
    both(
        "amount_mismatch",
        stated(Statement::OtherAmount),
        "charges what was asked, and says that it was one minor unit more",
    ),
    both(
        "currency_mismatch",
        stated(Statement::OtherCurrency),
        "charges what was asked, and says that it was in another currency",
    ),
    both(
        "partially_authorised",
        of(Verdict::PartlyApproved),
        "charges half of the amount, and says so (Adyen: resultCode PartiallyAuthorised)",
    ),
    both("cancelled", of(Verdict::CalledOff), "the PSP cancels the payment by itself; nothing is charged"),
    both(
        "rate_limited",
        after(Obstacle::RateLimited),
        "429 for the first --refusals requests, then succeeds",
    ),
    both(
        "unavailable",
        after(Obstacle::Unavailable { try_again: true }),
        "503 with the advice to try again for the first --refusals requests, then succeeds",
    ),
    both(
        "unavailable_do_not_retry",
        after(Obstacle::Unavailable { try_again: false }),
        "503 with the advice not to try again for the first --refusals requests, then succeeds",
    ),
    both(
        "timeout_while_processing",
        Course { timing: Timing::Deferred(Waiting::Processing), ..told(Delivery::Withheld) },
        "accepts the payment, never answers, and succeeds after --slow",
    ),
    stripe(
        "create_timeout_before",
        created(after(Obstacle::Lost)),
        "the first creation is lost before it executes and is never answered; a repetition succeeds",
    ),
    stripe(
        "create_timeout_after",
        created(told(Delivery::Withheld)),
        "creates, then never answers; a replay tells the truth",
    ),
    stripe(
        "create_reset_before",
        created(after(Obstacle::Reset)),
        "the connection of the first creation is reset before it executes; a repetition succeeds",
    ),
    stripe(
        "create_reset_after",
        created(told(Delivery::Reset)),
        "creates, then resets the connection; a replay tells the truth",
    ),
    stripe(
        "create_error_before",
        created(Course { verdict: Verdict::Unasked, ..told(Delivery::ErrorKept) }),
        "answers 500 without creating anything, and again to every replay of the key",
    ),
    stripe(
        "create_error_after",
        created(told(Delivery::ErrorKept)),
        "creates, then answers 500, and again to every replay of the key",
    ),
    stripe(
        "create_error_once_after",
        created(told(Delivery::ErrorOnce)),
        "creates, then answers 500 with the advice to try again; a replay tells the truth",
    ),
    adyen(
        "received",
        waiting(Waiting::Received, Verdict::Approved),
        "resultCode Received, then success after --slow, unless cancelled",
    ),
    adyen(
        "received_then_failure",
        waiting(Waiting::Received, Verdict::Declined(Decline::Generic)),
        "resultCode Received, then refused after --slow",
    ),
    adyen(
        "action_then_authorised",
        waiting(Waiting::Shopper(Action::Redirect), Verdict::Approved),
        "asks for a redirect of the shopper, then success after --slow, also if a cancel was taken meanwhile",
    ),
];

/// The course of `prefix` + name at this PSP, if there is one.
pub(crate) fn by_token(psp: Psp, prefix: &str, token: &str) -> Option<Course> {
    let name = token.strip_prefix(prefix)?;
    let scenario = SCENARIOS.iter().find(|scenario| scenario.name == name)?;
    scenario.at(psp).then_some(scenario.course)
}

impl Scenario {
    pub(crate) fn at(&self, psp: Psp) -> bool {
        self.only.is_none_or(|only| only == psp)
    }
}

impl Psp {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Stripe => "stripe",
            Self::Adyen => "adyen",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_scenarios_differ() {
        for scenario in &SCENARIOS {
            let same = |other: &&Scenario| other.name == scenario.name || other.course == scenario.course;
            assert_eq!(SCENARIOS.iter().filter(same).count(), 1, "{}", scenario.name);
        }
    }

    #[test]
    fn a_scenario_of_one_psp_is_unknown_at_the_other() {
        assert!(by_token(Psp::Adyen, "adyen_sim_", "adyen_sim_received").is_some());
        assert!(by_token(Psp::Stripe, "pm_sim_", "pm_sim_received").is_none());
        assert!(by_token(Psp::Adyen, "adyen_sim_", "adyen_sim_create_reset_after").is_none());
        assert!(by_token(Psp::Adyen, "adyen_sim_", "pm_sim_success").is_none());
    }
}
