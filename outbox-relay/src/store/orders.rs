//! Parking, and what operators ask of the leader.

use std::collections::HashSet;

use serde::{Deserialize, Serialize};
use sqlx::{PgConnection, Row as _};
use time::OffsetDateTime;
use uuid::Uuid;

use super::{OutboxRow, outbox_row, outbox_row_columns};

/// A row that is passed without being published.
#[derive(Clone, Debug)]
pub struct Parking {
    /// Outbox id.
    pub id: i64,
    /// Event id.
    pub event_id: Uuid,
    /// Type of the event.
    pub event_type: String,
    /// Its key, which is held from now on.
    pub aggregate_id: String,
    /// What is wrong with it; None: held behind another event of its key.
    pub reason: Option<String>,
}

/// Writes parkings. A row that is parked already stays as it is.
///
/// The leaf of the ring, which is kept as long as the row is parked, is looked up here: every page would have to carry it for the few
/// rows that are parked.
pub(super) async fn park(
    connection: &mut PgConnection,
    relay: &str,
    parkings: &[Parking],
) -> Result<(), sqlx::Error> {
    if parkings.is_empty() {
        return Ok(());
    }
    let column = |of: fn(&Parking) -> String| parkings.iter().map(of).collect::<Vec<_>>();
    sqlx::query(
        "INSERT INTO outbox.parked (relay, id, event_id, event_type, aggregate_id, slot, reason)
         SELECT $1, p.id, p.event_id, p.event_type, p.aggregate_id, (SELECT e.slot FROM outbox.events e WHERE e.id = p.id), p.reason
         FROM unnest($2::bigint[], $3::uuid[], $4::text[], $5::text[], $6::text[]) AS p (id, event_id, event_type, aggregate_id, reason)
         ON CONFLICT (relay, id) DO NOTHING",
    )
    .bind(relay)
    .bind(parkings.iter().map(|row| row.id).collect::<Vec<_>>())
    .bind(parkings.iter().map(|row| row.event_id).collect::<Vec<_>>())
    .bind(column(|row| row.event_type.clone()))
    .bind(column(|row| row.aggregate_id.clone()))
    .bind(parkings.iter().map(|row| row.reason.clone()).collect::<Vec<_>>())
    .execute(connection)
    .await?;
    Ok(())
}

/// The keys of which something is parked.
pub async fn held_keys(connection: &mut PgConnection, relay: &str) -> Result<HashSet<String>, sqlx::Error> {
    let keys: Vec<String> = sqlx::query_scalar(
        "SELECT DISTINCT aggregate_id FROM outbox.parked WHERE relay = $1 AND released_at IS NULL",
    )
    .bind(relay)
    .fetch_all(connection)
    .await?;
    Ok(keys.into_iter().collect())
}

/// Which events an operator means. What is given must all apply; nothing given means everything.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Selection {
    /// These events.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub event_ids: Option<Vec<Uuid>>,
    /// Events of these keys.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keys: Option<Vec<String>>,
    /// Outbox ids from here on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from_id: Option<i64>,
    /// Outbox ids up to here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to_id: Option<i64>,
    /// Appended at this time or later.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "time::serde::rfc3339::option")]
    pub since: Option<OffsetDateTime>,
    /// Appended before this time.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "time::serde::rfc3339::option")]
    pub until: Option<OffsetDateTime>,
}

impl Selection {
    /// True if nothing is given.
    pub fn is_everything(&self) -> bool {
        *self == Self::default()
    }
}

/// What is done with a selection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum CommandKind {
    /// Publish what is parked, whole keys in order.
    Redrive,
    /// Give parked events up, and publish what was held behind them.
    Discard,
    /// Publish again what was published before.
    Replay,
}

impl CommandKind {
    /// As it stands in the table.
    pub fn name(self) -> &'static str {
        match self {
            Self::Redrive => "redrive",
            Self::Discard => "discard",
            Self::Replay => "replay",
        }
    }
}

/// A command that is not finished.
#[derive(Clone, Debug)]
pub struct Command {
    /// Number of the row.
    pub id: i64,
    /// What to do.
    pub kind: CommandKind,
    /// With what; an error if the row's JSON does not say.
    pub selection: Result<Selection, String>,
    /// Done up to this outbox id.
    pub after_id: i64,
    /// Name of the operator.
    pub operator: String,
}

