//! What another session does that keeps an old snapshot: vacuum can remove nothing that has died since. A relay that updates or deletes
//! rows drowns in its own dead ones.

use std::fmt::Write;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use sqlx::{AssertSqlSafe, Connection, PgConnection, Row};

use super::costs::cpu_seconds;
use super::site::{RELAY, Site};

/// The name that the measured saves go by.
const SAVER: &str = "bench";

/// A session with a snapshot of its own.
pub(super) struct Snapshot {
    session: PgConnection,
    xmin: String,
}

impl Snapshot {
    /// Takes the snapshot.
    pub(super) async fn hold(site: &Site) -> Result<Snapshot> {
        let mut session = site.session("operator").await?;
        sqlx::raw_sql("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT FROM outbox.batches LIMIT 1")
            .execute(&mut session)
            .await
            .context("take a snapshot")?;
        let xmin = held(&mut session).await?;
        Ok(Snapshot { session, xmin })
    }

    /// Gives it up. Fails if it was not held all the time.
    pub(super) async fn release(mut self) -> Result<()> {
        let xmin = held(&mut self.session).await?;
        ensure!(xmin == self.xmin, "the snapshot was not held: {} became {xmin}", self.xmin);
        self.session.close().await.context("give a snapshot up")
    }
}

async fn held(session: &mut PgConnection) -> Result<String> {
    sqlx::query_scalar("SELECT backend_xmin::text FROM pg_stat_activity WHERE pid = pg_backend_pid()")
        .fetch_one(session)
        .await
        .context("the snapshot that is held")
}

/// How fast progress is saved, at the beginning and at the end.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Saves {
    pub(super) first_tenth: Tenth,
    pub(super) last_tenth: Tenth,
}

/// A tenth of all saves.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Tenth {
    pub(super) per_second: f64,
    /// Of the server's process behind the session: the disk has no part in it.
    pub(super) cpu_us: f64,
}

impl Saves {
    /// What is left of the speed.
    pub(super) fn ratio(&self) -> f64 {
        self.last_tenth.per_second / self.first_tenth.per_second
    }
}

/// Saves progress so many times, one after the other, as the relay does: its own newest row under the next number.
pub(super) async fn saves(site: &Site, count: u32) -> Result<Saves> {
    let mut operator = site.session("operator").await?;
    let columns = columns(&mut operator).await?;
    let values = newest_row(&mut operator, &columns).await?;
    let insert = insert(&columns);
    let mut relay = site.session("relay").await?;
    sqlx::query("SET synchronous_commit = on").execute(&mut relay).await?;
    let server: i32 = sqlx::query_scalar("SELECT pg_backend_pid()").fetch_one(&mut relay).await?;
    let tenth = count / 10;
    let mut tenths = Vec::new();
    let mut begun = (Instant::now(), cpu_seconds(server)?);
    // A rest that makes no tenth is left out.
    for number in 1..=tenth * 10 {
        let mut query = sqlx::query(AssertSqlSafe(insert.as_str())).bind(SAVER).bind(i64::from(number));
        for value in &values {
            query = query.bind(value);
        }
        query.execute(&mut relay).await.context("save progress")?;
        if number.is_multiple_of(tenth) {
            let now = (Instant::now(), cpu_seconds(server)?);
            tenths.push(Tenth {
                per_second: f64::from(tenth) / (now.0 - begun.0).as_secs_f64(),
                cpu_us: (now.1 - begun.1) / f64::from(tenth) * 1e6,
            });
            begun = now;
        }
    }
    let (first, last) = tenths.first().zip(tenths.last()).context("too few saves")?;
    Ok(Saves { first_tenth: *first, last_tenth: *last })
}

/// Name and type of every column that a save fills in beside relay, number and time.
async fn columns(operator: &mut PgConnection) -> Result<Vec<(String, String)>> {
    sqlx::query_as(
        "SELECT attname::text, format_type(atttypid, atttypmod) FROM pg_attribute
         WHERE attrelid = 'outbox.batches'::regclass AND attnum > 0 AND NOT attisdropped AND attgenerated = ''
           AND attname <> ALL ('{relay,seq,saved_at}') ORDER BY attnum",
    )
    .fetch_all(operator)
    .await
    .context("the columns of outbox.batches")
}

async fn newest_row(
    operator: &mut PgConnection,
    columns: &[(String, String)],
) -> Result<Vec<Option<String>>> {
    let names: Vec<String> = columns.iter().map(|(name, _)| format!("\"{name}\"::text")).collect();
    let sql =
        format!("SELECT {} FROM outbox.batches WHERE relay = $1 ORDER BY seq DESC LIMIT 1", names.join(", "));
    let row = sqlx::query(AssertSqlSafe(sql)).bind(RELAY).fetch_one(operator).await.context("a save")?;
    let values: Result<_, _> = (0..columns.len()).map(|column| row.try_get(column)).collect();
    values.context("read a save")
}

fn insert(columns: &[(String, String)]) -> String {
    let (mut names, mut values) = ("relay, seq".to_owned(), "$1, $2".to_owned());
    for ((name, kind), number) in columns.iter().zip(3..) {
        // Writing into a string does not fail.
        write!(names, ", \"{name}\"").ok();
        write!(values, ", ${number}::text::{kind}").ok();
    }
    format!("INSERT INTO outbox.batches ({names}) VALUES ({values})")
}

/// Rows of the outbox that are dead and still take room: counted one by one where PostgreSQL brings the means, otherwise as its
/// statistics know them.
pub(super) async fn dead_tuples(superuser: &mut PgConnection) -> Result<i64> {
    let countable: bool =
        sqlx::query_scalar("SELECT EXISTS (SELECT FROM pg_available_extensions WHERE name = 'pgstattuple')")
            .fetch_one(&mut *superuser)
            .await
            .context("look for pgstattuple")?;
    if !countable {
        return sqlx::query_scalar(
            "SELECT coalesce(sum(n_dead_tup), 0)::bigint FROM pg_stat_user_tables WHERE schemaname = 'outbox'",
        )
        .fetch_one(superuser)
        .await
        .context("the statistics of dead rows");
    }
    sqlx::query("CREATE EXTENSION IF NOT EXISTS pgstattuple").execute(&mut *superuser).await?;
    sqlx::query_scalar(
        "SELECT coalesce(sum((pgstattuple(oid)).dead_tuple_count), 0)::bigint FROM pg_class
         WHERE relnamespace = 'outbox'::regnamespace AND relkind = 'r'",
    )
    .fetch_one(superuser)
    .await
    .context("count dead rows")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_save_fills_in_every_column_in_its_own_type() {
        let columns = [("floor_id", "bigint"), ("window_to", "pg_snapshot")];
        let columns = columns.map(|(name, kind)| (name.to_owned(), kind.to_owned()));
        assert_eq!(
            insert(&columns),
            "INSERT INTO outbox.batches (relay, seq, \"floor_id\", \"window_to\") \
             VALUES ($1, $2, $3::text::bigint, $4::text::pg_snapshot)"
        );
    }
}
