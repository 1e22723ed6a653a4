//! The processes of the family: how each is started.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use crate::processes::{Service, Spec, binary, run_once};
use crate::proxy::Proxy;
use crate::stack::home::Home;
use crate::stack::{Kafka, OWNER, Registry, Server, TestDatabase, free_port};

const CATALOGUE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../schema/events.toml");
/// Small, so that what is under way is several batches.
const BATCH_MAX: &str = "40";

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
        let (relay, service) = (binary("outbox-relay")?, binary("payment-service")?);
        let outbox = ["migrate", "--writer", "payment_service", "--relay", "relay", "--reader", "operator"];
        tokio::try_join!(run_once(&relay, &outbox, &owner), run_once(&relay, &["setup"], &setup))?;
        run_once(&service, &["migrate", "--service", "payment_service", "--reader", "operator"], &owner)
            .await?;
        Ok(())
    }

    /// The instance of this seat, counted from 0. A `member` has a name in the group, and its partitions at once when it comes back.
    pub(super) fn instance(
        &self,
        seat: usize,
        member: bool,
        [database, broker]: [&Proxy; 2],
    ) -> Result<Service> {
        let admin = format!("127.0.0.1:{}", free_port()?);
        let name = format!("payment-service-{}", seat + 1);
        let mut environment = vec![
            ("DATABASE_URL", Server { port: database.port() }.url("payment_service", &self.database.name)),
            ("DATABASE_POOL_SIZE", "1".to_owned()),
            ("KAFKA_BOOTSTRAP", format!("127.0.0.1:{}", broker.port())),
            ("SCHEMA_REGISTRY_URL", self.registry.url()),
            ("LISTEN", format!("127.0.0.1:{}", free_port()?)),
            ("BATCH_MAX", BATCH_MAX.to_owned()),
            ("ORPHAN_RETRY", "300ms".to_owned()),
            ("ADMIN_LISTEN", admin.clone()),
        ];
        if member {
            environment.push(("CONSUMER_INSTANCE", name.clone()));
        }
        let spec = Spec {
            name,
            program: binary("payment-service")?,
            arguments: vec!["run".to_owned()],
            environment: environment.into_iter().map(|(name, value)| (name.to_owned(), value)).collect(),
            ready_url: format!("http://{admin}/readyz"),
        };
        Service::new(self.home, self.folder, spec)
    }
}
