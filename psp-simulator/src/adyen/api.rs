//! Adyen's HTTP surface: reads requests, decides what is kept for them, writes answers.
//!
//! A request is authenticated, read (bounded in size and time), looked up by its idempotency key, checked, executed
//! and answered, in this order. What is kept for the key is kept before the answer is sent or withheld.

use std::sync::Arc;

use axum::Router;
use axum::body::{Body, Bytes, to_bytes};
use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use secrecy::ExposeSecret;
use serde_json::{Map, Value};

use super::answer::Answer;
use super::errors::Refusal;
use super::params::{Cancel, Pay};
use super::payments::Pending;
use super::reader::fingerprint;
use super::webhook;
use crate::delivery::{deliver, reset, withhold};
use crate::idempotency::{Begin, Ticket};
use crate::outcome;
use crate::scenario::{Delivery, Obstacle, Psp};
use crate::webhooks::{self, publish};
use crate::{MAX_BODY_BYTES, READ_TIMEOUT, World};

/// Adyen's limit on the length of a key.
const MAX_KEY_LENGTH: usize = 64;

enum Operation {
    Pay,
    CancelByReference,
    CancelOfPayment(String),
}

type Shared = State<Arc<World>>;
type Outcome = outcome::Outcome<Answer, Pending>;

/// What Adyen answers.
pub(crate) fn routes() -> Router<Arc<World>> {
    let pay = post(|world, request| operate(world, Operation::Pay, request));
    let by_reference = post(|world, request| operate(world, Operation::CancelByReference, request));
    let of_payment = post(|world, Path(id): Path<String>, request| {
        operate(world, Operation::CancelOfPayment(id), request)
    });
    Router::new()
        .route("/v71/payments", pay.fallback(async || unrecognized()))
        .route("/v71/cancels", by_reference.fallback(async || unrecognized()))
        .route("/v71/payments/{reference}/cancels", of_payment.fallback(async || unrecognized()))
}

/// The answer to a path that Adyen does not have, or the simulator not of Adyen's.
pub(crate) fn unrecognized() -> Response {
    seal(&Answer::refused(Refusal::not_found()), None)
}

fn seal(answer: &Answer, key: Option<&HeaderValue>) -> Response {
    let Ok(body) = answer.render() else { return StatusCode::INTERNAL_SERVER_ERROR.into_response() };
    let mut response = (answer.status(), body).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json;charset=UTF-8"));
    if let Ok(psp_reference) = HeaderValue::from_str(answer.psp_reference()) {
        headers.insert(HeaderName::from_static("pspreference"), psp_reference);
    }
    if let Some(key) = key {
        headers.insert("idempotency-key", key.clone());
    }
    if let Some(transient) = answer.transient() {
        headers.insert("transient-error", HeaderValue::from_static(if transient { "true" } else { "false" }));
    }
    response
}

async fn operate(State(world): Shared, operation: Operation, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let key_header = parts.headers.get("idempotency-key").cloned();
    let answered = |answer: &Answer| seal(answer, key_header.as_ref());
    let refuse = |refusal: Refusal| answered(&Answer::refused(refusal));

    let Ok(permit) = world.requests.try_acquire() else { return refuse(Refusal::rate_limit()) };
    if !admitted(&world, &parts.headers) {
        return refuse(Refusal::unauthorized());
    }
    let fields = match read(&parts.headers, body).await {
        Ok(fields) => fields,
        Err(refusal) => return refuse(refusal),
    };
    let key = match idempotency_key(key_header.as_ref()) {
        Ok(key) => key,
        Err(refusal) => return refuse(refusal),
    };
    let endpoint = parts.uri.path();
    let print = fingerprint(&fields);
    let ticket = match key {
        None => None,
        Some(key) => match world.adyen.keys.begin(key, endpoint, print, world.clock.now().unix_timestamp()) {
            Begin::Execute(ticket) => Some(ticket),
            Begin::Replay(answer) => return answered(&answer),
            Begin::InFlight => return refuse(Refusal::in_progress(print[0].is_multiple_of(2))),
            Begin::OtherEndpoint(_) | Begin::OtherParameters => return refuse(Refusal::other_parameters()),
            Begin::Full => return refuse(Refusal::full()),
        },
    };
    let retry_name = key.map_or_else(|| hex::encode(print), str::to_owned);
    let outcome = match execute(&world, operation, fields, &retry_name) {
        Ok(outcome) => outcome,
        Err(refusal) => return refuse(refusal),
    };
    let (answer, delivery) = match outcome {
        Outcome::NotExecuted(answer) => return answered(&answer),
        Outcome::Hindered(obstacle) => {
            drop(ticket);
            return match obstacle {
                // What meets nothing is executed.
                Obstacle::None => refuse(Refusal::server_error()),
                Obstacle::Lost => {
                    drop(permit);
                    withhold(&world).await
                }
                Obstacle::Reset => reset(),
                Obstacle::RateLimited => refuse(Refusal::rate_limit()),
                Obstacle::Unavailable { try_again } => refuse(Refusal::unavailable(try_again)),
            };
        }
        Outcome::Executed { answer, delivery, pending } => {
            if let Some(pending) = pending {
                let task_world = Arc::clone(&world);
                world.tasks.spawn(async move {
                    let (_, event) = settle(&task_world, pending).await;
                    publish(&task_world, event).await;
                });
            }
            let event = event(&world, &answer);
            let answer = keep(answer, delivery, ticket);
            publish(&world, event).await;
            (answer, delivery)
        }
        Outcome::Pending(pending, delivery) => {
            // A task of its own: the issuer's answer counts, whether or not the client is still there to hear it.
            let task_world = Arc::clone(&world);
            let settled = world.tasks.spawn(async move {
                let (answer, event) = settle(&task_world, pending).await;
                let answer = keep(answer, delivery, ticket);
                publish(&task_world, event).await;
                answer
            });
            match settled.await {
                Ok(answer) => (answer, delivery),
                Err(_) => return refuse(Refusal::server_error()),
            }
        }
    };
    tracing::debug!(endpoint, status = answer.status().as_u16(), ?delivery, "request executed");
    let response = if delivery == Delivery::ErrorOnce {
        refuse(Refusal::passing_server_error())
    } else {
        answered(&answer)
    };
    deliver(&world, response, delivery, permit).await
}

