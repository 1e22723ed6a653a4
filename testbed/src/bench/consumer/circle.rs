//! The whole circle at a fixed rate: API, outbox, relay, executor, PSP simulator, outbox, relay, consumer.
//!
//! An open loop: when a payment is sent depends on the clock alone.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use sqlx::PgConnection;
use time::OffsetDateTime;

use super::super::costs::{cpu_seconds, cpu_seconds_with_children};
use super::super::drain::terminate;
use super::super::site::Site;
use crate::load::{Load, Mixture, Progress};
use crate::processes::Service;
use crate::stack::TestDatabase;

/// Of each run, before anything counts.
const WARM_UP: Duration = Duration::from_secs(2);
/// For the payments of a run to have an outcome, or to be left to the resolver.
const REST_LIMIT: Duration = Duration::from_mins(5);
/// A backlog grows if, at the end, more payments are open than after a third of the time, by what comes in so long.
const GROWTH: f64 = 0.5;
/// The last payment is sent so much later than due at most.
const SLIP: f64 = 0.02;
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// All processes of the circle.
pub(in crate::bench) struct Circle<'a> {
    site: &'a Site,
    /// Simulator, executor, both relays, payment service.
    services: Vec<(&'static str, Service)>,
    api_url: String,
    api_token: String,
    session: PgConnection,
    runs: u64,
}

/// What came of a rate.
#[derive(Clone, Debug)]
pub(super) struct Pace {
    pub(super) rate: f64,
    pub(super) payments: usize,
    /// Payments per second that were sent and answered.
    pub(super) reached: f64,
    /// From eventTime to the commit of the state.
    pub(super) p50_ms: Option<f64>,
    pub(super) p99_ms: Option<f64>,
    /// Payments without a state after a third of the time, and at the end.
    pub(super) open: [i64; 2],
    /// CPU seconds by process.
    pub(super) cpu: Vec<(&'static str, f64)>,
}

impl Pace {
    /// Whether no backlog grew, and the schedule was kept.
    pub(super) fn sustained(&self) -> bool {
        #[expect(clippy::cast_precision_loss, reason = "payments of one run")]
        let growth = (self.open[1] - self.open[0]) as f64;
        growth <= self.rate * GROWTH && self.reached >= self.rate * (1.0 - SLIP)
    }

    pub(super) fn described(&self) -> String {
        let verdict = if self.sustained() { "sustained" } else { "not sustained" };
        format!(
            "{verdict}, {:.0}/s reached, {} open after a third, {} at the end",
            self.reached, self.open[0], self.open[1]
        )
    }
}

impl<'a> Circle<'a> {
    /// Starts everything; `service` is the payment service.
    pub(in crate::bench) async fn start(
        site: &'a Site,
        payments: &TestDatabase,
        service: Service,
    ) -> Result<Circle<'a>> {
        site.migrate_executor().await?;
        let simulator = site.simulator()?;
        let executor = site.executor(simulator.admin_url())?;
        let (requests, results) = (site.request_relay(payments)?, site.relay()?);
        let services = vec![
            ("simulator", simulator),
            ("executor", executor),
            ("request_relay", requests),
            ("result_relay", results),
            ("payment_service", service),
        ];
        for (_, service) in &services {
            service.start()?;
        }
        for (_, service) in &services {
            service.wait_ready().await?;
        }
        let (api_url, api_token) = (site.api_url(), site.token(payments).await?);
        let session = site.session_in(payments, "postgres").await?;
        let mut circle = Circle { site, services, api_url, api_token, session, runs: 0 };
        // Members of new groups find each other, and statements are planned.
        circle.run(20.0, 5).await.context("turn the circle for the first time")?;
        Ok(circle)
    }

    /// Where the API is, and a merchant's token.
    pub(in crate::bench) fn api(&self) -> (&str, &str) {
        (&self.api_url, &self.api_token)
    }

