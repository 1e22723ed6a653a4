//! From a request to a state, step by step, through all processes: a pure function of what each database wrote down.
//!
//! ```text
//! payment service        outbox      relay       executor        PSP        executor    outbox     relay       payment service
//! accepted ───────────── written ─── published ─ taken in ────── called ─── recorded ── written ── published ─ decided
//! ```
//! Each step stands at the time that whoever did it wrote down, and says how long after the step before it that was. The clocks are those of
//! the services' hosts and of the databases: where they differ, steps that follow on each other closely may change places.

use std::{cmp::Ordering, time::Duration};

use serde_json::Value;
use time::OffsetDateTime;
use uuid::Uuid;

use super::pages::{Fact, fact, utc};
use crate::store::console::{
    executor::{Attempt, Execution, Inbox, PspResult, Webhook},
    outbox::Appended,
    payments::{SetAsideRecord, ShownOrder, Transition},
};

/// What is known of a payment order.
#[derive(Debug)]
pub(super) struct Facts<'a> {
    pub(super) order: &'a ShownOrder,
    pub(super) transitions: &'a [Transition],
    pub(super) set_aside: &'a [SetAsideRecord],
    /// The request's event, if the outbox has it still.
    pub(super) request: Option<&'a Appended>,
    /// What the executor knows. None: it could not be asked.
    pub(super) execution: Option<&'a Execution>,
    /// The results' events, as far as the executor's outbox has them still.
    pub(super) results: &'a [Appended],
}

/// Who did a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    // In the order in which a request passes them: it decides between steps of one time.
    Accepted,
    RequestWritten,
    RequestPublished,
    TakenIn,
    Called,
    Answered,
    Told,
    Recorded,
    ResultWritten,
    ResultPublished,
    SetAside,
    Decided,
    ByHand,
}

impl Kind {
    pub(super) fn process(self) -> &'static str {
        match self {
            Self::Accepted | Self::SetAside | Self::Decided => "payment service",
            Self::RequestWritten => "payment service's outbox",
            Self::RequestPublished => "relay of requests",
            Self::TakenIn | Self::Called | Self::Recorded => "executor",
            Self::Answered | Self::Told => "PSP",
            Self::ResultWritten => "executor's outbox",
            Self::ResultPublished => "relay of results",
            Self::ByHand => "a person",
        }
    }

    pub(super) fn class(self) -> &'static str {
        match self {
            Self::ByHand => "person",
            Self::Accepted
            | Self::RequestWritten
            | Self::RequestPublished
            | Self::TakenIn
            | Self::Called
            | Self::Answered
            | Self::Told
            | Self::Recorded
            | Self::ResultWritten
            | Self::ResultPublished
            | Self::SetAside
            | Self::Decided => "machine",
        }
    }
}

/// A step.
#[derive(Clone, Debug)]
pub(super) struct Step {
    pub(super) at: OffsetDateTime,
    /// Since the step before. None: it is the first.
    pub(super) after: Option<Duration>,
    pub(super) kind: Kind,
    pub(super) what: String,
    pub(super) details: Vec<Fact>,
}

/// The steps that were taken, in the order of their times.
pub(super) fn steps(facts: &Facts<'_>) -> Vec<Step> {
    let mut steps = Vec::new();
    let mut add = |at: OffsetDateTime, kind: Kind, what: String, details: Vec<Fact>| {
        steps.push(Step { at, after: None, kind, what, details });
    };
    let asked = if facts.order.r#try == 1 { "Request accepted" } else { "Another try asked for" };
    add(facts.order.created_at, Kind::Accepted, asked.to_owned(), Vec::new());
    if let Some(event) = facts.request {
        written(event, (Kind::RequestWritten, Kind::RequestPublished), "Request", None, &mut add);
    }
    if let Some(execution) = facts.execution {
        if let Some(inbox) = &execution.inbox {
            add(inbox.received_at, Kind::TakenIn, "Request taken in".to_owned(), Vec::new());
        }
        for attempt in &execution.attempts {
            attempted(attempt, &mut add);
        }
        for webhook in &execution.webhooks {
            told(webhook, &mut add);
        }
        for result in &execution.results {
            recorded(result, &mut add);
        }
    }
    for event in facts.results {
        let decided = facts.transitions.iter().find(|line| line.event_id == Some(event.event_id));
        let position = decided.and_then(position_of);
        written(event, (Kind::ResultWritten, Kind::ResultPublished), "Result", position, &mut add);
    }
    let recorded = |id: Uuid| facts.execution.is_some_and(|e| e.results.iter().any(|r| r.event_id == id));
    for line in facts.transitions {
        // Without the executor the event itself says when its answer was obtained.
        if let (Some(event_id), Some(at)) = (line.event_id, line.event_time)
            && !recorded(event_id)
        {
            let what = format!("PSP's answer obtained: {}", line.psp_status.as_deref().unwrap_or("?"));
            add(at, Kind::Answered, what, vec![fact("event id", event_id.to_string())]);
        }
        decided(line, &mut add);
    }
    for record in facts.set_aside {
        set_aside(record, &mut add);
    }
    steps.sort_by(|a, b| a.at.cmp(&b.at).then(a.kind.cmp(&b.kind)));
    let times: Vec<OffsetDateTime> = steps.iter().map(|step| step.at).collect();
    for (step, before) in steps.iter_mut().skip(1).zip(times) {
        step.after = Some(between(before, step.at));
    }
    steps
}

