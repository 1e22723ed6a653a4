//! Each family is hurt in every way, a few times each, and nothing is lost. `make faults` does it hundreds of times.

use std::str::FromStr;
use std::time::Duration;

use testbed::faults::episode::{Cut, choose};
use testbed::faults::{Outcome, consumer, executor, relay};
use testbed::proxy::{Direction, Moment};

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_that_is_hurt_in_every_way_loses_nothing() {
    use relay::episode::{Kind, Line, Point};
    let mut kinds: Vec<Kind> = Point::ALL.map(Kind::Kill).to_vec();
    kinds.extend([
        Kind::KillAnywhere,
        Kind::Stop(Some(Point::R6)),
        Kind::LockSession,
        Kind::Broker,
        Kind::Database,
        Kind::Database,
        Kind::Registry,
        Kind::Cut(Line::Database, Cut::Reset),
        Kind::Cut(Line::Database, Cut::AfterBytes(Direction::Down)),
        Kind::Cut(Line::Broker, Cut::OneWay(Direction::Down)),
        Kind::Cut(Line::Broker, Cut::AfterBytes(Direction::Up)),
        Kind::Cut(Line::Both, Cut::Reset),
    ]);
    let seed = u64::from(std::process::id());
    let episodes = choose(seed, &kinds);
    assert_eq!(episodes.len(), kinds.len());
    let outcome = Box::pin(relay::perform(episodes, false, &|line| println!("{line}"))).await.unwrap();
    println!("{}", nothing_broke(&outcome));
}

#[tokio::test(flavor = "multi_thread")]
async fn executors_that_are_hurt_in_every_way_lose_nothing_and_charge_nobody_twice() {
    use executor::episode::{Kind, Line, Point};
    let mut kinds: Vec<Kind> = Point::ALL.map(Kind::Kill).to_vec();
    kinds.extend([
        Kind::KillAll,
        Kind::Stop(Some(Point::E3)),
        Kind::Database,
        Kind::Broker,
        Kind::Psp,
        Kind::Cut(Line::Psp, Cut::AfterBytes(Direction::Down)),
        Kind::Cut(Line::Database, Cut::AfterBytes(Direction::Down)),
    ]);
    let seed = u64::from(std::process::id());
    let episodes = choose(seed, &kinds);
    assert_eq!(episodes.len(), kinds.len());
    let outcome = Box::pin(executor::perform(episodes, false, &|line| println!("{line}"))).await.unwrap();
    println!("{}", nothing_broke(&outcome));
}

#[tokio::test(flavor = "multi_thread")]
async fn consumers_that_are_hurt_in_every_way_lose_nothing_and_apply_nothing_twice() {
    use consumer::episode::{Kind, Line, Point};
    let mut kinds: Vec<Kind> = Point::ALL.map(Kind::Kill).to_vec();
    kinds.extend([
        Kind::KillAll,
        Kind::Stop(Some(Point::C3)),
        Kind::Stop(Some(Point::C5)),
        Kind::Join,
        Kind::Leave,
        Kind::Commit(Moment::Answered),
        Kind::Database,
        Kind::Broker,
        Kind::Cut(Line::Database, Cut::AfterBytes(Direction::Down)),
        Kind::Cut(Line::Broker, Cut::Reset),
    ]);
    let seed = u64::from(std::process::id());
    let episodes = choose(seed, &kinds);
    assert_eq!(episodes.len(), kinds.len());
    let outcome = Box::pin(consumer::perform(episodes, false, &|line| println!("{line}"))).await.unwrap();
    println!("{}", nothing_broke(&outcome));
}

/// `CONSUMER_TEST_RESETS` says how many.
#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_breaks_around_a_commit_leaves_what_the_moment_allows_and_all_is_applied_once() {
    let count = from_environment("CONSUMER_TEST_RESETS", 24);
    let seed = u64::from(std::process::id());
    let resets = Box::pin(consumer::resets::perform(count, seed, &|line| println!("{line}"))).await.unwrap();
    println!("{resets:?}");
    assert_eq!(resets.broken, Vec::<String>::new());
    assert_eq!(resets.happened.values().sum::<usize>(), count);
    let answered = Moment::Answered.to_string();
    assert_eq!(resets.committed[&answered], resets.happened[&answered]);
}

/// `CONSUMER_TEST_STORM_SECONDS` says for how long.
#[tokio::test(flavor = "multi_thread")]
async fn six_instances_that_join_and_leave_under_load_lose_nothing_and_apply_nothing_twice() {
    let seconds = from_environment("CONSUMER_TEST_STORM_SECONDS", 12);
    let (lasts, seed) = (Duration::from_secs(seconds), u64::from(std::process::id()));
    let outcome = Box::pin(consumer::storm::perform(lasts, seed, &|line| println!("{line}"))).await.unwrap();
    println!("{}", nothing_broke(&outcome));
}

fn from_environment<T: FromStr>(name: &str, otherwise: T) -> T {
    std::env::var(name).ok().and_then(|value| value.parse().ok()).unwrap_or(otherwise)
}

fn nothing_broke(Outcome { report, kept }: &Outcome) -> String {
    assert_eq!(report.broken, Vec::<String>::new(), "{kept:?}\n{}", report.table);
    format!("{}\n{}", report.table, report.json())
}
