//! From a Kafka record's value to a typed event. Strict: a body that is cut at any byte, or has one too many, is refused.

use std::{
    collections::HashMap,
    io::{self, Read},
    marker::PhantomData,
    sync::{Arc, Once, PoisonError, RwLock},
};

use apache_avro::{Schema, reader::datum::GenericDatumReader, types::Value};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::{
    registry::{Registry, RegistryError, brief},
    wire::unframe,
};

/// Largest string or collection that a body may announce, in bytes. The library's own limit is 512 MiB.
const ALLOCATION_MAX_BYTES: usize = 1 << 20;

/// An event type with its Avro schema.
pub trait Event: Sized {
    /// Name in the outbox (`event_type`), in the catalogue and in the header `ce_type`.
    const TYPE: &'static str;
    /// The text of the `.avsc`.
    const SCHEMA: &'static str;

    /// Makes the event from a value that has been resolved to [`Self::SCHEMA`]. The error says which field was not right.
    fn from_avro(value: Value) -> Result<Self, String>;
}

/// Why a record is not an event.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// The registry could not be asked: the record may well be fine. Wait, and try the same record again.
    #[error("{0}")]
    Wait(String),
    /// The record is not an event of this type, and will not become one by waiting.
    #[error("{0}")]
    Undecodable(String),
}

/// Decodes records into `E`, by the writer's schema from the registry, resolved to `E`'s own.
pub struct Decoder<E> {
    registry: Arc<Registry>,
    own: Schema,
    readers: RwLock<HashMap<u32, Arc<GenericDatumReader<'static>>>>,
    event: PhantomData<fn() -> E>,
}

impl<E> std::fmt::Debug for Decoder<E> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Decoder")
            .field("event", &self.own.name().map(ToString::to_string))
            .finish_non_exhaustive()
    }
}

impl<E: Event> Decoder<E> {
    /// A decoder that looks schemas up in `registry`.
    pub fn new(registry: Arc<Registry>) -> anyhow::Result<Self> {
        static LIMIT: Once = Once::new();
        LIMIT.call_once(|| {
            apache_avro::util::max_allocation_bytes(ALLOCATION_MAX_BYTES);
        });
        Ok(Self {
            registry,
            own: Schema::parse_str(E::SCHEMA)?,
            readers: RwLock::default(),
            event: PhantomData,
        })
    }

    /// Asks the registry again for schema ids that it did not have.
    pub fn forget_missing(&self) {
        self.registry.forget_missing();
    }

    /// Decodes one record's value; None is a tombstone.
    pub async fn decode(&self, record: Option<&[u8]>) -> Result<E, DecodeError> {
        let record = record
            .ok_or_else(|| DecodeError::Undecodable("the record has no value (tombstone)".to_owned()))?;
        let (schema_id, body) =
            unframe(record).map_err(|error| DecodeError::Undecodable(error.to_string()))?;
        let reader = self.reader(schema_id).await?;
        self.read(&reader, body).map_err(DecodeError::Undecodable)
    }

    async fn reader(&self, schema_id: u32) -> Result<Arc<GenericDatumReader<'static>>, DecodeError> {
        if let Some(reader) = self.readers.read().unwrap_or_else(PoisonError::into_inner).get(&schema_id) {
            return Ok(Arc::clone(reader));
        }
        let writer = self.registry.schema_by_id(schema_id).await.map_err(|error| match error {
            RegistryError::Unavailable(_) => DecodeError::Wait(error.to_string()),
            RegistryError::NotFound(_) | RegistryError::Refused(_) => {
                DecodeError::Undecodable(error.to_string())
            }
        })?;
        let (theirs, ours) =
            (writer.name().map(ToString::to_string), self.own.name().map(ToString::to_string));
        if theirs != ours {
            return Err(DecodeError::Undecodable(format!(
                "schema id {schema_id} is of {}, expected {}",
                theirs.as_deref().unwrap_or("something without a name"),
                ours.as_deref().unwrap_or_default(),
            )));
        }
        let reader = GenericDatumReader::builder(writer)
            .build()
            .map_err(|error| DecodeError::Undecodable(format!("schema id {schema_id}: {}", brief(&error))))?;
        let reader = Arc::new(reader);
        self.readers.write().unwrap_or_else(PoisonError::into_inner).insert(schema_id, Arc::clone(&reader));
        Ok(reader)
    }

    fn read(&self, reader: &GenericDatumReader<'_>, body: &[u8]) -> Result<E, String> {
        let mut body = Strict(body);
        let value = reader
            .read_value(&mut body)
            .map_err(|error| format!("not a valid Avro body: {}", brief(&error)))?;
        if !body.0.is_empty() {
            return Err(format!("not a valid Avro body: {} bytes too many", body.0.len()));
        }
        let value = value
            .resolve(&self.own)
            .map_err(|error| format!("cannot be read as {}: {}", E::TYPE, brief(&error)))?;
        E::from_avro(value)
    }
}

