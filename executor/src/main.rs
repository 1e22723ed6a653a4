//! `executor`: carries out payment orders at PSPs.

use std::process::ExitCode;

use chassis::config::TelemetryConfig;
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
    let arguments: Arguments = chassis::secrets::parse();
    #[cfg(feature = "failpoints")]
    let _failpoints = chassis::failpoints::FailScenario::setup();
    chassis::process::main("executor", &arguments.telemetry, |shutdown| {
        executor::execute(arguments.command, shutdown)
    })
    .await
}
