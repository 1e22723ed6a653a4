//! Groups of settings that the processes share. Each is a clap argument group: flag, environment variable and help in one place.

use std::{net::SocketAddr, path::PathBuf};

use anyhow::{anyhow, bail, ensure};
use axum::http::Uri;
use clap::{Args, ValueEnum};
use secrecy::{ExposeSecret as _, SecretString};

use crate::trace;

/// Where PostgreSQL is.
#[derive(Args, Clone, Debug)]
pub struct PostgresConfig {
    /// Connection URL, `postgres://user:password@host:port/database`; with `?sslmode=verify-full&sslrootcert=/path/ca.pem` behind it, the
    /// server's certificate is verified, which off this machine it should be.
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
    /// How the brokers are talked to.
    #[arg(long, env = "KAFKA_SECURITY_PROTOCOL", value_enum, ignore_case = true, default_value_t)]
    pub kafka_security_protocol: SecurityProtocol,
    /// File with the certificates (PEM) of the authorities that may have signed the brokers'; those of the system if it is not given.
    #[arg(long, env = "KAFKA_CA")]
    pub kafka_ca: Option<PathBuf>,
    /// How a user is proven. PLAIN shows the password to the broker, SCRAM does not.
    #[arg(long, env = "KAFKA_SASL_MECHANISM", value_enum, ignore_case = true, default_value_t)]
    pub kafka_sasl_mechanism: SaslMechanism,
    /// User of SASL. Needed with SASL_SSL, and refused without it.
    #[arg(long, env = "KAFKA_USERNAME")]
    pub kafka_username: Option<String>,
    /// That user's password. Needed with the user.
    #[arg(long, env = "KAFKA_PASSWORD", hide_env_values = true)]
    pub kafka_password: Option<SecretString>,
    /// Further librdkafka properties, `name=value` separated by commas. They win over everything else.
    #[arg(long = "kafka-property", env = "KAFKA_PROPERTIES", value_delimiter = ',', hide_env_values = true)]
    pub properties: Vec<KafkaProperty>,
}

/// How brokers are talked to, as Kafka names it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum SecurityProtocol {
    /// Neither encrypted nor authenticated.
    #[default]
    #[value(name = "PLAINTEXT")]
    Plaintext,
    /// TLS; the brokers prove who they are.
    #[value(name = "SSL")]
    Ssl,
    /// TLS, and a user with a password.
    #[value(name = "SASL_SSL")]
    SaslSsl,
}

/// How a user is proven, as Kafka names it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum SaslMechanism {
    /// A challenge by SHA-512; what MSK offers.
    #[default]
    #[value(name = "SCRAM-SHA-512")]
    ScramSha512,
    /// A challenge by SHA-256.
    #[value(name = "SCRAM-SHA-256")]
    ScramSha256,
    /// The password itself.
    #[value(name = "PLAIN")]
    Plain,
}

impl KafkaConfig {
    /// Checks what no single setting can. Credentials that would not be used are refused: somebody believes that they are.
    pub fn validate(&self) -> anyhow::Result<()> {
        let sasl = self.kafka_security_protocol == SecurityProtocol::SaslSsl;
        match (&self.kafka_username, &self.kafka_password) {
            (None, None) if sasl => {
                bail!("KAFKA_SECURITY_PROTOCOL=SASL_SSL needs KAFKA_USERNAME and KAFKA_PASSWORD")
            }
            (Some(_), None) => bail!("KAFKA_USERNAME is set, and KAFKA_PASSWORD is not"),
            (None, Some(_)) => bail!("KAFKA_PASSWORD is set, and KAFKA_USERNAME is not"),
            (Some(_), Some(_)) if !sasl => {
                bail!(
                    "KAFKA_USERNAME is set and would not be used: it needs KAFKA_SECURITY_PROTOCOL=SASL_SSL"
                )
            }
            _ => {}
        }
        ensure!(
            self.kafka_ca.is_none() || self.kafka_security_protocol != SecurityProtocol::Plaintext,
            "KAFKA_CA is set and would not be used: it needs KAFKA_SECURITY_PROTOCOL=SSL or SASL_SSL"
        );
        Ok(())
    }
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
    /// User of HTTP's basic authentication. Without one, requests have no credentials.
    #[arg(long, env = "SCHEMA_REGISTRY_USERNAME")]
    pub schema_registry_username: Option<String>,
    /// That user's password. Needed with the user.
    #[arg(long, env = "SCHEMA_REGISTRY_PASSWORD", hide_env_values = true)]
    pub schema_registry_password: Option<SecretString>,
    /// File with the certificates (PEM) of the authorities that may have signed the registry's; those of the system if it is not given.
    #[arg(long, env = "SCHEMA_REGISTRY_CA")]
    pub schema_registry_ca: Option<PathBuf>,
}

