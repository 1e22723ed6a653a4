//! Group commit: what arrives while one group is being written is written as the next.
//!
//! Nothing is held back to make a group larger: a single item that finds the writer idle is written at once.

use std::{future::Future, sync::Arc, time::Duration};

use chassis::{
    backoff::Backoff,
    postgres::{Disposition, disposition},
    shutdown::Shutdown,
};
use tokio::sync::{Mutex, mpsc, oneshot};

/// Most items of one group.
const GROUP_MAX: usize = 128;
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
    reply: oneshot::Sender<R>,
}

/// The item was not written, and will not be: the reason is in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not written")]
pub struct NotWritten;

impl<T, R> Group<T, R>
where
    T: Clone + Send + 'static,
    R: Send + 'static,
{
    /// Starts `workers` that write groups with `write`, which returns one result per item, in their order.
    ///
    /// A database that is away is waited for, without end: what is here may be an answer that exists nowhere else. A group that the
    /// database refuses is written item by item, so that one cannot spoil the others.
    pub fn start<W, F>(name: &'static str, workers: usize, shutdown: &Shutdown, write: W) -> Self
    where
        W: Fn(Vec<T>) -> F + Send + Sync + 'static,
        F: Future<Output = Result<Vec<R>, sqlx::Error>> + Send,
    {
        let (queue, entries) = mpsc::channel(QUEUE_MAX);
        let (entries, write) = (Arc::new(Mutex::new(entries)), Arc::new(write));
        for _ in 0..workers {
            let (entries, write) = (Arc::clone(&entries), Arc::clone(&write));
            shutdown.spawn(name, async move {
                work(name, &entries, &*write).await;
                Ok(())
            });
        }
        Self { queue }
    }

    /// Writes one item; returns when it is committed.
    pub async fn write(&self, item: T) -> Result<R, NotWritten> {
        let (reply, written) = oneshot::channel();
        self.queue.send(Entry { item, reply }).await.map_err(|_| NotWritten)?;
        written.await.map_err(|_| NotWritten)
    }
}

async fn work<T, R, W, F>(name: &'static str, entries: &Mutex<mpsc::Receiver<Entry<T, R>>>, write: &W)
where
    T: Clone,
    W: Fn(Vec<T>) -> F,
    F: Future<Output = Result<Vec<R>, sqlx::Error>>,
{
    let mut group = Vec::with_capacity(GROUP_MAX);
    while entries.lock().await.recv_many(&mut group, GROUP_MAX).await > 0 {
        let items = |group: &[Entry<T, R>]| group.iter().map(|entry| entry.item.clone()).collect::<Vec<_>>();
        match persist(name, write, items(&group)).await {
            Ok(results) => reply(group.drain(..), results),
            Err(_) if group.len() > 1 => {
                for entry in group.drain(..) {
                    if let Ok(results) = persist(name, write, vec![entry.item.clone()]).await {
                        reply(std::iter::once(entry), results);
                    }
                }
            }
            // Dropping the entry tells its caller.
            Err(_) => group.clear(),
        }
    }
}

fn reply<T, R>(entries: impl Iterator<Item = Entry<T, R>>, results: Vec<R>) {
    for (entry, result) in entries.zip(results) {
        // A caller that has gone does not need it.
        entry.reply.send(result).ok();
    }
}

/// Writes until the database has said yes or no.
async fn persist<T, R, W, F>(name: &'static str, write: &W, items: Vec<T>) -> Result<Vec<R>, sqlx::Error>
where
    T: Clone,
    W: Fn(Vec<T>) -> F,
    F: Future<Output = Result<Vec<R>, sqlx::Error>>,
{
    let mut backoff = Backoff::new(Duration::from_millis(20), Duration::from_secs(2));
    loop {
        match write(items.clone()).await {
            Err(error) if disposition(&error) == Disposition::Wait => {
                let delay = backoff.next_delay();
                tracing::warn!(writer = name, %error, delay_ms = delay.as_millis(), "the database is away; writing again");
                tokio::time::sleep(delay).await;
            }
            Err(error) => {
                tracing::error!(writer = name, %error, items = items.len(), "the database refused to write");
                return Err(error);
            }
            Ok(results) => return Ok(results),
        }
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
        let group = Group::start("test", 2, &Shutdown::new(), move |items: Vec<u32>| {
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
            assert_eq!(result, if item == 13 { Err(NotWritten) } else { Ok(item * 2) });
        }
        assert!(groups.load(Ordering::Relaxed) < 150, "groups of more than one");
    }

    #[tokio::test]
    async fn a_database_that_is_away_is_waited_for() {
        let tries = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&tries);
        let group = Group::start("test", 1, &Shutdown::new(), move |items: Vec<u32>| {
            let away = counted.fetch_add(1, Ordering::Relaxed) < 2;
            async move { if away { Err(sqlx::Error::PoolTimedOut) } else { Ok(items) } }
        });
        assert_eq!(group.write(7).await, Ok(7));
        assert_eq!(tries.load(Ordering::Relaxed), 3);
    }
}
