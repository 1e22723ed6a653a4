//! Another way from JSON to Avro: through trees of values, with Apache's library to write them. Slow, and independent of ours.

use std::collections::HashMap;

use apache_avro::{
    Schema,
    reader::datum::GenericDatumReader,
    schema::{Name, ResolvedSchema},
    types::Value,
    writer::datum::GenericDatumWriter,
};
use serde_json::Value as Json;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use uuid::Uuid;

/// What `json` is by `schema`, and its bytes, which have been read back. None if it does not fit.
pub(super) fn written(schema: &Schema, json: &Json) -> Option<(Value, Vec<u8>)> {
    let resolved = ResolvedSchema::try_from(schema).unwrap();
    let reference = Reference { names: resolved.get_names(), in_default: false };
    let value = reference.value(json, schema)?;
    let mut bytes = Vec::new();
    GenericDatumWriter::builder(schema).build().unwrap().write_value_ref(&mut bytes, &value).unwrap();
    assert_eq!(read(schema, &bytes), value);
    Some((value, bytes))
}

/// The value whose bytes these are, to the last one.
pub(super) fn read(schema: &Schema, mut bytes: &[u8]) -> Value {
    let value = GenericDatumReader::builder(schema).build().unwrap().read_value(&mut bytes).unwrap();
    assert_eq!(bytes, [0u8; 0]);
    value
}

struct Reference<'s> {
    names: &'s HashMap<Name, &'s Schema>,
    /// Defaults have dates and times as numbers.
    in_default: bool,
}

impl Reference<'_> {
    fn value(&self, json: &Json, schema: &Schema) -> Option<Value> {
        match (schema, json) {
            (Schema::Null, Json::Null) => Some(Value::Null),
            (Schema::Boolean, Json::Bool(flag)) => Some(Value::Boolean(*flag)),
            (Schema::Int, Json::Number(_)) => int(json).map(Value::Int),
            (Schema::Long, Json::Number(_)) => json.as_i64().map(Value::Long),
            #[expect(clippy::cast_possible_truncation, reason = "the nearest 32-bit float is meant")]
            (Schema::Float, Json::Number(_)) => {
                json.as_f64().map(|double| double as f32).filter(|float| float.is_finite()).map(Value::Float)
            }
            (Schema::Double, Json::Number(_)) => json.as_f64().map(Value::Double),
            (Schema::String, Json::String(text)) => Some(Value::String(text.clone())),
            (Schema::Uuid(_), Json::String(text)) => Uuid::try_parse(text).ok().map(Value::Uuid),
            (Schema::Enum(schema), Json::String(text)) => {
                let place = schema.symbols.iter().position(|symbol| symbol == text)?;
                Some(Value::Enum(place.try_into().unwrap(), text.clone()))
            }
            (Schema::Array(schema), Json::Array(items)) => {
                let items = items.iter().map(|item| self.value(item, &schema.items));
                items.collect::<Option<_>>().map(Value::Array)
            }
            (Schema::Map(schema), Json::Object(entries)) => {
                let entries = entries
                    .iter()
                    .map(|(key, item)| self.value(item, &schema.types).map(|value| (key.clone(), value)));
                entries.collect::<Option<_>>().map(Value::Map)
            }
            (Schema::Record(schema), Json::Object(given)) => {
                if given.keys().any(|key| schema.fields.iter().all(|field| field.name != *key)) {
                    return None;
                }
                let fields = schema.fields.iter().map(|field| {
                    let in_default = Self { names: self.names, in_default: true };
                    let value = match (given.get(&field.name), &field.default) {
                        (Some(json), _) => self.value(json, &field.schema),
                        (None, Some(default)) => in_default.value(default, &field.schema),
                        (None, None) if field.is_nullable() => self.value(&Json::Null, &field.schema),
                        (None, None) => None,
                    };
                    Some((field.name.clone(), value?))
                });
                fields.collect::<Option<_>>().map(Value::Record)
            }
            (Schema::Union(schema), json) => {
                let mut branches = schema.variants().iter().zip(0..);
                branches.find_map(|(branch, place)| {
                    self.value(json, branch).map(|value| Value::Union(place, Box::new(value)))
                })
            }
            (Schema::Ref { name }, json) => self.value(json, self.names[name]),
            (schema, Json::Number(_)) if self.in_default => number(json, schema),
            (schema, Json::String(text)) => moment(text, schema),
            _ => None,
        }
    }
}

fn int(json: &Json) -> Option<i32> {
    json.as_i64().and_then(|long| i32::try_from(long).ok())
}

fn number(json: &Json, schema: &Schema) -> Option<Value> {
    match schema {
        Schema::Date => int(json).map(Value::Date),
        Schema::TimeMillis => int(json).map(Value::TimeMillis),
        Schema::TimeMicros => json.as_i64().map(Value::TimeMicros),
        Schema::TimestampMillis => json.as_i64().map(Value::TimestampMillis),
        Schema::TimestampMicros => json.as_i64().map(Value::TimestampMicros),
        Schema::TimestampNanos => json.as_i64().map(Value::TimestampNanos),
        Schema::LocalTimestampMillis => json.as_i64().map(Value::LocalTimestampMillis),
        Schema::LocalTimestampMicros => json.as_i64().map(Value::LocalTimestampMicros),
        Schema::LocalTimestampNanos => json.as_i64().map(Value::LocalTimestampNanos),
        _ => None,
    }
}

fn moment(text: &str, schema: &Schema) -> Option<Value> {
    let nanos = |at: OffsetDateTime, per_unit: i128| {
        i64::try_from(at.unix_timestamp_nanos().div_euclid(per_unit)).ok()
    };
    let timestamp = |per_unit| nanos(OffsetDateTime::parse(text, &Rfc3339).ok()?, per_unit);
    // The same as if it were UTC.
    let local = |per_unit| nanos(OffsetDateTime::parse(&format!("{text}Z"), &Rfc3339).ok()?, per_unit);
    let time_of_day = |per_unit| {
        let at = OffsetDateTime::parse(&format!("1970-01-01T{text}Z"), &Rfc3339).ok()?;
        nanos(at, per_unit)
    };
    match schema {
        Schema::Date => {
            let at = OffsetDateTime::parse(&format!("{text}T00:00:00Z"), &Rfc3339).ok()?;
            i32::try_from(nanos(at, 86_400_000_000_000)?).ok().map(Value::Date)
        }
        Schema::TimeMillis => i32::try_from(time_of_day(1_000_000)?).ok().map(Value::TimeMillis),
        Schema::TimeMicros => time_of_day(1_000).map(Value::TimeMicros),
        Schema::TimestampMillis => timestamp(1_000_000).map(Value::TimestampMillis),
        Schema::TimestampMicros => timestamp(1_000).map(Value::TimestampMicros),
        Schema::TimestampNanos => timestamp(1).map(Value::TimestampNanos),
        Schema::LocalTimestampMillis => local(1_000_000).map(Value::LocalTimestampMillis),
        Schema::LocalTimestampMicros => local(1_000).map(Value::LocalTimestampMicros),
        Schema::LocalTimestampNanos => local(1).map(Value::LocalTimestampNanos),
        _ => None,
    }
}
