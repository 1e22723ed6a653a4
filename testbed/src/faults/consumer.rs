//! Family `consumer`: three instances of the payment service that share a topic of results, their database and a broker, each of
//! which is hurt; and the books after every episode.
//!
//! ```text
//! episode:  results are told ─▶ fault, with results on their way ─▶ in every partition, one told after it is applied ─▶ all heals
//!           ─▶ nothing more is told ─▶ everything is applied, and the offsets say so ─▶ books of these payments
//! end:      the books of everything
//! ```
//! - [`story`]: what is said about a payment, and how it has to end; `teller` says it.
//! - [`episode`]: what can happen; `inflict`: how it is done.
//! - `rig`: what it is done to; `plan`: how its processes are started.
//! - [`books`]: the database beside what was told; [`offsets`]: the group's offsets beside the database, at every kill.
//! - [`resets`]: connections that break around a COMMIT, one after the other; [`storm`]: a group that never comes to rest.

pub mod books;
pub mod episode;
mod inflict;
pub mod offsets;
mod plan;
pub mod resets;
mod rig;
pub mod storm;
pub mod story;
mod teller;

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::report::{Passed, Report, Verdict};
use super::{Family, Outcome, with_evidence};
use crate::stack::home::Home;
use books::Tally;
use episode::{Episode, Kind};
use inflict::{Fault, inflict};
use offsets::Ahead;
use rig::{Rig, Shape};

/// Two that have their partitions back at once, one whose partitions wait for its session, and room for one more.
const SHAPE: Shape = Shape { seats: 3, members: 2, guests: 1 };
/// For results that were told after a fault to be applied, in every partition.
const BACK_LIMIT: Duration = Duration::from_mins(1);
/// Results are on their way before something is hurt, and for a little longer when all has healed.
const RUN_UP: Duration = Duration::from_millis(300);
/// Everything is compared after so many episodes, and at the end.
const GROUP: usize = 50;

/// Runs these episodes.
pub async fn perform(episodes: Vec<Episode>, keep: bool, say: &dyn Fn(&str)) -> Result<Outcome> {
    with_evidence("faults-consumer", keep, async |home, folder| all(home, folder, &episodes, say).await).await
}

async fn all(home: &Home, folder: &Path, episodes: &[Episode], say: &dyn Fn(&str)) -> Result<Report> {
    let begun = Instant::now();
    let seed = episodes.first().map_or(0, |episode| episode.seed);
    let mut rig =
        Rig::start(home, folder, seed, SHAPE).await.context("start the instances and their parts")?;
    say(&format!(
        "started after {:.1} s; the logs are in {}",
        begun.elapsed().as_secs_f64(),
        folder.display()
    ));
    let mut passed = Vec::new();
    for (place, episode) in (1..).zip(episodes) {
        let mut one = one(&mut rig, *episode).await?;
        if place % GROUP == 0 {
            let tally = books::examine(&rig.books(0).await?);
            one.troubles.extend(troubles(&tally).map(|trouble| format!("in all until now, {trouble}")));
        }
        say(&one.line(Family::Consumer, place, episodes.len()));
        passed.push(one);
    }
    let tally = books::examine(&rig.books(0).await.context("make the books once more")?);
    let verdict = verdict(tally, rig.ahead().clone());
    let disorder = rig.end().await.err();
    Ok(Report::new(Family::Consumer, &passed, &verdict, disorder, begun.elapsed()))
}

fn troubles(tally: &Tally) -> impl Iterator<Item = String> {
    let found = tally.findings().into_iter().filter(|(_, count)| *count > 0);
    found.map(|(what, count)| format!("{what}: {count}"))
}

/// What books and samples come to.
fn verdict(tally: Tally, ahead: Ahead) -> Verdict {
    let mut verdict = tally.verdict();
    verdict.findings.extend([
        ("records behind an offset, not applied", ahead.ahead),
        ("offsets that went back", ahead.went_back),
    ]);
    verdict.figures.push(("looks at the offsets", ahead.samples));
    verdict.examples.extend(ahead.examples);
    verdict
}

/// One episode. What goes wrong in it is a finding; an error is what makes further episodes impossible.
async fn one(rig: &mut Rig, episode: Episode) -> Result<Passed<Kind>> {
    let begun = Instant::now();
    rig.restock().await?;
    let (before, copies) = {
        let told = rig.teller.told();
        (told.published.len(), told.copies)
    };
    let ahead = rig.ahead().clone();
    rig.teller.go();
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
        // One that was killed at a point comes back under its supervisor, here.
        rig.heal().await.with_context(|| format!("heal after episode {}", episode.number))?;
        recovery = rig.back_after(fault.at, BACK_LIMIT).await;
        if recovery.is_none() {
            troubles.push(format!(
                "no result told after the fault is applied in some partition {BACK_LIMIT:?} later"
            ));
        }
    }
    rig.heal().await.with_context(|| format!("heal after episode {}: {}", episode.number, episode.kind))?;
    tokio::time::sleep(RUN_UP).await;
    if let Err(error) = rig.come_to_rest().await {
        troubles.push(format!("{error:#}"));
    }
    rig.sample().await?;
    let tally = books::examine(&rig.books(before).await?);
    troubles.extend(self::troubles(&tally));
    troubles.extend(tally.examples);
    if (rig.ahead().ahead, rig.ahead().went_back) != (ahead.ahead, ahead.went_back) {
        troubles.push(format!("the group's offsets: {:?}", rig.ahead()));
    }
    let (done, of_it) = {
        let told = rig.teller.told();
        (told.published.len() - before, told.copies - copies)
    };
    Ok(Passed {
        episode,
        recovery,
        under_way: fault.as_ref().map(|fault| fault.in_flight),
        how: fault.map(|fault| fault.how).unwrap_or_default(),
        done,
        of_it,
        spent: String::new(),
        notes: rig.take_notes(),
        troubles,
        took: begun.elapsed(),
    })
}
