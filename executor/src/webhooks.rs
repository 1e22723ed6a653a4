//! What PSPs tell by themselves: verified, stored, answered, and only then worked off.
//!
//! ```text
//! listener ─▶ limits ─▶ signature ─▶ one row per event, once ─▶ 2xx          the request ends here
//! (connections) (bytes, time)  (stripe, adyen)     │
//!                                                  ▼
//!                     processing: lock what is due ─▶ its order ─▶ what it means ─▶ record | wake the resolver | later
//! ```
//! [`settings`] says who may send; [`stripe`] and [`adyen`] know each PSP's signatures and what its events mean; [`arrived`] is what is
//! kept of them; [`processing`] works off what is stored, in as many processes as there are, and [`decision`] says what follows.
//!
//! Nothing is parsed before its signature is right (an Adyen signature is inside the body: there, the password of the request is
//! checked first, and every item before any is stored). An answer of 2xx means: stored, and the PSP need not send it again. If the
//! process dies before, the PSP sends it again; if it dies after, whoever looks next works it off. An event that comes again is the
//! same row. One that comes too early waits for its order, one that comes too late is evidence like any other. One that names no order at
//! all is somebody else's, or a report: it is counted, and not stored.

pub mod adyen;
pub mod arrived;
pub mod decision;
pub mod processing;
pub mod settings;
pub mod stripe;

use std::{future::Future, sync::Arc, time::Duration};

use axum::{
    Router,
    body::Body,
    extract::State,
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
    routing::post,
};
use chassis::{postgres::transaction, trace::Span};
use futures::StreamExt as _;
use sqlx::PgPool;
use time::OffsetDateTime;
use tokio::{
    sync::{Notify, Semaphore},
    time::timeout,
};

use self::{arrived::Arrived, settings::WebhookConfig};
use crate::{clock::Clock, metrics::Metrics, psp::Answer, store::webhooks as store};

/// Longest time for one request, storing included. Adyen gives up after 10 s.
const REQUEST_MAX: Duration = Duration::from_secs(8);

/// Who sends webhooks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sender {
    /// Stripe.
    Stripe,
    /// Adyen.
    Adyen,
}

impl Sender {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Stripe, Self::Adyen];

    /// As requests name the PSP, and as it stands in the database.
    pub fn name(self) -> &'static str {
        match self {
            Self::Stripe => "STRIPE",
            Self::Adyen => "ADYEN",
        }
    }

    /// As metrics name it.
    pub fn label(self) -> &'static str {
        match self {
            Self::Stripe => "stripe",
            Self::Adyen => "adyen",
        }
    }

    /// The one that the database names so.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|sender| sender.name() == name)
    }

    /// Where it sends to.
    fn path(self) -> &'static str {
        match self {
            Self::Stripe => "/webhooks/stripe",
            Self::Adyen => "/webhooks/adyen",
        }
    }

    /// Largest body that is read, in bytes.
    fn body_max_bytes(self) -> usize {
        match self {
            Self::Stripe => 64 << 10,
            // Several items in one request.
            Self::Adyen => 1 << 20,
        }
    }

    /// What each of them takes for "you need not send this again".
    fn accepted(self) -> &'static str {
        match self {
            Self::Stripe => "{\"received\":true}",
            Self::Adyen => "[accepted]",
        }
    }
}

/// Why a request is refused. Nothing of it is stored; a PSP sends it again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The signature's header is missing, there twice, or malformed.
    Header,
    /// No signature, or none of ours.
    Signature,
    /// Signed too long ago, or in the future.
    Stale,
    /// User and password are missing or wrong.
    Credentials,
    /// The body cannot be read as what its signature must be in.
    Unreadable,
    /// The body is too large.
    TooLarge,
    /// The body ended too early.
    Broken,
    /// It took too long.
    Slow,
    /// Too many requests at once.
    Busy,
    /// It could not be stored.
    Database,
}