/// The oldest unfinished command of a relay.
pub async fn next_command(
    connection: &mut PgConnection,
    relay: &str,
) -> Result<Option<Command>, sqlx::Error> {
    let row = sqlx::query(
        "SELECT id, kind, selection::text, after_id, operator FROM outbox.commands
         WHERE relay = $1 AND finished_at IS NULL ORDER BY id LIMIT 1",
    )
    .bind(relay)
    .fetch_optional(connection)
    .await?;
    let Some(row) = row else { return Ok(None) };
    let kind = match row.try_get::<&str, _>(1)? {
        "redrive" => CommandKind::Redrive,
        "discard" => CommandKind::Discard,
        // The table's check constraint knows no other.
        _ => CommandKind::Replay,
    };
    Ok(Some(Command {
        id: row.try_get(0)?,
        kind,
        selection: serde_json::from_str(row.try_get(2)?).map_err(|error| error.to_string()),
        after_id: row.try_get(3)?,
        operator: row.try_get(4)?,
    }))
}

/// What one slice of a command has done.
#[derive(Clone, Debug)]
pub struct CarriedOut {
    /// The command.
    pub command: i64,
    /// What kind it is.
    pub kind: CommandKind,
    /// Done up to this outbox id.
    pub after_id: i64,
    /// Parked rows that were published in this slice.
    pub released: Vec<i64>,
    /// Parked rows that could not be published this time either, and why.
    pub refused: Vec<(i64, String)>,
    /// Events published in this slice.
    pub published: i64,
    /// Set with the last slice: what came of the command.
    pub result: Option<String>,
}

/// Records what a slice has done, in the transaction of its save.
pub(super) async fn record(
    connection: &mut PgConnection,
    relay: &str,
    done: &CarriedOut,
) -> Result<(), sqlx::Error> {
    if !done.released.is_empty() {
        sqlx::query(
            "UPDATE outbox.parked SET released_at = clock_timestamp(), outcome = 'redriven', command_id = $3
             WHERE relay = $1 AND id = ANY ($2) AND released_at IS NULL",
        )
        .bind(relay)
        .bind(&done.released)
        .bind(done.command)
        .execute(&mut *connection)
        .await?;
    }
    if !done.refused.is_empty() {
        let (ids, reasons): (Vec<i64>, Vec<String>) = done.refused.iter().cloned().unzip();
        sqlx::query(
            "UPDATE outbox.parked p SET reason = r.reason, attempts = p.attempts + 1, command_id = $4
             FROM unnest($2::bigint[], $3::text[]) AS r(id, reason)
             WHERE p.relay = $1 AND p.id = r.id AND p.released_at IS NULL",
        )
        .bind(relay)
        .bind(ids)
        .bind(reasons)
        .bind(done.command)
        .execute(&mut *connection)
        .await?;
    }
    sqlx::query(
        "UPDATE outbox.commands
         SET started_at = coalesce(started_at, clock_timestamp()), after_id = $2, published = published + $3,
             finished_at = CASE WHEN $4::text IS NULL THEN NULL ELSE clock_timestamp() END, result = $4
         WHERE id = $1",
    )
    .bind(done.command)
    .bind(done.after_id)
    .bind(done.published)
    .bind(&done.result)
    .execute(connection)
    .await?;
    Ok(())
}

/// Ends a command.
pub async fn finish(connection: &mut PgConnection, command: i64, result: &str) -> Result<(), sqlx::Error> {
    sqlx::query(
        "UPDATE outbox.commands
         SET started_at = coalesce(started_at, clock_timestamp()), finished_at = clock_timestamp(),
             result = $2 || coalesce(nullif(format(', %s refused', (
                 SELECT count(*) FROM outbox.parked p WHERE p.command_id = $1 AND p.released_at IS NULL)), ', 0 refused'), '')
         WHERE id = $1",
    )
    .bind(command)
    .bind(result)
    .execute(connection)
    .await?;
    Ok(())
}

/// The condition of a selection on the columns of `e`; parameters from $2 on, see [`bind_selection`].
macro_rules! selected {
    () => {
        "($2::uuid[] IS NULL OR e.event_id = ANY ($2)) AND ($3::text[] IS NULL OR e.aggregate_id = ANY ($3))
         AND ($4::bigint IS NULL OR e.id >= $4) AND ($5::bigint IS NULL OR e.id <= $5)
         AND ($6::timestamptz IS NULL OR e.created_at >= $6) AND ($7::timestamptz IS NULL OR e.created_at < $7)"
    };
}

