//! The list of payments: looked for, narrowed, page by page.

use askama::Template;
use axum::{
    Extension,
    extract::{Query, State, rejection::QueryRejection},
    http::StatusCode,
    response::Response,
};
use serde::Deserialize;

use super::{
    Console,
    pages::{Frame, Live, Room, Trouble, address, amount, from_field, moment, page},
    session::SignedIn,
};
use crate::{
    decision::State as PaymentState,
    search::{Filter, Place},
    store::{PaymentRow, console::payments as store},
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
fn understand(asked: &Asked) -> Result<(Option<String>, Filter), (&'static str, &'static str)> {
    let text = asked.q.trim();
    if text.chars().count() > TEXT_MAX_CHARS || text.contains('\0') {
        return Err(("q", "Nothing that can be looked for is like that: 255 characters at most."));
    }
    let status = match asked.status.as_str() {
        "" => None,
        word => Some(PaymentState::from_word(word).ok_or(("status", "There is no such status."))?),
    };
    let time = |field, text: &str, words| match text.trim() {
        "" => Ok(None),
        text => from_field(text).map(Some).ok_or((field, words)),
    };
    let after = match asked.after.as_str() {
        "" => None,
        cursor => {
            let lost = ("after", "That page of the list cannot be found. Begin anew.");
            Some(Place::from_cursor(cursor).ok_or(lost)?)
        }
    };
    let filter = Filter {
        status,
        created_from: time(
            "from",
            &asked.from,
            "“Created from” is a date and a time, such as 2026-01-31T12:00.",
        )?,
        created_to: time(
            "until",
            &asked.until,
            "“until before” is a date and a time, such as 2026-01-31T12:00.",
        )?,
        after,
        limit: PAGE,
        ..Filter::default()
    };
    Ok(((!text.is_empty()).then(|| text.to_owned()), filter))
}

#[derive(Template)]
#[template(path = "console/payments.html")]
struct PaymentsPage {
    frame: Frame,
    form: Filled,
    statuses: &'static [PaymentState],
    payments: Vec<PaymentRow>,
    trouble: Option<&'static str>,
    first: Option<String>,
    next: Option<String>,
}

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
            Ok((text, filter)) => store::list(&console.0.payments, text.as_deref(), filter).await,
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
    let next = payments.last().filter(|_| more).map(|last| Place::of(last).cursor());
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
    page(status, &PaymentsPage { frame, form, statuses: PaymentState::ALL, payments, trouble, first, next })
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
    fn what_was_typed_is_understood_or_named() {
        let (text, filter) = understand(&asked(|asked| {
            asked.q = "  order 1 ".into();
            asked.status = "FAILED".into();
            asked.from = "2026-02-01T00:00".into();
        }))
        .unwrap();
        assert_eq!(text.as_deref(), Some("order 1"));
        assert_eq!((filter.status, filter.created_to), (Some(PaymentState::Failed), None));
        assert_eq!(filter.created_from, Some(datetime!(2026-02-01 00:00 UTC)));
        let wrong = |asked: Asked| understand(&asked).unwrap_err().0;
        assert_eq!(wrong(asked(|asked| asked.q = "x".repeat(256))), "q");
        assert_eq!(wrong(asked(|asked| asked.q = "a\0".into())), "q");
        assert_eq!(wrong(asked(|asked| asked.status = "failed".into())), "status");
        assert_eq!(wrong(asked(|asked| asked.until = "soon".into())), "until");
        assert_eq!(wrong(asked(|asked| asked.after = "1".into())), "after");
    }
}
