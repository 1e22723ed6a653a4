//! PostgreSQL: `initdb`, start, crash, restart.
//!
//! It refuses to run as root, so root lends it to the user `postgres`, or to `nobody` where that one is missing. Its
//! settings are the defaults (fsync and synchronous_commit on), apart from what a test or a benchmark asks for.

use std::fs;
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::Signal;

use super::daemon::tail;
use super::databases::{Server, TestDatabase};
use super::download::Parts;
use super::home::{HOME_VARIABLE, Home};
use super::identity::Identity;
use super::major::Major;
use super::part::Part;
use super::ports::free_port;
use super::records::Owner;

/// Names the process in records and messages.
pub(super) const NAME: &str = "postgres";
const START_LIMIT: Duration = Duration::from_mins(1);
const STOP_LIMIT: Duration = Duration::from_secs(30);
const SETTINGS: &str = "\
listen_addresses = '127.0.0.1'
unix_socket_directories = ''
max_connections = 300
shared_buffers = 256MB
max_wal_size = 4GB
timezone = 'UTC'
log_timezone = 'UTC'
log_line_prefix = '%m [%p] %q%u@%d '
log_lock_waits = on
";

/// A PostgreSQL server.
#[derive(Debug)]
pub struct Postgres {
    part: Part,
    bin: PathBuf,
    server: Server,
}

impl Postgres {
    /// A server for one test alone, which may crash it. It ends, and its data go, when this value is dropped.
    pub async fn private(hint: &str) -> Result<Postgres> {
        Postgres::private_with(hint, &[]).await
    }

    /// As [`Postgres::private`], with settings of its own, such as `("wal_level", "logical")`.
    pub async fn private_with(hint: &str, settings: &[(&str, &str)]) -> Result<Postgres> {
        let home = Home::locate()?;
        let parts = Parts::ready(&home).await?;
        let folder = home.private_folder(hint)?;
        Postgres::start(&home, &parts, Major::asked_for()?, &folder, Owner::own()?, settings).await
    }

    /// A new server with its data in the folder.
    pub(super) async fn start(
        home: &Home,
        parts: &Parts,
        major: Major,
        folder: &Path,
        owner: Owner,
        settings: &[(&str, &str)],
    ) -> Result<Postgres> {
        let postgres = Postgres::start_without_roles(home, parts, major, folder, owner, settings).await?;
        postgres.server.create_roles().await?;
        Ok(postgres)
    }

    /// As [`Postgres::start`]; only the superuser is there.
    pub(super) async fn start_without_roles(
        home: &Home,
        parts: &Parts,
        major: Major,
        folder: &Path,
        owner: Owner,
        settings: &[(&str, &str)],
    ) -> Result<Postgres> {
        let part = Part::new(home, NAME, owner, folder)?;
        let server = Server { port: free_port()? };
        let postgres = Postgres { part, bin: parts.postgres_bin(major), server };
        postgres.init(home, owner, settings).await?;
        postgres.launch().await?;
        Ok(postgres)
    }

    /// Where it answers.
    pub fn server(&self) -> Server {
        self.server
    }

    /// The URL of a database for a role.
    pub fn url(&self, role: &str, database: &str) -> String {
        self.server.url(role, database)
    }

    /// A new database, see [`Server::database`].
    pub async fn database(&self, hint: &str) -> Result<TestDatabase> {
        self.server.database(hint).await
    }

    /// SIGKILL to the whole server, as when the machine loses its power (what was acknowledged is on the disk).
    pub fn kill9(&self) {
        self.part.kill();
    }

    /// Starts it again on the same port and data; stops it first when it runs.
    pub async fn restart(&self) -> Result<()> {
        if self.part.running().is_some() {
            self.stop().await?;
        }
        self.launch().await
    }

    /// A fast shutdown: clients are thrown out, data are written.
    pub async fn stop(&self) -> Result<()> {
        self.part.stop(Signal::INT, STOP_LIMIT).await.map(|_| ())
    }

    /// What `pg_ctl stop -m immediate` does: clients are thrown out and nothing more is written; the next start recovers from the log.
    pub async fn stop_immediately(&self) -> Result<()> {
        self.part.stop(Signal::QUIT, STOP_LIMIT).await.map(|_| ())
    }

    /// The pid of the server's first process, the parent of all others, while it runs.
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

    /// Another server with the same programs, of which nothing is there yet.
    pub(super) fn beside(&self, part: Part, server: Server) -> Postgres {
        Postgres { part, bin: self.bin.clone(), server }
    }

    pub(super) fn data(&self) -> PathBuf {
        self.part.folder().join("data")
    }

