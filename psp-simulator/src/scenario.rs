//! What happens to a payment, by the payment method's token.
//!
//! [`METHODS`] is the table of tokens. Every scenario is a verdict of the issuer and a fault on the way; both are
//! exhaustive matches, so that a new scenario has to say both.

/// A payment method that exists here.
#[derive(Debug)]
pub(crate) struct TestMethod {
    pub(crate) token: &'static str,
    pub(crate) scenario: Scenario,
    pub(crate) last4: &'static str,
}

/// What a payment method stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scenario {
    Succeeds,
    Declined(Decline),
    AuthenticationRequired,
    Slow,
    TimeoutAfterCharge,
    ErrorAfterCharge,
    TimeoutBeforeCharge,
    Processing,
}

/// What the issuer says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    Approved,
    Declined(Decline),
    ActionRequired,
}

/// What goes wrong besides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    None,
    /// The issuer takes its time.
    Slow,
    /// The answer is "processing", and the issuer's word comes later.
    Deferred,
    /// The first request is lost before it executes.
    RequestLost,
    /// The first answer is lost after its request has executed.
    AnswerLost,
    /// The request executes, then the PSP answers 500.
    ServerError,
}

/// Why an issuer declines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Decline {
    Generic,
    InsufficientFunds,
    LostCard,
    StolenCard,
    ExpiredCard,
    IncorrectCvc,
    ProcessingError,
    /// Off-session, and the issuer wants to see the shopper.
    AuthenticationRequired,
    /// The caller asked for an error instead of an action (`error_on_requires_action`).
    AuthenticationNotHandled,
}

/// A decline as Stripe words it.
#[derive(Debug)]
pub(crate) struct Words {
    pub(crate) code: &'static str,
    pub(crate) decline_code: Option<&'static str>,
    pub(crate) message: &'static str,
    pub(crate) param: Option<&'static str>,
    pub(crate) advice_code: Option<&'static str>,
}

const fn method(token: &'static str, scenario: Scenario, last4: &'static str) -> TestMethod {
    TestMethod { token, scenario, last4 }
}

/// Stripe's own test tokens, and those of the simulator (`pm_sim_…`) for what Stripe has no token for.
pub(crate) static METHODS: [TestMethod; 19] = [
    method("pm_card_visa", Scenario::Succeeds, "4242"),
    method("pm_card_mastercard", Scenario::Succeeds, "4444"),
    method("pm_card_chargeDeclined", Scenario::Declined(Decline::Generic), "0002"),
    method("pm_card_visa_chargeDeclined", Scenario::Declined(Decline::Generic), "0002"),
    method("pm_card_chargeDeclinedInsufficientFunds", Scenario::Declined(Decline::InsufficientFunds), "9995"),
    method(
        "pm_card_visa_chargeDeclinedInsufficientFunds",
        Scenario::Declined(Decline::InsufficientFunds),
        "9995",
    ),
    method("pm_card_chargeDeclinedLostCard", Scenario::Declined(Decline::LostCard), "9987"),
    method("pm_card_visa_chargeDeclinedLostCard", Scenario::Declined(Decline::LostCard), "9987"),
    method("pm_card_chargeDeclinedStolenCard", Scenario::Declined(Decline::StolenCard), "9979"),
    method("pm_card_visa_chargeDeclinedStolenCard", Scenario::Declined(Decline::StolenCard), "9979"),
    method("pm_card_chargeDeclinedExpiredCard", Scenario::Declined(Decline::ExpiredCard), "0069"),
    method("pm_card_chargeDeclinedIncorrectCvc", Scenario::Declined(Decline::IncorrectCvc), "0127"),
    method("pm_card_chargeDeclinedProcessingError", Scenario::Declined(Decline::ProcessingError), "0119"),
    method("pm_card_authenticationRequired", Scenario::AuthenticationRequired, "3184"),
    method("pm_sim_slow", Scenario::Slow, "4242"),
    method("pm_sim_timeout_after_charge", Scenario::TimeoutAfterCharge, "4242"),
    method("pm_sim_error_after_charge", Scenario::ErrorAfterCharge, "4242"),
    method("pm_sim_timeout_before_charge", Scenario::TimeoutBeforeCharge, "4242"),
    method("pm_sim_processing", Scenario::Processing, "4242"),
];

