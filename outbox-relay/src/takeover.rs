//! What a leader does before its first record: it looks whether this is its server, fences the leader before, and learns what that
//! one had published without coming to save it.

use std::{collections::HashMap, sync::Arc, time::Duration};

use anyhow::{Context as _, ensure};
use chassis::{backoff::Backoff, postgres};
use sqlx::PgConnection;
use uuid::Uuid;

use crate::{
    Relay,
    config::RunConfig,
    leadership::LeaderLock,
    publish::{Publisher, topic_limits},
    recover::{From, Position, Tail, read_tail},
    save::Saver,
    store::{self, PartitionOffsets, Progress, SavedCursor, Signature, guards, orders},
    term::Stop,
    window::Cursor,
};

/// Event ids that are looked up at once.
const LOOKED_UP_AT_ONCE: usize = 5_000;

/// A session of a term whose leader before can save nothing any more.
pub(crate) struct Fenced {
    pub(crate) attendant: PgConnection,
    pub(crate) saver: Saver,
    pub(crate) cursor: Cursor,
    pub(crate) held: std::collections::HashSet<String>,
    /// Offsets saved with the cursor; None if nothing was ever saved.
    before: Option<PartitionOffsets>,
}

/// What the brokers have told: publication can begin.
pub(crate) struct CaughtUp {
    pub(crate) publisher: Publisher,
    pub(crate) found: HashMap<Uuid, Position>,
}

/// This relay refuses to run until an operator has looked.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Halted(String);

/// Looks whether this is its server, and fences the leader before. Also returns the session to read through.
pub(crate) async fn fence(relay: &Arc<Relay>, lock: &LeaderLock) -> anyhow::Result<(Fenced, PgConnection)> {
    let name = &relay.config.name;
    let url = &relay.config.postgres.database_url;
    // Opened before the first snapshot is taken, and never replaced: if the server crashes, all of them break, and with them goes
    // every snapshot that the crash has made meaningless.
    let (mut reader, mut saving, attendant) = tokio::try_join!(
        postgres::connect(url, "outbox-relay read"),
        postgres::connect(url, "outbox-relay save"),
        postgres::connect(url, "outbox-relay orders"),
    )?;
    store::prepare_for_tailing(&mut reader).await?;
    store::require_durable_commits(&mut saving).await?;
    let server = store::server_identity(&mut saving).await?;
    ensure!(!server.in_recovery, "the server is a standby (in recovery)");
    let saved = store::load_cursor(&mut saving, name).await?;
    if let Some(reason) = must_halt(&mut saving, name, saved.as_ref(), &server).await? {
        return Err(Halted(reason).into());
    }
    relay.metrics.halted.set(0);
    relay.decision.met();
    let (seq, cursor, before) = match saved {
        Some(SavedCursor { seq, cursor, offsets, .. }) => (seq, cursor, Some(offsets)),
        None => (0, Cursor::start(), None),
    };
    let signature =
        Signature { relay: name.clone(), leader: relay.identity.clone(), token: lock.token, server };
    lock.proof().ensure_proven()?;
    let held = orders::held_keys(&mut saving, name).await?;
    let mut saver = Saver::new(Arc::clone(relay), saving, signature, seq, before.clone().unwrap_or_default());
    // The fence: from here on every save of the leader before is refused. A last save of it, still running when its lock went, can
    // take the number first. That is no fence against us: the type of the error is dropped, and the next term reads the cursor again.
    saver.save(&Progress::at(cursor.clone())).await.map_err(|error| anyhow::anyhow!("{error:#}"))?;

    Ok((Fenced { attendant, saver, cursor, held, before }, reader))
}

/// Learns what the leader before had published without coming to save it. None if asked to stop meanwhile.
pub(crate) async fn catch_up(
    relay: &Arc<Relay>,
    lock: &LeaderLock,
    stop: &Stop,
    fenced: &mut Fenced,
) -> anyhow::Result<Option<CaughtUp>> {
    let name = &relay.config.name;
    let Fenced { attendant, saver, cursor, before, .. } = fenced;
    let first_ever = before.is_none();
    let from = before.take().map_or(From::End, From::Saved);
    let Some((tail, limits)) = with_brokers(relay, from, stop).await? else {
        return Ok(None);
    };
    say(name, &tail);
    for (topic, partition) in &tail.from_beginning {
        saver.forget_offset(topic, *partition);
    }
    if first_ever {
        // What lies there was never ours: the next leader need not read it.
        saver.begin_at(tail.ends.clone());
        saver.save(&Progress::at(cursor.clone())).await?;
    }
    let mut found = tail.found.clone();
    for ghost in ghosts(attendant, name, &tail).await? {
        found.remove(&ghost);
    }
    let partitions = tail.ends.iter().map(|(topic, ends)| Ok((topic.clone(), u32::try_from(ends.len())?)));
    let partitions = partitions.collect::<anyhow::Result<_>>()?;
    let RunConfig { kafka, in_flight_max_kib, source, .. } = &relay.config;
    let metrics = relay.metrics.clone();
    let publisher = Publisher::new(kafka, *in_flight_max_kib, source, limits, partitions, metrics)?;
    lock.proof().ensure_proven()?;
    Ok(Some(CaughtUp { publisher, found }))
}

