//! Settings of Kafka clients that are the same in every process, and what every consumer reports.

use prometheus::{IntCounter, IntCounterVec, IntGauge, IntGaugeVec};
use rdkafka::{ClientConfig, Statistics, TopicPartitionList, config::RDKafkaLogLevel, consumer::Rebalance};

use crate::config::KafkaConfig;

/// A client configuration with the bootstrap servers; the operator's own properties are set last by [`finish`], so that they win.
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

/// Adds the operator's properties.
pub fn finish(mut client: ClientConfig, config: &KafkaConfig) -> ClientConfig {
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
