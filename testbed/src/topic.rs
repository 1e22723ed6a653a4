//! Reads a whole topic, from its first record to the end that it has now: outside of any consumer group, and decoded by the
//! schema that each record names.
//!
//! It shares no code with the processes under test: framing, registry look-up and decoding are its own, so that an error that
//! writer and reader of ours have in common is seen.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use apache_avro::Schema;
use apache_avro::reader::datum::GenericDatumReader;
use apache_avro::types::Value as Avro;
use apache_avro::writer::datum::GenericDatumWriter;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::{BorrowedMessage, Headers, Message};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use serde::Deserialize;
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::oracle::books::Record;

/// For a whole topic.
const READ_LIMIT: Duration = Duration::from_mins(1);
const CALL_LIMIT: Duration = Duration::from_secs(10);
const MAGIC: u8 = 0;

/// Where topics and their schemas are.
#[derive(Clone, Debug)]
pub struct Topics {
    /// `host:port` of the broker.
    pub bootstrap: String,
    /// Base of the registry's Confluent API.
    pub registry_url: String,
}

/// A record as it came.
struct Raw {
    record: Record,
    value: Option<Vec<u8>>,
}

impl Topics {
    /// Every record of a topic, in offset order per partition.
    pub async fn read(&self, topic: &str) -> Result<Vec<Record>> {
        let (bootstrap, name) = (self.bootstrap.clone(), topic.to_owned());
        let mut raw = tokio::task::spawn_blocking(move || read_all(&bootstrap, &name))
            .await
            .context("read a topic")?
            .with_context(|| format!("read the topic {topic}"))?;
        raw.sort_by_key(|raw| (raw.record.partition, raw.record.offset));
        let client =
            reqwest::Client::builder().no_proxy().timeout(CALL_LIMIT).build().context("build a client")?;
        let mut schemas = HashMap::new();
        let mut records = Vec::with_capacity(raw.len());
        for Raw { mut record, value } in raw {
            record.body = match unframe(value.as_deref()) {
                Ok((id, body)) => {
                    let schema = match schemas.entry(id) {
                        Entry::Occupied(known) => known.into_mut(),
                        Entry::Vacant(new) => new.insert(self.schema(&client, id).await?),
                    };
                    decode(schema, body)
                }
                Err(reason) => Err(reason),
            };
            records.push(record);
        }
        Ok(records)
    }

    /// The bytes of every record's value, in no order: for those who look for what must not be there, whatever the schema says.
    pub async fn values(&self, topic: &str) -> Result<Vec<Vec<u8>>> {
        let (bootstrap, name) = (self.bootstrap.clone(), topic.to_owned());
        let raw =
            tokio::task::spawn_blocking(move || read_all(&bootstrap, &name)).await.context("read a topic")?;
        let raw = raw.with_context(|| format!("read the topic {topic}"))?;
        Ok(raw.into_iter().filter_map(|raw| raw.value).collect())
    }

    /// The schema of an id. That there is none is the record's fault; that the registry does not answer is not.
    async fn schema(&self, client: &reqwest::Client, id: u32) -> Result<Result<Schema, String>> {
        #[derive(Deserialize)]
        struct Registered {
            schema: String,
        }
        let response = client.get(format!("{}/schemas/ids/{id}", self.registry_url)).send().await;
        let response = response.context("ask the schema registry")?;
        if response.status() == reqwest::StatusCode::NOT_FOUND {
            return Ok(Err(format!("there is no schema with the id {id}")));
        }
        let registered: Registered = response
            .error_for_status()
            .context("ask the schema registry")?
            .json()
            .await
            .context("read what the schema registry says")?;
        Ok(Schema::parse_str(&registered.schema).map_err(|error| format!("schema {id}: {error}")))
    }
}

fn read_all(bootstrap: &str, topic: &str) -> Result<Vec<Raw>> {
    let begun = Instant::now();
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", bootstrap)
        .set("group.id", "oracle-without-a-group")
        .set("enable.auto.commit", "false")
        .set("enable.partition.eof", "true")
        .set("auto.offset.reset", "error")
        .create()
        .context("make a consumer")?;
    let metadata = consumer.fetch_metadata(Some(topic), CALL_LIMIT).context("ask for the partitions")?;
    let partitions =
        metadata.topics().first().map(rdkafka::metadata::MetadataTopic::partitions).unwrap_or_default();
    if partitions.is_empty() {
        bail!("it does not exist");
    }
    let mut assignment = TopicPartitionList::new();
    let mut ends = HashMap::new();
    for partition in partitions.iter().map(rdkafka::metadata::MetadataPartition::id) {
        let (low, high) =
            consumer.fetch_watermarks(topic, partition, CALL_LIMIT).context("ask for the offsets")?;
        if low < high {
            assignment.add_partition_offset(topic, partition, Offset::Offset(low)).context("assign")?;
            ends.insert(partition, high);
        }
    }
    consumer.assign(&assignment).context("assign the partitions")?;
    let mut open: HashSet<i32> = ends.keys().copied().collect();
    let mut records = Vec::new();
    while !open.is_empty() {
        if begun.elapsed() > READ_LIMIT {
            bail!("not at its end after {} s and {} records", READ_LIMIT.as_secs(), records.len());
        }
        match consumer.poll(Duration::from_millis(200)) {
            None => {}
            // The end can lie behind the last record: not every offset is one.
            Some(Err(KafkaError::PartitionEOF(partition))) => {
                open.remove(&partition);
            }
            Some(Err(error)) => return Err(error).context("read a record"),
            Some(Ok(message)) => {
                let end = ends.get(&message.partition()).copied().unwrap_or_default();
                if message.offset() + 1 >= end {
                    open.remove(&message.partition());
                }
                if message.offset() < end {
                    records.push(raw(&message));
                }
            }
        }
    }
    Ok(records)
}

