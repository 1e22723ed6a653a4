//! PostgreSQL in memory, as far as tailing needs it: who has which transaction id, who holds which row lock, and what a snapshot
//! says.
//!
//! Where the real server leaves something to chance, the model may take any choice that the server may, and some that it will not:
//! - a transaction id is assigned at the first write, and a sequence number is drawn at any moment before the row is written;
//! - `xmax` of a snapshot is one more than the highest *completed* id, so that running transactions can lie above it;
//! - a subtransaction has an id of its own, which a rollback to its savepoint completes; the row carries the id of the top level;
//! - a commit is durable before it is visible: a crash between the two makes it visible. A transaction that has an id and has written
//!   nothing is not made durable by its commit: a snapshot may know its id as completed, and a crash hands it out again;
//! - a crash hands out again whatever ids nothing durable has used, and the sequence goes on at any number above the durable rows.

use std::{collections::BTreeMap, mem};

use outbox_relay::window::Snapshot;

/// Row of the outbox, in the order of insertion.
pub(super) type RowNumber = usize;

/// A row of the outbox.
#[derive(Clone, Copy, Debug)]
pub(super) struct Row {
    pub(super) id: i64,
    /// Of the top-level transaction, as `pg_current_xact_id()` gives it.
    pub(super) xid: u64,
    pub(super) key: usize,
    pub(super) fate: Fate,
}

/// What has become of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    Open,
    /// Rolled back, or lost in a crash.
    Dead,
    /// By the commit of this number.
    Committed(u64),
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Phase {
    #[default]
    Open,
    /// For a two-phase commit: it survives a crash.
    Prepared,
    /// Its commit is on the disk, and nobody sees it yet.
    Durable,
}

/// A session's transaction; the default is none.
#[derive(Clone, Debug, Default)]
struct Transaction {
    phase: Phase,
    xid: Option<u64>,
    has_written: bool,
    /// Ids of the subtransactions that were not rolled back.
    children: Vec<u64>,
    savepoints: Vec<Savepoint>,
    rows: Vec<RowNumber>,
    locks: Vec<usize>,
    /// A sequence number drawn for a row of this key that is not written yet.
    drawn: Option<(i64, usize)>,
}

/// Where its transaction stood when it was set.
#[derive(Clone, Copy, Debug)]
struct Savepoint {
    has_xid: bool,
    children: usize,
    rows: usize,
    locks: usize,
}

/// How a server may differ from the one that the relay is made for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Habits {
    /// Writers lock the key before they append.
    pub(super) writers_lock: bool,
    /// A commit is durable before it is visible.
    pub(super) commits_are_durable: bool,
}

/// The server.
#[derive(Clone, Debug)]
pub(super) struct Server {
    habits: Habits,
    next_xid: u64,
    latest_completed: u64,
    /// No crash hands out this id, or one below it, again.
    durable_xid: u64,
    pub(super) next_id: i64,
    pub(super) rows: Vec<Row>,
    /// Commits that have become visible so far.
    pub(super) commits: u64,
    durable_commits: u64,
    sessions: Vec<Transaction>,
    /// Key -> the session that holds its row.
    locks: BTreeMap<usize, usize>,
}

impl Server {
    /// An empty outbox on a server whose next transaction gets `next_xid`.
    pub(super) fn new(sessions: usize, next_xid: u64, habits: Habits) -> Self {
        Self {
            habits,
            next_xid,
            latest_completed: next_xid - 1,
            durable_xid: next_xid - 1,
            next_id: 1,
            rows: Vec::new(),
            commits: 0,
            durable_commits: 0,
            sessions: vec![Transaction::default(); sessions],
            locks: BTreeMap::new(),
        }
    }

    /// `pg_current_snapshot()`: ids of subtransactions are not listed, and neither are running ones from `xmax` on.
    pub(super) fn snapshot(&self) -> Snapshot {
        let xmax = self.latest_completed + 1;
        let mut in_progress: Vec<u64> =
            self.sessions.iter().filter_map(|session| session.xid).filter(|xid| *xid < xmax).collect();
        in_progress.sort_unstable();
        Snapshot { xmin: in_progress.first().copied().unwrap_or(xmax), xmax, in_progress }
    }

