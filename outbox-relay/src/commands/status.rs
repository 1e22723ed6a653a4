//! How far the relays are, and what is stuck.

use std::io::Write as _;

use chassis::postgres;

use crate::{config::StatusConfig, store::checks};

/// Prints how far the relays of an outbox are.
pub async fn status(config: &StatusConfig) -> anyhow::Result<()> {
    let mut connection = postgres::connect(&config.database_url, "outbox-relay status").await?;
    let relays = checks::status(&mut connection).await?;
    let mut out = std::io::stdout();
    if config.json {
        writeln!(out, "{}", serde_json::to_string(&relays)?)?;
        return Ok(());
    }
    if relays.is_empty() {
        let pending = checks::pending_without_relay(&mut connection).await?;
        writeln!(out, "no relay has ever run on this outbox; {pending} events are pending")?;
        return Ok(());
    }
    writeln!(
        out,
        "{:<20} {:>10} {:>10} {:>14} {:>8} {:>8}  {:<36}  led by",
        "relay", "save", "pending", "oldest (s)", "parked", "held", "last save"
    )?;
    for relay in relays {
        let age = relay.oldest_pending_age_seconds.map_or_else(|| "-".to_owned(), |age| format!("{age:.3}"));
        let leader = match (&relay.leader, relay.led) {
            (_, false) => "nobody",
            (Some(leader), true) => leader.as_str(),
            (None, true) => "a process that has not saved yet",
        };
        writeln!(
            out,
            "{:<20} {:>10} {:>10} {age:>14} {:>8} {:>8}  {:<36}  {leader}",
            relay.relay, relay.seq, relay.pending, relay.parked, relay.held, relay.saved_at
        )?;
        if let Some(reason) = relay.halted {
            writeln!(out, "{:<20} refuses to run: {reason}", relay.relay)?;
        }
    }
    Ok(())
}

/// Most lines of `parked`.
const LINES_MAX: i64 = 1_000;

/// Lists what does not move by itself.
pub async fn parked(config: &StatusConfig) -> anyhow::Result<()> {
    let mut connection = postgres::connect(&config.database_url, "outbox-relay parked").await?;
    let stuck = checks::stuck(&mut connection, LINES_MAX).await?;
    let mut out = std::io::stdout();
    if config.json {
        writeln!(out, "{}", serde_json::to_string(&stuck)?)?;
        return Ok(());
    }
    if stuck.is_empty() {
        writeln!(out, "nothing is parked")?;
    }
    for line in stuck {
        let (id, event_id) = (line.id.unwrap_or_default(), line.event_id.unwrap_or_default());
        let (event_type, key) = (line.event_type.unwrap_or_default(), line.aggregate_id.unwrap_or_default());
        writeln!(
            out,
            "{} {:<6} id {id} event {event_id} {event_type} key {key}: {}",
            line.relay, line.what, line.why
        )?;
    }
    Ok(())
}
