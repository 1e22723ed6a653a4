//! Ways to tail the outbox: ours, which is the product's own code over the statements of `store`, and ways that look right.

use std::fmt::Debug;

use outbox_relay::window::{Cursor, Snapshot};

use super::server::{Row, RowNumber, Server};

/// A place in the outbox, and how to go on from it.
pub(super) trait Tail: Clone + Debug {
    /// Before the first event.
    fn start() -> Self;

    /// True if what the last look has found is read to its end: the next statement looks anew.
    fn has_looked(&self) -> bool;

    /// Runs the next statement, and returns the rows that it answers with.
    fn statement(&mut self, server: &Server, limit: usize) -> Vec<RowNumber>;

    /// Called on a place that was saved, when a relay begins there.
    fn read_back(&mut self, _server: &Server) {}
}

// ---------------------------------------------------------------------------------------------------- statements of `store`

/// What `store::open_window` answers.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Opened {
    pub(super) to: Snapshot,
    pub(super) floor: Option<i64>,
    pub(super) late: bool,
}

/// `pg_visible_in_snapshot`.
pub(super) fn sees(snapshot: &Snapshot, xid: u64) -> bool {
    xid < snapshot.xmin || (xid < snapshot.xmax && !snapshot.in_progress.contains(&xid))
}

/// The statement of `store::open_window`, word by word.
pub(super) fn open_window(server: &Server, from: &Snapshot) -> Opened {
    Opened {
        to: server.snapshot(),
        floor: server.visible().filter(|(_, row)| row.xid >= from.xmax).map(|(_, row)| row.id).min(),
        late: server.visible().any(|(_, row)| from.in_progress.contains(&row.xid)),
    }
}

/// The statement of `store::page`, word by word.
pub(super) fn page(server: &Server, cursor: &Cursor, limit: usize) -> Vec<RowNumber> {
    let after = cursor.after.unwrap_or(i64::MAX);
    let mut rows: Vec<RowNumber> = Vec::new();
    for running in &cursor.from.in_progress {
        rows.extend(in_id_order(server, limit, |row| {
            row.xid == *running
                && row.id > after
                && row.id < cursor.floor.unwrap_or(i64::MAX)
                && sees(&cursor.to, row.xid)
        }));
    }
    rows.extend(in_id_order(server, limit, |row| {
        row.id > after
            && cursor.floor.is_some_and(|floor| row.id >= floor)
            && !sees(&cursor.from, row.xid)
            && sees(&cursor.to, row.xid)
    }));
    rows.sort_by_key(|row| server.rows[*row].id);
    rows.truncate(limit);
    rows
}

/// `SELECT ... WHERE fits ORDER BY id LIMIT limit`.
fn in_id_order(server: &Server, limit: usize, fits: impl Fn(&Row) -> bool) -> Vec<RowNumber> {
    let mut rows: Vec<RowNumber> =
        server.visible().filter(|(_, row)| fits(row)).map(|(number, _)| number).collect();
    rows.sort_by_key(|row| server.rows[*row].id);
    rows.truncate(limit);
    rows
}

/// The next page, and the place after it, as `term::read` goes on.
fn next_page(server: &Server, cursor: &mut Cursor, limit: usize) -> Vec<RowNumber> {
    let rows = page(server, cursor, limit);
    *cursor = cursor.after_page(rows.last().map(|row| server.rows[*row].id), rows.len() == limit);
    rows
}

// ------------------------------------------------------------------------------------------------------------------- ours

/// What is visible in one snapshot and was not in the last.
#[derive(Clone, Debug)]
pub(super) struct Windows(pub(super) Cursor);

impl Tail for Windows {
    fn start() -> Self {
        Self(Cursor::start())
    }

    fn has_looked(&self) -> bool {
        self.0.window_done()
    }

    fn statement(&mut self, server: &Server, limit: usize) -> Vec<RowNumber> {
        if !self.0.window_done() {
            return next_page(server, &mut self.0, limit);
        }
        let opened = open_window(server, &self.0.to);
        self.0 = self.0.open_next(opened.to, opened.floor);
        if opened.floor.is_none() && !opened.late {
            self.0.after = None;
        }
        Vec::new()
    }
}

// ---------------------------------------------------------------------------------------------------------------- controls

/// Broken: remember the highest id seen.
#[derive(Clone, Debug)]
pub(super) struct HighestId {
    highest: i64,
    page_was_full: bool,
}

impl Tail for HighestId {
    fn start() -> Self {
        Self { highest: 0, page_was_full: false }
    }

