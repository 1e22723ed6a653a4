//! Kills processes in turn while the load runs, each with work in its hands, and brings them back.
//!
//! ```text
//! due ─▶ SIGSTOP ─▶ anything in flight? ── no: SIGCONT, a little later again
//!                          │ yes
//!                          ▼
//!                       SIGKILL ─▶ standby leads (relay) ─▶ started again, ready ─▶ backlog through: the window closes
//! ```
//! The victim is asked nothing: while it stands still, the databases say what had been begun before it was stopped and is not
//! finished. That is what it takes with it.
//!
//! Moments are chosen where a wrong order of steps shows: the payment service dies within a transaction that applies results, the
//! executor with calls to the PSP open and within a transaction that records results, a relay with records that the broker has not
//! acknowledged. For the last the broker has to stand still for a moment too: usually it is too quick to be caught.

use std::fmt;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::process::Signal;
use time::OffsetDateTime;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::watch::Scene;
use super::{Demo, Window};
use crate::circle::Circle;
use crate::load::Random;
use crate::processes::Service;
use crate::stack::Identity;
use crate::store::Databases;

/// For something to be in flight.
const OCCASION_LIMIT: Duration = Duration::from_secs(5);
/// Up to here a process is to die within a transaction; after that any moment with something in flight will do.
const CHOOSY_LIMIT: Duration = Duration::from_secs(3);
/// What was sent to the database before the process was stopped is done after this time, a COMMIT above all. A transaction that is
/// still open then dies with the process.
const DATABASE_SETTLES: Duration = Duration::from_millis(30);
/// What is under way to a broker that stands still is enough for a kill when it is so many events, or after so long.
const STALL_EVENTS: i64 = 30;
const STALL_LIMIT: Duration = Duration::from_millis(400);
/// For a standby to lead.
const TAKEOVER_LIMIT: Duration = Duration::from_secs(20);
/// For the backlog to be through. It is not the promise (that everything settles), but where the measure of the lag begins again.
const RECOVERY_LIMIT: Duration = Duration::from_mins(1);
/// Kills lie between these parts of the load.
const FIRST: f64 = 0.1;
const SPAN: f64 = 0.75;

/// Whose turn it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turn {
    ResultRelay,
    Executor,
    PaymentService,
    RequestRelay,
}

/// Relay leader, executor, payment service; the relays of the two outboxes alternate.
fn turn(number: usize) -> Turn {
    match number % 6 {
        0 => Turn::RequestRelay,
        3 => Turn::ResultRelay,
        1 | 4 => Turn::Executor,
        _ => Turn::PaymentService,
    }
}

/// A kill that was carried out.
#[derive(Clone, Debug)]
pub struct Kill {
    /// The process.
    pub victim: String,
    /// What it had in its hands.
    pub in_flight: i64,
    /// What that is.
    pub of_what: &'static str,
    /// Since the first payment.
    pub after: Duration,
    /// From the kill until its work went on: a standby led, or it was ready again.
    pub back_after: Duration,
    /// Who led then.
    pub successor: Option<String>,
    /// From the kill until what had piled up was through.
    pub window: Window,
}

impl fmt::Display for Kill {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let caught_up = (self.window.to - self.window.from).as_seconds_f64();
        let back = match &self.successor {
            Some(successor) => format!("{successor} leads"),
            None => "ready again".to_owned(),
        };
        write!(
            f,
            "{:<18} at {:>5.1} s with {:>3} {}; {back} after {} ms, caught up after {caught_up:.1} s",
            self.victim,
            self.after.as_secs_f64(),
            self.in_flight,
            self.of_what,
            self.back_after.as_millis()
        )
    }
}

/// Carries out the kills of a run. One for which there is no occasion any more is left out: the report counts.
pub(super) async fn carry_out(
    demo: &Demo,
    scene: &Scene<'_>,
    circle: &Circle,
    broker: Option<Identity>,
) -> Result<Vec<Kill>> {
    let databases = scene.databases();
    let begun = Instant::now();
    let mut killer =
        Killer { circle, databases, broker, executor_since: OffsetDateTime::now_utc(), number: 0 };
    let mut kills = Vec::new();
    let mut recoveries = JoinSet::new();
    for (number, due) in schedule(demo).into_iter().enumerate() {
        tokio::time::sleep_until(begun + due).await;
        killer.number = number;
        let Some(kill) = killer.one(turn(number), scene).await? else { continue };
        scene.killed(&kill);
        let (index, databases) = (kills.len(), databases.clone());
        recoveries.spawn(async move { (index, until_caught_up(&databases).await) });
        kills.push(kill);
    }
    while let Some(recovered) = recoveries.join_next().await {
        let (index, at) = recovered.context("watch a recovery")?;
        kills[index].window.to = at?;
    }
    Ok(kills)
}

