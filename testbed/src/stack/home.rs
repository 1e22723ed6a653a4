//! Where the testbed keeps what it downloads and runs, and the locks around it.
//!
//! ```text
//! $PAYMENT_OUTBOX_HOME
//!   parts/<id of the pom>/   downloaded once, never changed
//!   stack/                   the shared stack: data, logs, state.json; emptied at every start
//!   private/<name>/          what one test or one circle of processes runs for itself
//!   run/                     the logs of `testbed run`
//!   running/<id>.json        one record per process started, so that none is ever left behind
//! ```
//!
//! Root's home is usually closed to others, but PostgreSQL refuses to run as root: so root's default lies outside of it.

use std::env;
use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, bail};
use uuid::Uuid;

/// The environment variable that moves everything elsewhere.
pub const HOME_VARIABLE: &str = "PAYMENT_OUTBOX_HOME";

const SPENT_AFTER: Duration = Duration::from_hours(24);

/// The folder of the testbed on this machine.
#[derive(Clone, Debug)]
pub struct Home {
    root: PathBuf,
}

impl Home {
    /// The folder named by `PAYMENT_OUTBOX_HOME`, or the default of this user. It is made when it is not there.
    pub fn locate() -> Result<Home> {
        let root = rustix::process::geteuid().is_root();
        let chosen = env::var_os(HOME_VARIABLE).filter(|value| !value.is_empty()).map(PathBuf::from);
        let user_home = env::var_os("HOME").filter(|value| !value.is_empty()).map(PathBuf::from);
        Home::at(&choose(chosen, user_home, root)?)
    }

    /// A home in the given folder.
    pub fn at(root: &Path) -> Result<Home> {
        let root = std::path::absolute(root).context("resolve the folder of the testbed")?;
        let home = Home { root };
        for folder in [&home.root, &home.parts(), &home.stack(), &home.private(), &home.running()] {
            fs::create_dir_all(folder).with_context(|| {
                format!(
                    "{} cannot be made: name a folder that can be written in {HOME_VARIABLE}",
                    folder.display()
                )
            })?;
        }
        Ok(home)
    }

    /// The folder itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Downloaded parts.
    pub fn parts(&self) -> PathBuf {
        self.root.join("parts")
    }

    /// Data, logs and state of the shared stack.
    pub fn stack(&self) -> PathBuf {
        self.root.join("stack")
    }

    /// Folders of single tests and circles.
    pub fn private(&self) -> PathBuf {
        self.root.join("private")
    }

    /// One record per process started.
    pub fn running(&self) -> PathBuf {
        self.root.join("running")
    }

    /// Removes what the testbed has put here, and nothing else: the folder may have been there before.
    pub fn remove_contents(&self) -> Result<()> {
        for folder in [self.parts(), self.stack(), self.private(), self.running(), self.run()] {
            if folder.exists() {
                fs::remove_dir_all(&folder).with_context(|| format!("remove {}", folder.display()))?;
            }
        }
        Ok(())
    }

    /// Logs of what `testbed run` has started.
    pub fn run(&self) -> PathBuf {
        self.root.join("run")
    }

    /// A new, empty folder that nobody else has.
    pub fn private_folder(&self, hint: &str) -> Result<PathBuf> {
        let folder = self.private().join(format!("{hint}-{}", Uuid::now_v7().simple()));
        fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
        Ok(folder)
    }

    /// Removes the private folders that failed tests have left for someone to look at, a day later.
    pub(super) fn remove_spent(&self, in_use: &[PathBuf]) -> Result<()> {
        for entry in fs::read_dir(self.private()).context("list the private folders")? {
            let path = entry.context("list the private folders")?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let spent = made_at(&name).is_some_and(|at| at.elapsed().is_ok_and(|age| age > SPENT_AFTER));
            if spent && !in_use.contains(&path) {
                fs::remove_dir_all(&path).ok();
            }
        }
        Ok(())
    }

    /// Waits until no other process holds the lock of this name. It is released when the file is dropped, and by
    /// the kernel when this process dies.
    pub async fn lock(&self, name: &str, limit: Duration) -> Result<File> {
        let path = self.root.join(format!("{name}.lock"));
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .with_context(|| format!("open {}", path.display()))?;
        let begun = Instant::now();
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(file),
                Err(TryLockError::WouldBlock) if begun.elapsed() < limit => {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                Err(TryLockError::WouldBlock) => {
                    bail!("another process holds {} (waited {limit:?})", path.display())
                }
                Err(TryLockError::Error(error)) => {
                    return Err(error).with_context(|| format!("lock {}", path.display()));
                }
            }
        }
    }
}

/// When a name that ends in a UUID of version 7 was given.
pub(super) fn made_at(name: &str) -> Option<SystemTime> {
    let (_, id) = name.rsplit_once(['-', '_'])?;
    let (seconds, nanos) = Uuid::try_parse(id).ok()?.get_timestamp()?.to_unix();
    Some(SystemTime::UNIX_EPOCH + Duration::new(seconds, nanos))
}

fn choose(chosen: Option<PathBuf>, user_home: Option<PathBuf>, root: bool) -> Result<PathBuf> {
    match (chosen, user_home) {
        (Some(folder), _) => Ok(folder),
        (None, _) if root => Ok(PathBuf::from("/var/lib/payment-outbox")),
        (None, Some(folder)) => Ok(folder.join(".cache/payment-outbox")),
        (None, None) => bail!("neither HOME nor {HOME_VARIABLE} is set: nowhere to keep the parts"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_variable_wins_and_root_stays_out_of_its_own_home() {
        let user = || Some(PathBuf::from("/home/u"));
        assert_eq!(choose(Some("/x".into()), user(), true).unwrap(), PathBuf::from("/x"));
        assert_eq!(choose(None, user(), true).unwrap(), PathBuf::from("/var/lib/payment-outbox"));
        assert_eq!(choose(None, user(), false).unwrap(), PathBuf::from("/home/u/.cache/payment-outbox"));
        let error = choose(None, None, false).unwrap_err().to_string();
        assert!(error.contains(HOME_VARIABLE), "{error}");
    }

    #[tokio::test]
    async fn a_lock_excludes_and_is_released_on_drop() {
        let folder = std::env::temp_dir().join(format!("testbed-lock-{}", Uuid::now_v7()));
        let home = Home::at(&folder).unwrap();
        let held = home.lock("stack", Duration::from_millis(100)).await.unwrap();
        let refused = home.lock("stack", Duration::from_millis(100)).await.unwrap_err();
        assert!(refused.to_string().contains("stack.lock"), "{refused}");
        drop(held);
        home.lock("stack", Duration::from_millis(100)).await.unwrap();
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn only_private_folders_of_yesterday_are_removed() {
        let folder = std::env::temp_dir().join(format!("testbed-spent-{}", Uuid::now_v7()));
        let home = Home::at(&folder).unwrap();
        let fresh = home.private_folder("x").unwrap();
        // A UUID of version 7 with a time in 1970, used and unused.
        let [old, used] = ["x", "y"]
            .map(|hint| home.private().join(format!("{hint}-{:032x}", 0x7000_8000_0000_0000_0000_u128)));
        for path in [&old, &used] {
            fs::create_dir(path).unwrap();
        }
        home.remove_spent(std::slice::from_ref(&used)).unwrap();
        assert_eq!([&fresh, &old, &used].map(|path| path.exists()), [true, false, true]);
        fs::remove_dir_all(folder).unwrap();
    }
}