impl Refusal {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::Header,
        Self::Signature,
        Self::Stale,
        Self::Credentials,
        Self::Unreadable,
        Self::TooLarge,
        Self::Broken,
        Self::Slow,
        Self::Busy,
        Self::Database,
    ];

    /// As it stands in metrics and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Header => "header",
            Self::Signature => "signature",
            Self::Stale => "stale",
            Self::Credentials => "credentials",
            Self::Unreadable => "unreadable",
            Self::TooLarge => "too_large",
            Self::Broken => "broken",
            Self::Slow => "slow",
            Self::Busy => "busy",
            Self::Database => "database",
        }
    }

    fn status(self) -> StatusCode {
        match self {
            Self::Header | Self::Signature | Self::Stale | Self::Unreadable | Self::Broken => {
                StatusCode::BAD_REQUEST
            }
            Self::Credentials => StatusCode::UNAUTHORIZED,
            Self::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Slow => StatusCode::REQUEST_TIMEOUT,
            Self::Busy | Self::Database => StatusCode::SERVICE_UNAVAILABLE,
        }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let mut response = (self.status(), self.as_str()).into_response();
        match self {
            Self::Busy | Self::Database => {
                response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("5"));
            }
            Self::Credentials => {
                let basic = HeaderValue::from_static("Basic realm=\"webhooks\"");
                response.headers_mut().insert(header::WWW_AUTHENTICATE, basic);
            }
            Self::Header
            | Self::Signature
            | Self::Stale
            | Self::Unreadable
            | Self::TooLarge
            | Self::Broken
            | Self::Slow => {}
        }
        response
    }
}

/// What an event means for an order.
#[derive(Clone, Debug)]
pub enum Meaning {
    /// It says how the payment ended.
    Evidence(Answer),
    /// Something has happened; how things stand now must be asked.
    Hint(Answer),
    /// Not a kind of event that changes a payment here.
    Nothing,
}

/// The receiving side.
#[derive(Clone, Debug)]
pub struct Webhooks(Arc<Parts>);

#[derive(Debug)]
struct Parts {
    pool: PgPool,
    metrics: Metrics,
    clock: Clock,
    /// Told when something was stored.
    wake: Arc<Notify>,
    stripe: Option<stripe::Keys>,
    adyen: Option<adyen::Keys>,
    permits: Semaphore,
}

impl Webhooks {
    /// Ready to receive; fails if a secret cannot be one.
    pub fn new(
        config: &WebhookConfig,
        clock: Clock,
        pool: PgPool,
        metrics: Metrics,
        wake: Arc<Notify>,
    ) -> anyhow::Result<Self> {
        let (stripe, adyen) = (config.stripe()?, config.adyen()?);
        let permits = Semaphore::new(config.webhooks_concurrency);
        Ok(Self(Arc::new(Parts { pool, metrics, clock, wake, stripe, adyen, permits })))
    }

    /// The routes of the PSPs whose secrets are there.
    pub fn router(&self) -> Router {
        let mut router = Router::new();
        if self.0.stripe.is_some() {
            router = router.route(Sender::Stripe.path(), post(receive_stripe));
        }
        if self.0.adyen.is_some() {
            router = router.route(Sender::Adyen.path(), post(receive_adyen));
        }
        router.with_state(self.clone())
    }

    /// Bounds what one request may take, stores what `verified` yields, and answers.
    async fn receive<F>(&self, sender: Sender, verified: F) -> Response
    where
        F: Future<Output = Result<Vec<Arrived>, Refusal>>,
    {
        // A trace of its own: a stranger's is not continued, and whose payment it is about is not known yet.
        let path = sender.path();
        let mut span = Span::server("POST", path, path, None);
        let response = self.answer(sender, verified, &span).await;
        span.answered(response.status().as_u16());
        response
    }

