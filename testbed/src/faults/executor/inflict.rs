//! The faults themselves, each while orders are under way. What one breaks for a while it mends; the rest is left to [`Rig::heal`].

use std::os::unix::process::ExitStatusExt;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;

use super::super::episode::Cut;
use super::episode::{Kind, Line, Point};
use super::plan::{LEASE, PSP_TIMEOUT};
use super::rig::{Rig, SEATS};
use crate::load::Random;
use crate::proxy::Proxy;

/// A point that is not reached is tried again so often.
const TRIES: usize = 2;
/// For a point to be reached: a few orders of the armed executor's own.
const HIT_LIMIT: Duration = Duration::from_secs(10);
/// A connection that is cut in a message is so within so many bytes.
const CUT_WITHIN_BYTES: usize = 6_000;
/// For a call to be open.
const OCCASION_LIMIT: Duration = Duration::from_secs(10);
/// Longer than the server keeps a transaction of a silent session.
const LONG: Duration = Duration::from_millis(10_500);
const LOOK_EVERY: Duration = Duration::from_millis(1);

/// A fault that has happened.
#[derive(Clone, Debug)]
pub(super) struct Fault {
    /// When.
    pub(super) at: Instant,
    /// Calls to the PSP that were open at that moment.
    pub(super) open_calls: i64,
    /// How exactly.
    pub(super) how: String,
}

/// Lets it happen. None if a point was never reached.
pub(super) async fn inflict(rig: &mut Rig, kind: Kind, random: &mut Random) -> Result<Option<Fault>> {
    match kind {
        Kind::Kill(point) => at_point(rig, point, "return(kill)", |_| Duration::ZERO, random).await,
        Kind::Stop(Some(point)) => {
            let more = Duration::from_millis(300) + random.milliseconds(900);
            at_point(rig, point, "1*return(stop)", |seat| LEASE[seat] + more, random).await
        }
        Kind::StopLong => {
            let still = LONG + random.milliseconds(1_000);
            let point = if random.below(2) == 0 { Point::E4 } else { Point::E5 };
            at_point(rig, point, "1*return(stop)", |_| still, random).await
        }
        Kind::Stop(None) => stop_anywhere(rig, random).await.map(Some),
        Kind::KillAnywhere => kill(rig, &[random.below(SEATS)], random).await.map(Some),
        Kind::KillAll => kill(rig, &[0, 1, 2], random).await.map(Some),
        Kind::Database => restart_database(rig, random).await.map(Some),
        Kind::Broker => kill_broker(rig, random).await.map(Some),
        Kind::Psp => stop_psp(rig, random).await.map(Some),
        Kind::Cut(line, cut) => cut_lines(rig, line, cut, random).await.map(Some),
    }
}

