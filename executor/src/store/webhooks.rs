//! The SQL of webhooks: store each event once, lock what is due with its orders, and mark what became of it.

use std::time::Duration;

use sqlx::{PgConnection, PgPool, Row as _, postgres::PgRow};
use time::OffsetDateTime;
use uuid::Uuid;

use super::order;
use crate::{
    record::State,
    webhooks::{
        arrived::Arrived,
        decision::{Known, Outcome, Stored},
        processing::Worked,
    },
};

/// Most events of strangers that are taken up together.
const STRANGERS_AT_ONCE: i64 = 10;
/// Most rows deleted or given up at once.
const DELETED_MAX: i64 = 1000;

/// Stores events, and the step in which they came; returns how many were new. Those of orders that are not known wait apart from the beginning.
pub async fn insert(
    tx: &mut PgConnection,
    arrived: &[Arrived],
    traceparent: Option<&str>,
) -> Result<u64, sqlx::Error> {
    let inserted = sqlx::query(
        "INSERT INTO executor.webhooks (psp, dedup_key, event_type, payment_order_id, body, body_masked, received_at, stranger,
                                        traceparent)
         SELECT a.*, a.payment_order_id IS NOT NULL
                     AND NOT EXISTS (SELECT FROM executor.inbox i WHERE i.payment_order_id = a.payment_order_id),
                $8
         FROM UNNEST($1::text[], $2::text[], $3::text[], $4::uuid[], $5::bytea[], $6::boolean[], $7::timestamptz[])
              AS a (psp, dedup_key, event_type, payment_order_id, body, body_masked, received_at)
         ON CONFLICT (psp, dedup_key) DO NOTHING",
    )
    .bind(arrived.iter().map(|a| a.sender.name()).collect::<Vec<_>>())
    .bind(arrived.iter().map(|a| a.dedup_key.as_str()).collect::<Vec<_>>())
    .bind(arrived.iter().map(|a| a.event_type.as_str()).collect::<Vec<_>>())
    .bind(arrived.iter().map(|a| a.payment_order_id).collect::<Vec<_>>())
    .bind(arrived.iter().map(|a| a.body.as_slice()).collect::<Vec<_>>())
    .bind(arrived.iter().map(|a| a.body_masked).collect::<Vec<_>>())
    .bind(arrived.iter().map(|a| a.received_at).collect::<Vec<_>>())
    .bind(traceparent)
    .execute(tx)
    .await?;
    Ok(inserted.rows_affected())
}

/// Locks up to `limit` events that are due and that nobody else is working off: those of orders that are known, the oldest first, then
/// some of strangers.
pub async fn lock_due(
    tx: &mut PgConnection,
    limit: i64,
    ahead: Duration,
) -> Result<Vec<Stored>, sqlx::Error> {
    sqlx::query(
        "WITH ours AS (
             SELECT * FROM executor.webhooks
             WHERE processed_at IS NULL AND NOT stranger AND due_at <= now() + make_interval(secs => $2)
             ORDER BY due_at LIMIT $1 FOR UPDATE SKIP LOCKED
         ), strangers AS (
             SELECT * FROM executor.webhooks
             WHERE processed_at IS NULL AND stranger AND due_at <= now() + make_interval(secs => $2)
             ORDER BY due_at LIMIT least($1, $3) FOR UPDATE SKIP LOCKED
         ), due AS (
             SELECT * FROM ours UNION ALL SELECT * FROM strangers LIMIT $1
         )
         SELECT webhook_id, psp, event_type, payment_order_id, body, received_at, tries, traceparent FROM due",
    )
    .bind(limit)
    .bind(ahead.as_secs_f64())
    .bind(STRANGERS_AT_ONCE)
    .try_map(|row: PgRow| {
        Ok(Stored {
            webhook_id: row.try_get("webhook_id")?,
            psp: row.try_get("psp")?,
            event_type: row.try_get("event_type")?,
            payment_order_id: row.try_get("payment_order_id")?,
            body: row.try_get("body")?,
            received_at: row.try_get("received_at")?,
            tries: row.try_get("tries")?,
            traceparent: row.try_get("traceparent")?,
        })
    })
    .fetch_all(tx)
    .await
}

