//! What the first requests of a payment meet, counted by the payment.

use std::collections::HashMap;
use std::sync::Mutex;

use crate::held;
use crate::scenario::Obstacle;

#[derive(Debug)]
pub(crate) struct Obstacles {
    met: Mutex<HashMap<Box<str>, u32>>,
    /// Requests refused by those obstacles that refuse several.
    refusals: u32,
    capacity: usize,
}

impl Obstacles {
    pub(crate) fn new(refusals: u32, capacity: usize) -> Self {
        Self { met: Mutex::default(), refusals, capacity }
    }

    /// What this request meets. `name` is what the requests of one payment have in common; when no more names can be
    /// kept, nothing is in the way any more.
    pub(crate) fn meet(&self, obstacle: Obstacle, name: &str) -> Obstacle {
        let times = match obstacle {
            Obstacle::None => return Obstacle::None,
            Obstacle::Lost | Obstacle::Reset => 1,
            Obstacle::RateLimited | Obstacle::Unavailable { .. } => self.refusals,
        };
        let mut met = held(&self.met);
        if !met.contains_key(name) && met.len() >= self.capacity {
            return Obstacle::None;
        }
        let count = met.entry(name.into()).or_default();
        if *count >= times {
            return Obstacle::None;
        }
        *count += 1;
        obstacle
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_requests_meet_it_and_the_next_one_passes() {
        let obstacles = Obstacles::new(2, 9);
        let (lost, limited) = (Obstacle::Lost, Obstacle::RateLimited);
        assert_eq!([obstacles.meet(lost, "a"), obstacles.meet(lost, "a")], [lost, Obstacle::None]);
        let met = [(); 3].map(|()| obstacles.meet(limited, "b"));
        assert_eq!(met, [limited, limited, Obstacle::None]);
    }
}
