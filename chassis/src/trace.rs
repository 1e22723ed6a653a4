//! Spans of OpenTelemetry, exported by OTLP if an endpoint is set; otherwise there are none, and asking costs one load.
//!
//! A span here is a value that belongs to a record, not a scope of a thread: its parent comes out of a database row or a header, its own
//! context goes into one, and hundreds of them are open in one task. So the SDK is used as it is, without the bridge from `tracing`; log
//! lines name the ids of the span that they belong to as fields of their own, and nothing of a log goes into a span.
//!
//! What the exporter cannot take in time is dropped: its queue is bounded (`OTEL_BSP_MAX_QUEUE_SIZE`), and putting a span into it never
//! waits.

use std::{
    borrow::Cow,
    sync::{
        OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, bail};
use opentelemetry::{
    Context, KeyValue, SpanId, TraceFlags, TraceId, Value,
    trace::{
        Link, Span as _, SpanBuilder, SpanContext, Status, TraceContextExt as _, TraceState, Tracer as _,
        TracerProvider as _,
    },
};
use opentelemetry_otlp::{SpanExporter as Otlp, WithExportConfig as _};
use opentelemetry_sdk::{
    Resource,
    error::OTelSdkResult,
    trace::{BatchSpanProcessor, SdkTracer, SdkTracerProvider, SpanData, SpanExporter},
};

pub use opentelemetry::trace::SpanKind;

use crate::{config::TelemetryConfig, telemetry::TraceContext};

/// How long the end of the process may wait for the last spans to be taken.
const FLUSH_MAX: Duration = Duration::from_secs(3);

static EXPORT: OnceLock<Export> = OnceLock::new();

struct Export {
    provider: SdkTracerProvider,
    tracer: SdkTracer,
    /// What the beginning of a trace decided holds for all of it, so that nothing need be asked.
    follows_parent: bool,
}

/// Begins to export, if there is somewhere to export to. Once in the life of a process.
pub(crate) fn init(service: &'static str, config: &TelemetryConfig) -> anyhow::Result<()> {
    let Some(endpoint) = config.traces_endpoint()? else { return Ok(()) };
    let exporter =
        Otlp::builder().with_http().with_endpoint(endpoint.as_str()).build().context("OTLP exporter")?;
    let exporter = Saying { exporter, failing: AtomicBool::new(false), endpoint: endpoint.clone() };
    let mut resource = Resource::builder();
    if set("OTEL_SERVICE_NAME").is_none() {
        resource = resource.with_service_name(service);
    }
    let version = KeyValue::new("service.version", env!("CARGO_PKG_VERSION"));
    let provider = SdkTracerProvider::builder()
        .with_resource(resource.with_attribute(version).build())
        .with_span_processor(BatchSpanProcessor::builder(exporter).build())
        .build();
    let sampler = set("OTEL_TRACES_SAMPLER");
    let follows_parent = sampler.as_deref().is_none_or(|sampler| sampler.starts_with("parentbased"));
    let export = Export { tracer: provider.tracer("payment-outbox"), provider, follows_parent };
    if EXPORT.set(export).is_err() {
        bail!("the export of spans was started twice");
    }
    tracing::info!(%endpoint, "spans are exported");
    Ok(())
}

/// Hands over what is left, and says if that was not possible in time. Spans that end later are lost.
pub(crate) async fn flush() {
    let Some(export) = EXPORT.get() else { return };
    let provider = export.provider.clone();
    let ended = tokio::task::spawn_blocking(move || provider.shutdown_with_timeout(FLUSH_MAX)).await;
    if let Ok(Err(error)) = ended {
        tracing::warn!(%error, "the last spans were not exported");
    }
}

/// Whether spans are made at all.
pub fn exporting() -> bool {
    EXPORT.get().is_some()
}

/// What spans are exported by, if a child of this parent could be one.
fn wanted(parent: Option<TraceContext>) -> Option<&'static Export> {
    EXPORT.get().filter(|export| !export.follows_parent || parent.is_none_or(|parent| parent.sampled()))
}

/// What a variable is set to, if to anything.
pub(crate) fn set(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.trim().is_empty())
}

/// A step of a trace. It ends when it is dropped. Without an export, or in a trace that is not sampled, it is nothing and has no context.
#[derive(Debug, Default)]
pub struct Span(Option<Box<opentelemetry_sdk::trace::Span>>);

impl Span {
    /// No span.
    pub fn none() -> Self {
        Self(None)
    }

    /// Begins a step of the parent's trace, or the first one of a new trace.
    pub fn start(kind: SpanKind, name: impl Into<Cow<'static, str>>, parent: Option<TraceContext>) -> Self {
        Self::begin(kind, name, parent, &[], None)
    }

    /// As [`Span::start`], with links, and begun at a moment that has passed if one is given.
    pub fn begin(
        kind: SpanKind,
        name: impl Into<Cow<'static, str>>,
        parent: Option<TraceContext>,
        links: &[TraceContext],
        began: Option<SystemTime>,
    ) -> Self {
        let Some(export) = wanted(parent) else { return Self(None) };
        let mut builder = SpanBuilder::from_name(name).with_kind(kind);
        if !links.is_empty() {
            builder =
                builder.with_links(links.iter().map(|link| Link::with_context(remote(*link))).collect());
        }
        if let Some(began) = began {
            builder = builder.with_start_time(began);
        }
        let context = parent
            .map_or_else(Context::new, |parent| Context::new().with_remote_span_context(remote(parent)));
        Self(Some(Box::new(export.tracer.build_with_context(builder, &context))))
    }

