//! The list of payments: looked for, narrowed, page by page.

use askama::Template;
use axum::{
    Extension,
    extract::{Query, State, rejection::QueryRejection},
    http::StatusCode,
    response::Response,
};
use serde::Deserialize;
use time::OffsetDateTime;
use uuid::Uuid;

use super::{
    Console,
    pages::{Frame, Live, Room, Trouble, address, amount, from_field, moment, page},
    session::SignedIn,
};
use crate::{
    decision::State as PaymentState,
    store::console::{
        After,
        payments::{self as store, ListedPayment, Wanted},
    },
};

const PATH: &str = "/console/payments";
/// Payments on a page.
const PAGE: i64 = 50;
/// Longest text that is looked for.
const TEXT_MAX_CHARS: usize = 255;

/// What the form asks for, as it was typed.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Asked {
    q: String,
    status: String,
    from: String,
    until: String,
    after: String,
    live: String,
}

/// The form as it is shown again.
#[derive(Debug, Default)]
struct Filled {
    q: String,
    status: String,
    from: String,
    until: String,
    /// Which of the fields cannot be read, and why.
    wrong: Option<(&'static str, &'static str)>,
}

impl Filled {
    fn wrong(&self, field: &str) -> bool {
        self.wrong.is_some_and(|(wrong, _)| wrong == field)
    }

    fn narrows(&self) -> bool {
        [&self.q, &self.status, &self.from, &self.until].iter().any(|field| !field.is_empty())
    }
}

/// What was asked for, or which field cannot be read and why.
fn understand(asked: &Asked) -> Result<Wanted, (&'static str, &'static str)> {
    let text = asked.q.trim();
    if text.chars().count() > TEXT_MAX_CHARS || text.contains('\0') {
        return Err(("q", "Nothing that can be looked for is like that: 255 characters at most."));
    }
    let status = match asked.status.as_str() {
        "" => None,
        word => Some(PaymentState::from_word(word).ok_or(("status", "There is no such status."))?.as_str()),
    };
    let time = |field, text: &str, words| match text.trim() {
        "" => Ok(None),
        text => from_field(text).map(Some).ok_or((field, words)),
    };
    let after = match asked.after.as_str() {
        "" => None,
        text => {
            Some(read_after(text).ok_or(("after", "That page of the list cannot be found. Begin anew."))?)
        }
    };
    Ok(Wanted {
        text: (!text.is_empty()).then(|| text.to_owned()),
        status,
        from: time("from", &asked.from, "“Created from” is a date and a time, such as 2026-01-31T12:00.")?,
        until: time("until", &asked.until, "“until before” is a date and a time, such as 2026-01-31T12:00.")?,
        after,
    })
}

/// Where a page ends, in an address: microseconds and payment id.
fn write_after(payment: &ListedPayment) -> String {
    format!("{}.{}", payment.created_at.unix_timestamp_nanos() / 1_000, payment.payment_id)
}

fn read_after(text: &str) -> Option<After<Uuid>> {
    let (micros, id) = text.split_once('.')?;
    let nanos = micros.parse::<i64>().ok().map(|micros| i128::from(micros) * 1_000)?;
    let at = OffsetDateTime::from_unix_timestamp_nanos(nanos).ok()?;
    Some(After { at, id: Uuid::parse_str(id).ok()? })
}

#[derive(Template)]
#[template(path = "console/payments.html")]
struct PaymentsPage {
    frame: Frame,
    form: Filled,
    statuses: &'static [&'static str],
    payments: Vec<ListedPayment>,
    trouble: Option<&'static str>,
    first: Option<String>,
    next: Option<String>,
}

const STATUSES: [&str; 6] = ["CREATED", "PENDING", "UNKNOWN", "SUCCESSFUL", "FAILED", "NEEDS_REVIEW"];

