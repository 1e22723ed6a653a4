//! A page as records: each row is encoded as it comes from the server, while its bytes are at hand, and only what its record needs is
//! kept, packed one behind the other. JSON rows are several times as large, and would be fetched from memory twice more.

use std::ops::Range;

use time::OffsetDateTime;
use uuid::Uuid;

use crate::{encode::Encoder, store::OutboxRow};

/// Rows, encoded, in id order.
#[derive(Debug, Default)]
pub struct Records {
    /// Keys, trace contexts, and reasons.
    text: String,
    bodies: Vec<u8>,
    /// Event types that occur: few.
    types: Vec<String>,
    packed: Vec<Packed>,
}

#[derive(Debug)]
struct Packed {
    id: i64,
    event_id: Uuid,
    created_at: OffsetDateTime,
    event_type: usize,
    aggregate_id: Range<usize>,
    traceparent: Option<Range<usize>>,
    tracestate: Option<Range<usize>>,
    /// In `bodies`, or in `text` why not.
    body: Result<Range<usize>, Range<usize>>,
}

/// A row and its Avro body.
#[derive(Clone, Copy, Debug)]
pub struct Record<'a> {
    /// Publication order.
    pub id: i64,
    /// `ce_id`.
    pub event_id: Uuid,
    /// Type, looked up in the catalogue.
    pub event_type: &'a str,
    /// Kafka key.
    pub aggregate_id: &'a str,
    /// W3C trace context as stored.
    pub traceparent: Option<&'a str>,
    /// W3C trace state as stored.
    pub tracestate: Option<&'a str>,
    /// When it was appended.
    pub created_at: OffsetDateTime,
    /// The Avro body, or why there is none.
    pub body: Result<&'a [u8], &'a str>,
}

impl Records {
    /// Encodes a row behind the others. What is wrong with it is kept with it.
    pub fn push(&mut self, row: &OutboxRow<'_>, encoder: &Encoder) {
        let known = self.types.iter().position(|known| known == row.event_type);
        let event_type = known.unwrap_or_else(|| {
            self.types.push(row.event_type.to_owned());
            self.types.len() - 1
        });
        let start = self.bodies.len();
        let body = match encoder.encode(row.event_type, row.payload, &mut self.bodies) {
            Ok(()) => Ok(start..self.bodies.len()),
            Err(reason) => Err(self.keep(&reason.to_string())),
        };
        let packed = Packed {
            id: row.id,
            event_id: row.event_id,
            created_at: row.created_at,
            event_type,
            aggregate_id: self.keep(row.aggregate_id),
            traceparent: row.traceparent.map(|trace| self.keep(trace)),
            tracestate: row.tracestate.map(|state| self.keep(state)),
            body,
        };
        self.packed.push(packed);
    }

    fn keep(&mut self, piece: &str) -> Range<usize> {
        let start = self.text.len();
        self.text.push_str(piece);
        start..self.text.len()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.packed.len()
    }

    /// True if there are none.
    pub fn is_empty(&self) -> bool {
        self.packed.is_empty()
    }

    /// The lowest and the highest id.
    pub fn id_range(&self) -> Option<(i64, i64)> {
        self.packed.first().zip(self.packed.last()).map(|(first, last)| (first.id, last.id))
    }

    /// The records in id order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = Record<'_>> {
        self.packed.iter().map(|packed| self.unpacked(packed))
    }

    /// The records of one group after the other, in id order within each.
    pub fn grouped_by<'a, K: Ord>(&'a self, group: impl Fn(&Record<'a>) -> K) -> Vec<Record<'a>> {
        let mut records: Vec<_> = self.iter().map(|record| (group(&record), record)).collect();
        records.sort_by(|a, b| a.0.cmp(&b.0));
        records.into_iter().map(|(_, record)| record).collect()
    }

    fn unpacked<'a>(&'a self, packed: &Packed) -> Record<'a> {
        let text = |range: &Range<usize>| &self.text[range.clone()];
        Record {
            id: packed.id,
            event_id: packed.event_id,
            event_type: &self.types[packed.event_type],
            aggregate_id: text(&packed.aggregate_id),
            traceparent: packed.traceparent.as_ref().map(text),
            tracestate: packed.tracestate.as_ref().map(text),
            created_at: packed.created_at,
            body: match &packed.body {
                Ok(range) => Ok(&self.bodies[range.clone()]),
                Err(range) => Err(text(range)),
            },
        }
    }
}
