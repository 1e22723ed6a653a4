//! Publishes the rows of one outbox to Kafka: in order per key, at least once, by one leader at a time.
//!
//! ```text
//!  leadership ── leader lock, proof ─────────────────────────────────────────────┐ asked before anything is produced
//!                                                                                ▼
//!  takeover ── guards, fence, tail of the topics ── what is there is skipped ──┐
//!                                                                              ▼
//!  outbox.events ── read: window, pages ──▶ records: JSON -> Avro ──▶ dispatch: producer ──▶ Kafka
//!                        ▲                     ▲     │ batches, in order            │ delivery reports
//!                        │ cursor              │     │ unpublishable: parked        ▼
//!  outbox.batches ◀──────┴─────────────────────┼── save: every batch delivered, then one INSERT
//!  outbox.commands ── orders: redrive, discard, replay
//! ```
//!
//! It knows nothing of payments: which event goes where is in the catalogue.
//!
//! What happens if the process dies
//! - before a batch is acknowledged, or after it and before the save: the next leader finds on the topics what came to lie there, and
//!   publishes the rest, with the same event ids and in the same order per key. Requests that were in flight at that moment can reach
//!   the broker later: those events are on the topic twice. Consumers take an event id once.
//! - within the save: it has committed or it has not; the next leader reads which.
//! - at any other point: nothing was begun.

pub mod catalogue;
pub mod commands;
pub mod config;
mod dispatch;
pub mod encode;
pub mod leadership;
pub mod metrics;
mod orders;
pub mod publish;
mod read;
pub mod records;
pub mod recover;
mod retention;
mod save;
pub mod store;
mod takeover;
mod term;
pub mod window;

use std::{sync::Arc, time::Duration};

use anyhow::Context as _;
use chassis::{
    admin,
    backoff::Backoff,
    needs::{self, Need, Readiness},
    postgres,
    shutdown::Shutdown,
};
use schema::{registry::RegistryError, wire::value_subject};
use sqlx::PgConnection;
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

use crate::{
    catalogue::Catalogue, config::RunConfig, encode::Encoder, metrics::Metrics, store::SaveError,
    term::TermEnded,
};

/// The leader lock is tried for, or proven to be held, within this time, also where a statement takes as long as it may.
const LOCK_WITHIN: Duration = Duration::from_mins(1);
/// How often the leader measures its backlog.
const SAMPLE_EVERY: Duration = Duration::from_secs(15);

/// What one relay process has for its whole life, whether it leads or not.
struct Relay {
    config: RunConfig,
    /// Host and process id, for operators.
    identity: String,
    catalogue: &'static Catalogue,
    encoder: Encoder,
    registry: schema::registry::Registry,
    /// Schema ids by event type, once known. They do not change.
    schema_ids: Mutex<std::collections::HashMap<&'static str, u32>>,
    metrics: Metrics,
    /// Missing while this outbox is halted.
    decision: Need,
}

