//! From the topic to the inbox.
//!
//! ```text
//! poll a batch -> decode and check -> one transaction: new requests | quarantined records -> commit -> wake -> commit offsets
//! ```
//! Offsets are committed after the database, never before. If the process dies in between, the records are read again, and their
//! requests are known already. For the same reason offsets of partitions that were handed over meanwhile do no harm.
//!
//! A registry or a database that is away is waited for, with the batch in hand and the partitions paused, while the consumer goes on
//! polling: it stays in its group. A record that cannot be taken in goes to quarantine and holds nobody up.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use anyhow::Context as _;
use chassis::{
    backoff::Backoff,
    kafka::{self, ConsumerMetrics},
    needs::{Need, Pulse},
    postgres::{Disposition, disposition, transaction},
    shutdown::Shutdown,
    telemetry::TraceContext,
    trace::{self, Span, Step},
};
use futures::FutureExt as _;
use rdkafka::{
    ClientContext, Message as _, Offset, Statistics, TopicPartitionList,
    config::RDKafkaLogLevel,
    consumer::{BaseConsumer, CommitMode, Consumer as _, ConsumerContext, Rebalance, StreamConsumer},
    error::{KafkaError, KafkaResult},
    message::OwnedMessage,
};
use schema::{decode::Decoder, payment_order_requested::PaymentOrderRequestedEvent};
use sqlx::{PgConnection, PgPool};
use tokio::sync::Notify;
use uuid::Uuid;

use crate::{
    clock::Clock,
    config::Config,
    metrics::Metrics,
    psp::Psps,
    request::{self, Quarantined, Reason, Request},
    store,
};

/// Most records of one batch, and most bytes, unless one record is larger.
const BATCH_MAX: usize = 500;
const BATCH_MAX_BYTES: usize = 4 << 20;
/// A broker writes each commit to disk: not one per record.
const COMMIT_EVERY: Duration = Duration::from_millis(100);

type Consumer = StreamConsumer<Log>;

/// Reads the topic.
pub struct Intake {
    consumer: Consumer,
    decoder: Decoder<PaymentOrderRequestedEvent>,
    clock: Clock,
    pool: PgPool,
    psps: Psps,
    metrics: Metrics,
    wake: Arc<Notify>,
    shutdown: Shutdown,
    schemas: Need,
    pulse: Pulse,
    /// For those who read spans.
    consumer_group: String,
    /// Records that came while a batch was held.
    ahead: Vec<OwnedMessage>,
    /// Next offset per partition, of what the database has.
    done: HashMap<(String, i32), i64>,
    commit_at: Instant,
    /// What the client complained of last.
    trouble: Option<KafkaError>,
}

/// A record after decoding, with its original beside it, and the step in which it is taken in.
type Read = (OwnedMessage, Result<Request, Quarantined>, Span);

impl Intake {
    /// Subscribes. Makes no call yet.
    pub fn new(
        config: &Config,
        decoder: Decoder<PaymentOrderRequestedEvent>,
        (pool, psps, metrics): (PgPool, Psps, Metrics),
        (schemas, pulse): (Need, Pulse),
        wake: Arc<Notify>,
        shutdown: Shutdown,
    ) -> anyhow::Result<Self> {
        let mut client = kafka::client(&config.kafka, "executor");
        client
            .set("group.id", &config.consumer_group)
            .set("group.protocol", "classic")
            .set("partition.assignment.strategy", "cooperative-sticky")
            .set("enable.auto.commit", "false")
            .set("enable.auto.offset.store", "false")
            // A group without offsets takes everything; what was taken in before is known by its id.
            .set("auto.offset.reset", "earliest")
            // A topic that is made after the start is found within seconds.
            .set("topic.metadata.refresh.interval.ms", "5000")
            .set("session.timeout.ms", "10000")
            .set("heartbeat.interval.ms", "1000")
            .set("fetch.wait.max.ms", "100")
            .set("queued.max.messages.kbytes", "16384")
            .set("statistics.interval.ms", "1000")
            .set_log_level(RDKafkaLogLevel::Warning)
            // A consumer has none, and librdkafka would say so in the log.
            .remove("partitioner");
        let consumer: Consumer = kafka::finish(client, &config.kafka)
            .create_with_context(Log(metrics.consumer.clone()))
            .context("Kafka consumer")?;
        consumer.subscribe(&[&config.requests_topic]).context("subscription")?;
        let (ahead, done, commit_at) = (vec![], HashMap::new(), Instant::now());
        let trouble = None;
        let (clock, consumer_group) = (config.clock.clone(), config.consumer_group.clone());
        Ok(Self {
            consumer,
            decoder,
            clock,
            pool,
            psps,
            metrics,
            wake,
            shutdown,
            schemas,
            pulse,
            consumer_group,
            ahead,
            done,
            commit_at,
            trouble,
        })
    }