fn execute(
    world: &World,
    operation: Operation,
    fields: Map<String, Value>,
    retry_name: &str,
) -> Result<Outcome, Refusal> {
    let payments = &world.adyen.payments;
    let known = |merchant_account: &str| match world.config.adyen_merchant_account.as_deref() {
        Some(known) if known != merchant_account => Err(Refusal::merchant_account()),
        Some(_) | None => Ok(()),
    };
    Ok(match operation {
        Operation::Pay => {
            let pay = Pay::parse(fields)?;
            known(&pay.terms.merchant_account)?;
            payments.pay(pay, retry_name, world.desk())
        }
        Operation::CancelByReference => {
            let cancel = Cancel::by_reference(fields)?;
            known(&cancel.merchant_account)?;
            payments.cancel_by_reference(cancel)
        }
        Operation::CancelOfPayment(id) => {
            let cancel = Cancel::of_payment(fields)?;
            known(&cancel.merchant_account)?;
            payments.cancel_of_payment(&id, cancel)
        }
    })
}

/// Waits for the issuer, who can be too late to be heard.
async fn settle(world: &World, pending: Pending) -> (Answer, Option<webhooks::Event>) {
    world.clock.sleep(world.config.slow).await;
    match pending.settle(&world.ledger, world.clock.now()) {
        Ok(answer) => {
            let event = event(world, &answer);
            (answer, event)
        }
        Err(stands) => (stands, None),
    }
}

/// What there is to tell of an outcome.
fn event(world: &World, outcome: &Answer) -> Option<webhooks::Event> {
    if !world.webhooks.wanted(Psp::Adyen) {
        return None;
    }
    webhook::Event::of(outcome, world.clock.now()).map(webhooks::Event::Adyen)
}

/// Keeps what a replay of the key will be told.
fn keep(answer: Answer, delivery: Delivery, ticket: Option<Ticket<Answer>>) -> Arc<Answer> {
    let kept_error = delivery == Delivery::ErrorKept;
    let answer = Arc::new(if kept_error { Answer::refused(Refusal::server_error()) } else { answer });
    if let Some(ticket) = ticket {
        ticket.finish(Arc::clone(&answer));
    }
    answer
}

async fn read(headers: &HeaderMap, body: Body) -> Result<Map<String, Value>, Refusal> {
    let body: Bytes = match tokio::time::timeout(READ_TIMEOUT, to_bytes(body, MAX_BODY_BYTES)).await {
        Ok(Ok(body)) => body,
        Ok(Err(_)) => {
            return Err(
                Refusal::unreadable("Request body too large.").with_status(StatusCode::PAYLOAD_TOO_LARGE)
            );
        }
        Err(_) => {
            return Err(
                Refusal::unreadable("Request body too slow.").with_status(StatusCode::REQUEST_TIMEOUT)
            );
        }
    };
    let kind = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
    let is_json = kind.is_some_and(|kind| {
        kind.split(';').next().is_some_and(|essence| essence.trim().eq_ignore_ascii_case("application/json"))
    });
    if !is_json {
        let refusal = Refusal::unreadable("The content type must be application/json.");
        return Err(refusal.with_status(StatusCode::UNSUPPORTED_MEDIA_TYPE));
    }
    match serde_json::from_slice(&body) {
        Ok(Value::Object(fields)) => Ok(fields),
        Ok(_) => Err(Refusal::unreadable("Unexpected input: expected {")),
        Err(error) => Err(Refusal::unreadable(format!("Unexpected input: {error}"))),
    }
}

fn idempotency_key(header: Option<&HeaderValue>) -> Result<Option<&str>, Refusal> {
    let Some(key) = header else { return Ok(None) };
    match key.to_str() {
        Ok("") => Ok(None),
        Ok(key) if key.len() <= MAX_KEY_LENGTH => Ok(Some(key)),
        Ok(_) | Err(_) => Err(Refusal::unreadable(format!(
            "Idempotency keys are plain text of at most {MAX_KEY_LENGTH} characters."
        ))),
    }
}

fn admitted(world: &World, headers: &HeaderMap) -> bool {
    let given = headers.get("x-api-key").map_or(&[][..], HeaderValue::as_bytes);
    match &world.config.adyen_api_key {
        Some(key) => given == key.expose_secret().as_bytes(),
        None => !given.is_empty(),
    }
}
