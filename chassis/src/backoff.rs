//! How long to wait before trying again: exponential with full jitter, capped.

use std::time::Duration;

/// Delays that double from `first` up to `cap`, each drawn between half of it and the whole, so that many processes that lost the
/// same broker do not come back in step.
#[derive(Clone, Debug)]
pub struct Backoff {
    first: Duration,
    cap: Duration,
    failures: u32,
}

impl Backoff {
    /// A back-off that has seen no failure yet.
    pub fn new(first: Duration, cap: Duration) -> Self {
        Self { first, cap, failures: 0 }
    }

    /// The delay after one more failure.
    pub fn next_delay(&mut self) -> Duration {
        let whole =
            self.first.saturating_mul(1u32.checked_shl(self.failures).unwrap_or(u32::MAX)).min(self.cap);
        self.failures = self.failures.saturating_add(1);
        // A v4 uuid is 122 random bits that need no generator of our own.
        let jitter =
            f64::from(u32::try_from(uuid::Uuid::new_v4().as_u128() & 0xffff).unwrap_or(0)) / 65_536.0;
        whole.mul_f64(0.5 + 0.5 * jitter)
    }

    /// Forgets the failures after a success.
    pub fn reset(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_up_to_the_cap_and_start_over_after_a_success() {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(1));
        for whole_ms in [100, 200, 400, 800, 1000, 1000] {
            let delay = backoff.next_delay();
            assert!(
                delay >= Duration::from_millis(whole_ms / 2) && delay <= Duration::from_millis(whole_ms),
                "{delay:?}"
            );
        }
        for _ in 0..100 {
            assert!(backoff.next_delay() <= Duration::from_secs(1));
        }
        backoff.reset();
        assert!(backoff.next_delay() <= Duration::from_millis(100));
    }
}
