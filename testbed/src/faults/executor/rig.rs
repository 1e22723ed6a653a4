//! Executors to be hurt: parts of their own, and three of them that reach everything through proxies of their own.
//!
//! ```text
//!  asker ──▶ Kafka ◀── proxy ── executor ── proxy ──▶ PSP simulator
//!                                  │ proxy         │ webhooks of Adyen
//!                                  │               ▼
//!                                  │            executor 1
//!                                  ▼
//!                              PostgreSQL ◀── relay ──▶ Kafka (results)
//! ```
//! Each executor is a static member of its consumer group: one that comes back has its partitions at once, as in an installation.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use sqlx::PgPool;
use sqlx::postgres::PgPoolOptions;
use uuid::Uuid;

use super::asker::Asker;
use super::books::{Books, Taken};
use super::plan::Plan;
use crate::oracle::books::{Charge, OutboxEvent, PspResult};
use crate::processes::Service;
use crate::proxy::Proxy;
use crate::requests::{Asked, Requests};
use crate::stack::home::Home;
use crate::stack::{Door, Kafka, Postgres, Registry, TestDatabase, free_port};
use crate::topic::Topics;

const REQUESTS: &str = "payment-order-requests";
const RESULTS: &str = "psp-result-updates";
pub(super) const SEATS: usize = 3;
/// The seat whose executor receives webhooks.
const RECEIVER: usize = 0;
const READY_LIMIT: Duration = Duration::from_secs(30);
const END_LIMIT: Duration = Duration::from_secs(15);
/// For every order to come to an end, and for every event to be published.
const REST_LIMIT: Duration = Duration::from_mins(2);
const LEDGER_PAGE: usize = 5_000;
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// Executors and everything around them.
pub(super) struct Rig {
    pub(super) postgres: Postgres,
    pub(super) kafka: Kafka,
    pub(super) simulator: Service,
    pub(super) seats: Vec<Seat>,
    pub(super) asker: Asker,
    registry: Registry,
    relay: Service,
    database: TestDatabase,
    superuser: PgPool,
    client: reqwest::Client,
    /// The ledger as far as it was read.
    ledger: Vec<Charge>,
    /// What was seen besides, for the line of the episode.
    notes: Vec<String>,
}

/// A place for an executor. Its addresses stay.
pub(super) struct Seat {
    pub(super) executor: Service,
    pub(super) database: Proxy,
    pub(super) broker: Proxy,
    pub(super) psp: Proxy,
    /// Started with failpoints: not to be used after its episode.
    armed: bool,
}

impl Rig {
    /// Starts everything. The asker is held.
    pub(super) async fn start(home: &Home, folder: &Path, seed: u64) -> Result<Rig> {
        let (mut brokers, mut doors) = (Vec::new(), Vec::new());
        for _ in 0..SEATS {
            let port = free_port()?;
            let proxy = Proxy::start(port).await?;
            doors.push(Door { port, advertised: proxy.port() });
            brokers.push(proxy);
        }
        let (postgres, kafka, registry) = tokio::try_join!(
            Postgres::private("faults-executor-postgres"),
            Kafka::private_behind("faults-executor-kafka", doors),
            Registry::private("faults-executor-registry"),
        )?;
        let database = postgres.database("executor").await?;
        let plan = Plan { home, folder, database: &database, kafka: &kafka, registry: &registry };
        plan.set_up().await?;
        let simulator_port = free_port()?;
        let webhooks_port = free_port()?;
        let simulator = plan.simulator(simulator_port, webhooks_port)?;
        let relay = plan.relay()?;
        let mut seats = Vec::new();
        for (seat, broker) in brokers.into_iter().enumerate() {
            let database = Proxy::start(postgres.server().port).await?;
            let psp = Proxy::start(simulator_port).await?;
            let webhooks = (seat == RECEIVER).then_some(webhooks_port);
            let executor = plan.executor(seat, [&database, &broker, &psp], webhooks)?;
            seats.push(Seat { executor, database, broker, psp, armed: false });
        }
        for service in seats.iter().map(|seat| &seat.executor).chain([&simulator, &relay]) {
            service.start()?;
        }
        let requests = Requests::new(&kafka.bootstrap(), &registry.url(), REQUESTS).await?;
        let superuser = PgPoolOptions::new()
            .max_connections(2)
            .acquire_timeout(Duration::from_secs(5))
            .connect_lazy(&database.url("postgres"))
            .context("the superuser's pool")?;
        let mut rig = Rig {
            asker: Asker::start(requests, seed),
            postgres,
            kafka,
            simulator,
            seats,
            registry,
            relay,
            database,
            superuser,
            client: reqwest::Client::builder().no_proxy().timeout(READY_LIMIT).build()?,
            ledger: Vec::new(),
            notes: Vec::new(),
        };
        rig.simulator.wait_ready().await?;
        rig.relay.wait_ready().await?;
        rig.heal().await?;
        // The members of a new group take their time to find each other: that is no fault.
        rig.asker.go();
        let turning = rig.back_after(Instant::now(), REST_LIMIT).await;
        turning.context("the executors carry nothing out")?;
        rig.come_to_rest().await?;
        Ok(rig)
    }

