//! `rebase` and `adopt`: the ways out of a halt, after the outbox has moved to another server.

use anyhow::{Context as _, ensure};
use sqlx::PgConnection;

use crate::{
    config::MoveConfig,
    store::{
        self, SavedCursor, Signature,
        guards::{self, Rebased},
    },
};

struct Move {
    connection: PgConnection,
    saved: SavedCursor,
    signature: Signature,
    operator: String,
    horizon: u64,
}

async fn begin(config: &MoveConfig) -> anyhow::Result<Move> {
    let mut connection = super::orders::connect(&config.relay.database_url).await?;
    let relay = &config.relay.name;
    let saved = store::load_cursor(&mut connection, relay)
        .await?
        .with_context(|| format!("relay {relay} has never saved progress here: there is nothing to move"))?;
    let server = store::server_identity(&mut connection).await?;
    let horizon = guards::transaction_horizon(&mut connection).await?;
    let operator = config.operator.clone().unwrap_or_default();
    let key = store::lock_key(&mut connection, relay).await?;
    ensure!(
        store::try_lock(&mut connection, key).await?,
        "a relay leads: stop it first (a halted one holds the lock only for moments: try again)"
    );
    let signature = Signature {
        relay: relay.clone(),
        leader: format!("operator {operator}"),
        token: uuid::Uuid::now_v7(),
        server,
    };
    Ok(Move { connection, saved, signature, operator, horizon })
}

/// Takes the cursor over as it is. Refused if this server's transaction ids are behind the cursor's.
pub async fn adopt(config: &MoveConfig) -> anyhow::Result<()> {
    let mut of = begin(config).await?;
    ensure!(
        of.horizon >= of.saved.cursor.to.xmax,
        "this server's transaction ids (up to {}) are behind the cursor's ({}): it does not go on from where progress was saved; use rebase",
        of.horizon,
        of.saved.cursor.to.xmax
    );
    if config.execute {
        guards::adopt(&mut of.connection, &of.signature, &of.saved, &of.operator).await.context("adopt")?;
    }
    super::print(
        config.relay.json,
        &serde_json::json!({ "adopted": config.execute, "seq": of.saved.seq }),
        || {
            if config.execute {
                "adopted: the relay goes on from its cursor".to_owned()
            } else {
                "the cursor could be adopted; nothing was done (--execute --operator NAME does it)".to_owned()
            }
        },
    )
}

/// Gives the rows of the outbox transaction ids of this server. Appends wait while it runs.
pub async fn rebase(config: &MoveConfig) -> anyhow::Result<()> {
    let mut of = begin(config).await?;
    if !config.execute {
        return super::print(config.relay.json, &serde_json::json!({ "rebased": false }), || {
            "the outbox would be rebased: rows that the cursor is past stay published, all others are published; appends wait meanwhile; \
             nothing was done (--execute --operator NAME, as owner of the outbox, does it)"
                .to_owned()
        });
    }
    let Rebased { published, pending } =
        guards::rebase(&mut of.connection, &of.signature, &of.saved, &of.operator)
            .await
            .context("rebase: it needs the owner of the outbox")?;
    super::print(
        config.relay.json,
        &serde_json::json!({ "rebased": true, "published": published, "pending": pending }),
        || format!("rebased: {published} rows were published before, {pending} are published from here on"),
    )
}
