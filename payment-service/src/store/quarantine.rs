//! SQL of the quarantine: in, tried again, out, copied.

use std::sync::Arc;

use serde_json::Value;
use sqlx::{FromRow, PgConnection, PgPool};

use crate::intake::{Again, Asked, RawHeaders, RawRecord, SetAside};

/// How long one instance has for a copy before another one makes it too.
const COPY_LEASE_SECONDS: f64 = 60.0;

fn texts<'a>(rows: &'a [SetAside], text: impl Fn(&'a SetAside) -> &'a str) -> Vec<&'a str> {
    rows.iter().map(text).collect()
}

// ------------------------------------------------------------------------------------------------------------------ in

/// Sets records aside and returns where those that were not there yet lie: partition and offset. A record that is read again stays as it is.
pub(crate) async fn insert(tx: &mut PgConnection, rows: &[SetAside]) -> Result<Vec<(i32, i64)>, sqlx::Error> {
    let headers =
        |row: &SetAside| row.record.headers.as_ref().map_or(Value::Array(Vec::new()), RawHeaders::to_json);
    sqlx::query_as(
        "INSERT INTO payments.quarantine
             (topic, partition, record_offset, digest, reason_code, reason, event_id, payment_order_id, record_key, record_value,
              headers, record_timestamp_ms)
         SELECT * FROM UNNEST($1::text[], $2::int[], $3::bigint[], $4::bytea[], $5::text[], $6::text[], $7::uuid[], $8::uuid[],
                              $9::bytea[], $10::bytea[], $11::jsonb[], $12::bigint[])
         ON CONFLICT DO NOTHING RETURNING partition, record_offset",
    )
    .bind(texts(rows, |row| &row.record.topic))
    .bind(rows.iter().map(|row| row.record.partition).collect::<Vec<_>>())
    .bind(rows.iter().map(|row| row.record.offset).collect::<Vec<_>>())
    .bind(rows.iter().map(|row| row.record.digest().to_vec()).collect::<Vec<_>>())
    .bind(texts(rows, |row| row.reason_code.as_str()))
    .bind(texts(rows, |row| &row.reason))
    .bind(rows.iter().map(|row| row.event_id).collect::<Vec<_>>())
    .bind(rows.iter().map(|row| row.payment_order_id).collect::<Vec<_>>())
    .bind(rows.iter().map(|row| row.record.key.as_deref()).collect::<Vec<_>>())
    .bind(rows.iter().map(|row| row.record.value.as_deref()).collect::<Vec<_>>())
    .bind(rows.iter().map(headers).collect::<Vec<_>>())
    .bind(rows.iter().map(|row| row.record.timestamp_ms).collect::<Vec<_>>())
    .fetch_all(tx)
    .await
}

// --------------------------------------------------------------------------------------------------------- tried again

/// A record with its row, as it is read for another try or for a copy.
#[derive(FromRow)]
struct Kept {
    id: i64,
    topic: String,
    partition: i32,
    record_offset: i64,
    record_key: Option<Vec<u8>>,
    record_value: Option<Vec<u8>>,
    headers: Value,
    record_timestamp_ms: Option<i64>,
}

impl Kept {
    fn into_record(self) -> RawRecord {
        RawRecord {
            topic: self.topic.into(),
            partition: self.partition,
            offset: self.record_offset,
            key: self.record_key,
            value: self.record_value,
            headers: Ok(RawHeaders::from_json(&self.headers)),
            timestamp_ms: self.record_timestamp_ms,
        }
    }
}

#[derive(FromRow)]
struct KeptAgain {
    #[sqlx(flatten)]
    kept: Kept,
    command_id: Option<i64>,
    operator: Option<String>,
}

