//! `PaymentOrderExecutor`: talks to PSPs, and only that. It carries out payment orders and records what the PSPs said.
//!
//! ```text
//! payment-order-requests ─▶ intake ─▶ inbox ─▶ executor ──▶ PSP      first calls, replies
//!                          (request)   ▲  │       │ course: what follows from an answer
//!                                      │  └──▶ resolver ──▶ PSP      what is in doubt: asked again, never assumed
//!                                      │          │
//!             PSP ─▶ webhooks ─────────└─ record ◀┘   result + event in one transaction ─▶ outbox ─▶ (relay) psp-result-updates
//! ```
//! [`intake`] reads [`request`]s from the topic; [`executor`] claims orders and calls the PSP by the rules of [`course`], in one
//! [`lane`] per PSP with a [`breaker`]; [`resolver`] takes up what was left in doubt; [`webhooks`] takes in what PSPs tell by themselves;
//! [`record`] is the one way in for results. [`psp`] holds the adapters, [`store`] all SQL, [`clock`] what
//! time it is.
//!
//! What happens if the process dies
//! - E1, before a call: the attempt is written down, nothing was sent. The lease runs out; the resolver looks the payment up, or sends
//!   the same creation under the same key.
//! - E2, the call was made and no reply was read; E3, the reply was read and no transaction was begun: as E1. The PSP is asked; a
//!   payment that was charged is found so, one that was not is confirmed under the same key.
//! - E4, after a result was inserted and before its event; E5, before COMMIT was sent: the transaction is rolled back, as E3.
//! - E6, COMMIT was sent and no answer came: it happened or not. If the process lives, it writes the same again, which finds itself; if
//!   not, and it did not happen, as E3.
//! - E7, after the commit: the event is in the outbox, and the order is settled. Nothing is left to do.
//!
//! Before all this, a request that is not in the inbox yet is still on the topic: offsets are committed after the database.

pub mod breaker;
pub mod clock;
pub mod config;
pub mod course;
pub mod executor;
mod failpoints;
pub mod intake;
pub mod lane;
pub mod metrics;
pub mod psp;
pub mod record;
pub mod request;
pub mod resolver;
pub mod store;
mod turn;
pub mod webhooks;

use std::{sync::Arc, time::Duration};

use anyhow::Context as _;
use chassis::{
    admin, healthcheck,
    http::{self, Limits},
    needs::{self, Need, Readiness},
    postgres,
    shutdown::Shutdown,
};
use schema::{decode::Decoder, registry::Registry};
use sqlx::PgPool;
use tokio::{net::TcpListener, sync::Notify};

use crate::{
    config::{Command, Config, Migration},
    executor::{Executor, Pace},
    intake::Intake,
    metrics::Metrics,
    psp::{Psps, settings::Mode},
    store::Queue,
    webhooks::{Webhooks, decision::Rules, processing::Processing},
};

/// A loop comes round within this time, also where a statement takes as long as it may, or waits for what it needs.
const LOOPS_WITHIN: Duration = Duration::from_secs(90);

/// Does what the command says.
pub async fn execute(command: Command, shutdown: Shutdown) -> anyhow::Result<()> {
    match command {
        Command::Run(config) => run(*config, shutdown).await,
        Command::Healthcheck(config) => healthcheck::ask(&config).await,
        Command::Migrate(migration) => migrate(&migration).await,
    }
}

/// Carries out payment orders until asked to stop.
pub async fn run(config: Config, shutdown: Shutdown) -> anyhow::Result<()> {
    config.validate()?;
    let psps = config.psps.build(config.psp_timeout, config.concurrency + config.resolve_concurrency)?;
    let registry = admin::new_metrics_registry(env!("CARGO_PKG_VERSION"))?;
    let metrics = Metrics::new(&registry, &psps)?;
    let readiness = admin::Readiness::default();
    admin::serve(&config.admin, registry.clone(), readiness.clone(), &shutdown).await?;
    chassis::kafka::watch(&config.kafka, &shutdown)?;
    let pool = postgres::pool(&config.postgres, "executor")?;
    postgres::watch_pool(&registry, &pool, "executor")?;
    let database = readiness.need("postgresql");
    if !database_ready(&pool, &database, &shutdown).await {
        return Ok(());
    }
    warn_of_orders_of_others(&pool, &psps).await;
    let listener = webhooks_listener(&config).await?;
    let wake = Arc::new(Notify::new());
    let schemas = Arc::new(Registry::with(
        &config.registry.schema_registry_url,
        config.registry.credentials()?,
        config.registry.schema_registry_ca.as_deref(),
    )?);
    let decoder = Decoder::new(Arc::clone(&schemas))?;
    let schemas = watch_needs(&config, &pool, schemas, database, &readiness, &shutdown);
    let parts = (pool.clone(), psps.clone(), metrics.clone());
    let standing = (schemas, readiness.pulse("intake", LOOPS_WITHIN));
    let intake = Intake::new(&config, decoder, parts, standing, Arc::clone(&wake), shutdown.clone())?;
    let executor = Executor::new(&config, pool.clone(), &psps, metrics.clone(), shutdown.clone());
    let pace = Pace {
        queue: Queue::Queued,
        concurrency: config.concurrency,
        busy: Duration::from_millis(10),
        idle: Duration::from_millis(25),
    };
    shutdown.spawn("intake", intake.run());
    shutdown.spawn("resolver", resolver::run(executor.clone(), config.resolve_concurrency));
    shutdown.spawn("executor", executor.run(pace, wake));
    webhooks(&config, &pool, &metrics, listener, &shutdown)?;
    shutdown.spawn("gauges", resolver::watch(pool, metrics, shutdown.clone()));
    readiness.set(true);
    tracing::info!(psp_timeout = ?config.psp_timeout, lease = ?config.lease(), concurrency = config.concurrency, "executor is ready");
    shutdown.wait().await;
    readiness.set(false);
    Ok(())
}

