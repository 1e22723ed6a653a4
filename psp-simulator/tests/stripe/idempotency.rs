//! Idempotency keys: one execution, one answer.

use futures::future::join_all;

use crate::simulator::{SLOW, Simulator, TERMS, cancel_path, confirm_path, send};

const INTENTS: &str = "/v1/payment_intents";

#[tokio::test]
async fn a_replay_is_the_same_bytes_also_after_the_state_has_moved_on() {
    let simulator = Simulator::start().await;
    let form =
        [&TERMS[..], &[("payment_method", "pm_card_visa"), ("metadata[payment_order_id]", "o")]].concat();
    let created = simulator.post_with_key(INTENTS, "create", &form).await.expect(200);
    assert_eq!(created.header("idempotent-replayed"), None);
    assert_eq!(created.header("idempotency-key"), Some("create"));
    assert_eq!(created.header("original-request"), created.header("request-id"));
    simulator.confirm(&created.id(), "confirm").await.expect(200);

    let reversed: Vec<_> = form.iter().rev().copied().collect();
    for form in [&form, &reversed] {
        let replay = simulator.post_with_key(INTENTS, "create", form).await.expect(200);
        assert_eq!(replay.text, created.text);
        assert_eq!(replay.header("idempotent-replayed"), Some("true"));
        assert_eq!(replay.header("original-request"), created.header("request-id"));
        assert_ne!(replay.header("request-id"), created.header("request-id"));
    }
    let another = simulator.post_with_key(INTENTS, "another", &form).await.expect(200);
    assert_ne!(another.id(), created.id());
}

#[tokio::test]
async fn a_decline_is_replayed() {
    let simulator = Simulator::start().await;
    let intent = simulator.create("pm_card_chargeDeclined", "order").await;
    let declined = simulator.confirm(&intent, "confirm").await.expect(402);
    // Neither success by another method nor anything else changes what the key answers.
    simulator.post(&confirm_path(&intent), &[("payment_method", "pm_card_visa")]).await.expect(200);
    let replay = simulator.confirm(&intent, "confirm").await.expect(402);
    assert_eq!(replay.text, declined.text);
    assert_eq!(replay.header("idempotent-replayed"), Some("true"));
}

#[tokio::test]
async fn refusals_of_an_executed_request_are_replayed() {
    let simulator = Simulator::start().await;
    let intent = simulator.create("pm_card_visa", "order").await;
    let unknown = [("payment_method", "pm_nobody")];
    let refused = simulator.post_with_key(&confirm_path(&intent), "confirm", &unknown).await;
    let refused = refused.expect_error(400, "invalid_request_error", Some("resource_missing"));
    assert_eq!(refused.body["error"]["message"], "No such PaymentMethod: 'pm_nobody'");
    let replay = simulator.post_with_key(&confirm_path(&intent), "confirm", &unknown).await.expect(400);
    assert_eq!(replay.header("idempotent-replayed"), Some("true"));
    assert_eq!(replay.text, refused.text);
}

#[tokio::test]
async fn a_key_is_good_for_one_request_only() {
    let simulator = Simulator::start().await;
    simulator.post_with_key(INTENTS, "key", &TERMS).await.expect(200);
    let other = [&TERMS[1..], &[("amount", "2000")]].concat();
    let mismatch = simulator.post_with_key(INTENTS, "key", &other).await;
    let mismatch = mismatch.expect_error(400, "idempotency_error", None);
    assert!(mismatch.text.contains("same parameters they were first used with"), "{}", mismatch.text);
    assert_eq!(mismatch.header("idempotent-replayed"), None);

    let intent = simulator.create("pm_card_visa", "order").await;
    let endpoint = simulator.post_with_key(&confirm_path(&intent), "key", &TERMS).await;
    let endpoint = endpoint.expect_error(400, "idempotency_error", None);
    assert!(endpoint.text.contains("same endpoint"), "{}", endpoint.text);
    assert!(simulator.charged("order").await.is_empty());

    // The same parameters on another PaymentIntent are another request, too.
    simulator.confirm(&intent, "confirm").await.expect(200);
    let second = simulator.create("pm_card_visa", "second").await;
    simulator.confirm(&second, "confirm").await.expect_error(400, "idempotency_error", None);
    assert_eq!(simulator.status(&second).await, "requires_confirmation");
}

