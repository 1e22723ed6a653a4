//! The figures of a benchmark: a table for people, one line of JSON for programs.

use std::fmt::Write;

use serde::Serialize;

use super::drain::Drain;
use super::held::Saves;
use super::latency::Latency;
use super::raw::Raw;
use super::{Bench, peer};

/// Everything that was measured.
#[derive(Debug)]
pub(super) struct Measured {
    pub(super) raw: Vec<Raw>,
    pub(super) drains: Vec<Drain>,
    pub(super) held_drain: Drain,
    pub(super) latency: Vec<Latency>,
    pub(super) idle: Idle,
    pub(super) saves: Saves,
    pub(super) dead_tuples: i64,
    pub(super) peer: Option<peer::Figures>,
}

/// CPU of processes that have nothing to do, in percent of one core.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Idle {
    pub(super) relay: f64,
    pub(super) postgres: f64,
    /// The part of PostgreSQL's that the relay's own sessions use.
    pub(super) sessions: f64,
}

/// What came of it.
#[derive(Debug)]
pub struct Report {
    /// For people.
    pub table: String,
    summary: Summary,
}

/// The last line. Its fields are part of what `make bench-relay` promises.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct Summary {
    events: u32,
    raw_producer_per_s: f64,
    drain_per_s: f64,
    drain_ratio: f64,
    latency: Vec<At>,
    dead_tuples: i64,
    held_xmin_drain_ratio: f64,
    held_xmin_last_tenth_ratio: f64,
    idle_db_cpu_percent: f64,
    idle_relay_cpu_percent: f64,
    cpu_us_per_event: PerEvent,
    rss_mb: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    peer_drain_per_s: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    peer_latency: Option<Vec<At>>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
struct At {
    rate: u32,
    p50_ms: Option<f64>,
    p99_ms: Option<f64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
struct PerEvent {
    relay: f64,
    postgres: f64,
    broker: f64,
}

impl Report {
    pub(super) fn new(bench: &Bench, measured: &Measured) -> Report {
        let raw = mean(&measured.raw.iter().map(Raw::per_second).collect::<Vec<_>>());
        let drain = mean(&measured.drains.iter().map(Drain::per_second).collect::<Vec<_>>());
        let per_event = |cost: fn(&Drain) -> f64| {
            let all: f64 = measured.drains.iter().map(cost).sum();
            let drained: f64 = measured.drains.iter().map(|drain| f64::from(drain.events)).sum();
            rounded(all / drained * 1e6, 2)
        };
        let summary = Summary {
            events: bench.events,
            raw_producer_per_s: rounded(raw, 0),
            drain_per_s: rounded(drain, 0),
            drain_ratio: rounded(drain / raw, 3),
            latency: at(&measured.latency),
            dead_tuples: measured.dead_tuples,
            held_xmin_drain_ratio: rounded(measured.held_drain.per_second() / drain, 3),
            held_xmin_last_tenth_ratio: rounded(measured.saves.ratio(), 3),
            idle_db_cpu_percent: rounded(measured.idle.postgres, 2),
            idle_relay_cpu_percent: rounded(measured.idle.relay, 2),
            cpu_us_per_event: PerEvent {
                relay: per_event(|drain| drain.cpu.relay),
                postgres: per_event(|drain| drain.cpu.postgres),
                broker: per_event(|drain| drain.cpu.broker),
            },
            rss_mb: rounded(measured.drains.iter().map(|drain| drain.peak_mib).fold(0.0, f64::max), 1),
            peer_drain_per_s: measured.peer.as_ref().map(|peer| rounded(peer.per_second(), 0)),
            peer_latency: measured.peer.as_ref().map(|peer| at(&peer.latency)),
        };
        Report { table: table(bench, measured, &summary), summary }
    }

