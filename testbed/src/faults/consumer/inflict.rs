//! The faults themselves, each while results are on their way. What one breaks for a while it mends; the rest is left to [`Rig::heal`].

use std::os::unix::process::ExitStatusExt;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;

use super::super::episode::Cut;
use super::episode::{Kind, Line, Point};
use super::rig::Rig;
use crate::load::Random;
use crate::proxy::{Moment, Proxy};

/// A point that is not reached is tried again so often.
const TRIES: usize = 2;
/// For a point to be reached: the instance starts, joins the group, and has a few batches of its own.
const HIT_LIMIT: Duration = Duration::from_secs(12);
/// A connection that is cut in a message is so within so many bytes.
const CUT_WITHIN_BYTES: usize = 6_000;
/// For a COMMIT to go through.
const COMMIT_LIMIT: Duration = Duration::from_secs(30);
/// For a result to be on its way.
const OCCASION_LIMIT: Duration = Duration::from_secs(10);
/// The group gives an instance up of which it has heard nothing for 6 s.
const SESSION: Duration = Duration::from_secs(6);
/// Longer than the server keeps a transaction of a silent session.
const LONG: Duration = Duration::from_millis(10_500);
const LOOK_EVERY: Duration = Duration::from_millis(1);

/// How sqlx ends a transaction: the simple query `COMMIT`.
pub(super) const COMMIT: &[u8] = b"Q\0\0\0\x0bCOMMIT\0";

/// A fault that has happened.
#[derive(Clone, Debug)]
pub(super) struct Fault {
    /// When.
    pub(super) at: Instant,
    /// Events on the topic at that moment that were not applied.
    pub(super) in_flight: usize,
    /// How exactly.
    pub(super) how: String,
}

/// Lets it happen. None if a point was never reached.
pub(super) async fn inflict(rig: &mut Rig, kind: Kind, random: &mut Random) -> Result<Option<Fault>> {
    match kind {
        Kind::Kill(point) => at_point(rig, point, "return(kill)", Duration::ZERO, random).await,
        Kind::Stop(Some(point)) => {
            let still = SESSION + Duration::from_millis(500) + random.milliseconds(2_000);
            at_point(rig, point, "1*return(stop)", still, random).await
        }
        Kind::StopLong => {
            let point = if random.below(2) == 0 { Point::C2 } else { Point::C3 };
            at_point(rig, point, "1*return(stop)", LONG + random.milliseconds(1_000), random).await
        }
        Kind::Stop(None) => stop_anywhere(rig, random).await.map(Some),
        Kind::KillAnywhere => {
            let seat = rig.any_seat(random);
            kill(rig, &[seat], random).await.map(Some)
        }
        Kind::KillAll => {
            let all: Vec<usize> = rig.all_seats().collect();
            kill(rig, &all, random).await.map(Some)
        }
        Kind::Join => join(rig, random).await.map(Some),
        Kind::Leave => leave(rig, random).await.map(Some),
        Kind::Commit(moment) => cut_commit(rig, moment, random).await.map(Some),
        Kind::Database => restart_database(rig, random).await.map(Some),
        Kind::Broker => kill_broker(rig, random).await.map(Some),
        Kind::Cut(line, cut) => cut_lines(rig, line, cut, random).await.map(Some),
    }
}

