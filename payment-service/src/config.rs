//! Settings. Each is a flag and an environment variable; its comment is its help.

use std::{net::SocketAddr, num::NonZeroU32, time::Duration};

use anyhow::{Context as _, ensure};

use chassis::{
    config::{AdminConfig, KafkaConfig, PostgresConfig, RegistryConfig},
    postgres::connect_options,
    settings::{OURS_OF_CONSUMERS, check_kafka, check_ports, check_postgres, check_registry, check_within},
};
use clap::{Args, Subcommand};
use secrecy::SecretString;
use uuid::Uuid;

use crate::{console, tokens::Role};

/// Settings of `payment-service run`.
#[derive(Args, Clone, Debug)]
pub struct Config {
    /// Where PostgreSQL is.
    #[command(flatten)]
    pub postgres: PostgresConfig,
    /// Where Kafka is.
    #[command(flatten)]
    pub kafka: KafkaConfig,
    /// Where the schema registry is.
    #[command(flatten)]
    pub registry: RegistryConfig,
    /// The operators' port.
    #[command(flatten)]
    pub admin: AdminConfig,
    /// Address of the API.
    #[arg(long, env = "LISTEN", default_value = "127.0.0.1:8080")]
    pub listen: SocketAddr,
    /// The API speaks plain HTTP, also on an address that other machines reach: behind a proxy that ends TLS, and in a network of
    /// containers. Without this, such an address is refused: tokens would be read by whoever is in between.
    #[arg(long, env = "ALLOW_PLAINTEXT", default_value_t = false, action = clap::ArgAction::Set, num_args = 0..=1, default_missing_value = "true")]
    pub allow_plaintext: bool,
    /// Longest time that the API works on one request.
    #[arg(long, env = "REQUEST_TIMEOUT", default_value = "8s")]
    pub request_timeout: humantime::Duration,
    /// Most requests that the API works on at once; further ones are asked to come again.
    #[arg(long, env = "REQUESTS_MAX", default_value_t = 512)]
    pub requests_max: usize,
    /// Most connections to the API at once; further ones wait in the listen queue.
    #[arg(long, env = "CONNECTIONS_MAX", default_value_t = 1_024, value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..=65_536))]
    pub connections_max: usize,
    /// How long a client may take to send the head of a request; also how long an idle connection is kept.
    #[arg(long, env = "HEADERS_TIMEOUT", default_value = "10s")]
    pub headers_timeout: humantime::Duration,
    /// Requests per second that one token may send, and at once; further ones are answered 429.
    #[arg(long, env = "RATE_PER_TOKEN", default_value = "1000")]
    pub rate_per_token: NonZeroU32,
    /// How long after its creation the first attempt of a payment order may still start: 12 hours at most. PSPs remember idempotency
    /// keys for 24 hours at least; an order that could be begun for longer could be charged twice after a database was put back.
    #[arg(long, env = "ORDER_LIFETIME", default_value = "1h", value_parser = order_lifetime)]
    pub order_lifetime: humantime::Duration,
    /// Topic of the PSPs' results.
    #[arg(long, env = "RESULTS_TOPIC", default_value = "psp-result-updates")]
    pub results_topic: String,
    /// Consumer group: the instances of one group share the partitions.
    #[arg(long, env = "CONSUMER_GROUP", default_value = "payment-service")]
    pub consumer_group: String,
    /// Name of this instance within the group (static membership). An instance that comes back under its name has its partitions at
    /// once; without a name the group waits for the session of the one that died. Two live processes must not share a name.
    #[arg(long, env = "CONSUMER_INSTANCE")]
    pub consumer_instance: Option<String>,
    /// Most records in one transaction.
    #[arg(long, env = "BATCH_MAX", default_value_t = 500, value_parser = clap::value_parser!(u32).range(1..=5_000))]
    pub batch_max: u32,
    /// Topic of the copies of what is in quarantine; the results' topic with `.dlq` behind it, if it is not given.
    #[arg(long, env = "DLQ_TOPIC")]
    pub dlq_topic: Option<String>,
    /// How often results that came before their payment order are tried again.
    #[arg(long, env = "ORPHAN_RETRY", default_value = "5s")]
    pub orphan_retry: humantime::Duration,
    /// The console.
    #[command(flatten)]
    pub console: ConsoleConfig,
}

