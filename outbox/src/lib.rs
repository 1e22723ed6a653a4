//! What a service imports to publish events reliably and to take events once.
//!
//! ```text
//! one transaction: lock the aggregate, change it, append(event) --commit--> outbox.events --outbox-relay--> Kafka
//! one transaction: inbox::once(event id)? then its effect       --commit--> the effect has happened exactly once
//! ```
//! Both are thin over SQL functions (`migrations/outbox/`), so that a service in another language does the same with
//! `SELECT outbox.append(...)` and `SELECT outbox.once(...)`.

pub mod inbox;

use serde_json::Value;
use sqlx::PgConnection;
use uuid::Uuid;

/// An event to be published.
#[derive(Clone, Debug)]
pub struct NewEvent<'a> {
    /// UUIDv7; every copy of the event carries it as `ce_id`.
    pub event_id: Uuid,
    /// A type named in the relay's catalogue; 1 to 255 characters.
    pub event_type: &'a str,
    /// The Kafka key; 1 to 255 characters.
    pub aggregate_id: &'a str,
    /// The event as a JSON object with the field names of its Avro schema: enums and uuids as strings, timestamps as RFC 3339,
    /// nullable fields plain or absent.
    pub payload: Value,
    /// W3C `traceparent` that the record will carry.
    pub traceparent: Option<&'a str>,
    /// W3C `tracestate` that the record will carry.
    pub tracestate: Option<&'a str>,
}

/// Appends an event in the caller's transaction and returns its id in the outbox. It is published if, and only if, that
/// transaction commits.
///
/// Events of one aggregate are published in the order of this call, provided that the caller holds a lock on the aggregate (`SELECT
/// ... FOR UPDATE`, or its own insert or update of the row) from before the call until the commit.
///
/// # Errors
/// Refused with SQLSTATE 22023 if a field is out of its limits, with 55000 under `synchronous_commit = off`; anything else is the
/// database's own.
pub async fn append(transaction: &mut PgConnection, event: NewEvent<'_>) -> Result<i64, sqlx::Error> {
    sqlx::query_scalar("SELECT outbox.append($1, $2, $3::json, $4, $5, $6)")
        .bind(event.event_type)
        .bind(event.aggregate_id)
        .bind(event.payload.to_string())
        .bind(event.traceparent)
        .bind(event.tracestate)
        .bind(event.event_id)
        .fetch_one(transaction)
        .await
}

/// Appends several events, in their order, with one statement. Otherwise as [`append`].
///
/// # Errors
/// As [`append`]; then none of them is appended.
pub async fn append_all(
    transaction: &mut PgConnection,
    events: Vec<NewEvent<'_>>,
) -> Result<(), sqlx::Error> {
    let mut payloads = Vec::with_capacity(events.len());
    let (mut types, mut aggregates, mut ids) = (vec![], vec![], vec![]);
    let (mut traceparents, mut tracestates) = (vec![], vec![]);
    for event in events {
        types.push(event.event_type);
        aggregates.push(event.aggregate_id);
        payloads.push(event.payload.to_string());
        traceparents.push(event.traceparent);
        tracestates.push(event.tracestate);
        ids.push(event.event_id);
    }
    sqlx::query(
        "SELECT outbox.append(e.event_type, e.aggregate_id, e.payload, e.traceparent, e.tracestate, e.event_id)
         FROM (SELECT * FROM UNNEST($1::text[], $2::text[], $3::json[], $4::text[], $5::text[], $6::uuid[])
                        WITH ORDINALITY AS u (event_type, aggregate_id, payload, traceparent, tracestate, event_id, n)
               ORDER BY n OFFSET 0) AS e",
    )
    .bind(types)
    .bind(aggregates)
    .bind(payloads)
    .bind(traceparents)
    .bind(tracestates)
    .bind(ids)
    .execute(transaction)
    .await
    .map(|_| ())
}
