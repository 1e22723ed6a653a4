//! SQL of the outboxes, of whichever database: how the relays stand, when an event was published and where, what is parked, and what is
//! asked of the leader. Any role with `outbox.grant_operator()` may do all of it.

use serde_json::{Value, json};
use sqlx::{FromRow, PgPool};
use time::OffsetDateTime;
use uuid::Uuid;

/// Events that are counted as pending, before the page says "more".
pub(crate) const PENDING_COUNTED_MAX: i64 = 10_000;

// -------------------------------------------------------------------------------------------------------- at a glance

/// How a relay stands.
#[derive(Clone, Debug, FromRow)]
pub(crate) struct Relay {
    pub(crate) name: String,
    /// Host and process id of the leader that saved last.
    pub(crate) leader: Option<String>,
    /// Whether somebody holds the leader lock now.
    pub(crate) led: bool,
    /// Committed events that are not saved as published, up to one more than [`PENDING_COUNTED_MAX`].
    pub(crate) pending: i64,
    /// Age of the oldest of those, in seconds.
    pub(crate) oldest_seconds: Option<f64>,
    /// Events that cannot be published, up to one more than [`super::COUNTED_MAX`].
    pub(crate) parked: i64,
    /// Events held behind them, up to the same.
    pub(crate) held: i64,
    /// Why it refuses to run, if it does.
    pub(crate) halted: Option<String>,
}

/// How the relays of an outbox stand; none if no relay has ever run there. The three kinds of pending events are those of the view
/// `outbox.pending`, each read along its index from the oldest on and no further than it is counted.
pub(crate) async fn relays(pool: &PgPool) -> Result<Vec<Relay>, sqlx::Error> {
    sqlx::query_as(
        "SELECT c.relay AS name, c.leader, l.lock_session_pid IS NOT NULL AS led, p.pending,
                extract(epoch FROM clock_timestamp() - p.oldest_at)::float8 AS oldest_seconds,
                (SELECT count(*) FROM (SELECT FROM outbox.parked k
                     WHERE k.relay = c.relay AND k.released_at IS NULL AND k.reason IS NOT NULL LIMIT $2) AS k) AS parked,
                (SELECT count(*) FROM (SELECT FROM outbox.parked k
                     WHERE k.relay = c.relay AND k.released_at IS NULL AND k.reason IS NULL LIMIT $2) AS k) AS held,
                (SELECT h.reason FROM outbox.halts h WHERE h.relay = c.relay AND h.cleared_at IS NULL) AS halted
         FROM outbox.cursors c
         JOIN outbox.leaders l ON l.relay = c.relay
         CROSS JOIN LATERAL (
             SELECT count(*) AS pending, min(created_at) AS oldest_at FROM (
                 (SELECT n.created_at FROM outbox.events n WHERE n.xid >= pg_snapshot_xmax(c.window_to) ORDER BY n.xid, n.id LIMIT $1)
                 UNION ALL
                 (SELECT e.created_at FROM outbox.events e WHERE e.xid = ANY (ARRAY(SELECT pg_snapshot_xip(c.window_to))) LIMIT $1)
                 UNION ALL
                 (SELECT r.created_at
                  FROM (SELECT e.xid, e.created_at FROM outbox.events e WHERE c.after_id IS NOT NULL AND e.id > c.after_id
                        ORDER BY e.id LIMIT $1) AS r
                  WHERE NOT pg_visible_in_snapshot(r.xid, c.window_from) AND pg_visible_in_snapshot(r.xid, c.window_to))
                 LIMIT $1
             ) AS found
         ) AS p
         ORDER BY c.relay",
    )
    .bind(PENDING_COUNTED_MAX + 1)
    .bind(super::COUNTED_MAX + 1)
    .fetch_all(pool)
    .await
}

// ----------------------------------------------------------------------------------------------------------- one event

/// An event, and how far its relays have brought it.
#[derive(Clone, Debug, FromRow)]
pub(crate) struct Appended {
    pub(crate) event_id: Uuid,
    pub(crate) event_type: String,
    pub(crate) created_at: OffsetDateTime,
    /// When it was saved as published.
    pub(crate) published_at: Option<OffsetDateTime>,
    /// By which leader.
    pub(crate) leader: Option<String>,
    /// Topic -> partition -> first and last offset of the save that it was in.
    pub(crate) ranges: Option<Value>,
    /// Whether it is parked or held.
    pub(crate) parked: bool,
    /// Why it cannot be published, if it is that event itself.
    pub(crate) parked_reason: Option<String>,
}

/// Events of these ids, with their publication. Some may be gone: an outbox keeps its events for days.
pub(crate) async fn events(pool: &PgPool, event_ids: &[Uuid]) -> Result<Vec<Appended>, sqlx::Error> {
    sqlx::query_as(
        "SELECT e.event_id, e.event_type, e.created_at, p.published_at, p.leader, p.ranges,
                k.id IS NOT NULL AS parked, k.reason AS parked_reason
         FROM unnest($1::uuid[]) AS wanted (event_id)
         CROSS JOIN LATERAL (SELECT * FROM outbox.events e WHERE e.event_id = wanted.event_id ORDER BY e.id LIMIT 1) AS e
         LEFT JOIN LATERAL (
             SELECT p.published_at, p.leader, p.ranges FROM outbox.published p
             WHERE p.event_id = wanted.event_id ORDER BY p.published_at LIMIT 1
         ) AS p ON true
         LEFT JOIN LATERAL (
             SELECT k.id, k.reason FROM outbox.parked k WHERE k.event_id = wanted.event_id AND k.released_at IS NULL LIMIT 1
         ) AS k ON true",
    )
    .bind(event_ids)
    .fetch_all(pool)
    .await
}

