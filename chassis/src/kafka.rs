//! Settings of Kafka clients that are the same in every process, what a refusal of the brokers means, and what every consumer reports.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use clap::ValueEnum;
use prometheus::{IntCounter, IntCounterVec, IntGauge, IntGaugeVec};
use rdkafka::{
    ClientConfig, ClientContext, Statistics, TopicPartitionList,
    config::RDKafkaLogLevel,
    consumer::Rebalance,
    error::KafkaError,
    producer::{BaseProducer, Producer as _, ProducerContext},
    types::RDKafkaErrorCode,
};
use secrecy::ExposeSecret as _;

use crate::{
    backoff::Backoff,
    config::{KafkaConfig, SecurityProtocol},
    shutdown::Shutdown,
};

/// A client configuration with the bootstrap servers; TLS, credentials and the operator's own properties are set last by [`finish`].
pub fn client(config: &KafkaConfig, client_id: &str) -> ClientConfig {
    let mut client = ClientConfig::new();
    client
        .set("bootstrap.servers", &config.bootstrap)
        .set("client.id", client_id)
        // Java clients hash keys with murmur2: the same key lands in the same partition, whoever produces it.
        .set("partitioner", "murmur2_random")
        .set("socket.keepalive.enable", "true")
        // A small request must not wait until the one before it is acknowledged by the other side's TCP.
        .set("socket.nagle.disable", "true")
        .set("reconnect.backoff.ms", "50")
        .set("reconnect.backoff.max.ms", "1000");
    client
}

/// Adds TLS and credentials, and the operator's properties, which win.
pub fn finish(mut client: ClientConfig, config: &KafkaConfig) -> ClientConfig {
    if config.kafka_security_protocol != SecurityProtocol::Plaintext {
        client.set("security.protocol", name_of(&config.kafka_security_protocol));
    }
    if let Some(authorities) = &config.kafka_ca {
        client.set("ssl.ca.location", authorities.display().to_string());
    }
    if let (Some(user), Some(password)) = (&config.kafka_username, &config.kafka_password) {
        client
            .set("sasl.mechanism", name_of(&config.kafka_sasl_mechanism))
            .set("sasl.username", user)
            .set("sasl.password", password.expose_secret());
    }
    for property in &config.properties {
        client.set(&property.name, &property.value);
    }
    client
}

crate::metrics! {
    /// What a consumer reports. Lag and connections come with the client's statistics: set `statistics.interval.ms`.
    #[derive(Clone, Debug)]
    pub struct ConsumerMetrics {
        /// Records between the newest of a partition and the last that was read.
        pub lag: IntGaugeVec = "kafka_consumer_lag_records" by ["topic", "partition"],
        /// Brokers that the consumer's client is connected to.
        pub brokers_up: IntGauge = "kafka_client_brokers_up",
        /// Assignments and revocations of partitions, and rebalances that failed, by kind.
        pub rebalances: IntCounterVec = "kafka_consumer_rebalances_total" by ["kind"],
        /// Offset commits that the broker refused or did not answer.
        pub commit_failures: IntCounter = "kafka_consumer_commit_failures_total",
        /// Times that the consumer was too slow to stay in its group.
        pub max_poll_exceeded: IntCounter = "kafka_consumer_max_poll_exceeded_total",
        /// Errors of the Kafka client that were not fatal.
        pub errors: IntCounter = "kafka_consumer_errors_total",
    }
}

impl ConsumerMetrics {
    /// Has every kind of rebalance begin at 0.
    pub fn initialise(&self) {
        for kind in ["assign", "revoke", "error"] {
            self.rebalances.with_label_values(&[kind]);
        }
    }

    /// Takes over what the client has counted.
    pub fn sampled(&self, statistics: &Statistics) {
        for topic in statistics.topics.values() {
            for partition in topic.partitions.values().filter(|partition| partition.consumer_lag >= 0) {
                let labels = [topic.topic.as_str(), &partition.partition.to_string()];
                self.lag.with_label_values(&labels).set(partition.consumer_lag);
            }
        }
        // Logical ones are names for a part that one of the others plays, such as the group's coordinator.
        let connected = statistics
            .brokers
            .values()
            .filter(|broker| broker.source != "logical" && matches!(broker.state.as_str(), "UP" | "UPDATE"));
        self.brokers_up.set(i64::try_from(connected.count()).unwrap_or(i64::MAX));
    }

