//! When a PSP is left alone for a while: a circuit breaker, as a pure state machine on the time that it is given.
//!
//! ```text
//!             most of the last calls failed                 the pause is over
//!  CLOSED ────────────────────────────────────▶ OPEN ─────────────────────────▶ HALF OPEN: one order
//!    ▲                                            ▲                                 │   │
//!    └────────────────────────────────────────────┼──────── it was answered ────────┘   │
//!                                                 └──────── it failed ──────────────────┘
//! ```
//! Only technical failures count: no answer, a broken answer of the PSP's own, a key that it does not take. A decline is an answer.
//! While the circuit is open nothing is claimed for this PSP: its orders wait where they are, and nothing is failed.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

/// How many calls are remembered.
const WINDOW: usize = 32;
/// How long a call is remembered: what failed before that says nothing about now.
const REMEMBERED_FOR: Duration = Duration::from_mins(1);
/// So many of the remembered calls must have failed to open the circuit; fewer calls than that never do.
const FAILURES: usize = 24;

/// How the circuit stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// The PSP is called.
    Closed,
    /// One order is let through, to see.
    HalfOpen,
    /// The PSP is left alone.
    Open,
}

impl State {
    /// As it stands in metrics.
    pub fn gauge(self) -> i64 {
        match self {
            Self::Closed => 0,
            Self::HalfOpen => 1,
            Self::Open => 2,
        }
    }
}

/// How many orders may be taken up now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// As many as there is room for.
    All,
    /// One.
    One,
    /// None before this time.
    NotBefore(Instant),
}

/// The circuit to one PSP.
#[derive(Debug)]
pub struct Breaker {
    /// How long the PSP is left alone, and how long a probe may take before another is tried.
    pause: Duration,
    probe: Duration,
    circuit: Circuit,
}

#[derive(Debug)]
enum Circuit {
    /// When each of the last calls ended, and whether it failed.
    Closed(VecDeque<(Instant, bool)>),
    Open {
        until: Instant,
    },
    HalfOpen {
        until: Instant,
    },
}

impl Breaker {
    /// A closed circuit. It stays open for `pause`; a probe that has said nothing after `probe` is given up.
    pub fn new(pause: Duration, probe: Duration) -> Self {
        Self { pause, probe, circuit: Circuit::Closed(VecDeque::with_capacity(WINDOW)) }
    }

    /// How it stands.
    pub fn state(&self) -> State {
        match self.circuit {
            Circuit::Closed(_) => State::Closed,
            Circuit::Open { .. } => State::Open,
            Circuit::HalfOpen { .. } => State::HalfOpen,
        }
    }

    /// How many orders may be taken up. The one that is let through when the pause is over is handed out once.
    pub fn admits(&mut self, now: Instant) -> Admission {
        match self.circuit {
            Circuit::Closed(_) => Admission::All,
            Circuit::Open { until } | Circuit::HalfOpen { until } if now < until => {
                Admission::NotBefore(until)
            }
            Circuit::Open { .. } | Circuit::HalfOpen { .. } => {
                self.circuit = Circuit::HalfOpen { until: now + self.probe };
                Admission::One
            }
        }
    }

    /// There was no order to see with, or none that the PSP was called for: the next one may be it.
    pub fn found_no_probe(&mut self, now: Instant) {
        match self.circuit {
            Circuit::HalfOpen { .. } => self.circuit = Circuit::Open { until: now },
            Circuit::Closed(_) | Circuit::Open { .. } => {}
        }
    }

