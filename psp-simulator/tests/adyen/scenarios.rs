//! What each stored payment method does to a payment, to the ledger and to its client.

use serde_json::{Value, json};

use crate::client::{Simulator, payment, send};

#[tokio::test]
async fn a_success_is_authorised_and_in_the_ledger() {
    let simulator = Simulator::start().await;
    let paid = simulator.pay("order", "success").await.expect_result("Authorised");
    let reference = paid.psp_reference();
    assert_eq!(reference.len(), 16);
    assert!(reference.bytes().all(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit()));
    assert_eq!(paid.body["merchantReference"], "order");
    assert_eq!(paid.body["amount"], json!({ "currency": "EUR", "value": 1099 }));
    assert_eq!(paid.body.get("refusalReasonCode"), None);
    assert_eq!(paid.header("idempotency-key"), Some("order"));
    assert_eq!(paid.header("pspreference"), Some(&*reference));

    let ledger = simulator.get("/simulator/ledger").await.expect(200);
    let entry = &ledger.body["charges"][0];
    for (field, value) in [
        ("psp", json!("adyen")),
        ("reference", json!(reference)),
        ("payment_intent", json!(reference)),
        ("payment_order_id", json!("order")),
        ("amount_minor", json!(1099)),
        ("currency", json!("EUR")),
    ] {
        assert_eq!(entry[field], value, "{field}");
    }
    simulator.get(&format!("/v71/payments/{reference}")).await.expect_error(404, "00_404", None);
    simulator.get("/v71/payments").await.expect_error(404, "00_404", None);
}

#[tokio::test]
async fn refusals_name_their_reason_and_take_no_money() {
    let simulator = Simulator::start().await;
    for (scenario, result_code, code, reason) in [
        ("decline_generic", "Refused", "2", "Refused"),
        ("decline_do_not_honor", "Refused", "27", "Declined Non Generic"),
        ("decline_insufficient_funds", "Refused", "12", "Not enough balance"),
        ("decline_velocity_exceeded", "Refused", "29", "Withdrawal count exceeded"),
        ("decline_try_again_later", "Refused", "3", "Referral"),
        ("decline_issuer_unavailable", "Refused", "9", "Issuer Unavailable"),
        ("decline_processing_error", "Error", "4", "Acquirer Error"),
        ("decline_lost_card", "Refused", "5", "Blocked Card"),
        ("decline_stolen_card", "Refused", "25", "Restricted Card"),
        ("decline_expired_card", "Refused", "6", "Expired Card"),
        ("decline_incorrect_cvc", "Refused", "24", "CVC Declined"),
        ("decline_fraud", "Refused", "20", "FRAUD"),
        ("decline_not_permitted", "Refused", "23", "Transaction Not Permitted"),
        ("decline_revoked", "Refused", "26", "Revocation Of Auth"),
        (
            "decline_do_not_try_again",
            "Refused",
            "46",
            "Transaction blocked by Adyen to prevent excessive retry fees",
        ),
        ("decline_unlisted", "Refused", "199", "Card In Another Castle"),
        ("authentication_required", "Refused", "38", "Authentication required"),
        ("cancelled", "Cancelled", "15", "Cancelled"),
    ] {
        let refused = simulator.pay(scenario, scenario).await.expect_result(result_code);
        assert_eq!(refused.body["refusalReasonCode"], code, "{scenario}");
        assert_eq!(refused.body["refusalReason"], reason, "{scenario}");
    }
    let summary = simulator.get("/simulator/ledger/summary").await.expect(200);
    assert_eq!(summary.body["charges"], 0);
}

