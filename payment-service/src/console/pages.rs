//! What every page has: its frame, how times, lags and amounts are written, and what is said when there is nothing to show.

use std::{fmt, time::Duration};

use askama::Template;
use axum::{
    http::{HeaderValue, StatusCode, header},
    response::{Html, IntoResponse, Response},
};
use chassis::postgres::{Disposition, disposition};
use iso_currency::Currency;
use sha2::{Digest as _, Sha256};
use time::{OffsetDateTime, macros::format_description};

use super::{Console, glance::Card, session::SignedIn};

/// How often a page that is to stay fresh is asked for again.
const LIVE_SECONDS: u32 = 5;

// ---------------------------------------------------------------------------------------------------------- stylesheet

const STYLESHEET: &str = include_str!("../../templates/console/console.css");

/// The stylesheet's path, which changes with what is in it: a browser may keep it for good.
#[derive(Debug)]
pub(super) struct Stylesheet(String);

impl Stylesheet {
    pub(super) fn new() -> Self {
        let digest = hex::encode(Sha256::digest(STYLESHEET));
        Self(format!("/console/console-{}.css", digest.get(..16).unwrap_or(&digest)))
    }

    pub(super) fn path(&self) -> &str {
        &self.0
    }
}

pub(super) async fn stylesheet() -> Response {
    let headers = [
        (header::CONTENT_TYPE, "text/css; charset=utf-8"),
        (header::CACHE_CONTROL, "public, max-age=31536000, immutable"),
    ];
    (headers, STYLESHEET).into_response()
}

// --------------------------------------------------------------------------------------------------------------- frame

/// Which of the console's pages a page belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Room {
    Payments,
    Attention,
    /// In front of the door.
    Outside,
}

impl Room {
    pub(super) fn is_payments(self) -> bool {
        self == Self::Payments
    }

    pub(super) fn is_attention(self) -> bool {
        self == Self::Attention
    }
}

/// Whether a page asks for itself again, and the link that changes it.
#[derive(Clone, Debug, Default)]
pub(super) enum Live {
    /// It never does.
    #[default]
    Never,
    /// It may.
    Off(String),
    /// It does.
    On(String),
}

impl Live {
    /// Of a page at `path` with these parameters, of which `live` is one.
    pub(super) fn new(path: &str, parameters: &[(&str, &str)], on: bool) -> Self {
        if on {
            Self::On(address(path, parameters))
        } else {
            Self::Off(address(path, &[parameters, &[("live", "on")]].concat()))
        }
    }

    pub(super) fn is_on(&self) -> bool {
        matches!(self, Self::On(_))
    }

    pub(super) fn switch(&self) -> Option<&str> {
        match self {
            Self::Never => None,
            Self::Off(link) | Self::On(link) => Some(link),
        }
    }

    #[expect(clippy::unused_self, reason = "asked for by the template beside the others")]
    pub(super) fn seconds(&self) -> u32 {
        LIVE_SECONDS
    }
}

/// A path with those parameters that say something, encoded.
pub(super) fn address(path: &str, parameters: &[(&str, &str)]) -> String {
    let said = parameters.iter().filter(|(_, value)| !value.is_empty());
    let query = form_urlencoded::Serializer::new(String::new()).extend_pairs(said).finish();
    if query.is_empty() { path.to_owned() } else { format!("{path}?{query}") }
}

/// One value, encoded for an address.
pub(super) fn encoded(value: &str) -> String {
    form_urlencoded::byte_serialize(value.as_bytes()).collect()
}

/// What every page has around it.
#[derive(Debug)]
pub(super) struct Frame {
    pub(super) stylesheet: String,
    pub(super) operator: Option<String>,
    pub(super) form_token: String,
    pub(super) room: Room,
    pub(super) glance: Vec<Card>,
    pub(super) live: Live,
    pub(super) rendered_at: Moment,
}

impl Frame {
    pub(super) fn new(console: &Console, who: Option<&SignedIn>, room: Room, glance: Vec<Card>) -> Self {
        Self {
            stylesheet: console.0.stylesheet.path().to_owned(),
            operator: who.map(|who| who.operator.clone()),
            form_token: who.map(|who| who.form_token.clone()).unwrap_or_default(),
            room,
            glance,
            live: Live::Never,
            rendered_at: moment(&OffsetDateTime::now_utc()),
        }
    }
}

