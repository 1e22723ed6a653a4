//! What a run has shown: a line per episode, a table for people, one line of JSON for programs, and what speaks against it.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

use anyhow::Error;
use serde::Serialize;

use super::Family;
use super::episode::{Episode, FaultKind};

/// From so many episodes on every point has to be hit so often.
const MANY_EPISODES: usize = 100;
const HITS_MIN: usize = 5;

/// An episode that is over.
#[derive(Debug)]
pub struct Passed<K> {
    /// What was to happen.
    pub episode: Episode<K>,
    /// From the fault until what was begun after it had come through.
    pub recovery: Option<Duration>,
    /// How much was under way when it happened; None if it did not happen.
    pub under_way: Option<usize>,
    /// How exactly it happened.
    pub how: String,
    /// What was done in this episode.
    pub done: usize,
    /// Of that: what is worth counting by itself.
    pub of_it: usize,
    /// Where the time went, if that is known.
    pub spent: String,
    /// What was seen besides.
    pub notes: Vec<String>,
    /// What should not have been.
    pub troubles: Vec<String>,
    /// From its beginning to its books.
    pub took: Duration,
}

/// What a family calls what it counts.
#[derive(Clone, Copy, Debug)]
struct Words {
    name: &'static str,
    under_way: &'static str,
    done: &'static str,
    of_it: &'static str,
    /// How the part that is hurt is built with its points.
    points: &'static str,
}

impl Family {
    fn words(self) -> Words {
        match self {
            Family::Relay => Words {
                name: "relay",
                under_way: "in flight",
                done: "events",
                of_it: "again",
                points: "outbox-relay built with --features outbox-relay/failpoints",
            },
            Family::Executor => Words {
                name: "executor",
                under_way: "calls open",
                done: "orders",
                of_it: "resolved",
                points: "executor built with --features executor/failpoints",
            },
            Family::Consumer => Words {
                name: "consumer",
                under_way: "in flight",
                done: "records",
                of_it: "again",
                points: "payment-service built with --features payment-service/failpoints",
            },
        }
    }
}

impl<K: FaultKind> Passed<K> {
    /// One line for people; it names what replays the episode, which is the `place`th `of` so many.
    pub fn line(&self, family: Family, place: usize, of: usize) -> String {
        let Episode { number, kind, seed } = self.episode;
        let words = family.words();
        let happened = match (self.under_way, self.recovery) {
            (None, _) => "did not happen".to_owned(),
            (Some(under_way), Some(back)) => {
                format!("{under_way:>3} {}, back after {:>5} ms", words.under_way, back.as_millis())
            }
            (Some(under_way), None) => format!("{under_way:>3} {}, not back", words.under_way),
        };
        let kind = kind.to_string();
        let mut line = format!(
            "{place:>4}/{of}  --seed {seed} --only {number:<4} {kind:<32} {happened}; {:>4} {}, {:>3} {}; {:>4.1} s",
            self.done,
            words.done,
            self.of_it,
            words.of_it,
            self.took.as_secs_f64()
        );
        // Writing into a string does not fail.
        if !self.spent.is_empty() {
            write!(line, " ({})", self.spent).ok();
        }
        for more in [&self.how].into_iter().filter(|how| !how.is_empty()).chain(&self.notes) {
            write!(line, "; {more}").ok();
        }
        for trouble in &self.troubles {
            write!(line, "\n      BROKEN  {trouble}").ok();
        }
        line
    }
}

/// What the books of a whole run say.
#[derive(Clone, Debug, Default)]
pub struct Verdict {
    /// The counts of the last line.
    pub counts: Counts,
    /// What stands somewhere without a cause.
    pub ghosts: usize,
    /// What has to be 0, by its name.
    pub findings: Vec<(&'static str, usize)>,
    /// What else is worth knowing.
    pub figures: Vec<(&'static str, usize)>,
    /// Some of what was found.
    pub examples: Vec<String>,
}

/// Counts that every family has. Which facts they are of, its books say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Counts {
    /// What has left no trace where it should, or has no end.
    pub lost: usize,
    /// What took effect, or was said, more than once.
    pub applied_twice: usize,
    /// What was paid for twice, or would have been.
    pub double_charged: usize,
    /// Records of an event that was on the topic before: allowed.
    pub duplicates: usize,
    /// First records of an event that came after a later one of its key.
    pub order_inversions: usize,
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

/// The figures of a run.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Summary {
    /// What was hurt.
    pub family: &'static str,
    /// Faults that were to happen.
    pub episodes: usize,
    /// SIGKILLs at each point.
    pub kill_points_hit: BTreeMap<String, usize>,
    /// What the books say.
    #[serde(flatten)]
    pub counts: Counts,
    /// From a fault until what was begun after it had come through.
    pub recovery_ms: Recovery,
    /// What stands somewhere without a cause.
    pub ghosts: usize,
}

/// Milliseconds; null if nothing was measured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Recovery {
    /// Half of them were faster.
    pub p50: Option<u64>,
    /// 99 of 100 were faster.
    pub p99: Option<u64>,
    /// The slowest.
    pub max: Option<u64>,
}

