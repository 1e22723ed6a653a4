//! Tells results all the while, and is held between two episodes.
//!
//! Every order's results are told one after the other, each when the broker has acknowledged the one before: so the order of the
//! topic is the order of the story. One in some comes again, at once, after the story, or much later; in between come records that
//! are no results at all.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::{CancellationToken, DropGuard};
use uuid::Uuid;

use super::story::Story;
use crate::load::Random;
use crate::results::{Place, Results, Said};

/// Between two payments, on average half of it.
const PAUSE_MS: usize = 20;
/// Of a hundred results, so many come again.
const AGAIN_AT_ONCE: usize = 12;
const AGAIN_LATER: usize = 8;
/// Of a hundred payments, so many bring a result of some payment before again, and so many a record that is none.
const AGAIN_MUCH_LATER: usize = 10;
const GARBAGE: usize = 4;
/// For the broker to acknowledge what it was sent, when it has been away.
const HOLD_LIMIT: Duration = Duration::from_mins(1);

/// A result on the topic.
#[derive(Clone, Copy, Debug)]
pub(super) struct Published {
    pub(super) event_id: Uuid,
    pub(super) payment_order_id: Uuid,
    pub(super) place: Place,
    pub(super) sent_at: Instant,
}

/// Everything that was told.
#[derive(Debug, Default)]
pub(super) struct Told {
    /// Payments whose rows are there, and of which nothing was said yet.
    stock: VecDeque<Story>,
    /// Payments that something is, or was, said about.
    pub(super) begun: Vec<Story>,
    /// Of these, those whose rows are still to be made.
    pub(super) late: Vec<Story>,
    /// Every record of a result.
    pub(super) published: Vec<Published>,
    /// Where records lie that are none.
    pub(super) garbage: Vec<Place>,
    /// Records of a result that was told before.
    pub(super) copies: usize,
    failure: Option<String>,
}

/// Tells until it is dropped.
#[derive(Debug)]
pub(super) struct Teller {
    open: watch::Sender<bool>,
    /// Stories that are being told.
    unfinished: watch::Sender<usize>,
    told: Arc<Mutex<Told>>,
    results: Results,
    _stop: DropGuard,
}

impl Teller {
    /// Starts it; it is held.
    pub(super) fn start(results: Results, seed: u64) -> Teller {
        let (open, unfinished) = (watch::Sender::new(false), watch::Sender::new(0));
        let told = Arc::default();
        let stop = CancellationToken::new();
        let telling = Telling {
            results: results.clone(),
            open: open.subscribe(),
            unfinished: unfinished.clone(),
            told: Arc::clone(&told),
            random: Random::new(seed, usize::MAX / 2),
        };
        let stopped = stop.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = telling.tell() => {}
                () = stopped.cancelled() => {}
            }
        });
        Teller { open, unfinished, told, results, _stop: stop.drop_guard() }
    }

    pub(super) fn told(&self) -> MutexGuard<'_, Told> {
        locked(&self.told)
    }

    /// Tells one result, beside all stories.
    pub(super) async fn tell(&self, said: &Said) -> Result<Place> {
        one(&self.results, &self.told, said, false).await
    }

    /// How many payments are left to tell of.
    pub(super) fn stock(&self) -> usize {
        self.told().stock.len()
    }

    /// More payments, whose rows are there.
    pub(super) fn store(&self, stories: Vec<Story>) {
        self.told().stock.extend(stories);
    }

    /// Lets it tell.
    pub(super) fn go(&self) {
        self.open.send_replace(true);
    }

    /// Lets it begin no further story, and waits until all are told.
    pub(super) async fn hold(&self) -> Result<()> {
        self.open.send_replace(false);
        let mut unfinished = self.unfinished.subscribe();
        let all = unfinished.wait_for(|unfinished| *unfinished == 0);
        tokio::time::timeout(HOLD_LIMIT, all).await.context("a result is not acknowledged")??;
        if let Some(failure) = self.told().failure.take() {
            bail!("a result could not be sent: {failure}");
        }
        Ok(())
    }
}

impl Told {
    /// Where each event was published first.
    pub(super) fn firsts(&self) -> HashMap<Uuid, Place> {
        let mut firsts: HashMap<Uuid, Place> = HashMap::with_capacity(self.published.len());
        for Published { event_id, place, .. } in &self.published {
            let first = firsts.entry(*event_id).or_insert(*place);
            *first = (*first).min(*place);
        }
        firsts
    }

