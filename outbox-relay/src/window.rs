//! What is new between two snapshots: the pure part of tailing.
//!
//! ```text
//! window (A, B] = rows that snapshot B sees and snapshot A does not, in id order
//!
//!   ids below the floor   only rows of transactions that were in progress at A and have committed since: few, found by (xid, id)
//!   ids from the floor    everything else, read page by page along the primary key
//! ```
//! The *floor* is the lowest id among rows of transactions that began after A. No "ids so far" may take its place: a transaction
//! draws its ids when it likes and commits when it likes. Nothing waits for a long transaction: its rows are simply in a later
//! window.
//!
//! A snapshot is valid only on the server incarnation that gave it: after a crash the server hands out unused transaction ids again.
//! A *saved* cursor is safe: the transaction that saved it has a higher id than all that its snapshot knows, and is durable. A window
//! that is only in memory is not, and is dropped with the connection.

use std::str::FromStr;

/// A `pg_snapshot`: transactions below `xmin` are finished, from `xmax` on not begun, and `in_progress` of those between were
/// running.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// Lowest transaction id still running.
    pub xmin: u64,
    /// One more than the highest *finished* transaction id: a running transaction can be above it.
    pub xmax: u64,
    /// Running transactions between the two, ascending.
    pub in_progress: Vec<u64>,
}

impl Snapshot {
    /// The snapshot that sees nothing: before the first event. 3 is PostgreSQL's first normal transaction id.
    pub fn nothing() -> Self {
        Self { xmin: 3, xmax: 3, in_progress: Vec::new() }
    }
}

impl FromStr for Snapshot {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let parse = || {
            let mut parts = text.split(':');
            let (xmin, xmax, list) =
                (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?, parts.next()?);
            let in_progress = list
                .split(',')
                .filter(|xid| !xid.is_empty())
                .map(|xid| xid.parse().ok())
                .collect::<Option<_>>()?;
            parts.next().is_none().then_some(Self { xmin, xmax, in_progress })
        };
        parse().ok_or_else(|| anyhow::anyhow!("{text:?} is not a pg_snapshot"))
    }
}

impl std::fmt::Display for Snapshot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let list: Vec<String> = self.in_progress.iter().map(u64::to_string).collect();
        write!(f, "{}:{}:{}", self.xmin, self.xmax, list.join(","))
    }
}

/// A place in the outbox: how far a relay has published, or read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cursor {
    /// A: what it sees was published by earlier windows.
    pub from: Snapshot,
    /// B: what it sees is published by this window.
    pub to: Snapshot,
    /// Lowest id of a row of this window whose transaction began after A; None if there is none.
    pub floor: Option<i64>,
    /// Rows of the window up to this id are done; None: the whole window is.
    pub after: Option<i64>,
}

impl Cursor {
    /// Before the first event.
    pub fn start() -> Self {
        Self { from: Snapshot::nothing(), to: Snapshot::nothing(), floor: None, after: None }
    }

    /// True if there is nothing left in the window.
    pub fn window_done(&self) -> bool {
        self.after.is_none()
    }

    /// The window after this one, of which nothing is done yet.
    #[must_use]
    pub fn open_next(&self, to: Snapshot, floor: Option<i64>) -> Self {
        debug_assert!(self.window_done(), "a window is opened only when the last one is done");
        Self { from: self.to.clone(), to, floor, after: Some(0) }
    }

    /// The place after a page that ended with `last_id`: the end of the window, unless there is `more`.
    #[must_use]
    pub fn after_page(&self, last_id: Option<i64>, more: bool) -> Self {
        let after = if more { last_id } else { None };
        Self { after, ..self.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_is_read_and_written_as_postgresql_does() {
        for text in ["3:3:", "10:20:10,14,15", "795:799:795"] {
            assert_eq!(text.parse::<Snapshot>().unwrap().to_string(), text);
        }
        for text in ["", "10", "10:20", "10:20:a", "10:20::", "-1:2:", "10:20:11,12:"] {
            assert!(text.parse::<Snapshot>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_window_is_paged_to_its_end_and_the_next_begins_where_it_ended() {
        let window = Cursor::start().open_next("10:20:12".parse().unwrap(), Some(5));
        assert!(!window.window_done());
        let page = window.after_page(Some(9), true);
        assert_eq!((page.after, page.window_done()), (Some(9), false));
        let last = page.after_page(Some(11), false);
        assert!(last.window_done());
        let next = last.open_next("20:30:".parse().unwrap(), None);
        assert_eq!(next.from, "10:20:12".parse().unwrap());
        assert!(page.after_page(None, false).window_done(), "an empty page ends the window");
    }
}
