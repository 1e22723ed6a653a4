//! One process that the testbed has started: how it starts, becomes ready, and ends.
//!
//! Every process gets a group of its own (a Ctrl-C in the terminal is for the testbed alone), logs into a file, and
//! leaves a record in `running/`, by which [`super::records::sweep`] finds it when its starter has died.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::Signal;

use super::home::Home;
use super::identity::Identity;
use super::records::{Owner, Record};

/// The kernel ends a killed process within milliseconds, unless it waits for a disk.
pub(super) const KILL_LIMIT: Duration = Duration::from_secs(5);
const TAIL_LINES: usize = 15;
const TAIL_BYTES: u64 = 64 * 1024;

/// A process started by the testbed.
#[derive(Debug)]
pub(crate) struct Daemon {
    name: String,
    identity: Identity,
    log: PathBuf,
    record: PathBuf,
    child: Mutex<Child>,
}

impl Daemon {
    /// Starts a command in a process group of its own, its output appended to `log`. `folder` is removed by the
    /// sweep that finds the process without its owner.
    pub(crate) fn spawn(
        home: &Home,
        name: &str,
        owner: Owner,
        command: &mut Command,
        log: &Path,
        folder: Option<&Path>,
    ) -> Result<Daemon> {
        let output = File::options()
            .create(true)
            .append(true)
            .open(log)
            .with_context(|| format!("open {}", log.display()))?;
        let errors = output.try_clone().context("duplicate the handle of a log")?;
        command.stdin(Stdio::null()).stdout(output).stderr(errors).process_group(0);
        let child =
            command.spawn().with_context(|| format!("start {name} ({})", command.get_program().display()))?;
        let pid = i32::try_from(child.id()).context("a pid out of range")?;
        // It may have ended already; until it is reaped it is there to be read.
        let (_, identity) = Identity::read(pid).context("read /proc of a process just started")?;
        let record =
            Record { name: name.to_owned(), owner, process: identity, folder: folder.map(Path::to_path_buf) };
        let record = record.write(home)?;
        Ok(Daemon {
            name: name.to_owned(),
            identity,
            log: log.to_path_buf(),
            record,
            child: Mutex::new(child),
        })
    }

    /// Pid and start time.
    pub(crate) fn identity(&self) -> Identity {
        self.identity
    }

    /// How it ended, if it has.
    pub(crate) fn exited(&self) -> Option<ExitStatus> {
        let mut child = self.child.lock().unwrap_or_else(PoisonError::into_inner);
        child.try_wait().ok().flatten()
    }

    /// Sends a signal; an error if the process is gone.
    pub(crate) fn signal(&self, signal: Signal) -> Result<()> {
        if self.exited().is_none() && self.identity.signal(signal) {
            return Ok(());
        }
        bail!("{} does not run any more\n{}", self.name, tail(&self.log))
    }

    /// Waits for its end.
    pub(crate) async fn ended(&self, limit: Duration) -> Result<ExitStatus> {
        let begun = Instant::now();
        loop {
            if let Some(status) = self.exited() {
                self.forget();
                return Ok(status);
            }
            if begun.elapsed() > limit {
                bail!("{} still runs after {limit:?}\n{}", self.name, tail(&self.log));
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// SIGKILL to the process and all that it has started, and waits until they are gone.
    pub(crate) fn kill(&self) {
        self.identity.kill_with_descendants(KILL_LIMIT);
        // Reaped, or PostgreSQL would see its predecessor's pid as one that is still there. A process of many threads
        // is a zombie some time before it can be reaped.
        let begun = Instant::now();
        while self.exited().is_none() && begun.elapsed() < KILL_LIMIT {
            std::thread::sleep(Duration::from_millis(2));
        }
        self.forget();
    }

    /// Waits until `probe` says yes. Fails early when the process ends, and with the end of its log in any case.
    pub(crate) async fn ready<P, F>(&self, limit: Duration, probe: P) -> Result<()>
    where
        P: Fn() -> F,
        F: Future<Output = bool>,
    {
        let begun = Instant::now();
        while !probe().await {
            if let Some(status) = self.exited() {
                self.forget();
                bail!("{} ended while it started ({status})\n{}", self.name, tail(&self.log));
            }
            if begun.elapsed() > limit {
                bail!("{} is not ready after {limit:?}\n{}", self.name, tail(&self.log));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    fn forget(&self) {
        // Already gone is as good.
        fs::remove_file(&self.record).ok();
    }
}

/// The last lines of a log, for an error message.
pub fn tail(log: &Path) -> String {
    let read = || -> std::io::Result<String> {
        let mut file = File::open(log)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(TAIL_BYTES)))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    let text = read().unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    let last = &lines[lines.len().saturating_sub(TAIL_LINES)..];
    if last.is_empty() {
        return format!("nothing in its log {}", log.display());
    }
    format!("the end of its log {}:\n  {}", log.display(), last.join("\n  "))
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn home() -> Home {
        let folder = std::env::temp_dir().join(format!("testbed-daemon-{}", Uuid::now_v7()));
        Home::at(&folder).unwrap()
    }

    #[test]
    fn a_kill_reaches_grandchildren() {
        let home = home();
        let log = home.root().join("sh.log");
        let mut command = Command::new("/bin/sh");
        command.args(["-c", "/bin/sh -c 'sleep 61; true'; true"]);
        let daemon = Daemon::spawn(&home, "sh", Owner::own().unwrap(), &mut command, &log, None).unwrap();
        let begun = Instant::now();
        let family = loop {
            let family = daemon.identity().stopped_family();
            if family.len() == 3 {
                break family;
            }
            // Stopped too early: let it go on.
            for member in family {
                member.signal(Signal::CONT);
            }
            assert!(begun.elapsed() < Duration::from_secs(20));
            std::thread::sleep(Duration::from_millis(10));
        };
        daemon.kill();
        assert!(!family.iter().any(|member| member.alive()));
        fs::remove_dir_all(home.root()).unwrap();
    }

    #[tokio::test]
    async fn a_start_that_fails_shows_the_end_of_the_log() {
        let home = home();
        let log = home.root().join("sh.log");
        let mut command = Command::new("/bin/sh");
        command.args(["-c", "for i in $(seq 1 100); do echo line $i; done; sleep 0.1; exit 7"]);
        let daemon = Daemon::spawn(&home, "sh", Owner::own().unwrap(), &mut command, &log, None).unwrap();
        let error = daemon.ready(Duration::from_secs(20), || async { false }).await.unwrap_err().to_string();
        assert!(error.contains("exit status: 7") && error.ends_with("line 100"), "{error}");
        assert!(error.contains("line 86") && !error.contains("line 85"), "{error}");
        let missing = Daemon::spawn(&home, "none", Owner::Stack, &mut Command::new("/no/such"), &log, None);
        assert!(missing.unwrap_err().to_string().contains("start none"));
        fs::remove_dir_all(home.root()).unwrap();
    }
}