    /// Takes requests in until asked to stop.
    pub async fn run(mut self) -> anyhow::Result<()> {
        while let Some(batch) = self.poll().await {
            let Some(read) = self.read(batch).await else { break };
            if !self.take_in(read).await {
                break;
            }
            self.commit(CommitMode::Async);
        }
        self.commit_at = Instant::now();
        // The last commit waits for the broker's answer, for which this thread may block.
        tokio::task::spawn_blocking(move || {
            self.commit(CommitMode::Sync);
            self.consumer.unsubscribe();
        })
        .await
        .context("the last offset commit")
    }

    /// What is ready, at least one record; None at the end.
    async fn poll(&mut self) -> Option<Vec<OwnedMessage>> {
        let mut batch = std::mem::take(&mut self.ahead);
        let began = trace::exporting().then(SystemTime::now);
        while batch.is_empty() {
            self.pulse.beat();
            let commit_due = if self.done.is_empty() { Duration::from_secs(1) } else { COMMIT_EVERY };
            tokio::select! {
                () = self.shutdown.wait() => return None,
                received = self.consumer.recv() => match received {
                    Ok(message) => {
                        batch.push(message.detach());
                        self.trouble = None;
                    }
                    Err(error @ KafkaError::MessageConsumptionFatal(_)) => {
                        tracing::error!(%error, "the Kafka client failed for good");
                        return None;
                    }
                    Err(error) => self.troubled(error),
                },
                () = tokio::time::sleep(commit_due) => self.commit(CommitMode::Async),
            }
        }
        let mut bytes = 0;
        while batch.len() < BATCH_MAX
            && bytes < BATCH_MAX_BYTES
            && let Some(Ok(message)) = self.consumer.recv().now_or_never()
        {
            bytes += message.payload_len();
            batch.push(message.detach());
        }
        if began.is_some() {
            self.polled(&batch, began);
        }
        Some(batch)
    }

    /// The client goes on by itself, and reports the same trouble many times a second while brokers are away: said once, and never
    /// waited for, or the reports would queue up before the records that follow them.
    fn troubled(&mut self, error: KafkaError) {
        self.metrics.consumer.errors.inc();
        if self.trouble.as_ref() != Some(&error) {
            tracing::warn!(error = kafka::explain(&error), "the topic could not be read");
            self.trouble = Some(error);
        }
    }

    /// Decodes and checks; None at the end.
    async fn read(&mut self, batch: Vec<OwnedMessage>) -> Option<Vec<Read>> {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
        let mut read = Vec::with_capacity(batch.len());
        for record in batch {
            loop {
                match request::read(&record, &self.decoder, &self.psps, self.clock.now()).await {
                    Ok(mut outcome) => {
                        let span = self.step(&record, &mut outcome);
                        break read.push((record, outcome, span));
                    }
                    Err(text) => self.hold("registry", &text, &mut backoff).await?,
                }
            }
        }
        self.go_on("registry");
        Some(read)
    }

    /// The step that fetched a batch: of no payment's trace, linked to all of them.
    fn polled(&self, batch: &[OwnedMessage], began: Option<SystemTime>) {
        let traces: Vec<TraceContext> = batch.iter().filter_map(request::trace_of).collect();
        if let Some(first) = batch.first().filter(|_| traces.iter().any(TraceContext::sampled)) {
            let mut span = Span::messaging_since(Step::Poll, first.topic(), None, &traces, began);
            span.set("messaging.consumer.group.name", self.consumer_group.clone());
            span.set("messaging.client.id", "executor");
            span.set("messaging.batch.message_count", i64::try_from(batch.len()).unwrap_or(i64::MAX));
        }
    }

