//! From a Kafka record to a result, or to the reason why it is none. Waits only for the schema registry.
//!
//! Whatever bytes arrive: no panic, nothing thrown away. What cannot be a result keeps its original bytes for the quarantine.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use chassis::telemetry::TraceContext;
use rdkafka::message::{BorrowedMessage, Header, Headers, Message as _};
use schema::{
    decode::{DecodeError, Decoder},
    psp_result_update::{PspResultUpdateEvent, sanitise_error_message},
    wire::Envelope,
};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

/// Longest reason that is kept, in characters.
const REASON_MAX_CHARS: usize = 500;

/// A record as it came, copied out of the consumer's memory.
#[derive(Clone, Debug)]
pub struct RawRecord {
    /// Where it came from.
    pub topic: Arc<str>,
    /// Where in the topic.
    pub partition: i32,
    /// Where in the partition.
    pub offset: i64,
    /// Its key.
    pub key: Option<Vec<u8>>,
    /// Its value; None is a tombstone.
    pub value: Option<Vec<u8>>,
    /// Its headers; an Err says why they could not be read.
    pub headers: Result<RawHeaders, &'static str>,
    /// The time that it bears, in milliseconds since 1970, if it bears any. Whoever wrote it may have written anything.
    pub timestamp_ms: Option<i64>,
}

/// Headers in their order; a name may occur more than once.
#[derive(Clone, Debug, Default)]
pub struct RawHeaders(pub Vec<(String, Option<Vec<u8>>)>);

impl Headers for RawHeaders {
    fn count(&self) -> usize {
        self.0.len()
    }

    fn try_get(&self, index: usize) -> Option<Header<'_, &[u8]>> {
        self.0.get(index).map(|(key, value)| Header { key, value: value.as_deref() })
    }
}

impl RawHeaders {
    /// As JSON: an array of objects with `name` and `value`, or `hex` where the value is not text that PostgreSQL can hold.
    pub fn to_json(&self) -> Value {
        let text = |bytes: &[u8]| {
            std::str::from_utf8(bytes).ok().filter(|text| !text.contains('\0')).map(str::to_owned)
        };
        self.0
            .iter()
            .map(|(name, value)| match value.as_deref() {
                None => json!({ "name": name }),
                Some(bytes) => match text(bytes) {
                    Some(text) => json!({ "name": name, "value": text }),
                    None => json!({ "name": name, "hex": hex::encode(bytes) }),
                },
            })
            .collect()
    }

    /// What [`Self::to_json`] has written.
    pub fn from_json(json: &Value) -> Self {
        let headers = json.as_array().into_iter().flatten();
        Self(
            headers
                .filter_map(|header| {
                    let text = header["value"].as_str().map(|text| text.as_bytes().to_vec());
                    let bytes = || header["hex"].as_str().and_then(|hex| hex::decode(hex).ok());
                    Some((header["name"].as_str()?.to_owned(), text.or_else(bytes)))
                })
                .collect(),
        )
    }
}

impl RawRecord {
    /// Copies a record out of the consumer's memory.
    pub fn copy(topic: &Arc<str>, message: &BorrowedMessage<'_>) -> Self {
        // rdkafka panics on a header name that is not UTF-8, and anybody who may write to the topic may write such a name.
        let headers = catch_unwind(AssertUnwindSafe(|| {
            let headers = message.headers().into_iter().flat_map(Headers::iter);
            RawHeaders(
                headers.map(|header| (header.key.to_owned(), header.value.map(<[u8]>::to_vec))).collect(),
            )
        }));
        Self {
            topic: Arc::clone(topic),
            partition: message.partition(),
            offset: message.offset(),
            key: message.key().map(<[u8]>::to_vec),
            value: message.payload().map(<[u8]>::to_vec),
            headers: headers.map_err(|_| "the name of a header is not UTF-8"),
            timestamp_ms: message.timestamp().to_millis(),
        }
    }

