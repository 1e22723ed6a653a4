//! Payments: made, tried again, found, shown.

use axum::{
    Extension, Json,
    body::Body,
    extract::{
        Path, Query, State,
        rejection::{PathRejection, QueryRejection},
    },
    http::{HeaderMap, StatusCode},
    response::{IntoResponse as _, Response},
};
use chassis::{
    group::NotWritten,
    telemetry::TraceContext,
    trace::{Span, Step},
};
use schema::{decode::Event as _, payment_order_requested::PaymentOrderRequestedEvent};
use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

use super::{
    Api, Within,
    access::{Anyone, Merchant},
    answers::{database_problem, located},
    body::keyed_body,
    openapi::{IdempotencyKey, Listing, Making, Retrying, Showing},
};
use crate::{
    idempotency::{Key, Operation, Outcome},
    payments::{Origin, PaymentCreated},
    problem::Problem,
    request::{PaymentRequest, RetryRequest},
    retries::{self, PaymentRetried},
    search::{PaymentsQuery, Place},
    store::{self, OrderRow, PaymentRow, search},
};

/// Longest `tracestate` that is carried along (W3C Trace Context, section 3.3.1.5).
const TRACESTATE_MAX_BYTES: usize = 512;

/// Makes a payment and asks its PSP for the money, once per Idempotency-Key.
#[utoipa::path(
    post, path = "/v1/payments", tag = "payments", operation_id = "createPayment",
    params(IdempotencyKey), request_body = PaymentRequest,
    responses((status = 201, description = "The payment was made, now or by an earlier request with this key", body = PaymentCreated), Making),
)]
pub(super) async fn create(
    State(api): State<Api>,
    Merchant(caller): Merchant,
    within: Option<Extension<Within>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let (key, body) = keyed_body(&headers, body, api.body_within()).await?;
    let request = PaymentRequest::read(&body)?;
    let within = within.map(|Extension(Within(context))| context);
    let mut span = within.map_or_else(Span::none, |within| {
        Span::messaging(Step::Create, PaymentOrderRequestedEvent::TYPE, Some(within), &[])
    });
    let (trace, tracestate) = trace_of(&headers, span.context().or(within));
    let fingerprint = request.fingerprint();
    let key = Key { caller, operation: Operation::CreatePayment, key, fingerprint };
    let psp = request.psp.as_str();
    let created = api.0.creations.create(Origin { key, trace, tracestate }, request).await;
    let created = created.map_err(|not_written| match not_written {
        NotWritten::Database(error) => api.keyed_problem(&error, &trace.trace_id()),
        NotWritten::Ended => Problem::unavailable("the service is stopping"),
    })?;
    if let Outcome::New(payment) = &created {
        api.0.metrics.payments_created.with_label_values(&[psp]).inc();
        let (payment_id, payment_order_id) = (payment.payment_id, payment.payment_order_id);
        span.set("payment_order_id", payment_order_id.to_string());
        span.set("payment_id", payment_id.to_string());
        let (trace_id, span_id) = (trace.trace_id(), trace.span_id());
        tracing::info!(trace_id, span_id, %payment_order_id, %payment_id, psp, "payment created");
    }
    drop(span);
    let path = created.answer().map(|payment| location(payment.payment_id)).unwrap_or_default();
    let answer = api.keyed_answer(StatusCode::CREATED, created.map(Ok), Problem::invalid);
    Ok(located(answer, &path))
}

