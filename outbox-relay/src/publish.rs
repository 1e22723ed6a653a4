//! The producer: records out, delivery reports counted per batch.
//!
//! `flush` returning Ok is no success, and a dropped producer purges its queue: a batch is published when every one of its records
//! was reported delivered, and not otherwise. One failed report ends the term: the producer is thrown away, and publication goes on
//! from the saved cursor, in order.

use std::{
    collections::BTreeMap,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use anyhow::{Context as _, bail};
use chassis::config::KafkaConfig;
use rdkafka::{
    ClientConfig, ClientContext, Message as _,
    error::KafkaError,
    message::{DeliveryResult, Header, OwnedHeaders},
    producer::{BaseRecord, Producer as _, ProducerContext, PurgeConfig, ThreadedProducer},
    types::RDKafkaErrorCode,
};
use schema::wire::{self, header};
use std::sync::Arc;
use time::format_description::well_known::Rfc3339;
use tokio::sync::Notify;

use crate::{leadership::ProofOfLock, store::OutboxRow, window::Cursor};

/// Rows that are published and saved together.
#[derive(Debug)]
pub struct Batch {
    /// The place after this batch.
    pub cursor: Cursor,
    /// What each record is, in the order of the outbox.
    pub entries: Vec<Entry>,
    unreported: AtomicUsize,
    failed: AtomicBool,
    reports: Mutex<Reports>,
    changed: Notify,
}

/// What is remembered of a row while its record is on the way.
#[derive(Debug)]
pub struct Entry {
    /// Outbox id.
    pub id: i64,
    /// `ce_id`.
    pub event_id: uuid::Uuid,
    /// Kafka key.
    pub aggregate_id: String,
    /// Trace of the event.
    pub traceparent: Option<String>,
    /// When it was appended.
    pub created_at: time::OffsetDateTime,
    /// Topic that it goes to.
    pub topic: &'static str,
}

#[derive(Debug, Default)]
struct Reports {
    /// Partition and offset of each record, by its place in the batch.
    positions: BTreeMap<usize, (i32, i64)>,
    failure: Option<String>,
}

impl Batch {
    /// A batch of which nothing is reported yet.
    pub fn new(cursor: Cursor, entries: Vec<Entry>) -> Self {
        let unreported = AtomicUsize::new(entries.len());
        Self {
            cursor,
            entries,
            unreported,
            failed: AtomicBool::new(false),
            reports: Mutex::default(),
            changed: Notify::new(),
        }
    }

    /// True if every record is reported delivered.
    pub fn is_delivered(&self) -> bool {
        self.unreported.load(Ordering::Acquire) == 0 && !self.failed.load(Ordering::Acquire)
    }

    /// Waits until every record is reported delivered; fails at the first that could not be.
    pub async fn delivered(&self) -> anyhow::Result<()> {
        loop {
            let changed = self.changed.notified();
            if self.failed.load(Ordering::Acquire) {
                let reports = self.reports.lock().unwrap_or_else(PoisonError::into_inner);
                bail!(
                    "a record was not delivered: {}",
                    reports.failure.as_deref().unwrap_or("no reason given")
                );
            }
            if self.is_delivered() {
                return Ok(());
            }
            changed.await;
        }
    }

    /// Partition and offset of each record, by its place in the batch, as far as reported.
    pub fn positions(&self) -> BTreeMap<usize, (i32, i64)> {
        self.reports.lock().unwrap_or_else(PoisonError::into_inner).positions.clone()
    }

    fn report(&self, place: usize, result: Result<(i32, i64), String>) {
        {
            let mut reports = self.reports.lock().unwrap_or_else(PoisonError::into_inner);
            match result {
                Ok(position) => {
                    reports.positions.insert(place, position);
                }
                Err(reason) => {
                    reports.failure.get_or_insert(reason);
                    self.failed.store(true, Ordering::Release);
                }
            }
        }
        let last = self.unreported.fetch_sub(1, Ordering::AcqRel) == 1;
        if last || self.failed.load(Ordering::Acquire) {
            self.changed.notify_one();
        }
    }
}

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

/// The producer's settings, without the operator's own properties, which win over them.
pub fn producer_settings(kafka: &KafkaConfig, in_flight_max_kib: u32) -> ClientConfig {
    let mut client = chassis::kafka::client(kafka, "outbox-relay");
    client
        .set("enable.idempotence", "true")
        .set("acks", "all")
        // A gap in the order of one partition ends the producer instead of passing unnoticed.
        .set("enable.gapless.guarantee", "true")
        // A record never expires in the queue: brokers that are away are waited for, and only a final refusal is a failure.
        .set("message.timeout.ms", "0")
        .set("queue.buffering.max.kbytes", in_flight_max_kib.to_string())
        .set("queue.buffering.max.messages", "500000")
        .set("linger.ms", "1")
        .set("batch.size", "262144")
        .set("compression.type", "lz4");
    client
}

/// An idempotent producer whose queue is bounded in bytes.
pub struct Publisher {
    producer: Arc<ThreadedProducer<DeliveryReports>>,
    source: String,
}

impl std::fmt::Debug for Publisher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Publisher").field("source", &self.source).finish_non_exhaustive()
    }
}

impl Publisher {
    /// Makes the producer. It connects by itself, and keeps trying for ever.
    pub fn new(kafka: &KafkaConfig, in_flight_max_kib: u32, source: &str) -> anyhow::Result<Self> {
        let client = producer_settings(kafka, in_flight_max_kib);
        let producer = chassis::kafka::finish(client, kafka)
            .create_with_context(DeliveryReports)
            .context("Kafka producer")?;
        Ok(Self { producer: Arc::new(producer), source: source.to_owned() })
    }

    /// Hands one record to the producer, if the leader lock is proven to be held. False if its queue is full: wait, and hand it over
    /// again.
    pub fn send(
        &self,
        batch: &Arc<Batch>,
        place: usize,
        row: &OutboxRow,
        record: &[u8],
        proof: &ProofOfLock,
    ) -> anyhow::Result<bool> {
        proof.ensure_proven()?;
        let Some(entry) = batch.entries.get(place) else {
            bail!("a batch of {} has no place {place}", batch.entries.len())
        };
        let outgoing = BaseRecord::with_opaque_to(entry.topic, Box::new((Arc::clone(batch), place)))
            .key(row.aggregate_id.as_str())
            .payload(record)
            .headers(self.headers(row)?);
        match self.producer.send(outgoing) {
            Ok(()) => Ok(true),
            Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), _)) => Ok(false),
            Err((error, _)) => Err(error).context("the producer refused a record"),
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
