//! All SQL of the process; that of results is in [`results`]. Everything works on sets: one statement for a batch, not one per order.

pub mod results;
pub mod webhooks;

use std::time::Duration;

use schema::psp_result_update::sanitise_error_message;
use secrecy::SecretString;
use sqlx::{PgConnection, PgPool, Row as _, postgres::PgRow};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::{
    psp::{Answer, Call, Operation, Order},
    request::{Quarantined, Request},
};

/// Fails if the database does not answer, or has not been migrated.
pub async fn check(pool: &PgPool) -> Result<(), sqlx::Error> {
    sqlx::query("SELECT FROM executor.inbox, executor.webhooks, executor.parked LIMIT 0")
        .execute(pool)
        .await
        .map(|_| ())
}

// ------------------------------------------------------------------------------------------------------------------ intake

/// Takes requests in; returns how many were new.
pub async fn insert_requests(tx: &mut PgConnection, requests: &[Request]) -> Result<u64, sqlx::Error> {
    let column = |of: fn(&Request) -> &str| requests.iter().map(of).collect::<Vec<_>>();
    let inserted = sqlx::query(
        "INSERT INTO executor.inbox (payment_order_id, request_event_id, psp, amount_minor, currency, payment_method,
                                     merchant_reference, expires_at, traceparent, tracestate)
         SELECT * FROM UNNEST($1::uuid[], $2::uuid[], $3::text[], $4::bigint[], $5::text[], $6::text[],
                              $7::text[], $8::timestamptz[], $9::text[], $10::text[])
         ON CONFLICT DO NOTHING",
    )
    .bind(requests.iter().map(|r| r.event.payment_order_id).collect::<Vec<_>>())
    .bind(requests.iter().map(|r| r.event_id).collect::<Vec<_>>())
    .bind(column(|r| &r.event.psp))
    .bind(requests.iter().map(|r| r.event.amount_minor).collect::<Vec<_>>())
    .bind(column(|r| &r.event.currency))
    .bind(column(|r| &r.event.payment_method))
    .bind(column(|r| &r.event.merchant_reference))
    .bind(requests.iter().map(|r| r.event.expires_at).collect::<Vec<_>>())
    .bind(requests.iter().map(|r| r.trace.traceparent()).collect::<Vec<_>>())
    .bind(requests.iter().map(|r| r.tracestate.as_deref()).collect::<Vec<_>>())
    .execute(tx)
    .await?;
    Ok(inserted.rows_affected())
}

/// Sets records aside; those that are there already stay.
pub async fn insert_quarantined(tx: &mut PgConnection, records: &[Quarantined]) -> Result<(), sqlx::Error> {
    sqlx::query(
        "INSERT INTO executor.quarantine (topic, partition, record_offset, reason_code, reason, record_key, record_value, headers,
                                          masked)
         SELECT * FROM UNNEST($1::text[], $2::integer[], $3::bigint[], $4::text[], $5::text[], $6::bytea[], $7::bytea[], $8::jsonb[],
                              $9::boolean[])
         ON CONFLICT DO NOTHING",
    )
    .bind(records.iter().map(|r| r.position.0.as_str()).collect::<Vec<_>>())
    .bind(records.iter().map(|r| r.position.1).collect::<Vec<_>>())
    .bind(records.iter().map(|r| r.position.2).collect::<Vec<_>>())
    .bind(records.iter().map(|r| r.reason.as_str()).collect::<Vec<_>>())
    .bind(records.iter().map(|r| r.text.as_str()).collect::<Vec<_>>())
    .bind(records.iter().map(|r| r.key.as_deref()).collect::<Vec<_>>())
    .bind(records.iter().map(|r| r.value.as_deref()).collect::<Vec<_>>())
    .bind(records.iter().map(|r| r.headers.clone()).collect::<Vec<_>>())
    .bind(records.iter().map(|r| r.masked).collect::<Vec<_>>())
    .execute(tx)
    .await
    .map(|_| ())
}

// ------------------------------------------------------------------------------------------------------------------ claims

/// Which orders are to be claimed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Queue {
    /// To be carried out.
    Queued,
    /// To be asked about: a result that is not final, or a claim whose holder is gone.
    Due,
}

