//! The rival, on the same server and broker: Debezium's PostgreSQL connector with its EventRouter, in a Kafka Connect worker of its own.
//!
//! Tuned for what is measured: both JVM compilers, large batches, a short poll interval, the producer settings of the relay that it
//! has. Its table holds finished wire bytes, so that it need not encode, and its records carry fewer headers than the relay's. It is
//! measured when it is warm, after a first backlog.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use sqlx::{Connection, PgConnection};

use super::Bench;
use super::backlog::settle;
use super::costs::{cpu_seconds, cpu_seconds_with_children, peak_mib};
use super::latency::{self, Latency, Writer};
use super::site::Site;
use super::topics::{self, Published, Watch};
use crate::stack::{Connect, TestDatabase, tail};

const TOPIC: &str = "peer-results";
const CONNECTOR: &str = "outbox";
const SLOT: &str = "peer_outbox";
const PER_TRANSACTION: u32 = 10_000;
const WARM_UP_MAX: u32 = 500_000;
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// When nothing more has come for so long after the last event, nothing more will come.
const QUIET: Duration = Duration::from_secs(2);
const SILENCE_LIMIT: Duration = Duration::from_mins(2);
const SLOT_LIMIT: Duration = Duration::from_mins(1);

const WORKER: [(&str, &str); 10] = [
    ("key.converter", "org.apache.kafka.connect.storage.StringConverter"),
    ("value.converter", "org.apache.kafka.connect.converters.ByteArrayConverter"),
    ("header.converter", "org.apache.kafka.connect.storage.StringConverter"),
    ("offset.flush.interval.ms", "1000"),
    ("plugin.discovery", "only_scan"),
    ("producer.acks", "all"),
    ("producer.enable.idempotence", "true"),
    ("producer.linger.ms", "1"),
    ("producer.batch.size", "262144"),
    ("producer.compression.type", "lz4"),
];

/// What the rival has done.
#[derive(Clone, Debug)]
pub(super) struct Figures {
    pub(super) events: u32,
    /// From the moment when its slot is in use to the last record on the topic.
    pub(super) seconds: f64,
    /// Records beyond one per event.
    pub(super) again: i64,
    /// CPU seconds meanwhile.
    pub(super) cpu: Cpu,
    pub(super) peak_mib: f64,
    pub(super) latency: Vec<Latency>,
}

/// CPU seconds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cpu {
    pub(super) connect: f64,
    pub(super) postgres: f64,
    pub(super) broker: f64,
}

impl Figures {
    pub(super) fn per_second(&self) -> f64 {
        f64::from(self.events) / self.seconds
    }
}

struct Peer<'a> {
    site: &'a Site,
    connect: Connect,
    database: TestDatabase,
    superuser: PgConnection,
    watch: Watch,
    sample: u32,
    /// Rows written so far.
    written: u32,
}

/// Starts the rival, warms it up, lets it drain as many events as the relay, measures its latency, and ends it.
pub(super) async fn measure(site: &Site, bench: &Bench, sample: &[Published]) -> Result<Figures> {
    let mut peer = Peer::start(site, sample).await?;
    peer.connect.stop_connector(CONNECTOR).await?;
    peer.drain((bench.events / 2).clamp(1, WARM_UP_MAX)).await.context("warm the peer up")?;
    peer.ensure_equal_records(sample).await?;
    peer.connect.stop_connector(CONNECTOR).await?;
    let mut figures = peer.drain(bench.events).await?;
    let value = sample.first().map(|record| record.value.clone()).unwrap_or_default();
    let writer = Writer::Peer(Arc::new(value));
    let url = peer.database.url("postgres");
    for &rate in &bench.rates {
        let arrivals = peer.watch.arrivals("id").await?;
        figures.latency.push(latency::measure(rate, bench.seconds, &url, &writer, arrivals).await?);
    }
    peer.end().await?;
    Ok(figures)
}

