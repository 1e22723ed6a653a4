//! Publishes the rows of one outbox to Kafka: in order per key, at least once, by one leader at a time.
//!
//! ```text
//!  leadership ── leader lock, proof ─────────────────────────────────────────────┐ asked before anything is produced
//!                                                                                ▼
//!  outbox.events ── read: window, pages ──▶ publish: JSON -> Avro -> producer ──▶ Kafka
//!                        ▲                        │ batches, in order              │ delivery reports
//!                        │ cursor                 ▼                                ▼
//!  outbox.batches ◀──────┴───────────────── save: every batch delivered, then one INSERT
//! ```
//!
//! It knows nothing of payments: which event goes where is in the catalogue.
//!
//! What happens if the process dies
//! - before a batch is acknowledged, or after it and before the save: the next leader publishes the batch again, with the same event
//!   ids and in the same order per key. Consumers take an event id once.
//! - within the save: it has committed or it has not; the next leader reads which.
//! - at any other point: nothing was begun.

pub mod catalogue;
pub mod commands;
pub mod config;
pub mod encode;
pub mod leadership;
pub mod metrics;
pub mod publish;
pub mod store;
mod term;
pub mod window;

use std::{sync::Arc, time::Duration};

use anyhow::Context as _;
use chassis::{admin, backoff::Backoff, postgres, shutdown::Shutdown};
use secrecy::SecretString;
use tokio::sync::Mutex;

use crate::{catalogue::Catalogue, config::RunConfig, encode::Encoder, metrics::Metrics, store::SaveError};

/// How often the leader measures its backlog.
const SAMPLE_EVERY: Duration = Duration::from_secs(15);

/// What one relay process has for its whole life, whether it leads or not.
struct Relay {
    config: RunConfig,
    catalogue: &'static Catalogue,
    encoder: Encoder,
    registry: schema::registry::Registry,
    /// Schema ids by event type, once known. They do not change.
    schema_ids: Mutex<std::collections::HashMap<&'static str, u32>>,
    metrics: Metrics,
}

/// Runs a relay until shutdown: stands by, leads, and stands by again when a term ends with an error.
pub async fn run(config: RunConfig, shutdown: Shutdown) -> anyhow::Result<()> {
    // Leaked: encoders hold the parsed schemas, and both live as long as the process.
    let catalogue: &'static Catalogue = Box::leak(Box::new(Catalogue::read(&config.catalogue.events)?));
    let prometheus = admin::new_metrics_registry(env!("CARGO_PKG_VERSION"))?;
    let readiness = admin::Readiness::default();
    let relay = Arc::new(Relay {
        encoder: Encoder::new(catalogue)?,
        registry: schema::registry::Registry::new(&config.registry.schema_registry_url)?,
        schema_ids: Mutex::default(),
        metrics: Metrics::new(&prometheus, catalogue)?,
        catalogue,
        config,
    });
    admin::serve(&relay.config.admin, prometheus, readiness.clone(), &shutdown).await?;
    let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
    while !shutdown.requested() {
        let standing_by = readiness.clone();
        let url = &relay.config.postgres.database_url;
        let Some(lock) =
            leadership::acquire(url, &relay.config.name, &shutdown, move |ready| standing_by.set(ready))
                .await?
        else {
            break;
        };
        relay.metrics.leader_transitions.inc();
        relay.metrics.leader.set(1);
        readiness.set(true);
        tracing::info!(relay = relay.config.name, leader_token = %lock.token, "leading");
        let sampling = tokio_util::sync::CancellationToken::new();
        let sampler = tokio::spawn(sample_backlog(Arc::clone(&relay), sampling.clone()));
        let result = term::lead(&relay, &lock, &shutdown).await;
        sampling.cancel();
        relay.metrics.leader.set(0);
        // First the lock, for which others wait.
        lock.release().await;
        sampler.await.context("measuring the backlog")?;
        match result {
            Ok(published) => {
                tracing::info!(
                    relay = relay.config.name,
                    published,
                    "progress saved and leadership given up"
                );
                backoff.reset();
            }
            Err(ended) => {
                relay.metrics.failures.with_label_values(&[ended.reason]).inc();
                if matches!(ended.error.downcast_ref(), Some(SaveError::Fenced(_))) {
                    relay.metrics.fenced.inc();
                    return Err(ended.error.context("another leader took over while this one slept"));
                }
                let delay = backoff.next_delay();
                let error = format!("{:#}", ended.error);
                tracing::error!(
                    relay = relay.config.name,
                    reason = ended.reason,
                    error,
                    ?delay,
                    "the term of leadership ended"
                );
                if ended.published > 0 {
                    backoff.reset();
                }
                shutdown.sleep(delay).await;
            }
        }
    }
    Ok(())
}

/// Measures the backlog while this process leads. Only the leader does, so that sums over processes are right.
async fn sample_backlog(relay: Arc<Relay>, stop: tokio_util::sync::CancellationToken) {
    while !stop.is_cancelled() {
        match backlog(&relay.config.postgres.database_url, &relay.config.name).await {
            Ok(backlog) => {
                relay.metrics.pending.set(backlog.pending);
                relay.metrics.oldest_pending_age.set(backlog.oldest_age_seconds);
            }
            Err(error) => tracing::warn!(error = format!("{error:#}"), "the backlog could not be measured"),
        }
        tokio::select! {
            () = tokio::time::sleep(SAMPLE_EVERY) => {}
            () = stop.cancelled() => {}
        }
    }
    relay.metrics.pending.set(0);
    relay.metrics.oldest_pending_age.set(0.0);
}

async fn backlog(url: &SecretString, relay: &str) -> anyhow::Result<store::Backlog> {
    let mut connection = postgres::connect(url, "outbox-relay backlog").await?;
    let backlog = store::backlog(&mut connection, relay).await.context("backlog")?;
    sqlx::Connection::close(connection).await?;
    Ok(backlog)
}

/// A place at which a harness may end or stop this process, set up from the environment variable `FAILPOINTS`. Nothing is compiled
/// without the feature `failpoints`.
#[cfg(feature = "failpoints")]
pub(crate) fn failpoint(name: &'static str) {
    fail::fail_point!(name, |action| signal_own(action.as_deref()));
}

#[cfg(not(feature = "failpoints"))]
pub(crate) fn failpoint(_name: &'static str) {}

#[cfg(feature = "failpoints")]
fn signal_own(action: Option<&str>) {
    use rustix::process::{Signal, getpid, kill_process};
    let signal = match action {
        Some("kill") => Signal::KILL,
        Some("stop") => Signal::STOP,
        other => panic!("a failpoint does not know the action {other:?}"),
    };
    if let Err(error) = kill_process(getpid(), signal) {
        panic!("a failpoint could not signal its own process: {error}");
    }
}
