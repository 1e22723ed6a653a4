//! An outbox of its own, a topic of its own, and relays between them.

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use chassis::shutdown::Shutdown;
use clap::Parser;
use outbox_relay::config::{Command, MigrateConfig, RunConfig, SetupConfig};
use rdkafka::{
    ClientConfig, Message as _, Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer as _},
    message::{BorrowedHeaders, Headers as _},
};
use sqlx::{Connection as _, PgConnection};
use testbed::{
    processes::{Service, Spec, binary, run_once},
    stack::{Stack, TestDatabase, free_port, home::Home},
};

/// An event that the relay knows only from its catalogue.
pub(crate) use testbed::workload::SCHEMA;

pub(crate) struct Rig {
    pub(crate) stack: Stack,
    pub(crate) database: TestDatabase,
    pub(crate) topic: String,
    pub(crate) folder: PathBuf,
}

#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

/// The command line as an operator would type it.
pub(crate) fn parse(arguments: &[&str]) -> anyhow::Result<Command> {
    Ok(Arguments::try_parse_from([&["outbox-relay"], arguments].concat())?.command)
}

impl Rig {
    /// An empty outbox, migrated, with its grants; topic and schema set up.
    pub(crate) async fn new(hint: &str) -> anyhow::Result<Self> {
        let rig = Self::without_topic(hint).await?;
        rig.setup().await?;
        Ok(rig)
    }

    pub(crate) async fn without_topic(hint: &str) -> anyhow::Result<Self> {
        let stack = Stack::get().await?;
        let database = stack.database(hint).await?;
        let topic = stack.unique(hint);
        let folder = std::env::temp_dir().join(stack.unique("relay-test"));
        std::fs::create_dir_all(&folder)?;
        std::fs::write(folder.join("stepped.avsc"), SCHEMA)?;
        std::fs::write(
            folder.join("events.toml"),
            format!(
                "[topics.{topic}]\npartitions = 3\nretention = \"30d\"\n[events.Stepped]\ntopic = \"{topic}\"\nschema = \"stepped.avsc\"\n"
            ),
        )?;
        let rig = Self { stack, database, topic, folder };
        rig.migrate().await?;
        Ok(rig)
    }

    pub(crate) async fn migrate(&self) -> anyhow::Result<()> {
        migrate(&self.database).await
    }

    pub(crate) fn events(&self) -> PathBuf {
        self.folder.join("events.toml")
    }

    pub(crate) async fn setup(&self) -> anyhow::Result<()> {
        outbox_relay::commands::setup(&self.setup_config()?).await
    }

    pub(crate) fn setup_config(&self) -> anyhow::Result<SetupConfig> {
        let events = self.events();
        let (bootstrap, registry) = (self.stack.kafka_bootstrap(), self.stack.registry_url());
        let arguments = [
            "setup",
            "--kafka-bootstrap",
            bootstrap.as_ref(),
            "--schema-registry-url",
            registry.as_ref(),
            "--events",
            text(&events)?,
        ];
        match parse(&arguments)? {
            Command::Setup(config) => Ok(config),
            other => anyhow::bail!("not setup: {other:?}"),
        }
    }

    pub(crate) fn run_config(&self) -> anyhow::Result<RunConfig> {
        let events = self.events();
        let (bootstrap, registry) = (self.stack.kafka_bootstrap(), self.stack.registry_url());
        let url = self.database.url("relay");
        let arguments = [
            "run",
            "--database-url",
            url.as_ref(),
            "--kafka-bootstrap",
            bootstrap.as_ref(),
            "--schema-registry-url",
            registry.as_ref(),
            "--events",
            text(&events)?,
            "--source",
            "/test",
        ];
        match parse(&arguments)? {
            Command::Run(config) => Ok(*config),
            other => anyhow::bail!("not run: {other:?}"),
        }
    }

    /// Who saves, for tests that save as a relay does.
    pub(crate) async fn signature(&self, relay: &str) -> anyhow::Result<outbox_relay::store::Signature> {
        let mut connection = self.connect("relay").await?;
        Ok(outbox_relay::store::Signature {
            relay: relay.to_owned(),
            leader: "test:1".to_owned(),
            token: uuid::Uuid::now_v7(),
            server: outbox_relay::store::server_identity(&mut connection).await?,
        })
    }

