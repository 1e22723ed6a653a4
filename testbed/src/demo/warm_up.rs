//! A broker that has just been started runs its code through an interpreter at first: the acknowledgement of a record takes a
//! hundred milliseconds and more, and a few seconds later two. A demo that has just started a broker would show that, and nothing
//! of what it is about. So the broker gets some seconds of records like those that will follow, on a topic of their own.

use std::time::Duration;

use anyhow::{Context, Result};
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::producer::{FutureProducer, FutureRecord};
use rdkafka::{Offset, TopicPartitionList};
use tokio::time::Instant;

const PARTITIONS: i32 = 6;
const LASTS: Duration = Duration::from_secs(4);
const CALL_LIMIT: Duration = Duration::from_secs(10);
/// Records in flight together.
const TOGETHER: usize = 12;

/// Produces and fetches single records until the time is over, then removes the topic.
pub(super) async fn warm_up(bootstrap: &str, topic: &str) -> Result<()> {
    let client = |idempotent: &str| {
        let mut client = ClientConfig::new();
        client.set("bootstrap.servers", bootstrap).set("enable.idempotence", idempotent);
        client
    };
    let admin: AdminClient<DefaultClientContext> =
        client("false").create().context("make an admin client")?;
    let options = AdminOptions::new().operation_timeout(Some(CALL_LIMIT));
    let created = admin
        .create_topics([&NewTopic::new(topic, PARTITIONS, TopicReplication::Fixed(1))], &options)
        .await
        .context("create a topic to warm up the broker")?;
    for result in created {
        result.map_err(|(name, code)| anyhow::anyhow!("create the topic {name}: {code}"))?;
    }
    let producer: FutureProducer = client("true")
        .set("linger.ms", "0")
        .set("compression.type", "lz4")
        .create()
        .context("make a producer")?;
    let consumer: BaseConsumer = client("false")
        .set("group.id", "none")
        .set("enable.auto.commit", "false")
        .create()
        .context("make a consumer")?;
    let mut assignment = TopicPartitionList::new();
    for partition in 0..PARTITIONS {
        assignment.add_partition_offset(topic, partition, Offset::Beginning)?;
    }
    consumer.assign(&assignment).context("assign")?;
    let until = Instant::now() + LASTS;
    let consuming = tokio::task::spawn_blocking(move || {
        while Instant::now() < until {
            drop(consumer.poll(Duration::from_millis(100)));
        }
    });
    let payload = [0_u8; 200];
    let mut number = 0_u64;
    while Instant::now() < until {
        let sends =
            (0..TOGETHER).map(|_| {
                number += 1;
                let (producer, key) = (&producer, number.to_string());
                async move {
                    producer.send(FutureRecord::to(topic).key(&key).payload(&payload[..]), CALL_LIMIT).await
                }
            });
        for sent in futures::future::join_all(sends).await {
            sent.map_err(|(error, _)| error).context("warm up the broker")?;
        }
    }
    consuming.await.context("consume")?;
    admin.delete_topics(&[topic], &options).await.context("remove the topic")?;
    Ok(())
}
