//! All SQL of the relay. Every statement is read whole; no transaction is ever left open.

use std::collections::BTreeMap;

use serde::Serialize;
use sqlx::{PgConnection, Row as _, postgres::PgRow};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::window::{Cursor, Snapshot};

/// A row of the outbox.
#[derive(Clone, Debug)]
pub struct OutboxRow {
    /// Publication order.
    pub id: i64,
    /// `ce_id`.
    pub event_id: Uuid,
    /// Type, looked up in the catalogue.
    pub event_type: String,
    /// Kafka key.
    pub aggregate_id: String,
    /// The event as JSON text, as PostgreSQL prints a jsonb.
    pub payload: String,
    /// W3C trace context as stored.
    pub traceparent: Option<String>,
    /// W3C trace state as stored.
    pub tracestate: Option<String>,
    /// When it was appended.
    pub created_at: OffsetDateTime,
}

/// Which server and database this is: snapshots of one mean nothing on another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerIdentity {
    /// Drawn by initdb.
    pub system_identifier: i64,
    /// Oid of the database.
    pub database_oid: i64,
    /// Raised by every promotion of a standby.
    pub timeline: i32,
    /// A standby, which cannot be written to.
    pub in_recovery: bool,
}

/// Asks the server who it is.
pub async fn server_identity(connection: &mut PgConnection) -> Result<ServerIdentity, sqlx::Error> {
    let row = sqlx::query(
        "SELECT (SELECT system_identifier FROM pg_control_system()) AS system_identifier,
                (SELECT oid::bigint FROM pg_database WHERE datname = current_database()) AS database_oid,
                (SELECT timeline_id FROM pg_control_checkpoint()) AS timeline,
                pg_is_in_recovery() AS in_recovery",
    )
    .fetch_one(connection)
    .await?;
    Ok(ServerIdentity {
        system_identifier: row.try_get("system_identifier")?,
        database_oid: row.try_get("database_oid")?,
        timeline: row.try_get("timeline")?,
        in_recovery: row.try_get("in_recovery")?,
    })
}

// ------------------------------------------------------------------------------------------------------------ leader lock

/// Ends the session on the server's side if this process sends nothing for so long: a process that is stopped or cut off so loses
/// its lock without any TCP tuning.
pub async fn limit_idle_session(connection: &mut PgConnection, seconds: u64) -> Result<(), sqlx::Error> {
    sqlx::query("SELECT set_config('idle_session_timeout', $1, false)")
        .bind(format!("{seconds}s"))
        .execute(connection)
        .await?;
    Ok(())
}

/// Takes the leader lock if it is free. Never waits: a session that waits in `pg_advisory_lock` is an active statement, whose
/// snapshot stops vacuum in the whole database.
pub async fn try_lock(connection: &mut PgConnection, key: i64) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar("SELECT pg_try_advisory_lock($1)").bind(key).fetch_one(connection).await
}

/// The server process behind this session, if that very process holds the lock.
pub async fn lock_holder(connection: &mut PgConnection, key: i64) -> Result<Option<i32>, sqlx::Error> {
    sqlx::query_scalar(
        "SELECT pid FROM pg_locks
         WHERE locktype = 'advisory' AND pid = pg_backend_pid() AND granted AND objsubid = 1
           AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
           AND classid::bigint = ($1 >> 32) & 4294967295 AND objid::bigint = $1 & 4294967295",
    )
    .bind(key)
    .fetch_optional(connection)
    .await
}

/// Gives the leader lock back.
pub async fn unlock(connection: &mut PgConnection, key: i64) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar("SELECT pg_advisory_unlock($1)").bind(key).fetch_one(connection).await
}

// --------------------------------------------------------------------------------------------------------------- tailing

