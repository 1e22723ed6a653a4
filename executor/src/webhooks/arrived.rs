//! An event as it is stored: by its dedup key, about its order, and without card numbers.

use schema::card_numbers::{mask_card_numbers, mask_card_numbers_in};
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use time::OffsetDateTime;
use uuid::Uuid;

use super::Sender;

/// Longest dedup key and event type, as the table has them.
const DEDUP_KEY_MAX_CHARS: usize = 255;
const EVENT_TYPE_MAX_CHARS: usize = 100;

/// A verified event, as it is stored.
#[derive(Clone, Debug)]
pub struct Arrived {
    /// Who sent it.
    pub sender: Sender,
    /// The same for the same event, whenever it is sent.
    pub dedup_key: String,
    /// The PSP's name for its kind.
    pub event_type: String,
    /// The order that it says it is about.
    pub payment_order_id: Option<Uuid>,
    /// What is kept of it: everything but card numbers.
    pub body: Vec<u8>,
    /// The body is not what came: card numbers were masked.
    pub body_masked: bool,
    /// When it came.
    pub received_at: OffsetDateTime,
}

impl Arrived {
    /// An event that could be read. `raw` is what came, if that is what is kept.
    pub(super) fn event(
        sender: Sender,
        dedup_key: &str,
        event_type: &str,
        payment_order_id: Option<Uuid>,
        mut event: Value,
        raw: Option<Vec<u8>>,
        received_at: OffsetDateTime,
    ) -> Self {
        let body_masked = mask(&mut event);
        let body = raw.filter(|_| !body_masked).unwrap_or_else(|| event.to_string().into_bytes());
        let dedup_key = mask_card_numbers_in(dedup_key).into_owned();
        let fits = dedup_key.chars().count() <= DEDUP_KEY_MAX_CHARS && !dedup_key.contains(char::is_control);
        let dedup_key = if fits { dedup_key } else { hash(dedup_key.as_bytes()) };
        let kind = mask_card_numbers_in(event_type);
        let event_type = kind.chars().filter(|c| !c.is_control()).take(EVENT_TYPE_MAX_CHARS).collect();
        Self { sender, dedup_key, event_type, payment_order_id, body, body_masked, received_at }
    }

    /// An event that names no order: nothing can follow from it here, now or later.
    pub(super) fn is_foreign(&self) -> bool {
        self.payment_order_id.is_none() && !self.event_type.is_empty()
    }

    /// Signed by the PSP, and not an event.
    pub(super) fn unreadable(sender: Sender, raw: &[u8], received_at: OffsetDateTime) -> Self {
        let body = mask_card_numbers(raw);
        Self {
            sender,
            dedup_key: hash(raw),
            event_type: String::new(),
            payment_order_id: None,
            body_masked: body != raw,
            body: body.into_owned(),
            received_at,
        }
    }
}

fn hash(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

/// Masks card numbers wherever they stand; true if there were any.
fn mask(value: &mut Value) -> bool {
    match value {
        Value::Null | Value::Bool(_) => false,
        Value::Number(number) => {
            let text = number.to_string();
            let masked = mask_card_numbers_in(&text).into_owned();
            let found = masked != text;
            if found {
                *value = Value::String(masked);
            }
            found
        }
        Value::String(text) => {
            let masked = mask_card_numbers_in(text).into_owned();
            let found = masked != *text;
            *text = masked;
            found
        }
        // All of them, also behind the first that is found.
        Value::Array(values) => values.iter_mut().map(mask).filter(|found| *found).count() > 0,
        Value::Object(fields) => {
            let named = fields.keys().any(|name| mask_card_numbers_in(name) != name.as_str());
            if named {
                let renamed = std::mem::take(fields).into_iter();
                *fields =
                    renamed.map(|(name, value)| (mask_card_numbers_in(&name).into_owned(), value)).collect();
            }
            fields.values_mut().fold(named, |found, value| mask(value) || found)
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn card_numbers_are_masked_wherever_they_stand_and_nothing_else_is() {
        let pan = "4111111111111111";
        let mut event = json!({"id": "evt_1", "created": 1_533_204_620_u64, "n": 4_111_111_111_111_111_u64,
            "deep": [{"text": format!("card {pan}")}, null, true], pan: 1});
        assert!(mask(&mut event));
        let text = event.to_string();
        assert!(!text.contains(pan), "{text}");
        assert!(
            text.contains("evt_1") && text.contains("1533204620") && text.contains("card ****"),
            "{text}"
        );
        let mut plain = json!({"id": "pi_1", "amount": 1999, "merchantReference": Uuid::nil().to_string(),
            "pspReference": "7914073381342284"});
        let before = plain.clone();
        assert!(!mask(&mut plain));
        assert_eq!(plain, before);
    }

    #[test]
    fn what_the_table_has_no_room_for_is_cut_or_hashed() {
        let at = OffsetDateTime::UNIX_EPOCH;
        let event = |key: String, kind: &str| {
            Arrived::event(
                Sender::Stripe,
                &key,
                kind,
                None,
                json!({"a": 1}),
                Some(b"{ \"a\": 1 }".to_vec()),
                at,
            )
        };
        let plain = event("evt_1".to_owned(), "a\0b");
        assert_eq!((plain.dedup_key.as_str(), plain.event_type.as_str()), ("evt_1", "ab"));
        assert_eq!(plain.body, b"{ \"a\": 1 }", "the bytes as they came");
        let long = event("k".repeat(256), &"t".repeat(200));
        assert!(long.dedup_key.starts_with("sha256:") && long.event_type.len() == 100);
        assert!(event("\0".to_owned(), "").dedup_key.starts_with("sha256:"));
    }
}
