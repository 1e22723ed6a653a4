//! A database, a topic and a group of its own for one test, and what is needed to look inside.

use std::{net::SocketAddr, time::Duration};

use apache_avro::{Schema, types::Value, writer::datum::GenericDatumWriter};
use chassis::shutdown::Shutdown;
use clap::Parser;
use payment_service::config::{Config, MigrateConfig};
use rdkafka::{
    ClientConfig, Offset, TopicPartitionList,
    admin::{AdminClient, AdminOptions, NewTopic, TopicReplication},
    client::DefaultClientContext,
    consumer::{BaseConsumer, CommitMode, Consumer as _, StreamConsumer},
    message::{Header, OwnedHeaders, OwnedMessage},
    producer::{FutureProducer, FutureRecord},
};
use schema::{decode::Event as _, psp_result_update::PspResultUpdateEvent, registry::Registry, wire};
use serde_json::{Value as Json, json};
use sqlx::{PgPool, postgres::PgPoolOptions};
use testbed::stack::{Stack, TestDatabase};
use time::OffsetDateTime;
use uuid::Uuid;

pub(crate) const TOKEN: &str = "po_token-of-the-shop--------------------------";
pub(crate) const OTHER_TOKEN: &str = "po_token-of-another---------------------------";
pub(crate) const OPERATOR_TOKEN: &str = "po_token-of-an-operator-----------------------";
pub(crate) const PARTITIONS: i32 = 3;

#[derive(Parser)]
struct Parsed {
    #[command(flatten)]
    config: Config,
}

pub(crate) struct World {
    pub(crate) db: TestDatabase,
    /// As the owner.
    pub(crate) pool: PgPool,
    pub(crate) topic: String,
    pub(crate) group: String,
    pub(crate) bootstrap: String,
    pub(crate) registry_url: String,
    pub(crate) schema_id: u32,
    producer: FutureProducer,
}

/// A running service; ends with the test.
#[derive(Debug)]
pub(crate) struct Running {
    pub(crate) shutdown: Shutdown,
    pub(crate) api: SocketAddr,
    pub(crate) admin: SocketAddr,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.shutdown.request();
    }
}

impl Running {
    pub(crate) async fn stop(self) {
        self.shutdown.request();
        assert!(
            self.shutdown.finished(Duration::from_secs(10)).await,
            "the service did not stop within 10 s"
        );
    }

    pub(crate) async fn metric(&self, line_start: &str) -> f64 {
        let text =
            reqwest::get(format!("http://{}/metrics", self.admin)).await.unwrap().text().await.unwrap();
        let line = text.lines().find(|line| line.starts_with(line_start));
        line.unwrap_or_else(|| panic!("no {line_start} in\n{text}"))
            .rsplit(' ')
            .next()
            .unwrap()
            .parse()
            .unwrap()
    }
}

impl World {
    pub(crate) async fn new() -> Self {
        let stack = Stack::get().await.unwrap();
        let db = stack.database("payments").await.unwrap();
        let owner = db.url("payment_outbox");
        chassis::postgres::migrate(&owner.clone().into(), sqlx::migrate!("../migrations/outbox"), "outbox")
            .await
            .unwrap();
        let migrate = || MigrateConfig {
            database_url: owner.clone().into(),
            services: vec!["payment_service".into()],
            readers: Vec::new(),
            operators: vec!["operator".into()],
            consoles: vec!["console".into()],
        };
        payment_service::migrate(&migrate()).await.unwrap();
        payment_service::migrate(&migrate()).await.expect("a second time changes nothing");
        let pool = PgPoolOptions::new().max_connections(4).connect(&owner).await.unwrap();
        sqlx::query("SELECT outbox.grant_writer('payment_service'), outbox.grant_operator('console')")
            .execute(&pool)
            .await
            .unwrap();
        for (caller, role, token) in [
            ("shop", "merchant", TOKEN),
            ("another", "merchant", OTHER_TOKEN),
            ("ada", "operator", OPERATOR_TOKEN),
        ] {
            sqlx::query("SELECT payments.create_token($1, $2, sha256($3), NULL)")
                .bind(caller)
                .bind(role)
                .bind(token.as_bytes())
                .execute(&pool)
                .await
                .unwrap();
        }

        let topic = stack.unique("results");
        let bootstrap = stack.kafka_bootstrap();
        let client = || {
            let mut config = ClientConfig::new();
            config
                .set("bootstrap.servers", &bootstrap)
                .set("linger.ms", "0")
                .set("partitioner", "murmur2_random");
            config
        };
        let admin: AdminClient<DefaultClientContext> = client().create().unwrap();
        let copies = format!("{topic}.dlq");
        let new = [
            NewTopic::new(&topic, PARTITIONS, TopicReplication::Fixed(1)),
            NewTopic::new(&copies, 1, TopicReplication::Fixed(1)),
        ];
        for made in admin.create_topics(&new, &AdminOptions::new()).await.unwrap() {
            made.unwrap();
        }
        let registry = Registry::new(&stack.registry_url()).unwrap();
        let schema_id =
            registry.register(&wire::value_subject(&topic), PspResultUpdateEvent::SCHEMA).await.unwrap();
        Self {
            db,
            pool,
            group: stack.unique("group"),
            topic,
            registry_url: stack.registry_url(),
            schema_id,
            producer: client().create().unwrap(),
            bootstrap,
        }
    }

