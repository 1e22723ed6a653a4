//! Apache Kafka 4.3: one broker that is its own controller (KRaft), with its data on the disk.

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rustix::process::Signal;
use uuid::Uuid;

use super::download::Parts;
use super::home::Home;
use super::identity::Identity;
use super::java::{self, Classes};
use super::part::Part;
use super::ports::free_port;
use super::records::Owner;

const START_LIMIT: Duration = Duration::from_mins(1);
const STOP_LIMIT: Duration = Duration::from_mins(1);
/// One broker, so nothing is replicated. With the two times at the end a broker that was killed is back after 5 s
/// instead of 15 s: its own old registration has to run out first.
const SETTINGS: &str = "\
process.roles=broker,controller
node.id=1
controller.listener.names=CONTROLLER
inter.broker.listener.name=PLAINTEXT
num.partitions=3
default.replication.factor=1
min.insync.replicas=1
offsets.topic.replication.factor=1
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=4
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
group.initial.rebalance.delay.ms=0
auto.create.topics.enable=false
num.network.threads=2
num.io.threads=4
background.threads=2
log.cleaner.dedupe.buffer.size=16777216
broker.session.timeout.ms=3000
broker.heartbeat.interval.ms=500
";

/// What the way in with a password adds.
const LOCKED_SETTINGS: &str = "\
listener.name.locked.sasl.enabled.mechanisms=SCRAM-SHA-512
listener.name.locked.scram-sha-512.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;
listener.name.locked.ssl.keystore.type=PEM
authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer
super.users=User:ANONYMOUS
allow.everyone.if.no.acl.found=false
";

/// A Kafka broker.
#[derive(Debug)]
pub struct Kafka {
    part: Part,
    class_path: String,
    /// None: a broker for benchmarks, see [`java::sustained`].
    classes: Option<Classes>,
    port: u16,
    doors: Vec<Door>,
    lock: Option<Lock>,
}

/// A further way in, with TLS and a password (SASL/SCRAM). Behind it, everybody may do what an ACL allows; who comes in by the plain one
/// is the administrator.
#[derive(Clone, Debug)]
pub(super) struct Lock {
    /// Where the broker listens for it.
    pub(super) port: u16,
    /// Its key and certificates, PEM.
    pub(super) keystore: PathBuf,
}

/// A further way in, for a client that is to reach the broker through a proxy: whoever comes in here is told to come back by
/// the proxy's port.
#[derive(Clone, Copy, Debug)]
pub struct Door {
    /// Where the broker listens.
    pub port: u16,
    /// Where it says that it listens.
    pub advertised: u16,
}

impl Kafka {
    /// A broker for one test alone, which may crash it. It ends, and its data go, when this value is dropped.
    pub async fn private(hint: &str) -> Result<Kafka> {
        let (home, parts) = Kafka::prepared().await?;
        let folder = home.private_folder(hint)?;
        Kafka::start(&home, &parts, &folder, Owner::own()?, parts.classes("kafka")).await
    }

    /// As [`Kafka::private`], with further ways in.
    pub async fn private_behind(hint: &str, doors: Vec<Door>) -> Result<Kafka> {
        let (home, parts) = Kafka::prepared().await?;
        let folder = home.private_folder(hint)?;
        Kafka::start_with(&home, &parts, &folder, Owner::own()?, Some(parts.classes("kafka")), doors, None)
            .await
    }

    /// As [`Kafka::private`], with a way in that asks for a password.
    pub(super) async fn locked(home: &Home, parts: &Parts, folder: &Path, lock: Lock) -> Result<Kafka> {
        let classes = Some(parts.classes("kafka"));
        Kafka::start_with(home, parts, folder, Owner::own()?, classes, Vec::new(), Some(lock)).await
    }

    /// As [`Kafka::private`], for a benchmark: slower to start, and faster once it is warm.
    pub async fn private_sustained(hint: &str) -> Result<Kafka> {
        let (home, parts) = Kafka::prepared().await?;
        let folder = home.private_folder(hint)?;
        Kafka::start_with(&home, &parts, &folder, Owner::own()?, None, Vec::new(), None).await
    }

    async fn prepared() -> Result<(Home, Parts)> {
        let home = Home::locate()?;
        java::check().await?;
        let parts = Parts::ready(&home).await?;
        Ok((home, parts))
    }

    /// A new broker with its data in the folder.
    pub(super) async fn start(
        home: &Home,
        parts: &Parts,
        folder: &Path,
        owner: Owner,
        classes: Classes,
    ) -> Result<Kafka> {
        Kafka::start_with(home, parts, folder, owner, Some(classes), Vec::new(), None).await
    }

    async fn start_with(
        home: &Home,
        parts: &Parts,
        folder: &Path,
        owner: Owner,
        classes: Option<Classes>,
        doors: Vec<Door>,
        lock: Option<Lock>,
    ) -> Result<Kafka> {
        let part = Part::new(home, "kafka", owner, folder)?;
        let kafka =
            Kafka { part, class_path: parts.kafka_class_path(), classes, port: free_port()?, doors, lock };
        kafka.format()?;
        kafka.launch().await?;
        Ok(kafka)
    }

