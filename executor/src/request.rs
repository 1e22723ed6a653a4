//! From a record of the topic to a request that can be carried out, or the reason why it is not one. Pure, but for the registry.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    time::Duration,
};

use chassis::telemetry::TraceContext;
use rdkafka::message::{Headers as _, Message as _, OwnedHeaders, OwnedMessage};
use schema::{
    card_numbers::{looks_like_card_number, mask_card_numbers, mask_card_numbers_in},
    decode::{DecodeError, Decoder},
    payment_order_requested::{PaymentOrderRequestedEvent, is_payment_method_token},
    wire::Envelope,
};
use serde_json::{Value, json};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::psp::Psps;

/// Longest text taken in: Stripe's limit of a metadata value.
const TEXT_MAX_CHARS: usize = 500;
/// W3C Trace Context: at least 512 characters must be kept.
const TRACESTATE_MAX_BYTES: usize = 512;

/// A request may be begun for so long at most after it was taken in, whatever it says: the payment service gives 12 hours, and clocks may
/// differ. All that is ever begun for an order, also by a database that was put back and reads the topic again, lies within this time,
/// and every PSP remembers an idempotency key for longer.
const LIFETIME_MAX: Duration = Duration::from_hours(13);

/// A request that can be carried out.
#[derive(Clone, Debug)]
pub struct Request {
    /// What is asked for.
    pub event: PaymentOrderRequestedEvent,
    /// `ce_id` of the record.
    pub event_id: Option<Uuid>,
    /// The trace that the payment began; a new one if the record has none. What is done for the order is a child of this step.
    pub trace: TraceContext,
    /// Its state, unchanged.
    pub tracestate: Option<String>,
}

/// A record that is set aside, as it came.
#[derive(Clone, Debug)]
pub struct Quarantined {
    /// Topic, partition and offset.
    pub position: (String, i32, i64),
    /// Why, for machines.
    pub reason: Reason,
    /// Why, for people.
    pub text: String,
    /// Original key.
    pub key: Option<Vec<u8>>,
    /// Original value.
    pub value: Option<Vec<u8>>,
    /// Original headers, as JSON.
    pub headers: Value,
    /// Some of these looked like card numbers, and are not original.
    pub masked: bool,
}

/// Why a record is set aside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// It is not an event of this type.
    Undecodable,
    /// Its key is not its payment order id: it could overtake, or be overtaken.
    KeyMismatch,
    /// Nobody here talks to that PSP.
    UnknownPsp,
    /// The amount is not greater than 0.
    Amount,
    /// A text is not what it should be: currency, token or reference.
    Text,
    /// A text looks like a card number.
    CardNumber,
    /// It could be begun after the PSP has forgotten its idempotency key.
    Lifetime,
    /// The database refused it.
    Refused,
}

impl Reason {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Undecodable,
        Self::KeyMismatch,
        Self::UnknownPsp,
        Self::Amount,
        Self::Text,
        Self::CardNumber,
        Self::Lifetime,
        Self::Refused,
    ];

    /// As it stands in the database and in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Undecodable => "UNDECODABLE",
            Self::KeyMismatch => "KEY_MISMATCH",
            Self::UnknownPsp => "UNKNOWN_PSP",
            Self::Amount => "AMOUNT",
            Self::Text => "TEXT",
            Self::CardNumber => "CARD_NUMBER",
            Self::Lifetime => "LIFETIME",
            Self::Refused => "REFUSED",
        }
    }
}