/// The event that was appended for this key first at or after `from`, and no later than `to`. Event ids begin with their time, so this
/// is a range of their index, read from its beginning to the first that fits.
pub(crate) async fn first_event_of(
    pool: &PgPool,
    aggregate_id: &str,
    event_type: &str,
    (from, to): (Uuid, Uuid),
) -> Result<Option<Uuid>, sqlx::Error> {
    sqlx::query_scalar(
        "SELECT event_id FROM outbox.events WHERE event_id BETWEEN $1 AND $2 AND aggregate_id = $3 AND event_type = $4
         ORDER BY event_id LIMIT 1",
    )
    .bind(from)
    .bind(to)
    .bind(aggregate_id)
    .bind(event_type)
    .fetch_optional(pool)
    .await
}

// -------------------------------------------------------------------------------------------------------------- parked

/// An event that cannot be published.
#[derive(Clone, Debug, FromRow)]
pub(crate) struct ParkedEvent {
    pub(crate) relay: String,
    pub(crate) event_id: Uuid,
    pub(crate) event_type: String,
    pub(crate) aggregate_id: String,
    pub(crate) reason: String,
    pub(crate) attempts: i32,
    pub(crate) parked_at: OffsetDateTime,
    /// Events of its key that are held, up to one more than [`super::COUNTED_MAX`].
    pub(crate) held: i64,
}

const PARKED: &str = "SELECT p.relay, p.event_id, p.event_type, p.aggregate_id, p.reason, p.attempts, p.parked_at,
        (SELECT count(*) FROM (SELECT FROM outbox.parked h WHERE h.relay = p.relay AND h.aggregate_id = p.aggregate_id
             AND h.released_at IS NULL AND h.reason IS NULL LIMIT 1001) AS h) AS held
    FROM outbox.parked p WHERE p.released_at IS NULL AND p.reason IS NOT NULL";

/// Events that cannot be published, key by key, `limit` at most.
pub(crate) async fn parked(pool: &PgPool, limit: i64) -> Result<Vec<ParkedEvent>, sqlx::Error> {
    let mut query = sqlx::QueryBuilder::new(PARKED);
    query.push(" ORDER BY p.relay, p.aggregate_id, p.id LIMIT ").push_bind(limit);
    query.build_query_as().fetch_all(pool).await
}

/// One of them.
pub(crate) async fn parked_event(
    pool: &PgPool,
    relay: &str,
    event_id: Uuid,
) -> Result<Option<ParkedEvent>, sqlx::Error> {
    let mut query = sqlx::QueryBuilder::new(PARKED);
    query
        .push(" AND p.event_id = ")
        .push_bind(event_id)
        .push(" AND p.relay = ")
        .push_bind(relay)
        .push(" LIMIT 1");
    query.build_query_as().fetch_optional(pool).await
}

/// Asks the leader to redrive or discard one event, under the operator's name. Returns the command's number.
pub(crate) async fn request(
    pool: &PgPool,
    relay: &str,
    kind: &str,
    event_id: Uuid,
    (operator, note): (&str, &str),
) -> Result<i64, sqlx::Error> {
    sqlx::query_scalar("SELECT outbox.request($1, $2, $3, $4, $5)")
        .bind(relay)
        .bind(kind)
        .bind(json!({"event_ids": [event_id]}))
        .bind(operator)
        .bind(note)
        .fetch_one(pool)
        .await
}

/// A command, and what has come of it.
#[derive(Clone, Debug, FromRow)]
pub(crate) struct Command {
    pub(crate) kind: String,
    pub(crate) relay: String,
    pub(crate) selection: Value,
    pub(crate) operator: String,
    pub(crate) note: String,
    pub(crate) requested_at: OffsetDateTime,
    pub(crate) finished_at: Option<OffsetDateTime>,
    pub(crate) published: i64,
    pub(crate) result: Option<String>,
}

/// A command, and what has come of it.
pub(crate) async fn command(pool: &PgPool, id: i64) -> Result<Option<Command>, sqlx::Error> {
    sqlx::query_as(
        "SELECT kind, relay, selection, operator, note, requested_at, finished_at, published, result FROM outbox.commands WHERE id = $1",
    )
    .bind(id)
    .fetch_optional(pool)
    .await
}

/// Relays that refuse to run, and why.
pub(crate) async fn halts(pool: &PgPool) -> Result<Vec<(String, String)>, sqlx::Error> {
    sqlx::query_as("SELECT relay, reason FROM outbox.halts WHERE cleared_at IS NULL ORDER BY relay LIMIT 100")
        .fetch_all(pool)
        .await
}
