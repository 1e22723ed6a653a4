//! `verify`: every event of the outbox that should be on its topic, compared with what is there. The only reconciler at run time: a
//! broker can lose records that it has acknowledged, and a topic can be trimmed.

use anyhow::{Context as _, ensure};
use time::OffsetDateTime;
use tokio_util::sync::CancellationToken;

use crate::{
    catalogue::Catalogue,
    config::VerifyConfig,
    recover::{From, read_tail},
    store::{
        checks::{self, Verification},
        orders::{self, CommandKind, Selection},
    },
};

/// Events read at once, and named in one command.
const CHUNK: usize = 10_000;
/// Events compared at once.
const COMPARED_MAX: usize = 4_000_000;
/// A record's time is the relay's clock, an event's time the database's: how far they may lie apart.
const CLOCKS_APART: time::Duration = time::Duration::minutes(5);

/// Compares; with `--execute` has the leader publish what is missing.
pub async fn verify(config: &VerifyConfig) -> anyhow::Result<Verification> {
    let catalogue = Catalogue::read(&config.catalogue.events)?;
    chassis::kafka::check(&config.kafka).await?;
    let relay = &config.relay.name;
    let mut connection = super::orders::connect(&config.relay.database_url).await?;
    // The outbox first: what is published while we look is on the topic then, and not the other way round.
    let mut events = Vec::new();
    loop {
        let after = events.last().map_or(0, |(id, _)| *id);
        let page =
            checks::published_since(&mut connection, relay, config.since, after, i64::try_from(CHUNK)?)
                .await?;
        let last = page.len() < CHUNK;
        events.extend(page);
        ensure!(
            events.len() <= COMPARED_MAX,
            "more than {COMPARED_MAX} events since {}: ask for less",
            config.since
        );
        if last {
            break;
        }
    }
    let topics = catalogue.published_topics();
    let from = From::Time(config.since - CLOCKS_APART);
    let tail = read_tail(&config.kafka, &config.source, topics, from, &CancellationToken::new())
        .await?
        .context("reading the topics was broken off")?;
    ensure!(tail.complete, "the topics hold too many records since {}: ask for less", config.since);
    let missing: Vec<uuid::Uuid> = events
        .iter()
        .filter(|(_, event_id)| !tail.found.contains_key(event_id))
        .map(|(_, event_id)| *event_id)
        .collect();
    let mut found = Verification {
        relay: relay.clone(),
        since: config.since,
        events: i64::try_from(events.len())?,
        records: i64::try_from(tail.found.len())?,
        missing: i64::try_from(missing.len())?,
        command: None,
    };
    if config.execute {
        let operator = config.operator.as_deref().unwrap_or_default();
        let note = format!("verify since {} at {}", config.since, OffsetDateTime::now_utc());
        for chunk in missing.chunks(CHUNK) {
            let selection = Selection { event_ids: Some(chunk.to_vec()), ..Selection::default() };
            let command =
                orders::request(&mut connection, relay, CommandKind::Replay, &selection, operator, &note)
                    .await?;
            super::orders::wait(&mut connection, command, config.wait).await?;
            found.command = Some(command);
        }
    }
    checks::keep_verification(&mut connection, &found).await.context("keep the verification")?;
    super::print(config.relay.json, &found, || {
        let what = match (found.missing, found.command) {
            (0, _) => "nothing is missing".to_owned(),
            (missing, Some(command)) => {
                format!("{missing} events were missing and are published again (last command {command})")
            }
            (missing, None) => {
                format!("{missing} events are missing (--execute --operator NAME publishes them)")
            }
        };
        format!(
            "since {}: {} events that should be on the topics, {} records of this outbox there; {what}",
            found.since, found.events, found.records
        )
    })?;
    Ok(found)
}
