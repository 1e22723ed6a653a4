//! Committed events that wait: as services append them, only faster.

use anyhow::{Context, Result};
use sqlx::PgConnection;

/// Rows of one transaction, so that a backlog is of many transactions.
const PER_TRANSACTION: u32 = 10_000;

/// Writes the rows that `outbox.append` would have written for the executor: all fields of the event, two events per payment order, far
/// apart.
///
/// `name` tells backlogs apart: none has payment orders of another.
pub(super) async fn fill(owner: &mut PgConnection, name: &str, events: u32) -> Result<()> {
    let mut from = 0;
    while from < events {
        let to = events.min(from + PER_TRANSACTION);
        sqlx::query(
            r#"INSERT INTO outbox.events (slot, event_id, event_type, aggregate_id, payload, traceparent, created_at)
             SELECT (floor(extract(epoch FROM at) / 86400)::bigint % 8)::smallint, outbox.uuid_v7(at), 'PspResultUpdateEvent', key,
                    format($${"errorCode":"insufficient_funds","errorMessage":"Your card has insufficient funds.","eventTime":"%s","paymentOrderId":"%s","pspReference":"pi_%s","pspStatus":"%s"}$$,
                        to_char(at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'), key, left(digest, 24),
                        (ARRAY['FAILED', 'PENDING', 'UNKNOWN'])[n % 3 + 1])::json,
                    '00-' || digest || '-' || left(digest, 16) || '-01', at
             FROM (SELECT n, clock_timestamp() AS at, md5($1 || n % $2)::uuid::text AS key, md5($1 || '/' || n) AS digest
                   FROM generate_series($3, $4 - 1) AS n) AS e
             ORDER BY n"#,
        )
        .bind(name)
        .bind(i64::from(events.div_ceil(2)))
        .bind(i64::from(from))
        .bind(i64::from(to))
        .execute(&mut *owner)
        .await
        .context("fill the outbox")?;
        from = to;
    }
    Ok(())
}

/// What autovacuum and a checkpoint do sooner or later, done now: so that they do not come at a random moment of a measurement.
pub(super) async fn settle(superuser: &mut PgConnection) -> Result<()> {
    for statement in ["VACUUM (ANALYZE)", "CHECKPOINT"] {
        sqlx::query(statement).execute(&mut *superuser).await.context(statement)?;
    }
    Ok(())
}
