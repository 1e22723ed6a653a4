//! The payment service's command line.

use std::process::ExitCode;

use chassis::healthcheck;
use clap::Parser;
use payment_service::commands::{self, Command};

/// Owns every payment state: takes payments over HTTP, and applies the PSPs' results that come from Kafka.
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    #[command(flatten)]
    telemetry: chassis::config::TelemetryConfig,
    #[command(subcommand)]
    command: Command,
}

#[tokio::main]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    // Before the log begins: what asks wants an answer alone.
    if let Command::Healthcheck(config) = &cli.command {
        return healthcheck::main(config).await;
    }
    #[cfg(feature = "failpoints")]
    let _failpoints = chassis::failpoints::FailScenario::setup();
    chassis::process::main("payment-service", &cli.telemetry, |shutdown| {
        commands::execute(cli.command, shutdown)
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
