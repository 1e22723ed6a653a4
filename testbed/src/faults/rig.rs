//! An outbox to be hurt: parts of its own, and relays that reach them through proxies of their own.
//!
//! ```text
//!  writers ──▶ PostgreSQL ◀── proxy ── relay ── proxy ──▶ Kafka ──▶ consumer ──▶ effects, in the same database
//!                             (three seats: one leads, one stands by, one is free)
//! ```
//! A relay that is to die at a point is started in the free seat, and leadership is handed to it.

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
const SEATS: usize = 3;
/// Small, so that what piled up is read in many pages.
const PAGE_ROWS: &str = "25";
/// Most of what a relay logs is one line per event: not that.
const LOG: &str = "info,outbox_relay::save=warn";
/// For a relay to lead, after anything that heals.
const LEAD_LIMIT: Duration = Duration::from_secs(30);
/// For a relay to end in order.
const END_LIMIT: Duration = Duration::from_secs(15);
/// For the outbox to drain, and for the consumer to follow.
const DRAIN_LIMIT: Duration = Duration::from_mins(1);
/// For records beyond what the broker had called the end. What is missing then is lost.
const LATE_LIMIT: Duration = Duration::from_secs(5);
const LOOK_EVERY: Duration = Duration::from_millis(2);

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
    armed: bool,
}

/// A session that asks for the leader lock, or holds it.
struct LockSession {
    seat: usize,
    pid: i32,
    leads: bool,
}

/// A relay with failpoints that was given the leadership.
pub(super) struct Armed {
    pub(super) seat: usize,
    /// The other one, which stands by.
    pub(super) standby: usize,
    /// When it was found dead, if it did not live to lead.
    pub(super) died_at: Option<Instant>,
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

    // ------------------------------------------------------------------------------------------------------- leadership

    /// The sessions with which relays ask for the leader lock, or hold it: asked of the server, so that a relay that stands still is
    /// known too. None if the server does not answer.
    async fn lock_sessions(&self) -> Option<Vec<LockSession>> {
        let sessions: Vec<(i32, i32, bool)> = sqlx::query_as(
            "SELECT a.pid, a.client_port,
                    EXISTS (SELECT FROM pg_locks l WHERE l.pid = a.pid AND l.locktype = 'advisory' AND l.granted)
             FROM pg_stat_activity a
             WHERE a.usename = 'relay' AND a.datname = current_database() AND a.application_name = 'outbox-relay lock'",
        )
        .fetch_all(&self.superuser)
        .await
        .ok()?;
        let seat_of = |port: i32| {
            let port = u16::try_from(port).ok()?;
            self.seats.iter().position(|seat| seat.database.owns(port))
        };
        let known = sessions
            .into_iter()
            .filter_map(|(pid, port, leads)| Some(LockSession { seat: seat_of(port)?, pid, leads }));
        Some(known.collect())
    }

    /// The session that holds the leader lock.
    async fn leading_session(&self) -> Option<LockSession> {
        self.lock_sessions().await?.into_iter().find(|session| session.leads)
    }

    /// Which seat leads. None if none does, or if the server does not answer.
    pub(super) async fn leader(&self) -> Option<usize> {
        self.leading_session().await.map(|session| session.seat)
    }

    /// Waits until one leads.
    pub(super) async fn leading(&self) -> Result<usize> {
        self.led(LEAD_LIMIT, |_| true).await
    }

    /// Waits until one leads, and not this one.
    pub(super) async fn other_leads(&self, than: usize, limit: Duration) -> Result<usize> {
        self.led(limit, |session| session.seat != than).await
    }

    /// Waits until the leader lock is held by another session than this one: of another relay, or of the same one, if that was quicker.
    pub(super) async fn led_anew(&self, than: i32, limit: Duration) -> Result<usize> {
        self.led(limit, |session| session.pid != than).await
    }

    async fn led(&self, limit: Duration, wanted: impl Fn(&LockSession) -> bool) -> Result<usize> {
        let begun = Instant::now();
        loop {
            match self.leading_session().await.filter(&wanted) {
                Some(session) => return Ok(session.seat),
                None => ensure!(begun.elapsed() < limit, "no relay leads after {limit:?}"),
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// The server ends the session that holds the leader lock. Returns its pid.
    pub(super) async fn end_lock_session(&self) -> Result<i32> {
        let session = self.leading_session().await.context("no session holds the leader lock")?;
        let ended: bool = sqlx::query_scalar("SELECT pg_terminate_backend($1)")
            .bind(session.pid)
            .fetch_one(&self.superuser)
            .await
            .context("end the session of the leader lock")?;
        ensure!(ended, "the session of the leader lock has ended by itself");
        Ok(session.pid)
    }

    /// Starts a relay with these failpoints in the free seat, and hands leadership to it: the leader is asked to end, while the
    /// standby stands still and so cannot be quicker.
    pub(super) async fn arm(&mut self, failpoints: &str) -> Result<Armed> {
        let leader = self.leading().await?;
        let free = self.seats.iter().position(|seat| !seat.relay.running()).context("no seat is free")?;
        let standby = (0..SEATS).find(|seat| *seat != leader && *seat != free).context("nobody stands by")?;
        self.seats[free].armed = true;
        let armed = &self.seats[free].relay;
        armed.start_with(&[("FAILPOINTS".to_owned(), failpoints.to_owned())])?;
        armed.wait_ready().await?;
        let paused = &self.seats[standby].relay;
        paused.pause()?;
        let handed_over = self.hand_over(leader, free).await;
        paused.resume()?;
        Ok(Armed { seat: free, standby, died_at: handed_over? })
    }

    async fn hand_over(&self, from: usize, to: usize) -> Result<Option<Instant>> {
        let status = self.seats[from].relay.terminate(END_LIMIT).await?;
        ensure!(
            status.success(),
            "{} was asked to end and did so with {status}",
            self.seats[from].relay.name()
        );
        let begun = Instant::now();
        loop {
            if !self.seats[to].relay.running() {
                return Ok(Some(Instant::now()));
            }
            if self.seats[to].relay.stopped() || self.leader().await == Some(to) {
                return Ok(None);
            }
            ensure!(begun.elapsed() < LEAD_LIMIT, "leadership was given up, and nobody took it");
            tokio::time::sleep(LOOK_EVERY).await;
        }
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

    /// Whether one relay leads and one stands by, for the server and in their own eyes: a leader that was replaced takes its time to
    /// find out. If it was fenced, it then ends; until it has, it answers like one that stands by, but it no longer asks for the lock.
    async fn in_order(&self) -> bool {
        let Some(sessions) = self.lock_sessions().await else { return false };
        let (mut leading, mut standing_by) = (0, 0);
        for (seat, Seat { relay, .. }) in self.seats.iter().enumerate() {
            if !relay.running() {
                continue;
            }
            let mut own = sessions.iter().filter(|session| session.seat == seat).peekable();
            if own.peek().is_none() {
                return false;
            }
            let leads = own.any(|session| session.leads);
            // One that is just starting does not answer.
            match relay.metric("relay_leader").await.ok().flatten() {
                Some(1.0) if leads => leading += 1,
                Some(0.0) if !leads && relay.ready().await => standing_by += 1,
                _ => return false,
            }
        }
        (leading, standing_by) == (1, 1)
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
