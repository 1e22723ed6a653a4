//! What operators ask: backlog, status, what is parked, what doctor looks at, what verify compares.

use serde::Serialize;
use sqlx::{PgConnection, Row as _};
use time::OffsetDateTime;
use uuid::Uuid;

/// What waits to be published.
#[derive(Clone, Copy, Debug)]
pub struct Backlog {
    /// Number of events, counted up to [`BACKLOG_COUNTED_MAX`].
    pub pending: i64,
    /// Age in seconds of the oldest among those counted; 0 if there is none.
    pub oldest_age_seconds: f64,
    /// Events that cannot be published.
    pub parked: i64,
    /// Events held behind them.
    pub held: i64,
    /// What the last `verify` found missing on the topic.
    pub missing: i64,
    /// When that was, in seconds since 1970; 0 if it never was.
    pub verified_seconds: f64,
    /// Events that a failover has lost.
    pub ghosts: i64,
    /// Size of the events' tables, with their indexes.
    pub table_bytes: i64,
}

/// Counting stops here: a backlog of millions is not counted every few seconds.
pub const BACKLOG_COUNTED_MAX: i64 = 100_000;

/// Measures the backlog of a relay, as far as progress has been saved.
pub async fn backlog(connection: &mut PgConnection, relay: &str) -> Result<Backlog, sqlx::Error> {
    let row = sqlx::query(
        "SELECT count(*) AS pending,
                coalesce(greatest(extract(epoch FROM clock_timestamp() - min(created_at)), 0), 0)::float8 AS oldest_age_seconds,
                (SELECT count(*) FROM outbox.parked k WHERE k.relay = $1 AND k.released_at IS NULL AND k.reason IS NOT NULL) AS parked,
                (SELECT count(*) FROM outbox.parked k WHERE k.relay = $1 AND k.released_at IS NULL AND k.reason IS NULL) AS held,
                coalesce((SELECT missing FROM outbox.verifications v WHERE v.relay = $1 ORDER BY id DESC LIMIT 1), 0) AS missing,
                coalesce((SELECT extract(epoch FROM max(finished_at)) FROM outbox.verifications v WHERE v.relay = $1), 0)::float8
                    AS verified_seconds,
                (SELECT count(*) FROM outbox.ghosts g WHERE g.relay = $1) AS ghosts,
                (SELECT coalesce(sum(pg_total_relation_size(inhrelid)), 0) FROM pg_inherits
                 WHERE inhparent = 'outbox.events'::regclass)::bigint AS table_bytes
         FROM (SELECT created_at FROM outbox.pending WHERE relay IS NOT DISTINCT FROM $1 OR relay IS NULL LIMIT $2) AS p",
    )
    .bind(relay)
    .bind(BACKLOG_COUNTED_MAX)
    .fetch_one(connection)
    .await?;
    Ok(Backlog {
        pending: row.try_get("pending")?,
        oldest_age_seconds: row.try_get("oldest_age_seconds")?,
        parked: row.try_get("parked")?,
        held: row.try_get("held")?,
        missing: row.try_get("missing")?,
        verified_seconds: row.try_get("verified_seconds")?,
        ghosts: row.try_get("ghosts")?,
        table_bytes: row.try_get("table_bytes")?,
    })
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
    /// Host and process id of the leader that saved last.
    pub leader: Option<String>,
    /// Whether somebody holds the leader lock now.
    pub led: bool,
    /// Events that cannot be published.
    pub parked: i64,
    /// Events held behind them.
    pub held: i64,
    /// Why the relay refuses to run, if it does.
    pub halted: Option<String>,
}

/// The view `outbox.status`.
pub async fn status(connection: &mut PgConnection) -> Result<Vec<RelayStatus>, sqlx::Error> {
    let rows = sqlx::query(
        "SELECT relay, seq, leader_token, saved_at, pending, extract(epoch FROM oldest_pending_age)::float8 AS age,
                leader, lock_session_pid IS NOT NULL AS led, parked, held, halted
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
                leader: row.try_get("leader")?,
                led: row.try_get("led")?,
                parked: row.try_get("parked")?,
                held: row.try_get("held")?,
                halted: row.try_get("halted")?,
            })
        })
        .collect()
}

