//! Idempotency keys: one execution, one answer, for 31 days.

use futures::future::join_all;
use serde_json::json;

use crate::client::{SLOW, Simulator, payment, send};

const PAYMENTS: &str = "/v71/payments";

#[tokio::test]
async fn a_replay_is_the_same_bytes() {
    let simulator = Simulator::start().await;
    for scenario in ["success", "decline_fraud", "action_redirect"] {
        let first = simulator.pay(scenario, scenario).await.expect(200);
        // The same values in another order and with other spaces.
        let text = format!(
            r#"{{ "metadata": {{"payment_order_id":"{scenario}"}}, "recurringProcessingModel":"CardOnFile",
            "shopperInteraction":"ContAuth","shopperReference":"shopper-1","returnUrl":"https://shop.example/return",
            "reference":"{scenario}",  "amount": {{"value":1099,"currency":"EUR"}}, "merchantAccount":"OutboxShop",
            "paymentMethod":{{"storedPaymentMethodId":"adyen_sim_{scenario}","type":"scheme"}} }}"#
        );
        let request = simulator.call(PAYMENTS, scenario, &json!({})).body(text);
        let replay = send(request).await.expect(200);
        assert_eq!(replay.text, first.text);
        assert_eq!(replay.header("pspreference"), first.header("pspreference"));
    }
}

#[tokio::test]
async fn a_key_is_good_for_one_request_only() {
    let simulator = Simulator::start().await;
    simulator.pay("order", "success").await.expect(200);
    let mut other = payment("order", "adyen_sim_success");
    other["amount"]["value"] = 2000.into();
    simulator.post(PAYMENTS, "order", &other).await.expect_error(422, "704", Some("false"));
    let cancel = json!({ "merchantAccount": "OutboxShop", "paymentReference": "order" });
    simulator.post("/v71/cancels", "order", &cancel).await.expect_error(422, "704", Some("false"));
    assert_eq!(simulator.charged("order").await.len(), 1);
}

#[tokio::test]
async fn a_request_in_flight_holds_its_key() {
    let simulator = Simulator::start().await;
    let orders = ["order", "order-1", "order-2", "order-3", "order-4", "order-5", "order-6", "order-7"];
    let meanwhile = async {
        tokio::time::sleep(SLOW / 4).await;
        let mut statuses = std::collections::BTreeSet::new();
        for order in &orders {
            let busy = simulator.pay(order, "slow").await;
            statuses.insert(busy.status.as_u16());
            let busy = busy.expect_either_error(&[409, 422], "704", Some("true"));
            assert_eq!(busy.body["message"], "request already processed or in progress");
        }
        assert_eq!(statuses.len(), 2, "both are documented");
        assert!(simulator.charged("order").await.is_empty());
    };
    let slow = join_all(orders.iter().map(|order| simulator.pay(order, "slow")));
    let (mut replies, ()) = tokio::join!(slow, meanwhile);
    let first = replies.remove(0).expect_result("Authorised");
    assert_eq!(simulator.pay("order", "slow").await.expect(200).text, first.text);
    assert_eq!(simulator.charged("order").await.len(), 1);
}

#[tokio::test]
async fn a_slow_payment_goes_on_when_its_client_hangs_up() {
    let simulator = Simulator::start().await;
    let body = payment("order", "adyen_sim_slow");
    let impatient = simulator.call(PAYMENTS, "order", &body).timeout(SLOW / 4);
    assert!(impatient.send().await.unwrap_err().is_timeout());
    let charged = simulator.until_charged("order").await;
    let replay = simulator.pay("order", "slow").await.expect_result("Authorised");
    assert_eq!(replay.psp_reference(), charged);
}

#[tokio::test]
async fn after_31_days_the_same_key_charges_again() {
    let simulator = Simulator::start().await;
    let first = simulator.pay("order", "success").await.expect(200);
    simulator.advance(31 * 24 * 3600 - 60).await.expect(200);
    assert_eq!(simulator.pay("order", "success").await.expect(200).text, first.text);
    simulator.advance(60).await.expect(200);
    let second = simulator.pay("order", "success").await.expect_result("Authorised");
    assert_ne!(second.psp_reference(), first.psp_reference());
    let summary = simulator.get("/simulator/ledger/summary").await.expect(200);
    assert_eq!(summary.body["double_charged"], 1);
}

#[tokio::test]
async fn the_clock_does_not_go_back() {
    let simulator = Simulator::start().await;
    simulator.advance(-1).await.expect(400);
    assert_eq!(simulator.get("/simulator/clock").await.expect(200).body["ahead_seconds"], 0);
}

#[tokio::test]
async fn what_is_refused_is_not_kept() {
    let simulator = Simulator::start().await;
    let mut wrong = payment("order", "adyen_sim_success");
    wrong["amount"]["value"] = 0.into();
    simulator.post(PAYMENTS, "order", &wrong).await.expect_error(422, "137", None);
    simulator.pay("order", "success").await.expect_result("Authorised");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_many_at_once_one_pays() {
    let simulator = Simulator::start().await;
    for round in 0..20 {
        let order = format!("order-{round}");
        let replies = join_all((0..16).map(|_| simulator.pay(&order, "success"))).await;
        let mut texts = Vec::new();
        for reply in replies {
            if reply.status == 422 || reply.status == 409 {
                assert_eq!(reply.body["errorCode"], "704");
                continue;
            }
            texts.push(reply.expect_result("Authorised").text);
        }
        assert!(!texts.is_empty() && texts.iter().all(|text| *text == texts[0]));
        assert_eq!(simulator.charged(&order).await.len(), 1);
    }
}
