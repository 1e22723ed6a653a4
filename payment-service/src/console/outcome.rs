//! What came of an action: the page after it.

use askama::Template;
use axum::{
    Extension,
    extract::{Path, State},
    http::StatusCode,
    response::Response,
};
use uuid::Uuid;

use super::{
    Console,
    actions::Outbox,
    pages::{Fact, Frame, Live, Room, Trouble, fact, page, utc},
    session::SignedIn,
};
use crate::store::console::{attention, outbox as store};

/// What came of something.
pub(super) struct Outcome {
    pub(super) heading: &'static str,
    pub(super) verdict: String,
    pub(super) facts: Vec<Fact>,
    pub(super) payment: Option<Uuid>,
    /// It is not done yet: this page's address, to look again.
    pub(super) open: Option<String>,
}

#[derive(Template)]
#[template(path = "console/outcome.html")]
struct OutcomePage {
    frame: Frame,
    outcome: Outcome,
}

pub(super) async fn outcome_page(console: &Console, who: &SignedIn, outcome: Outcome) -> Response {
    let mut frame = console.frame(who, Room::Attention).await;
    frame.live = outcome.open.as_deref().map_or(Live::Never, |path| Live::new(path, &[], false));
    page(StatusCode::OK, &OutcomePage { frame, outcome })
}

const NO_SUCH: Trouble = Trouble::NotFound("There is no such command.");

/// What came of a command for the quarantine.
pub(super) async fn quarantine(
    State(console): State<Console>,
    Extension(who): Extension<SignedIn>,
    Path(command): Path<String>,
) -> Response {
    let Ok(id) = command.parse::<i64>() else { return NO_SUCH.page(&console, &who) };
    let command = match attention::command(&console.0.payments, id).await {
        Ok(Some(command)) => command,
        Ok(None) => return NO_SUCH.page(&console, &who),
        Err(error) => return Trouble::of(&error).page(&console, &who),
    };
    let record = match command.quarantine_id {
        None => None,
        Some(record) => match attention::quarantined_record(&console.0.payments, record).await {
            Ok(record) => record,
            Err(error) => return Trouble::of(&error).page(&console, &who),
        },
    };
    let reason = command.reason.as_deref().unwrap_or("no reason given");
    let verdict = match (command.selected, command.outcome.as_deref()) {
        (0, _) => {
            "Nothing was left to do: the record has left the quarantine, or another command is at work on it.".to_owned()
        }
        (_, None) => {
            "It is asked for, and not done yet. A running payment service carries it out; it stays asked for until then.".to_owned()
        }
        (_, Some("APPLIED")) => "Redriven: the record was decided upon, and has left the quarantine.".to_owned(),
        (_, Some("KNOWN")) => {
            "Redriven: its event had been decided upon before. The record has left the quarantine, and nothing else has changed.".to_owned()
        }
        (_, Some("REFUSED")) => format!("Refused again, and still in quarantine: {reason}"),
        (_, Some("DISCARDED")) => "Discarded: the record is given up. Its bytes stay in the table.".to_owned(),
        (_, Some(other)) => other.to_owned(),
    };
    let open = command.selected > 0 && command.finished_at.is_none();
    let mut facts = vec![
        fact("command", format!("{id}, {}", command.kind)),
        fact("operator", &command.operator),
        fact("reason given", &command.note),
        fact("asked for at", utc(command.requested_at)),
    ];
    facts.extend(command.finished_at.map(|at| fact("done at", utc(at))));
    facts.extend(command.quarantine_id.map(|id| fact("record", id.to_string())));
    if command.selected > 1 {
        facts.push(fact("records", format!("{}; what is said here is about the first", command.selected)));
    }
    let outcome = Outcome {
        heading: if command.kind == "discard" { "Discard" } else { "Redrive" },
        verdict,
        facts,
        payment: record.and_then(|record| record.payment_id),
        open: open.then(|| format!("/console/outcomes/quarantine/{id}")),
    };
    outcome_page(&console, &who, outcome).await
}

/// What came of a command for an outbox.
pub(super) async fn outbox(
    State(console): State<Console>,
    Extension(who): Extension<SignedIn>,
    Path((key, command)): Path<(String, String)>,
) -> Response {
    let (Some(outbox), Ok(id)) = (Outbox::from_key(&key), command.parse::<i64>()) else {
        return NO_SUCH.page(&console, &who);
    };
    let Some(pool) = outbox.pool(&console) else { return NO_SUCH.page(&console, &who) };
    let command = match store::command(pool, id).await {
        Ok(Some(command)) => command,
        Ok(None) => return NO_SUCH.page(&console, &who),
        Err(error) => return Trouble::of(&error).page(&console, &who),
    };
    let verdict = match (&command.result, command.finished_at) {
        (Some(result), Some(_)) => format!("Done: {result}; {} events published.", command.published),
        (None, Some(_)) => format!("Done: {} events published.", command.published),
        (_, None) => {
            "It is asked for, and not done yet. The relay that leads carries it out; it stays asked for until then.".to_owned()
        }
    };
    let mut facts = vec![
        fact("outbox", outbox.name()),
        fact("relay", &command.relay),
        fact("command", format!("{id}, {}", command.kind)),
        fact("for", command.selection.to_string()),
        fact("operator", &command.operator),
        fact("reason given", &command.note),
        fact("asked for at", utc(command.requested_at)),
    ];
    facts.extend(command.finished_at.map(|at| fact("done at", utc(at))));
    let outcome = Outcome {
        heading: match command.kind.as_str() {
            "discard" => "Discard",
            "redrive" => "Redrive",
            _ => "Command",
        },
        verdict,
        facts,
        payment: None,
        open: command.finished_at.is_none().then(|| format!("/console/outcomes/outbox/{key}/{id}")),
    };
    outcome_page(&console, &who, outcome).await
}
