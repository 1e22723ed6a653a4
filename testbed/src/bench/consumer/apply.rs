//! A backlog of results: polled by a consumer that does nothing else, and applied by one instance of the payment service.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::types::RDKafkaErrorCode;
use rdkafka::{ClientConfig, Offset, TopicPartitionList};

use super::super::costs::{cpu_seconds, cpu_seconds_with_children, peak_mib};
use super::super::drain::terminate;
use super::super::site::{PARTITIONS, Site};
use super::fill::{Fill, Told};
use super::{GROUP, TOPIC};
use crate::processes::Service;
use crate::stack::tail;

const CALL_LIMIT: Duration = Duration::from_secs(30);
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// Without progress for so long something is wrong.
const SILENCE_LIMIT: Duration = Duration::from_mins(1);

/// A consumer that only polls.
#[derive(Clone, Copy, Debug)]
pub(super) struct Raw {
    pub(super) records: u32,
    /// From the first record to the last.
    pub(super) seconds: f64,
}

/// What one instance has done.
#[derive(Clone, Copy, Debug)]
pub(super) struct Applied {
    pub(super) records: u32,
    /// Records of an event that was there before.
    pub(super) copies: u32,
    /// From the first event marked as processed to the last transition, by the database's clock.
    pub(super) seconds: f64,
    /// CPU seconds from the instance's start on.
    pub(super) service_cpu: f64,
    /// CPU seconds meanwhile.
    pub(super) postgres_cpu: f64,
    pub(super) peak_mib: f64,
}

impl Raw {
    pub(super) fn per_second(&self) -> f64 {
        f64::from(self.records) / self.seconds
    }
}

impl Applied {
    pub(super) fn per_second(&self) -> f64 {
        f64::from(self.records) / self.seconds
    }
}

/// Polls the last so many records of the topic, with the settings of the payment service.
pub(super) async fn poll_only(site: &Site, records: u32) -> Result<Raw> {
    let bootstrap = site.bootstrap();
    let polling = tokio::task::spawn_blocking(move || {
        let consumer = consumer(&bootstrap, "bench-raw-consumer")?;
        let committed = committed(&consumer_of_group(&bootstrap)?)?;
        let mut assignment = TopicPartitionList::new();
        for (partition, offset) in (0..).zip(committed) {
            assignment.add_partition_offset(TOPIC, partition, Offset::Offset(offset))?;
        }
        consumer.assign(&assignment)?;
        let (mut polled, mut first) = (0, None);
        let begun = Instant::now();
        while polled < records {
            if let Some(message) = consumer.poll(LOOK_EVERY) {
                message.context("poll")?;
                first.get_or_insert_with(Instant::now);
                polled += 1;
            }
            ensure!(begun.elapsed() < 10 * SILENCE_LIMIT, "{polled} of {records} records polled");
        }
        let seconds = first.map_or(Duration::ZERO, |first| first.elapsed()).as_secs_f64();
        Ok(Raw { records, seconds })
    });
    polling.await?
}

/// Starts the instance, waits until the group's offsets are at the end, and ends it.
pub(super) async fn drain(site: &Site, service: &Service, fill: &mut Fill, told: Told) -> Result<Applied> {
    let bootstrap = site.bootstrap();
    let group = tokio::task::spawn_blocking(move || consumer_of_group(&bootstrap)).await??;
    let group = std::sync::Arc::new(group);
    let postgres = site.postgres.pid()?;
    let before = cpu_seconds_with_children(postgres)?;
    service.start()?;
    let mut last = (0, Instant::now());
    loop {
        let asking = std::sync::Arc::clone(&group);
        let (done, end) = tokio::task::spawn_blocking(move || -> Result<(i64, i64)> {
            Ok((committed(&asking)?.iter().sum(), ends(&asking)?))
        })
        .await??;
        if done >= end {
            break;
        }
        if done != last.0 {
            last = (done, Instant::now());
        }
        if !service.running() || last.1.elapsed() > SILENCE_LIMIT {
            bail!("the instance has stopped at {done} of {end}\n{}", tail(service.log()));
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    let pid = service.pid()?;
    let (service_cpu, peak_mib) = (cpu_seconds(pid)?, peak_mib(pid)?);
    let postgres_cpu = cpu_seconds_with_children(postgres)? - before;
    terminate(service).await?;
    let (events, transitions, seconds): (i64, i64, f64) = sqlx::query_as(
        "SELECT (SELECT count(*) FROM payments.processed_events WHERE processed_at >= $1),
                count(*), extract(epoch FROM max(decided_at)
                    - (SELECT min(processed_at) FROM payments.processed_events WHERE processed_at >= $1))::float8
         FROM payments.payment_order_transitions WHERE decided_at >= $1 AND event_id IS NOT NULL AND to_state = 'SUCCESSFUL'",
    )
    .bind(told.at)
    .fetch_one(&mut fill.superuser)
    .await
    .context("what was applied")?;
    let expected = i64::from(told.events);
    ensure!(
        (events, transitions) == (expected, expected),
        "{expected} events have {events} marks and {transitions} transitions: the figures are worth nothing"
    );
    let copies = told.records - told.events;
    Ok(Applied { records: told.records, copies, seconds, service_cpu, postgres_cpu, peak_mib })
}

fn consumer_of_group(bootstrap: &str) -> Result<BaseConsumer> {
    consumer(bootstrap, GROUP)
}

/// With the settings of the payment service.
fn consumer(bootstrap: &str, group: &str) -> Result<BaseConsumer> {
    ClientConfig::new()
        .set("bootstrap.servers", bootstrap)
        .set("group.id", group)
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false")
        .set("fetch.wait.max.ms", "100")
        .set("queued.max.messages.kbytes", "16384")
        .set("socket.nagle.disable", "true")
        .create()
        .context("make a consumer")
}

/// The group's offset of each partition; 0 where there is none.
fn committed(consumer: &BaseConsumer) -> Result<Vec<i64>> {
    let mut asked = TopicPartitionList::new();
    asked.add_partition_range(TOPIC, 0, PARTITIONS - 1);
    let begun = Instant::now();
    let committed = loop {
        match consumer.committed_offsets(asked.clone(), CALL_LIMIT) {
            // A young group's coordinator is still being found.
            Err(error) if error.rdkafka_error_code() == Some(RDKafkaErrorCode::NotCoordinator) => {
                ensure!(begun.elapsed() < CALL_LIMIT, "the group has no coordinator: {error}");
                std::thread::sleep(Duration::from_millis(100));
            }
            answer => break answer.context("ask for offsets")?,
        }
    };
    let offset = |partition| match committed.find_partition(TOPIC, partition).map(|found| found.offset()) {
        Some(Offset::Offset(offset)) => offset,
        _ => 0,
    };
    Ok((0..PARTITIONS).map(offset).collect())
}

fn ends(consumer: &BaseConsumer) -> Result<i64> {
    (0..PARTITIONS).map(|partition| Ok(consumer.fetch_watermarks(TOPIC, partition, CALL_LIMIT)?.1)).sum()
}
