//! The real parts, natively: PostgreSQL 18 (or 15), Kafka 4.3 and Apicurio Registry 2.6 on free ports of loopback.
//!
//! ```text
//! download (Maven, once) -> PostgreSQL | Kafka | registry, started side by side -> state.json -> everyone attaches
//! ```
//!
//! There is one shared stack per folder (see [`home`]). [`Stack::get`] attaches to it or starts it; whoever starts it
//! leaves it running, so that every test binary and process uses the same one, until [`Stack::down`]. It begins with
//! empty data every time. A test that wants to crash a part starts a [`Postgres`], [`Kafka`] or [`Registry`] of its own.
//! A stack that runs with another PostgreSQL than the one asked for is left alone: whoever asks is refused.
//!
//! If the starter dies half-way there is no state.json: the next one finds the records of what was started, ends it,
//! and begins anew.

mod connect;
mod daemon;
mod databases;
mod download;
mod gate;
pub mod home;
mod identity;
mod java;
mod kafka;
mod locked;
mod major;
mod part;
mod ports;
mod postgres;
mod records;
mod registry;
mod standby;

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use tokio::sync::OnceCell;
use uuid::Uuid;

pub use connect::Connect;
pub use daemon::tail;
pub use databases::{OWNER, ROLES, Server, TestDatabase};
pub use identity::Identity;
pub use kafka::{Door, Kafka};
pub use locked::Locked;
pub use major::{Major, VERSION_VARIABLE};
pub(crate) use part::Part;
pub use ports::free_port;
pub use postgres::Postgres;
pub use records::Owner;
pub use registry::Registry;

use download::{Parts, say};
use home::{HOME_VARIABLE, Home};

/// A download and a start by someone else have room in it.
const LOCK_LIMIT: Duration = Duration::from_mins(65);
/// A part whose process lives may be slow to answer under load: it is not given up, and not restarted, before this.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);

/// A running stack. It is only addresses: it may be cloned, and dropping it stops nothing.
#[derive(Clone, Debug)]
pub struct Stack {
    state: State,
    folder: PathBuf,
}

/// What `state.json` says: enough to find the parts, and to tell them from strangers on the same ports.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct State {
    /// One per start.
    token: String,
    /// Of the PostgreSQL that runs.
    major: Major,
    postgres: Address,
    kafka: Address,
    registry: Address,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Address {
    port: u16,
    process: Identity,
}

impl Stack {
    /// The shared stack, for tests: attached to, or started and left running. Once per process.
    pub async fn get() -> Result<Stack> {
        static STACK: OnceCell<Stack> = OnceCell::const_new();
        let stack = STACK.get_or_try_init(|| async { Ok::<_, anyhow::Error>(Stack::up().await?.0) }).await?;
        Ok(stack.clone())
    }

    /// The shared stack, and whether it had to be started.
    pub async fn up() -> Result<(Stack, bool)> {
        let home = Home::locate()?;
        let _lock = home.lock("stack", LOCK_LIMIT).await?;
        let major = Major::asked_for()?;
        if let Some(stack) = Stack::attach(&home).await? {
            stack.require(major)?;
            records::sweep(&home, false)?;
            stack.server().drop_spent().await?;
            return Ok((stack, false));
        }
        records::sweep(&home, true)?;
        Ok((Stack::start(&home, major).await?, true))
    }

    /// A stack of parts that are somebody's own, to be crashed. They end as they would without it.
    pub fn of(postgres: &Postgres, kafka: &Kafka, registry: &Registry) -> Result<Stack> {
        let state = State::of(Major::asked_for()?, postgres, kafka, registry)?;
        Ok(Stack { state, folder: PathBuf::new() })
    }

    /// The shared stack if it runs.
    pub async fn running() -> Result<Option<Stack>> {
        Stack::attach(&Home::locate()?).await
    }

