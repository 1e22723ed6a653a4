//! Redrive and discard, of a record in quarantine and of a parked event: asked first, with what it means; then done, under the operator's
//! name and with a reason; then what came of it.

use std::time::Duration;

use askama::Template;
use axum::{
    Extension, Form,
    extract::{
        Path, Query, State,
        rejection::{FormRejection, QueryRejection},
    },
    http::StatusCode,
    response::{IntoResponse, Redirect, Response},
};
use serde::Deserialize;
use sqlx::PgPool;
use tokio::time::{Instant, sleep};
use uuid::Uuid;

use super::{
    Console,
    pages::{Fact, Frame, Room, Trouble, encoded, fact, page, utc},
    session::SignedIn,
};
use crate::store::{
    commands,
    console::{
        attention::{self, Quarantined},
        outbox::{self, ParkedEvent},
    },
};

/// Longest reason that is kept.
const NOTE_MAX_CHARS: usize = 1_000;
/// How long the answer waits for what was asked to be done: usually it is, and the next page says so at once.
const DONE_WITHIN: Duration = Duration::from_secs(3);
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Redrive,
    Discard,
}

impl Kind {
    fn from_word(word: &str) -> Option<Self> {
        [Self::Redrive, Self::Discard].into_iter().find(|kind| kind.word() == word)
    }

    fn word(self) -> &'static str {
        match self {
            Self::Redrive => "redrive",
            Self::Discard => "discard",
        }
    }

    fn button(self) -> &'static str {
        match self {
            Self::Redrive => "Redrive it",
            Self::Discard => "Discard it for good",
        }
    }
}

/// Which outbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outbox {
    Requests,
    Results,
}

impl Outbox {
    pub(super) fn from_key(key: &str) -> Option<Self> {
        [Self::Requests, Self::Results].into_iter().find(|outbox| outbox.key() == key)
    }

    pub(super) fn key(self) -> &'static str {
        match self {
            Self::Requests => "requests",
            Self::Results => "results",
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Requests => "Outbox of requests (payment service)",
            Self::Results => "Outbox of results (executor)",
        }
    }

    pub(super) fn pool(self, console: &Console) -> Option<&PgPool> {
        match self {
            Self::Requests => Some(&console.0.payments),
            Self::Results => console.0.executor.as_ref(),
        }
    }
}

// ------------------------------------------------------------------------------------------------------------ question

/// One of several ways to decide.
pub(super) struct Choice {
    pub(super) value: &'static str,
    pub(super) meaning: &'static str,
}

/// What is asked before anything is done.
#[derive(Default)]
pub(super) struct Question {
    pub(super) heading: String,
    pub(super) what_happens: &'static str,
    pub(super) facts: Vec<Fact>,
    pub(super) action: String,
    pub(super) hidden: Vec<(&'static str, String)>,
    pub(super) choices: Vec<Choice>,
    pub(super) chosen: String,
    /// A PSP reference may be given; as it was given before.
    pub(super) reference: Option<String>,
    pub(super) note_label: &'static str,
    pub(super) note: String,
    pub(super) button: &'static str,
    /// It cannot be undone.
    pub(super) grave: bool,
    /// Why it was not done when it was asked for.
    pub(super) refused: Option<String>,
    /// Whether it can be done at all.
    pub(super) possible: bool,
}

#[derive(Template)]
#[template(path = "console/confirm.html")]
struct QuestionPage {
    frame: Frame,
    question: Question,
}

pub(super) async fn question_page(console: &Console, who: &SignedIn, question: Question) -> Response {
    let status = if question.refused.is_some() { StatusCode::UNPROCESSABLE_ENTITY } else { StatusCode::OK };
    let frame = console.frame(who, Room::Attention).await;
    page(status, &QuestionPage { frame, question })
}

/// The reason in one line, if it can be kept.
pub(super) fn check_note(note: &str) -> Result<String, &'static str> {
    let note = note.split_whitespace().collect::<Vec<_>>().join(" ");
    if note.is_empty() {
        return Err("A reason is needed. Nothing was done.");
    }
    if note.chars().count() > NOTE_MAX_CHARS || note.chars().any(char::is_control) {
        return Err("The reason has 1000 characters at most, and no control character. Nothing was done.");
    }
    Ok(note)
}

/// What a form brings.
#[derive(Deserialize)]
pub(super) struct Confirmed {
    #[serde(default)]
    note: String,
    #[serde(default)]
    relay: String,
}

pub(super) const UNREADABLE: Trouble = Trouble::NotFound("The form could not be read. Nothing was done.");
const NO_SUCH: Trouble = Trouble::NotFound("There is nothing of the kind that could be done here.");

// ---------------------------------------------------------------------------------------------------------- quarantine

