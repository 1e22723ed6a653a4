//! SQL of what needs a person: payments in review, and records in quarantine.

use sqlx::{FromRow, PgPool};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::search::Place;

// ------------------------------------------------------------------------------------------------------------- review

/// A payment in review, with each of its orders that can be resolved.
#[derive(Clone, Debug, FromRow)]
pub(crate) struct InReview {
    pub(crate) payment_id: Uuid,
    pub(crate) merchant_reference: String,
    pub(crate) amount_minor: i64,
    pub(crate) currency: String,
    pub(crate) review_reason: Option<String>,
    pub(crate) created_at: OffsetDateTime,
    pub(crate) updated_at: OffsetDateTime,
    /// An order that is in review; of a payment that was charged twice, one that has succeeded.
    pub(crate) payment_order_id: Option<Uuid>,
    pub(crate) psp: Option<String>,
    pub(crate) psp_reference: Option<String>,
    pub(crate) order_reason: Option<String>,
}

/// Payments in review behind `after`, the oldest first. The limit is one of payments; each has few orders.
pub(crate) async fn in_review(
    pool: &PgPool,
    after: Option<Place>,
    limit: i64,
) -> Result<Vec<InReview>, sqlx::Error> {
    sqlx::query_as(
        "SELECT p.payment_id, p.merchant_reference, p.amount_minor, p.currency, p.review_reason, p.created_at, p.updated_at,
                o.payment_order_id, o.psp, o.psp_reference, o.review_reason AS order_reason
         FROM (SELECT * FROM payments.payments
               WHERE status = 'NEEDS_REVIEW' AND (created_at, payment_id) > (coalesce($1, '-infinity'), coalesce($2, '00000000-0000-0000-0000-000000000000'))
               ORDER BY created_at, payment_id LIMIT $3) AS p
         LEFT JOIN LATERAL (
             SELECT * FROM payments.payment_orders o
             WHERE o.payment_id = p.payment_id
               AND (o.state = 'NEEDS_REVIEW' OR p.review_reason = 'DOUBLE_CHARGE' AND o.state = 'SUCCESSFUL')
             ORDER BY o.try LIMIT 50
         ) AS o ON true
         ORDER BY p.created_at, p.payment_id, o.try",
    )
    .bind(after.map(|place| place.created_at))
    .bind(after.map(|place| place.payment_id))
    .bind(limit)
    .fetch_all(pool)
    .await
}

/// A payment order that a person looks at, with its payment.
#[derive(Clone, Debug, FromRow)]
pub(crate) struct Reviewed {
    pub(crate) payment_order_id: Uuid,
    pub(crate) payment_id: Uuid,
    pub(crate) r#try: i32,
    pub(crate) psp: String,
    pub(crate) state: String,
    pub(crate) psp_reference: Option<String>,
    pub(crate) error_code: Option<String>,
    pub(crate) review_reason: Option<String>,
    pub(crate) updated_at: OffsetDateTime,
    pub(crate) caller: String,
    pub(crate) merchant_reference: String,
    pub(crate) amount_minor: i64,
    pub(crate) currency: String,
    pub(crate) payment_status: String,
    pub(crate) payment_reason: Option<String>,
}

/// The payment order with this id, whatever its state.
pub(crate) async fn reviewed(pool: &PgPool, payment_order_id: Uuid) -> Result<Option<Reviewed>, sqlx::Error> {
    sqlx::query_as(
        "SELECT o.payment_order_id, o.payment_id, o.try, o.psp, o.state, o.psp_reference, o.error_code, o.review_reason, o.updated_at,
                p.caller, p.merchant_reference, p.amount_minor, p.currency, p.status AS payment_status, p.review_reason AS payment_reason
         FROM payments.payment_orders o JOIN payments.payments p USING (payment_id) WHERE o.payment_order_id = $1",
    )
    .bind(payment_order_id)
    .fetch_optional(pool)
    .await
}

/// What a person has decided about a payment order.
#[derive(Clone, Debug, FromRow)]
pub(crate) struct Resolution {
    pub(crate) from_state: Option<String>,
    pub(crate) to_state: String,
    pub(crate) psp_reference: Option<String>,
    pub(crate) operator: Option<String>,
    pub(crate) note: Option<String>,
    pub(crate) decided_at: OffsetDateTime,
}

