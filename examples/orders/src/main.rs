//! A shop that knows nothing of payments, on the outbox: `POST /orders` writes an order and its event in one transaction; the relay
//! publishes the event; a billing desk reads the topic and makes one invoice per order, however often the event comes.
//!
//! ```text
//! POST /orders --order + OrderPlaced, one transaction--> outbox --relay--> topic shop-orders --inbox::once + invoice, one transaction
//! ```

use std::env::var;

use anyhow::Context as _;
use axum::{Json, Router, extract::State, http::StatusCode, routing::post};
use outbox::{NewEvent, append, inbox::once};
use rdkafka::{
    ClientConfig, Message as _,
    consumer::{CommitMode, Consumer as _, StreamConsumer},
    message::Headers as _,
};
use serde::Deserialize;
use serde_json::json;
use sqlx::{Connection as _, PgConnection, PgPool};
use uuid::Uuid;

#[derive(Deserialize)]
struct NewOrder {
    customer: String,
    total_minor: i64,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let database = var("DATABASE_URL").context("DATABASE_URL")?;
    let pool = PgPool::connect(&database).await?;
    let app = Router::new().route("/orders", post(place)).with_state(pool);
    let listener = tokio::net::TcpListener::bind(var("LISTEN").context("LISTEN")?).await?;
    tokio::select! {
        served = axum::serve(listener, app) => served.context("the API"),
        billed = bill(&database) => billed.context("the billing desk"),
    }
}

/// The order and its event: both or neither.
async fn place(State(pool): State<PgPool>, Json(order): Json<NewOrder>) -> Result<String, StatusCode> {
    // A task of its own: a client that hangs up must not leave a transaction open in the pool.
    tokio::spawn(async move {
        let mut connection = pool.acquire().await?;
        let mut tx = connection.begin().await?;
        let id = Uuid::now_v7();
        sqlx::query("INSERT INTO shop.orders (id, customer, total_minor) VALUES ($1, $2, $3)")
            .bind(id)
            .bind(&order.customer)
            .bind(order.total_minor)
            .execute(&mut *tx)
            .await?;
        let event = NewEvent {
            event_id: Uuid::now_v7(),
            event_type: "OrderPlaced",
            aggregate_id: &id.to_string(),
            payload: json!({ "orderId": id, "customer": order.customer, "totalMinor": order.total_minor }),
            traceparent: None,
            tracestate: None,
        };
        append(&mut tx, event).await?;
        tx.commit().await?;
        Ok::<_, sqlx::Error>(id.to_string())
    })
    .await
    .ok()
    .and_then(Result::ok)
    .ok_or(StatusCode::SERVICE_UNAVAILABLE)
}

/// One invoice per event. The offset is committed after the transaction: what comes again finds its event taken.
async fn bill(database: &str) -> anyhow::Result<()> {
    let consumer: StreamConsumer = ClientConfig::new()
        .set("bootstrap.servers", var("KAFKA_BOOTSTRAP").context("KAFKA_BOOTSTRAP")?)
        .set("group.id", var("CONSUMER_GROUP").unwrap_or_else(|_| "billing".to_owned()))
        .set("auto.offset.reset", "earliest")
        .set("enable.auto.commit", "false")
        .create()?;
    consumer.subscribe(&["shop-orders"])?;
    let mut connection = PgConnection::connect(database).await?;
    loop {
        let record = consumer.recv().await?;
        let header = |name| record.headers()?.iter().find(|header| header.key == name)?.value;
        let event_id = Uuid::try_parse_ascii(header("ce_id").context("a record without ce_id")?)?;
        let order = Uuid::try_parse_ascii(record.key().context("a record without key")?)?;
        let mut tx = connection.begin().await?;
        if once(&mut tx, "billing", event_id).await? {
            // Orders of another shop on the same topic are none of ours.
            sqlx::query("INSERT INTO shop.invoices (order_id, total_minor) SELECT id, total_minor FROM shop.orders WHERE id = $1")
                .bind(order)
                .execute(&mut *tx)
                .await?;
        } else {
            sqlx::query("INSERT INTO shop.seen_again VALUES ($1)").bind(event_id).execute(&mut *tx).await?;
        }
        tx.commit().await?;
        consumer.commit_message(&record, CommitMode::Async)?;
    }
}