    /// A step that a message goes through, by OpenTelemetry's conventions for messaging: `send payment-order-requests`.
    pub fn messaging(
        step: Step,
        destination: &str,
        parent: Option<TraceContext>,
        links: &[TraceContext],
    ) -> Self {
        Self::messaging_since(step, destination, parent, links, None)
    }

    /// As [`Span::messaging`], begun at a moment that has passed.
    pub fn messaging_since(
        step: Step,
        destination: &str,
        parent: Option<TraceContext>,
        links: &[TraceContext],
        began: Option<SystemTime>,
    ) -> Self {
        if wanted(parent).is_none() {
            return Self(None);
        }
        let (operation, operation_type, kind) = step.words();
        let mut span = Self::begin(kind, format!("{operation} {destination}"), parent, links, began);
        span.set("messaging.system", "kafka");
        span.set("messaging.operation.name", operation);
        span.set("messaging.operation.type", operation_type);
        span.set("messaging.destination.name", destination.to_owned());
        span
    }

    /// A request that is answered, by OpenTelemetry's conventions for HTTP: `POST /v1/payments`. Its query is left out: people search by
    /// what is theirs.
    pub fn server(method: &str, route: &str, path: &str, parent: Option<TraceContext>) -> Self {
        if wanted(parent).is_none() {
            return Self(None);
        }
        let mut span = Self::start(SpanKind::Server, format!("{method} {route}"), parent);
        if span.is_recording() {
            span.set("http.request.method", method.to_owned());
            span.set("http.route", route.to_owned());
            span.set("url.path", path.to_owned());
            span.set("url.scheme", "http");
        }
        span
    }

    /// What a request was answered.
    pub fn answered(&mut self, status: u16) {
        self.set("http.response.status_code", i64::from(status));
        if status >= 500 {
            self.fail(&status.to_string());
        }
    }

    /// Says something about the step.
    pub fn set(&mut self, name: &'static str, value: impl Into<Value>) {
        if let Some(span) = &mut self.0 {
            span.set_attribute(KeyValue::new(name, value));
        }
    }

    /// As [`Span::set`], if there is something to say.
    pub fn set_if(&mut self, name: &'static str, value: Option<impl Into<Value>>) {
        if let Some(value) = value {
            self.set(name, value);
        }
    }

    /// Says where a record lies: `messaging.destination.partition.id` and `messaging.kafka.offset`.
    pub fn set_position(&mut self, partition: i32, offset: i64) {
        if self.is_recording() {
            self.set("messaging.destination.partition.id", partition.to_string());
            self.set("messaging.kafka.offset", offset);
        }
    }

    /// Says that the step failed, by a word that stands for many such failures.
    pub fn fail(&mut self, error_type: &str) {
        if let Some(span) = &mut self.0 {
            span.set_attribute(KeyValue::new("error.type", error_type.to_owned()));
            span.set_status(Status::error(""));
        }
    }

    /// What belongs to this step is given this context. None without a span.
    pub fn context(&self) -> Option<TraceContext> {
        let context = self.0.as_ref()?.span_context();
        TraceContext::new(
            u128::from_be_bytes(context.trace_id().to_bytes()),
            u64::from_be_bytes(context.span_id().to_bytes()),
            context.trace_flags().to_u8(),
        )
    }

    /// Whether anything is kept of what is said.
    pub fn is_recording(&self) -> bool {
        self.0.as_ref().is_some_and(|span| span.is_recording())
    }
}

/// What happens to a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// It is made: its context goes with it, unchanged, wherever it is carried.
    Create,
    /// It is handed to the brokers, by somebody who did not make it.
    Send,
    /// It is fetched.
    Poll,
    /// It is worked off.
    Process,
}

impl Step {
    /// `messaging.operation.name`, `messaging.operation.type` and the span's kind.
    fn words(self) -> (&'static str, &'static str, SpanKind) {
        match self {
            Self::Create => ("create", "create", SpanKind::Producer),
            // The context in the message is that of its creation: then sending is a client's step.
            Self::Send => ("send", "send", SpanKind::Client),
            Self::Poll => ("poll", "receive", SpanKind::Client),
            Self::Process => ("process", "process", SpanKind::Consumer),
        }
    }
}

fn remote(context: TraceContext) -> SpanContext {
    let (trace_id, span_id, flags) = context.parts();
    SpanContext::new(
        TraceId::from(trace_id),
        SpanId::from(span_id),
        TraceFlags::new(flags),
        true,
        TraceState::default(),
    )
}

/// An exporter that says in the log when it begins to fail and when it works again, and not each time.
#[derive(Debug)]
struct Saying<E> {
    exporter: E,
    failing: AtomicBool,
    endpoint: String,
}

impl<E: SpanExporter> SpanExporter for Saying<E> {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let (result, endpoint) = (self.exporter.export(batch).await, &self.endpoint);
        let failed = result.is_err();
        if failed != self.failing.swap(failed, Ordering::Relaxed) {
            if let Err(error) = result {
                tracing::warn!(endpoint, %error, "spans are not taken: they are thrown away until they are");
            } else {
                tracing::info!(endpoint, "spans are taken again");
            }
        }
        // It is said, and nothing more can be done about it.
        Ok(())
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn shutdown(&self) -> OTelSdkResult {
        self.exporter.shutdown()
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}
