//! `PspResultUpdateConsumer`: reads results from Kafka and has them applied, batch by batch.
//!
//! ```text
//! poll (one record, then what is ready) -> take (decode) -> process_psp_result (one transaction) -> commit offsets -> poll ...
//! ```
//! It runs on a thread of its own, because the client's calls block. Offsets are committed after the database, never before: if the
//! process dies in between, the records come again and are known. While the database or the schema registry cannot be reached
//! the batch is kept, the partitions are paused, and polling goes on so that the group keeps this member.

use std::{
    cell::RefCell,
    sync::Arc,
    time::{Duration, SystemTime},
};

use anyhow::Context as _;
use chassis::{
    backoff::Backoff,
    needs::Need,
    postgres::{Disposition, disposition},
    shutdown::Shutdown,
    telemetry::TraceContext,
    trace::{self, Span, Step},
};
use rdkafka::{
    consumer::{BaseConsumer, Consumer as _},
    error::KafkaError,
    types::RDKafkaErrorCode,
};
use schema::{decode::Decoder, psp_result_update::PspResultUpdateEvent};
use tokio::{runtime::Handle, time::Instant};

use crate::{
    assignment::Assignment,
    config::Config,
    failpoints,
    intake::{RawRecord, Taken, take},
    metrics::Metrics,
    processing::{Batch, ProcessPaymentService},
    watchdog::Heartbeat,
};

/// How long a poll waits; a request to stop is seen after it.
const POLL: Duration = Duration::from_millis(100);
/// Most bytes of records in one batch.
const BATCH_MAX_BYTES: usize = 4 * 1024 * 1024;
/// How long leaving the group may take.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(3);

/// Reads one topic as a member of a group.
pub struct PspResultUpdateConsumer {
    consumer: BaseConsumer<Assignment>,
    topic: Arc<str>,
    /// For those who read spans.
    consumer_group: Arc<str>,
    batch_max: usize,
    decoder: Arc<Decoder<PspResultUpdateEvent>>,
    service: ProcessPaymentService,
    metrics: Arc<Metrics>,
    heartbeat: Heartbeat,
    schemas: Need,
    /// What the client complained of last, until a record came.
    trouble: RefCell<Option<KafkaError>>,
    shutdown: Shutdown,
}

impl std::fmt::Debug for PspResultUpdateConsumer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PspResultUpdateConsumer").field("topic", &self.topic).finish_non_exhaustive()
    }
}

/// A record and the term in which it was read.
#[derive(Debug)]
struct Held {
    record: Arc<RawRecord>,
    term: u64,
}

/// Why a batch has to wait.
#[derive(Debug)]
enum Wait {
    Registry(String),
    Database(sqlx::Error),
}

impl PspResultUpdateConsumer {
    /// A member of the group, not subscribed yet.
    pub(crate) fn new(
        config: &Config,
        decoder: Arc<Decoder<PspResultUpdateEvent>>,
        service: ProcessPaymentService,
        (metrics, heartbeat, schemas): (Arc<Metrics>, Heartbeat, Need),
        shutdown: Shutdown,
    ) -> anyhow::Result<Self> {
        let mut client = chassis::kafka::client(&config.kafka, "payment-service");
        client
            .set("group.id", &config.consumer_group)
            .set("group.protocol", "classic")
            .set("partition.assignment.strategy", "cooperative-sticky")
            // A member that died is replaced after this time.
            .set("session.timeout.ms", "6000")
            .set("heartbeat.interval.ms", "1500")
            // The group waits so long for a member that does not join a rebalance. Longer than a statement may take, and than the watchdog.
            .set("max.poll.interval.ms", "90000")
            .set("enable.auto.commit", "false")
            .set("enable.auto.offset.store", "false")
            // An offset that points nowhere (expired, topic made anew) is for a person: going on anywhere by ourselves would skip results.
            .set("auto.offset.reset", "error")
            .set("fetch.wait.max.ms", "100")
            // Bounds what is read ahead, and so the memory, whatever arrives.
            .set("queued.max.messages.kbytes", "16384")
            .set("topic.metadata.refresh.interval.ms", "10000")
            .set("statistics.interval.ms", "1000");
        if let Some(instance) = &config.consumer_instance {
            client.set("group.instance.id", instance);
        }
        let client = chassis::kafka::finish(client, &config.kafka);
        let assignment = Assignment::new(&config.results_topic, Arc::clone(&metrics));
        let consumer =
            client.create_with_context(assignment).context("the Kafka consumer could not be made")?;
        let batch_max = usize::try_from(config.batch_max)?;
        let topic = Arc::from(config.results_topic.as_str());
        let consumer_group = Arc::from(config.consumer_group.as_str());
        Ok(Self {
            consumer,
            topic,
            consumer_group,
            batch_max,
            decoder,
            service,
            metrics,
            heartbeat,
            schemas,
            trouble: RefCell::new(None),
            shutdown,
        })
    }

