//! Stripe's HTTP surface: reads requests, decides what is kept for them, writes answers.
//!
//! A request is authenticated, read (bounded in size and time), looked up by its idempotency key, checked, executed
//! and answered, in this order. What is kept for the key is kept before the answer is sent or withheld, so a client
//! that hears nothing finds the truth by asking again.

use std::sync::Arc;

use axum::Router;
use axum::body::{Body, Bytes, to_bytes};
use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use base64::Engine;

use super::answer::Answer;
use super::errors::Refusal;
use super::form::{self, Form};
use super::ids;
use super::params::{Cancel, Confirm, Create, List, Retrieve};
use super::payment_intents::Pending;
use super::webhook::{self, Origin};
use crate::delivery::{deliver, reset, withhold};
use crate::idempotency::{Begin, Ticket};
use crate::outcome;
use crate::scenario::{Delivery, Obstacle, Psp};
use crate::webhooks::{self, publish};
use crate::{MAX_BODY_BYTES, READ_TIMEOUT, World};

/// Stripe's limit on the length of a key.
const MAX_KEY_LENGTH: usize = 255;
/// Stripe answers with the account's version; a request may ask for another.
pub(crate) const API_VERSION: &str = "2026-07-29.dahlia";
const FORM: &str = "application/x-www-form-urlencoded";

/// An answer as it is kept for its idempotency key, with the request that it was first given to.
#[derive(Debug)]
pub(crate) struct Stored {
    answer: Answer,
    request_id: Box<str>,
}

enum Operation {
    Create,
    Confirm(String),
    Cancel(String),
}

type Shared = State<Arc<World>>;
type Outcome = outcome::Outcome<Answer, Pending>;

/// What Stripe answers.
pub(crate) fn routes() -> Router<Arc<World>> {
    let intents = get(async |State(world): Shared, request: Request| query(&world, None, &request))
        .post(|world, request| operate(world, Operation::Create, request));
    let one = get(async |State(world): Shared, Path(id): Path<String>, request: Request| {
        query(&world, Some(&id), &request)
    });
    let confirm =
        post(|world, Path(id): Path<String>, request| operate(world, Operation::Confirm(id), request));
    let cancel =
        post(|world, Path(id): Path<String>, request| operate(world, Operation::Cancel(id), request));
    Router::new()
        .route("/v1/payment_intents", intents.fallback(unrecognized))
        .route("/v1/payment_intents/{id}", one.fallback(unrecognized))
        .route("/v1/payment_intents/{id}/confirm", confirm.fallback(unrecognized))
        .route("/v1/payment_intents/{id}/cancel", cancel.fallback(unrecognized))
}

/// The headers that an answer repeats.
struct Envelope {
    request_id: String,
    version: HeaderValue,
    key: Option<HeaderValue>,
}

impl Envelope {
    fn open(headers: &HeaderMap) -> Self {
        let version = headers.get("stripe-version").cloned();
        Self {
            request_id: ids::request(),
            version: version.unwrap_or_else(|| HeaderValue::from_static(API_VERSION)),
            key: headers.get("idempotency-key").cloned(),
        }
    }

    /// `first` is the request that this answer was first given to, when it was another one.
    fn seal(self, answer: &Answer, first: Option<&str>) -> Response {
        let original = first.unwrap_or(&self.request_id);
        let Ok(body) = answer.render(original) else {
            return StatusCode::INTERNAL_SERVER_ERROR.into_response();
        };
        let mut response = (answer.status(), body).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, no-store"));
        if let Some(key) = self.key {
            set(headers, "original-request", original);
            headers.insert("idempotency-key", key);
        }
        set(headers, "request-id", &self.request_id);
        headers.insert("stripe-version", self.version);
        if first.is_some() {
            headers.insert("idempotent-replayed", HeaderValue::from_static("true"));
        }
        if let Some(advice) = answer.should_retry() {
            headers.insert(
                "stripe-should-retry",
                HeaderValue::from_static(if advice { "true" } else { "false" }),
            );
        }
        if answer.status() == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Basic realm=\"Stripe\""));
        }
        response
    }

    fn origin(&self) -> Origin {
        let key = self.key.as_ref().and_then(|key| key.to_str().ok());
        Origin { id: self.request_id.as_str().into(), idempotency_key: key.map(Into::into) }
    }

    fn refuse(self, refusal: Refusal) -> Response {
        self.seal(&refusal.into(), None)
    }
}

fn set(headers: &mut HeaderMap, name: &'static str, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(HeaderName::from_static(name), value);
    }
}