    /// What was seen besides since the last time.
    pub(super) fn take_notes(&mut self) -> Vec<String> {
        std::mem::take(&mut self.notes)
    }

    /// Starts the executor of a seat anew, with these failpoints.
    pub(super) async fn arm(&mut self, seat: usize, failpoints: &str) -> Result<()> {
        let seat = &mut self.seats[seat];
        let status = seat.executor.terminate(END_LIMIT).await?;
        ensure!(status.success(), "{} was asked to end and did so with {status}", seat.executor.name());
        seat.armed = true;
        seat.executor.start_with(&[("FAILPOINTS".to_owned(), failpoints.to_owned())])
    }

    /// Everything runs again as at the beginning.
    pub(super) async fn heal(&mut self) -> Result<()> {
        // Parts that were not touched do not mind.
        self.kafka.resume().ok();
        self.simulator.resume().ok();
        for seat in &mut self.seats {
            for proxy in [&seat.database, &seat.broker, &seat.psp] {
                proxy.heal();
            }
            if seat.executor.stopped() {
                seat.executor.resume()?;
            }
            if std::mem::take(&mut seat.armed) && seat.executor.running() {
                seat.executor.terminate(END_LIMIT).await?;
            }
            if !seat.executor.running() {
                if let Some(status) =
                    seat.executor.ended().filter(|status| status.code().is_some_and(|code| code != 0))
                {
                    self.notes.push(format!("{} had ended ({status})", seat.executor.name()));
                }
                seat.executor.start()?;
            }
        }
        if !self.relay.running() {
            self.relay.start()?;
        }
        let services = self.seats.iter().map(|seat| &seat.executor).chain([&self.relay]);
        futures::future::try_join_all(services.map(Service::wait_ready)).await?;
        ensure!(self.simulator.running(), "the simulator has ended, and the ledger with it");
        Ok(())
    }

    /// Calls to the PSP that are written down as begun; 0 while the database does not answer.
    pub(super) async fn open_calls(&self) -> i64 {
        sqlx::query_scalar("SELECT count(*) FROM executor.psp_attempts WHERE status = 'STARTED'")
            .fetch_one(&self.superuser)
            .await
            .unwrap_or(0)
    }

