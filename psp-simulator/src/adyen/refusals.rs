//! Declines as Adyen words them.

use crate::scenario::Decline;

/// What a refused payment's answer says.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Words {
    pub(crate) result_code: &'static str,
    pub(crate) reason: &'static str,
    pub(crate) reason_code: &'static str,
    /// The acquirer's own words.
    pub(crate) raw: &'static str,
}

/// How Adyen words it.
pub(crate) fn words(decline: Decline) -> Words {
    let refused = |reason_code, reason, raw| Words { result_code: "Refused", reason, reason_code, raw };
    match decline {
        Decline::Generic => refused("2", "Refused", "05 : Do not honor"),
        Decline::DoNotHonor => refused("27", "Declined Non Generic", "05 : Do not honor"),
        Decline::InsufficientFunds => refused("12", "Not enough balance", "51 : Insufficient funds"),
        Decline::VelocityExceeded => {
            refused("29", "Withdrawal count exceeded", "65 : Exceeds withdrawal frequency limit")
        }
        Decline::TryAgainLater => refused("3", "Referral", "01 : Refer to card issuer"),
        Decline::IssuerUnavailable => {
            refused("9", "Issuer Unavailable", "91 : Issuer or switch is inoperative")
        }
        Decline::ProcessingError => Words {
            result_code: "Error",
            reason: "Acquirer Error",
            reason_code: "4",
            raw: "96 : System malfunction",
        },
        Decline::LostCard => refused("5", "Blocked Card", "41 : Lost card"),
        Decline::StolenCard => refused("25", "Restricted Card", "43 : Stolen card"),
        Decline::ExpiredCard => refused("6", "Expired Card", "54 : Expired card"),
        Decline::IncorrectCvc => refused("24", "CVC Declined", "N7 : CVV2 failure"),
        Decline::Fraud => refused("20", "FRAUD", "59 : Suspected fraud"),
        Decline::NotPermitted => {
            refused("23", "Transaction Not Permitted", "57 : Transaction not permitted to cardholder")
        }
        Decline::Revoked => refused("26", "Revocation Of Auth", "R1 : Revocation of authorization order"),
        Decline::DoNotTryAgain => {
            refused("46", "Transaction blocked by Adyen to prevent excessive retry fees", "79 : Lifecycle")
        }
        Decline::AuthenticationRequired | Decline::AuthenticationNotHandled => {
            refused("38", "Authentication required", "1A : Additional customer authentication required")
        }
        Decline::Unlisted => refused("199", "Card In Another Castle", "ZZ : Unlisted"),
    }
}
