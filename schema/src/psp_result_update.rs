//! `PspResultUpdateEvent`: what a PSP said about one payment order.

use apache_avro::types::Value;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::{
    card_numbers::mask_card_numbers_in,
    decode::{Event, Fields},
};

/// The most characters of [`PspResultUpdateEvent::error_message`].
pub const ERROR_MESSAGE_MAX_CHARS: usize = 500;

/// What a PSP said about one payment order. In the outbox it is JSON (this type's serde form), on the wire Avro.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PspResultUpdateEvent {
    /// Unique and immutable: the idempotency key, and the Kafka key.
    pub payment_order_id: Uuid,
    /// What the PSP said.
    pub psp_status: PspStatus,
    /// The PSP's id of the payment: Stripe `pi_...`, Adyen `pspReference`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub psp_reference: Option<String>,
    /// When the result was obtained from the PSP, UTC, to the microsecond.
    #[serde(with = "time::serde::rfc3339")]
    pub event_time: OffsetDateTime,
    /// The PSP's machine code, or one of ours.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error_code: Option<String>,
    /// Sanitised text for people: see [`sanitise_error_message`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error_message: Option<String>,
}

/// The status of a payment order as its PSP sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum PspStatus {
    /// The PSP confirmed exactly our amount in our currency.
    Successful,
    /// The PSP says definitively that no money moved.
    Failed,
    /// The PSP accepted it and will say more later.
    Pending,
    /// Nobody knows yet: a timeout, an answer that could not be understood, a symbol newer than this reader.
    Unknown,
}

impl PspStatus {
    /// The symbol in the Avro schema, in JSON and in the databases.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Successful => "SUCCESSFUL",
            Self::Failed => "FAILED",
            Self::Pending => "PENDING",
            Self::Unknown => "UNKNOWN",
        }
    }
}

impl PspResultUpdateEvent {
    /// The id of a record that came without a `ce_id` header: the same record gets the same id each time it is read.
    pub fn fallback_event_id(&self, topic: &str) -> Uuid {
        let name = [
            topic,
            &self.payment_order_id.to_string(),
            self.psp_status.as_str(),
            self.psp_reference.as_deref().unwrap_or_default(),
            self.error_code.as_deref().unwrap_or_default(),
            &self.event_time.unix_timestamp_nanos().to_string(),
        ]
        .join("\n");
        Uuid::new_v5(&Uuid::NAMESPACE_URL, name.as_bytes())
    }
}

/// One line of at most [`ERROR_MESSAGE_MAX_CHARS`] characters, without control characters, and with card numbers masked.
pub fn sanitise_error_message(text: &str) -> String {
    let printable: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let masked = mask_card_numbers_in(&printable);
    masked.chars().take(ERROR_MESSAGE_MAX_CHARS).collect::<String>().trim().to_owned()
}

impl Event for PspResultUpdateEvent {
    const TYPE: &'static str = "PspResultUpdateEvent";
    const SCHEMA: &'static str = include_str!("../avro/psp_result_update_event.avsc");

    fn from_avro(value: Value) -> Result<Self, String> {
        let mut fields = Fields::of(value)?;
        Ok(Self {
            payment_order_id: fields.uuid("paymentOrderId")?,
            psp_status: match fields.symbol("pspStatus")?.as_str() {
                "SUCCESSFUL" => PspStatus::Successful,
                "FAILED" => PspStatus::Failed,
                "PENDING" => PspStatus::Pending,
                "UNKNOWN" => PspStatus::Unknown,
                // Resolution to our schema has already mapped foreign symbols to the default.
                other => return Err(format!("pspStatus {other:?} is not a symbol of the schema")),
            },
            psp_reference: fields.optional_string("pspReference")?,
            event_time: fields.timestamp("eventTime")?,
            error_code: fields.optional_string("errorCode")?,
            error_message: fields.optional_string("errorMessage")?,
        })
    }
}
