//! Payments, and results of them on the topic: one per payment order, and copies of some, far behind their first.

use anyhow::{Context, Result};
use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

use super::super::site::Site;
use super::{COPY_ONE_IN, TOPIC};
use crate::results::{Results, Said};
use crate::stack::TestDatabase;

/// Rows of one transaction, and records that wait for their acknowledgement together.
const TOGETHER: usize = 5_000;

/// Puts results on the topic.
pub(super) struct Fill {
    pub(super) superuser: PgConnection,
    results: Results,
}

/// What was put there.
#[derive(Clone, Copy, Debug)]
pub(super) struct Told {
    pub(super) records: u32,
    /// Events among them.
    pub(super) events: u32,
    /// Before any of it was applied.
    pub(super) at: OffsetDateTime,
}

impl Fill {
    pub(super) async fn open(site: &Site, payments: &TestDatabase) -> Result<Fill> {
        let superuser = site.session_in(payments, "postgres").await?;
        let results = Results::new(&site.bootstrap(), &site.registry_url(), TOPIC).await?;
        Ok(Fill { superuser, results })
    }

    /// Makes the payments of so many records, and sends these.
    pub(super) async fn tell(&mut self, records: u32) -> Result<Told> {
        let copies = records / COPY_ONE_IN;
        let events = records - copies;
        let at = OffsetDateTime::now_utc();
        let said: Vec<Said> = (0..events).map(|_| success()).collect();
        for some in said.chunks(TOGETHER) {
            self.insert(some).await?;
        }
        let first = usize::try_from(copies)?;
        for some in said.chunks(TOGETHER).chain(said[..first].chunks(TOGETHER)) {
            futures::future::try_join_all(some.iter().map(|said| self.results.send(said))).await?;
        }
        Ok(Told { records, events, at })
    }

    async fn insert(&mut self, said: &[Said]) -> Result<()> {
        let orders: Vec<Uuid> = said.iter().map(|said| said.payment_order_id).collect();
        sqlx::query(
            "WITH made AS (SELECT gen_random_uuid() AS payment_id, o AS payment_order_id FROM unnest($1::uuid[]) AS o),
             payments AS (
                 INSERT INTO payments.payments
                     (payment_id, caller, amount_minor, currency, merchant_reference, status, trace_id, created_at, updated_at)
                 SELECT payment_id, 'bench', 1000, 'EUR', 'order', 'CREATED', replace(payment_id::text, '-', ''), now(), now()
                 FROM made
             ), orders AS (
                 INSERT INTO payments.payment_orders (payment_order_id, payment_id, try, psp, payment_method, state, traceparent,
                     expires_at, created_at, updated_at)
                 SELECT payment_order_id, payment_id, 1, 'STRIPE', 'pm', 'CREATED',
                     '00-' || replace(payment_id::text, '-', '') || '-' || repeat('b', 16) || '-01', now(), now(), now()
                 FROM made
             )
             INSERT INTO payments.payment_order_transitions (payment_order_id, to_state, decision, trace_id)
             SELECT payment_order_id, 'CREATED', 'APPLIED', replace(payment_id::text, '-', '') FROM made",
        )
        .bind(&orders)
        .execute(&mut self.superuser)
        .await
        .context("make payments")?;
        Ok(())
    }
}

fn success() -> Said {
    let payment_order_id = Uuid::new_v4();
    Said {
        event_id: Uuid::now_v7(),
        payment_order_id,
        status: "SUCCESSFUL",
        reference: Some(format!("pi_{}", payment_order_id.simple())),
        code: None,
    }
}
