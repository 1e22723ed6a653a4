//! Which partitions this consumer owns, since when, and where it starts in them. Runs inside the client's rebalance callbacks, on the
//! thread that polls.
//!
//! Ownership is counted in terms: every assignment of a partition begins a new one. A record bears the term in which it was read, and
//! neither it nor its offset counts for anything once that term is over: by then another member may have gone on from there.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::Context as _;
use rdkafka::{
    ClientContext, Statistics, TopicPartitionList,
    config::RDKafkaLogLevel,
    consumer::{BaseConsumer, CommitMode, Consumer as _, ConsumerContext, Rebalance},
    error::{KafkaError, KafkaResult},
    statistics::ConsumerGroup,
    topic_partition_list::Offset,
};

use crate::{failpoints, metrics::Metrics};

/// Limit of one question to the brokers inside a callback.
const BROKER_TIMEOUT: Duration = Duration::from_secs(5);
/// How often all offsets are sent, those too that were sent before. Of what is sent without waiting the client tells only its log whether it
/// failed, as all of it does that meets a rebalance.
const ALL_SENT_EVERY: Duration = Duration::from_secs(5);
/// How long the client may take to give up partitions while it reaches its coordinator. It waits for nobody else meanwhile, and it has been
/// seen to wait for ever: a member whose session ended while a commit was under way then keeps sending heartbeats without joining
/// again, and the whole group waits for it for `max.poll.interval.ms`.
const GIVEN_UP_WITHIN: Duration = Duration::from_secs(20);

/// What one consumer owns. Shared with its callbacks.
#[derive(Debug)]
pub(crate) struct Assignment {
    topic: String,
    metrics: Arc<Metrics>,
    owned: Mutex<Owned>,
    /// Set while a batch waits: partitions that come meanwhile are paused at once.
    holding: AtomicBool,
}

#[derive(Debug, Default)]
struct Owned {
    partitions: HashMap<i32, Partition>,
    last_term: u64,
    /// When the offsets of all partitions were last sent.
    all_sent_at: Option<Instant>,
    /// Since when the client has been giving up partitions.
    giving_up: Option<Instant>,
    /// Why this consumer cannot go on.
    failure: Option<String>,
}

#[derive(Debug)]
struct Partition {
    term: u64,
    /// Every record before this offset is in the database.
    finished: i64,
    /// The offset that was last sent to the broker, whatever has become of it.
    sent: i64,
}

impl Assignment {
    pub(crate) fn new(topic: &str, metrics: Arc<Metrics>) -> Self {
        Self { topic: topic.to_owned(), metrics, owned: Mutex::default(), holding: AtomicBool::new(false) }
    }

    fn owned(&self) -> std::sync::MutexGuard<'_, Owned> {
        self.owned.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The term in which this partition is owned.
    pub(crate) fn term(&self, partition: i32) -> Option<u64> {
        self.owned().partitions.get(&partition).map(|owned| owned.term)
    }

    /// How many partitions are owned.
    pub(crate) fn count(&self) -> usize {
        self.owned().partitions.len()
    }

    /// Remembers that every record before `next_offset`, read in `term`, is in the database.
    pub(crate) fn finished(&self, partition: i32, term: u64, next_offset: i64) {
        if let Some(owned) = self.owned().partitions.get_mut(&partition).filter(|owned| owned.term == term) {
            owned.finished = next_offset;
        }
    }

    /// Sends the offsets of what is finished since the last time, without waiting for the answer; from time to time all of them.
    pub(crate) fn commit_soon(&self, consumer: &BaseConsumer<Self>) {
        if let Err(error) = self.send_offsets(consumer) {
            self.not_committed(&error);
        }
    }

    fn send_offsets(&self, consumer: &BaseConsumer<Self>) -> KafkaResult<()> {
        let mut offsets = TopicPartitionList::new();
        let mut owned = self.owned();
        let all = owned.all_sent_at.is_none_or(|at| at.elapsed() >= ALL_SENT_EVERY);
        if all {
            owned.all_sent_at = Some(Instant::now());
        }
        for (number, partition) in &mut owned.partitions {
            if partition.sent < partition.finished || (all && partition.finished >= 0) {
                offsets.add_partition_offset(&self.topic, *number, Offset::Offset(partition.finished))?;
                partition.sent = partition.finished;
            }
        }
        drop(owned);
        if offsets.count() > 0 {
            consumer.commit(&offsets, CommitMode::Async)?;
            failpoints::sent_offsets();
        }
        Ok(())
    }

