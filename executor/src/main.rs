//! `executor`: carries out payment orders at PSPs.

use std::process::ExitCode;

use chassis::{config::TelemetryConfig, healthcheck};
use clap::Parser;
use executor::config::Command;

/// Carries out payment orders at PSPs, and records what the PSPs said.
#[derive(Parser, Debug)]
#[command(version)]
struct Arguments {
    #[command(flatten)]
    telemetry: TelemetryConfig,
    #[command(subcommand)]
    command: Command,
}

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    // Before the log begins: what asks wants an answer alone.
    if let Command::Healthcheck(config) = &arguments.command {
        return healthcheck::main(config).await;
    }
    #[cfg(feature = "failpoints")]
    let _failpoints = chassis::failpoints::FailScenario::setup();
    chassis::process::main("executor", &arguments.telemetry, |shutdown| {
        executor::execute(arguments.command, shutdown)
    })
    .await
}
