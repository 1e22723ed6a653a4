//! What stops a relay from running on the wrong server, and what a failover has lost.

use sqlx::{Connection as _, PgConnection, Row as _};
use uuid::Uuid;

use super::{PartitionOffsets, SavedCursor, ServerIdentity, Signature};

/// Why a relay must not run, if it must not.
pub async fn halted(connection: &mut PgConnection, relay: &str) -> Result<Option<String>, sqlx::Error> {
    sqlx::query_scalar("SELECT reason FROM outbox.halts WHERE relay = $1 AND cleared_at IS NULL")
        .bind(relay)
        .fetch_optional(connection)
        .await
}

/// Sets the sticky flag. A relay that is halted already stays so for its first reason.
pub async fn halt(connection: &mut PgConnection, relay: &str, reason: &str) -> Result<(), sqlx::Error> {
    sqlx::query("INSERT INTO outbox.halts (relay, reason) VALUES ($1, $2) ON CONFLICT DO NOTHING")
        .bind(relay)
        .bind(reason)
        .execute(connection)
        .await?;
    Ok(())
}

/// A record of ours on a topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Located {
    /// `ce_id`.
    pub event_id: Uuid,
    /// Topic.
    pub topic: String,
    /// Partition.
    pub partition: i32,
    /// Offset.
    pub offset: i64,
}

/// Of these events, those that have no row.
pub async fn without_row(
    connection: &mut PgConnection,
    event_ids: &[Uuid],
) -> Result<Vec<Uuid>, sqlx::Error> {
    sqlx::query_scalar(
        "SELECT t FROM unnest($1::uuid[]) AS t WHERE NOT EXISTS (SELECT FROM outbox.events e WHERE e.event_id = t)",
    )
    .bind(event_ids)
    .fetch_all(connection)
    .await
}

/// Lists ghosts for the operators. Returns how many were not listed before.
pub async fn list_ghosts(
    connection: &mut PgConnection,
    relay: &str,
    ghosts: &[Located],
) -> Result<u64, sqlx::Error> {
    let result = sqlx::query(
        "INSERT INTO outbox.ghosts (event_id, relay, topic, partition, \"offset\")
         SELECT g.event_id, $1, g.topic, g.partition, g.position
         FROM unnest($2::uuid[], $3::text[], $4::integer[], $5::bigint[]) AS g(event_id, topic, partition, position)
         ON CONFLICT DO NOTHING",
    )
    .bind(relay)
    .bind(ghosts.iter().map(|ghost| ghost.event_id).collect::<Vec<_>>())
    .bind(ghosts.iter().map(|ghost| ghost.topic.clone()).collect::<Vec<_>>())
    .bind(ghosts.iter().map(|ghost| ghost.partition).collect::<Vec<_>>())
    .bind(ghosts.iter().map(|ghost| ghost.offset).collect::<Vec<_>>())
    .execute(connection)
    .await?;
    Ok(result.rows_affected())
}

/// How far the server's transaction ids are: one more than the highest finished.
pub async fn transaction_horizon(connection: &mut PgConnection) -> Result<u64, sqlx::Error> {
    let xmax: String = sqlx::query_scalar("SELECT pg_snapshot_xmax(pg_current_snapshot())::text")
        .fetch_one(connection)
        .await?;
    xmax.parse().map_err(|_| sqlx::Error::Protocol(format!("{xmax:?} is not a transaction id")))
}

/// Takes the cursor over to this server as it is: its transaction ids go on here, as after `pg_upgrade`.
pub async fn adopt(
    connection: &mut PgConnection,
    signature: &Signature,
    saved: &SavedCursor,
    operator: &str,
) -> Result<(), sqlx::Error> {
    let mut tx = connection.begin().await?;
    insert_cursor(&mut tx, signature, saved.seq + 1, saved).await?;
    clear(&mut tx, &signature.relay, operator, "adopt").await?;
    tx.commit().await
}