    /// Starts a relay in this process.
    pub(crate) fn relay(config: RunConfig) -> RunningRelay {
        let shutdown = Shutdown::new();
        let task = tokio::spawn(outbox_relay::run(config, shutdown.clone()));
        RunningRelay { shutdown, task }
    }

    pub(crate) async fn connect(&self, role: &str) -> anyhow::Result<PgConnection> {
        Ok(PgConnection::connect(self.database.url(role).as_ref()).await?)
    }

    /// Appends one event as the service would.
    pub(crate) async fn append(
        &self,
        connection: &mut PgConnection,
        key: &str,
        step: i64,
    ) -> anyhow::Result<i64> {
        Ok(sqlx::query_scalar(
            "SELECT outbox.append('Stepped', $1, json_build_object('key', $1, 'step', $2))",
        )
        .bind(key)
        .bind(step)
        .fetch_one(connection)
        .await?)
    }

    /// Waits until nothing is pending.
    pub(crate) async fn drained(&self, limit: Duration) -> anyhow::Result<()> {
        let mut connection = self.connect("operator").await?;
        eventually(limit, "the outbox is drained", async || {
            Ok(sqlx::query_scalar::<_, i64>("SELECT count(*) FROM outbox.pending")
                .fetch_one(&mut connection)
                .await?
                == 0)
        })
        .await
    }

    /// Everything on the topic, in the order of each partition.
    pub(crate) async fn records(&self) -> anyhow::Result<Vec<Record>> {
        self.records_of(&self.topic).await
    }

    pub(crate) async fn records_of(&self, topic: &str) -> anyhow::Result<Vec<Record>> {
        let (bootstrap, topic) = (self.stack.kafka_bootstrap(), topic.to_owned());
        tokio::task::spawn_blocking(move || read_topic(&bootstrap, &topic)).await?
    }
}

/// Makes an outbox in a database, and grants its use.
pub(crate) async fn migrate(database: &TestDatabase) -> anyhow::Result<()> {
    outbox_relay::commands::migrate(&MigrateConfig {
        database_url: Some(database.url("payment_outbox").into()),
        writers: vec!["executor".to_owned()],
        relays: vec!["relay".to_owned()],
        readers: Vec::new(),
        operators: vec!["operator".to_owned()],
        print: false,
    })
    .await
}

impl Drop for Rig {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.folder));
    }
}

pub(crate) struct RunningRelay {
    pub(crate) shutdown: Shutdown,
    pub(crate) task: tokio::task::JoinHandle<anyhow::Result<()>>,
}

impl RunningRelay {
    pub(crate) async fn stop(self) -> anyhow::Result<()> {
        self.shutdown.request();
        let result = tokio::time::timeout(Duration::from_secs(20), self.task)
            .await
            .context("the relay did not stop")?;
        ensure!(self.shutdown.finished(Duration::from_secs(5)).await, "tasks of the relay were left");
        result?
    }
}

/// A record of the topic.
#[derive(Clone, Debug)]
pub(crate) struct Record {
    pub(crate) key: String,
    pub(crate) value: Vec<u8>,
    pub(crate) headers: Vec<(String, String)>,
}

