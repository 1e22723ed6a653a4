//! The subcommands beside `run`.

mod doctor;
mod move_server;
mod orders;
mod setup;
mod status;
mod verify;

use std::io::Write as _;

use anyhow::Context as _;
use chassis::{healthcheck, postgres, shutdown::Shutdown};
use serde::Serialize;
use sqlx::Connection as _;

pub use self::{
    doctor::doctor,
    move_server::{adopt, rebase},
    orders::order,
    setup::setup,
    status::{parked, status},
    verify::verify,
};
use crate::{
    config::{Command, MigrateConfig, RunConfig},
    publish::producer_settings,
    store::{
        orders::CommandKind,
        upkeep::{self, GrantFunction},
    },
};

/// The migrations of the outbox, for any database that has one.
pub fn migrations() -> sqlx::migrate::Migrator {
    sqlx::migrate!("../migrations/outbox")
}

/// Does what the command line asks for.
pub async fn execute(command: Command, shutdown: Shutdown) -> anyhow::Result<()> {
    match command {
        Command::Run(config) if config.print_producer => print_producer(&config),
        Command::Run(config) => crate::run(*config, shutdown).await,
        Command::Healthcheck(config) => healthcheck::ask(&config).await,
        Command::Setup(config) => setup(&config).await,
        Command::Migrate(config) => migrate(&config).await,
        Command::Doctor(config) => doctor(&config).await,
        Command::Status(config) => status(&config).await,
        Command::Parked(config) => parked(&config).await,
        Command::Redrive(config) => order(CommandKind::Redrive, &config).await.map(drop),
        Command::Discard(config) => order(CommandKind::Discard, &config).await.map(drop),
        Command::Replay(config) => order(CommandKind::Replay, &config).await.map(drop),
        Command::Verify(config) => verify(&config).await.map(drop),
        Command::Rebase(config) => rebase(&config).await,
        Command::Adopt(config) => adopt(&config).await,
    }
}

/// Writes one JSON value, or the text.
fn print<T: Serialize>(json: bool, value: &T, text: impl FnOnce() -> String) -> anyhow::Result<()> {
    let line = if json { serde_json::to_string(value)? } else { text() };
    writeln!(std::io::stdout(), "{line}")?;
    Ok(())
}

/// What a producer needs that is to be compared with this relay, or to stand in for it.
fn print_producer(config: &RunConfig) -> anyhow::Result<()> {
    let settings = producer_settings(&config.kafka, config.in_flight_max_kib, usize::MAX);
    writeln!(std::io::stdout(), "{}", serde_json::to_string(&settings.config_map())?)?;
    Ok(())
}

/// Creates or upgrades the outbox, and grants its use.
pub async fn migrate(config: &MigrateConfig) -> anyhow::Result<()> {
    if config.print {
        for migration in migrations().iter() {
            writeln!(
                std::io::stdout(),
                "-- {:04} {}\n{}",
                migration.version,
                migration.description,
                migration.sql.as_str()
            )?;
        }
        return Ok(());
    }
    let url = config.database_url.as_ref().context("--database-url is missing")?;
    postgres::migrate(url, migrations(), "outbox").await?;
    let mut connection = postgres::connect(url, "outbox-relay migrate").await?;
    for (function, roles) in [
        (GrantFunction::Writer, &config.writers),
        (GrantFunction::Relay, &config.relays),
        (GrantFunction::Reader, &config.readers),
        (GrantFunction::Operator, &config.operators),
    ] {
        for role in roles {
            upkeep::grant(&mut connection, function, role)
                .await
                .with_context(|| format!("grant {function:?} to {role}"))?;
        }
    }
    connection.close().await?;
    tracing::info!(
        version = migrations().iter().map(|migration| migration.version).max(),
        "outbox is up to date"
    );
    Ok(())
}