    async fn init(&self, home: &Home, owner: Owner, settings: &[(&str, &str)]) -> Result<()> {
        let data = self.data();
        fs::create_dir(&data).with_context(|| format!("create {}", data.display()))?;
        if let Some(user) = server_user()? {
            for path in [self.part.folder(), &data] {
                chown(path, Some(user.uid), Some(user.gid))
                    .with_context(|| format!("give {} to {}", path.display(), user.name))?;
            }
        }
        // Recorded like the server itself: an initdb that outlives us would go on writing into a folder that others empty.
        let initdb = Part::new(home, "initdb", owner, self.part.folder())?;
        let mut command = self.command("initdb")?;
        command.args([
            "--username=postgres",
            "--auth=trust",
            "--encoding=UTF8",
            "--no-locale",
            "--no-sync",
            "-D",
        ]);
        let daemon = initdb.spawn(command.arg(&data))?;
        let status = daemon.ended(START_LIMIT).await?;
        if !status.success() {
            bail!("initdb failed ({status})\n{}", tail(initdb.log()));
        }
        let mut text = format!("{SETTINGS}port = {}\n", self.server.port);
        for (name, value) in settings {
            text.push_str(name);
            text.push_str(" = '");
            text.push_str(value);
            text.push_str("'\n");
        }
        // The file belongs to the server's user and is only added to.
        let mut file = fs::File::options()
            .append(true)
            .open(data.join("postgresql.conf"))
            .context("open postgresql.conf")?;
        std::io::Write::write_all(&mut file, text.as_bytes()).context("write postgresql.conf")
    }

    pub(super) async fn launch(&self) -> Result<()> {
        let mut command = self.command("postgres")?;
        command.arg("-D").arg(self.data());
        self.part.start(&mut command, START_LIMIT, || self.server.answers()).await
    }

    /// A program of the server, run as its user. Nothing of our environment can change what it does.
    fn command(&self, program: &str) -> Result<Command> {
        let mut command = Command::new(self.bin.join(program));
        command.env_clear().env("PATH", "/usr/bin:/bin").env("LC_ALL", "C").stdin(Stdio::null());
        command.current_dir(self.part.folder());
        as_server_user(&mut command)?;
        Ok(command)
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        self.part.end_with_folder();
    }
}

/// The user that the server runs as when we are root.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct User {
    name: String,
    pub(super) uid: u32,
    pub(super) gid: u32,
}

pub(super) fn server_user() -> Result<Option<User>> {
    if !rustix::process::geteuid().is_root() {
        return Ok(None);
    }
    let passwd = fs::read_to_string("/etc/passwd").context("read /etc/passwd")?;
    let user = find_user(&passwd, "postgres").or_else(|| find_user(&passwd, "nobody"));
    user.map(Some).context("PostgreSQL refuses to run as root, and there is no user postgres or nobody")
}

fn find_user(passwd: &str, name: &str) -> Option<User> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let found = fields.next()? == name;
        let (uid, gid) = (fields.nth(1)?.parse().ok()?, fields.next()?.parse().ok()?);
        found.then(|| User { name: name.to_owned(), uid, gid })
    })
}

fn as_server_user(command: &mut Command) -> Result<()> {
    if let Some(user) = server_user()? {
        command.uid(user.uid).gid(user.gid);
    }
    Ok(())
}

/// Fails when the server's user cannot enter the folder: asked before anything is downloaded into it.
pub(super) fn check_enterable(folder: &Path) -> Result<()> {
    let mut command = Command::new("/bin/true");
    command.current_dir(folder).stdin(Stdio::null());
    as_server_user(&mut command)?;
    refuse_unless(command.status().is_ok_and(|status| status.success()), "enter", folder)
}

/// Fails when the server's user cannot run the server from there: a folder above is closed to it.
pub(super) fn check_readable(bin: &Path) -> Result<()> {
    let mut command = Command::new(bin.join("postgres"));
    command.arg("--version").current_dir("/").stdin(Stdio::null()).stdout(Stdio::null());
    as_server_user(&mut command)?;
    refuse_unless(command.status().is_ok_and(|status| status.success()), "run the server in", bin)
}

fn refuse_unless(possible: bool, what: &str, folder: &Path) -> Result<()> {
    if possible {
        return Ok(());
    }
    let user =
        server_user()?.map_or_else(|| "this user".to_owned(), |user| format!("the user {}", user.name));
    bail!(
        "{user} cannot {what} {}. Name a folder that it can read, on a disk that may run programs, in {HOME_VARIABLE}",
        folder.display()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_found_by_their_whole_name() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\nnobody2:x:7:8::/:/x\nnobody:x:65534:65533:nobody:/:/x\n";
        let found = find_user(passwd, "nobody").unwrap();
        assert_eq!(found, User { name: "nobody".to_owned(), uid: 65_534, gid: 65_533 });
        assert_eq!(find_user(passwd, "postgres"), None);
    }
}
