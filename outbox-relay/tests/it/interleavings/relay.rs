//! A relay over the model: it reads ahead, publishes what it has read, saves behind what is published, loses its memory at any
//! moment, and begins again at the saved place. And the books that are kept of what it does.

use std::collections::{BTreeMap, VecDeque};

use super::{
    server::{Fate, RowNumber, Server},
    tails::Tail,
};

/// Pages that are read and not published yet, at most.
const PAGES_AHEAD: usize = 5;

/// How a relay may differ from ours.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Vices {
    /// What is in memory is used on, on new connections, after the server has crashed.
    pub(super) outlives_the_server: bool,
    /// Progress is saved when a page was read.
    pub(super) saves_before_publishing: bool,
}

/// Broken promises.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Findings {
    /// Rows that were committed and never published.
    pub(super) lost: u32,
    /// Rows that were published and are not there.
    pub(super) ghosts: u32,
    /// Rows published again within one term, or after their place was saved.
    pub(super) repeats: u32,
    /// First publications after a later event of the same key.
    pub(super) inversions: u32,
    /// Rows that were committed before a look at the outbox began, and were not found by it.
    pub(super) overdue: u32,
}

impl Findings {
    pub(super) fn any(&self) -> bool {
        *self != Self::default()
    }

    pub(super) fn add(&mut self, other: &Self) {
        self.lost += other.lost;
        self.ghosts += other.ghosts;
        self.repeats += other.repeats;
        self.inversions += other.inversions;
        self.overdue += other.overdue;
    }
}

/// A place in the outbox, and the number of commits that the look there has to find.
#[derive(Clone, Debug)]
struct Place<T> {
    tail: T,
    commits: u64,
}

#[derive(Clone, Debug)]
struct Page<T> {
    rows: Vec<RowNumber>,
    after: Place<T>,
}

/// What is known of one row.
#[derive(Clone, Copy, Debug, Default)]
struct Entry {
    read_in: Option<u32>,
    published: bool,
    published_in: Option<u32>,
    saved: bool,
    overdue: bool,
}

/// One relay, from term to term.
#[derive(Debug)]
pub(super) struct Relay<T> {
    vices: Vices,
    term: u32,
    reader: Place<T>,
    ahead: VecDeque<Page<T>>,
    /// Behind the last page published, with the rows published since the last save.
    published: Option<Place<T>>,
    unsaved: Vec<RowNumber>,
    saved: Place<T>,
    /// What the client of a paused leader still holds, and sends when it wakes up.
    held_by_zombie: VecDeque<RowNumber>,
    books: Vec<Entry>,
    /// Key -> commit and row of the latest event published.
    latest: BTreeMap<usize, (u64, RowNumber)>,
    findings: Findings,
}

impl<T: Tail> Relay<T> {
    pub(super) fn new(vices: Vices) -> Self {
        let start = Place { tail: T::start(), commits: 0 };
        Self {
            vices,
            term: 1,
            reader: start.clone(),
            ahead: VecDeque::new(),
            published: None,
            unsaved: Vec::new(),
            saved: start,
            held_by_zombie: VecDeque::new(),
            books: Vec::new(),
            latest: BTreeMap::new(),
            findings: Findings::default(),
        }
    }

    /// The place of the reader, which is ahead of what is published.
    pub(super) fn reader(&self) -> &T {
        &self.reader.tail
    }

    /// One statement of the reader, unless it is too far ahead.
    pub(super) fn read(&mut self, server: &Server, limit: usize) {
        if self.ahead.len() >= PAGES_AHEAD {
            return;
        }
        self.books.resize(server.rows.len(), Entry::default());
        if self.reader.tail.has_looked() {
            self.reader.commits = server.commits;
        }
        let rows = self.reader.tail.statement(server, limit);
        for row in &rows {
            self.books[*row].read_in = Some(self.term);
        }
        if !rows.is_empty() {
            self.ahead.push_back(Page { rows, after: self.reader.clone() });
        }
        if self.reader.tail.has_looked() {
            self.expect_all_found(server);
        }
    }

