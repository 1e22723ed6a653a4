//! The parts that a measurement runs on: PostgreSQL, a broker and a registry of its own, an outbox, and one relay.

use std::path::PathBuf;

use anyhow::{Context, Result};
use rdkafka::ClientConfig;
use sqlx::{Connection, PgConnection};

use crate::processes::{Service, Spec, binary, run_once};
use crate::stack::home::Home;
use crate::stack::{Kafka, OWNER, Postgres, Registry, TestDatabase, free_port};

/// The catalogue of the product.
const CATALOGUE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../schema/events.toml");
/// Where it sends results.
pub(super) const TOPIC: &str = "psp-result-updates";
/// Partitions of that topic, and of every topic that is compared with it.
pub(super) const PARTITIONS: i32 = 6;
/// The name by which the relay saves.
pub(super) const RELAY: &str = "relay";

/// Ends with this value, its data too.
#[derive(Debug)]
pub(super) struct Site {
    pub(super) postgres: Postgres,
    pub(super) kafka: Kafka,
    pub(super) database: TestDatabase,
    registry: Registry,
    /// Where the payment service's API is.
    api: String,
    home: Home,
    folder: PathBuf,
}

impl Site {
    /// Starts the parts, makes the outbox, the topics and the schemas. `settings` are PostgreSQL's; logs go to `folder`.
    pub(super) async fn start(settings: &[(&str, &str)], folder: PathBuf) -> Result<Site> {
        let home = Home::locate()?;
        let (postgres, kafka, registry) = tokio::try_join!(
            Postgres::private_with("bench-postgres", settings),
            Kafka::private_sustained("bench-kafka"),
            Registry::private("bench-registry"),
        )?;
        let database = postgres.database("executor").await?;
        let api = format!("127.0.0.1:{}", free_port()?);
        let site = Site { postgres, kafka, database, registry, api, home, folder };
        let program = binary("outbox-relay")?;
        let owner = [("DATABASE_URL".to_owned(), site.database.url(OWNER))];
        let migrate = ["migrate", "--writer", "executor", "--relay", "relay", "--reader", "operator"];
        run_once(&program, &migrate, &owner).await?;
        run_once(&program, &["setup"], &site.environment()).await?;
        Ok(site)
    }

    /// `host:port` of the broker.
    pub(super) fn bootstrap(&self) -> String {
        self.kafka.bootstrap()
    }

    /// A session in the outbox's database.
    pub(super) async fn session(&self, role: &str) -> Result<PgConnection> {
        self.session_in(&self.database, role).await
    }

    /// A session in another database.
    pub(super) async fn session_in(&self, database: &TestDatabase, role: &str) -> Result<PgConnection> {
        let url = database.url(role);
        PgConnection::connect(&url).await.with_context(|| format!("connect as {role}"))
    }

    /// The relay with its default settings. It is not started yet.
    pub(super) fn relay(&self) -> Result<Service> {
        self.relay_named(RELAY)
    }

    /// The same relay as another process, which logs under this name.
    pub(super) fn relay_named(&self, name: &str) -> Result<Service> {
        let admin = format!("127.0.0.1:{}", free_port()?);
        let mut environment = self.environment();
        environment.push(("ADMIN_LISTEN".to_owned(), admin.clone()));
        let spec = Spec {
            name: name.to_owned(),
            program: binary("outbox-relay")?,
            arguments: vec!["run".to_owned()],
            environment,
            ready_url: format!("http://{admin}/readyz"),
        };
        Service::new(&self.home, &self.folder, spec)
    }

    /// Where the schemas are.
    pub(super) fn registry_url(&self) -> String {
        self.registry.url()
    }

    /// Makes the executor's tables beside the outbox.
    pub(super) async fn migrate_executor(&self) -> Result<()> {
        let owner = [("DATABASE_URL".to_owned(), self.database.url(OWNER))];
        let migrate = ["migrate", "--service", "executor", "--reader", "operator"];
        run_once(&binary("executor")?, &migrate, &owner).await.map(|_| ())
    }

    /// A database of payments, with its outbox.
    pub(super) async fn payments(&self) -> Result<TestDatabase> {
        let database = self.postgres.database("payments").await?;
        let owner = [("DATABASE_URL".to_owned(), database.url(OWNER))];
        let outbox = ["migrate", "--writer", "payment_service", "--relay", "relay", "--reader", "operator"];
        run_once(&binary("outbox-relay")?, &outbox, &owner).await?;
        let own = ["migrate", "--service", "payment_service", "--reader", "operator"];
        run_once(&binary("payment-service")?, &own, &owner).await?;
        Ok(database)
    }