    /// Of each partition the first events, at most so many, that were sent after this moment and not before it.
    pub(super) fn after(&self, moment: Instant, each: usize) -> HashMap<Uuid, i32> {
        let before: HashSet<Uuid> =
            self.published.iter().filter(|one| one.sent_at <= moment).map(|one| one.event_id).collect();
        let mut counts: HashMap<i32, usize> = HashMap::new();
        let mut events = HashMap::new();
        for one in &self.published {
            let count = counts.entry(one.place.partition).or_default();
            if one.sent_at > moment && *count < each && !before.contains(&one.event_id) {
                *count += 1;
                events.insert(one.event_id, one.place.partition);
            }
        }
        events
    }
}

struct Telling {
    results: Results,
    open: watch::Receiver<bool>,
    unfinished: watch::Sender<usize>,
    told: Arc<Mutex<Told>>,
    random: Random,
}

impl Telling {
    async fn tell(mut self) {
        let mut telling = JoinSet::new();
        let mut memory: Vec<Said> = Vec::new();
        while self.open.wait_for(|open| *open).await.is_ok() {
            while telling.try_join_next().is_some() {}
            let story = locked(&self.told).stock.pop_front();
            if let Some(story) = story {
                self.unfinished.send_modify(|unfinished| *unfinished += 1);
                let old = (!memory.is_empty() && self.random.below(100) < AGAIN_MUCH_LATER)
                    .then(|| memory[self.random.below(memory.len())].clone());
                memory.extend(story.orders.iter().filter_map(|order| order.said.first().cloned()));
                let garbage = self.random.below(100) < GARBAGE;
                let teller = OneStory {
                    results: self.results.clone(),
                    told: Arc::clone(&self.told),
                    random: Random::new(
                        u64::try_from(memory.len()).unwrap_or_default(),
                        self.random.below(usize::MAX),
                    ),
                };
                let (unfinished, told) = (self.unfinished.clone(), Arc::clone(&self.told));
                telling.spawn(async move {
                    if let Err(error) = teller.tell(story, old, garbage).await {
                        locked(&told).failure.get_or_insert_with(|| format!("{error:#}"));
                    }
                    unfinished.send_modify(|unfinished| *unfinished -= 1);
                });
            }
            tokio::time::sleep(self.random.milliseconds(PAUSE_MS)).await;
        }
    }
}

struct OneStory {
    results: Results,
    told: Arc<Mutex<Told>>,
    random: Random,
}

impl OneStory {
    async fn tell(mut self, story: Story, old: Option<Said>, garbage: bool) -> Result<()> {
        {
            let mut told = locked(&self.told);
            told.begun.push(story.clone());
            if story.late {
                told.late.push(story.clone());
            }
        }
        for order in &story.orders {
            let mut later = Vec::new();
            for said in &order.said {
                one(&self.results, &self.told, said, false).await?;
                match self.random.below(100) {
                    0..AGAIN_AT_ONCE => one(&self.results, &self.told, said, true).await.map(|_| ())?,
                    drawn if drawn < AGAIN_AT_ONCE + AGAIN_LATER => later.push(said),
                    _ => {}
                }
            }
            for said in later {
                one(&self.results, &self.told, said, true).await?;
            }
        }
        if let Some(old) = old {
            one(&self.results, &self.told, &old, true).await?;
        }
        if garbage {
            let key = Uuid::new_v4().to_string();
            let bytes: &[u8] = if self.random.below(2) == 0 { b"{\"no\": \"frame\"}" } else { &[0, 0, 0] };
            let place = self.results.send_bytes(&key, bytes).await?;
            locked(&self.told).garbage.push(place);
        }
        Ok(())
    }
}

async fn one(results: &Results, told: &Mutex<Told>, said: &Said, again: bool) -> Result<Place> {
    let sent_at = Instant::now();
    let place = results.send(said).await?;
    let Said { event_id, payment_order_id, .. } = *said;
    let mut told = locked(told);
    told.published.push(Published { event_id, payment_order_id, place, sent_at });
    told.copies += usize::from(again);
    Ok(place)
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
