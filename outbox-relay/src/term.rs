//! One term of leadership: read, publish, save, each a task of its own, so that reading and encoding go on while the brokers
//! acknowledge.
//!
//! The three connections of a term (lock, read, save) are opened before its first snapshot is taken and never replaced: if the
//! server crashes, all of them break, the term ends, and with it every snapshot that the crash has made meaningless. The next term
//! begins at the saved cursor.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use chassis::{backoff::Backoff, postgres, shutdown::Shutdown};
use schema::{
    registry::RegistryError,
    wire::{begin_frame, value_subject},
};
use sqlx::PgConnection;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::{
    Relay,
    leadership::LeaderLock,
    publish::{Batch, Entry, Publisher},
    store::{self, OutboxRow, PartitionOffsets, Progress, SaveError, ServerIdentity},
    window::Cursor,
};

/// Pages that are read ahead of the producer.
const PAGES_AHEAD: usize = 2;
/// Batches that wait for their acknowledgement.
const BATCHES_IN_FLIGHT: usize = 64;
/// Largest value of a record: what brokers and the client take by default (1 MB), less room for key and headers.
const RECORD_MAX_BYTES: usize = 980_000;
/// After the last event the outbox is polled fast for so long.
const BUSY_FOR: Duration = Duration::from_secs(1);
/// How long the end of a term waits for records in flight. Below the grace period of the process.
const DRAIN_MAX: Duration = Duration::from_secs(7);
/// A batch of at most so many events is written to the log event by event at INFO, a larger one at DEBUG.
const LOGGED_ONE_BY_ONE_MAX: usize = 200;

/// Why a term ended that nobody asked to end.
pub(crate) struct TermEnded {
    /// One of [`crate::metrics::FAILURE_REASONS`].
    pub(crate) reason: &'static str,
    pub(crate) error: anyhow::Error,
    /// Events published in this term.
    pub(crate) published: u64,
}

/// Rows, and the place after them.
struct Page {
    rows: Vec<OutboxRow>,
    cursor: Cursor,
}

/// Two ways to stop. `finish`: no more reading, but what was read is published and saved. `abandon`: now.
#[derive(Clone)]
struct Stop {
    finish: CancellationToken,
    abandon: CancellationToken,
}

/// Leads until shutdown, or until something fails. Returns the number of events published.
pub(crate) async fn lead(
    relay: &Arc<Relay>,
    lock: &LeaderLock,
    shutdown: &Shutdown,
) -> Result<u64, TermEnded> {
    crate::failpoint("R1");
    let failed = |reason| move |error| TermEnded { reason, error, published: 0 };
    // A last save of the leader before, still running when its lock went, can take the number first. That is no fence: the type of
    // the error is dropped here, and the next term reads the cursor again.
    let taken_over = take_over(relay, lock).await.map_err(|error| anyhow::anyhow!("{error:#}"));
    let (reader, mut saver, cursor) = taken_over.map_err(failed("database"))?;
    let config = &relay.config;
    let publisher =
        Publisher::new(&config.kafka, config.in_flight_max_kib, &config.source).map_err(failed("kafka"))?;
    let stop = Stop { finish: CancellationToken::new(), abandon: CancellationToken::new() };
    let (pages_in, pages) = mpsc::channel(PAGES_AHEAD);
    let (batches_in, batches) = mpsc::channel(BATCHES_IN_FLIGHT);
    let reading = tokio::spawn(read(Arc::clone(relay), reader, cursor, pages_in, stop.clone()));
    let proof = lock.proof();
    let publishing = {
        let (relay, stop) = (Arc::clone(relay), stop.clone());
        tokio::spawn(async move {
            let result = publish(&relay, &publisher, &proof, pages, batches_in, &stop).await;
            // Whatever ended it, batches that were sent are still acknowledged and saved: dropping their channel says that these
            // were the last.
            (publisher, result)
        })
    };
    let watch = tokio::spawn(watch(shutdown.clone(), lock.lost.clone(), stop.clone()));
    let saved = saver.save_all(Batches { queue: batches, head: None }, &stop).await;
    // The saver ends when there is nothing more to save, or at an error: either way the others have nothing left to do.
    stop.finish.cancel();
    if saved.is_err() {
        stop.abandon.cancel();
    }
    let read = reading.await.map_err(anyhow::Error::from).and_then(|result| result);
    let published = publishing.await.map_err(anyhow::Error::from);
    stop.abandon.cancel();
    let watched = watch.await.map_err(anyhow::Error::from).and_then(|result| result);
    let published = match published {
        Ok((publisher, result)) => {
            publisher.discard().await;
            result
        }
        Err(panic) => Err(panic),
    };
    // In the order in which one failure causes the next.
    for (reason, result) in
        [("leadership", watched), ("database", read), ("kafka", saved), ("unpublishable", published)]
    {
        if let Err(error) = result {
            let reason =
                if error.is::<store::SaveError>() || error.is::<sqlx::Error>() { "database" } else { reason };
            return Err(TermEnded { reason, error, published: saver.published });
        }
    }
    Ok(saver.published)
}

