//! The faults themselves, each while events are on their way. What one breaks for a while it mends; the rest is left to
//! [`Rig::heal`].

use std::os::unix::process::ExitStatusExt;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use sqlx::AssertSqlSafe;

use super::super::episode::Cut;
use super::episode::{Kind, Line, Point};
use super::leadership::Armed;
use super::rig::Rig;
use crate::load::Random;
use crate::processes::Service;
use crate::proxy::{Direction, Proxy};

/// A point that is not reached is tried again so often.
const TRIES: usize = 3;
/// For a point to be reached.
const HIT_LIMIT: Duration = Duration::from_secs(5);
/// For a few thousand bytes to go through.
const BYTES_LIMIT: Duration = Duration::from_secs(30);
/// For an event to be on its way.
const OCCASION_LIMIT: Duration = Duration::from_secs(10);
/// A broker that stands still keeps a relay from reading on after some time.
const STALL_LIMIT: Duration = Duration::from_millis(300);
/// A leader of which nothing is heard is replaced after this time.
const SILENCE_LIMIT: Duration = Duration::from_secs(15);
/// Longer than the server keeps a silent lock session.
const LONG: Duration = Duration::from_millis(6_500);
/// For a leader that has lost its connections to lead again.
const AWAY: Duration = Duration::from_millis(1_500);
const ALONE: &str = "standby kept away";
const LOOK_EVERY: Duration = Duration::from_millis(1);

/// A fault that has happened.
#[derive(Clone, Debug)]
pub(super) struct Fault {
    /// When.
    pub(super) at: Instant,
    /// Committed events that were not on the topic at that moment.
    pub(super) in_flight: usize,
    /// How exactly.
    pub(super) how: String,
}

/// Lets it happen. None if a point was never reached.
pub(super) async fn inflict(rig: &mut Rig, kind: Kind, random: &mut Random) -> Result<Option<Fault>> {
    match kind {
        Kind::Kill(point) => {
            for attempt in 0..TRIES {
                if let Some(fault) = kill_at(rig, point, attempt, random).await? {
                    return Ok(Some(fault));
                }
                rig.heal().await?;
            }
            Ok(None)
        }
        Kind::Stop(Some(point)) => {
            for attempt in 0..TRIES {
                if let Some(fault) = stop_at(rig, point, attempt, random).await? {
                    return Ok(Some(fault));
                }
                rig.heal().await?;
            }
            Ok(None)
        }
        Kind::Stop(None) => stop_anywhere(rig, random).await.map(Some),
        Kind::KillAnywhere => kill_anywhere(rig, random).await.map(Some),
        Kind::LockSession => end_lock_session(rig, random).await.map(Some),
        Kind::Broker => kill_broker(rig, random).await.map(Some),
        Kind::Database => restart_database(rig, random).await.map(Some),
        Kind::Registry => take_registry_away(rig, random).await.map(Some),
        Kind::Cut(line, cut) => cut_lines(rig, line, cut, random).await.map(Some),
    }
}

fn fault(rig: &Rig, at: Instant, how: String) -> Fault {
    Fault { at, in_flight: rig.books().in_flight(), how }
}

/// In half of the cases the standby stands still for a while: then it is the old leader that begins anew, with all that it may have
/// kept in its memory.
fn keep_standby_away(rig: &Rig, leader: usize, random: &mut Random) -> Result<Option<usize>> {
    if random.below(2) == 0 {
        return Ok(None);
    }
    let standby = rig.seats.iter().enumerate().position(|(seat, at)| seat != leader && at.relay.running());
    let standby = standby.context("nobody stands by")?;
    rig.seats[standby].relay.pause()?;
    Ok(Some(standby))
}

async fn let_standby_go(rig: &Rig, standby: Option<usize>) -> Result<()> {
    if let Some(standby) = standby {
        tokio::time::sleep(AWAY).await;
        rig.seats[standby].relay.resume()?;
    }
    Ok(())
}

