//! The bound: a producer that does nothing but produce. The relay's own settings, records of the relay's own making, from memory.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rdkafka::ClientConfig;
use rdkafka::client::ClientContext;
use rdkafka::error::KafkaError;
use rdkafka::message::{DeliveryResult, Header, OwnedHeaders};
use rdkafka::producer::{BaseRecord, ProducerContext, ThreadedProducer};
use rdkafka::types::RDKafkaErrorCode;
use tokio::sync::oneshot;

use super::costs::cpu_seconds;
use super::topics::Published;

/// As the relay waits when its queue is full.
const FULL_PAUSE: Duration = Duration::from_millis(1);
/// Without one report for so long something is wrong.
const SILENCE_LIMIT: Duration = Duration::from_secs(30);
/// How often a long loop looks whether anyone still waits for it.
const LOOK_EVERY: usize = 4_096;

/// A run of the raw producer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Raw {
    pub(super) events: u32,
    /// From the first record handed over to the last one reported.
    pub(super) seconds: f64,
    /// CPU seconds meanwhile.
    pub(super) producer_cpu: f64,
    /// CPU seconds meanwhile.
    pub(super) broker_cpu: f64,
}

impl Raw {
    pub(super) fn per_second(&self) -> f64 {
        f64::from(self.events) / self.seconds
    }
}

/// Produces so many records, those of `sample` over and over. One goes ahead, to find the brokers, and does not count.
pub(super) async fn produce(
    settings: &ClientConfig,
    broker: i32,
    topic: &str,
    sample: &Arc<Vec<Published>>,
    events: u32,
) -> Result<Raw> {
    let (settings, sample) = (settings.clone(), Arc::clone(sample));
    let run = Run { settings, broker, topic: topic.to_owned(), sample, events };
    ensure!(!run.sample.is_empty(), "there is nothing to produce");
    let (done, finished) = oneshot::channel();
    std::thread::Builder::new()
        .name("raw producer".to_owned())
        .spawn(move || {
            let result = run.carry_out(&|| done.is_closed());
            // Nobody waits any more if the run was broken off.
            done.send(result).ok();
        })
        .context("start a thread")?;
    finished.await.context("the raw producer has ended early")?
}

struct Run {
    settings: ClientConfig,
    broker: i32,
    topic: String,
    sample: Arc<Vec<Published>>,
    events: u32,
}

#[derive(Default)]
struct Reports {
    delivered: AtomicU32,
    failed: AtomicU32,
}

struct Counting(Arc<Reports>);

impl ClientContext for Counting {}

impl ProducerContext for Counting {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        let count = if result.is_ok() { &self.0.delivered } else { &self.0.failed };
        count.fetch_add(1, Ordering::Relaxed);
    }
}

impl Run {
    fn carry_out(&self, broken_off: &dyn Fn() -> bool) -> Result<Raw> {
        let reports = Arc::new(Reports::default());
        let context = Counting(Arc::clone(&reports));
        let producer: ThreadedProducer<Counting> =
            self.settings.create_with_context(context).context("make a producer")?;
        let mut records = self.sample.iter().cycle();
        self.send_all(&producer, records.by_ref().take(1), broken_off)?;
        reports.wait_for(1, broken_off)?;
        let own = rustix::process::getpid().as_raw_nonzero().get();
        let cpu = (cpu_seconds(own)?, cpu_seconds(self.broker)?);
        let begun = Instant::now();
        self.send_all(&producer, records.take(usize::try_from(self.events)?), broken_off)?;
        reports.wait_for(self.events + 1, broken_off)?;
        Ok(Raw {
            events: self.events,
            seconds: begun.elapsed().as_secs_f64(),
            producer_cpu: cpu_seconds(own)? - cpu.0,
            broker_cpu: cpu_seconds(self.broker)? - cpu.1,
        })
    }

    fn send_all<'a>(
        &self,
        producer: &ThreadedProducer<Counting>,
        records: impl Iterator<Item = &'a Published>,
        broken_off: &dyn Fn() -> bool,
    ) -> Result<()> {
        for (number, record) in records.enumerate() {
            ensure!(number % LOOK_EVERY != 0 || !broken_off(), "broken off");
            let mut next = BaseRecord::to(&self.topic)
                .key(&record.key)
                .payload(&record.value)
                .headers(headers(&record.headers));
            while let Err((error, back)) = producer.send(next) {
                if !matches!(error, KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull)) {
                    return Err(error).context("the producer refused a record");
                }
                next = back;
                std::thread::sleep(FULL_PAUSE);
            }
        }
        Ok(())
    }
}

impl Reports {
    fn wait_for(&self, records: u32, broken_off: &dyn Fn() -> bool) -> Result<()> {
        let mut last = (0, Instant::now());
        loop {
            let delivered = self.delivered.load(Ordering::Relaxed);
            let failed = self.failed.load(Ordering::Relaxed);
            ensure!(failed == 0, "{failed} records were not delivered");
            if delivered >= records {
                return Ok(());
            }
            if delivered != last.0 {
                last = (delivered, Instant::now());
            }
            ensure!(last.1.elapsed() < SILENCE_LIMIT, "{delivered} of {records} records reported");
            ensure!(!broken_off(), "broken off");
            std::thread::sleep(FULL_PAUSE);
        }
    }
}

fn headers(pairs: &[(String, Vec<u8>)]) -> OwnedHeaders {
    let empty = OwnedHeaders::new_with_capacity(pairs.len());
    pairs.iter().fold(empty, |headers, (key, value)| headers.insert(Header { key, value: Some(value) }))
}
