//! A bounded queue ordered by due time.

use std::collections::BTreeMap;

use time::OffsetDateTime;

#[derive(Debug)]
pub(crate) struct Queue<T> {
    by_due: BTreeMap<(OffsetDateTime, u64), T>,
    next: u64,
    capacity: usize,
}

impl<T> Queue<T> {
    pub(crate) fn new(capacity: usize) -> Self {
        Self { by_due: BTreeMap::new(), next: 0, capacity: capacity.max(1) }
    }

    /// Adds an item. When the queue is full, the one that has been due the longest makes room and is given back.
    pub(crate) fn push(&mut self, due_at: OffsetDateTime, item: T) -> Option<T> {
        let dropped = if self.by_due.len() >= self.capacity {
            self.by_due.pop_first().map(|(_, item)| item)
        } else {
            None
        };
        self.by_due.insert((due_at, self.next), item);
        self.next += 1;
        dropped
    }

    pub(crate) fn pop_due(&mut self, now: OffsetDateTime) -> Option<T> {
        let first = self.by_due.first_entry()?;
        (first.key().0 <= now).then(|| first.remove())
    }

    pub(crate) fn first_due_at(&self) -> Option<OffsetDateTime> {
        self.by_due.first_key_value().map(|((due_at, _), _)| *due_at)
    }

    pub(crate) fn len(&self) -> usize {
        self.by_due.len()
    }
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;

    const AT: OffsetDateTime = datetime!(2026-01-01 0:00 UTC);

    fn after(seconds: i64) -> OffsetDateTime {
        AT + time::Duration::seconds(seconds)
    }

    #[test]
    fn what_is_due_first_comes_first_and_not_before() {
        let mut queue = Queue::new(9);
        for (due, item) in [(2, "c"), (1, "a"), (1, "b")] {
            assert_eq!(queue.push(after(due), item), None);
        }
        assert_eq!(queue.pop_due(AT), None);
        assert_eq!(queue.first_due_at(), Some(after(1)));
        assert_eq!([(); 3].map(|()| queue.pop_due(after(1))), [Some("a"), Some("b"), None]);
        assert_eq!(queue.pop_due(after(2)), Some("c"));
    }

    #[test]
    fn a_full_queue_drops_what_was_due_first() {
        let mut queue = Queue::new(2);
        assert_eq!(queue.push(after(2), "b"), None);
        assert_eq!(queue.push(after(1), "a"), None);
        assert_eq!(queue.push(after(3), "c"), Some("a"));
        assert_eq!(queue.len(), 2);
    }
}
