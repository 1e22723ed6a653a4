//! Finding payments: what may be asked for, and where a page goes on.
//!
//! Newest first, by the time of creation and then by id: both never change, so that a page neither repeats nor leaves out a payment,
//! whatever is created or changes meanwhile. A cursor is that place in the order, and nothing else: it does not age.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::Deserialize;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use utoipa::IntoParams;
use uuid::Uuid;

use crate::{decision::State, problem::Problem, request::is_plain_text, store::PaymentRow};

/// Payments of a page, if nothing is said.
const LIMIT_DEFAULT: u8 = 50;
/// Most payments of a page.
const LIMIT_MAX: u8 = 200;
/// Most characters of a PSP's reference.
const REFERENCE_MAX_CHARS: usize = 255;

/// The query of `GET /v1/payments`. What is not given does not narrow.
#[derive(Clone, Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct PaymentsQuery {
    /// The PSP's id of a charge, as it stands in any result of one of the payment's orders.
    #[param(min_length = 1, max_length = 255)]
    psp_reference: Option<String>,
    /// The trace of the payment: 32 hexadecimal digits, in small letters.
    #[param(pattern = "^[0-9a-f]{32}$")]
    trace_id: Option<String>,
    /// The merchant's own id of the payment.
    #[param(min_length = 1, max_length = 255)]
    merchant_reference: Option<String>,
    /// The payment's status.
    #[param(value_type = Option<State>)]
    status: Option<String>,
    /// Created at this time or later (RFC 3339).
    #[param(format = DateTime)]
    created_from: Option<String>,
    /// Created before this time (RFC 3339).
    #[param(format = DateTime)]
    created_to: Option<String>,
    /// Most payments of a page; 50 if it is not given.
    #[param(minimum = 1, maximum = 200)]
    limit: Option<u8>,
    /// Where to go on: `next_cursor` of the page before, with the same filters.
    cursor: Option<String>,
}

/// What is looked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// Payments of this caller alone.
    pub caller: Option<String>,
    /// Named by a result of one of its orders.
    pub psp_reference: Option<String>,
    /// The payment's trace.
    pub trace_id: Option<String>,
    /// The merchant's own id.
    pub merchant_reference: Option<String>,
    /// The payment's status.
    pub status: Option<State>,
    /// Created at this time or later.
    pub created_from: Option<OffsetDateTime>,
    /// Created before this time.
    pub created_to: Option<OffsetDateTime>,
    /// Behind this place.
    pub after: Option<Place>,
    /// Most payments of the page.
    pub limit: i64,
}

/// A place in the order of all payments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// When the payment was created.
    pub created_at: OffsetDateTime,
    /// Its id.
    pub payment_id: Uuid,
}

impl PaymentsQuery {
    /// Checks everything. The filter is not narrowed to a caller yet.
    pub fn check(self) -> Result<Filter, Problem> {
        let text = |name: &str, text: Option<String>| match text {
            Some(text) if !is_plain_text(&text, REFERENCE_MAX_CHARS) => Err(Problem::invalid(format!(
                "{name} must have 1 to {REFERENCE_MAX_CHARS} characters, none of them a control character"
            ))),
            text => Ok(text),
        };
        let hexadecimal = |id: &String| {
            id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
        };
        if self.trace_id.as_ref().is_some_and(|id| !hexadecimal(id)) {
            return Err(Problem::invalid("trace_id must have 32 hexadecimal digits, in small letters"));
        }
        let status = self.status.map(|word| {
            let words: Vec<&str> = State::ALL.iter().map(|state| state.as_str()).collect();
            State::from_word(&word)
                .ok_or_else(|| Problem::invalid(format!("status must be one of {}", words.join(", "))))
        });
        let limit = self.limit.unwrap_or(LIMIT_DEFAULT);
        if !(1..=LIMIT_MAX).contains(&limit) {
            return Err(Problem::invalid(format!("limit must be from 1 to {LIMIT_MAX}")));
        }
        Ok(Filter {
            caller: None,
            psp_reference: text("psp_reference", self.psp_reference)?,
            trace_id: self.trace_id,
            merchant_reference: text("merchant_reference", self.merchant_reference)?,
            status: status.transpose()?,
            created_from: time("created_from", self.created_from.as_deref())?,
            created_to: time("created_to", self.created_to.as_deref())?,
            after: self.cursor.as_deref().map(after).transpose()?,
            limit: limit.into(),
        })
    }
}

