//! All SQL of this process and nothing else: here what the API needs, in [`results`] what applying results needs, and beside it what
//! the quarantine, its operators, the audit and the tokens need.

pub(crate) mod audit;
pub(crate) mod commands;
pub(crate) mod quarantine;
pub(crate) mod results;
pub(crate) mod tokens;

use serde::Serialize;
use serde_json::Value;
use sqlx::{FromRow, PgConnection, PgPool};
use time::OffsetDateTime;
use uuid::Uuid;

// ------------------------------------------------------------------------------------------------ creating a payment

/// The stored answer to a request.
#[derive(Debug, FromRow)]
pub(crate) struct StoredAnswer {
    pub(crate) fingerprint: Vec<u8>,
    pub(crate) status_code: i32,
    pub(crate) response: Value,
}

/// Takes an idempotency key. False if it is taken; waits for a transaction that is taking it.
pub(crate) async fn take_key(
    tx: &mut PgConnection,
    (caller, key): (&str, &str),
    payment_id: Uuid,
    answer: &StoredAnswer,
) -> Result<bool, sqlx::Error> {
    let inserted = sqlx::query(
        "INSERT INTO payments.idempotency_keys (caller, idempotency_key, fingerprint, payment_id, status_code, response)
         VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT DO NOTHING",
    )
    .bind(caller)
    .bind(key)
    .bind(&answer.fingerprint)
    .bind(payment_id)
    .bind(answer.status_code)
    .bind(&answer.response)
    .execute(tx)
    .await?;
    Ok(inserted.rows_affected() == 1)
}

/// The answer that was given to the first request with this key.
pub(crate) async fn answer_of_key(
    tx: &mut PgConnection,
    (caller, key): (&str, &str),
) -> Result<StoredAnswer, sqlx::Error> {
    sqlx::query_as(
        "SELECT fingerprint, status_code, response FROM payments.idempotency_keys
         WHERE caller = $1 AND idempotency_key = $2",
    )
    .bind(caller)
    .bind(key)
    .fetch_one(tx)
    .await
}

/// A payment with its first payment order.
#[derive(Clone, Debug)]
pub(crate) struct NewPayment {
    pub(crate) payment_id: Uuid,
    pub(crate) payment_order_id: Uuid,
    pub(crate) caller: String,
    pub(crate) amount_minor: i64,
    pub(crate) currency: String,
    pub(crate) merchant_reference: String,
    pub(crate) psp: &'static str,
    pub(crate) payment_method: String,
    pub(crate) trace_id: String,
    pub(crate) traceparent: String,
    pub(crate) expires_at: OffsetDateTime,
    pub(crate) created_at: OffsetDateTime,
}

/// Number of a payment's first payment order.
pub(crate) const FIRST_TRY: i32 = 1;

/// Inserts a payment, its first payment order and the transition that is its creation.
pub(crate) async fn insert_payment(tx: &mut PgConnection, new: &NewPayment) -> Result<(), sqlx::Error> {
    sqlx::query(
        "WITH payment AS (
             INSERT INTO payments.payments (payment_id, caller, amount_minor, currency, merchant_reference, status, trace_id, created_at, updated_at)
             VALUES ($1, $2, $3, $4, $5, 'CREATED', $6, $7, $7)
         ), payment_order AS (
             INSERT INTO payments.payment_orders (payment_order_id, payment_id, try, psp, payment_method, state, traceparent, expires_at, created_at, updated_at)
             VALUES ($8, $1, $9, $10, $11, 'CREATED', $12, $13, $7, $7)
         )
         INSERT INTO payments.payment_order_transitions (payment_order_id, to_state, decision, trace_id)
         VALUES ($8, 'CREATED', 'APPLIED', $6)",
    )
    .bind(new.payment_id)
    .bind(&new.caller)
    .bind(new.amount_minor)
    .bind(&new.currency)
    .bind(&new.merchant_reference)
    .bind(&new.trace_id)
    .bind(new.created_at)
    .bind(new.payment_order_id)
    .bind(FIRST_TRY)
    .bind(new.psp)
    .bind(&new.payment_method)
    .bind(&new.traceparent)
    .bind(new.expires_at)
    .execute(tx)
    .await?;
    Ok(())
}

// --------------------------------------------------------------------------------------------------- showing payments