impl RegistryConfig {
    /// User and password, if there are any. One without the other is refused.
    pub fn credentials(&self) -> anyhow::Result<Option<(&str, &str)>> {
        match (&self.schema_registry_username, &self.schema_registry_password) {
            (None, None) => Ok(None),
            (Some(user), Some(password)) => Ok(Some((user, password.expose_secret()))),
            (Some(_), None) => bail!("SCHEMA_REGISTRY_USERNAME is set, and SCHEMA_REGISTRY_PASSWORD is not"),
            (None, Some(_)) => bail!("SCHEMA_REGISTRY_PASSWORD is set, and SCHEMA_REGISTRY_USERNAME is not"),
        }
    }
}

/// The port for operators: `/metrics`, `/livez`, `/readyz`.
#[derive(Args, Clone, Debug)]
pub struct AdminConfig {
    /// Address of the admin port. It has no authentication: keep it off the public network.
    #[arg(long, env = "ADMIN_LISTEN", default_value = "127.0.0.1:0")]
    pub admin_listen: SocketAddr,
}

/// Logs and spans.
#[derive(Args, Clone, Debug)]
pub struct TelemetryConfig {
    /// Which log lines are written: `info`, `outbox_relay=debug,info`, ...
    #[arg(long, env = "LOG", default_value = "info", global = true)]
    pub log: String,
    /// Where spans go: the base URL of a collector that takes OTLP over HTTP (protobuf), such as `http://collector:4318`; `/v1/traces` is
    /// added. Without it no spans are made. The other variables of OpenTelemetry hold too: `OTEL_EXPORTER_OTLP_HEADERS`,
    /// `OTEL_TRACES_SAMPLER`, `OTEL_BSP_MAX_QUEUE_SIZE`, `OTEL_SERVICE_NAME`, `OTEL_RESOURCE_ATTRIBUTES`, `OTEL_SDK_DISABLED`, ...
    #[arg(long, env = "OTEL_EXPORTER_OTLP_ENDPOINT", value_name = "URL", global = true)]
    pub otlp_endpoint: Option<String>,
    /// Where spans go, with the path. Without it, the above holds.
    #[arg(long, env = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", value_name = "URL", global = true)]
    pub otlp_traces_endpoint: Option<String>,
}

impl TelemetryConfig {
    /// The URL that spans are sent to; None if there are to be none.
    pub fn traces_endpoint(&self) -> anyhow::Result<Option<String>> {
        self.traces_endpoint_beside(trace::set)
    }

