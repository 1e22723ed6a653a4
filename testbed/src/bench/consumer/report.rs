//! The figures of the consumer's benchmark: a table for people, one line of JSON for programs.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde::Serialize;

use super::circle::Pace;
use super::{Applied, Measured};

/// What came of it.
#[derive(Debug)]
pub struct Report {
    /// For people.
    pub table: String,
    summary: Summary,
}

/// The last line. Its fields are part of what `make bench-consumer` promises.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct Summary {
    events: u32,
    raw_consumer_per_s: f64,
    apply_per_s: f64,
    duplicates_share: f64,
    lag_at_100: Lag,
    lag_at_500: Lag,
    end_to_end_max_per_s: Option<f64>,
    cpu_us_per_payment: BTreeMap<&'static str, f64>,
}

/// From eventTime to the commit of the state.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
struct Lag {
    p50_ms: Option<f64>,
    p99_ms: Option<f64>,
}

impl Lag {
    fn of(pace: Option<&Pace>) -> Lag {
        let ms = |value: Option<f64>| value.map(|value| rounded(value, 1));
        Lag { p50_ms: pace.and_then(|at| ms(at.p50_ms)), p99_ms: pace.and_then(|at| ms(at.p99_ms)) }
    }
}

impl Report {
    pub(super) fn new(measured: &Measured) -> Report {
        let Measured { raw, applied, paces, highest } = measured;
        let summary = Summary {
            events: applied.records,
            raw_consumer_per_s: rounded(raw.per_second(), 0),
            apply_per_s: rounded(applied.per_second(), 0),
            duplicates_share: rounded(f64::from(applied.copies) / f64::from(applied.records), 3),
            lag_at_100: Lag::of(paces.first()),
            lag_at_500: Lag::of(paces.get(1)),
            end_to_end_max_per_s: highest.map(|rate| rounded(rate, 0)),
            cpu_us_per_payment: paces.last().map(per_payment).unwrap_or_default(),
        };
        Report { table: table(&summary, applied, paces), summary }
    }

    /// The last line.
    pub fn json(&self) -> String {
        serde_json::to_string(&self.summary).unwrap_or_default()
    }
}

#[expect(clippy::cast_precision_loss, reason = "payments of one run")]
fn per_payment(pace: &Pace) -> BTreeMap<&'static str, f64> {
    let each = |seconds: f64| rounded(seconds / pace.payments.max(1) as f64 * 1e6, 0);
    pace.cpu.iter().map(|(name, seconds)| (*name, each(*seconds))).collect()
}

fn table(summary: &Summary, applied: &Applied, paces: &[Pace]) -> String {
    let mut text = String::new();
    let mut line = |what: &str, value: String| {
        // Writing into a string does not fail.
        writeln!(text, "  {what:<28}{value}").ok();
    };
    let us = |seconds: f64| seconds / f64::from(applied.records) * 1e6;
    line("records", format!("{}, {} of them copies", applied.records, applied.copies));
    line("raw consumer, records/s", summary.raw_consumer_per_s.to_string());
    line("applied, records/s", format!("{} ({:.1} s)", summary.apply_per_s, applied.seconds));
    line(
        "  CPU per record, us",
        format!("payment-service {:.0}, PostgreSQL {:.0}", us(applied.service_cpu), us(applied.postgres_cpu)),
    );
    line("  memory at its peak, MiB", format!("{:.0}", applied.peak_mib));
    let ms = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |value| format!("{value:.1}"));
    for pace in paces {
        line(
            "eventTime to commit, ms",
            format!(
                "{:.0}/s: p50 {}, p99 {} ({} payments at {:.0}/s)",
                pace.rate,
                ms(pace.p50_ms),
                ms(pace.p99_ms),
                pace.payments,
                pace.reached
            ),
        );
    }
    let highest = summary.end_to_end_max_per_s;
    line("highest sustained rate/s", highest.map_or_else(|| "none".to_owned(), |rate| rate.to_string()));
    let cpu = summary.cpu_us_per_payment.iter().map(|(name, us)| format!("{name} {us}"));
    line("CPU per payment, us", cpu.collect::<Vec<_>>().join(", "));
    text
}

fn rounded(value: f64, digits: i32) -> f64 {
    let scale = 10.0_f64.powi(digits);
    (value * scale).round() / scale
}

#[cfg(test)]
mod tests {
    use super::super::apply::Raw;
    use super::*;

    fn pace(rate: f64, open: [i64; 2], reached: f64) -> Pace {
        let cpu = vec![("executor", 2.0), ("postgres", 3.0)];
        Pace { rate, payments: 10_000, reached, p50_ms: Some(3.04), p99_ms: Some(20.06), open, cpu }
    }

    #[test]
    fn the_last_line_has_exactly_the_promised_keys_in_their_order() {
        let applied = Applied {
            records: 500_000,
            copies: 50_000,
            seconds: 40.0,
            service_cpu: 20.0,
            postgres_cpu: 30.0,
            peak_mib: 80.0,
        };
        let paces = vec![pace(100.0, [1, 1], 100.0), pace(500.0, [1, 1], 500.0)];
        let raw = Raw { records: 500_000, seconds: 1.0 };
        let report = Report::new(&Measured { raw, applied, paces, highest: Some(781.4) });
        let json = "{\"events\":500000,\"raw_consumer_per_s\":500000.0,\"apply_per_s\":12500.0,\"duplicates_share\":0.1,\
                    \"lag_at_100\":{\"p50_ms\":3.0,\"p99_ms\":20.1},\"lag_at_500\":{\"p50_ms\":3.0,\"p99_ms\":20.1},\
                    \"end_to_end_max_per_s\":781.0,\"cpu_us_per_payment\":{\"executor\":200.0,\"postgres\":300.0}}";
        assert_eq!(report.json(), json);
        assert!(report.table.contains("payment-service 40, PostgreSQL 60"), "{}", report.table);
    }

    #[test]
    fn a_rate_is_sustained_while_nothing_piles_up_and_the_schedule_is_kept() {
        assert!(pace(500.0, [40, 200], 499.0).sustained());
        assert!(!pace(500.0, [40, 400], 499.0).sustained());
        assert!(!pace(500.0, [40, 40], 480.0).sustained());
    }
}
