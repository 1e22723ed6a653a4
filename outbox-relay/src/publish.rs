//! The producer: records out, delivery reports counted per batch.
//!
//! `flush` returning Ok is no success, and a dropped producer purges its queue: a batch is published when every one of its records
//! was reported delivered, and not otherwise. After one failed report the producer is thrown away, the tail of the topics is read, and
//! publication goes on from the saved cursor, in order.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::{Context as _, ensure};
use chassis::{config::KafkaConfig, telemetry::TraceContext, trace::Span};
use rdkafka::{
    ClientConfig, ClientContext, Message as _, Statistics,
    admin::{AdminClient, AdminOptions, ResourceSpecifier},
    client::DefaultClientContext,
    error::KafkaError,
    message::{DeliveryResult, Header, OwnedHeaders},
    producer::{BaseRecord, Producer as _, ProducerContext, PurgeConfig, ThreadedProducer},
    types::RDKafkaErrorCode,
};
use schema::wire::{self, header};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use tokio::sync::Notify;
use uuid::Uuid;

use crate::{
    leadership::ProofOfLock,
    metrics::Metrics,
    records::Record,
    store::orders::{CarriedOut, Parking},
    window::Cursor,
};

/// Largest request of the producer, above the limit of any sensible topic.
const REQUEST_MAX_BYTES: usize = 16 * 1024 * 1024;
/// What brokers take by default, if a topic does not say.
const TOPIC_MAX_BYTES_DEFAULT: usize = 1_048_588;
/// A record's share of its batch beyond key, value and headers; generous.
const RECORD_OVERHEAD_BYTES: usize = 200;
/// Longer than any RFC 3339 time to the nanosecond.
const TIME_BYTES_MAX: usize = 64;
/// Names and lengths of the headers.
const HEADERS_BYTES: usize = 250;

/// Rows that are passed together: published or parked, and saved.
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
    /// What the brokers say of its records.
    pub delivery: Arc<Delivery>,
}

/// What is remembered of a row while its record is on the way.
#[derive(Debug)]
pub struct Entry {
    /// Its place in the outbox.
    pub id: i64,
    /// `ce_id`.
    pub event_id: Uuid,
    /// When it was appended.
    pub created_at: OffsetDateTime,
    /// Topic that it goes to.
    pub topic: &'static str,
    /// What log or trace tell of it alone, if they tell of single events.
    pub told: Option<Box<Told>>,
}

/// What is told of an event beside its ids.
#[derive(Debug)]
pub struct Told {
    /// Its key.
    pub aggregate_id: String,
    /// The step that made it.
    pub trace: Option<TraceContext>,
    /// The log tells of it.
    pub logged: bool,
    /// The step that sends it.
    pub span: Span,
}

/// The records of one batch on their way to the brokers, and what these report of them.
#[derive(Debug)]
pub struct Delivery {
    /// Distinguishes the deliveries of one producer.
    number: usize,
    reports: Mutex<Reports>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct Reports {
    /// Records handed to the producer, once these are all.
    expected: Option<usize>,
    reported: usize,
    /// Partition and offset of each record, by its place in the batch.
    positions: Vec<(i32, i64)>,
    failure: Option<String>,
}

impl Delivery {
    fn new(number: usize) -> Self {
        Self { number, reports: Mutex::default(), changed: Notify::new() }
    }

    fn reports(&self) -> MutexGuard<'_, Reports> {
        self.reports.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that so many records were sent, and that these were all; true if all of them are reported.
    fn sent(&self, records: usize) -> bool {
        let mut reports = self.reports();
        reports.expected = Some(records);
        let all = reports.reported == records;
        drop(reports);
        self.changed.notify_one();
        all
    }

    /// Waits until every record is reported delivered; fails at the first that could not be.
    pub async fn delivered(&self) -> Result<(), DeliveryFailed> {
        loop {
            let changed = self.changed.notified();
            {
                let reports = self.reports();
                if let Some(reason) = &reports.failure {
                    return Err(DeliveryFailed(reason.clone()));
                }
                if reports.expected == Some(reports.reported) {
                    return Ok(());
                }
            }
            changed.await;
        }
    }

    /// Partition and offset of each record, by its place in the batch. Meaningful once all are delivered, and asked for once.
    pub fn take_positions(&self) -> Vec<(i32, i64)> {
        std::mem::take(&mut self.reports().positions)
    }