/// What is to be tried again, oldest first: what an operator wants redriven and, if asked, orphans whose payment order exists by now. At most
/// `limit` records, and no more than `bytes_max` of values, but one at least.
pub(crate) async fn to_try_again(
    pool: &PgPool,
    orphans_too: bool,
    (limit, bytes_max): (i64, i64),
) -> Result<Vec<(Again, RawRecord)>, sqlx::Error> {
    let rows: Vec<KeptAgain> = sqlx::query_as(
        "WITH asked AS (
             SELECT i.quarantine_id, c.id AS command_id, c.operator FROM payments.command_items i JOIN payments.commands c ON c.id = i.command_id
             WHERE i.finished_at IS NULL ORDER BY i.quarantine_id LIMIT $1
         ), found AS (
             SELECT q.id AS quarantine_id FROM payments.quarantine q JOIN payments.payment_orders o USING (payment_order_id)
             WHERE $3 AND q.reason_code = 'ORPHAN' AND q.settled_at IS NULL ORDER BY q.id LIMIT $1
         ), chosen AS (
             SELECT quarantine_id, command_id, operator FROM asked
             UNION ALL SELECT quarantine_id, NULL, NULL FROM found WHERE quarantine_id NOT IN (SELECT quarantine_id FROM asked)
             ORDER BY quarantine_id LIMIT $1
         ), sized AS (
             SELECT q.*, c.command_id, c.operator, row_number() OVER turn AS number,
                    sum(coalesce(octet_length(q.record_value), 0)) OVER turn AS bytes
             FROM chosen c JOIN payments.quarantine q ON q.id = c.quarantine_id WINDOW turn AS (ORDER BY q.id)
         )
         SELECT * FROM sized WHERE number = 1 OR bytes <= $2 ORDER BY id",
    )
    .bind(limit)
    .bind(bytes_max)
    .bind(orphans_too)
    .fetch_all(pool)
    .await?;
    Ok(rows
        .into_iter()
        .map(|KeptAgain { kept, command_id, operator }| {
            let asked = command_id.zip(operator);
            let asked =
                asked.map(|(command_id, operator)| Asked { command_id, operator: Arc::from(operator) });
            (Again { quarantine_id: kept.id, asked }, kept.into_record())
        })
        .collect())
}

/// Locks those rows that nobody has settled, in the order of their ids.
pub(crate) async fn lock_unsettled(tx: &mut PgConnection, ids: &[i64]) -> Result<Vec<i64>, sqlx::Error> {
    sqlx::query_scalar(
        "SELECT id FROM payments.quarantine WHERE id = ANY ($1) AND settled_at IS NULL ORDER BY id FOR NO KEY UPDATE",
    )
    .bind(ids)
    .fetch_all(tx)
    .await
}

/// Writes why records that were tried again are still there; the command that asked for it is done with them.
pub(crate) async fn keep(tx: &mut PgConnection, rows: &[SetAside]) -> Result<(), sqlx::Error> {
    sqlx::query(
        "WITH kept AS (
             UPDATE payments.quarantine q SET reason_code = n.reason_code, reason = n.reason, attempts = q.attempts + 1
             FROM UNNEST($1::bigint[], $2::text[], $3::text[]) AS n (id, reason_code, reason) WHERE q.id = n.id
             RETURNING q.id, q.reason
         )
         UPDATE payments.command_items i SET outcome = 'REFUSED', reason = k.reason, finished_at = clock_timestamp()
         FROM kept k WHERE i.quarantine_id = k.id AND i.finished_at IS NULL",
    )
    .bind(rows.iter().map(|row| row.quarantine_id).collect::<Vec<_>>())
    .bind(texts(rows, |row| row.reason_code.as_str()))
    .bind(texts(rows, |row| &row.reason))
    .execute(tx)
    .await?;
    Ok(())
}

// ----------------------------------------------------------------------------------------------------------------- out

/// How a record left the quarantine by being tried again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Settled {
    /// Its event was decided upon.
    Applied,
    /// Its event had been decided upon already.
    Known,
}

impl Settled {
    fn as_str(self) -> &'static str {
        match self {
            Self::Applied => "APPLIED",
            Self::Known => "KNOWN",
        }
    }
}