    /// The step in which a record is taken in: a child of the one that made it, and linked to it. All that is done for the order from here
    /// on is a child of this step.
    fn step(&self, record: &OwnedMessage, outcome: &mut Result<Request, Quarantined>) -> Span {
        if !trace::exporting() {
            return Span::none();
        }
        let created = request::trace_of(record);
        let mut span = Span::messaging(Step::Process, record.topic(), created, created.as_slice());
        if span.is_recording() {
            span.set("messaging.consumer.group.name", self.consumer_group.clone());
            span.set("messaging.client.id", "executor");
            span.set_position(record.partition(), record.offset());
            match outcome {
                Ok(request) => {
                    let payment_order_id = request.event.payment_order_id.to_string();
                    span.set("messaging.kafka.message.key", payment_order_id.clone());
                    span.set("payment_order_id", payment_order_id);
                    span.set_if("messaging.message.id", request.event_id.map(|id| id.to_string()));
                    span.set("psp", request.event.psp.clone());
                }
                Err(aside) => span.fail(aside.reason.as_str()),
            }
        }
        if let (Ok(request), Some(context)) = (outcome, span.context()) {
            request.trace = context;
        }
        span
    }

    /// Writes a batch, waiting for the database as long as it takes; false at the end. A batch that the database refuses is halved
    /// until the culprit is alone.
    async fn take_in(&mut self, read: Vec<Read>) -> bool {
        let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(5));
        let mut parts = vec![read];
        while let Some(mut part) = parts.pop() {
            let Err(error) = self.write(&part).await else {
                self.note(&part);
                continue;
            };
            if disposition(&error) != Disposition::Culprit {
                parts.push(part);
                if self.hold("database", &error.to_string(), &mut backoff).await.is_none() {
                    return false;
                }
                continue;
            }
            if part.len() > 1 {
                let rest = part.split_off(part.len() / 2);
                parts.extend([rest, part]);
            } else if let Some((record, outcome, mut span)) = part.pop() {
                if outcome.is_err() {
                    // Even quarantine refuses it: a fault of ours, and nothing is to be lost by it.
                    parts.push(vec![(record, outcome, span)]);
                    if self.hold("database", &error.to_string(), &mut backoff).await.is_none() {
                        return false;
                    }
                    continue;
                }
                let aside = request::quarantined(&record, Reason::Refused, &error.to_string());
                span.fail(aside.reason.as_str());
                parts.push(vec![(record, Err(aside), span)]);
            }
        }
        self.go_on("database");
        true
    }

    async fn write(&self, part: &[Read]) -> Result<(), sqlx::Error> {
        let requests: Vec<Request> =
            part.iter().filter_map(|(_, outcome, _)| outcome.as_ref().ok().cloned()).collect();
        let aside: Vec<Quarantined> =
            part.iter().filter_map(|(_, outcome, _)| outcome.as_ref().err().cloned()).collect();
        let count = requests.len();
        let new = transaction(&self.pool, move |tx| {
            Box::pin(async move {
                if !aside.is_empty() {
                    store::insert_quarantined(tx, &aside).await?;
                }
                if requests.is_empty() { Ok(0) } else { take_in(tx, &requests).await }
            })
        })
        .await?;
        if new > 0 {
            self.wake.notify_one();
        }
        let count = u64::try_from(count).unwrap_or(0);
        self.metrics.requests_received.inc_by(count);
        self.metrics.requests_duplicate.inc_by(count.saturating_sub(new));
        Ok(())
    }

    /// Logs what is in the database now, and remembers how far its offsets go.
    fn note(&mut self, part: &[Read]) {
        for (record, outcome, _) in part {
            let (partition, offset) = (record.partition(), record.offset());
            match outcome {
                Ok(request) => tracing::info!(
                    trace_id = request.trace.trace_id(),
                    span_id = request.trace.span_id(),
                    payment_order_id = %request.event.payment_order_id,
                    event_id = request.event_id.map(tracing::field::display),
                    partition,
                    offset,
                    "request taken in"
                ),
                Err(aside) => {
                    self.metrics.requests_quarantined.with_label_values(&[aside.reason.as_str()]).inc();
                    let (reason_code, reason) = (aside.reason.as_str(), &aside.text);
                    tracing::warn!(
                        topic = record.topic(),
                        partition,
                        offset,
                        reason_code,
                        reason,
                        "record set aside"
                    );
                }
            }
            let next = self.done.entry((record.topic().to_owned(), partition)).or_default();
            *next = (*next).max(offset + 1);
        }
    }

    /// Commits the offsets of what is in the database, if it is time.
    fn commit(&mut self, mode: CommitMode) {
        if self.done.is_empty() || Instant::now() < self.commit_at {
            return;
        }
        let mut offsets = TopicPartitionList::new();
        for ((topic, partition), next) in self.done.drain() {
            if let Err(error) = offsets.add_partition_offset(&topic, partition, Offset::Offset(next)) {
                tracing::warn!(%error, topic, partition, "offset");
            }
        }
        self.commit_at = Instant::now() + COMMIT_EVERY;
        if let Err(error) = self.consumer.commit(&offsets, mode) {
            // Whoever owns the partition then reads these records again, and finds them known.
            self.metrics.consumer.commit_failures.inc();
            tracing::info!(%error, "offsets were not committed");
        }
    }

    /// Waits before another try, with the partitions paused, and goes on polling meanwhile; None at the end.
    async fn hold(&mut self, on: &str, why: &str, backoff: &mut Backoff) -> Option<()> {
        let delay = backoff.next_delay();
        let waiting = self.metrics.waiting.with_label_values(&[on]);
        if on == "registry" {
            self.schemas.missing(why);
        } else if waiting.get() == 0 {
            tracing::warn!(on, why, "intake waits");
        }
        waiting.set(1);
        self.pulse.beat();
        let until = tokio::time::Instant::now() + delay;
        self.pause();
        loop {
            tokio::select! {
                () = tokio::time::sleep_until(until) => return Some(()),
                () = self.shutdown.wait() => return None,
                received = self.consumer.recv() => {
                    // From a partition that was assigned only now.
                    if let Ok(message) = received {
                        self.ahead.push(message.detach());
                        self.pause();
                    }
                }
            }
        }
    }

    fn pause(&self) {
        if let Err(error) = self.consumer.assignment().and_then(|owned| self.consumer.pause(&owned)) {
            tracing::debug!(%error, "pause");
        }
    }

    fn go_on(&self, on: &str) {
        let waiting = self.metrics.waiting.with_label_values(&[on]);
        if waiting.get() == 0 {
            return;
        }
        waiting.set(0);
        if on == "registry" {
            self.schemas.met();
        }
        if let Err(error) = self.consumer.assignment().and_then(|owned| self.consumer.resume(&owned)) {
            tracing::debug!(%error, "resume");
        }
        tracing::info!(on, "intake goes on");
    }
}