    /// `set` looks a variable up that has no flag.
    fn traces_endpoint_beside(&self, set: impl Fn(&str) -> Option<String>) -> anyhow::Result<Option<String>> {
        let given = |url: &Option<String>| {
            url.as_deref().map(str::trim).filter(|url| !url.is_empty()).map(str::to_owned)
        };
        let whole = given(&self.otlp_traces_endpoint).map(|url| ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", url));
        let base = given(&self.otlp_endpoint)
            .map(|url| ("OTEL_EXPORTER_OTLP_ENDPOINT", format!("{}/v1/traces", url.trim_end_matches('/'))));
        let Some((name, url)) = whole.or(base) else { return Ok(None) };
        if set("OTEL_SDK_DISABLED").is_some_and(|disabled| disabled.eq_ignore_ascii_case("true")) {
            return Ok(None);
        }
        match set("OTEL_TRACES_EXPORTER").as_deref() {
            None | Some("otlp") => {}
            Some("none") => return Ok(None),
            Some(other) => bail!("OTEL_TRACES_EXPORTER is {other}; this process knows otlp and none"),
        }
        for name in ["OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"] {
            if let Some(protocol) = set(name) {
                ensure!(
                    protocol == "http/protobuf",
                    "{name} is {protocol}; this process speaks http/protobuf, which collectors take on port 4318"
                );
                break;
            }
        }
        // The URL may have a password in it: it is not shown.
        let uri: Uri = url.parse().map_err(|_| anyhow!("{name} is not a URL"))?;
        ensure!(
            matches!(uri.scheme_str(), Some("http" | "https")),
            "{name} does not begin with http:// or https://"
        );
        let authority = uri.authority().map_or("", axum::http::uri::Authority::as_str);
        ensure!(
            !authority.contains('@'),
            "{name} has a user or password in it; credentials belong into OTEL_EXPORTER_OTLP_HEADERS"
        );
        Ok(Some(url))
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        telemetry: TelemetryConfig,
    }

    /// Where spans would go with these flags and variables.
    fn endpoint(flags: &[&str], variables: &[(&str, &str)]) -> Result<Option<String>, String> {
        let telemetry = Cli::parse_from(std::iter::once(&"x").chain(flags)).telemetry;
        let set = |name: &str| {
            variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
        };
        telemetry.traces_endpoint_beside(set).map_err(|error| error.to_string())
    }

    #[test]
    fn spans_go_where_the_standard_variables_say_or_nowhere() {
        let base = ["--otlp-endpoint=http://collector:4318/"];
        let both = ["--otlp-endpoint=http://a:1", "--otlp-traces-endpoint=https://b:2/x"];
        let found = |url: &str| Ok(Some(url.to_owned()));
        assert_eq!(endpoint(&[], &[]), Ok(None));
        assert_eq!(endpoint(&["--otlp-endpoint= "], &[]), Ok(None));
        assert_eq!(endpoint(&base, &[]), found("http://collector:4318/v1/traces"));
        assert_eq!(endpoint(&both, &[]), found("https://b:2/x"));
        for off in [("OTEL_SDK_DISABLED", "true"), ("OTEL_TRACES_EXPORTER", "none")] {
            assert_eq!(endpoint(&base, &[off]), Ok(None));
        }
        let same = [
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
            ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/protobuf"),
        ];
        assert!(endpoint(&base, &same).is_ok());
    }

    #[test]
    fn an_endpoint_that_cannot_be_used_is_refused_by_its_name_and_without_its_password() {
        let base = ["--otlp-endpoint=http://collector:4318"];
        for (flags, variables, named) in [
            (&base, ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"), "OTEL_EXPORTER_OTLP_PROTOCOL"),
            (&base, ("OTEL_TRACES_EXPORTER", "zipkin"), "OTEL_TRACES_EXPORTER"),
            (&["--otlp-endpoint=collector:4318"], ("", ""), "OTEL_EXPORTER_OTLP_ENDPOINT"),
            (&["--otlp-endpoint=http://ada:hunter2@x"], ("", ""), "OTEL_EXPORTER_OTLP_HEADERS"),
            (&["--otlp-traces-endpoint=http://hunter2 x"], ("", ""), "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"),
        ] {
            let refused = endpoint(flags, &[variables]).unwrap_err();
            assert!(refused.contains(named) && !refused.contains("hunter2"), "{refused}");
        }
    }
}