#[tokio::test]
async fn after_24_hours_the_same_key_charges_again() {
    let simulator = Simulator::start().await;
    let more =
        [("payment_method", "pm_card_visa"), ("confirm", "true"), ("metadata[payment_order_id]", "order")];
    let form = [&TERMS[..], &more].concat();
    let first = simulator.post_with_key(INTENTS, "key", &form).await.expect(200);
    simulator.advance(24 * 3600 - 60).await.expect(200);
    let replay = simulator.post_with_key(INTENTS, "key", &form).await.expect(200);
    assert_eq!(replay.text, first.text);
    assert_eq!(simulator.charged("order").await.len(), 1);
    simulator.advance(60).await.expect(200);
    let second = simulator.post_with_key(INTENTS, "key", &form).await.expect(200);
    assert_eq!(second.header("idempotent-replayed"), None);
    assert_ne!(second.id(), first.id());
    let summary = simulator.get("/simulator/ledger/summary").await.expect(200);
    assert_eq!(summary.body["double_charged"], 1);
}

#[tokio::test]
async fn what_fails_validation_is_not_kept() {
    let simulator = Simulator::start().await;
    for wrong in [&[("amount", "1099")][..], &[("amount", "0"), ("currency", "eur")]] {
        simulator.post_with_key(INTENTS, "key", wrong).await.expect(400);
    }
    simulator.post_with_key(INTENTS, "key", &TERMS).await.expect(200);
}

#[tokio::test]
async fn a_request_in_flight_holds_its_key() {
    let simulator = Simulator::start().await;
    let intent = simulator.create("pm_sim_slow", "order").await;
    let second = async {
        tokio::time::sleep(SLOW / 4).await;
        let busy = simulator.confirm(&intent, "confirm").await;
        let busy = busy.expect_error(409, "invalid_request_error", Some("idempotency_key_in_use"));
        assert_eq!(busy.header("stripe-should-retry"), Some("true"));
    };
    let (first, ()) = tokio::join!(simulator.confirm(&intent, "confirm"), second);
    let first = first.expect(200);
    let replay = simulator.confirm(&intent, "confirm").await.expect(200);
    assert_eq!(replay.text, first.text);
    assert_eq!(replay.header("idempotent-replayed"), Some("true"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_many_at_once_one_creates() {
    let simulator = Simulator::start().await;
    for round in 0..20 {
        let key = format!("key-{round}");
        let form = [&TERMS[..], &[("payment_method", "pm_card_visa"), ("confirm", "true")]].concat();
        let replies = join_all((0..16).map(|_| simulator.post_with_key(INTENTS, &key, &form))).await;
        let mut executed = 0;
        let mut texts = Vec::new();
        for reply in replies {
            if reply.status == 409 {
                assert_eq!(reply.body["error"]["code"], "idempotency_key_in_use");
                continue;
            }
            let reply = reply.expect(200);
            executed += usize::from(reply.header("idempotent-replayed").is_none());
            texts.push(reply.text);
        }
        assert_eq!(executed, 1);
        assert!(texts.iter().all(|text| *text == texts[0]));
    }
    let summary = simulator.get("/simulator/ledger/summary").await.expect(200);
    assert_eq!(summary.body["charges"], 20);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_many_confirmations_with_different_keys_one_charges() {
    let simulator = Simulator::start().await;
    for round in 0..20 {
        let order = format!("order-{round}");
        let intent = simulator.create("pm_card_visa", &order).await;
        let keys: Vec<_> = (0..16).map(|n| format!("{order}-{n}")).collect();
        let replies = join_all(keys.iter().map(|key| simulator.confirm(&intent, key))).await;
        let (paid, refused): (Vec<_>, Vec<_>) = replies.into_iter().partition(|reply| reply.status == 200);
        assert_eq!(paid.len(), 1);
        for reply in refused {
            let code = Some("payment_intent_unexpected_state");
            reply.expect_error(400, "invalid_request_error", code);
        }
        assert_eq!(simulator.charged(&order).await.len(), 1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_race_of_confirm_and_cancel_has_one_winner() {
    let simulator = Simulator::start().await;
    for round in 0..30 {
        let order = format!("order-{round}");
        let intent = simulator.create("pm_card_visa", &order).await;
        let cancel = simulator.form(&cancel_path(&intent), &[]);
        let (confirmed, cancelled) = tokio::join!(simulator.confirm(&intent, &order), send(cancel));
        assert_ne!(confirmed.status == 200, cancelled.status == 200, "{} {}", confirmed.text, cancelled.text);
        let charges = simulator.charged(&order).await.len();
        assert_eq!(charges, usize::from(confirmed.status == 200));
        let expected = if confirmed.status == 200 { "succeeded" } else { "canceled" };
        assert_eq!(simulator.status(&intent).await, expected);
    }
}
