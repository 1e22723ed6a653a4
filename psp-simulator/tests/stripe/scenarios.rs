//! What each payment method does to a payment, to its ledger and to its client.

use std::time::Instant;

use crate::simulator::{PATIENCE, SLOW, Simulator, TERMS, cancel_path, confirm_path};

#[tokio::test]
async fn a_success_succeeds_once() {
    let simulator = Simulator::start().await;
    let intent = simulator.create("pm_card_visa", "order").await;
    assert!(simulator.charged("order").await.is_empty(), "creating takes no money");

    let paid = simulator.confirm(&intent, "first").await.expect(200);
    assert_eq!(paid.body["status"], "succeeded");
    assert_eq!(paid.body["amount_received"], 1099);
    assert_eq!(paid.body["last_payment_error"], serde_json::Value::Null);
    assert!(paid.body["latest_charge"].as_str().unwrap().starts_with("ch_"));
    assert_eq!(simulator.charged("order").await, [intent.as_str()]);

    let again = simulator.confirm(&intent, "second").await;
    let again = again.expect_error(400, "invalid_request_error", Some("payment_intent_unexpected_state"));
    assert_eq!(again.body["error"]["payment_intent"]["status"], "succeeded");
    assert_eq!(again.body["error"]["payment_intent"]["id"], intent);
    assert_eq!(again.header("stripe-should-retry"), Some("false"));

    let cancel = simulator.post(&cancel_path(&intent), &[]).await;
    cancel.expect_error(400, "invalid_request_error", Some("payment_intent_unexpected_state"));
    assert_eq!(simulator.status(&intent).await, "succeeded");
    assert_eq!(simulator.charged("order").await.len(), 1);
}

#[tokio::test]
async fn declines_name_their_reason_and_take_no_money() {
    let simulator = Simulator::start().await;
    let table = [
        ("pm_card_chargeDeclined", "card_declined", Some("generic_decline")),
        ("pm_card_chargeDeclinedInsufficientFunds", "card_declined", Some("insufficient_funds")),
        ("pm_card_chargeDeclinedLostCard", "card_declined", Some("lost_card")),
        ("pm_card_chargeDeclinedStolenCard", "card_declined", Some("stolen_card")),
        ("pm_card_chargeDeclinedExpiredCard", "expired_card", None),
        ("pm_card_chargeDeclinedIncorrectCvc", "incorrect_cvc", None),
        ("pm_card_chargeDeclinedProcessingError", "processing_error", None),
        ("pm_card_authenticationRequired", "authentication_required", Some("authentication_required")),
        ("pm_sim_decline_do_not_honor", "card_declined", Some("do_not_honor")),
        ("pm_sim_decline_fraud", "card_declined", Some("fraudulent")),
        ("pm_sim_decline_revoked", "card_declined", Some("revocation_of_authorization")),
        ("pm_sim_decline_velocity_exceeded", "card_declined", Some("card_velocity_exceeded")),
        ("pm_sim_decline_unlisted", "card_declined", Some("card_in_another_castle")),
        ("pm_sim_authentication_required", "authentication_required", Some("authentication_required")),
    ];
    for (token, code, decline_code) in table {
        let intent = simulator.create(token, token).await;
        let declined = simulator.confirm(&intent, token).await.expect_error(402, "card_error", Some(code));
        let error = &declined.body["error"];
        assert_eq!(error["decline_code"].as_str(), decline_code, "{token}");
        assert!(error["charge"].as_str().unwrap().starts_with("ch_"));
        assert_eq!(
            error["doc_url"],
            format!("https://stripe.com/docs/error-codes/{}", code.replace('_', "-"))
        );
        assert_eq!(error["payment_method"]["object"], "payment_method");
        assert_eq!(error["payment_intent"]["status"], "requires_payment_method");

        let path = format!("/v1/payment_intents/{intent}");
        let left = simulator.get(&path).await.expect(200).body;
        assert_eq!(left, error["payment_intent"], "the error shows the PaymentIntent as it was left");
        assert_eq!(left["last_payment_error"]["code"], code);
        assert_eq!(left["payment_method"], serde_json::Value::Null);
        assert_eq!(left["latest_charge"], error["charge"]);
    }
    let summary = simulator.get("/simulator/ledger/summary").await.expect(200);
    assert_eq!(summary.body["charges"], 0);
}

