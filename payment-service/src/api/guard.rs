//! What one request may take, before anybody looks at it: a place, and a time. Measured here, whatever becomes of it.

use axum::{
    extract::{MatchedPath, Request, State},
    middleware::Next,
    response::{IntoResponse as _, Response},
};
use chassis::{telemetry::TraceContext, trace::Span};
use tokio::time::{Instant, timeout};

use super::{Api, Within};
use crate::problem::Problem;

pub(super) async fn guard(State(Api(api)): State<Api>, mut request: Request, next: Next) -> Response {
    let began = Instant::now();
    // A label must not be made of what strangers send.
    let route = request
        .extensions()
        .get::<MatchedPath>()
        .map_or_else(|| "other".to_owned(), |path| path.as_str().to_owned());
    let method = match request.method().as_str() {
        known @ ("GET" | "HEAD" | "POST" | "PUT" | "PATCH" | "DELETE" | "OPTIONS") => known.to_owned(),
        _ => "other".to_owned(),
    };
    let traceparent = request.headers().get("traceparent").and_then(|value| value.to_str().ok());
    let parent = traceparent.and_then(TraceContext::parse);
    let mut span = Span::server(&method, &route, request.uri().path(), parent);
    if let Some(context) = span.context() {
        request.extensions_mut().insert(Within(context));
    }
    let response = match api.permits.try_acquire() {
        Err(_) => Problem::unavailable("too many requests at once").into_response(),
        Ok(_permit) => timeout(api.settings.request_timeout, next.run(request))
            .await
            .unwrap_or_else(|_| Problem::unavailable("the request took too long").into_response()),
    };
    let status = response.status();
    span.answered(status.as_u16());
    let histogram = api.metrics.http.with_label_values(&[method.as_str(), &route, status.as_str()]);
    histogram.observe(began.elapsed().as_secs_f64());
    response
}
