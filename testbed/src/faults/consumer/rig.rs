//! Instances of the payment service to be hurt: parts of their own, and a proxy between each instance and each part.
//!
//! ```text
//!  teller ──▶ Kafka ◀── proxy ── payment-service ── proxy ──▶ PostgreSQL
//!                                (so many seats)
//! ```

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use sqlx::PgPool;
use sqlx::postgres::PgPoolOptions;
use uuid::Uuid;

use super::books::Books;
use super::offsets::{Ahead, Offsets};
use super::plan::Plan;
use super::story::Story;
use super::teller::{Published, Teller};
use crate::load::Random;
use crate::processes::Service;
use crate::proxy::Proxy;
use crate::results::Results;
use crate::stack::home::Home;
use crate::stack::{Door, Kafka, Postgres, Registry, TestDatabase, free_port};

const TOPIC: &str = "psp-result-updates";
const GROUP: &str = "payment-service";
const PARTITIONS: i32 = 6;
const END_LIMIT: Duration = Duration::from_secs(15);
/// For everything that was told to be in the database, and its offsets committed.
const REST_LIMIT: Duration = Duration::from_mins(1);
/// Payments that wait to be told of, at the beginning of an episode.
const STOCK: usize = 2_500;
/// So many events of each partition tell whether its owner is back.
const FIRST: usize = 20;
/// Events that are on the topic for longer are not called in flight.
const RECENT: Duration = Duration::from_secs(3);
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// How many instances there are.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    /// Seats that are taken all the time.
    pub(super) seats: usize,
    /// Of these, the first so many have names in the group.
    pub(super) members: usize,
    /// Seats behind them that are free.
    pub(super) guests: usize,
}

/// Instances and everything around them.
pub(super) struct Rig {
    pub(super) postgres: Postgres,
    pub(super) kafka: Kafka,
    pub(super) seats: Vec<Seat>,
    pub(super) teller: Teller,
    shape: Shape,
    _registry: Registry,
    database: TestDatabase,
    superuser: PgPool,
    offsets: Offsets,
    random: Random,
    /// What was seen besides, for the line of the episode.
    notes: Vec<String>,
}

/// A place for an instance. Its addresses stay.
pub(super) struct Seat {
    pub(super) instance: Service,
    pub(super) database: Proxy,
    pub(super) broker: Proxy,
    /// Started with failpoints: not to be used after its episode.
    armed: bool,
}

impl Rig {
    /// Starts everything. The teller is held.
    pub(super) async fn start(home: &Home, folder: &Path, seed: u64, shape: Shape) -> Result<Rig> {
        let (mut brokers, mut doors) = (Vec::new(), Vec::new());
        for _ in 0..shape.seats + shape.guests {
            let port = free_port()?;
            let proxy = Proxy::start(port).await?;
            doors.push(Door { port, advertised: proxy.port() });
            brokers.push(proxy);
        }
        let (postgres, kafka, registry) = tokio::try_join!(
            Postgres::private("faults-consumer-postgres"),
            Kafka::private_behind("faults-consumer-kafka", doors),
            Registry::private("faults-consumer-registry"),
        )?;
        let database = postgres.database("payments").await?;
        let plan = Plan { home, folder, database: &database, kafka: &kafka, registry: &registry };
        plan.set_up().await?;
        let mut seats = Vec::new();
        for (seat, broker) in brokers.into_iter().enumerate() {
            let database = Proxy::start(postgres.server().port).await?;
            let instance = plan.instance(seat, seat < shape.members, [&database, &broker])?;
            seats.push(Seat { instance, database, broker, armed: false });
        }
        let results = Results::new(&kafka.bootstrap(), &registry.url(), TOPIC).await?;
        let superuser = PgPoolOptions::new()
            .max_connections(2)
            .acquire_timeout(Duration::from_secs(5))
            .connect_lazy(&database.url("postgres"))
            .context("the superuser's pool")?;
        let mut rig = Rig {
            teller: Teller::start(results, seed),
            offsets: Offsets::new(&kafka.bootstrap(), GROUP, TOPIC, PARTITIONS)?,
            postgres,
            kafka,
            seats,
            shape,
            _registry: registry,
            database,
            superuser,
            random: Random::new(seed, usize::MAX / 3),
            notes: Vec::new(),
        };
        rig.heal().await?;
        rig.restock().await?;
        // The members of a new group take their time to find each other: that is no fault.
        rig.teller.go();
        rig.back_after(Instant::now(), REST_LIMIT).await.context("nothing is applied")?;
        rig.come_to_rest().await?;
        Ok(rig)
    }

