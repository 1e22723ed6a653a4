//! Who a process is. A pid may be handed on to a stranger, so a process is known by its pid **and** its start time, and nothing
//! is ever signalled by its pid alone.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};

/// A process, told apart from any later one with the same pid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Its pid.
    pub pid: i32,
    /// When it was started, in clock ticks since the machine booted.
    pub started_ticks: u64,
}

impl Identity {
    /// Who has this pid now. `None` if nobody has it, or only a zombie.
    pub fn of(pid: i32) -> Option<Identity> {
        let (state, identity) = Identity::read(pid)?;
        (!matches!(state, 'Z' | 'X')).then_some(identity)
    }

    /// The same, of a zombie too.
    pub(super) fn read(pid: i32) -> Option<(char, Identity)> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let (state, started_ticks) = parse_stat(&stat)?;
        Some((state, Identity { pid, started_ticks }))
    }

    /// This process.
    pub fn own() -> Result<Identity> {
        let pid = rustix::process::getpid().as_raw_nonzero().get();
        Identity::of(pid).context("read /proc/self/stat")
    }

    /// Whether it still runs.
    pub fn alive(self) -> bool {
        Identity::of(self.pid) == Some(self)
    }

    /// Whether it stands still after a SIGSTOP.
    pub fn stopped(self) -> bool {
        Identity::read(self.pid) == Some(('T', self))
    }

    /// Sends a signal, unless the process is gone. Says whether it was sent.
    pub fn signal(self, signal: Signal) -> bool {
        let pid = Pid::from_raw(self.pid);
        self.alive() && pid.is_some_and(|pid| kill_process(pid, signal).is_ok())
    }

    /// Ends it at once, with everything that it has started, and waits until all of it is gone.
    pub fn kill_with_descendants(self, limit: Duration) -> bool {
        let family = self.stopped_family();
        for member in &family {
            member.signal(Signal::KILL);
        }
        let begun = Instant::now();
        while family.iter().any(|member| member.alive()) {
            if begun.elapsed() > limit {
                return false;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        true
    }

    /// Itself, its children, theirs, and so on. Each is stopped before its children are listed, so that none is born between the
    /// list and the kill.
    pub(super) fn stopped_family(self) -> Vec<Identity> {
        self.signal(Signal::STOP);
        let listed = fs::read_to_string(format!("/proc/{0}/task/{0}/children", self.pid)).unwrap_or_default();
        let children = listed.split_whitespace().filter_map(|pid| pid.parse().ok()).filter_map(Identity::of);
        std::iter::once(self).chain(children.flat_map(Identity::stopped_family)).collect()
    }
}

/// State and start time out of `/proc/<pid>/stat`. The name in parentheses may itself hold blanks and parentheses.
fn parse_stat(stat: &str) -> Option<(char, u64)> {
    let (_, after_name) = stat.rsplit_once(')')?;
    let mut fields = after_name.split_whitespace();
    let state = fields.next()?.chars().next()?;
    Some((state, fields.nth(18)?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn state_and_start_are_read_behind_any_name() {
        let fields = (4..=21).map(|field| field.to_string()).collect::<Vec<_>>().join(" ");
        let stat = format!("77 (a) b ) (c) S {fields} 4711 23 24");
        assert_eq!(parse_stat(&stat), Some(('S', 4711)));
        assert_eq!(parse_stat("77 (cut off"), None);
    }

    #[test]
    fn a_pid_alone_is_not_a_process() {
        let own = Identity::own().unwrap();
        assert!(own.alive());
        let stranger = Identity { started_ticks: own.started_ticks + 1, ..own };
        assert!(!stranger.alive());
        // It would end this test.
        assert!(!stranger.signal(Signal::KILL));
    }
}
