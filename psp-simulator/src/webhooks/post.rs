//! The post of one PSP: signs what is due, sends it, and tries again until it is acknowledged.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, ensure};
use reqwest::Client;
use secrecy::ExposeSecret;
use serde::Serialize;
use time::OffsetDateTime;
use tokio::sync::{Notify, Semaphore, oneshot};

use super::mischief::Plan;
use super::queue::Queue;
use super::{Event, held};
use crate::config::Config;
use crate::scenario::Psp;
use crate::{World, adyen, stripe};

/// Adyen's limit, and a generous one for what is stored before it is answered.
const TIMEOUT: Duration = Duration::from_secs(10);
const MAX_IN_FLIGHT: usize = 32;
/// A full queue is logged once per this many losses.
const LOG_EVERY: u64 = 1000;

/// What a PSP sends to one receiver.
#[derive(Debug)]
pub(crate) struct Post {
    psp: Psp,
    url: String,
    client: Client,
    seal: Seal,
    queue: Mutex<Queue<Message>>,
    queued: Notify,
    in_flight: Arc<Semaphore>,
    first_backoff: Duration,
    max_backoff: Duration,
    max_attempts: u32,
    pub(crate) counts: Tally,
}

/// How a message proves where it comes from.
#[derive(Debug)]
pub(crate) enum Seal {
    Stripe(stripe::webhook::Secret),
    Adyen(adyen::webhook::Credentials),
}

/// A message on its way.
#[derive(Debug)]
pub(crate) struct Message {
    event: Arc<Event>,
    role: Role,
    /// How many times the event is in the message.
    items: usize,
    attempts: u32,
    /// Told after the first attempt.
    pub(crate) told: Option<oneshot::Sender<()>>,
}

#[derive(Debug)]
pub(crate) enum Role {
    /// With the lie that follows it, and the lie's number.
    Truth {
        lie: Option<(Arc<Event>, usize)>,
        lie_after: Duration,
    },
    Duplicate,
    Lie(usize),
}

/// Counts since the start.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    events: AtomicU64,
    sent: AtomicU64,
    acknowledged: AtomicU64,
    refused: AtomicU64,
    failed: AtomicU64,
    given_up: AtomicU64,
    dropped: AtomicU64,
    dropped_queue_full: AtomicU64,
    duplicated: AtomicU64,
    reordered: AtomicU64,
    early: AtomicU64,
    contradicting: AtomicU64,
}

/// The same at one moment.
#[derive(Debug, Serialize)]
pub(crate) struct Counts {
    /// Things that happened and were to be told.
    events: u64,
    /// Messages waiting for their time, or for another try.
    queued: usize,
    /// Attempts to deliver.
    sent: u64,
    /// Answered 2xx.
    acknowledged: u64,
    /// Answered otherwise.
    refused: u64,
    /// Not answered.
    failed: u64,
    /// Messages that were tried as often as they may be.
    given_up: u64,
    /// Events dropped on purpose.
    dropped: u64,
    /// Messages lost because the queue was full.
    dropped_queue_full: u64,
    duplicated: u64,
    reordered: u64,
    early: u64,
    /// Contradictions sent at least once.
    contradicting: u64,
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

impl Tally {
    pub(crate) fn event(&self) {
        count(&self.events);
    }

    pub(crate) fn drop_on_purpose(&self) {
        count(&self.dropped);
    }

    pub(crate) fn tricks(&self, plan: &Plan) {
        for (hit, counter) in [
            (plan.duplicate.is_some(), &self.duplicated),
            (plan.held_back, &self.reordered),
            (plan.early, &self.early),
        ] {
            if hit {
                count(counter);
            }
        }
    }
}

impl Message {
    pub(crate) fn new(event: Arc<Event>, role: Role, items: usize) -> Self {
        Self { event, role, items, attempts: 0, told: None }
    }
}

impl Post {
    pub(crate) fn to_stripe(config: &Config) -> anyhow::Result<Option<Self>> {
        let Some(url) = &config.stripe_webhook_url else { return Ok(None) };
        let secret = config.stripe_webhook_secret.as_ref().context("--stripe-webhook-secret is missing")?;
        let seal = Seal::Stripe(stripe::webhook::Secret::new(secret.expose_secret()));
        Self::new(Psp::Stripe, url, seal, config).map(Some)
    }

    pub(crate) fn to_adyen(config: &Config) -> anyhow::Result<Option<Self>> {
        let Some(url) = &config.adyen_webhook_url else { return Ok(None) };
        let key = config.adyen_webhook_hmac_key.as_ref().context("--adyen-webhook-hmac-key is missing")?;
        let key = hex::decode(key.expose_secret())
            .map_err(|_| anyhow::anyhow!("--adyen-webhook-hmac-key is not hexadecimal"))?;
        ensure!(!key.is_empty(), "--adyen-webhook-hmac-key is empty");
        let login = config.adyen_webhook_user.clone().zip(config.adyen_webhook_password.clone());
        let seal = Seal::Adyen(adyen::webhook::Credentials { key: key.into(), login });
        Self::new(Psp::Adyen, url, seal, config).map(Some)
    }