fn about_record(record: &Quarantined, kind: Kind) -> Question {
    let Quarantined { id, topic, partition, record_offset, .. } = record;
    let bytes =
        record.value_bytes.map_or_else(|| "none: a tombstone".to_owned(), |bytes| format!("{bytes} bytes"));
    let order = record.payment_order_id.map(|id| fact("payment order", id));
    let event = record.event_id.map(|id| fact("event id", id));
    let facts = [
        fact("record", format!("{topic}, partition {partition}, offset {record_offset}")),
        fact("in quarantine because", format!("{}: {}", record.reason_code, record.reason)),
        fact("content", bytes),
        fact("since", utc(record.received_at)),
        fact("tried", format!("{} times", record.attempts)),
    ];
    let gone = record.outcome.as_ref().zip(record.settled_at);
    let what_happens = match kind {
        Kind::Redrive => {
            "A running service tries the record again, through the same processing as any record. What is refused again stays, with the reason of now."
        }
        Kind::Discard => {
            "The record is given up: it will never become a state change. Its row and its bytes stay in the table."
        }
    };
    Question {
        heading: format!("{} record {id}?", if kind == Kind::Redrive { "Redrive" } else { "Discard" }),
        what_happens,
        facts: facts.into_iter().chain(order).chain(event).collect(),
        action: format!("/console/attention/quarantine/{id}/{}", kind.word()),
        note_label: "Why",
        button: kind.button(),
        grave: kind == Kind::Discard,
        possible: gone.is_none(),
        refused: gone.map(|(outcome, at)| {
            format!("It has left the quarantine: {outcome}, at {}. Nothing was done.", utc(at))
        }),
        ..Question::default()
    }
}

async fn record_for(console: &Console, id: &str, kind: &str) -> Result<(Quarantined, Kind), Trouble> {
    let (id, kind) = (id.parse().map_err(|_| NO_SUCH)?, Kind::from_word(kind).ok_or(NO_SUCH)?);
    let found = attention::quarantined_record(&console.0.payments, id).await;
    let record = found.map_err(|error| Trouble::of(&error))?.ok_or(NO_SUCH)?;
    Ok((record, kind))
}

/// What it means to redrive or discard a record.
pub(super) async fn ask_quarantine(
    State(console): State<Console>,
    Extension(who): Extension<SignedIn>,
    Path((id, kind)): Path<(String, String)>,
) -> Response {
    match record_for(&console, &id, &kind).await {
        Ok((record, kind)) => question_page(&console, &who, about_record(&record, kind)).await,
        Err(trouble) => trouble.page(&console, &who),
    }
}

/// Redrives or discards a record.
pub(super) async fn perform_quarantine(
    State(console): State<Console>,
    Extension(who): Extension<SignedIn>,
    Path((id, kind)): Path<(String, String)>,
    form: Result<Form<Confirmed>, FormRejection>,
) -> Response {
    let Ok(Form(form)) = form else { return UNREADABLE.page(&console, &who) };
    let (record, kind) = match record_for(&console, &id, &kind).await {
        Ok(found) => found,
        Err(trouble) => return trouble.page(&console, &who),
    };
    let question = about_record(&record, kind);
    let note = match check_note(&form.note) {
        Ok(note) if question.possible => note,
        Ok(_) => return question_page(&console, &who, question).await,
        Err(words) => {
            let refused = question.refused.or_else(|| Some(words.to_owned()));
            return question_page(&console, &who, Question { note: form.note, refused, ..question }).await;
        }
    };
    let selection = commands::Selection { ids: Some(vec![record.id]), ..commands::Selection::default() };
    match order(&console.0.payments, kind, &selection, (&who.operator, &note)).await {
        Ok(command) => {
            tracing::info!(
                operator = who.operator,
                command,
                kind = kind.word(),
                record = record.id,
                "asked for by the console"
            );
            Redirect::to(&format!("/console/outcomes/quarantine/{command}")).into_response()
        }
        Err(error) => Trouble::of(&error).page(&console, &who),
    }
}

/// Asks for a command, and waits for a moment until it is carried out.
async fn order(
    pool: &PgPool,
    kind: Kind,
    selection: &commands::Selection,
    name: (&str, &str),
) -> Result<i64, sqlx::Error> {
    let mut connection = pool.acquire().await?;
    let command = commands::request(&mut connection, kind.word(), &selection.to_json()?, name).await?;
    // Asked for it is, whatever becomes of looking after it.
    let until = Instant::now() + DONE_WITHIN;
    while matches!(commands::result(&mut connection, command).await, Ok(result) if result.open > 0)
        && Instant::now() < until
    {
        sleep(LOOK_EVERY).await;
    }
    Ok(command)
}

// -------------------------------------------------------------------------------------------------------------- outbox

