//! How a payment has to end, by its token: the simulator's table (psp-simulator/README.md) from the side of those who wait for the
//! outcome. Shares no code with the simulator; a test reads that table, so that no token is without an end.

/// What has to become of a payment in the end, whoever dies meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// Nothing stands in its way for good: charged, and SUCCESSFUL.
    Paid,
    /// The PSP says no, or nobody is there to do what it asks for: not charged, and FAILED.
    Declined,
    /// Charged, and stated otherwise than asked for: before a person.
    Misstated,
    /// The PSP never says how it stands, and has not charged: before a person.
    Untold,
    /// Called off, and charged all the same: before a person, once the webhook is there that tells of it. Nothing else does.
    Overtaken,
}

/// What the simulator's tokens begin with; then comes the name of the scenario.
const PREFIXES: [&str; 2] = ["pm_sim_", "adyen_sim_"];
/// Stripe's own test tokens.
const STRIPE_PAID: [&str; 2] = ["pm_card_visa", "pm_card_mastercard"];
const STRIPE_DECLINED: [&str; 3] =
    ["pm_card_chargeDeclined", "pm_card_visa_chargeDeclined", "pm_card_authenticationRequired"];

/// Of a token as a client sends it; None if it is none of the simulator's.
pub fn ending(token: &str) -> Option<Ending> {
    match scenario(token) {
        Some(scenario) => of_scenario(scenario),
        None if STRIPE_PAID.contains(&token) => Some(Ending::Paid),
        // The rest of such a token is the reason: every one of them is a decline.
        None => {
            STRIPE_DECLINED.iter().any(|declined| token.starts_with(declined)).then_some(Ending::Declined)
        }
    }
}

fn of_scenario(scenario: &str) -> Option<Ending> {
    Some(match scenario {
        "success"
        | "processing"
        | "received"
        | "unknown_status"
        | "slow"
        | "timeout_before_charge"
        | "timeout_after_charge"
        | "timeout_while_processing"
        | "reset_before_charge"
        | "reset_after_charge"
        | "truncated_after_charge"
        | "garbled_after_charge"
        | "error_after_charge"
        | "error_once_after_charge"
        | "rate_limited"
        | "unavailable"
        | "unavailable_do_not_retry"
        | "create_timeout_before"
        | "create_timeout_after"
        | "create_reset_before"
        | "create_reset_after"
        | "create_error_once_after" => Ending::Paid,
        "authentication_required"
        | "action_redirect"
        | "action_challenge"
        | "processing_then_failure"
        | "received_then_failure"
        | "cancelled"
        | "slow_decline" => Ending::Declined,
        "amount_mismatch" | "currency_mismatch" | "partially_authorised" => Ending::Misstated,
        // Of what was created the id is never told, and without it nobody can ask.
        "error_before_charge" | "create_error_before" | "create_error_after" => Ending::Untold,
        "action_then_authorised" => Ending::Overtaken,
        scenario if scenario.starts_with("decline_") => Ending::Declined,
        _ => return None,
    })
}

/// Whether the PSP can be silent for good: its answer is an error for ever, or its outcome comes by webhook alone, which may be dropped.
/// Such a payment may be before a person instead, once the PSP was asked as often as the executor's ladder says.
pub fn may_stay_untold(token: &str) -> bool {
    scenario(token).is_some_and(|scenario| {
        matches!(
            scenario,
            "error_before_charge"
                | "create_error_before"
                | "create_error_after"
                | "error_after_charge"
                | "processing"
                | "processing_then_failure"
                | "received"
                | "received_then_failure"
                | "unknown_status"
                | "timeout_while_processing"
                | "slow"
                | "slow_decline"
        )
    })
}

fn scenario(token: &str) -> Option<&str> {
    // At Adyen the shopper comes first.
    let stored = token.rsplit_once('-').map_or(token, |(_, stored)| stored);
    PREFIXES.iter().find_map(|prefix| stored.strip_prefix(prefix))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../psp-simulator/README.md"));

    /// What stands between backticks in this text.
    fn quoted(text: &str) -> impl Iterator<Item = &str> {
        text.split('`').skip(1).step_by(2)
    }

    #[test]
    fn every_scenario_of_the_simulator_has_an_end() {
        let (_, rest) = TABLE.split_once("\n## Scenarios\n").unwrap();
        let (section, _) = rest.split_once("\n## ").unwrap();
        let rows = section.lines().filter(|line| line.starts_with("| `"));
        let names: Vec<&str> = rows.flat_map(|row| quoted(row.split('|').nth(1).unwrap())).collect();
        assert!(names.len() >= 51, "{names:?}");
        for name in names {
            for token in [format!("pm_sim_{name}"), format!("shopper-1-adyen_sim_{name}")] {
                assert!(ending(&token).is_some(), "{token}");
            }
        }
        let cards: Vec<&str> = quoted(section).filter(|token| token.starts_with("pm_card_")).collect();
        assert!(cards.len() >= 4, "{cards:?}");
        for card in cards {
            assert!(ending(card.trim_end_matches('…')).is_some(), "{card}");
        }
    }

    #[test]
    fn tokens_end_as_their_scenarios_do() {
        for (token, end) in [
            ("pm_card_visa", Some(Ending::Paid)),
            ("pm_card_mastercard", Some(Ending::Paid)),
            ("pm_card_chargeDeclined", Some(Ending::Declined)),
            ("pm_card_chargeDeclinedLostCard", Some(Ending::Declined)),
            ("pm_card_visa_chargeDeclinedStolenCard", Some(Ending::Declined)),
            ("pm_card_authenticationRequired", Some(Ending::Declined)),
            ("shopper-1-adyen_sim_success", Some(Ending::Paid)),
            ("pm_sim_decline_unlisted", Some(Ending::Declined)),
            ("adyen_sim_partially_authorised", Some(Ending::Misstated)),
            ("pm_sim_error_before_charge", Some(Ending::Untold)),
            ("pm_card_amex", None),
            ("pm_sim_something_new", None),
        ] {
            assert_eq!(ending(token), end, "{token}");
        }
        assert!(may_stay_untold("pm_sim_error_before_charge"));
        assert!(!may_stay_untold("pm_card_visa"));
    }
}