    /// Reads and applies until asked to stop. Blocks: run it on a thread of its own, inside the runtime.
    pub fn run(self) -> anyhow::Result<()> {
        self.consumer.subscribe(&[&self.topic]).context("subscribe")?;
        while !self.shutdown.requested() {
            let batch = self.poll_batch()?;
            if !batch.is_empty() {
                failpoints::reached("C1");
                self.apply(batch)?;
            }
            self.assignment().commit_soon(&self.consumer);
        }
        self.leave();
        Ok(())
    }

    fn assignment(&self) -> &Assignment {
        self.consumer.context()
    }

    /// The next record, and those that are ready behind it: never waits for a fuller batch, so that a single result is applied at
    /// once and a backlog in large transactions.
    fn poll_batch(&self) -> anyhow::Result<Vec<Held>> {
        let mut batch = Vec::new();
        let mut bytes = 0;
        let mut wait = POLL;
        let began = trace::exporting().then(SystemTime::now);
        while batch.len() < self.batch_max && bytes < BATCH_MAX_BYTES {
            let Some(held) = self.poll(wait)? else { break };
            bytes += held.record.bytes();
            batch.push(held);
            wait = Duration::ZERO;
        }
        if began.is_some() && !batch.is_empty() {
            self.polled(&batch, began);
        }
        Ok(batch)
    }

    /// The step that fetched a batch: of no payment's trace, linked to all of them.
    fn polled(&self, batch: &[Held], began: Option<SystemTime>) {
        let traces: Vec<TraceContext> = batch.iter().filter_map(|held| held.record.trace()).collect();
        if traces.iter().any(TraceContext::sampled) {
            let mut span = Span::messaging_since(Step::Poll, &self.topic, None, &traces, began);
            span.set("messaging.consumer.group.name", self.consumer_group.to_string());
            span.set("messaging.client.id", "payment-service");
            span.set("messaging.batch.message_count", i64::try_from(batch.len()).unwrap_or(i64::MAX));
        }
    }

    fn poll(&self, wait: Duration) -> anyhow::Result<Option<Held>> {
        self.heartbeat.beat();
        let polled = self.consumer.poll(wait);
        if let Some(reason) = self.assignment().failure() {
            anyhow::bail!(reason);
        }
        match polled {
            None => Ok(None),
            Some(Ok(message)) => {
                self.trouble.replace(None);
                let record = Arc::new(RawRecord::copy(&self.topic, &message));
                // No term: the client held a record of a partition that has just been revoked.
                Ok(self.assignment().term(record.partition).map(|term| Held { record, term }))
            }
            Some(Err(error)) => self.polled_error(error).map(|()| None),
        }
    }

    fn polled_error(&self, error: KafkaError) -> anyhow::Result<()> {
        match error {
            KafkaError::MessageConsumptionFatal(_) => Err(error).context("the Kafka client failed for good"),
            KafkaError::MessageConsumption(RDKafkaErrorCode::AutoOffsetReset) => {
                self.metrics.offsets_out_of_range.inc();
                tracing::error!(
                    topic = &*self.topic,
                    "the group's offset is not in the topic any more: a partition is not read until somebody sets its offset, with \
                     this service stopped"
                );
                Ok(())
            }
            error => {
                self.metrics.consumer.errors.inc();
                // The client goes on by itself, and reports the same trouble many times a second while brokers are away: said once.
                if self.trouble.borrow().as_ref() != Some(&error) {
                    tracing::warn!(
                        error = chassis::kafka::explain(&error),
                        topic = &*self.topic,
                        "the topic cannot be read"
                    );
                    self.trouble.replace(Some(error));
                }
                Ok(())
            }
        }
    }