impl Recovery {
    fn of<'a, K: 'a>(passed: impl IntoIterator<Item = &'a Passed<K>>) -> Recovery {
        let milliseconds =
            |one: &Passed<K>| Some(u64::try_from(one.recovery?.as_millis()).unwrap_or(u64::MAX));
        let mut sorted: Vec<u64> = passed.into_iter().filter_map(milliseconds).collect();
        sorted.sort_unstable();
        // Nearest rank: the smallest value that this part of all values does not exceed.
        let percentile = |percent: usize| {
            let rank = (sorted.len() * percent).div_ceil(100);
            sorted.get(rank.max(1) - 1).copied()
        };
        Recovery { p50: percentile(50), p99: percentile(99), max: percentile(100) }
    }
}

impl Report {
    /// `disorder`: a process of ours that did not end well at the end.
    pub fn new<K: FaultKind>(
        family: Family,
        passed: &[Passed<K>],
        verdict: &Verdict,
        disorder: Option<Error>,
        took: Duration,
    ) -> Report {
        let mut kill_points_hit: BTreeMap<String, usize> =
            K::kills().iter().filter_map(K::killed_at).map(|point| (point, 0)).collect();
        let hit = passed.iter().filter(|one| one.under_way.is_some());
        for point in hit.filter_map(|one| one.episode.kind.killed_at()) {
            *kill_points_hit.entry(point).or_default() += 1;
        }
        let summary = Summary {
            family: family.words().name,
            episodes: passed.len(),
            kill_points_hit,
            counts: verdict.counts,
            recovery_ms: Recovery::of(passed),
            ghosts: verdict.ghosts,
        };
        let broken = broken(family, &summary, passed, verdict, disorder);
        let table = table(family, &summary, passed, verdict, took);
        Report { summary, table, broken }
    }

    /// The last line.
    pub fn json(&self) -> String {
        serde_json::to_string(&self.summary).unwrap_or_default()
    }
}

fn broken<K: FaultKind>(
    family: Family,
    summary: &Summary,
    passed: &[Passed<K>],
    verdict: &Verdict,
    disorder: Option<Error>,
) -> Vec<String> {
    let found = verdict.findings.iter().filter(|(_, count)| *count > 0);
    let mut broken: Vec<String> = found.map(|(what, count)| format!("{what}: {count}")).collect();
    broken.extend(verdict.examples.iter().map(|example| format!("  {example}")));
    for one in passed {
        let Episode { number, kind, .. } = one.episode;
        broken.extend(one.troubles.iter().map(|trouble| format!("episode {number} ({kind}): {trouble}")));
        if one.under_way.is_none() && one.troubles.is_empty() && summary.episodes < MANY_EPISODES {
            broken.push(format!("episode {number} ({kind}) did not happen"));
        }
    }
    let hits_min = if summary.episodes < MANY_EPISODES { 0 } else { HITS_MIN };
    for (point, hits) in summary.kill_points_hit.iter().filter(|(_, hits)| **hits < hits_min) {
        broken.push(format!("{point} was hit {hits} times, and has to be {hits_min} times"));
    }
    let kills = passed.iter().any(|one| one.episode.kind.killed_at().is_some());
    if kills && summary.kill_points_hit.values().all(|hits| *hits == 0) {
        broken.push(format!("no point was ever hit: is {}?", family.words().points));
    }
    broken.extend(disorder.map(|error| format!("{error:#}")));
    broken
}

