//! SQL of idempotency keys: each with the answer to the first request that came with it.

use serde_json::Value;
use sqlx::{FromRow, PgConnection};
use uuid::Uuid;

use crate::idempotency::Key;

/// The stored answer to a request.
#[derive(Debug, FromRow)]
pub(crate) struct StoredAnswer {
    pub(crate) fingerprint: Vec<u8>,
    pub(crate) status_code: i32,
    pub(crate) response: Value,
}

/// Takes a key. False if it is taken; waits for a transaction that is taking it.
pub(crate) async fn take_key(
    tx: &mut PgConnection,
    key: &Key,
    payment_id: Uuid,
    answer: &StoredAnswer,
) -> Result<bool, sqlx::Error> {
    let inserted = sqlx::query(
        "INSERT INTO payments.idempotency_keys (caller, operation, idempotency_key, fingerprint, payment_id, status_code, response)
         VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT DO NOTHING",
    )
    .bind(&key.caller)
    .bind(key.operation.as_str())
    .bind(&key.key)
    .bind(&answer.fingerprint)
    .bind(payment_id)
    .bind(answer.status_code)
    .bind(&answer.response)
    .execute(tx)
    .await?;
    Ok(inserted.rows_affected() == 1)
}

/// Takes keys, in this order, and returns the payments of those that were free; waits for transactions that are taking one.
pub(crate) async fn take_keys(
    tx: &mut PgConnection,
    new: &[(&Key, Uuid, StoredAnswer)],
) -> Result<Vec<Uuid>, sqlx::Error> {
    sqlx::query_scalar(
        "INSERT INTO payments.idempotency_keys (caller, operation, idempotency_key, fingerprint, payment_id, status_code, response)
         SELECT * FROM UNNEST($1::text[], $2::text[], $3::text[], $4::bytea[], $5::uuid[], $6::integer[], $7::jsonb[])
         ON CONFLICT DO NOTHING RETURNING payment_id",
    )
    .bind(new.iter().map(|(key, ..)| key.caller.as_str()).collect::<Vec<_>>())
    .bind(new.iter().map(|(key, ..)| key.operation.as_str()).collect::<Vec<_>>())
    .bind(new.iter().map(|(key, ..)| key.key.as_str()).collect::<Vec<_>>())
    .bind(new.iter().map(|(.., answer)| answer.fingerprint.as_slice()).collect::<Vec<_>>())
    .bind(new.iter().map(|(_, payment_id, _)| *payment_id).collect::<Vec<_>>())
    .bind(new.iter().map(|(.., answer)| answer.status_code).collect::<Vec<_>>())
    .bind(new.iter().map(|(.., answer)| &answer.response).collect::<Vec<_>>())
    .fetch_all(tx)
    .await
}

/// The answer that was given to the first request with this key.
pub(crate) async fn answer_of_key(
    tx: &mut PgConnection,
    key: &Key,
) -> Result<Option<StoredAnswer>, sqlx::Error> {
    sqlx::query_as(
        "SELECT fingerprint, status_code, response FROM payments.idempotency_keys
         WHERE caller = $1 AND operation = $2 AND idempotency_key = $3",
    )
    .bind(&key.caller)
    .bind(key.operation.as_str())
    .bind(&key.key)
    .fetch_optional(tx)
    .await
}
