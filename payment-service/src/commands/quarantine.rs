//! `quarantine list`, `redrive`, `discard`: shown first, then asked for under the operator's name. A discard is done at once; a redrive
//! is carried out by a running service, through the same processing as any record, and waited for here.

use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use chassis::postgres;
use secrecy::SecretString;
use serde::Serialize;
use sqlx::PgConnection;
use tokio::time::Instant;

use crate::{
    config::{ListConfig, OrderConfig, SelectionConfig},
    store::commands::{self, CommandResult, Listed, Selection},
};

/// How often the outcome is looked for.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// What came of a command.
#[derive(Clone, Debug, Serialize)]
pub struct Ordered {
    /// How many records it means.
    pub selected: i64,
    /// The same by sort of reason.
    pub by_reason: Vec<(String, i64)>,
    /// What became of them, if it was to be done.
    pub result: Option<CommandResult>,
}

async fn connect(url: &SecretString) -> anyhow::Result<PgConnection> {
    postgres::connect(url, "payment-service operator").await
}

fn selection(config: &SelectionConfig) -> Selection {
    Selection {
        ids: (!config.ids.is_empty()).then(|| config.ids.clone()),
        reason: config.reason.clone(),
        event_id: config.event_id,
        payment_order_id: config.payment_order_id,
        topic: config.topic.clone(),
        partition: config.partition,
        from_offset: config.from_offset,
        to_offset: config.to_offset,
    }
}

/// Shows unsettled records, oldest first.
pub async fn list(config: &ListConfig) -> anyhow::Result<Vec<Listed>> {
    let mut connection = connect(&config.common.database_url).await?;
    let selection = selection(&config.selection);
    let records = commands::list(&mut connection, &selection, config.limit).await.context("list")?;
    let total: i64 = commands::count(&mut connection, &selection).await?.iter().map(|(_, count)| count).sum();
    super::print(config.common.json, &records, || {
        let shown: String = records.iter().map(line).collect();
        if total > i64::try_from(records.len()).unwrap_or(i64::MAX) {
            format!("{shown}… {} of {total}; --limit shows more", records.len())
        } else {
            format!("{shown}{total} in quarantine")
        }
    })?;
    Ok(records)
}

fn line(record: &Listed) -> String {
    let Listed { id, topic, partition, record_offset, reason_code, reason, .. } = record;
    let size = record.value_bytes.map_or_else(|| "tombstone".to_owned(), |bytes| format!("{bytes} bytes"));
    let order = record.payment_order_id.map(|order| format!(" order {order}")).unwrap_or_default();
    format!(
        "{id:>8}  {reason_code:<11}  {topic}/{partition}@{record_offset}  {size}{order}  tried {}x: {reason}\n",
        record.attempts
    )
}

/// Has records tried again.
pub async fn redrive(config: &OrderConfig) -> anyhow::Result<Ordered> {
    order("redrive", config).await
}

/// Gives records up.
pub async fn discard(config: &OrderConfig) -> anyhow::Result<Ordered> {
    order("discard", config).await
}

async fn order(kind: &str, config: &OrderConfig) -> anyhow::Result<Ordered> {
    let selection = selection(&config.selection);
    ensure!(
        config.all == (selection == Selection::default()),
        "say which records: --id, --reason, --event, --order, --topic with --partition and offsets; or --all alone"
    );
    let mut connection = connect(&config.common.database_url).await?;
    let by_reason = commands::count(&mut connection, &selection).await.context("preview")?;
    let selected = by_reason.iter().map(|(_, count)| count).sum();
    let mut ordered = Ordered { selected, by_reason, result: None };
    if config.execute {
        let (operator, note) =
            (config.operator.as_deref().unwrap_or_default(), config.note.as_deref().unwrap_or_default());
        ensure!(
            !operator.trim().is_empty() && !note.trim().is_empty(),
            "--operator and --note must say something"
        );
        let selection = selection.to_json()?;
        let command = commands::request(&mut connection, kind, &selection, (operator, note))
            .await
            .context("request")?;
        ordered.result = Some(wait(&mut connection, command, config.wait.into()).await?);
    }
    super::print(config.common.json, &ordered, || words(kind, &ordered))?;
    Ok(ordered)
}

/// Waits until nothing of the command is open. It stays asked for if that takes longer.
async fn wait(connection: &mut PgConnection, command: i64, limit: Duration) -> anyhow::Result<CommandResult> {
    let until = Instant::now() + limit;
    loop {
        let result = commands::result(connection, command).await?;
        if result.open == 0 {
            return Ok(result);
        }
        if Instant::now() >= until {
            bail!(
                "command {command}: {} of {} records are open after {} s; they stay asked for: see payments.command_results, and \
                 whether a payment service runs",
                result.open,
                result.selected,
                limit.as_secs()
            );
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

fn words(kind: &str, ordered: &Ordered) -> String {
    let Some(result) = &ordered.result else {
        let reasons: Vec<String> =
            ordered.by_reason.iter().map(|(reason, count)| format!("{count} {reason}")).collect();
        let reasons = if reasons.is_empty() { String::new() } else { format!(" ({})", reasons.join(", ")) };
        return format!(
            "{kind} would concern {} records{reasons}; nothing was done (--execute --operator NAME --note WHY does it)",
            ordered.selected
        );
    };
    let CommandResult { id, selected, applied, known, refused, discarded, .. } = result;
    match kind {
        "discard" => format!("{kind}: command {id}: {discarded} of {selected} records discarded"),
        _ => format!(
            "{kind}: command {id}: of {selected} records {applied} were applied, {known} had been applied before, {refused} are in \
             quarantine still, {discarded} were discarded meanwhile"
        ),
    }
}
