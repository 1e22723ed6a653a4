//! The real parts with every lock on: PostgreSQL with TLS and passwords, Kafka with SASL/SCRAM over TLS and ACLs, the registry behind TLS
//! and basic authentication. Roles, users and rights are made by the scripts that operators are given, `migrations/roles.sql` and
//! `security/`.
//!
//! ```text
//! authority -> certificates -> PostgreSQL | Kafka | registry + gate -> roles.sql | kafka.sh users, acls -> settings of every process
//! ```
//!
//! It is a [`Stack`] of its own besides, by doors without a lock that are the administrator's: the testbed looks through these.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, KeyUsagePurpose};
use tokio_rustls::rustls::pki_types::PrivateKeyDer;
use uuid::Uuid;

use super::download::Parts;
use super::gate::{Gate, Keys};
use super::home::Home;
use super::kafka::{Kafka, Lock};
use super::major::Major;
use super::ports::free_port;
use super::postgres::{Postgres, server_user};
use super::records::Owner;
use super::registry::Registry;
use super::{Address, Stack, State, java};

const WORKSPACE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
const SCRIPT_LIMIT: Duration = Duration::from_mins(2);
const DATABASE_ROLES: [&str; 7] =
    ["payment_outbox", "executor", "payment_service", "relay", "operator", "console", "registry"];
const KAFKA_USERS: [&str; 5] = ["payment-service", "executor", "relay-payments", "relay-executor", "setup"];
/// Users of the registry: the one reads, the other registers.
const REGISTRY_READER: &str = "services";
const REGISTRY_WRITER: &str = "setup";

/// The parts with their locks, for one test alone. They end with this value.
#[derive(Debug)]
pub struct Locked {
    stack: Stack,
    postgres: Postgres,
    kafka: Kafka,
    _registry: Registry,
    gate: Gate,
    kafka_port: u16,
    folder: PathBuf,
}