/// A page that was rendered, or the news that it could not be.
pub(super) fn page(status: StatusCode, template: &impl Template) -> Response {
    match template.render() {
        Ok(html) => (status, Html(html)).into_response(),
        Err(error) => {
            tracing::error!(error = %error, "a page could not be rendered");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}

#[derive(Template)]
#[template(path = "console/message.html")]
struct Message<'a> {
    frame: Frame,
    heading: &'a str,
    text: &'a str,
}

/// A page that says one thing, to whoever asks.
pub(super) fn message(console: &Console, status: StatusCode, heading: &str, text: &str) -> Response {
    let frame = Frame::new(console, None, Room::Outside, Vec::new());
    page(status, &Message { frame, heading, text })
}

/// Why there is no page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Trouble {
    /// There is nothing of the kind.
    NotFound(&'static str),
    /// The database is away or busy.
    Away,
    /// The database refused what no user can help.
    Fault,
}

impl Trouble {
    /// What an error of the database means here. It is logged: a page tells no details.
    pub(super) fn of(error: &sqlx::Error) -> Self {
        tracing::error!(error = %error, "the database did not do what a page of the console needed");
        match disposition(error) {
            Disposition::Wait => Self::Away,
            Disposition::Culprit | Disposition::Fault => Self::Fault,
        }
    }

    /// In a sentence.
    pub(super) fn words(&self) -> &'static str {
        match self {
            Self::NotFound(words) => words,
            Self::Away => "The database did not answer in time. What is here is not known at the moment.",
            Self::Fault => "The database refused the question. The service's log says why.",
        }
    }

    pub(super) fn page(&self, console: &Console, who: &SignedIn) -> Response {
        let (status, heading) = match self {
            Self::NotFound(_) => (StatusCode::NOT_FOUND, "Not found"),
            Self::Away => (StatusCode::SERVICE_UNAVAILABLE, "Not now"),
            Self::Fault => (StatusCode::INTERNAL_SERVER_ERROR, "Something is wrong"),
        };
        let frame = Frame::new(console, Some(who), Room::Outside, Vec::new());
        let mut response = page(status, &Message { frame, heading, text: self.words() });
        if *self == Self::Away {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("2"));
        }
        response
    }
}

// ------------------------------------------------------------------------------------------------------------- writing

/// A label and what it stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fact {
    pub(super) label: &'static str,
    pub(super) text: String,
}

pub(super) fn fact(label: &'static str, text: impl Into<String>) -> Fact {
    Fact { label, text: text.into() }
}

/// A time as an element of HTML. What it writes are digits and letters of its own: nothing in it needs to be escaped.
#[derive(Clone, Copy, Debug)]
pub(super) struct Moment {
    at: OffsetDateTime,
    micros: bool,
}

impl askama::filters::HtmlSafe for Moment {}

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at = self.at.to_offset(time::UtcOffset::UTC);
        let (date, clock, micros) = (at.date(), at.time(), at.microsecond());
        let (hour, minute, second) = clock.as_hms();
        write!(f, r#"<time datetime="{date}T{hour:02}:{minute:02}:{second:02}.{micros:06}Z">"#)?;
        write!(f, "{date} {hour:02}:{minute:02}:{second:02}")?;
        if self.micros {
            write!(f, ".{micros:06}")?;
        }
        write!(f, "</time>")
    }
}

/// To the second.
pub(super) fn moment(at: &OffsetDateTime) -> Moment {
    Moment { at: *at, micros: false }
}

/// To the microsecond.
pub(super) fn exact(at: &OffsetDateTime) -> Moment {
    Moment { at: *at, micros: true }
}

/// A time in words, for where no element can be.
pub(super) fn utc(at: OffsetDateTime) -> String {
    let format = format_description!("[year]-[month]-[day] [hour]:[minute]:[second] UTC");
    at.to_offset(time::UtcOffset::UTC).format(format).unwrap_or_else(|_| at.to_string())
}

/// A time in the form that a field of the kind `datetime-local` has.
pub(super) fn from_field(text: &str) -> Option<OffsetDateTime> {
    let with_seconds = format_description!("[year]-[month]-[day]T[hour]:[minute]:[second]");
    let without = format_description!("[year]-[month]-[day]T[hour]:[minute]");
    let parsed = time::PrimitiveDateTime::parse(text, with_seconds)
        .or_else(|_| time::PrimitiveDateTime::parse(text, without));
    // PostgreSQL's years end later, but no payment is made then.
    parsed.ok().map(time::PrimitiveDateTime::assume_utc)
}

/// How long something took, in the unit in which it is read best.
pub(super) fn lag(lag: &Duration) -> String {
    let seconds = lag.as_secs();
    match seconds {
        0 => format!("{}.{} ms", lag.as_millis(), lag.subsec_micros() % 1_000 / 100),
        1..=59 => format!("{seconds}.{:03} s", lag.subsec_millis()),
        60..=3_599 => format!("{} min {} s", seconds / 60, seconds % 60),
        3_600..=86_399 => format!("{} h {} min", seconds / 3_600, seconds % 3_600 / 60),
        _ => format!("{} d {} h", seconds / 86_400, seconds % 86_400 / 3_600),
    }
}