#[tokio::test]
async fn the_shopper_is_asked_to_act() {
    let simulator = Simulator::start().await;
    let redirect = simulator.pay("redirect", "action_redirect").await.expect_result("RedirectShopper");
    assert_eq!(redirect.body["action"]["type"], "redirect");
    let challenge = simulator.pay("challenge", "action_challenge").await.expect_result("ChallengeShopper");
    assert_eq!(challenge.body["action"]["type"], "threeDS2");
    // With the shopper there, a decline for want of authentication is a question to him.
    let mut present = payment("present", "adyen_sim_authentication_required");
    present["shopperInteraction"] = "Ecommerce".into();
    simulator.post("/v71/payments", "present", &present).await.expect_result("ChallengeShopper");
    let summary = simulator.get("/simulator/ledger/summary").await.expect(200);
    assert_eq!(summary.body["charges"], 0);
}

#[tokio::test]
async fn outcomes_come_later_and_the_key_answers_what_it_answered() {
    let simulator = Simulator::with(&["--slow", "1h"]).await;
    let failing = ["processing_then_failure", "received_then_failure"];
    for scenario in failing {
        simulator.pay(scenario, scenario).await.expect(200);
    }
    for (scenario, result_code) in
        [("processing", "Pending"), ("received", "Received"), ("unknown_status", "UnderObservation")]
    {
        let answer = simulator.pay(scenario, scenario).await.expect_result(result_code);
        assert!(simulator.charged(scenario).await.is_empty(), "{scenario}");
        simulator.advance(3600).await.expect(200);
        assert_eq!(simulator.until_charged(scenario).await, answer.psp_reference());
        assert_eq!(simulator.pay(scenario, scenario).await.expect(200).text, answer.text);
    }
    for scenario in failing {
        assert!(simulator.charged(scenario).await.is_empty(), "{scenario}");
    }
}

#[tokio::test]
async fn amounts_can_differ_from_what_was_asked() {
    let simulator = Simulator::start().await;
    for (scenario, result_code, stated, taken) in [
        ("amount_mismatch", "Authorised", json!({ "currency": "EUR", "value": 1100 }), 1099),
        ("currency_mismatch", "Authorised", json!({ "currency": "USD", "value": 1099 }), 1099),
        ("partially_authorised", "PartiallyAuthorised", json!({ "currency": "EUR", "value": 549 }), 549),
    ] {
        let paid = simulator.pay(scenario, scenario).await.expect_result(result_code);
        assert_eq!(paid.body["amount"], stated, "{scenario}");
        let ledger = simulator.get("/simulator/ledger").await.expect(200).body;
        let entry = ledger["charges"].as_array().unwrap().last().unwrap();
        assert_eq!(
            (&entry["amount_minor"], &entry["currency"]),
            (&Value::from(taken), &Value::from("EUR")),
            "{scenario}"
        );
    }
}

#[tokio::test]
async fn a_lost_answer_hides_a_charge_that_a_replay_tells() {
    let simulator = Simulator::start().await;
    for scenario in ["timeout_after_charge", "reset_after_charge", "truncated_after_charge"] {
        let error = simulator.pay_in_vain(scenario, scenario).await;
        assert_eq!(error.is_timeout(), scenario == "timeout_after_charge", "{error:?}");
        let charged = simulator.charged(scenario).await;
        let replay = simulator.pay(scenario, scenario).await.expect_result("Authorised");
        assert_eq!(charged, [replay.psp_reference()], "{scenario}");
        assert_eq!(simulator.charged(scenario).await, charged);
    }
    let page = simulator.pay("page", "garbled_after_charge").await.expect(200);
    assert!(page.text.starts_with("<html>"), "{}", page.text);
    let replay = simulator.pay("page", "garbled_after_charge").await.expect_result("Authorised");
    assert_eq!(simulator.charged("page").await, [replay.psp_reference()]);
}

#[tokio::test]
async fn a_lost_answer_can_hide_that_the_payment_waits() {
    let simulator = Simulator::start().await;
    simulator.pay_in_vain("order", "timeout_while_processing").await;
    let replay = simulator.pay("order", "timeout_while_processing").await.expect_result("Pending");
    assert_eq!(simulator.until_charged("order").await, replay.psp_reference());
}

