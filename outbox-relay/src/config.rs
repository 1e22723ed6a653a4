//! The settings of every subcommand: flag, environment variable and help in one place.

use std::{path::PathBuf, time::Duration};

use chassis::config::{AdminConfig, KafkaConfig, PostgresConfig, RegistryConfig};
use clap::{Args, Subcommand};

/// What the binary can do.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Publish until asked to stop; stand by while another process of the same name leads.
    Run(Box<RunConfig>),
    /// Create the topics of the catalogue and register its schemas. Doing it again changes nothing.
    Setup(SetupConfig),
    /// Create or upgrade the outbox in a database, and grant its use.
    Migrate(MigrateConfig),
    /// Say how far the relays of this outbox are.
    Status(StatusConfig),
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
    #[arg(long, env = "PAGE_ROWS", default_value_t = 5_000, value_parser = clap::value_parser!(i64).range(1..=100_000))]
    pub page_rows: i64,
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
    /// Print the settings of the Kafka producer as JSON, without the properties given to it, and do nothing.
    #[arg(long)]
    pub print_producer: bool,
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
