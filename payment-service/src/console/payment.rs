//! One payment, with the timeline of each of its orders.
//!
//! This database knows where it began and where it ended. What lies in between the executor's database knows, which is asked where a way to
//! it is set; if it is away, the page says so, and shows the rest.

use std::time::Duration;

use askama::Template;
use axum::{
    Extension,
    extract::{Path, Query, State, rejection::QueryRejection},
    http::StatusCode,
    response::Response,
};
use schema::{decode::Event as _, payment_order_requested::PaymentOrderRequestedEvent};
use serde::Deserialize;
use sqlx::PgPool;
use time::OffsetDateTime;
use uuid::Uuid;

use super::{
    Console,
    pages::{Frame, Live, Room, Trouble, amount, exact, lag, moment, page},
    session::SignedIn,
    timeline::{self, Facts, Step},
};
use crate::store::{
    PaymentRow,
    console::{
        executor::{self, Execution},
        outbox::{self, Appended},
        payments::{self as store, ORDERS_SHOWN_MAX, ShownOrder, TRANSITIONS_SHOWN_MAX},
    },
};

/// The request's event is made within its payment's transaction, which may wait this long for a lock.
const REQUEST_WITHIN: Duration = Duration::from_secs(10);

/// A payment order as it is shown.
struct Shown {
    order: ShownOrder,
    steps: Vec<Step>,
    waits: Vec<String>,
}

#[derive(Template)]
#[template(path = "console/payment.html")]
struct PaymentPage {
    frame: Frame,
    payment: PaymentRow,
    orders: Vec<Shown>,
    notices: Vec<&'static str>,
}

#[derive(Deserialize)]
pub(super) struct Asked {
    #[serde(default)]
    live: String,
}

/// The page.
pub(super) async fn show(
    State(console): State<Console>,
    Extension(who): Extension<SignedIn>,
    Path(id): Path<String>,
    asked: Result<Query<Asked>, QueryRejection>,
) -> Response {
    let Ok(payment_id) = Uuid::parse_str(&id) else {
        return Trouble::NotFound("A payment has a UUID.").page(&console, &who);
    };
    let (mut frame, looked) =
        tokio::join!(console.frame(&who, Room::Payments), Box::pin(look(&console, payment_id)));
    let (payment, orders, notices) = match looked {
        Ok(Some(looked)) => looked,
        Ok(None) => return Trouble::NotFound("There is no such payment.").page(&console, &who),
        Err(error) => return Trouble::of(&error).page(&console, &who),
    };
    let on = asked.is_ok_and(|Query(asked)| asked.live == "on");
    frame.live = Live::new(&format!("/console/payments/{payment_id}"), &[], on);
    page(StatusCode::OK, &PaymentPage { frame, payment, orders, notices })
}

const NO_EXECUTOR: &str = "What the executor did is not shown: the console has no way to its database (EXECUTOR_DATABASE_URL). The timeline has \
                           what the payment service knows.";
const EXECUTOR_AWAY: &str = "What the executor did is not shown: its database did not answer in time. The timeline has what the payment service \
                             knows.";
const NO_OUTBOX: &str =
    "When the request was published is not shown: it could not be looked up in the outbox.";
const CUT: &str = "There is more than is shown: the first payment orders, and the first steps of each.";