    /// The arguments of `payment-service run`.
    pub(crate) fn arguments(&self, more: &[&str]) -> Vec<String> {
        let url = self.db.url("payment_service");
        let mut arguments: Vec<String> = [
            ["--database-url", &url],
            ["--kafka-bootstrap", &self.bootstrap],
            ["--schema-registry-url", &self.registry_url],
            ["--results-topic", &self.topic],
            ["--consumer-group", &self.group],
            ["--orphan-retry", "300ms"],
            ["--listen", "127.0.0.1:0"],
        ]
        .concat()
        .into_iter()
        .map(str::to_owned)
        .collect();
        if more.contains(&"--listen") {
            let listen = arguments.iter().position(|argument| argument == "--listen").unwrap();
            arguments.drain(listen..listen + 2);
        }
        arguments.extend(more.iter().map(|argument| (*argument).to_owned()));
        arguments
    }

    /// The same, with the console.
    pub(crate) async fn start_with_console(&self, more: &[&str]) -> Running {
        let url = self.db.url("console");
        self.start(&[&["--console-database-url", &url], more].concat()).await
    }

    /// A new token.
    pub(crate) async fn token(&self, caller: &str, role: &str) -> String {
        let token = payment_service::tokens::generate().unwrap();
        let token = secrecy::ExposeSecret::expose_secret(&token).to_owned();
        sqlx::query("SELECT payments.create_token($1, $2, sha256($3), NULL)")
            .bind(caller)
            .bind(role)
            .bind(token.as_bytes())
            .execute(&self.pool)
            .await
            .unwrap();
        token
    }

    /// Its database, as one of the roles.
    pub(crate) async fn as_role(&self, role: &str) -> PgPool {
        PgPoolOptions::new().max_connections(1).connect(&self.db.url(role)).await.unwrap()
    }

    pub(crate) async fn start(&self, more: &[&str]) -> Running {
        Self::start_with(self.arguments(more)).await
    }

    pub(crate) async fn start_with(arguments: Vec<String>) -> Running {
        Self::try_start(arguments).await.unwrap()
    }

    pub(crate) async fn try_start(arguments: Vec<String>) -> anyhow::Result<Running> {
        let arguments = std::iter::once("test".to_owned()).chain(arguments);
        let config = Parsed::try_parse_from(arguments).unwrap().config;
        let shutdown = Shutdown::new();
        let addresses = payment_service::start(&config, &shutdown).await?;
        Ok(Running { shutdown, api: addresses.api, admin: addresses.admin })
    }

    /// A payment with one payment order, made without the API.
    pub(crate) async fn order(&self) -> Uuid {
        self.orders(1).await[0]
    }

    pub(crate) async fn orders(&self, count: i32) -> Vec<Uuid> {
        sqlx::query_scalar(
            "WITH made AS (SELECT gen_random_uuid() AS p, gen_random_uuid() AS o FROM generate_series(1, $1)),
             payments AS (
                 INSERT INTO payments.payments SELECT p, 'shop', 1000, 'EUR', 'test', 'CREATED', NULL, repeat('a', 32), now(), now() FROM made
             ), orders AS (
                 INSERT INTO payments.payment_orders
                 SELECT o, p, 1, 'STRIPE', 'pm', 'CREATED', NULL, NULL, NULL, NULL, '00-' || repeat('a', 32) || '-' || repeat('b', 16) || '-01', now(), now(), now(), NULL
                 FROM made
             ), transitions AS (
                 INSERT INTO payments.payment_order_transitions (payment_order_id, to_state, decision, trace_id)
                 SELECT o, 'CREATED', 'APPLIED', repeat('a', 32) FROM made
             )
             SELECT o FROM made",
        )
        .bind(count)
        .fetch_all(&self.pool)
        .await
        .unwrap()
    }

