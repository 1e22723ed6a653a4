//! All SQL of this process and nothing else: here what the API needs, in [`results`] what applying results needs, and beside it what
//! the quarantine, its operators, the audit, the tokens and the console need.

pub(crate) mod audit;
pub(crate) mod commands;
pub(crate) mod console;
pub(crate) mod idempotency;
pub(crate) mod quarantine;
pub(crate) mod resolutions;
pub(crate) mod results;
pub(crate) mod retries;
pub(crate) mod search;
pub(crate) mod tokens;

use serde::Serialize;
use sqlx::{FromRow, PgConnection, PgPool};
use time::OffsetDateTime;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::{
    decision::{ReviewReason, State},
    request::Psp,
};

// ------------------------------------------------------------------------------------------------ creating a payment

/// What a payment is about.
#[derive(Clone, Debug, FromRow)]
pub(crate) struct Terms {
    pub(crate) amount_minor: i64,
    pub(crate) currency: String,
    pub(crate) merchant_reference: String,
}

/// A payment order that is to be: the first of its payment, or a further one.
#[derive(Clone, Debug)]
pub(crate) struct NewPaymentOrder {
    pub(crate) payment_order_id: Uuid,
    pub(crate) payment_id: Uuid,
    pub(crate) r#try: i32,
    pub(crate) psp: Psp,
    pub(crate) payment_method: String,
    pub(crate) trace_id: String,
    pub(crate) traceparent: String,
    pub(crate) expires_at: OffsetDateTime,
    pub(crate) created_at: OffsetDateTime,
}

/// A payment with its first payment order.
#[derive(Clone, Debug)]
pub(crate) struct NewPayment {
    pub(crate) caller: String,
    pub(crate) terms: Terms,
    pub(crate) order: NewPaymentOrder,
}

