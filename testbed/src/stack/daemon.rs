//! One process that the testbed has started: who it is, how it ends, and what is left to clean up when its starter dies.
//!
//! Every process gets a group of its own (a Ctrl-C in the terminal is for the testbed alone), logs into a file, and
//! leaves a record in `running/`. A pid may be handed on to a stranger, so a process is known by its pid **and** its
//! start time, and nothing is ever signalled by its pid alone. If the testbed dies between the start and the record,
//! that one process is left; everywhere else the next [`sweep`] finds it.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::home::Home;

/// The kernel ends a killed process within milliseconds, unless it waits for a disk.
const KILL_LIMIT: Duration = Duration::from_secs(5);
const TAIL_LINES: usize = 15;
const TAIL_BYTES: u64 = 64 * 1024;

/// A process, told apart from any later one with the same pid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Its pid.
    pub pid: i32,
    /// When it was started, in clock ticks since the machine booted.
    pub started_ticks: u64,
}

impl Identity {
    /// Who has this pid now. `None` if nobody has it, or only a zombie.
    pub fn of(pid: i32) -> Option<Identity> {
        let (state, identity) = Identity::read(pid)?;
        (!matches!(state, 'Z' | 'X')).then_some(identity)
    }

    /// The same, of a zombie too.
    fn read(pid: i32) -> Option<(char, Identity)> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let (state, started_ticks) = parse_stat(&stat)?;
        Some((state, Identity { pid, started_ticks }))
    }

    /// This process.
    pub fn own() -> Result<Identity> {
        let pid = rustix::process::getpid().as_raw_nonzero().get();
        Identity::of(pid).context("read /proc/self/stat")
    }

    /// Whether it still runs.
    pub fn alive(self) -> bool {
        Identity::of(self.pid) == Some(self)
    }

    /// Sends a signal, unless the process is gone. Says whether it was sent.
    pub fn signal(self, signal: Signal) -> bool {
        let pid = Pid::from_raw(self.pid);
        self.alive() && pid.is_some_and(|pid| kill_process(pid, signal).is_ok())
    }

    /// The processes that it has started and that still run.
    pub fn children(self) -> Vec<Identity> {
        let listed = fs::read_to_string(format!("/proc/{0}/task/{0}/children", self.pid)).unwrap_or_default();
        listed.split_whitespace().filter_map(|pid| pid.parse().ok()).filter_map(Identity::of).collect()
    }

    /// Ends it at once, with its children, and waits until they are gone.
    pub fn kill_with_children(self, limit: Duration) -> bool {
        // Stopped first, so that it starts no child between the list and the kill.
        self.signal(Signal::STOP);
        let children = self.children();
        self.signal(Signal::KILL);
        for child in &children {
            child.signal(Signal::KILL);
        }
        let begun = Instant::now();
        while self.alive() || children.iter().any(|child| child.alive()) {
            if begun.elapsed() > limit {
                return false;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        true
    }
}

/// State and start time out of `/proc/<pid>/stat`. The name in parentheses may itself hold blanks and parentheses.
fn parse_stat(stat: &str) -> Option<(char, u64)> {
    let (_, after_name) = stat.rsplit_once(')')?;
    let mut fields = after_name.split_whitespace();
    let state = fields.next()?.chars().next()?;
    Some((state, fields.nth(18)?.parse().ok()?))
}

/// Who a process belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Owner {
    /// The shared stack: it outlives who started it.
    Stack,
    /// One process of the testbed or of a test: when that is dead, this has to go too.
    Process(Identity),
}

impl Owner {
    /// This process.
    pub fn own() -> Result<Owner> {
        Identity::own().map(Owner::Process)
    }
}