impl<'a> Peer<'a> {
    async fn start(site: &'a Site, sample: &[Published]) -> Result<Peer<'a>> {
        let bootstrap = site.bootstrap();
        topics::create(&bootstrap, TOPIC).await?;
        let database = site.postgres.database("peer").await?;
        let mut superuser = PgConnection::connect(&database.url("postgres")).await?;
        prepare(&mut superuser, sample).await?;
        let connect = Connect::private("bench-connect", &bootstrap, &WORKER).await?;
        connect.create(CONNECTOR, &connector(site, &database)).await?;
        let mut peer = Peer {
            site,
            connect,
            database,
            superuser,
            watch: Watch::new(&bootstrap, TOPIC)?,
            sample: u32::try_from(sample.len())?,
            written: 0,
        };
        peer.slot_in_use().await?;
        Ok(peer)
    }

    /// Writes a backlog while the connector stands still, lets it go on, and waits until all of it is on the topic.
    async fn drain(&mut self, events: u32) -> Result<Figures> {
        self.fill(events).await?;
        settle(&mut self.superuser).await?;
        let before = self.watch.records().await?;
        let (connect, postgres, broker) =
            (self.connect.pid()?, self.site.postgres.pid()?, self.site.kafka.pid()?);
        let cpu = || -> Result<Cpu> {
            Ok(Cpu {
                connect: cpu_seconds(connect)?,
                postgres: cpu_seconds_with_children(postgres)?,
                broker: cpu_seconds(broker)?,
            })
        };
        let cpu_before = cpu()?;
        self.connect.resume_connector(CONNECTOR).await?;
        let begun = self.slot_in_use().await?;
        let (records, ended, cpu_after) = self.until_quiet(before + i64::from(events), cpu).await?;
        Ok(Figures {
            events,
            seconds: (ended - begun).as_secs_f64(),
            again: records - before - i64::from(events),
            cpu: Cpu {
                connect: cpu_after.connect - cpu_before.connect,
                postgres: cpu_after.postgres - cpu_before.postgres,
                broker: cpu_after.broker - cpu_before.broker,
            },
            peak_mib: peak_mib(connect)?,
            latency: Vec::new(),
        })
    }

    /// The same wire bytes and keys that the relay has published, under new ids.
    async fn fill(&mut self, events: u32) -> Result<()> {
        let end = self.written + events;
        while self.written < end {
            let to = end.min(self.written + PER_TRANSACTION);
            sqlx::query(
                "INSERT INTO outbox (id, aggregatetype, aggregateid, type, payload)
                 SELECT (lpad(to_hex(n), 12, '0') || right(md5(n::text), 20))::uuid, 'results', key, 'PspResultUpdateEvent', value
                 FROM generate_series($1, $2 - 1) AS n JOIN sample ON number = n % $3
                 ORDER BY n",
            )
            .bind(i64::from(self.written))
            .bind(i64::from(to))
            .bind(i64::from(self.sample))
            .execute(&mut self.superuser)
            .await
            .context("fill the peer's outbox")?;
            self.written = to;
        }
        Ok(())
    }

    /// That it publishes what it is meant to: keys and wire bytes of the relay's records.
    async fn ensure_equal_records(&self, sample: &[Published]) -> Result<()> {
        for record in self.watch.first(1).await? {
            let equal =
                |published: &Published| (&published.key, &published.value) == (&record.key, &record.value);
            ensure!(sample.iter().any(equal), "the peer publishes something else: {record:?}");
        }
        Ok(())
    }

    /// Waits until the connector reads from its slot, and says since when.
    async fn slot_in_use(&mut self) -> Result<Instant> {
        let begun = Instant::now();
        loop {
            let active: Option<bool> =
                sqlx::query_scalar("SELECT active FROM pg_replication_slots WHERE slot_name = $1")
                    .bind(SLOT)
                    .fetch_optional(&mut self.superuser)
                    .await
                    .context("look at the slot")?;
            if active == Some(true) {
                return Ok(Instant::now());
            }
            if begun.elapsed() > SLOT_LIMIT {
                bail!("the slot is not in use\n{}", tail(self.connect.log()));
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Records on the topic when nothing more comes, when the last one came, and what everything had cost then.
    async fn until_quiet(&self, wanted: i64, cpu: impl Fn() -> Result<Cpu>) -> Result<(i64, Instant, Cpu)> {
        let mut last = (self.watch.records().await?, Instant::now(), cpu()?);
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            let records = self.watch.records().await?;
            if records != last.0 {
                last = (records, Instant::now(), cpu()?);
            }
            if records >= wanted && last.1.elapsed() > QUIET {
                return Ok(last);
            }
            if last.1.elapsed() > SILENCE_LIMIT {
                bail!("the peer stands still {} short\n{}", wanted - records, tail(self.connect.log()));
            }
        }
    }

    /// A slot that nobody reads keeps WAL for ever.
    async fn end(mut self) -> Result<()> {
        self.connect.stop_connector(CONNECTOR).await?;
        let begun = Instant::now();
        loop {
            let dropped = sqlx::query("SELECT pg_drop_replication_slot($1)").bind(SLOT);
            match dropped.execute(&mut self.superuser).await {
                Ok(_) => break,
                // Its server process takes a moment to end.
                Err(_) if begun.elapsed() < SLOT_LIMIT => tokio::time::sleep(LOOK_EVERY).await,
                Err(error) => return Err(error).context("drop the slot"),
            }
        }
        self.connect.stop().await
    }
}

async fn prepare(superuser: &mut PgConnection, sample: &[Published]) -> Result<()> {
    sqlx::raw_sql(
        "CREATE TABLE outbox (id uuid PRIMARY KEY, aggregatetype text NOT NULL, aggregateid text NOT NULL, type text NOT NULL,
                              payload bytea NOT NULL, created_at timestamptz NOT NULL DEFAULT clock_timestamp());
         CREATE PUBLICATION peer FOR TABLE outbox WITH (publish = 'insert');
         CREATE TABLE sample (number bigint PRIMARY KEY, key text NOT NULL, value bytea NOT NULL)",
    )
    .execute(&mut *superuser)
    .await
    .context("make the peer's outbox")?;
    let keys: Result<Vec<&str>, _> = sample.iter().map(|record| std::str::from_utf8(&record.key)).collect();
    let values: Vec<&[u8]> = sample.iter().map(|record| record.value.as_slice()).collect();
    sqlx::query(
        "INSERT INTO sample SELECT number - 1, key, value
         FROM UNNEST($1::text[], $2::bytea[]) WITH ORDINALITY AS s (key, value, number)",
    )
    .bind(keys.context("a key that is not text")?)
    .bind(values)
    .execute(superuser)
    .await
    .context("store the sample")?;
    Ok(())
}

fn connector(site: &Site, database: &TestDatabase) -> Value {
    json!({
        "connector.class": "io.debezium.connector.postgresql.PostgresConnector",
        "tasks.max": "1",
        "database.hostname": "127.0.0.1",
        "database.port": site.postgres.server().port.to_string(),
        "database.user": "postgres",
        "database.password": "none",
        "database.dbname": database.name,
        "topic.prefix": "peer",
        "plugin.name": "pgoutput",
        "publication.name": "peer",
        "publication.autocreate.mode": "disabled",
        "slot.name": SLOT,
        "table.include.list": "public.outbox",
        "snapshot.mode": "no_data",
        "tombstones.on.delete": "false",
        "poll.interval.ms": "10",
        "max.batch.size": "8192",
        "max.queue.size": "32768",
        "transforms": "outbox",
        "transforms.outbox.type": "io.debezium.transforms.outbox.EventRouter",
        "transforms.outbox.table.field.event.id": "id",
        "transforms.outbox.table.field.event.key": "aggregateid",
        "transforms.outbox.table.field.event.payload": "payload",
        "transforms.outbox.route.by.field": "aggregatetype",
        "transforms.outbox.route.topic.replacement": TOPIC,
        "transforms.outbox.table.fields.additional.placement": "type:header:eventType",
    })
}
