//! SQL of applying results, in the order in which the statements of a transaction run.

use std::collections::HashSet;

use sqlx::{PgConnection, PgPool};
use uuid::Uuid;

use crate::{
    decision::{Decision, Order, ReviewReason, State},
    intake::{Asked, ResultUpdate},
};

/// A word in the database that this version does not know: a newer one wrote it.
pub(crate) fn unknown_word(column: &str, word: &str) -> sqlx::Error {
    sqlx::Error::Decode(format!("{column} {word:?} is not known to this version").into())
}

pub(crate) fn state(word: &str) -> Result<State, sqlx::Error> {
    State::from_word(word).ok_or_else(|| unknown_word("state", word))
}

pub(crate) fn review_reason(word: Option<&str>) -> Result<Option<ReviewReason>, sqlx::Error> {
    let known = |word| ReviewReason::from_word(word).ok_or_else(|| unknown_word("review_reason", word));
    word.map(known).transpose()
}

/// A payment order that this transaction has locked.
#[derive(Clone, Debug)]
pub(crate) struct LockedOrder {
    pub(crate) payment_order_id: Uuid,
    pub(crate) payment_id: Uuid,
    pub(crate) order: Order,
    pub(crate) traceparent: String,
}

/// Locks the payment orders that exist, in the order of their ids: whoever locks several does it in the same order, and nobody
/// waits in a circle.
pub(crate) async fn lock_orders(
    tx: &mut PgConnection,
    ids: &[Uuid],
) -> Result<Vec<LockedOrder>, sqlx::Error> {
    type Row = (Uuid, Uuid, String, Option<String>, Option<String>, Option<String>, Option<String>, String);
    let rows: Vec<Row> = sqlx::query_as(
        "SELECT payment_order_id, payment_id, state, psp_reference, error_code, error_message, review_reason, traceparent
         FROM payments.payment_orders WHERE payment_order_id = ANY ($1) ORDER BY payment_order_id FOR NO KEY UPDATE",
    )
    .bind(ids)
    .fetch_all(tx)
    .await?;
    rows.into_iter()
        .map(
            |(
                payment_order_id,
                payment_id,
                word,
                psp_reference,
                error_code,
                error_message,
                reason,
                traceparent,
            )| {
                let (state, review_reason) = (state(&word)?, review_reason(reason.as_deref())?);
                let order = Order { state, psp_reference, error_code, error_message, review_reason };
                Ok(LockedOrder { payment_order_id, payment_id, order, traceparent })
            },
        )
        .collect()
}

/// Marks events as taken and returns those that had not been taken before.
pub(crate) async fn mark_processed(
    tx: &mut PgConnection,
    (event_ids, order_ids): (&[Uuid], &[Uuid]),
) -> Result<HashSet<Uuid>, sqlx::Error> {
    let new: Vec<Uuid> = sqlx::query_scalar(
        "INSERT INTO payments.processed_events (event_id, payment_order_id)
         SELECT * FROM UNNEST($1::uuid[], $2::uuid[]) ON CONFLICT DO NOTHING RETURNING event_id",
    )
    .bind(event_ids)
    .bind(order_ids)
    .fetch_all(tx)
    .await?;
    Ok(new.into_iter().collect())
}

/// Which payment orders these events were taken for.
pub(crate) async fn orders_of_events(
    tx: &mut PgConnection,
    event_ids: &[Uuid],
) -> Result<Vec<(Uuid, Uuid)>, sqlx::Error> {
    sqlx::query_as(
        "SELECT event_id, payment_order_id FROM payments.processed_events WHERE event_id = ANY ($1)",
    )
    .bind(event_ids)
    .fetch_all(tx)
    .await
}

