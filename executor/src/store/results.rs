//! The SQL of results: lock, insert, move on. The only statements that end an order.

use std::time::Duration;

use sqlx::{PgConnection, PgPool, Row as _, postgres::PgRow};
use uuid::Uuid;

use super::{Finished, http_status};
use crate::record::{Change, Standing};

/// Locks the orders, in the order of their ids, and says how they stand.
pub async fn lock_orders(tx: &mut PgConnection, ids: &[Uuid]) -> Result<Vec<Standing>, sqlx::Error> {
    sqlx::query(
        "SELECT payment_order_id, state, psp_status, psp_reference, claimed_by, rung, failures, traceparent, tracestate
         FROM executor.inbox WHERE payment_order_id = ANY ($1) ORDER BY payment_order_id FOR NO KEY UPDATE",
    )
    .bind(ids)
    .try_map(|row: PgRow| {
        Ok(Standing {
            payment_order_id: row.try_get("payment_order_id")?,
            state: row.try_get::<String, _>("state")?.parse().map_err(|error| sqlx::Error::Decode(Box::new(error)))?,
            known: row.try_get::<Option<String>, _>("psp_status")?.is_some(),
            psp_reference: row.try_get("psp_reference")?,
            claimed_by: row.try_get("claimed_by")?,
            rung: row.try_get("rung")?,
            failures: row.try_get("failures")?,
            traceparent: row.try_get("traceparent")?,
            tracestate: row.try_get("tracestate")?,
        })
    })
    .fetch_all(tx)
    .await
}

