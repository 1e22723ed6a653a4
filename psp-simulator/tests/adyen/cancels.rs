//! Cancels: accepted at once, carried out where something is left to cancel.

use serde_json::{Value, json};

use crate::client::Simulator;

fn cancel(reference: &str) -> Value {
    json!({ "merchantAccount": "OutboxShop", "paymentReference": reference, "reference": "cancel-1" })
}

#[tokio::test]
async fn a_waiting_payment_is_cancelled_by_its_reference() {
    let simulator = Simulator::with(&["--slow", "1h"]).await;
    simulator.pay("order", "processing").await.expect_result("Pending");
    simulator.pay("other", "processing").await.expect_result("Pending");
    let receipt = simulator.post("/v71/cancels", "cancel", &cancel("order")).await.expect(201);
    for (field, value) in [
        ("merchantAccount", "OutboxShop"),
        ("paymentReference", "order"),
        ("reference", "cancel-1"),
        ("status", "received"),
    ] {
        assert_eq!(receipt.body[field], value, "{field}");
    }
    assert_eq!(receipt.psp_reference().len(), 16);
    let replay = simulator.post("/v71/cancels", "cancel", &cancel("order")).await.expect(201);
    assert_eq!(replay.text, receipt.text);
    simulator.advance(3600).await.expect(200);
    simulator.until_charged("other").await;
    assert!(simulator.charged("order").await.is_empty(), "the issuer is too late");
}

#[tokio::test]
async fn a_payment_is_cancelled_by_adyens_reference() {
    let simulator = Simulator::start().await;
    let asked = simulator.pay("order", "action_redirect").await.expect(200);
    let path = format!("/v71/payments/{}/cancels", asked.psp_reference());
    let body = json!({ "merchantAccount": "OutboxShop", "reference": "cancel-1" });
    let receipt = simulator.post(&path, "cancel", &body).await.expect(201);
    assert_eq!(receipt.body["paymentPspReference"], asked.body["pspReference"]);
    assert_eq!(receipt.body["status"], "received");
    assert_ne!(receipt.psp_reference(), asked.psp_reference());
    assert_eq!(receipt.body.get("paymentReference"), None);
}

#[tokio::test]
async fn what_does_not_exist_is_refused_by_adyens_reference_only() {
    let simulator = Simulator::start().await;
    let body = json!({ "merchantAccount": "OutboxShop" });
    let path = "/v71/payments/AAAAAAAAAAAAAAAA/cancels";
    simulator.post(path, "of-payment", &body).await.expect_error(422, "167", None);
    simulator.post("/v71/cancels", "by-reference", &cancel("nobody")).await.expect(201);
    // Somebody else's payment is not there either.
    let paid = simulator.pay("order", "processing").await.expect(200);
    let other = json!({ "merchantAccount": "SomebodyElse" });
    let path = format!("/v71/payments/{}/cancels", paid.psp_reference());
    simulator.post(&path, "other", &other).await.expect_error(422, "167", None);
    simulator.until_charged("order").await;
}

#[tokio::test]
async fn a_charge_stays() {
    let simulator = Simulator::start().await;
    simulator.pay("order", "success").await.expect(200);
    simulator.post("/v71/cancels", "cancel", &cancel("order")).await.expect(201);
    assert_eq!(simulator.charged("order").await.len(), 1);
}

#[tokio::test]
async fn a_shopper_who_acts_late_is_charged_although_the_cancel_was_taken() {
    let simulator = Simulator::with(&["--slow", "1h"]).await;
    simulator.pay("late", "action_then_authorised").await.expect_result("RedirectShopper");
    simulator.pay("never", "action_redirect").await.expect_result("RedirectShopper");
    for order in ["late", "never"] {
        simulator.post("/v71/cancels", &format!("{order}-cancel"), &cancel(order)).await.expect(201);
    }
    simulator.advance(3600).await.expect(200);
    simulator.until_charged("late").await;
    assert!(simulator.charged("never").await.is_empty());
    // The key's first answer stays what it was.
    simulator.pay("late", "action_then_authorised").await.expect_result("RedirectShopper");
    assert_eq!(simulator.charged("late").await.len(), 1);
}