/// Waits until something is on its way.
async fn occasion(rig: &Rig) -> Result<usize> {
    let begun = Instant::now();
    loop {
        let in_flight = rig.in_flight().await;
        if in_flight > 0 {
            return Ok(in_flight);
        }
        ensure!(begun.elapsed() < OCCASION_LIMIT, "no result is on its way");
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

// ------------------------------------------------------------------------------------------------------- SIGKILL, SIGSTOP

/// How often a point is passed before it bites; at the second try at once.
fn passes(point: Point, attempt: usize, random: &mut Random) -> usize {
    let drawn = match point {
        Point::C1 | Point::C2 | Point::C3 | Point::C4 | Point::C5 | Point::C6 => random.below(40),
        // The callbacks of an instance that joins, of one that gives partitions to another, and of one that leaves.
        Point::C7 => random.below(5),
        Point::C8 => random.below(3),
    };
    if attempt == 0 { drawn } else { 0 }
}

/// An instance is started with a failpoint, in place of another. One that is stopped there goes on after so long.
async fn at_point(
    rig: &mut Rig,
    point: Point,
    action: &str,
    still: Duration,
    random: &mut Random,
) -> Result<Option<Fault>> {
    let seat = rig.any_seat(random);
    for attempt in 0..TRIES {
        let passes = passes(point, attempt, random);
        let failpoint = if passes == 0 {
            format!("{point:?}={action}")
        } else {
            format!("{point:?}={passes}*off->{action}")
        };
        rig.arm(seat, &failpoint).await?;
        if point == Point::C7 {
            rebalance_until_struck(rig, seat, random).await?;
        } else {
            until_struck(rig, seat, HIT_LIMIT).await;
        }
        let at = Instant::now();
        let instance = &rig.seats[seat].instance;
        let killed = instance.ended().and_then(|status| status.signal()) == Some(Signal::KILL.as_raw());
        if killed || instance.stopped() {
            let in_flight = rig.in_flight().await;
            rig.sample().await.context("compare offsets and database after a kill")?;
            let mut how = format!("passed {passes} times");
            if !killed {
                tokio::time::sleep(still).await;
                rig.seats[seat].instance.resume()?;
                how = format!("{how}, for {:.1} s", still.as_secs_f64());
            }
            return Ok(Some(Fault { at, in_flight, how }));
        }
        rig.heal().await?;
    }
    Ok(None)
}

/// Waits until the instance has ended or stands still; false if neither comes.
async fn until_struck(rig: &Rig, seat: usize, limit: Duration) -> bool {
    let (begun, instance) = (Instant::now(), &rig.seats[seat].instance);
    while begun.elapsed() < limit {
        if !instance.running() || instance.stopped() {
            return true;
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    false
}

/// Another instance joins and leaves, and then the armed one is asked to leave.
async fn rebalance_until_struck(rig: &Rig, seat: usize, random: &mut Random) -> Result<()> {
    let guest = &rig.seats[rig.guest()];
    let more = |random: &mut Random| Duration::from_secs(2) + random.milliseconds(1_500);
    if until_struck(rig, seat, more(random)).await {
        return Ok(());
    }
    guest.instance.start()?;
    let struck = until_struck(rig, seat, more(random)).await;
    guest.instance.wait_ready().await?;
    guest.end().await?;
    if !struck && !until_struck(rig, seat, more(random)).await {
        // It may be killed while it leaves: then it cannot be asked how it has ended.
        rig.seats[seat].instance.terminate(HIT_LIMIT).await.ok();
    }
    Ok(())
}

async fn stop_anywhere(rig: &mut Rig, random: &mut Random) -> Result<Fault> {
    occasion(rig).await?;
    let seat = rig.any_seat(random);
    rig.seats[seat].instance.pause()?;
    let (at, in_flight) = (Instant::now(), rig.in_flight().await);
    rig.sample().await?;
    let still = SESSION + Duration::from_millis(500) + random.milliseconds(3_000);
    tokio::time::sleep(still).await;
    rig.seats[seat].instance.resume()?;
    Ok(Fault { at, in_flight, how: format!("for {:.1} s", still.as_secs_f64()) })
}

/// They come back after a moment, as under any supervisor.
async fn kill(rig: &mut Rig, seats: &[usize], random: &mut Random) -> Result<Fault> {
    occasion(rig).await?;
    for seat in seats {
        rig.seats[*seat].instance.kill();
    }
    let (at, in_flight) = (Instant::now(), rig.in_flight().await);
    rig.sample().await?;
    let away = random.milliseconds(1_000);
    tokio::time::sleep(away).await;
    for seat in seats {
        rig.seats[*seat].instance.start()?;
    }
    Ok(Fault { at, in_flight, how: format!("started again after {} ms", away.as_millis()) })
}

// ------------------------------------------------------------------------------------------------------------ the group

/// One in three guests is killed, and its partitions wait until its session has ended.
async fn join(rig: &mut Rig, random: &mut Random) -> Result<Fault> {
    let in_flight = occasion(rig).await?;
    let at = Instant::now();
    let guest = rig.guest();
    rig.seats[guest].instance.start()?;
    rig.seats[guest].instance.wait_ready().await?;
    let stays = Duration::from_millis(200) + random.milliseconds(5_000);
    tokio::time::sleep(stays).await;
    let killed = random.below(3) == 0;
    if killed {
        rig.seats[guest].instance.kill();
        rig.sample().await?;
    } else {
        rig.seats[guest].end().await?;
    }
    let how = if killed { "then killed" } else { "then left" };
    Ok(Fault { at, in_flight, how: format!("{how} after {:.1} s", stays.as_secs_f64()) })
}

async fn leave(rig: &mut Rig, random: &mut Random) -> Result<Fault> {
    let in_flight = occasion(rig).await?;
    let seat = rig.any_seat(random);
    let at = Instant::now();
    rig.seats[seat].end().await?;
    rig.sample().await?;
    let away = random.milliseconds(4_000);
    tokio::time::sleep(away).await;
    rig.seats[seat].instance.start()?;
    Ok(Fault {
        at,
        in_flight,
        how: format!("{} for {} ms", rig.seats[seat].instance.name(), away.as_millis()),
    })
}

// ------------------------------------------------------------------------------------------------------------------ parts

async fn restart_database(rig: &mut Rig, random: &mut Random) -> Result<Fault> {
    let in_flight = occasion(rig).await?;
    let at = Instant::now();
    rig.postgres.stop_immediately().await?;
    tokio::time::sleep(random.milliseconds(800)).await;
    rig.postgres.restart().await.context("start PostgreSQL again")?;
    rig.sample().await?;
    Ok(Fault { at, in_flight, how: format!("away for {} ms", at.elapsed().as_millis()) })
}

async fn kill_broker(rig: &mut Rig, random: &mut Random) -> Result<Fault> {
    let in_flight = occasion(rig).await?;
    let at = Instant::now();
    rig.kafka.kill9();
    tokio::time::sleep(random.milliseconds(500)).await;
    rig.kafka.restart().await.context("start the broker again")?;
    Ok(Fault { at, in_flight, how: format!("away for {:.1} s", at.elapsed().as_secs_f64()) })
}

// ------------------------------------------------------------------------------------------------------------ connections

async fn cut_commit(rig: &mut Rig, moment: Moment, random: &mut Random) -> Result<Fault> {
    occasion(rig).await?;
    let seat = rig.any_seat(random);
    rig.seats[seat].database.cut_around(COMMIT, moment);
    let begun = Instant::now();
    while !rig.seats[seat].database.has_cut_around() {
        ensure!(begun.elapsed() < COMMIT_LIMIT, "no COMMIT went through");
        tokio::time::sleep(LOOK_EVERY).await;
    }
    let (at, in_flight) = (Instant::now(), rig.in_flight().await);
    rig.sample().await?;
    let lasts = random.milliseconds(600);
    tokio::time::sleep(lasts).await;
    rig.seats[seat].database.heal();
    Ok(Fault { at, in_flight, how: format!("refused for {} ms", lasts.as_millis()) })
}

async fn cut_lines(rig: &mut Rig, line: Line, cut: Cut, random: &mut Random) -> Result<Fault> {
    let in_flight = occasion(rig).await?;
    let seat = rig.any_seat(random);
    let seat = &rig.seats[seat];
    let proxy: &Proxy = match line {
        Line::Database => &seat.database,
        Line::Broker => &seat.broker,
    };
    // Now and then for longer than the group waits for a member.
    let most = if random.below(3) == 0 { 9_000 } else { 1_800 };
    let lasts = Duration::from_millis(300) + random.milliseconds(most);
    let (at, how) = cut.inflict(proxy, random.below(CUT_WITHIN_BYTES), lasts).await?;
    Ok(Fault { at, in_flight, how })
}
