//! `executor`: carries out payment orders at PSPs.

use std::process::ExitCode;

use chassis::{
    config::TelemetryConfig,
    healthcheck,
    settings::{self, CheckConfig},
};
use clap::Parser;
use executor::config::Command;

/// Carries out payment orders at PSPs, and records what the PSPs said.
#[derive(Parser, Debug)]
#[command(version)]
struct Arguments {
    #[command(flatten)]
    telemetry: TelemetryConfig,
    #[command(flatten)]
    _check: CheckConfig,
    #[command(subcommand)]
    command: Command,
}

impl Arguments {
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
    let arguments = match settings::parse(Arguments::check) {
        Ok(arguments) => arguments,
        Err(code) => return code,
    };
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

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent_and_its_help_the_reference() {
        Arguments::command().debug_assert();
        assert_eq!(settings::undocumented(Arguments::command()), [""; 0]);
    }
}