type Looked = (PaymentRow, Vec<Shown>, Vec<&'static str>);

async fn look(console: &Console, payment_id: Uuid) -> Result<Option<Looked>, sqlx::Error> {
    let parts = &console.0;
    let (payment, orders) = tokio::try_join!(
        store::payment(&parts.payments, payment_id),
        store::orders(&parts.payments, payment_id)
    )?;
    let Some(payment) = payment else { return Ok(None) };
    let (mut shown, mut notices) = (Vec::new(), Vec::new());
    let mut cut = is_full(orders.len(), ORDERS_SHOWN_MAX);
    if parts.executor.is_none() {
        notices.push(NO_EXECUTOR);
    }
    // Asked once: a database that is away makes the page wait once.
    let mut executor = parts.executor.as_ref();
    for order in orders {
        let id = order.payment_order_id;
        let (transitions, set_aside, execution) = tokio::join!(
            store::transitions(&parts.payments, id),
            store::set_aside(&parts.payments, id),
            execution(executor, id)
        );
        let (transitions, set_aside) = (transitions?, set_aside?);
        let execution = match execution {
            Ok(execution) => execution,
            Err(error) => {
                tracing::error!(error = %error, "the executor's database did not say what it did");
                notices.push(EXECUTOR_AWAY);
                executor = None;
                None
            }
        };
        let request = match request(&parts.payments, &order, execution.as_ref()).await {
            Ok(request) => request,
            Err(error) => {
                tracing::error!(error = %error, "the request's event could not be looked up");
                notices.push(NO_OUTBOX);
                None
            }
        };
        let (execution, results) = execution.map_or((None, Vec::new()), |(e, results)| (Some(e), results));
        cut |= is_full(transitions.len(), TRANSITIONS_SHOWN_MAX)
            || is_full(set_aside.len(), TRANSITIONS_SHOWN_MAX)
            || execution.as_ref().is_some_and(|e| {
                [e.attempts.len(), e.results.len(), e.webhooks.len()]
                    .into_iter()
                    .any(|count| is_full(count, executor::SHOWN_MAX))
            });
        let facts = Facts {
            order: &order,
            transitions: &transitions,
            set_aside: &set_aside,
            request: request.as_ref(),
            execution: execution.as_ref(),
            results: &results,
        };
        let (steps, waits) = (timeline::steps(&facts), timeline::waits(&facts));
        shown.push(Shown { order, steps, waits });
    }
    if cut {
        notices.push(CUT);
    }
    notices.dedup();
    Ok(Some((payment, shown, notices)))
}

fn is_full(count: usize, max: i64) -> bool {
    i64::try_from(count).is_ok_and(|count| count >= max)
}

/// What the executor knows of a payment order, and the events of its results.
async fn execution(
    pool: Option<&PgPool>,
    payment_order_id: Uuid,
) -> Result<Option<(Execution, Vec<Appended>)>, sqlx::Error> {
    let Some(pool) = pool else { return Ok(None) };
    let execution = executor::execution(pool, payment_order_id).await?;
    let ids: Vec<Uuid> = execution.results.iter().map(|result| result.event_id).collect();
    let events = if ids.is_empty() { Vec::new() } else { outbox::events(pool, &ids).await? };
    Ok(Some((execution, events)))
}

/// The event of the request: the executor knows its id; without it, it is looked for from the time on at which the order was made.
async fn request(
    pool: &PgPool,
    order: &ShownOrder,
    execution: Option<&(Execution, Vec<Appended>)>,
) -> Result<Option<Appended>, sqlx::Error> {
    let inbox = execution.and_then(|(execution, _)| execution.inbox.as_ref());
    let event_id = if let Some(event_id) = inbox.and_then(|inbox| inbox.request_event_id) {
        Some(event_id)
    } else {
        let (from, to) = (first_id(order.created_at), first_id(order.created_at + REQUEST_WITHIN));
        let key = order.payment_order_id.to_string();
        outbox::first_event_of(pool, &key, PaymentOrderRequestedEvent::TYPE, (from, to)).await?
    };
    let Some(event_id) = event_id else { return Ok(None) };
    Ok(outbox::events(pool, &[event_id]).await?.pop())
}

/// The lowest UUIDv7 of a millisecond (RFC 9562): ids of events are made in the order of their times.
fn first_id(at: OffsetDateTime) -> Uuid {
    let millis = u64::try_from(at.unix_timestamp_nanos() / 1_000_000).unwrap_or_default();
    uuid::Builder::from_unix_timestamp_millis(millis, &[0; 10]).into_uuid()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ids_of_a_millisecond_are_above_its_first() {
        let id = Uuid::now_v7();
        let (seconds, nanos) = id.get_timestamp().unwrap().to_unix();
        let at = OffsetDateTime::from_unix_timestamp(i64::try_from(seconds).unwrap()).unwrap()
            + Duration::from_nanos(nanos.into());
        assert!(first_id(at) <= id);
        assert!(first_id(at + Duration::from_millis(1)) > id);
    }
}