#[tokio::test]
async fn a_declined_payment_intent_can_be_paid_by_another_method_or_cancelled() {
    let simulator = Simulator::start().await;
    let intent = simulator.create("pm_card_chargeDeclined", "order").await;
    simulator.confirm(&intent, "first").await.expect(402);
    let bare = simulator.post(&confirm_path(&intent), &[]).await;
    let bare = bare.expect_error(400, "invalid_request_error", Some("payment_intent_unexpected_state"));
    assert!(bare.text.contains("missing a payment method"), "{}", bare.text);
    let paid =
        simulator.post(&confirm_path(&intent), &[("payment_method", "pm_card_visa")]).await.expect(200);
    assert_eq!(paid.body["status"], "succeeded");
    assert_eq!(paid.body["last_payment_error"], serde_json::Value::Null);

    let other = simulator.create("pm_card_chargeDeclined", "other").await;
    simulator.confirm(&other, "other").await.expect(402);
    let cancelled =
        simulator.post(&cancel_path(&other), &[("cancellation_reason", "abandoned")]).await.expect(200);
    assert_eq!(cancelled.body["status"], "canceled");
    assert_eq!(cancelled.body["cancellation_reason"], "abandoned");
    assert!(cancelled.body["canceled_at"].is_i64());
    let late = simulator.post(&confirm_path(&other), &[("payment_method", "pm_card_visa")]).await;
    let late = late.expect_error(400, "invalid_request_error", Some("payment_intent_unexpected_state"));
    assert_eq!(late.body["error"]["payment_intent"]["status"], "canceled");
    assert!(simulator.charged("other").await.is_empty());
}

#[tokio::test]
async fn authentication_is_an_action_or_an_error_as_the_caller_asks() {
    let simulator = Simulator::start().await;
    let token = "pm_card_authenticationRequired";

    let intent = simulator.create(token, "error").await;
    let error = simulator.post(&confirm_path(&intent), &[("error_on_requires_action", "true")]).await;
    let error = error.expect_error(402, "card_error", Some("authentication_required"));
    assert_eq!(error.body["error"]["decline_code"], "authentication_not_handled");
    assert_eq!(simulator.status(&intent).await, "requires_payment_method");

    let intent = simulator.create(token, "action").await;
    let action = simulator.post(&confirm_path(&intent), &[]).await.expect(200);
    assert_eq!(action.body["status"], "requires_action");
    assert_eq!(action.body["next_action"]["type"], "use_stripe_sdk");
    simulator.post(&cancel_path(&intent), &[]).await.expect(200);
    assert_eq!(simulator.status(&intent).await, "canceled");
}

#[tokio::test]
async fn a_slow_confirmation_locks_its_payment_intent_and_succeeds() {
    let simulator = Simulator::start().await;
    let intent = simulator.create("pm_sim_slow", "order").await;
    let started = Instant::now();
    let confirm = simulator.confirm(&intent, "confirm");
    let meanwhile = async {
        tokio::time::sleep(SLOW / 4).await;
        let cancel = simulator.post(&cancel_path(&intent), &[]).await;
        let cancel = cancel.expect_error(429, "invalid_request_error", Some("lock_timeout"));
        assert_eq!(cancel.header("stripe-should-retry"), Some("true"));
        let confirm = simulator.confirm(&intent, "other").await;
        confirm.expect_error(429, "invalid_request_error", Some("lock_timeout"));
        assert_eq!(simulator.status(&intent).await, "requires_confirmation");
        assert!(simulator.charged("order").await.is_empty());
    };
    let (paid, ()) = tokio::join!(confirm, meanwhile);
    assert!(started.elapsed() >= SLOW);
    assert_eq!(paid.expect(200).body["status"], "succeeded");
    assert_eq!(simulator.charged("order").await.len(), 1);
    // The key that met the lock was not used up by it.
    simulator.confirm(&intent, "other").await.expect(400);
}

