//! SQL of the payments' pages: the list, and everything that this database knows of one payment.

use sqlx::{FromRow, PgPool, Postgres, QueryBuilder};
use time::OffsetDateTime;
use uuid::Uuid;

use super::After;

/// Transitions of one order that are shown.
pub(crate) const TRANSITIONS_SHOWN_MAX: i64 = 200;
/// Payment orders of one payment that are shown.
pub(crate) const ORDERS_SHOWN_MAX: i64 = 50;
/// Lines of the audit that one PSP reference can lead through: every result that names it counts, also one that contradicts.
const REFERENCED_MAX: i64 = 200;

// ---------------------------------------------------------------------------------------------------------------- list

/// What is looked for.
#[derive(Clone, Debug, Default)]
pub(crate) struct Wanted {
    /// A payment id, payment order id, trace id, PSP reference or merchant reference, in full.
    pub(crate) text: Option<String>,
    pub(crate) status: Option<&'static str>,
    /// Created at this time or later.
    pub(crate) from: Option<OffsetDateTime>,
    /// Created before this time.
    pub(crate) until: Option<OffsetDateTime>,
    /// Behind this payment in the list.
    pub(crate) after: Option<After<Uuid>>,
}

/// A payment, for a list.
#[derive(Clone, Debug, FromRow)]
pub(crate) struct ListedPayment {
    pub(crate) payment_id: Uuid,
    pub(crate) caller: String,
    pub(crate) amount_minor: i64,
    pub(crate) currency: String,
    pub(crate) merchant_reference: String,
    pub(crate) status: String,
    pub(crate) review_reason: Option<String>,
    pub(crate) trace_id: String,
    pub(crate) created_at: OffsetDateTime,
    pub(crate) updated_at: OffsetDateTime,
}

/// The columns of a [`ListedPayment`].
const PAYMENT: &str = "p.payment_id, p.caller, p.amount_minor, p.currency, p.merchant_reference, p.status, p.review_reason, p.trace_id,
    p.created_at, p.updated_at";

/// Where a text that was typed into the one box is looked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    Payment(Uuid),
    PaymentOrder(Uuid),
    Trace(String),
    PspReference(String),
    MerchantReference(String),
}

/// Everything that a text may be, in full: a UUID in any of its spellings may also be a reference, as may everything.
pub(crate) fn places(text: &str) -> Vec<Place> {
    let mut places = vec![Place::MerchantReference(text.to_owned()), Place::PspReference(text.to_owned())];
    if let Ok(id) = Uuid::parse_str(text) {
        places.extend([Place::Payment(id), Place::PaymentOrder(id)]);
    }
    if text.len() == 32 && text.bytes().all(|b| b.is_ascii_hexdigit()) {
        places.push(Place::Trace(text.to_ascii_lowercase()));
    }
    places
}

fn push_place(query: &mut QueryBuilder<Postgres>, place: Place) {
    match place {
        Place::Payment(id) => query.push("p.payment_id = ").push_bind(id),
        Place::PaymentOrder(id) => query
            .push("p.payment_id = (SELECT o.payment_id FROM payments.payment_orders o WHERE o.payment_order_id = ")
            .push_bind(id)
            .push(")"),
        Place::Trace(trace_id) => query.push("p.trace_id = ").push_bind(trace_id),
        Place::PspReference(reference) => query
            .push(
                "p.payment_id IN (SELECT o.payment_id FROM payments.payment_order_transitions t
                                  JOIN payments.payment_orders o USING (payment_order_id) WHERE t.psp_reference = ",
            )
            .push_bind(reference)
            .push(" LIMIT ")
            .push_bind(REFERENCED_MAX)
            .push(")"),
        Place::MerchantReference(reference) => query.push("p.merchant_reference = ").push_bind(reference),
    };
}

/// Adds what narrows the list, its order and its end: a range of an index that ends with (created_at, payment_id).
fn narrow(query: &mut QueryBuilder<Postgres>, wanted: &Wanted, limit: i64) {
    if let Some(status) = wanted.status {
        query.push(" AND p.status = ").push_bind(status);
    }
    if let Some(from) = wanted.from {
        query.push(" AND p.created_at >= ").push_bind(from);
    }
    if let Some(until) = wanted.until {
        query.push(" AND p.created_at < ").push_bind(until);
    }
    if let Some(After { at, id }) = wanted.after {
        query.push(" AND (p.created_at, p.payment_id) < (").push_bind(at).push(", ").push_bind(id).push(")");
    }
    query.push(" ORDER BY p.created_at DESC, p.payment_id DESC LIMIT ").push_bind(limit);
}

/// Payments, newest first. A text is looked for in all places at once; each is read along its index, and no further than the page needs.
pub(crate) async fn list(
    pool: &PgPool,
    wanted: &Wanted,
    limit: i64,
) -> Result<Vec<ListedPayment>, sqlx::Error> {
    let mut query: QueryBuilder<Postgres>;
    match &wanted.text {
        None => {
            query = QueryBuilder::new("SELECT ");
            query.push(PAYMENT).push(" FROM payments.payments p WHERE true");
            narrow(&mut query, wanted, limit);
        }
        Some(text) => {
            query = QueryBuilder::new("SELECT * FROM (");
            for (number, place) in places(text).into_iter().enumerate() {
                query.push(if number == 0 { "(SELECT " } else { " UNION (SELECT " });
                query.push(PAYMENT).push(" FROM payments.payments p WHERE ");
                push_place(&mut query, place);
                narrow(&mut query, wanted, limit);
                query.push(")");
            }
            query.push(") AS p ORDER BY p.created_at DESC, p.payment_id DESC LIMIT ").push_bind(limit);
        }
    }
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
pub(crate) async fn payment(pool: &PgPool, payment_id: Uuid) -> Result<Option<ListedPayment>, sqlx::Error> {
    let mut query = QueryBuilder::new("SELECT ");
    query.push(PAYMENT).push(" FROM payments.payments p WHERE p.payment_id = ").push_bind(payment_id);
    query.build_query_as().fetch_optional(pool).await
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
            vec![Place::MerchantReference(text.to_owned()), Place::PspReference(text.to_owned())]
        };
        assert_eq!(places("order-1"), references("order-1"));
        assert_eq!(places("' OR true --"), references("' OR true --"));
        let ids = [Place::Payment(id), Place::PaymentOrder(id)];
        let upper = id.to_string().to_uppercase();
        assert_eq!(places(&upper), [references(&upper).as_slice(), &ids].concat());
        let traces = [references(trace).as_slice(), &ids, &[Place::Trace(trace.to_owned())]].concat();
        assert_eq!(places(trace), traces, "32 digits are a trace id, and a UUID without hyphens");
    }
}