/// Opens the connections of the term, and saves the cursor under this leader's token: from here on every save of the leader before
/// is refused.
async fn take_over(relay: &Arc<Relay>, lock: &LeaderLock) -> anyhow::Result<(PgConnection, Saver, Cursor)> {
    let url = &relay.config.postgres.database_url;
    let mut reader = postgres::connect(url, "outbox-relay read").await?;
    store::prepare_for_tailing(&mut reader).await?;
    let mut connection = postgres::connect(url, "outbox-relay save").await?;
    store::require_durable_commits(&mut connection).await?;
    let server = store::server_identity(&mut connection).await?;
    ensure!(!server.in_recovery, "the server is a standby (in recovery)");
    if let Some(saved_on) = store::saved_on(&mut connection, &relay.config.name).await? {
        ensure_same_server(&saved_on, &server)?;
    }
    let (seq, cursor) = store::load_cursor(&mut connection, &relay.config.name)
        .await?
        .unwrap_or_else(|| (0, Cursor::start()));
    let mut saver = Saver {
        relay: Arc::clone(relay),
        connection,
        leader_token: lock.token,
        server,
        seq,
        offsets: PartitionOffsets::new(),
        published: 0,
        saved_at: None,
    };
    lock.proof().ensure_proven()?;
    saver.save(&Progress { cursor: cursor.clone(), count: 0, first_id: None, last_id: None }).await?;
    Ok((reader, saver, cursor))
}

/// The cursor's snapshots mean nothing on another server: its transaction ids may be behind them, and rows would be skipped.
fn ensure_same_server(saved_on: &ServerIdentity, server: &ServerIdentity) -> anyhow::Result<()> {
    ensure!(
        (saved_on.system_identifier, saved_on.database_oid)
            == (server.system_identifier, server.database_oid),
        "progress was saved on another server or database (system identifier {}, oid {}; here {}, {}): this outbox was restored or \
         copied, and publishing from its cursor would skip events",
        saved_on.system_identifier,
        saved_on.database_oid,
        server.system_identifier,
        server.database_oid,
    );
    if saved_on.timeline != server.timeline {
        tracing::warn!(
            before = saved_on.timeline,
            now = server.timeline,
            "the server was promoted since progress was saved: events that were not replicated may be on the topic without a row"
        );
    }
    Ok(())
}

/// Turns shutdown into `finish`, and a lost lock, or a drain that takes too long, into `abandon`.
async fn watch(shutdown: Shutdown, lost: CancellationToken, stop: Stop) -> anyhow::Result<()> {
    tokio::select! {
        () = shutdown.wait() => stop.finish.cancel(),
        () = stop.finish.cancelled() => {}
        () = stop.abandon.cancelled() => return Ok(()),
        () = lost.cancelled() => {
            crate::failpoint("R8");
            stop.abandon.cancel();
            anyhow::bail!("the leader lock is lost");
        }
    }
    tokio::select! {
        () = tokio::time::sleep(DRAIN_MAX) => {
            stop.abandon.cancel();
            anyhow::bail!("records were still not acknowledged {} s after the request to stop; nothing is lost", DRAIN_MAX.as_secs())
        }
        () = stop.abandon.cancelled() => Ok(()),
        () = lost.cancelled() => {
            stop.abandon.cancel();
            anyhow::bail!("the leader lock is lost")
        }
    }
}

