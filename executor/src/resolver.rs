//! Settling what is in doubt, by asking the PSP and never by assuming.
//!
//! It takes up two kinds of orders: those whose result is not final (UNKNOWN, PENDING), when the next step of the ladder is due, and
//! those whose claim ran out, because a process died between writing down a call and recording its answer. For both it does what
//! `executor` does, except that it begins with what is known: a payment whose id is stored is looked up, and then, if it was not
//! charged, confirmed again under the same key; without an id the same creation is sent again, as long as the PSP remembers the key.
//!
//! An order leaves the ladder by a final result, or at its end by UNKNOWN/RESOLUTION_EXHAUSTED: for a person to look at. Age alone never
//! makes it FAILED. If the process dies here, the claim runs out and the next one begins again. A claim that runs out the third time in a
//! row, without an answer recorded in between, takes a step of the ladder itself: whatever cannot be written ends there, too.

use std::{sync::Arc, time::Duration};

use chassis::shutdown::Shutdown;
use sqlx::PgPool;
use tokio::sync::Notify;

use crate::{
    executor::{Executor, Pace},
    metrics::Metrics,
    store::{Queue, results},
};

/// How often the gauges are brought up to date.
const GAUGES_EVERY: Duration = Duration::from_secs(5);

/// Takes up what is due until asked to stop.
pub async fn run(executor: Executor, concurrency: usize) -> anyhow::Result<()> {
    let pace = Pace {
        queue: Queue::Due,
        concurrency,
        busy: Duration::from_millis(50),
        idle: Duration::from_millis(200),
    };
    // Nobody wakes it: what is due is due by time.
    executor.run(pace, Arc::new(Notify::new())).await
}

/// Keeps the gauges of what is unresolved.
pub async fn watch(pool: PgPool, metrics: Metrics, shutdown: Shutdown) -> anyhow::Result<()> {
    loop {
        match results::unresolved(&pool).await {
            Ok((orders, oldest_seconds, in_review, parked)) => {
                metrics.attempts_unknown.set(orders);
                metrics.attempt_unknown_oldest_age.set(oldest_seconds);
                metrics.orders_in_review.set(in_review);
                metrics.orders_parked.set(parked);
                metrics.gauges_read.set(chassis::metrics::timestamp_seconds());
            }
            Err(error) => tracing::debug!(%error, "the gauges could not be brought up to date"),
        }
        if !shutdown.sleep(GAUGES_EVERY).await {
            return Ok(());
        }
    }
}
