//! The consumer at the end: it reads the topic, enters every record into the books, and applies each event once.
//!
//! ```text
//! poll ─▶ books ─▶ one transaction: outbox.once(event)? then its effect ─▶ commit ─▶ offsets to the broker
//! ```
//! Where it fails it goes back to the offsets that it has committed, so that events come to it again by its own doing too: what it
//! then applies twice is a broken promise, and what it reads twice is not.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use apache_avro::Schema;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer as _};
use rdkafka::message::{BorrowedMessage, Headers, Message};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use sqlx::{Connection, PgConnection};
use tokio::runtime::Handle;
use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, DropGuard};
use uuid::Uuid;

use super::books::{Books, Seen};
use crate::topic::{decode, unframe};
use crate::workload::{SCHEMA, Step};

/// The name under which it takes events, and its consumer group.
const NAME: &str = "effects";
/// Records that are applied in one transaction.
const TOGETHER: usize = 500;
const POLL: Duration = Duration::from_millis(50);
const CALL_LIMIT: Duration = Duration::from_secs(5);
const RECONNECT_AFTER: Duration = Duration::from_millis(50);
/// What it did with each event. No constraint of its own keeps it from doing so twice: that is left to `outbox.once`.
pub(super) const EFFECTS: &str = "\
CREATE TABLE effects (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    event_id uuid NOT NULL, key text NOT NULL, step bigint NOT NULL, partition integer NOT NULL, at_offset bigint NOT NULL
);
GRANT SELECT, INSERT ON effects TO executor;
GRANT SELECT ON effects TO operator";

type Parsed = Result<Schema, String>;

/// A consumer that runs.
pub(super) struct Consumer {
    shared: Arc<Shared>,
    /// Asks for the ends of the partitions.
    asking: Arc<BaseConsumer>,
    task: JoinHandle<Result<()>>,
    stop: DropGuard,
}

struct Shared {
    topic: String,
    partitions: i32,
    url: String,
    books: Arc<Mutex<Books>>,
    /// The offset after the last record applied, by partition.
    applied: Mutex<BTreeMap<i32, i64>>,
    stop: CancellationToken,
}

impl Consumer {
    /// Starts it.
    pub(super) fn start(
        bootstrap: &str,
        topic: &str,
        partitions: i32,
        url: &str,
        books: &Arc<Mutex<Books>>,
    ) -> Result<Consumer> {
        let stop = CancellationToken::new();
        let shared = Arc::new(Shared {
            topic: topic.to_owned(),
            partitions,
            url: url.to_owned(),
            books: Arc::clone(books),
            applied: Mutex::default(),
            stop: stop.clone(),
        });
        let consumer = client(bootstrap)?;
        let running = Arc::clone(&shared);
        let task = tokio::task::spawn_blocking(move || run(&running, &consumer, &Handle::current()));
        Ok(Consumer { shared, asking: Arc::new(client(bootstrap)?), task, stop: stop.drop_guard() })
    }

