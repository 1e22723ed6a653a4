//! Resolving: a person decides about a payment order that has no certain outcome. What is decided goes the same way as through the API.

use axum::{
    Extension, Form,
    extract::{Path, State, rejection::FormRejection},
    response::{IntoResponse, Redirect, Response},
};
use serde::Deserialize;
use serde_json::json;
use uuid::Uuid;

use super::{
    Console,
    actions::{Choice, Question, UNREADABLE, check_note, question_page},
    outcome::{Outcome, outcome_page},
    pages::{Trouble, amount, fact, utc},
    session::SignedIn,
};
use crate::{
    decision::ReviewReason,
    idempotency::{Key, Operation, Outcome as Idempotent},
    request::ResolutionRequest,
    resolutions,
    store::console::attention::{self as store, Resolution, Reviewed},
};

const NO_SUCH: Trouble = Trouble::NotFound("There is no such payment order.");
const CHANGED: &str = "Something has happened to the payment order since the page was shown. Nothing was done: look at it again, and decide.";

/// What a reason means to whoever has to decide.
fn meaning(reason: ReviewReason) -> &'static str {
    match reason {
        ReviewReason::LateSuccess => {
            "The PSP said that it failed, and later that it succeeded: it was charged after all."
        }
        ReviewReason::SecondSuccess => "The PSP told of two charges under different references.",
        ReviewReason::FailureAfterSuccess => "The PSP said that it succeeded, and later that it failed.",
        ReviewReason::AmountMismatch => "The PSP charged another amount or currency than was asked for.",
        ReviewReason::ResolutionExhausted => "The PSP was asked again and again, and gave no certain answer.",
        ReviewReason::Expired => {
            "It was to be begun too late, and was not; or whether it was begun is not known."
        }
        ReviewReason::IdempotencyMismatch => "The PSP knows the order's key with another request.",
        ReviewReason::DoubleCharge => {
            "Two payment orders of the payment were charged. Give one charge back, and resolve its order as FAILED."
        }
    }
}

/// What the page was made for: it changes with everything that happens to the order.
fn seen(order: &Reviewed) -> String {
    order.updated_at.unix_timestamp_nanos().to_string()
}

