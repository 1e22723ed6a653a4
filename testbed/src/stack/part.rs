//! Something that is started, killed, and started again under the same address: a part of the stack, or a service.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::Signal;

use super::daemon::{Daemon, tail};
use super::home::Home;
use super::identity::Identity;
use super::records::{Owner, end};

/// A process with many lives. Its last one ends with this value, unless it belongs to the shared stack.
#[derive(Debug)]
pub(crate) struct Part {
    home: Home,
    name: String,
    owner: Owner,
    folder: PathBuf,
    log: PathBuf,
    current: Mutex<Option<Arc<Daemon>>>,
}

impl Part {
    /// Nothing is started yet. `folder` goes with the part: see [`Part::end_with_folder`].
    pub(crate) fn new(home: &Home, name: &str, owner: Owner, folder: &Path) -> Result<Part> {
        fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
        Ok(Part {
            home: home.clone(),
            name: name.to_owned(),
            owner,
            folder: folder.to_path_buf(),
            log: folder.join(format!("{name}.log")),
            current: Mutex::default(),
        })
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    pub(crate) fn log(&self) -> &Path {
        &self.log
    }

    /// Starts it, and waits until `probe` says that it is ready.
    pub(crate) async fn start<P, F>(&self, command: &mut Command, limit: Duration, probe: P) -> Result<()>
    where
        P: Fn() -> F,
        F: Future<Output = bool>,
    {
        self.spawn(command)?.ready(limit, probe).await
    }

    /// Starts it. It must not run yet: two would fight over one address.
    pub(crate) fn spawn(&self, command: &mut Command) -> Result<Arc<Daemon>> {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if current.as_ref().is_some_and(|daemon| daemon.exited().is_none()) {
            bail!("{} runs already", self.name);
        }
        let folder = Some(self.folder.as_path());
        let daemon = Daemon::spawn(&self.home, &self.name, self.owner, command, &self.log, folder)?;
        Ok(Arc::clone(current.insert(Arc::new(daemon))))
    }

    /// The life that goes on now.
    pub(crate) fn running(&self) -> Option<Arc<Daemon>> {
        self.current().filter(|daemon| daemon.exited().is_none())
    }

    /// Pid and start time, while it runs.
    pub(crate) fn identity(&self) -> Result<Identity> {
        let Some(daemon) = self.running() else { bail!("{} does not run\n{}", self.name, tail(&self.log)) };
        Ok(daemon.identity())
    }

    /// Sends a signal; an error when it does not run.
    pub(crate) fn signal(&self, signal: Signal) -> Result<()> {
        let Some(daemon) = self.running() else { bail!("{} does not run\n{}", self.name, tail(&self.log)) };
        daemon.signal(signal)
    }

    /// Asks it to end, and waits until it has.
    pub(crate) async fn stop(&self, signal: Signal, limit: Duration) -> Result<ExitStatus> {
        let daemon = self.current().with_context(|| format!("{} was never started", self.name))?;
        if daemon.exited().is_none() {
            daemon.signal(signal)?;
        }
        daemon.ended(limit).await
    }

    /// SIGKILL, to its children too. It is gone when this returns.
    pub(crate) fn kill(&self) {
        if let Some(daemon) = self.current() {
            daemon.kill();
        }
    }

    /// The last life, which may have ended.
    pub(crate) fn current(&self) -> Option<Arc<Daemon>> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The end of a part that has its folder to itself. The folder stays when a test has just failed: someone will want
    /// to look. What belongs to the shared stack goes on.
    pub(crate) fn end_with_folder(&self) {
        if self.owner == Owner::Stack {
            return;
        }
        self.end();
        if !std::thread::panicking() {
            fs::remove_dir_all(&self.folder).ok();
        }
    }

    fn end(&self) {
        if let Some(daemon) = self.running() {
            end(&self.name, daemon.identity());
            daemon.kill();
        }
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        if self.owner != Owner::Stack {
            self.end();
        }
    }
}
