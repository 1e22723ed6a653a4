//! What a run has shown: a line per episode, a table for people, one line of JSON for programs, and what speaks against it.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

use anyhow::Error;
use serde::Serialize;

use super::books::Tally;
use super::episode::{Episode, Kind, Point};
use crate::faults::report::Recovery;

/// From so many episodes on every point has to be hit so often.
const MANY_EPISODES: usize = 100;
const HITS_MIN: usize = 5;

/// An episode that is over.
#[derive(Debug)]
pub struct Passed {
    /// What was to happen.
    pub episode: Episode,
    /// From the fault until an order that was asked for after it had a result.
    pub recovery: Option<Duration>,
    /// Calls to the PSP that were open when it happened; None if it did not happen.
    pub open_calls: Option<i64>,
    /// How exactly it happened.
    pub how: String,
    /// Asked for in this episode.
    pub orders: usize,
    /// Results of this episode that the resolver has brought.
    pub resolved: i64,
    /// What was seen besides.
    pub notes: Vec<String>,
    /// What should not have been.
    pub troubles: Vec<String>,
    /// From its beginning to its books.
    pub took: Duration,
}

impl Passed {
    /// One line for people; it names what replays the episode, which is the `place`th `of` so many.
    pub fn line(&self, place: usize, of: usize) -> String {
        let Episode { number, kind, seed } = self.episode;
        let happened = match (self.open_calls, self.recovery) {
            (None, _) => "did not happen".to_owned(),
            (Some(open), Some(back)) => {
                format!("{open:>3} calls open, back after {:>5} ms", back.as_millis())
            }
            (Some(open), None) => format!("{open:>3} calls open, not back"),
        };
        let kind = kind.to_string();
        let mut line = format!(
            "{place:>4}/{of}  --seed {seed} --only {number:<4} {kind:<32} {happened}; {:>4} orders, {:>3} resolved; {:>4.1} s",
            self.orders,
            self.resolved,
            self.took.as_secs_f64()
        );
        for more in [&self.how].into_iter().filter(|how| !how.is_empty()).chain(&self.notes) {
            // Writing into a string does not fail.
            write!(line, "; {more}").ok();
        }
        for trouble in &self.troubles {
            write!(line, "\n      BROKEN  {trouble}").ok();
        }
        line
    }
}

/// The report of a run.
#[derive(Debug)]
pub struct Report {
    /// For programs. Its fields are part of what `make faults` promises.
    pub summary: Summary,
    /// For people.
    pub table: String,
    /// Why the run has failed; empty if it has not.
    pub broken: Vec<String>,
}

/// The figures of a run: those of the relay's, in the same order.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Summary {
    /// What was hurt.
    pub family: &'static str,
    /// Faults that were to happen.
    pub episodes: usize,
    /// SIGKILLs at each point.
    pub kill_points_hit: BTreeMap<Point, usize>,
    /// Requests, charges, results and events that have left no trace where they should, and orders without an end.
    pub lost: usize,
    /// Facts that are recorded or published as more than one event.
    pub applied_twice: usize,
    /// Payment orders with more than one charge.
    pub double_charged: usize,
    /// Records of an event that was on the topic before.
    pub duplicates: usize,
    /// First records of an event that came after a later event of its order.
    pub order_inversions: usize,
    /// From a fault until an order that was asked for after it had a result.
    pub recovery_ms: Recovery,
    /// What stands somewhere without a cause.
    pub ghosts: usize,
}

