//! What a process needs from elsewhere to do its work, and whether it has it: read by `/readyz`, and said in the log when it changes, not
//! each time that it is found. And whether its loops turn: read by `/livez`.
//!
//! A need that is not met is waited for, and is no reason to be started again: `/livez` says only what a restart may cure.

use std::{
    future::Future,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use rdkafka::{
    ClientContext,
    config::RDKafkaLogLevel,
    consumer::{BaseConsumer, Consumer as _, ConsumerContext},
    error::KafkaError,
    types::RDKafkaErrorCode,
};

use crate::{backoff::Backoff, config::KafkaConfig, kafka, shutdown::Shutdown};

/// How often the brokers are asked, and how long they may take.
const ASK_EVERY: Duration = Duration::from_secs(1);
const ANSWER_WITHIN: Duration = Duration::from_secs(2);

/// Whether the process does its work. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Readiness(Arc<Parts>);

#[derive(Debug, Default)]
struct Parts {
    begun: AtomicBool,
    needs: Mutex<Vec<Need>>,
    pulses: Mutex<Vec<Pulse>>,
}

fn held<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Readiness {
    /// Says whether the process has begun its work, and not ended it.
    pub fn set(&self, begun: bool) {
        self.0.begun.store(begun, Ordering::Release);
    }

    /// Something that the process cannot do its work without. Not met, until it is said to be.
    pub fn need(&self, name: &'static str) -> Need {
        self.add(name, true)
    }

    /// As [`Readiness::need`], for work behind the scenes: requests are answered without it.
    pub fn need_behind_the_scenes(&self, name: &'static str) -> Need {
        self.add(name, false)
    }

    fn add(&self, name: &'static str, for_requests: bool) -> Need {
        let standing =
            Mutex::new(Standing { met: None, since: Instant::now(), why: "not asked yet".to_owned() });
        let need = Need(Arc::new(Parting { name, for_requests, standing }));
        held(&self.0.needs).push(need.clone());
        need
    }

    /// A loop that has to come round within `limit`.
    pub fn pulse(&self, name: &'static str, limit: Duration) -> Pulse {
        let pulse = Pulse(Arc::new(Beat { name, limit, base: Instant::now(), last_ms: AtomicU64::new(0) }));
        held(&self.0.pulses).push(pulse.clone());
        pulse
    }

    /// Whether the process does all of its work.
    pub fn ready(&self) -> bool {
        self.waits_for(false).is_empty()
    }

    /// What it waits for, with the reason; `requests` alone, or all of its work.
    pub fn waits_for(&self, requests: bool) -> Vec<String> {
        let begun = self.0.begun.load(Ordering::Acquire);
        let needs = held(&self.0.needs);
        let missing = needs.iter().filter(|need| need.0.for_requests || !requests).filter_map(Need::lack);
        let idle = (!begun).then(|| "it has not begun its work, or has ended it".to_owned());
        idle.into_iter().chain(missing).collect()
    }

    /// Loops that have not come round for too long.
    pub fn stuck(&self) -> Vec<String> {
        let pulses = held(&self.0.pulses);
        let stuck = pulses.iter().filter(|pulse| pulse.age() > pulse.0.limit);
        stuck
            .map(|pulse| format!("{} has not come round for {} s", pulse.0.name, pulse.age().as_secs()))
            .collect()
    }
}

/// Something that is needed. Clones share it.
#[derive(Clone, Debug)]
pub struct Need(Arc<Parting>);

#[derive(Debug)]
struct Parting {
    name: &'static str,
    for_requests: bool,
    standing: Mutex<Standing>,
}

#[derive(Debug)]
struct Standing {
    /// None until it was asked for.
    met: Option<bool>,
    since: Instant,
    why: String,
}

impl Need {
    /// It is there.
    pub fn met(&self) {
        let mut standing = held(&self.0.standing);
        if standing.met != Some(true) {
            if standing.met == Some(false) {
                let waited_ms = u64::try_from(standing.since.elapsed().as_millis()).unwrap_or(u64::MAX);
                tracing::info!(need = self.0.name, waited_ms, "what was waited for is there");
            }
            *standing = Standing { met: Some(true), since: Instant::now(), why: String::new() };
        }
    }

    /// It is not there, for this reason.
    pub fn missing(&self, why: impl Into<String>) {
        let why = why.into();
        let mut standing = held(&self.0.standing);
        if standing.met == Some(false) {
            tracing::debug!(need = self.0.name, why, "still waiting for what is needed");
            standing.why = why;
        } else {
            tracing::warn!(need = self.0.name, why, "waiting for what is needed");
            *standing = Standing { met: Some(false), since: Instant::now(), why };
        }
    }

    /// Whether it is there.
    pub fn is_met(&self) -> bool {
        held(&self.0.standing).met == Some(true)
    }

    fn lack(&self) -> Option<String> {
        let standing = held(&self.0.standing);
        (standing.met != Some(true)).then(|| {
            format!("{}, for {} s: {}", self.0.name, standing.since.elapsed().as_secs(), standing.why)
        })
    }
}

/// The sign of life of a loop. Clones share it.
#[derive(Clone, Debug)]
pub struct Pulse(Arc<Beat>);

#[derive(Debug)]
struct Beat {
    name: &'static str,
    limit: Duration,
    base: Instant,
    last_ms: AtomicU64,
}

impl Pulse {
    /// The loop comes round.
    pub fn beat(&self) {
        let now = u64::try_from(self.0.base.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.0.last_ms.store(now, Ordering::Release);
    }

    /// How long ago it came round last.
    pub fn age(&self) -> Duration {
        self.0.base.elapsed().saturating_sub(Duration::from_millis(self.0.last_ms.load(Ordering::Acquire)))
    }

    /// Waits for what may take any time, such as a database that is away: waiting is coming round.
    pub async fn during<F: Future>(&self, wait: F) -> F::Output {
        tokio::pin!(wait);
        loop {
            self.beat();
            tokio::select! {
                output = &mut wait => return output,
                () = tokio::time::sleep(Duration::from_secs(1)) => {}
            }
        }
    }
}

/// Asks until the answer is that `need` is met, later and later; after that it is whoever uses it that says how it stands.
pub async fn until_met<F, A>(need: Need, shutdown: Shutdown, ask: F) -> anyhow::Result<()>
where
    F: Fn() -> A + Send + Sync,
    A: Future<Output = Result<(), String>> + Send,
{
    let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(2));
    loop {
        match ask().await {
            Ok(()) => break need.met(),
            Err(why) => need.missing(why),
        }
        if !shutdown.sleep(backoff.next_delay()).await {
            return Ok(());
        }
    }
    shutdown.wait().await;
    Ok(())
}

/// Keeps `need` up to date with what `ask` finds.
pub async fn watch<F, A>(need: Need, shutdown: Shutdown, ask: F) -> anyhow::Result<()>
where
    F: Fn() -> A + Send + Sync,
    A: Future<Output = Result<(), String>> + Send,
{
    loop {
        match ask().await {
            Ok(()) => need.met(),
            Err(why) => need.missing(why),
        }
        if !shutdown.sleep(ASK_EVERY).await {
            return Ok(());
        }
    }
}

/// Keeps `need` up to date with whether the brokers answer, and have these topics with a leader for each partition.
pub async fn watch_brokers(
    config: KafkaConfig,
    client_id: &'static str,
    topics: Vec<String>,
    need: Need,
    shutdown: Shutdown,
) -> anyhow::Result<()> {
    let mut client = kafka::client(&config, client_id);
    // A consumer has none. And as a consumer, the client does not make the brokers make topics by asking for them.
    client.remove("partitioner");
    let client: BaseConsumer<Silent> = kafka::finish(client, &config).create_with_context(Silent)?;
    let (client, topics) = (Arc::new(client), Arc::new(topics));
    loop {
        let (asking, topics) = (Arc::clone(&client), Arc::clone(&topics));
        match tokio::task::spawn_blocking(move || ask(&asking, &topics)).await? {
            Ok(()) => need.met(),
            Err(why) => need.missing(why),
        }
        if !shutdown.sleep(ASK_EVERY).await {
            // It takes up to a tenth of a second to end, which nobody waits for.
            tokio::task::spawn_blocking(move || drop(client));
            return Ok(());
        }
    }
}

fn ask(client: &BaseConsumer<Silent>, topics: &[String]) -> Result<(), String> {
    for name in topics {
        let metadata = client
            .fetch_metadata(Some(name), ANSWER_WITHIN)
            .map_err(|error| format!("the brokers do not answer: {error}"))?;
        let topic = metadata.topics().iter().find(|topic| topic.name() == name);
        let topic = topic.ok_or_else(|| format!("the brokers say nothing of topic {name}"))?;
        if let Some(error) = topic.error() {
            return Err(match RDKafkaErrorCode::from(error) {
                RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic => {
                    format!("topic {name} does not exist: `outbox-relay setup` makes it")
                }
                code => format!("topic {name}: {code}"),
            });
        }
        if let Some(partition) = topic.partitions().iter().find(|partition| partition.leader() < 0) {
            return Err(format!("partition {} of topic {name} has no leader", partition.id()));
        }
    }
    Ok(())
}

/// What this client would log, its answers say.
struct Silent;

impl ClientContext for Silent {
    fn log(&self, _: RDKafkaLogLevel, _: &str, _: &str) {}

    fn error(&self, _: KafkaError, _: &str) {}
}

impl ConsumerContext for Silent {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_ready_once_it_has_begun_and_has_what_it_needs() {
        let readiness = Readiness::default();
        let (database, brokers) = (readiness.need("postgresql"), readiness.need_behind_the_scenes("kafka"));
        readiness.set(true);
        assert!(!readiness.ready() && readiness.waits_for(true).len() == 1);
        database.met();
        assert!(!readiness.ready() && readiness.waits_for(true).is_empty(), "requests are answered");
        brokers.met();
        assert!(readiness.ready());
        database.missing("gone");
        assert!(
            readiness.waits_for(true)[0].contains("postgresql")
                && readiness.waits_for(true)[0].contains("gone")
        );
        database.met();
        readiness.set(false);
        assert!(!readiness.ready() && !readiness.waits_for(true).is_empty());
    }

    #[tokio::test]
    async fn a_loop_that_waits_comes_round_and_one_that_hangs_does_not() {
        let readiness = Readiness::default();
        let pulse = readiness.pulse("a loop", Duration::from_millis(1_500));
        pulse.during(tokio::time::sleep(Duration::from_secs(2))).await;
        assert!(readiness.stuck().is_empty());
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert!(readiness.stuck()[0].starts_with("a loop has not come round"), "{:?}", readiness.stuck());
        pulse.beat();
        assert!(readiness.stuck().is_empty());
    }
}