/// Reads a record. The error is for the registry's absence alone: the same record is to be read again later.
pub async fn read(
    record: &OwnedMessage,
    decoder: &Decoder<PaymentOrderRequestedEvent>,
    psps: &Psps,
    now: OffsetDateTime,
) -> Result<Result<Request, Quarantined>, String> {
    let event = match decoder.decode(record.payload()).await {
        Ok(event) => event,
        Err(DecodeError::Wait(text)) => return Err(text),
        Err(DecodeError::Undecodable(text)) => {
            return Ok(Err(quarantined(record, Reason::Undecodable, &text)));
        }
    };
    if let Err((reason, text)) = check(&event, record.key(), psps, now) {
        return Ok(Err(quarantined(record, reason, &text)));
    }
    let Ok(envelope) = with_headers(record, Envelope::read) else {
        return Ok(Err(quarantined(record, Reason::Undecodable, "the name of a header is not UTF-8")));
    };
    let trace = envelope.traceparent.as_deref().and_then(TraceContext::parse);
    let printable = |text: &String| {
        text.len() <= TRACESTATE_MAX_BYTES
            && text.bytes().all(|b| (b' '..=b'~').contains(&b))
            && !looks_like_card_number(text)
    };
    Ok(Ok(Request {
        event,
        event_id: envelope.event_id,
        tracestate: envelope.tracestate.filter(printable).filter(|_| trace.is_some()),
        trace: trace.unwrap_or_else(TraceContext::new_trace),
    }))
}

/// The context that came with a record: that of its creation.
pub fn trace_of(record: &OwnedMessage) -> Option<TraceContext> {
    with_headers(record, Envelope::read).ok()?.traceparent.as_deref().and_then(TraceContext::parse)
}

/// Sets a record aside, as it came, but for card numbers: those are kept nowhere, and stand in no log.
pub fn quarantined(record: &OwnedMessage, reason: Reason, text: &str) -> Quarantined {
    let mut masked = false;
    let mut kept = |bytes: Option<&[u8]>| {
        bytes.map(|bytes| {
            let safe = mask_card_numbers(bytes);
            masked |= safe != bytes;
            safe.into_owned()
        })
    };
    let (key, value) = (kept(record.key()), kept(record.payload()));
    let (headers, in_headers) = headers(record);
    // The text may quote the record, and PostgreSQL takes no NUL.
    let printable: String = text.chars().filter(|c| !c.is_control()).collect();
    let safe = mask_card_numbers_in(&printable);
    masked |= in_headers || safe != printable.as_str();
    Quarantined {
        position: (record.topic().to_owned(), record.partition(), record.offset()),
        reason,
        text: safe.chars().take(1000).collect(),
        key,
        value,
        headers,
        masked,
    }
}

fn check(
    event: &PaymentOrderRequestedEvent,
    key: Option<&[u8]>,
    psps: &Psps,
    now: OffsetDateTime,
) -> Result<(), (Reason, String)> {
    if key != Some(event.payment_order_id.to_string().as_bytes()) {
        return Err((
            Reason::KeyMismatch,
            format!("the key is not the payment order id {}", event.payment_order_id),
        ));
    }
    // Before anything that could quote it.
    let texts = [
        ("PSP", &event.psp),
        ("currency", &event.currency),
        ("payment method", &event.payment_method),
        ("merchant reference", &event.merchant_reference),
    ];
    if let Some((name, _)) = texts.into_iter().find(|(_, text)| looks_like_card_number(text)) {
        return Err((Reason::CardNumber, format!("the {name} looks like a card number")));
    }
    if psps.get(&event.psp).is_none() {
        return Err((Reason::UnknownPsp, format!("no adapter for the PSP {:?}", event.psp)));
    }
    if event.amount_minor <= 0 {
        return Err((Reason::Amount, format!("the amount is {}", event.amount_minor)));
    }
    if event.currency.len() != 3 || !event.currency.bytes().all(|b| b.is_ascii_uppercase()) {
        return Err((Reason::Text, format!("{:?} is not an ISO 4217 code", event.currency)));
    }
    // A token begins with a letter; a card number does not, and neither belongs into any message.
    if !is_payment_method_token(&event.payment_method) {
        return Err((Reason::Text, "the payment method is not a token".to_owned()));
    }
    if event.merchant_reference.chars().count() > TEXT_MAX_CHARS
        || event.merchant_reference.chars().any(char::is_control)
    {
        return Err((
            Reason::Text,
            "the merchant reference is too long or has control characters".to_owned(),
        ));
    }
    if event.expires_at > now + LIFETIME_MAX {
        return Err((
            Reason::Lifetime,
            format!("it expires more than 13 hours from now, at {}", event.expires_at),
        ));
    }
    Ok(())
}

