//! Kafka Connect 4.3 with Debezium's PostgreSQL connector 3.6: what the relay is compared with.
//!
//! Downloaded by Maven from `peer-pom.xml`, only when asked for. One standalone worker, its own offsets in a file, driven over its REST
//! interface.

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use reqwest::Method;
use rustix::process::Signal;
use serde::Deserialize;
use serde_json::Value;
use uuid::Uuid;

use super::daemon::tail;
use super::download::{LOCK_LIMIT, fetch, require};
use super::home::Home;
use super::java;
use super::part::Part;
use super::ports::free_port;
use super::records::Owner;

const POM: &str = include_str!("../../peer-pom.xml");
const START_LIMIT: Duration = Duration::from_mins(2);
const STOP_LIMIT: Duration = Duration::from_mins(1);
const CALL_LIMIT: Duration = Duration::from_secs(90);
const STATE_LIMIT: Duration = Duration::from_mins(1);

/// A Connect worker.
#[derive(Debug)]
pub struct Connect {
    part: Part,
    libs: PathBuf,
    url: String,
    client: reqwest::Client,
}

impl Connect {
    /// A worker of its own with these settings (addresses, offsets and the port are added), which ends with this value.
    pub async fn private(hint: &str, bootstrap: &str, settings: &[(&str, &str)]) -> Result<Connect> {
        let home = Home::locate()?;
        java::check().await?;
        let libs = libs(&home).await?;
        let folder = home.private_folder(hint)?;
        let port = free_port()?;
        let connect = Connect {
            part: Part::new(&home, "connect", Owner::own()?, &folder)?,
            libs,
            url: format!("http://127.0.0.1:{port}"),
            client: reqwest::Client::builder().no_proxy().timeout(CALL_LIMIT).build()?,
        };
        let mut text = format!(
            "bootstrap.servers={bootstrap}\nlisteners={}\noffset.storage.file.filename={}\n",
            connect.url,
            folder.join("offsets").display()
        );
        for (name, value) in settings {
            writeln!(text, "{name}={value}")?;
        }
        fs::write(folder.join("worker.properties"), text).context("write worker.properties")?;
        connect.launch().await?;
        Ok(connect)
    }

    async fn launch(&self) -> Result<()> {
        let mut command = java::sustained(256, 1_024);
        command.arg("-Dorg.slf4j.simpleLogger.defaultLogLevel=warn");
        command.arg("-cp").arg(format!("{}/*", self.libs.display()));
        command.arg("org.apache.kafka.connect.cli.ConnectStandalone");
        command.arg(self.part.folder().join("worker.properties")).current_dir(self.part.folder());
        let probe = async || self.call(Method::GET, "connectors", None).await.is_ok();
        self.part.start(&mut command, START_LIMIT, probe).await
    }

    /// Makes a connector of this configuration, and waits until its task runs.
    pub async fn create(&self, connector: &str, config: &Value) -> Result<()> {
        self.call(Method::PUT, &format!("connectors/{connector}/config"), Some(config)).await?;
        self.in_state(connector, State::running).await
    }

    /// Ends its task, and waits until it has ended. It keeps its place.
    pub async fn stop_connector(&self, connector: &str) -> Result<()> {
        self.call(Method::PUT, &format!("connectors/{connector}/stop"), None).await?;
        self.in_state(connector, State::stopped).await
    }

    /// Asks a stopped connector to go on; does not wait for it.
    pub async fn resume_connector(&self, connector: &str) -> Result<()> {
        self.call(Method::PUT, &format!("connectors/{connector}/resume"), None).await.map(|_| ())
    }

    /// The worker's pid, while it runs.
    pub fn pid(&self) -> Result<i32> {
        self.part.identity().map(|identity| identity.pid)
    }

    /// What it logs.
    pub fn log(&self) -> &Path {
        self.part.log()
    }

    /// An orderly shutdown.
    pub async fn stop(&self) -> Result<()> {
        self.part.stop(Signal::TERM, STOP_LIMIT).await.map(|_| ())
    }

