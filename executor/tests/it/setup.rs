//! One test's own world: database, topic, schema, PSP, and as many executors as it wants.

use std::time::{Duration, Instant};

use apache_avro::{Schema, types::Value as Avro, writer::datum::GenericDatumWriter};
use chassis::{postgres, shutdown::Shutdown, telemetry::TraceContext};
use clap::Parser;
use executor::config::{Config, Migration};
use rdkafka::{
    ClientConfig,
    admin::{AdminClient, AdminOptions, NewTopic, TopicReplication},
    client::DefaultClientContext,
    message::{Header, OwnedHeaders},
    producer::{FutureProducer, FutureRecord},
};
use schema::{
    decode::Event as _,
    payment_order_requested::PaymentOrderRequestedEvent,
    registry::Registry,
    wire::{begin_frame, header, value_subject},
};
use serde_json::Value;
use sqlx::PgPool;
use testbed::stack::{OWNER, Stack, TestDatabase};
use time::OffsetDateTime;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// How long anything may take that should take milliseconds; the machine may be busy.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) struct World {
    pub(crate) stack: Stack,
    pub(crate) database: TestDatabase,
    /// As a superuser.
    pub(crate) pool: PgPool,
    pub(crate) topic: String,
    pub(crate) psp_url: String,
    schema_id: u32,
    producer: FutureProducer,
    http: reqwest::Client,
    _psp: tokio_util::sync::DropGuard,
}

pub(crate) struct Running {
    shutdown: Shutdown,
    task: JoinHandle<anyhow::Result<()>>,
}

#[derive(Parser)]
struct Arguments {
    #[command(flatten)]
    config: Config,
}

impl World {
    pub(crate) async fn new(hint: &str) -> Self {
        let stack = Stack::get().await.unwrap();
        let database = stack.database(hint).await.unwrap();
        migrate(&database).await;
        let topic = stack.unique("requests");
        let client =
            |config: &mut ClientConfig| config.set("bootstrap.servers", stack.kafka_bootstrap()).clone();
        let admin: AdminClient<DefaultClientContext> = client(&mut ClientConfig::new()).create().unwrap();
        let new = NewTopic::new(&topic, 3, TopicReplication::Fixed(1));
        for made in admin.create_topics([&new], &AdminOptions::new()).await.unwrap() {
            made.unwrap();
        }
        let registry = Registry::new(&stack.registry_url()).unwrap();
        let schema_id =
            registry.register(&value_subject(&topic), PaymentOrderRequestedEvent::SCHEMA).await.unwrap();
        let producer = client(&mut ClientConfig::new()).set("linger.ms", "0").create().unwrap();
        let (psp_url, psp) = simulator(&[]).await;
        let pool = PgPool::connect_lazy(&database.url("postgres")).unwrap();
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        Self { stack, database, pool, topic, psp_url, schema_id, producer, http, _psp: psp }
    }

    /// Uses another database from now on.
    pub(crate) async fn move_to(&mut self, database: TestDatabase) {
        migrate(&database).await;
        self.pool = PgPool::connect_lazy(&database.url("postgres")).unwrap();
        self.database = database;
    }

    /// Writes records by the schema as another registry knows it.
    pub(crate) async fn register_at(&mut self, url: &str) {
        let registry = Registry::new(url).unwrap();
        let subject = value_subject(&self.topic);
        self.schema_id = registry.register(&subject, PaymentOrderRequestedEvent::SCHEMA).await.unwrap();
    }

    /// Settings with short times; `more` comes last.
    pub(crate) fn config(&self, more: &[&str]) -> Config {
        let arguments = [
            "executor".to_owned(),
            format!("--database-url={}", self.database.url("executor")),
            format!("--kafka-bootstrap={}", self.stack.kafka_bootstrap()),
            format!("--schema-registry-url={}", self.stack.registry_url()),
            format!("--requests-topic={}", self.topic),
            format!("--consumer-group={}", self.topic),
            "--admin-listen=127.0.0.1:0".to_owned(),
            format!("--stripe-base-url={}", self.psp_url),
            "--stripe-secret-key=sk_test_executor".to_owned(),
            format!("--adyen-base-url={}/v71", self.psp_url),
            "--adyen-api-key=AQE_test_executor".to_owned(),
            "--adyen-merchant-account=TestMerchant".to_owned(),
            "--psp-timeout=5s".to_owned(),
            "--resolve-after=200ms".to_owned(),
            "--resolve-then=500ms,500ms,1s,1s,1s,2s,2s,2s".to_owned(),
        ];
        let mut arguments = arguments.to_vec();
        for one in more {
            // A flag given here takes the place of the one above.
            let name = one.split('=').next().unwrap();
            arguments.retain(|argument| argument.split('=').next() != Some(name));
            arguments.push((*one).to_owned());
        }
        Arguments::parse_from(arguments).config
    }