    /// Waits until everything that is on the topic now is applied.
    pub(super) async fn caught_up(&self, limit: Duration) -> Result<()> {
        let begun = Instant::now();
        let ends = loop {
            let (asking, shared) = (Arc::clone(&self.asking), Arc::clone(&self.shared));
            match tokio::task::spawn_blocking(move || ends(&asking, &shared)).await? {
                Ok(ends) => break ends,
                Err(error) if begun.elapsed() > limit => return Err(error),
                Err(_) => tokio::time::sleep(POLL).await,
            }
        };
        while !self.has_applied(&ends) {
            if self.task.is_finished() {
                bail!("the consumer has ended");
            }
            if begun.elapsed() > limit {
                bail!("the consumer is not at the end of the topic after {limit:?}");
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(())
    }

    fn has_applied(&self, ends: &[i64]) -> bool {
        let applied = self.shared.applied.lock().unwrap_or_else(PoisonError::into_inner);
        (0..).zip(ends).all(|(partition, end)| applied.get(&partition).copied().unwrap_or_default() >= *end)
    }

    /// Ends it; an error if it could not go on.
    pub(super) async fn end(self) -> Result<()> {
        drop(self.stop);
        self.task.await.context("the consumer panicked")?
    }
}

/// Every record of the topic, for the books that are made at the end.
pub(super) fn read_all(bootstrap: &str, topic: &str, partitions: i32, limit: Duration) -> Result<Vec<Seen>> {
    let (consumer, schema, begun) = (client(bootstrap)?, schema(), Instant::now());
    let (mut records, mut left) = (Vec::new(), BTreeMap::new());
    let mut assignment = TopicPartitionList::new();
    for partition in 0..partitions {
        let (low, high) = loop {
            match consumer.fetch_watermarks(topic, partition, CALL_LIMIT) {
                Ok(ends) => break ends,
                // A broker that was hurt in the last episode may need some time.
                Err(_) if begun.elapsed() < limit => std::thread::sleep(POLL),
                Err(error) => return Err(error).context("ask for the ends of the topic"),
            }
        };
        if low > 0 {
            bail!("partition {partition} begins at offset {low}");
        }
        assignment.add_partition_offset(topic, partition, Offset::Beginning)?;
        if high > 0 {
            left.insert(partition, high);
        }
    }
    consumer.assign(&assignment)?;
    while !left.is_empty() {
        if begun.elapsed() > limit {
            bail!("the topic is not read to its end after {limit:?}");
        }
        let Some(Ok(message)) = consumer.poll(POLL) else { continue };
        if left.get(&message.partition()).is_some_and(|end| message.offset() + 1 >= *end) {
            left.remove(&message.partition());
        }
        records.push(seen(&message, &schema)?);
    }
    Ok(records)
}

fn run(shared: &Shared, consumer: &BaseConsumer, runtime: &Handle) -> Result<()> {
    let schema = schema();
    assign(shared, consumer)?;
    let mut connection = None;
    while !shared.stop.is_cancelled() {
        let batch = poll(consumer, &schema)?;
        if batch.is_empty() {
            continue;
        }
        {
            let mut books = shared.books.lock().unwrap_or_else(PoisonError::into_inner);
            for (seen, at) in &batch {
                books.saw(seen, *at);
            }
        }
        if runtime.block_on(apply(&mut connection, &shared.url, &batch)).is_err() {
            // Applied or not, nobody has said so: back to what is committed.
            connection = None;
            std::thread::sleep(RECONNECT_AFTER);
            assign(shared, consumer)?;
            continue;
        }
        let mut offsets = TopicPartitionList::new();
        let mut applied = shared.applied.lock().unwrap_or_else(PoisonError::into_inner);
        for (seen, _) in &batch {
            let next = applied.entry(seen.partition).or_default();
            *next = (*next).max(seen.offset + 1);
        }
        for (partition, next) in applied.iter() {
            offsets.add_partition_offset(&shared.topic, *partition, Offset::Offset(*next))?;
        }
        // One that does not get through is made good by the next; or these records come again.
        consumer.commit(&offsets, CommitMode::Async).ok();
    }
    Ok(())
}

/// From the offsets that are committed, or the beginning.
fn assign(shared: &Shared, consumer: &BaseConsumer) -> Result<()> {
    let mut assignment = TopicPartitionList::new();
    for partition in 0..shared.partitions {
        assignment.add_partition_offset(&shared.topic, partition, Offset::Stored)?;
    }
    consumer.assign(&assignment).context("assign the partitions")
}

/// What is there, and when it came; waits a little if that is nothing.
fn poll(consumer: &BaseConsumer, schema: &Parsed) -> Result<Vec<(Seen, Instant)>> {
    let mut batch = Vec::new();
    let mut wait = POLL;
    while batch.len() < TOGETHER {
        match consumer.poll(wait) {
            // A broker that is away comes back.
            None | Some(Err(_)) => break,
            Some(Ok(message)) => batch.push((seen(&message, schema)?, Instant::now())),
        }
        wait = Duration::ZERO;
    }
    Ok(batch)
}

/// A record as the books want it. One that cannot be read is a finding that ends the run.
fn seen(message: &BorrowedMessage<'_>, schema: &Parsed) -> Result<Seen> {
    let place = || format!("partition {} offset {}", message.partition(), message.offset());
    let mut headers = message.headers().into_iter().flat_map(Headers::iter);
    let event_id = headers.find(|header| header.key == "ce_id").and_then(|header| header.value);
    let event_id = event_id.and_then(|bytes| Uuid::try_parse_ascii(bytes).ok());
    let body = unframe(message.payload()).and_then(|(_, body)| decode(schema, body));
    let body = body.map_err(anyhow::Error::msg).with_context(place)?;
    let key = message.key().map(String::from_utf8_lossy).unwrap_or_default();
    if body["key"].as_str() != Some(key.as_ref()) {
        bail!("key {key:?} with the body {body}, {}", place());
    }
    let step = Step {
        event_id: event_id.with_context(|| format!("no ce_id, {}", place()))?,
        key: key.into_owned(),
        step: body["step"].as_i64().with_context(place)?,
    };
    Ok(Seen { step, partition: message.partition(), offset: message.offset() })
}

async fn apply(
    connection: &mut Option<PgConnection>,
    url: &str,
    batch: &[(Seen, Instant)],
) -> Result<(), sqlx::Error> {
    if connection.is_none() {
        *connection = Some(PgConnection::connect(url).await?);
    }
    let Some(connection) = connection else { return Ok(()) };
    let (mut ids, mut keys, mut steps) = (Vec::new(), Vec::new(), Vec::new());
    let (mut partitions, mut offsets) = (Vec::new(), Vec::new());
    for (Seen { step, partition, offset }, _) in batch {
        ids.push(step.event_id);
        keys.push(step.key.as_str());
        steps.push(step.step);
        partitions.push(*partition);
        offsets.push(*offset);
    }
    let mut tx = connection.begin().await?;
    sqlx::query(
        "INSERT INTO effects (event_id, key, step, partition, at_offset)
         SELECT * FROM unnest($1::uuid[], $2::text[], $3::bigint[], $4::integer[], $5::bigint[]) AS event (id, key, step, partition, at_offset)
         WHERE outbox.once($6, event.id)",
    )
    .bind(ids)
    .bind(keys)
    .bind(steps)
    .bind(partitions)
    .bind(offsets)
    .bind(NAME)
    .execute(&mut *tx)
    .await?;
    tx.commit().await
}

fn ends(consumer: &BaseConsumer, shared: &Shared) -> Result<Vec<i64>> {
    let end = |partition| Ok(consumer.fetch_watermarks(&shared.topic, partition, CALL_LIMIT)?.1);
    (0..shared.partitions).map(end).collect()
}

fn client(bootstrap: &str) -> Result<BaseConsumer> {
    ClientConfig::new()
        .set("bootstrap.servers", bootstrap)
        .set("group.id", NAME)
        .set("enable.auto.commit", "false")
        .set("auto.offset.reset", "earliest")
        .set("fetch.error.backoff.ms", "50")
        // A broker that was killed is back within seconds, and how soon is measured here.
        .set("reconnect.backoff.ms", "20")
        .set("reconnect.backoff.max.ms", "100")
        .set("log_level", "0")
        .create()
        .context("make a consumer")
}

fn schema() -> Parsed {
    Schema::parse_str(SCHEMA).map_err(|error| error.to_string())
}
