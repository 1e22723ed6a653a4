//! Saves progress, at most once per save interval, and only past batches of which every record is acknowledged.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use sqlx::PgConnection;
use time::OffsetDateTime;
use tokio::sync::{mpsc, watch};

use crate::{
    Relay,
    publish::{Batch, Entry, Told},
    store::{self, OffsetRanges, PartitionOffsets, Progress, Signature},
    term::Stop,
};

/// What saves progress in one session of a term.
pub(crate) struct Saver {
    relay: Arc<Relay>,
    connection: PgConnection,
    signature: Signature,
    seq: i64,
    offsets: PartitionOffsets,
    saved_at: Option<Instant>,
    /// Batches saved, for those who must know that all is saved.
    saved: watch::Sender<u64>,
    /// Events published.
    pub(crate) published: u64,
}

/// Batches in the order of the outbox; the head has left the queue and waits for its acknowledgement.
pub(crate) struct Batches {
    queue: mpsc::Receiver<Batch>,
    head: Option<Batch>,
}

impl Batches {
    pub(crate) fn new(queue: mpsc::Receiver<Batch>) -> Self {
        Self { queue, head: None }
    }

    /// The next batch, in order, once all of it is delivered. Cancel-safe: an undelivered batch stays here.
    async fn next_delivered(&mut self) -> anyhow::Result<Option<Batch>> {
        if self.head.is_none() {
            self.head = self.queue.recv().await;
        }
        if let Some(batch) = &mut self.head
            && let Err(error) = batch.delivery.delivered().await
        {
            batch
                .entries
                .iter_mut()
                .filter_map(|entry| entry.told.as_mut())
                .for_each(|told| told.span.fail("not_delivered"));
            return Err(error.into());
        }
        Ok(self.head.take())
    }
}

/// Progress with one more batch.
fn with(before: Option<Progress>, batch: &Batch) -> anyhow::Result<Progress> {
    let mut progress = match before {
        None => Progress::at(batch.cursor.clone()),
        Some(before) => Progress { cursor: batch.cursor.clone(), ..before },
    };
    let count = i32::try_from(batch.entries.len() + batch.found)?;
    progress.count = progress.count.saturating_add(count);
    if let Some((first, last)) = batch.passed {
        // Late rows of a later window can have lower ids.
        progress.first_id = Some(progress.first_id.map_or(first, |id| id.min(first)));
        progress.last_id = Some(progress.last_id.map_or(last, |id| id.max(last)));
    }
    progress.parked.extend(batch.parked.iter().cloned());
    progress.carried_out.clone_from(&batch.carried_out);
    Ok(progress)
}

impl Saver {
    pub(crate) fn new(
        relay: Arc<Relay>,
        connection: PgConnection,
        signature: Signature,
        seq: i64,
        offsets: PartitionOffsets,
    ) -> Self {
        Self {
            relay,
            connection,
            signature,
            seq,
            offsets,
            saved_at: None,
            saved: watch::Sender::new(0),
            published: 0,
        }
    }

    /// A partition that no longer has the offset saved for it.
    pub(crate) fn forget_offset(&mut self, topic: &str, partition: i32) {
        if let Some(offsets) = self.offsets.get_mut(topic) {
            offsets.remove(&partition);
        }
    }

    /// Where publication begins, before there was any.
    pub(crate) fn begin_at(&mut self, offsets: PartitionOffsets) {
        self.offsets = offsets;
    }

    /// The number of batches saved so far.
    pub(crate) fn saved(&self) -> watch::Receiver<u64> {
        self.saved.subscribe()
    }

    /// Saves every batch, in order, until the queue is closed and empty.
    pub(crate) async fn save_all(&mut self, mut batches: Batches, stop: &Stop) -> anyhow::Result<()> {
        let (abandon, finish) = (stop.abandon.clone(), &stop.finish);
        tokio::select! {
            result = async {
                let (mut unsaved, mut taken) = (None, 0);
                loop {
                    // With nothing to save there is nothing to hurry for; with something, more may join it until the save is due.
                    let next = tokio::select! {
                        next = batches.next_delivered() => next?,
                        () = tokio::time::sleep(self.until_due()), if unsaved.is_some() => {
                            self.save_taken(&mut unsaved, taken).await?;
                            continue;
                        }
                    };
                    let Some(mut batch) = next else { break };
                    if finish.is_cancelled() {
                        crate::failpoint("R7");
                    }
                    let ranges = self.acknowledged(&mut batch);
                    let mut progress = with(unsaved.take(), &batch)?;
                    merge(&mut progress.ranges, ranges);
                    unsaved = Some(progress);
                    taken += 1;
                    // What a slice of a command has done is one save.
                    if self.until_due().is_zero() || batch.carried_out.is_some() {
                        self.save_taken(&mut unsaved, taken).await?;
                    }
                }
                self.save_taken(&mut unsaved, taken).await
            } => result,
            () = abandon.cancelled() => Ok(()),
        }
    }

