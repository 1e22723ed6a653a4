//! How an event lies on the wire: Confluent's framing, CloudEvents headers (Kafka binding, binary mode) and W3C trace headers.

use rdkafka::message::Headers;
use uuid::Uuid;

/// First byte of every framed record.
const MAGIC: u8 = 0;
/// Magic byte and schema id.
pub const FRAME_BYTES: usize = 5;
/// `content-type` of our records.
pub const CONTENT_TYPE: &str = "application/avro";

/// Names of the headers.
pub mod header {
    /// CloudEvents version, `1.0`.
    pub const CE_SPECVERSION: &str = "ce_specversion";
    /// Event id: the same for every copy of an event.
    pub const CE_ID: &str = "ce_id";
    /// Event type.
    pub const CE_TYPE: &str = "ce_type";
    /// Which outbox it came from.
    pub const CE_SOURCE: &str = "ce_source";
    /// When the event was written to the outbox, RFC 3339.
    pub const CE_TIME: &str = "ce_time";
    /// Media type of the value.
    pub const CONTENT_TYPE: &str = "content-type";
    /// W3C trace context, as stored with the event.
    pub const TRACEPARENT: &str = "traceparent";
    /// W3C trace state, as stored with the event.
    pub const TRACESTATE: &str = "tracestate";
}

/// A value without its frame could not be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Fewer bytes than a frame has.
    #[error("{0} bytes are too few for magic byte and schema id")]
    TooShort(usize),
    /// Not Confluent's framing.
    #[error("magic byte is {0:#04x}, expected 0x00")]
    Magic(u8),
}

/// Begins a framed record: magic byte and schema id, big-endian. The Avro body is appended to it.
pub fn begin_frame(schema_id: u32, buffer: &mut Vec<u8>) {
    buffer.push(MAGIC);
    buffer.extend_from_slice(&schema_id.to_be_bytes());
}

/// Splits a framed record into schema id and Avro body.
pub fn unframe(record: &[u8]) -> Result<(u32, &[u8]), FrameError> {
    match record {
        [MAGIC, a, b, c, d, body @ ..] => Ok((u32::from_be_bytes([*a, *b, *c, *d]), body)),
        [magic, ..] if *magic != MAGIC => Err(FrameError::Magic(*magic)),
        _ => Err(FrameError::TooShort(record.len())),
    }
}

/// What the headers of a record say. A header that is absent or is not text counts as absent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Envelope {
    /// `ce_id`, if it is a uuid.
    pub event_id: Option<Uuid>,
    /// `ce_type`.
    pub event_type: Option<String>,
    /// `traceparent`, unchecked.
    pub traceparent: Option<String>,
    /// `tracestate`, unchecked.
    pub tracestate: Option<String>,
}

impl Envelope {
    /// Reads the headers of a record. Of a header that occurs twice the last counts, as in Java clients' `lastHeader`.
    pub fn read<H: Headers>(headers: Option<&H>) -> Self {
        let mut envelope = Self::default();
        for found in headers.iter().flat_map(|headers| headers.iter()) {
            let text = found.value.and_then(|bytes| std::str::from_utf8(bytes).ok());
            match found.key {
                header::CE_ID => envelope.event_id = text.and_then(|text| Uuid::try_parse(text).ok()),
                header::CE_TYPE => envelope.event_type = text.map(str::to_owned),
                header::TRACEPARENT => envelope.traceparent = text.map(str::to_owned),
                header::TRACESTATE => envelope.tracestate = text.map(str::to_owned),
                _ => {}
            }
        }
        envelope
    }
}

/// The subject of a topic's values (`TopicNameStrategy`).
pub fn value_subject(topic: &str) -> String {
    format!("{topic}-value")
}

#[cfg(test)]
mod tests {
    use rdkafka::message::{Header, OwnedHeaders};

    use super::*;

    #[test]
    fn a_frame_is_read_back_and_everything_else_is_refused() {
        let mut record = Vec::new();
        begin_frame(0x0102_0304, &mut record);
        record.extend_from_slice(b"body");
        assert_eq!(record, b"\x00\x01\x02\x03\x04body");
        assert_eq!(unframe(&record), Ok((0x0102_0304, b"body".as_slice())));
        assert_eq!(unframe(b"\x00\x01\x02\x03"), Err(FrameError::TooShort(4)));
        assert_eq!(unframe(b""), Err(FrameError::TooShort(0)));
        assert_eq!(unframe(b"\x01\x00\x00\x00\x01x"), Err(FrameError::Magic(1)));
    }

    #[test]
    fn headers_are_read_and_what_is_not_text_counts_as_absent() {
        let id = Uuid::now_v7();
        let headers = OwnedHeaders::new()
            .insert(Header { key: header::CE_ID, value: Some(&id.to_string()) })
            .insert(Header { key: header::TRACEPARENT, value: Some(b"\xff".as_slice()) })
            .insert(Header { key: header::CE_TYPE, value: Some("T") })
            .insert(Header { key: "other", value: None::<&str> });
        let envelope = Envelope::read(Some(&headers));
        assert_eq!(
            envelope,
            Envelope { event_id: Some(id), event_type: Some("T".into()), ..Envelope::default() }
        );
        assert_eq!(Envelope::read(None::<&OwnedHeaders>), Envelope::default());
    }
}
