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

    pub(super) fn simulator(&self, port: u16) -> Result<Service> {
        let listen = format!("127.0.0.1:{port}");
        let given = [("LISTEN", listen.clone()), ("SLOW", SLOW.to_owned())];
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

    /// The executor of this seat, counted from 0.
    pub(super) fn executor(&self, seat: usize, [database, broker, psp]: [&Proxy; 3]) -> Result<Service> {
        let admin = format!("127.0.0.1:{}", free_port()?);
        let name = format!("executor-{}", seat + 1);
        let milliseconds = |time: Duration| format!("{}ms", time.as_millis());
        let given = [
            ("DATABASE_URL", Server { port: database.port() }.url("executor", &self.database.name)),
            ("KAFKA_BOOTSTRAP", format!("127.0.0.1:{}", broker.port())),
            ("KAFKA_PROPERTIES", format!("group.instance.id={name}")),
            ("SCHEMA_REGISTRY_URL", self.registry.url()),
            ("STRIPE_BASE_URL", format!("http://127.0.0.1:{}", psp.port())),
            ("STRIPE_SECRET_KEY", "sk_test_local".to_owned()),
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