/// Bytes whose end is an error of its own. The library takes an `UnexpectedEof` at some places for a null, and would read a body that
/// was cut there as a whole one.
struct Strict<'a>(&'a [u8]);

impl Read for Strict<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.0.is_empty() && !buffer.is_empty() {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "it ends too early"));
        }
        self.0.read(buffer)
    }
}

/// The fields of a record value, taken out one by one.
#[derive(Debug)]
pub struct Fields(Vec<(String, Value)>);

impl Fields {
    /// The fields of `value`, which must be a record.
    pub fn of(value: Value) -> Result<Self, String> {
        match value {
            Value::Record(fields) => Ok(Self(fields)),
            other => Err(format!("expected a record, found {other:?}")),
        }
    }

    fn take(&mut self, name: &str) -> Result<Value, String> {
        let found = self.0.iter_mut().find(|(field, _)| field == name);
        found
            .map(|(_, value)| std::mem::replace(value, Value::Null))
            .ok_or_else(|| format!("field {name} is missing"))
    }

    /// A field `string` with logicalType `uuid`.
    pub fn uuid(&mut self, name: &str) -> Result<Uuid, String> {
        match self.take(name)? {
            Value::Uuid(uuid) => Ok(uuid),
            other => Err(format!("field {name} is not a uuid: {other:?}")),
        }
    }

    /// A field `string`.
    pub fn string(&mut self, name: &str) -> Result<String, String> {
        match self.take(name)? {
            Value::String(text) => Ok(text),
            other => Err(format!("field {name} is not a string: {other:?}")),
        }
    }

    /// A field `["null", "string"]`.
    pub fn optional_string(&mut self, name: &str) -> Result<Option<String>, String> {
        match self.take(name)? {
            Value::Union(_, value) => match *value {
                Value::Null => Ok(None),
                Value::String(text) => Ok(Some(text)),
                other => Err(format!("field {name} is not a string: {other:?}")),
            },
            other => Err(format!("field {name} is not a union: {other:?}")),
        }
    }

    /// A field `long`.
    pub fn long(&mut self, name: &str) -> Result<i64, String> {
        match self.take(name)? {
            Value::Long(number) => Ok(number),
            other => Err(format!("field {name} is not a long: {other:?}")),
        }
    }

    /// A field `enum`.
    pub fn symbol(&mut self, name: &str) -> Result<String, String> {
        match self.take(name)? {
            Value::Enum(_, symbol) => Ok(symbol),
            other => Err(format!("field {name} is not an enum: {other:?}")),
        }
    }

    /// A field `long` with logicalType `timestamp-micros`.
    pub fn timestamp(&mut self, name: &str) -> Result<OffsetDateTime, String> {
        match self.take(name)? {
            Value::TimestampMicros(micros) => {
                OffsetDateTime::from_unix_timestamp_nanos(i128::from(micros) * 1_000)
                    .map_err(|_| format!("field {name} is out of range: {micros}"))
            }
            other => Err(format!("field {name} is not a timestamp: {other:?}")),
        }
    }
}