    /// Ends the shared stack and everything whose owner is gone; says what was ended.
    pub async fn down() -> Result<Vec<String>> {
        let home = Home::locate()?;
        let _lock = home.lock("stack", LOCK_LIMIT).await?;
        fs::remove_file(home.stack().join("state.json")).ok();
        let ended = records::sweep(&home, true)?;
        // The logs stay, for whoever wants to know what went wrong.
        let servers = Major::ALL.map(|major| format!("{}/data", postgres_folder(major)));
        for data in servers.iter().map(String::as_str).chain(["kafka/data", "registry/h2.mv.db"]) {
            let path = home.stack().join(data);
            if path.is_dir() {
                fs::remove_dir_all(path).ok()
            } else {
                fs::remove_file(path).ok()
            };
        }
        Ok(ended)
    }

    /// The major version of its PostgreSQL.
    pub fn major(&self) -> Major {
        self.state.major
    }

    /// PostgreSQL.
    pub fn server(&self) -> Server {
        Server { port: self.state.postgres.port }
    }

    /// The URL of a database for a role.
    pub fn postgres_url(&self, role: &str, database: &str) -> String {
        self.server().url(role, database)
    }

    /// A new database for one test, owned by the role [`OWNER`].
    pub async fn database(&self, hint: &str) -> Result<TestDatabase> {
        self.server().database(hint).await
    }

    /// `host:port` of the broker.
    pub fn kafka_bootstrap(&self) -> String {
        format!("127.0.0.1:{}", self.state.kafka.port)
    }

    /// The base of the registry's Confluent API.
    pub fn registry_url(&self) -> String {
        registry::url(self.state.registry.port)
    }

    /// A word that nobody else uses: for topics, subjects and consumer groups of one test.
    pub fn unique(&self, hint: &str) -> String {
        let random = Uuid::now_v7().simple().to_string();
        format!("{hint}-{}", &random[20..])
    }

    /// Where the logs of the parts are.
    pub fn folder(&self) -> &std::path::Path {
        &self.folder
    }

    /// Name, pid and address of every part.
    pub fn parts(&self) -> [(&'static str, i32, String); 3] {
        let State { postgres, kafka, registry, .. } = &self.state;
        [
            ("PostgreSQL", postgres.process.pid, format!("127.0.0.1:{}", postgres.port)),
            ("Kafka", kafka.process.pid, self.kafka_bootstrap()),
            ("registry", registry.process.pid, self.registry_url()),
        ]
    }

    /// Name and pid of every process of the testbed that runs, whoever started it.
    pub fn processes() -> Result<Vec<(String, i32)>> {
        records::running(&Home::locate()?)
    }

    /// Someone else may be using it: it is not ended for the sake of another version.
    fn require(&self, major: Major) -> Result<()> {
        let running = self.state.major;
        if running != major {
            bail!(
                "the stack that runs has PostgreSQL {running}, and {major} is asked for: end it first with `make stop`, \
                 or name a folder for another one in {HOME_VARIABLE} ({VERSION_VARIABLE} or `make test PG=...` says which version)"
            );
        }
        Ok(())
    }

    /// Reads the state and makes sure that it is true.
    async fn attach(home: &Home) -> Result<Option<Stack>> {
        let Some(state) = State::read(&home.stack().join("state.json")) else { return Ok(None) };
        let stack = Stack { state, folder: home.stack() };
        let begun = Instant::now();
        while stack.lives() {
            if stack.answers().await {
                return Ok(Some(stack));
            }
            if begun.elapsed() > ANSWER_LIMIT {
                say("the stack runs but does not answer; starting a new one");
                return Ok(None);
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        Ok(None)
    }

    /// Whether all its processes still run.
    pub fn lives(&self) -> bool {
        [self.state.postgres, self.state.kafka, self.state.registry].iter().all(|part| part.process.alive())
    }

    async fn answers(&self) -> bool {
        let (bootstrap, url) = (self.kafka_bootstrap(), self.registry_url());
        let (postgres, kafka, registry) = tokio::join!(
            self.server().answers(),
            tokio::net::TcpStream::connect(bootstrap),
            registry::answers(&url)
        );
        postgres && kafka.is_ok() && registry
    }

    async fn start(home: &Home, major: Major) -> Result<Stack> {
        java::check().await?;
        let parts = Parts::ready(home).await?;
        let begun = Instant::now();
        let folder = home.stack();
        fs::remove_dir_all(&folder)
            .and_then(|()| fs::create_dir_all(&folder))
            .context("empty the stack's folder")?;
        say(&format!("starting PostgreSQL {major}, Kafka and the schema registry"));
        let folders = [postgres_folder(major).as_str(), "kafka", "registry"].map(|part| folder.join(part));
        let mut unfinished = Unfinished { home, complete: false };
        let started = tokio::try_join!(
            Postgres::start(home, &parts, major, &folders[0], Owner::Stack, &[]),
            Kafka::start(home, &parts, &folders[1], Owner::Stack, parts.classes("kafka")),
            Registry::start(home, &parts, &folders[2], Owner::Stack, parts.classes("registry")),
        );
        let (postgres, kafka, registry) = started.context("start the stack")?;
        let state = State::of(major, &postgres, &kafka, &registry)?;
        state.write(&folder.join("state.json"))?;
        unfinished.complete = true;
        say(&format!("ready after {:.1} s", begun.elapsed().as_secs_f64()));
        Ok(Stack { state, folder })
    }
}

/// One per version: a server is never started on another's data.
fn postgres_folder(major: Major) -> String {
    format!("postgres-{major}")
}

/// A start that fails, or that nobody waits for any more, takes back what it has started.
struct Unfinished<'a> {
    home: &'a Home,
    complete: bool,
}

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        if !self.complete && records::sweep(self.home, true).is_err() {
            say("a part of the stack may still run; `testbed down` ends it");
        }
    }
}

