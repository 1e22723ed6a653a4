//! What needs a person: payments in review, records in quarantine, events parked in an outbox; and what the executor cannot settle.

use askama::Template;
use axum::{
    Extension,
    extract::{Query, State, rejection::QueryRejection},
    http::StatusCode,
    response::Response,
};
use serde::Deserialize;
use sqlx::PgPool;
use uuid::Uuid;

use super::{
    Console,
    actions::Outbox,
    pages::{Frame, Live, Room, Trouble, address, amount, counted, encoded, moment, page},
    session::SignedIn,
};
use crate::{
    search::Place,
    store::console::{
        COUNTED_MAX,
        attention::{self as store, InReview, Quarantined},
        executor::{self, Waiting},
        outbox::{self, ParkedEvent},
    },
};

const PATH: &str = "/console/attention";
/// Rows of each list.
const PAGE: i64 = 25;

/// The parked events of one outbox.
struct ParkedOf {
    key: &'static str,
    name: &'static str,
    halted: Vec<String>,
    parked: Result<Vec<ParkedEvent>, &'static str>,
    more: bool,
}

#[derive(Template)]
#[template(path = "console/attention.html")]
struct AttentionPage {
    frame: Frame,
    review: Result<Vec<InReview>, &'static str>,
    review_more: Option<String>,
    quarantine: Result<Vec<Quarantined>, &'static str>,
    quarantine_more: Option<String>,
    outboxes: Vec<ParkedOf>,
    executor: Result<Vec<String>, &'static str>,
}

/// Where the lists begin.
#[derive(Default, Deserialize)]
#[serde(default)]
pub(super) struct Asked {
    live: String,
    /// In review, and made later than at this place.
    review: String,
    /// In quarantine behind this record.
    quarantine: String,
}

const NO_EXECUTOR: &str =
    "Not shown: the console has no way to the executor's database (EXECUTOR_DATABASE_URL).";

/// The page.
pub(super) async fn show(
    State(console): State<Console>,
    Extension(who): Extension<SignedIn>,
    asked: Result<Query<Asked>, QueryRejection>,
) -> Response {
    let parts = &console.0;
    let asked = asked.map(|Query(asked)| asked).unwrap_or_default();
    let (review_after, quarantine_after) = (Place::from_cursor(&asked.review), asked.quarantine.parse().ok());
    let (mut frame, review, quarantine, requests, results, waiting) = tokio::join!(
        console.frame(&who, Room::Attention),
        store::in_review(&parts.payments, review_after, PAGE + 1),
        store::quarantined(&parts.payments, quarantine_after, PAGE + 1),
        parked(Some(&parts.payments)),
        parked(parts.executor.as_ref()),
        at_executor(parts.executor.as_ref()),
    );
    let on = asked.live == "on";
    frame.live = Live::new(PATH, &[("review", &asked.review), ("quarantine", &asked.quarantine)], on);
    let (review, review_more) = match review {
        Ok(rows) => first_payments(rows),
        Err(error) => (Err(Trouble::of(&error).words()), None),
    };
    let (quarantine, quarantine_more) = match quarantine {
        Ok(mut rows) => {
            let more = cut(&mut rows);
            let link = rows
                .last()
                .filter(|_| more)
                .map(|last| address(PATH, &[("quarantine", &last.id.to_string())]) + "#quarantine");
            (Ok(rows), link)
        }
        Err(error) => (Err(Trouble::of(&error).words()), None),
    };
    let of = |outbox: Outbox, found: Found| {
        let (halted, parked) = found;
        let (parked, more) = match parked {
            Ok(mut rows) => {
                let more = cut(&mut rows);
                (Ok(rows), more)
            }
            Err(words) => (Err(words), false),
        };
        ParkedOf { key: outbox.key(), name: outbox.name(), halted, parked, more }
    };
    let outboxes = vec![of(Outbox::Requests, requests), of(Outbox::Results, results)];
    let executor = waiting.map(|waiting| executor_lines(&waiting));
    page(
        StatusCode::OK,
        &AttentionPage { frame, review, review_more, quarantine, quarantine_more, outboxes, executor },
    )
}