/// What applies of these, in words.
fn with(how: &str, more: &[(&str, bool)]) -> String {
    let more = more.iter().filter(|(_, applies)| *applies).map(|(words, _)| *words);
    std::iter::once(how).filter(|how| !how.is_empty()).chain(more).collect::<Vec<_>>().join(", ")
}

/// Waits until something is on its way.
async fn occasion(rig: &Rig) -> Result<()> {
    let begun = Instant::now();
    while rig.books().in_flight() == 0 {
        ensure!(begun.elapsed() < OCCASION_LIMIT, "no event is on its way");
        tokio::time::sleep(LOOK_EVERY).await;
    }
    Ok(())
}

/// Makes the broker stand still, until a number of records is on the way to it.
async fn stall_broker(rig: &Rig, random: &mut Random) -> Result<()> {
    let enough = 10 + random.below(40);
    rig.kafka.pause()?;
    let begun = Instant::now();
    while rig.books().in_flight() < enough && begun.elapsed() < STALL_LIMIT {
        tokio::time::sleep(LOOK_EVERY).await;
    }
    occasion(rig).await
}

// ------------------------------------------------------------------------------------------------------- SIGKILL, SIGSTOP

/// How often a point is passed before it bites; at the second try at once.
fn passes(point: Point, attempt: usize, random: &mut Random) -> usize {
    let drawn = match point {
        Point::R2 | Point::R3 => random.below(30),
        Point::R4 => random.below(100),
        Point::R5 | Point::R6 => random.below(20),
        Point::R1 | Point::R7 | Point::R8 => 0,
    };
    if attempt == 0 { drawn } else { 0 }
}

fn failpoint(point: Point, passes: usize, action: &str) -> String {
    if passes == 0 { format!("{point:?}={action}") } else { format!("{point:?}={passes}*off->{action}") }
}

/// None if the relay did not reach the point.
async fn kill_at(rig: &mut Rig, point: Point, attempt: usize, random: &mut Random) -> Result<Option<Fault>> {
    let mut passes = passes(point, attempt, random);
    // A broker that stands still has read nothing yet of what the dead relay has sent: it reads it when another leads.
    let stalled = matches!(point, Point::R7 | Point::R8) || point == Point::R3 && random.below(2) == 0;
    if stalled && passes > 0 {
        // The relay is to live until then.
        passes += 30;
    }
    let armed = rig.arm(&failpoint(point, passes, "return(kill)")).await?;
    if stalled && armed.died_at.is_none() {
        // Its producer has just been made, and has to connect before it can send anything to a broker that stands still.
        rig.back_after(Instant::now(), HIT_LIMIT).await.context("the new leader publishes nothing")?;
        stall_broker(rig, random).await?;
    }
    let relay = &rig.seats[armed.seat].relay;
    let died_at = match (armed.died_at, point) {
        (Some(at), _) => Some(at),
        (None, Point::R7) => end_while_in_flight(rig, &armed, random).await?,
        (None, Point::R8) => lose_leadership(rig, &armed).await?,
        (None, _) => death(relay).await,
    };
    let in_flight = rig.books().in_flight();
    if stalled {
        tokio::time::sleep(random.milliseconds(400)).await;
        rig.kafka.resume()?;
    }
    let killed = relay.ended().and_then(|status| status.signal()) == Some(Signal::KILL.as_raw());
    let how = with(&format!("passed {passes} times"), &[("broker stalled", stalled)]);
    Ok(died_at.filter(|_| killed).map(|at| Fault { at, in_flight, how }))
}

