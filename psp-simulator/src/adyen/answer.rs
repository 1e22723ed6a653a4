//! Answers: what is kept for a replay, and the bytes that it gives.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::http::StatusCode;
use serde::Serialize;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::errors::Refusal;
use super::params::Cancel;
use super::payments::{Payment, State, psp_reference};
use super::refusals::words;
use crate::scenario::{Action, Statement, Waiting};

/// An answer of the Checkout API. The same answer always gives the same bytes.
#[derive(Debug, Clone)]
pub(crate) enum Answer {
    Payment(Arc<Payment>, State),
    Cancel(Arc<Receipt>),
    Refused { refusal: Box<Refusal>, psp_reference: Box<str> },
}

/// A cancel that was received.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Receipt {
    merchant_account: Box<str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    payment_psp_reference: Option<Box<str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    payment_reference: Option<Box<str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reference: Option<Box<str>>,
    psp_reference: Box<str>,
    status: &'static str,
    #[serde(skip)]
    pub(crate) effect: Effect,
}

/// What a cancel came to, which only its webhook tells.
#[derive(Debug)]
pub(crate) struct Effect {
    pub(crate) success: bool,
    pub(crate) found: bool,
    /// Asked for by the merchant's own reference.
    pub(crate) technical: bool,
    pub(crate) original: Option<Arc<Payment>>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct PaymentBody<'a> {
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    additional_data: BTreeMap<&'static str, String>,
    psp_reference: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    refusal_reason: Option<&'static str>,
    result_code: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    refusal_reason_code: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    amount: Option<Amount<'a>>,
    merchant_reference: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    payment_method: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    action: Option<Value>,
}

/// An amount on the wire.
#[derive(Debug, Serialize)]
pub(crate) struct Amount<'a> {
    pub(crate) currency: &'a str,
    pub(crate) value: i64,
}

impl Receipt {
    pub(crate) fn new(psp_reference: Box<str>, cancel: Cancel, effect: Effect) -> Self {
        let of_payment = if effect.technical { None } else { effect.original.as_ref() };
        Self {
            merchant_account: cancel.merchant_account,
            payment_psp_reference: of_payment.map(|payment| (*payment.psp_reference).into()),
            payment_reference: cancel.payment_reference,
            reference: cancel.reference,
            psp_reference,
            status: "received",
            effect,
        }
    }

    pub(crate) fn psp_reference(&self) -> &str {
        &self.psp_reference
    }

    pub(crate) fn merchant_account(&self) -> &str {
        &self.merchant_account
    }

    /// Of the payment, so that its webhook can be told to belong to it.
    pub(crate) fn merchant_reference(&self) -> &str {
        match (&self.payment_reference, &self.effect.original) {
            (Some(reference), _) => reference,
            (None, Some(payment)) => &payment.terms.reference,
            (None, None) => "",
        }
    }
}

impl Answer {
    pub(crate) fn refused(refusal: Refusal) -> Self {
        Self::Refused { refusal: Box::new(refusal), psp_reference: psp_reference().into() }
    }

    pub(crate) fn status(&self) -> StatusCode {
        match self {
            Self::Payment(..) => StatusCode::OK,
            Self::Cancel(_) => StatusCode::CREATED,
            Self::Refused { refusal, .. } => refusal.status,
        }
    }

    pub(crate) fn psp_reference(&self) -> &str {
        match self {
            Self::Payment(payment, _) => &payment.psp_reference,
            Self::Cancel(receipt) => receipt.psp_reference(),
            Self::Refused { psp_reference, .. } => psp_reference,
        }
    }

    pub(crate) fn transient(&self) -> Option<bool> {
        match self {
            Self::Payment(..) | Self::Cancel(_) => None,
            Self::Refused { refusal, .. } => refusal.transient,
        }
    }

    pub(crate) fn render(&self) -> serde_json::Result<Vec<u8>> {
        match self {
            Self::Payment(payment, state) => serde_json::to_vec(&payment.body(*state)),
            Self::Cancel(receipt) => serde_json::to_vec(&**receipt),
            Self::Refused { refusal, psp_reference } => serde_json::to_vec(&refusal.body(psp_reference)),
        }
    }
}

