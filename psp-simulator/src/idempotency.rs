//! Idempotency keys: one table per PSP, as their keys know nothing of each other.
//!
//! The first answer of a request that began to execute is kept, whatever its status, and given again to every later
//! request with its key. What never began to execute (a parameter that is refused, a request that collides with
//! another) leaves no trace: its [`Ticket`] is dropped unfinished. When a key's lifetime is over, counted from its
//! first request, it is forgotten, and the same request executes anew.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex};

use crate::held;

/// The keys that are known, with the answers given for them.
#[derive(Debug)]
pub(crate) struct Idempotency<T> {
    keys: Mutex<Keys<T>>,
    lifetime_seconds: i64,
    capacity: usize,
}

#[derive(Debug)]
struct Keys<T> {
    by_key: HashMap<Arc<str>, Entry<T>>,
    /// Finished keys by age, for forgetting.
    by_age: VecDeque<(i64, Arc<str>)>,
}

#[derive(Debug)]
struct Entry<T> {
    started_at: i64,
    endpoint: Box<str>,
    fingerprint: [u8; 32],
    /// None while the request executes.
    answer: Option<Arc<T>>,
}

/// What a key means for the request that carries it.
#[derive(Debug)]
pub(crate) enum Begin<T> {
    /// New: execute, then finish the ticket.
    Execute(Ticket<T>),
    /// Answered before.
    Replay(Arc<T>),
    /// Another request with this key is executing.
    InFlight,
    /// The key was first used for this other endpoint.
    OtherEndpoint(Box<str>),
    /// The key was first used with other parameters.
    OtherParameters,
    /// No room for another key.
    Full,
}

/// The right to execute for a key. Dropped unfinished, it leaves the key unused.
#[derive(Debug)]
pub(crate) struct Ticket<T> {
    table: Arc<Idempotency<T>>,
    key: Option<Arc<str>>,
}

impl<T> Idempotency<T> {
    pub(crate) fn new(lifetime_seconds: i64, capacity: usize) -> Self {
        let keys = Mutex::new(Keys { by_key: HashMap::new(), by_age: VecDeque::new() });
        Self { keys, lifetime_seconds, capacity }
    }

    /// Looks the key up and, when it is new, reserves it, in one step. `now` is in seconds since 1970.
    pub(crate) fn begin(
        self: &Arc<Self>,
        key: &str,
        endpoint: &str,
        fingerprint: [u8; 32],
        now: i64,
    ) -> Begin<T> {
        let mut keys = held(&self.keys);
        keys.forget(now - self.lifetime_seconds);
        keys.expire(key, now - self.lifetime_seconds);
        if let Some(entry) = keys.by_key.get(key) {
            if &*entry.endpoint != endpoint {
                return Begin::OtherEndpoint(entry.endpoint.clone());
            }
            if entry.fingerprint != fingerprint {
                return Begin::OtherParameters;
            }
            return match &entry.answer {
                Some(answer) => Begin::Replay(Arc::clone(answer)),
                None => Begin::InFlight,
            };
        }
        if keys.by_key.len() >= self.capacity {
            return Begin::Full;
        }
        let key: Arc<str> = key.into();
        let entry = Entry { started_at: now, endpoint: endpoint.into(), fingerprint, answer: None };
        keys.by_key.insert(Arc::clone(&key), entry);
        Begin::Execute(Ticket { table: Arc::clone(self), key: Some(key) })
    }
}

impl<T> Keys<T> {
    /// Makes room: what is first in line and was started at `horizon` or before.
    fn forget(&mut self, horizon: i64) {
        while self.by_age.front().is_some_and(|(started_at, _)| *started_at <= horizon) {
            if let Some((_, key)) = self.by_age.pop_front() {
                self.expire(&key, horizon);
            }
        }
    }

    /// A slow request finishes behind later ones, so age decides here, and not the place in the line. What is still
    /// executing stays.
    fn expire(&mut self, key: &str, horizon: i64) {
        let old =
            self.by_key.get(key).is_some_and(|entry| entry.answer.is_some() && entry.started_at <= horizon);
        if old {
            self.by_key.remove(key);
        }
    }
}

impl<T> Ticket<T> {
    /// Keeps the answer for the key's lifetime.
    pub(crate) fn finish(mut self, answer: Arc<T>) {
        if let Some(key) = self.key.take() {
            let mut keys = held(&self.table.keys);
            if let Some(entry) = keys.by_key.get_mut(&key) {
                entry.answer = Some(answer);
                let started_at = entry.started_at;
                keys.by_age.push_back((started_at, key));
            }
        }
    }
}

impl<T> Drop for Ticket<T> {
    fn drop(&mut self) {
        if let Some(key) = self.key.take() {
            held(&self.table.keys).by_key.remove(&key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PRINT: [u8; 32] = [1; 32];
    const DAY_SECONDS: i64 = 24 * 60 * 60;

    fn table(capacity: usize) -> Arc<Idempotency<u32>> {
        Arc::new(Idempotency::new(DAY_SECONDS, capacity))
    }

    fn execute(begin: Begin<u32>) -> Ticket<u32> {
        match begin {
            Begin::Execute(ticket) => ticket,
            other => panic!("expected to execute, got {other:?}"),
        }
    }

    #[test]
    fn the_first_answer_is_replayed_until_its_lifetime_is_over() {
        let table = table(9);
        execute(table.begin("k", "/a", PRINT, 1000)).finish(Arc::new(7));
        let almost = 1000 + DAY_SECONDS - 1;
        assert!(matches!(table.begin("k", "/a", PRINT, almost), Begin::Replay(answer) if *answer == 7));
        execute(table.begin("k", "/a", PRINT, almost + 1)).finish(Arc::new(8));
        assert!(matches!(table.begin("k", "/a", PRINT, almost + 2), Begin::Replay(answer) if *answer == 8));
    }

    #[test]
    fn a_key_that_took_long_to_finish_expires_with_its_age() {
        let table = table(9);
        let slow = execute(table.begin("slow", "/a", PRINT, 0));
        execute(table.begin("quick", "/a", PRINT, DAY_SECONDS - 1)).finish(Arc::new(1));
        assert!(matches!(table.begin("slow", "/a", PRINT, DAY_SECONDS), Begin::InFlight));
        slow.finish(Arc::new(7));
        let again = table.begin("slow", "/a", PRINT, DAY_SECONDS);
        assert!(matches!(again, Begin::Execute(_)), "{again:?}");
    }

    #[test]
    fn a_key_belongs_to_one_endpoint_and_its_parameters() {
        let table = table(9);
        let ticket = execute(table.begin("k", "/a", PRINT, 0));
        assert!(matches!(table.begin("k", "/a", PRINT, 0), Begin::InFlight));
        assert!(matches!(table.begin("k", "/a", [2; 32], 0), Begin::OtherParameters));
        ticket.finish(Arc::new(7));
        assert!(matches!(table.begin("k", "/a", [2; 32], 0), Begin::OtherParameters));
        assert!(matches!(table.begin("k", "/b", PRINT, 0), Begin::OtherEndpoint(first) if &*first == "/a"));
    }

    #[test]
    fn a_ticket_dropped_unfinished_frees_its_key() {
        let table = table(1);
        drop(execute(table.begin("k", "/a", PRINT, 0)));
        let ticket = execute(table.begin("k", "/a", [2; 32], 0));
        assert!(matches!(table.begin("other", "/a", PRINT, 0), Begin::Full));
        drop(ticket);
        drop(execute(table.begin("other", "/a", PRINT, 0)));
    }
}
