//! SQL of checking the audit: payments page by page, each page in one snapshot, and events as a whole.

use std::collections::HashMap;

use futures::TryStreamExt as _;
use schema::psp_result_update::PspStatus;
use sqlx::{FromRow, PgConnection};
use time::OffsetDateTime;
use uuid::Uuid;

use super::results::{review_reason, state, unknown_word};
use crate::{
    audit::{Cause, Fold, Line},
    decision::{Decision, Order, ReviewReason, State},
};

/// A payment and what its orders are and were.
#[derive(Debug)]
pub(crate) struct AuditedPayment {
    pub(crate) payment_id: Uuid,
    pub(crate) status: (State, Option<ReviewReason>),
    /// By their tries.
    pub(crate) orders: Vec<AuditedOrder>,
}

/// An order and the fold over its lines.
#[derive(Debug)]
pub(crate) struct AuditedOrder {
    pub(crate) payment_order_id: Uuid,
    pub(crate) order: Order,
    pub(crate) fold: Fold,
    pub(crate) lines: u64,
    pub(crate) by_hand: u64,
    pub(crate) resolved: u64,
}

#[derive(FromRow)]
struct OrderRow {
    payment_id: Uuid,
    payment_order_id: Uuid,
    state: String,
    psp_reference: Option<String>,
    error_code: Option<String>,
    error_message: Option<String>,
    review_reason: Option<String>,
}

#[derive(FromRow)]
struct LineRow {
    transition_id: i64,
    payment_order_id: Uuid,
    event_id: Option<Uuid>,
    from_state: Option<String>,
    to_state: String,
    decision: String,
    psp_status: Option<String>,
    psp_reference: Option<String>,
    error_code: Option<String>,
    event_time: Option<OffsetDateTime>,
    review_reason: Option<String>,
}

impl LineRow {
    fn into_line(self) -> Result<Line, sqlx::Error> {
        let cause = match (self.event_id, self.decision.as_str()) {
            (None, "BY_HAND") => Cause::Hand { review_reason: review_reason(self.review_reason.as_deref())? },
            (None, "RESOLVED") => Cause::Resolution,
            (None, _) => Cause::Creation,
            (Some(_), decision) => Cause::Event {
                status: psp_status(self.psp_status.as_deref().unwrap_or_default())?,
                event_time: self.event_time.unwrap_or(OffsetDateTime::UNIX_EPOCH),
                decision: Decision::from_word(decision).ok_or_else(|| unknown_word("decision", decision))?,
            },
        };
        Ok(Line {
            transition_id: self.transition_id,
            from: self.from_state.as_deref().map(state).transpose()?,
            to: state(&self.to_state)?,
            psp_reference: self.psp_reference,
            error_code: self.error_code,
            cause,
        })
    }
}

fn psp_status(word: &str) -> Result<PspStatus, sqlx::Error> {
    let all = [PspStatus::Successful, PspStatus::Failed, PspStatus::Pending, PspStatus::Unknown];
    all.into_iter().find(|status| status.as_str() == word).ok_or_else(|| unknown_word("psp_status", word))
}

/// Begins a look at one moment of the database.
pub(crate) async fn begin_look(connection: &mut PgConnection) -> Result<(), sqlx::Error> {
    sqlx::query("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").execute(connection).await.map(drop)
}

/// Ends it.
pub(crate) async fn end_look(connection: &mut PgConnection) -> Result<(), sqlx::Error> {
    sqlx::query("COMMIT").execute(connection).await.map(drop)
}