/// An order that may be claimed: locked until the end of the transaction.
#[derive(Debug)]
pub struct Candidate {
    /// The order.
    pub order: Order,
    /// The trace it belongs to.
    pub traceparent: String,
    /// The PSP's id of the payment.
    pub reference: Option<String>,
    /// When its first call was written down.
    pub first_attempt_at: Option<OffsetDateTime>,
    /// One of its calls may have been executed: not all of them were turned away.
    pub in_doubt: bool,
    /// Claims of it that ran out since the last answer that was recorded, this one included if it did; None if it did not.
    pub lapses: Option<i16>,
}

/// Locks up to `limit` orders of a PSP that are due, that nobody else is claiming and that are not set aside. What is due by time
/// follows a clock that is `ahead` of the database's; leases follow the database's.
pub async fn lock_due(
    tx: &mut PgConnection,
    queue: Queue,
    psp: &str,
    limit: i64,
    ahead: Duration,
) -> Result<Vec<Candidate>, sqlx::Error> {
    let sql = match queue {
        Queue::Queued => {
            "WITH due AS (
                 SELECT * FROM executor.inbox WHERE state = 'QUEUED' AND psp = $2 AND due_at <= now() + make_interval(secs => $3)
                   AND payment_order_id <> ALL (ARRAY(SELECT payment_order_id FROM executor.parked WHERE again_at > now()))
                 ORDER BY due_at LIMIT $1 FOR NO KEY UPDATE SKIP LOCKED
             )"
        }
        Queue::Due => {
            "WITH resolving AS (
                 SELECT * FROM executor.inbox WHERE state = 'RESOLVING' AND psp = $2 AND due_at <= now() + make_interval(secs => $3)
                   AND payment_order_id <> ALL (ARRAY(SELECT payment_order_id FROM executor.parked WHERE again_at > now()))
                 ORDER BY due_at LIMIT $1 FOR NO KEY UPDATE SKIP LOCKED
             ), lapsed AS (
                 SELECT * FROM executor.inbox WHERE state = 'IN_FLIGHT' AND psp = $2 AND lease_until <= now()
                   AND payment_order_id <> ALL (ARRAY(SELECT payment_order_id FROM executor.parked WHERE again_at > now()))
                 ORDER BY lease_until LIMIT $1 FOR NO KEY UPDATE SKIP LOCKED
             ), due AS (
                 SELECT * FROM lapsed UNION ALL SELECT * FROM resolving LIMIT $1
             )"
        }
    };
    // Whether a call may have been executed is asked only of orders that were called for before.
    let sql = format!(
        "{sql} SELECT due.*, due.first_attempt_at IS NOT NULL AND EXISTS (
                          SELECT FROM executor.psp_attempts a
                          WHERE a.payment_order_id = due.payment_order_id AND a.verdict IS DISTINCT FROM 'LATER') AS in_doubt,
                      CASE WHEN due.state = 'IN_FLIGHT' THEN least(due.lapses, 32766) + 1 END::smallint AS lapsed
         FROM due"
    );
    sqlx::query(sqlx::AssertSqlSafe(sql))
        .bind(limit)
        .bind(psp)
        .bind(ahead.as_secs_f64())
        .try_map(candidate)
        .fetch_all(tx)
        .await
}

fn order(row: &PgRow) -> Result<Order, sqlx::Error> {
    Ok(Order {
        payment_order_id: row.try_get("payment_order_id")?,
        psp: row.try_get("psp")?,
        amount_minor: row.try_get("amount_minor")?,
        currency: row.try_get("currency")?,
        payment_method: SecretString::from(row.try_get::<String, _>("payment_method")?),
        merchant_reference: row.try_get("merchant_reference")?,
        expires_at: row.try_get("expires_at")?,
    })
}

#[expect(clippy::needless_pass_by_value, reason = "the signature of try_map")]
fn candidate(row: PgRow) -> Result<Candidate, sqlx::Error> {
    Ok(Candidate {
        order: order(&row)?,
        traceparent: row.try_get("traceparent")?,
        reference: row.try_get("psp_reference")?,
        first_attempt_at: row.try_get("first_attempt_at")?,
        in_doubt: row.try_get("in_doubt")?,
        lapses: row.try_get("lapsed")?,
    })
}

