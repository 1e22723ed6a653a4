//! Trying a payment again: a new payment order after a definite failure, and never beside one that could still charge.
//!
//! ```text
//! lock the payment's orders, then the payment -> key known? -> may it be tried again? (`intervention::may_retry`)
//!   -> payment order + audit + outbox event + the payment's derived state + the key with its answer -> COMMIT
//! ```
//! Two retries at once wait for each other at the payment's row, and the second one sees the order that the first has opened. The
//! orders are locked before the payment, as everywhere: a result that comes at this moment is before this or behind it, and where it
//! is behind it is decided upon as any result (a late success of the failed order is a contradiction for a person).

use std::time::Duration;

use chassis::{
    postgres::transaction,
    telemetry::TraceContext,
    trace::{Span, Step},
};
use schema::{decode::Event as _, payment_order_requested::PaymentOrderRequestedEvent};
use serde::{Deserialize, Serialize};
use sqlx::{PgConnection, PgPool};
use time::OffsetDateTime;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::{
    decision::{State, payment_state},
    idempotency::{self, CREATED, Key, Outcome, Refused, Undone},
    intervention::may_retry,
    payments::{append_requests, now, retry_order_id},
    request::{Psp, RetryRequest},
    store::{
        NewPaymentOrder, results,
        retries::{self, LastOrder},
    },
};

/// The answer to a request that opened another payment order. It is stored, and given again to every repetition of the request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PaymentRetried {
    /// The payment.
    pub payment_id: Uuid,
    /// Its status now.
    #[schema(value_type = State)]
    pub status: String,
    /// The payment order that was opened.
    pub payment_order_id: Uuid,
    /// The how-manieth of this payment it is.
    pub r#try: i32,
    /// Who is asked for the money.
    #[schema(value_type = Psp)]
    pub psp: String,
    /// The payment's trace.
    pub trace_id: String,
    /// No first attempt starts after this time.
    #[serde(with = "time::serde::rfc3339")]
    pub expires_at: OffsetDateTime,
    /// When the payment order was created.
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
}

/// What came of a request for a payment; None: this caller has no such payment.
pub type Retried = Option<Outcome<Result<PaymentRetried, Refused>>>;

/// Opens another payment order, once per caller and key.
pub async fn retry(
    pool: &PgPool,
    key: Key,
    payment_id: Uuid,
    request: RetryRequest,
    order_lifetime: Duration,
    within: Option<TraceContext>,
) -> Result<Retried, sqlx::Error> {
    let attempt = || {
        let (key, request) = (key.clone(), request.clone());
        transaction(pool, move |tx| {
            Box::pin(async move { retry_in(tx, &key, payment_id, &request, (order_lifetime, within)).await })
        })
    };
    let mut retried = attempt().await;
    if matches!(&retried, Err(Undone::Database(error)) if id_is_taken(error)) {
        // Another payment's retry under this key was committed meanwhile: its key is seen now, and says so. If none is, the id is that of
        // a payment order whose key is no longer kept.
        retried = attempt().await;
    }
    retried.or_else(Undone::outcome)
}

fn id_is_taken(error: &sqlx::Error) -> bool {
    error.as_database_error().and_then(sqlx::error::DatabaseError::constraint) == Some("payment_orders_pkey")
}

async fn retry_in(
    tx: &mut PgConnection,
    key: &Key,
    payment_id: Uuid,
    request: &RetryRequest,
    (order_lifetime, within): (Duration, Option<TraceContext>),
) -> Result<Retried, Undone> {
    retries::lock_orders(tx, &key.caller, payment_id).await?;
    let Some(terms) = retries::lock_payment(tx, &key.caller, payment_id).await? else { return Ok(None) };
    // Under the lock: whoever came before with this key has committed its answer.
    if let Some(outcome) = idempotency::replay(tx, key, idempotency::done_or_refused).await? {
        return Ok(Some(outcome));
    }
    let tries = results::orders_of_payments(tx, &[payment_id]).await?;
    let tries: Vec<_> = tries.into_iter().map(|(_, state, reason)| (state, reason)).collect();
    let answer = if let Err(refusal) = may_retry(&tries) {
        Err(Refused { detail: refusal.detail().to_owned() })
    } else {
        let last = retries::last_order(tx, payment_id).await?;
        let order = new_order(last, key, request, order_lifetime, within);
        retries::insert_order(tx, &order).await?;
        append_requests(tx, &[(&order, &terms, None)]).await?;
        let (status, reason) = payment_state(&[&tries[..], &[(State::Created, None)]].concat());
        results::update_payments(tx, &[(payment_id, status, reason)]).await?;
        Ok(answer(order, status))
    };
    if !idempotency::take_either(tx, key, payment_id, (CREATED, &answer)).await? {
        return Err(Undone::KeyTaken);
    }
    Ok(Some(Outcome::New(answer)))
}

/// As the last one, but for what the request names; of the trace that all that happens to the payment belongs to, with a link to the
/// request that asked for it.
fn new_order(
    last: LastOrder,
    key: &Key,
    request: &RetryRequest,
    order_lifetime: Duration,
    within: Option<TraceContext>,
) -> NewPaymentOrder {
    let created_at = now();
    let payment_order_id = retry_order_id(&key.caller, &key.key);
    let parent = TraceContext::parse(&last.traceparent);
    let mut span = Span::messaging(Step::Create, PaymentOrderRequestedEvent::TYPE, parent, within.as_slice());
    span.set("payment_order_id", payment_order_id.to_string());
    let trace = span.context().or_else(|| parent.map(TraceContext::child));
    let trace = trace.unwrap_or_else(TraceContext::new_trace);
    NewPaymentOrder {
        payment_order_id,
        payment_id: last.payment_id,
        r#try: last.r#try + 1,
        psp: request.psp.unwrap_or(last.psp),
        payment_method: request.payment_method.clone().unwrap_or(last.payment_method),
        trace_id: trace.trace_id(),
        traceparent: trace.traceparent(),
        expires_at: created_at + order_lifetime,
        created_at,
    }
}

fn answer(order: NewPaymentOrder, status: State) -> PaymentRetried {
    PaymentRetried {
        payment_id: order.payment_id,
        status: status.as_str().to_owned(),
        payment_order_id: order.payment_order_id,
        r#try: order.r#try,
        psp: order.psp.as_str().to_owned(),
        trace_id: order.trace_id,
        expires_at: order.expires_at,
        created_at: order.created_at,
    }
}
