//! All SQL of the relay. Every statement is read whole; no transaction is left open while anything else is waited for.
//!
//! Here: who the server is, the leader lock, tailing, progress. Beside it: [`orders`] (parking and commands), [`guards`] (halts and
//! ghosts), [`upkeep`] (the ring, grants), [`checks`] (what operators ask).

pub mod checks;
pub mod guards;
pub mod orders;
pub mod upkeep;

use std::collections::BTreeMap;

use futures::TryStreamExt as _;
use sqlx::{Connection as _, PgConnection, Row as _, postgres::PgRow};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::window::{Cursor, Snapshot};

/// A row of the outbox, where it lies in what the server has sent: nothing of it is copied.
#[derive(Clone, Copy, Debug)]
pub struct OutboxRow<'a> {
    /// Publication order.
    pub id: i64,
    /// `ce_id`.
    pub event_id: Uuid,
    /// Type, looked up in the catalogue.
    pub event_type: &'a str,
    /// Kafka key.
    pub aggregate_id: &'a str,
    /// The event as JSON text.
    pub payload: &'a str,
    /// W3C trace context as stored.
    pub traceparent: Option<&'a str>,
    /// W3C trace state as stored.
    pub tracestate: Option<&'a str>,
    /// When it was appended.
    pub created_at: OffsetDateTime,
}

/// The columns of an [`OutboxRow`], in their order.
macro_rules! outbox_row_columns {
    () => {
        "e.id, e.event_id, e.event_type, e.aggregate_id, e.payload, e.traceparent, e.tracestate, e.created_at"
    };
}
pub(crate) use outbox_row_columns;

