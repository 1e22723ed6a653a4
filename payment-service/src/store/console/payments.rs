//! SQL of the payments' pages: the list, and everything that this database knows of one payment.

use sqlx::{FromRow, PgPool, Postgres, QueryBuilder};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::{
    search::Filter,
    store::{PaymentRow, search},
};

/// Transitions of one order that are shown.
pub(crate) const TRANSITIONS_SHOWN_MAX: i64 = 200;
/// Payment orders of one payment that are shown.
pub(crate) const ORDERS_SHOWN_MAX: i64 = 50;
/// Lines of the audit that one PSP reference can lead through: every result that names it counts, also one that contradicts.
const REFERENCED_MAX: i64 = 200;

// ---------------------------------------------------------------------------------------------------------------- list

/// What a text that was typed into the one box may be.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Meant {
    Payment(Uuid),
    PaymentOrder(Uuid),
    Trace(String),
    PspReference(String),
    MerchantReference(String),
}

/// Everything that a text may be, in full: a UUID in any of its spellings may also be a reference, as may everything.
fn meanings(text: &str) -> Vec<Meant> {
    let mut meanings = vec![Meant::MerchantReference(text.to_owned()), Meant::PspReference(text.to_owned())];
    if let Ok(id) = Uuid::parse_str(text) {
        meanings.extend([Meant::Payment(id), Meant::PaymentOrder(id)]);
    }
    if text.len() == 32 && text.bytes().all(|b| b.is_ascii_hexdigit()) {
        meanings.push(Meant::Trace(text.to_ascii_lowercase()));
    }
    meanings
}

fn push_meant(query: &mut QueryBuilder<Postgres>, meant: Meant) {
    match meant {
        Meant::Payment(id) => query.push("p.payment_id = ").push_bind(id),
        Meant::PaymentOrder(id) => query
            .push("p.payment_id = (SELECT o.payment_id FROM payments.payment_orders o WHERE o.payment_order_id = ")
            .push_bind(id)
            .push(")"),
        Meant::Trace(trace_id) => query.push("p.trace_id = ").push_bind(trace_id),
        Meant::PspReference(reference) => query
            .push(
                "p.payment_id IN (SELECT o.payment_id FROM payments.payment_order_transitions t
                                  JOIN payments.payment_orders o USING (payment_order_id) WHERE t.psp_reference = ",
            )
            .push_bind(reference)
            .push(" LIMIT ")
            .push_bind(REFERENCED_MAX)
            .push(")"),
        Meant::MerchantReference(reference) => query.push("p.merchant_reference = ").push_bind(reference),
    };
}

/// Payments, newest first: one more than asked for, if there are more. A text is looked for in all its meanings at once; each is read along
/// its index, and no further than the page needs.
pub(crate) async fn list(
    pool: &PgPool,
    text: Option<&str>,
    filter: &Filter,
) -> Result<Vec<PaymentRow>, sqlx::Error> {
    let Some(text) = text else { return search::payments(pool, filter).await };
    let mut query = QueryBuilder::new("SELECT * FROM (");
    for (number, meant) in meanings(text).into_iter().enumerate() {
        query.push(if number == 0 { "(" } else { " UNION (" });
        query.push("SELECT p.* FROM payments.payments p WHERE ");
        push_meant(&mut query, meant);
        search::narrow(&mut query, filter);
        query.push(")");
    }
    query.push(") AS p ORDER BY p.created_at DESC, p.payment_id DESC LIMIT ").push_bind(filter.limit + 1);
    query.build_query_as().fetch_all(pool).await
}

// --------------------------------------------------------------------------------------------------------- one payment

/// A payment order.
#[derive(Clone, Debug, FromRow)]
pub(crate) struct ShownOrder {
    pub(crate) payment_order_id: Uuid,
    pub(crate) r#try: i32,
    pub(crate) psp: String,
    pub(crate) state: String,
    pub(crate) psp_reference: Option<String>,
    pub(crate) error_code: Option<String>,
    pub(crate) error_message: Option<String>,
    pub(crate) review_reason: Option<String>,
    pub(crate) trace_id: String,
    pub(crate) expires_at: OffsetDateTime,
    pub(crate) created_at: OffsetDateTime,
}