    /// Commits the offsets of all that is finished, and waits for the answer.
    fn commit_now(&self, consumer: &BaseConsumer<Self>) -> KafkaResult<()> {
        let mut offsets = TopicPartitionList::new();
        for (number, partition) in &self.owned().partitions {
            if partition.finished >= 0 {
                offsets.add_partition_offset(&self.topic, *number, Offset::Offset(partition.finished))?;
            }
        }
        if offsets.count() > 0 {
            consumer.commit(&offsets, CommitMode::Sync)?;
        }
        Ok(())
    }

    fn not_committed(&self, error: &KafkaError) {
        self.metrics.consumer.commit_failures.inc();
        tracing::warn!(error = %error, "offsets were not committed; they will be sent again");
    }

    /// Says that a batch waits: nothing more is to be read.
    pub(crate) fn hold(&self, holding: bool) {
        self.holding.store(holding, Ordering::Release);
    }

    /// Why the consumer cannot go on, if it cannot.
    pub(crate) fn failure(&self) -> Option<String> {
        self.owned().failure.take()
    }
}

impl ClientContext for Assignment {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        self.metrics.consumer.logged(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.metrics.consumer.errors.inc();
        tracing::warn!(error = %error, reason, "Kafka client");
    }

    fn stats(&self, statistics: Statistics) {
        self.metrics.consumer.sampled(&statistics);
        if let Some(group) = &statistics.cgrp {
            let mut owned = self.owned();
            owned.giving_up = gives_up(group).then(|| owned.giving_up.unwrap_or_else(Instant::now));
            if owned.giving_up.is_some_and(|since| since.elapsed() > GIVEN_UP_WITHIN) {
                owned.failure = Some(format!("the Kafka client does not come out of {}", group.join_state));
            }
        }
    }
}

/// The client gives up partitions, and its coordinator can be reached.
fn gives_up(group: &ConsumerGroup) -> bool {
    group.state == "up" && group.join_state.contains("unassign")
}

impl ConsumerContext for Assignment {
    fn pre_rebalance(&self, consumer: &BaseConsumer<Self>, rebalance: &Rebalance<'_>) {
        self.metrics.consumer.rebalanced(rebalance);
        match rebalance {
            Rebalance::Assign(partitions) => {
                failpoints::reached("C7");
                if let Err(error) = start_new_partitions_at_the_beginning(consumer, partitions) {
                    // A partition that has an offset starts there all the same; one that has none makes the client report an
                    // error. Ending the process is the cure for both.
                    self.owned().failure = Some(format!("where to start could not be determined: {error:#}"));
                }
            }
            Rebalance::Revoke(partitions) => self.leave(consumer, partitions),
            Rebalance::Error(error) => tracing::warn!(error = %error, "rebalance failed"),
        }
    }

    fn post_rebalance(&self, consumer: &BaseConsumer<Self>, rebalance: &Rebalance<'_>) {
        let Rebalance::Assign(partitions) = rebalance else { return };
        let mut owned = self.owned();
        for element in partitions.elements() {
            owned.last_term += 1;
            let partition = Partition { term: owned.last_term, finished: -1, sent: -1 };
            owned.partitions.insert(element.partition(), partition);
        }
        drop(owned);
        if self.holding.load(Ordering::Acquire)
            && let Err(error) = consumer.pause(partitions)
        {
            tracing::warn!(error = %error, "new partitions were not paused");
        }
        let list: Vec<i32> = partitions
            .elements()
            .iter()
            .map(rdkafka::topic_partition_list::TopicPartitionListElem::partition)
            .collect();
        tracing::info!(partitions = ?list, "partitions assigned");
    }
}