fn about_event(outbox: Outbox, event: &ParkedEvent, kind: Kind) -> Question {
    let what_happens = match kind {
        Kind::Redrive => {
            "The leader publishes what is parked and held of the event's key, in order, now that the cause is mended. What is refused again stays where it is."
        }
        Kind::Discard => {
            "The event is given up: it will never be published. What is held behind it is published."
        }
    };
    Question {
        heading: format!(
            "{} event {}?",
            if kind == Kind::Redrive { "Redrive" } else { "Discard" },
            event.event_id
        ),
        what_happens,
        facts: vec![
            fact("outbox", outbox.name()),
            fact("event type", &event.event_type),
            fact("key", &event.aggregate_id),
            fact("parked because", &event.reason),
            fact("since", utc(event.parked_at)),
            fact("tried", format!("{} times", event.attempts)),
            fact("held behind it", event.held.to_string()),
        ],
        action: format!("/console/attention/outbox/{}/{}/{}", outbox.key(), event.event_id, kind.word()),
        hidden: vec![("relay", event.relay.clone())],
        note_label: "Why",
        button: kind.button(),
        grave: kind == Kind::Discard,
        possible: true,
        ..Question::default()
    }
}

type EventFor<'a> = (Outbox, &'a PgPool, ParkedEvent, Kind);

const NOT_PARKED: Trouble = Trouble::NotFound(
    "That event is not parked (any more): it may have been redriven or discarded meanwhile.",
);

async fn event_for<'a>(
    console: &'a Console,
    (outbox, event_id, kind): &(String, String, String),
    relay: &str,
) -> Result<EventFor<'a>, Trouble> {
    let outbox = Outbox::from_key(outbox).ok_or(NO_SUCH)?;
    let (event_id, kind) =
        (Uuid::parse_str(event_id).map_err(|_| NO_SUCH)?, Kind::from_word(kind).ok_or(NO_SUCH)?);
    let pool = outbox.pool(console).ok_or(NO_SUCH)?;
    let found = outbox::parked_event(pool, relay, event_id).await.map_err(|error| Trouble::of(&error))?;
    Ok((outbox, pool, found.ok_or(NOT_PARKED)?, kind))
}

#[derive(Deserialize)]
pub(super) struct OfRelay {
    #[serde(default)]
    relay: String,
}

/// What it means to redrive or discard an event.
pub(super) async fn ask_outbox(
    State(console): State<Console>,
    Extension(who): Extension<SignedIn>,
    Path(which): Path<(String, String, String)>,
    relay: Result<Query<OfRelay>, QueryRejection>,
) -> Response {
    let relay = relay.map(|Query(OfRelay { relay })| relay).unwrap_or_default();
    match event_for(&console, &which, &relay).await {
        Ok((outbox, _, event, kind)) => {
            question_page(&console, &who, about_event(outbox, &event, kind)).await
        }
        Err(trouble) => trouble.page(&console, &who),
    }
}

/// Asks the leader to redrive or discard an event.
pub(super) async fn perform_outbox(
    State(console): State<Console>,
    Extension(who): Extension<SignedIn>,
    Path(which): Path<(String, String, String)>,
    form: Result<Form<Confirmed>, FormRejection>,
) -> Response {
    let Ok(Form(form)) = form else { return UNREADABLE.page(&console, &who) };
    let (outbox, pool, event, kind) = match event_for(&console, &which, &form.relay).await {
        Ok(found) => found,
        Err(trouble) => return trouble.page(&console, &who),
    };
    let note = match check_note(&form.note) {
        Ok(note) => note,
        Err(words) => {
            let question = about_event(outbox, &event, kind);
            let refused = Some(words.to_owned());
            return question_page(&console, &who, Question { note: form.note, refused, ..question }).await;
        }
    };
    let name = (who.operator.as_str(), note.as_str());
    let command = match outbox::request(pool, &event.relay, kind.word(), event.event_id, name).await {
        Ok(command) => command,
        Err(error) => return Trouble::of(&error).page(&console, &who),
    };
    tracing::info!(operator = who.operator, command, kind = kind.word(), event_id = %event.event_id, "asked for by the console");
    // Asked for it is; whether it is done already is the next page's to say.
    let until = Instant::now() + DONE_WITHIN;
    while matches!(outbox::command(pool, command).await, Ok(Some(c)) if c.finished_at.is_none())
        && Instant::now() < until
    {
        sleep(LOOK_EVERY).await;
    }
    Redirect::to(&format!("/console/outcomes/outbox/{}/{command}", encoded(outbox.key()))).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_says_something_and_not_too_much() {
        assert_eq!(
            check_note("  ticket 17,\r\nsecond \u{a0} line \n"),
            Ok("ticket 17, second line".to_owned())
        );
        assert!(check_note(" \n\t").is_err());
        assert!(check_note(&"é".repeat(NOTE_MAX_CHARS)).is_ok());
        assert!(check_note(&"é".repeat(NOTE_MAX_CHARS + 1)).is_err());
        assert!(check_note("a\0").is_err());
    }

    #[test]
    fn addresses_name_what_there_is() {
        assert_eq!(Kind::from_word("redrive"), Some(Kind::Redrive));
        assert_eq!(Kind::from_word("replay"), None);
        assert_eq!(Outbox::from_key("results"), Some(Outbox::Results));
        assert_eq!(Outbox::from_key("payments"), None);
    }
}