/// Events that no relay has ever looked at, in an outbox without progress.
pub async fn pending_without_relay(connection: &mut PgConnection) -> Result<i64, sqlx::Error> {
    sqlx::query_scalar("SELECT count(*) FROM outbox.pending WHERE relay IS NULL").fetch_one(connection).await
}

/// One line of `parked`: the view `outbox.stuck`.
#[derive(Debug, Serialize)]
pub struct Stuck {
    /// Name of the relay.
    pub relay: String,
    /// `parked`, `held`, or `relay`.
    pub what: String,
    /// Why it does not move.
    pub why: String,
    /// Outbox id.
    pub id: Option<i64>,
    /// Event id.
    pub event_id: Option<Uuid>,
    /// Its type.
    pub event_type: Option<String>,
    /// Its key.
    pub aggregate_id: Option<String>,
    /// How often publication was tried.
    pub attempts: Option<i32>,
    /// Since when.
    #[serde(with = "time::serde::rfc3339")]
    pub since: OffsetDateTime,
}

/// The view `outbox.stuck`, oldest first.
pub async fn stuck(connection: &mut PgConnection, limit: i64) -> Result<Vec<Stuck>, sqlx::Error> {
    let rows = sqlx::query(
        "SELECT relay, what, why, id, event_id, event_type, aggregate_id, attempts, since
         FROM outbox.stuck ORDER BY relay, id NULLS FIRST LIMIT $1",
    )
    .bind(limit)
    .fetch_all(connection)
    .await?;
    rows.iter()
        .map(|row| {
            Ok(Stuck {
                relay: row.try_get(0)?,
                what: row.try_get(1)?,
                why: row.try_get(2)?,
                id: row.try_get(3)?,
                event_id: row.try_get(4)?,
                event_type: row.try_get(5)?,
                aggregate_id: row.try_get(6)?,
                attempts: row.try_get(7)?,
                since: row.try_get(8)?,
            })
        })
        .collect()
}

// ---------------------------------------------------------------------------------------------------------------- verify

/// The next events after an outbox id that the relay is past, were appended at `since` or later, and should be on the topic.
pub async fn published_since(
    connection: &mut PgConnection,
    relay: &str,
    since: OffsetDateTime,
    after_id: i64,
    limit: i64,
) -> Result<Vec<(i64, Uuid)>, sqlx::Error> {
    let rows = sqlx::query(
        "SELECT e.id, e.event_id
         FROM outbox.events e, (SELECT * FROM outbox.batches WHERE relay = $1 ORDER BY seq DESC LIMIT 1) AS c
         WHERE outbox.is_past(c.window_from, c.window_to, c.after_id, e.xid, e.id) AND e.id > $3 AND e.created_at >= $2
           AND NOT EXISTS (SELECT FROM outbox.parked p WHERE p.relay = $1 AND p.id = e.id AND p.outcome IS DISTINCT FROM 'redriven')
         ORDER BY e.id LIMIT $4",
    )
    .bind(relay)
    .bind(since)
    .bind(after_id)
    .bind(limit)
    .fetch_all(connection)
    .await?;
    rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).collect()
}

/// What a verification has found.
#[derive(Clone, Debug, Serialize)]
pub struct Verification {
    /// Name of the relay.
    pub relay: String,
    /// Events appended since then were compared.
    #[serde(with = "time::serde::rfc3339")]
    pub since: OffsetDateTime,
    /// Events that should be on the topics.
    pub events: i64,
    /// Records of this outbox found there.
    pub records: i64,
    /// Events that are not there.
    pub missing: i64,
    /// The command that replays them.
    pub command: Option<i64>,
}

/// Keeps a verification for the operators and for the metric.
pub async fn keep_verification(
    connection: &mut PgConnection,
    found: &Verification,
) -> Result<(), sqlx::Error> {
    sqlx::query(
        "INSERT INTO outbox.verifications (relay, since, events, records, missing, command_id) VALUES ($1, $2, $3, $4, $5, $6)",
    )
    .bind(&found.relay)
    .bind(found.since)
    .bind(found.events)
    .bind(found.records)
    .bind(found.missing)
    .bind(found.command)
    .execute(connection)
    .await?;
    Ok(())
}

