//! Payment service providers for development: Stripe and Adyen, by their wire protocols. They fail on demand as networks
//! and issuers do, and a ledger has every charge that was really made.
//!
//! ```text
//!  request ──▶ server ──▶ api ─┬▶ stripe ─┬──▶ idempotency ──▶ obstacles ──▶ PaymentIntents ─┬─▶ ledger
//!             (bounds)         └▶ adyen ──┘    (replay?)       (lost? 429?)   or payments     │   (one entry
//!                                                                            (scenario)      │    per charge)
//!  answer  ◀── server ◀── delivery: sent, withheld or broken ◀── kept under its key ◀────────┤
//!  webhook ◀── queue ◀── mischief: late, twice, never, wrong (by seed) ◀─────────────────────┘
//! ```
//!
//! It shares no code with what it is used to test: a misreading of the protocol must not cancel itself out.
//! A charge is in the ledger before its answer is given or withheld. All state is in memory and dies with the process.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Context;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use crate::config::Config;
pub use crate::healthcheck::healthcheck;
use crate::scenario::Psp;
pub use crate::webhooks::Mischief;

mod adyen;
mod api;
mod clock;
mod config;
mod control;
mod delivery;
mod healthcheck;
mod idempotency;
mod ledger;
mod metrics;
mod obstacles;
mod outcome;
mod scenario;
mod server;
mod stripe;
mod webhooks;

const MAX_BODY_BYTES: usize = 64 * 1024;
/// For a request's body to arrive.
const READ_TIMEOUT: Duration = Duration::from_secs(10);

/// Everything that the simulator knows.
#[derive(Debug)]
struct World {
    config: Config,
    clock: clock::Clock,
    stripe: stripe::Stripe,
    adyen: adyen::Adyen,
    obstacles: obstacles::Obstacles,
    ledger: ledger::Ledger,
    webhooks: webhooks::Webhooks,
    metrics: metrics::Metrics,
    requests: Semaphore,
    /// What goes on when its client has hung up.
    tasks: TaskTracker,
    shutdown: CancellationToken,
}

impl World {
    fn new(config: Config, shutdown: CancellationToken) -> anyhow::Result<Self> {
        Ok(Self {
            clock: clock::Clock::new(),
            stripe: stripe::Stripe::new(config.capacity),
            adyen: adyen::Adyen::new(config.capacity),
            obstacles: obstacles::Obstacles::new(config.refusals, config.capacity.saturating_mul(2)),
            ledger: ledger::Ledger::default(),
            webhooks: webhooks::Webhooks::new(&config)?,
            metrics: metrics::Metrics::new()?,
            requests: Semaphore::new(config.concurrency.clamp(1, Semaphore::MAX_PERMITS)),
            tasks: TaskTracker::new(),
            shutdown,
            config,
        })
    }

    fn desk(&self) -> outcome::Desk<'_> {
        outcome::Desk { ledger: &self.ledger, obstacles: &self.obstacles, now: self.clock.now() }
    }
}

/// Serves until `shutdown` is cancelled; requests in flight are finished, withheld ones are cut.
pub async fn run(listener: TcpListener, config: Config, shutdown: CancellationToken) -> anyhow::Result<()> {
    let address = listener.local_addr().context("reading the bound address")?;
    tracing::info!(listening = %address, "psp-simulator is ready");
    let world = Arc::new(World::new(config, shutdown.clone())?);
    for psp in [Psp::Stripe, Psp::Adyen] {
        if world.webhooks.wanted(psp) {
            tokio::spawn(webhooks::run(Arc::clone(&world), psp));
        }
    }
    server::serve(listener, api::router(Arc::clone(&world)), shutdown).await;
    tracing::info!(charges = world.ledger.summary().charges, "psp-simulator has stopped");
    Ok(())
}

/// Locks, also after a panic of another holder: no critical section here leaves half a change behind.
fn held<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
