//! The tricks: each is played, counted, and drawn from the seed.

use std::collections::BTreeSet;

use serde_json::json;

use crate::receiver::Office;

async fn pay_many(office: &Office, count: usize, scenario: &str) {
    for number in 0..count {
        office.pay_adyen(&format!("adyen-{number}"), scenario).await;
        office.pay_stripe(&format!("stripe-{number}"), scenario).await;
    }
}

#[tokio::test]
async fn dropped_ones_never_come() {
    let office = Office::with(&["--webhook-mode", "drop=100"]).await;
    pay_many(&office, 5, "success").await;
    let report = office.report().await;
    for psp in ["stripe", "adyen"] {
        assert_eq!((&report[psp]["dropped"], &report[psp]["events"]), (&5.into(), &5.into()));
        assert_eq!((&report[psp]["sent"], &report[psp]["queued"]), (&0.into(), &0.into()));
    }
}

#[tokio::test]
async fn the_same_seed_plays_the_same_tricks() {
    let mut told = Vec::new();
    for seed in ["7", "7", "8"] {
        let office = Office::with(&["--webhook-mode", "drop=50", "--seed", seed]).await;
        pay_many(&office, 20, "success").await;
        let report = office.report().await;
        let dropped = |psp: &str| usize::try_from(report[psp]["dropped"].as_u64().unwrap()).unwrap();
        let received = office.mail.until(40 - dropped("stripe") - dropped("adyen")).await;
        let orders: BTreeSet<String> = received
            .iter()
            .map(|received| match received.json.get("type") {
                Some(_) => received.event().1["metadata"]["payment_order_id"].as_str().unwrap().to_owned(),
                None => received.items()[0]["merchantReference"].as_str().unwrap().to_owned(),
            })
            .collect();
        assert!((5..35).contains(&orders.len()), "{orders:?}");
        told.push(orders);
    }
    assert_eq!(told[0], told[1]);
    assert_ne!(told[0], told[2]);
}

#[tokio::test]
async fn duplicates_are_the_same_event_again() {
    let office = Office::with(&["--webhook-mode", "duplicate=100"]).await;
    pay_many(&office, 6, "success").await;
    let stripe = || office.mail.all().into_iter().filter(|received| received.json.get("type").is_some());
    let report = office
        .until_report(|report| report["stripe"]["acknowledged"] == 12 && report["adyen"]["queued"] == 0);
    let report = report.await;
    assert_eq!((&report["stripe"]["duplicated"], &report["adyen"]["duplicated"]), (&6.into(), &6.into()));
    let ids: BTreeSet<_> =
        stripe().map(|received| received.json["id"].as_str().unwrap().to_owned()).collect();
    assert_eq!((stripe().count(), ids.len()), (12, 6));

    office.until_report(|report| report["adyen"]["sent"] == report["adyen"]["acknowledged"]).await;
    let adyen: Vec<_> = (office.mail.all().into_iter())
        .filter(|received| received.json.get("type").is_none())
        .map(|received| received.items())
        .collect();
    // In a notification of their own, or together in one.
    assert_eq!(adyen.iter().map(Vec::len).sum::<usize>(), 12);
    assert!(adyen.iter().any(|items| items.len() == 2) && adyen.iter().any(|items| items.len() == 1));
}

#[tokio::test]
async fn early_ones_come_before_the_answer() {
    let office = Office::with(&["--webhook-mode", "early=100"]).await;
    for number in 0..5 {
        office.pay_stripe(&format!("stripe-{number}"), "success").await.expect(200);
        assert_eq!(office.mail.all().len(), 2 * number + 1);
        office.pay_adyen(&format!("adyen-{number}"), "slow").await.expect(200);
        assert_eq!(office.mail.all().len(), 2 * number + 2);
    }
    assert_eq!(office.report().await["stripe"]["early"], 5);
}

#[tokio::test]
async fn an_early_one_that_nobody_takes_does_not_keep_the_answer_for_long() {
    let office = Office::with(&["--webhook-mode", "early=100"]).await;
    office.mail.answer([500]);
    office.pay_stripe("order", "success").await.expect(200);
    office.mail.until(2).await;
}

#[tokio::test]
async fn later_ones_overtake_those_held_back() {
    let office = Office::with(&["--webhook-mode", "reorder=50"]).await;
    let orders: Vec<String> = (0..12).map(|number| format!("order-{number}")).collect();
    futures::future::join_all(orders.iter().map(|order| office.pay_stripe(order, "processing"))).await;
    let received = office.mail.until(24).await;
    let overtaken = orders.iter().filter(|order| {
        let kinds = received.iter().map(crate::receiver::Received::event);
        let of_order = kinds.filter(|(_, intent)| intent["metadata"]["payment_order_id"] == order.as_str());
        of_order.map(|(kind, _)| kind).next() == Some("payment_intent.succeeded")
    });
    let overtaken = overtaken.count();
    assert!((1..12).contains(&overtaken), "{overtaken} of 12");
    assert!(office.report().await["stripe"]["reordered"].as_u64().unwrap() >= 1);
}

