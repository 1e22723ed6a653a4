//! The producer: records out, delivery reports counted per batch.
//!
//! `flush` returning Ok is no success, and a dropped producer purges its queue: a batch is published when every one of its records
//! was reported delivered, and not otherwise. After one failed report the producer is thrown away, the tail of the topics is read, and
//! publication goes on from the saved cursor, in order.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, bail};
use chassis::config::KafkaConfig;
use rdkafka::{
    ClientConfig, ClientContext, Message as _,
    admin::{AdminClient, AdminOptions, ResourceSpecifier},
    client::DefaultClientContext,
    error::KafkaError,
    message::{DeliveryResult, Header, OwnedHeaders},
    producer::{BaseRecord, Producer as _, ProducerContext, PurgeConfig, ThreadedProducer},
    types::RDKafkaErrorCode,
};
use schema::wire::{self, header};
use time::format_description::well_known::Rfc3339;
use tokio::sync::Notify;

use crate::{
    leadership::ProofOfLock,
    store::{
        OutboxRow,
        orders::{CarriedOut, Parking},
    },
    window::Cursor,
};

/// Largest request of the producer, above the limit of any sensible topic.
const REQUEST_MAX_BYTES: usize = 16 * 1024 * 1024;
/// What brokers take by default, if a topic does not say.
const TOPIC_MAX_BYTES_DEFAULT: usize = 1_048_588;
/// A record's share of its batch beyond key, value and headers; generous.
const RECORD_OVERHEAD_BYTES: usize = 200;
/// Names and lengths of the headers.
const HEADERS_BYTES: usize = 250;

/// Rows that are published and saved together.
#[derive(Debug)]
pub struct Batch {
    /// The place after this batch.
    pub cursor: Cursor,
    /// What each record is, in the order of the outbox.
    pub entries: Vec<Entry>,
    /// Lowest and highest id that this batch goes past.
    pub passed: Option<(i64, i64)>,
    /// Events that were found on the topics already.
    pub found: usize,
    /// Rows that are passed without being published.
    pub parked: Vec<Parking>,
    /// What this batch does of an operator's command.
    pub carried_out: Option<CarriedOut>,
    unreported: AtomicUsize,
    failed: AtomicBool,
    reports: Mutex<Reports>,
    changed: Notify,
}

/// What is remembered of a row while its record is on the way; its payload is not.
#[derive(Debug)]
pub struct Entry {
    /// The row.
    pub row: OutboxRow,
    /// Topic that it goes to.
    pub topic: &'static str,
}

#[derive(Debug, Default)]
struct Reports {
    /// Partition and offset of each record, by its place in the batch.
    positions: Vec<(i32, i64)>,
    failure: Option<String>,
}

impl Batch {
    /// A batch of which nothing is reported yet.
    pub fn new(cursor: Cursor, entries: Vec<Entry>) -> Self {
        let count = entries.len();
        Self {
            cursor,
            entries,
            passed: None,
            found: 0,
            parked: Vec::new(),
            carried_out: None,
            unreported: AtomicUsize::new(count),
            failed: AtomicBool::new(false),
            reports: Mutex::new(Reports { positions: vec![(-1, -1); count], failure: None }),
            changed: Notify::new(),
        }
    }

    /// True if every record is reported delivered.
    pub fn is_delivered(&self) -> bool {
        self.unreported.load(Ordering::Acquire) == 0 && !self.failed.load(Ordering::Acquire)
    }

    /// Waits until every record is reported delivered; fails at the first that could not be.
    pub async fn delivered(&self) -> Result<(), DeliveryFailed> {
        loop {
            let changed = self.changed.notified();
            if self.failed.load(Ordering::Acquire) {
                let reports = self.reports.lock().unwrap_or_else(PoisonError::into_inner);
                let reason = reports.failure.clone().unwrap_or_else(|| "no reason given".to_owned());
                return Err(DeliveryFailed(reason));
            }
            if self.is_delivered() {
                return Ok(());
            }
            changed.await;
        }
    }

