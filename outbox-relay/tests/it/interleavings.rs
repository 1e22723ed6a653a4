//! Tailing under arbitrary interleavings of writers, reader, and whatever can fail, thousands of them: the product's own cursor over a
//! model of PostgreSQL that knows what tailing needs. The same checks find every way of tailing that is known to be wrong.
//!
//! ```text
//! seed -> steps -> server (model) <- relay (tail, pages ahead, saved place) -> books: lost, ghosts, repeats, inversions, overdue
//! ```
//! A failure prints its seed and the shortest sequence of steps that fails. `INTERLEAVING=<seed>` runs that one alone, step by step;
//! `INTERLEAVINGS=<number>` runs more of them. `against_postgresql` holds the model against a real server.

mod against_postgresql;
mod relay;
mod server;
mod steps;
mod tails;

use std::time::{SystemTime, UNIX_EPOCH};

use self::{
    relay::{Findings, Relay, Vices},
    server::{Habits, Server},
    steps::{Setting, Step, run, shrink, steps},
    tails::{
        FloorFromIdsRead, FloorFromSequence, HighestId, LateIgnored, Tail, TransactionOrder, WindowNotSaved,
        Windows,
    },
};

/// Interleavings of our tailing in one run of the suite.
const INTERLEAVINGS: u64 = 50_000;
/// Interleavings of each broken way, and how many it is given at most until one of them has caught it.
const FOR_CONTROLS: u64 = 4_000;
const AT_MOST_FOR_CONTROLS: u64 = 400_000;

fn from_environment(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name} is {text:?}")))
}

/// Another one for every run: what is not found today may be found tomorrow.
fn first_seed() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() * 1_000_000
}

/// What the interleavings have led to: a check that never met the hard cases would say nothing.
#[derive(Clone, Copy, Debug, Default)]
struct Met {
    /// Windows opened while a transaction ran above `xmax`.
    running_above_xmax: u64,
    /// Pages read of windows that had rows of late transactions below their floor.
    late_below_floor: u64,
    /// Pages read of windows whose first rows were done.
    windows_of_many_pages: u64,
    /// Crashes after which transaction ids were handed out again.
    ids_again: u64,
    memory_lost: u64,
    zombie_records: u64,
}

impl Met {
    fn note(&mut self, server: &Server, relay: &Relay<Windows>, step: Step) {
        let cursor = &relay.reader().0;
        match step {
            Step::Read { .. } if cursor.window_done() => {
                self.running_above_xmax += u64::from(server.running_above_xmax().next().is_some());
            }
            Step::Read { .. } => {
                let below = |id| cursor.floor.is_none_or(|floor| id < floor);
                let late = |(_, row): (_, &server::Row)| {
                    cursor.from.in_progress.contains(&row.xid)
                        && below(row.id)
                        && row.id > cursor.after.unwrap_or_default()
                };
                self.late_below_floor += u64::from(server.visible().any(late));
                self.windows_of_many_pages += u64::from(cursor.after > Some(0));
            }
            Step::CrashServer { xids, ids, .. } => {
                self.ids_again += u64::from(steps::after_crash(server, xids, ids).0 < server.next_xid());
            }
            Step::LoseMemory { .. } => self.memory_lost += 1,
            Step::ZombieSends => self.zombie_records += 1,
            _ => {}
        }
    }

    fn everything(&self) -> bool {
        let Self {
            running_above_xmax,
            late_below_floor,
            windows_of_many_pages,
            ids_again,
            memory_lost,
            zombie_records,
        } = *self;
        [running_above_xmax, late_below_floor, windows_of_many_pages, ids_again, memory_lost, zombie_records]
            .iter()
            .all(|count| *count > 0)
    }
}

fn listed(steps: &[Step]) -> String {
    steps.iter().map(|step| format!("  {step:?}")).collect::<Vec<_>>().join("\n")
}

/// Whatever panics, the seed is known.
struct SaidOnPanic(u64);

impl Drop for SaidOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("INTERLEAVING={} runs it again", self.0);
        }
    }
}

#[test]
fn every_committed_row_is_published_in_order_and_without_delay_whatever_the_interleaving() {
    if let Some(seed) = from_environment("INTERLEAVING") {
        let findings = run::<Windows>(&steps(seed), Setting::default(), |server, relay, step| {
            println!("{:<24} {:?}\n    {step:?}", server.snapshot().to_string(), relay.reader());
        });
        assert_eq!(findings, Findings::default(), "seed {seed}");
        return;
    }
    let first = first_seed();
    let count = from_environment("INTERLEAVINGS").unwrap_or(INTERLEAVINGS);
    let mut met = Met::default();
    for seed in first..first + count {
        let _said = SaidOnPanic(seed);
        let all = steps(seed);
        let findings =
            run::<Windows>(&all, Setting::default(), |server, relay, step| met.note(server, relay, step));
        if findings.any() {
            let fails = |fewer: &[Step]| run::<Windows>(fewer, Setting::default(), |_, _, _| ()).any();
            panic!("{findings:?}. Shortest:\n{}", listed(&shrink(all, fails)));
        }
    }
    println!("{count} interleavings from seed {first} on: {met:?}");
    assert!(met.everything(), "{met:?}");
}

