//! The whole circle, small: payments go through it while a process is killed, and the oracle finds nothing wrong.

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
