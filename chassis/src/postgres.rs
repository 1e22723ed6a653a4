//! PostgreSQL: connections, migrations, the one way to run a transaction, and what an error means.

use std::{str::FromStr as _, time::Duration};

use anyhow::Context as _;
use futures::future::BoxFuture;
use prometheus::{
    IntGaugeVec, Opts, Registry,
    core::{Collector, Desc},
    proto::MetricFamily,
};
use secrecy::{ExposeSecret as _, SecretString};
use sqlx::{
    ConnectOptions as _, Connection as _, PgConnection, PgPool, Postgres, Transaction,
    migrate::Migrator,
    postgres::{PgConnectOptions, PgPoolOptions},
};

use crate::config::PostgresConfig;

/// After so long the server ends a session that has left a transaction open, as PostgreSQL writes it. A session in which this setting
/// is missing did not begin with our options: a pooler is in between.
pub const IDLE_IN_TRANSACTION_MAX: &str = "10s";

/// Options of every session. The limits make the server end a session that its process has forgotten: such a session would hold
/// locks and keep vacuum from its work in the whole database.
pub fn connect_options(url: &SecretString, application: &str) -> anyhow::Result<PgConnectOptions> {
    let options = PgConnectOptions::from_str(url.expose_secret())
        // The error's text could repeat the URL, and with it the password.
        .map_err(|_| {
            anyhow::anyhow!(
                "the database URL could not be read; expected postgres://user:password@host:port/database"
            )
        })?;
    Ok(options
        .application_name(application)
        .options([
            ("idle_in_transaction_session_timeout", IDLE_IN_TRANSACTION_MAX),
            ("lock_timeout", "5s"),
            ("statement_timeout", "30s"),
            ("timezone", "UTC"),
        ])
        .disable_statement_logging())
}

/// How the services' statements are planned: all of them look rows up by an index, so each has one right plan, whatever it is given.
/// Planned once and kept: planning anew takes as long as running. And never a scan of the whole table, which is what an empty table
/// is best read by: the plan outlives that.
const BY_INDEX: [(&str, &str); 5] = [
    ("plan_cache_mode", "force_generic_plan"),
    ("enable_seqscan", "off"),
    ("enable_hashjoin", "off"),
    ("enable_mergejoin", "off"),
    ("jit", "off"),
];

/// A pool of connections for statements that look rows up by an index. All of them are opened in the background at once: one that is
/// opened under load costs the server more than the statement that it is opened for. Waiting for a free connection ends after 5 s.
pub fn pool(config: &PostgresConfig, application: &str) -> anyhow::Result<PgPool> {
    Ok(PgPoolOptions::new()
        .max_connections(config.database_pool_size)
        .min_connections(config.database_pool_size)
        .acquire_timeout(Duration::from_secs(5))
        .connect_lazy_with(connect_options(&config.database_url, application)?.options(BY_INDEX)))
}

/// Has a pool's connections counted in `db_pool_connections`.
pub fn watch_pool(registry: &Registry, pool: &PgPool, name: &str) -> anyhow::Result<()> {
    let options = Opts::new("db_pool_connections", "Connections to PostgreSQL, in use or idle.");
    let connections = IntGaugeVec::new(options.const_label("pool", name), &["state"])?;
    registry.register(Box::new(PoolMetrics { pool: pool.clone(), connections }))?;
    Ok(())
}

/// Looks when it is asked.
struct PoolMetrics {
    pool: PgPool,
    connections: IntGaugeVec,
}

impl Collector for PoolMetrics {
    fn desc(&self) -> Vec<&Desc> {
        self.connections.desc()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let idle = i64::try_from(self.pool.num_idle()).unwrap_or(i64::MAX);
        // Read one after the other, while both change.
        let in_use = (i64::from(self.pool.size()) - idle).max(0);
        for (state, count) in [("idle", idle), ("in_use", in_use)] {
            self.connections.with_label_values(&[state]).set(count);
        }
        self.connections.collect()
    }
}

/// One connection of its own, outside any pool.
pub async fn connect(url: &SecretString, application: &str) -> anyhow::Result<PgConnection> {
    let options = connect_options(url, application)?;
    tokio::time::timeout(Duration::from_secs(5), PgConnection::connect_with(&options))
        .await
        .context("PostgreSQL did not answer within 5 s")?
        .map_err(|error| {
            let refused = advice(&error).unwrap_or("PostgreSQL refused the connection");
            anyhow::Error::new(error).context(refused)
        })
}

