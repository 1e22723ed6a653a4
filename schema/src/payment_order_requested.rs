//! `PaymentOrderRequestedEvent`: a payment order to be carried out by one PSP.

use apache_avro::types::Value;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::decode::{Event, Fields};

/// A payment order to be carried out: at most one charge. In the outbox it is JSON (this type's serde form), on the wire Avro.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PaymentOrderRequestedEvent {
    /// Unique and immutable: the idempotency key, and the Kafka key.
    pub payment_order_id: Uuid,
    /// `STRIPE` or `ADYEN`.
    pub psp: String,
    /// In minor units of the currency (ISO 4217 exponent); greater than 0.
    pub amount_minor: i64,
    /// ISO 4217 alphabetic code, upper case.
    pub currency: String,
    /// A token of the PSP's vault, never a card number.
    pub payment_method: String,
    /// The merchant's own id of the payment.
    pub merchant_reference: String,
    /// No first attempt starts after this time, UTC.
    #[serde(with = "time::serde::rfc3339")]
    pub expires_at: OffsetDateTime,
}

/// True for what can be a PSP's token: a letter, then letters, digits, `_` and `-`, at most 255 in all. A card number begins with a
/// digit and is none.
pub fn is_payment_method_token(text: &str) -> bool {
    text.len() <= 255
        && text.as_bytes().first().is_some_and(u8::is_ascii_alphabetic)
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-'))
}

impl Event for PaymentOrderRequestedEvent {
    const TYPE: &'static str = "PaymentOrderRequestedEvent";
    const SCHEMA: &'static str = include_str!("../avro/payment_order_requested_event.avsc");

    fn from_avro(value: Value) -> Result<Self, String> {
        let mut fields = Fields::of(value)?;
        Ok(Self {
            payment_order_id: fields.uuid("paymentOrderId")?,
            psp: fields.string("psp")?,
            amount_minor: fields.long("amountMinor")?,
            currency: fields.string("currency")?,
            payment_method: fields.string("paymentMethod")?,
            merchant_reference: fields.string("merchantReference")?,
            expires_at: fields.timestamp("expiresAt")?,
        })
    }
}