    /// Counts a rebalance. The lag of partitions that go is not ours to report any more.
    pub fn rebalanced(&self, rebalance: &Rebalance<'_>) {
        let kind = match rebalance {
            Rebalance::Assign(_) => "assign",
            Rebalance::Revoke(partitions) => {
                self.forget(partitions);
                "revoke"
            }
            Rebalance::Error(_) => "error",
        };
        self.rebalances.with_label_values(&[kind]).inc();
    }

    fn forget(&self, partitions: &TopicPartitionList) {
        for element in partitions.elements() {
            // Not there if no statistics came meanwhile.
            drop(self.lag.remove_label_values(&[element.topic(), &element.partition().to_string()]));
        }
    }

    /// Passes on a line of the client's log, which alone tells of some failures.
    pub fn logged(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        match facility {
            "MAXPOLL" => self.max_poll_exceeded.inc(),
            "COMMITFAIL" => self.commit_failures.inc(),
            _ => {}
        }
        match level {
            RDKafkaLogLevel::Emerg
            | RDKafkaLogLevel::Alert
            | RDKafkaLogLevel::Critical
            | RDKafkaLogLevel::Error => tracing::error!(facility, "librdkafka: {message}"),
            RDKafkaLogLevel::Warning => tracing::warn!(facility, "librdkafka: {message}"),
            RDKafkaLogLevel::Notice | RDKafkaLogLevel::Info => {
                tracing::info!(facility, "librdkafka: {message}");
            }
            RDKafkaLogLevel::Debug => tracing::debug!(facility, "librdkafka: {message}"),
        }
    }
}

/// A value as it is written in settings.
fn name_of(value: &impl ValueEnum) -> String {
    value.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
}

/// What to look at, if brokers refuse what the settings say: librdkafka itself speaks of properties that nobody here has set.
fn advice(code: RDKafkaErrorCode, text: &str) -> Option<&'static str> {
    match code {
        RDKafkaErrorCode::Authentication | RDKafkaErrorCode::SaslAuthenticationFailed => {
            Some("the brokers refuse KAFKA_USERNAME with KAFKA_PASSWORD (or KAFKA_SASL_MECHANISM)")
        }
        RDKafkaErrorCode::SSL => Some(
            "no TLS with the brokers: KAFKA_CA must hold the authority of their certificate, which must name the hosts of KAFKA_BOOTSTRAP",
        ),
        RDKafkaErrorCode::TopicAuthorizationFailed
        | RDKafkaErrorCode::GroupAuthorizationFailed
        | RDKafkaErrorCode::ClusterAuthorizationFailed => {
            Some("the user of KAFKA_USERNAME lacks an ACL: security/kafka.sh has what each process needs")
        }
        // librdkafka's guesses: of a TLS listener that is spoken to in plain, and of the reverse.
        _ if text.contains("security.protocol") || text.contains("broker listener?") => {
            Some("the brokers speak otherwise than KAFKA_SECURITY_PROTOCOL says")
        }
        _ => None,
    }
}

/// The error, and what to look at if it is a refusal.
pub fn explain(error: &KafkaError) -> String {
    let text = error.to_string();
    let code = match error {
        KafkaError::AdminOp(code) => Some(*code),
        other => other.rdkafka_error_code(),
    };
    match code.and_then(|code| advice(code, &text)) {
        Some(advice) => format!("{text}; {advice}"),
        None => text,
    }
}

/// How long the brokers are asked before a refusal counts: a broker that is just starting or ending may refuse what it will take.
const ASK_FOR: Duration = Duration::from_secs(3);

/// Keeps the last refusal that the client tells of.
#[derive(Debug, Default)]
struct Refusals(Mutex<Option<String>>);

impl ClientContext for Refusals {
    fn error(&self, error: KafkaError, reason: &str) {
        if let Some(advice) = error.rdkafka_error_code().and_then(|code| advice(code, reason)) {
            let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            *last = Some(format!("{advice} ({reason})"));
        }
    }
}

impl ProducerContext for Refusals {
    type DeliveryOpaque = ();

