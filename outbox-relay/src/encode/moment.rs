//! Dates and times: text in JSON, a number in Avro.

use time::{
    Date, OffsetDateTime, PrimitiveDateTime, Time, UtcDateTime,
    error::Parse,
    format_description::{BorrowedFormatItem, well_known::Rfc3339},
    macros::format_description,
};

const DATE: &[BorrowedFormatItem<'_>] = format_description!("[year]-[month]-[day]");
const TIME: &[BorrowedFormatItem<'_>] =
    format_description!("[hour]:[minute]:[second][optional [.[subsecond]]]");
const LOCAL: &[BorrowedFormatItem<'_>] =
    format_description!("[year]-[month]-[day]T[hour]:[minute]:[second][optional [.[subsecond]]]");

const UNIX_EPOCH_JULIAN_DAY: i32 = UtcDateTime::UNIX_EPOCH.to_julian_day();

/// Avro's logical types of dates and times.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Moment {
    /// Days since 1970 began.
    Date,
    /// Since midnight.
    Time(Unit),
    /// Since 1970 began in UTC.
    Timestamp(Unit),
    /// Since 1970 began, wherever that is.
    LocalTimestamp(Unit),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unit {
    Millis,
    Micros,
    Nanos,
}

impl Unit {
    /// Whole units, rounded down also before 1970. None if they are more than Avro's long holds.
    fn count(self, seconds: i64, nanoseconds: u32) -> Option<i64> {
        let per_second: u32 = match self {
            Self::Millis => 1_000,
            Self::Micros => 1_000_000,
            Self::Nanos => 1_000_000_000,
        };
        let fraction = nanoseconds / (1_000_000_000 / per_second);
        i64::try_from(i128::from(seconds) * i128::from(per_second) + i128::from(fraction)).ok()
    }
}

impl Moment {
    /// What a payload says.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Date => "a date (YYYY-MM-DD)",
            Self::Time(_) => "a time of day (HH:MM:SS)",
            Self::Timestamp(_) => "an RFC 3339 time",
            Self::LocalTimestamp(_) => "a time without offset (YYYY-MM-DDTHH:MM:SS)",
        }
    }

    /// Whether Avro's type is an int. If not, it is a long.
    pub(super) fn is_int(self) -> bool {
        matches!(self, Self::Date | Self::Time(Unit::Millis))
    }

    /// The number that Avro writes. None if that type cannot hold it.
    pub(super) fn parse(self, text: &str) -> Result<Option<i64>, Parse> {
        match self {
            Self::Date => Date::parse(text, DATE)
                .map(|date| Some(i64::from(date.to_julian_day() - UNIX_EPOCH_JULIAN_DAY))),
            Self::Time(unit) => Time::parse(text, TIME).map(|time| {
                let seconds = (i64::from(time.hour()) * 60 + i64::from(time.minute())) * 60;
                unit.count(seconds + i64::from(time.second()), time.nanosecond())
            }),
            Self::Timestamp(unit) => OffsetDateTime::parse(text, &Rfc3339)
                .map(|at| unit.count(at.unix_timestamp(), at.nanosecond())),
            Self::LocalTimestamp(unit) => PrimitiveDateTime::parse(text, LOCAL).map(|at| {
                let at = at.assume_utc();
                unit.count(at.unix_timestamp(), at.nanosecond())
            }),
        }
    }
}