/// When each kill is due: spread over the load, at moments that the seed draws.
fn schedule(demo: &Demo) -> Vec<Duration> {
    let count = |number: usize| f64::from(u32::try_from(number).unwrap_or(u32::MAX));
    let length = count(demo.payments) / demo.rate;
    let slot = SPAN / count(demo.kills).max(1.0);
    let mut random = Random::new(demo.seed, usize::MAX);
    (0..demo.kills)
        .map(|number| {
            let within = count(random.below(1_000)) / 1_000.0;
            Duration::from_secs_f64(length * (FIRST + slot * (count(number) + within)))
        })
        .collect()
}

struct Killer<'a> {
    circle: &'a Circle,
    databases: &'a Databases,
    /// Given if it may be made to stand still.
    broker: Option<Identity>,
    /// Calls to the PSP that were begun before died with the executor before this one.
    executor_since: OffsetDateTime,
    /// The number of this kill.
    number: usize,
}

impl Killer<'_> {
    async fn one(&mut self, turn: Turn, scene: &Scene<'_>) -> Result<Option<Kill>> {
        let looking_since = Instant::now();
        while looking_since.elapsed() < OCCASION_LIMIT {
            if let Some(victim) = victim(turn, self.number, self.circle).await {
                let from = OffsetDateTime::now_utc();
                let choosy = looking_since.elapsed() < CHOOSY_LIMIT;
                let in_flight = self.kill_if_busy(turn, victim, choosy).await?;
                if in_flight > 0 {
                    let (killed_at, after) = (Instant::now(), scene.elapsed());
                    let successor = bring_back(turn, victim, self.circle).await?;
                    if turn == Turn::Executor {
                        self.executor_since = from;
                    }
                    let back_after =
                        successor.as_ref().map_or_else(|| killed_at.elapsed(), |(_, after)| *after);
                    return Ok(Some(Kill {
                        victim: victim.name().to_owned(),
                        in_flight,
                        of_what: of_what(turn),
                        after,
                        back_after,
                        successor: successor.map(|(name, _)| name),
                        window: Window { from, to: OffsetDateTime::now_utc() },
                    }));
                }
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(None)
    }

    /// Stops the victim; kills it if it has something in its hands, else lets it go on. Says how much that was.
    async fn kill_if_busy(&self, turn: Turn, victim: &Service, choosy: bool) -> Result<i64> {
        let _stall = self.stall(turn).await?;
        let before = OffsetDateTime::now_utc();
        victim.pause()?;
        let in_flight = match self.within_transaction(turn).await {
            Ok(false) if choosy => Ok(0),
            Ok(_) => self.in_flight(turn, before).await,
            Err(error) => Err(error),
        };
        match in_flight {
            Ok(1..) => victim.kill(),
            Ok(_) | Err(_) => victim.resume()?,
        }
        in_flight
    }

    /// Whether the victim, which stands still, has a transaction open that it will not commit any more. Relays have none that
    /// matters: what they do is not in the database.
    async fn within_transaction(&self, turn: Turn) -> Result<bool> {
        let open = async || match turn {
            Turn::RequestRelay | Turn::ResultRelay => Ok(true),
            // A result and its event must be one transaction: were they two, one kill would fall into the first and one into
            // the second.
            Turn::Executor if self.number % 2 == 1 => self.databases.executor_writes("outbox.events").await,
            Turn::Executor => self.databases.executor_writes("executor.psp_results").await,
            Turn::PaymentService => self.databases.payment_service_writes("payments.processed_events").await,
        };
        if !open().await? {
            return Ok(false);
        }
        tokio::time::sleep(DATABASE_SETTLES).await;
        open().await
    }

    /// What was begun before this moment and is not finished.
    async fn in_flight(&self, turn: Turn, before: OffsetDateTime) -> Result<i64> {
        match turn {
            Turn::RequestRelay => self.databases.unpublished_requests(before).await,
            Turn::ResultRelay => self.databases.unpublished_results(before).await,
            Turn::Executor => self.databases.open_calls(self.executor_since, before).await,
            Turn::PaymentService => self.databases.unapplied(before).await,
        }
    }

    /// For a relay: makes the broker stand still, and waits until something is under way to it.
    async fn stall(&self, turn: Turn) -> Result<Option<Stall>> {
        let Some(broker) = self.broker.filter(|_| matches!(turn, Turn::RequestRelay | Turn::ResultRelay))
        else {
            return Ok(None);
        };
        let stall = Stall::begin(broker);
        let begun = Instant::now();
        while begun.elapsed() < STALL_LIMIT
            && self.in_flight(turn, OffsetDateTime::now_utc()).await? < STALL_EVENTS
        {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(Some(stall))
    }
}

/// The broker stands still as long as this lives.
struct Stall(Identity);

impl Stall {
    fn begin(broker: Identity) -> Stall {
        broker.signal(Signal::STOP);
        Stall(broker)
    }
}

impl Drop for Stall {
    fn drop(&mut self) {
        self.0.signal(Signal::CONT);
    }
}

/// The process to kill: of relays, the one that leads, of executors one after the other. None while nobody does.
async fn victim(turn: Turn, number: usize, circle: &Circle) -> Option<&Service> {
    match turn {
        Turn::ResultRelay => leader(&circle.result_relays).await,
        Turn::RequestRelay => leader(&circle.request_relays).await,
        Turn::Executor => circle.executors.get(number / 3 % circle.executors.len().max(1)),
        Turn::PaymentService => Some(&circle.payment_service),
    }
}

async fn leader(relays: &[Service]) -> Option<&Service> {
    for relay in relays {
        // One that is just starting does not answer.
        if relay.running() && relay.metric("relay_leader").await.ok().flatten() == Some(1.0) {
            return Some(relay);
        }
    }
    None
}

fn of_what(turn: Turn) -> &'static str {
    match turn {
        Turn::ResultRelay | Turn::RequestRelay => "events under way",
        Turn::Executor => "calls to the PSP open",
        Turn::PaymentService => "results being applied",
    }
}

/// Starts it again. Of a relay a standby takes over before; says which one, and after how long.
async fn bring_back(turn: Turn, victim: &Service, circle: &Circle) -> Result<Option<(String, Duration)>> {
    let relays = match turn {
        Turn::ResultRelay => &circle.result_relays,
        Turn::RequestRelay => &circle.request_relays,
        Turn::Executor | Turn::PaymentService => {
            victim.restart().await.context("start a killed process again")?;
            return Ok(None);
        }
    };
    let begun = Instant::now();
    let mut successor = None;
    while successor.is_none() && begun.elapsed() < TAKEOVER_LIMIT {
        successor = leader(relays).await.map(|relay| (relay.name().to_owned(), begun.elapsed()));
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    victim.restart().await.context("start a killed relay again")?;
    successor.map(Some).with_context(|| {
        format!("no standby leads {} s after the kill of {}", TAKEOVER_LIMIT.as_secs(), victim.name())
    })
}

/// When everything that is written by now has arrived on the other side.
async fn until_caught_up(databases: &Databases) -> Result<OffsetDateTime> {
    let begun = Instant::now();
    let written = databases.written().await?;
    while begun.elapsed() < RECOVERY_LIMIT && !databases.arrived(written).await? {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(OffsetDateTime::now_utc())
}

#[cfg(test)]
mod tests {
    use super::super::Scenario;
    use super::*;

    #[test]
    fn everybody_has_a_turn_and_the_relays_of_both_outboxes_alternate() {
        use Turn::{Executor, PaymentService, RequestRelay, ResultRelay};
        let turns: Vec<Turn> = (0..9).map(turn).collect();
        let round = [RequestRelay, Executor, PaymentService, ResultRelay, Executor, PaymentService];
        assert_eq!(turns, [&round[..], &round[..3]].concat());
    }

    #[test]
    fn kills_are_spread_over_the_load_at_moments_of_the_seed() {
        let demo = |seed| Demo {
            payments: 2_000,
            rate: 200.0,
            kills: 9,
            seed,
            scenario: Scenario::Plain,
            stall_broker: true,
            keep: false,
        };
        let due = schedule(&demo(1));
        assert_eq!(due, schedule(&demo(1)));
        assert_ne!(due, schedule(&demo(2)));
        assert!(due.is_sorted());
        assert!(due[0] >= Duration::from_secs(1) && due[8] <= Duration::from_millis(8_500), "{due:?}");
        assert!(schedule(&Demo { kills: 0, ..demo(1) }).is_empty());
    }
}
