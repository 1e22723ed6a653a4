//! All SQL that looks into our own databases, as the role `operator`: reading, and nothing else.
//!
//! ```text
//! whole tables -> the oracle's books      counts -> progress, what is in flight, what is still to come
//! ```

use anyhow::{Context, Result};
use serde_json::Value;
use sqlx::postgres::{PgPoolOptions, PgRow};
use sqlx::{AssertSqlSafe, FromRow, PgPool};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::oracle::books::{
    Attempt, ExecutorBooks, Order, OutboxEvent, Payment, PaymentBooks, PspResult, Quarantined, Transition,
};

/// What counts is the effect, not the mark that it was taken.
const APPLIED: &str = "SELECT count(DISTINCT event_id) FROM payments.payment_order_transitions";

/// The two databases.
#[derive(Clone, Debug)]
pub struct Databases {
    payments: PgPool,
    executor: PgPool,
}

/// How far the payments are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromRow)]
pub struct Counts {
    /// Orders in the database.
    pub orders: i64,
    /// Of them SUCCESSFUL.
    pub successful: i64,
    /// Of them FAILED.
    pub failed: i64,
    /// Of them NEEDS_REVIEW.
    pub needs_review: i64,
}

impl Counts {
    /// Orders that have come to an end, or to a person.
    pub fn settled(&self) -> i64 {
        self.successful + self.failed + self.needs_review
    }
}

/// What has still to happen before everything is at rest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Remaining {
    /// Orders without an outcome.
    pub orders: i64,
    /// Request events whose publication is not saved.
    pub requests: i64,
    /// Orders that the executor has not done with.
    pub executions: i64,
    /// Result events whose publication is not saved.
    pub results: i64,
    /// Result events that are not applied.
    pub effects: i64,
}

impl Remaining {
    /// Nothing is left to do.
    pub fn is_nothing(&self) -> bool {
        *self == Remaining::default()
    }
}

/// Events written until some moment, on both sides.
#[derive(Clone, Copy, Debug)]
pub struct Written {
    requests: i64,
    results: i64,
}

impl Databases {
    /// Connects to both, under these URLs.
    pub async fn connect(payments: &str, executor: &str) -> Result<Databases> {
        let pool = || PgPoolOptions::new().max_connections(3);
        let (payments, executor) = tokio::try_join!(pool().connect(payments), pool().connect(executor))
            .context("connect to the databases")?;
        Ok(Databases { payments, executor })
    }

    // ------------------------------------------------------------------------------------------------------- counts

    /// How far the payments are.
    pub async fn counts(&self) -> Result<Counts> {
        sqlx::query_as(
            "SELECT count(*) AS orders, count(*) FILTER (WHERE state = 'SUCCESSFUL') AS successful, \
             count(*) FILTER (WHERE state = 'FAILED') AS failed, \
             count(*) FILTER (WHERE state = 'NEEDS_REVIEW') AS needs_review FROM payments.payment_orders",
        )
        .fetch_one(&self.payments)
        .await
        .context("count the orders")
    }

    /// What is still to come.
    pub async fn remaining(&self) -> Result<Remaining> {
        let counts = self.counts().await?;
        let pending = "SELECT count(*) FROM outbox.pending";
        let open = "SELECT count(*) FROM executor.inbox WHERE state NOT IN ('SETTLED', 'REVIEW')";
        let remaining = Remaining {
            orders: counts.orders - counts.settled(),
            requests: count(&self.payments, pending).await?,
            executions: count(&self.executor, open).await?,
            results: count(&self.executor, pending).await?,
            effects: self.unapplied(OffsetDateTime::now_utc()).await?,
        };
        Ok(remaining)
    }

    /// Request events written before this moment whose publication is not saved.
    pub async fn unpublished_requests(&self, before: OffsetDateTime) -> Result<i64> {
        unpublished(&self.payments, before).await
    }

    /// Result events written before this moment whose publication is not saved.
    pub async fn unpublished_results(&self, before: OffsetDateTime) -> Result<i64> {
        unpublished(&self.executor, before).await
    }

    /// Calls to the PSP that were begun between these moments and have not ended.
    pub async fn open_calls(&self, since: OffsetDateTime, before: OffsetDateTime) -> Result<i64> {
        sqlx::query_scalar(
            "SELECT count(*) FROM executor.psp_attempts WHERE status = 'STARTED' AND started_at >= $1 AND started_at < $2",
        )
        .bind(since)
        .bind(before)
        .fetch_one(&self.executor)
        .await
        .context("count the calls in flight")
    }

    /// Whether a transaction that has written to this table of the executor's database is open.
    pub async fn executor_writes(&self, table: &str) -> Result<bool> {
        writes(&self.executor, table).await
    }

    /// Whether a transaction that has written to this table of the payment service's database is open.
    pub async fn payment_service_writes(&self, table: &str) -> Result<bool> {
        writes(&self.payments, table).await
    }

    /// Result events written before this moment that are not applied.
    pub async fn unapplied(&self, before: OffsetDateTime) -> Result<i64> {
        let written: i64 = sqlx::query_scalar("SELECT count(*) FROM outbox.events WHERE created_at < $1")
            .bind(before)
            .fetch_one(&self.executor)
            .await
            .context("count the result events")?;
        let applied = count(&self.payments, APPLIED).await?;
        Ok((written - applied).max(0))
    }