    /// What was seen besides since the last time.
    pub(super) fn take_notes(&mut self) -> Vec<String> {
        std::mem::take(&mut self.notes)
    }

    /// For what only a superuser sees.
    pub(super) fn superuser(&self) -> &PgPool {
        &self.superuser
    }

    /// A seat that is taken.
    pub(super) fn any_seat(&self, random: &mut Random) -> usize {
        random.below(self.shape.seats)
    }

    /// The seats that are taken.
    pub(super) fn all_seats(&self) -> std::ops::Range<usize> {
        0..self.shape.seats
    }

    /// The first seat that is free.
    pub(super) fn guest(&self) -> usize {
        self.shape.seats
    }

    /// Starts the instance of a seat anew, with these failpoints.
    pub(super) async fn arm(&mut self, seat: usize, failpoints: &str) -> Result<()> {
        self.seats[seat].end().await?;
        self.seats[seat].armed = true;
        self.seats[seat].instance.start_with(&[("FAILPOINTS".to_owned(), failpoints.to_owned())])
    }

    /// Everything runs again as at the beginning.
    pub(super) async fn heal(&mut self) -> Result<()> {
        if self.postgres.pid().is_err() {
            self.postgres.restart().await.context("start PostgreSQL again")?;
        }
        if self.kafka.resume().is_err() {
            self.kafka.restart().await.context("start the broker again")?;
        }
        let guest = self.guest();
        for (number, seat) in self.seats.iter_mut().enumerate() {
            seat.database.heal();
            seat.broker.heal();
            if seat.instance.stopped() {
                seat.instance.resume()?;
            }
            let armed = std::mem::take(&mut seat.armed);
            if (armed || number >= guest) && seat.instance.running() {
                seat.instance.terminate(END_LIMIT).await?;
            }
            if number < guest && !seat.instance.running() {
                let status = seat.instance.ended();
                if let Some(status) = status.filter(|status| status.code().is_some_and(|code| code != 0)) {
                    self.notes.push(format!("{} had ended ({status})", seat.instance.name()));
                }
                seat.instance.start()?;
            }
        }
        let services = self.seats[..guest].iter().map(|seat| &seat.instance);
        futures::future::try_join_all(services.map(Service::wait_ready)).await?;
        Ok(())
    }

    // ------------------------------------------------------------------------------------------------------------ payments

    /// Makes payments that something can be said about.
    pub(super) async fn restock(&mut self) -> Result<()> {
        let missing = STOCK.saturating_sub(self.teller.stock());
        let stories: Vec<Story> = (0..missing).map(|_| Story::draw(&mut self.random)).collect();
        let ready: Vec<&Story> = stories.iter().filter(|story| !story.late).collect();
        self.insert(&ready).await?;
        self.teller.store(stories);
        Ok(())
    }

    /// Makes the rows of these payments.
    pub(super) async fn insert(&self, stories: &[&Story]) -> Result<()> {
        let (mut payments, mut orders, mut tries) = (Vec::new(), Vec::new(), Vec::new());
        for story in stories {
            for (number, order) in (1..).zip(&story.orders) {
                payments.push(story.payment_id);
                orders.push(order.payment_order_id);
                tries.push(number);
            }
        }
        sqlx::query(
            "WITH made AS (SELECT * FROM unnest($1::uuid[], $2::uuid[], $3::integer[]) AS m (payment_id, payment_order_id, try)),
             payments AS (
                 INSERT INTO payments.payments
                     (payment_id, caller, amount_minor, currency, merchant_reference, status, trace_id, created_at, updated_at)
                 SELECT payment_id, 'faults', 1000, 'EUR', 'order', 'CREATED', replace(payment_id::text, '-', ''), now(), now()
                 FROM made WHERE try = 1
             ), orders AS (
                 INSERT INTO payments.payment_orders (payment_order_id, payment_id, try, psp, payment_method, state, traceparent,
                     expires_at, created_at, updated_at)
                 SELECT payment_order_id, payment_id, try, 'STRIPE', 'pm', 'CREATED',
                     '00-' || replace(payment_id::text, '-', '') || '-' || repeat('b', 16) || '-01', now(), now(), now()
                 FROM made
             )
             INSERT INTO payments.payment_order_transitions (payment_order_id, to_state, decision, trace_id)
             SELECT payment_order_id, 'CREATED', 'APPLIED', replace(payment_id::text, '-', '') FROM made",
        )
        .bind(&payments)
        .bind(&orders)
        .bind(&tries)
        .execute(&self.superuser)
        .await
        .context("make payments")?;
        Ok(())
    }

    // --------------------------------------------------------------------------------------------------------- how far it is