/// The cursor's snapshots mean nothing on another server: its transaction ids may be behind them, and rows would be skipped. The flag
/// is sticky: one day they would have caught up, and nobody would notice.
async fn must_halt(
    connection: &mut PgConnection,
    relay: &str,
    saved: Option<&SavedCursor>,
    server: &store::ServerIdentity,
) -> anyhow::Result<Option<String>> {
    if let Some(reason) = guards::halted(connection, relay).await? {
        return Ok(Some(reason));
    }
    let Some(SavedCursor { server: saved_on, cursor, .. }) = saved else { return Ok(None) };
    let reason = if guards::is_another(saved_on, server) {
        format!(
            "progress was saved on another server or database (system identifier {}, database {}; here {}, {}): this outbox was restored \
             or copied, and going on from its cursor would skip events; `outbox-relay adopt` after pg_upgrade, `outbox-relay rebase` after \
             a restore",
            saved_on.system_identifier, saved_on.database_oid, server.system_identifier, server.database_oid
        )
    } else if guards::transaction_horizon(connection).await? < cursor.to.xmax {
        "progress is ahead of the server's transaction ids: the server was reset or replaced in place; `outbox-relay rebase`".to_owned()
    } else {
        if saved_on.timeline != server.timeline {
            tracing::warn!(
                relay,
                before = saved_on.timeline,
                now = server.timeline,
                "the server was promoted since progress was saved: commits that were not replicated are gone, and their events may be on the topics"
            );
        }
        return Ok(None);
    };
    guards::halt(connection, relay, &reason).await?;
    Ok(Some(reason))
}

/// What only the brokers know. They are waited for, as leader: nobody else could do better. None if asked to stop.
async fn with_brokers(
    relay: &Relay,
    from: From,
    stop: &Stop,
) -> anyhow::Result<Option<(Tail, std::collections::BTreeMap<String, usize>)>> {
    let topics = relay.catalogue.published_topics();
    let config = &relay.config;
    let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(2));
    let mut told = false;
    loop {
        let asked = async {
            tokio::try_join!(
                read_tail(&config.kafka, &config.source, topics.clone(), from.clone(), &stop.finish),
                topic_limits(&config.kafka, &topics),
            )
        };
        tokio::select! {
            answered = asked => match answered {
                Ok((tail, limits)) => return Ok(tail.map(|tail| (tail, limits))),
                Err(error) => {
                    relay.metrics.failures.with_label_values(&["kafka"]).inc();
                    let refused = error.downcast_ref().map(chassis::kafka::explain);
                    let error = refused.unwrap_or_else(|| format!("{error:#}"));
                    if std::mem::replace(&mut told, true) {
                        tracing::debug!(error, "the tail of the topics still cannot be read");
                    } else {
                        tracing::warn!(error, "the tail of the topics cannot be read yet; publication waits for the brokers");
                    }
                }
            },
            () = stop.finish.cancelled() => return Ok(None),
            () = stop.abandon.cancelled() => return Ok(None),
        }
        tokio::select! {
            () = tokio::time::sleep(backoff.next_delay()) => {}
            () = stop.finish.cancelled() => return Ok(None),
            () = stop.abandon.cancelled() => return Ok(None),
        }
    }
}

fn say(relay: &str, tail: &Tail) {
    if !tail.from_beginning.is_empty() {
        tracing::warn!(
            relay,
            partitions = ?tail.from_beginning,
            "partitions no longer have the offsets saved (made anew, trimmed or grown): read from their beginning"
        );
    }
    if !tail.complete {
        tracing::error!(
            relay,
            kept = tail.found.len(),
            "the tail is longer than can be kept: some events will be published twice"
        );
    }
    tracing::info!(relay, records = tail.records, ours = tail.found.len(), "tail of the topics read");
}

/// Records of ours whose event has no row: the server has lost commits that it had acknowledged.
async fn ghosts(connection: &mut PgConnection, relay: &str, tail: &Tail) -> anyhow::Result<Vec<Uuid>> {
    let mut ghosts = Vec::new();
    for located in tail.located().chunks(LOOKED_UP_AT_ONCE) {
        let ids: Vec<Uuid> = located.iter().map(|at| at.event_id).collect();
        let without =
            guards::without_row(connection, &ids).await.context("ghosts could not be looked for")?;
        let listed: Vec<_> = located.iter().filter(|at| without.contains(&at.event_id)).cloned().collect();
        if !listed.is_empty() {
            guards::list_ghosts(connection, relay, &listed).await.context("ghosts could not be listed")?;
        }
        ghosts.extend(without);
    }
    if !ghosts.is_empty() {
        tracing::error!(
            relay,
            ghosts = ghosts.len(),
            "published events have no row: the database has lost acknowledged commits; they are listed in outbox.ghosts"
        );
    }
    Ok(ghosts)
}