#[tokio::test]
async fn errors_come_once_or_for_ever_with_and_without_a_charge() {
    let simulator = Simulator::start().await;
    let kept = simulator.pay("kept", "error_after_charge").await.expect_error(500, "999", None);
    let replay = simulator.pay("kept", "error_after_charge").await.expect(500);
    assert_eq!(replay.text, kept.text);
    assert_eq!(simulator.charged("kept").await.len(), 1);

    simulator.pay("once", "error_once_after_charge").await.expect_error(500, "999", Some("true"));
    let truth = simulator.pay("once", "error_once_after_charge").await.expect_result("Authorised");
    assert_eq!(simulator.charged("once").await, [truth.psp_reference()]);

    let before = simulator.pay("before", "error_before_charge").await.expect_error(500, "999", None);
    assert_eq!(simulator.pay("before", "error_before_charge").await.expect(500).text, before.text);
    assert!(simulator.charged("before").await.is_empty());
}

#[tokio::test]
async fn the_first_requests_are_refused_and_the_next_one_passes() {
    let simulator = Simulator::with(&["--refusals", "2"]).await;
    for (scenario, status, code, transient) in [
        ("rate_limited", 429, "429", "true"),
        ("unavailable", 503, "703", "true"),
        ("unavailable_do_not_retry", 503, "703", "false"),
    ] {
        for _ in 0..2 {
            simulator.pay(scenario, scenario).await.expect_error(status, code, Some(transient));
        }
        assert!(simulator.charged(scenario).await.is_empty());
        simulator.pay(scenario, scenario).await.expect_result("Authorised");
    }
    for scenario in ["reset_before_charge", "timeout_before_charge"] {
        simulator.pay_in_vain(scenario, scenario).await;
        assert!(simulator.charged(scenario).await.is_empty(), "{scenario}");
        simulator.pay(scenario, scenario).await.expect_result("Authorised");
        assert_eq!(simulator.charged(scenario).await.len(), 1, "{scenario}");
    }
}

#[tokio::test]
async fn every_scenario_that_is_listed_exists() {
    let simulator = Simulator::with(&["--slow", "10ms", "--hang", "10ms", "--refusals", "0"]).await;
    let listed = simulator.get("/simulator/scenarios").await.expect(200).body;
    let scenarios = listed["scenarios"].as_array().unwrap();
    let here: Vec<_> = scenarios.iter().filter(|scenario| scenario["tokens"]["adyen"].is_string()).collect();
    assert!(here.len() > 40);
    for scenario in here {
        let token = scenario["tokens"]["adyen"].as_str().unwrap();
        let name = scenario["name"].as_str().unwrap();
        let call = simulator.call("/v71/payments", name, &payment(name, token));
        // Whatever it is, a token that does not exist would be 422.
        if let Ok(response) = call.send().await {
            assert_ne!(response.status().as_u16(), 422, "{token}");
        }
    }
    let unknown = simulator.call("/v71/payments", "none", &payment("none", "adyen_sim_none"));
    send(unknown).await.expect_error(422, "803", None);
}

#[tokio::test]
async fn an_order_charged_by_both_psps_is_charged_twice() {
    let simulator = Simulator::start().await;
    simulator.pay("order", "success").await.expect_result("Authorised");
    let form = [
        ("amount", "1099"),
        ("currency", "eur"),
        ("payment_method", "pm_sim_success"),
        ("payment_method_types[]", "card"),
        ("confirm", "true"),
        ("metadata[payment_order_id]", "order"),
    ];
    send(simulator.request(reqwest::Method::POST, "/v1/payment_intents").form(&form)).await.expect(200);
    let summary = simulator.get("/simulator/ledger/summary").await.expect(200);
    assert_eq!(
        summary.body,
        json!({
            "charges": 2, "payment_orders": 1, "double_charged": 1, "without_payment_order": 0,
            "amount_minor_by_currency": { "EUR": 1099, "eur": 1099 },
            "charges_by_psp": { "adyen": 1, "stripe": 1 },
        })
    );
}
