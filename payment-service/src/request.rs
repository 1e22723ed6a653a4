//! What a caller may ask for: from the bytes of a body to a request that has been checked, or to the reason why it is refused.

use schema::payment_order_requested::is_payment_method_token;
use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

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

/// Whether a text contains what looks like a card number: 13 to 19 digits with a right check digit (Luhn), alone or in the groups
/// printed on cards, beginning with 2 to 6 as all cards in trade do. Times in milliseconds and nanoseconds begin with 1.
///
/// Ids in hexadecimal are full of digits: what is a uuid, or part of 32 and more hexadecimal digits, is none.
pub fn looks_like_card_number(text: &str) -> bool {
    if Uuid::try_parse(text).is_ok() {
        return false;
    }
    let bytes = text.as_bytes();
    let mut start = 0;
    while start < bytes.len() {
        if !bytes[start].is_ascii_digit() {
            start += 1;
            continue;
        }
        let run = bytes[start..].iter().take_while(|b| b.is_ascii_digit()).count();
        let alone = (13..=19).contains(&run) && !within_long_hex(bytes, start, run);
        if (alone && is_card_number(&bytes[start..start + run])) || grouped_card_number(bytes, start) {
            return true;
        }
        start += run;
    }
    false
}

fn within_long_hex(bytes: &[u8], start: usize, run: usize) -> bool {
    let before = bytes[..start].iter().rev().take_while(|b| b.is_ascii_hexdigit()).count();
    let after = bytes[start + run..].iter().take_while(|b| b.is_ascii_hexdigit()).count();
    before + run + after >= 32
}

/// Digits in groups of 4-4-4-4, 4-4-4-4-3 or 4-6-5, separated by one blank or dash, with no letter or digit around.
fn grouped_card_number(bytes: &[u8], start: usize) -> bool {
    if start > 0 && bytes[start - 1].is_ascii_alphanumeric() {
        return false;
    }
    let layouts: [&[usize]; 3] = [&[4, 4, 4, 4], &[4, 4, 4, 4, 3], &[4, 6, 5]];
    layouts.into_iter().any(|layout| {
        let mut digits = Vec::with_capacity(19);
        let mut at = start;
        for (index, group) in layout.iter().enumerate() {
            if index > 0 {
                if !matches!(bytes.get(at), Some(b' ' | b'-')) {
                    return false;
                }
                at += 1;
            }
            match bytes.get(at..at + group) {
                Some(found) if found.iter().all(u8::is_ascii_digit) => digits.extend_from_slice(found),
                _ => return false,
            }
            at += group;
        }
        !bytes.get(at).is_some_and(u8::is_ascii_alphanumeric) && is_card_number(&digits)
    })
}

fn is_card_number(digits: &[u8]) -> bool {
    let doubled = |digit: u32| if digit > 4 { digit * 2 - 9 } else { digit * 2 };
    let sum: u32 = digits
        .iter()
        .rev()
        .enumerate()
        .map(|(index, byte)| {
            let digit = u32::from(byte - b'0');
            if index % 2 == 0 { digit } else { doubled(digit) }
        })
        .sum();
    matches!(digits.first(), Some(b'2'..=b'6')) && sum.is_multiple_of(10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn card_numbers_are_found_wherever_they_stand() {
        for text in [
            "4111111111111111",
            "4242424242424242",
            "5555555555554444",
            "378282246310005",
            "6011111111111117",
            "2223003122003222",
            "4222222222222",
            "card 4111 1111 1111 1111 of Ann",
            "4111-1111-1111-1111",
            "3782 822463 10005",
            "ref4111111111111111x",
            "order-5555555555554444-1",
        ] {
            assert!(looks_like_card_number(text), "{text}");
        }
    }

    #[test]
    fn ids_times_and_tokens_are_not_card_numbers() {
        for text in [
            "",
            "pm_card_visa",
            "pm_1NvB2qLkdIwHu7ixYlPq8a9D",
            "4111111111111112",
            "order-1763870442123",
            "1763870442123456789",
            "411111111111",
            "41111111111111111111",
            "12345678-4111-4111-8111-411111111111",
            "a0eebc999c0b4ef8bb6d6bb9bd380a11",
            "41111111111111110000000000000000",
        ] {
            assert!(!looks_like_card_number(text), "{text}");
        }
        for _ in 0..20_000 {
            let id = Uuid::now_v7();
            assert!(!looks_like_card_number(&format!("order-{id}")), "{id}");
            assert!(!looks_like_card_number(&id.simple().to_string()), "{id}");
        }
    }

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