/// Settings of a session that tails. Its statements have one right plan each, whatever statistics say: along an index. Planning them
/// anew would take longer than running them, and a parallel worker per look at the outbox longer still.
pub async fn prepare_for_tailing(connection: &mut PgConnection) -> Result<(), sqlx::Error> {
    for (setting, value) in [
        ("plan_cache_mode", "force_generic_plan"),
        ("enable_seqscan", "off"),
        ("enable_bitmapscan", "off"),
        ("max_parallel_workers_per_gather", "0"),
        ("jit", "off"),
    ] {
        sqlx::query("SELECT set_config($1, $2, false)")
            .bind(setting)
            .bind(value)
            .execute(&mut *connection)
            .await?;
    }
    Ok(())
}

/// Which server the newest cursor of a relay was saved on, and its timeline then. None if it has never saved.
pub async fn saved_on(
    connection: &mut PgConnection,
    relay: &str,
) -> Result<Option<ServerIdentity>, sqlx::Error> {
    let row = sqlx::query(
        "SELECT system_identifier, database_oid::bigint AS database_oid, timeline
         FROM outbox.batches WHERE relay = $1 ORDER BY seq DESC LIMIT 1",
    )
    .bind(relay)
    .fetch_optional(connection)
    .await?;
    let Some(row) = row else { return Ok(None) };
    Ok(Some(ServerIdentity {
        system_identifier: row.try_get("system_identifier")?,
        database_oid: row.try_get("database_oid")?,
        timeline: row.try_get("timeline")?,
        in_recovery: false,
    }))
}

/// The cursor of a relay: sequence number and place. None if it has never saved.
pub async fn load_cursor(
    connection: &mut PgConnection,
    relay: &str,
) -> anyhow::Result<Option<(i64, Cursor)>> {
    let row = sqlx::query(
        "SELECT seq, window_from::text, window_to::text, floor_id, after_id
         FROM outbox.batches WHERE relay = $1 ORDER BY seq DESC LIMIT 1",
    )
    .bind(relay)
    .fetch_optional(connection)
    .await?;
    let Some(row) = row else { return Ok(None) };
    let cursor = Cursor {
        from: row.try_get::<String, _>("window_from")?.parse()?,
        to: row.try_get::<String, _>("window_to")?.parse()?,
        floor: row.try_get("floor_id")?,
        after: row.try_get("after_id")?,
    };
    Ok(Some((row.try_get("seq")?, cursor)))
}

/// What [`open_window`] saw.
#[derive(Debug)]
pub struct Opened {
    /// The snapshot of the statement itself.
    pub to: Snapshot,
    /// Lowest id among rows of transactions that began after the last snapshot.
    pub floor: Option<i64>,
    /// Whether transactions that ran at the last snapshot have committed rows since.
    pub late: bool,
}

/// Takes a new snapshot, and looks whether it sees anything that `from` does not.
///
/// `min(id + 0)`: for a plain `min(id)` the planner walks the primary key from its start until a row fits, past every row ever
/// published.
pub async fn open_window(connection: &mut PgConnection, from: &Snapshot) -> anyhow::Result<Opened> {
    let row = sqlx::query(
        "SELECT pg_current_snapshot()::text AS snapshot,
                (SELECT min(id + 0) FROM outbox.events WHERE xid >= pg_snapshot_xmax($1::pg_snapshot)) AS floor_id,
                EXISTS (SELECT FROM outbox.events WHERE xid = ANY (ARRAY(SELECT pg_snapshot_xip($1::pg_snapshot)))) AS late",
    )
    .bind(from.to_string())
    .fetch_one(connection)
    .await?;
    Ok(Opened {
        to: row.try_get::<String, _>("snapshot")?.parse()?,
        floor: row.try_get("floor_id")?,
        late: row.try_get("late")?,
    })
}

