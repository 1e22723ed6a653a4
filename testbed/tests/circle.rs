//! The whole circle, small: payments go through it while a process is killed, and the oracle finds nothing wrong.

use testbed::circle::{Circle, Options};
use testbed::demo::elsewhere::{self, Elsewhere};
use testbed::demo::{Demo, Scenario, perform};
use testbed::load::{Mixture, draw};
use testbed::oracle::ending::{Ending, ending};
use testbed::stack::Stack;

#[tokio::test]
async fn payments_survive_a_kill_of_the_relay_that_leads() {
    let stack = Stack::get().await.unwrap();
    let demo = Demo {
        payments: 60,
        rate: 30.0,
        kills: 1,
        seed: 7,
        scenario: Scenario::Plain,
        stall_broker: false,
        keep: false,
    };
    let outcome = perform(&demo, &stack).await.unwrap();
    let report = outcome.report;
    assert_eq!(report.broken, Vec::<String>::new(), "{:?}\n{}", outcome.kept, report.table);
    let summary = &report.summary;
    assert_eq!((summary.payments, summary.unsettled, summary.kills), (60, 0, 1), "{summary:?}");
    // Each has come to the end that its token has.
    let end = |number| ending(&draw(7, number, &Mixture::Plain).payment_method);
    let meant = |wanted| (0..60).filter(|number| end(*number) == Some(wanted)).count();
    let ends = (summary.successful, summary.failed);
    assert_eq!(ends, (meant(Ending::Paid), meant(Ending::Declined)), "{summary:?}");
    assert_eq!(summary.psp_charges, summary.successful, "{summary:?}");
    // One request and at least one result for each.
    assert!(summary.events_published >= 120, "{summary:?}");
}

#[tokio::test]
async fn an_installation_that_runs_already_is_judged_by_the_same_oracle() {
    let stack = Stack::get().await.unwrap();
    let environment =
        [("executor", "RESOLVE_AFTER", "1s"), ("executor", "RESOLVE_THEN", "1s,2s,5s,10s,20s,60s")];
    let environment = environment.map(|(process, name, value)| (process.into(), name.into(), value.into()));
    let options = Options {
        webhooks: Some("calm".to_owned()),
        environment: environment.to_vec(),
        ..Options::default()
    };
    let circle = Circle::start(&stack, &options).await.unwrap();
    let url_file = |name: &str, url: String| {
        let path = circle.folder().join(name);
        std::fs::write(&path, url + "\n").unwrap();
        path
    };
    let mut elsewhere = Elsewhere {
        api_url: circle.api_url.clone(),
        simulator_url: circle.simulator_url.clone(),
        kafka_bootstrap: stack.kafka_bootstrap(),
        schema_registry_url: stack.registry_url(),
        requests_topic: circle.requests_topic.clone(),
        results_topic: circle.results_topic.clone(),
        payments_database_url_file: url_file("payments-url", circle.payments.url("operator")),
        executor_database_url_file: url_file("executor-url", circle.executions.url("operator")),
        payments: 30,
        rate: 30.0,
        seed: 3,
    };
    let report = elsewhere::run(&elsewhere).await.unwrap();
    assert_eq!(report.broken, Vec::<String>::new(), "{}", report.table);
    assert_eq!((report.summary.payments, report.summary.unsettled), (30, 0), "{}", report.table);
    // Payments that are in no client's book are found: those of the first run are, by the second.
    (elsewhere.seed, elsewhere.payments) = (4, 5);
    let report = elsewhere::run(&elsewhere).await.unwrap();
    assert!(!report.broken.is_empty(), "{}", report.table);
    circle.shutdown().await.unwrap();
}
