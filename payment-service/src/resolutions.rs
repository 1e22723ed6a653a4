//! A person's decision about a payment order that needs one: the only way out of NEEDS_REVIEW.
//!
//! ```text
//! lock the order, then its payment -> key known? -> may it be resolved so? (`intervention::resolve`)
//!   -> audit: RESOLVED, by whom, why -> payment order -> the payment's derived state -> the key with its answer -> COMMIT
//! ```
//! The line of the audit comes first: the database lets an order leave a review only where its newest line says that somebody has
//! resolved it so. A result that comes later is decided upon as for any order in that state: what contradicts the person's decision is a
//! CONFLICT, and brings the order before a person again.

use chassis::{postgres::transaction, telemetry::TraceContext};
use serde::{Deserialize, Serialize};
use sqlx::{PgConnection, PgPool};
use time::OffsetDateTime;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::{
    decision::{ReviewReason, State, payment_state},
    idempotency::{self, Key, OK, Outcome, Refused, Undone},
    intervention,
    metrics::Metrics,
    payments::now,
    request::ResolutionRequest,
    store::{
        resolutions::{self, NewResolution},
        results,
    },
};

/// The answer to a resolution. It is stored, and given again to every repetition of the request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PaymentOrderResolved {
    /// The payment order.
    pub payment_order_id: Uuid,
    /// Its state now.
    #[schema(value_type = State)]
    pub state: String,
    /// The PSP's id of the charge, if one is known.
    pub psp_reference: Option<String>,
    /// The payment that it is of.
    pub payment_id: Uuid,
    /// That one's status now: it stays in review as long as another of its orders needs a person.
    #[schema(value_type = State)]
    pub payment_status: String,
    /// Why it is in review still.
    #[schema(value_type = Option<ReviewReason>)]
    pub payment_review_reason: Option<String>,
    /// Who has decided: the caller that the token belongs to.
    pub operator: String,
    /// Why.
    pub reason: String,
    /// When.
    #[serde(with = "time::serde::rfc3339")]
    pub resolved_at: OffsetDateTime,
}

/// What came of a resolution; None: there is no such payment order.
pub type Resolved = Option<Outcome<Result<PaymentOrderResolved, Refused>>>;

/// Resolves a payment order in the name of the key's caller, once per key.
pub async fn resolve(
    pool: &PgPool,
    metrics: &Metrics,
    key: Key,
    payment_order_id: Uuid,
    request: ResolutionRequest,
) -> Result<Resolved, sqlx::Error> {
    let resolved = transaction(pool, move |tx| {
        Box::pin(async move { resolve_in(tx, &key, payment_order_id, &request).await })
    });
    let resolved = resolved.await.or_else(Undone::outcome)?;
    if let Some(Outcome::New(Ok(PaymentOrderResolved { state, operator, .. }))) = &resolved {
        metrics.reviews_resolved.with_label_values(&[state]).inc();
        tracing::info!(%payment_order_id, state, operator, "payment order resolved by a person");
    }
    Ok(resolved)
}

async fn resolve_in(
    tx: &mut PgConnection,
    key: &Key,
    payment_order_id: Uuid,
    request: &ResolutionRequest,
) -> Result<Resolved, Undone> {
    let Some(locked) = results::lock_orders(tx, &[payment_order_id]).await?.pop() else { return Ok(None) };
    let payment_id = locked.payment_id;
    let payment = results::lock_payments(tx, &[payment_id]).await?.pop();
    // Under the lock: whoever came before with this key has committed its answer.
    if let Some(outcome) = idempotency::replay(tx, key, idempotency::done_or_refused).await? {
        return Ok(Some(outcome));
    }
    let (_, status, reason) = payment.ok_or(sqlx::Error::RowNotFound)?;
    let in_double_charge = reason == Some(ReviewReason::DoubleCharge);
    let reference = request.psp_reference.as_deref();
    let answer = match intervention::resolve(&locked.order, in_double_charge, request.decision, reference) {
        Err(refusal) => Err(Refused { detail: refusal.detail().to_owned() }),
        Ok(next) => {
            let trace = TraceContext::parse(&locked.traceparent).map(|trace| trace.trace_id());
            let resolution = NewResolution {
                payment_order_id,
                from: locked.order.state,
                next: &next,
                trace_id: &trace.unwrap_or_default(),
                operator: &key.caller,
                note: &request.reason,
            };
            resolutions::insert(tx, &resolution).await?;
            results::update_orders(tx, &[(payment_order_id, &next)]).await?;
            let orders = results::orders_of_payments(tx, &[payment_id]).await?;
            let orders: Vec<_> = orders.into_iter().map(|(_, state, reason)| (state, reason)).collect();
            let derived = payment_state(&orders);
            if derived != (status, reason) {
                results::update_payments(tx, &[(payment_id, derived.0, derived.1)]).await?;
            }
            Ok(PaymentOrderResolved {
                payment_order_id,
                state: next.state.as_str().to_owned(),
                psp_reference: next.psp_reference,
                payment_id,
                payment_status: derived.0.as_str().to_owned(),
                payment_review_reason: derived.1.map(|reason| reason.as_str().to_owned()),
                operator: key.caller.clone(),
                reason: request.reason.clone(),
                resolved_at: now(),
            })
        }
    };
    if !idempotency::take_either(tx, key, payment_id, (OK, &answer)).await? {
        return Err(Undone::KeyTaken);
    }
    Ok(Some(Outcome::New(answer)))
}