/// The page.
pub(super) async fn show(
    State(console): State<Console>,
    Extension(who): Extension<SignedIn>,
    asked: Result<Query<Asked>, QueryRejection>,
) -> Response {
    let Ok(Query(asked)) = asked else {
        return Trouble::NotFound("The address of the page cannot be read.").page(&console, &who);
    };
    let wanted = understand(&asked);
    let look = async {
        match &wanted {
            Ok(wanted) => store::list(&console.0.payments, wanted, PAGE + 1).await,
            Err(_) => Ok(Vec::new()),
        }
    };
    let (mut frame, found) = tokio::join!(console.frame(&who, Room::Payments), look);
    let fields =
        [("q", asked.q.as_str()), ("status", &asked.status), ("from", &asked.from), ("until", &asked.until)];
    let on = asked.live == "on";
    let kept = [fields.as_slice(), &[("live", if on { "on" } else { "" })]].concat();
    let after = ("after", asked.after.as_str());
    frame.live = Live::new(PATH, &[fields.as_slice(), &[after]].concat(), on);
    let (mut payments, trouble) = match found {
        Ok(payments) => (payments, None),
        Err(error) => (Vec::new(), Some(Trouble::of(&error).words())),
    };
    let more = i64::try_from(payments.len()).is_ok_and(|count| count > PAGE);
    payments.truncate(usize::try_from(PAGE).unwrap_or_default());
    let next = payments.last().filter(|_| more).map(write_after);
    let next = next.map(|after| address(PATH, &[kept.as_slice(), &[("after", &after)]].concat()));
    let first = (!asked.after.is_empty()).then(|| address(PATH, &kept));
    let wrong = wanted.err();
    let status = match (wrong, trouble) {
        (Some(_), _) => StatusCode::BAD_REQUEST,
        (None, Some(_)) => StatusCode::SERVICE_UNAVAILABLE,
        (None, None) => StatusCode::OK,
    };
    let Asked { q, status: status_field, from, until, .. } = asked.clone();
    let form = Filled { q, status: status_field, from, until, wrong };
    page(status, &PaymentsPage { frame, form, statuses: &STATUSES, payments, trouble, first, next })
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;

    fn asked(change: impl FnOnce(&mut Asked)) -> Asked {
        let mut asked = Asked::default();
        change(&mut asked);
        asked
    }

    #[test]
    fn every_status_can_be_asked_for() {
        assert!(
            STATUSES.iter().all(|word| PaymentState::from_word(word).is_some_and(|s| s.as_str() == *word))
        );
    }

    #[test]
    fn what_was_typed_is_understood_or_named() {
        let wanted = understand(&asked(|asked| {
            asked.q = "  order 1 ".into();
            asked.status = "FAILED".into();
            asked.from = "2026-02-01T00:00".into();
        }))
        .unwrap();
        assert_eq!(wanted.text.as_deref(), Some("order 1"));
        assert_eq!((wanted.status, wanted.until), (Some("FAILED"), None));
        assert_eq!(wanted.from, Some(datetime!(2026-02-01 00:00 UTC)));
        let wrong = |asked: Asked| understand(&asked).unwrap_err().0;
        assert_eq!(wrong(asked(|asked| asked.q = "x".repeat(256))), "q");
        assert_eq!(wrong(asked(|asked| asked.q = "a\0".into())), "q");
        assert_eq!(wrong(asked(|asked| asked.status = "failed".into())), "status");
        assert_eq!(wrong(asked(|asked| asked.until = "soon".into())), "until");
        assert_eq!(wrong(asked(|asked| asked.after = "1".into())), "after");
    }

    #[test]
    fn a_page_goes_on_where_the_one_before_ended() {
        let payment = ListedPayment {
            payment_id: Uuid::from_u128(7),
            caller: "shop".into(),
            amount_minor: 1,
            currency: "EUR".into(),
            merchant_reference: "x".into(),
            status: "CREATED".into(),
            review_reason: None,
            trace_id: String::new(),
            created_at: datetime!(2026-02-01 00:00:00.123_456 UTC),
            updated_at: datetime!(2026-02-01 00:00 UTC),
        };
        let after = read_after(&write_after(&payment)).unwrap();
        assert_eq!(after, After { at: payment.created_at, id: payment.payment_id });
        for wrong in [
            "",
            ".",
            "1.",
            "x.00000000-0000-0000-0000-000000000007",
            "9223372036854775807.00000000-0000-0000-0000-000000000007",
        ] {
            assert_eq!(read_after(wrong), None, "{wrong}");
        }
    }
}