    pub(crate) fn start(&self, more: &[&str]) -> Running {
        Self::start_with(self.config(more))
    }

    pub(crate) fn start_with(config: Config) -> Running {
        let shutdown = Shutdown::new();
        let task = tokio::spawn(executor::run(config, shutdown.clone()));
        Running { shutdown, task }
    }

    /// What the PSP told, and what of it was a lie.
    pub(crate) async fn psp_report(&self) -> Value {
        let url = format!("{}/simulator/webhooks", self.psp_url);
        self.http.get(url).send().await.unwrap().json().await.unwrap()
    }

    /// Moves the PSP's clock on.
    pub(crate) async fn advance_psp(&self, by: Duration) {
        let body = serde_json::json!({"advance_seconds": by.as_secs()});
        let url = format!("{}/simulator/clock", self.psp_url);
        let answer = self.http.post(url).json(&body).send().await.unwrap();
        assert!(answer.status().is_success(), "{}", answer.text().await.unwrap());
    }

    /// Sends a request for this payment method; returns its payment order.
    pub(crate) async fn request(&self, payment_method: &str) -> Uuid {
        let event = request(payment_method);
        self.send(&event, &TraceContext::new_trace()).await;
        event.payment_order_id
    }

    pub(crate) async fn send(&self, event: &PaymentOrderRequestedEvent, trace: &TraceContext) {
        let value = self.encode(event);
        self.send_raw(&event.payment_order_id.to_string(), &value, &trace.traceparent()).await;
    }

    pub(crate) async fn send_raw(&self, key: &str, value: &[u8], traceparent: &str) {
        let headers = OwnedHeaders::new()
            .insert(Header { key: header::CE_ID, value: Some(&Uuid::now_v7().to_string()) })
            .insert(Header { key: header::TRACEPARENT, value: Some(traceparent) });
        let record = FutureRecord::to(&self.topic).key(key).payload(value).headers(headers);
        self.producer.send(record, Duration::from_secs(10)).await.unwrap();
    }

    /// Sends many at once, without waiting for each.
    pub(crate) async fn send_all(&self, events: &[PaymentOrderRequestedEvent]) {
        let trace = TraceContext::new_trace();
        futures::future::join_all(events.iter().map(|event| self.send(event, &trace))).await;
    }

    pub(crate) fn encode(&self, event: &PaymentOrderRequestedEvent) -> Vec<u8> {
        let schema = Schema::parse_str(PaymentOrderRequestedEvent::SCHEMA).unwrap();
        let writer = GenericDatumWriter::builder(&schema).build().unwrap();
        let mut value = Vec::new();
        begin_frame(self.schema_id, &mut value);
        let text = |text: &str| Avro::String(text.to_owned());
        let micros = i64::try_from(event.expires_at.unix_timestamp_nanos() / 1000).unwrap();
        let fields = vec![
            ("paymentOrderId".to_owned(), Avro::Uuid(event.payment_order_id)),
            ("psp".to_owned(), text(&event.psp)),
            ("amountMinor".to_owned(), Avro::Long(event.amount_minor)),
            ("currency".to_owned(), text(&event.currency)),
            ("paymentMethod".to_owned(), text(&event.payment_method)),
            ("merchantReference".to_owned(), text(&event.merchant_reference)),
            ("expiresAt".to_owned(), Avro::TimestampMicros(micros)),
        ];
        writer.write_value(&mut value, Avro::Record(fields)).unwrap();
        value
    }

    /// The results of an order: status, error code, source.
    pub(crate) async fn results(&self, id: Uuid) -> Vec<(String, Option<String>, String)> {
        sqlx::query_as(
            "SELECT psp_status, error_code, source FROM executor.psp_results WHERE payment_order_id = $1 ORDER BY recorded_at",
        )
        .bind(id)
        .fetch_all(&self.pool)
        .await
        .unwrap()
    }

    /// The calls for an order: operation and verdict.
    pub(crate) async fn calls(&self, id: Uuid) -> Vec<(String, Option<String>)> {
        sqlx::query_as(
            "SELECT operation, verdict FROM executor.psp_attempts WHERE payment_order_id = $1 ORDER BY started_at, attempt_id",
        )
        .bind(id)
        .fetch_all(&self.pool)
        .await
        .unwrap()
    }