/// Locks the orders that are there, in the order of their ids, and says what is known of them.
pub async fn lock_orders(tx: &mut PgConnection, ids: &[Uuid]) -> Result<Vec<Known>, sqlx::Error> {
    sqlx::query(
        "SELECT i.*, i.state = 'IN_FLIGHT' AND i.lease_until > clock_timestamp() AS held,
                ARRAY(SELECT r.psp_reference FROM executor.psp_results r
                      WHERE r.payment_order_id = i.payment_order_id AND r.psp_status = 'FAILED') AS failed
         FROM executor.inbox i WHERE i.payment_order_id = ANY ($1) ORDER BY i.payment_order_id FOR NO KEY UPDATE OF i",
    )
    .bind(ids)
    .try_map(|row: PgRow| {
        let state: State =
            row.try_get::<String, _>("state")?.parse().map_err(|error| sqlx::Error::Decode(Box::new(error)))?;
        Ok(Known {
            order: order(&row)?,
            state,
            held: row.try_get("held")?,
            reference: row.try_get("psp_reference")?,
            successful: row.try_get::<Option<String>, _>("psp_status")?.as_deref() == Some("SUCCESSFUL"),
            failed: row.try_get("failed")?,
            traceparent: row.try_get("traceparent")?,
        })
    })
    .fetch_all(tx)
    .await
}

/// Has these orders looked at now, and keeps the PSP's id of the payment if it was not known. The step of the ladder that is cut
/// short is not used up: however often a PSP sends hints, the ladder stays as long as it is.
pub async fn wake(
    tx: &mut PgConnection,
    orders: &[(Uuid, Option<String>)],
    ahead: Duration,
) -> Result<(), sqlx::Error> {
    if orders.is_empty() {
        return Ok(());
    }
    sqlx::query(
        "UPDATE executor.inbox i
         SET psp_reference = coalesce(i.psp_reference, w.psp_reference),
             rung = CASE WHEN i.state = 'RESOLVING' AND i.due_at > n.now THEN greatest(i.rung - 1, 0) ELSE i.rung END,
             due_at = CASE WHEN i.state = 'RESOLVING' THEN least(i.due_at, n.now) ELSE i.due_at END,
             updated_at = clock_timestamp()
         FROM UNNEST($1::uuid[], $2::text[]) AS w (payment_order_id, psp_reference),
              (SELECT clock_timestamp() + make_interval(secs => $3) AS now) AS n
         WHERE i.payment_order_id = w.payment_order_id AND i.state IN ('QUEUED', 'RESOLVING')",
    )
    .bind(orders.iter().map(|(id, _)| *id).collect::<Vec<_>>())
    .bind(orders.iter().map(|(_, reference)| reference.as_deref()).collect::<Vec<_>>())
    .bind(ahead.as_secs_f64())
    .execute(tx)
    .await
    .map(|_| ())
}

/// Marks what became of each event: worked off, or to be taken up again.
pub async fn mark(tx: &mut PgConnection, worked: &[Worked], ahead: Duration) -> Result<(), sqlx::Error> {
    sqlx::query(
        "UPDATE executor.webhooks h
         SET outcome = w.outcome, processed_at = CASE WHEN w.outcome IS NOT NULL THEN clock_timestamp() END,
             due_at = CASE WHEN w.due_in IS NOT NULL
                           THEN clock_timestamp() + make_interval(secs => $4) + make_interval(secs => w.due_in) ELSE h.due_at END,
             tries = h.tries + 1, stranger = w.stranger
         FROM UNNEST($1::bigint[], $2::text[], $3::float8[], $5::boolean[]) AS w (webhook_id, outcome, due_in, stranger)
         WHERE h.webhook_id = w.webhook_id",
    )
    .bind(worked.iter().map(|w| w.webhook_id).collect::<Vec<_>>())
    .bind(worked.iter().map(|w| w.end.outcome().map(Outcome::as_str)).collect::<Vec<_>>())
    .bind(worked.iter().map(|w| w.end.due_in().map(|due_in| due_in.as_secs_f64())).collect::<Vec<_>>())
    .bind(ahead.as_secs_f64())
    .bind(worked.iter().map(|w| w.stranger).collect::<Vec<_>>())
    .execute(tx)
    .await
    .map(|_| ())
}

