//! The figures of the executor's benchmark: a table for people, one line of JSON for programs.

use std::fmt::Write;

use serde::Serialize;

use super::{Backlog, Cpu, Latency, Measured};

/// What came of it.
#[derive(Debug)]
pub struct Report {
    /// For people.
    pub table: String,
    summary: Summary,
}

/// The last line. Its fields are part of what `make bench-executor` promises.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct Summary {
    results_per_s: f64,
    psp_calls_per_s: f64,
    p99_ms: Option<f64>,
    cpu_us_per_result: f64,
}

impl Report {
    pub(super) fn new(measured: &Measured) -> Report {
        let Measured { backlog, latency } = measured;
        let summary = Summary {
            results_per_s: rounded(backlog.per_second(), 0),
            psp_calls_per_s: rounded(calls_per_second(backlog), 0),
            p99_ms: latency.last().and_then(|at| at.p99_ms).map(|value| rounded(value, 1)),
            cpu_us_per_result: rounded(per_result(backlog, backlog.cpu.executor), 0),
        };
        Report { table: table(measured), summary }
    }

    /// The last line.
    pub fn json(&self) -> String {
        serde_json::to_string(&self.summary).unwrap_or_default()
    }
}

#[expect(clippy::cast_precision_loss, reason = "calls of one run")]
fn calls_per_second(backlog: &Backlog) -> f64 {
    backlog.calls as f64 / backlog.seconds
}

fn per_result(backlog: &Backlog, seconds: f64) -> f64 {
    seconds / f64::from(backlog.orders) * 1e6
}

fn table(measured: &Measured) -> String {
    let mut text = String::new();
    let mut line = |what: &str, value: String| {
        // Writing into a string does not fail.
        writeln!(text, "  {what:<28}{value}").ok();
    };
    let Measured { backlog, latency } = measured;
    line("orders", backlog.orders.to_string());
    line("results/s", format!("{:.0} ({:.1} s)", backlog.per_second(), backlog.seconds));
    line("calls to the PSP/s", format!("{:.0} ({} calls)", calls_per_second(backlog), backlog.calls));
    let Cpu { executor, postgres, simulator, broker } = backlog.cpu;
    let [executor, postgres, simulator, broker] =
        [executor, postgres, simulator, broker].map(|seconds| per_result(backlog, seconds));
    line(
        "  CPU per result, us",
        format!(
            "executor {executor:.0}, PostgreSQL {postgres:.0}, simulator {simulator:.0}, broker {broker:.0}"
        ),
    );
    line("  executor's memory, MiB", format!("{:.1}", backlog.peak_mib));
    for at in latency {
        line("record to result, ms", described(at));
    }
    text
}

fn described(latency: &Latency) -> String {
    let Latency { rate, reached, orders, .. } = latency;
    let [p50, p99, max] = [latency.p50_ms, latency.p99_ms, latency.max_ms]
        .map(|value| value.map_or_else(|| "-".to_owned(), |value| format!("{value:.1}")));
    format!("{rate}/s: p50 {p50}, p99 {p99}, max {max} ({orders} orders at {reached:.0}/s)")
}

fn rounded(value: f64, digits: i32) -> f64 {
    let scale = 10.0_f64.powi(digits);
    (value * scale).round() / scale
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_line_has_exactly_the_promised_keys_in_their_order() {
        let at = |rate, p99| Latency {
            rate,
            reached: 99.0,
            sent: 1,
            orders: 1,
            p50_ms: Some(3.0),
            p99_ms: Some(p99),
            max_ms: Some(20.0),
        };
        let cpu = Cpu { executor: 8.0, postgres: 6.0, simulator: 4.0, broker: 1.0 };
        let backlog = Backlog { orders: 20_000, seconds: 16.0, calls: 40_000, cpu, peak_mib: 70.0 };
        let report = Report::new(&Measured { backlog, latency: vec![at(100, 9.04), at(300, 12.06)] });
        let json = "{\"results_per_s\":1250.0,\"psp_calls_per_s\":2500.0,\"p99_ms\":12.1,\"cpu_us_per_result\":400.0}";
        assert_eq!(report.json(), json);
        assert!(
            report.table.contains("executor 400, PostgreSQL 300, simulator 200, broker 50"),
            "{}",
            report.table
        );
        assert!(report.table.contains("100/s: p50 3.0, p99 9.0"), "{}", report.table);
    }
}
