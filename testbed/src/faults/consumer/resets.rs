//! Connections to PostgreSQL that break around a COMMIT, one after the other. While the instance is kept from connecting again,
//! the database is looked into: what came of that COMMIT has to be what the moment of the break allows.
//!
//! ```text
//! a few results ─▶ their COMMIT is cut ─▶ no session of the service is left ─▶ outcome ─▶ connections are let through ─▶ all is
//! applied once
//! ```

use std::collections::{BTreeMap, HashSet};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use sqlx::FromRow;
use uuid::Uuid;

use super::books::examine;
use super::inflict::COMMIT;
use super::rig::{Rig, Shape};
use super::story::{Order, Story};
use super::verdict;
use crate::faults::report::Verdict;
use crate::faults::with_evidence_of;
use crate::load::Random;
use crate::proxy::Moment;
use crate::results::Said;

const SHAPE: Shape = Shape { seats: 1, members: 1, guests: 0 };
/// Most results in one COMMIT.
const RESULTS_MAX: usize = 12;
/// For the COMMIT to be cut, for sessions to end, and for results to be applied.
const LIMIT: Duration = Duration::from_secs(30);
const LOOK_EVERY: Duration = Duration::from_millis(1);

/// What came of it.
#[derive(Debug, Default)]
pub struct Resets {
    /// How often a connection broke at each moment.
    pub happened: BTreeMap<String, usize>,
    /// How often what was sent had been committed all the same.
    pub committed: BTreeMap<String, usize>,
    /// Outcomes that the moment does not allow, and whatever the books say at the end.
    pub broken: Vec<String>,
}

/// Breaks so many connections.
pub async fn perform(count: usize, seed: u64, say: &dyn Fn(&str)) -> Result<Resets> {
    let found = |resets: &Resets| !resets.broken.is_empty();
    with_evidence_of("faults-resets", found, async |home, folder| {
        let mut rig = Rig::start(home, folder, seed, SHAPE).await.context("start an instance")?;
        let (mut resets, mut random) = (Resets::default(), Random::new(seed, 2));
        for (number, moment) in (1..=count).zip(Moment::ALL.iter().cycle()) {
            let committed = one(&mut rig, *moment, &mut random, &mut resets.broken)
                .await
                .with_context(|| format!("reset {number}, {moment}"))?;
            *resets.happened.entry(moment.to_string()).or_default() += 1;
            *resets.committed.entry(moment.to_string()).or_default() += usize::from(committed);
            if number % 100 == 0 {
                say(&format!("{number} resets, committed all the same: {:?}", resets.committed));
            }
        }
        rig.come_to_rest().await?;
        let Verdict { findings, examples, .. } = verdict(examine(&rig.books(0).await?), rig.ahead().clone());
        let found = findings.into_iter().filter(|(_, count)| *count > 0);
        resets.broken.extend(found.map(|(what, count)| format!("{what}: {count}")));
        resets.broken.extend(examples);
        rig.end().await?;
        Ok(resets)
    })
    .await
}

/// What the database has of an order.
#[derive(Debug, FromRow)]
struct Effect {
    state: String,
    /// Marks of its event.
    marks: i64,
    /// Transitions of its event.
    transitions: i64,
    /// The transaction that wrote the transition.
    transaction: Option<String>,
}

/// Returns whether the COMMIT that was cut has taken effect.
async fn one(rig: &mut Rig, moment: Moment, random: &mut Random, broken: &mut Vec<String>) -> Result<bool> {
    let stories: Vec<Story> = (0..=random.below(RESULTS_MAX)).map(|_| success()).collect();
    rig.insert(&stories.iter().collect::<Vec<_>>()).await?;
    rig.teller.told().begun.extend(stories.iter().cloned());
    rig.seats[0].database.cut_around(COMMIT, moment);
    let said: Vec<&Said> = stories.iter().flat_map(|story| &story.orders[0].said).collect();
    futures::future::try_join_all(said.iter().map(|said| rig.teller.tell(said))).await?;
    let begun = Instant::now();
    while !rig.seats[0].database.has_cut_around() || sessions(rig).await? > 0 {
        ensure!(begun.elapsed() < LIMIT, "no COMMIT was cut, or a session of the service is left");
        tokio::time::sleep(LOOK_EVERY).await;
    }
    let orders: Vec<Uuid> = said.iter().map(|said| said.payment_order_id).collect();
    let effects = effects(rig, &orders).await?;
    let done: Vec<&Effect> = effects.iter().filter(|effect| effect.transitions > 0).collect();
    let torn = effects.iter().any(|effect| {
        let all = (effect.state == "SUCCESSFUL", effect.marks, effect.transitions);
        all != (true, 1, 1) && all != (false, 0, 0)
    });
    // One COMMIT was under way, and none after it.
    let transactions: HashSet<_> = done.iter().map(|effect| &effect.transaction).collect();
    let allowed = match moment {
        Moment::Before | Moment::Within => transactions.is_empty(),
        Moment::Sent => transactions.len() <= 1,
        Moment::Answered => transactions.len() == 1,
    };
    if torn || !allowed {
        broken.push(format!("reset {moment}: {effects:?}"));
    }
    let committed = !done.is_empty();
    rig.sample().await?;
    rig.seats[0].database.heal();
    // With the offsets behind it too: what was committed is tried once more, and the COMMIT of that must not be the next one to be cut.
    rig.come_to_rest().await.context("after a COMMIT that was cut")?;
    let after = self::effects(rig, &orders).await?;
    if after
        .iter()
        .any(|effect| (effect.state.as_str(), effect.marks, effect.transitions) != ("SUCCESSFUL", 1, 1))
    {
        broken.push(format!("after the reset {moment}: {after:?}"));
    }
    Ok(committed)
}

async fn sessions(rig: &Rig) -> Result<i64> {
    sqlx::query_scalar("SELECT count(*) FROM pg_stat_activity WHERE usename = 'payment_service'")
        .fetch_one(rig.superuser())
        .await
        .context("count the service's sessions")
}

async fn effects(rig: &Rig, orders: &[Uuid]) -> Result<Vec<Effect>> {
    sqlx::query_as(
        "SELECT o.state,
                (SELECT count(*) FROM payments.processed_events e WHERE e.payment_order_id = o.payment_order_id) AS marks,
                count(t.event_id) AS transitions, min(t.xmin::text) FILTER (WHERE t.event_id IS NOT NULL) AS transaction
         FROM payments.payment_orders o JOIN payments.payment_order_transitions t USING (payment_order_id)
         WHERE o.payment_order_id = ANY ($1) GROUP BY o.payment_order_id",
    )
    .bind(orders)
    .fetch_all(rig.superuser())
    .await
    .context("look at the outcome")
}

fn success() -> Story {
    let payment_order_id = Uuid::new_v4();
    let said = Said {
        event_id: Uuid::now_v7(),
        payment_order_id,
        status: "SUCCESSFUL",
        reference: Some(format!("pi_{}", payment_order_id.simple())),
        code: None,
    };
    let end = ("SUCCESSFUL", None);
    let orders = vec![Order { payment_order_id, end, said: vec![said] }];
    Story { payment_id: Uuid::new_v4(), end, orders, late: false }
}