/// Runs a relay until shutdown: stands by, leads, and stands by again when a term ends with an error.
pub async fn run(config: RunConfig, shutdown: Shutdown) -> anyhow::Result<()> {
    config.validate()?;
    // Leaked: encoders hold the parsed schemas, and both live as long as the process.
    let catalogue: &'static Catalogue = Box::leak(Box::new(Catalogue::read(&config.catalogue.events)?));
    let prometheus = admin::new_metrics_registry(env!("CARGO_PKG_VERSION"))?;
    let readiness = Readiness::default();
    let decision = readiness.need("an operator's decision");
    decision.met();
    let relay = Arc::new(Relay {
        decision,
        encoder: Encoder::new(catalogue)?,
        registry: schema::registry::Registry::with(
            &config.registry.schema_registry_url,
            config.registry.credentials()?,
            config.registry.schema_registry_ca.as_deref(),
        )?,
        schema_ids: Mutex::default(),
        metrics: Metrics::new(&prometheus, catalogue)?,
        catalogue,
        identity: identity(),
        config,
    });
    admin::serve(&relay.config.admin, prometheus, readiness.clone(), &shutdown).await?;
    chassis::kafka::watch(&relay.config.kafka, &shutdown)?;
    shutdown.spawn("registry", ask_the_registry(Arc::clone(&relay), shutdown.clone()));
    let database = readiness.need("postgresql");
    watch_needs(&relay, &readiness, &shutdown);
    let pulse = readiness.pulse("the leader lock", LOCK_WITHIN);
    readiness.set(true);
    let mut told = None;
    let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
    while !shutdown.requested() {
        let (need, pulse) = (database.clone(), pulse.clone());
        let url = &relay.config.postgres.database_url;
        let Some(lock) = leadership::acquire(url, &relay.config.name, &shutdown, move |stands| {
            pulse.beat();
            match stands {
                Ok(()) => need.met(),
                Err(error) => need.missing(format!("{error:#}")),
            }
        })
        .await?
        else {
            break;
        };
        relay.metrics.leader_transitions.inc();
        relay.metrics.leader.set(1);
        tracing::info!(relay = relay.config.name, leader_token = %lock.token, "leading");
        failpoint("R1");
        let leading = CancellationToken::new();
        let sampler = tokio::spawn(sample_backlog(Arc::clone(&relay), leading.clone()));
        let turning = tokio::spawn(retention::keep_turning(Arc::clone(&relay), leading.clone()));
        let result = term::lead(&relay, &lock, &shutdown).await;
        leading.cancel();
        relay.metrics.leader.set(0);
        // First the lock, for which others wait.
        lock.release().await;
        sampler.await.context("measuring the backlog")?;
        turning.await.context("retention")?;
        match result {
            Ok(published) => {
                tracing::info!(
                    relay = relay.config.name,
                    published,
                    "progress saved and leadership given up"
                );
                backoff.reset();
                told = None;
            }
            Err(ended) => {
                relay.metrics.failures.with_label_values(&[ended.reason]).inc();
                relay.metrics.halted.set(i64::from(ended.reason == "halted"));
                if ended.reason == "halted" {
                    relay.decision.missing(format!("{:#}", ended.error));
                }
                if matches!(ended.error.downcast_ref(), Some(SaveError::Fenced(_))) {
                    relay.metrics.fenced.inc();
                    return Err(ended.error.context("another leader took over while this one slept"));
                }
                let delay = backoff.next_delay();
                // Said when it begins, and not each time that it is tried again.
                let again = told.replace(ended.reason) == Some(ended.reason) && ended.published == 0;
                tell(&relay.config.name, &ended, delay, again);
                if ended.published > 0 {
                    backoff.reset();
                }
                shutdown.sleep(delay).await;
            }
        }
    }
    readiness.set(false);
    Ok(())
}

fn tell(relay: &str, ended: &TermEnded, delay: Duration, again: bool) {
    let (reason, error) = (ended.reason, format!("{:#}", ended.error));
    if again {
        tracing::debug!(relay, reason, error, ?delay, "the term of leadership ended, for the same reason");
    } else {
        tracing::error!(relay, reason, error, ?delay, "the term of leadership ended");
    }
}

impl Relay {
    /// The registry is asked once in the life of the process: ids do not change.
    async fn schema_id(
        &self,
        event_type: &'static str,
        text: &str,
        topic: &str,
    ) -> Result<u32, RegistryError> {
        let mut known = self.schema_ids.lock().await;
        if let Some(id) = known.get(event_type) {
            return Ok(*id);
        }
        let id = self.registry.id_of(&value_subject(topic), text).await?;
        known.insert(event_type, id);
        Ok(id)
    }
}

