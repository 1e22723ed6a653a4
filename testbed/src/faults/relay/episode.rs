//! What can happen to the relays of an outbox.

use std::fmt;

use super::super::episode::{self, Cut, FaultKind};
use crate::proxy::Direction;

/// A named point of the relay at which it can be ended or stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
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

/// One fault among what is under way.
pub type Episode = episode::Episode<Kind>;

impl FaultKind for Kind {
    fn kills() -> Vec<Kind> {
        Point::ALL.map(Kind::Kill).to_vec()
    }

    fn others() -> &'static [Kind] {
        &OTHERS
    }

    fn killed_at(&self) -> Option<String> {
        if let Kind::Kill(point) = self { Some(format!("{point:?}")) } else { None }
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
                write!(f, "{to}: {cut}")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::episode::tests::bring_everything;
    use super::*;

    #[test]
    fn a_hundred_episodes_kill_at_every_point_and_bring_everything_else() {
        bring_everything::<Kind>(100, 6, 1);
    }
}