/// Closes rows of the quarantine, and what commands asked for them.
pub(crate) async fn settle(tx: &mut PgConnection, rows: &[(i64, Settled)]) -> Result<(), sqlx::Error> {
    sqlx::query(
        "WITH settled AS (
             UPDATE payments.quarantine q SET settled_at = clock_timestamp(), outcome = n.outcome
             FROM UNNEST($1::bigint[], $2::text[]) AS n (id, outcome) WHERE q.id = n.id AND q.settled_at IS NULL
             RETURNING q.id, q.outcome
         )
         UPDATE payments.command_items i SET outcome = s.outcome, finished_at = clock_timestamp()
         FROM settled s WHERE i.quarantine_id = s.id AND i.finished_at IS NULL",
    )
    .bind(rows.iter().map(|(id, _)| *id).collect::<Vec<_>>())
    .bind(rows.iter().map(|(_, outcome)| outcome.as_str()).collect::<Vec<_>>())
    .execute(tx)
    .await?;
    Ok(())
}

// -------------------------------------------------------------------------------------------------------------- copied

/// A record that has no copy yet.
pub(crate) struct Uncopied {
    pub(crate) id: i64,
    pub(crate) record: RawRecord,
    pub(crate) reason_code: String,
    pub(crate) reason: String,
}

/// Takes records to be copied, oldest first, with the same limits as [`to_try_again`]. Others leave them alone for a minute.
pub(crate) async fn lease_uncopied(
    pool: &PgPool,
    (limit, bytes_max): (i64, i64),
) -> Result<Vec<Uncopied>, sqlx::Error> {
    #[derive(FromRow)]
    struct Row {
        #[sqlx(flatten)]
        kept: Kept,
        reason_code: String,
        reason: String,
    }
    let rows: Vec<Row> = sqlx::query_as(
        "WITH free AS (
             SELECT id, coalesce(octet_length(record_value), 0) AS bytes FROM payments.quarantine
             WHERE copied_at IS NULL AND (copy_leased_until IS NULL OR copy_leased_until < clock_timestamp())
             ORDER BY id LIMIT $1 FOR NO KEY UPDATE SKIP LOCKED
         ), sized AS (
             SELECT id, row_number() OVER turn AS number, sum(bytes) OVER turn AS bytes FROM free WINDOW turn AS (ORDER BY id)
         )
         UPDATE payments.quarantine q SET copy_leased_until = clock_timestamp() + make_interval(secs => $3)
         FROM sized s WHERE q.id = s.id AND (s.number = 1 OR s.bytes <= $2)
         RETURNING q.id, q.topic, q.partition, q.record_offset, q.record_key, q.record_value, q.headers, q.record_timestamp_ms,
                   q.reason_code, q.reason",
    )
    .bind(limit)
    .bind(bytes_max)
    .bind(COPY_LEASE_SECONDS)
    .fetch_all(pool)
    .await?;
    let mut rows: Vec<_> = rows
        .into_iter()
        .map(|Row { kept, reason_code, reason }| Uncopied {
            id: kept.id,
            record: kept.into_record(),
            reason_code,
            reason,
        })
        .collect();
    rows.sort_by_key(|row| row.id);
    Ok(rows)
}

/// Remembers which copies the brokers have acknowledged, and lets go of the others.
pub(crate) async fn mark_copied(pool: &PgPool, copied: &[i64], failed: &[i64]) -> Result<(), sqlx::Error> {
    sqlx::query(
        "UPDATE payments.quarantine SET copied_at = CASE WHEN id = ANY ($1::bigint[]) THEN clock_timestamp() END, copy_leased_until = NULL
         WHERE id = ANY ($1::bigint[] || $2::bigint[]) AND copied_at IS NULL",
    )
    .bind(copied)
    .bind(failed)
    .execute(pool)
    .await?;
    Ok(())
}

// ------------------------------------------------------------------------------------------------------------- counted

/// How many unsettled records there are, by reason.
pub(crate) async fn unsettled(pool: &PgPool) -> Result<Vec<(String, i64)>, sqlx::Error> {
    sqlx::query_as(
        "SELECT reason_code, count(*) FROM payments.quarantine WHERE settled_at IS NULL GROUP BY reason_code",
    )
    .fetch_all(pool)
    .await
}

/// How many records have no copy on the topic yet.
pub(crate) async fn uncopied(pool: &PgPool) -> Result<i64, sqlx::Error> {
    sqlx::query_scalar("SELECT count(*) FROM payments.quarantine WHERE copied_at IS NULL")
        .fetch_one(pool)
        .await
}
