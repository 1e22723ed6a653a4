//! What a run has shown: a table for people, one line of JSON for programs, and what speaks against it.

use std::collections::HashMap;
use std::fmt::Write;

use anyhow::Error;
use serde::Serialize;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::demo::kills::Kill;
use crate::demo::{Demo, Window, accepted};
use crate::oracle::books::{Books, Told, Transition};
use crate::oracle::{Promise, Verdict};

/// Examples per broken promise.
const EXAMPLES: usize = 20;

/// The report of a run.
#[derive(Debug)]
pub struct Report {
    /// For programs. Its fields are part of what `make demo` promises.
    pub summary: Summary,
    /// For people.
    pub table: String,
    /// Why the run has failed; empty if it has not.
    pub broken: Vec<String>,
}

/// The figures of a run.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Summary {
    /// Payments that exist.
    pub payments: usize,
    /// Of them paid.
    pub successful: usize,
    /// Of them not paid.
    pub failed: usize,
    /// Of them with a person.
    pub needs_review: usize,
    /// Payments and orders that have not come to an end.
    pub unsettled: usize,
    /// Charges in the PSP's ledger.
    pub psp_charges: usize,
    /// What was asked for once and charged more than once.
    pub double_charged: usize,
    /// Payment orders of which a result, a charge or the order itself never reached a payment state.
    pub lost: usize,
    /// Event ids with more than one line in the audit, whatever the decision.
    pub applied_twice: usize,
    /// Events without a committed cause.
    pub ghost: usize,
    /// Different events on both topics.
    pub events_published: usize,
    /// Further records of the same events.
    pub duplicates_published: usize,
    /// Processes killed with work in their hands.
    pub kills: usize,
    /// From the PSP's answer to the state, of payments that no kill touched.
    pub lag_ms: Lag,
    /// From the first payment until all was settled.
    pub seconds: f64,
}

/// Milliseconds; null if no payment was left to measure.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Lag {
    /// Half of them were faster.
    pub p50: Option<f64>,
    /// 99 of 100 were faster.
    pub p99: Option<f64>,
    /// The slowest.
    pub max: Option<f64>,
    /// How many results were measured.
    #[serde(skip)]
    pub results: usize,
    /// Of how many payments.
    #[serde(skip)]
    pub payments: usize,
}

impl Report {
    /// `disorder`: a process that had ended by itself, or did not end well when asked to.
    pub fn new(
        demo: &Demo,
        books: &Books,
        verdict: &Verdict,
        kills: &[Kill],
        seconds: f64,
        disorder: Option<Error>,
    ) -> Report {
        let figures = verdict.figures;
        let windows: Vec<Window> = kills.iter().map(|kill| kill.window).collect();
        let summary = Summary {
            payments: figures.payments,
            successful: figures.successful,
            failed: figures.failed,
            needs_review: figures.needs_review,
            unsettled: figures.unsettled.max(verdict.broken(Promise::Settled)),
            psp_charges: figures.psp_charges,
            double_charged: verdict.broken(Promise::ChargedOnce),
            lost: verdict.broken(Promise::NothingLost),
            applied_twice: verdict.broken(Promise::AppliedOnce),
            ghost: verdict.broken(Promise::NoGhost),
            events_published: figures.events_published,
            duplicates_published: figures.duplicates_published,
            kills: kills.len(),
            lag_ms: lag(&books.payments.transitions, &windows),
            seconds: rounded(seconds),
        };
        let broken = broken(demo, books, verdict, &summary, disorder);
        let table = table(demo, books, verdict, kills, &summary);
        Report { summary, table, broken }
    }

    /// The last line.
    pub fn json(&self) -> String {
        serde_json::to_string(&self.summary).unwrap_or_default()
    }
}