/// The console, which is there if it has a way to its database.
#[derive(Args, Clone, Debug)]
pub struct ConsoleConfig {
    /// Connection URL of the console's role (`migrate --console`) in the service's database. Without it there is no console.
    #[arg(long, env = "CONSOLE_DATABASE_URL", hide_env_values = true)]
    pub console_database_url: Option<SecretString>,
    /// Connection URL of the console's role in the executor's database (`executor migrate --reader`, `outbox-relay migrate --operator`),
    /// which nothing but the console reads. Without it, what the executor did is not shown.
    #[arg(long, env = "EXECUTOR_DATABASE_URL", hide_env_values = true)]
    pub executor_database_url: Option<SecretString>,
    /// What browsers call the console: scheme, host and port, such as `https://console.example.com`. Needed unless the service listens on
    /// loopback; http is for loopback alone.
    #[arg(long, env = "CONSOLE_ORIGIN")]
    pub console_origin: Option<String>,
    /// How long an operator stays signed in.
    #[arg(long, env = "CONSOLE_SESSION", default_value = "8h", value_parser = session)]
    pub console_session: humantime::Duration,
}

impl Config {
    /// Checks what no single setting can. Connects to nothing.
    pub fn validate(&self) -> anyhow::Result<()> {
        check_postgres(&self.postgres)?;
        check_kafka(&self.kafka, &OURS_OF_CONSUMERS)?;
        check_registry(&self.registry)?;
        check_ports(("LISTEN", self.listen), ("ADMIN_LISTEN", self.admin.admin_listen))?;
        self.check_plaintext()?;
        let ms = Duration::from_millis;
        check_within("REQUEST_TIMEOUT", *self.request_timeout, ms(10)..=Duration::from_mins(1))?;
        check_within("HEADERS_TIMEOUT", *self.headers_timeout, ms(10)..=Duration::from_mins(10))?;
        check_within("ORPHAN_RETRY", *self.orphan_retry, ms(10)..=Duration::from_hours(1))?;
        ensure!(self.requests_max > 0, "REQUESTS_MAX is 0: every request would be refused");
        ensure!(!self.results_topic.is_empty(), "RESULTS_TOPIC is empty");
        ensure!(!self.consumer_group.is_empty(), "CONSUMER_GROUP is empty");
        ensure!(
            self.dlq_topic() != self.results_topic,
            "DLQ_TOPIC and RESULTS_TOPIC are both {}: what cannot be applied would be read again, and set aside again, without end",
            self.results_topic
        );
        match (&self.console.console_database_url, &self.console.executor_database_url) {
            (Some(url), executor) => {
                connect_options(url, "check").context("CONSOLE_DATABASE_URL")?;
                if let Some(url) = executor {
                    connect_options(url, "check").context("EXECUTOR_DATABASE_URL")?;
                }
                console::check_origin(&self.console, self.listen)
            }
            (None, Some(_)) => anyhow::bail!(
                "EXECUTOR_DATABASE_URL is read by the console alone, which is off without CONSOLE_DATABASE_URL"
            ),
            (None, None) => Ok(()),
        }
    }

    /// Nobody reads tokens off the network by an oversight.
    pub(crate) fn check_plaintext(&self) -> anyhow::Result<()> {
        ensure!(
            self.allow_plaintext || self.listen.ip().is_loopback(),
            "{} can be reached from other machines, and the API speaks plain HTTP: listen on a loopback address, or put a proxy that \
             ends TLS in front of it and say so (ALLOW_PLAINTEXT, --allow-plaintext)",
            self.listen
        );
        Ok(())
    }

