//! SQL of the executor's own tables, which the console may read where it was given a way to its database.

use sqlx::{FromRow, PgPool};
use time::OffsetDateTime;
use uuid::Uuid;

/// Rows of each kind that are shown of one payment order: it has few, unless something goes round and round.
pub(crate) const SHOWN_MAX: i64 = 200;

/// How far the executor has brought a payment order.
#[derive(Clone, Debug, FromRow)]
pub(crate) struct Inbox {
    pub(crate) request_event_id: Option<Uuid>,
    pub(crate) state: String,
    pub(crate) received_at: OffsetDateTime,
    pub(crate) due_at: OffsetDateTime,
    /// Why the database refuses to have it claimed, if it does.
    pub(crate) parked: Option<String>,
}

/// A call to a PSP.
#[derive(Clone, Debug, FromRow)]
pub(crate) struct Attempt {
    pub(crate) operation: String,
    pub(crate) r#try: i32,
    pub(crate) started_at: OffsetDateTime,
    pub(crate) finished_at: Option<OffsetDateTime>,
    pub(crate) verdict: Option<String>,
    pub(crate) http_status: Option<i16>,
    pub(crate) psp_reference: Option<String>,
    pub(crate) psp_request_id: Option<String>,
    pub(crate) error_code: Option<String>,
    pub(crate) error_message: Option<String>,
}

/// What a PSP said.
#[derive(Clone, Debug, FromRow)]
pub(crate) struct PspResult {
    pub(crate) psp_status: String,
    pub(crate) psp_reference: Option<String>,
    pub(crate) error_code: Option<String>,
    pub(crate) error_message: Option<String>,
    pub(crate) source: String,
    pub(crate) event_id: Uuid,
    pub(crate) event_time: OffsetDateTime,
    pub(crate) recorded_at: OffsetDateTime,
}

/// What a PSP told by itself.
#[derive(Clone, Debug, FromRow)]
pub(crate) struct Webhook {
    pub(crate) psp: String,
    pub(crate) event_type: String,
    pub(crate) received_at: OffsetDateTime,
    pub(crate) outcome: Option<String>,
}

/// Everything that the executor knows of a payment order.
#[derive(Clone, Debug, Default)]
pub(crate) struct Execution {
    pub(crate) inbox: Option<Inbox>,
    pub(crate) attempts: Vec<Attempt>,
    pub(crate) results: Vec<PspResult>,
    pub(crate) webhooks: Vec<Webhook>,
}

/// Everything that the executor knows of a payment order.
pub(crate) async fn execution(pool: &PgPool, payment_order_id: Uuid) -> Result<Execution, sqlx::Error> {
    let inbox = sqlx::query_as(
        "SELECT i.request_event_id, i.state, i.received_at, i.due_at, p.reason AS parked
         FROM executor.inbox i LEFT JOIN executor.parked p USING (payment_order_id) WHERE payment_order_id = $1",
    )
    .bind(payment_order_id)
    .fetch_optional(pool)
    .await?;
    let attempts = sqlx::query_as(
        "SELECT operation, try, started_at, finished_at, verdict, http_status, psp_reference, psp_request_id, error_code, error_message
         FROM executor.psp_attempts WHERE payment_order_id = $1 ORDER BY started_at LIMIT $2",
    )
    .bind(payment_order_id)
    .bind(SHOWN_MAX)
    .fetch_all(pool)
    .await?;
    let results = sqlx::query_as(
        "SELECT psp_status, psp_reference, error_code, error_message, source, event_id, event_time, recorded_at
         FROM executor.psp_results WHERE payment_order_id = $1 ORDER BY recorded_at LIMIT $2",
    )
    .bind(payment_order_id)
    .bind(SHOWN_MAX)
    .fetch_all(pool)
    .await?;
    let webhooks = sqlx::query_as(
        "SELECT psp, event_type, received_at, outcome FROM executor.webhooks WHERE payment_order_id = $1 ORDER BY webhook_id LIMIT $2",
    )
    .bind(payment_order_id)
    .bind(SHOWN_MAX)
    .fetch_all(pool)
    .await?;
    Ok(Execution { inbox, attempts, results, webhooks })
}

/// What at the executor waits for a person: orders, orders that are set aside, and records in its quarantine. Each is counted up to one
/// more than [`super::COUNTED_MAX`].
#[derive(Clone, Copy, Debug, FromRow)]
pub(crate) struct Waiting {
    pub(crate) in_review: i64,
    pub(crate) parked: i64,
    pub(crate) quarantined: i64,
}

/// What at the executor waits for a person.
pub(crate) async fn waiting(pool: &PgPool) -> Result<Waiting, sqlx::Error> {
    sqlx::query_as(
        "SELECT (SELECT count(*) FROM (SELECT FROM executor.inbox WHERE state = 'REVIEW' LIMIT $1) AS r) AS in_review,
                (SELECT count(*) FROM (SELECT FROM executor.parked LIMIT $1) AS p) AS parked,
                (SELECT count(*) FROM (SELECT FROM executor.quarantine LIMIT $1) AS q) AS quarantined",
    )
    .bind(super::COUNTED_MAX + 1)
    .fetch_one(pool)
    .await
}