/// Inserts the results of these changes; returns the event ids of those that were not known yet. That an order failed is known if a failure
/// is recorded, whatever code each of them has, unless they name two payments: PSPs say why in other words in an answer and in a webhook.
pub async fn insert_results(tx: &mut PgConnection, changes: &[Change]) -> Result<Vec<Uuid>, sqlx::Error> {
    let results: Vec<_> = changes.iter().filter_map(|c| c.result.as_ref().map(|r| (c, r))).collect();
    if results.is_empty() {
        return Ok(vec![]);
    }
    sqlx::query_scalar(
        "INSERT INTO executor.psp_results
             (result_id, payment_order_id, psp_status, psp_reference, error_code, error_message, source, event_id, event_time)
         SELECT gen_random_uuid(), r.*
         FROM UNNEST($1::uuid[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::uuid[], $8::timestamptz[])
              AS r (payment_order_id, psp_status, psp_reference, error_code, error_message, source, event_id, event_time)
         WHERE r.psp_status <> 'FAILED' OR NOT EXISTS (
             SELECT FROM executor.psp_results k
             WHERE k.payment_order_id = r.payment_order_id AND k.psp_status = 'FAILED'
               AND (k.psp_reference IS NULL OR r.psp_reference IS NULL OR k.psp_reference = r.psp_reference))
         ON CONFLICT (payment_order_id, psp_status, psp_reference, error_code) DO NOTHING
         RETURNING event_id",
    )
    .bind(results.iter().map(|(_, r)| r.payment_order_id).collect::<Vec<_>>())
    .bind(results.iter().map(|(_, r)| r.psp_status.as_str()).collect::<Vec<_>>())
    .bind(results.iter().map(|(_, r)| r.psp_reference.as_deref()).collect::<Vec<_>>())
    .bind(results.iter().map(|(_, r)| r.error_code.as_deref()).collect::<Vec<_>>())
    .bind(results.iter().map(|(_, r)| r.error_message.as_deref()).collect::<Vec<_>>())
    .bind(results.iter().map(|(c, _)| c.source.as_str()).collect::<Vec<_>>())
    .bind(results.iter().map(|(c, _)| c.event_id).collect::<Vec<_>>())
    .bind(results.iter().map(|(_, r)| r.event_time).collect::<Vec<_>>())
    .fetch_all(tx)
    .await
}

/// Writes how the orders stand now, and finishes the calls that brought it.
///
/// An order that has come to an end is claimed by nobody any more, so its other open calls are closed here: one whose claim was committed
/// without its process ever knowing would stay open for ever. Whoever is still waiting for an answer records it all the same.
pub async fn apply(tx: &mut PgConnection, changes: &[Change], ahead: Duration) -> Result<(), sqlx::Error> {
    let answers: Vec<&Finished> = changes.iter().filter_map(|c| c.finished.as_ref()).collect();
    let moved: Vec<_> = changes.iter().filter_map(|c| c.standing.as_ref().map(|s| (c, s))).collect();
    sqlx::query(
        "WITH answers AS (
             SELECT * FROM UNNEST($1::uuid[], $2::text[], $3::smallint[], $4::text[], $5::text[], $6::text[], $7::text[],
                                  $8::timestamptz[])
                    AS a (attempt_id, verdict, http_status, psp_reference, psp_request_id, error_code, error_message, obtained_at)
         ), finished AS (
             UPDATE executor.psp_attempts p
             SET status = 'FINISHED', finished_at = a.obtained_at, verdict = a.verdict, http_status = a.http_status,
                 psp_reference = a.psp_reference, psp_request_id = a.psp_request_id, error_code = a.error_code,
                 error_message = a.error_message
             FROM answers a WHERE p.attempt_id = a.attempt_id
         ), moved AS (
             SELECT * FROM UNNEST($9::uuid[], $10::text[], $11::text[], $12::text[], $13::float8[], $14::smallint[], $15::smallint[],
                                  $17::boolean[])
                    AS m (payment_order_id, state, psp_status, psp_reference, due_in, rung, failures, answered)
         ), abandoned AS (
             UPDATE executor.psp_attempts p
             SET status = 'FINISHED', verdict = 'ABANDONED', finished_at = clock_timestamp()
             FROM moved m WHERE p.payment_order_id = m.payment_order_id AND m.state IN ('SETTLED', 'REVIEW')
               AND p.status = 'STARTED' AND p.attempt_id <> ALL ($1)
         )
         UPDATE executor.inbox i
         SET state = m.state, psp_status = coalesce(m.psp_status, i.psp_status),
             psp_reference = coalesce(i.psp_reference, m.psp_reference), claimed_by = NULL, lease_until = NULL,
             due_at = clock_timestamp() + make_interval(secs => $16 + m.due_in), rung = m.rung, failures = m.failures,
             lapses = CASE WHEN m.answered THEN 0 ELSE i.lapses END,
             settled_at = CASE WHEN m.state IN ('SETTLED', 'REVIEW') THEN coalesce(i.settled_at, clock_timestamp()) END,
             updated_at = clock_timestamp()
         FROM moved m WHERE i.payment_order_id = m.payment_order_id",
    )
    .bind(answers.iter().map(|f| f.attempt_id).collect::<Vec<_>>())
    .bind(answers.iter().map(|f| f.answer.verdict.as_str()).collect::<Vec<_>>())
    .bind(answers.iter().map(|f| http_status(&f.answer)).collect::<Vec<_>>())
    .bind(answers.iter().map(|f| f.answer.reference.as_deref()).collect::<Vec<_>>())
    .bind(answers.iter().map(|f| f.answer.request_id.as_deref()).collect::<Vec<_>>())
    .bind(answers.iter().map(|f| f.answer.error_code.as_deref()).collect::<Vec<_>>())
    .bind(answers.iter().map(|f| f.answer.error_message.as_deref()).collect::<Vec<_>>())
    .bind(answers.iter().map(|f| f.answer.obtained_at).collect::<Vec<_>>())
    .bind(moved.iter().map(|(c, _)| c.payment_order_id).collect::<Vec<_>>())
    .bind(moved.iter().map(|(_, s)| s.state.as_str()).collect::<Vec<_>>())
    .bind(moved.iter().map(|(c, _)| c.result.as_ref().map(|r| r.psp_status.as_str())).collect::<Vec<_>>())
    .bind(moved.iter().map(|(_, s)| s.psp_reference.as_deref()).collect::<Vec<_>>())
    .bind(moved.iter().map(|(_, s)| s.due_in.as_secs_f64()).collect::<Vec<_>>())
    .bind(moved.iter().map(|(_, s)| s.rung).collect::<Vec<_>>())
    .bind(moved.iter().map(|(_, s)| s.failures).collect::<Vec<_>>())
    .bind(ahead.as_secs_f64())
    .bind(moved.iter().map(|(c, _)| c.finished.is_some()).collect::<Vec<_>>())
    .execute(tx)
    .await
    .map(|_| ())
}

/// How many orders wait for the resolver, the age of the oldest in seconds, how many wait for a person, and how many are set aside.
pub async fn unresolved(pool: &PgPool) -> Result<(i64, i64, i64, i64), sqlx::Error> {
    sqlx::query_as(
        "WITH unresolved AS (
             SELECT received_at FROM executor.inbox WHERE state = 'RESOLVING'
             UNION ALL SELECT received_at FROM executor.inbox WHERE state = 'IN_FLIGHT' AND lease_until <= now()
         )
         SELECT (SELECT count(*) FROM unresolved),
                (SELECT coalesce(extract(epoch FROM clock_timestamp() - min(received_at)), 0)::bigint FROM unresolved),
                (SELECT count(*) FROM executor.inbox WHERE state = 'REVIEW'), (SELECT count(*) FROM executor.parked)",
    )
    .fetch_one(pool)
    .await
}