/// Waits until a call is open.
async fn occasion(rig: &Rig) -> Result<i64> {
    let begun = Instant::now();
    loop {
        let open = rig.open_calls().await;
        if open > 0 {
            return Ok(open);
        }
        ensure!(begun.elapsed() < OCCASION_LIMIT, "no call to the PSP is open");
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

// ------------------------------------------------------------------------------------------------------- SIGKILL, SIGSTOP

/// How often a point is passed before it bites; at the second try at once.
fn passes(point: Point, attempt: usize, random: &mut Random) -> usize {
    let drawn = match point {
        Point::E1 | Point::E3 => random.below(20),
        // Most calls are answered too soon to count.
        Point::E2 => random.below(4),
        Point::E4 | Point::E5 | Point::E6 | Point::E7 => random.below(10),
    };
    if attempt == 0 { drawn } else { 0 }
}

/// An executor is started with a failpoint, in place of another. One that is stopped there goes on after what `still` says of its seat.
async fn at_point(
    rig: &mut Rig,
    point: Point,
    action: &str,
    still: impl Fn(usize) -> Duration,
    random: &mut Random,
) -> Result<Option<Fault>> {
    let seat = random.below(SEATS);
    let still = still(seat);
    for attempt in 0..TRIES {
        let passes = passes(point, attempt, random);
        let failpoint = if passes == 0 {
            format!("{point:?}={action}")
        } else {
            format!("{point:?}={passes}*off->{action}")
        };
        rig.arm(seat, &failpoint).await?;
        let begun = Instant::now();
        let executor = &rig.seats[seat].executor;
        while executor.running() && !executor.stopped() && begun.elapsed() < HIT_LIMIT {
            tokio::time::sleep(LOOK_EVERY).await;
        }
        let at = Instant::now();
        let killed = executor.ended().and_then(|status| status.signal()) == Some(Signal::KILL.as_raw());
        if killed || executor.stopped() {
            let open_calls = rig.open_calls().await;
            let mut how = format!("passed {passes} times");
            if !killed {
                tokio::time::sleep(still).await;
                rig.seats[seat].executor.resume()?;
                how = format!("{how}, for {:.1} s", still.as_secs_f64());
            }
            return Ok(Some(Fault { at, open_calls, how }));
        }
        rig.heal().await?;
    }
    Ok(None)
}

async fn stop_anywhere(rig: &mut Rig, random: &mut Random) -> Result<Fault> {
    occasion(rig).await?;
    let seat = random.below(SEATS);
    let executor = &rig.seats[seat].executor;
    executor.pause()?;
    let (at, open_calls) = (Instant::now(), rig.open_calls().await);
    let still = LEASE[seat] + Duration::from_millis(300) + random.milliseconds(900);
    tokio::time::sleep(still).await;
    executor.resume()?;
    Ok(Fault { at, open_calls, how: format!("for {:.1} s", still.as_secs_f64()) })
}

/// They come back after a moment, as under any supervisor: those that are left are not waited for.
async fn kill(rig: &mut Rig, seats: &[usize], random: &mut Random) -> Result<Fault> {
    occasion(rig).await?;
    for seat in seats {
        rig.seats[*seat].executor.kill();
    }
    let (at, open_calls) = (Instant::now(), rig.open_calls().await);
    let away = random.milliseconds(1_000);
    tokio::time::sleep(away).await;
    for seat in seats {
        rig.seats[*seat].executor.start()?;
    }
    Ok(Fault { at, open_calls, how: format!("started again after {} ms", away.as_millis()) })
}

// ------------------------------------------------------------------------------------------------------------------ parts

async fn restart_database(rig: &mut Rig, random: &mut Random) -> Result<Fault> {
    let open_calls = occasion(rig).await?;
    let at = Instant::now();
    rig.postgres.stop_immediately().await?;
    tokio::time::sleep(random.milliseconds(800)).await;
    rig.postgres.restart().await.context("start PostgreSQL again")?;
    Ok(Fault { at, open_calls, how: format!("away for {} ms", at.elapsed().as_millis()) })
}

async fn kill_broker(rig: &mut Rig, random: &mut Random) -> Result<Fault> {
    let open_calls = occasion(rig).await?;
    let at = Instant::now();
    rig.kafka.kill9();
    tokio::time::sleep(random.milliseconds(500)).await;
    rig.kafka.restart().await.context("start the broker again")?;
    Ok(Fault { at, open_calls, how: format!("away for {:.1} s", at.elapsed().as_secs_f64()) })
}

/// It keeps what it was sent, and may act on it when nobody waits for the answer any more.
async fn stop_psp(rig: &mut Rig, random: &mut Random) -> Result<Fault> {
    let open_calls = occasion(rig).await?;
    let at = Instant::now();
    rig.simulator.pause()?;
    let still = PSP_TIMEOUT[random.below(SEATS)] + random.milliseconds(900);
    tokio::time::sleep(still).await;
    rig.simulator.resume()?;
    Ok(Fault { at, open_calls, how: format!("for {:.1} s", still.as_secs_f64()) })
}

// ------------------------------------------------------------------------------------------------------------ connections

async fn cut_lines(rig: &mut Rig, line: Line, cut: Cut, random: &mut Random) -> Result<Fault> {
    let open_calls = occasion(rig).await?;
    let seat = &rig.seats[random.below(SEATS)];
    let proxy: &Proxy = match line {
        Line::Database => &seat.database,
        Line::Broker => &seat.broker,
        Line::Psp => &seat.psp,
    };
    let lasts = Duration::from_millis(300) + random.milliseconds(1_800);
    let (at, how) = cut.inflict(proxy, random.below(CUT_WITHIN_BYTES), lasts).await?;
    Ok(Fault { at, open_calls, how })
}
