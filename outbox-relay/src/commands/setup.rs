//! Topics and schemas, from the catalogue.

use std::{collections::HashMap, time::Duration};

use anyhow::{Context as _, bail, ensure};
use chassis::config::KafkaConfig;
use rdkafka::{
    admin::{AdminClient, AdminOptions, NewTopic, ResourceSpecifier, TopicReplication},
    client::DefaultClientContext,
    error::KafkaError,
    types::RDKafkaErrorCode,
};
use schema::{registry::Registry, wire::value_subject};

use crate::{
    catalogue::{Catalogue, Topic},
    config::SetupConfig,
};

/// Limit of one administrative call to the brokers.
const ADMIN_TIMEOUT: Duration = Duration::from_secs(30);

/// Creates the topics of the catalogue and registers its schemas.
pub async fn setup(config: &SetupConfig) -> anyhow::Result<()> {
    let catalogue = Catalogue::read(&config.catalogue.events)?;
    chassis::kafka::check(&config.kafka).await?;
    let admin: AdminClient<DefaultClientContext> =
        chassis::kafka::finish(chassis::kafka::client(&config.kafka, "outbox-relay setup"), &config.kafka)
            .create()?;
    let brokers = broker_count(&config.kafka).await?;
    for (name, topic) in &catalogue.topics {
        create_topic(&admin, name, topic, brokers).await?;
    }
    let registry = Registry::with(
        &config.registry.schema_registry_url,
        config.registry.credentials()?,
        config.registry.schema_registry_ca.as_deref(),
    )?;
    for (event_type, event) in &catalogue.events {
        let subject = value_subject(&event.topic);
        let id = registry
            .register(&subject, &event.schema_text)
            .await
            .with_context(|| format!("schema of {event_type}"))?;
        tracing::info!(event_type, subject, schema_id = id, "schema registered");
    }
    Ok(())
}

async fn broker_count(kafka: &KafkaConfig) -> anyhow::Result<usize> {
    use rdkafka::{consumer::BaseConsumer, consumer::Consumer as _};
    let client: BaseConsumer =
        chassis::kafka::finish(chassis::kafka::client(kafka, "outbox-relay setup"), kafka).create()?;
    // Blocking, so not on a thread that tasks share.
    let metadata = tokio::task::spawn_blocking(move || client.fetch_metadata(None, ADMIN_TIMEOUT)).await?;
    let brokers = metadata.context("the brokers did not answer")?.brokers().len();
    ensure!(brokers > 0, "the cluster names no broker");
    Ok(brokers)
}

/// Replication 3 with at least 2 in sync where there are brokers enough; less is for development, and is said.
async fn create_topic(
    admin: &AdminClient<DefaultClientContext>,
    name: &str,
    topic: &Topic,
    brokers: usize,
) -> anyhow::Result<()> {
    let replication = i32::try_from(brokers.min(3))?;
    let min_in_sync = if replication >= 3 { "2" } else { "1" };
    if replication < 3 {
        tracing::warn!(
            topic = name,
            replication,
            "fewer than 3 brokers: an acknowledged record can be lost with one of them"
        );
    }
    let retention_ms = topic.retention.as_millis().to_string();
    let wanted = NewTopic::new(name, topic.partitions, TopicReplication::Fixed(replication))
        .set("retention.ms", &retention_ms)
        .set("min.insync.replicas", min_in_sync);
    let options =
        AdminOptions::new().operation_timeout(Some(ADMIN_TIMEOUT)).request_timeout(Some(ADMIN_TIMEOUT));
    for result in admin.create_topics([&wanted], &options).await? {
        match result {
            Ok(_) => tracing::info!(
                topic = name,
                partitions = topic.partitions,
                replication,
                retention_ms,
                "topic created"
            ),
            Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {
                check_topic(admin, name, topic, &options).await?;
            }
            Err((_, code)) => bail!(
                "topic {name} could not be created: {}",
                chassis::kafka::explain(&KafkaError::AdminOp(code))
            ),
        }
    }
    Ok(())
}

/// A topic that exists is left as it is, but its differences are said.
async fn check_topic(
    admin: &AdminClient<DefaultClientContext>,
    name: &str,
    topic: &Topic,
    options: &AdminOptions,
) -> anyhow::Result<()> {
    let mut settings = HashMap::new();
    for resource in admin.describe_configs([&ResourceSpecifier::Topic(name)], options).await? {
        let resource = resource.map_err(|code| {
            let reason = chassis::kafka::explain(&KafkaError::AdminOp(code));
            anyhow::anyhow!("settings of topic {name} could not be read: {reason}")
        })?;
        settings.extend(resource.entries.into_iter().filter_map(|entry| Some((entry.name, entry.value?))));
    }
    let retention_ms = settings.get("retention.ms").and_then(|value| value.parse::<i128>().ok());
    let wanted_ms = i128::try_from(topic.retention.as_millis())?;
    if retention_ms.is_some_and(|found| found >= 0 && found < wanted_ms) {
        tracing::warn!(
            topic = name,
            retention_ms,
            wanted_ms,
            "the topic keeps records for less time than the catalogue says"
        );
    }
    if settings.get("cleanup.policy").is_some_and(|policy| policy.contains("compact")) {
        tracing::warn!(topic = name, "the topic is compacted: earlier events of a key will disappear");
    }
    tracing::info!(topic = name, "topic exists");
    Ok(())
}