fn between(from: OffsetDateTime, to: OffsetDateTime) -> Duration {
    match from.cmp(&to) {
        Ordering::Less => (to - from).unsigned_abs(),
        Ordering::Equal | Ordering::Greater => Duration::ZERO,
    }
}

fn some(label: &'static str, text: Option<&str>) -> Option<Fact> {
    text.map(|text| fact(label, text))
}

fn written(
    event: &Appended,
    (written, published): (Kind, Kind),
    what: &str,
    position: Option<String>,
    add: &mut impl FnMut(OffsetDateTime, Kind, String, Vec<Fact>),
) {
    add(
        event.created_at,
        written,
        format!("{what} written to the outbox"),
        vec![fact("event id", event.event_id), fact("event type", &event.event_type)],
    );
    let Some(at) = event.published_at else { return };
    let details = match position {
        Some(position) => Some(fact("topic position", position)),
        None => event.ranges.as_ref().and_then(positions).map(|(exact, positions)| {
            fact(if exact { "topic position" } else { "topic position, one of" }, positions)
        }),
    };
    let details = details.into_iter().chain(some("leader", event.leader.as_deref()));
    add(at, published, format!("{what} saved as published"), details.collect());
}

/// Topic, partition and offset, from what the relay noted of the save that an event was in; and whether it can be that one alone.
fn positions(ranges: &Value) -> Option<(bool, String)> {
    let (mut parts, mut count) = (Vec::new(), 0);
    for (topic, partitions) in ranges.as_object()? {
        for (partition, range) in partitions.as_object()? {
            let (first, last) = (range.get(0)?.as_i64()?, range.get(1)?.as_i64()?);
            let offsets =
                if first == last { format!("offset {first}") } else { format!("offsets {first} to {last}") };
            parts.push(format!("{topic}, partition {partition}, {offsets}"));
            count += last - first + 1;
        }
    }
    (!parts.is_empty()).then(|| (count == 1, parts.join("; ")))
}

fn position_of(line: &Transition) -> Option<String> {
    let (topic, partition, offset) = (line.topic.as_deref()?, line.partition?, line.record_offset?);
    Some(format!("{topic}, partition {partition}, offset {offset}"))
}

