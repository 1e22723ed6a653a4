//! A group that never comes to rest: instances join and leave all the while, in order and by SIGKILL, while results are told.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::books::examine;
use super::rig::{Rig, Shape};
use super::{Family, Outcome, verdict};
use crate::faults::episode::Episode;
use crate::faults::report::{Passed, Report};
use crate::faults::with_evidence;
use crate::load::Random;

use super::episode::Kind;

/// All of them without a name in the group: each that comes or goes is a rebalance.
const SHAPE: Shape = Shape { seats: 6, members: 0, guests: 0 };
/// One in so many leaves by SIGKILL.
const KILLED_ONE_IN: usize = 8;
const STOCK_MIN: usize = 1_000;
const BACK_LIMIT: Duration = Duration::from_mins(1);

/// Six instances join and leave for so long. The report has one episode.
pub async fn perform(lasts: Duration, seed: u64, say: &dyn Fn(&str)) -> Result<Outcome> {
    with_evidence("faults-storm", false, async |home, folder| {
        let begun = Instant::now();
        let mut rig = Rig::start(home, folder, seed, SHAPE).await.context("start the instances")?;
        rig.restock().await?;
        let before = rig.teller.told().published.len();
        rig.teller.go();
        let changes = blow(&mut rig, lasts, &mut Random::new(seed, 1)).await?;
        let calm = Instant::now();
        rig.heal().await?;
        let mut troubles = Vec::new();
        let recovery = rig.back_after(calm, BACK_LIMIT).await;
        if recovery.is_none() {
            troubles.push("results are not applied after the storm".to_owned());
        }
        if let Err(error) = rig.come_to_rest().await {
            troubles.push(format!("{error:#}"));
        }
        rig.sample().await?;
        let (done, of_it) = {
            let told = rig.teller.told();
            (told.published.len() - before, told.copies)
        };
        let passed = Passed {
            episode: Episode { number: 1, kind: Kind::Join, seed },
            recovery,
            under_way: Some(changes),
            how: format!("{changes} instances came or went in {lasts:?}"),
            done,
            of_it,
            spent: String::new(),
            notes: rig.take_notes(),
            troubles,
            took: begun.elapsed(),
        };
        say(&passed.line(Family::Consumer, 1, 1));
        let verdict = verdict(examine(&rig.books(0).await?), rig.ahead().clone());
        let disorder = rig.end().await.err();
        Ok(Report::new(Family::Consumer, &[passed], &verdict, disorder, begun.elapsed()))
    })
    .await
}

/// Lets one instance come or go after the other; at least one stays. Returns how many did.
async fn blow(rig: &mut Rig, lasts: Duration, random: &mut Random) -> Result<usize> {
    let (begun, mut changes) = (Instant::now(), 0);
    while begun.elapsed() < lasts {
        let seat = rig.any_seat(random);
        let running = rig.seats.iter().filter(|seat| seat.instance.running()).count();
        let at = &rig.seats[seat];
        if !at.instance.running() {
            at.instance.start()?;
        } else if running > 1 {
            if random.below(KILLED_ONE_IN) == 0 {
                at.instance.kill();
                rig.sample().await?;
            } else {
                at.end().await?;
            }
        }
        changes += 1;
        if rig.teller.stock() < STOCK_MIN {
            rig.restock().await?;
        }
        tokio::time::sleep(random.milliseconds(1_200)).await;
    }
    Ok(changes)
}
