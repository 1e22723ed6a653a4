//! Databases and roles of one PostgreSQL server: every test gets a database of its own.
//!
//! The roles are those of a real installation: one owner that runs migrations, one per service, the relay, the console and
//! an operator who only reads. None is a superuser.

use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use uuid::Uuid;

use super::home::made_at;

/// Owns every database and runs the migrations.
pub const OWNER: &str = "payment_outbox";
/// Log in to do one job each.
pub const ROLES: [&str; 6] = [OWNER, "executor", "payment_service", "relay", "operator", "console"];
/// A test that runs longer than this loses its database when nobody is connected to it.
const SPENT_AFTER: Duration = Duration::from_hours(2);

/// A PostgreSQL server on loopback, that trusts whoever connects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Server {
    /// Its TCP port.
    pub port: u16,
}

/// A database made for one test.
#[derive(Clone, Debug)]
pub struct TestDatabase {
    /// Its name.
    pub name: String,
    server: Server,
}

impl TestDatabase {
    /// The URL under which a role logs in: one of [`ROLES`], or `postgres`, the superuser.
    pub fn url(&self, role: &str) -> String {
        self.server.url(role, &self.name)
    }

    /// The server that it is in.
    pub fn server(&self) -> Server {
        self.server
    }
}

impl Server {
    /// The URL of a database for a role.
    pub fn url(self, role: &str, database: &str) -> String {
        format!("postgres://{role}@127.0.0.1:{}/{database}", self.port)
    }

    /// A new database with this name and a random suffix, owned by [`OWNER`].
    pub async fn database(self, hint: &str) -> Result<TestDatabase> {
        let name = name(hint);
        self.create(&name).await?;
        Ok(TestDatabase { name, server: self })
    }

    /// The database of exactly this name, made when it is not there.
    pub async fn named_database(self, name: &str) -> Result<TestDatabase> {
        let mut connection = self.connect().await?;
        let there: bool = sqlx::query_scalar("SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1)")
            .bind(name)
            .fetch_one(&mut connection)
            .await
            .context("look for a database")?;
        if !there {
            self.create(name).await?;
        }
        Ok(TestDatabase { name: name.to_owned(), server: self })
    }

    /// Whether it answers.
    pub async fn answers(self) -> bool {
        self.connect().await.is_ok()
    }

    /// Makes the roles that are missing.
    pub(super) async fn create_roles(self) -> Result<()> {
        let mut connection = self.connect().await?;
        for role in ROLES {
            let sql = format!(
                "DO $$ BEGIN IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = '{role}') \
                 THEN CREATE ROLE {role} LOGIN NOSUPERUSER; END IF; END $$"
            );
            sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut connection).await.context("create a role")?;
        }
        Ok(())
    }

    /// Drops what earlier tests have left, so that a stack that runs for weeks does not fill the disk.
    pub(super) async fn drop_spent(self) -> Result<usize> {
        let mut connection = self.connect().await?;
        let idle: Vec<String> = sqlx::query_scalar(
            "SELECT datname::text FROM pg_database AS d WHERE datname ~ '_[0-9a-f]{32}$' \
             AND NOT EXISTS (SELECT FROM pg_stat_activity AS a WHERE a.datid = d.oid)",
        )
        .fetch_all(&mut connection)
        .await
        .context("list the databases")?;
        let mut dropped = 0;
        for name in idle.iter().filter(|name| spent(name, SystemTime::now())) {
            // Another process may do the same at this moment.
            let sql = format!("DROP DATABASE IF EXISTS \"{name}\"");
            dropped += usize::from(sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut connection).await.is_ok());
        }
        Ok(dropped)
    }

    async fn create(self, name: &str) -> Result<()> {
        let mut connection = self.connect().await?;
        let sql = format!("CREATE DATABASE \"{name}\" OWNER {OWNER}");
        sqlx::raw_sql(AssertSqlSafe(sql))
            .execute(&mut connection)
            .await
            .with_context(|| format!("create the database {name}"))?;
        Ok(())
    }

    async fn connect(self) -> Result<PgConnection> {
        let url = self.url("postgres", "postgres");
        let connecting = PgConnection::connect(&url);
        tokio::time::timeout(Duration::from_secs(10), connecting)
            .await
            .context("PostgreSQL does not answer within 10 s")?
            .context("connect to PostgreSQL")
    }
}

/// `hint` and a UUID of version 7, which tells when it was made. PostgreSQL cuts names at 63 bytes.
fn name(hint: &str) -> String {
    let word = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '_' };
    let hint: String = hint.chars().take(30).map(word).collect();
    format!("{hint}_{}", Uuid::now_v7().simple())
}

fn spent(name: &str, now: SystemTime) -> bool {
    made_at(name).is_some_and(|at| now.duration_since(at).is_ok_and(|age| age > SPENT_AFTER))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fit_and_are_never_the_same() {
        let long = name("Some very long hint, with signs; of a test that says much");
        assert!(long.len() <= 63 && long.starts_with("some_very_long_hint__with_sign"), "{long}");
        assert_ne!(name("x"), name("x"));
    }

    #[test]
    fn only_old_databases_of_tests_are_spent() {
        let fresh = name("x");
        let later = SystemTime::now() + SPENT_AFTER + Duration::from_secs(1);
        assert!(!spent(&fresh, SystemTime::now()));
        assert!(spent(&fresh, later));
        assert!(!spent("executor", later));
        assert!(!spent("postgres", later));
    }
}
