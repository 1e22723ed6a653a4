//! What can happen to executors, and what happens in which episode: a matter of the seed alone.

use std::fmt;

use serde::Serialize;

use super::super::episode::Cut;
use crate::load::Random;
use crate::proxy::Direction;

/// A named point of the executor at which it can be ended or stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum Point {
    /// A call is written down, and not made.
    E1,
    /// A call is made, and not answered.
    E2,
    /// The answer is read, and nothing of it recorded.
    E3,
    /// The result is inserted, and its event is not.
    E4,
    /// Everything is written, and COMMIT is not sent.
    E5,
    /// COMMIT is sent, and not answered.
    E6,
    /// It is committed, and nothing more done.
    E7,
}

impl Point {
    /// All of them.
    pub const ALL: [Point; 7] = [Point::E1, Point::E2, Point::E3, Point::E4, Point::E5, Point::E6, Point::E7];
}

/// Connections of one executor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Line {
    /// To PostgreSQL.
    Database,
    /// To Kafka.
    Broker,
    /// To the PSP.
    Psp,
}

/// One kind of fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// SIGKILL of an executor at a point.
    Kill(Point),
    /// SIGKILL of an executor at any moment.
    KillAnywhere,
    /// SIGKILL of all executors together.
    KillAll,
    /// SIGSTOP of an executor, at a point or at any moment, until its claims have run out and others have taken over; then SIGCONT.
    Stop(Option<Point>),
    /// SIGSTOP within a transaction, for so long that the server ends its session.
    StopLong,
    /// PostgreSQL is stopped at once, and started again.
    Database,
    /// SIGKILL of the broker, and a new start.
    Broker,
    /// The PSP stands still for longer than an executor waits for it.
    Psp,
    /// Connections of an executor are cut.
    Cut(Line, Cut),
}

/// What happens beside the kills at the points, each once in a round.
const OTHERS: [Kind; 32] = {
    use Direction::{Down, Up};
    [
        Kind::KillAnywhere,
        Kind::KillAnywhere,
        Kind::KillAll,
        Kind::KillAll,
        Kind::Stop(None),
        Kind::Stop(None),
        Kind::Stop(Some(Point::E1)),
        Kind::Stop(Some(Point::E2)),
        Kind::Stop(Some(Point::E3)),
        Kind::Stop(Some(Point::E4)),
        Kind::Stop(Some(Point::E5)),
        Kind::Stop(Some(Point::E6)),
        Kind::StopLong,
        Kind::Database,
        Kind::Database,
        Kind::Database,
        Kind::Broker,
        Kind::Broker,
        Kind::Psp,
        Kind::Psp,
        Kind::Cut(Line::Database, Cut::Reset),
        Kind::Cut(Line::Database, Cut::Refused),
        Kind::Cut(Line::Database, Cut::OneWay(Down)),
        Kind::Cut(Line::Database, Cut::AfterBytes(Up)),
        Kind::Cut(Line::Database, Cut::AfterBytes(Down)),
        Kind::Cut(Line::Psp, Cut::Reset),
        Kind::Cut(Line::Psp, Cut::Refused),
        Kind::Cut(Line::Psp, Cut::OneWay(Up)),
        Kind::Cut(Line::Psp, Cut::OneWay(Down)),
        Kind::Cut(Line::Psp, Cut::AfterBytes(Up)),
        Kind::Cut(Line::Psp, Cut::AfterBytes(Down)),
        Kind::Cut(Line::Broker, Cut::Reset),
    ]
};

/// In so many episodes each kind comes several times.
const CHOICE: usize = 500;

/// One fault among payment orders under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Episode {
    /// Counted from 1.
    pub number: usize,
    /// What happens.
    pub kind: Kind,
    /// Of the whole run.
    pub seed: u64,
}

impl Episode {
    /// The moments and measures of this episode.
    pub fn random(&self) -> Random {
        Random::new(self.seed, self.number)
    }
}