    /// The last line.
    pub fn json(&self) -> String {
        serde_json::to_string(&self.summary).unwrap_or_default()
    }
}

fn table(bench: &Bench, measured: &Measured, summary: &Summary) -> String {
    let mut text = String::new();
    let mut line = |what: &str, value: String| {
        // Writing into a string does not fail.
        writeln!(text, "  {what:<28}{value}").ok();
    };
    let Summary { raw_producer_per_s, drain_per_s, drain_ratio, cpu_us_per_event, .. } = summary;
    let raw: Vec<String> = measured.raw.iter().map(|raw| format!("{:.0}", raw.per_second())).collect();
    let drains: Vec<String> =
        measured.drains.iter().map(|drain| format!("{:.0}", drain.per_second())).collect();
    line("events", bench.events.to_string());
    line("raw producer, events/s", format!("{raw_producer_per_s:.0} ({})", raw.join(", ")));
    let per_event = |cost: fn(&Raw) -> f64| {
        let (all, sent): (f64, f64) =
            (measured.raw.iter().map(cost).sum(), measured.raw.iter().map(|raw| f64::from(raw.events)).sum());
        all / sent * 1e6
    };
    let (producer, broker) = (per_event(|raw| raw.producer_cpu), per_event(|raw| raw.broker_cpu));
    line("  CPU per event, us", format!("producer {producer:.2}, broker {broker:.2}"));
    line("drain, events/s", format!("{drain_per_s:.0} ({})", drains.join(", ")));
    line("  of the raw producer", format!("{drain_ratio:.3}"));
    let PerEvent { relay, postgres, broker } = cpu_us_per_event;
    line("  CPU per event, us", format!("relay {relay:.2}, PostgreSQL {postgres:.2}, broker {broker:.2}"));
    line("  relay's memory, MiB", format!("{:.1}", summary.rss_mb));
    let saves: Vec<String> = measured.drains.iter().map(|drain| drain.saves.to_string()).collect();
    line("  saves of progress", saves.join(", "));
    let again: i64 = measured.drains.iter().chain([&measured.held_drain]).map(|drain| drain.again).sum();
    line("  published again", again.to_string());
    for latency in &measured.latency {
        line("commit to topic, ms", described(latency));
    }
    line("beside an old snapshot", String::new());
    let held = measured.held_drain.per_second();
    line("  drain, events/s", format!("{held:.0}, {:.3} of that without", summary.held_xmin_drain_ratio));
    let Saves { first_tenth, last_tenth } = measured.saves;
    let per_second =
        format!("first tenth {:.0}, last tenth {:.0}", first_tenth.per_second, last_tenth.per_second);
    line(
        &format!("  {} saves, per s", bench.saves),
        format!("{per_second}, {:.3} of it", summary.held_xmin_last_tenth_ratio),
    );
    line(
        "    CPU per save, us",
        format!("first tenth {:.0}, last tenth {:.0}", first_tenth.cpu_us, last_tenth.cpu_us),
    );
    line("dead tuples", summary.dead_tuples.to_string());
    let Idle { relay, postgres, sessions } = measured.idle;
    line(
        "idle, % of a core",
        format!("relay {relay:.2}, PostgreSQL {postgres:.2} (of it the relay's sessions {sessions:.2})"),
    );
    if let Some(peer) = &measured.peer {
        let of = summary.drain_per_s / peer.per_second();
        line("Debezium", String::new());
        line("  drain, events/s", format!("{:.0}; the relay does {of:.2} times that", peer.per_second()));
        let per_event = |seconds: f64| seconds / f64::from(peer.events) * 1e6;
        let peer::Cpu { connect, postgres, broker } = peer.cpu;
        let [connect, postgres, broker] = [connect, postgres, broker].map(per_event);
        line(
            "  CPU per event, us",
            format!("Connect {connect:.2}, PostgreSQL {postgres:.2}, broker {broker:.2}"),
        );
        line("  its memory, MiB", format!("{:.1}", peer.peak_mib));
        line("  published again", peer.again.to_string());
        for latency in &peer.latency {
            line("  commit to topic, ms", described(latency));
        }
    }
    text
}

fn described(latency: &Latency) -> String {
    let Latency { rate, reached, events, early, .. } = latency;
    let [p50, p99, from_call] = [latency.p50_ms, latency.p99_ms, latency.p99_from_call_ms]
        .map(|value| value.map_or_else(|| "-".to_owned(), |value| format!("{value:.1}")));
    format!(
        "{rate}/s: p50 {p50}, p99 {p99} ({events} events at {reached:.0}/s, {early} there before their commit returned; \
         p99 with the commit {from_call})"
    )
}

fn at(latency: &[Latency]) -> Vec<At> {
    let one = |latency: &Latency| At {
        rate: latency.rate,
        p50_ms: latency.p50_ms.map(|value| rounded(value, 1)),
        p99_ms: latency.p99_ms.map(|value| rounded(value, 1)),
    };
    latency.iter().map(one).collect()
}

fn mean(rates: &[f64]) -> f64 {
    rates.iter().sum::<f64>() / rates.iter().map(|_| 1.0).sum::<f64>()
}

fn rounded(value: f64, digits: i32) -> f64 {
    let scale = 10.0_f64.powi(digits);
    (value * scale).round() / scale
}

#[cfg(test)]
mod tests {
    use super::super::drain::Cpu;
    use super::super::held::Tenth;
    use super::*;

