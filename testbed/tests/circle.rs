//! The whole circle, small: payments go through it while a process is killed, and the oracle finds nothing wrong.

use testbed::demo::{Demo, Scenario, perform};
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
    assert_eq!(summary.successful + summary.failed, 60, "{summary:?}");
    assert_eq!(summary.psp_charges, summary.successful, "{summary:?}");
    // One request and at least one result for each.
    assert!(summary.events_published >= 120, "{summary:?}");
}
