//! The settings of every subcommand: flag, environment variable and help in one place.

use std::{path::PathBuf, time::Duration};

use anyhow::{Context as _, ensure};
use chassis::{
    config::{AdminConfig, KafkaConfig, PostgresConfig, RegistryConfig},
    healthcheck::HealthcheckConfig,
    settings::{check_kafka, check_postgres, check_registry, check_within},
};
use clap::{Args, Subcommand};

use crate::catalogue::Catalogue;

/// What the binary can do.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Publish until asked to stop; stand by while another process of the same name leads.
    Run(Box<RunConfig>),
    /// Ask the process that runs with the same ADMIN_LISTEN whether it is ready: exit code 0 if so, else 1 and why.
    Healthcheck(HealthcheckConfig),
    /// Create the topics of the catalogue and register its schemas. Doing it again changes nothing.
    Setup(SetupConfig),
    /// Create or upgrade the outbox in a database, and grant its use.
    Migrate(MigrateConfig),
    /// Look at everything that a relay needs, and say what is missing.
    Doctor(Box<DoctorConfig>),
    /// Say how far the relays of this outbox are.
    Status(StatusConfig),
    /// List what is parked or held, and why.
    Parked(StatusConfig),
    /// Publish parked events, after what was wrong with them is mended.
    Redrive(OrderConfig),
    /// Give parked events up, and publish what was held behind them.
    Discard(OrderConfig),
    /// Publish events again that were published before.
    Replay(OrderConfig),
    /// Compare the outbox with its topics, and publish what is missing there.
    Verify(Box<VerifyConfig>),
    /// After a restore or a copy: give the rows of this outbox transaction ids of this server, and go on. Needs the owner.
    Rebase(MoveConfig),
    /// After pg_upgrade, whose transaction ids go on: take the cursor over to this server as it is.
    Adopt(MoveConfig),
}

/// Settings of `run`.
#[derive(Args, Clone, Debug)]
pub struct RunConfig {
    /// Database of the outbox.
    #[command(flatten)]
    pub postgres: PostgresConfig,
    /// Broker to publish to.
    #[command(flatten)]
    pub kafka: KafkaConfig,
    /// Where the schema ids come from.
    #[command(flatten)]
    pub registry: RegistryConfig,
    /// Port for operators.
    #[command(flatten)]
    pub admin: AdminConfig,
    /// Which events go where.
    #[command(flatten)]
    pub catalogue: CatalogueConfig,
    /// Name of this relay: its progress and its leader lock go by it. All processes of one name are one relay and its standbys.
    #[arg(long, env = "RELAY_NAME", default_value = "relay")]
    pub name: String,
    /// CloudEvents source of the records: which outbox they come from, such as /executor.
    #[arg(long, env = "EVENT_SOURCE", default_value = "/outbox")]
    pub source: String,
    /// Most rows read at once.
    #[arg(long, env = "PAGE_ROWS", default_value_t = 20_000, value_parser = clap::value_parser!(i64).range(1..=100_000))]
    pub page_rows: i64,
    /// Most bytes of payloads read at once, in KiB. A single larger event is read all the same.
    #[arg(long, env = "PAGE_MAX_KIB", default_value_t = 8_192, value_parser = clap::value_parser!(u32).range(1..=1_048_576))]
    pub page_max_kib: u32,
    /// Most bytes of records that wait in the producer for the brokers' acknowledgement, in KiB.
    #[arg(long, env = "IN_FLIGHT_MAX_KIB", default_value_t = 65_536, value_parser = clap::value_parser!(u32).range(64..=1_048_576))]
    pub in_flight_max_kib: u32,
    /// Pause between two looks at the outbox while events arrive.
    #[arg(long, env = "POLL_BUSY", default_value = "4ms", value_parser = humantime::parse_duration)]
    pub poll_busy: Duration,
    /// Pause between two looks at the outbox when none came for a second.
    #[arg(long, env = "POLL_IDLE", default_value = "20ms", value_parser = humantime::parse_duration)]
    pub poll_idle: Duration,
    /// Least time between two saves of progress.
    #[arg(long, env = "SAVE_INTERVAL", default_value = "25ms", value_parser = humantime::parse_duration)]
    pub save_interval: Duration,
    /// How long published events are kept: 1 hour to 6 days, as the ring has eight days.
    #[arg(long, env = "RETENTION", default_value = "6d", value_parser = retention)]
    pub retention: Duration,
    /// How often the leader looks whether a leaf of the ring can be emptied.
    #[arg(long, env = "RETENTION_EVERY", default_value = "10min", value_parser = humantime::parse_duration)]
    pub retention_every: Duration,
    /// Print the settings of the Kafka producer as JSON, without the properties given to it, and do nothing.
    #[arg(long)]
    pub print_producer: bool,
}