fn after(cursor: &str) -> Result<Place, Problem> {
    Place::from_cursor(cursor).ok_or_else(|| Problem::invalid("cursor must be the next_cursor of a page"))
}

fn time(name: &str, text: Option<&str>) -> Result<Option<OffsetDateTime>, Problem> {
    let read = |text| {
        OffsetDateTime::parse(text, &Rfc3339).map_err(|_| {
            Problem::invalid(format!("{name} must be a time as in RFC 3339, such as 2026-01-31T12:00:00Z"))
        })
    };
    text.map(read).transpose()
}

/// What a cursor begins with: one of another kind is refused, not misunderstood.
const CURSOR_VERSION: u8 = 1;

impl Place {
    /// Where a payment stands.
    pub(crate) fn of(payment: &PaymentRow) -> Self {
        Self { created_at: payment.created_at, payment_id: payment.payment_id }
    }

    /// As a client gets it: not to be read, and good for nothing else.
    pub fn cursor(self) -> String {
        let micros = i64::try_from(self.created_at.unix_timestamp_nanos() / 1_000).unwrap_or(i64::MAX);
        let bytes = [&[CURSOR_VERSION][..], &micros.to_be_bytes(), self.payment_id.as_bytes()].concat();
        URL_SAFE_NO_PAD.encode(bytes)
    }

    /// The place that a cursor names, if it is one of ours.
    pub(crate) fn from_cursor(text: &str) -> Option<Self> {
        let bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
        let (version, rest) = bytes.split_first()?;
        let (micros, id) = rest.split_first_chunk::<8>()?;
        let nanos = i128::from(i64::from_be_bytes(*micros)) * 1_000;
        let created_at = OffsetDateTime::from_unix_timestamp_nanos(nanos).ok()?;
        let payment_id = Uuid::from_slice(id).ok()?;
        // No payment was created at what PostgreSQL has no word for.
        let fits = *version == CURSOR_VERSION && (0..=9999).contains(&created_at.year());
        fits.then_some(Self { created_at, payment_id })
    }
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;

    #[test]
    fn a_cursor_is_the_place_it_was_made_from() {
        let place =
            Place { created_at: datetime!(2026-01-31 12:00:00.123456 UTC), payment_id: Uuid::now_v7() };
        assert_eq!(Place::from_cursor(&place.cursor()).unwrap(), place);
        let mut other = URL_SAFE_NO_PAD.decode(place.cursor()).unwrap();
        other[0] = 2;
        for wrong in
            ["", "x", "====", &place.cursor()[1..], &URL_SAFE_NO_PAD.encode(other), &"A".repeat(10_000)]
        {
            assert_eq!(Place::from_cursor(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_filter_is_what_was_asked_for_or_a_refusal() {
        let asked = |change: fn(&mut PaymentsQuery)| {
            let mut query = PaymentsQuery::default();
            change(&mut query);
            query.check()
        };
        let all = asked(|_| ()).unwrap();
        assert_eq!(all, Filter { limit: 50, ..Filter::default() });
        let some = asked(|query| {
            query.status = Some("NEEDS_REVIEW".into());
            query.created_from = Some("2026-01-31T12:00:00+01:00".into());
            query.limit = Some(7);
        });
        let expected = Filter {
            status: Some(State::NeedsReview),
            created_from: Some(datetime!(2026-01-31 11:00 UTC)),
            limit: 7,
            ..Filter::default()
        };
        assert_eq!(some.unwrap(), expected);
        let wrong: [fn(&mut PaymentsQuery); 9] = [
            |query| query.status = Some("failed".into()),
            |query| query.trace_id = Some("A".repeat(32)),
            |query| query.trace_id = Some("a".repeat(31)),
            |query| query.psp_reference = Some(String::new()),
            |query| query.merchant_reference = Some("a\u{0}b".into()),
            |query| query.created_to = Some("2026-01-31".into()),
            |query| query.limit = Some(0),
            |query| query.limit = Some(201),
            |query| query.cursor = Some("eyJ9".into()),
        ];
        for (index, change) in wrong.into_iter().enumerate() {
            assert!(asked(change).is_err(), "{index}");
        }
    }
}