    /// SHA-256 of all that the record is, wherever it lies: the same whenever it is read again.
    pub fn digest(&self) -> [u8; 32] {
        let mut hash = Sha256::new();
        let mut part = |bytes: Option<&[u8]>| match bytes {
            None => hash.update([0]),
            Some(bytes) => {
                hash.update([1]);
                hash.update(bytes.len().to_be_bytes());
                hash.update(bytes);
            }
        };
        part(self.key.as_deref());
        part(self.value.as_deref());
        for (name, value) in self.headers.iter().flat_map(|headers| &headers.0) {
            part(Some(name.as_bytes()));
            part(value.as_deref());
        }
        part(self.timestamp_ms.map(i64::to_be_bytes).as_ref().map(<[u8; 8]>::as_slice));
        hash.finalize().into()
    }

    /// The context that came with it, if one did.
    pub fn trace(&self) -> Option<TraceContext> {
        self.headers.as_ref().ok().and_then(|headers| trace_of(&Envelope::read(Some(headers))))
    }

    /// About how much memory it holds.
    pub fn bytes(&self) -> usize {
        let headers = self.headers.as_ref().map_or(0, |headers| {
            headers.0.iter().map(|(name, value)| name.len() + value.as_ref().map_or(0, Vec::len)).sum()
        });
        self.key.as_ref().map_or(0, Vec::len) + self.value.as_ref().map_or(0, Vec::len) + headers
    }
}

/// A result of a PSP, ready to be decided upon.
#[derive(Clone, Debug)]
pub struct ResultUpdate {
    /// The record that carried it.
    pub record: Arc<RawRecord>,
    /// The same for every copy of the event.
    pub event_id: Uuid,
    /// What the PSP said.
    pub event: PspResultUpdateEvent,
    /// The context that came with the record: that of its creation.
    pub trace: Option<TraceContext>,
    /// Where it comes from, when it is tried again.
    pub again: Option<Again>,
}

/// A record of the quarantine that is tried again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Again {
    /// Its row there.
    pub quarantine_id: i64,
    /// Who asked for it; None where its payment order has appeared meanwhile.
    pub asked: Option<Asked>,
}

/// An operator's command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// Its row in `payments.commands`.
    pub command_id: i64,
    /// Who gave it.
    pub operator: Arc<str>,
}

/// Why a record is in quarantine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QuarantineReason {
    /// It is not an event.
    Undecodable,
    /// Its payment order does not exist (yet).
    Orphan,
    /// It contradicts itself, or the database refused it.
    Refused,
}

impl QuarantineReason {
    /// Every reason.
    pub const ALL: [Self; 3] = [Self::Undecodable, Self::Orphan, Self::Refused];

    /// The word in the database and in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Undecodable => "UNDECODABLE",
            Self::Orphan => "ORPHAN",
            Self::Refused => "REFUSED",
        }
    }
}

/// A record that is set aside.
#[derive(Clone, Debug)]
pub struct SetAside {
    /// The record, with all its bytes.
    pub record: Arc<RawRecord>,
    /// Sort of reason.
    pub reason_code: QuarantineReason,
    /// The reason for people.
    pub reason: String,
    /// Its event id, if it has one.
    pub event_id: Option<Uuid>,
    /// Its payment order, if it names one.
    pub payment_order_id: Option<Uuid>,
    /// The context that came with it, if one did.
    pub trace: Option<TraceContext>,
    /// Its row in the quarantine, if it was tried again.
    pub quarantine_id: Option<i64>,
}

impl SetAside {
    /// Sets a record aside that is no event.
    fn undecodable(record: Arc<RawRecord>, reason: &str) -> Self {
        let envelope =
            record.headers.as_ref().map(|headers| Envelope::read(Some(headers))).unwrap_or_default();
        let (event_id, trace) = (envelope.event_id, trace_of(&envelope));
        let reason_code = QuarantineReason::Undecodable;
        let (reason, quarantine_id) = (brief(reason), None);
        Self { record, reason_code, reason, event_id, payment_order_id: None, trace, quarantine_id }
    }

    /// Sets a result aside.
    pub fn result(update: &ResultUpdate, reason_code: QuarantineReason, reason: &str) -> Self {
        Self {
            record: Arc::clone(&update.record),
            reason_code,
            reason: brief(reason),
            event_id: Some(update.event_id),
            payment_order_id: Some(update.event.payment_order_id),
            trace: update.trace,
            quarantine_id: update.again.as_ref().map(|again| again.quarantine_id),
        }
    }
}