impl Locked {
    /// Starts everything, and has the scripts make roles, users and rights.
    pub async fn start() -> Result<Locked> {
        let home = Home::locate()?;
        java::check().await?;
        let parts = Parts::ready(&home).await?;
        let folder = home.private_folder("locked")?;
        // PostgreSQL's user has to reach its certificate.
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o755))?;
        let server = certificates(&folder)?;
        for user in DATABASE_ROLES.iter().chain(&KAFKA_USERS).chain(&[REGISTRY_READER]) {
            fs::write(folder.join(user), Uuid::new_v4().simple().to_string())?;
        }
        let tools = tools(&folder, &parts)?;
        let kafka_port = free_port()?;
        let lock = Lock { port: kafka_port, keystore: folder.join("kafka.pem") };
        let (postgres, kafka, (registry, gate)) = tokio::try_join!(
            postgres(&home, &parts, &folder),
            async {
                let kafka = Kafka::locked(&home, &parts, &folder.join("broker"), lock).await?;
                // Side by side: each of their commands is a JVM that starts.
                let (users, acls) =
                    (script(&folder, &tools, &kafka, "users"), script(&folder, &tools, &kafka, "acls"));
                tokio::try_join!(users, acls)?;
                anyhow::Ok(kafka)
            },
            async {
                let classes = parts.classes("registry");
                let registry =
                    Registry::start(&home, &parts, &folder.join("schemas"), Owner::own()?, classes).await?;
                let base = registry.url();
                let origin = base.find("/apis").map_or(base.as_str(), |at| &base[..at]);
                let key =
                    |user: &str| anyhow::Ok(format!("{user}:{}", fs::read_to_string(folder.join(user))?));
                let keys = Keys { reader: key(REGISTRY_READER)?, writer: key(REGISTRY_WRITER)? };
                let key = PrivateKeyDer::try_from(server.1.serialize_der()).map_err(anyhow::Error::msg)?;
                let gate = Gate::open(origin, keys, server.0.der().clone(), key).await?;
                anyhow::Ok((registry, gate))
            },
        )?;
        let address = |port, process| Address { port, process };
        let state = State {
            token: Uuid::now_v7().simple().to_string(),
            major: Major::asked_for()?,
            postgres: address(postgres.server().port, postgres.identity()?),
            kafka: address(kafka.port(), kafka.identity()?),
            registry: address(registry.port(), registry.identity()?),
        };
        let stack = Stack { state, folder: folder.clone() };
        Ok(Locked { stack, postgres, kafka, _registry: registry, gate, kafka_port, folder })
    }

    /// The same parts by the administrator's doors.
    pub fn stack(&self) -> &Stack {
        &self.stack
    }

    /// PostgreSQL.
    pub fn postgres(&self) -> &Postgres {
        &self.postgres
    }

    /// The broker.
    pub fn kafka(&self) -> &Kafka {
        &self.kafka
    }

    /// The authority that has signed every server's certificate.
    pub fn authority(&self) -> String {
        self.file("authority.pem")
    }

    /// An authority that has signed nothing.
    pub fn stranger(&self) -> String {
        self.file("stranger.pem")
    }

    /// A file in which a secret stands that is nobody's.
    pub fn wrong_secret(&self) -> Result<String> {
        fs::write(self.folder.join("wrong"), "wrong")?;
        Ok(self.file("wrong"))
    }

    /// A database's URL for a role, in a file; `settings` is what follows the question mark.
    pub fn url_file(&self, role: &str, database: &str, settings: &str) -> Result<String> {
        let password = fs::read_to_string(self.folder.join(role))?;
        let port = self.postgres.server().port;
        let url = format!("postgres://{role}:{password}@127.0.0.1:{port}/{database}?{settings}\n");
        let name = format!("url-{}", Uuid::now_v7().simple());
        fs::write(self.folder.join(&name), url)?;
        Ok(self.file(&name))
    }

    /// What follows the question mark if everything is right.
    pub fn verified(&self) -> String {
        format!("sslmode=verify-full&sslrootcert={}", self.authority())
    }

    /// What a process that talks to Kafka and the registry needs, as a user of either.
    pub fn wires(&self, kafka_user: &str, registry_user: &str) -> Vec<(String, String)> {
        let settings = [
            ("KAFKA_BOOTSTRAP", format!("127.0.0.1:{}", self.kafka_port)),
            ("KAFKA_SECURITY_PROTOCOL", "SASL_SSL".to_owned()),
            ("KAFKA_CA", self.authority()),
            ("KAFKA_USERNAME", kafka_user.to_owned()),
            ("KAFKA_PASSWORD_FILE", self.file(kafka_user)),
            ("SCHEMA_REGISTRY_URL", format!("{}/apis/ccompat/v7", self.gate.url())),
            ("SCHEMA_REGISTRY_CA", self.authority()),
            ("SCHEMA_REGISTRY_USERNAME", registry_user.to_owned()),
            ("SCHEMA_REGISTRY_PASSWORD_FILE", self.file(registry_user)),
        ];
        settings.map(|(name, value)| (name.to_owned(), value)).to_vec()
    }

    /// The environment of every process of a circle on these parts, with every secret in a file: see `Options::environment`.
    pub fn environment(&self) -> Result<Vec<(String, String, String)>> {
        let mut environment = Vec::new();
        let databases = [
            ("migrate-payment-service", "DATABASE_URL_FILE", "payment_outbox", "payments"),
            ("migrate-executor", "DATABASE_URL_FILE", "payment_outbox", "executor"),
            ("token", "DATABASE_URL_FILE", "operator", "payments"),
            ("payment-service", "DATABASE_URL_FILE", "payment_service", "payments"),
            ("payment-service", "CONSOLE_DATABASE_URL_FILE", "console", "payments"),
            ("payment-service", "EXECUTOR_DATABASE_URL_FILE", "console", "executor"),
            ("executor", "DATABASE_URL_FILE", "executor", "executor"),
            ("relay-requests", "DATABASE_URL_FILE", "relay", "payments"),
            ("relay-results", "DATABASE_URL_FILE", "relay", "executor"),
        ];
        for (process, name, role, database) in databases {
            let file = self.url_file(role, database, &self.verified())?;
            environment.push((process.to_owned(), name.to_owned(), file));
        }
        let users = [
            ("setup", "setup", REGISTRY_WRITER),
            ("payment-service", "payment-service", REGISTRY_READER),
            ("executor", "executor", REGISTRY_READER),
            ("relay-requests", "relay-payments", REGISTRY_READER),
            ("relay-results", "relay-executor", REGISTRY_READER),
        ];
        for (process, kafka, registry) in users {
            let wires = self.wires(kafka, registry).into_iter();
            environment.extend(wires.map(|(name, value)| (process.to_owned(), name, value)));
        }
        Ok(environment)
    }

    fn file(&self, name: &str) -> String {
        self.folder.join(name).display().to_string()
    }
}

impl Drop for Locked {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            fs::remove_dir_all(&self.folder).ok();
        }
    }
}

