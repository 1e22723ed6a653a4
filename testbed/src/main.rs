//! The testbed's command line: what the Makefile calls.
#![expect(clippy::print_stdout, reason = "a command line tool speaks on stdout")]

mod run;
mod signals;
mod sql;

use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use testbed::bench::api::{self, Bench as ApiBench};
use testbed::bench::consumer::{self, Bench as ConsumerBench};
use testbed::bench::executor::{self, Bench as ExecutorBench};
use testbed::bench::takeover::{self, Takeovers};
use testbed::bench::{self, Bench, Peer};
use testbed::contract::{self, Contract};
use testbed::demo::elsewhere::{self, Elsewhere};
use testbed::demo::{self, Demo, Scenario};
use testbed::drill;
use testbed::faults::{self, Family, Faults};
use testbed::stack::Stack;
use testbed::stack::home::Home;

use signals::Signals;

/// Starts the real parts and our processes on this machine.
#[derive(Debug, Parser)]
#[command(name = "testbed", arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Start PostgreSQL, Kafka and the schema registry, and leave them running.
    Up,
    /// Stop them, and whatever else was left behind.
    Down,
    /// Stop them, and remove what was downloaded and stored.
    Clean,
    /// Say what runs; the exit status is 1 when the stack does not.
    Status,
    /// Start everything, print how to use it, and stay until Ctrl-C.
    Run {
        /// Start Prometheus beside it, with every alert.
        #[arg(long)]
        observability: bool,
    },
    /// Kill one part after the other, and see that the alerts fire that the runbook says, and that they end.
    Drill {
        /// These parts alone, as the runbook names them.
        #[arg(long)]
        only: Vec<String>,
    },
    /// Send payments through everything while processes are killed, and prove that nothing was lost.
    Demo {
        /// Payments to send.
        #[arg(long, default_value_t = 2_000)]
        payments: usize,
        /// Payments per second.
        #[arg(long, default_value_t = 200.0)]
        rate: f64,
        /// Processes to kill: relay leader, executor and payment service in turn.
        #[arg(long, default_value_t = 3)]
        kills: usize,
        /// Draws the payments, and the moments of the kills.
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// What the PSPs do to payments.
        #[arg(long, value_enum, default_value = "plain")]
        scenario: Scenario,
        /// Keep logs and books even if all goes well.
        #[arg(long)]
        keep: bool,
    },
    /// The demo on an installation that runs already, such as that of compose.yaml, whose databases are new.
    DemoElsewhere(Box<Elsewhere>),
    /// Hurt a part of the system in many ways, one after the other, and prove that nothing was lost.
    Faults {
        /// What is hurt.
        #[arg(long, value_enum, default_value = "relay")]
        family: Family,
        /// How many faults.
        #[arg(long, default_value_t = 200)]
        episodes: usize,
        /// Draws the faults, and their moments.
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// The episode of this number alone.
        #[arg(long)]
        only: Option<usize>,
        /// Keep the logs even if all goes well.
        #[arg(long)]
        keep: bool,
    },
    /// Hold every answer of the API against its document: schemathesis asks the running service.
    TestApi {
        /// The program.
        #[arg(long, env = "SCHEMATHESIS")]
        schemathesis: std::path::PathBuf,
        /// Most cases per operation.
        #[arg(long, default_value_t = 50)]
        examples: u32,
        /// The same seed draws the same cases.
        #[arg(long, default_value_t = 1)]
        seed: u64,
    },
    /// Measure the API: how long clients wait, while the whole circle turns.
    BenchApi {
        /// Posts per second.
        #[arg(long, default_value_t = 500)]
        rate: u32,
        /// For so long.
        #[arg(long, default_value_t = 60)]
        seconds: u32,
    },
    /// Measure the relay: draining, latency and cost, beside a raw producer.
    BenchRelay {
        /// Events of a backlog.
        #[arg(long, default_value_t = 1_000_000)]
        events: u32,
        /// Events per second at which latency is measured.
        #[arg(long, value_delimiter = ',', default_values_t = [100, 1_000, 3_000])]
        rates: Vec<u32>,
        /// Seconds at each rate.
        #[arg(long, default_value_t = 20)]
        seconds: u32,
        /// Saves of progress beside an old snapshot.
        #[arg(long, default_value_t = 100_000)]
        saves: u32,
        /// Whom to compare with, on an equal backlog in the same run.
        #[arg(long)]
        peer: Option<Peer>,
    },
    /// Measure the executor: results per second over a backlog, and from a request to its result.
    BenchExecutor {
        /// Payment orders of a backlog.
        #[arg(long, default_value_t = 20_000)]
        orders: u32,
        /// Requests per second at which latency is measured; the last line tells that of the last.
        #[arg(long, value_delimiter = ',', default_values_t = [100, 300])]
        rates: Vec<u32>,
        /// Seconds at each rate.
        #[arg(long, default_value_t = 20)]
        seconds: u32,
    },
    /// Measure the consumer of results, and the whole circle.
    BenchConsumer {
        /// Results of a backlog, one in ten of them twice.
        #[arg(long, default_value_t = 500_000)]
        events: u32,
        /// Seconds at 100 and at 500 payments per second.
        #[arg(long, default_value_t = 20)]
        seconds: u32,
        /// Seconds for which a rate has to be kept up to be called sustained.
        #[arg(long, default_value_t = 60)]
        sustained: u32,
    },
    /// Measure how long nobody publishes after the SIGKILL of a leader, beside a large backlog.
    BenchTakeover {
        /// Events that wait.
        #[arg(long, default_value_t = 10_000_000)]
        pending: u32,
        /// Leaders that are killed, one after the other.
        #[arg(long, default_value_t = 5)]
        kills: u32,
    },
    /// Run a query and print its result as a table.
    Sql {
        /// The database: `payments` or `executor`.
        #[arg(long, default_value = "payments")]
        db: String,
        /// The role to log in as; `operator` may only read.
        #[arg(long, default_value = "operator")]
        role: String,
        /// The query.
        query: String,
    },
}