fn broken(
    demo: &Demo,
    books: &Books,
    verdict: &Verdict,
    summary: &Summary,
    disorder: Option<Error>,
) -> Vec<String> {
    let mut broken: Vec<String> = Promise::ALL
        .into_iter()
        .filter(|promise| verdict.broken(*promise) > 0)
        .map(|promise| format!("{}: {}", promise.violation(), verdict.broken(promise)))
        .collect();
    let accepted = accepted(&books.sent);
    if accepted < demo.payments || summary.payments < demo.payments {
        let other = books.sent.iter().find_map(|sent| match &sent.outcome {
            Told::Accepted { .. } => None,
            Told::Refused(why) | Told::Unknown(why) => Some(format!(", for example: {why}")),
        });
        broken.push(format!(
            "of {} payments {accepted} were accepted{}",
            demo.payments,
            other.unwrap_or_default()
        ));
    }
    if summary.kills < demo.kills {
        broken.push(format!("of {} kills {} were carried out", demo.kills, summary.kills));
    }
    broken.extend(disorder.map(|error| format!("{error:#}")));
    broken
}

fn table(demo: &Demo, books: &Books, verdict: &Verdict, kills: &[Kill], summary: &Summary) -> String {
    let mut text = String::new();
    let mut line = |what: &str, value: String| {
        // Writing into a string does not fail.
        writeln!(text, "  {what:<28}{value}").ok();
    };
    let sent = format!("{} asked for, {} accepted", demo.payments, accepted(&books.sent));
    line("payments", sent);
    line("  successful", summary.successful.to_string());
    line("  failed", summary.failed.to_string());
    line("  needs review", summary.needs_review.to_string());
    line("  unsettled", summary.unsettled.to_string());
    line("charges at the PSP", summary.psp_charges.to_string());
    let again = summary.duplicates_published;
    line("events published", format!("{}, and {again} of them again", summary.events_published));
    let Lag { p50, p99, max, results, payments } = summary.lag_ms;
    let ms = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |value| format!("{value:.1}"));
    let measured = format!("{results} results of {payments} payments that no kill touched");
    line(
        "PSP's answer to state, ms",
        format!("p50 {}, p99 {}, max {} ({measured})", ms(p50), ms(p99), ms(max)),
    );
    line("seconds", format!("{:.1}", summary.seconds));
    line("kills", format!("{} of {}", kills.len(), demo.kills));
    for kill in kills {
        line("", kill.to_string());
    }
    for promise in Promise::ALL {
        line(promise.violation(), verdict.broken(promise).to_string());
    }
    if !verdict.clean() {
        writeln!(text, "\n{}", verdict.describe(EXAMPLES)).ok();
    }
    text
}

/// From `event_time` to `decided_at` of every result that changed a state.
///
/// A payment counts if its whole life, from its creation to its last line in the audit, lies outside of every window: a window
/// begins with a kill, and ends when all that was written until the killed process was back has arrived on the other side.
fn lag(transitions: &[Transition], windows: &[Window]) -> Lag {
    let mut lives: HashMap<Uuid, (OffsetDateTime, OffsetDateTime)> = HashMap::new();
    for line in transitions {
        let begun_at = line.event_time.map_or(line.decided_at, |at| at.min(line.decided_at));
        let life = lives.entry(line.payment_order_id).or_insert((begun_at, line.decided_at));
        *life = (life.0.min(begun_at), life.1.max(line.decided_at));
    }
    lives.retain(|_, (from, to)| windows.iter().all(|window| *to < window.from || window.to < *from));
    let mut milliseconds: Vec<f64> = transitions
        .iter()
        .filter(|line| line.decision == "APPLIED" && lives.contains_key(&line.payment_order_id))
        .filter_map(|line| Some((line.decided_at - line.event_time?).as_seconds_f64().max(0.0) * 1_000.0))
        .collect();
    milliseconds.sort_by(f64::total_cmp);
    let percentile = |percent| nearest_rank(&milliseconds, percent).map(rounded);
    Lag {
        p50: percentile(50),
        p99: percentile(99),
        max: percentile(100),
        results: milliseconds.len(),
        payments: lives.len(),
    }
}