/// The episodes of a seed: half of them kills at the points, each point equally often. More episodes do not change the first ones.
pub fn draw(seed: u64, episodes: usize) -> Vec<Episode> {
    let mut random = Random::new(seed, usize::MAX);
    let (mut kinds, mut others) = (Vec::new(), Vec::new());
    while kinds.len() < episodes {
        let mut round: Vec<Kind> = Point::ALL.map(Kind::Kill).to_vec();
        while round.len() < 2 * Point::ALL.len() {
            if others.is_empty() {
                others = OTHERS.to_vec();
                shuffle(&mut others, &mut random);
            }
            round.extend(others.pop());
        }
        shuffle(&mut round, &mut random);
        kinds.extend(round);
    }
    kinds.truncate(episodes);
    (1..).zip(kinds).map(|(number, kind)| Episode { number, kind, seed }).collect()
}

/// An episode of each of these kinds, out of those that the seed draws.
pub fn choose(seed: u64, kinds: &[Kind]) -> Vec<Episode> {
    let mut drawn = draw(seed, CHOICE);
    let mut take = |kind: &Kind| {
        let place = drawn.iter().position(|episode| episode.kind == *kind)?;
        Some(drawn.remove(place))
    };
    kinds.iter().filter_map(&mut take).collect()
}

fn shuffle(kinds: &mut [Kind], random: &mut Random) {
    for last in (1..kinds.len()).rev() {
        kinds.swap(last, random.below(last + 1));
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Kind::Kill(point) => write!(f, "SIGKILL at {point:?}"),
            Kind::KillAnywhere => write!(f, "SIGKILL at any moment"),
            Kind::KillAll => write!(f, "SIGKILL of all executors"),
            Kind::Stop(Some(point)) => write!(f, "SIGSTOP at {point:?}"),
            Kind::Stop(None) => write!(f, "SIGSTOP at any moment"),
            Kind::StopLong => write!(f, "SIGSTOP in a transaction, long"),
            Kind::Database => write!(f, "PostgreSQL restarted"),
            Kind::Broker => write!(f, "broker killed"),
            Kind::Psp => write!(f, "PSP stands still"),
            Kind::Cut(line, cut) => {
                let to = match line {
                    Line::Database => "PostgreSQL",
                    Line::Broker => "Kafka",
                    Line::Psp => "PSP",
                };
                match cut {
                    Cut::Reset => write!(f, "{to}: reset"),
                    Cut::Refused => write!(f, "{to}: refused"),
                    Cut::Stalled => write!(f, "{to}: stalled"),
                    Cut::OneWay(Direction::Up) => write!(f, "{to}: no requests"),
                    Cut::OneWay(Direction::Down) => write!(f, "{to}: no answers"),
                    Cut::AfterBytes(Direction::Up) => write!(f, "{to}: cut in a request"),
                    Cut::AfterBytes(Direction::Down) => write!(f, "{to}: cut in an answer"),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_draws_the_same_episodes_and_more_of_them_begin_alike() {
        assert_eq!(draw(1, 200), draw(1, 200));
        assert_eq!(draw(1, 200)[..77], draw(1, 77));
        assert_ne!(draw(1, 200), draw(2, 200));
        assert_eq!(draw(1, 3)[2].number, 3);
    }

    #[test]
    fn two_hundred_episodes_kill_at_every_point_and_bring_everything_else() {
        for seed in 0..50 {
            let kinds: Vec<Kind> = draw(seed, 200).iter().map(|episode| episode.kind).collect();
            let count = |wanted: Kind| kinds.iter().filter(|kind| **kind == wanted).count();
            for point in Point::ALL {
                assert!(count(Kind::Kill(point)) >= 14, "{point:?} of seed {seed}");
            }
            for kind in OTHERS {
                assert!(count(kind) >= 2, "{kind} of seed {seed}");
            }
        }
    }
}
