//! Settings of Kafka clients that are the same in every process.

use rdkafka::ClientConfig;

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
