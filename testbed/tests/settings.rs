//! `--check-config` of each process: it shows what the process would run with, and no secret; what cannot work is refused, with the name of
//! the setting and the reason, and nothing is connected to.
#![allow(clippy::unwrap_used, reason = "what goes wrong in a test has to end it")]

use std::process::{Command, Output};

use testbed::processes::binary;

const EVENTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../schema/events.toml");

/// Nothing of this is there to connect to.
const COMMON: [(&str, &str); 4] = [
    ("DATABASE_URL", "postgres://somebody:hunter2@127.0.0.1:1/outbox"),
    ("KAFKA_BOOTSTRAP", "127.0.0.1:1"),
    ("SCHEMA_REGISTRY_URL", "http://127.0.0.1:1"),
    ("KAFKA_PROPERTIES", "sasl.password=hunter2"),
];

fn check(program: &str, environment: &[(&str, &str)]) -> (Option<i32>, String, String) {
    let mut command = Command::new(binary(program).unwrap());
    command.args(["run", "--check-config"]).env_clear();
    command.envs(COMMON).envs(environment.iter().copied());
    let Output { status, stdout, stderr } = command.output().unwrap();
    (status.code(), String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap())
}

#[test]
fn the_settings_of_each_process_are_shown_without_secrets() {
    for (program, environment, lines) in [
        (
            "outbox-relay",
            &[("EVENTS", EVENTS)][..],
            &["PAGE_ROWS=20000 # default", "RETENTION=6d # default"][..],
        ),
        (
            "executor",
            &[("STRIPE_SECRET_KEY", "sk_test_hunter2"), ("PSP_TIMEOUT", "2s")],
            &[
                "PSP_TIMEOUT=2s # environment",
                "STRIPE_SECRET_KEY=[hidden] # environment",
                "MODE=test # default",
            ],
        ),
        (
            "payment-service",
            &[("CONSOLE_DATABASE_URL", "postgres://console:hunter2@127.0.0.1:1/payments")],
            &[
                "CONSOLE_DATABASE_URL=postgres://console:[hidden]@127.0.0.1:1/payments # environment",
                "CONSUMER_INSTANCE= # not set",
            ],
        ),
    ] {
        let (code, shown, said) = check(program, environment);
        assert_eq!((code, said.as_str()), (Some(0), ""), "{program}: {shown}");
        let shown: Vec<String> =
            shown.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
        let common = [
            "DATABASE_URL=postgres://somebody:[hidden]@127.0.0.1:1/outbox # environment",
            "KAFKA_PROPERTIES=sasl.password=[hidden] # environment",
            "LOG=info # default",
            "OTEL_EXPORTER_OTLP_ENDPOINT= # not set",
        ];
        for line in common.iter().chain(lines) {
            assert!(shown.iter().any(|shown| shown == line), "{program} does not show {line}: {shown:#?}");
        }
        assert!(!shown.iter().any(|line| line.contains("hunter2")), "{program}: {shown:#?}");
    }
}

#[test]
fn settings_that_cannot_work_are_refused_by_each_process() {
    let stripe = ("STRIPE_SECRET_KEY", "sk_test_hunter2");
    for (program, environment, named) in [
        ("outbox-relay", &[("EVENTS", "/nowhere")][..], &["EVENTS", "/nowhere"][..]),
        ("outbox-relay", &[("EVENTS", EVENTS), ("KAFKA_PROPERTIES", "acks=1")], &["acks", "in-sync"]),
        ("outbox-relay", &[("EVENTS", EVENTS), ("PAGE_ROWS", "many")], &["--page-rows", "invalid digit"]),
        ("executor", &[], &["no PSP is configured"]),
        ("executor", &[stripe, ("LEASE", "1s")], &["LEASE", "PSP_TIMEOUT"]),
        (
            "executor",
            &[stripe, ("OTEL_EXPORTER_OTLP_ENDPOINT", "collector")],
            &["OTEL_EXPORTER_OTLP_ENDPOINT"],
        ),
        ("payment-service", &[("LISTEN", "0.0.0.0:80")], &["0.0.0.0:80", "ALLOW_PLAINTEXT"]),
        ("payment-service", &[("DLQ_TOPIC", "psp-result-updates")], &["DLQ_TOPIC", "RESULTS_TOPIC"]),
        ("payment-service", &[("ORDER_LIFETIME", "13h")], &["--order-lifetime", "12h"]),
    ] {
        let (code, _, said) = check(program, environment);
        assert_eq!(code, Some(2), "{program}: {said}");
        assert!(named.iter().all(|named| said.contains(named)), "{program} {environment:?}: {said}");
        assert!(!said.contains("hunter2"), "{program}: {said}");
    }
}
