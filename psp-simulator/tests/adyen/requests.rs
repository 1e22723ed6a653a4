//! What a request must look like.

use reqwest::Method;
use serde_json::{Value, json};

use crate::client::{Simulator, payment, send};

const PAYMENTS: &str = "/v71/payments";

/// A valid request with one field replaced; null removes it.
fn with(pointer: &str, value: Value) -> Value {
    let mut body = payment("order", "adyen_sim_success");
    let (parent, name) = pointer.rsplit_once('/').unwrap();
    let parent = body.pointer_mut(parent).unwrap().as_object_mut().unwrap();
    if value.is_null() {
        parent.remove(name);
    } else {
        parent.insert(name.to_owned(), value);
    }
    body
}

#[tokio::test]
async fn fields_are_checked_as_adyen_checks_them() {
    let simulator = Simulator::start().await;
    for (pointer, value, status, code) in [
        ("/amount", Value::Null, 422, "100"),
        ("/amount/value", Value::Null, 422, "137"),
        ("/amount/value", json!(0), 422, "137"),
        ("/amount/value", json!(-1), 422, "137"),
        ("/amount/value", json!("1099"), 400, "702"),
        ("/amount/value", json!(10.5), 400, "702"),
        ("/amount/currency", json!("eur"), 422, "138"),
        ("/amount/currency", json!("XXX"), 422, "138"),
        ("/amount/colour", json!("red"), 400, "702"),
        ("/reference", Value::Null, 422, "130"),
        ("/reference", json!("r".repeat(81)), 422, "132"),
        ("/returnUrl", Value::Null, 422, "14_030"),
        ("/merchantAccount", Value::Null, 403, "901"),
        ("/paymentMethod", Value::Null, 422, "14_004"),
        ("/paymentMethod/storedPaymentMethodId", Value::Null, 422, "14_004"),
        ("/paymentMethod/storedPaymentMethodId", json!("adyen_sim_nothing"), 422, "803"),
        ("/paymentMethod/storedPaymentMethodId", json!("pm_sim_success"), 422, "803"),
        ("/paymentMethod/type", json!("ideal"), 422, "702"),
        ("/paymentMethod/number", json!("4111111111111111"), 422, "702"),
        ("/shopperReference", Value::Null, 422, "14_018"),
        ("/shopperReference", json!("s1"), 422, "14_018"),
        ("/shopperInteraction", json!("Telepathy"), 400, "702"),
        ("/recurringProcessingModel", json!("Never"), 400, "702"),
        ("/metadata", json!("text"), 400, "702"),
        ("/metadata/a", json!(1), 400, "702"),
        ("/metadata/a", json!("v".repeat(81)), 422, "178"),
        ("/colour", json!("red"), 400, "702"),
        ("/captureDelayHours", json!(24), 422, "702"),
    ] {
        let refused = simulator.post(PAYMENTS, "key", &with(pointer, value.clone())).await;
        let refused = refused.expect_error(status, code, None);
        assert!(refused.body["message"].is_string() && refused.body["errorType"].is_string());
        assert_eq!(refused.psp_reference().len(), 16, "{pointer} {value}");
    }
    let unknown = simulator.post(PAYMENTS, "key", &with("/colour", json!("red"))).await;
    assert_eq!(
        unknown.body["message"],
        "Structure of PaymentRequest contains the following unknown fields: [colour]"
    );
    // Fields that only inform change nothing.
    let informed = with("/browserInfo", json!({ "userAgent": "x" }));
    simulator.post(PAYMENTS, "key", &informed).await.expect_result("Authorised");
    assert_eq!(simulator.charged("order").await.len(), 1);
}

#[tokio::test]
async fn bodies_and_keys_are_bounded_and_of_the_right_kind() {
    let simulator = Simulator::start().await;
    let raw = |kind: &'static str, body: String| {
        simulator.request(Method::POST, PAYMENTS).header("content-type", kind).body(body)
    };
    send(raw("application/json", "{\"a\":".to_owned())).await.expect_error(400, "702", None);
    send(raw("application/json", "[]".to_owned())).await.expect_error(400, "702", None);
    send(raw("text/plain", "{}".to_owned())).await.expect_error(415, "702", None);
    send(raw("application/json", "x".repeat(70 * 1024))).await.expect_error(413, "702", None);
    let deep = format!("{}{}", "[".repeat(1000), "]".repeat(1000));
    send(raw("application/json", deep)).await.expect_error(400, "702", None);

    let body = payment("order", "adyen_sim_success");
    simulator.post(PAYMENTS, &"k".repeat(65), &body).await.expect_error(400, "702", None);
    simulator.post(PAYMENTS, &"k".repeat(64), &body).await.expect(200);
}

#[tokio::test]
async fn keys_and_merchant_accounts_can_be_fixed() {
    let open = Simulator::start().await;
    let anonymous = open.client.post(format!("{}{PAYMENTS}", open.base));
    send(anonymous.json(&payment("order", "adyen_sim_success"))).await.expect_error(401, "000", None);

    let settings = ["--adyen-api-key", "test_other", "--adyen-merchant-account", "OnlyShop"];
    let fixed = Simulator::with(&settings).await;
    let pay = |key: &'static str, body: Value| {
        let request = fixed.client.post(format!("{}{PAYMENTS}", fixed.base));
        send(request.header("X-API-Key", key).json(&body))
    };
    let only = with("/merchantAccount", json!("OnlyShop"));
    pay("test_simulator", only.clone()).await.expect_error(401, "000", None);
    pay("test_other", with("/merchantAccount", json!("OutboxShop"))).await.expect_error(403, "901", None);
    pay("test_other", only).await.expect_result("Authorised");
}

#[tokio::test]
async fn what_is_not_there_is_404_in_adyens_words() {
    let simulator = Simulator::start().await;
    simulator.get("/v71/sessions/1").await.expect_error(404, "00_404", None);
    send(simulator.request(Method::DELETE, PAYMENTS)).await.expect_error(404, "00_404", None);
}

#[tokio::test]
async fn memory_and_concurrency_are_bounded() {
    let full = Simulator::with(&["--capacity", "1"]).await;
    full.pay("one", "success").await.expect(200);
    full.pay("two", "success").await.expect_error(503, "703", Some("false"));
    assert!(full.charged("two").await.is_empty());

    let narrow = Simulator::with(&["--concurrency", "1"]).await;
    let meanwhile = async {
        tokio::time::sleep(crate::client::SLOW / 4).await;
        narrow.pay("other", "success").await.expect_error(429, "429", Some("true"));
    };
    let (paid, ()) = tokio::join!(narrow.pay("order", "slow"), meanwhile);
    paid.expect_result("Authorised");
}