/// Properties of the producer that an operator cannot have otherwise, and why.
const OURS: [(&str, &str); 9] = [
    ("enable.idempotence", NO_COPIES),
    ("enable.gapless.guarantee", NO_COPIES),
    ("max.in.flight", NO_COPIES),
    ("max.in.flight.requests.per.connection", NO_COPIES),
    ("acks", "progress is saved once all in-sync replicas have a record, and not before"),
    ("request.required.acks", "progress is saved once all in-sync replicas have a record, and not before"),
    ("message.timeout.ms", "a record never expires in the queue: brokers that are away are waited for"),
    ("delivery.timeout.ms", "a record never expires in the queue: brokers that are away are waited for"),
    ("transactional.id", "Kafka's transactions are not used, see ARCHITECTURE.md"),
];
const NO_COPIES: &str =
    "events of a key stay in order, and without gaps, through one idempotent producer alone";

/// The ring has eight days, and a leaf has to be emptied before its day comes round.
const RING: Duration = Duration::from_hours(7 * 24);

impl RunConfig {
    /// Checks what no single setting can. Connects to nothing.
    pub fn validate(&self) -> anyhow::Result<()> {
        check_postgres(&self.postgres)?;
        check_kafka(&self.kafka, &OURS)?;
        check_registry(&self.registry)?;
        Catalogue::read(&self.catalogue.events).context("EVENTS")?;
        ensure!(!self.name.trim().is_empty(), "RELAY_NAME is empty: progress and leader lock go by it");
        ensure!(
            !self.source.trim().is_empty(),
            "EVENT_SOURCE is empty: CloudEvents has no event without a source"
        );
        check_within("POLL_BUSY", self.poll_busy, Duration::from_millis(1)..=Duration::from_secs(1))?;
        check_within("POLL_IDLE", self.poll_idle, Duration::from_millis(1)..=Duration::from_secs(10))?;
        ensure!(
            self.poll_busy <= self.poll_idle,
            "POLL_BUSY ({:?}) is longer than POLL_IDLE ({:?}): the outbox would be looked at less often while events arrive",
            self.poll_busy,
            self.poll_idle
        );
        check_within("SAVE_INTERVAL", self.save_interval, Duration::ZERO..=Duration::from_secs(5))?;
        check_within(
            "RETENTION_EVERY",
            self.retention_every,
            Duration::from_millis(10)..=Duration::from_hours(24),
        )?;
        ensure!(
            self.retention + self.retention_every <= RING,
            "RETENTION ({}) and RETENTION_EVERY ({}) are more than 7 days together: a leaf of the ring would not be looked at \
             between its last event's retention and the day on which it comes round",
            humantime::format_duration(self.retention),
            humantime::format_duration(self.retention_every)
        );
        Ok(())
    }
}

fn retention(text: &str) -> Result<Duration, String> {
    const HOUR: u64 = 3_600;
    let duration = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    if (HOUR..=6 * 24 * HOUR).contains(&duration.as_secs()) {
        Ok(duration)
    } else {
        Err("expected 1h to 6d".to_owned())
    }
}

/// Where the catalogue is.
#[derive(Args, Clone, Debug)]
pub struct CatalogueConfig {
    /// The catalogue: event type -> topic and Avro schema.
    #[arg(long, env = "EVENTS", default_value = "schema/events.toml")]
    pub events: PathBuf,
}

