//! Topics, seen from outside: how long they are, what is on them, and when a record can be read.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::{BorrowedMessage, Headers, Message};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use uuid::Uuid;

use super::site::PARTITIONS;

const CALL_LIMIT: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(100);

/// A record as it lies on a topic.
#[derive(Clone, Debug)]
pub(super) struct Published {
    pub(super) key: Vec<u8>,
    pub(super) value: Vec<u8>,
    pub(super) headers: Vec<(String, Vec<u8>)>,
}

/// Makes a topic with as many partitions as the relay's.
pub(super) async fn create(bootstrap: &str, topic: &str) -> Result<()> {
    let admin: AdminClient<DefaultClientContext> =
        ClientConfig::new().set("bootstrap.servers", bootstrap).create().context("make an admin client")?;
    let wanted = NewTopic::new(topic, PARTITIONS, TopicReplication::Fixed(1));
    for created in admin.create_topics([&wanted], &AdminOptions::new()).await.context("create a topic")? {
        created.map_err(|(name, code)| anyhow::anyhow!("create the topic {name}: {code}"))?;
    }
    Ok(())
}

/// A topic that is watched while others write to it.
#[derive(Clone)]
pub(super) struct Watch {
    consumer: Arc<BaseConsumer>,
    bootstrap: String,
    topic: String,
}

impl Watch {
    pub(super) fn new(bootstrap: &str, topic: &str) -> Result<Watch> {
        Ok(Watch {
            consumer: Arc::new(consumer(bootstrap)?),
            bootstrap: bootstrap.to_owned(),
            topic: topic.to_owned(),
        })
    }

    /// Records on the topic, all partitions together.
    pub(super) async fn records(&self) -> Result<i64> {
        let watch = self.clone();
        let ends = tokio::task::spawn_blocking(move || watch.ends()).await.context("ask for the ends")??;
        Ok(ends.into_iter().sum())
    }

    /// The first records of each partition, at most so many together, once there are so many.
    pub(super) async fn first(&self, records: usize) -> Result<Vec<Published>> {
        let watch = self.clone();
        let reading = tokio::task::spawn_blocking(move || watch.read(records));
        reading.await.context("read a topic")?.with_context(|| format!("read {}", self.topic))
    }

    /// From now on, notes when each record can be read. `id_header` says which event it is.
    pub(super) async fn arrivals(&self, id_header: &'static str) -> Result<Arrivals> {
        let watch = self.clone();
        let opening = tokio::task::spawn_blocking(move || {
            let ends = watch.ends()?.into_iter().map(Offset::Offset);
            watch.assigned(ends)
        });
        let consumer = opening.await.context("assign")??;
        let shared = Arc::new(Shared::default());
        let noting = Arc::clone(&shared);
        // A thread of its own: what the runtime's threads do must not delay the clock.
        std::thread::Builder::new()
            .name("arrivals".to_owned())
            .spawn(move || noting.note(&consumer, id_header))
            .context("start a thread")?;
        Ok(Arrivals { shared })
    }

    fn ends(&self) -> Result<Vec<i64>> {
        let end = |partition| Ok(self.consumer.fetch_watermarks(&self.topic, partition, CALL_LIMIT)?.1);
        let ends: Result<Vec<i64>> = (0..PARTITIONS).map(end).collect();
        ends.with_context(|| format!("ask for the ends of {}", self.topic))
    }

    fn assigned(&self, offsets: impl IntoIterator<Item = Offset>) -> Result<BaseConsumer> {
        let consumer = consumer(&self.bootstrap)?;
        let mut assignment = TopicPartitionList::new();
        for (partition, offset) in (0..PARTITIONS).zip(offsets) {
            assignment.add_partition_offset(&self.topic, partition, offset)?;
        }
        consumer.assign(&assignment).context("assign the partitions")?;
        Ok(consumer)
    }

    fn read(&self, records: usize) -> Result<Vec<Published>> {
        let consumer = self.assigned(std::iter::repeat(Offset::Beginning))?;
        let mut read = Vec::with_capacity(records);
        let begun = Instant::now();
        while read.len() < records {
            if begun.elapsed() > CALL_LIMIT {
                bail!("{} of {records} records after {} s", read.len(), CALL_LIMIT.as_secs());
            }
            if let Some(message) = consumer.poll(POLL) {
                read.push(published(&message.context("read a record")?));
            }
        }
        Ok(read)
    }
}

fn consumer(bootstrap: &str) -> Result<BaseConsumer> {
    ClientConfig::new()
        .set("bootstrap.servers", bootstrap)
        .set("group.id", "bench-without-a-group")
        .set("enable.auto.commit", "false")
        .set("socket.nagle.disable", "true")
        // A record on a partition that the fetch under way does not ask for waits for the next one.
        .set("fetch.wait.max.ms", "5")
        .create()
        .context("make a consumer")
}

fn published(message: &BorrowedMessage<'_>) -> Published {
    let bytes = |part: Option<&[u8]>| part.unwrap_or_default().to_vec();
    let headers = message.headers().into_iter().flat_map(Headers::iter);
    Published {
        key: bytes(message.key()),
        value: bytes(message.payload()),
        headers: headers.map(|header| (header.key.to_owned(), bytes(header.value))).collect(),
    }
}

/// When records could be read first. The reading ends with this value.
pub(super) struct Arrivals {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    seen: Mutex<HashMap<Uuid, Instant>>,
    failure: Mutex<Option<String>>,
    over: AtomicBool,
}

impl Arrivals {
    /// When each event could be read, once there are so many of them.
    pub(super) async fn of(&self, events: usize, limit: Duration) -> Result<HashMap<Uuid, Instant>> {
        let begun = Instant::now();
        loop {
            if let Some(failure) = locked(&self.shared.failure).as_ref() {
                bail!("the topic could not be read: {failure}");
            }
            {
                let mut seen = locked(&self.shared.seen);
                if seen.len() >= events {
                    return Ok(std::mem::take(&mut *seen));
                }
                if begun.elapsed() > limit {
                    bail!("{} of {events} events could be read {} s later", seen.len(), limit.as_secs());
                }
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

impl Drop for Arrivals {
    fn drop(&mut self) {
        self.shared.over.store(true, Ordering::Relaxed);
    }
}

impl Shared {
    fn note(&self, consumer: &BaseConsumer, id_header: &str) {
        while !self.over.load(Ordering::Relaxed) {
            match consumer.poll(POLL) {
                None => {}
                Some(Ok(message)) => {
                    let now = Instant::now();
                    if let Some(id) = event_id(&message, id_header) {
                        locked(&self.seen).entry(id).or_insert(now);
                    }
                }
                Some(Err(error)) => {
                    locked(&self.failure).get_or_insert(error.to_string());
                }
            }
        }
    }
}

fn event_id(message: &BorrowedMessage<'_>, id_header: &str) -> Option<Uuid> {
    let header = message.headers()?.iter().find(|header| header.key == id_header)?;
    Uuid::try_parse_ascii(header.value?).ok()
}

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
