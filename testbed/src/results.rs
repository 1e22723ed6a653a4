//! PSP results told straight on the topic, as the relay publishes them: for those who are interested in the payment service alone.
//!
//! It shares no code with the processes under test: framing, registry look-up and encoding are its own.

use std::time::Duration;

use anyhow::{Context, Result};
use apache_avro::Schema;
use apache_avro::types::Value as Avro;
use apache_avro::writer::datum::GenericDatumWriter;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{FutureProducer, FutureRecord};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::requests::{producer, registered};

/// What the relay has registered.
const SCHEMA: &str =
    include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../schema/avro/psp_result_update_event.avsc"));
/// The symbols of `pspStatus`, in their order.
const STATUSES: [&str; 4] = ["SUCCESSFUL", "FAILED", "PENDING", "UNKNOWN"];
/// For a record to be acknowledged, by a broker that may be starting again.
const ACK_LIMIT: Duration = Duration::from_mins(1);

/// One result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Said {
    /// Travels as `ce_id`.
    pub event_id: Uuid,
    /// Whose result it is, and the Kafka key.
    pub payment_order_id: Uuid,
    /// SUCCESSFUL, FAILED, PENDING or UNKNOWN.
    pub status: &'static str,
    /// The PSP's id of the charge.
    pub reference: Option<String>,
    /// The PSP's code, or one of ours.
    pub code: Option<&'static str>,
}

/// Where a record lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// Its partition.
    pub partition: i32,
    /// Its offset.
    pub offset: i64,
}

/// Writes to a topic of results.
#[derive(Clone)]
pub struct Results {
    producer: FutureProducer,
    schema: Schema,
    schema_id: u32,
    topic: String,
}

impl Results {
    /// Looks up what the relay's `setup` has registered for the topic.
    pub async fn new(bootstrap: &str, registry_url: &str, topic: &str) -> Result<Results> {
        let schema_id = registered(registry_url, topic).await?;
        let schema = Schema::parse_str(SCHEMA).context("the schema of results")?;
        Ok(Results { producer: producer(bootstrap)?, schema, schema_id, topic: topic.to_owned() })
    }

    /// Sends one, obtained from the PSP just now; returns where it lies when the broker has acknowledged it.
    pub async fn send(&self, said: &Said) -> Result<Place> {
        let value = self.encode(said, OffsetDateTime::now_utc())?;
        let event_id = said.event_id.to_string();
        let trace = said.payment_order_id.simple().to_string();
        let traceparent = format!("00-{trace}-{}-01", &trace[..16]);
        let headers = [("ce_specversion", "1.0"), ("ce_id", &event_id), ("traceparent", &traceparent)];
        self.deliver(&said.payment_order_id.to_string(), &value, &headers).await
    }

    /// Sends these bytes, whatever they are.
    pub async fn send_bytes(&self, key: &str, value: &[u8]) -> Result<Place> {
        self.deliver(key, value, &[]).await
    }

    async fn deliver(&self, key: &str, value: &[u8], headers: &[(&str, &str)]) -> Result<Place> {
        let headers = headers.iter().fold(OwnedHeaders::new(), |headers, (key, value)| {
            headers.insert(Header { key, value: Some(*value) })
        });
        let record = FutureRecord::to(&self.topic).key(key).payload(value).headers(headers);
        let sent = self.producer.send(record, ACK_LIMIT).await;
        let delivery = sent.map_err(|(error, _)| error).context("send a result")?;
        Ok(Place { partition: delivery.partition, offset: delivery.offset })
    }

    /// The value of a record: frame and Avro body.
    pub fn encode(&self, said: &Said, event_time: OffsetDateTime) -> Result<Vec<u8>> {
        let mut value = vec![0];
        value.extend_from_slice(&self.schema_id.to_be_bytes());
        let text = |text: Option<&str>| match text {
            None => Avro::Union(0, Box::new(Avro::Null)),
            Some(text) => Avro::Union(1, Box::new(Avro::String(text.to_owned()))),
        };
        let symbol = STATUSES.iter().position(|status| *status == said.status).context("a status")?;
        let micros = i64::try_from(event_time.unix_timestamp_nanos() / 1_000)?;
        let fields = [
            ("paymentOrderId", Avro::Uuid(said.payment_order_id)),
            ("pspStatus", Avro::Enum(u32::try_from(symbol)?, said.status.to_owned())),
            ("pspReference", text(said.reference.as_deref())),
            ("eventTime", Avro::TimestampMicros(micros)),
            ("errorCode", text(said.code)),
            ("errorMessage", text(None)),
        ];
        let fields = fields.map(|(name, value)| (name.to_owned(), value)).to_vec();
        let writer = GenericDatumWriter::builder(&self.schema).build().context("make an Avro writer")?;
        writer.write_value(&mut value, Avro::Record(fields)).context("encode a result")?;
        Ok(value)
    }
}

impl std::fmt::Debug for Results {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Results")
            .field("topic", &self.topic)
            .field("schema_id", &self.schema_id)
            .finish_non_exhaustive()
    }
}
