//! The life of a process, the same in every binary.

use std::{future::Future, process::ExitCode, time::Duration};

use anyhow::Context as _;
use tokio::signal::unix::{SignalKind, signal};

use crate::{config::TelemetryConfig, shutdown::Shutdown, telemetry, trace};

/// How long tasks may take to finish after a signal.
const GRACE: Duration = Duration::from_secs(10);

/// Sets up logs, spans and signals, runs `run` to its end and turns its result into an exit code: 0 after a clean end, 1 after an
/// error, of a spawned task too. The first SIGTERM or SIGINT asks `run` to finish; a second one ends the process at once.
pub async fn main<F>(
    service: &'static str,
    telemetry_config: &TelemetryConfig,
    run: impl FnOnce(Shutdown) -> F,
) -> ExitCode
where
    F: Future<Output = anyhow::Result<()>>,
{
    if let Err(error) = telemetry::init(service, telemetry_config) {
        // There is no log yet that could carry this.
        #[expect(clippy::print_stderr, reason = "telemetry could not start")]
        {
            eprintln!("{service}: {error:#}");
        }
        return ExitCode::FAILURE;
    }
    let shutdown = Shutdown::new();
    if let Err(error) = listen_for_signals(shutdown.clone()) {
        tracing::error!(error = format!("{error:#}"), "signal handlers were not installed");
        return ExitCode::FAILURE;
    }
    let result = run(shutdown.clone()).await;
    shutdown.request();
    let drained = shutdown.finished(GRACE).await;
    let code = exit_code(service, result, drained, &shutdown);
    trace::flush().await;
    code
}

fn exit_code(service: &str, result: anyhow::Result<()>, drained: bool, shutdown: &Shutdown) -> ExitCode {
    match result {
        // The task has said in the log why.
        Ok(()) if shutdown.failed() => ExitCode::FAILURE,
        Ok(()) if drained => ExitCode::SUCCESS,
        Ok(()) => {
            tracing::error!(
                grace_seconds = GRACE.as_secs(),
                "tasks were still running at the end of the grace period"
            );
            ExitCode::FAILURE
        }
        Err(error) => {
            tracing::error!(error = format!("{error:#}"), "{service} failed");
            ExitCode::FAILURE
        }
    }
}

fn listen_for_signals(shutdown: Shutdown) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("SIGTERM handler")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("SIGINT handler")?;
    tokio::spawn(async move {
        for asked_before in [false, true] {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            if asked_before {
                tracing::warn!("second signal: ending at once");
                std::process::exit(130);
            }
            tracing::info!("asked to stop: finishing what is in flight");
            shutdown.request();
        }
    });
    Ok(())
}