/// Cuts a list to a page. True: there was more.
fn cut<T>(rows: &mut Vec<T>) -> bool {
    let page = usize::try_from(PAGE).unwrap_or_default();
    let more = rows.len() > page;
    rows.truncate(page);
    more
}

type Review = (Result<Vec<InReview>, &'static str>, Option<String>);

/// The first payments of a list that has a row per order, whole.
fn first_payments(mut rows: Vec<InReview>) -> Review {
    let mut payments: Vec<Uuid> = rows.iter().map(|row| row.payment_id).collect();
    payments.dedup();
    let more = cut(&mut payments);
    rows.retain(|row| payments.contains(&row.payment_id));
    let link = rows.last().filter(|_| more).map(|last| {
        let place = Place { created_at: last.created_at, payment_id: last.payment_id };
        address(PATH, &[("review", &place.cursor())])
    });
    (Ok(rows), link)
}

type Found = (Vec<String>, Result<Vec<ParkedEvent>, &'static str>);

async fn parked(pool: Option<&PgPool>) -> Found {
    let Some(pool) = pool else { return (Vec::new(), Err(NO_EXECUTOR)) };
    match tokio::try_join!(outbox::parked(pool, PAGE + 1), outbox::halts(pool)) {
        Ok((rows, halts)) => {
            let words = |(relay, reason): (String, String)| format!("{relay} refuses to run: {reason}");
            (halts.into_iter().map(words).collect(), Ok(rows))
        }
        Err(error) => (Vec::new(), Err(Trouble::of(&error).words())),
    }
}

async fn at_executor(pool: Option<&PgPool>) -> Result<Waiting, &'static str> {
    let Some(pool) = pool else { return Err(NO_EXECUTOR) };
    executor::waiting(pool).await.map_err(|error| Trouble::of(&error).words())
}

/// There is no way out of these from here: it says how many they are, and where they lie.
fn executor_lines(waiting: &Waiting) -> Vec<String> {
    let count = |count| counted(count, COUNTED_MAX);
    vec![
        format!(
            "{} orders without a certain outcome (executor.inbox, REVIEW): their payments are in review here",
            count(waiting.in_review)
        ),
        format!("{} orders set aside, as the database refuses them (executor.parked)", count(waiting.parked)),
        format!(
            "{} records of the requests' topic in quarantine (executor.quarantine)",
            count(waiting.quarantined)
        ),
    ]
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;

    #[test]
    fn a_page_of_the_review_ends_with_a_whole_payment() {
        let row = |payment: u128, order: u128| InReview {
            payment_id: Uuid::from_u128(payment),
            merchant_reference: String::new(),
            amount_minor: 1,
            currency: "EUR".into(),
            review_reason: None,
            created_at: datetime!(2026-02-01 00:00 UTC),
            updated_at: datetime!(2026-02-01 00:00 UTC),
            payment_order_id: Some(Uuid::from_u128(order)),
            psp: None,
            psp_reference: None,
            order_reason: None,
        };
        let limit = u128::try_from(PAGE).unwrap();
        let all =
            |payments| (1..=payments).flat_map(|p| [row(p, 2 * p), row(p, 2 * p + 1)]).collect::<Vec<_>>();
        let (rows, more) = first_payments(all(limit));
        assert_eq!((rows.unwrap().len(), more), (2 * usize::try_from(PAGE).unwrap(), None));
        let (rows, more) = first_payments(all(limit + 1));
        assert_eq!(rows.unwrap().last().unwrap().payment_id, Uuid::from_u128(limit));
        let link = more.unwrap();
        let place = Place::from_cursor(link.split_once("review=").unwrap().1).unwrap();
        assert_eq!(
            place,
            Place { created_at: datetime!(2026-02-01 00:00 UTC), payment_id: Uuid::from_u128(limit) }
        );
    }
}