/// Watches what is needed from elsewhere. Returns the need for the registry: once it has answered, it is intake that says whether it waits for
/// it, as schemas that are known need no registry.
fn watch_needs(
    config: &Config,
    pool: &PgPool,
    registry: Arc<Registry>,
    database: Need,
    readiness: &Readiness,
    shutdown: &Shutdown,
) -> Need {
    let pool = pool.clone();
    let answers = move || {
        let pool = pool.clone();
        async move { store::check(&pool).await.map_err(|error| error.to_string()) }
    };
    shutdown.spawn("database watched", needs::watch(database, shutdown.clone(), answers));
    let brokers = readiness.need_behind_the_scenes("kafka");
    let topics = vec![config.requests_topic.clone()];
    let watching =
        needs::watch_brokers(config.kafka.clone(), "executor needs", topics, brokers, shutdown.clone());
    shutdown.spawn("brokers watched", watching);
    let schemas = readiness.need_behind_the_scenes("schema registry");
    let answers = move || {
        let registry = Arc::clone(&registry);
        async move { registry.answers().await.map_err(|error| error.to_string()) }
    };
    shutdown.spawn("registry watched", needs::until_met(schemas.clone(), shutdown.clone(), answers));
    schemas
}

/// Opens the port that PSPs send to, if any may. Before any work begins, so that a taken port is found at once.
async fn webhooks_listener(config: &Config) -> anyhow::Result<Option<TcpListener>> {
    let address = config.webhooks.webhooks_listen;
    if !config.webhooks.enabled() {
        tracing::warn!("no webhooks are received: neither STRIPE_WEBHOOK_SECRETS nor ADYEN_HMAC_KEYS is set");
        return Ok(None);
    }
    let listener = TcpListener::bind(address).await;
    let listener = listener.with_context(|| format!("webhooks port {address} could not be opened"))?;
    let (stripe, adyen) = (config.webhooks.stripe()?.is_some(), config.webhooks.adyen()?.is_some());
    tracing::info!(address = %listener.local_addr()?, stripe, adyen, "webhooks are received");
    Ok(Some(listener))
}

/// Receives webhooks, if there is a port, and works off what is stored in any case: another process may have received it.
fn webhooks(
    config: &Config,
    pool: &PgPool,
    metrics: &Metrics,
    listener: Option<TcpListener>,
    shutdown: &Shutdown,
) -> anyhow::Result<()> {
    let wake = Arc::new(Notify::new());
    if let Some(listener) = listener {
        let parts = (config.clock.clone(), pool.clone(), metrics.clone());
        let receiving = Webhooks::new(&config.webhooks, parts.0, parts.1, parts.2, Arc::clone(&wake))?;
        shutdown.spawn(
            "webhooks",
            http::serve(listener, receiving.router(), Limits::default(), shutdown.clone()),
        );
    }
    let processing = Processing {
        pool: pool.clone(),
        ladder: record::Ladder::of(config),
        metrics: metrics.clone(),
        clock: config.clock.clone(),
        rules: Rules {
            orphans_for: config.webhooks.webhook_orphans_for,
            strangers_max: config.webhooks.webhook_strangers_max.into(),
            retention: config.webhooks.webhook_retention,
            live: config.psps.mode == Mode::Live,
        },
    };
    shutdown.spawn("webhooks kept", processing.clone().watch(shutdown.clone()));
    shutdown.spawn("webhooks worked off", processing.run(wake, shutdown.clone()));
    Ok(())
}

/// A PSP whose key was taken out of the settings may have left orders behind: they wait for a process that has it.
async fn warn_of_orders_of_others(pool: &PgPool, psps: &Psps) {
    let names: Vec<&str> = psps.iter().map(|psp| psp.name()).collect();
    match store::orders_of_others(pool, &names).await {
        Ok(others) => {
            for (psp, orders) in others {
                tracing::warn!(psp, orders, "orders wait for a PSP that this process is not configured for");
            }
        }
        Err(error) => tracing::warn!(%error, "orders of other PSPs could not be counted"),
    }
}

/// Waits until the database answers; false if the end came first. What waiting cannot cure is said, and waited for all the same: an
/// operator may be about to apply the migrations.
async fn database_ready(pool: &PgPool, need: &Need, shutdown: &Shutdown) -> bool {
    let mut backoff = chassis::backoff::Backoff::new(Duration::from_millis(100), Duration::from_secs(2));
    while let Err(error) = store::check(pool).await {
        need.missing(postgres::explain(&error));
        if !shutdown.sleep(backoff.next_delay()).await {
            return false;
        }
    }
    need.met();
    true
}

/// Applies the migrations of the schema `executor`, and its grants. Doing it again changes nothing.
pub async fn migrate(migration: &Migration) -> anyhow::Result<()> {
    postgres::migrate(&migration.database_url, sqlx::migrate!("../migrations/executor"), "executor").await?;
    let mut connection = postgres::connect(&migration.database_url, "migrate").await?;
    store::grant(&mut connection, &migration.services, &migration.readers).await?;
    tracing::info!(services = ?migration.services, readers = ?migration.readers, "schema executor is up to date");
    Ok(())
}
