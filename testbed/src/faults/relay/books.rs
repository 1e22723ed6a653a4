//! What was committed beside what is on the topic: every difference is a broken promise.
//!
//! The books are kept while the episodes run, by the writers and by the reader of the topic, and made once more at the end from the
//! table and from the whole topic.

use std::collections::{BTreeMap, HashMap};
use std::time::Instant;

use uuid::Uuid;

use crate::workload::{NEVER, Step};

/// Examples that are kept of each finding.
const EXAMPLES: usize = 5;

/// A record of the topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// What it says.
    pub step: Step,
    /// Its partition.
    pub partition: i32,
    /// Its offset.
    pub offset: i64,
}

/// Both sides.
#[derive(Debug, Default)]
pub struct Books {
    /// Key and step of every committed event.
    committed: HashMap<Uuid, (String, i64)>,
    /// When each event came first.
    first_seen: HashMap<Uuid, Instant>,
    /// Committed, and not on the topic so far.
    missing: HashMap<Uuid, (String, i64)>,
    /// How many of these belong to episodes that have ended: they are lost.
    given_up: usize,
    /// On the topic, and not known to be committed so far.
    unexplained: HashMap<Uuid, Seen>,
    /// Appended under a COMMIT whose answer is missing.
    in_doubt: Vec<(Vec<Step>, Instant)>,
    /// What was committed since the last [`Books::next_episode`], and when its transaction was begun.
    of_episode: Vec<(Uuid, Instant)>,
    /// The offset after the last record seen, by partition.
    ends: BTreeMap<i32, i64>,
    /// The highest step seen, by key.
    highest: HashMap<String, i64>,
    duplicates: usize,
    inversions: usize,
    altered: usize,
    examples: BTreeMap<&'static str, Vec<String>>,
}

/// Counts of everything so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Committed events.
    pub committed: usize,
    /// Committed events without a record.
    pub lost: usize,
    /// Event ids on the topic without a committed event.
    pub ghosts: usize,
    /// Records of an event that was there before.
    pub duplicates: usize,
    /// First records of an event that came after a later step of its key.
    pub inversions: usize,
    /// Records that do not say what their event said.
    pub altered: usize,
}

impl Books {
    /// Notes the events of a committed transaction.
    pub fn committed(&mut self, steps: Vec<Step>, begun_at: Instant) {
        for Step { event_id, key, step } in steps {
            self.of_episode.push((event_id, begun_at));
            match self.unexplained.remove(&event_id) {
                Some(seen) => self.compare(&seen, &key, step),
                None if self.first_seen.contains_key(&event_id) => {}
                None => {
                    self.missing.insert(event_id, (key.clone(), step));
                }
            }
            self.committed.insert(event_id, (key, step));
        }
    }

    /// Notes the events of a transaction that may have committed.
    pub fn in_doubt(&mut self, steps: Vec<Step>, begun_at: Instant) {
        if !steps.is_empty() {
            self.in_doubt.push((steps, begun_at));
        }
    }

    /// Takes what is in doubt, to be settled by the table.
    pub fn take_doubts(&mut self) -> Vec<(Vec<Step>, Instant)> {
        std::mem::take(&mut self.in_doubt)
    }

    /// Notes a record. The same record read again is not a second one.
    pub fn saw(&mut self, seen: &Seen, at: Instant) {
        let end = self.ends.entry(seen.partition).or_default();
        if seen.offset < *end {
            return;
        }
        *end = seen.offset + 1;
        let Step { event_id, ref key, step } = seen.step;
        self.missing.remove(&event_id);
        match self.committed.get(&event_id).cloned() {
            Some((key, step)) => self.compare(seen, &key, step),
            None => {
                self.unexplained.insert(event_id, seen.clone());
            }
        }
        if self.first_seen.contains_key(&event_id) {
            self.duplicates += 1;
            return;
        }
        self.first_seen.insert(event_id, at);
        if step == NEVER {
            return;
        }
        let highest = self.highest.entry(key.clone()).or_insert(step);
        if step < *highest {
            self.inversions += 1;
            let text = format!("{key}: step {step} came after step {highest}, {}", place(seen));
            self.example("out of order", || text);
        } else {
            *highest = step;
        }
    }