/// The next payments behind `after`, in the order of their ids, with their orders and the folds over all lines. The lines pass
/// through one by one: an order may have any number.
pub(crate) async fn payments_after(
    connection: &mut PgConnection,
    after: Uuid,
    limit: i64,
) -> Result<Vec<AuditedPayment>, sqlx::Error> {
    let payments: Vec<(Uuid, String, Option<String>)> = sqlx::query_as(
        "SELECT payment_id, status, review_reason FROM payments.payments WHERE payment_id > $1 ORDER BY payment_id LIMIT $2",
    )
    .bind(after)
    .bind(limit)
    .fetch_all(&mut *connection)
    .await?;
    let ids: Vec<Uuid> = payments.iter().map(|(id, _, _)| *id).collect();
    let orders: Vec<OrderRow> = sqlx::query_as(
        "SELECT payment_id, payment_order_id, state, psp_reference, error_code, error_message, review_reason
         FROM payments.payment_orders WHERE payment_id = ANY ($1) ORDER BY payment_id, try",
    )
    .bind(&ids)
    .fetch_all(&mut *connection)
    .await?;
    let ids: Vec<Uuid> = orders.iter().map(|order| order.payment_order_id).collect();
    let mut folds = fold_lines(connection, &ids).await?;

    let mut of_payment: HashMap<Uuid, Vec<AuditedOrder>> = HashMap::new();
    for row in orders {
        let id = row.payment_order_id;
        let Folded { fold, lines, by_hand, resolved } = folds.remove(&id).unwrap_or_else(|| Folded::new(id));
        let order = Order {
            state: state(&row.state)?,
            psp_reference: row.psp_reference,
            error_code: row.error_code,
            error_message: row.error_message,
            review_reason: review_reason(row.review_reason.as_deref())?,
        };
        let audited = AuditedOrder { payment_order_id: id, order, fold, lines, by_hand, resolved };
        of_payment.entry(row.payment_id).or_default().push(audited);
    }
    payments
        .into_iter()
        .map(|(payment_id, word, reason)| {
            let status = (state(&word)?, review_reason(reason.as_deref())?);
            let orders = of_payment.remove(&payment_id).unwrap_or_default();
            Ok(AuditedPayment { payment_id, status, orders })
        })
        .collect()
}

/// The fold over the lines of an order, and how many there are: in all, by hand, by a resolution.
struct Folded {
    fold: Fold,
    lines: u64,
    by_hand: u64,
    resolved: u64,
}

impl Folded {
    fn new(payment_order_id: Uuid) -> Self {
        Self { fold: Fold::new(payment_order_id), lines: 0, by_hand: 0, resolved: 0 }
    }
}

async fn fold_lines(
    connection: &mut PgConnection,
    ids: &[Uuid],
) -> Result<HashMap<Uuid, Folded>, sqlx::Error> {
    let mut rows = sqlx::query_as(
        "SELECT transition_id, payment_order_id, event_id, from_state, to_state, decision, psp_status, psp_reference, error_code,
                event_time, review_reason
         FROM payments.payment_order_transitions WHERE payment_order_id = ANY ($1) ORDER BY payment_order_id, transition_id",
    )
    .bind(ids)
    .fetch(connection);
    let mut folds: HashMap<Uuid, Folded> = HashMap::new();
    while let Some(row) = rows.try_next().await? {
        let row: LineRow = row;
        let id = row.payment_order_id;
        let line = row.into_line()?;
        let folded = folds.entry(id).or_insert_with(|| Folded::new(id));
        folded.fold.line(&line);
        folded.lines += 1;
        folded.by_hand += u64::from(matches!(line.cause, Cause::Hand { .. }));
        folded.resolved += u64::from(matches!(line.cause, Cause::Resolution));
    }
    Ok(folds)
}

/// Events that do not have exactly one line and one mark, and settled records whose event has none: id and what is wrong. An event and
/// its mark are one transaction, so that one look is enough for each.
pub(crate) async fn events_out_of_step(
    connection: &mut PgConnection,
    limit: i64,
) -> Result<Vec<(Uuid, String)>, sqlx::Error> {
    sqlx::query_as(
        "(SELECT event_id, 'has ' || count(*) || ' lines in the audit' FROM payments.payment_order_transitions
          WHERE event_id IS NOT NULL GROUP BY event_id HAVING count(*) > 1 LIMIT $1)
         UNION ALL
         (SELECT t.event_id, 'has a line in the audit and is not marked as processed' FROM payments.payment_order_transitions t
          WHERE t.event_id IS NOT NULL
            AND NOT EXISTS (SELECT FROM payments.processed_events p
                            WHERE p.event_id = t.event_id AND p.payment_order_id = t.payment_order_id) LIMIT $1)
         UNION ALL
         (SELECT p.event_id, 'is marked as processed and has no line in the audit' FROM payments.processed_events p
          WHERE NOT EXISTS (SELECT FROM payments.payment_order_transitions t WHERE t.event_id = p.event_id) LIMIT $1)
         UNION ALL
         (SELECT q.event_id, 'left the quarantine as ' || q.outcome || ' and is not marked as processed' FROM payments.quarantine q
          WHERE q.outcome IN ('APPLIED', 'KNOWN') AND q.event_id IS NOT NULL
            AND NOT EXISTS (SELECT FROM payments.processed_events p WHERE p.event_id = q.event_id) LIMIT $1)",
    )
    .bind(limit)
    .fetch_all(connection)
    .await
}
