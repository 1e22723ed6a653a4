//! SQL of trying a payment again, in the order in which the statements of a transaction run.

use sqlx::PgConnection;
use uuid::Uuid;

use super::{NewPaymentOrder, Terms, results::unknown_word};
use crate::request::Psp;

/// Locks the orders of this caller's payment, in the order of their ids, as whoever locks several does.
pub(crate) async fn lock_orders(
    tx: &mut PgConnection,
    caller: &str,
    payment_id: Uuid,
) -> Result<(), sqlx::Error> {
    sqlx::query(
        "SELECT FROM payments.payment_orders o
         WHERE o.payment_id = $1
           AND EXISTS (SELECT FROM payments.payments p WHERE p.payment_id = $1 AND p.caller = $2)
         ORDER BY o.payment_order_id FOR NO KEY UPDATE OF o",
    )
    .bind(payment_id)
    .bind(caller)
    .execute(tx)
    .await?;
    Ok(())
}

/// Locks this caller's payment, after its orders. Returns what it is about, if it exists.
pub(crate) async fn lock_payment(
    tx: &mut PgConnection,
    caller: &str,
    payment_id: Uuid,
) -> Result<Option<Terms>, sqlx::Error> {
    sqlx::query_as(
        "SELECT amount_minor, currency, merchant_reference FROM payments.payments
         WHERE payment_id = $1 AND caller = $2 FOR NO KEY UPDATE",
    )
    .bind(payment_id)
    .bind(caller)
    .fetch_optional(tx)
    .await
}

/// The newest order of a payment.
#[derive(Clone, Debug)]
pub(crate) struct LastOrder {
    pub(crate) payment_id: Uuid,
    pub(crate) r#try: i32,
    pub(crate) psp: Psp,
    pub(crate) payment_method: String,
    pub(crate) traceparent: String,
}

/// The newest order of a payment that this transaction has locked.
pub(crate) async fn last_order(tx: &mut PgConnection, payment_id: Uuid) -> Result<LastOrder, sqlx::Error> {
    let (r#try, word, payment_method, traceparent): (i32, String, String, String) = sqlx::query_as(
        "SELECT try, psp, payment_method, traceparent FROM payments.payment_orders
         WHERE payment_id = $1 ORDER BY try DESC LIMIT 1",
    )
    .bind(payment_id)
    .fetch_one(tx)
    .await?;
    let psp = Psp::from_word(&word).ok_or_else(|| unknown_word("psp", &word))?;
    Ok(LastOrder { payment_id, r#try, psp, payment_method, traceparent })
}

/// Inserts a further payment order and the transition that is its creation.
pub(crate) async fn insert_order(tx: &mut PgConnection, order: &NewPaymentOrder) -> Result<(), sqlx::Error> {
    sqlx::query(
        "WITH payment_order AS (
             INSERT INTO payments.payment_orders (payment_order_id, payment_id, try, psp, payment_method, state, traceparent, expires_at, created_at, updated_at)
             VALUES ($1, $2, $3, $4, $5, 'CREATED', $6, $7, $8, $8)
         )
         INSERT INTO payments.payment_order_transitions (payment_order_id, to_state, decision, trace_id)
         VALUES ($1, 'CREATED', 'APPLIED', $9)",
    )
    .bind(order.payment_order_id)
    .bind(order.payment_id)
    .bind(order.r#try)
    .bind(order.psp.as_str())
    .bind(&order.payment_method)
    .bind(&order.traceparent)
    .bind(order.expires_at)
    .bind(order.created_at)
    .bind(&order.trace_id)
    .execute(tx)
    .await?;
    Ok(())
}