    pub(crate) fn body(&self, event: &Result_) -> Vec<u8> {
        let mut bytes = Vec::new();
        wire::begin_frame(self.schema_id, &mut bytes);
        let schema = Schema::parse_str(PspResultUpdateEvent::SCHEMA).unwrap();
        let text = |text: &Option<String>| match text {
            None => Value::Union(0, Box::new(Value::Null)),
            Some(text) => Value::Union(1, Box::new(Value::String(text.clone()))),
        };
        let symbols = ["SUCCESSFUL", "FAILED", "PENDING", "UNKNOWN"];
        let index = symbols.iter().position(|symbol| *symbol == event.status).unwrap();
        let record = Value::Record(vec![
            ("paymentOrderId".into(), Value::Uuid(event.order)),
            ("pspStatus".into(), Value::Enum(u32::try_from(index).unwrap(), event.status.into())),
            ("pspReference".into(), text(&event.reference)),
            ("eventTime".into(), Value::TimestampMicros(event.micros)),
            ("errorCode".into(), text(&event.code)),
            ("errorMessage".into(), text(&event.message)),
        ]);
        let writer = GenericDatumWriter::builder(&schema).build().unwrap();
        writer.write_value(&mut bytes, record).unwrap();
        bytes
    }

    pub(crate) async fn send(&self, event: &Result_) -> (i32, i64) {
        let headers = OwnedHeaders::new()
            .insert(Header { key: wire::header::CE_ID, value: Some(&event.id.to_string()) })
            .insert(Header { key: wire::header::CE_TYPE, value: Some("PspResultUpdateEvent") })
            .insert(Header { key: wire::header::TRACEPARENT, value: Some(&event.traceparent) });
        self.send_raw(Some(event.order.to_string().as_bytes()), Some(&self.body(event)), headers).await
    }

    pub(crate) async fn send_all(&self, events: &[Result_]) {
        futures::future::join_all(events.iter().map(|event| self.send(event))).await;
    }

    pub(crate) async fn send_raw(
        &self,
        key: Option<&[u8]>,
        value: Option<&[u8]>,
        headers: OwnedHeaders,
    ) -> (i32, i64) {
        let mut record = FutureRecord::to(&self.topic).headers(headers);
        record.key = key;
        record.payload = value;
        let delivery = self.producer.send(record, Duration::from_secs(30)).await.unwrap();
        (delivery.partition, delivery.offset)
    }

