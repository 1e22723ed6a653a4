//! What can happen to instances of the payment service that consume results.

use std::fmt;

use super::super::episode::{self, Cut, FaultKind};
use crate::proxy::{Direction, Moment};

/// A named point of the payment service at which it can be ended or stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Point {
    /// Records are polled.
    C1,
    /// A transaction is begun.
    C2,
    /// Events are marked as processed.
    C3,
    /// COMMIT is sent, and not answered.
    C4,
    /// It is committed, and offsets are not.
    C5,
    /// A commit of offsets is sent.
    C6,
    /// In a rebalance.
    C7,
    /// Records are set aside.
    C8,
}

impl Point {
    /// All of them.
    pub const ALL: [Point; 8] =
        [Point::C1, Point::C2, Point::C3, Point::C4, Point::C5, Point::C6, Point::C7, Point::C8];
}

/// Connections of one instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Line {
    /// To PostgreSQL.
    Database,
    /// To Kafka.
    Broker,
}

/// One kind of fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// SIGKILL of an instance at a point.
    Kill(Point),
    /// SIGKILL of an instance at any moment.
    KillAnywhere,
    /// SIGKILL of all instances together.
    KillAll,
    /// SIGSTOP of an instance, at a point or at any moment, until its session has ended and others own its partitions; then SIGCONT.
    Stop(Option<Point>),
    /// SIGSTOP within a transaction, for so long that the server ends its session too.
    StopLong,
    /// Another instance joins, works for a while, and leaves.
    Join,
    /// An instance leaves, and comes back.
    Leave,
    /// An instance's connections to PostgreSQL are reset at this moment of a COMMIT.
    Commit(Moment),
    /// PostgreSQL is stopped at once, and started again.
    Database,
    /// SIGKILL of the broker, and a new start.
    Broker,
    /// Connections of an instance are cut.
    Cut(Line, Cut),
}

/// What happens beside the kills at the points, each once in a round.
const OTHERS: [Kind; 33] = {
    use Direction::{Down, Up};
    [
        Kind::KillAnywhere,
        Kind::KillAnywhere,
        Kind::KillAll,
        Kind::Stop(None),
        Kind::Stop(None),
        Kind::Stop(Some(Point::C2)),
        Kind::Stop(Some(Point::C3)),
        Kind::Stop(Some(Point::C4)),
        Kind::Stop(Some(Point::C5)),
        Kind::Stop(Some(Point::C6)),
        Kind::StopLong,
        Kind::Join,
        Kind::Join,
        Kind::Leave,
        Kind::Leave,
        Kind::Commit(Moment::Before),
        Kind::Commit(Moment::Within),
        Kind::Commit(Moment::Sent),
        Kind::Commit(Moment::Answered),
        Kind::Database,
        Kind::Database,
        Kind::Broker,
        Kind::Broker,
        Kind::Cut(Line::Database, Cut::Reset),
        Kind::Cut(Line::Database, Cut::Refused),
        Kind::Cut(Line::Database, Cut::OneWay(Down)),
        Kind::Cut(Line::Database, Cut::AfterBytes(Up)),
        Kind::Cut(Line::Database, Cut::AfterBytes(Down)),
        Kind::Cut(Line::Broker, Cut::Reset),
        Kind::Cut(Line::Broker, Cut::Refused),
        Kind::Cut(Line::Broker, Cut::OneWay(Down)),
        Kind::Cut(Line::Broker, Cut::AfterBytes(Up)),
        Kind::Cut(Line::Broker, Cut::AfterBytes(Down)),
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
            Kind::KillAll => write!(f, "SIGKILL of all instances"),
            Kind::Stop(Some(point)) => write!(f, "SIGSTOP at {point:?}"),
            Kind::Stop(None) => write!(f, "SIGSTOP at any moment"),
            Kind::StopLong => write!(f, "SIGSTOP in a transaction, long"),
            Kind::Join => write!(f, "an instance joins"),
            Kind::Leave => write!(f, "an instance leaves"),
            Kind::Commit(moment) => write!(f, "COMMIT: reset {moment}"),
            Kind::Database => write!(f, "PostgreSQL restarted"),
            Kind::Broker => write!(f, "broker killed"),
            Kind::Cut(line, cut) => {
                let to = match line {
                    Line::Database => "PostgreSQL",
                    Line::Broker => "Kafka",
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
    fn two_hundred_episodes_kill_at_every_point_and_bring_everything_else() {
        bring_everything::<Kind>(200, 12, 2);
    }
}