// ------------------------------------------------------------------------------------------------------------------ read

/// Reads windows page by page. Between two statements no transaction is open, whatever the other stages wait for.
async fn read(
    relay: Arc<Relay>,
    mut connection: PgConnection,
    mut cursor: Cursor,
    pages: mpsc::Sender<Page>,
    stop: Stop,
) -> anyhow::Result<()> {
    let mut last_event = Instant::now();
    let reading = async {
        while !stop.finish.is_cancelled() {
            if cursor.window_done() {
                let opened = store::open_window(&mut connection, &cursor.to)
                    .await
                    .context("a window could not be opened")?;
                cursor = cursor.open_next(opened.to, opened.floor);
                if opened.floor.is_none() && !opened.late {
                    cursor.after = None;
                    let busy = last_event.elapsed() < BUSY_FOR;
                    tokio::time::sleep(if busy { relay.config.poll_busy } else { relay.config.poll_idle })
                        .await;
                    continue;
                }
            }
            let limit = relay.config.page_rows;
            let rows =
                store::page(&mut connection, &cursor, limit).await.context("a page could not be read")?;
            cursor = cursor.after_page(rows.len(), rows.last().map(|row| row.id), usize::try_from(limit)?);
            if rows.is_empty() {
                continue;
            }
            crate::failpoint("R2");
            last_event = Instant::now();
            if pages.send(Page { rows, cursor: cursor.clone() }).await.is_err() {
                break;
            }
        }
        Ok(())
    };
    let result = tokio::select! {
        result = reading => result,
        () = stop.abandon.cancelled() => Ok(()),
    };
    if result.is_err() {
        stop.abandon.cancel();
    }
    result
}

// --------------------------------------------------------------------------------------------------------------- publish

