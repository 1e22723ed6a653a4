//! SQL of the console: who is signed in, and how things stand at a glance. What its pages show is in [`payments`], [`attention`],
//! [`outbox`] and [`executor`].
//!
//! Everything here is bounded: it looks rows up by an index, and stops counting somewhere.

pub(crate) mod attention;
pub(crate) mod executor;
pub(crate) mod outbox;
pub(crate) mod payments;

use std::time::Duration;

use sqlx::{FromRow, PgPool};

/// Rows of the audit that rate and lag are taken from: the newest ones.
const NEWEST: i64 = 5_000;
/// How far back rate and lag look at most.
const RECENT_SECONDS: f64 = 300.0;
/// Counting stops here, and the page says "more".
pub(crate) const COUNTED_MAX: i64 = 1_000;

// ---------------------------------------------------------------------------------------------------------- signed in

/// Sessions of one token that are kept: whoever signs in once more ends the oldest.
const SESSIONS_MAX: i64 = 20;

/// Begins a session of an operator's token; None if there is no such token any more. What has expired goes at the same time, and so do
/// the oldest sessions of the same token.
pub(crate) async fn begin_session(
    pool: &PgPool,
    session_sha256: [u8; 32],
    token_sha256: [u8; 32],
    lifetime: Duration,
) -> Result<Option<String>, sqlx::Error> {
    sqlx::query_scalar(
        "WITH token AS (
             SELECT token_id, caller FROM payments.api_tokens WHERE token_sha256 = $2 AND role = 'operator' AND revoked_at IS NULL
         ), expired AS (
             DELETE FROM payments.console_sessions WHERE expires_at <= clock_timestamp()
         ), oldest AS (
             DELETE FROM payments.console_sessions WHERE session_sha256 IN (
                 SELECT s.session_sha256 FROM payments.console_sessions s JOIN token USING (token_id)
                 WHERE s.expires_at > clock_timestamp() ORDER BY s.expires_at DESC OFFSET $4)
         ), begun AS (
             INSERT INTO payments.console_sessions (session_sha256, token_id, expires_at)
             SELECT $1, token_id, clock_timestamp() + make_interval(secs => $3) FROM token
         )
         SELECT caller FROM token",
    )
    .bind(session_sha256.as_slice())
    .bind(token_sha256.as_slice())
    .bind(lifetime.as_secs_f64())
    .bind(SESSIONS_MAX - 1)
    .fetch_optional(pool)
    .await
}

/// The operator whose session that is: one that has not expired, of a token that has not been revoked.
pub(crate) async fn operator_of(
    pool: &PgPool,
    session_sha256: [u8; 32],
) -> Result<Option<String>, sqlx::Error> {
    sqlx::query_scalar(
        "SELECT t.caller FROM payments.console_sessions s JOIN payments.api_tokens t USING (token_id)
         WHERE s.session_sha256 = $1 AND s.expires_at > clock_timestamp() AND t.role = 'operator' AND t.revoked_at IS NULL",
    )
    .bind(session_sha256.as_slice())
    .fetch_optional(pool)
    .await
}

/// Ends a session.
pub(crate) async fn end_session(pool: &PgPool, session_sha256: [u8; 32]) -> Result<(), sqlx::Error> {
    sqlx::query("DELETE FROM payments.console_sessions WHERE session_sha256 = $1")
        .bind(session_sha256.as_slice())
        .execute(pool)
        .await?;
    Ok(())
}

// -------------------------------------------------------------------------------------------------------- at a glance

/// How the payment service stands.
#[derive(Clone, Copy, Debug, FromRow)]
pub(crate) struct Standing {
    /// Results that became states recently.
    pub(crate) results: i64,
    /// Over so many seconds.
    pub(crate) seconds: f64,
    /// How late 99 in 100 of them became states at most, in seconds. None: there were none.
    pub(crate) lag_p99: Option<f64>,
    /// Payments that wait for a person, up to one more than [`COUNTED_MAX`].
    pub(crate) in_review: i64,
    /// Records in quarantine, up to one more than [`COUNTED_MAX`].
    pub(crate) quarantined: i64,
}

/// How the payment service stands. Rate and lag are those of the newest rows of the audit, as far as they are recent: so many are read
/// however many there are. The lag is that of results that came by themselves; what an operator has redriven is late for other reasons.
pub(crate) async fn standing(pool: &PgPool) -> Result<Standing, sqlx::Error> {
    sqlx::query_as(
        "WITH newest AS MATERIALIZED (
             SELECT event_time, decided_at, command_id FROM payments.payment_order_transitions ORDER BY transition_id DESC LIMIT $1
         ), reach AS (
             SELECT CASE WHEN count(*) = $1 THEN least(extract(epoch FROM clock_timestamp() - min(decided_at)), $2) ELSE $2 END AS seconds
             FROM newest
         ), recent AS (
             SELECT * FROM newest WHERE event_time IS NOT NULL AND decided_at > clock_timestamp() - make_interval(secs => $2)
         )
         SELECT (SELECT count(*) FROM recent) AS results, (SELECT greatest(seconds, 1)::float8 FROM reach) AS seconds,
                (SELECT percentile_disc(0.99) WITHIN GROUP (ORDER BY greatest(extract(epoch FROM decided_at - event_time), 0)::float8)
                 FROM recent WHERE command_id IS NULL) AS lag_p99,
                (SELECT count(*) FROM (SELECT FROM payments.payments WHERE status = 'NEEDS_REVIEW' LIMIT $3) AS r) AS in_review,
                (SELECT count(*) FROM (SELECT FROM payments.quarantine WHERE settled_at IS NULL LIMIT $3) AS q) AS quarantined",
    )
    .bind(NEWEST)
    .bind(RECENT_SECONDS)
    .bind(COUNTED_MAX + 1)
    .fetch_one(pool)
    .await
}