/// The smallest of these sorted values that `percent` of 100 values do not exceed. None if there is no value.
pub(crate) fn nearest_rank(sorted: &[f64], percent: usize) -> Option<f64> {
    let rank = (sorted.len() * percent).div_ceil(100);
    sorted.get(rank.max(1) - 1).copied()
}

fn rounded(value: f64) -> f64 {
    (value * 10.0).round() / 10.0
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::demo::Scenario;

    fn at(ms: u64) -> OffsetDateTime {
        OffsetDateTime::UNIX_EPOCH + Duration::from_millis(ms)
    }

    fn line(order: u128, event_time: Option<u64>, decided_at: u64) -> Transition {
        Transition {
            transition_id: 0,
            payment_order_id: Uuid::from_u128(order),
            event_id: None,
            from_state: None,
            to_state: String::new(),
            decision: "APPLIED".to_owned(),
            event_time: event_time.map(at),
            trace_id: String::new(),
            decided_at: at(decided_at),
        }
    }

    #[test]
    fn the_lag_is_that_of_payments_that_no_kill_touched() {
        let transitions = [
            // Created long before its result: it lived through the window.
            line(1, None, 900),
            line(1, Some(2_500), 2_900),
            line(2, None, 100),
            line(2, Some(110), 120),
            // Its result was on its way when the kill came.
            line(3, None, 930),
            line(3, Some(990), 1_700),
            line(4, None, 2_100),
            line(4, Some(2_110), 2_140),
        ];
        let window = Window { from: at(1_000), to: at(2_000) };
        let lag = lag(&transitions, &[window]);
        assert_eq!((lag.p50, lag.p99, lag.max), (Some(10.0), Some(30.0), Some(30.0)));
        assert_eq!((lag.results, lag.payments), (2, 2));
        let all = super::lag(&transitions, &[]);
        assert_eq!((all.p50, all.max, all.results), (Some(30.0), Some(710.0), 4));
    }

    #[test]
    fn percentiles_are_nearest_ranks() {
        let transitions: Vec<Transition> = (1..=200).map(|ms| line(u128::from(ms), Some(0), ms)).collect();
        let lag = lag(&transitions, &[]);
        assert_eq!((lag.p50, lag.p99, lag.max), (Some(100.0), Some(198.0), Some(200.0)));
        assert_eq!(super::lag(&[], &[]), Lag::default());
    }

    #[test]
    fn the_last_line_has_exactly_the_promised_keys_in_their_order() {
        let demo = Demo {
            payments: 0,
            rate: 1.0,
            kills: 0,
            seed: 1,
            scenario: Scenario::Plain,
            stall_broker: false,
            keep: false,
        };
        let report = Report::new(&demo, &Books::default(), &Verdict::default(), &[], 1.25, None);
        let json = "{\"payments\":0,\"successful\":0,\"failed\":0,\"needs_review\":0,\"unsettled\":0,\"psp_charges\":0,\
                    \"double_charged\":0,\"lost\":0,\"applied_twice\":0,\"ghost\":0,\"events_published\":0,\
                    \"duplicates_published\":0,\"kills\":0,\"lag_ms\":{\"p50\":null,\"p99\":null,\"max\":null},\"seconds\":1.3}";
        assert_eq!(report.json(), json);
        assert_eq!(report.broken, Vec::<String>::new());
    }

    #[test]
    fn too_few_payments_and_kills_are_failures_and_so_is_disorder() {
        let demo = Demo {
            payments: 2,
            rate: 1.0,
            kills: 1,
            seed: 1,
            scenario: Scenario::Plain,
            stall_broker: false,
            keep: false,
        };
        let disorder = anyhow::anyhow!("executor had ended before");
        let report = Report::new(&demo, &Books::default(), &Verdict::default(), &[], 1.0, Some(disorder));
        let expected =
            ["of 2 payments 0 were accepted", "of 1 kills 0 were carried out", "executor had ended before"];
        assert_eq!(report.broken, expected);
    }
}
