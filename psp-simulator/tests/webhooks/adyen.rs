//! Adyen's notifications.

use serde_json::{Value, json};

use crate::receiver::{Office, Received};

fn only(received: &[Received], index: usize) -> Value {
    let items = received[index].items();
    assert_eq!(items.len(), 1);
    items[0].clone()
}

#[tokio::test]
async fn an_authorisation_is_told() {
    let office = Office::calm().await;
    let paid = office.pay_adyen("order", "success").await.expect(200);
    let received = office.mail.until(1).await;
    assert_eq!(received[0].json["live"], "false");
    let item = only(&received, 0);
    for (field, value) in [
        ("amount", json!({ "currency": "EUR", "value": 1099 })),
        ("eventCode", json!("AUTHORISATION")),
        ("merchantAccountCode", json!("OutboxShop")),
        ("merchantReference", json!("order")),
        ("pspReference", paid.body["pspReference"].clone()),
        ("success", json!("true")),
    ] {
        assert_eq!(item[field], value, "{field}");
    }
    assert_eq!(item.get("originalReference"), None);
    assert!(item["eventDate"].as_str().unwrap().ends_with("+00:00"));
}

#[tokio::test]
async fn every_outcome_has_its_notification() {
    let office = Office::calm().await;
    for (scenario, success, reason) in [
        ("decline_insufficient_funds", "false", Some("Not enough balance")),
        ("processing", "true", None),
        ("received_then_failure", "false", Some("Refused")),
        ("slow", "true", None),
        ("error_after_charge", "true", None),
        ("cancelled", "false", Some("Cancelled")),
    ] {
        let before = office.mail.all().len();
        office.pay_adyen(scenario, scenario).await;
        let item = only(&office.mail.until(before + 1).await, before);
        assert_eq!((&item["success"], &item["merchantReference"]), (&success.into(), &scenario.into()));
        if let Some(reason) = reason {
            assert_eq!(item["reason"], reason, "{scenario}");
        }
    }
    let before = office.mail.all().len();
    office.pay_adyen("partly", "partially_authorised").await.expect(200);
    assert_eq!(only(&office.mail.until(before + 1).await, before)["amount"]["value"], 549);
    office.pay_adyen("more", "amount_mismatch").await.expect(200);
    assert_eq!(only(&office.mail.until(before + 2).await, before + 1)["amount"]["value"], 1100);
}

#[tokio::test]
async fn cancels_tell_what_came_of_them() {
    let office = Office::calm().await;
    let asked = office.pay_adyen("asked", "action_redirect").await.expect(200);
    let paid = office.pay_adyen("paid", "success").await.expect(200);
    let waiting = office.pay_adyen("waiting", "processing").await.expect(200);
    office.mail.until(1).await;
    let cancel = |order: &str| json!({ "merchantAccount": "OutboxShop", "paymentReference": order });
    let of_payment = format!("/v71/payments/{}/cancels", paid.body["pspReference"].as_str().unwrap());
    let own = json!({ "merchantAccount": "OutboxShop" });
    let asked_reference = &asked.body["pspReference"];
    let paid_reference = &paid.body["pspReference"];
    let waiting_reference = &waiting.body["pspReference"];
    for (path, body, code, success, original, order) in [
        ("/v71/cancels", cancel("asked"), "TECHNICAL_CANCEL", "false", asked_reference, "asked"),
        ("/v71/cancels", cancel("waiting"), "TECHNICAL_CANCEL", "true", waiting_reference, "waiting"),
        ("/v71/cancels", cancel("paid"), "TECHNICAL_CANCEL", "false", paid_reference, "paid"),
        ("/v71/cancels", cancel("nobody"), "TECHNICAL_CANCEL", "false", &Value::Null, "nobody"),
        (of_payment.as_str(), own.clone(), "CANCELLATION", "false", paid_reference, "paid"),
    ] {
        let before = office.mail.all().len();
        let receipt = office.post_json(path, &format!("cancel-{code}-{order}"), &body).await.expect(201);
        let item = only(&office.mail.until(before + 1).await, before);
        assert_eq!(item["eventCode"], code);
        assert_eq!(item["success"], success, "{code} of {order}");
        assert_eq!(item["pspReference"], receipt.body["pspReference"]);
        assert_eq!(item.get("originalReference").unwrap_or(&Value::Null), original);
        assert_eq!(item["merchantReference"], order);
        assert!(item["amount"]["value"].is_i64() && item["amount"]["currency"] == "EUR", "both are required");
    }
}