/// A call that is about to be made, as it is written down.
#[derive(Clone, Debug)]
pub struct Started {
    /// Id of the attempt.
    pub attempt_id: Uuid,
    /// Which operation.
    pub operation: Operation,
    /// Its idempotency key.
    pub idempotency_key: Option<String>,
    /// Hash of the request.
    pub request_hash: String,
}

impl Started {
    /// The record of this call, as a new attempt.
    pub fn of(call: &Call) -> Self {
        Self {
            attempt_id: Uuid::now_v7(),
            operation: call.operation,
            idempotency_key: call.idempotency_key.clone(),
            request_hash: call.hash(),
        }
    }
}

/// Orders that are not settled, of PSPs other than these, by PSP: nobody here takes them up.
pub async fn orders_of_others(pool: &PgPool, psps: &[&str]) -> Result<Vec<(String, i64)>, sqlx::Error> {
    sqlx::query_as(
        "SELECT psp, count(*) FROM executor.inbox
         WHERE state IN ('QUEUED', 'IN_FLIGHT', 'RESOLVING') AND psp <> ALL ($1) GROUP BY psp",
    )
    .bind(psps)
    .fetch_all(pool)
    .await
}

/// Claims the locked orders for `token` and writes down the first call of each, if there is one. Attempts that others have left open
/// are closed: nobody is there any more to receive their answer. One that was set aside is so no more.
pub async fn claim(
    tx: &mut PgConnection,
    token: Uuid,
    lease: Duration,
    timeout: Duration,
    claims: &[(Uuid, Option<Started>)],
) -> Result<(), sqlx::Error> {
    let started = || claims.iter().map(|(_, started)| started.as_ref());
    sqlx::query(
        "WITH claims AS (
             SELECT * FROM UNNEST($1::uuid[], $2::uuid[], $3::text[], $4::text[], $5::text[])
                    AS c (payment_order_id, attempt_id, operation, idempotency_key, request_hash)
         ), taken AS (
             UPDATE executor.inbox i
             SET state = 'IN_FLIGHT', claimed_by = $6, lease_until = clock_timestamp() + make_interval(secs => $7),
                 step = CASE WHEN c.operation <> 'GET' THEN c.operation ELSE i.step END,
                 first_attempt_at = CASE WHEN c.operation <> 'GET' THEN coalesce(i.first_attempt_at, clock_timestamp())
                                         ELSE i.first_attempt_at END,
                 lapses = CASE WHEN i.state = 'IN_FLIGHT' THEN least(i.lapses, 32766) + 1 ELSE i.lapses END,
                 updated_at = clock_timestamp()
             FROM claims c WHERE i.payment_order_id = c.payment_order_id
         ), abandoned AS (
             UPDATE executor.psp_attempts a
             SET status = 'FINISHED', verdict = 'ABANDONED', finished_at = clock_timestamp()
             FROM claims c WHERE a.payment_order_id = c.payment_order_id AND a.status = 'STARTED'
         ), parked AS (
             DELETE FROM executor.parked p USING claims c WHERE p.payment_order_id = c.payment_order_id
         )
         INSERT INTO executor.psp_attempts
             (attempt_id, payment_order_id, operation, try, idempotency_key, request_hash, deadline_at)
         SELECT c.attempt_id, c.payment_order_id, c.operation,
                1 + (SELECT count(*) FROM executor.psp_attempts a
                     WHERE a.payment_order_id = c.payment_order_id AND a.operation = c.operation),
                c.idempotency_key, c.request_hash, clock_timestamp() + make_interval(secs => $8)
         FROM claims c WHERE c.attempt_id IS NOT NULL",
    )
    .bind(claims.iter().map(|(id, _)| *id).collect::<Vec<_>>())
    .bind(started().map(|s| s.map(|s| s.attempt_id)).collect::<Vec<_>>())
    .bind(started().map(|s| s.map(|s| s.operation.as_str())).collect::<Vec<_>>())
    .bind(started().map(|s| s.and_then(|s| s.idempotency_key.as_deref())).collect::<Vec<_>>())
    .bind(started().map(|s| s.map(|s| s.request_hash.as_str())).collect::<Vec<_>>())
    .bind(token)
    .bind(lease.as_secs_f64())
    .bind(timeout.as_secs_f64())
    .execute(tx)
    .await
    .map(|_| ())
}

