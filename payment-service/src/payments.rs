//! Creating payments: one transaction for the idempotency key, the payment, its first payment order, the first line of its audit and
//! the event that asks a PSP to act; of several payments, if they are asked for at the same time.
//!
//! If the process dies before the commit, nothing is there and the client asks again. If it dies after, the answer lies stored with
//! the key, and the client that asks again gets it.

use std::time::Duration;

use chassis::{
    group::{Group, NotWritten, Patience},
    postgres::transaction,
    shutdown::Shutdown,
    telemetry::TraceContext,
};
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

/// Groups that are written side by side.
const WRITERS: usize = 2;

/// A payment that somebody asks for.
#[derive(Clone, Debug)]
struct Asked {
    origin: Origin,
    request: PaymentRequest,
}

/// Creates payments, each once per caller and key: those that are asked for while some are being written are written together as the
/// next. A commit costs the database more than a payment does.
#[derive(Clone, Debug)]
pub struct Creations(Group<Asked, Outcome<PaymentCreated>>);

impl Creations {
    /// Starts the writers.
    pub fn start(pool: PgPool, order_lifetime: Duration, shutdown: &Shutdown) -> Self {
        let write = move |asked: Vec<Asked>| {
            let pool = pool.clone();
            async move {
                let work = transaction(&pool, move |tx| {
                    Box::pin(async move { create_all(tx, &asked, order_lifetime).await })
                });
                work.await
            }
        };
        Self(Group::start("payments", WRITERS, Patience::None, shutdown, write))
    }

    /// Creates a payment. A caller that is dropped meanwhile does not take it back: its answer waits under the key.
    pub async fn create(
        &self,
        origin: Origin,
        request: PaymentRequest,
    ) -> Result<Outcome<PaymentCreated>, NotWritten> {
        self.0.write(Asked { origin, request }).await
    }
}

async fn create_all(
    tx: &mut PgConnection,
    asked: &[Asked],
    order_lifetime: Duration,
) -> Result<Vec<Outcome<PaymentCreated>>, sqlx::Error> {
    let new: Vec<NewPayment> =
        asked.iter().map(|asked| new_payment(&asked.origin, &asked.request, order_lifetime)).collect();
    let created: Vec<PaymentCreated> = new.iter().map(answer).collect();
    let keyed: Vec<_> = asked
        .iter()
        .zip(&created)
        .map(|(asked, created)| (&asked.origin.key, created.payment_id, created))
        .collect();
    let taken = idempotency::take_all(tx, CREATED, &keyed).await?;
    let is_new = |payment: &NewPayment| taken.contains(&payment.order.payment_id);

    let fresh: Vec<&NewPayment> = new.iter().filter(|payment| is_new(payment)).collect();
    if !fresh.is_empty() {
        store::insert_payments(tx, &fresh).await?;
        let requests: Vec<_> = new
            .iter()
            .zip(asked)
            .filter(|(payment, _)| is_new(payment))
            .map(|(payment, asked)| (&payment.order, &payment.terms, asked.origin.tracestate.as_deref()))
            .collect();
        append_requests(tx, &requests).await?;
    }
    let known: Vec<&Key> = asked
        .iter()
        .zip(&new)
        .filter(|(_, payment)| !is_new(payment))
        .map(|(asked, _)| &asked.origin.key)
        .collect();
    let mut replayed = idempotency::replay_all(tx, &known, idempotency::done).await?.into_iter();
    let outcome = |(payment, created): (&NewPayment, PaymentCreated)| {
        if is_new(payment) {
            Ok(Outcome::New(created))
        } else {
            replayed.next().flatten().ok_or(sqlx::Error::RowNotFound)
        }
    };
    new.iter().zip(created).map(outcome).collect()
}

/// Asks PSPs to act: the events of payment orders that were created in this transaction, each with what it is about and the caller's
/// `tracestate`.
pub(crate) async fn append_requests(
    tx: &mut PgConnection,
    orders: &[(&NewPaymentOrder, &Terms, Option<&str>)],
) -> Result<(), sqlx::Error> {
    let keys: Vec<String> = orders.iter().map(|(order, ..)| order.payment_order_id.to_string()).collect();
    let mut events = Vec::with_capacity(orders.len());
    for ((order, terms, tracestate), key) in orders.iter().zip(&keys) {
        let event = PaymentOrderRequestedEvent {
            payment_order_id: order.payment_order_id,
            psp: order.psp.as_str().to_owned(),
            amount_minor: terms.amount_minor,
            currency: terms.currency.clone(),
            payment_method: order.payment_method.clone(),
            merchant_reference: terms.merchant_reference.clone(),
            expires_at: order.expires_at,
        };
        events.push(outbox::NewEvent {
            event_id: Uuid::now_v7(),
            event_type: PaymentOrderRequestedEvent::TYPE,
            aggregate_id: key,
            payload: serde_json::to_value(&event).map_err(|error| sqlx::Error::Encode(error.into()))?,
            traceparent: Some(&order.traceparent),
            tracestate: *tracestate,
        });
    }
    outbox::append_all(tx, events).await
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