impl Report {
    /// `disorder`: a process of ours that did not end well at the end.
    pub fn new(passed: &[Passed], tally: &Tally, disorder: Option<Error>, took: Duration) -> Report {
        let mut kill_points_hit = BTreeMap::from(Point::ALL.map(|point| (point, 0)));
        for one in passed.iter().filter(|one| one.open_calls.is_some()) {
            if let Kind::Kill(point) = one.episode.kind {
                *kill_points_hit.entry(point).or_default() += 1;
            }
        }
        let summary = Summary {
            family: "executor",
            episodes: passed.len(),
            kill_points_hit,
            lost: tally.lost + tally.unsettled,
            applied_twice: tally.applied_twice,
            double_charged: tally.double_charged,
            duplicates: tally.duplicates,
            order_inversions: tally.order_inversions,
            recovery_ms: recovery(passed.iter()),
            ghosts: tally.ghosts,
        };
        let broken = broken(&summary, passed, tally, disorder);
        let table = table(&summary, passed, tally, took);
        Report { summary, table, broken }
    }

    /// The last line.
    pub fn json(&self) -> String {
        serde_json::to_string(&self.summary).unwrap_or_default()
    }
}

fn broken(summary: &Summary, passed: &[Passed], tally: &Tally, disorder: Option<Error>) -> Vec<String> {
    let found = tally.findings().into_iter().filter(|(_, count)| *count > 0);
    let mut broken: Vec<String> = found.map(|(what, count)| format!("{what}: {count}")).collect();
    broken.extend(tally.examples.iter().map(|example| format!("  {example}")));
    for one in passed {
        let Episode { number, kind, .. } = one.episode;
        broken.extend(one.troubles.iter().map(|trouble| format!("episode {number} ({kind}): {trouble}")));
        if one.open_calls.is_none() && one.troubles.is_empty() && summary.episodes < MANY_EPISODES {
            broken.push(format!("episode {number} ({kind}) did not happen"));
        }
    }
    let hits_min = if summary.episodes < MANY_EPISODES { 0 } else { HITS_MIN };
    for (point, hits) in summary.kill_points_hit.iter().filter(|(_, hits)| **hits < hits_min) {
        broken.push(format!("{point:?} was hit {hits} times, and has to be {hits_min} times"));
    }
    let kills = passed.iter().any(|one| matches!(one.episode.kind, Kind::Kill(_)));
    if kills && summary.kill_points_hit.values().all(|hits| *hits == 0) {
        broken
            .push("no point was ever hit: is executor built with --features executor/failpoints?".to_owned());
    }
    broken.extend(disorder.map(|error| format!("{error:#}")));
    broken
}

fn table(summary: &Summary, passed: &[Passed], tally: &Tally, took: Duration) -> String {
    let mut text = String::new();
    let mut kinds: BTreeMap<String, Vec<&Passed>> = BTreeMap::new();
    for one in passed {
        kinds.entry(one.episode.kind.to_string()).or_default().push(one);
    }
    let mut line = |cells: [String; 6]| {
        let [kind, happened, open, resolved, p50, max] = cells;
        writeln!(text, "  {kind:<32}{happened:>10}{open:>12}{resolved:>10}{p50:>12}{max:>9}").ok();
    };
    line(["fault", "happened", "calls open", "resolved", "back ms p50", "max"].map(str::to_owned));
    let ms = |value: Option<u64>| value.map_or_else(|| "-".to_owned(), |value| value.to_string());
    for (kind, group) in &kinds {
        let happened: Vec<i64> = group.iter().filter_map(|one| one.open_calls).collect();
        let each = happened.iter().sum::<i64>() / i64::try_from(happened.len().max(1)).unwrap_or(1);
        let Recovery { p50, max, .. } = recovery(group.iter().copied());
        line([
            kind.clone(),
            format!("{}/{}", happened.len(), group.len()),
            format!("{each} each"),
            group.iter().map(|one| one.resolved).sum::<i64>().to_string(),
            ms(p50),
            ms(max),
        ]);
    }
    let Recovery { p50, p99, max } = summary.recovery_ms;
    let figures = [
        ("payment orders", tally.orders.to_string()),
        ("charges at the PSP", tally.charges.to_string()),
        ("published again", summary.duplicates.to_string()),
        ("back, ms", format!("p50 {}, p99 {}, max {}", ms(p50), ms(p99), ms(max))),
        ("seconds", format!("{:.0}", took.as_secs_f64())),
    ];
    let findings = tally.findings().map(|(what, count)| (what, count.to_string()));
    writeln!(text).ok();
    for (what, value) in figures.into_iter().chain(findings) {
        writeln!(text, "  {what:<32}{value}").ok();
    }
    text
}

