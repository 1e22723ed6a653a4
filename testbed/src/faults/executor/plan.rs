//! The processes of the family: how each is started.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use super::rig::SEATS;
use crate::processes::{Service, Spec, binary, run_once};
use crate::proxy::Proxy;
use crate::stack::home::Home;
use crate::stack::{Kafka, OWNER, Registry, Server, TestDatabase, free_port};

const CATALOGUE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../schema/events.toml");
/// How long the executor of a seat waits for the PSP, and how long its claims last, by the number of the seat. Short, so that an episode
/// is short; the last one has the time to try again in the same process, which no try begins with less than a second for.
pub(super) const PSP_TIMEOUT: [Duration; SEATS] =
    [Duration::from_millis(500), Duration::from_millis(500), Duration::from_secs(3)];
pub(super) const LEASE: [Duration; SEATS] =
    [Duration::from_millis(1_600), Duration::from_millis(1_600), Duration::from_millis(4_100)];
/// How long the simulator takes over its slow tokens.
const SLOW: &str = "300ms";
/// What Adyen's webhooks are signed and sent with.
const ADYEN_HMAC_KEY: &str = "44782DEF547AAA06C910C43932B1EB0C71FC68D9D0C057550C48EC2ACF6BA056";
const ADYEN_USER: &str = "adyen";
const ADYEN_PASSWORD: &str = "local-password";
const LADDER: &str = "300ms,500ms,1s,1s,2s,2s,5s,5s,10s,30s,60s";

/// What the processes are made from.
pub(super) struct Plan<'a> {
    pub(super) home: &'a Home,
    pub(super) folder: &'a Path,
    pub(super) database: &'a TestDatabase,
    pub(super) kafka: &'a Kafka,
    pub(super) registry: &'a Registry,
}

impl Plan<'_> {
    pub(super) async fn set_up(&self) -> Result<()> {
        fs::create_dir_all(self.folder).context("create the folder of the logs")?;
        let owner = [("DATABASE_URL".to_owned(), self.database.url(OWNER))];
        let setup = [
            ("KAFKA_BOOTSTRAP".to_owned(), self.kafka.bootstrap()),
            ("SCHEMA_REGISTRY_URL".to_owned(), self.registry.url()),
            ("EVENTS".to_owned(), CATALOGUE.to_owned()),
        ];
        let (relay, executor) = (binary("outbox-relay")?, binary("executor")?);
        let outbox = ["migrate", "--writer", "executor", "--relay", "relay", "--reader", "operator"];
        tokio::try_join!(run_once(&relay, &outbox, &owner), run_once(&relay, &["setup"], &setup))?;
        run_once(&executor, &["migrate", "--service", "executor", "--reader", "operator"], &owner).await?;
        Ok(())
    }

    /// It tells what became of payments at Adyen, where nobody can ask; Stripe tells nothing here, so that asking alone has to do there.
    /// What is not taken is told again, for longer than any executor is away.
    pub(super) fn simulator(&self, port: u16, webhooks: u16) -> Result<Service> {
        let listen = format!("127.0.0.1:{port}");
        let given = [
            ("LISTEN", listen.clone()),
            ("SLOW", SLOW.to_owned()),
            ("ADYEN_WEBHOOK_URL", format!("http://127.0.0.1:{webhooks}/webhooks/adyen")),
            ("ADYEN_WEBHOOK_HMAC_KEY", ADYEN_HMAC_KEY.to_owned()),
            ("ADYEN_WEBHOOK_USER", ADYEN_USER.to_owned()),
            ("ADYEN_WEBHOOK_PASSWORD", ADYEN_PASSWORD.to_owned()),
            ("WEBHOOK_BACKOFF", "200ms".to_owned()),
            ("WEBHOOK_BACKOFF_MAX", "2s".to_owned()),
            ("WEBHOOK_ATTEMPTS", "60".to_owned()),
        ];
        self.service("psp-simulator", binary("psp-simulator")?, &[], &given, format!("http://{listen}/livez"))
    }

    pub(super) fn relay(&self) -> Result<Service> {
        let admin = format!("127.0.0.1:{}", free_port()?);
        let given = [
            ("DATABASE_URL", self.database.url("relay")),
            ("KAFKA_BOOTSTRAP", self.kafka.bootstrap()),
            ("SCHEMA_REGISTRY_URL", self.registry.url()),
            ("EVENTS", CATALOGUE.to_owned()),
            ("EVENT_SOURCE", "/executor".to_owned()),
            ("ADMIN_LISTEN", admin.clone()),
        ];
        self.service("relay", binary("outbox-relay")?, &["run"], &given, format!("http://{admin}/readyz"))
    }

    /// The executor of this seat, counted from 0. With a port for webhooks it receives them; all of them work them off.
    pub(super) fn executor(
        &self,
        seat: usize,
        [database, broker, psp]: [&Proxy; 3],
        webhooks: Option<u16>,
    ) -> Result<Service> {
        let admin = format!("127.0.0.1:{}", free_port()?);
        let name = format!("executor-{}", seat + 1);
        let milliseconds = |time: Duration| format!("{}ms", time.as_millis());
        let mut given = vec![
            ("DATABASE_URL", Server { port: database.port() }.url("executor", &self.database.name)),
            ("KAFKA_BOOTSTRAP", format!("127.0.0.1:{}", broker.port())),
            ("KAFKA_PROPERTIES", format!("group.instance.id={name}")),
            ("SCHEMA_REGISTRY_URL", self.registry.url()),
            ("STRIPE_BASE_URL", format!("http://127.0.0.1:{}", psp.port())),
            ("STRIPE_SECRET_KEY", "sk_test_local".to_owned()),
            ("ADYEN_BASE_URL", format!("http://127.0.0.1:{}/v71", psp.port())),
            ("ADYEN_API_KEY", "local".to_owned()),
            ("ADYEN_MERCHANT_ACCOUNT", "LocalMerchant".to_owned()),
            ("PSP_TIMEOUT", milliseconds(PSP_TIMEOUT[seat])),
            ("LEASE", milliseconds(LEASE[seat])),
            ("RESOLVE_AFTER", "200ms".to_owned()),
            ("RESOLVE_THEN", LADDER.to_owned()),
            ("CONCURRENCY", "16".to_owned()),
            // Faults are short here: so are the pauses after them.
            ("BREAKER_PAUSE", "200ms".to_owned()),
            ("DATABASE_POOL_SIZE", "4".to_owned()),
            ("ADMIN_LISTEN", admin.clone()),
        ];
        if let Some(port) = webhooks {
            given.push(("WEBHOOKS_LISTEN", format!("127.0.0.1:{port}")));
            given.push(("ADYEN_HMAC_KEYS", ADYEN_HMAC_KEY.to_owned()));
            given.push(("ADYEN_WEBHOOK_AUTH", format!("{ADYEN_USER}:{ADYEN_PASSWORD}")));
        }
        self.service(&name, binary("executor")?, &["run"], &given, format!("http://{admin}/readyz"))
    }

    fn service(
        &self,
        name: &str,
        program: PathBuf,
        arguments: &[&str],
        given: &[(&str, String)],
        ready_url: String,
    ) -> Result<Service> {
        let spec = Spec {
            name: name.to_owned(),
            program,
            arguments: arguments.iter().map(|&argument| argument.to_owned()).collect(),
            environment: given.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect(),
            ready_url,
        };
        Service::new(self.home, self.folder, spec)
    }
}
