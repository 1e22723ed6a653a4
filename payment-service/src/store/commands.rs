//! SQL of the operators' commands: what is there, what is asked for, what came of it.

use serde::Serialize;
use serde_json::Value;
use sqlx::{FromRow, PgConnection};
use time::OffsetDateTime;
use uuid::Uuid;

/// Which unsettled records are meant; what is not given does not narrow. Its JSON is what `payments.selected()` reads.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Selection {
    /// Rows of the quarantine.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ids: Option<Vec<i64>>,
    /// Sort of reason.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Event id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub event_id: Option<Uuid>,
    /// Payment order.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub payment_order_id: Option<Uuid>,
    /// Topic they came from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub topic: Option<String>,
    /// Partition they came from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub partition: Option<i32>,
    /// Offsets from here on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from_offset: Option<i64>,
    /// Offsets up to here.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to_offset: Option<i64>,
}

impl Selection {
    /// As the database reads it.
    pub(crate) fn to_json(&self) -> Result<Value, sqlx::Error> {
        serde_json::to_value(self).map_err(|error| sqlx::Error::Encode(error.into()))
    }
}

/// A record in quarantine, for a list. Without its bytes, which may be many.
#[derive(Clone, Debug, FromRow, Serialize)]
pub struct Listed {
    /// Its row.
    pub id: i64,
    /// Where it came from.
    pub topic: String,
    /// Where in the topic.
    pub partition: i32,
    /// Where in the partition.
    pub record_offset: i64,
    /// Sort of reason.
    pub reason_code: String,
    /// The reason.
    pub reason: String,
    /// Its event id, if it has one.
    pub event_id: Option<Uuid>,
    /// Its payment order, if it names one.
    pub payment_order_id: Option<Uuid>,
    /// Length of its value; None is a tombstone.
    pub value_bytes: Option<i32>,
    /// How often it was tried.
    pub attempts: i32,
    /// When it came.
    #[serde(with = "time::serde::rfc3339")]
    pub received_at: OffsetDateTime,
    /// Whether it is on the topic of copies.
    pub copied: bool,
}

/// Unsettled records of a selection, oldest first.
pub(crate) async fn list(
    connection: &mut PgConnection,
    selection: &Selection,
    limit: i64,
) -> Result<Vec<Listed>, sqlx::Error> {
    sqlx::query_as(
        "SELECT id, topic, partition, record_offset, reason_code, reason, event_id, payment_order_id,
                octet_length(record_value) AS value_bytes, attempts, received_at, copied_at IS NOT NULL AS copied
         FROM payments.selected($1) ORDER BY id LIMIT $2",
    )
    .bind(selection.to_json()?)
    .bind(limit)
    .fetch_all(connection)
    .await
}

/// How many unsettled records a selection means, by reason.
pub(crate) async fn count(
    connection: &mut PgConnection,
    selection: &Selection,
) -> Result<Vec<(String, i64)>, sqlx::Error> {
    sqlx::query_as(
        "SELECT reason_code, count(*) FROM payments.selected($1) GROUP BY reason_code ORDER BY reason_code",
    )
    .bind(selection.to_json()?)
    .fetch_all(connection)
    .await
}

/// Asks for a command, under the operator's name. Returns its number.
pub(crate) async fn request(
    connection: &mut PgConnection,
    kind: &str,
    selection: &Value,
    (operator, note): (&str, &str),
) -> Result<i64, sqlx::Error> {
    sqlx::query_scalar("SELECT payments.request($1, $2, $3, $4)")
        .bind(kind)
        .bind(selection)
        .bind(operator)
        .bind(note)
        .fetch_one(connection)
        .await
}

/// What has come of a command so far.
#[derive(Clone, Debug, FromRow, PartialEq, Eq, Serialize)]
pub struct CommandResult {
    /// Its number in `payments.commands`.
    #[serde(rename = "command")]
    pub id: i64,
    /// Records that it concerns.
    pub selected: i64,
    /// Records that nobody has got to yet.
    pub open: i64,
    /// Results that were decided upon.
    pub applied: i64,
    /// Results that had been decided upon already.
    pub known: i64,
    /// Records that are in quarantine still.
    pub refused: i64,
    /// Records that were given up.
    pub discarded: i64,
}

/// What has come of a command so far.
pub(crate) async fn result(
    connection: &mut PgConnection,
    command: i64,
) -> Result<CommandResult, sqlx::Error> {
    sqlx::query_as(
        "SELECT id, selected, open, applied, known, refused, discarded FROM payments.command_results WHERE id = $1",
    )
    .bind(command)
    .fetch_one(connection)
    .await
}