fn about(order: &Reviewed, decided: &Decided) -> Question {
    let in_review = order.state == "NEEDS_REVIEW";
    let double = order.payment_reason.as_deref() == Some(ReviewReason::DoubleCharge.as_str());
    let possible = in_review || (double && order.state == "SUCCESSFUL");
    let reason = order.review_reason.as_ref().or(order.payment_reason.as_ref());
    let known = reason.and_then(|word| ReviewReason::from_word(word)).map(meaning);
    let why = reason.map(|word| known.map_or_else(|| word.clone(), |words| format!("{word}: {words}")));
    let mut facts = vec![
        fact("payment", &order.merchant_reference),
        fact("amount", amount(&order.amount_minor, &order.currency)),
        fact("merchant", &order.caller),
        fact("payment order", format!("{}, try {}, at {}", order.payment_order_id, order.r#try, order.psp)),
        fact("state", &order.state),
        fact("PSP reference", order.psp_reference.as_deref().unwrap_or("not known")),
        fact("since", utc(order.updated_at)),
    ];
    facts.extend(why.map(|why| fact("in review because", why)));
    facts.extend(order.error_code.as_ref().map(|code| fact("error", code)));
    Question {
        heading: "Resolve a payment order?".to_owned(),
        what_happens: "You decide what the order's outcome is; look at the PSP first. It is written into the audit, and the payment follows from it. \
                       What comes later and contradicts you brings the order before a person again.",
        facts,
        action: format!("/console/attention/review/{}", order.payment_order_id),
        hidden: vec![("seen", seen(order)), ("key", Uuid::new_v4().to_string())],
        choices: vec![
            Choice { value: "SUCCESSFUL", meaning: "the charge stands" },
            Choice {
                value: "FAILED",
                meaning: "no money is kept: none was taken, or all of it was given back",
            },
        ],
        chosen: decided.decision.clone(),
        reference: Some(decided.psp_reference.clone()),
        note_label: "Why",
        note: decided.note.clone(),
        button: "Resolve it",
        grave: true,
        refused: (!possible).then(|| format!("It is {}: there is nothing to decide.", order.state)),
        possible,
    }
}

async fn order_for(console: &Console, id: &str) -> Result<Reviewed, Trouble> {
    let id = Uuid::parse_str(id).map_err(|_| NO_SUCH)?;
    let found = store::reviewed(&console.0.payments, id).await;
    found.map_err(|error| Trouble::of(&error))?.ok_or(NO_SUCH)
}

/// What there is to decide.
pub(super) async fn ask(
    State(console): State<Console>,
    Extension(who): Extension<SignedIn>,
    Path(id): Path<String>,
) -> Response {
    match order_for(&console, &id).await {
        Ok(order) => question_page(&console, &who, about(&order, &Decided::default())).await,
        Err(trouble) => trouble.page(&console, &who),
    }
}

/// What the form brings.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Decided {
    decision: String,
    psp_reference: String,
    note: String,
    /// Which state of the order the page was made for.
    seen: String,
    /// Drawn for the page: sent twice, the form is carried out once.
    key: String,
}

/// Resolves the order.
pub(super) async fn perform(
    State(console): State<Console>,
    Extension(who): Extension<SignedIn>,
    Path(id): Path<String>,
    form: Result<Form<Decided>, FormRejection>,
) -> Response {
    let Ok(Form(decided)) = form else { return UNREADABLE.page(&console, &who) };
    let order = match order_for(&console, &id).await {
        Ok(order) => order,
        Err(trouble) => return trouble.page(&console, &who),
    };
    match resolve(&console, &who, &order, &decided).await {
        Ok(()) => {
            Redirect::to(&format!("/console/outcomes/review/{}", order.payment_order_id)).into_response()
        }
        Err(NotDone::Refused(words)) => {
            let question = about(&order, &decided);
            question_page(&console, &who, Question { refused: Some(words), ..question }).await
        }
        Err(NotDone::Trouble(trouble)) => trouble.page(&console, &who),
    }
}

/// Why it was not resolved.
enum NotDone {
    /// What was asked for cannot be: in words.
    Refused(String),
    Trouble(Trouble),
}

async fn resolve(
    console: &Console,
    who: &SignedIn,
    order: &Reviewed,
    decided: &Decided,
) -> Result<(), NotDone> {
    let refused = |words: &str| NotDone::Refused(words.to_owned());
    let note = check_note(&decided.note).map_err(refused)?;
    if Uuid::parse_str(&decided.key).is_err() {
        return Err(NotDone::Trouble(UNREADABLE));
    }
    let reference = decided.psp_reference.trim();
    let body = json!({"decision": decided.decision, "reason": note, "psp_reference": (!reference.is_empty()).then_some(reference)});
    let request = ResolutionRequest::read(body.to_string().as_bytes()).map_err(|problem| {
        NotDone::Refused(format!(
            "{}. Nothing was done.",
            problem.detail().unwrap_or("It cannot be resolved so")
        ))
    })?;
    let (id, pool) = (order.payment_order_id, &console.0.service);
    let fingerprint = request.fingerprint(id);
    let key = Key {
        caller: who.operator.clone(),
        operation: Operation::ResolvePaymentOrder,
        key: format!("console-{}", decided.key),
        fingerprint,
    };
    if decided.seen != seen(order) {
        // A form that was sent twice comes to its own outcome.
        let last = store::last_resolution(&console.0.payments, id)
            .await
            .map_err(|e| NotDone::Trouble(Trouble::of(&e)))?;
        let own = |last: &Resolution| {
            (last.operator.as_deref(), last.note.as_deref(), last.to_state.as_str())
                == (Some(who.operator.as_str()), Some(note.as_str()), decided.decision.as_str())
        };
        return if last.as_ref().is_some_and(own) { Ok(()) } else { Err(refused(CHANGED)) };
    }
    let resolved = resolutions::resolve(pool, &console.0.metrics, key, id, request).await;
    match resolved.map_err(|error| NotDone::Trouble(Trouble::of(&error)))? {
        None => Err(NotDone::Trouble(NO_SUCH)),
        Some(Idempotent::KeyReused) => Err(refused(CHANGED)),
        Some(Idempotent::New(Ok(_)) | Idempotent::Replayed(Ok(_))) => Ok(()),
        Some(Idempotent::New(Err(refusal)) | Idempotent::Replayed(Err(refusal))) => {
            Err(NotDone::Refused(format!("{}. Nothing was done.", refusal.detail)))
        }
    }
}

/// What was decided, and what the payment is now.
pub(super) async fn outcome(
    State(console): State<Console>,
    Extension(who): Extension<SignedIn>,
    Path(id): Path<String>,
) -> Response {
    let order = match order_for(&console, &id).await {
        Ok(order) => order,
        Err(trouble) => return trouble.page(&console, &who),
    };
    let resolution = match store::last_resolution(&console.0.payments, order.payment_order_id).await {
        Ok(Some(resolution)) => resolution,
        Ok(None) => return Trouble::NotFound("Nobody has resolved that payment order.").page(&console, &who),
        Err(error) => return Trouble::of(&error).page(&console, &who),
    };
    let from = resolution.from_state.as_deref().unwrap_or("?");
    let payment = match &order.payment_reason {
        Some(reason) => format!("The payment is {} still: {reason}.", order.payment_status),
        None => format!("The payment is {}.", order.payment_status),
    };
    let outcome = Outcome {
        heading: "Resolved",
        verdict: format!("The payment order went from {from} to {}. {payment}", resolution.to_state),
        facts: vec![
            fact("payment", &order.merchant_reference),
            fact("payment order", order.payment_order_id),
            fact("PSP reference", resolution.psp_reference.as_deref().unwrap_or("not known")),
            fact("operator", resolution.operator.as_deref().unwrap_or("not known")),
            fact("reason given", resolution.note.as_deref().unwrap_or("none")),
            fact("decided at", utc(resolution.decided_at)),
        ],
        payment: Some(order.payment_id),
        open: None,
    };
    outcome_page(&console, &who, outcome).await
}
