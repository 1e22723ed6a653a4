//! `token create`, `list`, `revoke`: who may use the API. A token is shown once, to whoever makes it.

use anyhow::{Context as _, ensure};
use chassis::postgres;
use secrecy::ExposeSecret as _;
use serde::Serialize;

use crate::{
    config::{TokenCreateConfig, TokenListConfig, TokenRevokeConfig},
    store::tokens::{self, TokenRow},
    tokens::{REMEMBERED_FOR, generate, hash},
};

/// A token that was just made.
#[derive(Serialize)]
struct Made<'a> {
    token_id: i64,
    caller: &'a str,
    role: &'static str,
    token: &'a str,
}

/// Makes a token and writes it out, alone on its line. There is no other way to learn it.
pub(super) async fn create(config: &TokenCreateConfig) -> anyhow::Result<()> {
    let mut connection = postgres::connect(&config.common.database_url, "payment-service token").await?;
    let token = generate().context("the system gave no randomness")?;
    let hash = hash(token.expose_secret().as_bytes());
    let (caller, role) = (config.caller.as_str(), config.role);
    let token_id = tokens::create(&mut connection, caller, role, &hash, config.operator.as_deref())
        .await
        .context("create the token")?;
    let made = Made { token_id, caller, role: role.as_str(), token: token.expose_secret() };
    super::print(config.common.json, &made, || made.token.to_owned())
}

/// Shows whose tokens there are.
pub(super) async fn list(config: &TokenListConfig) -> anyhow::Result<Vec<TokenRow>> {
    let mut connection = postgres::connect(&config.common.database_url, "payment-service token").await?;
    let rows =
        tokens::list(&mut connection, config.caller.as_deref(), config.limit).await.context("list tokens")?;
    super::print(config.common.json, &rows, || {
        let lines: String = rows.iter().map(line).collect();
        format!("{lines}{} tokens", rows.len())
    })?;
    Ok(rows)
}

fn line(row: &TokenRow) -> String {
    let TokenRow { token_id, caller, role, created_at, created_by, revoked_at, revoked_by } = row;
    let revoked = match (revoked_at, revoked_by) {
        (Some(at), Some(by)) => format!("  revoked {at} by {by}"),
        (_, _) => String::new(),
    };
    format!("{token_id:>6}  {role:<8}  {caller:<24}  made {created_at} by {created_by}{revoked}\n")
}

/// Revokes tokens. An error if there was none to revoke.
pub(super) async fn revoke(config: &TokenRevokeConfig) -> anyhow::Result<Vec<i64>> {
    let mut connection = postgres::connect(&config.common.database_url, "payment-service token").await?;
    let (id, caller, operator) = (config.id, config.caller.as_deref(), config.operator.as_deref());
    let revoked = tokens::revoke(&mut connection, id, caller, operator).await.context("revoke tokens")?;
    ensure!(!revoked.is_empty(), "there is no such token, or it has been revoked already");
    super::print(config.common.json, &revoked, || {
        format!("{} tokens revoked; within {} s nobody takes them", revoked.len(), REMEMBERED_FOR.as_secs())
    })?;
    Ok(revoked)
}
