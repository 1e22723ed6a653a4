//! Family `executor`: three executors, a PSP, a database and a broker, each of which is hurt; and the books after every episode.
//!
//! ```text
//! episode:  orders are asked for ─▶ fault, with calls to the PSP open ─▶ an order asked for after it has a result ─▶ all heals
//!           ─▶ nothing more is asked for ─▶ every order has come to an end, every event is published ─▶ books of these orders
//! end:      the books of everything, with the whole topic
//! ```
//! - [`episode`]: what happens in which episode, by the seed; `inflict`: how it is done.
//! - `rig`: what it is done to, with `asker` before it; `plan`: how its processes are started.
//! - [`books`]: the PSP's ledger, the executors' tables and the topic beside what was asked for; [`report`]: what came of it.

mod asker;
pub mod books;
pub mod episode;
mod inflict;
mod plan;
pub mod report;
mod rig;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::{Evidence, Faults};
use crate::stack::home::Home;
use episode::Episode;
use inflict::{Fault, inflict};
use report::{Passed, Report};
use rig::Rig;

/// For an order that was asked for after a fault to have a result.
const BACK_LIMIT: Duration = Duration::from_mins(1);
/// Orders are under way before something is hurt, and are asked for a little longer when all has healed.
const RUN_UP: Duration = Duration::from_millis(300);
/// The whole topic is read after so many episodes, and at the end.
const GROUP: usize = 50;

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
    perform(episodes, faults.keep, say).await
}

/// Runs these episodes.
pub async fn perform(episodes: Vec<Episode>, keep: bool, say: &dyn Fn(&str)) -> Result<Outcome> {
    let home = Home::locate()?;
    let mut evidence = Evidence { folder: home.private_folder("faults-executor")?, keep: false };
    let report = all(&home, &evidence.folder, &episodes, say).await;
    evidence.keep = keep || report.as_ref().map_or(true, |report| !report.broken.is_empty());
    let report = report.with_context(|| format!("the logs are in {}", evidence.folder.display()))?;
    Ok(Outcome { report, kept: evidence.keep.then(|| evidence.folder.clone()) })
}

async fn all(home: &Home, folder: &Path, episodes: &[Episode], say: &dyn Fn(&str)) -> Result<Report> {
    let begun = Instant::now();
    let seed = episodes.first().map_or(0, |episode| episode.seed);
    let mut rig = Rig::start(home, folder, seed).await.context("start the executors and their parts")?;
    say(&format!(
        "started after {:.1} s; the logs are in {}",
        begun.elapsed().as_secs_f64(),
        folder.display()
    ));
    let mut passed = Vec::new();
    for (place, episode) in (1..).zip(episodes) {
        let mut one = one(&mut rig, *episode).await?;
        if place % GROUP == 0 {
            let tally = books::examine(&rig.all_books().await?);
            let found = tally.findings().into_iter().filter(|(_, count)| *count > 0);
            one.troubles.extend(found.map(|(what, count)| format!("in all until now, {what}: {count}")));
        }
        say(&one.line(place, episodes.len()));
        passed.push(one);
    }
    let tally = books::examine(&rig.all_books().await.context("make the books once more")?);
    let disorder = rig.end().await.err();
    Ok(Report::new(&passed, &tally, disorder, begun.elapsed()))
}

/// One episode. What goes wrong in it is a finding; an error is what makes further episodes impossible.
async fn one(rig: &mut Rig, episode: Episode) -> Result<Passed> {
    let begun = Instant::now();
    let before = rig.asker.count();
    rig.asker.go();
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
            troubles.push(format!("no order asked for after the fault has a result {BACK_LIMIT:?} later"));
        }
    }
    rig.heal().await.with_context(|| format!("heal after episode {}: {}", episode.number, episode.kind))?;
    tokio::time::sleep(RUN_UP).await;
    if let Err(error) = rig.come_to_rest().await {
        troubles.push(format!("{error:#}"));
    }
    let asked = rig.asker.since(before);
    let (orders, resolved) = (asked.len(), rig.resolved(&asked).await?);
    let tally = books::examine(&rig.books(asked).await?);
    let found = tally.findings().into_iter().filter(|(_, count)| *count > 0);
    troubles.extend(found.map(|(what, count)| format!("{what}: {count}")));
    troubles.extend(tally.examples);
    Ok(Passed {
        episode,
        recovery,
        open_calls: fault.as_ref().map(|fault| fault.open_calls),
        how: fault.map(|fault| fault.how).unwrap_or_default(),
        orders,
        resolved,
        notes: rig.take_notes(),
        troubles,
        took: begun.elapsed(),
    })
}