    /// Commits offsets for the group, as an operator does while the service is stopped. `Beginning`: of the first records that are left.
    pub(crate) fn reset_offsets(&self, offset: Offset) {
        let consumer: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", &self.bootstrap)
            .set("group.id", &self.group)
            .create()
            .unwrap();
        let mut list = TopicPartitionList::new();
        for partition in 0..PARTITIONS {
            let low =
                || consumer.fetch_watermarks(&self.topic, partition, Duration::from_secs(10)).unwrap().0;
            let offset = if offset == Offset::Beginning { Offset::Offset(low()) } else { offset };
            list.add_partition_offset(&self.topic, partition, offset).unwrap();
        }
        // The broker takes offsets from outside only once the group is empty: a member that did not leave in time counts until its
        // session ends.
        let until = std::time::Instant::now() + Duration::from_secs(30);
        while let Err(error) = consumer.commit(&list, CommitMode::Sync) {
            assert!(std::time::Instant::now() < until, "{error}");
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    /// The group's committed offsets, added up.
    pub(crate) async fn committed(&self) -> i64 {
        let (bootstrap, group, topic) = (self.bootstrap.clone(), self.group.clone(), self.topic.clone());
        tokio::task::spawn_blocking(move || {
            let consumer: BaseConsumer = ClientConfig::new()
                .set("bootstrap.servers", bootstrap)
                .set("group.id", group)
                .create()
                .unwrap();
            let mut list = TopicPartitionList::new();
            list.add_partition_range(&topic, 0, PARTITIONS - 1);
            let committed = consumer.committed_offsets(list, Duration::from_secs(10)).unwrap();
            committed
                .elements()
                .iter()
                .filter_map(|element| element.offset().to_raw())
                .filter(|raw| *raw > 0)
                .sum()
        })
        .await
        .unwrap()
    }

    pub(crate) async fn count(&self, sql: &'static str) -> i64 {
        sqlx::query_scalar(sql).fetch_one(&self.pool).await.unwrap()
    }

    pub(crate) async fn state(&self, order: Uuid) -> (String, Option<String>) {
        sqlx::query_as("SELECT state, review_reason FROM payments.payment_orders WHERE payment_order_id = $1")
            .bind(order)
            .fetch_one(&self.pool)
            .await
            .unwrap()
    }

    /// Runs `payment-service` with these arguments as the operator: exit code, stdout.
    pub(crate) async fn operate(&self, arguments: &[&str]) -> (i32, String) {
        let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_payment-service"));
        command.args(arguments).args(["--database-url", &self.db.url("operator")]);
        let output = command.stderr(std::process::Stdio::null()).output().await.unwrap();
        (output.status.code().unwrap(), String::from_utf8(output.stdout).unwrap())
    }

    /// The same with `--json`; it has to succeed.
    pub(crate) async fn operate_json(&self, arguments: &[&str]) -> Json {
        let (code, out) = self.operate(&[arguments, &["--json"]].concat()).await;
        assert_eq!(code, 0, "{arguments:?}: {out}");
        serde_json::from_str(&out).unwrap()
    }

    /// The audit, folded, is the state.
    pub(crate) async fn audit_agrees(&self) {
        let (code, out) = self.operate(&["verify-audit"]).await;
        assert_eq!(code, 0, "{out}");
    }

    /// What lies on the topic of copies: key, value, headers.
    pub(crate) async fn copies(&self, expected: usize) -> Vec<OwnedMessage> {
        let consumer: StreamConsumer = ClientConfig::new()
            .set("bootstrap.servers", &self.bootstrap)
            .set("group.id", format!("{}-copies", self.group))
            .set("auto.offset.reset", "earliest")
            .create()
            .unwrap();
        let copies = format!("{}.dlq", self.topic);
        consumer.subscribe(&[&copies]).unwrap();
        let mut found = Vec::new();
        while found.len() < expected {
            let next = tokio::time::timeout(Duration::from_secs(30), consumer.recv());
            found.push(next.await.expect("a copy within 30 s").unwrap().detach());
        }
        found
    }

    /// The states that the payment order went through.
    pub(crate) async fn history(&self, order: Uuid) -> Vec<(String, String)> {
        sqlx::query_as(
            "SELECT to_state, decision FROM payments.payment_order_transitions
             WHERE payment_order_id = $1 AND event_id IS NOT NULL ORDER BY transition_id",
        )
        .bind(order)
        .fetch_all(&self.pool)
        .await
        .unwrap()
    }

    /// Waits until the statement counts this many.
    pub(crate) async fn until(&self, sql: &'static str, expected: i64) {
        let mut last = -1;
        for _ in 0..600 {
            last = self.count(sql).await;
            if last == expected {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("{sql}\n counts {last} after 30 s, expected {expected}");
    }

    pub(crate) async fn applied_twice(&self) -> i64 {
        self.count(
            "SELECT count(*) FROM (SELECT FROM payments.payment_order_transitions WHERE event_id IS NOT NULL
                                   GROUP BY event_id HAVING count(*) > 1) AS twice",
        )
        .await
    }
}

/// Rows of the audit that an event made.
pub(crate) const TRANSITIONS: &str =
    "SELECT count(*) FROM payments.payment_order_transitions WHERE event_id IS NOT NULL";

/// A result to be sent.
#[derive(Clone, Debug)]
pub(crate) struct Result_ {
    pub(crate) id: Uuid,
    pub(crate) order: Uuid,
    pub(crate) status: &'static str,
    pub(crate) reference: Option<String>,
    pub(crate) code: Option<String>,
    pub(crate) message: Option<String>,
    pub(crate) micros: i64,
    pub(crate) traceparent: String,
}

pub(crate) fn result(order: Uuid, status: &'static str) -> Result_ {
    let micros = OffsetDateTime::now_utc().unix_timestamp_nanos() / 1_000;
    Result_ {
        id: Uuid::now_v7(),
        order,
        status,
        reference: Some("pi_1".into()),
        code: None,
        message: None,
        micros: i64::try_from(micros).unwrap(),
        traceparent: format!("00-{}-{}-01", "a".repeat(32), "b".repeat(16)),
    }
}

pub(crate) fn order_body() -> Json {
    json!({"amount_minor": 1234, "currency": "EUR", "payment_method": "pm_card_visa", "merchant_reference": "order 1"})
}

/// A history as it is expected.
pub(crate) fn applied(states: &[(&str, &str)]) -> Vec<(String, String)> {
    states.iter().map(|(state, decision)| ((*state).to_owned(), (*decision).to_owned())).collect()
}

pub(crate) fn with(event: Result_, change: impl FnOnce(&mut Result_)) -> Result_ {
    let mut event = event;
    change(&mut event);
    event
}
