//! The tricks played on webhooks, drawn from a seed.
//!
//! Every draw is a function of the seed, the webhook's name (PSP, payment order, kind) and the trick, so that a run can
//! be repeated whatever the order in which its requests arrive.

use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

const MAX_DELAY_MS: u64 = 3_600_000;

/// How often each trick is played: shares in percent of the webhooks, and a delay in milliseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Mischief {
    /// Sent twice.
    pub duplicate: u8,
    /// Held back for so long that the next one of its payment overtakes it.
    pub reorder: u8,
    /// Every webhook waits up to this long.
    pub delay_ms: u64,
    /// Never sent.
    pub drop: u8,
    /// Sent before the answer to its request.
    pub early: u8,
    /// An outcome's webhook, once it is acknowledged, is followed by one that contradicts it.
    pub contradict_late: u8,
}

/// How a webhook contradicts an outcome.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Contradiction {
    FailureAfterSuccess,
    /// Under another reference.
    SecondSuccess,
    SuccessAfterFailure,
}

/// How a webhook is sent twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Duplicate {
    AnotherMessage,
    /// Where the protocol has room for several events in a message.
    SameMessage,
}

/// What was drawn for a webhook.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Plan {
    pub(crate) drop: bool,
    pub(crate) early: bool,
    pub(crate) held_back: bool,
    pub(crate) delay: Duration,
    pub(crate) duplicate: Option<Duplicate>,
    pub(crate) duplicate_after: Duration,
    pub(crate) contradict: Option<Contradiction>,
    /// After the truth was acknowledged.
    pub(crate) contradict_after: Duration,
}

impl Mischief {
    const HOSTILE: Self =
        Self { duplicate: 20, reorder: 20, delay_ms: 500, drop: 10, early: 20, contradict_late: 2 };

    /// Says what is wrong with it.
    pub(crate) fn check(&self) -> Result<(), String> {
        let shares = [
            ("duplicate", self.duplicate),
            ("reorder", self.reorder),
            ("drop", self.drop),
            ("early", self.early),
            ("contradict_late", self.contradict_late),
        ];
        if let Some((name, share)) = shares.iter().find(|(_, share)| *share > 100) {
            return Err(format!("{name}={share} is no share: it must be a percentage, 0 to 100"));
        }
        if self.delay_ms > MAX_DELAY_MS {
            return Err(format!("delay_ms={} is too long: at most {MAX_DELAY_MS}", self.delay_ms));
        }
        Ok(())
    }

    /// `success` says whether the webhook is an outcome, and which; `slow` how long an issuer can take to give one.
    pub(crate) fn plan(&self, seed: u64, name: &str, success: Option<bool>, slow: Duration) -> Plan {
        let draw = |trick: &str| draw(seed, name, trick);
        let hits = |trick: &str, share: u8| draw(trick) % 100 < u64::from(share);
        let up_to = |trick: &str, milliseconds: u64| Duration::from_millis(draw(trick) % (milliseconds + 1));
        let early = hits("early", self.early);
        let held_back = !early && hits("reorder", self.reorder);
        let mut delay = up_to("delay", self.delay_ms);
        if held_back {
            delay += slow + Duration::from_millis(250) + up_to("held_back", 750);
        }
        let contradict = match success {
            Some(true) if draw("contradiction").is_multiple_of(2) => Some(Contradiction::FailureAfterSuccess),
            Some(true) => Some(Contradiction::SecondSuccess),
            Some(false) => Some(Contradiction::SuccessAfterFailure),
            None => None,
        };
        let duplicate = if draw("same_message").is_multiple_of(2) {
            Duplicate::SameMessage
        } else {
            Duplicate::AnotherMessage
        };
        Plan {
            drop: hits("drop", self.drop),
            early,
            held_back,
            delay: if early { Duration::ZERO } else { delay },
            duplicate: hits("duplicate", self.duplicate).then_some(duplicate),
            duplicate_after: up_to("duplicate_after", 500),
            contradict: contradict.filter(|_| hits("contradict_late", self.contradict_late)),
            contradict_after: Duration::from_millis(100) + up_to("contradict_after", 900),
        }
    }
}

