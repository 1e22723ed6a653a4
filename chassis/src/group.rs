//! Group commit: what arrives while one group is being written is written as the next.
//!
//! Nothing is held back to make a group larger: a single item that finds the writer idle is written at once.

use std::{future::Future, sync::Arc, time::Duration};

use futures::StreamExt as _;
use tokio::sync::{Mutex, mpsc, oneshot};

use crate::{
    backoff::Backoff,
    postgres::{Disposition, disposition},
    shutdown::Shutdown,
};

/// Most items of one group.
const GROUP_MAX: usize = 128;
/// Of a group that is written item by item, so many at once: one that waits for a lock does not keep the others waiting.
const SINGLES_MAX: usize = 4;
/// Most items that wait; beyond that, callers wait for room.
const QUEUE_MAX: usize = 1024;

/// Writes items in groups. Clones share the writer, which ends when the last of them is dropped.
#[derive(Debug)]
pub struct Group<T, R> {
    queue: mpsc::Sender<Entry<T, R>>,
}

impl<T, R> Clone for Group<T, R> {
    fn clone(&self) -> Self {
        Self { queue: self.queue.clone() }
    }
}

#[derive(Debug)]
struct Entry<T, R> {
    item: T,
    reply: oneshot::Sender<Result<R, Arc<sqlx::Error>>>,
}

/// What is done while the database is away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Patience {
    /// It is waited for, without end: what is to be written may be an answer that exists nowhere else.
    Endless,
    /// Whoever wanted to write is told, and may come again.
    None,
}

/// The item was not written, as far as is known.
#[derive(Clone, Debug, thiserror::Error)]
pub enum NotWritten {
    /// The database's reason.
    #[error(transparent)]
    Database(Arc<sqlx::Error>),
    /// The writer has ended.
    #[error("the writer has ended")]
    Ended,
}

impl<T, R> Group<T, R>
where
    T: Clone + Send + 'static,
    R: Send + 'static,
{
    /// Starts `workers` that write groups with `write`, which returns one result per item, in their order.
    ///
    /// A group that the database refuses, or that has to wait for somebody else's lock for too long, is written item by item, so that one
    /// cannot spoil the others.
    pub fn start<W, F>(
        name: &'static str,
        workers: usize,
        patience: Patience,
        shutdown: &Shutdown,
        write: W,
    ) -> Self
    where
        W: Fn(Vec<T>) -> F + Send + Sync + 'static,
        F: Future<Output = Result<Vec<R>, sqlx::Error>> + Send,
    {
        let (queue, entries) = mpsc::channel(QUEUE_MAX);
        let (entries, write) = (Arc::new(Mutex::new(entries)), Arc::new(write));
        for _ in 0..workers {
            let (entries, write) = (Arc::clone(&entries), Arc::clone(&write));
            shutdown.spawn(name, async move {
                let writer = Writer { name, patience, write: &*write };
                writer.work(&entries).await;
                Ok(())
            });
        }
        Self { queue }
    }

    /// Writes one item; returns when it is committed. Dropping the caller does not take the item back.
    pub async fn write(&self, item: T) -> Result<R, NotWritten> {
        let (reply, written) = oneshot::channel();
        self.queue.send(Entry { item, reply }).await.map_err(|_| NotWritten::Ended)?;
        written.await.map_err(|_| NotWritten::Ended)?.map_err(NotWritten::Database)
    }
}

struct Writer<'a, W> {
    name: &'static str,
    patience: Patience,
    write: &'a W,
}

