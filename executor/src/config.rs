//! The settings of the process, and the checks between them.

use std::time::Duration;

use anyhow::ensure;
use chassis::{
    config::{AdminConfig, KafkaConfig, PostgresConfig, RegistryConfig},
    healthcheck::HealthcheckConfig,
};
use clap::{Args, Subcommand};
use secrecy::SecretString;

use crate::psp::settings::PspConfig;

use crate::{clock::Clock, webhooks::settings::WebhookConfig};

/// What the process is to do.
#[derive(Subcommand, Clone, Debug)]
pub enum Command {
    /// Carries out payment orders until asked to stop.
    Run(Box<Config>),
    /// Asks the process that runs with the same ADMIN_LISTEN whether it is ready: exit code 0 if so, else 1 and why.
    Healthcheck(HealthcheckConfig),
    /// Applies the migrations of the schema `executor`; run it as the owner of the database, after `outbox-relay migrate`.
    Migrate(Migration),
}

/// Settings of `migrate`.
#[derive(Args, Clone, Debug)]
pub struct Migration {
    /// Connection URL of the owner, `postgres://user:password@host:port/database`.
    #[arg(long, env = "DATABASE_URL", hide_env_values = true)]
    pub database_url: SecretString,
    /// Roles under which the executor runs.
    #[arg(long = "service")]
    pub services: Vec<String>,
    /// Roles that may read everything.
    #[arg(long = "reader")]
    pub readers: Vec<String>,
}

/// Settings of `run`.
#[derive(Args, Clone, Debug)]
pub struct Config {
    /// Database of the executor, with its outbox.
    #[command(flatten)]
    pub postgres: PostgresConfig,
    /// Broker that the requests come from.
    #[command(flatten)]
    pub kafka: KafkaConfig,
    /// Where the writers' schemas are.
    #[command(flatten)]
    pub registry: RegistryConfig,
    /// Port for operators.
    #[command(flatten)]
    pub admin: AdminConfig,
    /// Topic of the requests.
    #[arg(long, env = "REQUESTS_TOPIC", default_value = "payment-order-requests")]
    pub requests_topic: String,
    /// Consumer group; a group without offsets starts at the earliest record.
    #[arg(long, env = "CONSUMER_GROUP", default_value = "executor")]
    pub consumer_group: String,
    /// The PSPs.
    #[command(flatten)]
    pub psps: PspConfig,
    /// Limit of one call to a PSP, connecting and further tries included. What is not answered by then is UNKNOWN and will be asked
    /// for.
    #[arg(long, env = "PSP_TIMEOUT", default_value = "8s", value_parser = humantime::parse_duration)]
    pub psp_timeout: Duration,
    /// How long a claim is exclusive; a crashed process's orders wait that long. Default: the PSP timeout and 3 s.
    #[arg(long, env = "LEASE", value_parser = humantime::parse_duration)]
    pub lease: Option<Duration>,
    /// How long a PSP is left alone after most of the last calls to it failed.
    #[arg(long, env = "BREAKER_PAUSE", default_value = "5s", value_parser = humantime::parse_duration)]
    pub breaker_pause: Duration,
    /// Payment orders carried out at once, for each PSP. So many places are needed as calls come per second times the seconds that one
    /// takes: of 500/s, those two in a hundred that are never answered take 80 places for themselves, with a limit of 8 s.
    #[arg(long, env = "CONCURRENCY", default_value_t = 256)]
    pub concurrency: usize,
    /// Payment orders asked about at once, for each PSP.
    #[arg(long, env = "RESOLVE_CONCURRENCY", default_value_t = 16)]
    pub resolve_concurrency: usize,
    /// When to ask the PSP first, after a result that is not final.
    #[arg(long, env = "RESOLVE_AFTER", default_value = "5s", value_parser = humantime::parse_duration)]
    pub resolve_after: Duration,
    /// When to ask again, each time counted from the last, separated by commas. After that a person has to look.
    #[arg(
        long,
        env = "RESOLVE_THEN",
        value_delimiter = ',',
        default_value = "30s,5m,1h,24h,24h,24h,24h,24h",
        value_parser = humantime::parse_duration
    )]
    pub resolve_then: Vec<Duration>,
    /// What PSPs tell by themselves.
    #[command(flatten)]
    pub webhooks: WebhookConfig,
    /// What time it is.
    #[arg(skip)]
    pub clock: Clock,
}

/// How much longer than the PSP timeout a lease must be: room for the statement that comes before the call.
pub(crate) const LEASE_MARGIN: Duration = Duration::from_secs(1);

impl Config {
    /// Checks what no single setting can: called before anything is started.
    pub fn validate(&self) -> anyhow::Result<()> {
        let (timeout, lease) = (self.psp_timeout, self.lease());
        ensure!(
            timeout >= Duration::from_millis(10),
            "PSP_TIMEOUT is {timeout:?}; it must be at least 10 ms"
        );
        ensure!(
            lease > timeout + LEASE_MARGIN,
            "LEASE is {lease:?}; it must be more than {LEASE_MARGIN:?} longer than PSP_TIMEOUT ({timeout:?}): \
             another executor could claim an order while its PSP call is running"
        );
        ensure!((1..=4096).contains(&self.concurrency), "CONCURRENCY must be between 1 and 4096");
        ensure!(
            (1..=4096).contains(&self.resolve_concurrency),
            "RESOLVE_CONCURRENCY must be between 1 and 4096"
        );
        self.webhooks.validate()?;
        ensure!(self.ladder().len() <= 100, "RESOLVE_THEN must have less than 100 steps");
        ensure!(self.breaker_pause >= Duration::from_millis(10), "BREAKER_PAUSE must be at least 10 ms");
        self.psps.validate()
    }

    /// How long a claim is exclusive.
    pub fn lease(&self) -> Duration {
        self.lease.unwrap_or(self.psp_timeout + Duration::from_secs(3))
    }

    /// The waits between the looks at an order whose result is not final.
    pub fn ladder(&self) -> Vec<Duration> {
        std::iter::once(self.resolve_after).chain(self.resolve_then.iter().copied()).collect()
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        config: Config,
    }

    fn config(more: &[&str]) -> Config {
        let base = [
            "executor",
            "--database-url=postgres://localhost/x",
            "--kafka-bootstrap=localhost:1",
            "--schema-registry-url=http://localhost:1",
            "--stripe-secret-key=sk_test_x",
        ];
        Cli::parse_from(base.iter().chain(more)).config
    }

    #[test]
    fn the_defaults_are_valid_and_the_ladder_has_nine_steps() {
        let config = config(&[]);
        config.validate().unwrap();
        assert_eq!(config.ladder().len(), 9);
        assert_eq!(config.ladder()[0], Duration::from_secs(5));
    }

    #[test]
    fn a_lease_that_a_call_can_outlive_is_refused() {
        for (lease, fits) in [("2s", false), ("3s", false), ("3001ms", true)] {
            let config = config(&["--psp-timeout=2s", &format!("--lease={lease}")]);
            assert_eq!(config.validate().is_ok(), fits, "{lease}");
        }
    }
}
