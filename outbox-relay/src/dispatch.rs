//! From pages to the producer: each row is sent, skipped because it lies on the topic already, parked because it cannot be
//! published, or held because an earlier event of its key is not published.
//!
//! Brokers acknowledge meanwhile; a full producer queue is back-pressure on the reading.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::{Duration, SystemTime},
};

use chassis::{
    backoff::Backoff,
    telemetry::TraceContext,
    trace::{self, Span, Step},
};
use schema::wire::begin_frame;
use tokio::sync::{mpsc, watch};
use uuid::Uuid;

use crate::{
    Relay,
    encode::EncodeError,
    leadership::ProofOfLock,
    orders::Order,
    publish::{Batch, Delivery, Entry, Kind, Publisher, Told},
    read::Page,
    records::{Record, Records},
    recover::Position,
    store::orders::{CarriedOut, Parking},
    term::Stop,
    window::Cursor,
};

/// A batch of at most so many events is written to the log event by event, a larger one only if DEBUG is wanted: draining a backlog is
/// not to be bound by logging.
const LOGGED_ONE_BY_ONE_MAX: usize = 200;

/// A page of at least so many rows is sent partition by partition.
const SENT_BY_PARTITION_MIN: usize = 500;

/// The stage between reading and saving, in one session of a term.
pub(crate) struct Dispatcher {
    pub(crate) relay: Arc<Relay>,
    pub(crate) publisher: Publisher,
    pub(crate) proof: ProofOfLock,
    pub(crate) batches: mpsc::Sender<Batch>,
    pub(crate) stop: Stop,
    /// Events that were found on the topics after the saved cursor: not published again.
    pub(crate) found: HashMap<Uuid, Position>,
    /// Keys of which something is parked.
    pub(crate) held: HashSet<String>,
    /// The place that the batches handed on have reached.
    pub(crate) cursor: Cursor,
    pub(crate) saved: watch::Receiver<u64>,
    pub(crate) handed_on: u64,
    /// By event type.
    pub(crate) kinds: HashMap<&'static str, Arc<Kind>>,
    /// The record that is being sent; kept for its memory.
    pub(crate) framed: Vec<u8>,
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

/// A batch on its way: what was sent of it so far.
struct Outgoing {
    delivery: Arc<Delivery>,
    entries: Vec<Entry>,
    found: usize,
    parked: Vec<Parking>,
    /// The event type of the row before: most pages are of one.
    kind: Option<Arc<Kind>>,
    /// The log tells of each event.
    logged: bool,
    /// Since when it is sent, if spans are made.
    traced: Option<SystemTime>,
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
        let mut outgoing = self.begin(page.records.len());
        for record in self.in_order(&page.records) {
            if self.held.contains(record.aggregate_id) {
                outgoing.parked.push(parking(&record, None));
            } else if !self.found.is_empty() && self.found.remove(&record.event_id).is_some() {
                outgoing.found += 1;
            } else if let Err(reason) = self.publish(&record, &mut outgoing).await? {
                self.held.insert(record.aggregate_id.to_owned());
                tracing::error!(
                    event_id = %record.event_id, aggregate_id = record.aggregate_id, outbox_id = record.id,
                    event_type = record.event_type, reason,
                    "event parked: it cannot be published, and its key is held until it is redriven or discarded"
                );
                outgoing.parked.push(parking(&record, Some(reason)));
            }
        }
        self.cursor = page.cursor;
        self.hand_on(outgoing, page.records.id_range(), None).await
    }

