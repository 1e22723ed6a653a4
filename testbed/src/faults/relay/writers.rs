//! Writers that go on through all episodes, and are held between two of them.
//!
//! They know what they have committed: an answer to a COMMIT that is missing is put down as a doubt, which the table settles when
//! the server is back.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use sqlx::{Connection, PgConnection};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::books::Books;
use crate::load::Random;
use crate::workload;

/// Of each writer between two transactions, on average half of it: some hundred events a second from all of them.
const PAUSE_MS: usize = 50;
const RECONNECT_AFTER: Duration = Duration::from_millis(50);
/// For the longest transaction, and a server that is just starting.
const HOLD_LIMIT: Duration = Duration::from_secs(20);

/// All writers.
#[derive(Debug)]
pub(super) struct Writers {
    open: watch::Sender<bool>,
    /// How many stand still.
    held: watch::Sender<usize>,
    count: usize,
    tasks: JoinSet<()>,
    stop: DropGuard,
}

/// One of them.
struct Writer {
    number: usize,
    url: String,
    books: Arc<Mutex<Books>>,
    open: watch::Receiver<bool>,
    held: watch::Sender<usize>,
    random: Random,
}

impl Writers {
    /// Starts them; they are held.
    pub(super) fn start(url: &str, count: usize, seed: u64, books: &Arc<Mutex<Books>>) -> Writers {
        let (open, held) = (watch::Sender::new(false), watch::Sender::new(0));
        let stop = CancellationToken::new();
        let mut tasks = JoinSet::new();
        for number in 0..count {
            let writer = Writer {
                number,
                url: url.to_owned(),
                books: Arc::clone(books),
                open: open.subscribe(),
                held: held.clone(),
                random: Random::new(seed, usize::MAX / 2 + number),
            };
            let stopped = stop.clone();
            tasks.spawn(async move {
                tokio::select! {
                    () = writer.write() => {}
                    () = stopped.cancelled() => {}
                }
            });
        }
        Writers { open, held, count, tasks, stop: stop.drop_guard() }
    }

    /// Lets them write.
    pub(super) fn go(&self) {
        self.open.send_replace(true);
    }

    /// Asks them to begin no further transaction.
    pub(super) fn ask_to_hold(&self) {
        self.open.send_replace(false);
    }

    /// Asks them, and waits until none has a transaction open.
    pub(super) async fn hold(&self) -> Result<()> {
        self.ask_to_hold();
        let mut held = self.held.subscribe();
        let all = held.wait_for(|held| *held == self.count);
        tokio::time::timeout(HOLD_LIMIT, all).await.context("a writer does not come to rest")??;
        Ok(())
    }

    /// Ends them.
    pub(super) async fn end(self) {
        drop(self.stop);
        self.tasks.join_all().await;
    }
}

impl Writer {
    async fn write(mut self) {
        let mut connection = None;
        loop {
            if !*self.open.borrow() {
                self.held.send_modify(|held| *held += 1);
                let opened = self.open.wait_for(|open| *open).await.is_ok();
                self.held.send_modify(|held| *held -= 1);
                if !opened {
                    return;
                }
            }
            if connection.is_none() {
                connection = PgConnection::connect(&self.url).await.ok();
            }
            let Some(open) = &mut connection else {
                tokio::time::sleep(RECONNECT_AFTER).await;
                continue;
            };
            if self.one_transaction(open).await.is_err() {
                connection = None;
            }
            tokio::time::sleep(self.random.milliseconds(PAUSE_MS)).await;
        }
    }

    async fn one_transaction(&mut self, connection: &mut PgConnection) -> Result<(), sqlx::Error> {
        let begun_at = Instant::now();
        let outcome = workload::transaction(connection, self.number, &mut self.random).await;
        let mut books = self.books.lock().unwrap_or_else(PoisonError::into_inner);
        match outcome {
            Ok(steps) => {
                books.committed(steps, begun_at);
                Ok(())
            }
            Err(interrupted) => {
                books.in_doubt(interrupted.in_doubt, begun_at);
                Err(interrupted.error)
            }
        }
    }
}