/// POST: changes something, so idempotency keys apply.
async fn operate(State(world): Shared, operation: Operation, request: Request) -> Response {
    let envelope = Envelope::open(request.headers());
    let Ok(permit) = world.requests.try_acquire() else { return envelope.refuse(Refusal::rate_limit()) };
    if let Err(refusal) = admit(request.headers()) {
        return envelope.refuse(refusal);
    }
    let (parts, body) = request.into_parts();
    let form = match read_form(&parts.uri, &parts.headers, body).await {
        Ok(form) => form,
        Err(refusal) => return envelope.refuse(refusal),
    };
    let endpoint = parts.uri.path();
    let fingerprint = form::fingerprint(&form);
    let key = match idempotency_key(&parts.headers) {
        Ok(key) => key,
        Err(refusal) => return envelope.refuse(refusal),
    };
    let ticket = match key {
        None => None,
        Some(key) => {
            match world.stripe.keys.begin(key, endpoint, fingerprint, world.clock.now().unix_timestamp()) {
                Begin::Execute(ticket) => Some(ticket),
                Begin::Replay(stored) => return envelope.seal(&stored.answer, Some(&stored.request_id)),
                Begin::InFlight => return envelope.refuse(Refusal::key_in_use(key)),
                Begin::OtherEndpoint(first) => {
                    return envelope.refuse(Refusal::other_endpoint(key, endpoint, &first));
                }
                Begin::OtherParameters => return envelope.refuse(Refusal::other_parameters(key)),
                Begin::Full => return envelope.refuse(Refusal::full()),
            }
        }
    };
    let retry_name = key.map_or_else(|| hex::encode(fingerprint), str::to_owned);
    let outcome = match execute(&world, operation, form, &retry_name) {
        Ok(outcome) => outcome,
        Err(refusal) => return envelope.refuse(refusal),
    };
    let (stored, delivery) = match outcome {
        Outcome::NotExecuted(answer) => return envelope.seal(&answer, None),
        Outcome::Hindered(obstacle) => {
            drop(ticket);
            return hinder(&world, envelope, obstacle, permit).await;
        }
        Outcome::Executed { answer, delivery, pending } => {
            if let Some(pending) = pending {
                let task_world = Arc::clone(&world);
                world.tasks.spawn(async move {
                    let (_, event) = settle(&task_world, pending, None).await;
                    publish(&task_world, event).await;
                });
            }
            let event = event(&world, &answer, || Some(envelope.origin()));
            let stored = keep(answer, delivery, &envelope.request_id, ticket);
            publish(&world, event).await;
            (stored, delivery)
        }
        Outcome::Pending(pending, delivery) => {
            // A task of its own: the issuer's answer counts, whether or not the client is still there to hear it.
            let (task_world, origin) = (Arc::clone(&world), envelope.origin());
            let settled = world.tasks.spawn(async move {
                let (answer, event) = settle(&task_world, pending, Some(origin.clone())).await;
                let stored = keep(answer, delivery, &origin.id, ticket);
                publish(&task_world, event).await;
                stored
            });
            match settled.await {
                Ok(stored) => (stored, delivery),
                Err(_) => return envelope.refuse(Refusal::server_error()),
            }
        }
    };
    tracing::debug!(endpoint, status = stored.answer.status().as_u16(), ?delivery, "request executed");
    let response = if delivery == Delivery::ErrorOnce {
        envelope.refuse(Refusal::passing_server_error())
    } else {
        envelope.seal(&stored.answer, None)
    };
    deliver(&world, response, delivery, permit).await
}

async fn hinder<P>(world: &World, envelope: Envelope, obstacle: Obstacle, place: P) -> Response {
    match obstacle {
        // What meets nothing is executed.
        Obstacle::None => envelope.refuse(Refusal::server_error()),
        Obstacle::Lost => {
            drop(place);
            withhold(world).await
        }
        Obstacle::Reset => reset(),
        Obstacle::RateLimited => envelope.refuse(Refusal::rate_limit()),
        Obstacle::Unavailable { try_again } => envelope.refuse(Refusal::unavailable(try_again)),
    }
}

fn execute(world: &World, operation: Operation, form: Form, retry_name: &str) -> Result<Outcome, Refusal> {
    let intents = &world.stripe.intents;
    let desk = world.desk();
    Ok(match operation {
        Operation::Create => intents.create(Create::parse(form)?, retry_name, desk),
        Operation::Confirm(id) => intents.confirm(&id, &Confirm::parse(form)?, desk),
        Operation::Cancel(id) => intents.cancel(&id, &Cancel::parse(form)?, desk.now.unix_timestamp()),
    })
}

/// Waits for the issuer, who can be too late to be heard.
async fn settle(
    world: &World,
    pending: Pending,
    origin: Option<Origin>,
) -> (Answer, Option<webhooks::Event>) {
    world.clock.sleep(world.config.slow).await;
    match pending.settle(&world.ledger, world.clock.now()) {
        Ok(answer) => {
            let event = event(world, &answer, || origin);
            (answer, event)
        }
        Err(stands) => (stands, None),
    }
}

/// What there is to tell of an outcome.
fn event(
    world: &World,
    outcome: &Answer,
    origin: impl FnOnce() -> Option<Origin>,
) -> Option<webhooks::Event> {
    if !world.webhooks.wanted(Psp::Stripe) {
        return None;
    }
    webhook::Event::of(outcome, world.clock.now(), origin()).map(webhooks::Event::Stripe)
}

