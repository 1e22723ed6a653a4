//! The simulator's clock: the machine's, and as far ahead of it as it was asked to go.
//!
//! Everything that expires, waits or is dated here follows it. It never goes back.

use std::time::Duration;

use time::OffsetDateTime;
use tokio::sync::watch;

/// Ten years: far enough for everything that expires, and nowhere near the end of the calendar.
const MAX_AHEAD_SECONDS: i64 = 10 * 365 * 24 * 60 * 60;

#[derive(Debug)]
pub(crate) struct Clock {
    ahead_seconds: watch::Sender<i64>,
}

impl Clock {
    pub(crate) fn new() -> Self {
        Self { ahead_seconds: watch::Sender::new(0) }
    }

    pub(crate) fn now(&self) -> OffsetDateTime {
        OffsetDateTime::now_utc() + time::Duration::seconds(self.ahead_seconds())
    }

    /// How far ahead of the machine's clock it is.
    pub(crate) fn ahead_seconds(&self) -> i64 {
        *self.ahead_seconds.borrow()
    }

    /// Moves on, and wakes whoever sleeps by this clock. False if it would go back or too far.
    pub(crate) fn advance(&self, seconds: i64) -> bool {
        self.ahead_seconds.send_if_modified(|ahead| {
            let moved =
                ahead.checked_add(seconds).filter(|moved| *moved <= MAX_AHEAD_SECONDS && seconds >= 0);
            *ahead = moved.unwrap_or(*ahead);
            moved.is_some()
        })
    }

    /// Returns when this clock shows `at`.
    pub(crate) async fn sleep_until(&self, at: OffsetDateTime) {
        let mut moves = self.ahead_seconds.subscribe();
        loop {
            moves.mark_unchanged();
            let Ok(left) = Duration::try_from(at - self.now()) else { return };
            if left.is_zero() {
                return;
            }
            tokio::select! {
                () = tokio::time::sleep(left) => {}
                // The sender is this clock, which outlives the wait.
                _ = moves.changed() => {}
            }
        }
    }

    pub(crate) async fn sleep(&self, duration: Duration) {
        self.sleep_until(self.now() + duration).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn moving_on_ends_waits() {
        let clock = Clock::new();
        let before = clock.now();
        let sleep = clock.sleep(Duration::from_hours(25));
        let advance = async { assert!(clock.advance(25 * 3600)) };
        let both = async { tokio::join!(sleep, advance) };
        tokio::time::timeout(Duration::from_secs(10), both).await.unwrap();
        assert!(clock.now() - before >= time::Duration::hours(25));
    }

    #[test]
    fn it_never_goes_back_nor_out_of_the_calendar() {
        let clock = Clock::new();
        assert!(!clock.advance(-1));
        assert!(!clock.advance(i64::MAX));
        assert!(clock.advance(60));
        assert!(!clock.advance(MAX_AHEAD_SECONDS));
        assert_eq!(clock.ahead_seconds(), 60);
    }
}