    fn expect_all_found(&mut self, server: &Server) {
        for (number, row) in server.visible() {
            let entry = &mut self.books[number];
            let due = matches!(row.fate, Fate::Committed(commit) if commit <= self.reader.commits);
            if due && !entry.published && entry.read_in != Some(self.term) && !entry.overdue {
                entry.overdue = true;
                self.findings.overdue += 1;
            }
        }
    }

    /// The brokers acknowledge one page.
    pub(super) fn publish(&mut self, server: &Server) {
        let Some(page) = self.ahead.pop_front() else { return };
        for row in page.rows {
            let entry = self.books[row];
            if entry.saved || entry.published_in == Some(self.term) {
                self.findings.repeats += 1;
            }
            self.books[row].published_in = Some(self.term);
            self.put_on_topic(server, row);
            self.unsaved.push(row);
        }
        self.published = Some(page.after);
    }

    fn put_on_topic(&mut self, server: &Server, row: RowNumber) {
        if std::mem::replace(&mut self.books[row].published, true) {
            return;
        }
        // What is not committed is counted as a ghost at the end.
        let Fate::Committed(commit) = server.rows[row].fate else { return };
        let key = server.rows[row].key;
        let rank = (commit, row);
        if self.latest.get(&key).is_some_and(|latest| *latest > rank) {
            self.findings.inversions += 1;
        } else {
            self.latest.insert(key, rank);
        }
    }

    pub(super) fn save(&mut self, server: &mut Server) {
        if self.vices.saves_before_publishing {
            self.published = Some(self.reader.clone());
        }
        let Some(place) = self.published.take() else { return };
        server.save();
        self.saved = place;
        for row in self.unsaved.drain(..) {
            self.books[row].saved = true;
        }
    }

    /// The process, or its connection, is gone. Of the pages that it had read, a paused process's client may still hold some.
    pub(super) fn lose_memory(&mut self, server: &Server, held: usize) {
        let held: Vec<RowNumber> = self.ahead.drain(..).take(held).flat_map(|page| page.rows).collect();
        self.held_by_zombie.extend(held);
        self.begin_at_saved(server);
    }

    fn begin_at_saved(&mut self, server: &Server) {
        self.ahead.clear();
        self.published = None;
        self.unsaved.clear();
        self.term += 1;
        self.reader = self.saved.clone();
        self.reader.tail.read_back(server);
    }

    /// The server has crashed: every connection is broken. What was read before may still reach the brokers.
    pub(super) fn lose_server(&mut self, server: &Server, still_published: usize) {
        for _ in 0..still_published {
            self.publish(server);
        }
        if !self.vices.outlives_the_server {
            self.begin_at_saved(server);
        }
    }

    /// A paused leader's client sends one of the records that it had in its queue.
    pub(super) fn zombie_sends(&mut self, server: &Server) {
        if let Some(row) = self.held_by_zombie.pop_front() {
            self.put_on_topic(server, row);
        }
    }

    /// Reads, publishes and saves until nothing more comes, and says what went wrong.
    pub(super) fn finish(mut self, server: &mut Server) -> Findings {
        let mut statements_without_rows = 0;
        while statements_without_rows < 6 {
            self.read(server, 3);
            statements_without_rows = if self.ahead.is_empty() { statements_without_rows + 1 } else { 0 };
            self.publish(server);
            self.save(server);
        }
        self.books.resize(server.rows.len(), Entry::default());
        for (row, entry) in server.rows.iter().zip(&self.books) {
            match (row.fate, entry.published) {
                (Fate::Committed(_), false) => self.findings.lost += 1,
                (Fate::Open | Fate::Dead, true) => self.findings.ghosts += 1,
                _ => {}
            }
        }
        self.findings
    }
}
