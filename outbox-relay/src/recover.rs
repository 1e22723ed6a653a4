//! What is on the topics already: read after every takeover, so that it is not published again.
//!
//! Each partition is read from the offset saved with the cursor to its end. What lies there was published by a leader that did not
//! come to save it. Left over are requests of a killed or paused leader that reach the broker after this reading: they carry the same
//! `ce_id`, and first occurrences stay in order per key.

use std::{
    collections::{BTreeMap, HashMap},
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use chassis::config::KafkaConfig;
use rdkafka::{
    Message as _, Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer as _},
    error::{KafkaError, RDKafkaErrorCode},
    message::Headers,
};
use schema::wire::header;
use time::OffsetDateTime;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::store::{PartitionOffsets, guards::Located};

/// One answer of the brokers.
const CALL_LIMIT: Duration = Duration::from_secs(5);
/// Without a record for so long, reading is given up and begun anew.
const STALLED_AFTER: Duration = Duration::from_secs(15);
/// More event ids than this are not kept in memory (some hundred megabytes): reading stops there, and says so.
const KEPT_MAX: usize = 4_000_000;

/// Where to read from.
#[derive(Clone, Debug)]
pub enum From {
    /// The offsets saved with a cursor. A partition that is not among them is read from its beginning.
    Saved(PartitionOffsets),
    /// The first record of this time or later.
    Time(OffsetDateTime),
    /// The end: nothing is read, but the ends are known.
    End,
}

/// What is on the topics.
#[derive(Debug, Default)]
pub struct Tail {
    /// Records of this outbox: event id -> where it lies first.
    pub found: HashMap<Uuid, Position>,
    /// Offsets after the last record of each partition.
    pub ends: PartitionOffsets,
    /// Records read, others' too.
    pub records: u64,
    /// False if there was more than could be kept.
    pub complete: bool,
    /// Partitions that could not be read from the offset saved, because it is no longer there: the topic was made anew, trimmed or
    /// grown. What is found there may be older than the cursor.
    pub from_beginning: Vec<(String, i32)>,
    topics: Vec<String>,
}

/// A record's place; the topic is an index into the tail's list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    topic: u32,
    /// Partition.
    pub partition: i32,
    /// Offset.
    pub offset: i64,
}

impl Tail {
    /// Where the found events lie, those left out whose partition was read from its beginning.
    pub fn located(&self) -> Vec<Located> {
        let located = self.found.iter().filter_map(|(event_id, at)| {
            let topic = self.topics.get(usize::try_from(at.topic).ok()?)?;
            let reread = self
                .from_beginning
                .iter()
                .any(|(name, partition)| name == topic && *partition == at.partition);
            (!reread).then(|| Located {
                event_id: *event_id,
                topic: topic.clone(),
                partition: at.partition,
                offset: at.offset,
            })
        });
        located.collect()
    }
}

/// Reads the topics to their ends. Returns None if asked to stop meanwhile. Brokers that do not answer are an error.
pub async fn read_tail(
    kafka: &KafkaConfig,
    source: &str,
    topics: Vec<String>,
    from: From,
    stop: &CancellationToken,
) -> anyhow::Result<Option<Tail>> {
    let mut client = chassis::kafka::client(kafka, "outbox-relay tail");
    client
        .set("group.id", "outbox-relay-tail")
        .set("enable.auto.commit", "false")
        .set("enable.partition.eof", "false")
        .set("fetch.wait.max.ms", "20")
        .set("auto.offset.reset", "error");
    let consumer: BaseConsumer = chassis::kafka::finish(client, kafka).create().context("Kafka consumer")?;
    let (source, stop) = (source.to_owned(), stop.clone());
    let (done, tail) = oneshot::channel();
    // librdkafka's consumer blocks: not on a thread that tasks share. It takes a tenth of a second to end, which nobody waits for.
    tokio::task::spawn_blocking(move || {
        done.send(read_blocking(&consumer, &source, topics, &from, &stop)).ok();
    });
    tail.await.context("reading the tail panicked")?
}

fn read_blocking(
    consumer: &BaseConsumer,
    source: &str,
    topics: Vec<String>,
    from: &From,
    stop: &CancellationToken,
) -> anyhow::Result<Option<Tail>> {
    let mut tail = Tail { complete: true, topics, ..Tail::default() };
    let mut left = assign(consumer, &mut tail, from)?;
    let mut last_record = Instant::now();
    while !left.is_empty() {
        if stop.is_cancelled() {
            return Ok(None);
        }
        ensure!(
            last_record.elapsed() < STALLED_AFTER,
            "the brokers do not give the tail of {:?}",
            left.keys()
        );
        let message = match consumer.poll(Duration::from_millis(50)) {
            None => {
                // Control records and gaps at the end have no message: the position tells.
                forget_finished(consumer, &tail.topics, &mut left)?;
                continue;
            }
            Some(Err(KafkaError::MessageConsumption(code))) if passing(code) => continue,
            Some(Err(error)) => return Err(error).context("the tail of a topic could not be read"),
            Some(Ok(message)) => message,
        };
        last_record = Instant::now();
        let Some(topic) = tail.topics.iter().position(|topic| topic == message.topic()) else { continue };
        let key = (topic, message.partition());
        // Another producer may write on while we read: only what was there at the beginning counts.
        if left.get(&key).is_some_and(|end| message.offset() < *end) {
            tail.records += 1;
            if let Some(event_id) = our_event(message.headers(), source) {
                if tail.found.len() >= KEPT_MAX {
                    tail.complete = false;
                    return Ok(Some(tail));
                }
                let position = Position {
                    topic: u32::try_from(topic)?,
                    partition: message.partition(),
                    offset: message.offset(),
                };
                tail.found.entry(event_id).or_insert(position);
            }
        }
        if left.get(&key).is_some_and(|end| message.offset() + 1 >= *end) {
            left.remove(&key);
        }
    }
    Ok(Some(tail))
}

