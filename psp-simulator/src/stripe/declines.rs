//! Declines as Stripe words them.

use crate::scenario::Decline;

/// The codes and the text of a decline.
#[derive(Debug)]
pub(crate) struct Words {
    pub(crate) code: &'static str,
    pub(crate) decline_code: Option<&'static str>,
    pub(crate) message: &'static str,
    pub(crate) param: Option<&'static str>,
    pub(crate) advice_code: Option<&'static str>,
}

const LATER: Option<&str> = Some("try_again_later");
const NEVER: Option<&str> = Some("do_not_try_again");

/// How Stripe words it.
pub(crate) fn words(decline: Decline) -> Words {
    match decline {
        Decline::Generic => declined("generic_decline", LATER),
        Decline::DoNotHonor => declined("do_not_honor", LATER),
        Decline::InsufficientFunds => {
            Words { message: "Your card has insufficient funds.", ..declined("insufficient_funds", LATER) }
        }
        Decline::VelocityExceeded => Words {
            message: "Your card was declined for making repeated attempts too frequently or exceeding its amount limit.",
            ..declined("card_velocity_exceeded", LATER)
        },
        Decline::TryAgainLater => declined("try_again_later", LATER),
        Decline::IssuerUnavailable => declined("issuer_not_available", LATER),
        Decline::LostCard => declined("lost_card", NEVER),
        Decline::StolenCard => declined("stolen_card", NEVER),
        Decline::Fraud => declined("fraudulent", NEVER),
        Decline::NotPermitted => declined("transaction_not_allowed", NEVER),
        Decline::Revoked => declined("revocation_of_authorization", NEVER),
        Decline::DoNotTryAgain => declined("do_not_try_again", NEVER),
        Decline::Unlisted => declined("card_in_another_castle", None),
        Decline::ExpiredCard => named("expired_card", "Your card has expired.", Some("exp_month")),
        Decline::IncorrectCvc => {
            named("incorrect_cvc", "Your card's security code is incorrect.", Some("cvc"))
        }
        Decline::ProcessingError => named(
            "processing_error",
            "An error occurred while processing your card. Try again in a little bit.",
            None,
        ),
        Decline::AuthenticationRequired => authentication("authentication_required"),
        Decline::AuthenticationNotHandled => authentication("authentication_not_handled"),
    }
}

fn declined(decline_code: &'static str, advice_code: Option<&'static str>) -> Words {
    Words {
        code: "card_declined",
        decline_code: Some(decline_code),
        message: "Your card was declined.",
        param: None,
        advice_code,
    }
}

/// These are codes of their own and come without a `decline_code`.
fn named(code: &'static str, message: &'static str, param: Option<&'static str>) -> Words {
    Words { code, decline_code: None, message, param, advice_code: None }
}

fn authentication(decline_code: &'static str) -> Words {
    Words {
        code: "authentication_required",
        decline_code: Some(decline_code),
        message: "Your card was declined. This transaction requires authentication.",
        param: None,
        advice_code: None,
    }
}
