//! From pages to the producer: each row is sent, skipped because it lies on the topic already, parked because it cannot be
//! published, or held because an earlier event of its key is not published.
//!
//! Encoding goes on while the brokers acknowledge; a full producer queue is back-pressure on the reading.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use anyhow::Context as _;
use chassis::backoff::Backoff;
use schema::{
    registry::RegistryError,
    wire::{begin_frame, value_subject},
};
use tokio::sync::{mpsc, watch};
use uuid::Uuid;

use crate::{
    Relay,
    encode::EncodeError,
    leadership::ProofOfLock,
    orders::Order,
    publish::{Batch, Entry, Publisher},
    read::Page,
    recover::Position,
    store::{
        OutboxRow,
        orders::{CarriedOut, Parking},
    },
    term::Stop,
    window::Cursor,
};

/// The stage between reading and saving, in one session of a term.
pub(crate) struct Dispatcher {
    pub(crate) relay: Arc<Relay>,
    pub(crate) publisher: Publisher,
    pub(crate) proof: ProofOfLock,
    pub(crate) batches: mpsc::Sender<Arc<Batch>>,
    pub(crate) stop: Stop,
    /// Events that were found on the topics after the saved cursor: not published again.
    pub(crate) found: HashMap<Uuid, Position>,
    /// Keys of which something is parked.
    pub(crate) held: HashSet<String>,
    /// The place that the batches handed on have reached.
    pub(crate) cursor: Cursor,
    pub(crate) saved: watch::Receiver<u64>,
    pub(crate) handed_on: u64,
}

/// Why dispatching stopped before its end.
#[derive(Debug)]
pub(crate) enum Halt {
    /// The term is over.
    Stopped,
    /// Something failed.
    Failed(anyhow::Error),
}

impl<E: Into<anyhow::Error>> From<E> for Halt {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}

/// Records of one batch, encoded one after the other.
#[derive(Default)]
struct Encoded {
    bytes: Vec<u8>,
    ends: Vec<usize>,
    entries: Vec<Entry>,
    found: usize,
    parked: Vec<Parking>,
}

impl Dispatcher {
    /// Dispatches pages and orders until there are no more pages.
    pub(crate) async fn run(
        mut self,
        mut pages: mpsc::Receiver<Page>,
        mut orders: mpsc::Receiver<Order>,
    ) -> (Publisher, anyhow::Result<()>) {
        let result = loop {
            let done = tokio::select! {
                Some(order) = orders.recv() => self.carry_out(order).await,
                page = pages.recv() => match page {
                    Some(page) => self.page(page).await,
                    None => break Ok(()),
                },
            };
            match done {
                Ok(()) => {}
                Err(Halt::Stopped) => break Ok(()),
                Err(Halt::Failed(error)) => break Err(error),
            }
        };
        // Batches that were sent are still acknowledged and saved: dropping their channel says that these were the last.
        (self.publisher, result)
    }

    async fn page(&mut self, page: Page) -> Result<(), Halt> {
        let rows = page.rows.decode().context("a row could not be decoded")?;
        let schema_ids = self.schema_ids(&rows).await?;
        let passed = rows.first().zip(rows.last()).map(|(first, last)| (first.id, last.id));
        let mut encoded = Encoded::default();
        for row in rows {
            if self.held.contains(&row.aggregate_id) {
                encoded.parked.push(parking(row, None));
            } else if self.found.remove(&row.event_id).is_some() {
                encoded.found += 1;
            } else if let Err((row, reason)) = self.encode(row, &schema_ids, &mut encoded) {
                self.held.insert(row.aggregate_id.clone());
                tracing::error!(
                    event_id = %row.event_id, aggregate_id = row.aggregate_id, outbox_id = row.id, event_type = row.event_type, reason,
                    "event parked: it cannot be published, and its key is held until it is redriven or discarded"
                );
                encoded.parked.push(parking(*row, Some(reason)));
            }
        }
        self.cursor = page.cursor;
        self.hand_on(encoded, passed, None).await
    }

    /// Encodes a row behind the others; gives it back with the reason if that cannot be done.
    fn encode(
        &self,
        mut row: OutboxRow,
        schema_ids: &HashMap<&'static str, u32>,
        encoded: &mut Encoded,
    ) -> Result<(), (Box<OutboxRow>, String)> {
        let Some((schema_id, event)) =
            schema_ids.get(row.event_type.as_str()).zip(self.relay.catalogue.events.get(&row.event_type))
        else {
            let reason = EncodeError::UnknownEventType(row.event_type.clone()).to_string();
            return Err((Box::new(row), reason));
        };
        let start = encoded.bytes.len();
        begin_frame(*schema_id, &mut encoded.bytes);
        let payload = std::mem::take(&mut row.payload);
        let reason = match self.relay.encoder.encode(&row.event_type, &payload, &mut encoded.bytes) {
            Ok(()) => encoded
                .bytes
                .get(start..)
                .and_then(|record| self.publisher.too_large(&event.topic, &row, record)),
            Err(error) => Some(error.to_string()),
        };
        if let Some(reason) = reason {
            encoded.bytes.truncate(start);
            return Err((Box::new(row), reason));
        }
        encoded.ends.push(encoded.bytes.len());
        encoded.entries.push(Entry { row, topic: &event.topic });
        Ok(())
    }