/// Sets aside an order whose claim is refused with this error, for `first`, then twice as long with each further refusal up to `longest`;
/// returns how often it was refused.
pub async fn park(
    pool: &PgPool,
    payment_order_id: Uuid,
    error: &sqlx::Error,
    (first, longest): (Duration, Duration),
) -> Result<i32, sqlx::Error> {
    let sqlstate = error.as_database_error().and_then(|error| error.code().map(String::from));
    sqlx::query_scalar(
        "INSERT INTO executor.parked AS p (payment_order_id, sqlstate, reason, again_at)
         VALUES ($1, $2, $3, clock_timestamp() + make_interval(secs => $4))
         ON CONFLICT (payment_order_id) DO UPDATE
         SET sqlstate = excluded.sqlstate, reason = excluded.reason, refusals = least(p.refusals, 1000000) + 1,
             again_at = clock_timestamp() + make_interval(secs => least($5, $4 * power(2, least(p.refusals, 30))))
         RETURNING refusals",
    )
    .bind(payment_order_id)
    .bind(sqlstate.unwrap_or_default())
    .bind(sanitise_error_message(&error.to_string()))
    .bind(first.as_secs_f64())
    .bind(longest.as_secs_f64())
    .fetch_one(pool)
    .await
}

// ------------------------------------------------------------------------------------------------------------------- calls

/// An answer that leads to a further call: the one is finished and the other written down, in one statement.
#[derive(Clone, Debug)]
pub struct Advance {
    /// The order.
    pub payment_order_id: Uuid,
    /// Under which claim.
    pub claim: Uuid,
    /// The call that was answered.
    pub finished: Finished,
    /// The call that follows.
    pub started: Started,
}

/// A call that was answered.
#[derive(Clone, Debug)]
pub struct Finished {
    /// Id of the attempt.
    pub attempt_id: Uuid,
    /// The answer.
    pub answer: Answer,
}

