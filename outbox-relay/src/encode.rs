//! From JSON (the outbox row) to Avro (the record), by the catalogue's schema.
//!
//! JSON form: field names as in Avro; enums and uuids as strings; timestamps as RFC 3339; a nullable field plain or absent. What the
//! schema does not know is refused, not dropped: dropping would lose what a service meant to say.

use std::collections::{BTreeMap, HashMap};

use apache_avro::{
    Schema,
    schema::{InnerDecimalSchema, Name, RecordSchema, ResolvedSchema, UnionSchema},
    types::Value,
    writer::datum::GenericDatumWriter,
};
use serde_json::Value as Json;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use uuid::Uuid;

use crate::catalogue::Catalogue;

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
    types: BTreeMap<&'static str, EventEncoder>,
}

impl std::fmt::Debug for Encoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.types.keys()).finish()
    }
}

struct EventEncoder {
    schema: &'static Schema,
    names: HashMap<Name, &'static Schema>,
    writer: GenericDatumWriter<'static>,
}

impl Encoder {
    /// Prepares an encoder per event type.
    pub fn new(catalogue: &'static Catalogue) -> anyhow::Result<Self> {
        let mut types = BTreeMap::new();
        for (name, event) in &catalogue.events {
            let resolved = ResolvedSchema::try_from(&event.schema)?;
            let names = resolved.get_names().iter().map(|(name, schema)| (name.clone(), *schema)).collect();
            // Values are built to fit the schema, so that the writer need not check them again.
            let writer = GenericDatumWriter::builder(&event.schema)
                .resolved_schemata(resolved)
                .validate(false)
                .build()?;
            types.insert(name.as_str(), EventEncoder { schema: &event.schema, names, writer });
        }
        Ok(Self { types })
    }

    /// Appends the Avro body of `payload` to `buffer`.
    pub fn encode(&self, event_type: &str, payload: &str, buffer: &mut Vec<u8>) -> Result<(), EncodeError> {
        let Some(encoder) = self.types.get(event_type) else {
            return Err(EncodeError::UnknownEventType(event_type.to_owned()));
        };
        let payload: Json = serde_json::from_str(payload)
            .map_err(|error| EncodeError::Payload { path: String::new(), reason: error.to_string() })?;
        let value = encoder.value(payload, encoder.schema).map_err(Misfit::into_error)?;
        encoder.writer.write_value_ref(buffer, &value).map(drop).map_err(|error| EncodeError::Payload {
            path: String::new(),
            reason: error.to_string().lines().next().unwrap_or_default().to_owned(),
        })
    }
}

/// A value that does not fit; the path is gathered from the inside out.
struct Misfit {
    path: Vec<String>,
    reason: String,
}

impl Misfit {
    fn new(reason: impl Into<String>) -> Self {
        Self { path: Vec::new(), reason: reason.into() }
    }

    fn within(mut self, step: String) -> Self {
        self.path.push(step);
        self
    }

    fn into_error(self) -> EncodeError {
        EncodeError::Payload { path: self.path.into_iter().rev().collect(), reason: self.reason }
    }
}