fn table<K: FaultKind>(
    family: Family,
    summary: &Summary,
    passed: &[Passed<K>],
    verdict: &Verdict,
    took: Duration,
) -> String {
    let (mut text, words) = (String::new(), family.words());
    let mut kinds: BTreeMap<String, Vec<&Passed<K>>> = BTreeMap::new();
    for one in passed {
        kinds.entry(one.episode.kind.to_string()).or_default().push(one);
    }
    let mut line = |cells: [String; 6]| {
        let [kind, happened, under_way, of_it, p50, max] = cells;
        writeln!(text, "  {kind:<32}{happened:>10}{under_way:>12}{of_it:>10}{p50:>12}{max:>9}").ok();
    };
    line(["fault", "happened", words.under_way, words.of_it, "back ms p50", "max"].map(str::to_owned));
    let ms = |value: Option<u64>| value.map_or_else(|| "-".to_owned(), |value| value.to_string());
    for (kind, group) in &kinds {
        let happened: Vec<usize> = group.iter().filter_map(|one| one.under_way).collect();
        let Recovery { p50, max, .. } = Recovery::of(group.iter().copied());
        line([
            kind.clone(),
            format!("{}/{}", happened.len(), group.len()),
            format!("{} each", happened.iter().sum::<usize>() / happened.len().max(1)),
            group.iter().map(|one| one.of_it).sum::<usize>().to_string(),
            ms(p50),
            ms(max),
        ]);
    }
    let Recovery { p50, p99, max } = summary.recovery_ms;
    let counted = verdict.figures.iter().map(|(what, count)| (*what, count.to_string()));
    let measured = [
        ("published again", summary.counts.duplicates.to_string()),
        ("back, ms", format!("p50 {}, p99 {}, max {}", ms(p50), ms(p99), ms(max))),
        ("seconds", format!("{:.0}", took.as_secs_f64())),
    ];
    let findings = verdict.findings.iter().map(|(what, count)| (*what, count.to_string()));
    writeln!(text).ok();
    for (what, value) in counted.chain(measured).chain(findings) {
        writeln!(text, "  {what:<32}{value}").ok();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::relay::episode::{Kind, Point};
    use super::*;

    fn passed(kind: Kind, happened: bool) -> Passed<Kind> {
        Passed {
            episode: Episode { number: 1, kind, seed: 1 },
            recovery: happened.then_some(Duration::from_millis(70)),
            under_way: happened.then_some(3),
            how: String::new(),
            done: 10,
            of_it: 0,
            spent: String::new(),
            notes: Vec::new(),
            troubles: Vec::new(),
            took: Duration::from_secs(1),
        }
    }

    fn report(passed: &[Passed<Kind>], verdict: &Verdict) -> Report {
        Report::new(Family::Relay, passed, verdict, None, Duration::from_secs(1))
    }

    #[test]
    fn the_last_line_has_the_promised_keys_in_their_order() {
        let report = report(&[passed(Kind::Kill(Point::R4), true)], &Verdict::default());
        let json = "{\"family\":\"relay\",\"episodes\":1,\
                    \"kill_points_hit\":{\"R1\":0,\"R2\":0,\"R3\":0,\"R4\":1,\"R5\":0,\"R6\":0,\"R7\":0,\"R8\":0},\
                    \"lost\":0,\"applied_twice\":0,\"double_charged\":0,\"duplicates\":0,\"order_inversions\":0,\
                    \"recovery_ms\":{\"p50\":70,\"p99\":70,\"max\":70},\"ghosts\":0}";
        assert_eq!(report.json(), json);
        assert_eq!(report.broken, Vec::<String>::new());
    }

    #[test]
    fn every_finding_fails_the_run_and_copies_do_not() {
        let verdict = Verdict {
            counts: Counts { duplicates: 1, ..Counts::default() },
            findings: vec![("lost", 1), ("ghosts", 2), ("altered", 0)],
            ..Verdict::default()
        };
        assert_eq!(report(&[passed(Kind::Broker, true)], &verdict).broken, ["lost: 1", "ghosts: 2"]);
    }

    #[test]
    fn a_trouble_a_fault_that_did_not_happen_and_points_hit_too_seldom_fail_the_run() {
        let clean = Verdict::default();
        let trouble = Passed { troubles: vec!["stuck".to_owned()], ..passed(Kind::Broker, true) };
        assert_eq!(report(&[trouble], &clean).broken, ["episode 1 (broker killed): stuck"]);
        let missed = [passed(Kind::Stop(None), false)];
        assert_eq!(report(&missed, &clean).broken, ["episode 1 (SIGSTOP at any moment) did not happen"]);
        let kinds = Point::ALL.iter().cycle().take(104);
        let all: Vec<_> = kinds.clone().map(|point| passed(Kind::Kill(*point), true)).collect();
        assert!(report(&all, &clean).broken.is_empty());
        let some: Vec<_> = kinds.map(|point| passed(Kind::Kill(*point), *point != Point::R6)).collect();
        assert_eq!(report(&some, &clean).broken, ["R6 was hit 0 times, and has to be 5 times"]);
    }

    #[test]
    fn a_part_without_its_points_is_recognised() {
        let broken = report(&[passed(Kind::Kill(Point::R1), false)], &Verdict::default()).broken;
        assert!(broken.iter().any(|line| line.contains("--features outbox-relay/failpoints")), "{broken:?}");
    }
}
