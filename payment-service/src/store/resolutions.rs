//! SQL of a person's decision: the line of the audit that the database wants to see before an order leaves its review.

use sqlx::PgConnection;
use uuid::Uuid;

use crate::decision::{Order, State};

/// A line of the audit, of the sort that a person makes.
#[derive(Debug)]
pub(crate) struct NewResolution<'a> {
    pub(crate) payment_order_id: Uuid,
    pub(crate) from: State,
    pub(crate) next: &'a Order,
    pub(crate) trace_id: &'a str,
    pub(crate) operator: &'a str,
    pub(crate) note: &'a str,
}

/// Appends it to the audit.
pub(crate) async fn insert(tx: &mut PgConnection, new: &NewResolution<'_>) -> Result<(), sqlx::Error> {
    sqlx::query(
        "INSERT INTO payments.payment_order_transitions
             (payment_order_id, from_state, to_state, decision, psp_reference, error_code, trace_id, operator, note)
         VALUES ($1, $2, $3, 'RESOLVED', $4, $5, $6, $7, $8)",
    )
    .bind(new.payment_order_id)
    .bind(new.from.as_str())
    .bind(new.next.state.as_str())
    .bind(new.next.psp_reference.as_deref())
    .bind(new.next.error_code.as_deref())
    .bind(new.trace_id)
    .bind(new.operator)
    .bind(new.note)
    .execute(tx)
    .await?;
    Ok(())
}