/// Seconds of a database as a duration: negative ones, which clocks that differ can bring, are none.
pub(super) fn seconds(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds).unwrap_or_default()
}

/// An amount of minor units in its currency's own way: 1234 EUR cents are "12.34 EUR". One whose currency has no minor units, or is
/// not known, says so.
#[expect(clippy::trivially_copy_pass_by_ref, reason = "templates pass everything by reference")]
pub(super) fn amount(minor: &i64, currency: &str) -> String {
    let Some(digits) = Currency::from_code(currency).and_then(Currency::exponent) else {
        return format!("{minor} minor units of {currency}");
    };
    let sign = if *minor < 0 { "-" } else { "" };
    let text = format!("{:0>width$}", minor.unsigned_abs(), width = usize::from(digits) + 1);
    let (whole, fraction) = text.split_at(text.len() - usize::from(digits));
    let grouped: String = whole
        .char_indices()
        .flat_map(|(index, digit)| {
            let comma = index > 0 && (whole.len() - index) % 3 == 0;
            comma.then_some(',').into_iter().chain([digit])
        })
        .collect();
    if fraction.is_empty() {
        format!("{sign}{grouped} {currency}")
    } else {
        format!("{sign}{grouped}.{fraction} {currency}")
    }
}

/// A number that was counted up to a limit.
pub(super) fn counted(count: i64, limit: i64) -> String {
    if count > limit { format!("more than {limit}") } else { count.to_string() }
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;

    #[test]
    fn times_are_written_in_utc_with_their_element() {
        let at = datetime!(2026-01-31 23:59:58.001_234 -01:00);
        assert_eq!(
            moment(&at).to_string(),
            r#"<time datetime="2026-02-01T00:59:58.001234Z">2026-02-01 00:59:58</time>"#
        );
        assert!(exact(&at).to_string().contains(">2026-02-01 00:59:58.001234<"));
        assert_eq!(utc(at), "2026-02-01 00:59:58 UTC");
    }

    #[test]
    fn a_field_with_a_time_is_read_with_and_without_seconds() {
        assert_eq!(from_field("2026-02-01T00:59"), Some(datetime!(2026-02-01 00:59 UTC)));
        assert_eq!(from_field("2026-02-01T00:59:58"), Some(datetime!(2026-02-01 00:59:58 UTC)));
        for wrong in
            ["", "yesterday", "2026-02-30T00:00", "2026-02-01", "2026-02-01T25:00", "2026-02-01T00:59:58Z"]
        {
            assert_eq!(from_field(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn lags_are_written_in_the_unit_that_fits() {
        for (micros, text) in [
            (0, "0.0 ms"),
            (950, "0.9 ms"),
            (12_345, "12.3 ms"),
            (999_999, "999.9 ms"),
            (1_204_000, "1.204 s"),
            (61_000_000, "1 min 1 s"),
            (3_600_000_000, "1 h 0 min"),
            (90_000_000_000, "1 d 1 h"),
        ] {
            assert_eq!(lag(&Duration::from_micros(micros)), text);
        }
        assert_eq!(seconds(-1.0), Duration::ZERO);
        assert_eq!(seconds(f64::NAN), Duration::ZERO);
    }

    #[test]
    fn amounts_have_the_digits_of_their_currency() {
        for (minor, currency, text) in [
            (1_234, "EUR", "12.34 EUR"),
            (5, "EUR", "0.05 EUR"),
            (100_000_000, "EUR", "1,000,000.00 EUR"),
            (1_234, "JPY", "1,234 JPY"),
            (1_234_567, "KWD", "1,234.567 KWD"),
            (-1_234, "EUR", "-12.34 EUR"),
            (i64::MIN, "JPY", "-9,223,372,036,854,775,808 JPY"),
            (7, "???", "7 minor units of ???"),
        ] {
            assert_eq!(amount(&minor, currency), text);
        }
    }

    #[test]
    fn a_link_that_switches_refreshing_keeps_what_was_looked_for() {
        let Live::Off(link) = Live::new("/console/payments", &[("q", "a&b"), ("status", "")], false) else {
            panic!("off");
        };
        assert_eq!(link, "/console/payments?q=a%26b&live=on");
        let Live::On(link) = Live::new("/console/attention", &[], true) else { panic!("on") };
        assert_eq!(link, "/console/attention");
    }
}
