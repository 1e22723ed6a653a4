//! The ring's turning, and who may do what.

use std::time::Duration;

use sqlx::{PgConnection, Row as _, postgres::types::PgInterval};

/// What became of a leaf.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Recycled {
    /// It held rows and is empty now.
    Emptied,
    /// It was empty.
    WasEmpty,
    /// It is left as it is, and why.
    Left(String),
}

/// Empties a leaf of the ring if it may be.
pub async fn recycle(connection: &mut PgConnection, slot: i16, keep: Duration) -> anyhow::Result<Recycled> {
    let row = sqlx::query("SELECT removed, refused FROM outbox.recycle($1, $2)")
        .bind(slot)
        .bind(interval(keep)?)
        .fetch_one(connection)
        .await?;
    Ok(match (row.try_get(0)?, row.try_get(1)?) {
        (true, _) => Recycled::Emptied,
        (false, None) => Recycled::WasEmpty,
        (false, Some(reason)) => Recycled::Left(reason),
    })
}

/// Removes a chunk of old progress and old parkings. Returns the number of rows.
pub async fn trim(connection: &mut PgConnection, keep: Duration, chunk: i32) -> anyhow::Result<i64> {
    Ok(sqlx::query_scalar("SELECT outbox.trim($1, $2)")
        .bind(interval(keep)?)
        .bind(chunk)
        .fetch_one(connection)
        .await?)
}

fn interval(duration: Duration) -> anyhow::Result<PgInterval> {
    PgInterval::try_from(duration).map_err(|error| anyhow::anyhow!("{duration:?}: {error}"))
}

/// Grants the use of the outbox: `function` is one of the grant functions of the migration.
pub async fn grant(
    connection: &mut PgConnection,
    function: GrantFunction,
    role: &str,
) -> Result<(), sqlx::Error> {
    let statement = match function {
        GrantFunction::Writer => "SELECT outbox.grant_writer($1::name)",
        GrantFunction::Relay => "SELECT outbox.grant_relay($1::name)",
        GrantFunction::Reader => "SELECT outbox.grant_reader($1::name)",
        GrantFunction::Operator => "SELECT outbox.grant_operator($1::name)",
    };
    sqlx::query(statement).bind(role).execute(connection).await?;
    Ok(())
}

/// What a role is granted.
#[derive(Clone, Copy, Debug)]
pub enum GrantFunction {
    /// Append events, take events once.
    Writer,
    /// Read events, add progress, turn the ring.
    Relay,
    /// Read everything.
    Reader,
    /// Read everything, and ask the leader for redrive, discard and replay.
    Operator,
}
