//! What people may ask of a payment: to end a review, and to try again. Pure, as the decisions about results are.
//!
//! A resolution needs an order that waits for a person: one in review, or one of two that succeeded (DOUBLE_CHARGE). It makes an outcome
//! of it, and nothing is special about that one: a result that comes later is decided upon as ever ([`crate::decision::decide`]), and what
//! contradicts the person calls a person again. ARCHITECTURE.md has the table.
//!
//! A retry needs a payment whose orders have all failed, for certain. While one is open, or nobody knows, another one could be a second
//! charge.

use serde::Deserialize;
use utoipa::ToSchema;

use crate::decision::{Order, ReviewReason, State, payment_state, words};

words! {
    /// What a person decides about a payment order that needs one.
    Resolution {
        /// The charge stands.
        Successful = "SUCCESSFUL",
        /// No money is kept: none was taken, or all of it was given back.
        Failed = "FAILED",
    }
}

/// Why an order is not resolved as was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResolveRefusal {
    /// Nobody has been called.
    NotInReview,
    /// Two orders of the payment succeeded, and saying so again changes nothing.
    DoubleCharge,
}

impl ResolveRefusal {
    /// For people.
    pub fn detail(self) -> &'static str {
        match self {
            Self::NotInReview => "the payment order does not need a person",
            Self::DoubleCharge => {
                "two payment orders of this payment succeeded: give one charge back, and resolve its payment order as FAILED"
            }
        }
    }
}

/// What a person's decision makes of an order. It needs a person if it is in review, or if it is one of two that succeeded
/// (`in_double_charge`). `psp_reference` is the charge that the person found, if that is not the one that is known.
///
/// What comes later is decided upon as for any order in the state that the person has chosen: a contradiction calls a person again.
pub fn resolve(
    order: &Order,
    in_double_charge: bool,
    resolution: Resolution,
    psp_reference: Option<&str>,
) -> Result<Order, ResolveRefusal> {
    use State as S;
    let found = || psp_reference.map(str::to_owned).or_else(|| order.psp_reference.clone());
    match (order.state, resolution) {
        (S::NeedsReview, Resolution::Successful) => Ok(Order {
            state: S::Successful,
            psp_reference: found(),
            error_code: None,
            error_message: None,
            review_reason: None,
        }),
        (S::NeedsReview, Resolution::Failed) => {
            Ok(Order { state: S::Failed, psp_reference: found(), review_reason: None, ..order.clone() })
        }
        // Which charge it was is known, and stays.
        (S::Successful, Resolution::Failed) if in_double_charge => {
            Ok(Order { state: S::Failed, ..order.clone() })
        }
        (S::Successful, Resolution::Successful) if in_double_charge => Err(ResolveRefusal::DoubleCharge),
        (
            S::Created | S::Pending | S::Unknown | S::Successful | S::Failed,
            Resolution::Successful | Resolution::Failed,
        ) => Err(ResolveRefusal::NotInReview),
    }
}

/// Most orders that a payment may have.
pub const TRIES_MAX: usize = 20;

/// Why a payment is not tried again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RetryRefusal {
    /// Its last order can still charge.
    Open,
    /// Nobody knows whether its last order has charged.
    Unknown,
    /// It is paid.
    Successful,
    /// A person must look first.
    NeedsReview,
    /// It has been tried [`TRIES_MAX`] times.
    TooManyTries,
}

impl RetryRefusal {
    /// For people.
    pub fn detail(self) -> &'static str {
        match self {
            Self::Open => "the last payment order has no result yet, and could still charge",
            Self::Unknown => "nobody knows yet whether the last payment order has charged",
            Self::Successful => "the payment is paid",
            Self::NeedsReview => "the payment waits for a person, who has to resolve it first",
            Self::TooManyTries => "the payment has been tried 20 times",
        }
    }
}

