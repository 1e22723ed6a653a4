//! Adyen's notifications, and the signature of every item in them.

use std::fmt;
use std::sync::Arc;

use axum::http::{HeaderValue, header};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use reqwest::RequestBuilder;
use secrecy::{ExposeSecret, SecretString};
use serde::Serialize;
use sha2::Sha256;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::answer::{Answer, Receipt};
use super::payments::{Payment, State, psp_reference};
use super::refusals::words;
use crate::webhooks::{Contradiction, Subject};

/// Something that happened to a payment, or a cancel that came to an end.
#[derive(Debug)]
pub(crate) struct Event {
    code: &'static str,
    success: bool,
    psp_reference: Arc<str>,
    /// Of the payment that a cancel was about.
    original_reference: Option<Arc<str>>,
    merchant_account: Box<str>,
    merchant_reference: Box<str>,
    amount: i64,
    currency: Box<str>,
    reason: Box<str>,
    happened_at: Box<str>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Notification<'a> {
    live: &'static str,
    notification_items: Vec<Wrapper<'a>>,
}

#[derive(Debug, Serialize)]
struct Wrapper<'a> {
    #[serde(rename = "NotificationRequestItem")]
    item: &'a Item<'a>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Item<'a> {
    additional_data: AdditionalData,
    amount: Amount<'a>,
    event_code: &'static str,
    event_date: &'a str,
    merchant_account_code: &'a str,
    merchant_reference: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    operations: Option<[&'static str; 1]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    original_reference: Option<&'a str>,
    payment_method: &'static str,
    psp_reference: &'a str,
    reason: &'a str,
    success: &'static str,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct AdditionalData {
    hmac_signature: String,
}

#[derive(Debug, Serialize)]
struct Amount<'a> {
    currency: &'a str,
    value: i64,
}

impl Event {
    /// What the outcome of an operation tells the world, if anything.
    pub(crate) fn of(outcome: &Answer, now: OffsetDateTime) -> Option<Self> {
        match outcome {
            Answer::Payment(payment, state) => Self::of_payment(payment, *state, now),
            Answer::Cancel(receipt) => Some(Self::of_cancel(receipt, now)),
            Answer::Refused { .. } => None,
        }
    }

    fn of_payment(payment: &Payment, state: State, now: OffsetDateTime) -> Option<Self> {
        let (success, value, reason) = match state {
            State::Authorised { taken } => {
                (true, taken, format!("{}:4242:03/2034", payment.auth_code()).into())
            }
            State::Refused(decline) => (false, payment.terms.amount, words(decline).reason.into()),
            State::Cancelled => (false, payment.terms.amount, "Cancelled".into()),
            State::WithIssuer | State::Waiting(_) | State::ActionRequired(_) => return None,
        };
        let amount = payment.stated(value);
        Some(Self {
            code: "AUTHORISATION",
            success,
            psp_reference: Arc::clone(&payment.psp_reference),
            original_reference: None,
            merchant_account: payment.terms.merchant_account.clone(),
            merchant_reference: payment.terms.reference.clone(),
            amount: amount.value,
            currency: amount.currency.into(),
            reason,
            happened_at: date(now),
        })
    }

    fn of_cancel(receipt: &Receipt, now: OffsetDateTime) -> Self {
        let effect = &receipt.effect;
        let original = effect.original.as_deref();
        let reason = match (effect.success, effect.found) {
            (true, _) => "",
            (false, true) => "Transaction can't be cancelled",
            (false, false) => "Transaction not found",
        };
        Self {
            code: if effect.technical { "TECHNICAL_CANCEL" } else { "CANCELLATION" },
            success: effect.success,
            psp_reference: receipt.psp_reference().into(),
            original_reference: original.map(|payment| Arc::clone(&payment.psp_reference)),
            merchant_account: receipt.merchant_account().into(),
            merchant_reference: receipt.merchant_reference().into(),
            // A notification has an amount, also when there is no payment.
            amount: original.map_or(0, |payment| payment.terms.amount),
            currency: original.map_or_else(|| "EUR".into(), |payment| payment.terms.currency.clone()),
            reason: reason.into(),
            happened_at: date(now),
        }
    }