    /// Notes a report; true if it was the last one.
    fn report(&self, place: usize, result: Result<(i32, i64), String>) -> bool {
        let mut reports = self.reports();
        match result {
            Ok(position) => {
                if reports.positions.len() <= place {
                    reports.positions.resize(place + 1, (-1, -1));
                }
                reports.positions[place] = position;
            }
            Err(reason) => {
                reports.failure.get_or_insert(reason);
            }
        }
        reports.reported += 1;
        let last = reports.expected == Some(reports.reported);
        let news = last || reports.failure.is_some();
        drop(reports);
        if !last {
            crate::failpoint("R4");
        }
        if news {
            self.changed.notify_one();
        }
        last
    }
}

/// The deliveries that reports still come for. A record carries the number of its delivery and its place therein through the producer,
/// in one word: a pointer of its own would have to be allocated on one thread and freed on another for every record.
#[derive(Debug, Default)]
struct InFlight(Mutex<Deliveries>);

#[derive(Debug, Default)]
struct Deliveries {
    /// The number of the first of `open`.
    first: usize,
    /// In the order of their numbers; None once every record of it is reported.
    open: VecDeque<Option<Arc<Delivery>>>,
}

/// Records of one delivery: pages and slices are smaller.
const PLACES: usize = 1 << 20;

impl InFlight {
    fn deliveries(&self) -> MutexGuard<'_, Deliveries> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn begin(&self) -> Arc<Delivery> {
        let mut deliveries = self.deliveries();
        let number = deliveries.first + deliveries.open.len();
        let delivery = Arc::new(Delivery::new(number));
        deliveries.open.push_back(Some(Arc::clone(&delivery)));
        delivery
    }

    fn of(&self, number: usize) -> Option<Arc<Delivery>> {
        let deliveries = self.deliveries();
        let place = number.checked_sub(deliveries.first)?;
        deliveries.open.get(place).cloned().flatten()
    }

    /// No more reports come for it.
    fn end(&self, number: usize) {
        let mut deliveries = self.deliveries();
        let place = number.checked_sub(deliveries.first);
        if let Some(open) = place.and_then(|place| deliveries.open.get_mut(place)) {
            *open = None;
        }
        while matches!(deliveries.open.front(), Some(None)) {
            deliveries.open.pop_front();
            deliveries.first += 1;
        }
    }
}

/// A record that the brokers did not take.
#[derive(Debug, thiserror::Error)]
#[error("a record was not delivered: {0}")]
pub struct DeliveryFailed(String);

/// Receives delivery reports on librdkafka's thread and counts them where they belong.
#[derive(Debug)]
struct DeliveryReports {
    in_flight: Arc<InFlight>,
    metrics: Metrics,
}

impl ClientContext for DeliveryReports {
    fn error(&self, error: KafkaError, reason: &str) {
        // Every record that is under way is reported as failed, too: that ends the producer.
        if error.rdkafka_error_code() == Some(RDKafkaErrorCode::Fatal) {
            self.metrics.producer_fatal.inc();
        }
        tracing::warn!(%error, reason, "Kafka client");
    }

    fn stats(&self, statistics: Statistics) {
        self.metrics.producer_queue.set(i64::try_from(statistics.msg_cnt).unwrap_or(i64::MAX));
    }
}

impl ProducerContext for DeliveryReports {
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, opaque: usize) {
        let (number, place) = (opaque / PLACES, opaque % PLACES);
        let Some(delivery) = self.in_flight.of(number) else { return };
        let result = match result {
            Ok(message) => Ok((message.partition(), message.offset())),
            Err((error, _)) => Err(chassis::kafka::explain(error)),
        };
        if delivery.report(place, result) {
            self.in_flight.end(number);
        }
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
    // It takes up to a tenth of a second to end, which nobody waits for.
    tokio::task::spawn_blocking(move || drop(admin));
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
        .set("compression.type", "lz4")
        .set("statistics.interval.ms", "5000");
    client
}

/// What every record of one event type has in common.
#[derive(Debug)]
pub struct Kind {
    /// Type of the event.
    pub event_type: &'static str,
    /// Topic that it goes to.
    pub topic: &'static str,
    /// Id of the schema in the registry.
    pub schema_id: u32,
    /// The largest record that the topic takes, in bytes.
    limit: usize,
    /// Headers that do not differ between events.
    headers: OwnedHeaders,
}