/// Encodes pages and hands them to the producer; a full queue is back-pressure.
async fn publish(
    relay: &Arc<Relay>,
    publisher: &Publisher,
    proof: &crate::leadership::ProofOfLock,
    mut pages: mpsc::Receiver<Page>,
    batches: mpsc::Sender<Arc<Batch>>,
    stop: &Stop,
) -> anyhow::Result<()> {
    let mut encoded = Encoded::default();
    while let Some(mut page) = pages.recv().await {
        let Some(schema_ids) = schema_ids(relay, &page.rows, stop).await else { return Ok(()) };
        let misfit = encoded.fill(relay, &mut page.rows, &schema_ids).err();
        // Rows before one that cannot be published are not its victims: they go out, and are saved, before the term ends.
        page.rows.truncate(encoded.ends.len());
        if misfit.is_some() {
            page.cursor.after = page.rows.last().map(|row| row.id);
        }
        if !page.rows.is_empty() {
            let entries = page.rows.iter().map(|row| entry(relay, row)).collect::<anyhow::Result<_>>()?;
            let batch = Arc::new(Batch::new(page.cursor, entries));
            for (place, row) in page.rows.iter().enumerate() {
                while !publisher.send(&batch, place, row, encoded.record(place), proof)? {
                    if stop.abandon.is_cancelled() {
                        return Ok(());
                    }
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            }
            crate::failpoint("R3");
            if batches.send(batch).await.is_err() {
                return Ok(());
            }
        }
        if let Some(misfit) = misfit {
            return Err(misfit);
        }
    }
    Ok(())
}

/// The records of one page, one after the other.
#[derive(Default)]
struct Encoded {
    bytes: Vec<u8>,
    ends: Vec<usize>,
}

impl Encoded {
    /// Encodes the rows up to the first that does not fit, whose error is returned.
    fn fill(&mut self, relay: &Relay, rows: &mut [OutboxRow], schema_ids: &[u32]) -> anyhow::Result<()> {
        self.bytes.clear();
        self.ends.clear();
        for (row, schema_id) in rows.iter_mut().zip(schema_ids) {
            let start = self.bytes.len();
            begin_frame(*schema_id, &mut self.bytes);
            let payload = std::mem::take(&mut row.payload);
            relay.encoder.encode(&row.event_type, payload, &mut self.bytes).with_context(|| {
                format!(
                    "outbox row {} (event {}, {}) cannot be published",
                    row.id, row.event_id, row.event_type
                )
            })?;
            let size = self.bytes.len() - start;
            ensure!(
                size <= RECORD_MAX_BYTES,
                "outbox row {} (event {}, {}) cannot be published: {size} bytes are more than {RECORD_MAX_BYTES}",
                row.id,
                row.event_id,
                row.event_type
            );
            self.ends.push(self.bytes.len());
        }
        Ok(())
    }

    fn record(&self, place: usize) -> &[u8] {
        let start = if place == 0 { 0 } else { self.ends[place - 1] };
        &self.bytes[start..self.ends[place]]
    }
}

fn entry(relay: &Relay, row: &OutboxRow) -> anyhow::Result<Entry> {
    let event = relay.catalogue.events.get(&row.event_type).with_context(|| {
        format!(
            "outbox row {} (event {}): event type {:?} is not in the catalogue",
            row.id, row.event_id, row.event_type
        )
    })?;
    Ok(Entry {
        id: row.id,
        event_id: row.event_id,
        aggregate_id: row.aggregate_id.clone(),
        traceparent: row.traceparent.clone(),
        created_at: row.created_at,
        topic: &event.topic,
    })
}

/// The schema id of each row. A registry that is away, or not set up, is waited for: that is never a row's fault. None if the term
/// was abandoned meanwhile.
async fn schema_ids(relay: &Relay, rows: &[OutboxRow], stop: &Stop) -> Option<Vec<u32>> {
    let mut known = relay.schema_ids.lock().await;
    let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
    for row in rows {
        let Some((event_type, event)) = relay.catalogue.events.get_key_value(&row.event_type) else {
            continue;
        };
        while !known.contains_key(event_type.as_str()) {
            let subject = value_subject(&event.topic);
            match relay.registry.id_of(&subject, &event.schema_text).await {
                Ok(id) => {
                    known.insert(event_type, id);
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
                    tokio::select! {
                        () = tokio::time::sleep(backoff.next_delay()) => {}
                        () = stop.abandon.cancelled() => return None,
                    }
                }
            }
        }
    }
    // A type without an id is not in the catalogue: `entry` says so.
    Some(rows.iter().map(|row| known.get(row.event_type.as_str()).copied().unwrap_or_default()).collect())
}

// ------------------------------------------------------------------------------------------------------------------ save

/// Saves progress, at most once per save interval, and only past batches of which every record is acknowledged.
struct Saver {
    relay: Arc<Relay>,
    connection: PgConnection,
    leader_token: uuid::Uuid,
    server: ServerIdentity,
    seq: i64,
    offsets: PartitionOffsets,
    published: u64,
    saved_at: Option<Instant>,
}

async fn reply_awaited() -> std::convert::Infallible {
    crate::failpoint("R6");
    std::future::pending().await
}

/// Batches in the order of the outbox; the head has left the queue and waits for its acknowledgement.
struct Batches {
    queue: mpsc::Receiver<Arc<Batch>>,
    head: Option<Arc<Batch>>,
}

/// Progress with one more batch.
fn after(before: Option<Progress>, batch: &Batch) -> anyhow::Result<Progress> {
    let (first_id, last_id) =
        (batch.entries.first().map(|entry| entry.id), batch.entries.last().map(|entry| entry.id));
    let count = i32::try_from(batch.entries.len())?;
    let cursor = batch.cursor.clone();
    Ok(match before {
        None => Progress { cursor, count, first_id, last_id },
        Some(before) => Progress {
            cursor,
            count: before.count.saturating_add(count),
            // Late rows of a later window can have lower ids.
            first_id: before.first_id.min(first_id),
            last_id: before.last_id.max(last_id),
        },
    })
}

impl Saver {
    async fn save_all(&mut self, mut batches: Batches, stop: &Stop) -> anyhow::Result<()> {
        let abandon = stop.abandon.clone();
        tokio::select! {
            result = async {
                let mut unsaved = None;
                loop {
                    // With nothing to save there is nothing to hurry for; with something, more may join it until the save is due.
                    let next = tokio::select! {
                        next = Self::next_delivered(&mut batches) => next?,
                        () = tokio::time::sleep(self.until_due()), if unsaved.is_some() => {
                            self.save_taken(&mut unsaved).await?;
                            continue;
                        }
                    };
                    let Some(batch) = next else { break };
                    if stop.finish.is_cancelled() {
                        crate::failpoint("R7");
                    }
                    self.acknowledged(&batch);
                    unsaved = Some(after(unsaved.take(), &batch)?);
                    if self.until_due().is_zero() {
                        self.save_taken(&mut unsaved).await?;
                    }
                }
                self.save_taken(&mut unsaved).await
            } => result,
            () = abandon.cancelled() => Ok(()),
        }
    }

    /// The next batch, in order, once all of it is delivered. Cancel-safe: an undelivered batch stays in the queue.
    async fn next_delivered(batches: &mut Batches) -> anyhow::Result<Option<Arc<Batch>>> {
        if batches.head.is_none() {
            batches.head = batches.queue.recv().await;
        }
        if let Some(batch) = &batches.head {
            batch.delivered().await?;
        }
        Ok(batches.head.take())
    }

    fn until_due(&self) -> Duration {
        self.saved_at
            .map_or(Duration::ZERO, |at| self.relay.config.save_interval.saturating_sub(at.elapsed()))
    }

    async fn save_taken(&mut self, unsaved: &mut Option<Progress>) -> anyhow::Result<()> {
        match unsaved.take() {
            Some(progress) => {
                crate::failpoint("R5");
                self.save(&progress).await
            }
            None => Ok(()),
        }
    }

    async fn save(&mut self, progress: &Progress) -> anyhow::Result<()> {
        let next = self.seq + 1;
        let name = &self.relay.config.name;
        let save = store::save(
            &mut self.connection,
            name,
            next,
            self.leader_token,
            progress,
            &self.offsets,
            &self.server,
        );
        // In this order: the second is looked at when the first has sent its statement and waits.
        let saved = tokio::select! {
            biased;
            saved = save => saved,
            never = reply_awaited() => match never {},
        };
        if matches!(saved, Err(SaveError::Fenced(_))) {
            crate::failpoint("R8");
        }
        saved?;
        self.seq = next;
        self.saved_at = Some(Instant::now());
        self.relay.metrics.saves.inc();
        Ok(())
    }

    /// Notes where the records of a delivered batch lie, for the cursor, the metrics and the log.
    fn acknowledged(&mut self, batch: &Batch) {
        let positions = batch.positions();
        let one_by_one = batch.entries.len() <= LOGGED_ONE_BY_ONE_MAX;
        let now = time::OffsetDateTime::now_utc();
        for (place, entry) in batch.entries.iter().enumerate() {
            let Some(&(partition, offset)) = positions.get(&place) else { continue };
            let next = self.offsets.entry(entry.topic.to_owned()).or_default().entry(partition).or_default();
            *next = (*next).max(offset + 1);
            self.relay.metrics.publish_duration.observe((now - entry.created_at).as_seconds_f64().max(0.0));
            let trace_id = entry
                .traceparent
                .as_deref()
                .and_then(chassis::telemetry::TraceContext::parse)
                .map(|trace| trace.trace_id());
            let (trace_id, topic) = (trace_id.as_deref(), entry.topic);
            let (event_id, aggregate_id, outbox_id) = (entry.event_id, &entry.aggregate_id, entry.id);
            if one_by_one {
                tracing::info!(trace_id, %event_id, aggregate_id, outbox_id, topic, partition, offset, "event published");
            } else {
                tracing::debug!(trace_id, %event_id, aggregate_id, outbox_id, topic, partition, offset, "event published");
            }
        }
        let mut by_topic = std::collections::BTreeMap::<&str, u64>::new();
        for entry in &batch.entries {
            *by_topic.entry(entry.topic).or_default() += 1;
        }
        for (topic, count) in by_topic {
            self.relay.metrics.published.with_label_values(&[topic]).inc_by(count);
        }
        self.relay
            .metrics
            .batch_size
            .observe(f64::from(u32::try_from(batch.entries.len()).unwrap_or(u32::MAX)));
        self.published += u64::try_from(batch.entries.len()).unwrap_or(u64::MAX);
        if !one_by_one {
            let (events, last_id) = (batch.entries.len(), batch.entries.last().map(|entry| entry.id));
            tracing::info!(events, last_id, "batch published");
        }
    }
}