    /// Committed in this episode, and not on the topic so far.
    pub fn in_flight(&self) -> usize {
        self.missing.len().saturating_sub(self.given_up)
    }

    /// When the first event of this episode arrived whose transaction was begun after this moment.
    pub fn first_after(&self, moment: Instant) -> Option<Instant> {
        let after = self.of_episode.iter().filter(|(_, begun_at)| *begun_at > moment);
        after.filter_map(|(event_id, _)| self.first_seen.get(event_id)).min().copied()
    }

    /// The offset after the last record seen.
    pub fn end(&self, partition: i32) -> i64 {
        self.ends.get(&partition).copied().unwrap_or_default()
    }

    /// Forgets which events belong to the episode that has ended.
    pub fn next_episode(&mut self) {
        self.of_episode.clear();
        self.given_up = self.missing.len();
    }

    /// What everything comes to, now that all has come to rest.
    pub fn tally(&self) -> Tally {
        Tally {
            committed: self.committed.len(),
            lost: self.missing.len(),
            ghosts: self.unexplained.len(),
            duplicates: self.duplicates,
            inversions: self.inversions,
            altered: self.altered,
        }
    }

    /// Some of what speaks against it, for people.
    pub fn examples(&self) -> Vec<String> {
        let lost =
            self.missing.iter().map(|(id, (key, step))| format!("lost: {key} step {step}, event {id}"));
        let ghosts = self.unexplained.values().map(|seen| {
            let Step { event_id, key, step } = &seen.step;
            format!("ghost: {key} step {step}, event {event_id}, {}", place(seen))
        });
        let others = self
            .examples
            .iter()
            .flat_map(|(what, examples)| examples.iter().map(move |example| format!("{what}: {example}")));
        lost.take(EXAMPLES).chain(ghosts.take(EXAMPLES)).chain(others).collect()
    }

    /// Whether both hold the same committed events; otherwise how many are in one of them alone.
    pub fn differing_commits(&self, other: &Books) -> usize {
        let only = |one: &Books, other: &Books| {
            one.committed.iter().filter(|(id, event)| other.committed.get(id) != Some(event)).count()
        };
        only(self, other).max(only(other, self))
    }

    fn compare(&mut self, seen: &Seen, key: &str, step: i64) {
        if (seen.step.key.as_str(), seen.step.step) != (key, step) {
            self.altered += 1;
            let text = format!("{:?} where {key} step {step} was written, {}", seen.step, place(seen));
            self.example("altered", || text);
        }
    }

    fn example(&mut self, what: &'static str, text: impl FnOnce() -> String) {
        let examples = self.examples.entry(what).or_default();
        if examples.len() < EXAMPLES {
            examples.push(text());
        }
    }
}

