//! An outbox to be hurt: parts of its own, and relays that reach them through proxies of their own.
//!
//! ```text
//!  writers ──▶ PostgreSQL ◀── proxy ── relay ── proxy ──▶ Kafka ──▶ consumer ──▶ effects, in the same database
//!                             (three seats: one leads, one stands by, one is free)
//! ```
//! Leadership is handed from one seat to another in `leadership`.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use sqlx::postgres::PgPoolOptions;
use sqlx::{Connection, PgConnection, PgPool};

use super::books::Books;
use super::consumer::{self, Consumer};
use super::writers::Writers;
use crate::processes::{Service, Spec, binary, run_once};
use crate::proxy::Proxy;
use crate::stack::home::Home;
use crate::stack::{Door, Kafka, OWNER, Postgres, Registry, Server, TestDatabase, free_port};
use crate::workload::{self, EVENT_TYPE, SCHEMA};

const TOPIC: &str = "steps";
const PARTITIONS: i32 = 3;
const WRITERS: usize = 6;
pub(super) const SEATS: usize = 3;
/// Small, so that what piled up is read in many pages.
const PAGE_ROWS: &str = "25";
/// Most of what a relay logs is one line per event: not that.
const LOG: &str = "info,outbox_relay::save=warn";
/// For a relay to lead, after anything that heals.
pub(super) const LEAD_LIMIT: Duration = Duration::from_secs(30);
/// For a relay to end in order.
pub(super) const END_LIMIT: Duration = Duration::from_secs(15);
/// For the outbox to drain, and for the consumer to follow.
const DRAIN_LIMIT: Duration = Duration::from_mins(1);
/// For records beyond what the broker had called the end. What is missing then is lost.
const LATE_LIMIT: Duration = Duration::from_secs(5);

/// The outbox and everything around it.
pub(super) struct Rig {
    pub(super) postgres: Postgres,
    pub(super) kafka: Kafka,
    pub(super) registry: Registry,
    pub(super) seats: Vec<Seat>,
    pub(super) writers: Writers,
    consumer: Consumer,
    books: Arc<Mutex<Books>>,
    database: TestDatabase,
    superuser: PgPool,
    /// What was seen besides, for the line of the episode.
    notes: Vec<String>,
}

/// A place for a relay. Its addresses stay.
pub(super) struct Seat {
    pub(super) relay: Service,
    pub(super) database: Proxy,
    pub(super) broker: Proxy,
    /// Started with failpoints: not to be used after its episode.
    pub(super) armed: bool,
}

impl Rig {
    /// Starts everything. The writers are held.
    pub(super) async fn start(home: &Home, folder: &Path, seed: u64) -> Result<Rig> {
        let (mut brokers, mut doors) = (Vec::new(), Vec::new());
        for _ in 0..SEATS {
            let port = free_port()?;
            let proxy = Proxy::start(port).await?;
            doors.push(Door { port, advertised: proxy.port() });
            brokers.push(proxy);
        }
        // Nothing is written ahead of need: transaction ids that nobody committed under are forgotten by a crash.
        let settings = [("wal_writer_delay", "10s")];
        let (postgres, kafka, registry) = tokio::try_join!(
            Postgres::private_with("faults-postgres", &settings),
            Kafka::private_behind("faults-kafka", doors),
            Registry::private("faults-registry"),
        )?;
        let database = postgres.database("faults").await?;
        let events = catalogue(folder)?;
        set_up(&database, &kafka, &registry, &events).await?;
        let mut seats = Vec::new();
        for (number, broker) in (1..).zip(brokers) {
            let proxy = Proxy::start(postgres.server().port).await?;
            let environment = [
                ("DATABASE_URL", Server { port: proxy.port() }.url("relay", &database.name)),
                ("KAFKA_BOOTSTRAP", format!("127.0.0.1:{}", broker.port())),
                ("SCHEMA_REGISTRY_URL", registry.url()),
                ("EVENTS", events.display().to_string()),
                ("EVENT_SOURCE", "/faults".to_owned()),
                ("PAGE_ROWS", PAGE_ROWS.to_owned()),
                ("LOG", LOG.to_owned()),
            ];
            let relay = relay(home, folder, &format!("relay-{number}"), &environment)?;
            seats.push(Seat { relay, database: proxy, broker, armed: false });
        }
        let books = Arc::new(Mutex::new(Books::default()));
        let superuser = PgPoolOptions::new()
            .max_connections(2)
            .acquire_timeout(Duration::from_secs(5))
            .connect_lazy(&database.url("postgres"))
            .context("the superuser's pool")?;
        let service = database.url("executor");
        let mut rig = Rig {
            writers: Writers::start(&service, WRITERS, seed, &books),
            consumer: Consumer::start(&kafka.bootstrap(), TOPIC, PARTITIONS, &service, &books)?,
            postgres,
            kafka,
            registry,
            seats,
            books,
            database,
            superuser,
            notes: Vec::new(),
        };
        rig.heal().await?;
        Ok(rig)
    }

