//! SQL of the tokens. Of a token there is its SHA-256 alone.

use serde::Serialize;
use sqlx::{FromRow, PgConnection, PgPool};
use time::OffsetDateTime;

use super::results::unknown_word;
use crate::tokens::{Caller, Role};

/// Whose token has this hash, if it has not been revoked.
pub(crate) async fn find(pool: &PgPool, hash: &[u8; 32]) -> Result<Option<Caller>, sqlx::Error> {
    let row: Option<(String, String)> = sqlx::query_as(
        "SELECT caller, role FROM payments.api_tokens WHERE token_sha256 = $1 AND revoked_at IS NULL",
    )
    .bind(hash.as_slice())
    .fetch_optional(pool)
    .await?;
    let caller = |(name, word): (String, String)| {
        let role = Role::from_word(&word).ok_or_else(|| unknown_word("role", &word))?;
        Ok(Caller { name, role })
    };
    row.map(caller).transpose()
}

/// A token as it may be shown.
#[derive(Clone, Debug, FromRow, PartialEq, Eq, Serialize)]
pub(crate) struct TokenRow {
    /// Its number.
    pub(crate) token_id: i64,
    /// Whose it is.
    pub(crate) caller: String,
    /// What it may do.
    pub(crate) role: String,
    /// When it was made.
    #[serde(with = "time::serde::rfc3339")]
    pub(crate) created_at: OffsetDateTime,
    /// By whom.
    pub(crate) created_by: String,
    /// When it was revoked.
    #[serde(with = "time::serde::rfc3339::option")]
    pub(crate) revoked_at: Option<OffsetDateTime>,
    /// By whom.
    pub(crate) revoked_by: Option<String>,
}

/// Adds a token, and returns its number.
pub(crate) async fn create(
    connection: &mut PgConnection,
    caller: &str,
    role: Role,
    hash: &[u8; 32],
    operator: Option<&str>,
) -> Result<i64, sqlx::Error> {
    sqlx::query_scalar("SELECT payments.create_token($1, $2, $3, $4)")
        .bind(caller)
        .bind(role.as_str())
        .bind(hash.as_slice())
        .bind(operator)
        .fetch_one(connection)
        .await
}

/// Tokens, oldest first; those of one caller, or all.
pub(crate) async fn list(
    connection: &mut PgConnection,
    caller: Option<&str>,
    limit: i64,
) -> Result<Vec<TokenRow>, sqlx::Error> {
    sqlx::query_as(
        "SELECT token_id, caller, role, created_at, created_by, revoked_at, revoked_by FROM payments.api_tokens
         WHERE $1::text IS NULL OR caller = $1 ORDER BY token_id LIMIT $2",
    )
    .bind(caller)
    .bind(limit)
    .fetch_all(connection)
    .await
}

/// Revokes one token, or all of a caller that are not yet. Returns which.
pub(crate) async fn revoke(
    connection: &mut PgConnection,
    id: Option<i64>,
    caller: Option<&str>,
    operator: Option<&str>,
) -> Result<Vec<i64>, sqlx::Error> {
    sqlx::query_scalar("SELECT payments.revoke_tokens($1, $2, $3)")
        .bind(id)
        .bind(caller)
        .bind(operator)
        .fetch_all(connection)
        .await
}
