//! The payment service's command line.

use std::process::ExitCode;

use chassis::{
    healthcheck,
    settings::{self, CheckConfig},
};
use clap::Parser;
use payment_service::commands::{self, Command};

/// Owns every payment state: takes payments over HTTP, and applies the PSPs' results that come from Kafka.
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    #[command(flatten)]
    telemetry: chassis::config::TelemetryConfig,
    #[command(flatten)]
    _check: CheckConfig,
    #[command(subcommand)]
    command: Command,
}

impl Cli {
    /// Whether the settings fit together, as far as can be said without connecting to anything.
    fn check(&self) -> anyhow::Result<()> {
        self.telemetry.traces_endpoint()?;
        if let Command::Run(config) = &self.command {
            config.validate()?;
        }
        Ok(())
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    let cli = match settings::parse(Cli::check) {
        Ok(cli) => cli,
        Err(code) => return code,
    };
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
    fn the_command_line_is_consistent_and_its_help_the_reference() {
        super::Cli::command().debug_assert();
        assert_eq!(chassis::settings::undocumented(super::Cli::command()), [""; 0]);
    }
}
