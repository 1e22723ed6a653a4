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
use utoipa::ToSchema;
use uuid::Uuid;

use crate::{
    decision::State,
    idempotency::{self, CREATED, Key, Outcome},
    request::{PaymentRequest, Psp},
    store::{self, NewPayment, NewPaymentOrder, Terms},
};

/// Namespace of payment order ids. It must never change: a client that asks again after the database was lost must meet the same
/// id, and with it the same idempotency key at the PSP.
const ORDER_NAMESPACE: Uuid = Uuid::from_u128(0x8f2b_6f0e_93a1_4d6c_a7c5_0b1d_5e4f_7a90);

/// The id of the first payment order of a payment, by the key that made the payment.
pub fn first_order_id(caller: &str, idempotency_key: &str) -> Uuid {
    Uuid::new_v5(&ORDER_NAMESPACE, format!("{caller}/{idempotency_key}/1").as_bytes())
}

/// The id of a further payment order, by the key of the retry that opened it. Not by the number of the try as well: after a database was
/// put back, the same retry may be another try than before, and must meet the same key at the PSP all the same. A caller has no slash, so
/// that no key is the other operation's.
pub fn retry_order_id(caller: &str, idempotency_key: &str) -> Uuid {
    Uuid::new_v5(&ORDER_NAMESPACE, format!("{caller}/{idempotency_key}/retry").as_bytes())
}

/// The answer to a request that created a payment. It is stored, and given again to every repetition of the request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PaymentCreated {
    /// Its id.
    pub payment_id: Uuid,
    /// Its status when it was created.
    #[schema(value_type = State)]
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
    #[schema(value_type = Psp)]
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
    /// The caller's key for this request.
    pub key: Key,
    /// The trace that the payment belongs to.
    pub trace: TraceContext,
    /// What the caller's tracing system wants to be carried along.
    pub tracestate: Option<String>,
}

/// Creates a payment, once per caller and key.
pub async fn create(
    pool: &PgPool,
    origin: Origin,
    request: PaymentRequest,
    order_lifetime: Duration,
) -> Result<Outcome<PaymentCreated>, sqlx::Error> {
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
) -> Result<Outcome<PaymentCreated>, sqlx::Error> {
    let new = new_payment(origin, request, order_lifetime);
    let created = answer(&new);
    if !idempotency::take(tx, &origin.key, created.payment_id, (CREATED, &created)).await? {
        let replayed = idempotency::replay(tx, &origin.key, idempotency::done).await?;
        return replayed.ok_or(sqlx::Error::RowNotFound);
    }
    store::insert_payment(tx, &new).await?;
    append_request(tx, &new.order, &new.terms, origin.tracestate.as_deref()).await?;
    Ok(Outcome::New(created))
}

/// Asks a PSP to act: the event of a payment order that was created in this transaction.
pub(crate) async fn append_request(
    tx: &mut PgConnection,
    order: &NewPaymentOrder,
    terms: &Terms,
    tracestate: Option<&str>,
) -> Result<(), sqlx::Error> {
    let event = PaymentOrderRequestedEvent {
        payment_order_id: order.payment_order_id,
        psp: order.psp.as_str().to_owned(),
        amount_minor: terms.amount_minor,
        currency: terms.currency.clone(),
        payment_method: order.payment_method.clone(),
        merchant_reference: terms.merchant_reference.clone(),
        expires_at: order.expires_at,
    };
    let event = outbox::NewEvent {
        event_id: Uuid::now_v7(),
        event_type: PaymentOrderRequestedEvent::TYPE,
        aggregate_id: &order.payment_order_id.to_string(),
        payload: serde_json::to_value(&event).map_err(|error| sqlx::Error::Encode(error.into()))?,
        traceparent: Some(&order.traceparent),
        tracestate,
    };
    outbox::append(tx, event).await.map(drop)
}

/// As PostgreSQL keeps it: microseconds.
pub(crate) fn now() -> OffsetDateTime {
    let now = OffsetDateTime::now_utc();
    now.replace_microsecond(now.microsecond()).unwrap_or(now)
}

fn new_payment(origin: &Origin, request: &PaymentRequest, order_lifetime: Duration) -> NewPayment {
    let created_at = now();
    NewPayment {
        caller: origin.key.caller.clone(),
        terms: Terms {
            amount_minor: request.amount_minor,
            currency: request.currency.clone(),
            merchant_reference: request.merchant_reference.clone(),
        },
        order: NewPaymentOrder {
            payment_order_id: first_order_id(&origin.key.caller, &origin.key.key),
            payment_id: Uuid::now_v7(),
            r#try: 1,
            psp: request.psp,
            payment_method: request.payment_method.clone(),
            trace_id: origin.trace.trace_id(),
            traceparent: origin.trace.traceparent(),
            expires_at: created_at + order_lifetime,
            created_at,
        },
    }
}

fn answer(NewPayment { terms, order, .. }: &NewPayment) -> PaymentCreated {
    PaymentCreated {
        payment_id: order.payment_id,
        status: "CREATED".to_owned(),
        payment_order_id: order.payment_order_id,
        amount_minor: terms.amount_minor,
        currency: terms.currency.clone(),
        merchant_reference: terms.merchant_reference.clone(),
        psp: order.psp.as_str().to_owned(),
        trace_id: order.trace_id.clone(),
        expires_at: order.expires_at,
        created_at: order.created_at,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_payment_order_id_depends_on_caller_key_and_operation_alone() {
        let id = first_order_id("shop", "key");
        assert_eq!(id, first_order_id("shop", "key"));
        assert_eq!(id.to_string(), "b65ad651-911b-57b4-9890-e6bffaf20a5c");
        let others =
            [first_order_id("shop", "key2"), first_order_id("shop2", "key"), retry_order_id("shop", "key")];
        assert!(others.iter().all(|other| *other != id));
        assert_ne!(retry_order_id("shop", "key"), retry_order_id("shop", "key/retry"));
        assert_ne!(retry_order_id("shop", "key"), first_order_id("shop", "key/retry"));
    }
}