/// Settings of `setup`.
#[derive(Args, Clone, Debug)]
pub struct SetupConfig {
    /// Broker that gets the topics.
    #[command(flatten)]
    pub kafka: KafkaConfig,
    /// Registry that gets the schemas.
    #[command(flatten)]
    pub registry: RegistryConfig,
    /// Which events go where.
    #[command(flatten)]
    pub catalogue: CatalogueConfig,
}

/// Settings of `migrate`.
#[derive(Args, Clone, Debug)]
pub struct MigrateConfig {
    /// Connection URL of a role that may create the schema.
    #[arg(long, env = "DATABASE_URL", hide_env_values = true, required_unless_present = "print")]
    pub database_url: Option<secrecy::SecretString>,
    /// Role that may append events. May be given several times.
    #[arg(long = "writer", value_name = "ROLE")]
    pub writers: Vec<String>,
    /// Role that relays connect as. May be given several times.
    #[arg(long = "relay", value_name = "ROLE")]
    pub relays: Vec<String>,
    /// Role that may read everything. May be given several times.
    #[arg(long = "reader", value_name = "ROLE")]
    pub readers: Vec<String>,
    /// Role that may read everything and ask for redrive, discard and replay. May be given several times.
    #[arg(long = "operator", value_name = "ROLE")]
    pub operators: Vec<String>,
    /// Print the SQL and do nothing, for those who run it with a tool of their own.
    #[arg(long)]
    pub print: bool,
}

/// Settings of `status`.
#[derive(Args, Clone, Debug)]
pub struct StatusConfig {
    /// Connection URL.
    #[arg(long, env = "DATABASE_URL", hide_env_values = true)]
    pub database_url: secrecy::SecretString,
    /// One JSON array instead of a table.
    #[arg(long)]
    pub json: bool,
}

/// Which relay of an outbox is meant.
#[derive(Args, Clone, Debug)]
pub struct RelayConfig {
    /// Connection URL.
    #[arg(long, env = "DATABASE_URL", hide_env_values = true)]
    pub database_url: secrecy::SecretString,
    /// Name of the relay.
    #[arg(long, env = "RELAY_NAME", default_value = "relay")]
    pub name: String,
    /// JSON instead of text.
    #[arg(long)]
    pub json: bool,
}

/// Settings of `redrive`, `discard` and `replay`.
#[derive(Args, Clone, Debug)]
pub struct OrderConfig {
    /// Which relay.
    #[command(flatten)]
    pub relay: RelayConfig,
    /// Event id. May be given several times.
    #[arg(long = "event", value_name = "EVENT_ID")]
    pub events: Vec<uuid::Uuid>,
    /// Key (aggregate id). May be given several times.
    #[arg(long = "key", value_name = "KEY")]
    pub keys: Vec<String>,
    /// Outbox ids from here on.
    #[arg(long)]
    pub from_id: Option<i64>,
    /// Outbox ids up to here.
    #[arg(long)]
    pub to_id: Option<i64>,
    /// Appended at this time (RFC 3339) or later.
    #[arg(long, value_parser = rfc3339)]
    pub since: Option<time::OffsetDateTime>,
    /// Appended before this time (RFC 3339).
    #[arg(long, value_parser = rfc3339)]
    pub until: Option<time::OffsetDateTime>,
    /// Everything that is parked. Not for replay.
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
    /// How long to wait for the leader.
    #[arg(long, default_value = "1min", value_parser = humantime::parse_duration)]
    pub wait: Duration,
}

/// Settings of `verify`.
#[derive(Args, Clone, Debug)]
pub struct VerifyConfig {
    /// Which relay.
    #[command(flatten)]
    pub relay: RelayConfig,
    /// Broker to read from.
    #[command(flatten)]
    pub kafka: KafkaConfig,
    /// Which events go where.
    #[command(flatten)]
    pub catalogue: CatalogueConfig,
    /// CloudEvents source of the records, as the relay has it.
    #[arg(long, env = "EVENT_SOURCE", default_value = "/outbox")]
    pub source: String,
    /// Compare events appended at this time (RFC 3339) or later.
    #[arg(long, value_parser = rfc3339)]
    pub since: time::OffsetDateTime,
    /// Publish what is missing. Without this, it is counted and shown.
    #[arg(long, requires = "operator")]
    pub execute: bool,
    /// Your name, for the audit.
    #[arg(long, env = "OPERATOR")]
    pub operator: Option<String>,
    /// How long to wait for the leader.
    #[arg(long, default_value = "10min", value_parser = humantime::parse_duration)]
    pub wait: Duration,
}

