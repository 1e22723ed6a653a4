//! Family `relay`: an outbox with a relay that leads and one that stands by. PostgreSQL, Kafka and registry are its own, so that they
//! can be killed too.
//!
//! ```text
//! episode:  writers write ─▶ fault, with events on their way ─▶ an event begun after it is readable ─▶ everything heals
//!           ─▶ writers are held ─▶ the outbox drains ─▶ books
//! end:      the books once more, from the table and the whole topic; what took effect twice
//! ```
//! - [`episode`]: what can happen; `inflict`: how it is done.
//! - `rig`: what it is done to, with `writers` before it and a `consumer` behind it; `leadership`: which of its relays leads.
//! - [`books`]: what was committed beside what was published.

pub mod books;
mod consumer;
pub mod episode;
mod inflict;
mod leadership;
mod rig;
mod writers;

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::report::{Counts, Passed, Report, Verdict};
use super::{Family, Outcome, with_evidence};
use crate::stack::home::Home;
use books::Tally;
use episode::{Episode, Kind};
use inflict::{Fault, inflict};
use rig::Rig;

/// For an event to be readable that was begun after a fault.
const BACK_LIMIT: Duration = Duration::from_mins(1);
/// Events of one leader before it is hurt, and of the next one before the writers are held.
const RUN_UP: Duration = Duration::from_millis(100);
const READ_LIMIT: Duration = Duration::from_mins(3);

/// Runs these episodes.
pub async fn perform(episodes: Vec<Episode>, keep: bool, say: &dyn Fn(&str)) -> Result<Outcome> {
    with_evidence("faults", keep, async |home, folder| all(home, folder, &episodes, say).await).await
}

async fn all(home: &Home, folder: &Path, episodes: &[Episode], say: &dyn Fn(&str)) -> Result<Report> {
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
        say(&one.line(Family::Relay, place, episodes.len()));
        passed.push(one);
    }
    let witnessed = witness(&rig).await?;
    let disorder = rig.end().await.err();
    Ok(Report::new(Family::Relay, &passed, &witnessed.verdict(), disorder, begun.elapsed()))
}

/// What all witnesses say at the end.
#[derive(Debug, Default)]
struct Witnessed {
    /// From the table and the whole topic.
    tally: Tally,
    /// Event ids that took effect more than once.
    applied_twice: usize,
    /// Steps that took effect under more than one event id.
    double_charged: usize,
    /// Committed events that took no effect.
    without_effect: usize,
    /// Events that the writers and the table do not agree about.
    disputed: usize,
    /// Some of what was found.
    examples: Vec<String>,
}

impl Witnessed {
    fn verdict(self) -> Verdict {
        let Witnessed { tally, applied_twice, double_charged, without_effect, disputed, examples } = self;
        Verdict {
            counts: Counts {
                lost: tally.lost,
                applied_twice,
                double_charged,
                duplicates: tally.duplicates,
                order_inversions: tally.inversions,
            },
            ghosts: tally.ghosts,
            findings: vec![
                ("lost", tally.lost),
                ("ghosts", tally.ghosts),
                ("applied twice", applied_twice),
                ("double charged", double_charged),
                ("order inversions", tally.inversions),
                ("altered", tally.altered),
                ("without effect", without_effect),
                ("disputed commits", disputed),
            ],
            figures: vec![("committed events", tally.committed)],
            examples,
        }
    }
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
async fn one(rig: &mut Rig, episode: Episode) -> Result<Passed<Kind>> {
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
        under_way: fault.as_ref().map(|fault| fault.in_flight),
        how: fault.map(|fault| fault.how).unwrap_or_default(),
        done: after.committed - before.committed,
        of_it: after.duplicates - before.duplicates,
        spent: format!("{:.1} to heal, {:.1} to rest", healing.as_secs_f64(), rest.elapsed().as_secs_f64()),
        notes: rig.take_notes(),
        troubles,
        took: begun.elapsed(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_is_witnessed_fails_the_run_but_copies() {
        let tally =
            Tally { lost: 1, ghosts: 1, inversions: 1, altered: 1, duplicates: 1, ..Tally::default() };
        let (applied_twice, double_charged, without_effect, disputed) = (1, 1, 1, 1);
        let examples = Vec::new();
        let witnessed =
            Witnessed { tally, applied_twice, double_charged, without_effect, disputed, examples };
        let verdict = witnessed.verdict();
        assert!(verdict.findings.iter().all(|(_, count)| *count == 1), "{verdict:?}");
        assert_eq!((verdict.findings.len(), verdict.ghosts), (8, 1));
        let once = Counts { lost: 1, applied_twice, double_charged, duplicates: 1, order_inversions: 1 };
        assert_eq!(verdict.counts, once);
    }
}
