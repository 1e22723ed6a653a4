//! The payment service's command line.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use payment_service::config::{Config, MigrateConfig};

/// Owns every payment state: takes payments over HTTP, and applies the PSPs' results that come from Kafka.
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    #[command(flatten)]
    telemetry: chassis::config::TelemetryConfig,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve the API and apply results until asked to stop.
    Run(Box<Config>),
    /// Create or upgrade the database schema, then grant privileges. Run it as the schema's owner.
    Migrate(MigrateConfig),
}

#[tokio::main]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    #[cfg(feature = "failpoints")]
    let _failpoints = fail::FailScenario::setup();
    chassis::process::main("payment-service", &cli.telemetry, |shutdown| async move {
        match cli.command {
            Command::Run(config) => payment_service::run(*config, shutdown).await,
            Command::Migrate(config) => payment_service::migrate(&config).await,
        }
    })
    .await
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_consistent() {
        super::Cli::command().debug_assert();
    }
}