    async fn in_state(&self, connector: &str, wanted: fn(&State) -> bool) -> Result<()> {
        let begun = Instant::now();
        loop {
            // Unknown for a moment after it was made.
            let state = self.call(Method::GET, &format!("connectors/{connector}/status"), None).await;
            let state = state.and_then(|value| serde_json::from_value::<State>(value).context("its state"));
            match &state {
                Ok(state) if wanted(state) => return Ok(()),
                Ok(state) if state.failed() => bail!("{connector} has failed\n{}", tail(self.log())),
                _ if begun.elapsed() > STATE_LIMIT => {
                    bail!("{connector} is in the wrong state: {state:?}\n{}", tail(self.log()))
                }
                _ => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    }

    async fn call(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Value> {
        let mut request = self.client.request(method, format!("{}/{path}", self.url));
        if let Some(body) = body {
            request = request.json(body);
        }
        let answer = request.send().await.with_context(|| format!("ask Connect for {path}"))?;
        let (status, text) = (answer.status(), answer.text().await.context("read Connect's answer")?);
        if !status.is_success() {
            bail!("Connect answers {status} to {path}: {text}");
        }
        if text.is_empty() { Ok(Value::Null) } else { serde_json::from_str(&text).context(text) }
    }
}

impl Drop for Connect {
    fn drop(&mut self) {
        self.part.end_with_folder();
    }
}

/// `GET /connectors/{name}/status`.
#[derive(Debug, Deserialize)]
struct State {
    connector: One,
    tasks: Vec<One>,
}

#[derive(Debug, Deserialize)]
struct One {
    state: String,
}

impl State {
    fn running(&self) -> bool {
        self.connector.state == "RUNNING"
            && !self.tasks.is_empty()
            && self.tasks.iter().all(|task| task.state == "RUNNING")
    }

    fn stopped(&self) -> bool {
        self.connector.state == "STOPPED" && self.tasks.is_empty()
    }

    fn failed(&self) -> bool {
        std::iter::once(&self.connector).chain(&self.tasks).any(|one| one.state == "FAILED")
    }
}

/// The jars, downloaded now if they are not there yet.
async fn libs(home: &Home) -> Result<PathBuf> {
    let id = Uuid::new_v5(&Uuid::NAMESPACE_OID, POM.as_bytes()).simple().to_string();
    let folder = home.parts().join(format!("peer-{}", &id[..12]));
    if !folder.exists() {
        let _lock = home.lock("parts", LOCK_LIMIT).await?;
        if !folder.exists() {
            require(&["mvn"], "maven", "Maven fetches Kafka Connect and Debezium").await?;
            let partial = folder.with_extension("partial");
            if partial.exists() {
                fs::remove_dir_all(&partial).context("remove a download that was cut off")?;
            }
            fs::create_dir_all(&partial).with_context(|| format!("create {}", partial.display()))?;
            fs::write(partial.join("pom.xml"), POM).context("write the pom")?;
            fetch(&partial, "Kafka Connect 4.3 and Debezium 3.6", 63).await?;
            fs::rename(&partial, &folder).context("move the jars to their place")?;
        }
    }
    Ok(folder.join("libs"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connector_runs_when_it_has_a_task_and_all_of_it_runs() {
        let state = |text| serde_json::from_str::<State>(text).unwrap();
        let starting = state(r#"{"name":"x","connector":{"state":"RUNNING"},"tasks":[]}"#);
        assert!(!starting.running() && !starting.stopped() && !starting.failed());
        let running = state(
            r#"{"connector":{"state":"RUNNING","worker_id":"w"},"tasks":[{"id":0,"state":"RUNNING"}]}"#,
        );
        assert!(running.running() && !running.failed());
        assert!(state(r#"{"connector":{"state":"STOPPED"},"tasks":[]}"#).stopped());
        assert!(
            state(r#"{"connector":{"state":"RUNNING"},"tasks":[{"state":"FAILED","trace":"t"}]}"#).failed()
        );
    }
}