/// Unchecked: the statements that this is for name the columns and their types, and looking them up again for every value costs as
/// much as decoding it.
fn outbox_row(row: &PgRow) -> Result<OutboxRow<'_>, sqlx::Error> {
    Ok(OutboxRow {
        id: row.try_get_unchecked(0)?,
        event_id: row.try_get_unchecked(1)?,
        event_type: row.try_get_unchecked(2)?,
        aggregate_id: row.try_get_unchecked(3)?,
        payload: row.try_get_unchecked(4)?,
        traceparent: row.try_get_unchecked(5)?,
        tracestate: row.try_get_unchecked(6)?,
        created_at: row.try_get_unchecked(7)?,
    })
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
                -- The control file has the timeline of the last checkpoint: after a promotion, for a while, the one before.
                CASE WHEN pg_is_in_recovery() THEN (SELECT timeline_id FROM pg_control_checkpoint())
                     ELSE ('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::integer END AS timeline,
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

/// The number of a relay's leader lock, by the function that the views use too.
pub async fn lock_key(connection: &mut PgConnection, relay: &str) -> Result<i64, sqlx::Error> {
    sqlx::query_scalar("SELECT outbox.leader_lock($1)").bind(relay).fetch_one(connection).await
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

/// The newest progress of a relay.
#[derive(Clone, Debug)]
pub struct SavedCursor {
    /// Number of the save.
    pub seq: i64,
    /// Place that was reached.
    pub cursor: Cursor,
    /// Offsets after the last records acknowledged.
    pub offsets: PartitionOffsets,
    /// Where it was saved.
    pub server: ServerIdentity,
}

/// The newest progress of a relay. None if it has never saved.
pub async fn load_cursor(connection: &mut PgConnection, relay: &str) -> anyhow::Result<Option<SavedCursor>> {
    let row = sqlx::query(
        "SELECT seq, window_from::text, window_to::text, floor_id, after_id, partition_offsets,
                system_identifier, database_oid::bigint AS database_oid, timeline
         FROM outbox.batches WHERE relay = $1 ORDER BY seq DESC LIMIT 1",
    )
    .bind(relay)
    .fetch_optional(connection)
    .await?;
    let Some(row) = row else { return Ok(None) };
    Ok(Some(SavedCursor {
        seq: row.try_get("seq")?,
        cursor: Cursor {
            from: row.try_get::<String, _>("window_from")?.parse()?,
            to: row.try_get::<String, _>("window_to")?.parse()?,
            floor: row.try_get("floor_id")?,
            after: row.try_get("after_id")?,
        },
        offsets: row.try_get::<sqlx::types::Json<_>, _>("partition_offsets")?.0,
        server: ServerIdentity {
            system_identifier: row.try_get("system_identifier")?,
            database_oid: row.try_get("database_oid")?,
            timeline: row.try_get("timeline")?,
            in_recovery: false,
        },
    }))
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

/// How far a page came.
#[derive(Clone, Copy, Debug, Default)]
pub struct PageEnd {
    /// Rows of it.
    pub rows: usize,
    /// The id of the last one.
    pub last_id: Option<i64>,
    /// There may be more behind it.
    pub more: bool,
}

/// From the floor on: along the primary key; the test against `window_from` is no condition that an index could serve, on purpose: with
/// `xid >= ...` a planner with old statistics sorts the whole backlog for every page. The snapshots are sub-selects so that each is
/// parsed once, not once per row.
macro_rules! new_rows {
    () => {
        concat!(
            "SELECT ",
            outbox_row_columns!(),
            "
             FROM outbox.events e
             WHERE e.id > $4 AND e.id >= $3
               AND NOT pg_visible_in_snapshot(e.xid, (SELECT $1::pg_snapshot))
               AND pg_visible_in_snapshot(e.xid, (SELECT $2::pg_snapshot))
             ORDER BY e.id LIMIT $5"
        )
    };
}

/// A window behind a snapshot at which nothing was running, as most are: nothing can be late.
const NEW_ROWS: &str = new_rows!();

/// Below the floor: per late transaction along the index (xid, id).
const LATE_AND_NEW_ROWS: &str = concat!(
    "(SELECT late.*
      FROM pg_snapshot_xip($1::pg_snapshot) AS running(xid)
      CROSS JOIN LATERAL (
          SELECT ",
    outbox_row_columns!(),
    "
          FROM outbox.events e
          WHERE e.xid = running.xid AND e.id > $4 AND e.id < coalesce($3, 9223372036854775807)
            AND pg_visible_in_snapshot(e.xid, (SELECT $2::pg_snapshot))
          ORDER BY e.id LIMIT $5
      ) AS late)
     UNION ALL (",
    new_rows!(),
    ") ORDER BY id LIMIT $5"
);

/// Gives `take` the next rows of a window, in id order: at most `rows_max`, and payloads of at most `bytes_max`, unless a single one is
/// larger.
pub async fn page(
    connection: &mut PgConnection,
    cursor: &Cursor,
    rows_max: usize,
    bytes_max: usize,
    mut take: impl FnMut(&OutboxRow<'_>),
) -> Result<PageEnd, sqlx::Error> {
    let query = sqlx::query(if cursor.from.in_progress.is_empty() { NEW_ROWS } else { LATE_AND_NEW_ROWS });
    let mut answer = query
        .bind(cursor.from.to_string())
        .bind(cursor.to.to_string())
        .bind(cursor.floor)
        .bind(cursor.after.unwrap_or(i64::MAX))
        .bind(i64::try_from(rows_max).unwrap_or(i64::MAX))
        .fetch(connection);
    let (mut end, mut bytes, mut read) = (PageEnd::default(), 0, 0);
    // Read to its end whatever it brings: a statement that is left open would keep vacuum from its work.
    while let Some(row) = answer.try_next().await? {
        let row = outbox_row(&row)?;
        read += 1;
        bytes += row.payload.len();
        if bytes <= bytes_max || end.rows == 0 {
            take(&row);
            end.rows += 1;
            end.last_id = Some(row.id);
        }
    }
    end.more = read == rows_max || end.rows < read;
    Ok(end)
}

// -------------------------------------------------------------------------------------------------------------- progress

/// Topic -> partition -> the offset after the last record acknowledged.
pub type PartitionOffsets = BTreeMap<String, BTreeMap<i32, i64>>;

/// Topic -> partition -> first and last offset.
pub type OffsetRanges = BTreeMap<String, BTreeMap<i32, (i64, i64)>>;

/// Who saves: the same in every row that a leader writes in one term.
#[derive(Clone, Debug)]
pub struct Signature {
    /// Name of the relay.
    pub relay: String,
    /// Host and process id.
    pub leader: String,
    /// Drawn when the lock was taken.
    pub token: Uuid,
    /// Where the cursor is valid.
    pub server: ServerIdentity,
}

/// What one save of progress says.
#[derive(Clone, Debug)]
pub struct Progress {
    /// Place that has been reached: every row before it is acknowledged by the brokers, or parked.
    pub cursor: Cursor,
    /// Events published since the row before.
    pub count: i32,
    /// Lowest id passed since the row before.
    pub first_id: Option<i64>,
    /// Highest id passed since the row before.
    pub last_id: Option<i64>,
    /// Where the records lie.
    pub ranges: OffsetRanges,
    /// Rows passed without being published.
    pub parked: Vec<orders::Parking>,
    /// What was done of an operator's command.
    pub carried_out: Option<orders::CarriedOut>,
}

impl Progress {
    /// A save that says nothing but the place.
    pub fn at(cursor: Cursor) -> Self {
        Self {
            cursor,
            count: 0,
            first_id: None,
            last_id: None,
            ranges: OffsetRanges::new(),
            parked: Vec::new(),
            carried_out: None,
        }
    }
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

/// Saves progress as row number `seq`, which must be free. Parkings, and what was carried out of a command, are of the same
/// transaction: no event is passed without either a record or a row that says why not.
pub async fn save(
    connection: &mut PgConnection,
    signature: &Signature,
    seq: i64,
    progress: &Progress,
    offsets: &PartitionOffsets,
) -> Result<(), SaveError> {
    if progress.parked.is_empty() && progress.carried_out.is_none() {
        return insert_batch(connection, signature, seq, progress, offsets).await;
    }
    // On a connection of its own, never pooled: if this is cancelled, the connection goes with it.
    let mut tx = connection.begin().await?;
    insert_batch(&mut tx, signature, seq, progress, offsets).await?;
    orders::park(&mut tx, &signature.relay, &progress.parked).await?;
    if let Some(done) = &progress.carried_out {
        orders::record(&mut tx, &signature.relay, done).await?;
    }
    tx.commit().await?;
    Ok(())
}

async fn insert_batch(
    connection: &mut PgConnection,
    signature: &Signature,
    seq: i64,
    progress: &Progress,
    offsets: &PartitionOffsets,
) -> Result<(), SaveError> {
    let result = sqlx::query(
        "INSERT INTO outbox.batches (relay, seq, leader_token, leader, window_from, window_to, floor_id, after_id, count, first_id,
                                     last_id, ranges, partition_offsets, system_identifier, database_oid, timeline)
         VALUES ($1, $2, $3, $4, $5::pg_snapshot, $6::pg_snapshot, $7, $8, $9, $10, $11, $12, $13, $14, $15::bigint::oid, $16)",
    )
    .bind(&signature.relay)
    .bind(seq)
    .bind(signature.token)
    .bind(&signature.leader)
    .bind(progress.cursor.from.to_string())
    .bind(progress.cursor.to.to_string())
    .bind(progress.cursor.floor)
    .bind(progress.cursor.after)
    .bind(progress.count)
    .bind(progress.first_id)
    .bind(progress.last_id)
    .bind(sqlx::types::Json(&progress.ranges))
    .bind(sqlx::types::Json(offsets))
    .bind(signature.server.system_identifier)
    .bind(signature.server.database_oid)
    .bind(signature.server.timeline)
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
