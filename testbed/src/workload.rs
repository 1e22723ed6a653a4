//! Writers that make life hard for whoever tails the outbox: concurrent, with savepoints, rollbacks, transactions left open, and
//! transaction ids drawn long before the lock that orders the key.
//!
//! Every event is one step of an aggregate: the steps of a key are 1, 2, 3, ... in the order of commit, so that whoever reads them
//! sees what is missing, what came twice and what came too early. An event of step [`NEVER`] is never committed.

use std::time::Duration;

use anyhow::{Context, Result};
use sqlx::{Connection, PgConnection};
use uuid::Uuid;

use crate::load::Random;

/// The type of every event.
pub const EVENT_TYPE: &str = "Stepped";
/// Its Avro schema.
pub const SCHEMA: &str = r#"{
  "type": "record", "name": "Stepped", "namespace": "test",
  "fields": [
    {"name": "key", "type": "string"},
    {"name": "step", "type": "long"},
    {"name": "note", "type": ["null", "string"], "default": null}
  ]
}"#;
/// The step of events that are rolled back.
pub const NEVER: i64 = -1;

/// Keys that every writer wants. Beside them each has one of its own, for its long transactions.
const SHARED_KEYS: usize = 6;

/// An event in the outbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// `ce_id`.
    pub event_id: Uuid,
    /// The aggregate, which is the Kafka key.
    pub key: String,
    /// Counted per key.
    pub step: i64,
}

/// A transaction that has met an error.
#[derive(Debug)]
pub struct Interrupted {
    /// What it had appended, if the answer to its COMMIT is missing: committed or not, only the database knows.
    pub in_doubt: Vec<Step>,
    /// What went wrong.
    pub error: sqlx::Error,
}

impl From<sqlx::Error> for Interrupted {
    fn from(error: sqlx::Error) -> Interrupted {
        Interrupted { in_doubt: Vec::new(), error }
    }
}

/// Makes the aggregates of so many writers, who log in as `role`.
pub async fn prepare(owner: &mut PgConnection, role: &str, writers: usize) -> Result<()> {
    sqlx::raw_sql("CREATE TABLE aggregates (key text PRIMARY KEY, step bigint NOT NULL)")
        .execute(&mut *owner)
        .await
        .context("create the aggregates")?;
    let grant = format!("GRANT SELECT, UPDATE ON aggregates TO {role}");
    sqlx::raw_sql(sqlx::AssertSqlSafe(grant)).execute(&mut *owner).await.context("grant the aggregates")?;
    for (kind, count) in [("shared", SHARED_KEYS), ("own", writers)] {
        sqlx::query(
            "INSERT INTO aggregates SELECT $1 || '-' || n, 0 FROM generate_series(0, $2::bigint - 1) n",
        )
        .bind(kind)
        .bind(i64::try_from(count)?)
        .execute(&mut *owner)
        .await
        .context("make the aggregates")?;
    }
    Ok(())
}

/// One transaction of a writer; returns what it has committed.
pub async fn transaction(
    connection: &mut PgConnection,
    writer: usize,
    random: &mut Random,
) -> Result<Vec<Step>, Interrupted> {
    let mut tx = connection.begin().await?;
    let shared = format!("shared-{}", random.below(SHARED_KEYS));
    let mut steps = Vec::new();
    match random.below(20) {
        // Left open for long, with an id drawn at its beginning.
        0 => {
            let own = format!("own-{writer}");
            steps.push(step(&mut tx, &own).await?);
            tokio::time::sleep(Duration::from_millis(100) + random.milliseconds(500)).await;
            steps.push(step(&mut tx, &own).await?);
        }
        // A transaction id drawn well before the lock on the key: transaction order is not commit order.
        1..=6 => {
            sqlx::query("SELECT pg_current_xact_id()").execute(&mut *tx).await?;
            tokio::time::sleep(random.milliseconds(15)).await;
            steps.push(step(&mut tx, &shared).await?);
        }
        // An event inside a savepoint that is rolled back, then another.
        7..=9 => {
            sqlx::query("SAVEPOINT s").execute(&mut *tx).await?;
            append(&mut tx, &shared, NEVER).await?;
            sqlx::query("ROLLBACK TO SAVEPOINT s").execute(&mut *tx).await?;
            sqlx::query("SAVEPOINT t").execute(&mut *tx).await?;
            steps.push(step(&mut tx, &shared).await?);
            sqlx::query("RELEASE SAVEPOINT t").execute(&mut *tx).await?;
        }
        10..=11 => {
            append(&mut tx, &shared, NEVER).await?;
            tx.rollback().await?;
            return Ok(Vec::new());
        }
        _ => {
            for _ in 0..=random.below(3) {
                steps.push(step(&mut tx, &shared).await?);
            }
        }
    }
    match tx.commit().await {
        Ok(()) => Ok(steps),
        Err(error) => Err(Interrupted { in_doubt: steps, error }),
    }
}

/// Locks the aggregate, moves it on, and appends the event of it.
async fn step(tx: &mut PgConnection, key: &str) -> Result<Step, sqlx::Error> {
    let step = sqlx::query_scalar("UPDATE aggregates SET step = step + 1 WHERE key = $1 RETURNING step")
        .bind(key)
        .fetch_one(&mut *tx)
        .await?;
    let event_id = append(tx, key, step).await?;
    Ok(Step { event_id, key: key.to_owned(), step })
}

async fn append(tx: &mut PgConnection, key: &str, step: i64) -> Result<Uuid, sqlx::Error> {
    let event_id = Uuid::now_v7();
    sqlx::query("SELECT outbox.append($1, $2, json_build_object('key', $2, 'step', $3), NULL, NULL, $4)")
        .bind(EVENT_TYPE)
        .bind(key)
        .bind(step)
        .bind(event_id)
        .execute(tx)
        .await?;
    Ok(event_id)
}