/// Numbers of a rebase.
#[derive(Clone, Copy, Debug)]
pub struct Rebased {
    /// Rows that were published before, as the cursor says.
    pub published: u64,
    /// Rows that are published from here on.
    pub pending: u64,
}

/// Gives every row a transaction id that means something on this server: those that the saved cursor is past become the oldest there
/// are, all others new. The cursor then begins at the old ones. Needs the owner: nobody else may change a row of the outbox.
///
/// A row counts as published only if its id was reached too: a row appended on this server before the rebase can have a transaction
/// id that the old server had used.
pub async fn rebase(
    connection: &mut PgConnection,
    signature: &Signature,
    saved: &SavedCursor,
    operator: &str,
) -> Result<Rebased, sqlx::Error> {
    let mut tx = connection.begin().await?;
    sqlx::query("SET LOCAL statement_timeout = 0").execute(&mut *tx).await?;
    // Appends wait for this one: a row written now would be counted neither here nor there.
    sqlx::query("LOCK TABLE outbox.events IN SHARE ROW EXCLUSIVE MODE").execute(&mut *tx).await?;
    let row = sqlx::query(
        "WITH reached AS (SELECT coalesce(max(last_id), 0) AS id FROM outbox.batches WHERE relay = $1),
              moved AS (
                  UPDATE outbox.events e
                  SET xid = CASE WHEN outbox.is_past($2::pg_snapshot, $3::pg_snapshot, $4, e.xid, e.id) AND e.id <= reached.id
                                 THEN '3'::xid8 ELSE pg_current_xact_id() END
                  FROM reached
                  RETURNING e.xid = '3'::xid8 AS published)
         SELECT count(*) FILTER (WHERE published), count(*) FILTER (WHERE NOT published) FROM moved",
    )
    .bind(&signature.relay)
    .bind(saved.cursor.from.to_string())
    .bind(saved.cursor.to.to_string())
    .bind(saved.cursor.after)
    .fetch_one(&mut *tx)
    .await?;
    let rebased = Rebased {
        published: row.try_get::<i64, _>(0)?.unsigned_abs(),
        pending: row.try_get::<i64, _>(1)?.unsigned_abs(),
    };
    // Sees the oldest transaction of all, and nothing else.
    let cursor = crate::window::Cursor {
        from: crate::window::Snapshot::nothing(),
        to: crate::window::Snapshot { xmin: 4, xmax: 4, in_progress: Vec::new() },
        floor: None,
        after: None,
    };
    insert_cursor(&mut tx, signature, saved.seq + 1, &SavedCursor { cursor, ..saved.clone() }).await?;
    clear(&mut tx, &signature.relay, operator, "rebase").await?;
    tx.commit().await?;
    Ok(rebased)
}

async fn insert_cursor(
    tx: &mut PgConnection,
    signature: &Signature,
    seq: i64,
    saved: &SavedCursor,
) -> Result<(), sqlx::Error> {
    let progress = super::Progress::at(saved.cursor.clone());
    let offsets: &PartitionOffsets = &saved.offsets;
    super::insert_batch(tx, signature, seq, &progress, offsets).await.map_err(|error| match error {
        super::SaveError::Database(error) => error,
        fenced @ super::SaveError::Fenced(_) => sqlx::Error::Protocol(fenced.to_string()),
    })
}

async fn clear(tx: &mut PgConnection, relay: &str, operator: &str, how: &str) -> Result<(), sqlx::Error> {
    sqlx::query(
        "UPDATE outbox.halts SET cleared_at = clock_timestamp(), cleared_by = $2, cleared_how = $3
         WHERE relay = $1 AND cleared_at IS NULL",
    )
    .bind(relay)
    .bind(operator)
    .bind(how)
    .execute(tx)
    .await?;
    Ok(())
}

/// True if the identity says another server or another database, whose transaction ids are not this one's.
pub fn is_another(saved_on: &ServerIdentity, server: &ServerIdentity) -> bool {
    (saved_on.system_identifier, saved_on.database_oid) != (server.system_identifier, server.database_oid)
}