/// For each order what is left of its lease, in seconds, or None if the claim is lost: no call may be made then. A lease too short for
/// one more call is renewed.
pub async fn advance(
    pool: &PgPool,
    lease: Duration,
    needed: Duration,
    timeout: Duration,
    advances: &[Advance],
) -> Result<Vec<Option<f64>>, sqlx::Error> {
    let rows: Vec<(Uuid, f64)> = sqlx::query_as(
        "WITH steps AS (
             SELECT * FROM UNNEST($1::uuid[], $2::uuid[], $3::uuid[], $4::text[], $5::text[], $6::text[])
                    AS s (payment_order_id, claim, attempt_id, operation, idempotency_key, request_hash)
         ), answers AS (
             SELECT * FROM UNNEST($1::uuid[], $7::uuid[], $8::text[], $9::smallint[], $10::text[], $11::text[], $12::text[],
                                  $13::text[], $14::timestamptz[])
                    AS a (payment_order_id, attempt_id, verdict, http_status, psp_reference, psp_request_id, error_code,
                          error_message, obtained_at)
         ), locked AS MATERIALIZED (
             -- In the order of their ids, as everybody locks orders: two groups then never wait for each other.
             SELECT payment_order_id FROM executor.inbox WHERE payment_order_id = ANY ($1)
             ORDER BY payment_order_id FOR NO KEY UPDATE
         ), finished AS (
             UPDATE executor.psp_attempts p
             SET status = 'FINISHED', finished_at = a.obtained_at, verdict = a.verdict, http_status = a.http_status,
                 psp_reference = a.psp_reference, psp_request_id = a.psp_request_id, error_code = a.error_code,
                 error_message = a.error_message
             FROM answers a JOIN locked USING (payment_order_id) WHERE p.attempt_id = a.attempt_id
         ), kept AS (
             UPDATE executor.inbox i
             SET psp_reference = coalesce(i.psp_reference, a.psp_reference),
                 step = CASE WHEN s.operation <> 'GET' THEN s.operation ELSE i.step END,
                 -- A webhook may tell the PSP's id before anything was begun: the first call is a look-up then.
                 first_attempt_at = CASE WHEN s.operation <> 'GET' THEN coalesce(i.first_attempt_at, clock_timestamp())
                                         ELSE i.first_attempt_at END,
                 lease_until = CASE WHEN i.lease_until < clock_timestamp() + make_interval(secs => $15)
                                    THEN clock_timestamp() + make_interval(secs => $16) ELSE i.lease_until END,
                 updated_at = clock_timestamp()
             FROM locked JOIN steps s USING (payment_order_id) JOIN answers a USING (payment_order_id)
             WHERE i.payment_order_id = s.payment_order_id AND i.claimed_by = s.claim
             RETURNING i.payment_order_id, extract(epoch FROM i.lease_until - clock_timestamp())::float8 AS remaining
         ), started AS (
             INSERT INTO executor.psp_attempts
                 (attempt_id, payment_order_id, operation, try, idempotency_key, request_hash, deadline_at)
             SELECT s.attempt_id, s.payment_order_id, s.operation,
                    1 + (SELECT count(*) FROM executor.psp_attempts p
                         WHERE p.payment_order_id = s.payment_order_id AND p.operation = s.operation),
                    s.idempotency_key, s.request_hash, clock_timestamp() + make_interval(secs => $17)
             FROM steps s JOIN kept USING (payment_order_id)
         )
         SELECT payment_order_id, remaining FROM kept",
    )
    .bind(advances.iter().map(|a| a.payment_order_id).collect::<Vec<_>>())
    .bind(advances.iter().map(|a| a.claim).collect::<Vec<_>>())
    .bind(advances.iter().map(|a| a.started.attempt_id).collect::<Vec<_>>())
    .bind(advances.iter().map(|a| a.started.operation.as_str()).collect::<Vec<_>>())
    .bind(advances.iter().map(|a| a.started.idempotency_key.as_deref()).collect::<Vec<_>>())
    .bind(advances.iter().map(|a| a.started.request_hash.as_str()).collect::<Vec<_>>())
    .bind(advances.iter().map(|a| a.finished.attempt_id).collect::<Vec<_>>())
    .bind(advances.iter().map(|a| a.finished.answer.verdict.as_str()).collect::<Vec<_>>())
    .bind(advances.iter().map(|a| http_status(&a.finished.answer)).collect::<Vec<_>>())
    .bind(advances.iter().map(|a| a.finished.answer.reference.as_deref()).collect::<Vec<_>>())
    .bind(advances.iter().map(|a| a.finished.answer.request_id.as_deref()).collect::<Vec<_>>())
    .bind(advances.iter().map(|a| a.finished.answer.error_code.as_deref()).collect::<Vec<_>>())
    .bind(advances.iter().map(|a| a.finished.answer.error_message.as_deref()).collect::<Vec<_>>())
    .bind(advances.iter().map(|a| a.finished.answer.obtained_at).collect::<Vec<_>>())
    .bind(needed.as_secs_f64())
    .bind(lease.as_secs_f64())
    .bind(timeout.as_secs_f64())
    .fetch_all(pool)
    .await?;
    let remaining =
        |a: &Advance| rows.iter().find(|(id, _)| *id == a.payment_order_id).map(|(_, seconds)| *seconds);
    Ok(advances.iter().map(remaining).collect())
}

fn http_status(answer: &Answer) -> Option<i16> {
    answer.http_status.and_then(|status| i16::try_from(status).ok())
}

/// Applies the grants of the schema.
pub async fn grant(
    connection: &mut PgConnection,
    services: &[String],
    readers: &[String],
) -> Result<(), sqlx::Error> {
    for role in services {
        sqlx::query("SELECT executor.grant_service($1::name)").bind(role).execute(&mut *connection).await?;
    }
    for role in readers {
        sqlx::query("SELECT executor.grant_reader($1::name)").bind(role).execute(&mut *connection).await?;
    }
    Ok(())
}