/// Writes what is known about these orders now. Says to the database that it is the service that does, which writes its own rows of
/// the audit (`payments.write_down_hand`): evaluated once, before the first row.
pub(crate) async fn update_orders(
    tx: &mut PgConnection,
    orders: &[(Uuid, &Order)],
) -> Result<(), sqlx::Error> {
    let texts = |text: fn(&Order) -> Option<&str>| -> Vec<Option<String>> {
        orders.iter().map(|(_, order)| text(order).map(str::to_owned)).collect()
    };
    let updated = sqlx::query(
        "UPDATE payments.payment_orders o
         SET state = n.state, psp_reference = n.psp_reference, error_code = n.error_code, error_message = n.error_message,
             review_reason = n.review_reason, updated_at = clock_timestamp(),
             settled_at = CASE WHEN n.state IN ('SUCCESSFUL', 'FAILED') THEN coalesce(o.settled_at, clock_timestamp())
                               ELSE o.settled_at END
         FROM UNNEST($1::uuid[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[])
              AS n (payment_order_id, state, psp_reference, error_code, error_message, review_reason)
         WHERE o.payment_order_id = n.payment_order_id
           AND (SELECT set_config('payments.writer', 'payment-service', true)) IS NOT NULL",
    )
    .bind(orders.iter().map(|(id, _)| *id).collect::<Vec<_>>())
    .bind(texts(|order| Some(order.state.as_str())))
    .bind(texts(|order| order.psp_reference.as_deref()))
    .bind(texts(|order| order.error_code.as_deref()))
    .bind(texts(|order| order.error_message.as_deref()))
    .bind(texts(|order| order.review_reason.map(ReviewReason::as_str)))
    .execute(tx)
    .await?;
    expect_rows(updated.rows_affected(), orders.len())
}

fn expect_rows(updated: u64, expected: usize) -> Result<(), sqlx::Error> {
    if usize::try_from(updated) == Ok(expected) { Ok(()) } else { Err(sqlx::Error::RowNotFound) }
}

/// A payment that this transaction has locked: id, status, review reason.
pub(crate) type LockedPayment = (Uuid, State, Option<ReviewReason>);

/// Locks payments in the order of their ids. Always after their orders.
pub(crate) async fn lock_payments(
    tx: &mut PgConnection,
    ids: &[Uuid],
) -> Result<Vec<LockedPayment>, sqlx::Error> {
    let rows: Vec<(Uuid, String, Option<String>)> = sqlx::query_as(
        "SELECT payment_id, status, review_reason FROM payments.payments WHERE payment_id = ANY ($1)
         ORDER BY payment_id FOR NO KEY UPDATE",
    )
    .bind(ids)
    .fetch_all(tx)
    .await?;
    rows.into_iter()
        .map(|(id, word, reason)| Ok((id, state(&word)?, review_reason(reason.as_deref())?)))
        .collect()
}

/// The states of all orders of these payments, in the order of their tries.
pub(crate) async fn orders_of_payments(
    tx: &mut PgConnection,
    ids: &[Uuid],
) -> Result<Vec<LockedPayment>, sqlx::Error> {
    let rows: Vec<(Uuid, String, Option<String>)> = sqlx::query_as(
        "SELECT payment_id, state, review_reason FROM payments.payment_orders WHERE payment_id = ANY ($1) ORDER BY payment_id, try",
    )
    .bind(ids)
    .fetch_all(tx)
    .await?;
    rows.into_iter()
        .map(|(id, word, reason)| Ok((id, state(&word)?, review_reason(reason.as_deref())?)))
        .collect()
}

/// Writes the states of payments.
pub(crate) async fn update_payments(
    tx: &mut PgConnection,
    payments: &[LockedPayment],
) -> Result<(), sqlx::Error> {
    let updated = sqlx::query(
        "UPDATE payments.payments p SET status = n.status, review_reason = n.review_reason, updated_at = clock_timestamp()
         FROM UNNEST($1::uuid[], $2::text[], $3::text[]) AS n (payment_id, status, review_reason)
         WHERE p.payment_id = n.payment_id",
    )
    .bind(payments.iter().map(|(id, _, _)| *id).collect::<Vec<_>>())
    .bind(payments.iter().map(|(_, status, _)| status.as_str()).collect::<Vec<_>>())
    .bind(payments.iter().map(|(_, _, reason)| reason.map(ReviewReason::as_str)).collect::<Vec<_>>())
    .execute(tx)
    .await?;
    expect_rows(updated.rows_affected(), payments.len())
}

/// A row for the audit.
#[derive(Debug)]
pub(crate) struct NewTransition<'a> {
    pub(crate) update: &'a ResultUpdate,
    pub(crate) from: State,
    pub(crate) to: State,
    pub(crate) decision: Decision,
    pub(crate) trace_id: &'a str,
}

impl NewTransition<'_> {
    fn asked(&self) -> Option<&Asked> {
        self.update.again.as_ref()?.asked.as_ref()
    }
}

/// Appends to the audit, in the order given. The last statement of a transaction, so that `decided_at` is honest.
pub(crate) async fn insert_transitions(
    tx: &mut PgConnection,
    transitions: &[NewTransition<'_>],
) -> Result<(), sqlx::Error> {
    fn column<'a, T>(rows: &'a [NewTransition<'a>], value: impl Fn(&'a NewTransition<'a>) -> T) -> Vec<T> {
        rows.iter().map(value).collect()
    }
    sqlx::query(
        "INSERT INTO payments.payment_order_transitions
             (payment_order_id, event_id, from_state, to_state, decision, psp_status, psp_reference, error_code, event_time,
              topic, partition, record_offset, trace_id, operator, command_id, decided_at)
         SELECT payment_order_id, event_id, from_state, to_state, decision, psp_status, psp_reference, error_code, event_time,
                topic, partition, record_offset, trace_id, operator, command_id, clock_timestamp()
         FROM UNNEST($1::uuid[], $2::uuid[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[], $8::text[],
                     $9::timestamptz[], $10::text[], $11::int[], $12::bigint[], $13::text[], $14::text[], $15::bigint[])
              WITH ORDINALITY
              AS n (payment_order_id, event_id, from_state, to_state, decision, psp_status, psp_reference, error_code, event_time,
                    topic, partition, record_offset, trace_id, operator, command_id, position)
         ORDER BY position",
    )
    .bind(column(transitions, |row| row.update.event.payment_order_id))
    .bind(column(transitions, |row| row.update.event_id))
    .bind(column(transitions, |row| row.from.as_str()))
    .bind(column(transitions, |row| row.to.as_str()))
    .bind(column(transitions, |row| row.decision.as_str()))
    .bind(column(transitions, |row| row.update.event.psp_status.as_str()))
    .bind(column(transitions, |row| row.update.event.psp_reference.as_deref()))
    .bind(column(transitions, |row| row.update.event.error_code.as_deref()))
    .bind(column(transitions, |row| row.update.event.event_time))
    .bind(column(transitions, |row| &*row.update.record.topic))
    .bind(column(transitions, |row| row.update.record.partition))
    .bind(column(transitions, |row| row.update.record.offset))
    .bind(column(transitions, |row| row.trace_id))
    .bind(column(transitions, |row| row.asked().map(|asked| &*asked.operator)))
    .bind(column(transitions, |row| row.asked().map(|asked| asked.command_id)))
    .execute(tx)
    .await?;
    Ok(())
}

/// How many payments wait for a person.
pub(crate) async fn payments_in_review(pool: &PgPool) -> Result<i64, sqlx::Error> {
    sqlx::query_scalar("SELECT count(*) FROM payments.payments WHERE status = 'NEEDS_REVIEW'")
        .fetch_one(pool)
        .await
}