    /// What has been written until now.
    pub async fn written(&self) -> Result<Written> {
        let events = "SELECT count(*) FROM outbox.events";
        Ok(Written {
            requests: count(&self.payments, events).await?,
            results: count(&self.executor, events).await?,
        })
    }

    /// Whether about all of it has arrived on the other side. Events overtake each other across keys, so that this can be some
    /// events early.
    pub async fn arrived(&self, written: Written) -> Result<bool> {
        let applied = count(&self.payments, APPLIED).await?;
        let taken_in = count(&self.executor, "SELECT count(*) FROM executor.inbox").await?;
        Ok(applied >= written.results && taken_in >= written.requests)
    }

    // -------------------------------------------------------------------------------------------------------- books

    /// The books of the executor.
    pub async fn executor_books(&self) -> Result<ExecutorBooks> {
        let pool = &self.executor;
        let inbox: Vec<(Uuid,)> = rows(pool, "SELECT payment_order_id FROM executor.inbox").await?;
        let quarantine: Vec<(i32, i64)> =
            rows(pool, "SELECT partition, record_offset FROM executor.quarantine").await?;
        let attempts: Vec<Attempt> =
            rows(pool, "SELECT payment_order_id, operation FROM executor.psp_attempts").await?;
        let results: Vec<PspResult> = rows(
            pool,
            "SELECT payment_order_id, event_id, psp_status, psp_reference, error_code FROM executor.psp_results",
        )
        .await?;
        Ok(ExecutorBooks {
            inbox: inbox.into_iter().map(|(id,)| id).collect(),
            quarantine,
            attempts,
            results,
            outbox: outbox(pool).await?,
        })
    }

    /// The books of the payment service.
    pub async fn payment_books(&self) -> Result<PaymentBooks> {
        let pool = &self.payments;
        let payments: Vec<Payment> = rows(
            pool,
            "SELECT payment_id, amount_minor, currency, merchant_reference, status, trace_id FROM payments.payments",
        )
        .await?;
        let orders: Vec<Order> = rows(
            pool,
            "SELECT payment_order_id, payment_id, try AS number, state, psp_reference FROM payments.payment_orders",
        )
        .await?;
        let transitions: Vec<Transition> = rows(
            pool,
            "SELECT transition_id, payment_order_id, event_id, from_state, to_state, decision, event_time, trace_id, \
             decided_at FROM payments.payment_order_transitions ORDER BY transition_id",
        )
        .await?;
        let processed: Vec<(Uuid,)> = rows(pool, "SELECT event_id FROM payments.processed_events").await?;
        let quarantine: Vec<Quarantined> = rows(
            pool,
            "SELECT event_id, reason_code, reason, settled_at IS NOT NULL AS settled FROM payments.quarantine",
        )
        .await?;
        Ok(PaymentBooks {
            payments,
            orders,
            transitions,
            processed: processed.into_iter().map(|(id,)| id).collect(),
            quarantine,
            outbox: outbox(pool).await?,
        })
    }

    /// Every row of every table of ours as JSON: `(database.schema.table, rows)`. For those who look into a failure.
    pub async fn everything(&self) -> Result<Vec<(String, Vec<Value>)>> {
        let mut all = Vec::new();
        for (database, pool) in [("payments", &self.payments), ("executor", &self.executor)] {
            let tables: Vec<(String,)> = rows(
                pool,
                "SELECT format('%I.%I', schemaname, tablename) FROM pg_tables \
                 WHERE schemaname IN ('outbox', 'executor', 'payments') AND tablename NOT LIKE 'events\\__' ORDER BY 1",
            )
            .await?;
            for (table,) in tables {
                let sql = format!("SELECT to_jsonb(t) FROM {table} AS t");
                let values: Vec<(Value,)> = sqlx::query_as(AssertSqlSafe(sql))
                    .fetch_all(pool)
                    .await
                    .with_context(|| format!("read {table}"))?;
                all.push((format!("{database}.{table}"), values.into_iter().map(|(row,)| row).collect()));
            }
        }
        Ok(all)
    }
}

async fn unpublished(pool: &PgPool, before: OffsetDateTime) -> Result<i64> {
    sqlx::query_scalar("SELECT count(*) FROM outbox.pending WHERE created_at < $1")
        .bind(before)
        .fetch_one(pool)
        .await
        .context("count the events that are not published")
}

/// The lock of a writer is held until its transaction has ended.
async fn writes(pool: &PgPool, table: &str) -> Result<bool> {
    sqlx::query_scalar(
        "SELECT EXISTS (SELECT FROM pg_locks WHERE relation = $1::regclass AND mode = 'RowExclusiveLock' AND granted)",
    )
    .bind(table)
    .fetch_one(pool)
    .await
    .with_context(|| format!("look for a transaction that writes to {table}"))
}

async fn count(pool: &PgPool, sql: &'static str) -> Result<i64> {
    sqlx::query_scalar(sql).fetch_one(pool).await.with_context(|| format!("count by: {sql}"))
}

async fn rows<T>(pool: &PgPool, sql: &'static str) -> Result<Vec<T>>
where
    T: for<'r> FromRow<'r, PgRow> + Send + Unpin,
{
    sqlx::query_as(sql).fetch_all(pool).await.with_context(|| format!("read by: {sql}"))
}

async fn outbox(pool: &PgPool) -> Result<Vec<OutboxEvent>> {
    rows(pool, "SELECT id, event_id, aggregate_id, payload, traceparent FROM outbox.events ORDER BY id").await
}
