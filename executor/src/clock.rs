//! What time it is: the machine's clock, which a test or a simulation may move on.
//!
//! It decides when an order is looked at again, when a request is too old, and how long a webhook waits for its order. Leases do not
//! follow it, nor do the times in signatures: they are about calls that really run, and about others' clocks.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use time::OffsetDateTime;

/// A clock. Clones are the same clock.
#[derive(Clone, Debug, Default)]
pub struct Clock {
    ahead_us: Arc<AtomicU64>,
}

impl Clock {
    /// What time it is.
    pub fn now(&self) -> OffsetDateTime {
        OffsetDateTime::now_utc() + self.ahead()
    }

    /// How far it is ahead of the machine's, and so of the database's: what is compared with the database's clock is moved by it there.
    pub fn ahead(&self) -> Duration {
        Duration::from_micros(self.ahead_us.load(Ordering::Acquire))
    }

    /// Moves it on. Only tests and simulations do.
    pub fn advance(&self, by: Duration) {
        let us = u64::try_from(by.as_micros()).unwrap_or(u64::MAX);
        self.ahead_us.fetch_add(us, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_the_machines_until_it_is_moved_and_clones_move_with_it() {
        let (clock, real) = (Clock::default(), OffsetDateTime::now_utc());
        let moved = clock.clone();
        assert!(clock.now() - real < Duration::from_mins(1));
        moved.advance(Duration::from_hours(25));
        assert_eq!(clock.ahead(), Duration::from_hours(25));
        assert!(clock.now() - real >= Duration::from_hours(25));
    }
}