fn attempted(attempt: &Attempt, add: &mut impl FnMut(OffsetDateTime, Kind, String, Vec<Fact>)) {
    let Attempt { operation, r#try, .. } = attempt;
    add(attempt.started_at, Kind::Called, format!("PSP called: {operation}, try {try}"), Vec::new());
    let Some(at) = attempt.finished_at else { return };
    let verdict = attempt.verdict.as_deref().unwrap_or("?");
    let http_status = attempt.http_status.map(|status| status.to_string());
    let details = [
        some("HTTP status", http_status.as_deref()),
        some("PSP reference", attempt.psp_reference.as_deref()),
        some("PSP's request id", attempt.psp_request_id.as_deref()),
        some("error", attempt.error_code.as_deref()),
        some("in words", attempt.error_message.as_deref()),
    ];
    // Nobody was there to receive an answer that was abandoned.
    let what = if verdict == "ABANDONED" {
        format!("Call given up: {operation}, try {try}")
    } else {
        format!("PSP answered: {operation}, try {try}: {verdict}")
    };
    let kind = if verdict == "ABANDONED" { Kind::Called } else { Kind::Answered };
    add(at, kind, what, details.into_iter().flatten().collect());
}

fn told(webhook: &Webhook, add: &mut impl FnMut(OffsetDateTime, Kind, String, Vec<Fact>)) {
    let what = format!("Webhook of {}: {}", webhook.psp, webhook.event_type);
    let outcome = webhook.outcome.as_deref().unwrap_or("not worked off yet");
    add(webhook.received_at, Kind::Told, what, vec![fact("outcome", outcome)]);
}

fn recorded(result: &PspResult, add: &mut impl FnMut(OffsetDateTime, Kind, String, Vec<Fact>)) {
    let details = [
        some("from", Some(&result.source)),
        some("PSP reference", result.psp_reference.as_deref()),
        some("error", result.error_code.as_deref()),
        some("in words", result.error_message.as_deref()),
        some("answer obtained at", Some(&utc(result.event_time))),
        some("event id", Some(&result.event_id.to_string())),
    ];
    let what = format!("Result recorded: {}", result.psp_status);
    add(result.recorded_at, Kind::Recorded, what, details.into_iter().flatten().collect());
}

fn decided(line: &Transition, add: &mut impl FnMut(OffsetDateTime, Kind, String, Vec<Fact>)) {
    // The creation is the first step already.
    let Some(from) = &line.from_state else { return };
    let to = match &line.review_reason {
        Some(reason) => format!("{} ({reason})", line.to_state),
        None => line.to_state.clone(),
    };
    let lag = line.event_time.map(|at| super::pages::lag(&between(at, line.decided_at)));
    let command = line.command_id.map(|id| id.to_string());
    let details = [
        some("result", line.psp_status.as_deref()),
        some("PSP reference", line.psp_reference.as_deref()),
        some("error", line.error_code.as_deref()),
        some("topic position", position_of(line).as_deref()),
        some("since the PSP's answer", lag.as_deref()),
        some("operator", line.operator.as_deref()),
        some("reason given", line.note.as_deref()),
        some("redriven by command", command.as_deref()),
    ];
    // Whoever redrives a record has it decided; a person's own is what no event asked for.
    let (kind, what) = match (line.event_id, line.decision.as_str()) {
        (Some(_), decision) => (Kind::Decided, format!("{decision}: {from} → {to}")),
        (None, "RESOLVED") => (Kind::ByHand, format!("Resolved: {from} → {to}")),
        (None, _) => (Kind::ByHand, format!("Changed by hand: {from} → {to}")),
    };
    add(line.decided_at, kind, what, details.into_iter().flatten().collect());
}

fn set_aside(record: &SetAsideRecord, add: &mut impl FnMut(OffsetDateTime, Kind, String, Vec<Fact>)) {
    let SetAsideRecord { id, topic, partition, record_offset, .. } = record;
    let details = vec![
        fact("topic position", format!("{topic}, partition {partition}, offset {record_offset}")),
        fact("reason", &record.reason),
    ];
    add(
        record.received_at,
        Kind::SetAside,
        format!("Record {id} set aside: {}", record.reason_code),
        details,
    );
    if let (Some(at), Some(outcome)) = (record.settled_at, &record.outcome) {
        add(at, Kind::SetAside, format!("Record {id} left the quarantine: {outcome}"), Vec::new());
    }
}

// --------------------------------------------------------------------------------------------------- what is waited for

/// What has not happened yet and should, in sentences.
pub(super) fn waits(facts: &Facts<'_>) -> Vec<String> {
    let mut waits = Vec::new();
    if let Some(event) = facts.request {
        waits.extend(unpublished(event, "The request"));
    }
    if let Some(execution) = facts.execution {
        let published = facts.request.is_some_and(|event| event.published_at.is_some());
        match &execution.inbox {
            None if published => {
                waits.push("The request is published, and the executor has not taken it in.".to_owned());
            }
            None => {}
            Some(inbox) => waits.extend(at_executor(inbox)),
        }
    }
    for event in facts.results {
        waits.extend(unpublished(event, "A result"));
        let decided = facts.transitions.iter().any(|line| line.event_id == Some(event.event_id));
        if event.published_at.is_some() && !decided {
            waits.push(format!(
                "The result {} is published, and the payment service has not applied it.",
                event.event_id
            ));
        }
    }
    for record in facts.set_aside.iter().filter(|record| record.settled_at.is_none()) {
        waits.push(format!(
            "Record {} is in quarantine ({}): {}",
            record.id, record.reason_code, record.reason
        ));
    }
    waits
}

fn unpublished(event: &Appended, what: &str) -> Option<String> {
    match (&event.parked_reason, event.parked, event.published_at) {
        (_, _, Some(_)) => None,
        (Some(reason), true, None) => {
            Some(format!("{what} is parked in its outbox, as it cannot be published: {reason}"))
        }
        (None, true, None) => {
            Some(format!("{what} is held in its outbox, behind a parked event of the same key."))
        }
        (_, false, None) => Some(format!("{what} is in its outbox, and not saved as published yet.")),
    }
}

fn at_executor(inbox: &Inbox) -> Option<String> {
    if let Some(reason) = &inbox.parked {
        return Some(format!("The executor has set the order aside, as its database refuses it: {reason}"));
    }
    match inbox.state.as_str() {
        "QUEUED" => Some(format!("The executor has it queued; it is due at {}.", utc(inbox.due_at))),
        "IN_FLIGHT" => Some("The executor is at work on it.".to_owned()),
        "RESOLVING" => {
            Some(format!("The PSP's answer is in doubt; the PSP is asked again at {}.", utc(inbox.due_at)))
        }
        "REVIEW" => Some("The executor has come to an end without certainty: a person must look.".to_owned()),
        _ => None,
    }
}

#[cfg(test)]
#[path = "timeline_tests.rs"]
mod tests;