fn trace_of(envelope: &Envelope) -> Option<TraceContext> {
    envelope.traceparent.as_deref().and_then(TraceContext::parse)
}

/// One line without control characters: a reason may quote what was in the record.
fn brief(reason: &str) -> String {
    sanitise_error_message(reason).chars().take(REASON_MAX_CHARS).collect()
}

/// What a record turned out to be.
#[derive(Debug)]
pub enum Taken {
    /// A result.
    Update(ResultUpdate),
    /// Something else.
    Aside(SetAside),
}

/// Reads one record. Err: the schema registry could not be asked; the record may well be fine.
pub async fn take(decoder: &Decoder<PspResultUpdateEvent>, record: Arc<RawRecord>) -> Result<Taken, String> {
    let envelope = match &record.headers {
        Ok(headers) => Envelope::read(Some(headers)),
        Err(reason) => {
            let reason = *reason;
            return Ok(Taken::Aside(SetAside::undecodable(record, reason)));
        }
    };
    let mut event = match decoder.decode(record.value.as_deref()).await {
        Ok(event) => event,
        Err(DecodeError::Wait(reason)) => return Err(reason),
        Err(DecodeError::Undecodable(reason)) => {
            return Ok(Taken::Aside(SetAside::undecodable(record, &reason)));
        }
    };
    // A text for people is no reason to refuse a result.
    event.error_message = event.error_message.map(|text| sanitise_error_message(&text));
    let event_id = envelope.event_id.unwrap_or_else(|| event.fallback_event_id(&record.topic));
    let trace = trace_of(&envelope);
    let keyed_right = record.key.as_deref() == Some(event.payment_order_id.to_string().as_bytes());
    let update = ResultUpdate { record, event_id, event, trace, again: None };
    if keyed_right {
        return Ok(Taken::Update(update));
    }
    // Under another key it may lie in another partition: nothing is known of its order among the order's other results.
    Ok(Taken::Aside(SetAside::result(
        &update,
        QuarantineReason::Refused,
        "the record's key is not its paymentOrderId",
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_of_a_record_is_in_its_digest() {
        let record = RawRecord {
            topic: Arc::from("t"),
            partition: 0,
            offset: 1,
            key: Some(b"ab".to_vec()),
            value: None,
            headers: Ok(RawHeaders(vec![("n".into(), Some(b"v".to_vec()))])),
            timestamp_ms: Some(1),
        };
        let changed: [fn(&mut RawRecord); 7] = [
            |record| record.key = None,
            |record| record.key = Some(Vec::new()),
            |record| record.value = Some(Vec::new()),
            |record| record.headers = Ok(RawHeaders(vec![("nv".into(), None)])),
            |record| {
                record.headers = Ok(RawHeaders(vec![("n".into(), Some(b"v".to_vec())), ("n".into(), None)]));
            },
            |record| record.timestamp_ms = None,
            |record| (record.key, record.value) = (Some(b"a".to_vec()), Some(b"b".to_vec())),
        ];
        let mut digests = vec![record.digest()];
        for change in changed {
            let mut other = record.clone();
            change(&mut other);
            digests.push(other.digest());
        }
        for (index, digest) in digests.iter().enumerate() {
            assert!(!digests[..index].contains(digest), "{index}");
        }
        let elsewhere = RawRecord { partition: 7, offset: 9, ..record.clone() };
        assert_eq!(elsewhere.digest(), record.digest(), "where it lies is not in it");
    }

    #[test]
    fn headers_survive_the_quarantine_byte_for_byte() {
        let headers = RawHeaders(vec![
            ("ce_id".into(), Some(b"1".to_vec())),
            ("ce_id".into(), Some(b"2".to_vec())),
            ("none".into(), None),
            ("empty".into(), Some(Vec::new())),
            ("binary".into(), Some(vec![0xff, 0])),
            ("nul".into(), Some(b"a\0b".to_vec())),
        ]);
        let json = headers.to_json();
        assert!(!json.to_string().contains("\\u0000"), "PostgreSQL's jsonb cannot hold it: {json}");
        assert_eq!(RawHeaders::from_json(&json).0, headers.0);
    }
}