    fn new(psp: Psp, url: &str, seal: Seal, config: &Config) -> anyhow::Result<Self> {
        let client = Client::builder()
            .timeout(TIMEOUT)
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .build()
            .context("building the client for webhooks")?;
        client.post(url).build().with_context(|| format!("the webhook URL of {} is not one", psp.name()))?;
        Ok(Self {
            psp,
            url: url.to_owned(),
            client,
            seal,
            queue: Mutex::new(Queue::new(config.webhook_queue)),
            queued: Notify::new(),
            in_flight: Arc::new(Semaphore::new(MAX_IN_FLIGHT)),
            first_backoff: config.webhook_backoff,
            max_backoff: config.webhook_backoff_max,
            max_attempts: config.webhook_attempts.max(1),
            counts: Tally::default(),
        })
    }

    pub(crate) fn counts(&self) -> Counts {
        let tally = &self.counts;
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counts {
            events: read(&tally.events),
            queued: held(&self.queue).len(),
            sent: read(&tally.sent),
            acknowledged: read(&tally.acknowledged),
            refused: read(&tally.refused),
            failed: read(&tally.failed),
            given_up: read(&tally.given_up),
            dropped: read(&tally.dropped),
            dropped_queue_full: read(&tally.dropped_queue_full),
            duplicated: read(&tally.duplicated),
            reordered: read(&tally.reordered),
            early: read(&tally.early),
            contradicting: read(&tally.contradicting),
        }
    }

    /// Never waits: a full queue loses the message that has been due the longest.
    pub(crate) fn enqueue(&self, due_at: OffsetDateTime, message: Message) {
        let dropped = held(&self.queue).push(due_at, message);
        if dropped.is_some() {
            let lost = self.counts.dropped_queue_full.fetch_add(1, Ordering::Relaxed);
            if lost.is_multiple_of(LOG_EVERY) {
                tracing::warn!(psp = self.psp.name(), lost = lost + 1, "the queue of webhooks is full");
            }
        }
        self.queued.notify_one();
    }

    /// After `attempts` failed ones.
    fn backoff(&self, attempts: u32) -> Duration {
        let doublings = attempts.saturating_sub(1).min(16);
        self.first_backoff.saturating_mul(1 << doublings).min(self.max_backoff)
    }

    async fn send(&self, message: &Message) -> reqwest::Result<reqwest::StatusCode> {
        count(&self.counts.sent);
        let request = self.client.post(&self.url);
        let request = match (&self.seal, &*message.event) {
            (Seal::Stripe(secret), Event::Stripe(event)) => secret.seal(event, request),
            (Seal::Adyen(credentials), Event::Adyen(event)) => {
                credentials.seal(event, message.items, request)
            }
            // Each PSP has its own post.
            (Seal::Stripe(_), Event::Adyen(_)) | (Seal::Adyen(_), Event::Stripe(_)) => request,
        };
        let response = request.send().await?;
        let status = response.status();
        // Read to its end, so that the connection can be used again.
        response.bytes().await.map(|_| status)
    }
}

/// Delivers what is due until the simulator stops.
pub(crate) async fn run(world: Arc<World>, psp: Psp) {
    while let Some(post) = world.webhooks.post(psp) {
        let stopped = world.shutdown.run_until_cancelled(due(&world, post)).await;
        let Some(()) = stopped else {
            let counts = post.counts();
            tracing::info!(psp = psp.name(), queued = counts.queued, sent = counts.sent, "webhooks end");
            return;
        };
        while let Ok(place) = Arc::clone(&post.in_flight).acquire_owned().await {
            let Some(message) = held(&post.queue).pop_due(world.clock.now()) else { break };
            let task_world = Arc::clone(&world);
            world.tasks.spawn(async move {
                if let Some(post) = task_world.webhooks.post(psp) {
                    attempt(&task_world, post, message).await;
                }
                drop(place);
            });
        }
    }
}

/// Returns when something is due.
async fn due(world: &World, post: &Post) {
    loop {
        let queued = post.queued.notified();
        let first = held(&post.queue).first_due_at();
        match first {
            None => queued.await,
            Some(at) if at <= world.clock.now() => return,
            Some(at) => tokio::select! {
                () = world.clock.sleep_until(at) => {}
                () = queued => {}
            },
        }
    }
}

async fn attempt(world: &World, post: &Post, mut message: Message) {
    message.attempts += 1;
    let result = post.send(&message).await;
    let acknowledged = match &result {
        Ok(status) if status.is_success() => {
            count(&post.counts.acknowledged);
            true
        }
        Ok(status) => {
            tracing::debug!(psp = post.psp.name(), %status, attempts = message.attempts, "webhook refused");
            count(&post.counts.refused);
            false
        }
        Err(error) => {
            tracing::debug!(psp = post.psp.name(), %error, attempts = message.attempts, "webhook failed");
            count(&post.counts.failed);
            false
        }
    };
    if let Some(told) = message.told.take() {
        // The request may have lost its patience.
        let _gone = told.send(());
    }
    if let Role::Lie(number) = message.role {
        if message.attempts == 1 {
            count(&post.counts.contradicting);
        }
        world.webhooks.lied(number, acknowledged);
    }
    let now = world.clock.now();
    if acknowledged {
        // A lie comes after the truth has arrived, and never instead of it.
        if let Role::Truth { lie: Some((lie, number)), lie_after } = message.role {
            post.enqueue(now + lie_after, Message::new(lie, Role::Lie(number), 1));
        }
    } else if message.attempts < post.max_attempts {
        let due_at = now + post.backoff(message.attempts);
        post.enqueue(due_at, message);
    } else {
        count(&post.counts.given_up);
        tracing::warn!(psp = post.psp.name(), attempts = message.attempts, "a webhook was given up");
    }
}