fn draw(seed: u64, name: &str, trick: &str) -> u64 {
    let mut hasher = Sha256::new();
    hasher.update(seed.to_be_bytes());
    hasher.update(trick.as_bytes());
    hasher.update([0]);
    hasher.update(name.as_bytes());
    let digest = hasher.finalize();
    digest.iter().take(8).fold(0, |number, byte| (number << 8) | u64::from(*byte))
}

/// `calm`, `hostile`, or a list such as `duplicate=10,drop=5,delay_ms=200`.
impl FromStr for Mischief {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "calm" => return Ok(Self::default()),
            "hostile" => return Ok(Self::HOSTILE),
            _ => {}
        }
        let mut mischief = Self::default();
        for part in text.split(',') {
            let (name, value) =
                part.split_once('=').ok_or_else(|| format!("`{part}` is not of the form name=number"))?;
            let share = || value.parse().map_err(|_| format!("`{value}` is no percentage for {name}"));
            match name.trim() {
                "duplicate" => mischief.duplicate = share()?,
                "reorder" => mischief.reorder = share()?,
                "drop" => mischief.drop = share()?,
                "early" => mischief.early = share()?,
                "contradict_late" => mischief.contradict_late = share()?,
                "delay_ms" => {
                    mischief.delay_ms =
                        value.parse().map_err(|_| format!("`{value}` are no milliseconds for {name}"))?;
                }
                other => return Err(format!("`{other}` is no trick")),
            }
        }
        mischief.check().map(|()| mischief)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SLOW: Duration = Duration::from_secs(3);

    #[test]
    fn it_is_read_from_text() {
        assert_eq!("calm".parse(), Ok(Mischief::default()));
        assert_eq!("hostile".parse(), Ok(Mischief::HOSTILE));
        let read: Mischief = "duplicate=10,delay_ms=200".parse().unwrap();
        assert_eq!(read, Mischief { duplicate: 10, delay_ms: 200, ..Mischief::default() });
        for wrong in ["", "duplicate", "duplicate=101", "duplicate=-1", "rain=1", "delay_ms=9999999"] {
            assert!(wrong.parse::<Mischief>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn draws_repeat_with_the_seed_and_come_in_their_shares() {
        let name = |number: u32| format!("stripe:order-{number}:payment_intent.succeeded");
        let mischief = Mischief { drop: 30, ..Mischief::HOSTILE };
        let plans = |seed: u64| -> Vec<Plan> {
            (0..2000).map(|number| mischief.plan(seed, &name(number), Some(true), SLOW)).collect()
        };
        assert_eq!(plans(1), plans(1));
        assert_ne!(plans(1), plans(2));
        let dropped = plans(1).iter().filter(|plan| plan.drop).count();
        assert!((500..700).contains(&dropped), "{dropped} of 2000 at 30 %");
    }

    #[test]
    fn nothing_is_drawn_from_a_calm_mode_and_all_from_a_certain_one() {
        let calm = Mischief::default().plan(1, "x", Some(true), SLOW);
        assert!(!calm.drop && !calm.early && !calm.held_back);
        assert_eq!((calm.delay, calm.duplicate, calm.contradict), (Duration::ZERO, None, None));
        let certain = Mischief { reorder: 100, contradict_late: 100, ..Mischief::default() };
        assert!(certain.plan(1, "x", Some(true), SLOW).delay > SLOW);
        let after_failure = certain.plan(1, "x", Some(false), SLOW).contradict;
        assert_eq!(after_failure, Some(Contradiction::SuccessAfterFailure));
        assert_eq!(certain.plan(1, "x", None, SLOW).contradict, None);
    }
}
