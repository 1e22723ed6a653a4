//! What a caller may ask for: from the bytes of a body to a request that has been checked, or to the reason why it is refused.

use schema::{card_numbers::looks_like_card_number, payment_order_requested::is_payment_method_token};
use serde::{Deserialize, de::DeserializeOwned};
use sha2::{Digest as _, Sha256};
use utoipa::ToSchema;
use uuid::Uuid;

use crate::{currency, intervention::Resolution, problem::Problem};

/// Largest amount, in minor units. Beyond what any PSP takes, and shorter than a card number.
const AMOUNT_MAX_MINOR: i64 = 999_999_999_999;
/// Most characters of a text.
const TEXT_MAX_CHARS: usize = 255;
/// Most characters of a reason.
const REASON_MAX_CHARS: usize = 1_000;

/// A payment service provider.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, ToSchema)]
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

    /// The PSP that a word stands for.
    pub fn from_word(word: &str) -> Option<Self> {
        [Self::Stripe, Self::Adyen].into_iter().find(|psp| psp.as_str() == word)
    }
}

/// The body of `POST /v1/payments`.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PaymentRequest {
    /// In minor units of the currency.
    #[schema(minimum = 1, maximum = 999_999_999_999_i64, example = 1234)]
    pub amount_minor: i64,
    /// ISO 4217 code.
    #[schema(pattern = "^[A-Z]{3}$", example = "EUR")]
    pub currency: String,
    /// A token of the PSP's vault.
    #[schema(pattern = "^[A-Za-z][A-Za-z0-9_-]{0,254}$", example = "pm_card_visa")]
    pub payment_method: String,
    /// The caller's own id of the payment.
    #[schema(min_length = 1, max_length = 255, example = "order-1")]
    pub merchant_reference: String,
    /// Which PSP to ask; STRIPE if it is not given.
    #[serde(default)]
    #[schema(required = false)]
    pub psp: Psp,
}

impl PaymentRequest {
    /// Reads and checks a body.
    pub fn read(body: &[u8]) -> Result<Self, Problem> {
        let request: Self = read(body, "amount_minor, currency, payment_method, merchant_reference, psp")?;
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
        check_payment_method(&self.payment_method)?;
        check_text("merchant_reference", &self.merchant_reference, TEXT_MAX_CHARS)
    }

    /// SHA-256 over what was asked for, however it was written.
    pub fn fingerprint(&self) -> [u8; 32] {
        let amount = self.amount_minor.to_string();
        fingerprint(&[
            &amount,
            &self.currency,
            &self.payment_method,
            &self.merchant_reference,
            self.psp.as_str(),
        ])
    }
}

/// The body of `POST /v1/payments/{payment_id}/retry`.
#[derive(Clone, Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RetryRequest {
    /// Which PSP to ask; the one of the last try if it is not given. It comes with a payment method: tokens belong to one PSP.
    pub psp: Option<Psp>,
    /// A token of the PSP's vault; that of the last try if it is not given.
    #[schema(pattern = "^[A-Za-z][A-Za-z0-9_-]{0,254}$", example = "pm_card_visa")]
    pub payment_method: Option<String>,
}

impl RetryRequest {
    /// Reads and checks a body.
    pub fn read(body: &[u8]) -> Result<Self, Problem> {
        let request: Self = read(body, "psp, payment_method")?;
        match (&request.payment_method, request.psp) {
            (Some(payment_method), _) => check_payment_method(payment_method)?,
            (None, Some(_)) => {
                return Err(Problem::invalid("psp needs a payment_method: tokens belong to one PSP"));
            }
            (None, None) => {}
        }
        Ok(request)
    }

    /// SHA-256 over what was asked for, however it was written.
    pub fn fingerprint(&self, payment_id: Uuid) -> [u8; 32] {
        let psp = self.psp.map_or("", Psp::as_str);
        fingerprint(&[&payment_id.to_string(), psp, self.payment_method.as_deref().unwrap_or_default()])
    }
}