    async fn answer<F>(&self, sender: Sender, verified: F, span: &Span) -> Response
    where
        F: Future<Output = Result<Vec<Arrived>, Refusal>>,
    {
        let Ok(_permit) = self.0.permits.try_acquire() else {
            return self.refuse(sender, Refusal::Busy);
        };
        let stored = timeout(REQUEST_MAX, async { self.store(sender, verified.await?, span).await }).await;
        match stored.unwrap_or(Err(Refusal::Slow)) {
            Ok(()) => (StatusCode::OK, sender.accepted()).into_response(),
            Err(refusal) => self.refuse(sender, refusal),
        }
    }

    fn refuse(&self, sender: Sender, refusal: Refusal) -> Response {
        let (psp, reason) = (sender.label(), refusal.as_str());
        self.0.metrics.webhooks_rejected.with_label_values(&[psp, reason]).inc();
        // Never a word of what was sent: it may be anybody's.
        tracing::warn!(psp, reason, "webhook refused");
        refusal.into_response()
    }

    /// In a transaction of its own, which a sender that hangs up does not cut.
    async fn store(&self, sender: Sender, mut arrived: Vec<Arrived>, span: &Span) -> Result<(), Refusal> {
        let counted = |count: usize| u64::try_from(count).unwrap_or(u64::MAX);
        let received =
            |outcome| self.0.metrics.webhooks_received.with_label_values(&[sender.label(), outcome]);
        let all = counted(arrived.len());
        arrived.retain(|arrived| !arrived.is_foreign());
        let count = counted(arrived.len());
        received("foreign").inc_by(all.saturating_sub(count));
        if arrived.is_empty() {
            return Ok(());
        }
        let traceparent = span.context().map(|context| context.traceparent());
        let new = transaction(&self.0.pool, move |tx| {
            Box::pin(async move { store::insert(tx, &arrived, traceparent.as_deref()).await })
        });
        let new = new.await.map_err(|error| {
            tracing::error!(psp = sender.label(), %error, "a webhook could not be stored; the PSP will send it again");
            Refusal::Database
        })?;
        received("new").inc_by(new);
        received("duplicate").inc_by(count.saturating_sub(new));
        if new > 0 {
            self.0.wake.notify_one();
        }
        Ok(())
    }
}

async fn receive_stripe(State(webhooks): State<Webhooks>, headers: HeaderMap, body: Body) -> Response {
    let verified = async {
        let keys = webhooks.0.stripe.as_ref().ok_or(Refusal::Signature)?;
        let signature = only(&headers, stripe::SIGNATURE).ok_or(Refusal::Header)?;
        let body = read(body, Sender::Stripe.body_max_bytes()).await?;
        // By the machine's clock: it is compared with that of Stripe, which nobody moves.
        keys.verify(signature.as_bytes(), &body, OffsetDateTime::now_utc())?;
        Ok(vec![stripe::arrived(body, webhooks.0.clock.now())])
    };
    webhooks.receive(Sender::Stripe, verified).await
}

async fn receive_adyen(State(webhooks): State<Webhooks>, headers: HeaderMap, body: Body) -> Response {
    let verified = async {
        let keys = webhooks.0.adyen.as_ref().ok_or(Refusal::Credentials)?;
        let credentials = only(&headers, header::AUTHORIZATION.as_str()).ok_or(Refusal::Credentials)?;
        keys.authorise(credentials.as_bytes())?;
        let body = read(body, Sender::Adyen.body_max_bytes()).await?;
        keys.verify(&body, webhooks.0.clock.now())
    };
    webhooks.receive(Sender::Adyen, verified).await
}

/// The header's value, if it is there once.
fn only<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h HeaderValue> {
    let mut values = headers.get_all(name).iter();
    values.next().filter(|_| values.next().is_none())
}

async fn read(body: Body, max: usize) -> Result<Vec<u8>, Refusal> {
    let (mut stream, mut bytes) = (body.into_data_stream(), Vec::new());
    while let Some(chunk) = stream.next().await {
        let chunk = chunk.map_err(|_| Refusal::Broken)?;
        if bytes.len() + chunk.len() > max {
            return Err(Refusal::TooLarge);
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes)
}