/// Two authorities, and what the one has signed for 127.0.0.1, in the forms that the parts want.
fn certificates(folder: &Path) -> Result<(rcgen::Certificate, KeyPair)> {
    let authority = |name: &str| {
        let mut params = CertificateParams::new(Vec::new())?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.distinguished_name.push(DnType::CommonName, name);
        anyhow::Ok(CertifiedIssuer::self_signed(params, KeyPair::generate()?)?)
    };
    let (ours, stranger) = (authority("authority of the testbed")?, authority("stranger")?);
    fs::write(folder.join("authority.pem"), ours.pem())?;
    fs::write(folder.join("stranger.pem"), stranger.pem())?;
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned(), "localhost".to_owned()])?;
    params.distinguished_name.push(DnType::CommonName, "the real parts");
    let server = params.signed_by(&key, &ours)?;
    fs::write(folder.join("server.pem"), server.pem())?;
    fs::write(folder.join("kafka.pem"), format!("{}{}", key.serialize_pem(), server.pem()))?;
    let secret = folder.join("server.key");
    fs::write(&secret, key.serialize_pem())?;
    // PostgreSQL refuses a key that others can read.
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o600))?;
    if let Some(user) = server_user()? {
        chown(&secret, Some(user.uid), Some(user.gid))?;
    }
    Ok((server, key))
}

/// A server with TLS, whose rules are those of `security/pg_hba.conf`, and whose roles those of `migrations/roles.sql`.
async fn postgres(home: &Home, parts: &Parts, folder: &Path) -> Result<Postgres> {
    let rules =
        fs::read_to_string(format!("{WORKSPACE}/security/pg_hba.conf")).context("read pg_hba.conf")?;
    let hba = folder.join("pg_hba.conf");
    fs::write(&hba, format!("host all postgres 127.0.0.1/32 trust\n{rules}"))?;
    let path = |name: &str| folder.join(name).display().to_string();
    let (certificate, key, hba) = (path("server.pem"), path("server.key"), hba.display().to_string());
    let settings = [
        ("ssl", "on"),
        ("ssl_cert_file", certificate.as_str()),
        ("ssl_key_file", key.as_str()),
        ("hba_file", hba.as_str()),
    ];
    let own = folder.join("server");
    let postgres =
        Postgres::start_without_roles(home, parts, Major::asked_for()?, &own, Owner::own()?, &settings)
            .await?;
    let mut command = tokio::process::Command::new("psql");
    command.args(["--no-psqlrc", "--quiet", "-f"]).arg(format!("{WORKSPACE}/migrations/roles.sql"));
    command.arg(postgres.server().url("postgres", "postgres"));
    for role in DATABASE_ROLES {
        let name = if role == "payment_outbox" { "owner" } else { role };
        let password = fs::read_to_string(folder.join(role))?;
        command.env(format!("{}_PASSWORD", name.to_uppercase()), password);
    }
    run(command, "roles.sql").await?;
    Ok(postgres)
}

/// Kafka's commands under the names that operators know.
fn tools(folder: &Path, parts: &Parts) -> Result<PathBuf> {
    let tools = folder.join("bin");
    fs::create_dir(&tools)?;
    for (name, class) in [
        ("kafka-acls.sh", "org.apache.kafka.tools.AclCommand"),
        ("kafka-configs.sh", "kafka.admin.ConfigCommand"),
    ] {
        let java = "exec java -Xmx256m -XX:+UseSerialGC -XX:-UsePerfData -XX:TieredStopAtLevel=1 -Dorg.slf4j.simpleLogger.defaultLogLevel=error";
        let text = format!("#!/bin/sh\n{java} -cp '{}' {class} \"$@\"\n", parts.kafka_class_path());
        fs::write(tools.join(name), text)?;
        fs::set_permissions(tools.join(name), fs::Permissions::from_mode(0o755))?;
    }
    Ok(tools)
}

async fn script(folder: &Path, tools: &Path, kafka: &Kafka, what: &str) -> Result<()> {
    let mut command = tokio::process::Command::new(format!("{WORKSPACE}/security/kafka.sh"));
    let path = std::env::var("PATH").unwrap_or_default();
    command.arg(what).env("PATH", format!("{}:{path}", tools.display()));
    command.env("KAFKA_BOOTSTRAP", kafka.bootstrap()).env("PASSWORDS", folder);
    run(command, &format!("kafka.sh {what}")).await
}

async fn run(mut command: tokio::process::Command, what: &str) -> Result<()> {
    let running = command.stdin(Stdio::null()).kill_on_drop(true).output();
    let output = tokio::time::timeout(SCRIPT_LIMIT, running)
        .await
        .with_context(|| format!("{what} has not ended within {SCRIPT_LIMIT:?}"))?
        .with_context(|| format!("start {what}"))?;
    if !output.status.success() {
        let said = [output.stdout, output.stderr].concat();
        bail!("{what} failed ({})\n{}", output.status, String::from_utf8_lossy(&said));
    }
    Ok(())
}