    /// Ids of running transactions that no snapshot taken now would list.
    pub(super) fn running_above_xmax(&self) -> impl Iterator<Item = u64> {
        let xmax = self.latest_completed + 1;
        self.sessions.iter().filter_map(|session| session.xid).filter(move |xid| *xid >= xmax)
    }

    /// Rows that a statement sees which begins now.
    pub(super) fn visible(&self) -> impl Iterator<Item = (RowNumber, &Row)> {
        self.rows.iter().enumerate().filter(|(_, row)| matches!(row.fate, Fate::Committed(_)))
    }

    /// True if the session has a transaction that statements can be run in.
    fn is_open(&self, session: usize) -> bool {
        self.sessions[session].phase == Phase::Open
    }

    pub(super) fn is_prepared(&self, session: usize) -> bool {
        self.sessions[session].phase == Phase::Prepared
    }

    // ------------------------------------------------------------------------------------------------- what a writer can do
    // Each says whether it could be done: a session that would have to wait does nothing.

    pub(super) fn take_xid(&mut self, session: usize) -> bool {
        let possible = self.is_open(session) && self.sessions[session].xid.is_none();
        if possible {
            self.sessions[session].xid = Some(self.assign());
        }
        possible
    }

    pub(super) fn lock(&mut self, session: usize, key: usize) -> bool {
        if !self.is_open(session) {
            return false;
        }
        if !self.habits.writers_lock {
            return true;
        }
        if let Some(holder) = self.locks.get(&key) {
            return *holder == session;
        }
        self.locks.insert(key, session);
        self.sessions[session].locks.push(key);
        true
    }

    /// Draws the number of a row that is written later, or never.
    pub(super) fn draw(&mut self, session: usize, key: usize) -> bool {
        let possible = self.lock(session, key);
        if possible {
            self.sessions[session].drawn = Some((self.next_id, key));
            self.next_id += 1;
        }
        possible
    }

    pub(super) fn append(&mut self, session: usize, key: usize) -> Option<RowNumber> {
        if !self.lock(session, key) {
            return None;
        }
        let drawn = self.sessions[session].drawn.take().filter(|(_, drawn_for)| *drawn_for == key);
        let id = drawn.map_or_else(
            || {
                self.next_id += 1;
                self.next_id - 1
            },
            |(id, _)| id,
        );
        self.take_xid(session);
        for depth in 0..self.sessions[session].savepoints.len() {
            if !self.sessions[session].savepoints[depth].has_xid {
                let child = self.assign();
                self.sessions[session].savepoints[depth].has_xid = true;
                self.sessions[session].children.push(child);
            }
        }
        self.sessions[session].has_written = true;
        let row = self.rows.len();
        self.rows.push(Row { id, xid: self.sessions[session].xid?, key, fate: Fate::Open });
        self.sessions[session].rows.push(row);
        Some(row)
    }

    pub(super) fn savepoint(&mut self, session: usize) -> bool {
        let transaction = &mut self.sessions[session];
        let possible = transaction.phase == Phase::Open && transaction.savepoints.len() < 2;
        if possible {
            transaction.savepoints.push(Savepoint {
                has_xid: false,
                children: transaction.children.len(),
                rows: transaction.rows.len(),
                locks: transaction.locks.len(),
            });
        }
        possible
    }

    /// The savepoint stays, as in SQL.
    pub(super) fn rollback_to(&mut self, session: usize) -> bool {
        let transaction = &mut self.sessions[session];
        if transaction.phase != Phase::Open {
            return false;
        }
        let Some(savepoint) = transaction.savepoints.last_mut() else { return false };
        savepoint.has_xid = false;
        let Savepoint { children, rows, locks, .. } = *savepoint;
        for row in transaction.rows.drain(rows..) {
            self.rows[row].fate = Fate::Dead;
        }
        for key in transaction.locks.drain(locks..) {
            self.locks.remove(&key);
        }
        // A number drawn under a lock that is gone must not be used.
        transaction.drawn = None;
        for child in transaction.children.drain(children..) {
            self.latest_completed = self.latest_completed.max(child);
        }
        true
    }

    pub(super) fn release(&mut self, session: usize) -> bool {
        self.is_open(session) && self.sessions[session].savepoints.pop().is_some()
    }