impl Payment {
    /// What is said to be the amount when `value` is.
    pub(crate) fn stated(&self, value: i64) -> Amount<'_> {
        let currency = &*self.terms.currency;
        match self.statement {
            Statement::True => Amount { currency, value },
            Statement::OtherAmount => Amount { currency, value: value.saturating_add(1) },
            Statement::OtherCurrency => {
                Amount { currency: if currency == "EUR" { "USD" } else { "EUR" }, value }
            }
        }
    }

    fn body(&self, state: State) -> PaymentBody<'_> {
        let mut body = PaymentBody {
            additional_data: BTreeMap::new(),
            psp_reference: &self.psp_reference,
            refusal_reason: None,
            result_code: "Cancelled",
            refusal_reason_code: None,
            amount: None,
            merchant_reference: &self.terms.reference,
            payment_method: None,
            action: None,
        };
        match state {
            State::Authorised { taken } => {
                let whole = taken == self.terms.amount;
                body.result_code = if whole { "Authorised" } else { "PartiallyAuthorised" };
                body.amount = Some(self.stated(taken));
                body.payment_method = Some(json!({ "brand": "visa", "type": "scheme" }));
                let raw = if whole { "AUTHORISED" } else { "10 : Partial approval" };
                body.additional_data =
                    BTreeMap::from([("authCode", self.auth_code()), ("refusalReasonRaw", raw.to_owned())]);
                if let Some(model) = self.terms.recurring_processing_model {
                    body.additional_data.insert("recurringProcessingModel", model.to_owned());
                }
            }
            State::Refused(decline) => {
                let words = words(decline);
                body.result_code = words.result_code;
                body.refusal_reason = Some(words.reason);
                body.refusal_reason_code = Some(words.reason_code);
                body.additional_data = BTreeMap::from([("refusalReasonRaw", words.raw.to_owned())]);
            }
            State::Cancelled => {
                body.refusal_reason = Some("Cancelled");
                body.refusal_reason_code = Some("15");
            }
            State::Waiting(Waiting::Shopper(action)) | State::ActionRequired(action) => {
                let (result_code, action) = self.action(action);
                body.result_code = result_code;
                body.action = Some(action);
            }
            State::Waiting(Waiting::Processing) => self.waits(&mut body, "Pending"),
            State::Waiting(Waiting::Received) => self.waits(&mut body, "Received"),
            State::Waiting(Waiting::Unheard) => self.waits(&mut body, "UnderObservation"),
            State::WithIssuer => body.result_code = "Pending",
        }
        body
    }

    fn waits<'a>(&'a self, body: &mut PaymentBody<'a>, result_code: &'static str) {
        body.result_code = result_code;
        body.amount = Some(self.stated(self.terms.amount));
    }

    fn action(&self, action: Action) -> (&'static str, Value) {
        let id = hex::encode(&self.digest()[..16]);
        match action {
            Action::Redirect => {
                let url = format!(
                    "https://checkoutshopper-test.adyen.com/checkoutshopper/threeDS/redirect?MD={id}"
                );
                let action =
                    json!({ "paymentMethodType": "scheme", "url": url, "method": "GET", "type": "redirect" });
                ("RedirectShopper", action)
            }
            Action::Challenge => {
                let action = json!({
                    "paymentMethodType": "scheme", "authorisationToken": id, "paymentData": id,
                    "subtype": "challenge", "token": id, "type": "threeDS2",
                });
                ("ChallengeShopper", action)
            }
        }
    }

    /// Six digits: always the same for the same payment, so they need not be kept.
    pub(crate) fn auth_code(&self) -> String {
        let digest = self.digest();
        let number = u32::from_be_bytes([digest[0], digest[1], digest[2], digest[3]]);
        format!("{:06}", number % 1_000_000)
    }

    fn digest(&self) -> [u8; 32] {
        Sha256::digest(self.psp_reference.as_bytes()).into()
    }
}
