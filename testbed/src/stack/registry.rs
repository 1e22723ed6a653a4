//! Apicurio Registry 2.6, which speaks the Confluent Schema Registry's API.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::process::Signal;

use super::download::Parts;
use super::home::Home;
use super::identity::Identity;
use super::java::{self, Classes};
use super::part::Part;
use super::ports::free_port;
use super::records::Owner;

const START_LIMIT: Duration = Duration::from_secs(90);
const STOP_LIMIT: Duration = Duration::from_mins(1);

/// A schema registry.
#[derive(Debug)]
pub struct Registry {
    part: Part,
    jar: PathBuf,
    classes: Classes,
    port: u16,
}

impl Registry {
    /// A registry for one test alone, which may crash it. It ends, and its data go, when this value is dropped.
    pub async fn private(hint: &str) -> Result<Registry> {
        let home = Home::locate()?;
        java::check().await?;
        let parts = Parts::ready(&home).await?;
        let folder = home.private_folder(hint)?;
        Registry::start(&home, &parts, &folder, Owner::own()?, parts.classes("registry")).await
    }

    /// A new registry with its data in the folder.
    pub(super) async fn start(
        home: &Home,
        parts: &Parts,
        folder: &Path,
        owner: Owner,
        classes: Classes,
    ) -> Result<Registry> {
        let part = Part::new(home, "registry", owner, folder)?;
        let registry = Registry { part, jar: parts.registry_jar()?, classes, port: free_port()? };
        registry.launch().await?;
        registry.warm_up().await?;
        Ok(registry)
    }

    pub(super) fn port(&self) -> u16 {
        self.port
    }

    /// The base of the Confluent API.
    pub fn url(&self) -> String {
        url(self.port)
    }

    /// SIGKILL. What it had acknowledged is on the disk.
    pub fn kill9(&self) {
        self.part.kill();
    }

    /// Stops answering without closing its connections (SIGSTOP).
    pub fn pause(&self) -> Result<()> {
        self.part.signal(Signal::STOP)
    }

    /// Goes on after [`Registry::pause`].
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

    /// What it logs.
    pub fn log(&self) -> &Path {
        self.part.log()
    }

    pub(super) fn identity(&self) -> Result<Identity> {
        self.part.identity()
    }

    /// The first registration takes a cold JVM on a busy machine longer than a client with sound timeouts waits: so it is
    /// made here, with patience, and taken back.
    async fn warm_up(&self) -> Result<()> {
        let client = reqwest::Client::builder().no_proxy().timeout(START_LIMIT).build()?;
        let subject = format!("{}/subjects/warm-up", self.url());
        let schema = serde_json::json!({ "schema": "\"string\"" });
        let rule = serde_json::json!({ "compatibility": "FULL_TRANSITIVE" });
        for request in [
            client.post(format!("{subject}/versions")).json(&schema),
            client.put(format!("{}/config/warm-up", self.url())).json(&rule),
            client.post(format!("{subject}/versions")).json(&schema),
            client.delete(subject),
        ] {
            request.send().await?.error_for_status().context("the registry refuses its first schema")?;
        }
        Ok(())
    }

    async fn launch(&self) -> Result<()> {
        let mut command = java::command(64, 384, &self.classes);
        command
            .args(["-Dquarkus.http.host=127.0.0.1".to_owned(), format!("-Dquarkus.http.port={}", self.port)]);
        command.arg("-jar").arg(&self.jar).current_dir(self.part.folder());
        // Without WRITE_DELAY=0 a kill can take the last half second of registrations with it.
        let data = format!("jdbc:h2:file:{};WRITE_DELAY=0", self.part.folder().join("h2").display());
        command.env("REGISTRY_DATASOURCE_URL", data);
        let url = self.url();
        self.part.start(&mut command, START_LIMIT, || answers(&url)).await
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.part.end_with_folder();
    }
}

/// The base of the Confluent API of the registry on this port.
pub(super) fn url(port: u16) -> String {
    format!("http://127.0.0.1:{port}/apis/ccompat/v7")
}

/// Whether a registry lists its subjects.
pub(super) async fn answers(url: &str) -> bool {
    let Ok(client) = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(2)).build() else {
        return false;
    };
    let asked = client.get(format!("{url}/subjects")).send().await;
    asked.is_ok_and(|response| response.status().is_success())
}
