//! Taking an event once.

use sqlx::PgConnection;
use uuid::Uuid;

/// True if `consumer` has not taken this event before. The record of it is part of the caller's transaction, together with the
/// event's effect: both happen or neither. A second taker waits for the first one's commit or rollback.
pub async fn once(
    transaction: &mut PgConnection,
    consumer: &str,
    event_id: Uuid,
) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar("SELECT outbox.once($1, $2)")
        .bind(consumer)
        .bind(event_id)
        .fetch_one(transaction)
        .await
}
