//! Payment orders: shown with all that happened to them, and resolved where they need a person.

use axum::{
    Json,
    body::Body,
    extract::{Path, State, rejection::PathRejection},
    http::{HeaderMap, StatusCode},
    response::{IntoResponse as _, Response},
};
use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

use super::{
    Api,
    access::{Anyone, Operator},
    answers::database_problem,
    body::keyed_body,
    openapi::{IdempotencyKey, Resolving, Showing},
};
use crate::{
    idempotency::{Key, Operation},
    problem::Problem,
    request::ResolutionRequest,
    resolutions::{self, PaymentOrderResolved},
    store::{self, OrderRow, TransitionRow},
};

/// A payment order and its audit.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct PaymentOrder {
    #[serde(flatten)]
    payment_order: OrderRow,
    /// Everything that was decided about it, in order; the first 1,000. Who a person was, and what was noted, is shown to operators.
    transitions: Vec<TransitionRow>,
}

/// A payment order, and everything that was decided about it.
#[utoipa::path(
    get, path = "/v1/payment-orders/{payment_order_id}", tag = "payment orders", operation_id = "showPaymentOrder",
    params(("payment_order_id" = Uuid, Path, description = "The payment order")),
    responses((status = 200, description = "The payment order", body = PaymentOrder), Showing),
)]
pub(super) async fn show(
    State(api): State<Api>,
    caller: Anyone,
    id: Result<Path<Uuid>, PathRejection>,
) -> Result<Response, Problem> {
    let Path(id) = id.map_err(|_| Problem::not_found())?;
    let found = store::payment_order(&api.0.pool, caller.sees(), id).await;
    let found = found.map_err(|error| database_problem(&error, ""))?;
    let (payment_order, mut transitions) = found.ok_or_else(Problem::not_found)?;
    if caller.sees().is_some() {
        // Names and notes of those who work here are not a merchant's.
        for transition in &mut transitions {
            (transition.operator, transition.note) = (None, None);
        }
    }
    Ok(Json(PaymentOrder { payment_order, transitions }).into_response())
}

/// Ends the review of a payment order by a person's decision, which is written into its audit.
///
/// SUCCESSFUL: the charge stands. FAILED: no money is kept, because none was taken or all of it was given back. Of a payment that was charged
/// twice (DOUBLE_CHARGE), the payment order whose charge was given back is resolved as FAILED.
#[utoipa::path(
    post, path = "/v1/payment-orders/{payment_order_id}/resolve", tag = "payment orders", operation_id = "resolvePaymentOrder",
    params(("payment_order_id" = Uuid, Path, description = "The payment order"), IdempotencyKey), request_body = ResolutionRequest,
    responses((status = 200, description = "It was resolved, now or by an earlier request with this key", body = PaymentOrderResolved), Resolving),
)]
pub(super) async fn resolve(
    State(api): State<Api>,
    Operator(caller): Operator,
    id: Result<Path<Uuid>, PathRejection>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let Path(payment_order_id) = id.map_err(|_| Problem::not_found())?;
    let (key, body) = keyed_body(&headers, body, api.body_within()).await?;
    let request = ResolutionRequest::read(&body)?;
    let fingerprint = request.fingerprint(payment_order_id);
    let key = Key { caller, operation: Operation::ResolvePaymentOrder, key, fingerprint };
    let resolved = resolutions::resolve(&api.0.pool, &api.0.metrics, key, payment_order_id, request)
        .await
        .map_err(|error| api.keyed_problem(&error, ""))?
        .ok_or_else(Problem::not_found)?;
    Ok(api.keyed_answer(StatusCode::OK, resolved, Problem::resolution_refused))
}