    /// Partition and offset of each record, by its place in the batch. Meaningful once all are delivered.
    pub fn positions(&self) -> Vec<(i32, i64)> {
        std::mem::take(&mut self.reports.lock().unwrap_or_else(PoisonError::into_inner).positions)
    }

    fn report(&self, place: usize, result: Result<(i32, i64), String>) {
        {
            let mut reports = self.reports.lock().unwrap_or_else(PoisonError::into_inner);
            match result {
                Ok(position) => {
                    if let Some(known) = reports.positions.get_mut(place) {
                        *known = position;
                    }
                }
                Err(reason) => {
                    reports.failure.get_or_insert(reason);
                    self.failed.store(true, Ordering::Release);
                }
            }
        }
        let last = self.unreported.fetch_sub(1, Ordering::AcqRel) == 1;
        if !last {
            crate::failpoint("R4");
        }
        if last || self.failed.load(Ordering::Acquire) {
            self.changed.notify_one();
        }
    }
}

/// A record that the brokers did not take.
#[derive(Debug, thiserror::Error)]
#[error("a record was not delivered: {0}")]
pub struct DeliveryFailed(String);

/// Receives delivery reports on librdkafka's thread and counts them where they belong.
#[derive(Debug)]
pub struct DeliveryReports;

impl ClientContext for DeliveryReports {
    fn error(&self, error: KafkaError, reason: &str) {
        tracing::warn!(%error, reason, "Kafka client");
    }
}

impl ProducerContext for DeliveryReports {
    type DeliveryOpaque = Box<(Arc<Batch>, usize)>;

    fn delivery(&self, result: &DeliveryResult<'_>, opaque: Self::DeliveryOpaque) {
        let (batch, place) = *opaque;
        batch.report(
            place,
            match result {
                Ok(message) => Ok((message.partition(), message.offset())),
                Err((error, _)) => Err(error.to_string()),
            },
        );
    }
}

/// The largest record that each topic takes, in bytes, as its settings say.
pub async fn topic_limits(kafka: &KafkaConfig, topics: &[String]) -> anyhow::Result<BTreeMap<String, usize>> {
    let client = chassis::kafka::client(kafka, "outbox-relay limits");
    let admin: AdminClient<DefaultClientContext> = chassis::kafka::finish(client, kafka).create()?;
    let resources: Vec<_> = topics.iter().map(|topic| ResourceSpecifier::Topic(topic)).collect();
    let options = AdminOptions::new().request_timeout(Some(Duration::from_secs(3)));
    let mut limits = BTreeMap::new();
    for (topic, resource) in topics.iter().zip(admin.describe_configs(resources.iter(), &options).await?) {
        let entries = resource.map(|resource| resource.entries).unwrap_or_default();
        let setting = entries.into_iter().find(|entry| entry.name == "max.message.bytes");
        let limit = setting.and_then(|entry| entry.value).and_then(|value| value.parse().ok());
        limits.insert(topic.clone(), limit.unwrap_or(TOPIC_MAX_BYTES_DEFAULT));
    }
    Ok(limits)
}

/// The producer's settings, without the operator's own properties, which win over them.
pub fn producer_settings(
    kafka: &KafkaConfig,
    in_flight_max_kib: u32,
    batch_max_bytes: usize,
) -> ClientConfig {
    let mut client = chassis::kafka::client(kafka, "outbox-relay");
    client
        .set("enable.idempotence", "true")
        .set("acks", "all")
        // A gap in the order of one partition ends the producer instead of passing unnoticed.
        .set("enable.gapless.guarantee", "true")
        // A record never expires in the queue: brokers that are away are waited for, and only a final refusal is a failure.
        .set("message.timeout.ms", "0")
        .set("message.max.bytes", REQUEST_MAX_BYTES.to_string())
        .set("queue.buffering.max.kbytes", in_flight_max_kib.to_string())
        .set("queue.buffering.max.messages", "500000")
        .set("linger.ms", "1")
        // A batch that a topic does not take would take sound records down with it.
        .set("batch.size", batch_max_bytes.min(262_144).to_string())
        .set("compression.type", "lz4");
    client
}

/// An idempotent producer whose queue is bounded in bytes.
pub struct Publisher {
    producer: Arc<ThreadedProducer<DeliveryReports>>,
    source: String,
    limits: BTreeMap<String, usize>,
}