#[derive(Debug, Serialize, Deserialize)]
struct Record {
    name: String,
    owner: Owner,
    process: Identity,
    /// What goes with the process.
    folder: Option<PathBuf>,
}

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
        let record = home.running().join(format!("{}.json", Uuid::now_v7().simple()));
        let entry =
            Record { name: name.to_owned(), owner, process: identity, folder: folder.map(Path::to_path_buf) };
        fs::write(&record, serde_json::to_vec_pretty(&entry).context("encode a record")?)
            .with_context(|| format!("write {}", record.display()))?;
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

    /// SIGKILL to the process and its children, and waits until they are gone.
    pub(crate) fn kill(&self) {
        self.identity.kill_with_children(KILL_LIMIT);
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

/// Ends what has lost its owner. With `stack`, ends the shared stack too; the caller holds its lock.
/// Returns the names of what was ended.
pub(super) fn sweep(home: &Home, stack: bool) -> Result<Vec<String>> {
    let mut ended = Vec::new();
    let mut in_use = Vec::new();
    for (path, record) in records(home)? {
        let keep = match record.owner {
            Owner::Stack => !stack,
            Owner::Process(owner) => owner.alive(),
        };
        if keep {
            in_use.extend(record.folder);
            continue;
        }
        if record.process.alive() {
            end(&record.name, record.process);
            ended.push(record.name);
        }
        if let Some(folder) = record.folder.filter(|folder| folder.starts_with(home.private())) {
            fs::remove_dir_all(folder).ok();
        }
        fs::remove_file(&path).ok();
    }
    home.remove_spent(&in_use)?;
    Ok(ended)
}

/// Name and pid of everything recorded that still runs.
pub(super) fn running(home: &Home) -> Result<Vec<(String, i32)>> {
    let alive = records(home)?.into_iter().filter(|(_, record)| record.process.alive());
    Ok(alive.map(|(_, record)| (record.name, record.process.pid)).collect())
}

fn records(home: &Home) -> Result<Vec<(PathBuf, Record)>> {
    let mut records = Vec::new();
    for entry in fs::read_dir(home.running()).context("list what runs")? {
        let path = entry.context("list what runs")?.path();
        // One that is just being written, or just gone, belongs to someone who lives.
        if let Some(record) = fs::read(&path).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()) {
            records.push((path, record));
        }
    }
    Ok(records)
}

/// PostgreSQL gives back its shared memory on SIGQUIT. Everything else needs no grace: what has lost its owner has no
/// data that anyone will read.
pub(super) fn end(name: &str, process: Identity) {
    process.signal(Signal::CONT);
    if name == super::postgres::NAME {
        process.signal(Signal::QUIT);
        let begun = Instant::now();
        while process.alive() && begun.elapsed() < Duration::from_secs(3) {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
    process.kill_with_children(KILL_LIMIT);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn home() -> Home {
        let folder = std::env::temp_dir().join(format!("testbed-daemon-{}", Uuid::now_v7()));
        Home::at(&folder).unwrap()
    }

    fn sleeper(home: &Home, owner: Owner) -> Daemon {
        let log = home.root().join("sleep.log");
        Daemon::spawn(home, "sleep", owner, Command::new("sleep").arg("60"), &log, None).unwrap()
    }

    #[test]
    fn state_and_start_are_read_behind_any_name() {
        let fields = (4..=21).map(|field| field.to_string()).collect::<Vec<_>>().join(" ");
        let stat = format!("77 (a) b ) (c) S {fields} 4711 23 24");
        assert_eq!(parse_stat(&stat), Some(('S', 4711)));
        assert_eq!(parse_stat("77 (cut off"), None);
    }

    #[test]
    fn a_pid_alone_is_not_a_process() {
        let own = Identity::own().unwrap();
        assert!(own.alive());
        let stranger = Identity { started_ticks: own.started_ticks + 1, ..own };
        assert!(!stranger.alive());
        // It would end this test.
        assert!(!stranger.signal(Signal::KILL));
    }

    #[test]
    fn a_sweep_ends_what_has_lost_its_owner_and_nothing_else() {
        let home = home();
        let own = Identity::own().unwrap();
        let dead = Identity { started_ticks: own.started_ticks + 1, ..own };
        let orphan = sleeper(&home, Owner::Process(dead));
        let owned = sleeper(&home, Owner::own().unwrap());
        let shared = sleeper(&home, Owner::Stack);
        assert_eq!(sweep(&home, false).unwrap(), ["sleep"]);
        assert!(!orphan.identity().alive() && owned.identity().alive() && shared.identity().alive());
        assert_eq!(sweep(&home, true).unwrap(), ["sleep"]);
        assert!(owned.identity().alive() && !shared.identity().alive());
        assert_eq!(running(&home).unwrap(), [("sleep".to_owned(), owned.identity().pid)]);
        owned.kill();
        assert!(running(&home).unwrap().is_empty());
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
