//! What a caller may ask for: from the bytes of a body to a request that has been checked, or to the reason why it is refused.

use schema::{card_numbers::looks_like_card_number, payment_order_requested::is_payment_method_token};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};

use crate::{currency, problem::Problem};

/// Largest amount, in minor units. Beyond what any PSP takes, and shorter than a card number.
const AMOUNT_MAX_MINOR: i64 = 999_999_999_999;
/// Most characters of a text.
const TEXT_MAX_CHARS: usize = 255;

/// A payment service provider.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Psp {
    /// Stripe.
    #[default]
    Stripe,
    /// Adyen.
    Adyen,
}

impl Psp {
    /// The word in events and in the database.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stripe => "STRIPE",
            Self::Adyen => "ADYEN",
        }
    }
}

/// The body of `POST /v1/payments`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PaymentRequest {
    /// In minor units of the currency.
    pub amount_minor: i64,
    /// ISO 4217 code.
    pub currency: String,
    /// A token of the PSP's vault.
    pub payment_method: String,
    /// The caller's own id of the payment.
    pub merchant_reference: String,
    /// Which PSP to ask.
    #[serde(default)]
    pub psp: Psp,
}

impl PaymentRequest {
    /// Reads and checks a body.
    pub fn read(body: &[u8]) -> Result<Self, Problem> {
        // serde would take an array of the fields' values as well.
        if body.trim_ascii_start().first() == Some(&b'[') {
            return Err(Problem::invalid("the body must be a JSON object"));
        }
        let request: Self = serde_json::from_slice(body).map_err(|error| {
            let place = format!("line {}, column {}", error.line(), error.column());
            match error.classify() {
                // serde's text names the field and says what it expected; of the value it says no more than its kind,
                // except for words and numbers that do not fit.
                serde_json::error::Category::Data => {
                    Problem::invalid(format!("{}; {place}", redacted(&error)))
                }
                serde_json::error::Category::Syntax
                | serde_json::error::Category::Eof
                | serde_json::error::Category::Io => {
                    Problem::malformed(format!("the body is not valid JSON: {place}"))
                }
            }
        })?;
        request.check()?;
        Ok(request)
    }

    fn check(&self) -> Result<(), Problem> {
        if !(1..=AMOUNT_MAX_MINOR).contains(&self.amount_minor) {
            return Err(Problem::invalid(format!("amount_minor must be from 1 to {AMOUNT_MAX_MINOR}")));
        }
        if !currency::is_active(&self.currency) {
            return Err(Problem::invalid("currency must be an active ISO 4217 code in capital letters"));
        }
        for (field, text) in
            [("payment_method", &self.payment_method), ("merchant_reference", &self.merchant_reference)]
        {
            if looks_like_card_number(text) {
                return Err(card_number(field));
            }
            if text.trim().is_empty()
                || text.chars().count() > TEXT_MAX_CHARS
                || text.chars().any(char::is_control)
            {
                return Err(Problem::invalid(format!(
                    "{field} must have 1 to {TEXT_MAX_CHARS} characters, none of them a control character"
                )));
            }
        }
        if !is_payment_method_token(&self.payment_method) {
            return Err(Problem::invalid(
                "payment_method must be a token: a letter, then letters, digits, _ and -, at most 255",
            ));
        }
        Ok(())
    }

    /// SHA-256 over what was asked for, however it was written.
    pub fn fingerprint(&self) -> [u8; 32] {
        let mut hash = Sha256::new();
        let amount = self.amount_minor.to_string();
        for part in
            [&amount, &self.currency, &self.payment_method, &self.merchant_reference, self.psp.as_str()]
        {
            // No text contains a NUL, so that no two requests share a fingerprint.
            hash.update(part);
            hash.update([0]);
        }
        hash.finalize().into()
    }
}

/// Checks an `Idempotency-Key`: 1 to 255 visible ASCII characters.
pub fn check_idempotency_key(key: Option<&[u8]>) -> Result<String, Problem> {
    let Some(key) = key else {
        return Err(Problem::malformed("the header Idempotency-Key is required"));
    };
    match std::str::from_utf8(key) {
        Ok(text)
            if (1..=TEXT_MAX_CHARS).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic()) =>
        {
            if looks_like_card_number(text) {
                Err(card_number("Idempotency-Key"))
            } else {
                Ok(text.to_owned())
            }
        }
        _ => Err(Problem::malformed("Idempotency-Key must have 1 to 255 visible ASCII characters")),
    }
}

fn card_number(field: &str) -> Problem {
    Problem::invalid(format!("{field} looks like a card number; send a token of the PSP instead"))
}

/// What serde says, without values: a card number in a wrong field must not come back in an answer.
fn redacted(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let text = text.split(" at line ").next().unwrap_or_default();
    for (start, meaning) in
        [("invalid type", "a field has the wrong type"), ("invalid value", "a field has a wrong value")]
    {
        if text.starts_with(start) {
            let expected =
                text.rsplit_once(", expected ").map(|(_, expected)| format!(": expected {expected}"));
            return format!("{meaning}{}", expected.unwrap_or_default());
        }
    }
    if text.starts_with("unknown variant") {
        return "psp must be STRIPE".to_owned();
    }
    if text.starts_with("unknown field") {
        return "the body has a field that is not known; known are amount_minor, currency, payment_method, merchant_reference, psp"
            .to_owned();
    }
    text.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_visible_ascii() {
        assert_eq!(check_idempotency_key(Some(b"k-1")).unwrap(), "k-1");
        assert!(check_idempotency_key(Some(&[b'k'; 255])).is_ok());
        for wrong in [
            None,
            Some(b"".as_slice()),
            Some(b"a b"),
            Some(b"\xff"),
            Some(&[b'k'; 256]),
            Some(b"4111111111111111"),
        ] {
            assert!(check_idempotency_key(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn refusals_do_not_repeat_values() {
        for body in [
            r#"{"amount_minor":"4111111111111111"}"#,
            r#"{"amount_minor":1,"currency":"EUR","payment_method":4111111111111111}"#,
            r#"{"amount_minor":1,"currency":"EUR","payment_method":"t","merchant_reference":"m","psp":"4111111111111111"}"#,
            r#"{"4111111111111111":1}"#,
            r#"{"amount_minor":4111111111111111.5}"#,
            r#"{"amount_minor":41111111111111110000}"#,
        ] {
            let problem = PaymentRequest::read(body.as_bytes()).unwrap_err();
            assert!(!format!("{problem:?}").contains("4111"), "{problem:?}");
        }
    }
}