/// The headers as JSON, and whether card numbers were masked in them.
fn headers(record: &OwnedMessage) -> (Value, bool) {
    let mut masked = false;
    let readable =
        |bytes: &[u8]| std::str::from_utf8(bytes).ok().filter(|text| !text.contains('\0')).map(str::to_owned);
    let mut one = |header: rdkafka::message::Header<'_, &[u8]>| {
        let name = header.key.replace('\0', "");
        let (name, value) = (mask_card_numbers_in(&name), header.value.map(mask_card_numbers));
        masked |= name != header.key.replace('\0', "") || value.as_deref() != header.value;
        match value.as_deref() {
            None => json!({ "name": name }),
            Some(bytes) => match readable(bytes) {
                Some(text) => json!({ "name": name, "text": text }),
                None => json!({ "name": name, "hex": hex::encode(bytes) }),
            },
        }
    };
    let all = |headers: Option<&OwnedHeaders>| {
        headers.map_or_else(|| json!([]), |headers| headers.iter().map(&mut one).collect())
    };
    let headers = with_headers(record, all).unwrap_or_else(|_| json!([]));
    (headers, masked)
}

/// Reads a record's headers. rdkafka panics on a header name that is not UTF-8, and anybody who may write to the topic may write
/// such a name.
fn with_headers<T>(
    record: &OwnedMessage,
    read: impl FnOnce(Option<&OwnedHeaders>) -> T,
) -> std::thread::Result<T> {
    catch_unwind(AssertUnwindSafe(|| read(record.headers())))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use rdkafka::{
        Timestamp,
        message::{Header, OwnedHeaders},
    };
    use secrecy::SecretString;

    use super::*;
    use crate::psp::{Psp, http::Site, stripe::Stripe};

    fn psps() -> Psps {
        let site = Site::new("http://127.0.0.1:1", Duration::from_secs(1));
        let stripe = Stripe::new(&site, &SecretString::from("sk_test_x")).unwrap();
        Psps::new([Arc::new(stripe) as Arc<dyn Psp>])
    }

    fn event() -> PaymentOrderRequestedEvent {
        PaymentOrderRequestedEvent {
            payment_order_id: Uuid::from_u128(1),
            psp: "STRIPE".into(),
            amount_minor: 1,
            currency: "EUR".into(),
            payment_method: "pm_card_visa".into(),
            merchant_reference: "order 1".into(),
            expires_at: OffsetDateTime::UNIX_EPOCH,
        }
    }

    #[test]
    fn what_cannot_be_carried_out_is_refused_with_its_reason() {
        let psps = psps();
        let refused = |change: &dyn Fn(&mut PaymentOrderRequestedEvent)| {
            let mut event = event();
            let key = event.payment_order_id.to_string();
            change(&mut event);
            check(&event, Some(key.as_bytes()), &psps, OffsetDateTime::UNIX_EPOCH)
                .err()
                .map(|(reason, _)| reason)
        };
        assert_eq!(refused(&|_| {}), None);
        assert_eq!(refused(&|e| e.payment_order_id = Uuid::from_u128(2)), Some(Reason::KeyMismatch));
        assert_eq!(refused(&|e| e.psp = "stripe".into()), Some(Reason::UnknownPsp));
        assert_eq!(refused(&|e| e.amount_minor = 0), Some(Reason::Amount));
        assert_eq!(refused(&|e| e.amount_minor = i64::MIN), Some(Reason::Amount));
        for currency in ["", "eur", "EURO", "E R"] {
            assert_eq!(refused(&|e| e.currency = currency.into()), Some(Reason::Text), "{currency:?}");
        }
        for token in ["", "4111111111111112", "4111 1111", "pm_\0", "pm é", "pm_x\n"] {
            assert_eq!(refused(&|e| e.payment_method = token.into()), Some(Reason::Text), "{token:?}");
        }
        assert_eq!(refused(&|e| e.merchant_reference = "a\0".into()), Some(Reason::Text));
        assert_eq!(refused(&|e| e.merchant_reference = "a".repeat(501)), Some(Reason::Text));
        assert_eq!(
            check(&event(), None, &psps, OffsetDateTime::UNIX_EPOCH).unwrap_err().0,
            Reason::KeyMismatch
        );
        let at = |expires_in| refused(&|e| e.expires_at += expires_in);
        assert_eq!(at(Duration::from_hours(13)), None);
        assert_eq!(at(Duration::from_hours(13) + Duration::from_micros(1)), Some(Reason::Lifetime));
        let card = |refused: Option<Reason>| assert_eq!(refused, Some(Reason::CardNumber));
        card(refused(&|e| e.payment_method = "4111111111111111".into()));
        card(refused(&|e| e.payment_method = "pm_4111111111111111".into()));
        card(refused(&|e| e.merchant_reference = "card 5555-5555-5555-4444".into()));
        card(refused(&|e| e.psp = "378282246310005".into()));
        card(refused(&|e| e.currency = "4222222222222".into()));
    }

    #[test]
    fn a_record_is_set_aside_as_it_came() {
        let headers = OwnedHeaders::new()
            .insert(Header { key: "a", value: Some("text") })
            .insert(Header { key: "b", value: Some(&[0xff, 0x00][..]) })
            .insert(Header { key: "a", value: None::<&str> });
        let record = OwnedMessage::new(
            Some(vec![1, 0]),
            None,
            "t".into(),
            Timestamp::NotAvailable,
            3,
            42,
            Some(headers),
        );
        let aside = quarantined(&record, Reason::Undecodable, "not\0 this");
        assert_eq!(aside.position, ("t".to_owned(), 3, 42));
        assert_eq!(
            (aside.key, aside.value.as_deref(), aside.text.as_str()),
            (None, Some(&[1, 0][..]), "not this")
        );
        assert_eq!(
            aside.headers,
            json!([{"name": "a", "text": "text"}, {"name": "b", "hex": "ff00"}, {"name": "a"}])
        );
        assert!(!aside.masked);
    }

    #[test]
    fn card_numbers_are_not_set_aside() {
        let pan = "4111111111111111";
        let plain = || OwnedHeaders::new().insert(Header { key: "a", value: Some("b") });
        let headers = || plain().insert(Header { key: "c", value: Some("4111 1111 1111 1111") });
        let rows = [
            (pan.as_bytes().to_vec(), b"\x00value".to_vec(), plain(), "text".to_owned()),
            (b"key".to_vec(), format!("\0{pan}\0").into_bytes(), plain(), "text".to_owned()),
            (b"key".to_vec(), vec![], headers(), "text".to_owned()),
            (b"key".to_vec(), vec![], plain(), format!("no {pan}")),
        ];
        for (key, value, headers, text) in rows {
            let length = value.len();
            let record = OwnedMessage::new(
                Some(value),
                Some(key),
                "t".into(),
                Timestamp::NotAvailable,
                0,
                0,
                Some(headers),
            );
            let aside = quarantined(&record, Reason::Text, &text);
            assert!(aside.masked);
            assert_eq!(aside.value.as_ref().map(Vec::len), Some(length), "as many bytes as before");
            let shown = format!(
                "{} {} {} {}",
                String::from_utf8_lossy(aside.key.as_deref().unwrap()),
                String::from_utf8_lossy(aside.value.as_deref().unwrap()),
                aside.headers,
                aside.text
            );
            assert!(!shown.contains(pan) && !shown.contains("4111 1111"), "{shown}");
            assert!(shown.contains("***"), "{shown}");
        }
    }
}