/// A payment as its caller sees it.
#[derive(Debug, FromRow, Serialize)]
pub(crate) struct PaymentRow {
    pub(crate) payment_id: Uuid,
    pub(crate) amount_minor: i64,
    pub(crate) currency: String,
    pub(crate) merchant_reference: String,
    pub(crate) status: String,
    pub(crate) review_reason: Option<String>,
    pub(crate) trace_id: String,
    #[serde(with = "time::serde::rfc3339")]
    pub(crate) created_at: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339")]
    pub(crate) updated_at: OffsetDateTime,
}

/// A payment order as its caller sees it.
#[derive(Debug, FromRow, Serialize)]
pub(crate) struct OrderRow {
    pub(crate) payment_order_id: Uuid,
    pub(crate) payment_id: Uuid,
    pub(crate) r#try: i32,
    pub(crate) psp: String,
    pub(crate) state: String,
    pub(crate) psp_reference: Option<String>,
    pub(crate) error_code: Option<String>,
    pub(crate) error_message: Option<String>,
    pub(crate) review_reason: Option<String>,
    pub(crate) trace_id: String,
    #[serde(with = "time::serde::rfc3339")]
    pub(crate) expires_at: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339")]
    pub(crate) created_at: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339")]
    pub(crate) updated_at: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339::option")]
    pub(crate) settled_at: Option<OffsetDateTime>,
}

/// One row of the audit.
#[derive(Debug, FromRow, Serialize)]
pub(crate) struct TransitionRow {
    pub(crate) event_id: Option<Uuid>,
    pub(crate) from_state: Option<String>,
    pub(crate) to_state: String,
    pub(crate) decision: String,
    pub(crate) psp_status: Option<String>,
    pub(crate) psp_reference: Option<String>,
    pub(crate) error_code: Option<String>,
    #[serde(with = "time::serde::rfc3339::option")]
    pub(crate) event_time: Option<OffsetDateTime>,
    pub(crate) topic: Option<String>,
    pub(crate) partition: Option<i32>,
    pub(crate) record_offset: Option<i64>,
    pub(crate) trace_id: String,
    pub(crate) operator: Option<String>,
    pub(crate) note: Option<String>,
    #[serde(with = "time::serde::rfc3339")]
    pub(crate) decided_at: OffsetDateTime,
}

/// Most transitions of one order that are shown: an order has few, unless somebody floods it.
const TRANSITIONS_SHOWN_MAX: i64 = 1_000;

/// A payment of this caller, and its orders.
pub(crate) async fn payment(
    pool: &PgPool,
    caller: &str,
    payment_id: Uuid,
) -> Result<Option<(PaymentRow, Vec<OrderRow>)>, sqlx::Error> {
    let payment: Option<PaymentRow> =
        sqlx::query_as("SELECT * FROM payments.payments WHERE payment_id = $1 AND caller = $2")
            .bind(payment_id)
            .bind(caller)
            .fetch_optional(pool)
            .await?;
    let Some(payment) = payment else { return Ok(None) };
    let orders = sqlx::query_as(
        "SELECT *, split_part(traceparent, '-', 2) AS trace_id FROM payments.payment_orders WHERE payment_id = $1 ORDER BY try",
    )
        .bind(payment_id)
        .fetch_all(pool)
        .await?;
    Ok(Some((payment, orders)))
}

/// A payment order of this caller, and the beginning of its audit.
pub(crate) async fn payment_order(
    pool: &PgPool,
    caller: &str,
    payment_order_id: Uuid,
) -> Result<Option<(OrderRow, Vec<TransitionRow>)>, sqlx::Error> {
    let order: Option<OrderRow> = sqlx::query_as(
        "SELECT o.*, split_part(o.traceparent, '-', 2) AS trace_id FROM payments.payment_orders o JOIN payments.payments p USING (payment_id)
         WHERE o.payment_order_id = $1 AND p.caller = $2",
    )
    .bind(payment_order_id)
    .bind(caller)
    .fetch_optional(pool)
    .await?;
    let Some(order) = order else { return Ok(None) };
    let transitions = sqlx::query_as(
        "SELECT * FROM payments.payment_order_transitions WHERE payment_order_id = $1 ORDER BY transition_id LIMIT $2",
    )
    .bind(payment_order_id)
    .bind(TRANSITIONS_SHOWN_MAX)
    .fetch_all(pool)
    .await?;
    Ok(Some((order, transitions)))
}
