//! What the onlooker sees while it runs, and the wait for the end.

use std::cell::RefCell;
use std::io::{IsTerminal, Write, stderr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Result, ensure};
use tokio::time::Instant;

use super::Demo;
use super::kills::Kill;
use crate::load::Progress;
use crate::store::{Counts, Databases, Remaining};

const LOOK_EVERY: Duration = Duration::from_millis(100);
const LOOK_OFTEN_EVERY: Duration = Duration::from_millis(10);
/// For one payment that goes ahead.
const AHEAD_LIMIT: Duration = Duration::from_millis(500);
/// For the first payments to settle.
const TURNING_LIMIT: Duration = Duration::from_mins(1);
/// Without any change for so long, what is left will not settle any more: the oracle shall say what it is.
const STALLED_AFTER: Duration = Duration::from_secs(90);

/// A run that is being watched.
pub(super) struct Scene<'a> {
    demo: &'a Demo,
    databases: &'a Databases,
    progress: &'a Arc<Progress>,
    begun: Instant,
    terminal: bool,
    load_has_ended: AtomicBool,
    kills: RefCell<usize>,
    waiting_for: RefCell<String>,
}

impl<'a> Scene<'a> {
    pub(super) fn new(demo: &'a Demo, databases: &'a Databases, progress: &'a Arc<Progress>) -> Scene<'a> {
        Scene {
            demo,
            databases,
            progress,
            begun: Instant::now(),
            terminal: stderr().is_terminal(),
            load_has_ended: AtomicBool::new(false),
            kills: RefCell::default(),
            waiting_for: RefCell::default(),
        }
    }

    pub(super) fn databases(&self) -> &'a Databases {
        self.databases
    }

    pub(super) fn elapsed(&self) -> Duration {
        self.begun.elapsed()
    }

    pub(super) fn load_has_ended(&self) {
        self.load_has_ended.store(true, Ordering::Relaxed);
    }

    /// A line that stays.
    pub(super) fn killed(&self, kill: &Kill) {
        *self.kills.borrow_mut() += 1;
        let back =
            kill.successor.as_ref().map_or_else(|| "ready again".to_owned(), |name| format!("{name} leads"));
        self.line(&format!(
            "{:>7.1} s  SIGKILL {} with {} {}; {back} after {} ms",
            kill.after.as_secs_f64(),
            kill.victim,
            kill.in_flight,
            kill.of_what,
            kill.back_after.as_millis()
        ));
    }

    /// Shows how far it is, for ever.
    pub(super) async fn show<T>(&self) -> Result<T> {
        let every = Duration::from_millis(if self.terminal { 250 } else { 2_000 });
        loop {
            tokio::time::sleep(every).await;
            let text = self.text().await?;
            if self.terminal { write_over(&text) } else { self.line(&text) }
        }
    }

    /// The last state, as a line that stays.
    pub(super) async fn last_line(&self) {
        // A database that is gone shows up where it matters.
        if let Ok(text) = self.text().await {
            self.line(&text);
        }
    }

    /// Waits until this many payments are settled, or for as long as one that is not ambiguous ever takes.
    pub(super) async fn until_settled_or_slow(&self, payments: usize) -> Result<()> {
        let enough = i64::try_from(payments).unwrap_or(i64::MAX);
        let begun = Instant::now();
        while self.databases.counts().await?.settled() < enough && begun.elapsed() < AHEAD_LIMIT {
            tokio::time::sleep(LOOK_OFTEN_EVERY).await;
        }
        Ok(())
    }

    /// Waits until more than half of these payments are settled: the circle turns. Some of the others may be ambiguous.
    pub(super) async fn until_some_are_settled(&self, payments: usize) -> Result<()> {
        let enough = i64::try_from(payments.div_ceil(2)).unwrap_or(i64::MAX);
        let begun = Instant::now();
        while self.databases.counts().await?.settled() < enough {
            ensure!(
                begun.elapsed() < TURNING_LIMIT,
                "of {payments} payments that went ahead not half are settled after {} s",
                TURNING_LIMIT.as_secs()
            );
            tokio::time::sleep(LOOK_EVERY).await;
        }
        Ok(())
    }

    /// Waits until nothing is left to do, or nothing moves any more.
    pub(super) async fn until_settled(&self) -> Result<()> {
        let (mut before, mut changed_at) = (Remaining::default(), Instant::now());
        loop {
            let remaining = self.databases.remaining().await?;
            if remaining.is_nothing() {
                self.waiting_for.borrow_mut().clear();
                return Ok(());
            }
            if remaining != before {
                (before, changed_at) = (remaining, Instant::now());
            }
            *self.waiting_for.borrow_mut() = words(&remaining);
            if changed_at.elapsed() > STALLED_AFTER {
                self.line(&format!(
                    "nothing has changed for {} s: no longer waiting for {}",
                    STALLED_AFTER.as_secs(),
                    words(&remaining)
                ));
                return Ok(());
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    async fn text(&self) -> Result<String> {
        let Counts { successful, failed, needs_review, .. } = self.databases.counts().await?;
        let number = |counter: &std::sync::atomic::AtomicUsize| counter.load(Ordering::Relaxed);
        let mut text = format!(
            "{:>7.1} s  sent {} of {} ({} repeats), accepted {}, settled {} ({successful} successful, {failed} failed), \
             kills {} of {}",
            self.elapsed().as_secs_f64(),
            number(&self.progress.sent),
            self.demo.payments,
            number(&self.progress.repeated),
            number(&self.progress.accepted),
            successful + failed + needs_review,
            self.kills.borrow(),
            self.demo.kills,
        );
        let waiting_for = self.waiting_for.borrow();
        if !waiting_for.is_empty() {
            text = format!("{text}; waiting for {waiting_for}");
        } else if self.load_has_ended.load(Ordering::Relaxed) {
            text.push_str("; all sent");
        }
        Ok(text)
    }

    fn line(&self, text: &str) {
        if self.terminal {
            write_over(text);
        }
        let text = if self.terminal { "" } else { text };
        // Nobody may be there to read it.
        writeln!(stderr(), "{text}").ok();
    }
}

fn write_over(text: &str) {
    let mut screen = stderr();
    write!(screen, "\r\x1b[2K{text}").and_then(|()| screen.flush()).ok();
}

fn words(remaining: &Remaining) -> String {
    let Remaining { orders, requests, executions, results, effects } = *remaining;
    let parts = [
        (orders, "orders without an outcome"),
        (requests, "requests to be published"),
        (executions, "orders at the executor"),
        (results, "results to be published"),
        (effects, "results to be applied"),
    ];
    let parts: Vec<String> =
        parts.iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!("{count} {what}")).collect();
    parts.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_says_what_it_waits_for() {
        let remaining = Remaining { orders: 2, effects: 1, ..Remaining::default() };
        assert_eq!(words(&remaining), "2 orders without an outcome, 1 results to be applied");
        assert_eq!(words(&Remaining::default()), "");
    }
}