/// SIGTERM, while records are on their way to a broker that goes on only after that.
async fn end_while_in_flight(rig: &Rig, armed: &Armed, random: &mut Random) -> Result<Option<Instant>> {
    let relay = &rig.seats[armed.seat].relay;
    let wait = Duration::from_millis(20) + random.milliseconds(150);
    let resuming = async {
        tokio::time::sleep(wait).await;
        rig.kafka.resume()
    };
    let (ended, resumed, died_at) = tokio::join!(relay.terminate(HIT_LIMIT), resuming, death(relay));
    resumed?;
    // One that has died meanwhile could not be asked.
    if relay.running() {
        ended?;
    }
    Ok(died_at)
}

/// The lock session ends while the standby stands still: it is the relay itself that finds out.
async fn lose_leadership(rig: &Rig, armed: &Armed) -> Result<Option<Instant>> {
    let standby = &rig.seats[armed.standby].relay;
    standby.pause()?;
    let ended = rig.end_lock_session().await;
    let died_at = death(&rig.seats[armed.seat].relay).await;
    standby.resume()?;
    ended?;
    Ok(died_at)
}

/// When it has ended; None if it goes on.
async fn death(relay: &Service) -> Option<Instant> {
    let begun = Instant::now();
    while begun.elapsed() < HIT_LIMIT {
        if !relay.running() {
            return Some(Instant::now());
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    None
}

async fn kill_anywhere(rig: &mut Rig, random: &mut Random) -> Result<Fault> {
    let leader = rig.leading().await?;
    let stalled = random.below(2) == 0;
    if stalled {
        stall_broker(rig, random).await?;
    }
    occasion(rig).await?;
    let fault = fault(rig, Instant::now(), with("", &[("broker stalled", stalled)]));
    rig.seats[leader].relay.kill();
    if stalled {
        tokio::time::sleep(random.milliseconds(400)).await;
        rig.kafka.resume()?;
    }
    Ok(fault)
}

async fn stop_at(rig: &mut Rig, point: Point, attempt: usize, random: &mut Random) -> Result<Option<Fault>> {
    let passes = passes(point, attempt, random);
    let armed = rig.arm(&failpoint(point, passes, "1*return(stop)")).await?;
    let begun = Instant::now();
    while !rig.seats[armed.seat].relay.stopped() {
        if begun.elapsed() > HIT_LIMIT || !rig.seats[armed.seat].relay.running() {
            return Ok(None);
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    let fault = fault(rig, Instant::now(), String::new());
    let how = wake_when_replaced(rig, armed.seat, random).await?;
    Ok(Some(Fault { how: format!("passed {passes} times, {how}"), ..fault }))
}

async fn stop_anywhere(rig: &mut Rig, random: &mut Random) -> Result<Fault> {
    let leader = rig.leading().await?;
    occasion(rig).await?;
    let fault = fault(rig, Instant::now(), String::new());
    rig.seats[leader].relay.pause()?;
    let how = wake_when_replaced(rig, leader, random).await?;
    Ok(Fault { how, ..fault })
}

/// Waits until another leads, and some time more; then the old one goes on where it was.
async fn wake_when_replaced(rig: &Rig, stopped: usize, random: &mut Random) -> Result<String> {
    let begun = Instant::now();
    rig.other_leads(stopped, SILENCE_LIMIT).await?;
    let replaced = begun.elapsed();
    tokio::time::sleep(random.milliseconds(1_000)).await;
    rig.seats[stopped].relay.resume()?;
    tokio::time::sleep(Duration::from_millis(200)).await;
    Ok(format!("replaced after {:.1} s", replaced.as_secs_f64()))
}

/// For a moment there are two that believe to lead.
async fn end_lock_session(rig: &mut Rig, random: &mut Random) -> Result<Fault> {
    let leader = rig.leading().await?;
    let stalled = random.below(2) == 0;
    if stalled {
        stall_broker(rig, random).await?;
    }
    occasion(rig).await?;
    let fault = fault(rig, Instant::now(), with("", &[("broker stalled", stalled)]));
    let ended = rig.end_lock_session().await?;
    // The old leader itself, if it asks soon after.
    let again = rig.led_anew(ended, SILENCE_LIMIT).await? == leader;
    if stalled {
        tokio::time::sleep(random.milliseconds(400)).await;
        rig.kafka.resume()?;
    }
    let how = with(&fault.how, &[("the same relay leads again", again)]);
    Ok(Fault { how, ..fault })
}

// ------------------------------------------------------------------------------------------------------------------ parts

async fn kill_broker(rig: &mut Rig, random: &mut Random) -> Result<Fault> {
    occasion(rig).await?;
    let fault = fault(rig, Instant::now(), String::new());
    rig.kafka.kill9();
    tokio::time::sleep(random.milliseconds(500)).await;
    let begun = Instant::now();
    rig.kafka.restart().await.context("start the broker again")?;
    Ok(Fault { how: format!("started again in {:.1} s", begun.elapsed().as_secs_f64()), ..fault })
}

/// What a crash does to transaction ids: those that nobody has committed under are handed out again. A window that a relay had
/// kept in memory would take the new rows for ones that it has seen. So ids are burnt before, with the relay looking on, and after.
async fn restart_database(rig: &mut Rig, random: &mut Random) -> Result<Fault> {
    let (stalled, quiet) = (random.below(3) > 0, random.below(3) > 0);
    let leader = rig.leading().await?;
    let kept_away = keep_standby_away(rig, leader, random)?;
    if stalled {
        // Then what is read ahead can be neither published nor saved.
        stall_broker(rig, random).await?;
    }
    occasion(rig).await?;
    if quiet {
        // Otherwise a commit soon makes the burnt ids durable.
        rig.writers.ask_to_hold();
        tokio::time::sleep(Duration::from_millis(40)).await;
    }
    let burnt = burn(rig, 50 + random.below(350)).await?;
    tokio::time::sleep(Duration::from_millis(5) + random.milliseconds(25)).await;
    let fault = fault(rig, Instant::now(), String::new());
    rig.postgres.stop_immediately().await?;
    let sooner = random.below(2) == 0;
    if stalled && sooner {
        rig.kafka.resume()?;
    }
    tokio::time::sleep(random.milliseconds(300)).await;
    rig.postgres.restart().await.context("start PostgreSQL again")?;
    if stalled && !sooner {
        rig.kafka.resume()?;
    }
    let first = burn(rig, 1).await?;
    let after = random.below(400);
    if after > 0 {
        burn(rig, after).await?;
    }
    rig.writers.go();
    let again = format!("{} transaction ids handed out again", (burnt + 1).saturating_sub(first));
    let how = with(&again, &[("broker stalled", stalled), (ALONE, kept_away.is_some())]);
    let_standby_go(rig, kept_away).await?;
    Ok(Fault { how, ..fault })
}

/// Begins and rolls back so many transactions; returns the id of the last.
async fn burn(rig: &Rig, count: usize) -> Result<u64> {
    const ONE: &str = "BEGIN; SELECT pg_current_xact_id()::text AS xid; ROLLBACK;";
    let burning = sqlx::raw_sql(AssertSqlSafe(ONE.repeat(count))).fetch_all(rig.superuser());
    let rows = burning.await.context("burn transaction ids")?;
    let last = rows.last().context("no transaction id was drawn")?;
    let last: &str = sqlx::Row::try_get(last, "xid").context("read a transaction id")?;
    last.parse().context("a transaction id")
}

async fn take_registry_away(rig: &mut Rig, random: &mut Random) -> Result<Fault> {
    let (fresh, killed) = (random.below(3) > 0, random.below(2) == 0);
    occasion(rig).await?;
    let mut at = Instant::now();
    if killed {
        rig.registry.kill9();
    } else {
        rig.registry.pause()?;
    }
    if fresh {
        // It knows no schema id yet: without the registry it can publish nothing.
        rig.arm("").await?;
        occasion(rig).await?;
        at = Instant::now();
    }
    let fault = fault(rig, at, String::new());
    tokio::time::sleep(Duration::from_millis(300) + random.milliseconds(1_500)).await;
    if killed {
        rig.registry.restart().await.context("start the registry again")?;
    } else {
        rig.registry.resume()?;
    }
    let leader = if fresh { "a new leader needs it" } else { "the leader knows its schemas" };
    let away = if killed { "killed" } else { "stopped" };
    Ok(Fault { how: format!("{away}, {leader}"), ..fault })
}

// ------------------------------------------------------------------------------------------------------------ connections

async fn cut_lines(rig: &mut Rig, line: Line, cut: Cut, random: &mut Random) -> Result<Fault> {
    let leader = rig.leading().await?;
    let broken_off = matches!(cut, Cut::Reset | Cut::AfterBytes(_)) && line != Line::Broker;
    let stalled = broken_off && cut == Cut::Reset && random.below(2) == 0;
    let kept_away = if broken_off { keep_standby_away(rig, leader, random)? } else { None };
    if stalled {
        stall_broker(rig, random).await?;
    }
    occasion(rig).await?;
    let seat = &rig.seats[leader];
    let proxies: &[&Proxy] = match line {
        Line::Database => &[&seat.database],
        Line::Broker => &[&seat.broker],
        Line::Both => &[&seat.database, &seat.broker],
    };
    let all = |what: &dyn Fn(&Proxy)| proxies.iter().for_each(|proxy| what(proxy));
    let connections: usize = proxies.iter().map(|proxy| proxy.connections()).sum();
    ensure!(connections > 0, "the leader has no connection to cut");
    let fault = fault(rig, Instant::now(), format!("{connections} connections"));
    match cut {
        Cut::Reset => {
            all(&Proxy::cut);
            if stalled {
                tokio::time::sleep(random.milliseconds(300)).await;
                rig.kafka.resume()?;
            }
            let how = with(&fault.how, &[("broker stalled", stalled), (ALONE, kept_away.is_some())]);
            let_standby_go(rig, kept_away).await?;
            return Ok(Fault { how, ..fault });
        }
        Cut::AfterBytes(direction) => {
            // A broker answers in few bytes.
            let most = match (line, direction) {
                (Line::Broker, Direction::Down) => 1_000,
                (Line::Broker, Direction::Up) => 5_000,
                _ => 10_000,
            };
            let bytes = random.below(most);
            all(&|proxy| proxy.cut_after(direction, bytes));
            let at = until_cut(proxies, direction).await?;
            let how = with(&format!("after {bytes} bytes"), &[(ALONE, kept_away.is_some())]);
            let_standby_go(rig, kept_away).await?;
            return Ok(Fault { at, how, ..fault });
        }
        Cut::Refused => all(&Proxy::refuse),
        Cut::Stalled => Direction::BOTH.iter().for_each(|way| all(&|proxy| proxy.stall(*way))),
        Cut::OneWay(direction) => all(&|proxy| proxy.stall(direction)),
    }
    let long = match line {
        Line::Both => true,
        Line::Database => cut != Cut::Refused && random.below(3) == 0,
        Line::Broker => false,
    };
    let lasts = if long { LONG } else { Duration::from_millis(200) } + random.milliseconds(1_500);
    tokio::time::sleep(lasts).await;
    all(&Proxy::heal);
    Ok(Fault { how: format!("for {:.1} s", lasts.as_secs_f64()), ..fault })
}

async fn until_cut(proxies: &[&Proxy], direction: Direction) -> Result<Instant> {
    let begun = Instant::now();
    while proxies.iter().any(|proxy| proxy.cut_pending(direction)) {
        ensure!(begun.elapsed() < BYTES_LIMIT, "not enough bytes went through to cut a connection");
        tokio::time::sleep(LOOK_EVERY).await;
    }
    Ok(Instant::now())
}
