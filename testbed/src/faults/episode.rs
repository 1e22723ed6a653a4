//! What happens in which episode: a matter of the seed alone, whatever is hurt.

use std::fmt;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::load::Random;
use crate::proxy::{Direction, Proxy};

/// In so many episodes each kind comes several times.
const CHOICE: usize = 500;
/// For a few thousand bytes to go through.
const BYTES_LIMIT: Duration = Duration::from_secs(30);
const LOOK_EVERY: Duration = Duration::from_millis(1);

/// One kind of fault of a family.
pub trait FaultKind: Copy + PartialEq + fmt::Display + 'static {
    /// SIGKILL at each named point.
    fn kills() -> Vec<Self>;
    /// What happens beside these, each once in a round.
    fn others() -> &'static [Self];
    /// The point, if this is a SIGKILL at one.
    fn killed_at(&self) -> Option<String>;
}

/// What is done to connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// They are reset once.
    Reset,
    /// They are reset, and new ones too for a while.
    Refused,
    /// Nothing passes for a while, and then all of it.
    Stalled,
    /// The same, in one direction.
    OneWay(Direction),
    /// One of them is reset after so many bytes.
    AfterBytes(Direction),
}

impl fmt::Display for Cut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Cut::Reset => "reset",
            Cut::Refused => "refused",
            Cut::Stalled => "stalled",
            Cut::OneWay(Direction::Up) => "no requests",
            Cut::OneWay(Direction::Down) => "no answers",
            Cut::AfterBytes(Direction::Up) => "cut in a request",
            Cut::AfterBytes(Direction::Down) => "cut in an answer",
        })
    }
}

impl Cut {
    /// Does it to a connection behind this proxy: at once, after so many bytes, or for so long. When it happened, and how exactly.
    pub(super) async fn inflict(
        self,
        proxy: &Proxy,
        bytes: usize,
        lasts: Duration,
    ) -> Result<(Instant, String)> {
        let (at, how) = (Instant::now(), format!("{} connections", proxy.connections()));
        match self {
            Cut::Reset => {
                proxy.cut();
                return Ok((at, how));
            }
            Cut::AfterBytes(direction) => {
                proxy.cut_after(direction, bytes);
                while proxy.cut_pending(direction) {
                    ensure!(at.elapsed() < BYTES_LIMIT, "not enough bytes went through to cut a connection");
                    tokio::time::sleep(LOOK_EVERY).await;
                }
                return Ok((Instant::now(), format!("after {bytes} bytes")));
            }
            Cut::Refused => proxy.refuse(),
            Cut::Stalled => Direction::BOTH.iter().for_each(|way| proxy.stall(*way)),
            Cut::OneWay(direction) => proxy.stall(direction),
        }
        tokio::time::sleep(lasts).await;
        proxy.heal();
        Ok((at, format!("{how} for {:.1} s", lasts.as_secs_f64())))
    }
}

/// One fault among what is under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Episode<K> {
    /// Counted from 1.
    pub number: usize,
    /// What happens.
    pub kind: K,
    /// Of the whole run.
    pub seed: u64,
}

impl<K> Episode<K> {
    /// The moments and measures of this episode.
    pub fn random(&self) -> Random {
        Random::new(self.seed, self.number)
    }
}

/// The episodes of a seed: half of them kills at the points, each point equally often. More episodes do not change the first ones.
pub fn draw<K: FaultKind>(seed: u64, episodes: usize) -> Vec<Episode<K>> {
    let mut random = Random::new(seed, usize::MAX);
    let (mut kinds, mut others) = (Vec::new(), Vec::new());
    while kinds.len() < episodes {
        let mut round = K::kills();
        let full = 2 * round.len();
        while round.len() < full {
            if others.is_empty() {
                others = K::others().to_vec();
                shuffle(&mut others, &mut random);
            }
            round.extend(others.pop());
        }
        shuffle(&mut round, &mut random);
        kinds.extend(round);
    }
    kinds.truncate(episodes);
    (1..).zip(kinds).map(|(number, kind)| Episode { number, kind, seed }).collect()
}

/// An episode of each of these kinds, out of those that the seed draws.
pub fn choose<K: FaultKind>(seed: u64, kinds: &[K]) -> Vec<Episode<K>> {
    let mut drawn = draw(seed, CHOICE);
    let mut take = |kind: &K| {
        let place = drawn.iter().position(|episode| episode.kind == *kind)?;
        Some(drawn.remove(place))
    };
    kinds.iter().filter_map(&mut take).collect()
}

fn shuffle<K>(kinds: &mut [K], random: &mut Random) {
    for last in (1..kinds.len()).rev() {
        kinds.swap(last, random.below(last + 1));
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::relay::episode::{Kind, Point};
    use super::*;

    fn relays(seed: u64, episodes: usize) -> Vec<Episode<Kind>> {
        draw(seed, episodes)
    }

    #[test]
    fn a_seed_draws_the_same_episodes_and_more_of_them_begin_alike() {
        assert_eq!(relays(1, 200), relays(1, 200));
        assert_eq!(relays(1, 200)[..77], relays(1, 77));
        assert_ne!(relays(1, 200), relays(2, 200));
        assert_eq!(relays(1, 3)[2].number, 3);
    }

    #[test]
    fn what_is_chosen_is_what_the_seed_draws() {
        let kinds = [Kind::Database, Kind::Kill(Point::R8), Kind::Database];
        let chosen = choose(3, &kinds);
        assert_eq!(chosen.iter().map(|episode| episode.kind).collect::<Vec<_>>(), kinds);
        assert_ne!(chosen[0], chosen[2]);
        let drawn = relays(3, CHOICE);
        assert!(chosen.iter().all(|episode| drawn[episode.number - 1] == *episode));
    }

    /// So many episodes bring a kill at each point so often, and everything else.
    pub(crate) fn bring_everything<K: FaultKind>(episodes: usize, kills: usize, others: usize) {
        for seed in 0..50 {
            let kinds: Vec<K> = draw(seed, episodes).iter().map(|episode| episode.kind).collect();
            let count = |wanted: &K| kinds.iter().filter(|kind| *kind == wanted).count();
            for kill in K::kills() {
                assert!(count(&kill) >= kills, "{kill} of seed {seed}");
            }
            for kind in K::others() {
                assert!(count(kind) >= others, "{kind} of seed {seed}");
            }
        }
    }
}