// ---------------------------------------------------------------------------------------------------------------- doctor

/// What doctor wants to know of the server.
#[derive(Clone, Debug)]
pub struct ServerFacts {
    /// `server_version_num`.
    pub version: i32,
    /// Whether the role is a superuser, which a relay should not be.
    pub superuser: bool,
    /// Whether commits are lost by a crash by default.
    pub synchronous_commit: String,
    /// Server's clock.
    pub now: OffsetDateTime,
    /// Version of the outbox, as migrated.
    pub migrated: Option<i64>,
    /// Age of the oldest transaction of this database, in seconds, as far as the role may see.
    pub oldest_transaction_seconds: Option<f64>,
}

/// Asks the server.
pub async fn server_facts(connection: &mut PgConnection) -> Result<ServerFacts, sqlx::Error> {
    let row = sqlx::query(
        "SELECT current_setting('server_version_num')::integer AS version,
                (SELECT rolsuper FROM pg_roles WHERE rolname = current_user) AS superuser,
                current_setting('synchronous_commit') AS synchronous_commit, clock_timestamp() AS now,
                (SELECT extract(epoch FROM max(clock_timestamp() - xact_start))::float8 FROM pg_stat_activity
                 WHERE datname = current_database() AND pid <> pg_backend_pid()) AS oldest_transaction_seconds",
    )
    .fetch_one(&mut *connection)
    .await?;
    // A role without the outbox's grants may still run doctor, and be told so.
    let migrated =
        sqlx::query_scalar("SELECT max(version) FROM outbox.migrations").fetch_one(&mut *connection).await;
    Ok(ServerFacts {
        version: row.try_get("version")?,
        superuser: row.try_get("superuser")?,
        synchronous_commit: row.try_get("synchronous_commit")?,
        now: row.try_get("now")?,
        migrated: migrated.unwrap_or_default(),
        oldest_transaction_seconds: row.try_get("oldest_transaction_seconds")?,
    })
}

/// Privileges that a relay needs and this role lacks.
pub async fn missing_privileges(connection: &mut PgConnection) -> Result<Vec<String>, sqlx::Error> {
    sqlx::query_scalar(
        "SELECT what FROM (
             SELECT format('%s on %s', p, t) AS what, has_table_privilege(t, p) AS held
             FROM (VALUES ('outbox.events', 'SELECT'), ('outbox.batches', 'SELECT'), ('outbox.batches', 'INSERT'),
                          ('outbox.parked', 'SELECT'), ('outbox.parked', 'INSERT'), ('outbox.commands', 'SELECT'),
                          ('outbox.halts', 'INSERT'), ('outbox.ghosts', 'INSERT')) AS needed(t, p)
             UNION ALL
             SELECT format('EXECUTE on %s', f), has_function_privilege(f, 'EXECUTE')
             FROM (VALUES ('outbox.recycle(smallint, interval)'), ('outbox.trim(interval, integer)'),
                          ('outbox.leader_lock(text)')) AS needed(f)
         ) AS checked WHERE NOT held",
    )
    .fetch_all(connection)
    .await
}

/// True if this session is one with the server's: the settings that it began with are there, what it sets stays, and the same server
/// process answers every time. Behind a pooler that shares server sessions one of the three is missing.
pub async fn session_is_own(connection: &mut PgConnection) -> Result<bool, sqlx::Error> {
    let mark = Uuid::now_v7().to_string();
    let begun: String = sqlx::query_scalar("SELECT current_setting('idle_in_transaction_session_timeout')")
        .fetch_one(&mut *connection)
        .await?;
    sqlx::query("SELECT set_config('outbox.session', $1, false)")
        .bind(&mark)
        .execute(&mut *connection)
        .await?;
    let mut answered_by = Vec::new();
    for _ in 0..3 {
        let (pid, found): (i32, Option<String>) =
            sqlx::query_as("SELECT pg_backend_pid(), current_setting('outbox.session', true)")
                .fetch_one(&mut *connection)
                .await?;
        if found.as_deref() != Some(&mark) {
            return Ok(false);
        }
        answered_by.push(pid);
    }
    answered_by.dedup();
    Ok(answered_by.len() == 1 && begun == chassis::postgres::IDLE_IN_TRANSACTION_MAX)
}