    /// The topic of the copies of what is in quarantine.
    pub fn dlq_topic(&self) -> String {
        self.dlq_topic.clone().unwrap_or_else(|| format!("{}.dlq", self.results_topic))
    }
}

/// Settings of `payment-service migrate`.
#[derive(Args, Clone, Debug)]
pub struct MigrateConfig {
    /// Connection URL of the schema's owner.
    #[arg(long, env = "DATABASE_URL", hide_env_values = true)]
    pub database_url: SecretString,
    /// Role of the service; may be repeated.
    #[arg(long = "service")]
    pub services: Vec<String>,
    /// Role that may read everything and change nothing; may be repeated.
    #[arg(long = "reader")]
    pub readers: Vec<String>,
    /// Role that may read everything, ask for what `quarantine redrive` and `discard` offer, and make and revoke tokens; may be repeated.
    #[arg(long = "operator")]
    pub operators: Vec<String>,
    /// Role of the console; may be repeated.
    #[arg(long = "console")]
    pub consoles: Vec<String>,
}

/// What every operators' command is given.
#[derive(Args, Clone, Debug)]
pub struct OperatorConfig {
    /// Connection URL of a role with the operators' privileges.
    #[arg(long, env = "DATABASE_URL", hide_env_values = true)]
    pub database_url: SecretString,
    /// Write JSON.
    #[arg(long)]
    pub json: bool,
}

/// `payment-service quarantine …`.
#[derive(Clone, Debug, Subcommand)]
pub enum QuarantineCommand {
    /// Show what is in quarantine, oldest first.
    List(ListConfig),
    /// Try records again, after what was wrong has been mended.
    Redrive(OrderConfig),
    /// Give records up. Their bytes stay in the table.
    Discard(OrderConfig),
}

/// Which records of the quarantine.
#[derive(Args, Clone, Debug, Default)]
pub struct SelectionConfig {
    /// Row of the quarantine. May be given several times.
    #[arg(long = "id", value_name = "ID")]
    pub ids: Vec<i64>,
    /// Sort of reason.
    #[arg(long, value_parser = ["UNDECODABLE", "ORPHAN", "REFUSED"])]
    pub reason: Option<String>,
    /// Event id.
    #[arg(long = "event", value_name = "EVENT_ID")]
    pub event_id: Option<Uuid>,
    /// Payment order.
    #[arg(long = "order", value_name = "PAYMENT_ORDER_ID")]
    pub payment_order_id: Option<Uuid>,
    /// Topic that they came from.
    #[arg(long)]
    pub topic: Option<String>,
    /// Partition that they came from.
    #[arg(long, requires = "topic")]
    pub partition: Option<i32>,
    /// Offsets from here on.
    #[arg(long, requires = "partition")]
    pub from_offset: Option<i64>,
    /// Offsets up to here.
    #[arg(long, requires = "partition")]
    pub to_offset: Option<i64>,
}

/// Settings of `payment-service quarantine list`.
#[derive(Args, Clone, Debug)]
pub struct ListConfig {
    /// Where, and how to answer.
    #[command(flatten)]
    pub common: OperatorConfig,
    /// Which records; all if nothing is said.
    #[command(flatten)]
    pub selection: SelectionConfig,
    /// Most records that are shown.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(i64).range(1..=10_000))]
    pub limit: i64,
}

/// Settings of `payment-service quarantine redrive` and `discard`.
#[derive(Args, Clone, Debug)]
pub struct OrderConfig {
    /// Where, and how to answer.
    #[command(flatten)]
    pub common: OperatorConfig,
    /// Which records.
    #[command(flatten)]
    pub selection: SelectionConfig,
    /// Everything that is in quarantine.
    #[arg(long)]
    pub all: bool,
    /// Do it. Without this, what would be done is counted and shown.
    #[arg(long, requires_all = ["operator", "note"])]
    pub execute: bool,
    /// Your name, for the audit.
    #[arg(long, env = "OPERATOR")]
    pub operator: Option<String>,
    /// Why, for the audit.
    #[arg(long)]
    pub note: Option<String>,
    /// How long to wait for the service, which carries it out.
    #[arg(long, default_value = "1min")]
    pub wait: humantime::Duration,
}