    pub(super) fn books(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was seen besides since the last time.
    pub(super) fn take_notes(&mut self) -> Vec<String> {
        std::mem::take(&mut self.notes)
    }

    /// For what only a superuser may do, or see.
    pub(super) fn superuser(&self) -> &PgPool {
        &self.superuser
    }

    // ---------------------------------------------------------------------------------------------------------- healing

    /// Everything runs again as at the beginning: parts, proxies, one relay that leads and one that stands by.
    pub(super) async fn heal(&mut self) -> Result<()> {
        self.mend_parts().await?;
        for seat in &mut self.seats {
            seat.database.heal();
            seat.broker.heal();
            if seat.relay.stopped() {
                seat.relay.resume()?;
            }
        }
        self.disarm().await?;
        let begun = Instant::now();
        loop {
            self.fill_seats()?;
            if self.in_order().await {
                break;
            }
            ensure!(
                begun.elapsed() < LEAD_LIMIT,
                "one that leads and one that stands by: not after {LEAD_LIMIT:?}"
            );
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        self.leading().await.map(|_| ())
    }

    /// A fault that was broken off can leave a part stopped, or down.
    async fn mend_parts(&self) -> Result<()> {
        if self.postgres.pid().is_err() {
            self.postgres.restart().await.context("start PostgreSQL again")?;
        }
        if self.kafka.resume().is_err() {
            self.kafka.restart().await.context("start the broker again")?;
        }
        if self.registry.resume().is_err() {
            self.registry.restart().await.context("start the registry again")?;
        }
        Ok(())
    }

    /// Relays with failpoints end.
    async fn disarm(&mut self) -> Result<()> {
        for seat in &mut self.seats {
            if !std::mem::take(&mut seat.armed) || !seat.relay.running() {
                continue;
            }
            // One that was replaced may end by itself at this moment.
            if let Err(error) = seat.relay.terminate(END_LIMIT).await
                && seat.relay.running()
            {
                return Err(error);
            }
        }
        Ok(())
    }

    /// Starts relays until two run.
    fn fill_seats(&mut self) -> Result<()> {
        for seat in 0..SEATS {
            let relay = &self.seats[seat].relay;
            if relay.running() {
                continue;
            }
            if let Some(status) = relay.ended().filter(|status| status.code().is_some_and(|code| code != 0)) {
                let note = format!("{} had ended ({status})", relay.name());
                if self.notes.last() != Some(&note) {
                    self.notes.push(note);
                }
            }
            if self.seats.iter().filter(|seat| seat.relay.running()).count() < 2 {
                self.seats[seat].relay.start()?;
            }
        }
        Ok(())
    }

    // --------------------------------------------------------------------------------------------------------- the books

    /// Waits until an event that was begun after this moment is readable.
    pub(super) async fn back_after(&self, moment: Instant, limit: Duration) -> Option<Duration> {
        let begun = Instant::now();
        while begun.elapsed() < limit {
            if let Some(at) = self.books().first_after(moment) {
                return Some(at - moment);
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        None
    }

    /// Holds the writers, and waits until all that they have committed is published and applied.
    pub(super) async fn come_to_rest(&self) -> Result<()> {
        self.writers.hold().await?;
        self.settle_doubts().await?;
        let begun = Instant::now();
        loop {
            let pending: i64 = sqlx::query_scalar("SELECT count(*) FROM outbox.pending")
                .fetch_one(&self.superuser)
                .await
                .context("ask what is pending")?;
            if pending == 0 {
                break;
            }
            if begun.elapsed() > DRAIN_LIMIT {
                bail!("{pending} events are still pending after {DRAIN_LIMIT:?}");
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        self.consumer.caught_up(DRAIN_LIMIT).await?;
        // A broker that has just come back can name an end that is behind what it has acknowledged.
        let begun = Instant::now();
        while self.books().in_flight() > 0 && begun.elapsed() < LATE_LIMIT {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(())
    }

    /// A COMMIT whose answer is missing has happened if its rows are there. No session from before is left that could still do it:
    /// writers lose their answers only when the server goes.
    async fn settle_doubts(&self) -> Result<()> {
        let doubts = self.books().take_doubts();
        for (steps, begun_at) in doubts {
            let ids: Vec<_> = steps.iter().map(|step| step.event_id).collect();
            let found: i64 =
                sqlx::query_scalar("SELECT count(*) FROM outbox.events WHERE event_id = ANY ($1)")
                    .bind(&ids)
                    .fetch_one(&self.superuser)
                    .await
                    .context("settle what is in doubt")?;
            match usize::try_from(found)? {
                0 => {}
                all if all == ids.len() => self.books().committed(steps, begun_at),
                some => bail!("{some} of {} events of one transaction are there", ids.len()),
            }
        }
        Ok(())
    }

    /// The books once more, from the table and the whole topic.
    pub(super) async fn books_anew(&self, limit: Duration) -> Result<Books> {
        let (mut books, now) = (Books::default(), Instant::now());
        let rows: Vec<(uuid::Uuid, String, i64)> =
            sqlx::query_as("SELECT event_id, aggregate_id, (payload ->> 'step')::bigint FROM outbox.events")
                .fetch_all(&self.superuser)
                .await
                .context("read the outbox")?;
        let steps = rows.into_iter().map(|(event_id, key, step)| workload::Step { event_id, key, step });
        books.committed(steps.collect(), now);
        let bootstrap = self.kafka.bootstrap();
        let records =
            tokio::task::spawn_blocking(move || consumer::read_all(&bootstrap, TOPIC, PARTITIONS, limit));
        for record in records.await?.context("read the topic")? {
            books.saw(&record, now);
        }
        Ok(books)
    }

    /// Event ids that took effect more than once; steps that took effect under more than one event id; event ids with an effect.
    pub(super) async fn effects(&self) -> Result<(usize, usize, usize)> {
        let (twice, otherwise, applied): (i64, i64, i64) = sqlx::query_as(
            "SELECT (SELECT count(*) FROM (SELECT FROM effects GROUP BY event_id HAVING count(*) > 1) AS a),
                    (SELECT count(*) FROM (SELECT FROM effects GROUP BY key, step HAVING count(DISTINCT event_id) > 1) AS b),
                    (SELECT count(DISTINCT event_id) FROM effects)",
        )
        .fetch_one(&self.superuser)
        .await
        .context("count the effects")?;
        Ok((usize::try_from(twice)?, usize::try_from(otherwise)?, usize::try_from(applied)?))
    }

    /// Ends everything of ours in order: an error if a relay or the consumer does not.
    pub(super) async fn end(self) -> Result<()> {
        self.writers.end().await;
        self.consumer.end().await.context("the consumer")?;
        self.superuser.close().await;
        for Seat { relay, .. } in &self.seats {
            if relay.running() {
                let status = relay.terminate(END_LIMIT).await?;
                ensure!(status.success(), "{} ended with {status}", relay.name());
            }
        }
        drop(self.database);
        Ok(())
    }
}

/// The catalogue with the writers' event and nothing else.
fn catalogue(folder: &Path) -> Result<PathBuf> {
    fs::write(folder.join("stepped.avsc"), SCHEMA).context("write the schema")?;
    let events = folder.join("events.toml");
    let text = format!(
        "[topics.{TOPIC}]\npartitions = {PARTITIONS}\nretention = \"30d\"\n\n\
         [events.{EVENT_TYPE}]\ntopic = \"{TOPIC}\"\nschema = \"stepped.avsc\"\n"
    );
    fs::write(&events, text).context("write the catalogue")?;
    Ok(events)
}

async fn set_up(database: &TestDatabase, kafka: &Kafka, registry: &Registry, events: &Path) -> Result<()> {
    let program = binary("outbox-relay")?;
    let given = |name: &str, value: String| (name.to_owned(), value);
    let migrate = ["migrate", "--writer", "executor", "--relay", "relay", "--reader", "operator"];
    let setup = [
        given("KAFKA_BOOTSTRAP", kafka.bootstrap()),
        given("SCHEMA_REGISTRY_URL", registry.url()),
        given("EVENTS", events.display().to_string()),
    ];
    let owner = [given("DATABASE_URL", database.url(OWNER))];
    tokio::try_join!(run_once(&program, &migrate, &owner), run_once(&program, &["setup"], &setup))?;
    let mut owner = PgConnection::connect(&database.url(OWNER)).await.context("log in as the owner")?;
    workload::prepare(&mut owner, "executor", WRITERS).await?;
    sqlx::raw_sql(consumer::EFFECTS).execute(&mut owner).await.context("create the effects")?;
    owner.close().await.context("log out")
}

fn relay(home: &Home, folder: &Path, name: &str, environment: &[(&str, String)]) -> Result<Service> {
    let admin = format!("127.0.0.1:{}", free_port()?);
    let ready_url = format!("http://{admin}/readyz");
    let mut environment: Vec<(String, String)> =
        environment.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
    environment.push(("ADMIN_LISTEN".to_owned(), admin));
    let spec = Spec {
        name: name.to_owned(),
        program: binary("outbox-relay")?,
        arguments: vec!["run".to_owned()],
        environment,
        ready_url,
    };
    Service::new(home, folder, spec)
}
