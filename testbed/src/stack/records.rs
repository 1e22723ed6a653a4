//! A record per process that runs, so that none is ever left behind: whoever starts next ends what has lost its owner.
//!
//! If the testbed dies between the start of a process and its record, that one process is left.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::process::Signal;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::daemon::KILL_LIMIT;
use super::home::Home;
use super::identity::Identity;

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

/// What is known of a process that runs.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) name: String,
    pub(super) owner: Owner,
    pub(super) process: Identity,
    /// What goes with the process.
    pub(super) folder: Option<PathBuf>,
}

impl Record {
    /// Writes it, and says where it is: the process's end removes it.
    pub(super) fn write(&self, home: &Home) -> Result<PathBuf> {
        let path = home.running().join(format!("{}.json", Uuid::now_v7().simple()));
        fs::write(&path, serde_json::to_vec_pretty(self).context("encode a record")?)
            .with_context(|| format!("write {}", path.display()))?;
        Ok(path)
    }
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
    process.kill_with_descendants(KILL_LIMIT);
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::super::daemon::Daemon;
    use super::*;

    fn sleeper(home: &Home, owner: Owner) -> Daemon {
        let log = home.root().join("sleep.log");
        Daemon::spawn(home, "sleep", owner, Command::new("sleep").arg("60"), &log, None).unwrap()
    }

    #[test]
    fn a_sweep_ends_what_has_lost_its_owner_and_nothing_else() {
        let folder = std::env::temp_dir().join(format!("testbed-records-{}", Uuid::now_v7()));
        let home = Home::at(&folder).unwrap();
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
}
