//! The payment service: owns every payment state.
//!
//! ```text
//! GET /console -> console: pages for operators, of this database and of the executor's
//!
//! POST /v1/payments -> api -> payments: key + payment + order + audit + outbox event, one transaction -> 201
//! POST …/retry ------> api -> retries: another order after a definite failure, the same way -> 201
//! POST …/resolve ----> api -> resolutions: a person ends a review, audit first -> 200
//!
//! psp-result-updates -> consumer -> intake -> processing -> decision        payment_orders, payments
//!                          ^                       |------- one transaction ->  payment_order_transitions (audit)
//!                          |                       |                             processed_events, quarantine
//!                          '---- commit offsets <--' after the database's commit
//!
//! payments.quarantine -> quarantine (orphans, operators' redrives) -> processing -> the same transaction
//!                     -> dead_letters -> psp-result-updates.dlq, a copy
//! ```
//! It promises: a request is carried out once per Idempotency-Key, a result is applied once per event id, a contradiction reaches a
//! person, a record that is no result is kept with its reason, and no record stops the others.
//!
//! # If the process dies
//!
//! | point | in the database | in Kafka | what happens next |
//! | --- | --- | --- | --- |
//! | C1 records polled | nothing | offsets before them | they come again |
//! | C2 transaction begun | nothing: it is rolled back | offsets before them | they come again |
//! | C3 events marked as processed | nothing: the marks go with the transaction | offsets before them | they come again |
//! | C4 commit sent, no answer | all or nothing | offsets before them | they come again; if all was there, every event is known |
//! | C5 committed, offsets not | all | offsets before them | they come again; every event is known |
//! | C6 offset commit sent | all | offsets before or behind them | as C5, or nothing |
//! | C7 in a rebalance | all that was finished | at most what was finished | the new owner begins there |
//! | C8 setting aside | quarantine rows are part of the transaction | offsets before them | as C2 to C5 |
//!
//! The points exist in builds with the feature `failpoints`: `make faults FAMILY=consumer` ends and stops the process at each of them.
//!
//! During a POST the client does not know whether it was carried out; it sends the request again with the same key, and gets the one
//! answer there is.

pub mod api;
mod assignment;
pub mod audit;
pub mod commands;
pub mod config;
mod console;
pub mod consumer;
mod currency;
mod dead_letters;
pub mod decision;
mod failpoints;
pub mod idempotency;
pub mod intake;
pub mod intervention;
pub mod metrics;
pub mod payments;
pub mod problem;
pub mod processing;
mod quarantine;
pub mod request;
pub mod resolutions;
pub mod retries;
pub mod search;
mod store;
pub mod tokens;
mod watchdog;

use std::{net::SocketAddr, sync::Arc};

use anyhow::Context as _;
use chassis::{
    admin::Readiness,
    config::PostgresConfig,
    http::{self, Limits},
    needs::{self, Need},
    shutdown::Shutdown,
};
use schema::{decode::Decoder, registry::Registry};
use sqlx::Connection as _;
use tokio::net::TcpListener;

use crate::{
    api::{Api, ApiSettings},
    config::{Config, MigrateConfig},
    console::Console,
    consumer::PspResultUpdateConsumer,
    dead_letters::DeadLetters,
    metrics::Metrics,
    processing::ProcessPaymentService,
    quarantine::Housekeeping,
    tokens::Tokens,
};

/// Connections of the consumer, of the housekeeping and of the copying, beside those of the API.
const RESULTS_POOL_SIZE: u32 = 3;

/// Serves and consumes until asked to stop.
pub async fn run(config: Config, shutdown: Shutdown) -> anyhow::Result<()> {
    start(&config, &shutdown).await?;
    shutdown.wait().await;
    Ok(())
}

/// Where a started service can be reached.
#[derive(Clone, Copy, Debug)]
pub struct Addresses {
    /// The API.
    pub api: SocketAddr,
    /// The operators' port.
    pub admin: SocketAddr,
}