/// A line of the audit.
#[derive(Clone, Debug, FromRow)]
pub(crate) struct Transition {
    pub(crate) event_id: Option<Uuid>,
    pub(crate) from_state: Option<String>,
    pub(crate) to_state: String,
    pub(crate) decision: String,
    pub(crate) psp_status: Option<String>,
    pub(crate) psp_reference: Option<String>,
    pub(crate) error_code: Option<String>,
    pub(crate) review_reason: Option<String>,
    pub(crate) event_time: Option<OffsetDateTime>,
    pub(crate) topic: Option<String>,
    pub(crate) partition: Option<i32>,
    pub(crate) record_offset: Option<i64>,
    pub(crate) operator: Option<String>,
    pub(crate) note: Option<String>,
    pub(crate) command_id: Option<i64>,
    pub(crate) decided_at: OffsetDateTime,
}

/// A record that names a payment order and was set aside.
#[derive(Clone, Debug, FromRow)]
pub(crate) struct SetAsideRecord {
    pub(crate) id: i64,
    pub(crate) topic: String,
    pub(crate) partition: i32,
    pub(crate) record_offset: i64,
    pub(crate) reason_code: String,
    pub(crate) reason: String,
    pub(crate) received_at: OffsetDateTime,
    pub(crate) settled_at: Option<OffsetDateTime>,
    pub(crate) outcome: Option<String>,
}

/// The payment with this id.
pub(crate) async fn payment(pool: &PgPool, payment_id: Uuid) -> Result<Option<PaymentRow>, sqlx::Error> {
    sqlx::query_as("SELECT * FROM payments.payments WHERE payment_id = $1")
        .bind(payment_id)
        .fetch_optional(pool)
        .await
}

/// A payment's orders, in the order in which they were tried.
pub(crate) async fn orders(pool: &PgPool, payment_id: Uuid) -> Result<Vec<ShownOrder>, sqlx::Error> {
    sqlx::query_as(
        "SELECT payment_order_id, try, psp, state, psp_reference, error_code, error_message, review_reason,
                split_part(traceparent, '-', 2) AS trace_id, expires_at, created_at
         FROM payments.payment_orders WHERE payment_id = $1 ORDER BY try LIMIT $2",
    )
    .bind(payment_id)
    .bind(ORDERS_SHOWN_MAX)
    .fetch_all(pool)
    .await
}

/// The beginning of a payment order's audit.
pub(crate) async fn transitions(
    pool: &PgPool,
    payment_order_id: Uuid,
) -> Result<Vec<Transition>, sqlx::Error> {
    sqlx::query_as(
        "SELECT event_id, from_state, to_state, decision, psp_status, psp_reference, error_code, review_reason, event_time, topic,
                partition, record_offset, operator, note, command_id, decided_at
         FROM payments.payment_order_transitions WHERE payment_order_id = $1 ORDER BY transition_id LIMIT $2",
    )
    .bind(payment_order_id)
    .bind(TRANSITIONS_SHOWN_MAX)
    .fetch_all(pool)
    .await
}

/// Records that name a payment order and were set aside, settled or not.
pub(crate) async fn set_aside(
    pool: &PgPool,
    payment_order_id: Uuid,
) -> Result<Vec<SetAsideRecord>, sqlx::Error> {
    sqlx::query_as(
        "SELECT id, topic, partition, record_offset, reason_code, reason, received_at, settled_at, outcome
         FROM payments.quarantine WHERE payment_order_id = $1 ORDER BY id LIMIT $2",
    )
    .bind(payment_order_id)
    .bind(TRANSITIONS_SHOWN_MAX)
    .fetch_all(pool)
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_looked_for_wherever_it_could_be() {
        let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
        let id = Uuid::parse_str(trace).unwrap();
        let references = |text: &str| {
            vec![Meant::MerchantReference(text.to_owned()), Meant::PspReference(text.to_owned())]
        };
        assert_eq!(meanings("order-1"), references("order-1"));
        assert_eq!(meanings("' OR true --"), references("' OR true --"));
        let ids = [Meant::Payment(id), Meant::PaymentOrder(id)];
        let upper = id.to_string().to_uppercase();
        assert_eq!(meanings(&upper), [references(&upper).as_slice(), &ids].concat());
        let traces = [references(trace).as_slice(), &ids, &[Meant::Trace(trace.to_owned())]].concat();
        assert_eq!(meanings(trace), traces, "32 digits are a trace id, and a UUID without hyphens");
    }
}
