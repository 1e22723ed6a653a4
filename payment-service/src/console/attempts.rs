//! How often somebody may try to sign in: a few times in a row, then at a pace.
//!
//! A token has 256 random bits, and nobody guesses one. What is bounded here is what guessing costs the database, and that a mistyped
//! loop fills no log. It is counted per address; addresses that come too many at once share one count.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

/// Tries in a row.
const BURST: u32 = 10;
/// After that, one each.
const PACE: Duration = Duration::from_secs(6);
/// Addresses that are counted apart.
const ADDRESSES_MAX: usize = 1_024;

/// When each address will have all its tries back.
#[derive(Debug, Default)]
pub(super) struct Attempts(Mutex<HashMap<Option<IpAddr>, Instant>>);

impl Attempts {
    /// Counts a try. An error says how long to wait for the next.
    pub(super) fn admit(&self, address: Option<IpAddr>) -> Result<(), Duration> {
        self.admit_at(address, Instant::now())
    }

    fn admit_at(&self, address: Option<IpAddr>, now: Instant) -> Result<(), Duration> {
        let mut full_again = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if full_again.len() >= ADDRESSES_MAX {
            full_again.retain(|_, at| *at > now);
        }
        let known = full_again.contains_key(&address);
        let counted = if known || full_again.len() < ADDRESSES_MAX { address } else { None };
        let at = full_again.entry(counted).or_insert(now);
        let next = (*at).max(now) + PACE;
        let over = next.duration_since(now).saturating_sub(PACE * BURST);
        if !over.is_zero() {
            return Err(over);
        }
        *at = next;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(last: u32) -> IpAddr {
        IpAddr::V4((0x7f00_0000 + last).into())
    }

    #[test]
    fn after_some_tries_in_a_row_one_address_waits_and_another_does_not() {
        let (attempts, now) = (Attempts::default(), Instant::now());
        for _ in 0..BURST {
            attempts.admit_at(Some(address(1)), now).unwrap();
        }
        assert_eq!(attempts.admit_at(Some(address(1)), now), Err(PACE));
        assert_eq!(attempts.admit_at(Some(address(1)), now + PACE / 2), Err(PACE / 2));
        assert_eq!(attempts.admit_at(Some(address(2)), now), Ok(()));
        assert_eq!(attempts.admit_at(Some(address(1)), now + PACE), Ok(()));
        assert!(attempts.admit_at(Some(address(1)), now + PACE).is_err(), "one more, not all");
        let rested = now + PACE * (2 * BURST);
        assert!((0..BURST).all(|_| attempts.admit_at(Some(address(1)), rested).is_ok()));
        assert!(attempts.admit_at(Some(address(1)), rested).is_err());
    }

    #[test]
    fn too_many_addresses_share_one_count_until_the_others_have_rested() {
        let (attempts, now) = (Attempts::default(), Instant::now());
        for last in 0..u32::try_from(ADDRESSES_MAX).unwrap() {
            attempts.admit_at(Some(address(last)), now).unwrap();
        }
        let more = |last: u32| attempts.admit_at(Some(address(1_000_000 + last)), now).is_ok();
        assert_eq!((0..100).filter(|last| more(*last)).count(), usize::try_from(BURST).unwrap());
        assert!(attempts.0.lock().unwrap().len() <= ADDRESSES_MAX + 1);
        let rested = now + PACE * (BURST + 1);
        assert_eq!(attempts.admit_at(Some(address(2_000_000)), rested), Ok(()));
        assert!(attempts.0.lock().unwrap().len() < 3);
    }
}
