//! What can happen, and what happens in which episode: a matter of the seed alone.

use std::fmt;

use serde::Serialize;

use crate::load::Random;
use crate::proxy::Direction;

/// A named point of the relay at which it can be ended or stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum Point {
    /// The leader lock is acquired.
    R1,
    /// A batch is read.
    R2,
    /// A batch is produced, and not acknowledged.
    R3,
    /// Some of a batch is acknowledged.
    R4,
    /// All of it is acknowledged, and progress is not saved.
    R5,
    /// The save is sent, and not answered.
    R6,
    /// Asked to stop, and some is still in flight.
    R7,
    /// Leadership is lost in the middle of a batch.
    R8,
}

impl Point {
    /// All of them.
    pub const ALL: [Point; 8] =
        [Point::R1, Point::R2, Point::R3, Point::R4, Point::R5, Point::R6, Point::R7, Point::R8];
}

/// Connections of one relay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Line {
    /// To PostgreSQL.
    Database,
    /// To Kafka.
    Broker,
    /// To both.
    Both,
}

/// What is done to connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// They are reset once.
    Reset,
    /// They are reset, and new ones too for a while.
    Refused,
    /// Nothing passes for a while, and then all of it.
    Stalled,
    /// The same, in one direction.
    OneWay(Direction),
    /// One of them is reset after so many bytes.
    AfterBytes(Direction),
}

/// One kind of fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// SIGKILL of the leader at a point.
    Kill(Point),
    /// SIGKILL of the leader at any moment.
    KillAnywhere,
    /// SIGSTOP of the leader, at a point or at any moment, until another leads; then SIGCONT.
    Stop(Option<Point>),
    /// The server ends the session that holds the leader lock.
    LockSession,
    /// SIGKILL of the broker, and a new start.
    Broker,
    /// PostgreSQL is stopped at once, and started again.
    Database,
    /// The registry is away while a new leader needs it, or one that knows all that it needs.
    Registry,
    /// Connections of the leader are cut.
    Cut(Line, Cut),
}

/// What happens beside the kills at the points, each once in a round.
const OTHERS: [Kind; 28] = {
    use Direction::{Down, Up};
    [
        Kind::KillAnywhere,
        Kind::Stop(None),
        Kind::Stop(Some(Point::R3)),
        Kind::Stop(Some(Point::R5)),
        Kind::Stop(Some(Point::R6)),
        Kind::LockSession,
        Kind::Broker,
        Kind::Broker,
        Kind::Broker,
        Kind::Database,
        Kind::Database,
        Kind::Database,
        Kind::Registry,
        Kind::Registry,
        Kind::Cut(Line::Database, Cut::Reset),
        Kind::Cut(Line::Database, Cut::Refused),
        Kind::Cut(Line::Database, Cut::Stalled),
        Kind::Cut(Line::Database, Cut::OneWay(Up)),
        Kind::Cut(Line::Database, Cut::OneWay(Down)),
        Kind::Cut(Line::Database, Cut::AfterBytes(Up)),
        Kind::Cut(Line::Database, Cut::AfterBytes(Down)),
        Kind::Cut(Line::Broker, Cut::Reset),
        Kind::Cut(Line::Broker, Cut::OneWay(Up)),
        Kind::Cut(Line::Broker, Cut::OneWay(Down)),
        Kind::Cut(Line::Broker, Cut::AfterBytes(Up)),
        Kind::Cut(Line::Broker, Cut::AfterBytes(Down)),
        Kind::Cut(Line::Both, Cut::Reset),
        Kind::Cut(Line::Both, Cut::Stalled),
    ]
};

/// In so many episodes each kind comes several times.
const CHOICE: usize = 500;

/// One fault among the writers' events.
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
            Kind::Stop(Some(point)) => write!(f, "SIGSTOP at {point:?}"),
            Kind::Stop(None) => write!(f, "SIGSTOP at any moment"),
            Kind::LockSession => write!(f, "lock session ended"),
            Kind::Broker => write!(f, "broker killed"),
            Kind::Database => write!(f, "PostgreSQL restarted"),
            Kind::Registry => write!(f, "registry away"),
            Kind::Cut(line, cut) => {
                let to = match line {
                    Line::Database => "PostgreSQL",
                    Line::Broker => "Kafka",
                    Line::Both => "both",
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
    fn what_is_chosen_is_what_the_seed_draws() {
        let kinds = [Kind::Database, Kind::Kill(Point::R8), Kind::Database];
        let chosen = choose(3, &kinds);
        assert_eq!(chosen.iter().map(|episode| episode.kind).collect::<Vec<_>>(), kinds);
        assert_ne!(chosen[0], chosen[2]);
        let drawn = draw(3, CHOICE);
        assert!(chosen.iter().all(|episode| drawn[episode.number - 1] == *episode));
    }

    #[test]
    fn a_hundred_episodes_kill_at_every_point_and_bring_everything_else() {
        for seed in 0..50 {
            let kinds: Vec<Kind> = draw(seed, 100).iter().map(|episode| episode.kind).collect();
            let count = |wanted: Kind| kinds.iter().filter(|kind| **kind == wanted).count();
            for point in Point::ALL {
                assert!(count(Kind::Kill(point)) >= 6, "{point:?} of seed {seed}");
            }
            for kind in OTHERS {
                assert!(count(kind) >= 1, "{kind} of seed {seed}");
            }
        }
    }
}
