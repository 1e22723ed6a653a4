//! A physical standby of a private server, and its promotion.
//!
//! ```text
//! pg_backup_start ─▶ the files are copied ─▶ pg_backup_stop: backup_label ─▶ standby.signal ─▶ streams from its primary ─▶ promoted
//! ```
//! By hand, as what is bundled has no `pg_basebackup`.

use std::fs;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use sqlx::{Connection, PgConnection};

use super::databases::Server;
use super::home::Home;
use super::part::Part;
use super::ports::free_port;
use super::postgres::{NAME, Postgres, server_user};
use super::records::Owner;

/// Folders of which a copy needs the place, and not what is in them: it would be wrong there, or comes over the line.
const CONTENTS_LEFT_OUT: [&str; 8] = [
    "pg_wal",
    "pg_replslot",
    "pg_dynshmem",
    "pg_notify",
    "pg_serial",
    "pg_snapshots",
    "pg_stat_tmp",
    "pg_subtrans",
];
/// Of the process that runs on the original.
const FILES_LEFT_OUT: [&str; 2] = ["postmaster.pid", "postmaster.opts"];

impl Postgres {
    /// A standby that answers reads. It streams from this server through `upstream`, a port of loopback that leads here. It ends, and
    /// its data go, when the value is dropped.
    pub async fn standby(&self, hint: &str, upstream: u16) -> Result<Postgres> {
        let home = Home::locate()?;
        let folder = home.private_folder(hint)?;
        let server = Server { port: free_port()? };
        let part = Part::new(&home, NAME, Owner::own()?, &folder)?;
        let standby = self.beside(part, server);
        let mut primary = self.superuser().await?;
        sqlx::query("SELECT pg_backup_start('standby', fast => true)")
            .execute(&mut primary)
            .await
            .context("pg_backup_start")?;
        let (from, to) = (self.data(), standby.data());
        let copied = {
            let to = to.clone();
            tokio::task::spawn_blocking(move || copy(&from, &to, true)).await?
        };
        // In the same session, whatever came of it: else the server would wait for it.
        let label: String =
            sqlx::query_scalar("SELECT labelfile FROM pg_backup_stop(wait_for_archive => false)")
                .fetch_one(&mut primary)
                .await
                .context("pg_backup_stop")?;
        copied.context("copy the files of the server")?;
        fs::write(to.join("backup_label"), label).context("write the label of the copy")?;
        fs::write(to.join("standby.signal"), "").context("write standby.signal")?;
        let settings = format!(
            "port = {}\nhot_standby = on\nprimary_conninfo = 'host=127.0.0.1 port={upstream} user=postgres'\n\
             wal_retrieve_retry_interval = 100ms\n",
            server.port
        );
        let mut file = fs::File::options()
            .append(true)
            .open(to.join("postgresql.conf"))
            .context("open postgresql.conf")?;
        file.write_all(settings.as_bytes()).context("write postgresql.conf")?;
        if let Some(user) = server_user()? {
            chown(&folder, Some(user.uid), Some(user.gid)).context("give the folder to the server's user")?;
            give(&to, user.uid, user.gid)?;
        }
        standby.launch().await?;
        primary.close().await.context("log out")?;
        Ok(standby)
    }

    /// Ends its recovery: it takes writes from now on, whatever it has not received is gone.
    pub async fn promote(&self) -> Result<()> {
        let mut superuser = self.superuser().await?;
        let promoted: bool = sqlx::query_scalar("SELECT pg_promote(true, 30)")
            .fetch_one(&mut superuser)
            .await
            .context("promote the standby")?;
        ensure!(promoted, "the standby is not promoted after 30 s");
        superuser.close().await.context("log out")
    }

    async fn superuser(&self) -> Result<PgConnection> {
        PgConnection::connect(&self.url("postgres", "postgres")).await.context("log in as the superuser")
    }
}

/// Copies a server's files while it runs. What vanishes meanwhile, the log brings back.
fn copy(from: &Path, to: &Path, top: bool) -> Result<()> {
    fs::create_dir(to).with_context(|| format!("create {}", to.display()))?;
    fs::set_permissions(to, fs::Permissions::from_mode(0o700))
        .with_context(|| format!("close {} to others", to.display()))?;
    for entry in fs::read_dir(from).with_context(|| format!("list {}", from.display()))? {
        let entry = entry.with_context(|| format!("list {}", from.display()))?;
        let (name, source) = (entry.file_name(), entry.path());
        let target = to.join(&name);
        let name = name.to_string_lossy();
        if entry.file_type().with_context(|| format!("look at {}", source.display()))?.is_dir() {
            if top && CONTENTS_LEFT_OUT.contains(&name.as_ref()) {
                fs::create_dir(&target).with_context(|| format!("create {}", target.display()))?;
            } else {
                copy(&source, &target, false)?;
            }
        } else if !(top && FILES_LEFT_OUT.contains(&name.as_ref())) {
            match fs::copy(&source, &target) {
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => return Err(error).with_context(|| format!("copy {}", source.display())),
            }
        }
    }
    Ok(())
}

/// Gives a folder, and all that is in it, to a user.
fn give(path: &Path, uid: u32, gid: u32) -> Result<()> {
    chown(path, Some(uid), Some(gid))
        .with_context(|| format!("give {} to the server's user", path.display()))?;
    if path.is_dir() {
        for entry in fs::read_dir(path).with_context(|| format!("list {}", path.display()))? {
            give(&entry.with_context(|| format!("list {}", path.display()))?.path(), uid, gid)?;
        }
    }
    Ok(())
}