/// The next rows of a window, in id order.
///
/// Below the floor: per late transaction along the index (xid, id). From the floor on: along the primary key; the test against
/// `window_from` is no condition that an index could serve, on purpose: with `xid >= ...` a planner with old statistics sorts the whole
/// backlog for every page.
pub async fn page(
    connection: &mut PgConnection,
    cursor: &Cursor,
    limit: i64,
) -> Result<Vec<OutboxRow>, sqlx::Error> {
    let rows = sqlx::query(
        "(SELECT late.*
          FROM pg_snapshot_xip($1::pg_snapshot) AS running(xid)
          CROSS JOIN LATERAL (
              SELECT id, event_id, event_type, aggregate_id, payload::text, traceparent, tracestate, created_at
              FROM outbox.events e
              WHERE e.xid = running.xid AND e.id > $4 AND e.id < coalesce($3, 9223372036854775807)
                AND pg_visible_in_snapshot(e.xid, $2::pg_snapshot)
              ORDER BY e.id LIMIT $5
          ) AS late)
         UNION ALL
         (SELECT id, event_id, event_type, aggregate_id, payload::text, traceparent, tracestate, created_at
          FROM outbox.events
          WHERE id > $4 AND id >= $3
            AND NOT pg_visible_in_snapshot(xid, $1::pg_snapshot)
            AND pg_visible_in_snapshot(xid, $2::pg_snapshot)
          ORDER BY id LIMIT $5)
         ORDER BY id LIMIT $5",
    )
    .bind(cursor.from.to_string())
    .bind(cursor.to.to_string())
    .bind(cursor.floor)
    .bind(cursor.after.unwrap_or(i64::MAX))
    .bind(limit)
    .fetch_all(connection)
    .await?;
    rows.iter().map(outbox_row).collect()
}

fn outbox_row(row: &PgRow) -> Result<OutboxRow, sqlx::Error> {
    Ok(OutboxRow {
        id: row.try_get(0)?,
        event_id: row.try_get(1)?,
        event_type: row.try_get(2)?,
        aggregate_id: row.try_get(3)?,
        payload: row.try_get(4)?,
        traceparent: row.try_get(5)?,
        tracestate: row.try_get(6)?,
        created_at: row.try_get(7)?,
    })
}

// -------------------------------------------------------------------------------------------------------------- progress

/// Topic -> partition -> the offset after the last record acknowledged.
pub type PartitionOffsets = BTreeMap<String, BTreeMap<i32, i64>>;

/// One row of progress.
#[derive(Clone, Debug)]
pub struct Progress {
    /// Place that has been reached: every row before it is acknowledged by the brokers.
    pub cursor: Cursor,
    /// Events published since the row before.
    pub count: i32,
    /// Lowest id published since the row before.
    pub first_id: Option<i64>,
    /// Highest id published since the row before.
    pub last_id: Option<i64>,
}

/// Why progress was not saved.
#[derive(Debug, thiserror::Error)]
pub enum SaveError {
    /// Another leader took over and has saved under this number: whoever sees this is no longer the leader.
    #[error("fenced: another leader saved as number {0}")]
    Fenced(i64),
    /// The database's own error.
    #[error(transparent)]
    Database(#[from] sqlx::Error),
}

/// Saves progress as row number `seq`, which must be free.
pub async fn save(
    connection: &mut PgConnection,
    relay: &str,
    seq: i64,
    leader_token: Uuid,
    progress: &Progress,
    offsets: &PartitionOffsets,
    server: &ServerIdentity,
) -> Result<(), SaveError> {
    let result = sqlx::query(
        "INSERT INTO outbox.batches (relay, seq, leader_token, window_from, window_to, floor_id, after_id, count, first_id, last_id,
                                     partition_offsets, system_identifier, database_oid, timeline)
         VALUES ($1, $2, $3, $4::pg_snapshot, $5::pg_snapshot, $6, $7, $8, $9, $10, $11, $12, $13::bigint::oid, $14)",
    )
    .bind(relay)
    .bind(seq)
    .bind(leader_token)
    .bind(progress.cursor.from.to_string())
    .bind(progress.cursor.to.to_string())
    .bind(progress.cursor.floor)
    .bind(progress.cursor.after)
    .bind(progress.count)
    .bind(progress.first_id)
    .bind(progress.last_id)
    .bind(sqlx::types::Json(offsets))
    .bind(server.system_identifier)
    .bind(server.database_oid)
    .bind(server.timeline)
    .execute(connection)
    .await;
    match result {
        Ok(_) => Ok(()),
        Err(sqlx::Error::Database(error)) if error.constraint() == Some("batches_pkey") => {
            Err(SaveError::Fenced(seq))
        }
        Err(other) => Err(SaveError::Database(other)),
    }
}

