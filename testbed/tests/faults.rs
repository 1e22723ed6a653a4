//! The relay is hurt in every way, a few times each, and nothing is lost. `make faults` does it hundreds of times.

use testbed::faults::episode::{Cut, choose};
use testbed::faults::{Outcome, executor, relay};
use testbed::proxy::Direction;

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

fn nothing_broke(Outcome { report, kept }: &Outcome) -> String {
    assert_eq!(report.broken, Vec::<String>::new(), "{kept:?}\n{}", report.table);
    format!("{}\n{}", report.table, report.json())
}
