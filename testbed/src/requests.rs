//! Payment orders asked for straight on the topic, as the relay publishes them: for those who are interested in the executor alone.
//!
//! It shares no code with the processes under test: framing, registry look-up and encoding are its own.

use std::time::Duration;

use anyhow::{Context, Result};
use apache_avro::Schema;
use apache_avro::types::Value as Avro;
use apache_avro::writer::datum::GenericDatumWriter;
use rdkafka::ClientConfig;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{FutureProducer, FutureRecord};
use serde::Deserialize;
use time::OffsetDateTime;
use uuid::Uuid;

/// What the relay has registered.
const SCHEMA: &str =
    include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../schema/avro/payment_order_requested_event.avsc"));
/// As the payment service gives them.
const VALID_FOR: Duration = Duration::from_hours(1);
const CALL_LIMIT: Duration = Duration::from_secs(10);
/// For a record to be acknowledged, by a broker that may be starting again.
const ACK_LIMIT: Duration = Duration::from_mins(1);
/// Records that wait for their acknowledgement together.
const TOGETHER: usize = 1_000;

/// One payment order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// Its id, and the Kafka key.
    pub payment_order_id: Uuid,
    /// Travels as `ce_id`.
    pub event_id: Uuid,
    /// `STRIPE` or `ADYEN`.
    pub psp: &'static str,
    /// In minor units.
    pub amount_minor: i64,
    /// ISO 4217 code.
    pub currency: &'static str,
    /// Token of the PSP: decides what will happen.
    pub payment_method: &'static str,
}

/// Writes to the topic of requests.
#[derive(Clone)]
pub struct Requests {
    producer: FutureProducer,
    schema: Schema,
    schema_id: u32,
    topic: String,
}

impl Asked {
    /// A new order of 19.99 euros at Stripe.
    pub fn new(payment_method: &'static str) -> Asked {
        Asked {
            payment_order_id: Uuid::new_v4(),
            event_id: Uuid::now_v7(),
            psp: "STRIPE",
            amount_minor: 1_999,
            currency: "EUR",
            payment_method,
        }
    }
}

impl Requests {
    /// Looks up what the relay's `setup` has registered for the topic.
    pub async fn new(bootstrap: &str, registry_url: &str, topic: &str) -> Result<Requests> {
        let schema_id = registered(registry_url, topic).await?;
        let producer = producer(bootstrap)?;
        let schema = Schema::parse_str(SCHEMA).context("the schema of requests")?;
        Ok(Requests { producer, schema, schema_id, topic: topic.to_owned() })
    }

    /// Sends one; returns when the broker has acknowledged it.
    pub async fn send(&self, asked: &Asked) -> Result<()> {
        let value = self.encode(asked)?;
        let key = asked.payment_order_id.to_string();
        let event_id = asked.event_id.to_string();
        let trace = asked.payment_order_id.simple().to_string();
        let traceparent = format!("00-{trace}-{}-01", &trace[..16]);
        let headers = [("ce_specversion", "1.0"), ("ce_id", &event_id), ("traceparent", &traceparent)]
            .into_iter()
            .fold(OwnedHeaders::new(), |headers, (key, value)| {
                headers.insert(Header { key, value: Some(value) })
            });
        let record = FutureRecord::to(&self.topic).key(&key).payload(&value).headers(headers);
        let sent = self.producer.send(record, ACK_LIMIT).await;
        sent.map(|_| ()).map_err(|(error, _)| error).context("send a request")
    }

    /// Sends all of them.
    pub async fn send_all(&self, asked: &[Asked]) -> Result<()> {
        for some in asked.chunks(TOGETHER) {
            futures::future::try_join_all(some.iter().map(|one| self.send(one))).await?;
        }
        Ok(())
    }

    fn encode(&self, asked: &Asked) -> Result<Vec<u8>> {
        let mut value = vec![0];
        value.extend_from_slice(&self.schema_id.to_be_bytes());
        let text = |text: &str| Avro::String(text.to_owned());
        let expires_at = OffsetDateTime::now_utc() + VALID_FOR;
        let fields = [
            ("paymentOrderId", Avro::Uuid(asked.payment_order_id)),
            ("psp", text(asked.psp)),
            ("amountMinor", Avro::Long(asked.amount_minor)),
            ("currency", text(asked.currency)),
            ("paymentMethod", text(asked.payment_method)),
            ("merchantReference", text("order-1")),
            ("expiresAt", Avro::TimestampMicros(i64::try_from(expires_at.unix_timestamp_nanos() / 1_000)?)),
        ];
        let fields = fields.map(|(name, value)| (name.to_owned(), value)).to_vec();
        let writer = GenericDatumWriter::builder(&self.schema).build().context("make an Avro writer")?;
        writer.write_value(&mut value, Avro::Record(fields)).context("encode a request")?;
        Ok(value)
    }
}

impl std::fmt::Debug for Requests {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Requests")
            .field("topic", &self.topic)
            .field("schema_id", &self.schema_id)
            .finish_non_exhaustive()
    }
}

/// The schema id that the relay's `setup` was given for a topic.
pub(crate) async fn registered(registry_url: &str, topic: &str) -> Result<u32> {
    #[derive(Deserialize)]
    struct Registered {
        id: u32,
    }
    let client =
        reqwest::Client::builder().no_proxy().timeout(CALL_LIMIT).build().context("build a client")?;
    let url = format!("{registry_url}/subjects/{topic}-value/versions/latest");
    let answer = client.get(url).send().await.context("ask the schema registry")?;
    let answer = answer.error_for_status().with_context(|| format!("ask for the schema of {topic}"))?;
    let Registered { id } = answer.json().await.context("read what the schema registry says")?;
    Ok(id)
}

/// A producer that loses nothing, and keeps the order of a key.
pub(crate) fn producer(bootstrap: &str) -> Result<FutureProducer> {
    let mut settings = ClientConfig::new();
    settings
        .set("bootstrap.servers", bootstrap)
        .set("enable.idempotence", "true")
        // As the relay places them: one key is always in one partition.
        .set("partitioner", "murmur2_random")
        .set("linger.ms", "0");
    settings.create().context("make a producer")
}
