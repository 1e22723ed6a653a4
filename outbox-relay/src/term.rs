//! One term of leadership: read, dispatch, save, each a task of its own, so that reading and encoding go on while the brokers
//! acknowledge.
//!
//! A term has one session after the other. A session ends when the brokers refuse a record: the next one throws the producer away,
//! reads the tail and goes on from the saved cursor, under the same lock. If the database fails, the term ends.

use std::{collections::HashMap, sync::Arc, time::Duration};

use chassis::{backoff::Backoff, shutdown::Shutdown};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::{
    Relay,
    dispatch::Dispatcher,
    leadership::LeaderLock,
    orders, publish, read,
    save::Batches,
    store,
    takeover::{self, CaughtUp, Fenced, Halted},
};

/// Pages that are read ahead of the producer.
const PAGES_AHEAD: usize = 2;
/// Batches that wait for their acknowledgement.
const BATCHES_IN_FLIGHT: usize = 64;
/// How long the end of a term waits for records in flight. Below the grace period of the process.
const DRAIN_MAX: Duration = Duration::from_secs(7);

/// Why a term ended that nobody asked to end.
pub(crate) struct TermEnded {
    /// One of [`crate::metrics::FAILURE_REASONS`].
    pub(crate) reason: &'static str,
    pub(crate) error: anyhow::Error,
    /// Events published in this term.
    pub(crate) published: u64,
}

/// Two ways to stop. `finish`: no more reading, but what was read is published and saved. `abandon`: now.
#[derive(Clone)]
pub(crate) struct Stop {
    pub(crate) finish: CancellationToken,
    pub(crate) abandon: CancellationToken,
}

/// Leads until shutdown, or until something fails that a new session would not mend. Returns the number of events published.
pub(crate) async fn lead(
    relay: &Arc<Relay>,
    lock: &LeaderLock,
    shutdown: &Shutdown,
) -> Result<u64, TermEnded> {
    let mut published = 0;
    let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(5));
    loop {
        let stop = Stop { finish: CancellationToken::new(), abandon: CancellationToken::new() };
        let watch = tokio::spawn(watch(shutdown.clone(), lock.lost.clone(), stop.clone()));
        let ended = session(relay, lock, &stop).await;
        stop.finish.cancel();
        stop.abandon.cancel();
        let watched = watch.await.map_err(anyhow::Error::from).and_then(|result| result);
        if let Err(error) = watched {
            let published = published + ended.unwrap_or_else(|ended| ended.published);
            return Err(TermEnded { reason: "leadership", error, published });
        }
        match ended {
            Ok(count) => return Ok(published + count),
            Err(ended) if ended.reason == "kafka" && !shutdown.requested() => {
                published += ended.published;
                if ended.published > 0 {
                    backoff.reset();
                }
                relay.metrics.failures.with_label_values(&[ended.reason]).inc();
                let (error, delay) = (format!("{:#}", ended.error), backoff.next_delay());
                tracing::warn!(
                    relay = relay.config.name,
                    error,
                    ?delay,
                    "publication begins anew behind the saved cursor"
                );
                tokio::select! {
                    _ = shutdown.sleep(delay) => {}
                    () = lock.lost.cancelled() => {}
                }
            }
            Err(ended) => return Err(TermEnded { published: published + ended.published, ..ended }),
        }
    }
}

/// From a takeover until something ends it.
async fn session(relay: &Arc<Relay>, lock: &LeaderLock, stop: &Stop) -> Result<u64, TermEnded> {
    let failed = |error: anyhow::Error| TermEnded { reason: blame(&error, "database"), error, published: 0 };
    let (mut fenced, reader) = takeover::fence(relay, lock).await.map_err(failed)?;
    let (pages_in, pages) = mpsc::channel(PAGES_AHEAD);
    // The first pages are read while the brokers are asked.
    let reading = read::read(Arc::clone(relay), reader, fenced.cursor.clone(), pages_in, stop.clone());
    let reading = tokio::spawn(reading);
    let reading = async { reading.await.map_err(anyhow::Error::from).and_then(|result| result) };
    let caught_up = match takeover::catch_up(relay, lock, stop, &mut fenced).await {
        Ok(Some(caught_up)) => caught_up,
        ended => {
            stop.abandon.cancel();
            reading.await.and_then(|()| ended.map(drop)).map_err(failed)?;
            return Ok(0);
        }
    };
    let (Fenced { attendant, mut saver, cursor, held, .. }, CaughtUp { publisher, found }) =
        (fenced, caught_up);
    let (orders_in, orders) = mpsc::channel(1);
    let (batches_in, batches) = mpsc::channel(BATCHES_IN_FLIGHT);
    let attending = tokio::spawn(orders::attend(Arc::clone(relay), attendant, orders_in, stop.clone()));
    let dispatcher = Dispatcher {
        relay: Arc::clone(relay),
        publisher,
        proof: lock.proof(),
        batches: batches_in,
        stop: stop.clone(),
        found,
        held,
        cursor,
        saved: saver.saved(),
        handed_on: 0,
        kinds: HashMap::new(),
        framed: Vec::new(),
    };
    let dispatching = tokio::spawn(dispatcher.run(pages, orders));
    let saved = saver.save_all(Batches::new(batches), stop).await;
    // The saver ends when there is nothing more to save, or at an error: either way the others have nothing left to do.
    stop.finish.cancel();
    if saved.is_err() {
        stop.abandon.cancel();
    }
    let read = reading.await;
    let dispatched = dispatching.await.map_err(anyhow::Error::from);
    let attended = attending.await.map_err(anyhow::Error::from).and_then(|result| result);
    let dispatched = match dispatched {
        Ok((publisher, result)) => {
            publisher.discard().await;
            result
        }
        Err(panic) => Err(panic),
    };
    // In the order in which one failure causes the next.
    for (reason, result) in
        [("database", read), ("database", attended), ("kafka", saved), ("kafka", dispatched)]
    {
        if let Err(error) = result {
            return Err(TermEnded { reason: blame(&error, reason), error, published: saver.published });
        }
    }
    Ok(saver.published)
}

/// What an error says for itself, or what the stage says.
fn blame(error: &anyhow::Error, stage: &'static str) -> &'static str {
    if error.is::<store::SaveError>() || error.is::<sqlx::Error>() {
        "database"
    } else if error.is::<publish::DeliveryFailed>() {
        "kafka"
    } else if error.is::<Halted>() {
        "halted"
    } else {
        stage
    }
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
