//! Free ports on loopback.
//!
//! Ports are drawn from below the range that the kernel takes for outgoing connections: a port from inside of it can
//! be gone between the choice and the bind, and a part that is killed could not come back under its old address.

use std::collections::HashSet;
use std::fs;
use std::hash::{BuildHasher, RandomState};
use std::net::TcpListener;
use std::ops::Range;
use std::sync::{LazyLock, Mutex, PoisonError};

use anyhow::{Context, Result};

const ATTEMPTS: usize = 1_000;

/// What this process has handed out already: it may not have been bound yet.
static TAKEN: LazyLock<Mutex<HashSet<u16>>> = LazyLock::new(Mutex::default);

/// A port of 127.0.0.1 that nobody listens on and that this process has not handed out before.
pub fn free_port() -> Result<u16> {
    let settings = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    let range = range_below(&settings);
    let mut taken = TAKEN.lock().unwrap_or_else(PoisonError::into_inner);
    (0..ATTEMPTS)
        .map(|_| draw(&range))
        .find(|port| !taken.contains(port) && is_free(*port))
        .inspect(|port| {
            taken.insert(*port);
        })
        .with_context(|| format!("no free port found on 127.0.0.1 in {range:?}"))
}

fn is_free(port: u16) -> bool {
    TcpListener::bind(("127.0.0.1", port)).is_ok()
}

/// Every hasher state is seeded from the kernel's randomness, which is all that is needed here.
fn draw(range: &Range<u16>) -> u16 {
    let random = RandomState::new().hash_one(0_u8);
    let width = u64::from(range.end - range.start);
    range.start + u16::try_from(random % width).unwrap_or(0)
}

fn range_below(settings: &str) -> Range<u16> {
    let lowest =
        settings.split_whitespace().next().and_then(|word| word.parse::<u16>().ok()).unwrap_or(32_768);
    // A machine whose range reaches far down leaves nothing below: then its upper neighbours are as good as any.
    if lowest >= 12_000 { 10_000..lowest.min(32_768) } else { 20_000..32_768 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stays_below_the_range_of_outgoing_connections() {
        assert_eq!(range_below("32768\t60999\n"), 10_000..32_768);
        assert_eq!(range_below("16384 65535"), 10_000..16_384);
        assert_eq!(range_below("1024 65535"), 20_000..32_768);
        assert_eq!(range_below("nonsense"), 10_000..32_768);
    }

    #[test]
    fn never_hands_out_a_port_twice() {
        let mut seen = HashSet::new();
        for _ in 0..200 {
            let port = free_port().unwrap();
            assert!(seen.insert(port), "{port} came twice");
        }
    }

    // Nothing is bound after a draw here: a process forked by another test holds the probe's socket until it execs.
    #[test]
    fn a_port_in_use_is_not_free() {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        assert!(!is_free(listener.local_addr().unwrap().port()));
    }
}
