//! Keeps the ring turning while this process leads: leaves that are old and done are emptied, old progress is removed.
//!
//! Nothing here waits for anybody for long, and nobody waits long for it: what is in use now is tried again.

use std::{sync::Arc, time::Duration};

use anyhow::Context as _;
use chassis::postgres;
use tokio_util::sync::CancellationToken;

use crate::{
    Relay,
    store::upkeep::{self, Recycled},
};

/// Rows of progress removed at once.
const CHUNK_ROWS: i32 = 5_000;
/// Between two chunks, so that vacuum and others have their turn.
const CHUNK_PAUSE: Duration = Duration::from_millis(100);
/// How often a leaf that is in use is tried again before the next round.
const TRIES: u32 = 5;
const TRY_PAUSE: Duration = Duration::from_secs(1);

/// Turns the ring at every interval until stopped.
pub(crate) async fn keep_turning(relay: Arc<Relay>, stop: CancellationToken) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(relay.config.retention_every) => {}
            () = stop.cancelled() => return,
        }
        if let Err(error) = turn(&relay, &stop).await {
            relay.metrics.retention_failures.inc();
            tracing::warn!(error = format!("{error:#}"), "retention failed; publication is not affected");
        }
    }
}

/// One round.
async fn turn(relay: &Relay, stop: &CancellationToken) -> anyhow::Result<()> {
    let keep = relay.config.retention;
    let mut connection =
        postgres::connect(&relay.config.postgres.database_url, "outbox-relay retention").await?;
    for slot in 0..8 {
        for _ in 0..TRIES {
            match upkeep::recycle(&mut connection, slot, keep)
                .await
                .with_context(|| format!("slot {slot}"))?
            {
                Recycled::Emptied => {
                    relay.metrics.recycled.inc();
                    tracing::info!(relay = relay.config.name, slot, "leaf of the ring emptied");
                    break;
                }
                Recycled::WasEmpty => break,
                Recycled::Left(reason) if reason == "in use" => {
                    tokio::select! {
                        () = tokio::time::sleep(TRY_PAUSE) => {}
                        () = stop.cancelled() => return Ok(()),
                    }
                }
                Recycled::Left(reason) => {
                    tracing::debug!(slot, reason, "leaf of the ring is kept");
                    break;
                }
            }
        }
    }
    while upkeep::trim(&mut connection, keep, CHUNK_ROWS).await.context("old progress")?
        >= i64::from(CHUNK_ROWS)
    {
        tokio::select! {
            () = tokio::time::sleep(CHUNK_PAUSE) => {}
            () = stop.cancelled() => return Ok(()),
        }
    }
    sqlx::Connection::close(connection).await?;
    Ok(())
}