impl Assignment {
    /// Ends the terms of these partitions. What is finished is committed first, while they are still ours; if they were taken away
    /// (the session expired), nothing is: their new owner may be ahead.
    fn leave(&self, consumer: &BaseConsumer<Self>, partitions: &TopicPartitionList) {
        failpoints::reached("C7");
        let lost = consumer.assignment_lost();
        if !lost && let Err(error) = self.commit_now(consumer) {
            // The records come again, to whoever owns the partitions then, and are known.
            self.metrics.consumer.commit_failures.inc();
            tracing::warn!(error = %error, "offsets were not committed before partitions were given up");
        }
        failpoints::reached("C7");
        let mut owned = self.owned();
        let mut list = Vec::new();
        for element in partitions.elements() {
            owned.partitions.remove(&element.partition());
            list.push(element.partition());
        }
        tracing::info!(partitions = ?list, lost, "partitions revoked");
    }
}

/// A partition for which the group has never committed an offset starts at its first record: commits that offset, before the
/// client looks for one, and says so if records before it are gone. Everything else is left to `auto.offset.reset=error`: an offset that points nowhere is for a person.
fn start_new_partitions_at_the_beginning(
    consumer: &BaseConsumer<Assignment>,
    partitions: &TopicPartitionList,
) -> anyhow::Result<()> {
    if partitions.count() == 0 {
        return Ok(());
    }
    let mut asked = TopicPartitionList::new();
    for element in partitions.elements() {
        asked.add_partition(element.topic(), element.partition());
    }
    let committed =
        consumer.committed_offsets(asked, BROKER_TIMEOUT).context("committed offsets were not told")?;
    let mut first = TopicPartitionList::new();
    for element in committed.elements() {
        element.error().with_context(|| format!("committed offset of partition {}", element.partition()))?;
        if !matches!(element.offset(), Offset::Offset(_)) {
            let (low, _) = consumer
                .fetch_watermarks(element.topic(), element.partition(), BROKER_TIMEOUT)
                .with_context(|| format!("first offset of partition {}", element.partition()))?;
            if low == 0 {
                tracing::info!(
                    partition = element.partition(),
                    "no offset committed yet: starting at the first record"
                );
            } else {
                // A group that is new to an old topic, or one whose offsets the brokers have lost or let expire. What is left is read
                // either way, and what is known is known; but what is gone may never have been read.
                consumer.context().metrics.offsets_missing.inc();
                tracing::error!(
                    partition = element.partition(),
                    offset = low,
                    "no offset is committed, and the partition's first records are gone: starting at the first that is left; `outbox-relay verify` of the results' outbox finds what was never applied"
                );
            }
            first.add_partition_offset(element.topic(), element.partition(), Offset::Offset(low))?;
        }
    }
    if first.count() > 0 {
        consumer.commit(&first, CommitMode::Sync).context("first offsets were not committed")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_that_gives_up_partitions_for_too_long_is_done_with() {
        let group = |state: &str, join_state: &str| ConsumerGroup {
            state: state.to_owned(),
            join_state: join_state.to_owned(),
            ..ConsumerGroup::default()
        };
        let metrics = Metrics::new(&prometheus::Registry::new()).unwrap();
        let assignment = Assignment::new("t", metrics);
        let told = |group: ConsumerGroup, since: Option<Duration>| {
            assignment.owned().giving_up = since.and_then(|since| Instant::now().checked_sub(since));
            assignment.stats(Statistics { cgrp: Some(group), ..Statistics::default() });
            let giving_up = assignment.owned().giving_up.is_some();
            (giving_up, assignment.failure().is_some())
        };
        let long = Some(GIVEN_UP_WITHIN + Duration::from_secs(1));
        let stuck = "wait-incr-unassign-to-complete";
        assert_eq!(told(group("up", stuck), None), (true, false), "it has only begun");
        assert_eq!(told(group("up", stuck), long), (true, true));
        assert_eq!(told(group("up", "wait-unassign-call"), long), (true, true));
        // Without a coordinator it cannot come out of it; whoever joins may wait for others.
        assert_eq!(told(group("wait-coord", stuck), long), (false, false));
        assert_eq!(told(group("up", "wait-join"), long), (false, false));
        assert_eq!(told(group("up", "steady"), long), (false, false));
    }
}
