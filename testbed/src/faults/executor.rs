//! Family `executor`: three executors, a PSP, a database and a broker, each of which is hurt; and the books after every episode.
//!
//! ```text
//! episode:  orders are asked for ─▶ fault, with calls to the PSP open ─▶ an order asked for after it has a result ─▶ all heals
//!           ─▶ nothing more is asked for ─▶ every order has come to an end, every event is published ─▶ books of these orders
//! end:      the books of everything, with the whole topic
//! ```
//! - [`episode`]: what can happen; `inflict`: how it is done.
//! - `rig`: what it is done to, with `asker` before it; `plan`: how its processes are started.
//! - [`books`]: the PSP's ledger, the executors' tables and the topic beside what was asked for.

mod asker;
pub mod books;
pub mod episode;
mod inflict;
mod plan;
mod rig;

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::report::{Passed, Report};
use super::{Family, Outcome, with_evidence};
use crate::stack::home::Home;
use episode::{Episode, Kind};
use inflict::{Fault, inflict};
use rig::Rig;

/// For an order that was asked for after a fault to have a result.
const BACK_LIMIT: Duration = Duration::from_mins(1);
/// Orders are under way before something is hurt, and are asked for a little longer when all has healed.
const RUN_UP: Duration = Duration::from_millis(300);
/// The whole topic is read after so many episodes, and at the end.
const GROUP: usize = 50;

/// Runs these episodes.
pub async fn perform(episodes: Vec<Episode>, keep: bool, say: &dyn Fn(&str)) -> Result<Outcome> {
    with_evidence("faults-executor", keep, async |home, folder| {
        Box::pin(all(home, folder, &episodes, say)).await
    })
    .await
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
        say(&one.line(Family::Executor, place, episodes.len()));
        passed.push(one);
    }
    let tally = books::examine(&rig.all_books().await.context("make the books once more")?);
    let disorder = rig.end().await.err();
    Ok(Report::new(Family::Executor, &passed, &tally.verdict(), disorder, begun.elapsed()))
}

/// One episode. What goes wrong in it is a finding; an error is what makes further episodes impossible.
async fn one(rig: &mut Rig, episode: Episode) -> Result<Passed<Kind>> {
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
        under_way: fault.as_ref().map(|fault| usize::try_from(fault.open_calls)).transpose()?,
        how: fault.map(|fault| fault.how).unwrap_or_default(),
        done: orders,
        of_it: usize::try_from(resolved)?,
        spent: String::new(),
        notes: rig.take_notes(),
        troubles,
        took: begun.elapsed(),
    })
}
