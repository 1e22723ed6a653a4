//! What the testbed's writers have committed, and what a reader saw of it.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use testbed::{
    load::Random,
    workload::{self, Step},
};

use crate::rig::Rig;

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

/// Runs `writers` writers until they have committed `events` events, and says which.
pub(crate) async fn write(rig: &Rig, writers: usize, seed: u64, events: usize) -> anyhow::Result<Committed> {
    workload::prepare(&mut rig.connect("payment_outbox").await?, "executor", writers).await?;
    let committed = Arc::new(Mutex::new(Committed::default()));
    let count = Arc::new(AtomicUsize::new(0));
    let tasks = (0..writers).map(|writer| {
        let (count, committed) = (Arc::clone(&count), Arc::clone(&committed));
        async move {
            let mut connection = rig.connect("executor").await?;
            let mut random = Random::new(seed, writer);
            while count.load(Ordering::Relaxed) < events {
                let steps = workload::transaction(&mut connection, writer, &mut random)
                    .await
                    .map_err(|interrupted| interrupted.error)?;
                count.fetch_add(steps.len(), Ordering::Relaxed);
                for Step { key, step, .. } in steps {
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