    fn measured() -> Measured {
        let cpu = Cpu { relay: 4.0, postgres: 2.0, broker: 1.0 };
        let drain = |seconds| Drain { events: 1_000_000, seconds, again: 0, saves: 9, cpu, peak_mib: 80.0 };
        let tenth = |per_second| Tenth { per_second, cpu_us: 90.0 };
        let raw = |seconds| Raw { events: 1_000_000, seconds, producer_cpu: 3.0, broker_cpu: 2.0 };
        let latency = Latency {
            rate: 100,
            reached: 99.9,
            events: 200,
            early: 3,
            p50_ms: Some(2.04),
            p99_ms: Some(7.96),
            p99_from_call_ms: Some(9.0),
        };
        Measured {
            raw: vec![raw(4.0), raw(5.0)],
            drains: vec![drain(8.0), drain(10.0)],
            held_drain: drain(10.0),
            latency: vec![latency],
            idle: Idle { relay: 1.234, postgres: 2.0, sessions: 1.5 },
            saves: Saves { first_tenth: tenth(2_000.0), last_tenth: tenth(1_900.0) },
            dead_tuples: 0,
            peer: None,
        }
    }

    fn bench() -> Bench {
        Bench { events: 1_000_000, rates: vec![100], seconds: 2, saves: 100_000, peer: None }
    }

    #[test]
    fn the_last_line_has_exactly_the_promised_keys_in_their_order() {
        let report = Report::new(&bench(), &measured());
        let json = "{\"events\":1000000,\"raw_producer_per_s\":225000.0,\"drain_per_s\":112500.0,\"drain_ratio\":0.5,\
                    \"latency\":[{\"rate\":100,\"p50_ms\":2.0,\"p99_ms\":8.0}],\"dead_tuples\":0,\
                    \"held_xmin_drain_ratio\":0.889,\"held_xmin_last_tenth_ratio\":0.95,\"idle_db_cpu_percent\":2.0,\
                    \"idle_relay_cpu_percent\":1.23,\"cpu_us_per_event\":{\"relay\":4.0,\"postgres\":2.0,\"broker\":1.0},\
                    \"rss_mb\":80.0}";
        assert_eq!(report.json(), json);
    }

    #[test]
    fn with_a_peer_its_figures_follow() {
        let mut measured = measured();
        measured.peer = Some(peer::Figures {
            events: 1_000_000,
            seconds: 25.0,
            again: 0,
            cpu: peer::Cpu { connect: 30.0, postgres: 9.0, broker: 3.0 },
            peak_mib: 500.0,
            latency: measured.latency.clone(),
        });
        let report = Report::new(&bench(), &measured);
        let end = "\"rss_mb\":80.0,\"peer_drain_per_s\":40000.0,\
                   \"peer_latency\":[{\"rate\":100,\"p50_ms\":2.0,\"p99_ms\":8.0}]}";
        assert!(report.json().ends_with(end), "{}", report.json());
        assert!(report.table.contains("the relay does 2.81 times that"), "{}", report.table);
    }
}
