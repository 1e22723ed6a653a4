//! Reads windows page by page. Between two statements no transaction is open, whatever the other stages wait for.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use sqlx::PgConnection;
use tokio::sync::mpsc;

use crate::{
    Relay,
    records::Records,
    store::{self, OutboxRow},
    term::Stop,
    window::Cursor,
};

/// After the last event the outbox is polled fast for so long.
const BUSY_FOR: Duration = Duration::from_secs(1);

/// Records, and the place after them.
#[derive(Debug)]
pub(crate) struct Page {
    pub(crate) records: Records,
    pub(crate) cursor: Cursor,
}

/// Reads from `cursor` on until asked to stop.
pub(crate) async fn read(
    relay: Arc<Relay>,
    mut connection: PgConnection,
    mut cursor: Cursor,
    pages: mpsc::Sender<Page>,
    stop: Stop,
) -> anyhow::Result<()> {
    let page_rows = usize::try_from(relay.config.page_rows)?;
    let bytes_max = usize::try_from(relay.config.page_max_kib)? * 1024;
    let mut rows_max = page_rows;
    let mut last_event = Instant::now();
    let reading = async {
        while !stop.finish.is_cancelled() {
            if cursor.window_done() {
                let opened = store::open_window(&mut connection, &cursor.to)
                    .await
                    .context("a window could not be opened")?;
                cursor = cursor.open_next(opened.to, opened.floor);
                if opened.floor.is_none() && !opened.late {
                    cursor.after = None;
                    let busy = last_event.elapsed() < BUSY_FOR;
                    let pause = if busy { relay.config.poll_busy } else { relay.config.poll_idle };
                    tokio::select! {
                        () = tokio::time::sleep(pause) => {}
                        () = stop.finish.cancelled() => {}
                    }
                    continue;
                }
            }
            let mut records = Records::default();
            let take = |row: &OutboxRow<'_>| records.push(row, &relay.encoder);
            let end = store::page(&mut connection, &cursor, rows_max, bytes_max, take)
                .await
                .context("a page could not be read")?;
            cursor = cursor.after_page(end.last_id, end.more);
            // After a page of large events the next one asks for fewer, so that little is read in vain.
            let cut = end.more && end.rows < rows_max;
            rows_max = if cut { end.rows } else { page_rows.min(rows_max.saturating_mul(2)) };
            if records.is_empty() {
                continue;
            }
            crate::failpoint("R2");
            last_event = Instant::now();
            if pages.send(Page { records, cursor: cursor.clone() }).await.is_err() {
                break;
            }
        }
        Ok(())
    };
    let result = tokio::select! {
        result = reading => result,
        () = stop.abandon.cancelled() => Ok(()),
    };
    if result.is_err() {
        stop.abandon.cancel();
    }
    result
}