#[tokio::test]
async fn a_slow_confirmation_goes_on_when_its_client_hangs_up() {
    let simulator = Simulator::start().await;
    let intent = simulator.create("pm_sim_slow", "order").await;
    let form = [("off_session", "true"), ("error_on_requires_action", "true")];
    let request = simulator.form(&confirm_path(&intent), &form).header("Idempotency-Key", "confirm");
    request.timeout(SLOW / 4).send().await.unwrap_err();
    simulator.until(&intent, "succeeded").await;
    let replay = simulator.confirm(&intent, "confirm").await.expect(200);
    assert_eq!(replay.header("idempotent-replayed"), Some("true"));
    assert_eq!(simulator.charged("order").await.len(), 1);
}

#[tokio::test]
async fn a_lost_answer_hides_a_charge_that_was_made() {
    let simulator = Simulator::start().await;
    let intent = simulator.create("pm_sim_timeout_after_charge", "order").await;
    simulator.confirm_in_vain(&intent, "confirm").await;
    assert_eq!(simulator.charged("order").await.len(), 1);
    assert_eq!(simulator.status(&intent).await, "succeeded");
    let replay = simulator.confirm(&intent, "confirm").await.expect(200);
    assert_eq!(replay.header("idempotent-replayed"), Some("true"));
    assert_eq!(replay.body["status"], "succeeded");
    let other = simulator.confirm(&intent, "other").await;
    other.expect_error(400, "invalid_request_error", Some("payment_intent_unexpected_state"));
    assert_eq!(simulator.charged("order").await.len(), 1);
}

#[tokio::test]
async fn an_error_after_the_charge_is_kept_while_the_money_is_gone() {
    let simulator = Simulator::start().await;
    let intent = simulator.create("pm_sim_error_after_charge", "order").await;
    let error = simulator.confirm(&intent, "confirm").await.expect_error(500, "api_error", None);
    assert_eq!(error.header("stripe-should-retry"), None);
    assert_eq!(simulator.status(&intent).await, "succeeded");
    let replay = simulator.confirm(&intent, "confirm").await.expect(500);
    assert_eq!(replay.header("idempotent-replayed"), Some("true"));
    assert_eq!(replay.text, error.text);
    assert_eq!(simulator.charged("order").await.len(), 1);
}

#[tokio::test]
async fn a_lost_request_leaves_nothing_and_passes_when_repeated() {
    let simulator = Simulator::start().await;
    let intent = simulator.create("pm_sim_timeout_before_charge", "order").await;
    simulator.confirm_in_vain(&intent, "confirm").await;
    assert!(simulator.charged("order").await.is_empty());
    assert_eq!(simulator.status(&intent).await, "requires_confirmation");
    let paid = simulator.confirm(&intent, "confirm").await.expect(200);
    assert_eq!(paid.header("idempotent-replayed"), None);
    assert_eq!(paid.body["status"], "succeeded");
    assert_eq!(simulator.charged("order").await.len(), 1);
}

#[tokio::test]
async fn a_lost_request_to_create_and_confirm_creates_nothing() {
    let simulator = Simulator::start().await;
    let token = [("payment_method", "pm_sim_timeout_before_charge"), ("confirm", "true")];
    let form = [&TERMS[..], &token].concat();
    let request = simulator.form("/v1/payment_intents", &form).header("Idempotency-Key", "create");
    assert!(request.timeout(PATIENCE).send().await.unwrap_err().is_timeout());
    let list = simulator.get("/v1/payment_intents").await.expect(200);
    assert_eq!(list.body["data"], serde_json::json!([]));
    let paid = simulator.post_with_key("/v1/payment_intents", "create", &form).await.expect(200);
    assert_eq!(paid.body["status"], "succeeded");
}

#[tokio::test]
async fn a_processing_payment_succeeds_later() {
    let simulator = Simulator::start().await;
    let intent = simulator.create("pm_sim_processing", "order").await;
    let accepted = simulator.confirm(&intent, "confirm").await.expect(200);
    assert_eq!(accepted.body["status"], "processing");
    assert!(simulator.charged("order").await.is_empty());
    let again = simulator.confirm(&intent, "again").await;
    again.expect_error(400, "invalid_request_error", Some("payment_intent_unexpected_state"));

    let cancelled = simulator.create("pm_sim_processing", "cancelled").await;
    simulator.confirm(&cancelled, "cancelled").await.expect(200);
    simulator.post(&cancel_path(&cancelled), &[]).await.expect(200);

    simulator.until(&intent, "succeeded").await;
    tokio::time::sleep(SLOW).await;
    assert_eq!(simulator.charged("order").await.len(), 1);
    assert_eq!(simulator.status(&cancelled).await, "canceled");
    assert!(simulator.charged("cancelled").await.is_empty());
}

