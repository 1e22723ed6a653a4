//! Amounts as a PSP counts them: our minor units (ISO 4217) to the PSP's and back, exact or not at all.
//!
//! PSPs agree with ISO 4217 for most currencies, and not for all: 500 ISK are 500 for us, and 50000 for Stripe and Adyen. So each
//! adapter has a table of the currencies that its PSP takes, by the number of decimals that the PSP gives them; what ISO 4217 gives
//! them comes from a library. A currency outside the table, or an amount that one side cannot express, is refused before anything is
//! sent.

use iso_currency::Currency;

/// The currencies of a PSP, by the decimals of its amounts.
#[derive(Debug)]
pub struct Currencies {
    /// Amounts in whole units.
    pub zero: &'static [&'static str],
    /// Amounts in hundredths.
    pub two: &'static [&'static str],
    /// Amounts in thousandths.
    pub three: &'static [&'static str],
    /// What an amount with three decimals must be a multiple of.
    pub three_step: i64,
}

/// Why an amount cannot be sent.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Inexpressible {
    /// The PSP does not take the currency.
    #[error("{0} is not in this PSP's table of currencies")]
    Currency(String),
    /// The PSP counts in larger units than the amount needs, or in such small ones that it becomes too large.
    #[error("{minor} minor units of {currency} are no amount of this PSP")]
    Amount {
        /// Minor units (ISO 4217).
        minor: i64,
        /// ISO 4217.
        currency: String,
    },
}

impl Currencies {
    /// Minor units (ISO 4217) as the PSP counts them.
    pub fn to_psp(&self, minor: i64, currency: &str) -> Result<i64, Inexpressible> {
        let (iso, psp) =
            self.decimals(currency).ok_or_else(|| Inexpressible::Currency(currency.to_owned()))?;
        scale(minor, iso, psp)
            .filter(|amount| psp != 3 || amount % self.three_step == 0)
            .ok_or_else(|| Inexpressible::Amount { minor, currency: currency.to_owned() })
    }

    /// The PSP's amount in minor units (ISO 4217); None if it cannot be expressed in them, or the currency is not in the table.
    pub fn to_minor(&self, amount: i64, currency: &str) -> Option<i64> {
        let (iso, psp) = self.decimals(currency)?;
        scale(amount, psp, iso)
    }

    /// Decimals by ISO 4217, and by the PSP.
    fn decimals(&self, currency: &str) -> Option<(u32, u32)> {
        let tables = [(0, self.zero), (2, self.two), (3, self.three)];
        let (psp, _) = tables.into_iter().find(|(_, codes)| codes.contains(&currency))?;
        let iso = Currency::from_code(currency)?.exponent()?;
        Some((u32::from(iso), psp))
    }
}

/// From one number of decimals to another, if it comes out even and fits.
fn scale(amount: i64, from: u32, to: u32) -> Option<i64> {
    let factor = 10_i64.checked_pow(from.abs_diff(to))?;
    if to >= from {
        amount.checked_mul(factor)
    } else {
        (amount.checked_rem(factor)? == 0).then(|| amount.checked_div(factor))?
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::psp::{adyen::CURRENCIES as ADYEN, stripe::CURRENCIES as STRIPE};

    fn all(table: &Currencies) -> impl Iterator<Item = &'static str> {
        [table.zero, table.two, table.three].into_iter().flatten().copied()
    }

    #[test]
    fn each_currency_is_counted_as_its_psp_counts_it() {
        // Currency, ISO minor units, at Stripe, at Adyen; None: refused.
        let rows = [
            ("EUR", 1234, Some(1234), Some(1234)),
            ("JPY", 500, Some(500), Some(500)),
            ("ISK", 500, Some(50_000), Some(50_000)),
            ("CLP", 700, Some(700), Some(70_000)),
            ("KWD", 1230, Some(1230), Some(1230)),
            // Stripe takes three decimals with a 0 at the end only.
            ("KWD", 1234, None, Some(1234)),
            ("BHD", 5, None, Some(5)),
            ("UGX", 500, Some(50_000), Some(500)),
            ("MGA", 12_300, Some(123), None),
            ("MGA", 12_345, None, None),
            ("IDR", 12_300, Some(12_300), Some(123)),
            ("IDR", 12_345, Some(12_345), None),
            ("CVE", 4_200, Some(4_200), Some(42)),
            ("CVE", 4_201, Some(4_201), None),
            ("HUF", 100, Some(100), Some(100)),
            ("TWD", 100, Some(100), Some(100)),
            ("ISK", i64::MAX, None, None),
            ("ISK", i64::MAX / 100, Some(i64::MAX / 100 * 100), Some(i64::MAX / 100 * 100)),
            // No currency, none that cards have, and none that is money.
            ("ABC", 1, None, None),
            ("XAU", 1, None, None),
            ("CLF", 1, None, None),
            ("eur", 1, None, None),
        ];
        for (currency, minor, stripe, adyen) in rows {
            for (table, expected) in [(&STRIPE, stripe), (&ADYEN, adyen)] {
                assert_eq!(table.to_psp(minor, currency).ok(), expected, "{minor} {currency}");
                if let Some(amount) = expected {
                    assert_eq!(table.to_minor(amount, currency), Some(minor), "{amount} {currency} back");
                }
            }
        }
    }

    #[test]
    fn an_amount_that_has_no_minor_units_here_has_no_way_back() {
        assert_eq!(STRIPE.to_minor(50_001, "ISK"), None);
        assert_eq!(ADYEN.to_minor(70_050, "CLP"), None);
        assert_eq!(ADYEN.to_minor(i64::MAX, "IDR"), None);
        assert_eq!(ADYEN.to_minor(1, "MGA"), None);
    }

    #[test]
    fn a_refusal_says_which_of_the_two_it_is() {
        let unknown = STRIPE.to_psp(1, "ABC").unwrap_err();
        assert_eq!(unknown, Inexpressible::Currency("ABC".into()));
        let amount = STRIPE.to_psp(1234, "KWD").unwrap_err();
        assert_eq!(amount.to_string(), "1234 minor units of KWD are no amount of this PSP");
    }

    #[test]
    fn the_tables_name_each_currency_once_and_only_such_as_iso_4217_has() {
        for table in [&STRIPE, &ADYEN] {
            let mut codes: Vec<_> = all(table).collect();
            let known = codes.iter().filter(|code| table.decimals(code).is_some()).count();
            assert_eq!(known, codes.len());
            codes.sort_unstable();
            codes.dedup();
            assert_eq!(codes.len(), known, "a currency is named twice");
        }
        // Where a PSP's decimals are not those of ISO 4217: each of these was decided, none happened.
        let differ = |table: &Currencies| {
            let mut codes: Vec<_> =
                all(table).filter(|code| table.decimals(code).is_some_and(|(iso, psp)| iso != psp)).collect();
            codes.sort_unstable();
            codes
        };
        assert_eq!(differ(&STRIPE), ["ISK", "MGA", "UGX"]);
        assert_eq!(differ(&ADYEN), ["CLP", "CVE", "IDR", "ISK"]);
    }

    proptest! {
        #[test]
        fn what_can_be_sent_comes_back_as_it_was(minor in 1..i64::MAX, index in 0..1000_usize, stripe: bool) {
            let table = if stripe { &STRIPE } else { &ADYEN };
            let codes: Vec<_> = all(table).collect();
            let currency = codes[index % codes.len()];
            if let Ok(amount) = table.to_psp(minor, currency) {
                prop_assert!(amount > 0);
                prop_assert_eq!(table.to_minor(amount, currency), Some(minor));
            }
        }
    }
}