    /// From this moment until an order that was asked for after it had a result.
    pub(super) async fn back_after(&self, moment: Instant, limit: Duration) -> Option<Duration> {
        let begun = Instant::now();
        while begun.elapsed() < limit {
            let ids = self.asker.after(moment);
            let first: Result<Option<f64>, _> = sqlx::query_scalar(
                "SELECT extract(epoch FROM clock_timestamp() - min(recorded_at))::float8
                 FROM executor.psp_results WHERE payment_order_id = ANY ($1)",
            )
            .bind(&ids)
            .fetch_one(&self.superuser)
            .await;
            if let Ok(Some(ago)) = first {
                let ago = Duration::try_from_secs_f64(ago).unwrap_or_default();
                return Some(moment.elapsed().saturating_sub(ago));
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        None
    }

    /// Holds the asker, and waits until every order has come to an end, every webhook is worked off and every event is published.
    pub(super) async fn come_to_rest(&self) -> Result<()> {
        self.asker.hold().await?;
        let asked = i64::try_from(self.asker.count())?;
        let begun = Instant::now();
        loop {
            let (ended, open, told, pending): (i64, i64, i64, i64) = sqlx::query_as(
                "SELECT count(*) FILTER (WHERE state IN ('SETTLED', 'REVIEW')),
                        count(*) FILTER (WHERE state NOT IN ('SETTLED', 'REVIEW')),
                        (SELECT count(*) FROM executor.webhooks WHERE processed_at IS NULL), (SELECT count(*) FROM outbox.pending)
                 FROM executor.inbox",
            )
            .fetch_one(&self.superuser)
            .await
            .context("ask what is left to do")?;
            if ended >= asked && open == 0 && told == 0 && pending == 0 {
                return Ok(());
            }
            ensure!(
                begun.elapsed() < REST_LIMIT,
                "of {asked} orders {ended} have ended after {REST_LIMIT:?}; {open} are open, {told} webhooks wait, {pending} events \
                 pending"
            );
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// The books of these orders.
    pub(super) async fn books(&mut self, asked: Vec<Asked>) -> Result<Books> {
        self.read_ledger().await?;
        let ids: Vec<Uuid> = asked.iter().map(|asked| asked.payment_order_id).collect();
        let keys: Vec<String> = ids.iter().map(Uuid::to_string).collect();
        let wanted: std::collections::HashSet<&str> = keys.iter().map(String::as_str).collect();
        let charges = (self.ledger.iter())
            .filter(|charge| charge.payment_order_id.as_deref().is_some_and(|order| wanted.contains(order)))
            .cloned()
            .collect();
        let inbox: Vec<Taken> = sqlx::query_as(
            "SELECT payment_order_id, state,
                    (SELECT count(*) FROM executor.psp_attempts a
                     WHERE a.payment_order_id = i.payment_order_id AND a.status = 'STARTED') AS open_attempts
             FROM executor.inbox i WHERE payment_order_id = ANY ($1)",
        )
        .bind(&ids)
        .fetch_all(&self.superuser)
        .await
        .context("read the inbox")?;
        let results: Vec<PspResult> =
            sqlx::query_as("SELECT * FROM executor.psp_results WHERE payment_order_id = ANY ($1)")
                .bind(&ids)
                .fetch_all(&self.superuser)
                .await
                .context("read the results")?;
        let outbox: Vec<OutboxEvent> =
            sqlx::query_as("SELECT * FROM outbox.events WHERE aggregate_id = ANY ($1) ORDER BY id")
                .bind(&keys)
                .fetch_all(&self.superuser)
                .await
                .context("read the outbox")?;
        Ok(Books { asked, charges, inbox, results, outbox, topic: None })
    }

    /// Everything there is, whoever it belongs to, and the whole topic.
    pub(super) async fn all_books(&mut self) -> Result<Books> {
        let topics = Topics { bootstrap: self.kafka.bootstrap(), registry_url: self.registry.url() };
        let topic = Some(topics.read(RESULTS).await?);
        let asked = self.asker.since(0);
        self.read_ledger().await?;
        let inbox: Vec<Taken> = sqlx::query_as(
            "SELECT payment_order_id, state, coalesce(open, 0) AS open_attempts FROM executor.inbox
             LEFT JOIN (SELECT payment_order_id, count(*) AS open FROM executor.psp_attempts
                        WHERE status = 'STARTED' GROUP BY 1) AS a USING (payment_order_id)",
        )
        .fetch_all(&self.superuser)
        .await
        .context("read the inbox")?;
        let results: Vec<PspResult> = sqlx::query_as("SELECT * FROM executor.psp_results")
            .fetch_all(&self.superuser)
            .await
            .context("read the results")?;
        let outbox: Vec<OutboxEvent> = sqlx::query_as("SELECT * FROM outbox.events ORDER BY id")
            .fetch_all(&self.superuser)
            .await
            .context("read the outbox")?;
        Ok(Books { asked, charges: self.ledger.clone(), inbox, results, outbox, topic })
    }

    /// Results of these orders that were not brought by the answer to a first try.
    pub(super) async fn resolved(&self, asked: &[Asked]) -> Result<i64> {
        let ids: Vec<Uuid> = asked.iter().map(|asked| asked.payment_order_id).collect();
        sqlx::query_scalar(
            "SELECT count(*) FROM executor.psp_results WHERE payment_order_id = ANY ($1) AND source <> 'REPLY'",
        )
        .bind(&ids)
        .fetch_one(&self.superuser)
        .await
        .context("count what was resolved")
    }

    async fn read_ledger(&mut self) -> Result<()> {
        #[derive(Deserialize)]
        struct Page {
            charges: Vec<Charge>,
            has_more: bool,
        }
        loop {
            let (base, after) = (self.simulator.admin_url(), self.ledger.len());
            let url = format!("{base}/simulator/ledger?after={after}&limit={LEDGER_PAGE}");
            let answer = self.client.get(url).send().await.and_then(reqwest::Response::error_for_status);
            let page: Page = answer.context("ask for the ledger")?.json().await.context("read the ledger")?;
            self.ledger.extend(page.charges);
            if !page.has_more {
                return Ok(());
            }
        }
    }

    /// Ends everything of ours in order: an error if a process does not.
    pub(super) async fn end(self) -> Result<()> {
        self.superuser.close().await;
        for service in self.seats.iter().map(|seat| &seat.executor).chain([&self.relay, &self.simulator]) {
            let status = service.terminate(END_LIMIT).await?;
            ensure!(status.success(), "{} ended with {status}", service.name());
        }
        drop(self.database);
        Ok(())
    }
}