    /// The order in which a page is sent: as it is, or, if it is large, partition by partition. The producer makes a request per
    /// partition of what comes within a millisecond, and so makes few large ones; a key's events are of one partition, where they stay
    /// in order.
    fn in_order<'a>(&self, records: &'a Records) -> Vec<Record<'a>> {
        if records.len() < SENT_BY_PARTITION_MIN {
            return records.iter().collect();
        }
        // Of a page with several topics, those with another number of partitions are sent in more and smaller requests.
        let event_type = records.iter().next().map_or("", |record| record.event_type);
        let topic = self.relay.catalogue.events.get(event_type).map(|event| &event.topic);
        let partitions = topic.map_or(1, |topic| self.publisher.partitions(topic));
        records.grouped_by(|record| partition(record.aggregate_id.as_bytes(), partitions))
    }

    fn begin(&self, rows: usize) -> Outgoing {
        Outgoing {
            delivery: self.publisher.begin(),
            entries: Vec::with_capacity(rows),
            found: 0,
            parked: Vec::new(),
            kind: None,
            logged: rows <= LOGGED_ONE_BY_ONE_MAX || tracing::enabled!(tracing::Level::DEBUG),
            traced: trace::exporting().then(SystemTime::now),
        }
    }

    /// Hands a record to the producer, behind the others; or says why that cannot be done, and nothing was sent.
    async fn publish(
        &mut self,
        record: &Record<'_>,
        outgoing: &mut Outgoing,
    ) -> Result<Result<(), String>, Halt> {
        let body = match record.body {
            Ok(body) => body,
            Err(reason) => return Ok(Err(reason.to_owned())),
        };
        let kind = match outgoing.kind.take() {
            Some(kind) if kind.event_type == record.event_type => kind,
            _ => match self.kind(record.event_type).await? {
                Some(kind) => kind,
                None => {
                    return Ok(Err(EncodeError::UnknownEventType(record.event_type.to_owned()).to_string()));
                }
            },
        };
        let kind = &*outgoing.kind.insert(kind);
        self.framed.clear();
        begin_frame(kind.schema_id, &mut self.framed);
        self.framed.extend_from_slice(body);
        if let Some(reason) = self.publisher.too_large(kind, record, &self.framed) {
            return Ok(Err(reason));
        }
        let place = outgoing.entries.len();
        while !self.publisher.send(&outgoing.delivery, place, kind, record, &self.framed, &self.proof)? {
            if self.stop.abandon.is_cancelled() {
                return Err(Halt::Stopped);
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let Record { id, event_id, created_at, .. } = *record;
        let told = (outgoing.logged || outgoing.traced.is_some())
            .then(|| told(record, kind.topic, outgoing.logged, outgoing.traced))
            .flatten()
            .map(Box::new);
        outgoing.entries.push(Entry { id, event_id, created_at, topic: kind.topic, told });
        Ok(Ok(()))
    }

    /// Hands a batch on to be saved: all that is to be sent of it was.
    async fn hand_on(
        &mut self,
        outgoing: Outgoing,
        passed: Option<(i64, i64)>,
        carried_out: Option<CarriedOut>,
    ) -> Result<(), Halt> {
        let Outgoing { delivery, entries, found, parked, .. } = outgoing;
        self.publisher.sent(&delivery, entries.len());
        if !entries.is_empty() {
            crate::failpoint("R3");
        }
        self.relay.metrics.skipped.inc_by(u64::try_from(found)?);
        self.handed_on += 1;
        let cursor = self.cursor.clone();
        let batch = Batch { cursor, entries, passed, found, parked, carried_out, delivery };
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
            Order::Replay { records, done } => self.replay(&records, done).await,
            // Everything passed so far has to be in the table before the table is asked.
            Order::Redrive { mut slice, answer } => {
                self.all_saved().await?;
                let records = slice.records(&self.relay.encoder).await?;
                let done = slice.begin(&records);
                self.redrive(&records, done).await?;
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

    async fn replay(&mut self, records: &Records, mut done: CarriedOut) -> Result<(), Halt> {
        let mut outgoing = self.begin(records.len());
        for record in records.iter() {
            if let Err(reason) = self.publish(&record, &mut outgoing).await? {
                tracing::error!(
                    command = done.command, event_id = %record.event_id, outbox_id = record.id, reason,
                    "an event of a replay cannot be published any more"
                );
            }
        }
        done.published = i64::try_from(outgoing.entries.len())?;
        self.hand_on(outgoing, None, Some(done)).await
    }

    async fn redrive(&mut self, records: &Records, mut done: CarriedOut) -> Result<(), Halt> {
        let mut outgoing = self.begin(records.len());
        let mut refused = HashSet::new();
        for record in records.iter() {
            if refused.contains(record.aggregate_id) {
                continue;
            }
            if self.found.remove(&record.event_id).is_some() {
                outgoing.found += 1;
                done.released.push(record.id);
                continue;
            }
            match self.publish(&record, &mut outgoing).await? {
                Ok(()) => done.released.push(record.id),
                Err(reason) => {
                    refused.insert(record.aggregate_id);
                    done.refused.push((record.id, reason));
                }
            }
        }
        done.published = i64::try_from(done.released.len())?;
        self.hand_on(outgoing, None, Some(done)).await
    }

    /// What records of this type have in common; None if the catalogue does not have it. A registry that is away, or not set up, is
    /// waited for: that is never a row's fault.
    async fn kind(&mut self, event_type: &str) -> Result<Option<Arc<Kind>>, Halt> {
        if let Some(kind) = self.kinds.get(event_type) {
            return Ok(Some(Arc::clone(kind)));
        }
        let Some((event_type, event)) = self.relay.catalogue.events.get_key_value(event_type) else {
            return Ok(None);
        };
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
        let mut tries = 0_u64;
        loop {
            let error = match self.relay.schema_id(event_type, &event.schema_text, &event.topic).await {
                Ok(schema_id) => {
                    let kind = Arc::new(self.publisher.kind(event_type, &event.topic, schema_id));
                    self.kinds.insert(event_type, Arc::clone(&kind));
                    return Ok(Some(kind));
                }
                Err(error) => error,
            };
            // Said once; then `/readyz` says it, or the metric.
            if tries == 0 {
                tracing::warn!(
                    event_type,
                    why = crate::hint(&error),
                    "no schema id yet: publication waits for the registry"
                );
            }
            tries += 1;
            self.relay.metrics.failures.with_label_values(&["registry"]).inc();
            tokio::select! {
                () = tokio::time::sleep(backoff.next_delay()) => {}
                () = self.stop.abandon.cancelled() => return Err(Halt::Stopped),
            }
        }
    }
}

/// Where the producer puts a key, as Java clients do.
fn partition(key: &[u8], partitions: u32) -> u32 {
    (murmur2::murmur2(key, murmur2::KAFKA_SEED) & 0x7fff_ffff) % partitions.max(1)
}

/// What log and trace tell of an event; None if neither tells anything.
fn told(record: &Record<'_>, topic: &str, logged: bool, traced: Option<SystemTime>) -> Option<Told> {
    let created = record.traceparent.and_then(TraceContext::parse);
    let span = match (traced, created) {
        // A child of the step that made the event, and linked to it. That one's context goes on, in the record's headers.
        (Some(began), Some(context)) => {
            Span::messaging_since(Step::Send, topic, created, &[context], Some(began))
        }
        (None, _) | (_, None) => Span::none(),
    };
    (logged || span.is_recording()).then(|| Told {
        aggregate_id: record.aggregate_id.to_owned(),
        trace: created,
        logged,
        span,
    })
}

fn parking(record: &Record<'_>, reason: Option<String>) -> Parking {
    Parking {
        id: record.id,
        event_id: record.event_id,
        event_type: record.event_type.to_owned(),
        aggregate_id: record.aggregate_id.to_owned(),
        reason,
    }
}
