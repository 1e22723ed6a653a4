//! Offsets that are lost, or point at records that are gone: said, and never jumped over.

use std::time::Duration;

use rdkafka::{
    ClientConfig, Offset, TopicPartitionList,
    admin::{AdminClient, AdminOptions},
    client::DefaultClientContext,
};

use crate::world::{PARTITIONS, Running, TRANSITIONS, World, result};

/// Removes every record that is on the topic, as its retention does.
async fn trim(world: &World) {
    let admin: AdminClient<DefaultClientContext> =
        ClientConfig::new().set("bootstrap.servers", &world.bootstrap).create().unwrap();
    let mut before = TopicPartitionList::new();
    for partition in 0..PARTITIONS {
        before.add_partition_offset(&world.topic, partition, Offset::End).unwrap();
    }
    admin.delete_records(&before, &AdminOptions::new()).await.unwrap();
}

async fn until_metric(service: &Running, name: &str) {
    for _ in 0..600 {
        if service.metric(name).await > 0.0 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("{name} is still 0 after 30 s");
}

#[tokio::test]
async fn records_that_went_before_they_were_read_are_for_a_person() {
    let world = World::new().await;
    let orders = world.orders(30).await;
    let events: Vec<_> = orders.iter().map(|order| result(*order, "SUCCESSFUL")).collect();
    world.send_all(&events).await;
    world.reset_offsets(Offset::Offset(0));
    trim(&world).await;
    let service = world.start(&[]).await;
    until_metric(&service, "kafka_consumer_offsets_out_of_range_total").await;
    // What comes behind the gap is not read either: it waits until somebody has looked at the gap.
    let late = world.orders(30).await;
    let events: Vec<_> = late.iter().map(|order| result(*order, "SUCCESSFUL")).collect();
    world.send_all(&events).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(world.count(TRANSITIONS).await, 0, "no silent jump");
    service.stop().await;
    assert_eq!(world.committed().await, 0, "nor a new offset");

    // The way out: the service is stopped, the group's offsets are set to the first record that is left, what is missing is republished.
    world.reset_offsets(Offset::Beginning);
    let service = world.start(&[]).await;
    world.until(TRANSITIONS, 30).await;
    service.stop().await;
}

#[tokio::test]
async fn a_group_without_offsets_on_a_trimmed_topic_says_so_and_reads_what_is_left() {
    let world = World::new().await;
    let orders = world.orders(60).await;
    let (gone, left) = orders.split_at(30);
    let events = |orders: &[uuid::Uuid]| -> Vec<_> {
        orders.iter().map(|order| result(*order, "SUCCESSFUL")).collect()
    };
    world.send_all(&events(gone)).await;
    trim(&world).await;
    world.send_all(&events(left)).await;
    let service = world.start(&[]).await;
    until_metric(&service, "kafka_consumer_offsets_missing_total").await;
    world.until(TRANSITIONS, 30).await;
    service.stop().await;
}

#[tokio::test]
async fn a_new_group_on_a_whole_topic_is_no_alarm() {
    let world = World::new().await;
    let order = world.order().await;
    world.send(&result(order, "SUCCESSFUL")).await;
    let service = world.start(&[]).await;
    world.until(TRANSITIONS, 1).await;
    assert!(service.metric("kafka_consumer_offsets_missing_total").await.abs() < 0.1);
    assert!(service.metric("kafka_consumer_offsets_out_of_range_total").await.abs() < 0.1);
    assert!(service.metric("consumer_beat_age_seconds").await < 5.0, "the consumer comes round");
    service.stop().await;
}
