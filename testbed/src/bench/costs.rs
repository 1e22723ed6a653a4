//! What processes have cost: CPU time and memory, as `/proc` tells it.

use std::fs;

use anyhow::{Context, Result};

/// What the kernel counts CPU time in, wherever the parts run (`USER_HZ`).
const TICKS_PER_SECOND: f64 = 100.0;
/// Where utime, stime, cutime and cstime are in `/proc/<pid>/stat`, counted from behind the name.
const UTIME: usize = 11;

/// CPU seconds of a process, all its threads together.
pub(super) fn cpu_seconds(pid: i32) -> Result<f64> {
    read(pid).map(|used| used.own).with_context(|| format!("the CPU time of process {pid}"))
}

/// CPU seconds of a process, of its children, and of those that have ended: a PostgreSQL server and all its sessions.
pub(super) fn cpu_seconds_with_children(pid: i32) -> Result<f64> {
    let parent = read(pid).with_context(|| format!("the CPU time of process {pid}"))?;
    let listed = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
    let listed = listed.with_context(|| format!("the children of process {pid}"))?;
    // A child that has just ended counts with its parent the next time.
    let children = listed.split_whitespace().filter_map(|pid| read(pid.parse().ok()?));
    Ok(parent.own + parent.reaped + children.map(|used| used.own).sum::<f64>())
}

/// The most memory that a process ever had in RAM, in MiB.
pub(super) fn peak_mib(pid: i32) -> Result<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"));
    let status = status.with_context(|| format!("the memory of process {pid}"))?;
    peak(&status).with_context(|| format!("the memory of process {pid}"))
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Used {
    own: f64,
    reaped: f64,
}

fn read(pid: i32) -> Option<Used> {
    parse(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// The name in parentheses may itself hold blanks and parentheses.
fn parse(stat: &str) -> Option<Used> {
    let (_, after_name) = stat.rsplit_once(')')?;
    let ticks: Option<Vec<u32>> =
        after_name.split_whitespace().skip(UTIME).take(4).map(|field| field.parse().ok()).collect();
    let [user, system, children_user, children_system] = ticks?.try_into().ok()?;
    let seconds = |ticks: u32| f64::from(ticks) / TICKS_PER_SECOND;
    Some(Used {
        own: seconds(user) + seconds(system),
        reaped: seconds(children_user) + seconds(children_system),
    })
}

fn peak(status: &str) -> Option<f64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(f64::from(line.trim().strip_suffix(" kB")?.parse::<u32>().ok()?) / 1_024.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_behind_any_name() {
        let stat = "77 (a) b ) (c) S 1 77 77 0 -1 4194560 900 1 0 0 150 50 1000 25 20 0 1 0 4711 23 24";
        assert_eq!(parse(stat), Some(Used { own: 2.0, reaped: 10.25 }));
        assert_eq!(parse("77 (cut off) S 1 77"), None);
    }

    #[test]
    fn the_peak_is_in_mib() {
        assert_eq!(peak("VmPeak:\t  9 kB\nVmHWM:\t    2048 kB\nVmRSS:\t 1 kB\n"), Some(2.0));
    }

    #[test]
    fn work_costs_time_and_memory() {
        let own = std::process::id().try_into().unwrap();
        let before = cpu_seconds(own).unwrap();
        let begun = std::time::Instant::now();
        while cpu_seconds(own).unwrap() < before + 0.05 {
            assert!(begun.elapsed().as_secs() < 60);
        }
        assert!(peak_mib(own).unwrap() > 1.0);
        assert!(cpu_seconds_with_children(own).unwrap() >= before);
    }
}