/// What to look at, if the server refuses what the settings say, or its certificate is refused.
fn advice(error: &sqlx::Error) -> Option<&'static str> {
    match error {
        sqlx::Error::Database(database) => match database.code().as_deref() {
            Some("28P01") => Some("PostgreSQL refuses the password of DATABASE_URL"),
            // Also what pg_hba.conf says to whoever comes without TLS.
            Some("28000") => Some(
                "PostgreSQL does not let the user of DATABASE_URL in from here, or not with its sslmode (verify-full, with sslrootcert)",
            ),
            Some("3D000") => Some("DATABASE_URL names a database that is not there"),
            Some("42501") => {
                Some("the user of DATABASE_URL lacks a privilege: `migrate` grants what each process needs")
            }
            _ => None,
        },
        sqlx::Error::Tls(_) | sqlx::Error::Configuration(_) => Some(
            "no TLS with PostgreSQL: the sslrootcert of DATABASE_URL must hold the authority of the server's certificate, which must name \
             the URL's host",
        ),
        _ => None,
    }
}

/// The error, and what to look at if it is a refusal.
pub fn explain(error: &sqlx::Error) -> String {
    match advice(error) {
        Some(advice) => format!("{advice}: {error}"),
        None => error.to_string(),
    }
}

/// Runs `work` in a transaction and commits it if it returns Ok; anything else rolls back.
///
/// This is the only way to a transaction (clippy forbids the others): a `Pool::begin` that is dropped while it waits, as happens
/// to every handler whose HTTP client hangs up, leaves an open transaction in the pool, and the next user works inside it. Here
/// the whole unit of work is a task of its own that dropping the caller does not cut.
pub async fn transaction<T, E, W>(pool: &PgPool, work: W) -> Result<T, E>
where
    W: for<'t> FnOnce(&'t mut Transaction<'static, Postgres>) -> BoxFuture<'t, Result<T, E>> + Send + 'static,
    T: Send + 'static,
    E: From<sqlx::Error> + Send + 'static,
{
    let pool = pool.clone();
    let unit = tokio::spawn(async move {
        #[expect(clippy::disallowed_methods, reason = "the one place: inside a task that nothing cancels")]
        let mut tx = pool.begin().await?;
        match work(&mut tx).await {
            Ok(value) => {
                tx.commit().await?;
                Ok(value)
            }
            Err(error) => {
                // The work's own error says more than a failed rollback, which the server does by itself anyway.
                if let Err(rollback) = tx.rollback().await {
                    tracing::debug!(error = %rollback, "rollback was not answered");
                }
                Err(error)
            }
        }
    });
    match unit.await {
        Ok(result) => result,
        Err(panic) => Err(E::from(sqlx::Error::Io(std::io::Error::other(panic)))),
    }
}

/// Applies the migrations that are missing, keeping the record of them in `<schema>.migrations`: several sets of migrations can so
/// live in one database. Safe to run by many at once.
pub async fn migrate(url: &SecretString, mut migrator: Migrator, schema: &'static str) -> anyhow::Result<()> {
    let mut connection = connect(url, "migrate").await?;
    // A migration may take longer than the limits made for the services' statements.
    sqlx::query("SET statement_timeout = 0").execute(&mut connection).await?;
    migrator.create_schema(schema);
    migrator.dangerous_set_table_name(format!("{schema}.migrations"));
    migrator.run(&mut connection).await.context("the migration failed")?;
    connection.close().await?;
    Ok(())
}

/// What to do about a database error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disposition {
    /// The database is away, overloaded or busy: wait and do the same again. Nobody's data is at fault.
    Wait,
    /// The data of one of the rows is refused: find the culprit and set it aside.
    Culprit,
    /// Anything else, such as a missing table or privilege: a person must look. Never a reason to set data aside.
    Fault,
}

/// Sorts an error by its SQLSTATE class: 08 connection, 40 rollback, 53 resources, 57 operator, 55P03 lock, 25006 read-only mean
/// wait; 22 data, 23 constraint and P0001 raised mean a culprit.
pub fn disposition(error: &sqlx::Error) -> Disposition {
    match error {
        sqlx::Error::Database(database) => {
            let code = database.code().unwrap_or_default();
            match code.as_ref() {
                "55P03" | "25006" => Disposition::Wait,
                "P0001" => Disposition::Culprit,
                code => match code.get(..2) {
                    Some("08" | "40" | "53" | "57") => Disposition::Wait,
                    Some("22" | "23") => Disposition::Culprit,
                    _ => Disposition::Fault,
                },
            }
        }
        sqlx::Error::Io(_) | sqlx::Error::PoolTimedOut | sqlx::Error::Tls(_) | sqlx::Error::WorkerCrashed => {
            Disposition::Wait
        }
        // A connection that breaks in the middle of a message.
        sqlx::Error::Protocol(_) => Disposition::Wait,
        _ => Disposition::Fault,
    }
}