    pub(crate) async fn state(&self, id: Uuid) -> Option<String> {
        sqlx::query_scalar("SELECT state FROM executor.inbox WHERE payment_order_id = $1")
            .bind(id)
            .fetch_optional(&self.pool)
            .await
            .unwrap()
    }

    pub(crate) async fn wait_for_state(&self, id: Uuid, state: &str) {
        let begun = Instant::now();
        while self.state(id).await.as_deref() != Some(state) {
            let waited = begun.elapsed();
            assert!(
                waited < PATIENCE,
                "{state} expected, found {:?} with calls {:?} and results {:?}",
                self.state(id).await,
                self.calls(id).await,
                self.results(id).await
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub(crate) async fn count(&self, sql: &'static str) -> i64 {
        sqlx::query_scalar(sql).fetch_one(&self.pool).await.unwrap()
    }

    /// Waits through the absence of the database, too.
    pub(crate) async fn wait_for_count(&self, sql: &'static str, expected: i64) {
        let begun = Instant::now();
        loop {
            let found = sqlx::query_scalar::<_, i64>(sql).fetch_one(&self.pool).await;
            if found.as_ref().is_ok_and(|found| *found == expected) {
                return;
            }
            assert!(begun.elapsed() < PATIENCE, "{expected} expected, found {found:?}: {sql}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// How often the PSP has charged an order.
    pub(crate) async fn charges(&self, id: Uuid) -> usize {
        let ledger = self.ledger().await;
        ledger.iter().filter(|charge| charge["payment_order_id"] == id.to_string()).count()
    }

    pub(crate) async fn ledger(&self) -> Vec<Value> {
        let answer = self.http.get(format!("{}/simulator/ledger", self.psp_url)).send().await.unwrap();
        let ledger: Value = answer.json().await.unwrap();
        ledger["charges"].as_array().unwrap().clone()
    }

    /// The events of an order in the outbox, in order.
    pub(crate) async fn events(&self, id: Uuid) -> Vec<(Uuid, Value, String)> {
        sqlx::query_as(
            "SELECT event_id, payload, coalesce(traceparent, '') FROM outbox.events WHERE aggregate_id = $1 ORDER BY id",
        )
        .bind(id.to_string())
        .fetch_all(&self.pool)
        .await
        .unwrap()
    }
}

impl Running {
    /// Asks it to stop, and waits until it has.
    pub(crate) async fn stop(self) {
        self.shutdown.request();
        self.task.await.unwrap().unwrap();
        assert!(self.shutdown.finished(PATIENCE).await, "tasks still run");
    }
}

pub(crate) fn request(payment_method: &str) -> PaymentOrderRequestedEvent {
    PaymentOrderRequestedEvent {
        payment_order_id: Uuid::new_v4(),
        psp: "STRIPE".to_owned(),
        amount_minor: 1999,
        currency: "EUR".to_owned(),
        payment_method: payment_method.to_owned(),
        merchant_reference: "order-1".to_owned(),
        expires_at: OffsetDateTime::now_utc() + Duration::from_hours(1),
    }
}

/// A PSP of one's own; it ends with the guard.
pub(crate) async fn simulator(more: &[&str]) -> (String, tokio_util::sync::DropGuard) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let slow = (!more.iter().any(|one| one.starts_with("--slow"))).then_some(&"--slow=1500ms");
    let config = psp_simulator::Config::parse_from(["psp-simulator"].iter().chain(slow).chain(more));
    let stop = CancellationToken::new();
    tokio::spawn(psp_simulator::run(listener, config, stop.clone()));
    (url, stop.drop_guard())
}

async fn migrate(database: &TestDatabase) {
    let owner = secrecy::SecretString::from(database.url(OWNER));
    postgres::migrate(&owner, sqlx::migrate!("../migrations/outbox"), "outbox").await.unwrap();
    let mut connection = postgres::connect(&owner, "test").await.unwrap();
    sqlx::query("SELECT outbox.grant_writer('executor')").execute(&mut connection).await.unwrap();
    let migration = Migration {
        database_url: owner,
        services: vec!["executor".to_owned()],
        readers: vec!["operator".to_owned()],
    };
    executor::migrate(&migration).await.unwrap();
    // Doing it again changes nothing.
    executor::migrate(&migration).await.unwrap();
}
