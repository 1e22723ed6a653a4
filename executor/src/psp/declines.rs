//! Why payments are declined: each PSP's codes, and what kind of "no" each of them is.
//!
//! The kind decides one thing only: a decline that means "ask the shopper" is published as AUTHENTICATION_REQUIRED, whatever a PSP calls
//! it. Otherwise the PSP's own code is published, and the kind is for operators (`psp_declines_total`): technical declines that rise are
//! a PSP's trouble, hard ones that rise are fraud or a stale vault. A code that is in no table is a decline of kind OTHER: that the PSP
//! declined is certain, also where we do not know why.
//!
//! Sources: docs.stripe.com/declines/codes, docs.adyen.com/development-resources/refusal-reasons.

/// What kind of "no".
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Never with this card.
    Hard,
    /// Not now.
    Soft,
    /// Not without the shopper.
    Authentication,
    /// The issuer or the acquirer was not able to say.
    Technical,
    /// Somebody cancelled.
    Cancelled,
    /// One that this version does not know.
    Other,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Hard, Self::Soft, Self::Authentication, Self::Technical, Self::Cancelled, Self::Other];

    /// As it stands in metrics.
    pub fn label(self) -> &'static str {
        match self {
            Self::Hard => "hard",
            Self::Soft => "soft",
            Self::Authentication => "authentication",
            Self::Technical => "technical",
            Self::Cancelled => "cancelled",
            Self::Other => "other",
        }
    }
}

/// Stripe's `decline_code`, or its `code` where there is none.
pub(super) const STRIPE: [(Kind, &[&str]); 4] = [
    (
        Kind::Hard,
        &[
            "currency_not_supported",
            "card_not_supported",
            "do_not_try_again",
            "expired_card",
            "fraudulent",
            "incorrect_address",
            "incorrect_cvc",
            "incorrect_number",
            "incorrect_zip",
            "invalid_account",
            "invalid_amount",
            "invalid_cvc",
            "invalid_expiry_month",
            "invalid_expiry_year",
            "invalid_number",
            "lost_card",
            "merchant_blacklist",
            "new_account_information_available",
            "not_permitted",
            "pickup_card",
            "pin_try_exceeded",
            "restricted_card",
            "revocation_of_all_authorizations",
            "revocation_of_authorization",
            "security_violation",
            "service_not_allowed",
            "stolen_card",
            "stop_payment_order",
            "testmode_decline",
            "transaction_not_allowed",
        ],
    ),
    (
        Kind::Soft,
        &[
            "approve_with_id",
            "call_issuer",
            "card_velocity_exceeded",
            "do_not_honor",
            "generic_decline",
            "insufficient_funds",
            "no_action_taken",
            "try_again_later",
            "withdrawal_count_limit_exceeded",
        ],
    ),
    (
        Kind::Authentication,
        &[
            "authentication_required",
            "authentication_not_handled",
            "payment_intent_authentication_failure",
            "offline_pin_required",
            "online_or_offline_pin_required",
            "incorrect_pin",
            "invalid_pin",
        ],
    ),
    (Kind::Technical, &["issuer_not_available", "processing_error", "reenter_transaction"]),
];