impl Record {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

fn read_topic(bootstrap: &str, topic: &str) -> anyhow::Result<Vec<Record>> {
    let limit = Duration::from_secs(20);
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", bootstrap)
        .set("group.id", "none")
        .set("enable.auto.commit", "false")
        .set("enable.partition.eof", "true")
        .create()?;
    let metadata = consumer.fetch_metadata(Some(topic), limit)?;
    let mut assignment = TopicPartitionList::new();
    let mut left = 0;
    for partition in metadata.topics().iter().flat_map(rdkafka::metadata::MetadataTopic::partitions) {
        assignment.add_partition_offset(topic, partition.id(), Offset::Beginning)?;
        left += 1;
    }
    consumer.assign(&assignment)?;
    let (mut records, deadline) = (Vec::new(), Instant::now() + limit);
    while left > 0 {
        ensure!(Instant::now() < deadline, "topic {topic} could not be read to its end");
        match consumer.poll(Duration::from_millis(200)) {
            None => {}
            Some(Err(rdkafka::error::KafkaError::PartitionEOF(_))) => left -= 1,
            Some(Err(error)) => return Err(error.into()),
            Some(Ok(message)) => records.push(Record {
                key: String::from_utf8(message.key().unwrap_or_default().to_vec())?,
                value: message.payload().unwrap_or_default().to_vec(),
                headers: message.headers().map(headers).unwrap_or_default(),
            }),
        }
    }
    Ok(records)
}

fn headers(headers: &BorrowedHeaders) -> Vec<(String, String)> {
    let text = |value: Option<&[u8]>| String::from_utf8_lossy(value.unwrap_or_default()).into_owned();
    headers.iter().map(|header| (header.key.to_owned(), text(header.value))).collect()
}

/// Asks again until the answer is yes.
pub(crate) async fn eventually(
    limit: Duration,
    what: &str,
    mut condition: impl AsyncFnMut() -> anyhow::Result<bool>,
) -> anyhow::Result<()> {
    let deadline = Instant::now() + limit;
    while !condition().await? {
        ensure!(Instant::now() < deadline, "not within {limit:?}: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

fn text(path: &Path) -> anyhow::Result<&str> {
    path.to_str().context("a path that is not text")
}

/// The built binary, as an operator starts it.
pub(crate) struct Operator<'a> {
    rig: &'a Rig,
    environment: Vec<(String, String)>,
}

impl<'a> Operator<'a> {
    /// With further environment.
    pub(crate) fn new(rig: &'a Rig, own: &[(&str, &str)]) -> Self {
        let environment = [
            ("KAFKA_BOOTSTRAP", rig.stack.kafka_bootstrap()),
            ("SCHEMA_REGISTRY_URL", rig.stack.registry_url()),
            ("EVENTS", rig.events().display().to_string()),
            ("EVENT_SOURCE", "/test".to_owned()),
            ("DATABASE_URL", rig.database.url("relay")),
        ];
        let own = own.iter().map(|(name, value)| (*name, (*value).to_owned()));
        let all = environment.into_iter().filter(|(name, _)| !own.clone().any(|(other, _)| other == *name));
        let environment = all.chain(own.clone()).map(|(name, value)| (name.to_owned(), value)).collect();
        Self { rig, environment }
    }

    pub(crate) async fn setup(&self) -> anyhow::Result<()> {
        run_once(&binary("outbox-relay")?, &["setup"], &self.environment).await?;
        Ok(())
    }

    /// A subcommand, as the role `operator`; returns what it printed.
    pub(crate) async fn ask(&self, arguments: &[&str]) -> anyhow::Result<serde_json::Value> {
        self.ask_as("operator", arguments).await
    }

    pub(crate) async fn ask_as(&self, role: &str, arguments: &[&str]) -> anyhow::Result<serde_json::Value> {
        let mut environment = self.environment.clone();
        environment.retain(|(name, _)| name != "DATABASE_URL");
        environment.push(("DATABASE_URL".to_owned(), self.rig.database.url(role)));
        let printed =
            run_once(&binary("outbox-relay")?, &[arguments, &["--json"]].concat(), &environment).await?;
        serde_json::from_str(printed.lines().last().unwrap_or_default()).with_context(|| printed.clone())
    }

    pub(crate) fn relay(&self, name: &str) -> anyhow::Result<Service> {
        self.relay_of(&binary("outbox-relay")?, name)
    }

    /// Another version's, perhaps.
    pub(crate) fn relay_of(&self, program: &Path, name: &str) -> anyhow::Result<Service> {
        let admin = format!("127.0.0.1:{}", free_port()?);
        let mut environment = self.environment.clone();
        environment.push(("ADMIN_LISTEN".to_owned(), admin.clone()));
        let spec = Spec {
            name: name.to_owned(),
            program: program.to_owned(),
            arguments: vec!["run".to_owned()],
            environment,
            ready_url: format!("http://{admin}/readyz"),
        };
        Service::new(&Home::locate()?, &self.rig.folder, spec)
    }
}
