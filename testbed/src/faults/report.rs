//! What a run has shown: a line per episode, a table for people, one line of JSON for programs, and what speaks against it.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

use anyhow::Error;
use serde::{Serialize, Serializer};

use super::episode::{Episode, Kind, Point};
use super::{Family, Witnessed};

/// From so many episodes on every point has to be hit so often.
const MANY_EPISODES: usize = 100;
const HITS_MIN: usize = 5;

/// An episode that is over.
#[derive(Debug)]
pub struct Passed {
    /// What was to happen.
    pub episode: Episode,
    /// From the fault until an event that was begun after it was readable.
    pub recovery: Option<Duration>,
    /// Committed events that were not on the topic when it happened; None if it did not happen.
    pub in_flight: Option<usize>,
    /// How exactly it happened.
    pub how: String,
    /// Committed in this episode.
    pub events: usize,
    /// Published again in this episode.
    pub duplicates: usize,
    /// What was seen besides.
    pub notes: Vec<String>,
    /// What should not have been.
    pub troubles: Vec<String>,
    /// From its beginning to its books.
    pub took: Duration,
    /// Of that: until one leads again and one stands by, after an event was readable again.
    pub healing: Duration,
    /// And until all that was written is applied.
    pub resting: Duration,
}

impl Passed {
    /// One line for people; it names what replays the episode, which is the `place`th `of` so many.
    pub fn line(&self, place: usize, of: usize) -> String {
        let Episode { number, kind, seed } = self.episode;
        let happened = match (self.in_flight, self.recovery) {
            (None, _) => "did not happen".to_owned(),
            (Some(in_flight), Some(back)) => {
                format!("{in_flight:>3} in flight, back after {:>5} ms", back.as_millis())
            }
            (Some(in_flight), None) => format!("{in_flight:>3} in flight, not back"),
        };
        let kind = kind.to_string();
        let mut line = format!(
            "{place:>4}/{of}  --seed {seed} --only {number:<4} {kind:<32} {happened}; {:>4} events, {:>3} again; {:>4.1} s ({:.1} to heal, {:.1} to rest)",
            self.events,
            self.duplicates,
            self.took.as_secs_f64(),
            self.healing.as_secs_f64(),
            self.resting.as_secs_f64(),
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

/// The figures of a run.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Summary {
    /// What was hurt.
    #[serde(serialize_with = "name")]
    pub family: Family,
    /// Faults that were to happen.
    pub episodes: usize,
    /// SIGKILLs at each point.
    pub kill_points_hit: BTreeMap<Point, usize>,
    /// Committed events without a record.
    pub lost: usize,
    /// Event ids that took effect more than once.
    pub applied_twice: usize,
    /// Steps of an aggregate that took effect under more than one event id.
    pub double_charged: usize,
    /// Records of an event that was on the topic before.
    pub duplicates: usize,
    /// First records of an event that came after a later step of its key.
    pub order_inversions: usize,
    /// From a fault until an event that was begun after it was readable.
    pub recovery_ms: Recovery,
    /// Event ids on the topic without a committed event.
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

impl Report {
    /// `disorder`: a process of ours that did not end well at the end.
    pub fn new(
        family: Family,
        passed: &[Passed],
        witnessed: &Witnessed,
        disorder: Option<Error>,
        took: Duration,
    ) -> Report {
        let mut kill_points_hit = BTreeMap::from(Point::ALL.map(|point| (point, 0)));
        for one in passed.iter().filter(|one| one.in_flight.is_some()) {
            if let Kind::Kill(point) = one.episode.kind {
                *kill_points_hit.entry(point).or_default() += 1;
            }
        }
        let summary = Summary {
            family,
            episodes: passed.len(),
            kill_points_hit,
            lost: witnessed.tally.lost,
            applied_twice: witnessed.applied_twice,
            double_charged: witnessed.double_charged,
            duplicates: witnessed.tally.duplicates,
            order_inversions: witnessed.tally.inversions,
            recovery_ms: recovery(passed.iter()),
            ghosts: witnessed.tally.ghosts,
        };
        let broken = broken(&summary, passed, witnessed, disorder);
        let table = table(&summary, passed, witnessed, took);
        Report { summary, table, broken }
    }

    /// The last line.
    pub fn json(&self) -> String {
        serde_json::to_string(&self.summary).unwrap_or_default()
    }
}

fn broken(
    summary: &Summary,
    passed: &[Passed],
    witnessed: &Witnessed,
    disorder: Option<Error>,
) -> Vec<String> {
    let mut broken: Vec<String> = findings(summary, witnessed)
        .into_iter()
        .filter(|(_, count)| *count > 0)
        .map(|(what, count)| format!("{what}: {count}"))
        .collect();
    broken.extend(witnessed.examples.iter().map(|example| format!("  {example}")));
    for one in passed {
        let Episode { number, kind, .. } = one.episode;
        broken.extend(one.troubles.iter().map(|trouble| format!("episode {number} ({kind}): {trouble}")));
        if one.in_flight.is_none() && one.troubles.is_empty() && summary.episodes < MANY_EPISODES {
            broken.push(format!("episode {number} ({kind}) did not happen"));
        }
    }
    let hits_min = if summary.episodes < MANY_EPISODES { 0 } else { HITS_MIN };
    for (point, hits) in summary.kill_points_hit.iter().filter(|(_, hits)| **hits < hits_min) {
        broken.push(format!("{point:?} was hit {hits} times, and has to be {hits_min} times"));
    }
    if summary.kill_points_hit.values().all(|hits| *hits == 0)
        && passed.iter().any(|one| matches!(one.episode.kind, Kind::Kill(_)))
    {
        broken.push(
            "no point was ever hit: is outbox-relay built with --features outbox-relay/failpoints?"
                .to_owned(),
        );
    }
    broken.extend(disorder.map(|error| format!("{error:#}")));
    broken
}

/// What has to be 0.
fn findings(summary: &Summary, witnessed: &Witnessed) -> [(&'static str, usize); 8] {
    [
        ("lost", summary.lost),
        ("ghosts", summary.ghosts),
        ("applied twice", summary.applied_twice),
        ("double charged", summary.double_charged),
        ("order inversions", summary.order_inversions),
        ("altered", witnessed.tally.altered),
        ("without effect", witnessed.without_effect),
        ("disputed commits", witnessed.disputed),
    ]
}

fn table(summary: &Summary, passed: &[Passed], witnessed: &Witnessed, took: Duration) -> String {
    let mut text = String::new();
    let mut kinds: Vec<(String, Vec<&Passed>)> = Vec::new();
    for one in passed {
        let kind = one.episode.kind.to_string();
        match kinds.iter_mut().find(|(known, _)| *known == kind) {
            Some((_, group)) => group.push(one),
            None => kinds.push((kind, vec![one])),
        }
    }
    kinds.sort_by(|(one, _), (other, _)| one.cmp(other));
    let mut line = |cells: [String; 6]| {
        let [kind, happened, in_flight, again, p50, max] = cells;
        writeln!(text, "  {kind:<32}{happened:>10}{in_flight:>12}{again:>8}{p50:>12}{max:>9}").ok();
    };
    line(["fault", "happened", "in flight", "again", "back ms p50", "max"].map(str::to_owned));
    let ms = |value: Option<u64>| value.map_or_else(|| "-".to_owned(), |value| value.to_string());
    for (kind, group) in &kinds {
        let happened: Vec<usize> = group.iter().filter_map(|one| one.in_flight).collect();
        let Recovery { p50, max, .. } = recovery(group.iter().copied());
        line([
            kind.clone(),
            format!("{}/{}", happened.len(), group.len()),
            format!("{} each", happened.iter().sum::<usize>() / happened.len().max(1)),
            group.iter().map(|one| one.duplicates).sum::<usize>().to_string(),
            ms(p50),
            ms(max),
        ]);
    }
    let Recovery { p50, p99, max } = summary.recovery_ms;
    let figures = [
        ("committed events", witnessed.tally.committed.to_string()),
        ("published again", summary.duplicates.to_string()),
        ("back, ms", format!("p50 {}, p99 {}, max {}", ms(p50), ms(p99), ms(max))),
        ("seconds", format!("{:.0}", took.as_secs_f64())),
    ];
    let findings = findings(summary, witnessed).map(|(what, count)| (what, count.to_string()));
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

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands out references")]
fn name<S: Serializer>(family: &Family, serializer: S) -> Result<S::Ok, S::Error> {
    match family {
        Family::Relay => serializer.serialize_str("relay"),
        Family::Executor => serializer.serialize_str("executor"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::books::Tally;
    use super::*;

    fn passed(kind: Kind, happened: bool) -> Passed {
        let recovery = happened.then_some(Duration::from_millis(70));
        Passed {
            episode: Episode { number: 1, kind, seed: 1 },
            recovery,
            in_flight: happened.then_some(3),
            how: String::new(),
            events: 10,
            duplicates: 0,
            notes: Vec::new(),
            troubles: Vec::new(),
            took: Duration::from_secs(1),
            healing: Duration::ZERO,
            resting: Duration::ZERO,
        }
    }

    fn report(passed: &[Passed], witnessed: &Witnessed) -> Report {
        Report::new(Family::Relay, passed, witnessed, None, Duration::from_secs(1))
    }

    #[test]
    fn the_last_line_has_the_promised_keys_in_their_order() {
        let report = report(&[passed(Kind::Kill(Point::R4), true)], &Witnessed::default());
        let json = "{\"family\":\"relay\",\"episodes\":1,\
                    \"kill_points_hit\":{\"R1\":0,\"R2\":0,\"R3\":0,\"R4\":1,\"R5\":0,\"R6\":0,\"R7\":0,\"R8\":0},\
                    \"lost\":0,\"applied_twice\":0,\"double_charged\":0,\"duplicates\":0,\"order_inversions\":0,\
                    \"recovery_ms\":{\"p50\":70,\"p99\":70,\"max\":70},\"ghosts\":0}";
        assert_eq!(report.json(), json);
        assert_eq!(report.broken, Vec::<String>::new());
    }

    #[test]
    fn every_finding_fails_the_run() {
        let tally =
            Tally { lost: 1, ghosts: 1, inversions: 1, altered: 1, duplicates: 1, ..Tally::default() };
        let witnessed = Witnessed {
            tally,
            applied_twice: 1,
            double_charged: 1,
            without_effect: 1,
            disputed: 1,
            examples: Vec::new(),
        };
        let report = report(&[passed(Kind::Broker, true)], &witnessed);
        // Duplicates are reported, and are no failure.
        assert_eq!(report.broken.len(), 8, "{:?}", report.broken);
    }

    #[test]
    fn a_trouble_a_fault_that_did_not_happen_and_points_hit_too_seldom_fail_the_run() {
        let trouble = Passed { troubles: vec!["stuck".to_owned()], ..passed(Kind::Broker, true) };
        assert_eq!(report(&[trouble], &Witnessed::default()).broken, ["episode 1 (broker killed): stuck"]);
        let missed = [passed(Kind::Stop(None), false)];
        assert_eq!(
            report(&missed, &Witnessed::default()).broken,
            ["episode 1 (SIGSTOP at any moment) did not happen"]
        );
        let kinds = Point::ALL.iter().cycle().take(104);
        let all: Vec<Passed> = kinds.clone().map(|point| passed(Kind::Kill(*point), true)).collect();
        assert!(report(&all, &Witnessed::default()).broken.is_empty());
        let some: Vec<Passed> = kinds.map(|point| passed(Kind::Kill(*point), *point != Point::R6)).collect();
        let broken = report(&some, &Witnessed::default()).broken;
        assert_eq!(broken, ["R6 was hit 0 times, and has to be 5 times"]);
    }

    #[test]
    fn a_relay_without_failpoints_is_recognised() {
        let broken = report(&[passed(Kind::Kill(Point::R1), false)], &Witnessed::default()).broken;
        assert!(broken.iter().any(|line| line.contains("--features outbox-relay/failpoints")), "{broken:?}");
    }
}