/// May a payment with these orders, in the order of their tries, be tried again? Only after a definite failure of all of them.
pub fn may_retry(orders: &[(State, Option<ReviewReason>)]) -> Result<(), RetryRefusal> {
    match payment_state(orders).0 {
        State::Failed if orders.len() >= TRIES_MAX => Err(RetryRefusal::TooManyTries),
        // The last order decides while none succeeded; an earlier one that is open would be overlooked.
        State::Failed => match orders.iter().map(|(state, _)| *state).find(|state| *state != State::Failed) {
            None => Ok(()),
            Some(State::Created | State::Pending) => Err(RetryRefusal::Open),
            Some(State::Unknown) => Err(RetryRefusal::Unknown),
            Some(State::Successful) => Err(RetryRefusal::Successful),
            Some(State::NeedsReview | State::Failed) => Err(RetryRefusal::NeedsReview),
        },
        State::Created | State::Pending => Err(RetryRefusal::Open),
        State::Unknown => Err(RetryRefusal::Unknown),
        State::Successful => Err(RetryRefusal::Successful),
        State::NeedsReview => Err(RetryRefusal::NeedsReview),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(state: State) -> Order {
        Order { state, psp_reference: Some("a".into()), error_code: Some("code".into()), ..Order::created() }
    }

    /// What an order of the table's rows is: by name, and whether another order of its payment succeeded too.
    fn rows() -> Vec<(String, Order, bool)> {
        let mut rows = Vec::new();
        for state in State::ALL.iter().copied().filter(|state| *state != State::NeedsReview) {
            rows.push((state.as_str().to_owned(), known(state), false));
        }
        rows.push(("SUCCESSFUL, one of two (DOUBLE_CHARGE)".to_owned(), known(State::Successful), true));
        for reason in ReviewReason::ALL.iter().copied().filter(|reason| *reason != ReviewReason::DoubleCharge)
        {
            let order = Order { review_reason: Some(reason), ..known(State::NeedsReview) };
            rows.push((format!("review: {}", reason.as_str()), order, false));
        }
        rows
    }

    const TABLE_BEGINS: &str = "<!-- The table is written by the tests of intervention.rs: begin. -->\n";
    const TABLE_ENDS: &str = "<!-- end of the resolutions. -->";

    #[test]
    fn the_table_of_the_architecture_is_the_function() {
        let cell = |order: &Order, double: bool, resolution: Resolution| match resolve(
            order, double, resolution, None,
        ) {
            Ok(next) => format!("RESOLVED → {}", next.state.as_str()),
            Err(ResolveRefusal::NotInReview) => "refused".to_owned(),
            Err(ResolveRefusal::DoubleCharge) => "refused: give one back".to_owned(),
        };
        let row = |(name, order, double): &(String, Order, bool)| {
            let cells: Vec<String> = Resolution::ALL.iter().map(|as_| cell(order, *double, *as_)).collect();
            format!("| **{name}** | {} |\n", cells.join(" | "))
        };
        let lines: String = rows().iter().map(row).collect();
        let table = format!("| order | as SUCCESSFUL | as FAILED |\n| --- | --- | --- |\n{lines}");
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../ARCHITECTURE.md");
        let text = std::fs::read_to_string(path).unwrap();
        let (before, rest) = text.split_once(TABLE_BEGINS).expect("the table's beginning is marked");
        let (written, after) = rest.split_once(TABLE_ENDS).expect("the table's end is marked");
        if std::env::var_os("WRITE_TABLE").is_some() {
            std::fs::write(path, format!("{before}{TABLE_BEGINS}{table}{TABLE_ENDS}{after}")).unwrap();
        } else {
            assert!(
                written == table,
                "ARCHITECTURE.md does not say what resolve() does; WRITE_TABLE=1 writes it:\n{table}"
            );
        }
    }

    #[test]
    fn a_resolution_keeps_the_charge_that_is_known_unless_another_was_found() {
        for (_, order, double) in rows() {
            for resolution in Resolution::ALL {
                let Ok(kept) = resolve(&order, double, *resolution, None) else { continue };
                assert_eq!(kept.psp_reference.as_deref(), Some("a"));
                assert_eq!(kept.review_reason, None);
                assert_eq!(
                    kept.error_code.is_some(),
                    *resolution == Resolution::Failed,
                    "a success has no error"
                );
                let found = resolve(&order, double, *resolution, Some("b")).unwrap();
                let expected = if order.state == State::NeedsReview { "b" } else { "a" };
                assert_eq!(found.psp_reference.as_deref(), Some(expected));
            }
        }
    }

    #[test]
    fn a_payment_is_tried_again_only_if_no_order_could_charge_or_has_charged() {
        let all: Vec<(State, Option<ReviewReason>)> = State::ALL
            .iter()
            .map(|state| (*state, (*state == State::NeedsReview).then_some(ReviewReason::Expired)))
            .collect();
        for first in &all {
            for second in &all {
                let may = may_retry(&[*first, *second]).is_ok();
                assert_eq!(
                    may,
                    (first.0, second.0) == (State::Failed, State::Failed),
                    "{first:?} {second:?}"
                );
            }
            assert_eq!(may_retry(&[*first]).is_ok(), first.0 == State::Failed, "{first:?}");
        }
        assert_eq!(may_retry(&[]), Err(RetryRefusal::Open));
        let failed = (State::Failed, None);
        assert_eq!(may_retry(&[failed; TRIES_MAX - 1]), Ok(()));
        assert_eq!(may_retry(&[failed; TRIES_MAX]), Err(RetryRefusal::TooManyTries));
        assert!(RetryRefusal::TooManyTries.detail().contains(&TRIES_MAX.to_string()));
    }
}