    fn has_looked(&self) -> bool {
        !self.page_was_full
    }

    fn statement(&mut self, server: &Server, limit: usize) -> Vec<RowNumber> {
        let rows = in_id_order(server, limit, |row| row.id > self.highest);
        self.highest = rows.last().map_or(self.highest, |row| server.rows[*row].id);
        self.page_was_full = rows.len() == limit;
        rows
    }
}

/// Broken: everything below the oldest running transaction, in transaction order.
#[derive(Clone, Debug)]
pub(super) struct TransactionOrder {
    last: (u64, i64),
    page_was_full: bool,
}

impl Tail for TransactionOrder {
    fn start() -> Self {
        Self { last: (0, 0), page_was_full: false }
    }

    fn has_looked(&self) -> bool {
        !self.page_was_full
    }

    fn statement(&mut self, server: &Server, limit: usize) -> Vec<RowNumber> {
        let xmin = server.snapshot().xmin;
        let place = |row: &Row| (row.xid, row.id);
        let mut rows: Vec<RowNumber> = server
            .visible()
            .filter(|(_, row)| place(row) > self.last && row.xid < xmin)
            .map(|(number, _)| number)
            .collect();
        rows.sort_by_key(|row| place(&server.rows[*row]));
        rows.truncate(limit);
        self.last = rows.last().map_or(self.last, |row| place(&server.rows[*row]));
        self.page_was_full = rows.len() == limit;
        rows
    }
}

/// Broken: windows whose floor is one more than the highest id read so far: as if all that ran at the last snapshot were in its list,
/// and nothing could run above its `xmax`.
#[derive(Clone, Debug)]
pub(super) struct FloorFromIdsRead {
    cursor: Cursor,
    highest: i64,
}

impl Tail for FloorFromIdsRead {
    fn start() -> Self {
        Self { cursor: Cursor::start(), highest: 0 }
    }

    fn has_looked(&self) -> bool {
        self.cursor.window_done()
    }

    fn statement(&mut self, server: &Server, limit: usize) -> Vec<RowNumber> {
        if self.cursor.window_done() {
            self.cursor = self.cursor.open_next(server.snapshot(), Some(self.highest + 1));
            return Vec::new();
        }
        let rows = next_page(server, &mut self.cursor, limit);
        self.highest = rows.iter().map(|row| server.rows[*row].id).max().unwrap_or(0).max(self.highest);
        rows
    }
}

/// Broken: windows whose floor is what the sequence stood at when the last snapshot was taken.
#[derive(Clone, Debug)]
pub(super) struct FloorFromSequence {
    cursor: Cursor,
    sequence: i64,
}

impl Tail for FloorFromSequence {
    fn start() -> Self {
        Self { cursor: Cursor::start(), sequence: 0 }
    }

    fn has_looked(&self) -> bool {
        self.cursor.window_done()
    }

    fn statement(&mut self, server: &Server, limit: usize) -> Vec<RowNumber> {
        if self.cursor.window_done() {
            self.cursor = self.cursor.open_next(server.snapshot(), Some(self.sequence));
            self.sequence = server.next_id;
            return Vec::new();
        }
        next_page(server, &mut self.cursor, limit)
    }
}

/// Broken: windows of which only the transactions from `xmax` on are read, as if that were where the running ones begin.
#[derive(Clone, Debug)]
pub(super) struct LateIgnored(Windows);

impl Tail for LateIgnored {
    fn start() -> Self {
        Self(Windows::start())
    }

    fn has_looked(&self) -> bool {
        self.0.has_looked()
    }

    fn statement(&mut self, server: &Server, limit: usize) -> Vec<RowNumber> {
        let rows = self.0.statement(server, limit);
        self.0.0.from.in_progress.clear();
        self.0.0.from.xmin = self.0.0.from.xmax;
        rows
    }
}

/// Broken: what is saved is how far the window was read, but not the window: it is opened anew.
#[derive(Clone, Debug)]
pub(super) struct WindowNotSaved(Windows);

impl Tail for WindowNotSaved {
    fn start() -> Self {
        Self(Windows::start())
    }

    fn has_looked(&self) -> bool {
        self.0.has_looked()
    }

    fn statement(&mut self, server: &Server, limit: usize) -> Vec<RowNumber> {
        self.0.statement(server, limit)
    }

    fn read_back(&mut self, server: &Server) {
        if !self.has_looked() {
            let opened = open_window(server, &self.0.0.from);
            (self.0.0.to, self.0.0.floor) = (opened.to, opened.floor);
        }
    }
}
