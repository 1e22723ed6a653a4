//! The process: settings, logs on stderr, signals, `run`, exit code. And the question whether it runs.

use std::process::ExitCode;

use anyhow::Context;
use clap::{Parser, Subcommand};
use psp_simulator::Config;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

#[derive(Debug, Parser)]
#[command(
    name = "psp-simulator",
    version,
    about = "Speaks the wire protocols of Stripe and Adyen and keeps a ledger of the charges made"
)]
struct Arguments {
    #[command(flatten)]
    config: Config,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Asks the process that runs with the same LISTEN whether it answers: exit code 0 if so, else 1 and why.
    Healthcheck,
}

#[tokio::main]
async fn main() -> ExitCode {
    let Arguments { config, command } = chassis::secrets::parse();
    if let Some(Command::Healthcheck) = command {
        return match psp_simulator::healthcheck(&config.listen).await {
            Ok(()) => ExitCode::SUCCESS,
            Err(reason) => {
                #[expect(clippy::print_stderr, reason = "it is an answer, not a log")]
                {
                    eprintln!("{reason:#}");
                }
                ExitCode::FAILURE
            }
        };
    }
    let filter = EnvFilter::try_new(&config.log).unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt().json().with_env_filter(filter).with_writer(std::io::stderr).init();
    match start(config).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(error = format!("{error:#}"), "psp-simulator failed");
            ExitCode::FAILURE
        }
    }
}

async fn start(config: Config) -> anyhow::Result<()> {
    let shutdown = CancellationToken::new();
    let mut terminate = signal(SignalKind::terminate()).context("listening for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listening for SIGINT")?;
    let stop = shutdown.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        stop.cancel();
    });
    let listener =
        TcpListener::bind(&config.listen).await.with_context(|| format!("listening on {}", config.listen))?;
    psp_simulator::run(listener, config, shutdown).await
}