/// An idempotent producer whose queue is bounded in bytes.
pub struct Publisher {
    producer: Arc<ThreadedProducer<DeliveryReports>>,
    in_flight: Arc<InFlight>,
    source: String,
    limits: BTreeMap<String, usize>,
    partitions: BTreeMap<String, u32>,
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
        partitions: BTreeMap<String, u32>,
        metrics: Metrics,
    ) -> anyhow::Result<Self> {
        let smallest = limits.values().copied().min().unwrap_or(TOPIC_MAX_BYTES_DEFAULT);
        let client = producer_settings(kafka, in_flight_max_kib, smallest);
        let in_flight = Arc::new(InFlight::default());
        let producer = chassis::kafka::finish(client, kafka)
            .create_with_context(DeliveryReports { in_flight: Arc::clone(&in_flight), metrics })
            .context("Kafka producer")?;
        Ok(Self { producer: Arc::new(producer), in_flight, source: source.to_owned(), limits, partitions })
    }

    /// How many partitions a topic had when this producer was made. Good for grouping, not for more: topics grow.
    pub fn partitions(&self, topic: &str) -> u32 {
        self.partitions.get(topic).copied().unwrap_or(1)
    }

    /// What the records of an event type have in common.
    pub fn kind(&self, event_type: &'static str, topic: &'static str, schema_id: u32) -> Kind {
        let limit = self.limits.get(topic).copied().unwrap_or(TOPIC_MAX_BYTES_DEFAULT).min(REQUEST_MAX_BYTES);
        let headers = [
            (header::CE_SPECVERSION, "1.0"),
            (header::CE_TYPE, event_type),
            (header::CE_SOURCE, &self.source),
            (header::CONTENT_TYPE, wire::CONTENT_TYPE),
        ];
        let headers = headers.into_iter().fold(OwnedHeaders::new_with_capacity(8), with_header);
        Kind { event_type, topic, schema_id, limit, headers }
    }

    /// Why the topic would not take a record of this size, if it would not.
    pub fn too_large(&self, kind: &Kind, record: &Record<'_>, framed: &[u8]) -> Option<String> {
        let Kind { event_type, topic, limit, .. } = kind;
        let trace = record.traceparent.map_or(0, str::len) + record.tracestate.map_or(0, str::len);
        let size = framed.len()
            + record.aggregate_id.len()
            + event_type.len()
            + self.source.len()
            + trace
            + HEADERS_BYTES
            + RECORD_OVERHEAD_BYTES;
        (size > *limit)
            .then(|| format!("the record has {size} bytes with its headers, and topic {topic} takes {limit}"))
    }

    /// Begins the delivery of a batch.
    pub fn begin(&self) -> Arc<Delivery> {
        self.in_flight.begin()
    }

    /// Says that so many records of a batch were sent, and that these were all.
    pub fn sent(&self, delivery: &Delivery, records: usize) {
        if delivery.sent(records) {
            self.in_flight.end(delivery.number);
        }
    }

    /// Hands one record to the producer, if the leader lock is proven to be held. False if its queue is full: wait, and hand it over
    /// again.
    pub fn send(
        &self,
        delivery: &Delivery,
        place: usize,
        kind: &Kind,
        record: &Record<'_>,
        framed: &[u8],
        proof: &ProofOfLock,
    ) -> anyhow::Result<bool> {
        proof.ensure_proven()?;
        ensure!(place < PLACES, "a batch of more than {PLACES} records");
        let outgoing = BaseRecord::with_opaque_to(kind.topic, delivery.number * PLACES + place)
            .key(record.aggregate_id)
            .payload(framed)
            .headers(headers(kind, record)?);
        match self.producer.send(outgoing) {
            Ok(()) => Ok(true),
            Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), _)) => Ok(false),
            Err((error, _)) => Err(DeliveryFailed(format!("the producer refused it: {error}")).into()),
        }
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

fn headers(kind: &Kind, record: &Record<'_>) -> anyhow::Result<OwnedHeaders> {
    let (mut id, mut time) = ([0; uuid::fmt::Hyphenated::LENGTH], [0; TIME_BYTES_MAX]);
    let id: &str = record.event_id.hyphenated().encode_lower(&mut id);
    let mut unwritten = &mut time[..];
    record.created_at.format_into(&mut unwritten, &Rfc3339)?;
    let written = TIME_BYTES_MAX - unwritten.len();
    let time = std::str::from_utf8(&time[..written])?;
    let own = [
        Some((header::CE_ID, id)),
        Some((header::CE_TIME, time)),
        record.traceparent.map(|trace| (header::TRACEPARENT, trace)),
        record.tracestate.map(|state| (header::TRACESTATE, state)),
    ];
    Ok(own.into_iter().flatten().fold(kind.headers.clone(), with_header))
}

fn with_header(headers: OwnedHeaders, (key, value): (&str, &str)) -> OwnedHeaders {
    headers.insert(Header { key, value: Some(value) })
}