/// The body of `POST /v1/payment-orders/{payment_order_id}/resolve`.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ResolutionRequest {
    /// What has become of the charge.
    pub decision: Resolution,
    /// Why, for the audit.
    #[schema(min_length = 1, max_length = 1000, example = "the bank statement has it, ticket 17")]
    pub reason: String,
    /// The PSP's id of the charge that was found, if it is another than the one that is known.
    #[schema(min_length = 1, max_length = 255, example = "pi_3OqQ")]
    pub psp_reference: Option<String>,
}

impl ResolutionRequest {
    /// Reads and checks a body.
    pub fn read(body: &[u8]) -> Result<Self, Problem> {
        let request: Self = read(body, "decision, reason, psp_reference")?;
        check_text("reason", &request.reason, REASON_MAX_CHARS)?;
        if let Some(reference) = &request.psp_reference {
            check_text("psp_reference", reference, TEXT_MAX_CHARS)?;
        }
        Ok(request)
    }

    /// SHA-256 over what was asked for, however it was written.
    pub fn fingerprint(&self, payment_order_id: Uuid) -> [u8; 32] {
        let reference = self.psp_reference.as_deref().unwrap_or_default();
        fingerprint(&[&payment_order_id.to_string(), self.decision.as_str(), &self.reason, reference])
    }
}

/// Reads a body of these fields.
fn read<T: DeserializeOwned>(body: &[u8], fields: &str) -> Result<T, Problem> {
    // serde would take an array of the fields' values as well.
    if body.trim_ascii_start().first() == Some(&b'[') {
        return Err(Problem::invalid("the body must be a JSON object"));
    }
    serde_json::from_slice(body).map_err(|error| {
        let place = format!("line {}, column {}", error.line(), error.column());
        match error.classify() {
            // serde's text names the field and says what it expected; of the value it says no more than its kind,
            // except for words and numbers that do not fit.
            serde_json::error::Category::Data => {
                Problem::invalid(format!("{}; {place}", redacted(&error, fields)))
            }
            serde_json::error::Category::Syntax
            | serde_json::error::Category::Eof
            | serde_json::error::Category::Io => {
                Problem::malformed(format!("the body is not valid JSON: {place}"))
            }
        }
    })
}

/// SHA-256 over texts. None of them contains a NUL, so that no two requests share a fingerprint.
fn fingerprint(parts: &[&str]) -> [u8; 32] {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update(part);
        hash.update([0]);
    }
    hash.finalize().into()
}

/// Has it 1 to so many characters, not all of them blank, and none of them a control character?
pub fn is_plain_text(text: &str, max_chars: usize) -> bool {
    !text.trim().is_empty() && text.chars().count() <= max_chars && !text.chars().any(char::is_control)
}

fn check_text(field: &str, text: &str, max_chars: usize) -> Result<(), Problem> {
    if looks_like_card_number(text) {
        return Err(card_number(field));
    }
    if !is_plain_text(text, max_chars) {
        return Err(Problem::invalid(format!(
            "{field} must have 1 to {max_chars} characters, none of them a control character"
        )));
    }
    Ok(())
}

fn check_payment_method(text: &str) -> Result<(), Problem> {
    check_text("payment_method", text, TEXT_MAX_CHARS)?;
    if !is_payment_method_token(text) {
        return Err(Problem::invalid(
            "payment_method must be a token: a letter, then letters, digits, _ and -, at most 255",
        ));
    }
    Ok(())
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
fn redacted(error: &serde_json::Error, fields: &str) -> String {
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
    // The words that are known are ours; the one that is not could be anything.
    if let Some((_, known)) = text.rsplit_once(", expected ").filter(|_| text.starts_with("unknown variant"))
    {
        return format!("a field has a word that is not known: expected {known}");
    }
    if text.starts_with("unknown field") || text.starts_with("unknown variant") {
        return format!("the body has a field that is not known; known are {fields}");
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
            r#"{"amount_minor":1,"currency":"EUR","payment_method":"t","merchant_reference":"m","psp":"4111111111111111, expected 4111"}"#,
        ] {
            let problem = PaymentRequest::read(body.as_bytes()).unwrap_err();
            assert!(!format!("{problem:?}").contains("4111"), "{problem:?}");
        }
    }
}