    /// A new token of a merchant: what a client of the API sends.
    pub(super) async fn token(&self, payments: &TestDatabase) -> Result<String> {
        let owner = [("DATABASE_URL".to_owned(), payments.url(OWNER))];
        let create = ["token", "create", "--caller", "local", "--role", "merchant"];
        let printed = run_once(&binary("payment-service")?, &create, &owner).await?;
        Ok(printed.trim_end().to_owned())
    }

    /// Base of the payment service's API.
    pub(super) fn api_url(&self) -> String {
        format!("http://{}", self.api)
    }

    /// The payment service with its default settings. It is not started yet.
    pub(super) fn payment_service(&self, payments: &TestDatabase) -> Result<Service> {
        let admin = format!("127.0.0.1:{}", free_port()?);
        let given = [
            ("DATABASE_URL", payments.url("payment_service")),
            ("KAFKA_BOOTSTRAP", self.bootstrap()),
            ("SCHEMA_REGISTRY_URL", self.registry.url()),
            ("LISTEN", self.api.clone()),
            // One client is all of them here.
            ("RATE_PER_TOKEN", "100000".to_owned()),
            // It comes back under its name, and has its partitions at once.
            ("CONSUMER_INSTANCE", "payment-service".to_owned()),
            ("ADMIN_LISTEN", admin.clone()),
        ];
        self.service("payment-service", &["run"], &given, format!("http://{admin}/readyz"))
    }

    /// The relay of the payments' outbox. It is not started yet.
    pub(super) fn request_relay(&self, payments: &TestDatabase) -> Result<Service> {
        let admin = format!("127.0.0.1:{}", free_port()?);
        let given = [
            ("DATABASE_URL", payments.url("relay")),
            ("KAFKA_BOOTSTRAP", self.bootstrap()),
            ("SCHEMA_REGISTRY_URL", self.registry.url()),
            ("EVENTS", CATALOGUE.to_owned()),
            ("EVENT_SOURCE", "/payment-service".to_owned()),
            ("ADMIN_LISTEN", admin.clone()),
        ];
        let spec = Spec {
            name: "request-relay".to_owned(),
            program: binary("outbox-relay")?,
            arguments: vec!["run".to_owned()],
            environment: given.map(|(name, value)| (name.to_owned(), value)).to_vec(),
            ready_url: format!("http://{admin}/readyz"),
        };
        Service::new(&self.home, &self.folder, spec)
    }

    /// The PSP simulator with its default settings. It is not started yet.
    pub(super) fn simulator(&self) -> Result<Service> {
        let listen = format!("127.0.0.1:{}", free_port()?);
        self.service("psp-simulator", &[], &[("LISTEN", listen.clone())], format!("http://{listen}/livez"))
    }

    /// The executor with its default settings, and this PSP. It is not started yet.
    pub(super) fn executor(&self, psp_url: &str) -> Result<Service> {
        let admin = format!("127.0.0.1:{}", free_port()?);
        let given = [
            ("DATABASE_URL", self.database.url("executor")),
            ("KAFKA_BOOTSTRAP", self.bootstrap()),
            ("SCHEMA_REGISTRY_URL", self.registry.url()),
            ("STRIPE_BASE_URL", psp_url.to_owned()),
            ("STRIPE_SECRET_KEY", "sk_test_local".to_owned()),
            ("ADMIN_LISTEN", admin.clone()),
        ];
        self.service("executor", &["run"], &given, format!("http://{admin}/readyz"))
    }

    fn service(
        &self,
        program: &str,
        arguments: &[&str],
        given: &[(&str, String)],
        ready_url: String,
    ) -> Result<Service> {
        let spec = Spec {
            name: program.to_owned(),
            program: binary(program)?,
            arguments: arguments.iter().map(|&argument| argument.to_owned()).collect(),
            environment: given.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect(),
            ready_url,
        };
        Service::new(&self.home, &self.folder, spec)
    }

    /// What the relay makes its producer with, as it says itself.
    pub(super) async fn producer(&self) -> Result<ClientConfig> {
        let arguments = ["run", "--print-producer"];
        let printed = run_once(&binary("outbox-relay")?, &arguments, &self.environment()).await?;
        let settings: std::collections::BTreeMap<String, String> =
            serde_json::from_str(&printed).context("the settings of the relay's producer")?;
        Ok(settings.into_iter().collect())
    }

    fn environment(&self) -> Vec<(String, String)> {
        let given = [
            ("DATABASE_URL", self.database.url("relay")),
            ("KAFKA_BOOTSTRAP", self.bootstrap()),
            ("SCHEMA_REGISTRY_URL", self.registry.url()),
            ("EVENTS", CATALOGUE.to_owned()),
            ("EVENT_SOURCE", "/executor".to_owned()),
            ("RELAY_NAME", RELAY.to_owned()),
        ];
        given.map(|(name, value)| (name.to_owned(), value)).to_vec()
    }
}