fn place(seen: &Seen) -> String {
    format!("partition {} offset {}", seen.partition, seen.offset)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn step(number: i64) -> Step {
        Step { event_id: Uuid::from_u128(u128::try_from(number).unwrap()), key: "k".to_owned(), step: number }
    }

    /// Four committed events, and these records in this order.
    fn books(records: &[i64]) -> Books {
        let (mut books, now) = (Books::default(), Instant::now());
        books.committed((1..=4).map(step).collect(), now);
        for (offset, number) in records.iter().enumerate() {
            let offset = i64::try_from(offset).unwrap();
            books.saw(&Seen { step: step(*number), partition: 0, offset }, now);
        }
        books
    }

    const CLEAN: Tally = Tally { committed: 4, lost: 0, ghosts: 0, duplicates: 0, inversions: 0, altered: 0 };

    #[test]
    fn clean_books_are_clean() {
        assert_eq!(books(&[1, 2, 3, 4]).tally(), CLEAN);
        assert!(books(&[1, 2, 3, 4]).examples().is_empty());
    }

    #[test]
    fn a_missing_record_is_a_loss() {
        let books = books(&[1, 2, 4]);
        assert_eq!(books.tally(), Tally { lost: 1, ..CLEAN });
        assert!(books.examples()[0].contains("lost: k step 3"), "{:?}", books.examples());
    }

    #[test]
    fn a_record_of_nothing_is_a_ghost_however_often_it_comes() {
        assert_eq!(books(&[1, 2, 3, 4, 9, 9]).tally(), Tally { ghosts: 1, duplicates: 1, ..CLEAN });
    }

    #[test]
    fn only_first_records_count_for_the_order() {
        assert_eq!(books(&[1, 2, 3, 2, 3, 4, 1]).tally(), Tally { duplicates: 3, ..CLEAN });
        assert_eq!(books(&[1, 3, 2, 4]).tally(), Tally { inversions: 1, ..CLEAN });
        assert_eq!(books(&[3, 1, 2, 3, 4]).tally(), Tally { inversions: 2, duplicates: 1, ..CLEAN });
    }

    #[test]
    fn a_record_read_again_is_not_a_second_one() {
        let mut books = books(&[1, 2, 3, 4]);
        books.saw(&Seen { step: step(4), partition: 0, offset: 3 }, Instant::now());
        assert_eq!(books.tally(), CLEAN);
        books.saw(&Seen { step: step(4), partition: 0, offset: 4 }, Instant::now());
        assert_eq!(books.tally(), Tally { duplicates: 1, ..CLEAN });
    }

    #[test]
    fn a_record_that_says_something_else_is_found_in_both_orders() {
        let other = Step { step: 7, ..step(5) };
        let mut books = books(&[1, 2, 3, 4]);
        books.committed(vec![step(5)], Instant::now());
        books.saw(&Seen { step: other.clone(), partition: 0, offset: 4 }, Instant::now());
        assert_eq!(books.tally(), Tally { committed: 5, altered: 1, ..CLEAN });
        let mut books = self::books(&[1, 2, 3, 4]);
        books.saw(&Seen { step: other, partition: 0, offset: 4 }, Instant::now());
        books.committed(vec![step(5)], Instant::now());
        assert_eq!(books.tally(), Tally { committed: 5, altered: 1, ..CLEAN });
    }

    #[test]
    fn a_record_that_comes_before_the_answer_to_its_commit_is_no_ghost() {
        let mut books = books(&[1, 2, 3, 4, 5]);
        assert_eq!(books.tally().ghosts, 1);
        books.in_doubt(vec![step(5)], Instant::now());
        for (steps, begun_at) in books.take_doubts() {
            books.committed(steps, begun_at);
        }
        assert_eq!(books.tally(), Tally { committed: 5, ..CLEAN });
    }

    #[test]
    fn back_is_when_an_event_begun_after_the_fault_arrives() {
        let mut books = books(&[1, 2, 3, 4]);
        let fault = Instant::now();
        let later = fault + Duration::from_millis(7);
        assert_eq!(books.first_after(fault), None);
        books.committed(vec![step(5)], fault + Duration::from_millis(1));
        assert_eq!((books.first_after(fault), books.in_flight()), (None, 1));
        books.saw(&Seen { step: step(5), partition: 0, offset: 4 }, later);
        assert_eq!((books.first_after(fault), books.in_flight()), (Some(later), 0));
        books.committed(vec![step(6)], fault + Duration::from_millis(2));
        assert_eq!(books.in_flight(), 1);
        books.next_episode();
        assert_eq!((books.first_after(fault), books.in_flight(), books.tally().lost), (None, 0, 1));
    }

    #[test]
    fn two_accounts_of_what_was_committed_are_compared() {
        let (one, mut other) = (books(&[]), books(&[1]));
        assert_eq!(one.differing_commits(&other), 0);
        other.committed(vec![step(5)], Instant::now());
        assert_eq!((one.differing_commits(&other), other.differing_commits(&one)), (1, 1));
    }
}