    /// Events on the topic for a short time, and not applied; 0 while the database does not answer.
    pub(super) async fn in_flight(&self) -> usize {
        let recent: Vec<Uuid> = {
            let told = self.teller.told();
            let recent = told.published.iter().rev().take_while(|one| one.sent_at.elapsed() < RECENT);
            recent.map(|one| one.event_id).collect::<HashSet<_>>().into_iter().collect()
        };
        self.taken(&recent).await.map_or(0, |taken| recent.len() - taken.len())
    }

    /// Which of these events are marked as processed.
    pub(super) async fn taken(&self, events: &[Uuid]) -> Result<HashSet<Uuid>> {
        let taken: Vec<Uuid> =
            sqlx::query_scalar("SELECT event_id FROM payments.processed_events WHERE event_id = ANY ($1)")
                .bind(events)
                .fetch_all(&self.superuser)
                .await
                .context("ask what is processed")?;
        Ok(taken.into_iter().collect())
    }

    /// From this moment until, in every partition, an event was applied that was sent after it.
    pub(super) async fn back_after(&self, moment: Instant, limit: Duration) -> Option<Duration> {
        let begun = Instant::now();
        while begun.elapsed() < limit {
            let events = self.teller.told().after(moment, FIRST);
            let ids: Vec<Uuid> = events.keys().copied().collect();
            if let Ok(taken) = self.taken(&ids).await {
                let partitions: HashSet<i32> =
                    taken.iter().filter_map(|id| events.get(id)).copied().collect();
                if i32::try_from(partitions.len()) == Ok(PARTITIONS) {
                    return Some(moment.elapsed());
                }
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        None
    }

    /// Holds the teller, makes the rows that are late, and waits until everything that was told is in the database, and the group's
    /// offsets are behind all of it.
    pub(super) async fn come_to_rest(&mut self) -> Result<()> {
        self.teller.hold().await?;
        let late = std::mem::take(&mut self.teller.told().late);
        self.insert(&late.iter().collect::<Vec<_>>()).await?;
        let (mut open, garbage, ends) = {
            let told = self.teller.told();
            let events: HashSet<Uuid> = told.published.iter().map(|one| one.event_id).collect();
            (events, told.garbage.len(), ends(&told.published, &told.garbage))
        };
        let begun = Instant::now();
        loop {
            let asked: Vec<Uuid> = open.iter().copied().collect();
            for event_id in self.taken(&asked).await? {
                open.remove(&event_id);
            }
            let (aside, orphans): (i64, i64) = sqlx::query_as(
                "SELECT count(*) FILTER (WHERE reason_code = 'UNDECODABLE'),
                        count(*) FILTER (WHERE reason_code = 'ORPHAN' AND settled_at IS NULL) FROM payments.quarantine",
            )
            .fetch_one(&self.superuser)
            .await
            .context("ask what is set aside")?;
            let behind = match self.offsets.committed().await {
                Ok(committed) => {
                    ends.iter().filter(|(partition, end)| committed.get(partition) != Some(end)).count()
                }
                Err(_) => ends.len(),
            };
            if open.is_empty() && usize::try_from(aside)? >= garbage && orphans == 0 && behind == 0 {
                return Ok(());
            }
            ensure!(
                begun.elapsed() < REST_LIMIT,
                "after {REST_LIMIT:?} {} events are not applied, {aside} of {garbage} records that are none are set aside, \
                 {orphans} orphans are open, and the offsets of {behind} partitions are not those of their ends",
                open.len()
            );
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Compares the group's offsets with the database, at this moment: an error if either does not answer.
    pub(super) async fn sample(&mut self) -> Result<()> {
        let committed = self.offsets.committed().await?;
        let mut records: HashMap<i32, Vec<(i64, Option<Uuid>)>> = HashMap::new();
        {
            let told = self.teller.told();
            for Published { event_id, place, .. } in &told.published {
                records.entry(place.partition).or_default().push((place.offset, Some(*event_id)));
            }
            for place in &told.garbage {
                records.entry(place.partition).or_default().push((place.offset, None));
            }
        }
        let suspects = self.offsets.unproved(&committed, records);
        let ids: Vec<Uuid> = suspects.iter().filter_map(|record| record.event_id).collect();
        let mut there = self.taken(&ids).await?;
        let orphans: Vec<Option<Uuid>> =
            sqlx::query_scalar("SELECT event_id FROM payments.quarantine WHERE event_id = ANY ($1)")
                .bind(&ids)
                .fetch_all(&self.superuser)
                .await?;
        there.extend(orphans.into_iter().flatten());
        let (partitions, offsets): (Vec<i32>, Vec<i64>) = (suspects.iter())
            .filter(|record| record.event_id.is_none())
            .map(|record| (record.place.partition, record.place.offset))
            .unzip();
        let aside: Vec<(i32, i64)> = sqlx::query_as(
            "SELECT partition, record_offset FROM payments.quarantine
             JOIN unnest($1::integer[], $2::bigint[]) AS a (partition, record_offset) USING (partition, record_offset)",
        )
        .bind(&partitions)
        .bind(&offsets)
        .fetch_all(&self.superuser)
        .await?;
        self.offsets.prove(&committed, suspects, &there, &aside.into_iter().collect());
        Ok(())
    }

    /// What the samples have found until now.
    pub(super) fn ahead(&self) -> &Ahead {
        self.offsets.ahead()
    }

    // --------------------------------------------------------------------------------------------------------- the books

    /// The books of the payments that something was said about since there were so many records; of all for 0.
    pub(super) async fn books(&self, since: usize) -> Result<Books> {
        let (stories, told, garbage, copies) = {
            let told = self.teller.told();
            let touched: HashSet<Uuid> =
                told.published[since..].iter().map(|one| one.payment_order_id).collect();
            let stories: Vec<Story> = (told.begun.iter())
                .filter(|story| story.orders.iter().any(|order| touched.contains(&order.payment_order_id)))
                .cloned()
                .collect();
            let all: HashSet<Uuid> =
                stories.iter().flat_map(|story| &story.orders).map(|order| order.payment_order_id).collect();
            let of: HashSet<Uuid> = (told.published.iter())
                .filter(|one| all.contains(&one.payment_order_id))
                .map(|one| one.event_id)
                .collect();
            let firsts = told.firsts().into_iter().filter(|(event_id, _)| of.contains(event_id)).collect();
            (stories, firsts, told.garbage.clone(), told.copies)
        };
        let payments: Vec<Uuid> = stories.iter().map(|story| story.payment_id).collect();
        let orders: Vec<Uuid> =
            stories.iter().flat_map(|story| &story.orders).map(|order| order.payment_order_id).collect();
        let orders_of = |sql: &'static str, ids: &[Uuid]| sqlx::query_as(sql).bind(ids.to_vec());
        Ok(Books {
            stories,
            told,
            garbage,
            copies,
            orders: sqlx::query_as(
                "SELECT payment_order_id, state, review_reason FROM payments.payment_orders WHERE payment_order_id = ANY ($1)",
            )
            .bind(&orders)
            .fetch_all(&self.superuser)
            .await
            .context("read the orders")?,
            payments: orders_of(
                "SELECT payment_id, status, review_reason FROM payments.payments WHERE payment_id = ANY ($1)",
                &payments,
            )
            .fetch_all(&self.superuser)
            .await
            .context("read the payments")?,
            transitions: sqlx::query_as(
                "SELECT payment_order_id, event_id, from_state, to_state, decision, partition, record_offset
                 FROM payments.payment_order_transitions WHERE payment_order_id = ANY ($1) ORDER BY transition_id",
            )
            .bind(&orders)
            .fetch_all(&self.superuser)
            .await
            .context("read the audit")?,
            processed: sqlx::query_scalar(
                "SELECT event_id FROM payments.processed_events WHERE payment_order_id = ANY ($1)",
            )
            .bind(&orders)
            .fetch_all(&self.superuser)
            .await
            .context("read what is processed")?,
            quarantine: sqlx::query_as(
                "SELECT partition, record_offset, reason_code, settled_at IS NOT NULL AS settled FROM payments.quarantine",
            )
            .fetch_all(&self.superuser)
            .await
            .context("read the quarantine")?,
        })
    }

    /// Ends everything of ours in order: an error if a process does not.
    pub(super) async fn end(self) -> Result<()> {
        self.superuser.close().await;
        for Seat { instance, .. } in &self.seats[..self.shape.seats] {
            let status = instance.terminate(END_LIMIT).await?;
            ensure!(status.success(), "{} ended with {status}", instance.name());
        }
        drop(self.database);
        Ok(())
    }
}

impl Seat {
    /// Its instance is asked to end, and does.
    pub(super) async fn end(&self) -> Result<()> {
        let status = self.instance.terminate(END_LIMIT).await?;
        ensure!(status.success(), "{} was asked to end and did so with {status}", self.instance.name());
        Ok(())
    }
}

/// The offset after the last record of each partition.
fn ends(published: &[Published], garbage: &[crate::results::Place]) -> HashMap<i32, i64> {
    let mut ends: HashMap<i32, i64> = HashMap::new();
    for place in published.iter().map(|one| &one.place).chain(garbage) {
        let end = ends.entry(place.partition).or_default();
        *end = (*end).max(place.offset + 1);
    }
    ends
}