#[tokio::main]
async fn main() -> ExitCode {
    match Box::pin(perform(Cli::parse().command)).await {
        Ok(code) => code,
        Err(error) => {
            eprintln!("testbed: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn perform(command: Command) -> Result<ExitCode> {
    match command {
        Command::Up => {
            let mut signals = Signals::new()?;
            tokio::select! {
                up = Stack::up() => print(&up?.0),
                () = signals.received() => return Ok(ExitCode::from(130)),
            }
        }
        Command::Down => stop().await?,
        Command::Clean => {
            stop().await?;
            Home::locate()?.remove_contents()?;
        }
        Command::Status => {
            for (name, pid) in Stack::processes()? {
                println!("{name:<18} pid {pid}");
            }
            let Some(stack) = Stack::running().await? else {
                println!("the stack does not run");
                return Ok(ExitCode::FAILURE);
            };
            print(&stack);
        }
        Command::Run { observability } => run::run(observability).await?,
        Command::Drill { only } => return Box::pin(practise(&only)).await,
        Command::Demo { payments, rate, kills, seed, scenario, keep } => {
            return demonstrate(&Demo { payments, rate, kills, seed, scenario, stall_broker: true, keep })
                .await;
        }
        Command::DemoElsewhere(elsewhere) => return demonstrate_elsewhere(&elsewhere).await,
        Command::Faults { family, episodes, seed, only, keep } => {
            return Box::pin(hurt(&Faults { family, episodes, seed, only, keep })).await;
        }
        Command::TestApi { schemathesis, examples, seed } => {
            return check_api(&Contract { schemathesis, examples, seed }).await;
        }
        Command::BenchApi { rate, seconds } => {
            return benchmark_api(ApiBench { rate, seconds }).await;
        }
        Command::BenchRelay { events, rates, seconds, saves, peer } => {
            return benchmark(&Bench { events, rates, seconds, saves, peer }).await;
        }
        Command::BenchExecutor { orders, rates, seconds } => {
            return Box::pin(benchmark_executor(&ExecutorBench { orders, rates, seconds })).await;
        }
        Command::BenchConsumer { events, seconds, sustained } => {
            return benchmark_consumer(&ConsumerBench { events, seconds, sustained }).await;
        }
        Command::BenchTakeover { pending, kills } => {
            return measure_takeovers(Takeovers { pending, kills }).await;
        }
        Command::Sql { db, role, query } => {
            let stack =
                Stack::running().await?.context("the stack does not run: start it with `make run`")?;
            print!("{}", sql::query(&stack.postgres_url(&role, &db), &query).await?);
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The last line on stdout is the verdict as JSON.
async fn demonstrate(demo: &Demo) -> Result<ExitCode> {
    // Asked for before anything starts, so that a Ctrl-C during the start does not leave half of it.
    let mut signals = Signals::new()?;
    let interrupted = async {
        signals.received().await;
        eprintln!("\ntestbed: broken off; stopping what was started");
    };
    let Some(demo::Outcome { report, kept }) = demo::run(demo, interrupted).await? else {
        return Ok(ExitCode::from(130));
    };
    println!("{}", report.table);
    for broken in &report.broken {
        println!("BROKEN  {broken}");
    }
    if let Some(folder) = kept {
        println!("logs and books are in {}", folder.display());
    }
    println!("{}", report.json());
    Ok(if report.broken.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The last line on stdout is the verdict as JSON.
async fn demonstrate_elsewhere(elsewhere: &Elsewhere) -> Result<ExitCode> {
    let mut signals = Signals::new()?;
    let report = tokio::select! {
        report = elsewhere::run(elsewhere) => report?,
        () = signals.received() => return Ok(ExitCode::from(130)),
    };
    println!("{}", report.table);
    for broken in &report.broken {
        println!("BROKEN  {broken}");
    }
    println!("{}", report.json());
    Ok(if report.broken.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The last line on stdout is the verdict as JSON.
async fn hurt(faults: &Faults) -> Result<ExitCode> {
    let mut signals = Signals::new()?;
    let say = |line: &str| println!("{line}");
    let faults::Outcome { report, kept } = tokio::select! {
        outcome = faults::run(faults, &say) => outcome?,
        () = signals.received() => {
            eprintln!("\ntestbed: broken off; stopping what was started");
            return Ok(ExitCode::from(130));
        }
    };
    println!("\n{}", report.table);
    for line in &report.broken {
        println!("BROKEN  {line}");
    }
    if let Some(folder) = kept {
        println!("logs are in {}", folder.display());
    }
    println!("{}", report.json());
    Ok(if report.broken.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The last line on stdout is what was measured, as JSON.
async fn benchmark(bench: &Bench) -> Result<ExitCode> {
    let mut signals = Signals::new()?;
    let interrupted = async {
        signals.received().await;
        eprintln!("\ntestbed: broken off; stopping what was started");
    };
    let Some(report) = bench::run(bench, interrupted).await? else { return Ok(ExitCode::from(130)) };
    println!("{}", report.table);
    println!("{}", report.json());
    Ok(ExitCode::SUCCESS)
}

/// The last line on stdout is what was measured, as JSON.
async fn benchmark_executor(bench: &ExecutorBench) -> Result<ExitCode> {
    let mut signals = Signals::new()?;
    let interrupted = async {
        signals.received().await;
        eprintln!("\ntestbed: broken off; stopping what was started");
    };
    let Some(report) = Box::pin(executor::run(bench, interrupted)).await? else {
        return Ok(ExitCode::from(130));
    };
    println!("{}", report.table);
    println!("{}", report.json());
    Ok(ExitCode::SUCCESS)
}

/// The last line on stdout is what was measured, as JSON.
async fn benchmark_consumer(bench: &ConsumerBench) -> Result<ExitCode> {
    let mut signals = Signals::new()?;
    let interrupted = async {
        signals.received().await;
        eprintln!("\ntestbed: broken off; stopping what was started");
    };
    let Some(report) = consumer::run(bench, interrupted).await? else { return Ok(ExitCode::from(130)) };
    println!("{}", report.table);
    println!("{}", report.json());
    Ok(ExitCode::SUCCESS)
}

/// Errors are a failure: the last line on stdout tells them beside what was measured, as JSON.
async fn benchmark_api(bench: ApiBench) -> Result<ExitCode> {
    let mut signals = Signals::new()?;
    let interrupted = async {
        signals.received().await;
        eprintln!("\ntestbed: broken off; stopping what was started");
    };
    let Some(report) = api::run(bench, interrupted).await? else { return Ok(ExitCode::from(130)) };
    println!("{}", report.table());
    println!("{}", report.json());
    Ok(if report.errors.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The last line on stdout is what fired, as JSON.
async fn practise(only: &[String]) -> Result<ExitCode> {
    let mut signals = Signals::new()?;
    let say = |line: &str| println!("{line}");
    let report = tokio::select! {
        report = drill::run(only, &say) => report?,
        () = signals.received() => {
            eprintln!("\ntestbed: broken off; stopping what was started");
            return Ok(ExitCode::from(130));
        }
    };
    println!("{}", report.json()?);
    Ok(if report.as_expected() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn check_api(contract: &Contract) -> Result<ExitCode> {
    let mut signals = Signals::new()?;
    tokio::select! {
        checked = contract::run(contract) => checked?,
        () = signals.received() => {
            eprintln!("\ntestbed: broken off; stopping what was started");
            return Ok(ExitCode::from(130));
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The last line on stdout is what was measured, as JSON.
async fn measure_takeovers(takeovers: Takeovers) -> Result<ExitCode> {
    let mut signals = Signals::new()?;
    let interrupted = async {
        signals.received().await;
        eprintln!("\ntestbed: broken off; stopping what was started");
    };
    let Some(measured) = takeover::run(takeovers, interrupted).await? else {
        return Ok(ExitCode::from(130));
    };
    println!("{}", measured.table());
    println!("{}", measured.json());
    Ok(ExitCode::SUCCESS)
}

async fn stop() -> Result<()> {
    for name in Stack::down().await? {
        println!("stopped {name}");
    }
    Ok(())
}

fn print(stack: &Stack) {
    for (name, _, address) in stack.parts() {
        println!("{name:<18} {address}");
    }
    println!("{:<18} {}", "PostgreSQL version", stack.major());
    println!("{:<18} {}", "logs", stack.folder().display());
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn wrong_arguments_are_refused_with_what_is_known() {
        let error = Cli::try_parse_from(["testbed", "start"]).unwrap_err().to_string();
        assert!(error.contains("unrecognized subcommand"), "{error}");
        let error = Cli::try_parse_from(["testbed", "sql", "--db", "payments"]).unwrap_err().to_string();
        assert!(error.contains("<QUERY>"), "{error}");
    }
}