/// Counts a failure of an event that the database refuses, and puts it off; after `failures_max` of them it is given up: then its PSP
/// is returned.
pub async fn failed(
    pool: &PgPool,
    webhook_id: i64,
    due_in: Duration,
    failures_max: i32,
    ahead: Duration,
) -> Result<Option<String>, sqlx::Error> {
    let given_up: Option<Option<String>> = sqlx::query_scalar(
        "UPDATE executor.webhooks
         SET failures = failures + 1, tries = tries + 1,
             due_at = clock_timestamp() + make_interval(secs => $4) + make_interval(secs => $2 * power(2, least(failures, 10))),
             outcome = CASE WHEN failures + 1 >= $3 THEN 'REFUSED' END,
             processed_at = CASE WHEN failures + 1 >= $3 THEN clock_timestamp() END
         WHERE webhook_id = $1 AND processed_at IS NULL
         RETURNING CASE WHEN outcome IS NOT NULL THEN psp END",
    )
    .bind(webhook_id)
    .bind(due_in.as_secs_f64())
    .bind(failures_max)
    .bind(ahead.as_secs_f64())
    .fetch_optional(pool)
    .await?;
    Ok(given_up.flatten())
}

/// The orders of these events have turned up: they are ours, and due now.
pub async fn turned_up(tx: &mut PgConnection, orders: &[Uuid]) -> Result<(), sqlx::Error> {
    sqlx::query(
        "UPDATE executor.webhooks SET stranger = false, due_at = least(due_at, clock_timestamp())
         WHERE processed_at IS NULL AND stranger AND payment_order_id = ANY ($1)",
    )
    .bind(orders)
    .execute(tx)
    .await
    .map(|_| ())
}

/// Gives up some of the oldest events of a PSP's strangers, if there are more than `most`; returns how many.
pub async fn give_up_strangers(pool: &PgPool, psp: &str, most: i64) -> Result<u64, sqlx::Error> {
    let given_up = sqlx::query(
        "UPDATE executor.webhooks SET outcome = 'UNKNOWN_ORDER', processed_at = clock_timestamp()
         WHERE webhook_id = ANY (ARRAY(
             SELECT webhook_id FROM executor.webhooks
             WHERE processed_at IS NULL AND stranger AND psp = $1 AND webhook_id <= (
                 SELECT webhook_id FROM executor.webhooks WHERE processed_at IS NULL AND stranger AND psp = $1
                 ORDER BY webhook_id DESC OFFSET $2 LIMIT 1)
             ORDER BY webhook_id LIMIT $3 FOR UPDATE SKIP LOCKED))",
    )
    .bind(psp)
    .bind(most)
    .bind(DELETED_MAX)
    .execute(pool)
    .await?;
    Ok(given_up.rows_affected())
}

/// Deletes some of what was worked off before `before`; returns how many.
pub async fn delete_old(pool: &PgPool, before: OffsetDateTime) -> Result<u64, sqlx::Error> {
    let deleted = sqlx::query(
        "DELETE FROM executor.webhooks WHERE webhook_id = ANY (ARRAY(
             SELECT webhook_id FROM executor.webhooks WHERE processed_at < $1 ORDER BY processed_at LIMIT $2 FOR UPDATE SKIP LOCKED))",
    )
    .bind(before)
    .bind(DELETED_MAX)
    .execute(pool)
    .await?;
    Ok(deleted.rows_affected())
}

/// How many events of known orders wait to be worked off, the age of the oldest in seconds, and how many of strangers wait.
pub async fn waiting(pool: &PgPool) -> Result<(i64, i64, i64), sqlx::Error> {
    sqlx::query_as(
        "SELECT count(*), coalesce(greatest(extract(epoch FROM clock_timestamp() - min(received_at)), 0), 0)::bigint,
                (SELECT count(*) FROM executor.webhooks WHERE processed_at IS NULL AND stranger)
         FROM executor.webhooks WHERE processed_at IS NULL AND NOT stranger",
    )
    .fetch_one(pool)
    .await
}