/// A progress that is durable before it is answered, whatever the database's default is.
pub async fn require_durable_commits(connection: &mut PgConnection) -> Result<(), sqlx::Error> {
    sqlx::query("SET synchronous_commit = on").execute(connection).await?;
    Ok(())
}

// ------------------------------------------------------------------------------------------------------------ operations

/// What waits to be published.
#[derive(Clone, Copy, Debug)]
pub struct Backlog {
    /// Number of events, counted up to [`BACKLOG_COUNTED_MAX`].
    pub pending: i64,
    /// Age in seconds of the oldest among those counted; 0 if there is none.
    pub oldest_age_seconds: f64,
}

/// Counting stops here: a backlog of millions is not counted every few seconds.
pub const BACKLOG_COUNTED_MAX: i64 = 100_000;

/// Measures the backlog of a relay, as far as progress has been saved.
pub async fn backlog(connection: &mut PgConnection, relay: &str) -> Result<Backlog, sqlx::Error> {
    let row = sqlx::query(
        "SELECT count(*) AS pending,
                coalesce(greatest(extract(epoch FROM clock_timestamp() - min(created_at)), 0), 0)::float8 AS oldest_age_seconds
         FROM (SELECT created_at FROM outbox.pending WHERE relay IS NOT DISTINCT FROM $1 OR relay IS NULL LIMIT $2) AS p",
    )
    .bind(relay)
    .bind(BACKLOG_COUNTED_MAX)
    .fetch_one(connection)
    .await?;
    Ok(Backlog { pending: row.try_get("pending")?, oldest_age_seconds: row.try_get("oldest_age_seconds")? })
}

/// One relay as `status` shows it.
#[derive(Debug, Serialize)]
pub struct RelayStatus {
    /// Name of the relay.
    pub relay: String,
    /// Number of its last save.
    pub seq: i64,
    /// Which term of which process saved it.
    pub leader_token: Uuid,
    /// When.
    #[serde(with = "time::serde::rfc3339")]
    pub saved_at: OffsetDateTime,
    /// Events not published yet, as far as progress has been saved.
    pub pending: i64,
    /// Age of the oldest of them, in seconds.
    pub oldest_pending_age_seconds: Option<f64>,
}

/// The view `outbox.status`.
pub async fn status(connection: &mut PgConnection) -> Result<Vec<RelayStatus>, sqlx::Error> {
    let rows = sqlx::query(
        "SELECT relay, seq, leader_token, saved_at, pending, extract(epoch FROM oldest_pending_age)::float8 AS age
         FROM outbox.status ORDER BY relay",
    )
    .fetch_all(connection)
    .await?;
    rows.iter()
        .map(|row| {
            Ok(RelayStatus {
                relay: row.try_get("relay")?,
                seq: row.try_get("seq")?,
                leader_token: row.try_get("leader_token")?,
                saved_at: row.try_get("saved_at")?,
                pending: row.try_get("pending")?,
                oldest_pending_age_seconds: row.try_get("age")?,
            })
        })
        .collect()
}

/// Events that no relay has ever looked at, in an outbox without progress.
pub async fn pending_without_relay(connection: &mut PgConnection) -> Result<i64, sqlx::Error> {
    sqlx::query_scalar("SELECT count(*) FROM outbox.pending WHERE relay IS NULL").fetch_one(connection).await
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
    };
    sqlx::query(statement).bind(role).execute(connection).await?;
    Ok(())
}

/// What a role is granted.
#[derive(Clone, Copy, Debug)]
pub enum GrantFunction {
    /// Append events, take events once.
    Writer,
    /// Read events, add progress.
    Relay,
    /// Read everything.
    Reader,
}