/// Runs a broken way under the same checks, and says what they found in how many interleavings. `expected` picks the finding that it is
/// known for, and one that is not made panics.
fn caught<T: Tail>(what: &str, setting: Setting, expected: fn(&Findings) -> u32) -> String {
    let first = first_seed();
    let (mut total, mut failed, mut example, mut count) = (Findings::default(), 0, None, 0);
    while count < FOR_CONTROLS || (example.is_none() && count < AT_MOST_FOR_CONTROLS) {
        let seed = first + count;
        count += 1;
        let all = steps(seed);
        let findings = run::<T>(&all, setting, |_, _, _| ());
        total.add(&findings);
        failed += u32::from(findings.any());
        if expected(&findings) > 0 && example.is_none() {
            example = Some(shrink(all, |fewer| expected(&run::<T>(fewer, setting, |_, _, _| ())) > 0));
        }
    }
    let Some(example) = example else { panic!("{what}: not caught from seed {first} on: {total:?}") };
    format!(
        "{what}: caught in {failed} of {count} interleavings, {total:?}; for example\n{}",
        listed(&example)
    )
}

#[test]
fn tails_that_look_right_are_caught() {
    let ours = Setting::default();
    for finding in [
        caught::<HighestId>("the highest id seen", ours, |found| found.lost),
        caught::<TransactionOrder>("transaction order below xmin", ours, |found| found.inversions),
        caught::<TransactionOrder>("transaction order below xmin", ours, |found| found.overdue),
        caught::<FloorFromIdsRead>("a floor from the ids read so far", ours, |found| found.lost),
        caught::<FloorFromSequence>("a floor from the sequence", ours, |found| found.lost),
        caught::<LateIgnored>("no look at the transactions in progress", ours, |found| found.lost),
        caught::<WindowNotSaved>("a cursor without its window", ours, |found| found.lost),
    ] {
        println!("{finding}");
    }
}

#[test]
fn relays_writers_and_servers_that_break_the_rules_are_caught() {
    let ours = Setting::default();
    let vicious = |vices| Setting { vices, ..ours };
    let habitual = |habits| Setting { habits, ..ours };
    let outlives = vicious(Vices { outlives_the_server: true, ..ours.vices });
    let hasty = vicious(Vices { saves_before_publishing: true, ..ours.vices });
    let unlocked = habitual(Habits { writers_lock: false, ..ours.habits });
    let forgetful = habitual(Habits { commits_are_durable: false, ..ours.habits });
    for finding in [
        caught::<Windows>("a window in memory that outlives the server", outlives, |found| found.lost),
        caught::<Windows>("progress saved before it is published", hasty, |found| found.lost),
        caught::<Windows>("writers that do not lock the key", unlocked, |found| found.inversions),
        caught::<Windows>("commits visible before they are durable", forgetful, |found| found.ghosts),
    ] {
        println!("{finding}");
    }
}

/// Memory lost with progress unsaved: what was published since comes again, and the books call that no repeat. Within a term it is one.
#[test]
fn only_what_was_published_after_the_last_save_may_come_again() {
    use steps::Act::{Append, Commit};
    let appended = |key| [Step::Writer(0, Append(key)), Step::Writer(0, Commit)];
    let read = [Step::Read { limit: 4 }, Step::Read { limit: 4 }, Step::Publish];
    let lost = [Step::LoseMemory { save_lands: false, held: 0 }];
    let unsaved = [&appended(0)[..], &read, &lost, &read].concat();
    assert_eq!(run::<Windows>(&unsaved, Setting::default(), |_, _, _| ()), Findings::default());
    // A reader that forgets where it is without losing its term: the same row twice.
    let again = run::<Forgetful>(&[&appended(0)[..], &read].concat(), Setting::default(), |_, _, _| ());
    assert!(again.repeats > 0, "{again:?}");
}

/// Broken: reads the first rows for ever.
#[derive(Clone, Debug)]
struct Forgetful(u32);

impl Tail for Forgetful {
    fn start() -> Self {
        Self(0)
    }

    fn has_looked(&self) -> bool {
        true
    }

    fn statement(&mut self, server: &Server, limit: usize) -> Vec<server::RowNumber> {
        self.0 += 1;
        if self.0 > 5 {
            return Vec::new();
        }
        server.visible().map(|(number, _)| number).take(limit).collect()
    }
}
