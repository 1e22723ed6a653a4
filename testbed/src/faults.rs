//! `testbed faults`: hurts one part of the system in many ways, one after the other, and proves each time that nothing was lost.
//!
//! ```text
//! episode:  work is under way ─▶ fault ─▶ what is begun after it comes through ─▶ everything heals ─▶ all comes to rest ─▶ books
//! end:      the books of everything once more, with the whole topic
//! ```
//! - [`relay`], [`executor`] and [`consumer`]: the families; each says what can happen, how it is done, what it is done to, and what its books say.
//! - [`episode`]: what happens when, by the seed; [`report`]: what came of it.

pub mod consumer;
pub mod episode;
pub mod executor;
pub mod relay;
pub mod report;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::ValueEnum;

use crate::stack::home::Home;
use episode::{Episode, FaultKind, draw};
use report::Report;

/// Which part is hurt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Family {
    /// The relays of an outbox.
    Relay,
    /// The executors, and all that they depend on.
    Executor,
    /// The instances of the payment service that consume results.
    Consumer,
}

/// What to do.
#[derive(Clone, Copy, Debug)]
pub struct Faults {
    /// Which part is hurt.
    pub family: Family,
    /// How many faults.
    pub episodes: usize,
    /// Draws the faults, and their moments.
    pub seed: u64,
    /// The episode of this number alone.
    pub only: Option<usize>,
    /// Keep the logs even if all goes well.
    pub keep: bool,
}

/// What a run has shown.
#[derive(Debug)]
pub struct Outcome {
    /// Figures and verdict.
    pub report: Report,
    /// Where the logs are, if they were kept.
    pub kept: Option<PathBuf>,
}

/// Runs the episodes that the seed draws, and says a line about each.
pub async fn run(faults: &Faults, say: &dyn Fn(&str)) -> Result<Outcome> {
    match faults.family {
        Family::Relay => Box::pin(relay::perform(faults.episodes()?, faults.keep, say)).await,
        Family::Executor => Box::pin(executor::perform(faults.episodes()?, faults.keep, say)).await,
        Family::Consumer => Box::pin(consumer::perform(faults.episodes()?, faults.keep, say)).await,
    }
}

impl Faults {
    fn episodes<K: FaultKind>(&self) -> Result<Vec<Episode<K>>> {
        let mut episodes = draw(self.seed, self.episodes.max(self.only.unwrap_or_default()));
        match self.only {
            Some(0) => bail!("episodes are counted from 1"),
            Some(only) => Ok(episodes.split_off(only - 1).into_iter().take(1).collect()),
            None => Ok(episodes),
        }
    }
}

/// Lets `hurt` write its logs into a folder of its own, and keeps them if something was found, or if that is wanted.
async fn with_evidence(
    hint: &str,
    keep: bool,
    hurt: impl AsyncFnOnce(&Home, &Path) -> Result<Report>,
) -> Result<Outcome> {
    let mut kept = None;
    let wanted = |report: &Report| keep || !report.broken.is_empty();
    let hurting = with_evidence_of(hint, wanted, async |home, folder| {
        kept = Some(folder.to_owned());
        Box::pin(hurt(home, folder)).await
    });
    let report = hurting.await?;
    let kept = kept.filter(|_| wanted(&report));
    Ok(Outcome { report, kept })
}

/// The same for anything that may come of it.
async fn with_evidence_of<T>(
    hint: &str,
    wanted: impl Fn(&T) -> bool,
    hurt: impl AsyncFnOnce(&Home, &Path) -> Result<T>,
) -> Result<T> {
    let home = Home::locate()?;
    let mut evidence = Evidence { folder: home.private_folder(hint)?, keep: false };
    let result = Box::pin(hurt(&home, &evidence.folder)).await;
    evidence.keep = result.as_ref().map_or(true, wanted);
    result.with_context(|| format!("the logs are in {}", evidence.folder.display()))
}

/// Logs, which nobody needs when all went well, or when the run was broken off.
struct Evidence {
    folder: PathBuf,
    keep: bool,
}

impl Drop for Evidence {
    fn drop(&mut self) {
        if !self.keep {
            fs::remove_dir_all(&self.folder).ok();
        }
    }
}
