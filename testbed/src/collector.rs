//! A collector of spans: takes OTLP over HTTP, as a process of ours exports it, and keeps what came, in memory or in a file.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{StatusCode, header};
use axum::routing::post;
use axum::{Router, response::IntoResponse};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue, any_value};
use opentelemetry_proto::tonic::trace::v1::status::StatusCode as SpanStatus;
use opentelemetry_proto::tonic::trace::v1::{Span as Exported, span::SpanKind};
use prost::Message as _;
use serde::Serialize;
use tokio::net::TcpListener;
use tokio::task::AbortHandle;
use tokio::time::Instant;

/// More than a test ever makes.
const SPANS_MAX: usize = 1_000_000;
const BODY_MAX_BYTES: usize = 64 << 20;
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// A span as it was exported.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Span {
    /// `service.name` of the process.
    pub service: String,
    /// Its name.
    pub name: String,
    /// `SERVER`, `CLIENT`, `PRODUCER`, `CONSUMER` or `INTERNAL`.
    pub kind: &'static str,
    /// In hexadecimal.
    pub trace_id: String,
    /// In hexadecimal.
    pub span_id: String,
    /// In hexadecimal; None for the first of its trace.
    pub parent_id: Option<String>,
    /// Trace ids and span ids.
    pub links: Vec<(String, String)>,
    /// As text.
    pub attributes: BTreeMap<String, String>,
    /// It failed.
    pub failed: bool,
    /// Nanoseconds since 1970.
    pub began: u64,
    /// Nanoseconds since 1970.
    pub ended: u64,
}

impl Span {
    /// An attribute, or nothing.
    pub fn attribute(&self, name: &str) -> &str {
        self.attributes.get(name).map_or("", String::as_str)
    }
}

/// Listens, until it is dropped.
#[derive(Debug)]
pub struct Collector {
    endpoint: String,
    spans: Kept,
    server: AbortHandle,
}

type Kept = Arc<Mutex<Shelf>>;

#[derive(Debug, Default)]
struct Shelf {
    spans: Vec<Span>,
    /// Where they go instead, one JSON object a line.
    file: Option<File>,
}

impl Collector {
    /// Listens on a free port, and keeps what comes in memory.
    pub async fn start() -> Result<Collector> {
        Collector::keeping(Shelf::default()).await
    }

    /// Listens on a free port, and writes what comes into a new file.
    pub async fn writing(path: &Path) -> Result<Collector> {
        let file = File::create(path).with_context(|| format!("create {}", path.display()))?;
        Collector::keeping(Shelf { file: Some(file), ..Shelf::default() }).await
    }

    async fn keeping(shelf: Shelf) -> Result<Collector> {
        let listener = TcpListener::bind("127.0.0.1:0").await.context("open a port for spans")?;
        let endpoint = format!("http://{}", listener.local_addr()?);
        let spans = Kept::new(Mutex::new(shelf));
        let router = Router::new()
            .route("/v1/traces", post(take))
            .layer(DefaultBodyLimit::max(BODY_MAX_BYTES))
            .with_state(Arc::clone(&spans));
        let server = tokio::spawn(async move { axum::serve(listener, router).await }).abort_handle();
        Ok(Collector { endpoint, spans, server })
    }

    /// What `OTEL_EXPORTER_OTLP_ENDPOINT` is to be.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// All that came so far.
    pub fn spans(&self) -> Vec<Span> {
        self.spans.lock().unwrap_or_else(PoisonError::into_inner).spans.clone()
    }

    /// The spans of a trace, once `enough` says that all are there: processes export when they find the time. Fails with what there is.
    pub async fn trace(
        &self,
        trace_id: &str,
        limit: Duration,
        enough: impl Fn(&[Span]) -> bool,
    ) -> Result<Vec<Span>> {
        let until = Instant::now() + limit;
        loop {
            let mut spans = self.spans();
            spans.retain(|span| span.trace_id == trace_id);
            if enough(&spans) {
                return Ok(spans);
            }
            if Instant::now() > until {
                let names: Vec<_> =
                    spans.iter().map(|span| format!("{} {}", span.service, span.name)).collect();
                bail!("of trace {trace_id} only came: {names:#?}");
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn take(State(kept): State<Kept>, body: Bytes) -> impl IntoResponse {
    let headers = [(header::CONTENT_TYPE, "application/x-protobuf")];
    let Ok(request) = ExportTraceServiceRequest::decode(body) else {
        return (StatusCode::BAD_REQUEST, headers, Vec::new());
    };
    let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
    for resource in request.resource_spans {
        let attributes = resource.resource.map(|resource| readable(&resource.attributes)).unwrap_or_default();
        let service = attributes.get("service.name").cloned().unwrap_or_default();
        for span in resource.scope_spans.into_iter().flat_map(|scope| scope.spans) {
            let span = read(&service, span);
            if let Some(file) = &mut kept.file {
                let Ok(line) = serde_json::to_string(&span) else { continue };
                if writeln!(file, "{line}").is_err() {
                    return (StatusCode::INSUFFICIENT_STORAGE, headers, Vec::new());
                }
            } else if kept.spans.len() < SPANS_MAX {
                kept.spans.push(span);
            }
        }
    }
    (StatusCode::OK, headers, ExportTraceServiceResponse::default().encode_to_vec())
}

fn read(service: &str, span: Exported) -> Span {
    let kind = match span.kind() {
        SpanKind::Server => "SERVER",
        SpanKind::Client => "CLIENT",
        SpanKind::Producer => "PRODUCER",
        SpanKind::Consumer => "CONSUMER",
        SpanKind::Internal => "INTERNAL",
        SpanKind::Unspecified => "UNSPECIFIED",
    };
    Span {
        service: service.to_owned(),
        kind,
        trace_id: hex::encode(&span.trace_id),
        span_id: hex::encode(&span.span_id),
        parent_id: (!span.parent_span_id.is_empty()).then(|| hex::encode(&span.parent_span_id)),
        links: span
            .links
            .iter()
            .map(|link| (hex::encode(&link.trace_id), hex::encode(&link.span_id)))
            .collect(),
        attributes: readable(&span.attributes),
        failed: span.status.is_some_and(|status| status.code() == SpanStatus::Error),
        began: span.start_time_unix_nano,
        ended: span.end_time_unix_nano,
        name: span.name,
    }
}

fn readable(attributes: &[KeyValue]) -> BTreeMap<String, String> {
    let text = |value: &Option<AnyValue>| match value.as_ref().and_then(|value| value.value.as_ref()) {
        Some(any_value::Value::StringValue(text)) => text.clone(),
        Some(any_value::Value::IntValue(number)) => number.to_string(),
        Some(any_value::Value::BoolValue(word)) => word.to_string(),
        Some(any_value::Value::DoubleValue(number)) => number.to_string(),
        other => format!("{other:?}"),
    };
    attributes.iter().map(|attribute| (attribute.key.clone(), text(&attribute.value))).collect()
}