/// Watches what is needed beside the database, whether this process leads or not.
fn watch_needs(relay: &Arc<Relay>, readiness: &Readiness, shutdown: &Shutdown) {
    let (kafka, topics) = (relay.config.kafka.clone(), relay.catalogue.published_topics());
    let brokers = readiness.need("kafka");
    let watching = needs::watch_brokers(kafka, "outbox-relay needs", topics, brokers, shutdown.clone());
    shutdown.spawn("brokers watched", watching);
    let learning = learn_schema_ids(Arc::clone(relay), readiness.need("schema registry"), shutdown.clone());
    shutdown.spawn("schema ids", learning);
}

/// Learns the schema ids of all that could come. With them, the registry is not needed any more.
async fn learn_schema_ids(relay: Arc<Relay>, need: Need, shutdown: Shutdown) -> anyhow::Result<()> {
    let ask = || async {
        for (event_type, event) in &relay.catalogue.events {
            relay
                .schema_id(event_type, &event.schema_text, &event.topic)
                .await
                .map_err(|error| hint(&error))?;
        }
        Ok(())
    };
    needs::until_met(need, shutdown, ask).await
}

fn hint(error: &RegistryError) -> String {
    match error {
        RegistryError::NotFound(_) => {
            format!("{error}; `outbox-relay setup` registers the schemas of the catalogue")
        }
        RegistryError::Unavailable(_) | RegistryError::Refused(_) => error.to_string(),
    }
}

/// Measures the backlog while this process leads. Only the leader does, so that sums over processes are right.
async fn sample_backlog(relay: Arc<Relay>, stop: CancellationToken) {
    // Kept: a server process for every look would cost more than the look.
    let mut session = None;
    while !stop.is_cancelled() {
        match backlog(&relay, &mut session).await {
            Ok(backlog) => {
                let metrics = &relay.metrics;
                metrics.pending.set(backlog.pending);
                metrics.oldest_pending_age.set(backlog.oldest_age_seconds);
                metrics.parked.set(backlog.parked);
                metrics.held.set(backlog.held);
                metrics.missing.set(backlog.missing);
                metrics.verified.set(backlog.verified_seconds);
                metrics.ghosts.set(backlog.ghosts);
                metrics.table_bytes.set(backlog.table_bytes);
                metrics.gauges_read.set(chassis::metrics::timestamp_seconds());
            }
            Err(error) => {
                session = None;
                tracing::warn!(error = format!("{error:#}"), "the backlog could not be measured");
            }
        }
        tokio::select! {
            () = tokio::time::sleep(SAMPLE_EVERY) => {}
            () = stop.cancelled() => {}
        }
    }
    relay.metrics.no_longer_sampled();
}

/// Asks the registry from time to time. Schemas that are known are kept, so nothing else would notice that it is gone, until the next
/// process that starts, or the next schema, needs it.
async fn ask_the_registry(relay: Arc<Relay>, shutdown: Shutdown) -> anyhow::Result<()> {
    loop {
        let answers = relay.registry.answers().await;
        if let Err(error) = &answers {
            tracing::warn!(%error, "the schema registry was asked, and does not answer");
        }
        relay.metrics.registry_up.set(i64::from(answers.is_ok()));
        if !shutdown.sleep(SAMPLE_EVERY).await {
            return Ok(());
        }
    }
}

async fn backlog(
    relay: &Relay,
    session: &mut Option<PgConnection>,
) -> anyhow::Result<store::checks::Backlog> {
    let connection = match session {
        Some(connection) => connection,
        None => session
            .insert(postgres::connect(&relay.config.postgres.database_url, "outbox-relay backlog").await?),
    };
    store::checks::backlog(connection, &relay.config.name).await.context("backlog")
}

/// Host and process id: what an operator needs to find a leader.
fn identity() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_else(|_| "unknown".to_owned());
    format!("{}:{}", host.trim(), std::process::id())
}

/// A place where a test can end or stop the process. Nothing, unless built for that.
fn failpoint(name: &'static str) {
    #[cfg(feature = "failpoints")]
    chassis::failpoints::strike(name);
    #[cfg(not(feature = "failpoints"))]
    let _ = name;
}