/// Adyen's `refusalReasonCode`, by the name that is published for it.
pub(super) const ADYEN: [(Kind, &[(&str, &str)]); 5] = [
    (
        Kind::Hard,
        &[
            ("5", "blocked_card"),
            ("6", "expired_card"),
            ("7", "invalid_amount"),
            ("8", "invalid_card_number"),
            ("10", "not_supported"),
            ("14", "acquirer_fraud"),
            ("18", "pin_tries_exceeded"),
            ("20", "fraud"),
            ("22", "fraud_cancelled"),
            ("23", "transaction_not_permitted"),
            ("24", "cvc_declined"),
            ("25", "restricted_card"),
            ("26", "revocation_of_auth"),
            ("31", "issuer_suspected_fraud"),
            ("32", "avs_declined"),
            ("34", "no_checking_account_available"),
            ("35", "no_savings_account_available"),
            ("46", "blocked_to_prevent_excessive_retry_fees"),
            ("50", "token_revoked"),
        ],
    ),
    (
        Kind::Soft,
        &[
            ("2", "refused"),
            ("3", "referral"),
            ("12", "not_enough_balance"),
            ("27", "declined_non_generic"),
            ("28", "withdrawal_amount_exceeded"),
            ("29", "withdrawal_count_exceeded"),
            ("40", "aid_in_penalty_box"),
        ],
    ),
    (
        Kind::Technical,
        &[
            ("4", "acquirer_error"),
            ("9", "issuer_unavailable"),
            ("19", "pin_validation_not_possible"),
            ("21", "not_submitted"),
        ],
    ),
    (
        Kind::Authentication,
        &[
            ("11", "3d_not_authenticated"),
            ("17", "invalid_pin"),
            ("33", "pin_required"),
            ("36", "mobile_pin_required"),
            ("37", "contactless_fallback"),
            ("38", "authentication_required"),
            ("39", "rreq_not_received_from_ds"),
            ("41", "online_pin_required"),
            ("42", "3ds_authentication_error"),
            ("43", "offline_pin_required"),
            ("44", "pos_authentication_required"),
            ("45", "pos_authentication_error"),
        ],
    ),
    (Kind::Cancelled, &[("15", "cancelled"), ("16", "shopper_cancelled")]),
];

/// The kind of a decline at Stripe. The inner code says more than the outer one.
pub(super) fn stripe(decline_code: Option<&str>, code: Option<&str>) -> Kind {
    let kind = |text: &str| STRIPE.iter().find(|(_, codes)| codes.contains(&text)).map(|(kind, _)| *kind);
    let (inner, outer) = (decline_code.and_then(kind), code.and_then(kind));
    match (inner, outer) {
        // Either of them is enough: `code` can say so where `decline_code` says something of the issuer's.
        (Some(Kind::Authentication), _) | (_, Some(Kind::Authentication)) => Kind::Authentication,
        (Some(kind), _) | (None, Some(kind)) => kind,
        (None, None) => Kind::Other,
    }
}

/// The kind of a refusal at Adyen, and the name that is published for it.
pub(super) fn adyen(refusal_reason_code: &str) -> Option<(Kind, &'static str)> {
    ADYEN.iter().find_map(|(kind, rows)| {
        rows.iter().find(|(number, _)| *number == refusal_reason_code).map(|(_, name)| (*kind, *name))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_stands_in_one_row_only() {
        let mut stripe: Vec<_> = STRIPE.iter().flat_map(|(_, codes)| *codes).collect();
        let mut adyen: Vec<_> = ADYEN.iter().flat_map(|(_, rows)| *rows).map(|(number, _)| number).collect();
        for codes in [&mut stripe, &mut adyen] {
            let all = codes.len();
            codes.sort_unstable();
            codes.dedup();
            assert_eq!(codes.len(), all);
        }
    }

    #[test]
    fn a_code_that_nobody_knows_is_a_decline_of_another_kind() {
        assert_eq!(stripe(Some("of_2030"), Some("card_declined")), Kind::Other);
        assert_eq!(stripe(None, None), Kind::Other);
        assert_eq!(adyen("2030"), None);
        assert_eq!(adyen(""), None);
    }

    #[test]
    fn the_inner_code_counts_first_and_authentication_counts_most() {
        assert_eq!(stripe(Some("lost_card"), Some("card_declined")), Kind::Hard);
        assert_eq!(stripe(Some("insufficient_funds"), Some("expired_card")), Kind::Soft);
        assert_eq!(stripe(Some("generic_decline"), Some("authentication_required")), Kind::Authentication);
        assert_eq!(stripe(None, Some("expired_card")), Kind::Hard);
    }
}
