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
    store::{self, UndecodedPage},
    term::Stop,
    window::Cursor,
};

/// After the last event the outbox is polled fast for so long.
const BUSY_FOR: Duration = Duration::from_secs(1);

/// Rows, and the place after them.
#[derive(Debug)]
pub(crate) struct Page {
    /// Decoded by the next stage, while this one waits for the next page.
    pub(crate) rows: UndecodedPage,
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
            let limit = relay.config.page_rows;
            let rows = store::undecoded_page(&mut connection, &cursor, limit)
                .await
                .context("a page could not be read")?;
            cursor = cursor.after_page(rows.len(), rows.last_id()?, usize::try_from(limit)?);
            if rows.is_empty() {
                continue;
            }
            crate::failpoint("R2");
            last_event = Instant::now();
            if pages.send(Page { rows, cursor: cursor.clone() }).await.is_err() {
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
