//! A payment service provider for development: it speaks Stripe's wire protocol for PaymentIntents, fails on demand as
//! networks and issuers do, and keeps a ledger of every charge that it really made.
//!
//! ```text
//!  request ──▶ server ──▶ api ──────────▶ idempotency ──▶ params ──▶ payment_intents ──▶ ledger
//!             (bounds)   (key, headers)   (replay?)       (valid?)   (scenario: what      (one entry
//!                                                                     happens to it)       per charge)
//!  answer  ◀── server ◀── api: sent, or withheld, as the scenario says ◀── answer
//! ```
//!
//! It shares no code with what it is used to test: a misreading of the protocol must not cancel itself out.
//! A charge is in the ledger before its answer is given or withheld. All state is in memory and dies with the process.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::Context;
use time::OffsetDateTime;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use crate::config::Config;

mod answer;
mod api;
mod config;
mod errors;
mod form;
mod idempotency;
mod ids;
mod ledger;
mod metrics;
mod objects;
mod params;
mod payment_intents;
mod reader;
mod scenario;
mod server;

/// Everything that the simulator knows.
#[derive(Debug)]
struct World {
    config: Config,
    intents: payment_intents::PaymentIntents,
    idempotency: Arc<idempotency::Idempotency<api::Stored>>,
    ledger: ledger::Ledger,
    metrics: metrics::Metrics,
    requests: Semaphore,
    /// Slow confirmations, which go on when their client has hung up.
    slow: TaskTracker,
    shutdown: CancellationToken,
}

impl World {
    fn new(config: Config, shutdown: CancellationToken) -> anyhow::Result<Self> {
        Ok(Self {
            intents: payment_intents::PaymentIntents::new(config.capacity),
            // A payment takes two keys (create, confirm), and a third if it is cancelled.
            idempotency: Arc::new(idempotency::Idempotency::new(config.capacity.saturating_mul(3))),
            ledger: ledger::Ledger::default(),
            metrics: metrics::Metrics::new()?,
            requests: Semaphore::new(config.concurrency.clamp(1, Semaphore::MAX_PERMITS)),
            slow: TaskTracker::new(),
            shutdown,
            config,
        })
    }
}

/// Serves until `shutdown` is cancelled; requests in flight are finished, withheld ones are cut.
pub async fn run(listener: TcpListener, config: Config, shutdown: CancellationToken) -> anyhow::Result<()> {
    let address = listener.local_addr().context("reading the bound address")?;
    tracing::info!(listening = %address, "psp-simulator is ready");
    let world = Arc::new(World::new(config, shutdown.clone())?);
    server::serve(listener, api::router(Arc::clone(&world)), shutdown).await;
    tracing::info!(charges = world.ledger.summary().charges, "psp-simulator has stopped");
    Ok(())
}

/// The simulator's clock, in seconds since 1970.
fn now() -> i64 {
    OffsetDateTime::now_utc().unix_timestamp()
}

/// Locks, also after a panic of another holder: no critical section here leaves half a change behind.
fn held<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