#[tokio::test]
async fn a_withheld_answer_ends_with_the_connection_cut() {
    let simulator = Simulator::with(&["--hang", "200ms"]).await;
    let intent = simulator.create("pm_sim_timeout_after_charge", "order").await;
    let error = simulator.form(&confirm_path(&intent), &[]).send().await.unwrap_err();
    assert!(!error.is_timeout() && error.is_request(), "{error:?}");
    assert_eq!(simulator.charged("order").await.len(), 1);
}

#[tokio::test]
async fn an_action_is_asked_for_whatever_the_request_said() {
    let simulator = Simulator::start().await;
    for (token, kind) in
        [("pm_sim_action_redirect", "redirect_to_url"), ("pm_sim_action_challenge", "use_stripe_sdk")]
    {
        let intent = simulator.create(token, token).await;
        let action = simulator.confirm(&intent, token).await.expect(200);
        assert_eq!(action.body["status"], "requires_action");
        assert_eq!(action.body["next_action"]["type"], kind);
        simulator.post(&cancel_path(&intent), &[]).await.expect(200);
        assert!(simulator.charged(token).await.is_empty());
    }
}

#[tokio::test]
async fn a_processing_payment_can_fail_later() {
    let simulator = Simulator::start().await;
    let intent = simulator.create("pm_sim_processing_then_failure", "order").await;
    assert_eq!(simulator.confirm(&intent, "confirm").await.expect(200).body["status"], "processing");
    simulator.until(&intent, "requires_payment_method").await;
    let left = simulator.get(&format!("/v1/payment_intents/{intent}")).await.expect(200);
    assert_eq!(left.body["last_payment_error"]["decline_code"], "insufficient_funds");
    assert!(simulator.charged("order").await.is_empty());
    // The key still answers what it answered.
    let replay = simulator.confirm(&intent, "confirm").await.expect(200);
    assert_eq!(replay.body["status"], "processing");
}

#[tokio::test]
async fn a_status_that_nobody_documents_becomes_a_success() {
    let simulator = Simulator::start().await;
    let intent = simulator.create("pm_sim_unknown_status", "order").await;
    let strange = simulator.confirm(&intent, "confirm").await.expect(200);
    assert_eq!(strange.body["status"], "under_observation");
    assert_eq!(strange.body["amount_received"], 0);
    simulator.until(&intent, "succeeded").await;
    assert_eq!(simulator.charged("order").await.len(), 1);
}

#[tokio::test]
async fn answers_can_state_what_was_not_asked_for() {
    let simulator = Simulator::start().await;
    let mismatches = [
        ("pm_sim_amount_mismatch", 1100, "eur", 1099),
        ("pm_sim_currency_mismatch", 1099, "usd", 1099),
        ("pm_sim_partially_authorised", 549, "eur", 549),
    ];
    for (token, received, currency, taken) in mismatches {
        let intent = simulator.create(token, token).await;
        let paid = simulator.confirm(&intent, token).await.expect(200);
        assert_eq!(paid.body["status"], "succeeded");
        assert_eq!(paid.body["amount"], 1099, "what was asked for");
        assert_eq!(paid.body["amount_received"], received, "{token}");
        assert_eq!(paid.body["currency"], currency, "{token}");
        let read = simulator.get(&format!("/v1/payment_intents/{intent}?expand[]=latest_charge")).await;
        let charge = &read.expect(200).body["latest_charge"];
        assert_eq!((&charge["amount_captured"], &charge["currency"]), (&received.into(), &currency.into()));
        let ledger = simulator.get("/simulator/ledger").await.expect(200);
        let entry = ledger.body["charges"].as_array().unwrap().last().unwrap().clone();
        assert_eq!((&entry["amount_minor"], &entry["currency"]), (&taken.into(), &"eur".into()), "{token}");
    }
}

