//! `redrive`, `discard`, `replay`: first shown, then asked of the leader, then waited for.

use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use chassis::postgres;
use secrecy::SecretString;
use serde::Serialize;
use sqlx::PgConnection;
use tokio::time::Instant;

use crate::{
    config::OrderConfig,
    store::orders::{self, CommandKind, Preview, Selection},
};

/// How often the leader's answer is looked for.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// What came of an order.
#[derive(Clone, Debug, Serialize)]
pub struct Ordered {
    /// What it would do, or was going to do.
    pub preview: Preview,
    /// Its number in `outbox.commands`, if it was asked for.
    pub command: Option<i64>,
    /// Events that the leader has published.
    pub published: Option<i64>,
    /// The leader's words.
    pub result: Option<String>,
}

/// Shows what would be done; with `--execute` asks the leader to do it, and waits until it is done.
pub async fn order(kind: CommandKind, config: &OrderConfig) -> anyhow::Result<Ordered> {
    let selection = selection(config);
    ensure!(
        config.all == selection.is_everything(),
        "say which events: --event, --key, --from-id, --to-id, --since, --until; or --all alone"
    );
    ensure!(
        !(kind == CommandKind::Replay && config.all),
        "replay needs a selection: it publishes again what was published"
    );
    let relay = &config.relay.name;
    let mut connection = connect(&config.relay.database_url).await?;
    let preview = orders::preview(&mut connection, relay, kind, &selection).await.context("preview")?;
    let mut ordered = Ordered { preview, command: None, published: None, result: None };
    if config.execute {
        let (operator, note) =
            (config.operator.as_deref().unwrap_or_default(), config.note.as_deref().unwrap_or_default());
        ensure!(
            !operator.trim().is_empty() && !note.trim().is_empty(),
            "--operator and --note must say something"
        );
        let command = orders::request(&mut connection, relay, kind, &selection, operator, note)
            .await
            .context("request")?;
        let (published, result) = wait(&mut connection, command, config.wait).await?;
        ordered =
            Ordered { command: Some(command), published: Some(published), result: Some(result), ..ordered };
    }
    super::print(config.relay.json, &ordered, || words(kind, &ordered))?;
    Ok(ordered)
}

/// A connection to ask through.
pub(super) async fn connect(url: &SecretString) -> anyhow::Result<PgConnection> {
    postgres::connect(url, "outbox-relay operator").await
}

/// Waits for the leader. The command stays asked for if it takes longer.
pub(super) async fn wait(
    connection: &mut PgConnection,
    command: i64,
    limit: Duration,
) -> anyhow::Result<(i64, String)> {
    let until = Instant::now() + limit;
    loop {
        if let Some(outcome) = orders::outcome(connection, command).await? {
            return Ok(outcome);
        }
        if Instant::now() >= until {
            bail!(
                "command {command} is not finished after {} s; it stays asked for: see outbox.commands, and whether a relay leads (outbox.leaders)",
                limit.as_secs()
            );
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

fn selection(config: &OrderConfig) -> Selection {
    let some = |given: &Vec<String>| (!given.is_empty()).then(|| given.clone());
    Selection {
        event_ids: (!config.events.is_empty()).then(|| config.events.clone()),
        keys: some(&config.keys),
        from_id: config.from_id,
        to_id: config.to_id,
        since: config.since,
        until: config.until,
    }
}

fn words(kind: CommandKind, ordered: &Ordered) -> String {
    let Preview { selected, keys, held } = ordered.preview;
    let behind = if held > 0 { format!(", and {held} held behind them") } else { String::new() };
    match (&ordered.command, &ordered.published, &ordered.result) {
        (Some(command), Some(published), Some(result)) => {
            format!("{}: command {command}: {result}; {published} events published", kind.name())
        }
        _ => format!(
            "{} would concern {selected} events of {keys} keys{behind}; nothing was done (--execute --operator NAME --note WHY does it)",
            kind.name()
        ),
    }
}
