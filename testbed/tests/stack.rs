//! The real parts answer, are shared, and come back from a crash with what they had acknowledged.
#![allow(clippy::unwrap_used, reason = "what goes wrong in a test has to end it")]

use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use sqlx::{Connection, PgConnection};
use testbed::stack::{Kafka, Postgres, ROLES, Registry, Stack};

async fn create_topic(bootstrap: &str, topic: &str) {
    let admin: AdminClient<DefaultClientContext> =
        ClientConfig::new().set("bootstrap.servers", bootstrap).create().unwrap();
    let topics = [NewTopic::new(topic, 1, TopicReplication::Fixed(1))];
    let created = admin.create_topics(&topics, &AdminOptions::new()).await.unwrap();
    assert_eq!(created.len(), 1);
    assert!(created[0].is_ok(), "{created:?}");
}

fn produce(bootstrap: &str, topic: &str, count: usize) {
    let producer: BaseProducer = ClientConfig::new()
        .set("bootstrap.servers", bootstrap)
        .set("enable.idempotence", "true")
        .create()
        .unwrap();
    for number in 0..count {
        producer.send(BaseRecord::to(topic).key("k").payload(&number.to_string())).unwrap();
    }
    producer.flush(Duration::from_secs(20)).unwrap();
    assert_eq!(producer.in_flight_count(), 0);
}

fn end_offset(bootstrap: &str, topic: &str) -> i64 {
    let consumer: BaseConsumer = ClientConfig::new().set("bootstrap.servers", bootstrap).create().unwrap();
    consumer.fetch_watermarks(topic, 0, Duration::from_secs(20)).unwrap().1
}

async fn register(url: &str, subject: &str) -> i64 {
    let schema = serde_json::json!({ "schema": "{\"type\":\"string\"}" });
    let response = reqwest::Client::new()
        .post(format!("{url}/subjects/{subject}/versions"))
        .json(&schema)
        .send()
        .await
        .unwrap()
        .error_for_status()
        .unwrap();
    response.json::<serde_json::Value>().await.unwrap()["id"].as_i64().unwrap()
}

#[tokio::test]
async fn the_shared_stack_answers_on_all_three_parts() {
    let stack = Stack::get().await.unwrap();

    let database = stack.database("stack").await.unwrap();
    for role in ROLES {
        let mut connection = PgConnection::connect(&database.url(role)).await.unwrap();
        let (user, superuser, version): (String, bool, i32) = sqlx::query_as(
            "SELECT current_user::text, rolsuper, current_setting('server_version_num')::int \
             FROM pg_roles WHERE rolname = current_user",
        )
        .fetch_one(&mut connection)
        .await
        .unwrap();
        assert_eq!((user.as_str(), superuser), (role, false));
        assert_eq!(u32::try_from(version).unwrap() / 10_000, stack.major().number());
    }
    let mut owner = PgConnection::connect(&database.url("payment_outbox")).await.unwrap();
    sqlx::raw_sql("CREATE SCHEMA own; CREATE TABLE own.t (id int)").execute(&mut owner).await.unwrap();

    let topic = stack.unique("stack");
    create_topic(&stack.kafka_bootstrap(), &topic).await;
    produce(&stack.kafka_bootstrap(), &topic, 3);
    assert_eq!(end_offset(&stack.kafka_bootstrap(), &topic), 3);

    let subject = format!("{topic}-value");
    let id = register(&stack.registry_url(), &subject).await;
    assert_eq!(register(&stack.registry_url(), &subject).await, id);
}

#[tokio::test]
async fn everyone_gets_the_same_stack_and_a_database_of_their_own() {
    let (first, second) = tokio::join!(Stack::get(), Stack::get());
    let (first, second) = (first.unwrap(), second.unwrap());
    assert_eq!(first.parts(), second.parts());
    let (attached, started) = Stack::up().await.unwrap();
    assert!(!started);
    assert_eq!(attached.parts(), first.parts());

    let (one, other) = tokio::join!(first.database("same"), first.database("same"));
    assert_ne!(one.unwrap().name, other.unwrap().name);
    assert_ne!(first.unique("x"), first.unique("x"));
}

#[tokio::test]
async fn a_killed_postgres_comes_back_with_every_committed_row() {
    let postgres = Postgres::private_with("kill9", &[("wal_level", "logical")]).await.unwrap();
    let database = postgres.database("rows").await.unwrap();
    let url = database.url("payment_outbox");
    let mut committed = 0_i64;
    for round in 0..3 {
        let mut connection = PgConnection::connect(&url).await.unwrap();
        sqlx::raw_sql("CREATE TABLE IF NOT EXISTS t (round int, id int)")
            .execute(&mut connection)
            .await
            .unwrap();
        for id in 0..50 {
            let insert = sqlx::query("INSERT INTO t VALUES ($1, $2)").bind(round).bind(id);
            insert.execute(&mut connection).await.unwrap();
            committed += 1;
        }
        // Never committed, so it has to be gone afterwards.
        sqlx::raw_sql("BEGIN; INSERT INTO t VALUES (99, 99)").execute(&mut connection).await.unwrap();
        postgres.kill9();
        assert!(PgConnection::connect(&url).await.is_err(), "it answers after SIGKILL");
        postgres.restart().await.unwrap();
        let mut connection = PgConnection::connect(&url).await.unwrap();
        let (rows, level): (i64, String) =
            sqlx::query_as("SELECT count(*), current_setting('wal_level') FROM t")
                .fetch_one(&mut connection)
                .await
                .unwrap();
        assert_eq!((rows, level.as_str()), (committed, "logical"));
    }
    postgres.restart().await.unwrap();
    postgres.stop().await.unwrap();
    postgres.restart().await.unwrap();
    PgConnection::connect(&url).await.unwrap();
}

#[tokio::test]
async fn a_killed_broker_comes_back_with_every_acked_record() {
    let kafka = Kafka::private("kill9").await.unwrap();
    create_topic(&kafka.bootstrap(), "t").await;
    produce(&kafka.bootstrap(), "t", 1_000);
    kafka.kill9();
    kafka.restart().await.unwrap();
    assert_eq!(end_offset(&kafka.bootstrap(), "t"), 1_000);
    kafka.pause().unwrap();
    kafka.resume().unwrap();
    kafka.restart().await.unwrap();
    assert_eq!(end_offset(&kafka.bootstrap(), "t"), 1_000);
}

#[tokio::test]
async fn a_killed_registry_comes_back_with_every_schema() {
    let registry = Registry::private("kill9").await.unwrap();
    let id = register(&registry.url(), "s-value").await;
    registry.kill9();
    registry.restart().await.unwrap();
    assert_eq!(register(&registry.url(), "s-value").await, id);
}

#[tokio::test]
async fn a_private_part_leaves_nothing_behind() {
    let postgres = Postgres::private("gone").await.unwrap();
    let (url, log) = (postgres.url("postgres", "postgres"), postgres.log().to_owned());
    drop(postgres);
    assert!(PgConnection::connect(&url).await.is_err());
    assert!(!log.exists());
}