fn recovery<'a>(passed: impl Iterator<Item = &'a Passed>) -> Recovery {
    let mut milliseconds: Vec<u64> =
        passed.filter_map(|one| Some(u64::try_from(one.recovery?.as_millis()).unwrap_or(u64::MAX))).collect();
    milliseconds.sort_unstable();
    // Nearest rank: the smallest value that this part of all values does not exceed.
    let percentile = |percent: usize| {
        let rank = (milliseconds.len() * percent).div_ceil(100);
        milliseconds.get(rank.max(1) - 1).copied()
    };
    Recovery { p50: percentile(50), p99: percentile(99), max: percentile(100) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn passed(kind: Kind, happened: bool) -> Passed {
        Passed {
            episode: Episode { number: 1, kind, seed: 1 },
            recovery: happened.then_some(Duration::from_millis(70)),
            open_calls: happened.then_some(3),
            how: String::new(),
            orders: 10,
            resolved: 0,
            notes: Vec::new(),
            troubles: Vec::new(),
            took: Duration::from_secs(1),
        }
    }

    fn report(passed: &[Passed], tally: &Tally) -> Report {
        Report::new(passed, tally, None, Duration::from_secs(1))
    }

    #[test]
    fn the_last_line_has_the_promised_keys_in_their_order() {
        let report = report(&[passed(Kind::Kill(Point::E4), true)], &Tally::default());
        let json = "{\"family\":\"executor\",\"episodes\":1,\
                    \"kill_points_hit\":{\"E1\":0,\"E2\":0,\"E3\":0,\"E4\":1,\"E5\":0,\"E6\":0,\"E7\":0},\
                    \"lost\":0,\"applied_twice\":0,\"double_charged\":0,\"duplicates\":0,\"order_inversions\":0,\
                    \"recovery_ms\":{\"p50\":70,\"p99\":70,\"max\":70},\"ghosts\":0}";
        assert_eq!(report.json(), json);
        assert_eq!(report.broken, Vec::<String>::new());
    }

    #[test]
    fn every_finding_fails_the_run_and_copies_do_not() {
        let tally = Tally {
            lost: 1,
            ghosts: 1,
            applied_twice: 1,
            double_charged: 1,
            unsettled: 1,
            wrong_ends: 1,
            contradictions: 1,
            order_inversions: 1,
            duplicates: 1,
            ..Tally::default()
        };
        let report = report(&[passed(Kind::Broker, true)], &tally);
        assert_eq!(report.broken.len(), 8, "{:?}", report.broken);
        assert_eq!(report.summary.lost, 2);
    }

    #[test]
    fn a_trouble_a_fault_that_did_not_happen_and_points_hit_too_seldom_fail_the_run() {
        let trouble = Passed { troubles: vec!["stuck".to_owned()], ..passed(Kind::Broker, true) };
        assert_eq!(report(&[trouble], &Tally::default()).broken, ["episode 1 (broker killed): stuck"]);
        let missed = [passed(Kind::Stop(None), false)];
        assert_eq!(
            report(&missed, &Tally::default()).broken,
            ["episode 1 (SIGSTOP at any moment) did not happen"]
        );
        let kinds = Point::ALL.iter().cycle().take(105);
        let some: Vec<Passed> = kinds.map(|point| passed(Kind::Kill(*point), *point != Point::E6)).collect();
        assert_eq!(report(&some, &Tally::default()).broken, ["E6 was hit 0 times, and has to be 5 times"]);
        let broken = report(&[passed(Kind::Kill(Point::E1), false)], &Tally::default()).broken;
        assert!(broken.iter().any(|line| line.contains("--features executor/failpoints")), "{broken:?}");
    }
}