impl std::fmt::Debug for Publisher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Publisher").field("source", &self.source).finish_non_exhaustive()
    }
}

impl Publisher {
    /// Makes the producer. It connects by itself, and keeps trying for ever.
    pub fn new(
        kafka: &KafkaConfig,
        in_flight_max_kib: u32,
        source: &str,
        limits: BTreeMap<String, usize>,
    ) -> anyhow::Result<Self> {
        let smallest = limits.values().copied().min().unwrap_or(TOPIC_MAX_BYTES_DEFAULT);
        let client = producer_settings(kafka, in_flight_max_kib, smallest);
        let producer = chassis::kafka::finish(client, kafka)
            .create_with_context(DeliveryReports)
            .context("Kafka producer")?;
        Ok(Self { producer: Arc::new(producer), source: source.to_owned(), limits })
    }

    /// Why a topic would not take a record of this size, if it would not.
    pub fn too_large(&self, topic: &str, row: &OutboxRow, record: &[u8]) -> Option<String> {
        let trace =
            row.traceparent.as_ref().map_or(0, String::len) + row.tracestate.as_ref().map_or(0, String::len);
        let size = record.len()
            + row.aggregate_id.len()
            + row.event_type.len()
            + self.source.len()
            + trace
            + HEADERS_BYTES
            + RECORD_OVERHEAD_BYTES;
        let limit = self.limits.get(topic).copied().unwrap_or(TOPIC_MAX_BYTES_DEFAULT).min(REQUEST_MAX_BYTES);
        (size > limit)
            .then(|| format!("the record has {size} bytes with its headers, and topic {topic} takes {limit}"))
    }

    /// Hands one record to the producer, if the leader lock is proven to be held. False if its queue is full: wait, and hand it over
    /// again.
    pub fn send(
        &self,
        batch: &Arc<Batch>,
        place: usize,
        record: &[u8],
        proof: &ProofOfLock,
    ) -> anyhow::Result<bool> {
        proof.ensure_proven()?;
        let Some(Entry { row, topic }) = batch.entries.get(place) else {
            bail!("a batch of {} has no place {place}", batch.entries.len())
        };
        let outgoing = BaseRecord::with_opaque_to(topic, Box::new((Arc::clone(batch), place)))
            .key(row.aggregate_id.as_str())
            .payload(record)
            .headers(self.headers(row)?);
        match self.producer.send(outgoing) {
            Ok(()) => Ok(true),
            Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), _)) => Ok(false),
            Err((error, _)) => Err(DeliveryFailed(format!("the producer refused it: {error}")).into()),
        }
    }

    fn headers(&self, row: &OutboxRow) -> anyhow::Result<OwnedHeaders> {
        let (mut id, time) = ([0; uuid::fmt::Hyphenated::LENGTH], row.created_at.format(&Rfc3339)?);
        let id: &str = row.event_id.hyphenated().encode_lower(&mut id);
        let mut headers = OwnedHeaders::new_with_capacity(8);
        for (key, value) in [
            (header::CE_SPECVERSION, "1.0"),
            (header::CE_ID, id),
            (header::CE_TYPE, &row.event_type),
            (header::CE_SOURCE, &self.source),
            (header::CE_TIME, &time),
            (header::CONTENT_TYPE, wire::CONTENT_TYPE),
        ] {
            headers = headers.insert(Header { key, value: Some(value) });
        }
        for (key, value) in [(header::TRACEPARENT, &row.traceparent), (header::TRACESTATE, &row.tracestate)] {
            if let Some(value) = value {
                headers = headers.insert(Header { key, value: Some(value) });
            }
        }
        Ok(headers)
    }

    /// Throws away what is still queued, and ends the producer off the async threads: that can take half a second.
    pub async fn discard(self) {
        let producer = self.producer;
        let ended = tokio::task::spawn_blocking(move || {
            producer.purge(PurgeConfig::default().queue().inflight());
            drop(producer);
        });
        if ended.await.is_err() {
            tracing::error!("ending the producer panicked");
        }
    }
}