/// `payment-service token …`.
#[derive(Clone, Debug, Subcommand)]
pub enum TokenCommand {
    /// Make a token and print it, once: the database keeps its hash.
    Create(TokenCreateConfig),
    /// Show whose tokens there are, oldest first.
    List(TokenListConfig),
    /// Revoke a token, or all of a caller.
    Revoke(TokenRevokeConfig),
}

/// Settings of `payment-service token create`.
#[derive(Args, Clone, Debug)]
pub struct TokenCreateConfig {
    /// Where, and how to answer.
    #[command(flatten)]
    pub common: OperatorConfig,
    /// Whose token it is: 1 to 64 of the characters A-Z a-z 0-9 - _ . A caller may have several, so that one can be replaced.
    #[arg(long, value_parser = caller)]
    pub caller: String,
    /// What it may do.
    #[arg(long)]
    pub role: Role,
    /// Your name, for the audit; otherwise the database's role stands for it.
    #[arg(long, env = "OPERATOR")]
    pub operator: Option<String>,
}

/// Settings of `payment-service token list`.
#[derive(Args, Clone, Debug)]
pub struct TokenListConfig {
    /// Where, and how to answer.
    #[command(flatten)]
    pub common: OperatorConfig,
    /// Those of this caller alone.
    #[arg(long)]
    pub caller: Option<String>,
    /// Most tokens that are shown.
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(i64).range(1..=100_000))]
    pub limit: i64,
}

/// Settings of `payment-service token revoke`.
#[derive(Args, Clone, Debug)]
pub struct TokenRevokeConfig {
    /// Where, and how to answer.
    #[command(flatten)]
    pub common: OperatorConfig,
    /// The token of this number, see `token list`.
    #[arg(long, value_name = "TOKEN_ID", required_unless_present = "caller")]
    pub id: Option<i64>,
    /// All tokens of this caller.
    #[arg(long, conflicts_with = "id")]
    pub caller: Option<String>,
    /// Your name, for the audit; otherwise the database's role stands for it.
    #[arg(long, env = "OPERATOR")]
    pub operator: Option<String>,
}

/// Settings of `payment-service verify-audit`.
#[derive(Args, Clone, Debug)]
pub struct VerifyAuditConfig {
    /// Where, and how to answer. A role that may read is enough.
    #[command(flatten)]
    pub common: OperatorConfig,
}

/// What a caller may be called. No slash: payment order ids are made of `caller/Idempotency-Key/try`, which must be read in one way only.
fn caller(text: &str) -> Result<String, String> {
    let letters = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if text.is_empty() || text.len() > 64 || !text.chars().all(letters) {
        return Err("a caller has 1 to 64 of the characters A-Z a-z 0-9 - _ .".to_owned());
    }
    Ok(text.to_owned())
}

/// Half of the shortest time for which a PSP remembers an idempotency key (Stripe: 24 hours): room for clocks that differ, and for the
/// last attempt's own replays.
const ORDER_LIFETIME_MAX: Duration = Duration::from_hours(12);

fn order_lifetime(text: &str) -> Result<humantime::Duration, String> {
    let lifetime: humantime::Duration = text.parse().map_err(|error| format!("{error}"))?;
    if lifetime.is_zero() {
        return Err("no payment order could ever be begun".to_owned());
    }
    if *lifetime > ORDER_LIFETIME_MAX {
        return Err("more than 12h: PSPs forget idempotency keys after 24h, and what is begun then may be a second charge".to_owned());
    }
    Ok(lifetime)
}

/// Longest time for which somebody stays signed in: a working day, and no night.
const SESSION_MAX: Duration = Duration::from_hours(24);