    pub(super) fn port(&self) -> u16 {
        self.port
    }

    /// `host:port` for clients.
    pub fn bootstrap(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// SIGKILL: the broker is gone at once. What it had acknowledged is in the page cache and survives.
    pub fn kill9(&self) {
        self.part.kill();
    }

    /// Stops answering without closing its connections (SIGSTOP).
    pub fn pause(&self) -> Result<()> {
        self.part.signal(Signal::STOP)
    }

    /// Goes on after [`Kafka::pause`].
    pub fn resume(&self) -> Result<()> {
        self.part.signal(Signal::CONT)
    }

    /// Starts it again on the same port and data; stops it first when it runs.
    pub async fn restart(&self) -> Result<()> {
        if self.part.running().is_some() {
            self.stop().await?;
        }
        self.launch().await
    }

    /// An orderly shutdown.
    pub async fn stop(&self) -> Result<()> {
        self.part.stop(Signal::TERM, STOP_LIMIT).await.map(|_| ())
    }

    /// Its pid, while it runs.
    pub fn pid(&self) -> Result<i32> {
        self.identity().map(|identity| identity.pid)
    }

    /// What it logs.
    pub fn log(&self) -> &Path {
        self.part.log()
    }

    pub(super) fn identity(&self) -> Result<Identity> {
        self.part.identity()
    }

    /// Writes what `kafka-storage format` would, without the two seconds of a JVM of its own: with a static controller the
    /// broker needs nothing but its identity, and starts its metadata at the newest version it knows.
    fn format(&self) -> Result<()> {
        let data = self.part.folder().join("data");
        fs::create_dir_all(&data).with_context(|| format!("create {}", data.display()))?;
        let identity = format!("version=1\ncluster.id={}\nnode.id=1\ndirectory.id={}\n", id(), id());
        fs::write(data.join("meta.properties"), identity).context("write meta.properties")?;
        let (port, controller) = (self.port, free_port()?);
        let mut settings = SETTINGS.to_owned();
        writeln!(settings, "controller.quorum.voters=1@127.0.0.1:{controller}")?;
        let mut protocols = "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT".to_owned();
        let mut listeners = format!("PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}");
        let mut advertised = format!("PLAINTEXT://127.0.0.1:{port}");
        for (number, door) in self.doors.iter().enumerate() {
            write!(protocols, ",DOOR{number}:PLAINTEXT")?;
            write!(listeners, ",DOOR{number}://127.0.0.1:{}", door.port)?;
            write!(advertised, ",DOOR{number}://127.0.0.1:{}", door.advertised)?;
        }
        if let Some(Lock { port, keystore }) = &self.lock {
            write!(protocols, ",LOCKED:SASL_SSL")?;
            write!(listeners, ",LOCKED://127.0.0.1:{port}")?;
            write!(advertised, ",LOCKED://127.0.0.1:{port}")?;
            settings.push_str(LOCKED_SETTINGS);
            writeln!(settings, "listener.name.locked.ssl.keystore.location={}", keystore.display())?;
        }
        writeln!(settings, "listener.security.protocol.map={protocols}")?;
        writeln!(settings, "listeners={listeners}")?;
        writeln!(settings, "advertised.listeners={advertised}")?;
        writeln!(settings, "log.dirs={}", data.display())?;
        fs::write(self.part.folder().join("server.properties"), settings).context("write server.properties")
    }

    async fn launch(&self) -> Result<()> {
        let mut command: Command = match &self.classes {
            Some(classes) => java::command(128, 512, classes),
            None => java::sustained(512, 1_024),
        };
        command.arg("-Dorg.slf4j.simpleLogger.defaultLogLevel=warn").arg("-cp").arg(&self.class_path);
        command
            .arg("kafka.Kafka")
            .arg(self.part.folder().join("server.properties"))
            .current_dir(self.part.folder());
        let bootstrap = self.bootstrap();
        self.part.start(&mut command, START_LIMIT, || answers(&bootstrap)).await
    }
}

impl Drop for Kafka {
    fn drop(&mut self) {
        self.part.end_with_folder();
    }
}

/// Whether a broker answers a request for metadata and counts itself in.
pub(super) async fn answers(bootstrap: &str) -> bool {
    // A client of librdkafka is not cheap and complains of refused connections: knock first.
    if tokio::net::TcpStream::connect(bootstrap).await.is_err() {
        return false;
    }
    let bootstrap = bootstrap.to_owned();
    let asked = tokio::task::spawn_blocking(move || {
        let consumer: BaseConsumer =
            ClientConfig::new().set("bootstrap.servers", bootstrap).set("log_level", "0").create().ok()?;
        let metadata = consumer.fetch_metadata(None, Duration::from_secs(2)).ok()?;
        Some(!metadata.brokers().is_empty())
    });
    matches!(asked.await, Ok(Some(true)))
}

/// 22 characters, as Kafka's own ids: base64 without the two signs that are not letters or digits.
fn id() -> String {
    let hex = Uuid::now_v7().simple().to_string();
    hex[10..].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_what_kafka_takes_for_base64_of_16_bytes() {
        let (first, second) = (id(), id());
        assert_eq!(first.len(), 22);
        assert_ne!(first, second);
    }
}