/// What goes by itself while brokers come and go.
fn passing(code: RDKafkaErrorCode) -> bool {
    matches!(
        code,
        RDKafkaErrorCode::AllBrokersDown
            | RDKafkaErrorCode::BrokerTransportFailure
            | RDKafkaErrorCode::NotLeaderForPartition
            | RDKafkaErrorCode::LeaderNotAvailable
            | RDKafkaErrorCode::OperationTimedOut
    )
}

/// Assigns every partition that has something to read. Returns the ends of those, by topic and partition.
fn assign(
    consumer: &BaseConsumer,
    tail: &mut Tail,
    from: &From,
) -> anyhow::Result<BTreeMap<(usize, i32), i64>> {
    let mut assignment = TopicPartitionList::new();
    let mut left = BTreeMap::new();
    for (number, topic) in tail.topics.clone().iter().enumerate() {
        let metadata = consumer
            .fetch_metadata(Some(topic), CALL_LIMIT)
            .with_context(|| format!("the brokers do not describe topic {topic}"))?;
        let partitions = metadata.topics().iter().flat_map(rdkafka::metadata::MetadataTopic::partitions);
        let partitions: Vec<i32> = partitions.map(rdkafka::metadata::MetadataPartition::id).collect();
        ensure!(!partitions.is_empty(), "topic {topic} does not exist; `outbox-relay setup` creates it");
        let times = match from {
            From::Time(since) => Some(offsets_at(consumer, topic, &partitions, *since)?),
            From::Saved(_) | From::End => None,
        };
        for partition in partitions {
            let (low, high) = consumer
                .fetch_watermarks(topic, partition, CALL_LIMIT)
                .with_context(|| format!("the offsets of {topic}/{partition} are not known"))?;
            tail.ends.entry(topic.clone()).or_default().insert(partition, high);
            let start = match from {
                From::Saved(saved) => match saved.get(topic).and_then(|offsets| offsets.get(&partition)) {
                    Some(saved) if (low..=high).contains(saved) => *saved,
                    // Never published to, and empty: nothing to be said.
                    None if low == high => high,
                    None | Some(_) => {
                        tail.from_beginning.push((topic.clone(), partition));
                        low
                    }
                },
                From::End => high,
                From::Time(_) => times
                    .as_ref()
                    .and_then(|times| times.get(&partition))
                    .map_or(high, |at| (*at).clamp(low, high)),
            };
            if start < high {
                assignment.add_partition_offset(topic, partition, Offset::Offset(start))?;
                left.insert((number, partition), high);
            }
        }
    }
    consumer.assign(&assignment)?;
    Ok(left)
}

fn offsets_at(
    consumer: &BaseConsumer,
    topic: &str,
    partitions: &[i32],
    since: OffsetDateTime,
) -> anyhow::Result<BTreeMap<i32, i64>> {
    let at_ms = i64::try_from(since.unix_timestamp_nanos().div_euclid(1_000_000))?.max(0);
    let mut wanted = TopicPartitionList::new();
    for partition in partitions {
        wanted.add_partition_offset(topic, *partition, Offset::Offset(at_ms))?;
    }
    let found = consumer.offsets_for_times(wanted, CALL_LIMIT).context("offsets by time")?;
    let offsets = found.elements().into_iter().filter_map(|element| match element.offset() {
        Offset::Offset(offset) => Some((element.partition(), offset)),
        // No record as young as that.
        _ => None,
    });
    Ok(offsets.collect())
}

/// Removes partitions whose end was reached without a record of its own there.
fn forget_finished(
    consumer: &BaseConsumer,
    topics: &[String],
    left: &mut BTreeMap<(usize, i32), i64>,
) -> anyhow::Result<()> {
    for element in consumer.position()?.elements() {
        let Some(topic) = topics.iter().position(|topic| topic == element.topic()) else { continue };
        let key = (topic, element.partition());
        if let (Offset::Offset(at), Some(end)) = (element.offset(), left.get(&key))
            && at >= *end
        {
            left.remove(&key);
        }
    }
    Ok(())
}

/// The event id of a record that this outbox has published.
fn our_event<H: Headers>(headers: Option<&H>, source: &str) -> Option<Uuid> {
    let headers = headers?;
    let (mut event_id, mut ours) = (None, false);
    for found in headers.iter() {
        match found.key {
            header::CE_ID => {
                event_id = found.value.and_then(|bytes| Uuid::try_parse_ascii(bytes).ok());
            }
            header::CE_SOURCE => ours = found.value == Some(source.as_bytes()),
            _ => {}
        }
    }
    event_id.filter(|_| ours)
}
