//! What can happen to executors.

use std::fmt;

use super::super::episode::{self, Cut, FaultKind};
use crate::proxy::Direction;

/// A named point of the executor at which it can be ended or stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
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
        bring_everything::<Kind>(200, 14, 2);
    }
}