/// What a person has decided last about a payment order.
pub(crate) async fn last_resolution(
    pool: &PgPool,
    payment_order_id: Uuid,
) -> Result<Option<Resolution>, sqlx::Error> {
    sqlx::query_as(
        "SELECT from_state, to_state, psp_reference, operator, note, decided_at FROM payments.payment_order_transitions
         WHERE payment_order_id = $1 AND decision = 'RESOLVED' ORDER BY transition_id DESC LIMIT 1",
    )
    .bind(payment_order_id)
    .fetch_optional(pool)
    .await
}

// --------------------------------------------------------------------------------------------------------- quarantine

/// A record in quarantine, without its bytes, which may be many.
#[derive(Clone, Debug, FromRow)]
pub(crate) struct Quarantined {
    pub(crate) id: i64,
    pub(crate) topic: String,
    pub(crate) partition: i32,
    pub(crate) record_offset: i64,
    pub(crate) reason_code: String,
    pub(crate) reason: String,
    pub(crate) event_id: Option<Uuid>,
    pub(crate) payment_order_id: Option<Uuid>,
    /// The payment of that order, if there is one.
    pub(crate) payment_id: Option<Uuid>,
    /// Length of its value; None is a tombstone.
    pub(crate) value_bytes: Option<i32>,
    pub(crate) attempts: i32,
    pub(crate) received_at: OffsetDateTime,
    pub(crate) settled_at: Option<OffsetDateTime>,
    pub(crate) outcome: Option<String>,
}

const QUARANTINED: &str = "SELECT q.id, q.topic, q.partition, q.record_offset, q.reason_code, q.reason, q.event_id, q.payment_order_id,
        (SELECT o.payment_id FROM payments.payment_orders o WHERE o.payment_order_id = q.payment_order_id) AS payment_id,
        octet_length(q.record_value) AS value_bytes, q.attempts, q.received_at, q.settled_at, q.outcome
    FROM payments.quarantine q WHERE ";

/// Unsettled records behind this one, oldest first.
pub(crate) async fn quarantined(
    pool: &PgPool,
    after: Option<i64>,
    limit: i64,
) -> Result<Vec<Quarantined>, sqlx::Error> {
    let mut query = sqlx::QueryBuilder::new(QUARANTINED);
    query.push("q.settled_at IS NULL AND q.id > ").push_bind(after.unwrap_or(0));
    query.push(" ORDER BY q.id LIMIT ").push_bind(limit);
    query.build_query_as().fetch_all(pool).await
}

/// One record, settled or not.
pub(crate) async fn quarantined_record(pool: &PgPool, id: i64) -> Result<Option<Quarantined>, sqlx::Error> {
    let mut query = sqlx::QueryBuilder::new(QUARANTINED);
    query.push("q.id = ").push_bind(id);
    query.build_query_as().fetch_optional(pool).await
}

/// A command to the payment service, and what has come of it.
#[derive(Clone, Debug, FromRow)]
pub(crate) struct Command {
    pub(crate) kind: String,
    pub(crate) operator: String,
    pub(crate) note: String,
    pub(crate) requested_at: OffsetDateTime,
    /// The record that it was for, and what became of it. A command of `payment-service quarantine` may be for more: this is the first.
    pub(crate) quarantine_id: Option<i64>,
    pub(crate) outcome: Option<String>,
    pub(crate) reason: Option<String>,
    pub(crate) finished_at: Option<OffsetDateTime>,
    /// Records that it concerns, up to one more than [`super::COUNTED_MAX`].
    pub(crate) selected: i64,
}

/// A command, and what has come of it.
pub(crate) async fn command(pool: &PgPool, id: i64) -> Result<Option<Command>, sqlx::Error> {
    sqlx::query_as(
        "SELECT c.kind, c.operator, c.note, c.requested_at, i.quarantine_id, i.outcome, i.reason, i.finished_at,
                (SELECT count(*) FROM (SELECT FROM payments.command_items n WHERE n.command_id = c.id LIMIT $2) AS n) AS selected
         FROM payments.commands c
         LEFT JOIN LATERAL (
             SELECT * FROM payments.command_items i WHERE i.command_id = c.id ORDER BY i.quarantine_id LIMIT 1
         ) AS i ON true
         WHERE c.id = $1",
    )
    .bind(id)
    .bind(super::COUNTED_MAX + 1)
    .fetch_optional(pool)
    .await
}