/// Tries a payment again after its last payment order has definitely failed: with another payment method, or at the other PSP.
///
/// Refused while the last payment order is open, or nobody knows what became of it: it could still charge.
#[utoipa::path(
    post, path = "/v1/payments/{payment_id}/retry", tag = "payments", operation_id = "retryPayment",
    params(("payment_id" = Uuid, Path, description = "The payment"), IdempotencyKey), request_body = RetryRequest,
    responses((status = 201, description = "Another payment order was opened, now or by an earlier request with this key", body = PaymentRetried), Retrying),
)]
pub(super) async fn retry(
    State(api): State<Api>,
    Merchant(caller): Merchant,
    within: Option<Extension<Within>>,
    id: Result<Path<Uuid>, PathRejection>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let Path(payment_id) = id.map_err(|_| Problem::not_found())?;
    let (key, body) = keyed_body(&headers, body, api.body_within()).await?;
    let request = RetryRequest::read(&body)?;
    let fingerprint = request.fingerprint(payment_id);
    let key = Key { caller, operation: Operation::RetryPayment, key, fingerprint };
    let within = within.map(|Extension(Within(context))| context);
    let retried =
        retries::retry(&api.0.pool, key, payment_id, request, api.0.settings.order_lifetime, within)
            .await
            .map_err(|error| api.keyed_problem(&error, ""))?
            .ok_or_else(Problem::not_found)?;
    if let Outcome::New(Ok(order)) = &retried {
        api.0.metrics.payments_retried.with_label_values(&[&order.psp]).inc();
        let PaymentRetried { payment_order_id, r#try, trace_id, .. } = order;
        tracing::info!(trace_id, %payment_order_id, %payment_id, r#try, "payment tried again");
    }
    let answer = api.keyed_answer(StatusCode::CREATED, retried, Problem::retry_refused);
    Ok(located(answer, &location(payment_id)))
}

fn location(payment_id: Uuid) -> String {
    format!("/v1/payments/{payment_id}")
}

/// The caller's trace, continued by the span that makes the request to the PSP; a new one if there is none or it cannot be read.
fn trace_of(headers: &HeaderMap, span: Option<TraceContext>) -> (TraceContext, Option<String>) {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    match text("traceparent").and_then(TraceContext::parse) {
        None => (span.unwrap_or_else(TraceContext::new_trace), None),
        Some(trace) => {
            let state = text("tracestate").filter(|state| (1..=TRACESTATE_MAX_BYTES).contains(&state.len()));
            (span.unwrap_or_else(|| trace.child()), state.map(str::to_owned))
        }
    }
}

/// A page of payments.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct PaymentsPage {
    /// Newest first.
    payments: Vec<PaymentRow>,
    /// What to send as `cursor` to see what is behind these; null if there is nothing.
    next_cursor: Option<String>,
}

/// Payments, newest first: a merchant's own, and all of them for an operator.
#[utoipa::path(
    get, path = "/v1/payments", tag = "payments", operation_id = "listPayments", params(PaymentsQuery),
    responses((status = 200, description = "A page of payments", body = PaymentsPage), Listing),
)]
pub(super) async fn list(
    State(api): State<Api>,
    caller: Anyone,
    query: Result<Query<PaymentsQuery>, QueryRejection>,
) -> Result<Response, Problem> {
    let Query(query) = query.map_err(|_| {
        Problem::invalid("a parameter of the query is not known, is given twice, or is of the wrong type")
    })?;
    let mut filter = query.check()?;
    filter.caller = caller.sees().map(str::to_owned);
    let mut payments =
        search::payments(&api.0.pool, &filter).await.map_err(|error| database_problem(&error, ""))?;
    let more = usize::try_from(filter.limit).is_ok_and(|limit| {
        let more = payments.len() > limit;
        payments.truncate(limit);
        more
    });
    let next_cursor = payments.last().filter(|_| more).map(|last| Place::of(last).cursor());
    Ok(Json(PaymentsPage { payments, next_cursor }).into_response())
}

/// A payment and its orders.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Payment {
    #[serde(flatten)]
    payment: PaymentRow,
    /// In the order of their tries.
    payment_orders: Vec<OrderRow>,
}

/// A payment and its payment orders.
#[utoipa::path(
    get, path = "/v1/payments/{payment_id}", tag = "payments", operation_id = "showPayment",
    params(("payment_id" = Uuid, Path, description = "The payment")),
    responses((status = 200, description = "The payment", body = Payment), Showing),
)]
pub(super) async fn show(
    State(api): State<Api>,
    caller: Anyone,
    id: Result<Path<Uuid>, PathRejection>,
) -> Result<Response, Problem> {
    let Path(payment_id) = id.map_err(|_| Problem::not_found())?;
    let found = store::payment(&api.0.pool, caller.sees(), payment_id).await;
    let found = found.map_err(|error| database_problem(&error, ""))?;
    let (payment, payment_orders) = found.ok_or_else(Problem::not_found)?;
    Ok(Json(Payment { payment, payment_orders }).into_response())
}