/// Inserts payments, the first payment order of each and the transitions that are their creation.
pub(crate) async fn insert_payments(tx: &mut PgConnection, new: &[&NewPayment]) -> Result<(), sqlx::Error> {
    fn column<'a, T>(new: &[&'a NewPayment], value: impl Fn(&'a NewPayment) -> T) -> Vec<T> {
        new.iter().copied().map(value).collect()
    }
    sqlx::query(
        "WITH new AS (
             SELECT * FROM UNNEST($1::uuid[], $2::text[], $3::bigint[], $4::text[], $5::text[], $6::text[], $7::timestamptz[], $8::uuid[],
                                  $9::integer[], $10::text[], $11::text[], $12::text[], $13::timestamptz[])
                    AS n (payment_id, caller, amount_minor, currency, merchant_reference, trace_id, created_at, payment_order_id,
                          try, psp, payment_method, traceparent, expires_at)
         ), payment AS (
             INSERT INTO payments.payments (payment_id, caller, amount_minor, currency, merchant_reference, status, trace_id, created_at, updated_at)
             SELECT payment_id, caller, amount_minor, currency, merchant_reference, 'CREATED', trace_id, created_at, created_at FROM new
         ), payment_order AS (
             INSERT INTO payments.payment_orders (payment_order_id, payment_id, try, psp, payment_method, state, traceparent, expires_at, created_at, updated_at)
             SELECT payment_order_id, payment_id, try, psp, payment_method, 'CREATED', traceparent, expires_at, created_at, created_at FROM new
         )
         INSERT INTO payments.payment_order_transitions (payment_order_id, to_state, decision, trace_id)
         SELECT payment_order_id, 'CREATED', 'APPLIED', trace_id FROM new",
    )
    .bind(column(new, |new| new.order.payment_id))
    .bind(column(new, |new| new.caller.as_str()))
    .bind(column(new, |new| new.terms.amount_minor))
    .bind(column(new, |new| new.terms.currency.as_str()))
    .bind(column(new, |new| new.terms.merchant_reference.as_str()))
    .bind(column(new, |new| new.order.trace_id.as_str()))
    .bind(column(new, |new| new.order.created_at))
    .bind(column(new, |new| new.order.payment_order_id))
    .bind(column(new, |new| new.order.r#try))
    .bind(column(new, |new| new.order.psp.as_str()))
    .bind(column(new, |new| new.order.payment_method.as_str()))
    .bind(column(new, |new| new.order.traceparent.as_str()))
    .bind(column(new, |new| new.order.expires_at))
    .execute(tx)
    .await?;
    Ok(())
}

// --------------------------------------------------------------------------------------------------- showing payments

/// A payment as it is shown.
#[derive(Debug, FromRow, Serialize, ToSchema)]
pub(crate) struct PaymentRow {
    /// Its id.
    pub(crate) payment_id: Uuid,
    /// Who asked for it: the name that belongs to the token.
    pub(crate) caller: String,
    /// In minor units.
    pub(crate) amount_minor: i64,
    /// ISO 4217 code.
    pub(crate) currency: String,
    /// The merchant's own id.
    pub(crate) merchant_reference: String,
    /// As its payment orders are.
    #[schema(value_type = State)]
    pub(crate) status: String,
    /// Why it waits for a person.
    #[schema(value_type = Option<ReviewReason>)]
    pub(crate) review_reason: Option<String>,
    /// The trace that all that happens to it belongs to.
    pub(crate) trace_id: String,
    /// When it was created.
    #[serde(with = "time::serde::rfc3339")]
    pub(crate) created_at: OffsetDateTime,
    /// When its status last changed.
    #[serde(with = "time::serde::rfc3339")]
    pub(crate) updated_at: OffsetDateTime,
}

/// A payment order as it is shown.
#[derive(Debug, FromRow, Serialize, ToSchema)]
pub(crate) struct OrderRow {
    /// Its id, and the key under which its PSP is asked.
    pub(crate) payment_order_id: Uuid,
    /// The payment that it is of.
    pub(crate) payment_id: Uuid,
    /// The how-manieth of its payment it is.
    pub(crate) r#try: i32,
    /// Who is asked for the money.
    #[schema(value_type = Psp)]
    pub(crate) psp: String,
    /// What is known of it.
    #[schema(value_type = State)]
    pub(crate) state: String,
    /// The PSP's id of the charge.
    pub(crate) psp_reference: Option<String>,
    /// The PSP's code of the last result that changed it, or one of ours.
    pub(crate) error_code: Option<String>,
    /// Its text for people.
    pub(crate) error_message: Option<String>,
    /// Why it waits for a person.
    #[schema(value_type = Option<ReviewReason>)]
    pub(crate) review_reason: Option<String>,
    /// The payment's trace.
    pub(crate) trace_id: String,
    /// No first attempt starts after this time.
    #[serde(with = "time::serde::rfc3339")]
    pub(crate) expires_at: OffsetDateTime,
    /// When it was created.
    #[serde(with = "time::serde::rfc3339")]
    pub(crate) created_at: OffsetDateTime,
    /// When it last changed.
    #[serde(with = "time::serde::rfc3339")]
    pub(crate) updated_at: OffsetDateTime,
    /// When its outcome became known for the first time.
    #[serde(with = "time::serde::rfc3339::option")]
    pub(crate) settled_at: Option<OffsetDateTime>,
}

/// One line of the audit.
#[derive(Debug, FromRow, Serialize, ToSchema)]
pub(crate) struct TransitionRow {
    /// The result that was decided upon; null for the creation and for what people do.
    pub(crate) event_id: Option<Uuid>,
    /// Null for the creation.
    #[schema(value_type = Option<State>)]
    pub(crate) from_state: Option<String>,
    /// What the order was then.
    #[schema(value_type = State)]
    pub(crate) to_state: String,
    /// APPLIED, DUPLICATE, STALE or CONFLICT of a result, RESOLVED by an operator, BY_HAND past the service.
    pub(crate) decision: String,
    /// What the PSP said.
    pub(crate) psp_status: Option<String>,
    /// The PSP's id of the charge.
    pub(crate) psp_reference: Option<String>,
    /// The PSP's code, or one of ours.
    pub(crate) error_code: Option<String>,
    /// When the PSP's result was obtained.
    #[serde(with = "time::serde::rfc3339::option")]
    pub(crate) event_time: Option<OffsetDateTime>,
    /// Where the result lay in Kafka.
    pub(crate) topic: Option<String>,
    /// Where in the topic.
    pub(crate) partition: Option<i32>,
    /// Where in the partition.
    pub(crate) record_offset: Option<i64>,
    /// The trace that it belongs to.
    pub(crate) trace_id: String,
    /// The person behind it, if there was one.
    pub(crate) operator: Option<String>,
    /// Why that person did it.
    pub(crate) note: Option<String>,
    /// When it was decided.
    #[serde(with = "time::serde::rfc3339")]
    pub(crate) decided_at: OffsetDateTime,
}

/// Most transitions of one order that are shown: an order has few, unless somebody floods it.
const TRANSITIONS_SHOWN_MAX: i64 = 1_000;

/// A payment and its orders; of this caller alone, if one is given.
pub(crate) async fn payment(
    pool: &PgPool,
    caller: Option<&str>,
    payment_id: Uuid,
) -> Result<Option<(PaymentRow, Vec<OrderRow>)>, sqlx::Error> {
    let payment: Option<PaymentRow> = sqlx::query_as(
        "SELECT * FROM payments.payments WHERE payment_id = $1 AND ($2::text IS NULL OR caller = $2)",
    )
    .bind(payment_id)
    .bind(caller)
    .fetch_optional(pool)
    .await?;
    let Some(payment) = payment else { return Ok(None) };
    let orders = sqlx::query_as(
        "SELECT *, split_part(traceparent, '-', 2) AS trace_id FROM payments.payment_orders WHERE payment_id = $1 ORDER BY try",
    )
        .bind(payment_id)
        .fetch_all(pool)
        .await?;
    Ok(Some((payment, orders)))
}

/// A payment order and the beginning of its audit; of this caller alone, if one is given.
pub(crate) async fn payment_order(
    pool: &PgPool,
    caller: Option<&str>,
    payment_order_id: Uuid,
) -> Result<Option<(OrderRow, Vec<TransitionRow>)>, sqlx::Error> {
    let order: Option<OrderRow> = sqlx::query_as(
        "SELECT o.*, split_part(o.traceparent, '-', 2) AS trace_id FROM payments.payment_orders o JOIN payments.payments p USING (payment_id)
         WHERE o.payment_order_id = $1 AND ($2::text IS NULL OR p.caller = $2)",
    )
    .bind(payment_order_id)
    .bind(caller)
    .fetch_optional(pool)
    .await?;
    let Some(order) = order else { return Ok(None) };
    let transitions = sqlx::query_as(
        "SELECT * FROM payments.payment_order_transitions WHERE payment_order_id = $1 ORDER BY transition_id LIMIT $2",
    )
    .bind(payment_order_id)
    .bind(TRANSITIONS_SHOWN_MAX)
    .fetch_all(pool)
    .await?;
    Ok(Some((order, transitions)))
}