fn raw(message: &BorrowedMessage<'_>) -> Raw {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let headers = message.headers().into_iter().flat_map(Headers::iter);
    let headers = headers.filter_map(|header| Some((header.key.to_owned(), text(header.value?)))).collect();
    let record = Record {
        partition: message.partition(),
        offset: message.offset(),
        key: message.key().map(text),
        headers,
        body: Err("not decoded".to_owned()),
    };
    Raw { record, value: message.payload().map(<[u8]>::to_vec) }
}

/// Schema id and Avro body.
pub(crate) fn unframe(value: Option<&[u8]>) -> Result<(u32, &[u8]), String> {
    match value {
        Some([MAGIC, a, b, c, d, body @ ..]) => Ok((u32::from_be_bytes([*a, *b, *c, *d]), body)),
        Some(other) => Err(format!("{} bytes without a frame", other.len())),
        None => Err("no value".to_owned()),
    }
}

pub(crate) fn decode(schema: &Result<Schema, String>, body: &[u8]) -> Result<Value, String> {
    let schema = schema.as_ref().map_err(Clone::clone)?;
    let reader = GenericDatumReader::builder(schema).build().map_err(|error| error.to_string())?;
    let value =
        reader.read_value(&mut &body[..]).map_err(|error| format!("not Avro by its schema: {error}"))?;
    // The library reads some bodies that end too early as if a null stood there: what was read must write the same bytes.
    let writer = GenericDatumWriter::builder(schema).build().map_err(|error| error.to_string())?;
    if writer.write_value_to_vec(value.clone()).ok().as_deref() != Some(body) {
        return Err(format!("not Avro by its schema: {} bytes do not read back", body.len()));
    }
    plain(value)
}

/// Avro as JSON: a union is its value, a time is RFC 3339.
fn plain(value: Avro) -> Result<Value, String> {
    Ok(match value {
        Avro::Null => Value::Null,
        Avro::Boolean(yes) => json!(yes),
        Avro::Int(number) => json!(number),
        Avro::Long(number) => json!(number),
        Avro::String(text) | Avro::Enum(_, text) => json!(text),
        Avro::Uuid(id) => json!(id.to_string()),
        Avro::TimestampMicros(micros) => {
            let at = OffsetDateTime::from_unix_timestamp_nanos(i128::from(micros) * 1_000)
                .map_err(|error| error.to_string())?;
            json!(at.format(&Rfc3339).map_err(|error| error.to_string())?)
        }
        Avro::Union(_, value) => plain(*value)?,
        Avro::Record(fields) => fields
            .into_iter()
            .map(|(name, value)| Ok((name, plain(value)?)))
            .collect::<Result<serde_json::Map<_, _>, String>>()?
            .into(),
        other => return Err(format!("a value of a kind that no event has: {other:?}")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCHEMA: &str = r#"{"type": "record", "name": "E", "fields": [
        {"name": "id", "type": {"type": "string", "logicalType": "uuid"}},
        {"name": "at", "type": {"type": "long", "logicalType": "timestamp-micros"}},
        {"name": "code", "type": ["null", "string"]}]}"#;

    fn body() -> Vec<u8> {
        let mut body = vec![72];
        body.extend_from_slice(b"00000000-0000-0000-0000-000000000007");
        // 1,000,001 microseconds, zigzag; the second branch of the union; two letters.
        body.extend_from_slice(&[0x82, 0x89, 0x7a, 2, 4, b'a', b'b']);
        body
    }

    #[test]
    fn a_body_is_read_by_its_schema_to_its_last_byte() {
        let schema = Schema::parse_str(SCHEMA).map_err(|error| error.to_string());
        let event = json!({"id": "00000000-0000-0000-0000-000000000007", "at": "1970-01-01T00:00:01.000001Z", "code": "ab"});
        assert_eq!(decode(&schema, &body()), Ok(event));
        let mut longer = body();
        longer.push(0);
        assert!(decode(&schema, &longer).unwrap_err().contains("do not read back"));
        for end in 0..body().len() {
            assert!(decode(&schema, &body()[..end]).is_err(), "{end}");
        }
    }

    #[test]
    fn what_has_no_frame_is_not_decoded() {
        assert_eq!(unframe(Some(&[0, 0, 0, 1, 2, 9])), Ok((258, &[9][..])));
        for wrong in [None, Some(&[][..]), Some(&[0, 0, 0, 1][..]), Some(&[1, 0, 0, 0, 1][..])] {
            assert!(unframe(wrong).is_err(), "{wrong:?}");
        }
    }
}