/// Takes requests in, and has what came before them looked at; returns how many were new.
async fn take_in(tx: &mut PgConnection, requests: &[Request]) -> Result<u64, sqlx::Error> {
    let new = store::insert_requests(tx, requests).await?;
    let orders: Vec<Uuid> = requests.iter().map(|request| request.event.payment_order_id).collect();
    store::webhooks::turned_up(tx, &orders).await?;
    Ok(new)
}

impl std::fmt::Debug for Intake {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Intake")
            .field("ahead", &self.ahead.len())
            .field("done", &self.done)
            .finish_non_exhaustive()
    }
}

/// Tells the log and the metrics what the consumer tells us.
struct Log(ConsumerMetrics);

impl ClientContext for Log {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        self.0.logged(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.0.errors.inc();
        tracing::warn!(%error, reason, "Kafka");
    }

    fn stats(&self, statistics: Statistics) {
        self.0.sampled(&statistics);
    }
}

impl ConsumerContext for Log {
    fn post_rebalance(&self, _: &BaseConsumer<Self>, rebalance: &Rebalance<'_>) {
        self.0.rebalanced(rebalance);
        tracing::info!(change = ?rebalance, "partitions of the requests' topic");
    }

    fn commit_callback(&self, result: KafkaResult<()>, _: &TopicPartitionList) {
        if let Err(error) = result {
            self.0.commit_failures.inc();
            tracing::info!(%error, "offsets were not committed");
        }
    }
}
