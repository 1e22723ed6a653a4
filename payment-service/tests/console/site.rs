//! The circle that the browser looks at, and what is done to it from outside.

use std::time::Duration;

use serde_json::{Value as Json, json};
use sqlx::{AssertSqlSafe, PgPool, postgres::PgPoolOptions};
use testbed::{
    circle::{Circle, Options},
    stack::{OWNER, Stack},
};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use uuid::Uuid;

/// How long anything may take that the circle does by itself.
const WITHIN: Duration = Duration::from_secs(40);

pub(crate) struct Site {
    pub(crate) circle: Circle,
    payments: PgPool,
    executor: PgPool,
}

/// A payment that was asked for.
pub(crate) struct Created {
    pub(crate) payment: Uuid,
    pub(crate) order: Uuid,
    pub(crate) trace_id: String,
}

impl Site {
    pub(crate) async fn start() -> Self {
        let stack = Stack::get().await.unwrap();
        // What is set aside waits for an operator here, not for the next round.
        let patience = ("payment-service".to_owned(), "ORPHAN_RETRY".to_owned(), "1h".to_owned());
        let options = Options { environment: vec![patience], ..Options::default() };
        let circle = Circle::start(&stack, &options).await.unwrap();
        let pool = async |url: String| PgPoolOptions::new().max_connections(2).connect(&url).await.unwrap();
        let (payments, executor) =
            (pool(circle.payments.url(OWNER)).await, pool(circle.executions.url(OWNER)).await);
        Self { circle, payments, executor }
    }

    pub(crate) fn page(&self, path: &str) -> String {
        format!("{}{path}", self.circle.api_url)
    }

    pub(crate) async fn shutdown(self) {
        self.payments.close().await;
        self.executor.close().await;
        self.circle.shutdown().await.unwrap();
    }

    /// Asks for a payment as a merchant does.
    pub(crate) async fn pay(&self, merchant_reference: &str, payment_method: &str) -> Created {
        let answer = reqwest::Client::new()
            .post(self.page("/v1/payments"))
            .bearer_auth(&self.circle.api_token)
            .header("Idempotency-Key", Uuid::new_v4().to_string())
            .json(&json!({
                "amount_minor": 1234, "currency": "EUR", "payment_method": payment_method, "merchant_reference": merchant_reference
            }))
            .send()
            .await
            .unwrap();
        assert_eq!(answer.status(), 201, "{merchant_reference}");
        let created: Json = answer.json().await.unwrap();
        let id = |field: &str| Uuid::parse_str(created[field].as_str().unwrap()).unwrap();
        Created {
            payment: id("payment_id"),
            order: id("payment_order_id"),
            trace_id: created["trace_id"].as_str().unwrap().to_owned(),
        }
    }

    /// Resolves a payment order as a program of an operator does.
    pub(crate) async fn resolve_by_api(&self, order: Uuid) {
        let answer = reqwest::Client::new()
            .post(self.page(&format!("/v1/payment-orders/{order}/resolve")))
            .bearer_auth(&self.circle.operator_token)
            .header("Idempotency-Key", Uuid::new_v4().to_string())
            .json(&json!({"decision": "SUCCESSFUL", "reason": "only the page mattered"}))
            .send()
            .await
            .unwrap();
        assert!(answer.status().is_success(), "{}", answer.text().await.unwrap());
    }

    /// Has a result published that no PSP gave, as somebody would who writes to the outbox by hand.
    pub(crate) async fn tell(&self, key: &str, status: &str, error: Option<(&str, &str)>) {
        let now = OffsetDateTime::now_utc().format(&Rfc3339).unwrap();
        let payload = json!({
            "paymentOrderId": key, "pspStatus": status, "pspReference": null, "eventTime": now,
            "errorCode": error.map(|(code, _)| code), "errorMessage": error.map(|(_, message)| message),
        });
        sqlx::query("SELECT outbox.append('PspResultUpdateEvent', $1, $2::json)")
            .bind(key)
            .bind(payload)
            .execute(&self.executor)
            .await
            .unwrap();
    }

    pub(crate) async fn as_owner(&self, sql: &'static str) {
        sqlx::query(sql).execute(&self.payments).await.unwrap();
    }

    pub(crate) async fn state(&self, order: Uuid) -> String {
        sqlx::query_scalar("SELECT state FROM payments.payment_orders WHERE payment_order_id = $1")
            .bind(order)
            .fetch_one(&self.payments)
            .await
            .unwrap()
    }

    pub(crate) async fn reference(&self, order: Uuid) -> String {
        sqlx::query_scalar("SELECT psp_reference FROM payments.payment_orders WHERE payment_order_id = $1")
            .bind(order)
            .fetch_one(&self.payments)
            .await
            .unwrap()
    }

    /// Who did this to an order, and why.
    pub(crate) async fn transition(&self, order: Uuid, decision: &str) -> (String, String) {
        sqlx::query_as(
            "SELECT operator, note FROM payments.payment_order_transitions WHERE payment_order_id = $1 AND decision = $2",
        )
        .bind(order)
        .bind(decision)
        .fetch_one(&self.payments)
        .await
        .unwrap()
    }

    /// Waits until the order is in this state.
    pub(crate) async fn settled(&self, order: Uuid, state: &str) {
        let until = tokio::time::Instant::now() + WITHIN;
        while self.state(order).await != state {
            assert!(
                tokio::time::Instant::now() < until,
                "{order} is {}, expected {state}",
                self.state(order).await
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Waits until the statement counts this many.
    pub(crate) async fn counts(&self, sql: &'static str, expected: i64) {
        counts(&self.payments, sql, expected).await;
    }

    pub(crate) async fn counts_at_executor(&self, sql: &'static str, expected: i64) {
        counts(&self.executor, sql, expected).await;
    }
}

async fn counts(pool: &PgPool, sql: &'static str, expected: i64) {
    let until = tokio::time::Instant::now() + WITHIN;
    loop {
        let count: i64 = sqlx::query_scalar(AssertSqlSafe(sql)).fetch_one(pool).await.unwrap();
        if count == expected {
            return;
        }
        assert!(tokio::time::Instant::now() < until, "{sql}\n counts {count}, expected {expected}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