    /// Sends a batch and hands it on to be saved.
    async fn hand_on(
        &mut self,
        encoded: Encoded,
        passed: Option<(i64, i64)>,
        carried_out: Option<CarriedOut>,
    ) -> Result<(), Halt> {
        let mut batch = Batch::new(self.cursor.clone(), encoded.entries);
        (batch.passed, batch.found, batch.parked, batch.carried_out) =
            (passed, encoded.found, encoded.parked, carried_out);
        self.relay.metrics.skipped.inc_by(u64::try_from(encoded.found)?);
        let batch = Arc::new(batch);
        let mut start = 0;
        for (place, end) in encoded.ends.iter().enumerate() {
            let record = encoded.bytes.get(start..*end).context("a record lies outside of its buffer")?;
            while !self.publisher.send(&batch, place, record, &self.proof)? {
                if self.stop.abandon.is_cancelled() {
                    return Err(Halt::Stopped);
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            start = *end;
        }
        if !encoded.ends.is_empty() {
            crate::failpoint("R3");
        }
        self.handed_on += 1;
        self.batches.send(batch).await.map_err(|_| Halt::Stopped)
    }

    /// Waits until everything handed on is saved: what is parked is then in the table.
    async fn all_saved(&mut self) -> Result<(), Halt> {
        let wanted = self.handed_on;
        tokio::select! {
            saved = self.saved.wait_for(|saved| *saved >= wanted) => saved.map(drop).map_err(|_| Halt::Stopped),
            () = self.stop.abandon.cancelled() => Err(Halt::Stopped),
        }
    }

    /// One slice of an operator's command.
    async fn carry_out(&mut self, order: Order) -> Result<(), Halt> {
        match order {
            Order::Replay { rows, mut done } => {
                let schema_ids = self.schema_ids(&rows).await?;
                let (mut encoded, mut unpublishable) = (Encoded::default(), 0);
                for row in rows {
                    if self.encode(row, &schema_ids, &mut encoded).is_err() {
                        unpublishable += 1;
                    }
                }
                done.published = i64::try_from(encoded.entries.len())?;
                if unpublishable > 0 {
                    tracing::error!(
                        command = done.command,
                        unpublishable,
                        "events of a replay cannot be published any more"
                    );
                }
                self.hand_on(encoded, None, Some(done)).await
            }
            // Everything passed so far has to be in the table before the table is asked.
            Order::Redrive { mut slice, answer } => {
                self.all_saved().await?;
                let rows = slice.rows().await?;
                let mut done = slice.begin(&rows);
                self.redrive(rows, &mut done).await?;
                let keys = std::mem::take(&mut slice.keys);
                self.all_saved().await?;
                // Nothing is parked while this waits, so that a key cannot be opened behind a row's back.
                for key in slice.open(&keys).await? {
                    self.held.remove(&key);
                }
                drop(answer.send(slice));
                Ok(())
            }
        }
    }

    async fn redrive(&mut self, rows: Vec<OutboxRow>, done: &mut CarriedOut) -> Result<(), Halt> {
        let schema_ids = self.schema_ids(&rows).await?;
        let (mut encoded, mut refused) = (Encoded::default(), HashSet::new());
        for row in rows {
            let (id, key) = (row.id, row.aggregate_id.clone());
            if refused.contains(&key) {
                continue;
            }
            if self.found.remove(&row.event_id).is_some() {
                encoded.found += 1;
                done.released.push(id);
                continue;
            }
            match self.encode(row, &schema_ids, &mut encoded) {
                Ok(()) => done.released.push(id),
                Err((row, reason)) => {
                    refused.insert(key);
                    done.refused.push((row.id, reason));
                }
            }
        }
        done.published = i64::try_from(done.released.len())?;
        self.hand_on(encoded, None, Some(done.clone())).await
    }

    /// The schema ids of these rows' types. A registry that is away, or not set up, is waited for: that is never a row's fault.
    async fn schema_ids(&self, rows: &[OutboxRow]) -> Result<HashMap<&'static str, u32>, Halt> {
        let mut known = self.relay.schema_ids.lock().await;
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
        let mut seen = "";
        for row in rows {
            // Most pages are of one type.
            if row.event_type == seen || known.contains_key(row.event_type.as_str()) {
                seen = &row.event_type;
                continue;
            }
            let Some((event_type, event)) = self.relay.catalogue.events.get_key_value(&row.event_type) else {
                continue;
            };
            loop {
                let subject = value_subject(&event.topic);
                match self.relay.registry.id_of(&subject, &event.schema_text).await {
                    Ok(id) => {
                        known.insert(event_type, id);
                        break;
                    }
                    Err(error) => {
                        let hint = match error {
                            RegistryError::NotFound(_) => {
                                "`outbox-relay setup` registers the schemas of the catalogue"
                            }
                            RegistryError::Unavailable(_) | RegistryError::Refused(_) => {
                                "publication waits for the registry"
                            }
                        };
                        tracing::warn!(event_type, subject, %error, hint, "no schema id yet");
                        self.relay.metrics.failures.with_label_values(&["registry"]).inc();
                        tokio::select! {
                            () = tokio::time::sleep(backoff.next_delay()) => {}
                            () = self.stop.abandon.cancelled() => return Err(Halt::Stopped),
                        }
                    }
                }
            }
        }
        Ok(known.clone())
    }
}

fn parking(row: OutboxRow, reason: Option<String>) -> Parking {
    let OutboxRow { id, event_id, event_type, aggregate_id, slot, .. } = row;
    Parking { id, event_id, event_type, aggregate_id, slot, reason }
}