    /// The first phase of a two-phase commit.
    pub(super) fn prepare(&mut self, session: usize) -> bool {
        let possible = self.is_open(session) && self.sessions[session].xid.is_some();
        if possible {
            self.sessions[session].phase = Phase::Prepared;
            self.make_durable(session);
        }
        possible
    }

    /// The commit is written to the disk.
    pub(super) fn flush(&mut self, session: usize) -> bool {
        let possible = self.habits.commits_are_durable
            && self.sessions[session].phase != Phase::Durable
            && self.sessions[session].has_written;
        if possible {
            self.sessions[session].phase = Phase::Durable;
            self.make_durable(session);
        }
        possible
    }

    pub(super) fn commit(&mut self, session: usize) {
        let transaction = &self.sessions[session];
        let durable =
            transaction.phase != Phase::Open || (transaction.has_written && self.habits.commits_are_durable);
        if durable {
            self.make_durable(session);
        }
        let transaction = self.end(session);
        if transaction.xid.is_some() {
            self.commits += 1;
        }
        for row in transaction.rows {
            self.rows[row].fate = Fate::Committed(self.commits);
        }
        if durable {
            self.durable_commits = self.commits;
        }
    }

    /// A commit that is on the disk cannot be taken back.
    pub(super) fn rollback(&mut self, session: usize) -> bool {
        let possible = self.sessions[session].phase != Phase::Durable;
        if possible {
            for row in self.end(session).rows {
                self.rows[row].fate = Fate::Dead;
            }
        }
        possible
    }

    /// A transaction that does not concern the outbox, begun and ended at once.
    pub(super) fn elsewhere(&mut self, writes: bool) {
        let highest = self.assign();
        self.latest_completed = highest;
        if writes && self.habits.commits_are_durable {
            self.durable_xid = highest;
        }
    }

    /// A transaction of the relay, which is durable in any case, and with it whatever was written before.
    pub(super) fn save(&mut self) {
        let highest = self.assign();
        (self.latest_completed, self.durable_xid) = (highest, highest);
        self.durable_commits = self.commits;
    }

    // ----------------------------------------------------------------------------------------------------------------- crash

    /// The lowest transaction id and the lowest sequence number that the server may go on with after a crash now.
    pub(super) fn lowest_after_crash(&self) -> (u64, i64) {
        let survivors = self.sessions.iter().filter(|session| session.phase != Phase::Open);
        let survivors = survivors.flat_map(|session| session.rows.iter().map(|row| &self.rows[*row]));
        let durable = self.rows.iter().filter(|row| self.is_durable(row.fate));
        let highest_id = durable.chain(survivors).map(|row| row.id).max().unwrap_or_default();
        (self.durable_xid + 1, highest_id + 1)
    }

    pub(super) fn next_xid(&self) -> u64 {
        self.next_xid
    }

    /// All sessions are gone, and with them what was not durable.
    pub(super) fn crash(&mut self, next_xid: u64, next_id: i64) {
        for row in 0..self.rows.len() {
            if matches!(self.rows[row].fate, Fate::Committed(_)) && !self.is_durable(self.rows[row].fate) {
                self.rows[row].fate = Fate::Dead;
            }
        }
        for session in 0..self.sessions.len() {
            match self.sessions[session].phase {
                Phase::Open => {
                    self.rollback(session);
                }
                Phase::Durable => self.commit(session),
                Phase::Prepared => self.sessions[session].drawn = None,
            }
        }
        self.next_xid = next_xid;
        self.latest_completed = next_xid - 1;
        self.next_id = next_id;
    }

    fn is_durable(&self, fate: Fate) -> bool {
        matches!(fate, Fate::Committed(number) if number <= self.durable_commits)
    }

    fn make_durable(&mut self, session: usize) {
        let transaction = &self.sessions[session];
        let highest = transaction.children.iter().chain(transaction.xid.iter()).max();
        self.durable_xid = self.durable_xid.max(highest.copied().unwrap_or_default());
    }

    fn assign(&mut self) -> u64 {
        self.next_xid += 1;
        self.next_xid - 1
    }

    fn end(&mut self, session: usize) -> Transaction {
        let transaction = mem::take(&mut self.sessions[session]);
        for key in &transaction.locks {
            self.locks.remove(key);
        }
        for xid in transaction.xid.iter().chain(&transaction.children) {
            self.latest_completed = self.latest_completed.max(*xid);
        }
        transaction
    }
}
