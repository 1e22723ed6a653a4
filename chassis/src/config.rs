//! Groups of settings that the processes share. Each is a clap argument group: flag, environment variable and help in one place.

use std::net::SocketAddr;

use clap::Args;
use secrecy::SecretString;

/// Where PostgreSQL is.
#[derive(Args, Clone, Debug)]
pub struct PostgresConfig {
    /// Connection URL, `postgres://user:password@host:port/database`.
    #[arg(long, env = "DATABASE_URL", hide_env_values = true)]
    pub database_url: SecretString,
    /// Most connections this process opens to PostgreSQL.
    #[arg(long, env = "DATABASE_POOL_SIZE", default_value_t = 10)]
    pub database_pool_size: u32,
}

/// Where Kafka is.
#[derive(Args, Clone, Debug)]
pub struct KafkaConfig {
    /// Bootstrap servers, `host:port` separated by commas.
    #[arg(long = "kafka-bootstrap", env = "KAFKA_BOOTSTRAP")]
    pub bootstrap: String,
    /// Further librdkafka properties, `name=value` separated by commas, such as TLS and SASL settings.
    #[arg(long = "kafka-property", env = "KAFKA_PROPERTIES", value_delimiter = ',', hide_env_values = true)]
    pub properties: Vec<KafkaProperty>,
}

/// One librdkafka property. Its value may be a password, so that it is never printed.
#[derive(Clone)]
pub struct KafkaProperty {
    pub(crate) name: String,
    pub(crate) value: String,
}

impl std::fmt::Debug for KafkaProperty {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}=[set]", self.name)
    }
}

impl std::str::FromStr for KafkaProperty {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            Some((name, value)) if !name.is_empty() => {
                Ok(Self { name: name.to_owned(), value: value.to_owned() })
            }
            _ => Err("expected name=value".to_owned()),
        }
    }
}

/// Where the schema registry is.
#[derive(Args, Clone, Debug)]
pub struct RegistryConfig {
    /// Base URL of a registry with Confluent's API.
    #[arg(long, env = "SCHEMA_REGISTRY_URL")]
    pub schema_registry_url: String,
}

/// The port for operators: `/metrics`, `/livez`, `/readyz`.
#[derive(Args, Clone, Debug)]
pub struct AdminConfig {
    /// Address of the admin port. It has no authentication: keep it off the public network.
    #[arg(long, env = "ADMIN_LISTEN", default_value = "127.0.0.1:0")]
    pub admin_listen: SocketAddr,
}

/// Logging.
#[derive(Args, Clone, Debug)]
pub struct TelemetryConfig {
    /// Which log lines are written: `info`, `outbox_relay=debug,info`, ...
    #[arg(long, env = "LOG", default_value = "info", global = true)]
    pub log: String,
}