type Query<'q> = sqlx::query::Query<'q, sqlx::Postgres, sqlx::postgres::PgArguments>;

fn bind_selection<'q>(query: Query<'q>, relay: &'q str, selection: &'q Selection) -> Query<'q> {
    query
        .bind(relay)
        .bind(&selection.event_ids)
        .bind(&selection.keys)
        .bind(selection.from_id)
        .bind(selection.to_id)
        .bind(selection.since)
        .bind(selection.until)
}

/// Marks the selected events that are parked for a reason of their own as given up. Returns how many. Doing it again changes nothing.
pub async fn discard(
    connection: &mut PgConnection,
    relay: &str,
    command: i64,
    selection: &Selection,
) -> Result<u64, sqlx::Error> {
    let query = sqlx::query(concat!(
        "UPDATE outbox.parked p SET released_at = clock_timestamp(), outcome = 'discarded', command_id = $8
         FROM outbox.events e
         WHERE p.relay = $1 AND p.released_at IS NULL AND p.reason IS NOT NULL AND e.id = p.id AND e.slot = p.slot AND ",
        selected!()
    ));
    Ok(bind_selection(query, relay, selection).bind(command).execute(connection).await?.rows_affected())
}

/// The next parked rows of the keys that a selection names or touches, in id order: a key is redriven whole, as its order demands,
/// up to an event that is refused again. After a discard only keys without an unpublishable event are opened.
pub async fn parked_rows(
    connection: &mut PgConnection,
    relay: &str,
    command: &Command,
    selection: &Selection,
    limit: i64,
    mut take: impl FnMut(&OutboxRow<'_>),
) -> Result<(), sqlx::Error> {
    let redrive = concat!(
        "WITH keys AS (
             SELECT DISTINCT p.aggregate_id FROM outbox.parked p JOIN outbox.events e ON e.id = p.id AND e.slot = p.slot
             WHERE p.relay = $1 AND (p.released_at IS NULL OR p.command_id = $8) AND ",
        selected!(),
        ")
         SELECT ",
        outbox_row_columns!(),
        "
         FROM outbox.parked p JOIN outbox.events e ON e.id = p.id AND e.slot = p.slot
         WHERE p.relay = $1 AND p.released_at IS NULL AND p.id > $9 AND p.aggregate_id IN (SELECT aggregate_id FROM keys)
           AND NOT EXISTS (SELECT FROM outbox.parked b WHERE b.relay = $1 AND b.aggregate_id = p.aggregate_id
                           AND b.released_at IS NULL AND b.id <= $9)
         ORDER BY e.id LIMIT $10"
    );
    let after_discard = concat!(
        "WITH keys AS (
             SELECT DISTINCT p.aggregate_id FROM outbox.parked p JOIN outbox.events e ON e.id = p.id AND e.slot = p.slot
             WHERE p.relay = $1 AND p.command_id = $8 AND ",
        selected!(),
        ")
         SELECT ",
        outbox_row_columns!(),
        "
         FROM outbox.parked p JOIN outbox.events e ON e.id = p.id AND e.slot = p.slot
         WHERE p.relay = $1 AND p.released_at IS NULL AND p.id > $9 AND p.aggregate_id IN (SELECT aggregate_id FROM keys)
           AND NOT EXISTS (SELECT FROM outbox.parked b WHERE b.relay = $1 AND b.aggregate_id = p.aggregate_id
                           AND b.released_at IS NULL AND b.reason IS NOT NULL)
         ORDER BY e.id LIMIT $10"
    );
    let text = match command.kind {
        CommandKind::Redrive => redrive,
        CommandKind::Discard | CommandKind::Replay => after_discard,
    };
    let rows = bind_selection(sqlx::query(text), relay, selection)
        .bind(command.id)
        .bind(command.after_id)
        .bind(limit)
        .fetch_all(connection)
        .await?;
    for row in &rows {
        take(&outbox_row(row)?);
    }
    Ok(())
}

/// Of these keys, those of which nothing is parked any more.
pub async fn open_keys(
    connection: &mut PgConnection,
    relay: &str,
    keys: &[String],
) -> Result<Vec<String>, sqlx::Error> {
    sqlx::query_scalar(
        "SELECT k FROM unnest($2::text[]) AS k
         WHERE NOT EXISTS (SELECT FROM outbox.parked p WHERE p.relay = $1 AND p.aggregate_id = k AND p.released_at IS NULL)",
    )
    .bind(relay)
    .bind(keys)
    .fetch_all(connection)
    .await
}

/// The next rows that were published before and are to be published again, in id order.
pub async fn published_rows(
    connection: &mut PgConnection,
    relay: &str,
    after_id: i64,
    selection: &Selection,
    limit: i64,
    mut take: impl FnMut(&OutboxRow<'_>),
) -> Result<(), sqlx::Error> {
    let query = sqlx::query(concat!(
        "SELECT ",
        outbox_row_columns!(),
        "
         FROM outbox.events e, (SELECT * FROM outbox.batches WHERE relay = $1 ORDER BY seq DESC LIMIT 1) AS c
         WHERE outbox.is_past(c.window_from, c.window_to, c.after_id, e.xid, e.id) AND e.id > $8
           AND NOT EXISTS (SELECT FROM outbox.parked p WHERE p.relay = $1 AND p.id = e.id AND p.outcome IS DISTINCT FROM 'redriven')
           AND ",
        selected!(),
        " ORDER BY e.id LIMIT $9"
    ));
    let rows =
        bind_selection(query, relay, selection).bind(after_id).bind(limit).fetch_all(connection).await?;
    for row in &rows {
        take(&outbox_row(row)?);
    }
    Ok(())
}

/// What a command would do: events, keys, and of how many events more the keys are held.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Preview {
    /// Events that the selection names.
    pub selected: i64,
    /// Keys that they belong to.
    pub keys: i64,
    /// Events held behind them, which a redrive or discard sets free.
    pub held: i64,
}

/// Counts what a command would do, and does nothing.
pub async fn preview(
    connection: &mut PgConnection,
    relay: &str,
    kind: CommandKind,
    selection: &Selection,
) -> Result<Preview, sqlx::Error> {
    let parked = concat!(
        "WITH chosen AS (
             SELECT p.* FROM outbox.parked p JOIN outbox.events e ON e.id = p.id AND e.slot = p.slot
             WHERE p.relay = $1 AND p.released_at IS NULL AND p.reason IS NOT NULL AND ",
        selected!(),
        ")
         SELECT (SELECT count(*) FROM chosen), (SELECT count(DISTINCT aggregate_id) FROM chosen),
                (SELECT count(*) FROM outbox.parked h WHERE h.relay = $1 AND h.released_at IS NULL AND h.reason IS NULL
                 AND h.aggregate_id IN (SELECT aggregate_id FROM chosen))"
    );
    let published = concat!(
        "SELECT count(*), count(DISTINCT e.aggregate_id), 0::bigint
         FROM outbox.events e, (SELECT * FROM outbox.batches WHERE relay = $1 ORDER BY seq DESC LIMIT 1) AS c
         WHERE outbox.is_past(c.window_from, c.window_to, c.after_id, e.xid, e.id)
           AND NOT EXISTS (SELECT FROM outbox.parked p WHERE p.relay = $1 AND p.id = e.id AND p.outcome IS DISTINCT FROM 'redriven')
           AND ",
        selected!()
    );
    let text = match kind {
        CommandKind::Redrive | CommandKind::Discard => parked,
        CommandKind::Replay => published,
    };
    let row = bind_selection(sqlx::query(text), relay, selection).fetch_one(connection).await?;
    Ok(Preview { selected: row.try_get(0)?, keys: row.try_get(1)?, held: row.try_get(2)? })
}

/// Asks the leader to do it; returns the number of the command.
pub async fn request(
    connection: &mut PgConnection,
    relay: &str,
    kind: CommandKind,
    selection: &Selection,
    operator: &str,
    note: &str,
) -> Result<i64, sqlx::Error> {
    sqlx::query_scalar("SELECT outbox.request($1, $2, $3, $4, $5)")
        .bind(relay)
        .bind(kind.name())
        .bind(sqlx::types::Json(selection))
        .bind(operator)
        .bind(note)
        .fetch_one(connection)
        .await
}

/// What came of a command: None while it is not finished.
pub async fn outcome(
    connection: &mut PgConnection,
    command: i64,
) -> Result<Option<(i64, String)>, sqlx::Error> {
    let row = sqlx::query(
        "SELECT published, coalesce(result, '') FROM outbox.commands WHERE id = $1 AND finished_at IS NOT NULL",
    )
    .bind(command)
    .fetch_optional(connection)
    .await?;
    row.map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).transpose()
}
