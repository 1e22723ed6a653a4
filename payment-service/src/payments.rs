//! Creating a payment: one transaction for the idempotency key, the payment, its first payment order, the first line of its audit and
//! the event that asks a PSP to act.
//!
//! If the process dies before the commit, nothing is there and the client asks again. If it dies after, the answer lies stored with
//! the key, and the client that asks again gets it.

use std::time::Duration;

use chassis::{postgres::transaction, telemetry::TraceContext};
use schema::{decode::Event as _, payment_order_requested::PaymentOrderRequestedEvent};
use serde::{Deserialize, Serialize};
use sqlx::{PgConnection, PgPool};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::{
    request::PaymentRequest,
    store::{self, FIRST_TRY, NewPayment, StoredAnswer},
};

/// Namespace of payment order ids. It must never change: a client that asks again after the database was lost must meet the same
/// id, and with it the same idempotency key at the PSP.
const ORDER_NAMESPACE: Uuid = Uuid::from_u128(0x8f2b_6f0e_93a1_4d6c_a7c5_0b1d_5e4f_7a90);

/// The id of a caller's payment order.
pub fn payment_order_id(caller: &str, idempotency_key: &str, r#try: i32) -> Uuid {
    Uuid::new_v5(&ORDER_NAMESPACE, format!("{caller}/{idempotency_key}/{try}").as_bytes())
}

/// The answer to a request that created a payment. It is stored, and given again to every repetition of the request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PaymentCreated {
    /// Its id.
    pub payment_id: Uuid,
    /// Its status when it was created.
    pub status: String,
    /// Its first payment order.
    pub payment_order_id: Uuid,
    /// In minor units.
    pub amount_minor: i64,
    /// ISO 4217 code.
    pub currency: String,
    /// The caller's own id.
    pub merchant_reference: String,
    /// Who is asked for the money.
    pub psp: String,
    /// The trace that all that happens to this payment belongs to.
    pub trace_id: String,
    /// No first attempt starts after this time.
    #[serde(with = "time::serde::rfc3339")]
    pub expires_at: OffsetDateTime,
    /// When it was created.
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
}

/// Whose request it is.
#[derive(Clone, Debug)]
pub struct Origin {
    /// Name that belongs to the token.
    pub caller: String,
    /// The caller's key for this request.
    pub idempotency_key: String,
    /// The trace that the payment belongs to.
    pub trace: TraceContext,
    /// What the caller's tracing system wants to be carried along.
    pub tracestate: Option<String>,
}

/// What came of a request.
#[derive(Debug)]
pub enum Creation {
    /// The payment was created now.
    New(PaymentCreated),
    /// It had been created before by the same request.
    Replayed(PaymentCreated),
    /// The key belongs to another request.
    KeyReused,
}

/// Creates a payment, once per caller and key.
pub async fn create(
    pool: &PgPool,
    origin: Origin,
    request: PaymentRequest,
    order_lifetime: Duration,
) -> Result<Creation, sqlx::Error> {
    transaction(pool, move |tx| {
        Box::pin(async move { create_in(tx, &origin, &request, order_lifetime).await })
    })
    .await
}

async fn create_in(
    tx: &mut PgConnection,
    origin: &Origin,
    request: &PaymentRequest,
    order_lifetime: Duration,
) -> Result<Creation, sqlx::Error> {
    let new = new_payment(origin, request, order_lifetime);
    let created = answer(&new);
    let json = |error: serde_json::Error| sqlx::Error::Decode(Box::new(error));
    let fingerprint = request.fingerprint().to_vec();
    let stored = StoredAnswer {
        fingerprint,
        status_code: 201,
        response: serde_json::to_value(&created).map_err(json)?,
    };
    let key = (origin.caller.as_str(), origin.idempotency_key.as_str());
    if !store::take_key(tx, key, new.payment_id, &stored).await? {
        let first = store::answer_of_key(tx, key).await?;
        if first.fingerprint != stored.fingerprint {
            return Ok(Creation::KeyReused);
        }
        return Ok(Creation::Replayed(serde_json::from_value(first.response).map_err(json)?));
    }
    store::insert_payment(tx, &new).await?;
    let event = PaymentOrderRequestedEvent {
        payment_order_id: new.payment_order_id,
        psp: new.psp.to_owned(),
        amount_minor: new.amount_minor,
        currency: new.currency,
        payment_method: new.payment_method,
        merchant_reference: new.merchant_reference,
        expires_at: new.expires_at,
    };
    let event = outbox::NewEvent {
        event_id: Uuid::now_v7(),
        event_type: PaymentOrderRequestedEvent::TYPE,
        aggregate_id: &new.payment_order_id.to_string(),
        payload: serde_json::to_value(&event).map_err(json)?,
        traceparent: Some(&new.traceparent),
        tracestate: origin.tracestate.as_deref(),
    };
    outbox::append(tx, event).await?;
    Ok(Creation::New(created))
}

fn new_payment(origin: &Origin, request: &PaymentRequest, order_lifetime: Duration) -> NewPayment {
    // What PostgreSQL keeps: microseconds.
    let now = OffsetDateTime::now_utc();
    let created_at = now.replace_microsecond(now.microsecond()).unwrap_or(now);
    NewPayment {
        payment_id: Uuid::now_v7(),
        payment_order_id: payment_order_id(&origin.caller, &origin.idempotency_key, FIRST_TRY),
        caller: origin.caller.clone(),
        amount_minor: request.amount_minor,
        currency: request.currency.clone(),
        merchant_reference: request.merchant_reference.clone(),
        psp: request.psp.as_str(),
        payment_method: request.payment_method.clone(),
        trace_id: origin.trace.trace_id(),
        traceparent: origin.trace.traceparent(),
        expires_at: created_at + order_lifetime,
        created_at,
    }
}

fn answer(new: &NewPayment) -> PaymentCreated {
    PaymentCreated {
        payment_id: new.payment_id,
        status: "CREATED".to_owned(),
        payment_order_id: new.payment_order_id,
        amount_minor: new.amount_minor,
        currency: new.currency.clone(),
        merchant_reference: new.merchant_reference.clone(),
        psp: new.psp.to_owned(),
        trace_id: new.trace_id.clone(),
        expires_at: new.expires_at,
        created_at: new.created_at,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_payment_order_id_depends_on_caller_key_and_try_alone() {
        let id = payment_order_id("shop", "key", 1);
        assert_eq!(id, payment_order_id("shop", "key", 1));
        assert_eq!(id.to_string(), "b65ad651-911b-57b4-9890-e6bffaf20a5c");
        let others = [("shop", "key", 2), ("shop", "key2", 1), ("shop2", "key", 1)];
        assert!(others.iter().all(|(caller, key, r#try)| payment_order_id(caller, key, *r#try) != id));
    }
}