    pub(crate) fn subject(&self) -> Subject<'_> {
        let is_outcome = self.code == "AUTHORISATION";
        Subject {
            payment_order_id: Some(&self.merchant_reference),
            reference: &self.psp_reference,
            kind: self.code,
            success: is_outcome.then_some(self.success),
        }
    }

    /// An event that never happened.
    pub(crate) fn contradicting(&self, kind: Contradiction, now: OffsetDateTime) -> Self {
        let (success, psp_reference, reason) = match kind {
            Contradiction::FailureAfterSuccess => (false, Arc::clone(&self.psp_reference), "Refused".into()),
            Contradiction::SecondSuccess => (true, psp_reference().into(), self.reason.clone()),
            Contradiction::SuccessAfterFailure => {
                (true, Arc::clone(&self.psp_reference), "123456:4242:03/2034".into())
            }
        };
        Self {
            code: self.code,
            success,
            psp_reference,
            original_reference: None,
            merchant_account: self.merchant_account.clone(),
            merchant_reference: self.merchant_reference.clone(),
            amount: self.amount,
            currency: self.currency.clone(),
            reason,
            happened_at: date(now),
        }
    }

    fn success(&self) -> &'static str {
        if self.success { "true" } else { "false" }
    }

    /// What is signed: eight values with colons between them, nothing escaped.
    fn signing_text(&self) -> String {
        [
            &*self.psp_reference,
            self.original_reference.as_deref().unwrap_or_default(),
            &self.merchant_account,
            &self.merchant_reference,
            &self.amount.to_string(),
            &self.currency,
            self.code,
            self.success(),
        ]
        .join(":")
    }
}

fn date(now: OffsetDateTime) -> Box<str> {
    let seconds = now.replace_nanosecond(0).unwrap_or(now);
    seconds.format(&Rfc3339).unwrap_or_default().replace('Z', "+00:00").into()
}

/// What a receiver checks.
pub(crate) struct Credentials {
    /// Decoded from hexadecimal.
    pub(crate) key: Box<[u8]>,
    /// For Basic auth.
    pub(crate) login: Option<(String, SecretString)>,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credentials")
    }
}

impl Credentials {
    /// `items` is how many times the event is in the notification.
    pub(crate) fn seal(&self, event: &Event, items: usize, request: RequestBuilder) -> RequestBuilder {
        let item = Item {
            additional_data: AdditionalData { hmac_signature: self.sign(&event.signing_text()) },
            amount: Amount { currency: &event.currency, value: event.amount },
            event_code: event.code,
            event_date: &event.happened_at,
            merchant_account_code: &event.merchant_account,
            merchant_reference: &event.merchant_reference,
            operations: (event.code == "AUTHORISATION" && event.success).then_some(["REFUND"]),
            original_reference: event.original_reference.as_deref(),
            payment_method: "visa",
            psp_reference: &event.psp_reference,
            reason: &event.reason,
            success: event.success(),
        };
        let notification = Notification {
            live: "false",
            notification_items: (0..items).map(|_| Wrapper { item: &item }).collect(),
        };
        let request = match &self.login {
            Some((user, password)) => request.basic_auth(user, Some(password.expose_secret())),
            None => request,
        };
        request
            .header(header::CONTENT_TYPE, HeaderValue::from_static("application/json; charset=utf-8"))
            .header(header::USER_AGENT, "Adyen HttpClient 1.0")
            .body(serde_json::to_vec(&notification).unwrap_or_default())
    }

    fn sign(&self, text: &str) -> String {
        let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(&self.key) else { return String::new() };
        mac.update(text.as_bytes());
        STANDARD.encode(mac.finalize().into_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn signed(key: &str, event: &Event) -> String {
        let credentials = Credentials { key: hex::decode(key).unwrap().into(), login: None };
        credentials.sign(&event.signing_text())
    }

    fn event(psp_reference: &str, account: &str, reference: &str, value: i64) -> Event {
        Event {
            code: "AUTHORISATION",
            success: true,
            psp_reference: psp_reference.into(),
            original_reference: None,
            merchant_account: account.into(),
            merchant_reference: reference.into(),
            amount: value,
            currency: "EUR".into(),
            reason: "".into(),
            happened_at: "".into(),
        }
    }

    /// From the test suites of Adyen's libraries for Python, Ruby and Java.
    #[test]
    fn signatures_are_those_of_the_sdks() {
        let plain = event("7914073381342284", "TestMerchant", "TestPayment-1407325143704", 1130);
        let key = "44782DEF547AAA06C910C43932B1EB0C71FC68D9D0C057550C48EC2ACF6BA056";
        assert_eq!(signed(key, &plain), "coqCmt/IZ4E3CzPvMY8zTjQVL5hYJUiBRg8UU+iCWo0=");
        let slashes = event("ZVWN7D3WSMK2WN82", "AntoniStroinski", r"\:/\/slashes are fun", 1000);
        let key = "74F490DD33F7327BAECC88B2947C011FC02D014A473AAA33A8EC93E4DC069174";
        assert_eq!(signed(key, &slashes), "CZErGCNQaSsxbaQfZaJlakqo7KPP+mIa8a+wx3yNs9A=");
    }
}