/// Settings of `doctor`.
#[derive(Args, Clone, Debug)]
pub struct DoctorConfig {
    /// Which relay, as the role that it connects as.
    #[command(flatten)]
    pub relay: RelayConfig,
    /// Broker to publish to.
    #[command(flatten)]
    pub kafka: KafkaConfig,
    /// Where the schema ids come from.
    #[command(flatten)]
    pub registry: RegistryConfig,
    /// Which events go where.
    #[command(flatten)]
    pub catalogue: CatalogueConfig,
}

/// Settings of `rebase` and `adopt`.
#[derive(Args, Clone, Debug)]
pub struct MoveConfig {
    /// Which relay.
    #[command(flatten)]
    pub relay: RelayConfig,
    /// Do it. Without this, what would be done is shown.
    #[arg(long, requires = "operator")]
    pub execute: bool,
    /// Your name, for the audit.
    #[arg(long, env = "OPERATOR")]
    pub operator: Option<String>,
}

fn rfc3339(text: &str) -> Result<time::OffsetDateTime, String> {
    time::OffsetDateTime::parse(text, &time::format_description::well_known::Rfc3339)
        .map_err(|error| format!("{error}; expected a time such as 2026-01-31T12:00:00Z"))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        config: RunConfig,
    }

    const EVENTS: &str = concat!("--events=", env!("CARGO_MANIFEST_DIR"), "/../schema/events.toml");

    fn config(more: &[&str]) -> Result<RunConfig, String> {
        let base = [
            "outbox-relay",
            "--database-url=postgres://relay:hunter2@localhost/x",
            "--kafka-bootstrap=localhost:1",
            "--schema-registry-url=http://localhost:1",
        ];
        let events = (!more.iter().any(|more| more.starts_with("--events"))).then_some(EVENTS);
        let given = base.into_iter().chain(events).chain(more.iter().copied());
        Cli::try_parse_from(given).map(|cli| cli.config).map_err(|error| error.to_string())
    }

    #[test]
    fn what_cannot_work_is_refused_by_its_name_and_says_why() {
        config(&[]).unwrap().validate().unwrap();
        for (wrong, named, why) in [
            (&["--page-rows=0"][..], "--page-rows", "1..=100000"),
            (&["--in-flight-max-kib=1"], "--in-flight-max-kib", "64..=1048576"),
            (&["--retention=7d"], "--retention", "1h to 6d"),
            (&["--poll-idle=soon"], "--poll-idle", "number"),
            (&["--admin-listen=here"], "--admin-listen", "invalid socket address"),
            (&["--poll-busy=50ms"], "POLL_BUSY", "POLL_IDLE"),
            (&["--poll-idle=1min"], "POLL_IDLE", "between 1ms and 10s"),
            (&["--save-interval=1min"], "SAVE_INTERVAL", "between 0s and 5s"),
            (&["--retention-every=1day 1s"], "RETENTION_EVERY", "1day"),
            (&["--retention=6d", "--retention-every=24h", "--name= "], "RELAY_NAME", "leader lock"),
            (&["--source="], "EVENT_SOURCE", "CloudEvents"),
            (&["--events=/nowhere/events.toml"], "EVENTS", "/nowhere/events.toml"),
            (&["--kafka-property=acks=1"], "acks", "in-sync replicas"),
            (&["--kafka-property=enable.idempotence=false"], "enable.idempotence", "in order"),
        ] {
            let refused = match config(wrong) {
                Ok(config) => format!("{:#}", config.validate().unwrap_err()),
                Err(refused) => refused,
            };
            assert!(refused.contains(named) && refused.contains(why), "{wrong:?}: {refused}");
            assert!(!refused.contains("hunter2"), "{refused}");
        }
        config(&["--kafka-property=linger.ms=5"]).unwrap().validate().unwrap();
    }
}