    fn delivery(&self, _: &rdkafka::message::DeliveryResult<'_>, (): ()) {}
}

/// Asks the brokers once whether they talk to a client with these settings, and fails if they refuse to, or if the settings contradict
/// each other. Brokers that are away refuse nothing. Blocks for some seconds at most.
fn ask(config: &KafkaConfig) -> anyhow::Result<bool> {
    config.validate()?;
    let mut settings = client(config, "settings");
    // What it has to say is in the error.
    settings.set_log_level(RDKafkaLogLevel::Emerg);
    let producer: BaseProducer<Refusals> = finish(settings, config)
        .create_with_context(Refusals::default())
        .context("the settings of Kafka do not fit together (KAFKA_CA names a file of certificates)")?;
    let asked = Instant::now();
    loop {
        // The one question that names no topic: asking for one can create it.
        if producer.client().fetch_cluster_id(Duration::from_millis(500)).is_some() {
            return Ok(true);
        }
        producer.poll(Duration::ZERO);
        let refusal = producer.context().0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        match refusal {
            Some(refusal) if asked.elapsed() > ASK_FOR => bail!("Kafka at {}: {refusal}", config.bootstrap),
            None if asked.elapsed() > ASK_FOR => return Ok(false),
            _ => {}
        }
    }
}

/// For commands: fails at once, and with the name of the setting, where the call itself would only time out.
pub async fn check(config: &KafkaConfig) -> anyhow::Result<()> {
    let config = config.clone();
    tokio::task::spawn_blocking(move || ask(&config)).await.context("asking the brokers")??;
    Ok(())
}

/// For processes, which wait for whatever is not there yet: says in the log what the brokers refuse, until they have answered once.
/// Settings that contradict each other are an error at once. Nothing waits for this: it is a thread of its own, which ends with the process.
pub fn watch(config: &KafkaConfig, shutdown: &Shutdown) -> anyhow::Result<()> {
    config.validate()?;
    let (config, shutdown) = (config.clone(), shutdown.clone());
    let watching = move || {
        let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(30));
        while !shutdown.requested() {
            match ask(&config) {
                Ok(true) => return,
                Ok(false) => {}
                Err(error) => {
                    tracing::error!(
                        error = format!("{error:#}"),
                        "Kafka refuses this process: somebody must look"
                    );
                }
            }
            std::thread::sleep(backoff.next_delay());
        }
    };
    std::thread::Builder::new().name("kafka settings".to_owned()).spawn(watching)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        kafka: KafkaConfig,
    }

    fn config(more: &[&str]) -> KafkaConfig {
        Cli::parse_from(["x", "--kafka-bootstrap=localhost:1"].iter().chain(more)).kafka
    }

    #[test]
    fn credentials_that_would_not_be_used_are_refused_by_name() {
        for (arguments, wanted) in [
            (vec!["--kafka-username=u", "--kafka-password=p"], "KAFKA_SECURITY_PROTOCOL=SASL_SSL"),
            (vec!["--kafka-security-protocol=sasl_ssl"], "KAFKA_USERNAME and KAFKA_PASSWORD"),
            (vec!["--kafka-security-protocol=SASL_SSL", "--kafka-username=u"], "KAFKA_PASSWORD is not"),
            (vec!["--kafka-security-protocol=SASL_SSL", "--kafka-password=p"], "KAFKA_USERNAME is not"),
            (vec!["--kafka-ca=/x"], "KAFKA_CA"),
        ] {
            let problem = config(&arguments).validate().unwrap_err().to_string();
            assert!(problem.contains(wanted), "{wanted}: {problem}");
        }
        config(&[]).validate().unwrap();
        config(&["--kafka-security-protocol=SSL", "--kafka-ca=/x"]).validate().unwrap();
    }

    #[test]
    fn the_operators_properties_win_and_the_password_is_never_printed() {
        let given = ["--kafka-security-protocol=SASL_SSL", "--kafka-username=u", "--kafka-password=hunter2"];
        let config = config(&[&given[..], &["--kafka-property=sasl.mechanism=PLAIN,x.y=z"]].concat());
        assert!(!format!("{config:?}").contains("hunter2"));
        let client = finish(client(&config, "test"), &config);
        let property = |name: &str| client.get(name).unwrap_or_default();
        assert_eq!(property("security.protocol"), "SASL_SSL");
        assert_eq!((property("sasl.username"), property("sasl.password")), ("u", "hunter2"));
        assert_eq!((property("sasl.mechanism"), property("x.y")), ("PLAIN", "z"));
    }

    #[test]
    fn a_refusal_names_the_setting() {
        for (code, wanted) in [
            (RDKafkaErrorCode::Authentication, "KAFKA_PASSWORD"),
            (RDKafkaErrorCode::SSL, "KAFKA_CA"),
            (RDKafkaErrorCode::TopicAuthorizationFailed, "security/kafka.sh"),
        ] {
            let text = explain(&KafkaError::MessageConsumption(code));
            assert!(text.contains(wanted), "{text}");
        }
        let away = explain(&KafkaError::MessageConsumption(RDKafkaErrorCode::AllBrokersDown));
        assert!(!away.contains("KAFKA_"), "{away}");
    }
}
