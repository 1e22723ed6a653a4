//! Payment methods by their tokens: Stripe's own test tokens, and `pm_sim_…` for the scenarios.

use crate::scenario::{Course, Decline, Psp, SUCCESS, Verdict, by_token, declined};

/// A payment method that exists here.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TestMethod {
    pub(crate) course: Course,
    pub(crate) last4: &'static str,
}

/// The payment method of this token, if there is one.
pub(crate) fn find(token: &str) -> Option<TestMethod> {
    let own = OWN.iter().find(|(own, ..)| *own == token);
    own.map(|(_, course, last4)| TestMethod { course: *course, last4 }).or_else(|| {
        let course = by_token(Psp::Stripe, PREFIX, token)?;
        Some(TestMethod { course, last4: "4242" })
    })
}

/// What the tokens of the scenarios begin with.
pub(crate) const PREFIX: &str = "pm_sim_";

const AUTHENTICATE: Course = Course { verdict: Verdict::Authenticate, ..SUCCESS };

/// Stripe's test tokens.
static OWN: [(&str, Course, &str); 14] = [
    ("pm_card_visa", SUCCESS, "4242"),
    ("pm_card_mastercard", SUCCESS, "4444"),
    ("pm_card_chargeDeclined", declined(Decline::Generic), "0002"),
    ("pm_card_visa_chargeDeclined", declined(Decline::Generic), "0002"),
    ("pm_card_chargeDeclinedInsufficientFunds", declined(Decline::InsufficientFunds), "9995"),
    ("pm_card_visa_chargeDeclinedInsufficientFunds", declined(Decline::InsufficientFunds), "9995"),
    ("pm_card_chargeDeclinedLostCard", declined(Decline::LostCard), "9987"),
    ("pm_card_visa_chargeDeclinedLostCard", declined(Decline::LostCard), "9987"),
    ("pm_card_chargeDeclinedStolenCard", declined(Decline::StolenCard), "9979"),
    ("pm_card_visa_chargeDeclinedStolenCard", declined(Decline::StolenCard), "9979"),
    ("pm_card_chargeDeclinedExpiredCard", declined(Decline::ExpiredCard), "0069"),
    ("pm_card_chargeDeclinedIncorrectCvc", declined(Decline::IncorrectCvc), "0127"),
    ("pm_card_chargeDeclinedProcessingError", declined(Decline::ProcessingError), "0119"),
    ("pm_card_authenticationRequired", AUTHENTICATE, "3184"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_unique() {
        for (token, ..) in &OWN {
            assert_eq!(OWN.iter().filter(|(other, ..)| other == token).count(), 1, "{token}");
        }
    }
}
