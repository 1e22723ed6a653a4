//! The settings of the process, and the checks between them.

use std::time::Duration;

use anyhow::ensure;
use chassis::{
    config::{AdminConfig, KafkaConfig, PostgresConfig, RegistryConfig},
    healthcheck::HealthcheckConfig,
    settings::{OURS_OF_CONSUMERS, check_kafka, check_ports, check_postgres, check_registry, check_within},
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
        check_postgres(&self.postgres)?;
        check_kafka(&self.kafka, &OURS_OF_CONSUMERS)?;
        check_registry(&self.registry)?;
        ensure!(!self.requests_topic.is_empty(), "REQUESTS_TOPIC is empty");
        ensure!(!self.consumer_group.is_empty(), "CONSUMER_GROUP is empty");
        if self.webhooks.enabled() {
            let (webhooks, admin) = (self.webhooks.webhooks_listen, self.admin.admin_listen);
            check_ports(("WEBHOOKS_LISTEN", webhooks), ("ADMIN_LISTEN", admin))?;
        }
        let (timeout, lease) = (self.psp_timeout, self.lease());
        check_within("PSP_TIMEOUT", timeout, Duration::from_millis(10)..=Duration::from_mins(10))?;
        let connect = self.psps.psp_connect_timeout;
        ensure!(!connect.is_zero(), "PSP_CONNECT_TIMEOUT is 0: no PSP could be reached");
        let waits = self.ladder();
        ensure!(
            waits.iter().all(|wait| !wait.is_zero()),
            "RESOLVE_AFTER and RESOLVE_THEN must not be 0: a PSP would be asked without end"
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

    #[test]
    fn what_cannot_work_is_refused_by_its_name_and_says_why() {
        for (wrong, named, why) in [
            (&["--concurrency=0"][..], "CONCURRENCY", "between 1 and 4096"),
            (&["--psp-timeout=1ms"], "PSP_TIMEOUT", "between 10ms and 10m"),
            (&["--psp-timeout=soon"], "--psp-timeout", "number"),
            (&["--lease=8s"], "LEASE", "another executor could claim"),
            (&["--resolve-then=1s,0s"], "RESOLVE_THEN", "without end"),
            (&["--psp-connect-timeout=0s"], "PSP_CONNECT_TIMEOUT", "reached"),
            (&["--breaker-pause=1ms"], "BREAKER_PAUSE", "at least 10 ms"),
            (&["--mode=live"], "STRIPE_SECRET_KEY", "test key"),
            (&["--mode=maybe"], "--mode", "test, live"),
            (&["--requests-topic="], "REQUESTS_TOPIC", "empty"),
            (
                &[
                    "--stripe-webhook-secrets=whsec_hunter2",
                    "--webhooks-listen=127.0.0.1:9",
                    "--admin-listen=0.0.0.0:9",
                ],
                "WEBHOOKS_LISTEN",
                "ADMIN_LISTEN",
            ),
            (&["--kafka-property=auto.offset.reset=latest"], "auto.offset.reset", "begins"),
        ] {
            let base = [
                "executor",
                "--database-url=postgres://executor:hunter2@localhost/x",
                "--kafka-bootstrap=localhost:1",
                "--schema-registry-url=http://localhost:1",
                "--stripe-secret-key=sk_test_hunter2",
            ];
            let refused = match Cli::try_parse_from(base.iter().chain(wrong)) {
                Ok(cli) => format!("{:#}", cli.config.validate().unwrap_err()),
                Err(refused) => refused.to_string(),
            };
            assert!(refused.contains(named) && refused.contains(why), "{wrong:?}: {refused}");
            assert!(!refused.contains("hunter2"), "{refused}");
        }
    }
}