impl State {
    fn of(major: Major, postgres: &Postgres, kafka: &Kafka, registry: &Registry) -> Result<State> {
        Ok(State {
            token: Uuid::now_v7().simple().to_string(),
            major,
            postgres: Address { port: postgres.server().port, process: postgres.identity()? },
            kafka: Address { port: kafka.port(), process: kafka.identity()? },
            registry: Address { port: registry.port(), process: registry.identity()? },
        })
    }

    /// Nothing, and anything that is not whole, is no stack.
    fn read(path: &std::path::Path) -> Option<State> {
        serde_json::from_slice(&fs::read(path).ok()?).ok()
    }

    fn write(&self, path: &std::path::Path) -> Result<()> {
        let partial = path.with_extension("partial");
        fs::write(&partial, serde_json::to_vec_pretty(self).context("encode the state")?)
            .context("write the state")?;
        if State::read(&partial).as_ref() != Some(self) {
            bail!("the state in {} does not read back", partial.display());
        }
        fs::rename(&partial, path).context("publish the state")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state() -> State {
        let address = Address { port: 1, process: Identity { pid: 2, started_ticks: 3 } };
        let major = Major::NEWEST;
        State { token: "t".to_owned(), major, postgres: address, kafka: address, registry: address }
    }

    #[test]
    fn a_state_reads_back_and_a_broken_one_is_none() {
        let folder = std::env::temp_dir().join(format!("testbed-state-{}", Uuid::now_v7()));
        fs::create_dir(&folder).unwrap();
        let path = folder.join("state.json");
        assert_eq!(State::read(&path), None);
        state().write(&path).unwrap();
        assert_eq!(State::read(&path), Some(state()));
        let whole = fs::read(&path).unwrap();
        fs::write(&path, &whole[..whole.len() - 3]).unwrap();
        assert_eq!(State::read(&path), None);
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn a_stack_with_another_postgresql_is_refused_with_a_way_out() {
        let stack = Stack { state: state(), folder: PathBuf::new() };
        stack.require(Major::NEWEST).unwrap();
        let error = stack.require(Major::ALL[0]).unwrap_err().to_string();
        for word in ["PostgreSQL 18", "15 is asked for", "make stop", HOME_VARIABLE] {
            assert!(error.contains(word), "{word}: {error}");
        }
    }

    #[test]
    fn a_state_of_dead_processes_does_not_live() {
        let mut state = state();
        let own = Identity::own().unwrap();
        let stack = |state: &State| Stack { state: state.clone(), folder: PathBuf::new() };
        for address in [&mut state.postgres, &mut state.kafka, &mut state.registry] {
            address.process = own;
        }
        assert!(stack(&state).lives());
        // The same pid, but a process that was started at another time: a stranger.
        state.kafka.process.started_ticks += 1;
        assert!(!stack(&state).lives());
    }
}