    fn until_due(&self) -> Duration {
        self.saved_at
            .map_or(Duration::ZERO, |at| self.relay.config.save_interval.saturating_sub(at.elapsed()))
    }

    async fn save_taken(&mut self, unsaved: &mut Option<Progress>, taken: u64) -> anyhow::Result<()> {
        if let Some(progress) = unsaved.take() {
            self.save(&progress).await?;
        }
        self.saved.send_replace(taken);
        Ok(())
    }

    pub(crate) async fn save(&mut self, progress: &Progress) -> anyhow::Result<()> {
        if progress.count > 0 {
            crate::failpoint("R5");
        }
        let next = self.seq + 1;
        let saving = store::save(&mut self.connection, &self.signature, next, progress, &self.offsets);
        #[cfg(feature = "failpoints")]
        let saving = async {
            if progress.count == 0 {
                return saving.await;
            }
            chassis::failpoints::strike_once_sent(saving, "R6").await
        };
        saving.await?;
        self.seq = next;
        self.saved_at = Some(Instant::now());
        self.relay.metrics.saves.inc();
        for row in &progress.parked {
            let metrics = &self.relay.metrics;
            if row.reason.is_some() { metrics.parked_total.inc() } else { metrics.held_total.inc() }
        }
        Ok(())
    }

    /// Notes where the records of a delivered batch lie, for the cursor, the metrics and the log.
    fn acknowledged(&mut self, batch: &mut Batch) -> Vec<Landed> {
        let positions = batch.delivery.take_positions();
        let logged =
            batch.entries.first().is_some_and(|entry| entry.told.as_ref().is_some_and(|told| told.logged));
        let now = OffsetDateTime::now_utc();
        let mut landed = Vec::<Landed>::new();
        for (entry, (partition, offset)) in batch.entries.iter_mut().zip(positions) {
            let waited = (now - entry.created_at).as_seconds_f64().max(0.0);
            self.relay.metrics.publish_duration.observe(waited);
            if let Some(told) = entry.told.take() {
                tell(entry, *told, partition, offset);
            }
            match landed
                .iter_mut()
                .find(|at| at.partition == partition && std::ptr::eq(at.topic, entry.topic))
            {
                Some(at) => {
                    at.first = at.first.min(offset);
                    at.last = at.last.max(offset);
                    at.count += 1;
                }
                None => {
                    landed.push(Landed {
                        topic: entry.topic,
                        partition,
                        first: offset,
                        last: offset,
                        count: 1,
                    });
                }
            }
        }
        for at in &landed {
            let next = self.offsets.entry(at.topic.to_owned()).or_default().entry(at.partition).or_default();
            *next = (*next).max(at.last + 1);
            self.relay.metrics.published.with_label_values(&[at.topic]).inc_by(at.count);
        }
        if !batch.entries.is_empty() {
            let size = f64::from(u32::try_from(batch.entries.len()).unwrap_or(u32::MAX));
            self.relay.metrics.batch_size.observe(size);
        }
        self.published += u64::try_from(batch.entries.len()).unwrap_or(u64::MAX);
        if !logged && !batch.entries.is_empty() {
            tracing::info!(
                events = batch.entries.len(),
                last_id = batch.passed.map(|(_, last)| last),
                "batch published"
            );
        }
        landed
    }
}

/// Records of one batch in one partition.
struct Landed {
    topic: &'static str,
    partition: i32,
    first: i64,
    last: i64,
    count: u64,
}

fn merge(ranges: &mut OffsetRanges, landed: Vec<Landed>) {
    for at in landed {
        let range = ranges.entry(at.topic.to_owned()).or_default().entry(at.partition);
        let range = range.or_insert((at.first, at.last));
        *range = (range.0.min(at.first), range.1.max(at.last));
    }
}

/// Tells log and trace of an event that the brokers have taken.
fn tell(entry: &Entry, told: Told, partition: i32, offset: i64) {
    let (Entry { id, event_id, topic, .. }, Told { aggregate_id, trace, logged, mut span }) = (entry, told);
    if logged {
        let context = span.context().or(trace);
        let (trace_id, span_id) =
            (context.map(|context| context.trace_id()), context.map(|context| context.span_id()));
        tracing::info!(trace_id, span_id, %event_id, aggregate_id, outbox_id = id, topic, partition, offset, "event published");
    }
    if span.is_recording() {
        span.set("messaging.message.id", event_id.to_string());
        span.set("messaging.kafka.message.key", aggregate_id);
        span.set("messaging.client.id", "outbox-relay");
        span.set_position(partition, offset);
    }
}