/// Keeps what a replay of the key will be told.
fn keep(answer: Answer, delivery: Delivery, request_id: &str, ticket: Option<Ticket<Stored>>) -> Arc<Stored> {
    let answer = if delivery == Delivery::ErrorKept { Refusal::server_error().into() } else { answer };
    let stored = Arc::new(Stored { answer, request_id: request_id.into() });
    if let Some(ticket) = ticket {
        ticket.finish(Arc::clone(&stored));
    }
    stored
}

/// GET: changes nothing; an idempotency key has no meaning here.
fn query(world: &World, id: Option<&str>, request: &Request) -> Response {
    let mut envelope = Envelope::open(request.headers());
    envelope.key = None;
    let Ok(_permit) = world.requests.try_acquire() else { return envelope.refuse(Refusal::rate_limit()) };
    let answer = admit(request.headers()).and_then(|()| {
        let form = decode(request.uri().query().unwrap_or_default().as_bytes(), &[])?;
        Ok(match id {
            Some(id) => world.stripe.intents.retrieve(id, &Retrieve::parse(form)?),
            None => world.stripe.intents.list(&List::parse(form)?),
        })
    });
    envelope.seal(&answer.unwrap_or_else(Into::into), None)
}

pub(crate) async fn unrecognized(method: Method, uri: Uri, headers: HeaderMap) -> Response {
    Envelope::open(&headers).refuse(Refusal::unrecognized_url(method.as_str(), uri.path()))
}

async fn read_form(uri: &Uri, headers: &HeaderMap, body: Body) -> Result<Form, Refusal> {
    let body: Bytes = match tokio::time::timeout(READ_TIMEOUT, to_bytes(body, MAX_BODY_BYTES)).await {
        Ok(Ok(body)) => body,
        Ok(Err(_)) => {
            return Err(
                Refusal::invalid(None, "Request body too large.").with_status(StatusCode::PAYLOAD_TOO_LARGE)
            );
        }
        Err(_) => {
            return Err(
                Refusal::invalid(None, "Request body too slow.").with_status(StatusCode::REQUEST_TIMEOUT)
            );
        }
    };
    let kind = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
    let is_form = kind.is_some_and(|kind| {
        kind.split(';').next().is_some_and(|essence| essence.trim().eq_ignore_ascii_case(FORM))
    });
    if !body.is_empty() && !is_form {
        return Err(Refusal::invalid(
            None,
            format!(
                "Invalid request (check that your POST content type is {FORM}). If you have any questions, we can help \
                 at https://support.stripe.com/."
            ),
        ));
    }
    decode(uri.query().unwrap_or_default().as_bytes(), &body)
}

fn decode(query: &[u8], body: &[u8]) -> Result<Form, Refusal> {
    let mut form = Form::new();
    for part in [query, body] {
        form::decode_into(&mut form, part).map_err(|malformed| {
            Refusal::invalid(None, format!("Invalid parameter name: {}", malformed.parameter))
                .about(malformed.parameter)
        })?;
    }
    Ok(form)
}

fn idempotency_key(headers: &HeaderMap) -> Result<Option<&str>, Refusal> {
    let Some(key) = headers.get("idempotency-key") else { return Ok(None) };
    match key.to_str() {
        Ok("") => Ok(None),
        Ok(key) if key.len() <= MAX_KEY_LENGTH => Ok(Some(key)),
        Ok(_) | Err(_) => Err(Refusal::invalid(
            None,
            format!("Idempotency keys are plain text of at most {MAX_KEY_LENGTH} characters."),
        )),
    }
}

fn admit(headers: &HeaderMap) -> Result<(), Refusal> {
    let credentials = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let secret = match credentials.and_then(|credentials| credentials.split_once(' ')) {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => Some(token.trim().to_owned()),
        Some((scheme, token)) if scheme.eq_ignore_ascii_case("basic") => basic_user(token.trim()),
        Some(_) | None => None,
    };
    let Some(secret) = secret.filter(|secret| !secret.is_empty()) else {
        return Err(Refusal::unauthorized(
            "You did not provide an API key. You need to provide your API key in the Authorization header, using Bearer \
             auth (e.g. 'Authorization: Bearer YOUR_SECRET_KEY'). See https://stripe.com/docs/api#authentication for \
             details, or we can help at https://support.stripe.com/.",
        ));
    };
    if ["sk_test_", "rk_test_"].iter().any(|kind| secret.len() > kind.len() && secret.starts_with(kind)) {
        return Ok(());
    }
    // A real secret that came here by mistake must not come back in a message that somebody logs.
    let shown: String = secret.chars().take(8).collect();
    Err(Refusal::unauthorized(format!("Invalid API Key provided: {shown}****")))
}

fn basic_user(token: &str) -> Option<String> {
    let decoded = base64::engine::general_purpose::STANDARD.decode(token).ok()?;
    let text = String::from_utf8(decoded).ok()?;
    Some(text.split_once(':').map_or(text.as_str(), |(user, _)| user).to_owned())
}