/// Opens the ports, then starts everything. The parts may come up in any order: what is not there yet is waited for.
pub async fn start(config: &Config, shutdown: &Shutdown) -> anyhow::Result<Addresses> {
    config.validate()?;
    let metrics_registry = chassis::admin::new_metrics_registry(env!("CARGO_PKG_VERSION"))?;
    let metrics = Metrics::new(&metrics_registry)?;
    let readiness = Readiness::default();
    let admin =
        chassis::admin::serve(&config.admin, metrics_registry.clone(), readiness.clone(), shutdown).await?;
    let listener = TcpListener::bind(config.listen)
        .await
        .with_context(|| format!("the API's address {} could not be opened", config.listen))?;
    let addresses = Addresses { api: listener.local_addr()?, admin };

    chassis::kafka::watch(&config.kafka, shutdown)?;
    let pool = chassis::postgres::pool(&config.postgres, "payment-service")?;
    chassis::postgres::watch_pool(&metrics_registry, &pool, "api")?;
    let tokens = Tokens::new(pool.clone());
    let settings = ApiSettings {
        order_lifetime: config.order_lifetime.into(),
        request_timeout: config.request_timeout.into(),
        requests_max: config.requests_max,
        rate_per_token: config.rate_per_token,
    };
    let console =
        Console::new(&config.console, addresses.api, (pool.clone(), tokens.clone()), Arc::clone(&metrics))?;
    let mut router = Api::new(pool, Arc::clone(&metrics), tokens, settings, shutdown).router();
    if let Some(console) = console {
        router = router.merge(console.router());
    }
    let limits = Limits {
        connections_max: config.connections_max,
        headers_within: config.headers_timeout.into(),
        ..Limits::default()
    };
    shutdown.spawn("api", http::serve(listener, router, limits, shutdown.clone()));

    let registry = Arc::new(Registry::with(
        &config.registry.schema_registry_url,
        config.registry.credentials()?,
        config.registry.schema_registry_ca.as_deref(),
    )?);
    let decoder = Arc::new(Decoder::new(Arc::clone(&registry))?);
    // Connections of their own: a flood of requests must not keep results waiting.
    let postgres = PostgresConfig { database_pool_size: RESULTS_POOL_SIZE, ..config.postgres.clone() };
    let results_pool = chassis::postgres::pool(&postgres, "payment-service results")?;
    chassis::postgres::watch_pool(&metrics_registry, &results_pool, "results")?;
    let service =
        ProcessPaymentService::new(results_pool.clone(), Arc::clone(&metrics), &config.consumer_group);
    let heartbeat = readiness.pulse("consumer", watchdog::STALLED_AFTER);
    let schemas = readiness.need_behind_the_scenes("schema registry");
    let consumer = PspResultUpdateConsumer::new(
        config,
        Arc::clone(&decoder),
        service.clone(),
        (Arc::clone(&metrics), heartbeat.clone(), schemas.clone()),
        shutdown.clone(),
    )?;
    let watching =
        watchdog::watch(heartbeat.clone(), Arc::clone(&metrics), watchdog::DEAD_AFTER, shutdown.clone());
    shutdown.spawn("watchdog", watching);
    shutdown.spawn("consumer", async move { tokio::task::spawn_blocking(move || consumer.run()).await? });
    let dead_letters =
        DeadLetters::new(&config.kafka, config.dlq_topic(), results_pool.clone(), Arc::clone(&metrics))?;
    shutdown.spawn("dead letters", dead_letters.run(shutdown.clone()));
    watch_needs(config, registry, schemas, &readiness, shutdown);
    let every = config.orphan_retry.into();
    let (database, consuming) = (readiness.need("postgresql"), readiness.need_behind_the_scenes("consumer"));
    let housekeeping =
        Housekeeping { pool: results_pool, decoder, service, metrics, database, consuming, heartbeat, every };
    shutdown.spawn("housekeeping", housekeeping.run(shutdown.clone()));
    readiness.set(true);
    let stopping = shutdown.clone();
    tokio::spawn(async move {
        stopping.wait().await;
        readiness.set(false);
    });
    tracing::info!(api = %addresses.api, admin = %addresses.admin, "payment service started");
    Ok(addresses)
}

/// Watches the brokers, and the registry until it has answered: after that it is the consumer that says whether it waits for it, as schemas
/// that are known need no registry. Neither is needed to answer requests.
fn watch_needs(
    config: &Config,
    registry: Arc<Registry>,
    schemas: Need,
    readiness: &Readiness,
    shutdown: &Shutdown,
) {
    let brokers = readiness.need_behind_the_scenes("kafka");
    let topics = vec![config.results_topic.clone()];
    let watching = needs::watch_brokers(
        config.kafka.clone(),
        "payment-service needs",
        topics,
        brokers,
        shutdown.clone(),
    );
    shutdown.spawn("brokers watched", watching);
    let answers = move || {
        let registry = Arc::clone(&registry);
        async move { registry.answers().await.map_err(|error| error.to_string()) }
    };
    shutdown.spawn("registry watched", needs::until_met(schemas, shutdown.clone(), answers));
}

/// Creates or upgrades the schema and grants privileges.
pub async fn migrate(config: &MigrateConfig) -> anyhow::Result<()> {
    let migrations = sqlx::migrate!("../migrations/payment-service");
    chassis::postgres::migrate(&config.database_url, migrations, "payments").await?;
    let mut connection = chassis::postgres::connect(&config.database_url, "payment-service migrate").await?;
    for role in &config.services {
        sqlx::query("SELECT payments.grant_service($1::name)").bind(role).execute(&mut connection).await?;
    }
    for role in &config.readers {
        sqlx::query("SELECT payments.grant_reader($1::name)").bind(role).execute(&mut connection).await?;
    }
    for role in &config.operators {
        sqlx::query("SELECT payments.grant_operator($1::name)").bind(role).execute(&mut connection).await?;
    }
    for role in &config.consoles {
        sqlx::query("SELECT payments.grant_console($1::name)").bind(role).execute(&mut connection).await?;
    }
    connection.close().await?;
    Ok(())
}
