//! `outbox-relay`: publishes the rows of one outbox to Kafka.

use std::process::ExitCode;

use chassis::{config::TelemetryConfig, healthcheck};
use clap::Parser;
use outbox_relay::{commands, config::Command};

/// Publishes the events of a transactional outbox to Kafka, in order, at least once.
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
    chassis::process::main("outbox-relay", &arguments.telemetry, |shutdown| {
        commands::execute(arguments.command, shutdown)
    })
    .await
}
