//! Writers that make life hard for whoever tails the outbox: concurrent, with savepoints, rollbacks, transactions left open, and
//! transaction ids drawn long before the lock that orders the key.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use sqlx::{Connection as _, PgConnection};

use crate::rig::Rig;

const KEYS: u64 = 6;

/// What was committed: the steps of each key are 1, 2, 3, ... in the order of commit.
#[derive(Debug, Default)]
pub(crate) struct Committed {
    pub(crate) last_step: BTreeMap<String, i64>,
}

impl Committed {
    pub(crate) fn total(&self) -> i64 {
        self.last_step.values().sum()
    }
}

/// A random number generator that a seed decides (splitmix64).
#[derive(Debug)]
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % limit
    }
}

/// Runs `writers` writers until they have committed `events` events, and says which.
pub(crate) async fn write(rig: &Rig, writers: u64, seed: u64, events: usize) -> anyhow::Result<Committed> {
    let mut owner = rig.connect("payment_outbox").await?;
    sqlx::raw_sql("CREATE TABLE aggregates (key text PRIMARY KEY, step bigint NOT NULL); GRANT SELECT, UPDATE ON aggregates TO executor")
        .execute(&mut owner)
        .await?;
    // Six keys that everybody wants, and one of its own for each writer's long transactions.
    sqlx::query("INSERT INTO aggregates SELECT 'shared-' || n, 0 FROM generate_series(0, $1::bigint - 1) n")
        .bind(i64::try_from(KEYS)?)
        .execute(&mut owner)
        .await?;
    sqlx::query("INSERT INTO aggregates SELECT 'own-' || n, 0 FROM generate_series(0, $1::bigint - 1) n")
        .bind(i64::try_from(writers)?)
        .execute(&mut owner)
        .await?;
    let committed = Arc::new(Mutex::new(Committed::default()));
    let count = Arc::new(AtomicUsize::new(0));
    let tasks = (0..writers).map(|writer| {
        let (count, committed) = (Arc::clone(&count), Arc::clone(&committed));
        async move {
            let mut connection = rig.connect("executor").await?;
            let mut dice = Dice(seed.wrapping_mul(1_000_003) + writer);
            while count.load(Ordering::Relaxed) < events {
                let steps = one_transaction(&mut connection, writer, &mut dice).await?;
                count.fetch_add(steps.len(), Ordering::Relaxed);
                for (key, step) in steps {
                    let mut committed = committed.lock().unwrap();
                    let last = committed.last_step.entry(key).or_default();
                    *last = (*last).max(step);
                }
            }
            anyhow::Ok(())
        }
    });
    futures::future::try_join_all(tasks).await?;
    Ok(Arc::into_inner(committed).unwrap().into_inner().unwrap())
}

/// One transaction of a writer; returns what it committed.
async fn one_transaction(
    connection: &mut PgConnection,
    writer: u64,
    dice: &mut Dice,
) -> anyhow::Result<Vec<(String, i64)>> {
    let mut tx = connection.begin().await?;
    let mut steps = Vec::new();
    match dice.below(20) {
        // Left open for long, with an id drawn at its beginning.
        0 => {
            steps.push(step(&mut tx, &format!("own-{writer}")).await?);
            tokio::time::sleep(Duration::from_millis(100 + dice.below(500))).await;
            steps.push(step(&mut tx, &format!("own-{writer}")).await?);
        }
        // A transaction id drawn well before the lock on the key: transaction order is not commit order.
        1..=6 => {
            sqlx::query("SELECT pg_current_xact_id()").execute(&mut *tx).await?;
            tokio::time::sleep(Duration::from_millis(dice.below(15))).await;
            steps.push(step(&mut tx, &format!("shared-{}", dice.below(KEYS))).await?);
        }
        // An event inside a savepoint that is rolled back, then another.
        7..=9 => {
            let key = format!("shared-{}", dice.below(KEYS));
            sqlx::query("SAVEPOINT s").execute(&mut *tx).await?;
            ghost(&mut tx, &key).await?;
            sqlx::query("ROLLBACK TO SAVEPOINT s").execute(&mut *tx).await?;
            sqlx::query("SAVEPOINT t").execute(&mut *tx).await?;
            steps.push(step(&mut tx, &key).await?);
            sqlx::query("RELEASE SAVEPOINT t").execute(&mut *tx).await?;
        }
        10..=11 => {
            ghost(&mut tx, &format!("shared-{}", dice.below(KEYS))).await?;
            tx.rollback().await?;
            return Ok(Vec::new());
        }
        _ => {
            let key = format!("shared-{}", dice.below(KEYS));
            for _ in 0..=dice.below(3) {
                steps.push(step(&mut tx, &key).await?);
            }
        }
    }
    tx.commit().await?;
    Ok(steps)
}

/// Locks the aggregate, moves it on, and appends the event of it.
async fn step(tx: &mut PgConnection, key: &str) -> anyhow::Result<(String, i64)> {
    let step: i64 = sqlx::query_scalar("UPDATE aggregates SET step = step + 1 WHERE key = $1 RETURNING step")
        .bind(key)
        .fetch_one(&mut *tx)
        .await?;
    sqlx::query("SELECT outbox.append('Stepped', $1, jsonb_build_object('key', $1, 'step', $2))")
        .bind(key)
        .bind(step)
        .execute(tx)
        .await?;
    Ok((key.to_owned(), step))
}

/// An event that is never committed.
async fn ghost(tx: &mut PgConnection, key: &str) -> anyhow::Result<()> {
    sqlx::query("SELECT outbox.append('Stepped', $1, jsonb_build_object('key', $1, 'step', -1))")
        .bind(key)
        .execute(tx)
        .await?;
    Ok(())
}

/// What a reader saw, compared with what was committed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Verdict {
    pub(crate) lost: i64,
    pub(crate) ghosts: i64,
    pub(crate) duplicates: i64,
    /// First occurrences that came after a later step of the same key.
    pub(crate) inversions: i64,
}

pub(crate) fn judge(committed: &Committed, seen: &[(String, i64)]) -> Verdict {
    let mut verdict = Verdict::default();
    let mut per_key = BTreeMap::<&str, std::collections::BTreeSet<i64>>::new();
    for (key, step) in seen {
        let last = committed.last_step.get(key).copied().unwrap_or_default();
        let steps = per_key.entry(key).or_default();
        if *step < 1 || *step > last {
            verdict.ghosts += 1;
        } else if steps.contains(step) {
            verdict.duplicates += 1;
        } else {
            if steps.last().is_some_and(|highest| step < highest) {
                verdict.inversions += 1;
            }
            steps.insert(*step);
        }
    }
    let distinct: i64 = per_key.values().map(|steps| i64::try_from(steps.len()).unwrap()).sum();
    verdict.lost = committed.total() - distinct;
    verdict
}
