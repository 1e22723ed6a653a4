//! SQL of finding payments. The statement is put together from what is asked for: under a plan that is made once for all values
//! (`chassis::postgres::pool`) a filter that may be NULL could not use its index.

use sqlx::{PgPool, Postgres, QueryBuilder};

use super::PaymentRow;
use crate::search::Filter;

/// Payments, newest first: one more than asked for, if there are more.
pub(crate) async fn payments(pool: &PgPool, filter: &Filter) -> Result<Vec<PaymentRow>, sqlx::Error> {
    let mut sql = QueryBuilder::<Postgres>::new("SELECT p.* FROM ");
    match &filter.psp_reference {
        None => {
            sql.push("payments.payments p WHERE true");
        }
        // A reference names few orders: from them to their payments, never the other way.
        Some(reference) => {
            sql.push(
                "(SELECT DISTINCT o.payment_id FROM payments.payment_order_transitions t
                  JOIN payments.payment_orders o USING (payment_order_id) WHERE t.psp_reference = ",
            );
            sql.push_bind(reference);
            sql.push(
                ") named CROSS JOIN LATERAL
                 (SELECT * FROM payments.payments WHERE payment_id = named.payment_id OFFSET 0) p WHERE true",
            );
        }
    }
    narrow(&mut sql, filter);
    sql.build_query_as().fetch_all(pool).await
}

/// Adds what narrows a list of payments `p`, its order and its end: a range of an index that ends with (created_at, payment_id).
pub(super) fn narrow(query: &mut QueryBuilder<Postgres>, filter: &Filter) {
    if let Some(caller) = &filter.caller {
        query.push(" AND p.caller = ").push_bind(caller);
    }
    if let Some(trace_id) = &filter.trace_id {
        query.push(" AND p.trace_id = ").push_bind(trace_id);
    }
    if let Some(reference) = &filter.merchant_reference {
        query.push(" AND p.merchant_reference = ").push_bind(reference);
    }
    if let Some(status) = filter.status {
        // In the text: only so does the planner know that the index on what is unsettled holds it. Words of ours, never a client's.
        query.push(" AND p.status = '").push(status.as_str()).push("'");
    }
    if let Some(from) = filter.created_from {
        query.push(" AND p.created_at >= ").push_bind(from);
    }
    if let Some(to) = filter.created_to {
        query.push(" AND p.created_at < ").push_bind(to);
    }
    if let Some(place) = filter.after {
        query.push(" AND (p.created_at, p.payment_id) < (").push_bind(place.created_at);
        query.push(", ").push_bind(place.payment_id).push(")");
    }
    query.push(" ORDER BY p.created_at DESC, p.payment_id DESC LIMIT ").push_bind(filter.limit + 1);
}
