//! The ledger is what others compare their books with.

use std::collections::BTreeSet;

use serde_json::json;

use crate::simulator::{Simulator, TERMS};

#[tokio::test]
async fn entries_name_the_payment_order_and_the_summary_counts() {
    let simulator = Simulator::start().await;
    for (order, currency) in [("a", "eur"), ("b", "usd"), ("a", "eur")] {
        let more = [
            ("currency", currency),
            ("metadata[payment_order_id]", order),
            ("payment_method", "pm_card_visa"),
            ("confirm", "true"),
        ];
        simulator.post("/v1/payment_intents", &[&TERMS[..], &more].concat()).await.expect(200);
    }
    let nameless = [("payment_method", "pm_card_visa"), ("confirm", "true")];
    let paid = simulator.post("/v1/payment_intents", &[&TERMS[..], &nameless].concat()).await.expect(200);

    let summary = simulator.get("/simulator/ledger/summary").await.expect(200);
    assert_eq!(
        summary.body,
        json!({
            "charges": 4, "payment_orders": 2, "double_charged": 1, "without_payment_order": 1,
            "amount_minor_by_currency": { "eur": 3 * 1099, "usd": 1099 },
            "charges_by_psp": { "stripe": 4 },
        })
    );
    let ledger = simulator.get("/simulator/ledger").await.expect(200);
    let charges = ledger.body["charges"].as_array().unwrap();
    let orders: Vec<_> = charges.iter().map(|charge| charge["payment_order_id"].as_str()).collect();
    assert_eq!(orders, [Some("a"), Some("b"), Some("a"), None]);
    let last = &charges[3];
    assert_eq!(last["charge_id"], paid.body["latest_charge"]);
    assert_eq!(last["payment_intent"], paid.body["id"]);
    assert_eq!(last["reference"], paid.body["id"]);
    assert_eq!(last["psp"], "stripe");
    assert_eq!(last["amount_minor"], 1099);
    assert_eq!(last["currency"], "eur");
    assert!(last["charged_at"].as_str().unwrap().ends_with('Z'));
}

#[tokio::test]
async fn pages_cover_the_ledger_exactly() {
    let simulator = Simulator::start().await;
    let form = [&TERMS[..], &[("payment_method", "pm_card_visa"), ("confirm", "true")]].concat();
    for _ in 0..7 {
        simulator.post("/v1/payment_intents", &form).await.expect(200);
    }
    let (mut after, mut seen, mut pages) = (0, BTreeSet::new(), 0);
    loop {
        let page = simulator.get(&format!("/simulator/ledger?after={after}&limit=3")).await.expect(200).body;
        pages += 1;
        for charge in page["charges"].as_array().unwrap() {
            after = charge["sequence"].as_u64().unwrap();
            assert!(seen.insert(charge["charge_id"].as_str().unwrap().to_owned()));
        }
        if page["has_more"] == false {
            break;
        }
    }
    assert_eq!((seen.len(), pages), (7, 3));
    let beyond = simulator.get("/simulator/ledger?after=99").await.expect(200);
    assert_eq!(beyond.body, json!({ "charges": [], "has_more": false }));
}