impl<W> Writer<'_, W> {
    async fn work<T, R, F>(&self, entries: &Mutex<mpsc::Receiver<Entry<T, R>>>)
    where
        T: Clone,
        W: Fn(Vec<T>) -> F,
        F: Future<Output = Result<Vec<R>, sqlx::Error>>,
    {
        let mut group = Vec::with_capacity(GROUP_MAX);
        while entries.lock().await.recv_many(&mut group, GROUP_MAX).await > 0 {
            let items = group.iter().map(|entry| entry.item.clone()).collect();
            match self.persist(items).await {
                Ok(results) => reply(group.drain(..), results.into_iter().map(Ok)),
                Err(error) if group.len() > 1 && may_be_of_one(&error) => {
                    let singles = futures::stream::iter(group.drain(..));
                    let write = async |entry: Entry<T, R>| {
                        let result = self.persist(vec![entry.item.clone()]).await.map_err(Arc::new);
                        let result = result.map(|results| results.into_iter().next());
                        reply(std::iter::once(entry), result.transpose());
                    };
                    singles.for_each_concurrent(SINGLES_MAX, write).await;
                }
                Err(error) => {
                    let error = Arc::new(error);
                    reply(group.drain(..), std::iter::repeat_with(|| Err(Arc::clone(&error))));
                }
            }
        }
    }

    /// Writes until the database has said yes or no, if there is patience.
    async fn persist<T, R, F>(&self, items: Vec<T>) -> Result<Vec<R>, sqlx::Error>
    where
        T: Clone,
        W: Fn(Vec<T>) -> F,
        F: Future<Output = Result<Vec<R>, sqlx::Error>>,
    {
        let writer = self.name;
        let mut backoff = Backoff::new(Duration::from_millis(20), Duration::from_secs(2));
        let mut told = false;
        loop {
            match (self.write)(items.clone()).await {
                Err(error) if disposition(&error) == Disposition::Wait => {
                    if self.patience == Patience::None {
                        return Err(error);
                    }
                    // Said when it begins, and not each time.
                    if !std::mem::replace(&mut told, true) {
                        tracing::warn!(writer, %error, "the database is away; writing again until it is there");
                    }
                    tokio::time::sleep(backoff.next_delay()).await;
                }
                Err(error) => {
                    tracing::error!(writer, %error, items = items.len(), "the database refused to write");
                    return Err(error);
                }
                Ok(results) => return Ok(results),
            }
        }
    }
}

/// Whether a single item may have been the reason. A database that is away is away for all.
fn may_be_of_one(error: &sqlx::Error) -> bool {
    let waited_for_a_lock =
        error.as_database_error().is_some_and(|error| error.code().as_deref() == Some("55P03"));
    waited_for_a_lock || disposition(error) != Disposition::Wait
}

fn reply<T, R>(
    entries: impl Iterator<Item = Entry<T, R>>,
    results: impl IntoIterator<Item = Result<R, Arc<sqlx::Error>>>,
) {
    for (entry, result) in entries.zip(results) {
        // A caller that has gone does not need it.
        entry.reply.send(result).ok();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    fn refused(item: u32) -> Result<Vec<u32>, sqlx::Error> {
        Err(sqlx::Error::InvalidArgument(item.to_string()))
    }

    #[tokio::test]
    async fn each_caller_gets_its_own_result_and_a_refused_item_spoils_no_other() {
        let groups = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&groups);
        let group = Group::start("test", 2, Patience::Endless, &Shutdown::new(), move |items: Vec<u32>| {
            counted.fetch_add(1, Ordering::Relaxed);
            async move {
                tokio::time::sleep(Duration::from_millis(5)).await;
                if items.contains(&13) {
                    refused(13)
                } else {
                    Ok(items.iter().map(|item| item * 2).collect())
                }
            }
        });
        let all = futures::future::join_all((0..100).map(|item| group.write(item))).await;
        for (item, result) in (0..100).zip(all) {
            assert_eq!(result.ok(), (item != 13).then_some(item * 2));
        }
        assert!(groups.load(Ordering::Relaxed) < 150, "groups of more than one");
    }

    #[tokio::test]
    async fn a_database_that_is_away_is_waited_for() {
        let tries = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&tries);
        let group = Group::start("test", 1, Patience::Endless, &Shutdown::new(), move |items: Vec<u32>| {
            let away = counted.fetch_add(1, Ordering::Relaxed) < 2;
            async move { if away { Err(sqlx::Error::PoolTimedOut) } else { Ok(items) } }
        });
        assert_eq!(group.write(7).await.unwrap(), 7);
        assert_eq!(tries.load(Ordering::Relaxed), 3);
    }

    #[tokio::test]
    async fn without_patience_everybody_is_told_at_once() {
        let tries = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&tries);
        let group = Group::start("test", 1, Patience::None, &Shutdown::new(), move |_: Vec<u32>| {
            counted.fetch_add(1, Ordering::Relaxed);
            async move { Err::<Vec<u32>, _>(sqlx::Error::PoolTimedOut) }
        });
        let all = futures::future::join_all((0..10).map(|item| group.write(item))).await;
        assert!(all.iter().all(|result| matches!(result, Err(NotWritten::Database(_)))), "{all:?}");
        assert!(
            tries.load(Ordering::Relaxed) <= 2,
            "one by one, a database that is away would be asked ten times"
        );
    }
}
