//! What operators have asked for, slice by slice: the leader publishes it through its one producer, between the pages.
//!
//! A slice is at most [`SLICE_ROWS`] events, one batch and one save, which notes how far the command is. A leader that dies in
//! between is continued by the next; what it had published of the last slice lies in the tail and is not published again.

use std::{sync::Arc, time::Duration};

use anyhow::Context as _;
use sqlx::PgConnection;
use tokio::sync::{mpsc, oneshot};

use crate::{
    Relay,
    encode::Encoder,
    records::Records,
    store::{
        OutboxRow,
        orders::{self, CarriedOut, Command, CommandKind, Selection},
    },
    term::Stop,
};

/// Events of one slice.
const SLICE_ROWS: i64 = 500;
/// How often the leader looks for commands.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// What the dispatcher is asked to do.
pub(crate) enum Order {
    /// Publish these again.
    Replay { records: Records, done: CarriedOut },
    /// Publish the next parked events of the command.
    Redrive { slice: Box<ParkedSlice>, answer: oneshot::Sender<Box<ParkedSlice>> },
}

/// One slice of a redrive, or of what a discard has set free. It brings the connection that it is read through.
pub(crate) struct ParkedSlice {
    connection: PgConnection,
    relay: String,
    command: Command,
    selection: Selection,
    pub(crate) keys: Vec<String>,
    last: bool,
}

impl ParkedSlice {
    pub(crate) async fn records(&mut self, encoder: &Encoder) -> Result<Records, sqlx::Error> {
        let Self { connection, relay, command, selection, .. } = self;
        let mut records = Records::default();
        let take = |row: &OutboxRow<'_>| records.push(row, encoder);
        orders::parked_rows(connection, relay, command, selection, SLICE_ROWS, take).await?;
        Ok(records)
    }

    /// What is to be noted of these records, before it is known how each fares.
    pub(crate) fn begin(&mut self, records: &Records) -> CarriedOut {
        self.last = i64::try_from(records.len()).is_ok_and(|rows| rows < SLICE_ROWS);
        self.keys = records.iter().map(|record| record.aggregate_id.to_owned()).collect();
        self.keys.sort_unstable();
        self.keys.dedup();
        self.command.after_id = records.id_range().map_or(self.command.after_id, |(_, last)| last);
        nothing_done(&self.command)
    }

    /// Of these keys, those of which nothing is parked any more.
    pub(crate) async fn open(&mut self, keys: &[String]) -> Result<Vec<String>, sqlx::Error> {
        orders::open_keys(&mut self.connection, &self.relay, keys).await
    }
}

fn nothing_done(command: &Command) -> CarriedOut {
    CarriedOut {
        command: command.id,
        kind: command.kind,
        after_id: command.after_id,
        released: Vec::new(),
        refused: Vec::new(),
        published: 0,
        result: None,
    }
}

/// Looks for commands and carries them out one after the other until asked to stop.
pub(crate) async fn attend(
    relay: Arc<Relay>,
    mut connection: PgConnection,
    to_dispatcher: mpsc::Sender<Order>,
    stop: Stop,
) -> anyhow::Result<()> {
    let attending = async {
        loop {
            let command = orders::next_command(&mut connection, &relay.config.name)
                .await
                .context("commands could not be read")?;
            let Some(command) = command else {
                tokio::time::sleep(LOOK_EVERY).await;
                continue;
            };
            tracing::info!(
                command = command.id,
                kind = command.kind.name(),
                operator = command.operator,
                after_id = command.after_id,
                "command taken up"
            );
            let carried_out = match command.kind {
                CommandKind::Replay => replay(&relay, connection, command, &to_dispatcher).await?,
                CommandKind::Redrive | CommandKind::Discard => {
                    release(&relay, connection, command, &to_dispatcher).await?
                }
            };
            match carried_out {
                Some(given_back) => connection = given_back,
                None => return Ok(()),
            }
        }
    };
    let result = tokio::select! {
        result = attending => result,
        () = stop.finish.cancelled() => Ok(()),
        () = stop.abandon.cancelled() => Ok(()),
    };
    if result.is_err() {
        stop.abandon.cancel();
    }
    result
}

/// Publishes again. None if the term is over.
async fn replay(
    relay: &Relay,
    mut connection: PgConnection,
    mut command: Command,
    to_dispatcher: &mpsc::Sender<Order>,
) -> anyhow::Result<Option<PgConnection>> {
    let selection = match command.selection.clone() {
        Ok(selection) => selection,
        Err(reason) => return refuse(connection, &command, &reason).await.map(Some),
    };
    loop {
        let mut records = Records::default();
        orders::published_rows(
            &mut connection,
            &relay.config.name,
            command.after_id,
            &selection,
            SLICE_ROWS,
            |row| records.push(row, &relay.encoder),
        )
        .await
        .context("rows to be replayed could not be read")?;
        let last = i64::try_from(records.len())? < SLICE_ROWS;
        command.after_id = records.id_range().map_or(command.after_id, |(_, last)| last);
        let mut done = nothing_done(&command);
        done.result = last.then(|| "done".to_owned());
        if to_dispatcher.send(Order::Replay { records, done }).await.is_err() {
            return Ok(None);
        }
        if last {
            // Not taken up again before its end is saved.
            while orders::outcome(&mut connection, command.id).await?.is_none() {
                tokio::time::sleep(LOOK_EVERY).await;
            }
            return Ok(Some(connection));
        }
    }
}

/// Publishes what is parked, or what a discard leaves. None if the term is over.
async fn release(
    relay: &Relay,
    mut connection: PgConnection,
    command: Command,
    to_dispatcher: &mpsc::Sender<Order>,
) -> anyhow::Result<Option<PgConnection>> {
    let selection = match command.selection.clone() {
        Ok(selection) => selection,
        Err(reason) => return refuse(connection, &command, &reason).await.map(Some),
    };
    let mut discarded = 0;
    if command.kind == CommandKind::Discard {
        discarded = orders::discard(&mut connection, &relay.config.name, command.id, &selection)
            .await
            .context("discard")?;
    }
    let (id, kind) = (command.id, command.kind);
    let mut slice = Box::new(ParkedSlice {
        connection,
        relay: relay.config.name.clone(),
        command,
        selection,
        keys: Vec::new(),
        last: false,
    });
    while !slice.last {
        let (answer, answered) = oneshot::channel();
        if to_dispatcher.send(Order::Redrive { slice, answer }).await.is_err() {
            return Ok(None);
        }
        let Ok(given_back) = answered.await else { return Ok(None) };
        slice = given_back;
    }
    let ParkedSlice { mut connection, .. } = *slice;
    let result = match kind {
        CommandKind::Discard => format!("{discarded} discarded"),
        CommandKind::Redrive | CommandKind::Replay => "done".to_owned(),
    };
    orders::finish(&mut connection, id, &result).await?;
    tracing::info!(command = id, result, "command carried out");
    Ok(Some(connection))
}

async fn refuse(
    mut connection: PgConnection,
    command: &Command,
    reason: &str,
) -> anyhow::Result<PgConnection> {
    tracing::error!(command = command.id, reason, "command refused: its selection is not understood");
    orders::finish(&mut connection, command.id, &format!("refused: {reason}")).await?;
    Ok(connection)
}
