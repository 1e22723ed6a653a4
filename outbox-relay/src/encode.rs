//! From JSON (the outbox row) to Avro (the record), by the catalogue's schema.
//!
//! JSON form: field names as in Avro; enums and uuids as strings; timestamps as RFC 3339 in any offset, dates and times of day as
//! ISO 8601 writes them in full; a nullable field plain or absent. What the schema does not know is refused, not dropped: dropping
//! would lose what a service meant to say. A union takes the first branch that fits.
//!
//! A schema is compiled once, when the relay starts (`plan.rs`); a payload is read as text and written as it is read (`write.rs`),
//! with no tree of values in between. Numbers are taken from their text: a tree would have rounded them.

mod json;
mod moment;
mod plan;
mod write;

use std::collections::BTreeMap;

use anyhow::Context as _;

use crate::catalogue::Catalogue;
use plan::Plan;

/// Why a row cannot be published. It names the field.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EncodeError {
    /// The catalogue does not have the type.
    #[error("event type {0:?} is not in the catalogue")]
    UnknownEventType(String),
    /// The payload does not fit the schema.
    #[error("payload{path}: {reason}")]
    Payload {
        /// Where in the payload: `.field`, `[3]`.
        path: String,
        /// What is wrong there.
        reason: String,
    },
}

/// Encodes events of every type of the catalogue.
pub struct Encoder {
    plans: BTreeMap<String, Plan>,
}

impl std::fmt::Debug for Encoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.plans.keys()).finish()
    }
}

impl Encoder {
    /// Compiles the schema of every event type. Fails, naming type and field, if one has what JSON payloads cannot express (bytes,
    /// fixed, decimal, duration), so that this is known before there is a row.
    pub fn new(catalogue: &Catalogue) -> anyhow::Result<Self> {
        let plan = |(name, event): (&String, &crate::catalogue::EventType)| {
            let plan = Plan::new(&event.schema).with_context(|| format!("event {name}"))?;
            Ok((name.clone(), plan))
        };
        Ok(Self { plans: catalogue.events.iter().map(plan).collect::<anyhow::Result<_>>()? })
    }

    /// Appends the Avro body of `payload`, JSON text, to `buffer`. If that fails, `buffer` is as it was.
    pub fn encode(&self, event_type: &str, payload: &str, buffer: &mut Vec<u8>) -> Result<(), EncodeError> {
        let Some(plan) = self.plans.get(event_type) else {
            return Err(EncodeError::UnknownEventType(event_type.to_owned()));
        };
        let start = buffer.len();
        write::payload(plan, payload, buffer).map_err(|misfit| {
            buffer.truncate(start);
            EncodeError::Payload { path: misfit.path(), reason: misfit.reason().to_owned() }
        })
    }
}