    /// Waits until all payments since this moment have come round.
    pub(in crate::bench) async fn rest(&mut self, since: OffsetDateTime) -> Result<()> {
        let resting = Instant::now();
        while without_state(&mut self.session, since).await? > 0 {
            ensure!(
                resting.elapsed() < REST_LIMIT,
                "payments have no state {REST_LIMIT:?} after the last one"
            );
            tokio::time::sleep(LOOK_EVERY).await;
        }
        Ok(())
    }

    /// Sends payments at this rate, and waits until they have come round.
    pub(super) async fn run(&mut self, rate: f64, seconds: u32) -> Result<Pace> {
        self.runs += 1;
        let counted = Duration::from_secs(seconds.into());
        let lasts = WARM_UP + counted;
        let mut load = Load {
            api_url: self.api_url.clone(),
            api_token: self.api_token.clone(),
            payments: whole(rate * lasts.as_secs_f64()),
            rate,
            seed: self.runs,
            mixture: Mixture::Plain,
            give_up_after: REST_LIMIT,
        };
        // What a load sends ahead of itself is not sent here.
        load.payments += load.ahead();
        let (before, at, begun) = (self.cpu()?, OffsetDateTime::now_utc(), Instant::now());
        let mut open = [0; 2];
        let progress = std::sync::Arc::new(Progress::default());
        let sending = async {
            let sent = load.run(&progress).await?;
            anyhow::Ok((sent.len(), begun.elapsed()))
        };
        let watching = async {
            tokio::time::sleep(WARM_UP + counted / 3).await;
            open[0] = without_state(&mut self.session, at).await?;
            tokio::time::sleep_until((begun + lasts).into()).await;
            open[1] = without_state(&mut self.session, at).await?;
            anyhow::Ok(())
        };
        let ((payments, took), ()) = tokio::try_join!(sending, watching)?;
        self.rest(at).await?;
        let after = self.cpu()?;
        let cpu = after
            .into_iter()
            .zip(before)
            .map(|((name, after), (_, before))| (name, after - before))
            .collect();
        let [p50_ms, p99_ms] = self.lag(at + WARM_UP).await?;
        #[expect(clippy::cast_precision_loss, reason = "payments of one run")]
        let reached = payments as f64 / took.max(lasts).as_secs_f64();
        Ok(Pace { rate, payments, reached, p50_ms, p99_ms, open, cpu })
    }

    /// Of results obtained since this moment: from eventTime to the commit, by the server's own note of it.
    async fn lag(&mut self, since: OffsetDateTime) -> Result<[Option<f64>; 2]> {
        let (p50, p99): (Option<f64>, Option<f64>) = sqlx::query_as(
            "SELECT percentile_disc(0.5) WITHIN GROUP (ORDER BY ms), percentile_disc(0.99) WITHIN GROUP (ORDER BY ms)
             FROM (SELECT greatest(extract(epoch FROM pg_xact_commit_timestamp(xmin) - event_time) * 1000, 0)::float8 AS ms
                   FROM payments.payment_order_transitions WHERE event_time >= $1) AS lag",
        )
        .bind(since)
        .fetch_one(&mut self.session)
        .await
        .context("how late results were committed")?;
        Ok([p50, p99])
    }

    fn cpu(&self) -> Result<Vec<(&'static str, f64)>> {
        let mut used = Vec::new();
        for (name, service) in &self.services {
            used.push((*name, cpu_seconds(service.pid()?)?));
        }
        used.push(("postgres", cpu_seconds_with_children(self.site.postgres.pid()?)?));
        used.push(("broker", cpu_seconds(self.site.kafka.pid()?)?));
        Ok(used)
    }

    /// Ends all processes in order.
    pub(in crate::bench) async fn end(self) -> Result<()> {
        for (_, service) in self.services.iter().rev() {
            terminate(service).await?;
        }
        Ok(())
    }
}

async fn without_state(session: &mut PgConnection, since: OffsetDateTime) -> Result<i64> {
    sqlx::query_scalar(
        "SELECT count(*) FROM payments.payment_orders WHERE state = 'CREATED' AND created_at >= $1",
    )
    .bind(since)
    .fetch_one(session)
    .await
    .context("count payments without a state")
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a rate times some seconds")]
fn whole(number: f64) -> usize {
    number.round() as usize
}
