//! The group's committed offsets beside the database: never ahead of it, and never going back.
//!
//! The offsets are asked for first and the database after them. The database only grows, so that what is missing then was missing
//! when the offset was committed.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use rdkafka::ClientConfig;
use rdkafka::TopicPartitionList;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::topic_partition_list::Offset;
use uuid::Uuid;

use crate::results::Place;

const CALL_LIMIT: Duration = Duration::from_secs(5);
/// Examples that are kept.
const EXAMPLES: usize = 5;

/// What was found in all samples.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ahead {
    /// How often it was looked.
    pub samples: usize,
    /// Records before a committed offset that were not in the database.
    pub ahead: usize,
    /// Offsets that were lower than at an earlier look.
    pub went_back: usize,
    /// Some of what was found.
    pub examples: Vec<String>,
}

/// A record before a committed offset, not looked for yet.
#[derive(Clone, Copy, Debug)]
pub(super) struct Unproved {
    pub(super) place: Place,
    /// None: it is no result.
    pub(super) event_id: Option<Uuid>,
}

/// Looks at a group.
pub(super) struct Offsets {
    consumer: Arc<BaseConsumer>,
    topic: &'static str,
    partitions: i32,
    /// Every record before it was in the database when it was looked for.
    proved: BTreeMap<i32, i64>,
    /// The highest committed offsets so far.
    highest: BTreeMap<i32, i64>,
    ahead: Ahead,
}

impl Offsets {
    pub(super) fn new(bootstrap: &str, group: &str, topic: &'static str, partitions: i32) -> Result<Offsets> {
        let consumer = ClientConfig::new()
            .set("bootstrap.servers", bootstrap)
            .set("group.id", group)
            .set("enable.auto.commit", "false")
            .set("reconnect.backoff.ms", "20")
            .set("reconnect.backoff.max.ms", "200")
            .set("log_level", "0")
            .create()
            .context("make a consumer")?;
        Ok(Offsets {
            consumer: Arc::new(consumer),
            topic,
            partitions,
            proved: BTreeMap::new(),
            highest: BTreeMap::new(),
            ahead: Ahead::default(),
        })
    }

    pub(super) fn ahead(&self) -> &Ahead {
        &self.ahead
    }

    /// The committed offsets at this moment, by partition.
    pub(super) async fn committed(&self) -> Result<HashMap<i32, i64>> {
        let (consumer, topic, partitions) = (Arc::clone(&self.consumer), self.topic, self.partitions);
        let asking = tokio::task::spawn_blocking(move || -> Result<HashMap<i32, i64>> {
            let mut asked = TopicPartitionList::new();
            asked.add_partition_range(topic, 0, partitions - 1);
            let committed = consumer.committed_offsets(asked, CALL_LIMIT).context("ask for offsets")?;
            let mut offsets = HashMap::new();
            for element in committed.elements() {
                element.error().context("ask for an offset")?;
                if let Offset::Offset(offset) = element.offset() {
                    offsets.insert(element.partition(), offset);
                }
            }
            Ok(offsets)
        });
        asking.await?
    }

    /// The records before these offsets that were not looked for yet, of all `records` by partition.
    pub(super) fn unproved(
        &self,
        committed: &HashMap<i32, i64>,
        records: HashMap<i32, Vec<(i64, Option<Uuid>)>>,
    ) -> Vec<Unproved> {
        let mut unproved = Vec::new();
        for (partition, records) in records {
            let end = committed.get(&partition).copied().unwrap_or_default();
            let from = self.proved.get(&partition).copied().unwrap_or_default();
            let new = records.into_iter().filter(|(offset, _)| (from..end).contains(offset));
            unproved.extend(
                new.map(|(offset, event_id)| Unproved { place: Place { partition, offset }, event_id }),
            );
        }
        unproved
    }

    /// Notes what was found of them.
    pub(super) fn prove(
        &mut self,
        committed: &HashMap<i32, i64>,
        mut unproved: Vec<Unproved>,
        there: &HashSet<Uuid>,
        aside: &HashSet<(i32, i64)>,
    ) {
        self.ahead.samples += 1;
        for (partition, offset) in committed {
            let highest = self.highest.entry(*partition).or_insert(*offset);
            if offset < highest {
                self.ahead.went_back += 1;
                self.ahead
                    .example(format!("offset of partition {partition} went from {highest} back to {offset}"));
            }
            *highest = *offset.max(highest);
        }
        unproved.sort_by_key(|record| record.place);
        for Unproved { place, event_id } in unproved {
            let found = match event_id {
                Some(event_id) => there.contains(&event_id),
                None => aside.contains(&(place.partition, place.offset)),
            };
            if !found {
                self.ahead.ahead += 1;
                let offset = committed.get(&place.partition).copied().unwrap_or_default();
                self.ahead.example(format!(
                    "offset {offset} is committed, and {event_id:?} at {place:?} is not in the database"
                ));
            }
            // Whose acknowledgement has not come yet is looked for the next time: only what follows without a gap is done with.
            let proved = self.proved.entry(place.partition).or_default();
            if place.offset == *proved {
                *proved += 1;
            }
        }
    }
}

impl Ahead {
    fn example(&mut self, text: String) {
        if self.examples.len() < EXAMPLES {
            self.examples.push(text);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Looks at one partition of five records, of which these are in the database.
    fn looked(offsets: &mut Offsets, committed: i64, there: &[u128]) {
        let committed = HashMap::from([(0, committed)]);
        let records = (0..5_i64).map(|offset| (offset, Some(Uuid::from_u128(offset.unsigned_abs().into()))));
        let unproved = offsets.unproved(&committed, HashMap::from([(0, records.collect())]));
        let there = there.iter().map(|id| Uuid::from_u128(*id)).collect();
        offsets.prove(&committed, unproved, &there, &HashSet::new());
    }

    #[test]
    fn what_is_behind_an_offset_has_to_be_there_and_offsets_do_not_go_back() {
        let mut offsets = Offsets::new("127.0.0.1:9", "g", "t", 1).unwrap();
        looked(&mut offsets, 2, &[0, 1]);
        looked(&mut offsets, 4, &[2, 3, 4]);
        assert_eq!(*offsets.ahead(), Ahead { samples: 2, ..Ahead::default() });
        looked(&mut offsets, 5, &[]);
        assert_eq!((offsets.ahead().ahead, offsets.ahead().went_back), (1, 0));
        looked(&mut offsets, 3, &[]);
        assert_eq!((offsets.ahead().ahead, offsets.ahead().went_back), (1, 1));
        assert_eq!(offsets.ahead().examples.len(), 2);
    }
}