/// The payment method of this token, if there is one.
pub(crate) fn by_token(token: &str) -> Option<&'static TestMethod> {
    METHODS.iter().find(|method| method.token == token)
}

impl Scenario {
    /// What the issuer says, given what the caller can do about a request to authenticate.
    pub(crate) fn verdict(self, off_session: bool, error_on_requires_action: bool) -> Verdict {
        match self {
            Self::Succeeds
            | Self::Slow
            | Self::TimeoutAfterCharge
            | Self::ErrorAfterCharge
            | Self::TimeoutBeforeCharge
            | Self::Processing => Verdict::Approved,
            Self::Declined(decline) => Verdict::Declined(decline),
            Self::AuthenticationRequired if off_session => Verdict::Declined(Decline::AuthenticationRequired),
            Self::AuthenticationRequired if error_on_requires_action => {
                Verdict::Declined(Decline::AuthenticationNotHandled)
            }
            Self::AuthenticationRequired => Verdict::ActionRequired,
        }
    }

    /// What goes wrong besides.
    pub(crate) fn fault(self) -> Fault {
        match self {
            Self::Succeeds | Self::Declined(_) | Self::AuthenticationRequired => Fault::None,
            Self::Slow => Fault::Slow,
            Self::TimeoutAfterCharge => Fault::AnswerLost,
            Self::ErrorAfterCharge => Fault::ServerError,
            Self::TimeoutBeforeCharge => Fault::RequestLost,
            Self::Processing => Fault::Deferred,
        }
    }
}

impl Decline {
    /// The codes and the text of the decline.
    pub(crate) fn words(self) -> Words {
        let declined = |decline_code, message, advice_code| Words {
            code: "card_declined",
            decline_code: Some(decline_code),
            message,
            param: None,
            advice_code,
        };
        // These three are codes of their own and come without a decline_code.
        let named =
            |code, message, param| Words { code, decline_code: None, message, param, advice_code: None };
        let authentication = |decline_code| Words {
            code: "authentication_required",
            decline_code: Some(decline_code),
            message: "Your card was declined. This transaction requires authentication.",
            param: None,
            advice_code: None,
        };
        match self {
            Self::Generic => declined("generic_decline", "Your card was declined.", Some("try_again_later")),
            Self::InsufficientFunds => {
                declined("insufficient_funds", "Your card has insufficient funds.", Some("try_again_later"))
            }
            Self::LostCard => declined("lost_card", "Your card was declined.", Some("do_not_try_again")),
            Self::StolenCard => declined("stolen_card", "Your card was declined.", Some("do_not_try_again")),
            Self::ExpiredCard => named("expired_card", "Your card has expired.", Some("exp_month")),
            Self::IncorrectCvc => {
                named("incorrect_cvc", "Your card's security code is incorrect.", Some("cvc"))
            }
            Self::ProcessingError => named(
                "processing_error",
                "An error occurred while processing your card. Try again in a little bit.",
                None,
            ),
            Self::AuthenticationRequired => authentication("authentication_required"),
            Self::AuthenticationNotHandled => authentication("authentication_not_handled"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_unique() {
        for method in &METHODS {
            assert_eq!(METHODS.iter().filter(|other| other.token == method.token).count(), 1, "{method:?}");
        }
    }

    #[test]
    fn a_card_that_must_be_authenticated_never_pays_by_itself() {
        for (off_session, error) in [(false, false), (false, true), (true, false), (true, true)] {
            assert_ne!(Scenario::AuthenticationRequired.verdict(off_session, error), Verdict::Approved);
        }
    }
}