#[tokio::test]
async fn contradictions_follow_acknowledged_outcomes_and_are_listed() {
    let office = Office::with(&["--webhook-mode", "contradict_late=100"]).await;
    pay_many(&office, 8, "success").await;
    office.pay_adyen("refused", "decline_fraud").await.expect(200);
    office.pay_stripe("failed", "decline_fraud").await.expect(402);
    let all_told = |report: &serde_json::Value| {
        let list = report["contradictions"].as_array().unwrap();
        list.len() == 18 && list.iter().all(|lie| lie["acknowledged"] == true)
    };
    let report = office.until_report(all_told).await;
    assert_eq!(
        (&report["stripe"]["contradicting"], &report["adyen"]["contradicting"]),
        (&9.into(), &9.into())
    );

    let received = office.mail.all();
    let mut kinds = BTreeSet::new();
    for lie in report["contradictions"].as_array().unwrap() {
        let (psp, order) = (lie["psp"].as_str().unwrap(), lie["payment_order_id"].as_str().unwrap());
        let kind = lie["kind"].as_str().unwrap();
        kinds.insert((psp, kind));
        // (success, reference) of everything that was told of this order, in the order of arrival.
        let told: Vec<(bool, String)> = match psp {
            "stripe" => (received.iter().filter(|received| received.json.get("type").is_some()))
                .map(crate::receiver::Received::event)
                .filter(|(_, intent)| intent["metadata"]["payment_order_id"] == order)
                .map(|(kind, intent)| {
                    (kind.ends_with("succeeded"), intent["id"].as_str().unwrap().to_owned())
                })
                .collect(),
            _ => (received.iter().filter(|received| received.json.get("type").is_none()))
                .flat_map(crate::receiver::Received::items)
                .filter(|item| item["merchantReference"] == order)
                .map(|item| (item["success"] == "true", item["pspReference"].as_str().unwrap().to_owned()))
                .collect(),
        };
        assert_eq!(told.len(), 2, "{lie}");
        assert_eq!(told[1].1, lie["reference"].as_str().unwrap());
        let expected = match kind {
            "failure_after_success" => (true, false, true),
            "second_success" => (true, true, false),
            "success_after_failure" => (false, true, true),
            other => panic!("{other}"),
        };
        assert_eq!((told[0].0, told[1].0, told[0].1 == told[1].1), expected, "{lie}");
        if (psp, kind) == ("stripe", "second_success") {
            let path = format!("/v1/payment_intents/{}", told[1].1);
            let double = office.simulator.get(&path).await.expect(200);
            assert_eq!(double.body["status"], "succeeded");
        }
    }
    for psp in ["stripe", "adyen"] {
        for kind in ["failure_after_success", "second_success", "success_after_failure"] {
            assert!(kinds.contains(&(psp, kind)), "{psp} {kind}: {kinds:?}");
        }
    }
    // Lies take no money.
    let summary = office.simulator.get("/simulator/ledger/summary").await.expect(200);
    assert_eq!((&summary.body["charges"], &summary.body["double_charged"]), (&16.into(), &0.into()));
}

#[tokio::test]
async fn what_was_not_acknowledged_is_not_contradicted() {
    let office = Office::with(&["--webhook-mode", "contradict_late=100", "--webhook-attempts", "2"]).await;
    office.mail.answer([500; 2]);
    office.pay_adyen("order", "success").await.expect(200);
    office.until_report(|report| report["adyen"]["given_up"] == 1).await;
    tokio::time::sleep(std::time::Duration::from_millis(1200)).await;
    assert_eq!(office.mail.all().len(), 2);
    let report = office.report().await;
    assert_eq!(report["contradictions"][0]["sent"], false);
}

#[tokio::test]
async fn the_mode_is_changed_while_it_runs() {
    let office = Office::with(&["--webhook-mode", "hostile"]).await;
    let mode = json!({ "drop": 100 });
    let report = office.post_json("/simulator/webhooks", "-", &mode).await.expect(200);
    assert_eq!(report.body["mode"]["drop"], 100);
    assert_eq!(report.body["mode"]["duplicate"], 0, "what is not named stops");
    office.pay_stripe("order", "success").await.expect(200);
    assert_eq!(office.report().await["stripe"]["dropped"], 1);
    office.post_json("/simulator/webhooks", "-", &json!({ "drop": 101 })).await.expect(400);
    office.post_json("/simulator/webhooks", "-", &json!({ "rain": 1 })).await.expect(422);
}