#[tokio::test]
async fn stripe_can_call_a_payment_off_by_itself() {
    let simulator = Simulator::start().await;
    let intent = simulator.create("pm_sim_cancelled", "order").await;
    let cancelled = simulator.confirm(&intent, "confirm").await.expect(200);
    assert_eq!(cancelled.body["status"], "canceled");
    assert_eq!(cancelled.body["cancellation_reason"], "automatic");
    assert!(simulator.charged("order").await.is_empty());
}

#[tokio::test]
async fn the_clock_ends_waits() {
    let simulator = Simulator::with(&["--slow", "1h"]).await;
    let intent = simulator.create("pm_sim_processing", "order").await;
    simulator.confirm(&intent, "confirm").await.expect(200);
    let slow = simulator.create("pm_sim_slow", "slow").await;
    let advance = async {
        tokio::time::sleep(SLOW / 10).await;
        simulator.advance(3600).await.expect(200);
    };
    let (paid, ()) = tokio::join!(simulator.confirm(&slow, "slow"), advance);
    assert_eq!(paid.expect(200).body["status"], "succeeded");
    simulator.until(&intent, "succeeded").await;
    let charged = simulator.get("/simulator/ledger").await.expect(200);
    let clock = simulator.get("/simulator/clock").await.expect(200);
    assert_eq!(clock.body["ahead_seconds"], 3600);
    let charged_at = charged.body["charges"][0]["charged_at"].as_str().unwrap();
    assert_eq!(charged_at[..13], clock.body["now"].as_str().unwrap()[..13], "charges are dated by it");
}

/// Creations that fail, each with what its replay is answered, and whether it is made at once.
#[tokio::test]
async fn a_creation_can_fail_before_and_after_it_is_made() {
    let simulator = Simulator::start().await;
    for (token, replayed, made_at_once) in [
        ("pm_sim_create_timeout_before", 200, false),
        ("pm_sim_create_timeout_after", 200, true),
        ("pm_sim_create_reset_before", 200, false),
        ("pm_sim_create_reset_after", 200, true),
        ("pm_sim_create_error_before", 500, false),
        ("pm_sim_create_error_after", 500, true),
        ("pm_sim_create_error_once_after", 200, true),
    ] {
        let order = [("metadata[payment_order_id]", token), ("payment_method", token)];
        let form = [&TERMS[..], &order].concat();
        let create = || simulator.form("/v1/payment_intents", &form).header("Idempotency-Key", token);
        let made = async || {
            let list = simulator.get("/v1/payment_intents?limit=100").await.expect(200);
            let ours = list.body["data"].as_array().unwrap().clone();
            ours.into_iter().filter(|intent| intent["metadata"]["payment_order_id"] == token).count()
        };
        let first = create().timeout(PATIENCE).send().await;
        match (token.contains("_error"), &first) {
            (true, Ok(answer)) => assert_eq!(answer.status(), 500, "{token}"),
            (false, Err(error)) => assert_eq!(error.is_timeout(), token.contains("_timeout"), "{error:?}"),
            _ => panic!("{token}: {first:?}"),
        }
        assert_eq!(made().await, usize::from(made_at_once), "{token}");
        let replay = crate::simulator::send(create()).await.expect(replayed);
        assert!(simulator.charged(token).await.is_empty(), "creating takes no money");
        if replayed == 200 {
            assert_eq!(made().await, 1, "{token}");
            let paid = simulator.confirm(&replay.id(), &format!("{token}-confirm")).await.expect(200);
            assert_eq!(paid.body["status"], "succeeded", "only the creation fails");
            assert_eq!(simulator.charged(token).await.len(), 1);
        }
    }
}

/// In one request it is creation and confirmation alike that is lost.
#[tokio::test]
async fn a_creation_that_confirms_fails_as_a_whole() {
    let simulator = Simulator::start().await;
    let token = "pm_sim_create_error_after";
    let order = [("metadata[payment_order_id]", token), ("payment_method", token), ("confirm", "true")];
    let form = [&TERMS[..], &order].concat();
    simulator.post("/v1/payment_intents", &form).await.expect_error(500, "api_error", None);
    assert_eq!(simulator.charged(token).await.len(), 1);
}