impl EventEncoder {
    fn value(&self, json: Json, schema: &Schema) -> Result<Value, Misfit> {
        match (schema, json) {
            (Schema::Null, Json::Null) => Ok(Value::Null),
            (Schema::Boolean, Json::Bool(flag)) => Ok(Value::Boolean(flag)),
            (Schema::Int, Json::Number(number)) => {
                let int = number.as_i64().and_then(|long| i32::try_from(long).ok());
                int.map(Value::Int).ok_or_else(|| Misfit::new(format!("{number} is not a 32-bit integer")))
            }
            (Schema::Long, Json::Number(number)) => number
                .as_i64()
                .map(Value::Long)
                .ok_or_else(|| Misfit::new(format!("{number} is not a 64-bit integer"))),
            #[expect(
                clippy::cast_possible_truncation,
                reason = "a float schema asks for the nearest 32-bit float"
            )]
            (Schema::Float, Json::Number(number)) => number
                .as_f64()
                .map(|double| Value::Float(double as f32))
                .ok_or_else(|| Misfit::new("not a number")),
            (Schema::Double, Json::Number(number)) => {
                number.as_f64().map(Value::Double).ok_or_else(|| Misfit::new("not a number"))
            }
            (Schema::String, Json::String(text)) => Ok(Value::String(text)),
            (Schema::Uuid(_), Json::String(text)) => Uuid::try_parse(&text)
                .map(Value::Uuid)
                .map_err(|_| Misfit::new(format!("{text:?} is not a uuid"))),
            (Schema::Enum(schema), Json::String(symbol)) => {
                let position = schema.symbols.iter().position(|known| *known == symbol);
                let index = position.and_then(|index| u32::try_from(index).ok());
                index
                    .map(|index| Value::Enum(index, symbol.clone()))
                    .ok_or_else(|| Misfit::new(format!("{symbol:?} is not a symbol")))
            }
            (Schema::TimestampMillis, Json::String(text)) => {
                timestamp(&text, 1_000_000).map(Value::TimestampMillis)
            }
            (Schema::TimestampMicros, Json::String(text)) => {
                timestamp(&text, 1_000).map(Value::TimestampMicros)
            }
            (Schema::TimestampNanos, Json::String(text)) => timestamp(&text, 1).map(Value::TimestampNanos),
            (Schema::Array(schema), Json::Array(items)) => {
                let items = items.into_iter().enumerate();
                let values = items.map(|(at, item)| {
                    self.value(item, &schema.items).map_err(|misfit| misfit.within(format!("[{at}]")))
                });
                values.collect::<Result<_, _>>().map(Value::Array)
            }
            (Schema::Map(schema), Json::Object(entries)) => {
                let values = entries.into_iter().map(|(key, item)| match self.value(item, &schema.types) {
                    Ok(value) => Ok((key, value)),
                    Err(misfit) => Err(misfit.within(format!(".{key}"))),
                });
                values.collect::<Result<_, _>>().map(Value::Map)
            }
            (Schema::Record(schema), Json::Object(fields)) => self.record(fields, schema),
            (Schema::Union(schema), json) => self.union(&json, schema),
            (Schema::Ref { name }, json) => match self.names.get(name) {
                Some(schema) => self.value(json, schema),
                None => Err(Misfit::new(format!("the schema names {name} without defining it"))),
            },
            (schema, json) => {
                Err(Misfit::new(format!("expected {}, found {}", schema_kind(schema), json_kind(&json))))
            }
        }
    }

    fn record(
        &self,
        mut fields: serde_json::Map<String, Json>,
        schema: &RecordSchema,
    ) -> Result<Value, Misfit> {
        let mut values = Vec::with_capacity(schema.fields.len());
        for field in &schema.fields {
            let json = match fields.remove(&field.name).or_else(|| field.default.clone()) {
                Some(json) => json,
                // An absent nullable field is null.
                None if matches!(&field.schema, Schema::Union(union) if union.is_nullable()) => Json::Null,
                None => return Err(Misfit::new("missing").within(format!(".{}", field.name))),
            };
            let value = self
                .value(json, &field.schema)
                .map_err(|misfit| misfit.within(format!(".{}", field.name)))?;
            values.push((field.name.clone(), value));
        }
        match fields.keys().next() {
            Some(unknown) => Err(Misfit::new("not a field of the schema").within(format!(".{unknown}"))),
            None => Ok(Value::Record(values)),
        }
    }

    /// The first branch that fits, in the order of the schema.
    fn union(&self, json: &Json, schema: &UnionSchema) -> Result<Value, Misfit> {
        let mut only_misfit = None;
        for (branch, index) in schema.variants().iter().zip(0u32..) {
            match self.value(json.clone(), branch) {
                Ok(value) => return Ok(Value::Union(index, Box::new(value))),
                Err(misfit) if !matches!(branch, Schema::Null) => only_misfit = Some(misfit),
                Err(_) => {}
            }
        }
        match only_misfit {
            // With one branch beside null, its own reason says most.
            Some(misfit) if schema.variants().len() <= 2 => Err(misfit),
            _ => Err(Misfit::new(format!("{} fits no branch of the union", json_kind(json)))),
        }
    }
}

fn timestamp(text: &str, nanos_per_unit: i128) -> Result<i64, Misfit> {
    let at = OffsetDateTime::parse(text, &Rfc3339)
        .map_err(|_| Misfit::new(format!("{text:?} is not an RFC 3339 time")))?;
    i64::try_from(at.unix_timestamp_nanos().div_euclid(nanos_per_unit))
        .map_err(|_| Misfit::new(format!("{text} is out of range")))
}

fn json_kind(json: &Json) -> &'static str {
    match json {
        Json::Null => "null",
        Json::Bool(_) => "a boolean",
        Json::Number(_) => "a number",
        Json::String(_) => "a string",
        Json::Array(_) => "an array",
        Json::Object(_) => "an object",
    }
}

fn schema_kind(schema: &Schema) -> String {
    match schema {
        Schema::Uuid(_) => "a uuid as string".to_owned(),
        Schema::Enum(_) => "an enum symbol as string".to_owned(),
        Schema::TimestampMillis | Schema::TimestampMicros | Schema::TimestampNanos => {
            "an RFC 3339 time as string".to_owned()
        }
        Schema::Record(record) => format!("an object for record {}", record.name),
        Schema::Decimal(decimal) => match decimal.inner {
            InnerDecimalSchema::Bytes | InnerDecimalSchema::Fixed(_) => {
                "a decimal, which JSON payloads cannot express".to_owned()
            }
        },
        other => format!("{other:?}").to_lowercase(),
    }
}
