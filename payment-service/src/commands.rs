//! The subcommands, and what those beside `run` answer.

mod quarantine;
mod token;
mod verify_audit;

use std::io::Write as _;

use chassis::{
    healthcheck::{self, HealthcheckConfig},
    shutdown::Shutdown,
};
use clap::Subcommand;
use serde::Serialize;

pub use self::{
    quarantine::{Ordered, discard, list, redrive},
    verify_audit::verify_audit,
};
use crate::config::{Config, MigrateConfig, QuarantineCommand, TokenCommand, VerifyAuditConfig};
pub use crate::store::commands::{CommandResult, Listed, Selection};

/// What the command line asks for.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve the API and apply results until asked to stop.
    Run(Box<Config>),
    /// Ask the process that runs with the same ADMIN_LISTEN whether it is ready: exit code 0 if so, else 1 and why.
    Healthcheck(HealthcheckConfig),
    /// Create or upgrade the database schema, then grant privileges. Run it as the schema's owner.
    Migrate(MigrateConfig),
    /// Records that are no results, or could not be applied: show them, try them again, give them up.
    #[command(subcommand)]
    Quarantine(QuarantineCommand),
    /// Who may use the API: make tokens, show whose there are, revoke them.
    #[command(subcommand)]
    Token(TokenCommand),
    /// Fold the audit and compare it with the states. Exit code 1 if they differ.
    VerifyAudit(VerifyAuditConfig),
}

/// Does what the command line asks for.
pub async fn execute(command: Command, shutdown: Shutdown) -> anyhow::Result<()> {
    match command {
        Command::Run(config) => crate::run(*config, shutdown).await,
        Command::Healthcheck(config) => healthcheck::ask(&config).await,
        Command::Migrate(config) => crate::migrate(&config).await,
        Command::Quarantine(QuarantineCommand::List(config)) => list(&config).await.map(drop),
        Command::Quarantine(QuarantineCommand::Redrive(config)) => redrive(&config).await.map(drop),
        Command::Quarantine(QuarantineCommand::Discard(config)) => discard(&config).await.map(drop),
        Command::Token(TokenCommand::Create(config)) => token::create(&config).await,
        Command::Token(TokenCommand::List(config)) => token::list(&config).await.map(drop),
        Command::Token(TokenCommand::Revoke(config)) => token::revoke(&config).await.map(drop),
        Command::VerifyAudit(config) => verify_audit(&config).await.map(drop),
    }
}

/// Writes one JSON value, or the text.
fn print<T: Serialize>(json: bool, value: &T, text: impl FnOnce() -> String) -> anyhow::Result<()> {
    let line = if json { serde_json::to_string(value)? } else { text() };
    writeln!(std::io::stdout(), "{line}")?;
    Ok(())
}
