//! The benchmarks, small: that they work, and that their last lines say everything. What they measure is nobody's business here.
#![allow(clippy::unwrap_used, reason = "what goes wrong in a test has to end it")]

use std::process::Command;

use serde_json::Value;

#[test]
fn the_relay_is_measured_and_the_last_line_says_everything() {
    let output = Command::new(env!("CARGO_BIN_EXE_testbed"))
        .args(["bench-relay", "--events", "5000", "--rates", "50,200", "--seconds", "1", "--saves", "100"])
        .output()
        .unwrap();
    let (said, complained) =
        (String::from_utf8(output.stdout).unwrap(), String::from_utf8_lossy(&output.stderr).into_owned());
    assert!(output.status.success(), "{said}\n{complained}");
    let measured: Value = serde_json::from_str(said.lines().last().unwrap()).unwrap();

    let positive = |value: &Value| value.as_f64().is_some_and(|number| number.is_finite() && number > 0.0);
    assert_eq!(measured["events"], 5_000);
    for key in ["raw_producer_per_s", "drain_per_s", "drain_ratio", "rss_mb"] {
        assert!(positive(&measured[key]), "{key}: {measured}");
    }
    for key in ["held_xmin_drain_ratio", "held_xmin_last_tenth_ratio"] {
        assert!(positive(&measured[key]), "{key}: {measured}");
    }
    // Too little was done for the kernel's clock to notice each of them.
    for key in ["idle_db_cpu_percent", "idle_relay_cpu_percent"] {
        assert!(measured[key].as_f64().is_some_and(|percent| percent >= 0.0), "{key}: {measured}");
    }
    for part in ["relay", "postgres", "broker"] {
        assert!(measured["cpu_us_per_event"][part].as_f64().is_some(), "{part}: {measured}");
    }
    assert_eq!(measured["dead_tuples"], 0, "{measured}");
    let latency = measured["latency"].as_array().unwrap();
    assert_eq!(latency.iter().map(|at| at["rate"].as_u64().unwrap()).collect::<Vec<_>>(), [50, 200]);
    for at in latency {
        assert!(at["p50_ms"].as_f64() <= at["p99_ms"].as_f64() && positive(&at["p99_ms"]), "{measured}");
    }
    assert!(measured.get("peer_drain_per_s").is_none(), "{measured}");
    let again = said.lines().find_map(|line| line.trim().strip_prefix("published again"));
    assert_eq!(again.map(str::trim), Some("0"), "{said}");
}

#[test]
fn takeovers_are_measured_and_the_last_line_says_everything() {
    let output = Command::new(env!("CARGO_BIN_EXE_testbed"))
        .args(["bench-takeover", "--pending", "300000", "--kills", "1"])
        .output()
        .unwrap();
    let (said, complained) =
        (String::from_utf8(output.stdout).unwrap(), String::from_utf8_lossy(&output.stderr).into_owned());
    assert!(output.status.success(), "{said}\n{complained}");
    let measured: Value = serde_json::from_str(said.lines().last().unwrap()).unwrap();
    assert_eq!(measured["takeovers"], 1, "{measured}");
    assert!(measured["pending"].as_i64().is_some_and(|pending| pending > 0), "{measured}");
    let (fenced, published) = (&measured["fenced_ms"], &measured["published_ms"]);
    assert!(
        fenced["p50"].as_f64() > Some(0.0) && fenced["max"].as_f64() < published["max"].as_f64(),
        "{measured}"
    );
    assert!(measured["published_again"].as_i64() >= Some(0), "{measured}");
}

#[test]
fn the_executor_is_measured_and_the_last_line_says_everything() {
    let output = Command::new(env!("CARGO_BIN_EXE_testbed"))
        .args(["bench-executor", "--orders", "400", "--rates", "20,50", "--seconds", "1"])
        .output()
        .unwrap();
    let (said, complained) =
        (String::from_utf8(output.stdout).unwrap(), String::from_utf8_lossy(&output.stderr).into_owned());
    assert!(output.status.success(), "{said}\n{complained}");
    let measured: Value = serde_json::from_str(said.lines().last().unwrap()).unwrap();
    for key in ["results_per_s", "psp_calls_per_s", "p99_ms", "cpu_us_per_result"] {
        assert!(measured[key].as_f64().is_some_and(|value| value > 0.0), "{key}: {measured}");
    }
    assert_eq!(measured.as_object().unwrap().len(), 4, "{measured}");
    assert_eq!(said.lines().filter(|line| line.contains("record to result")).count(), 2, "{said}");
}

#[test]
fn the_consumer_is_measured_and_the_last_line_says_everything() {
    let output = Command::new(env!("CARGO_BIN_EXE_testbed"))
        .args(["bench-consumer", "--events", "3000", "--seconds", "1", "--sustained", "2"])
        .output()
        .unwrap();
    let (said, complained) =
        (String::from_utf8(output.stdout).unwrap(), String::from_utf8_lossy(&output.stderr).into_owned());
    assert!(output.status.success(), "{said}\n{complained}");
    let measured: Value = serde_json::from_str(said.lines().last().unwrap()).unwrap();
    assert_eq!(
        (measured["events"].as_u64(), measured["duplicates_share"].as_f64()),
        (Some(3_000), Some(0.1))
    );
    for key in ["raw_consumer_per_s", "apply_per_s"] {
        assert!(measured[key].as_f64().is_some_and(|value| value > 0.0), "{key}: {measured}");
    }
    for key in ["lag_at_100", "lag_at_500"] {
        let lag = &measured[key];
        assert!(
            lag["p50_ms"].as_f64() <= lag["p99_ms"].as_f64() && lag["p99_ms"].as_f64() > Some(0.0),
            "{measured}"
        );
    }
    // None where the machine is too busy to keep up even the first one.
    assert!(measured.get("end_to_end_max_per_s").is_some(), "{measured}");
    for part in
        ["payment_service", "executor", "request_relay", "result_relay", "postgres", "broker", "simulator"]
    {
        assert!(measured["cpu_us_per_payment"][part].as_f64().is_some(), "{part}: {measured}");
    }
    assert_eq!(measured.as_object().unwrap().len(), 8, "{measured}");
}

#[test]
fn the_api_is_measured_and_the_last_line_says_everything() {
    let output = Command::new(env!("CARGO_BIN_EXE_testbed"))
        .args(["bench-api", "--rate", "50", "--seconds", "2"])
        .output()
        .unwrap();
    let (said, complained) =
        (String::from_utf8(output.stdout).unwrap(), String::from_utf8_lossy(&output.stderr).into_owned());
    assert!(output.status.success(), "{said}\n{complained}");
    let measured: Value = serde_json::from_str(said.lines().last().unwrap()).unwrap();
    assert_eq!(
        (measured["posts"].as_u64(), measured["errors"].as_object().map(serde_json::Map::len)),
        (Some(100), Some(0))
    );
    for key in ["p50_ms", "p99_ms", "max_ms", "reached_per_s"] {
        assert!(measured[key].as_f64().is_some_and(|value| value > 0.0), "{key}: {measured}");
    }
    assert_eq!(measured.as_object().unwrap().len(), 8, "{measured}");
}