fn session(text: &str) -> Result<humantime::Duration, String> {
    let lifetime: humantime::Duration = text.parse().map_err(|error| format!("{error}"))?;
    if *lifetime < Duration::from_secs(1) || *lifetime > SESSION_MAX {
        return Err("between 1s and 24h".to_owned());
    }
    Ok(lifetime)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_is_not_begun_when_its_key_may_be_forgotten() {
        for (text, fits) in [
            ("1h", true),
            ("12h", true),
            ("12h 1ms", false),
            ("13h", false),
            ("2days", false),
            ("0s", false),
            ("-1h", false),
            ("soon", false),
        ] {
            assert_eq!(order_lifetime(text).is_ok(), fits, "{text}");
        }
        assert!(order_lifetime("1day").unwrap_err().contains("second charge"));
        let arguments = ["x", "--order-lifetime=13h"];
        let command = Config::augment_args(clap::Command::new("x"));
        let refused = command.try_get_matches_from(arguments).unwrap_err().to_string();
        assert!(refused.contains("--order-lifetime") && refused.contains("12h"), "{refused}");
    }

    #[test]
    fn a_caller_is_a_plain_word() {
        for (name, fits) in
            [("shop-1", true), ("a.b_c", true), ("", false), ("a/b", false), ("shöp", false), ("a b", false)]
        {
            assert_eq!(caller(name).is_ok(), fits, "{name:?}");
        }
        assert!(caller(&"x".repeat(64)).is_ok() && caller(&"x".repeat(65)).is_err());
    }

    #[derive(clap::Parser)]
    struct Cli {
        #[command(flatten)]
        config: Config,
    }

    #[test]
    fn what_cannot_work_is_refused_by_its_name_and_says_why() {
        use clap::Parser as _;

        let checked = |more: &[&str]| {
            let base = [
                "payment-service",
                "--database-url=postgres://service:hunter2@localhost/x",
                "--kafka-bootstrap=localhost:1",
                "--schema-registry-url=http://localhost:1",
            ];
            match Cli::try_parse_from(base.iter().chain(more)) {
                Ok(cli) => cli.config.validate().map_err(|refused| format!("{refused:#}")),
                Err(refused) => Err(refused.to_string()),
            }
        };
        let console = "--console-database-url=postgres://console:hunter2@localhost/x";
        checked(&[]).unwrap();
        checked(&[console]).unwrap();
        for (wrong, named, why) in [
            (&["--batch-max=0"][..], "--batch-max", "1..=5000"),
            (&["--rate-per-token=0"], "--rate-per-token", "zero"),
            (&["--request-timeout=soon"], "--request-timeout", "number"),
            (&["--request-timeout=0s"], "REQUEST_TIMEOUT", "between 10ms and 1m"),
            (&["--requests-max=0"], "REQUESTS_MAX", "refused"),
            (&["--listen=0.0.0.0:8080"], "ALLOW_PLAINTEXT", "plain HTTP"),
            (&["--listen=127.0.0.1:8080", "--admin-listen=127.0.0.1:8080"], "LISTEN", "ADMIN_LISTEN"),
            (&["--dlq-topic=psp-result-updates"], "DLQ_TOPIC", "without end"),
            (&["--executor-database-url=postgres://c:hunter2@localhost/x"], "CONSOLE_DATABASE_URL", "off"),
            (&["--console-database-url=hunter2"], "CONSOLE_DATABASE_URL", "could not be read"),
            (&[console, "--listen=0.0.0.0:8080", "--allow-plaintext"], "CONSOLE_ORIGIN", "needed"),
            (&[console, "--console-origin=http://console.example.com"], "CONSOLE_ORIGIN", "https"),
            (&["--kafka-property=enable.auto.commit=true"], "enable.auto.commit", "database"),
        ] {
            let refused = checked(wrong).unwrap_err();
            assert!(refused.contains(named) && refused.contains(why), "{wrong:?}: {refused}");
            assert!(!refused.contains("hunter2"), "{refused}");
        }
    }
}