    /// Has a batch applied, however long the database or the registry stay away. Returns early when asked to stop: nothing is lost,
    /// as nothing is committed.
    fn apply(&self, mut batch: Vec<Held>) -> anyhow::Result<()> {
        let began = Instant::now();
        let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(1));
        let mut held = false;
        loop {
            // What was revoked meanwhile belongs to another member.
            batch.retain(|held| self.assignment().term(held.record.partition) == Some(held.term));
            if batch.is_empty() {
                break;
            }
            match Handle::current().block_on(self.decode_and_process(&batch)) {
                Ok(()) => {
                    failpoints::reached("C5");
                    self.metrics
                        .batch_size
                        .observe(f64::from(u32::try_from(batch.len()).unwrap_or(u32::MAX)));
                    self.metrics.batch_seconds.observe(began.elapsed().as_secs_f64());
                    for Held { record, term } in &batch {
                        self.assignment().finished(record.partition, *term, record.offset + 1);
                    }
                    break;
                }
                Err(wait) => {
                    held = true;
                    self.report_wait(&wait);
                    self.hold(&mut batch, backoff.next_delay())?;
                    if self.shutdown.requested() {
                        return Ok(());
                    }
                }
            }
        }
        if held {
            self.release()?;
        }
        Ok(())
    }

    async fn decode_and_process(&self, batch: &[Held]) -> Result<(), Wait> {
        let mut sorted = Batch::default();
        for held in batch {
            match take(&self.decoder, Arc::clone(&held.record)).await.map_err(Wait::Registry)? {
                Taken::Update(update) => sorted.updates.push(Arc::new(update)),
                Taken::Aside(aside) => sorted.aside.push(aside),
            }
        }
        self.service.process_psp_result(sorted).await.map_err(Wait::Database)
    }

    fn report_wait(&self, wait: &Wait) {
        // Said when it begins, and not each time.
        let told = self.metrics.waiting.get() == 1;
        self.metrics.waiting.set(1);
        match wait {
            Wait::Registry(reason) => {
                self.metrics.waits.with_label_values(&["registry"]).inc();
                self.schemas.missing(reason);
            }
            Wait::Database(error) => {
                self.metrics.waits.with_label_values(&["database"]).inc();
                if disposition(error) == Disposition::Wait {
                    if !told {
                        tracing::warn!(error = %error, "a batch waits for the database");
                    }
                } else if !told {
                    tracing::error!(error = %error, "the database refuses to work with this service: somebody must look");
                }
            }
        }
    }

    /// Keeps the membership in the group alive for this long, without reading on. A record that comes nevertheless, from a
    /// partition that was assigned meanwhile, joins the batch.
    fn hold(&self, batch: &mut Vec<Held>, delay: Duration) -> anyhow::Result<()> {
        self.assignment().hold(true);
        self.consumer.pause(&self.consumer.assignment()?).context("pause")?;
        let until = Instant::now() + delay;
        while Instant::now() < until && !self.shutdown.requested() {
            batch.extend(self.poll(POLL.min(until - Instant::now()))?);
        }
        Ok(())
    }

    fn release(&self) -> anyhow::Result<()> {
        self.metrics.waiting.set(0);
        self.schemas.met();
        self.assignment().hold(false);
        self.consumer.resume(&self.consumer.assignment()?).context("resume")?;
        tracing::info!("the batch is applied: reading on");
        Ok(())
    }

    /// Gives the partitions back, with the offsets of all that is finished, so that the others go on at once.
    fn leave(&self) {
        self.consumer.unsubscribe();
        let until = Instant::now() + LEAVE_TIMEOUT;
        while self.assignment().count() > 0 && Instant::now() < until {
            // Serves the callback that commits; records are left to the next owner.
            drop(self.consumer.poll(POLL));
        }
        tracing::info!(clean = self.assignment().count() == 0, "left the consumer group");
    }
}
