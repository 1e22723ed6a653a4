//! `testbed faults`: hurts one part of the system in many ways, one after the other, and proves each time that nothing was lost.
//!
//! ```text
//! episode:  writers write ─▶ fault, with events on their way ─▶ an event begun after it is readable ─▶ everything heals
//!           ─▶ writers are held ─▶ the outbox drains ─▶ books
//! end:      the books once more, from the table and the whole topic; what took effect twice
//! ```
//! Family `relay`: an outbox with a relay that leads and one that stands by. PostgreSQL, Kafka and registry are its own, so that
//! they can be killed too.
//!
//! - [`episode`]: what happens in which episode, by the seed; `inflict`: how it is done.
//! - [`executor`]: the family of that name.
//! - `rig`: what it is done to, with `writers` before it and a `consumer` behind it; `leadership`: which of its relays leads.
//! - [`books`]: what was committed beside what was published; [`report`]: what came of it.

pub mod books;
mod consumer;
pub mod episode;
pub mod executor;
mod inflict;
mod leadership;
pub mod report;
mod rig;
mod writers;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::ValueEnum;

use crate::stack::home::Home;
use books::Tally;
use episode::Episode;
use inflict::{Fault, inflict};
use report::{Passed, Report};
use rig::Rig;

/// For an event to be readable that was begun after a fault.
const BACK_LIMIT: Duration = Duration::from_mins(1);
/// Events of one leader before it is hurt, and of the next one before the writers are held.
const RUN_UP: Duration = Duration::from_millis(100);
const READ_LIMIT: Duration = Duration::from_mins(3);

/// Which part is hurt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Family {
    /// The relays of an outbox.
    Relay,
    /// The executors, and all that they depend on.
    Executor,
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
    let mut episodes = episode::draw(faults.seed, faults.episodes.max(faults.only.unwrap_or_default()));
    match faults.only {
        Some(0) => bail!("episodes are counted from 1"),
        Some(only) => episodes = episodes.split_off(only - 1).into_iter().take(1).collect(),
        None => {}
    }
    perform(faults.family, episodes, faults.keep, say).await
}

/// Runs these episodes.
pub async fn perform(
    family: Family,
    episodes: Vec<Episode>,
    keep: bool,
    say: &dyn Fn(&str),
) -> Result<Outcome> {
    let home = Home::locate()?;
    let mut evidence = Evidence { folder: home.private_folder("faults")?, keep: false };
    ensure!(family == Family::Relay, "executors are hurt by faults::executor");
    let report = relays(&home, &evidence.folder, &episodes, say).await;
    evidence.keep = keep || report.as_ref().map_or(true, |report| !report.broken.is_empty());
    let report = report.with_context(|| format!("the logs are in {}", evidence.folder.display()))?;
    Ok(Outcome { report, kept: evidence.keep.then(|| evidence.folder.clone()) })
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

async fn relays(home: &Home, folder: &Path, episodes: &[Episode], say: &dyn Fn(&str)) -> Result<Report> {
    let begun = Instant::now();
    let seed = episodes.first().map_or(0, |episode| episode.seed);
    let mut rig = Rig::start(home, folder, seed).await.context("start the outbox and its relays")?;
    say(&format!(
        "started after {:.1} s; the logs are in {}",
        begun.elapsed().as_secs_f64(),
        folder.display()
    ));
    let mut passed = Vec::new();
    for (place, episode) in (1..).zip(episodes) {
        let one = one(&mut rig, *episode).await?;
        say(&one.line(place, episodes.len()));
        passed.push(one);
    }
    let witnessed = witness(&rig).await?;
    let disorder = rig.end().await.err();
    Ok(Report::new(Family::Relay, &passed, &witnessed, disorder, begun.elapsed()))
}

/// What all witnesses say at the end.
#[derive(Debug, Default)]
pub struct Witnessed {
    /// From the table and the whole topic.
    pub tally: Tally,
    /// Event ids that took effect more than once.
    pub applied_twice: usize,
    /// Steps that took effect under more than one event id.
    pub double_charged: usize,
    /// Committed events that took no effect.
    pub without_effect: usize,
    /// Events that the writers and the table do not agree about.
    pub disputed: usize,
    /// Some of what was found.
    pub examples: Vec<String>,
}

async fn witness(rig: &Rig) -> Result<Witnessed> {
    let anew = rig.books_anew(READ_LIMIT).await.context("make the books once more")?;
    let (applied_twice, double_charged, applied) = rig.effects().await?;
    let tally = anew.tally();
    let disputed = anew.differing_commits(&rig.books());
    Ok(Witnessed {
        tally,
        applied_twice,
        double_charged,
        without_effect: tally.committed.saturating_sub(applied),
        disputed,
        examples: anew.examples(),
    })
}

/// One episode. What goes wrong in it is a finding; an error is what makes further episodes impossible.
async fn one(rig: &mut Rig, episode: Episode) -> Result<Passed> {
    let begun = Instant::now();
    let before = rig.books().tally();
    rig.books().next_episode();
    rig.writers.go();
    tokio::time::sleep(RUN_UP).await;
    let (mut troubles, mut recovery) = (Vec::new(), None);
    let fault: Option<Fault> = match inflict(rig, episode.kind, &mut episode.random()).await {
        Ok(fault) => fault,
        Err(error) => {
            troubles.push(format!("{error:#}"));
            None
        }
    };
    if let Some(fault) = &fault {
        recovery = rig.back_after(fault.at, BACK_LIMIT).await;
        if recovery.is_none() {
            troubles.push(format!("no event after the fault is readable {BACK_LIMIT:?} later"));
        }
    }
    rig.writers.go();
    let heal = Instant::now();
    rig.heal().await.with_context(|| format!("heal after episode {}: {}", episode.number, episode.kind))?;
    let (healing, rest) = (heal.elapsed(), Instant::now());
    tokio::time::sleep(RUN_UP).await;
    if let Err(error) = rig.come_to_rest().await {
        troubles.push(format!("{error:#}"));
    }
    let after = rig.books().tally();
    for (what, was, is) in [
        ("lost", before.lost, after.lost),
        ("ghosts", before.ghosts, after.ghosts),
        ("out of order", before.inversions, after.inversions),
        ("altered", before.altered, after.altered),
    ] {
        if is > was {
            troubles.push(format!("{what}: {}", is - was));
        }
    }
    Ok(Passed {
        episode,
        recovery,
        in_flight: fault.as_ref().map(|fault| fault.in_flight),
        how: fault.map(|fault| fault.how).unwrap_or_default(),
        events: after.committed - before.committed,
        duplicates: after.duplicates - before.duplicates,
        notes: rig.take_notes(),
        troubles,
        took: begun.elapsed(),
        healing,
        resting: rest.elapsed(),
    })
}