    /// A call ended; true if that opened the circuit.
    pub fn observe(&mut self, now: Instant, failed: bool) -> bool {
        let opens = match &mut self.circuit {
            Circuit::Closed(calls) => {
                calls.push_back((now, failed));
                while calls.len() > WINDOW
                    || calls
                        .front()
                        .is_some_and(|(at, _)| now.saturating_duration_since(*at) > REMEMBERED_FOR)
                {
                    calls.pop_front();
                }
                failed && calls.iter().filter(|(_, failed)| *failed).count() >= FAILURES
            }
            // Of a call that was under way when it opened: it says nothing new.
            Circuit::Open { .. } => false,
            Circuit::HalfOpen { .. } => {
                if !failed {
                    self.circuit = Circuit::Closed(VecDeque::with_capacity(WINDOW));
                }
                failed
            }
        };
        if opens {
            self.circuit = Circuit::Open { until: now + self.pause };
        }
        opens
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PAUSE: Duration = Duration::from_secs(5);
    const PROBE: Duration = Duration::from_secs(8);

    fn opened(now: Instant) -> Breaker {
        let mut breaker = Breaker::new(PAUSE, PROBE);
        for n in 1..=FAILURES {
            assert_eq!(breaker.observe(now, true), n == FAILURES, "{n}");
        }
        breaker
    }

    #[test]
    fn it_opens_after_many_failures_and_closes_after_one_order_that_was_answered() {
        let now = Instant::now();
        let mut breaker = opened(now);
        assert_eq!(breaker.admits(now), Admission::NotBefore(now + PAUSE));
        let later = now + PAUSE;
        assert_eq!(breaker.admits(later), Admission::One);
        assert_eq!(breaker.admits(later), Admission::NotBefore(later + PROBE), "one alone");
        assert!(!breaker.observe(later, false));
        assert_eq!((breaker.state(), breaker.admits(later)), (State::Closed, Admission::All));
        assert!(!breaker.observe(later, true), "what failed before is forgotten");
    }

    #[test]
    fn a_probe_that_fails_opens_it_again_and_one_that_says_nothing_is_replaced() {
        let now = Instant::now();
        let mut breaker = opened(now);
        assert_eq!(breaker.admits(now + PAUSE), Admission::One);
        assert_eq!(breaker.admits(now + PAUSE + PROBE), Admission::One, "the first was lost");
        assert!(breaker.observe(now + PAUSE + PROBE, true));
        assert_eq!(breaker.admits(now + PAUSE + PROBE), Admission::NotBefore(now + PAUSE * 2 + PROBE));
    }

    #[test]
    fn without_an_order_to_see_with_it_stays_open_and_ready() {
        let now = Instant::now();
        let mut breaker = opened(now);
        assert_eq!(breaker.admits(now + PAUSE), Admission::One);
        breaker.found_no_probe(now + PAUSE);
        assert_eq!(breaker.state(), State::Open);
        assert_eq!(breaker.admits(now + PAUSE), Admission::One);
    }

    #[test]
    fn failures_of_long_ago_do_not_count() {
        let mut now = Instant::now();
        let mut breaker = Breaker::new(PAUSE, PROBE);
        for _ in 0..10 * FAILURES {
            now += REMEMBERED_FOR / 10;
            assert!(!breaker.observe(now, true));
        }
    }

    #[derive(Clone, Debug)]
    enum Step {
        Wait(u64),
        Admit,
        NoProbe,
        Answered(bool),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0..20_000_u64).prop_map(Step::Wait),
            Just(Step::Admit),
            Just(Step::NoProbe),
            prop::bool::weighted(0.9).prop_map(Step::Answered),
        ]
    }

    proptest! {
        #[test]
        fn whatever_happens_it_neither_floods_a_sick_psp_nor_leaves_a_well_one_alone(
            steps in prop::collection::vec(step(), 1..400)
        ) {
            let mut now = Instant::now();
            let mut breaker = Breaker::new(PAUSE, PROBE);
            let mut probes_since_answer = Vec::new();
            for step in steps {
                let before = breaker.state();
                match step {
                    Step::Wait(ms) => now += Duration::from_millis(ms),
                    Step::Admit => match breaker.admits(now) {
                        Admission::All => prop_assert_eq!(before, State::Closed),
                        Admission::One => {
                            prop_assert_ne!(before, State::Closed);
                            // No two probes within the time that one may take.
                            if let Some(last) = probes_since_answer.last() {
                                prop_assert!(now - *last >= PROBE);
                            }
                            probes_since_answer.push(now);
                        }
                        Admission::NotBefore(until) => {
                            prop_assert_ne!(before, State::Closed);
                            // It always ends: nobody waits longer than that.
                            prop_assert!(until > now && until - now <= PAUSE.max(PROBE));
                        }
                    },
                    Step::NoProbe => {
                        breaker.found_no_probe(now);
                        probes_since_answer.clear();
                        prop_assert_eq!(breaker.state() == State::Closed, before == State::Closed);
                    }
                    Step::Answered(failed) => {
                        let opened = breaker.observe(now, failed);
                        prop_assert!(!opened || failed, "an answer opened it");
                        prop_assert_eq!(opened, before != State::Open && breaker.state() == State::Open);
                        if !failed {
                            prop_assert_eq!(breaker.state() == State::Open, before == State::Open);
                        }
                        probes_since_answer.clear();
                    }
                }
            }
            // A PSP that answers again is called again.
            now += PAUSE.max(PROBE);
            if breaker.state() != State::Closed {
                prop_assert_eq!(breaker.admits(now), Admission::One);
                breaker.observe(now, false);
            }
            prop_assert_eq!(breaker.admits(now), Admission::All);
        }
    }
}
