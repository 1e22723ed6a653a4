//! What happens to requests and answers on their way: each hides an outcome that a replay tells.

use reqwest::StatusCode;

use crate::simulator::{Reply, Simulator, confirm_path};

const FORM: [(&str, &str); 2] = [("off_session", "true"), ("error_on_requires_action", "true")];

/// What a client got that hears no answer.
async fn in_vain(simulator: &Simulator, intent: &str) -> reqwest::Error {
    let request = simulator.form(&confirm_path(intent), &FORM).header("Idempotency-Key", intent);
    match request.send().await {
        Err(error) => error,
        Ok(response) => response.bytes().await.unwrap_err(),
    }
}

async fn replayed_success(simulator: &Simulator, intent: &str) {
    let replay = simulator.confirm(intent, intent).await.expect(200);
    assert_eq!(replay.header("idempotent-replayed"), Some("true"));
    assert_eq!(replay.body["status"], "succeeded");
}

#[tokio::test]
async fn connections_break_after_the_charge() {
    let simulator = Simulator::start().await;
    for token in ["pm_sim_reset_after_charge", "pm_sim_truncated_after_charge"] {
        let intent = simulator.create(token, token).await;
        let error = in_vain(&simulator, &intent).await;
        assert!(!error.is_timeout() && !error.is_connect(), "{token}: {error:?}");
        assert_eq!(simulator.charged(token).await, [intent.as_str()]);
        replayed_success(&simulator, &intent).await;
        assert_eq!(simulator.charged(token).await.len(), 1, "{token}");
    }
}

#[tokio::test]
async fn a_reset_is_a_reset() {
    let simulator = Simulator::start().await;
    let intent = simulator.create("pm_sim_reset_after_charge", "order").await;
    let error = in_vain(&simulator, &intent).await;
    let mut cause: &dyn std::error::Error = &error;
    let kind = loop {
        if let Some(error) = cause.downcast_ref::<std::io::Error>() {
            break error.kind();
        }
        cause = cause.source().unwrap_or_else(|| panic!("no I/O error: {error:?}"));
    };
    assert_eq!(kind, std::io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn a_page_of_a_proxy_hides_the_charge() {
    let simulator = Simulator::start().await;
    let intent = simulator.create("pm_sim_garbled_after_charge", "order").await;
    let page = simulator.confirm(&intent, &intent).await.expect(200);
    assert_eq!(page.header("content-type"), Some("text/html"));
    assert!(page.text.starts_with("<html>"));
    replayed_success(&simulator, &intent).await;
    assert_eq!(simulator.charged("order").await.len(), 1);
}

#[tokio::test]
async fn errors_come_once_or_for_ever_with_and_without_a_charge() {
    let simulator = Simulator::start().await;
    let once = simulator.create("pm_sim_error_once_after_charge", "once").await;
    let error = simulator.confirm(&once, &once).await.expect_error(500, "api_error", None);
    assert_eq!(error.header("stripe-should-retry"), Some("true"));
    replayed_success(&simulator, &once).await;
    assert_eq!(simulator.charged("once").await.len(), 1);

    let before = simulator.create("pm_sim_error_before_charge", "before").await;
    let error = simulator.confirm(&before, &before).await.expect(500);
    let replay = simulator.confirm(&before, &before).await.expect(500);
    assert_eq!(replay.text, error.text);
    assert_eq!(simulator.status(&before).await, "requires_confirmation");
    assert!(simulator.charged("before").await.is_empty());
}

#[tokio::test]
async fn the_first_requests_are_refused_and_the_next_one_passes() {
    let simulator = Simulator::with(&["--refusals", "2"]).await;
    let refused = |reply: &Reply, status: u16, advice: &str| {
        assert_eq!(reply.status, StatusCode::from_u16(status).unwrap(), "{}", reply.text);
        assert_eq!(reply.header("stripe-should-retry"), Some(advice));
        assert_eq!(reply.header("idempotent-replayed"), None);
    };
    for (token, status, advice) in [
        ("pm_sim_rate_limited", 429, "true"),
        ("pm_sim_unavailable", 503, "true"),
        ("pm_sim_unavailable_do_not_retry", 503, "false"),
    ] {
        let intent = simulator.create(token, token).await;
        for _ in 0..2 {
            refused(&simulator.confirm(&intent, token).await, status, advice);
        }
        assert!(simulator.charged(token).await.is_empty());
        let paid = simulator.confirm(&intent, token).await.expect(200);
        assert_eq!(paid.header("idempotent-replayed"), None);
        assert_eq!(simulator.charged(token).await.len(), 1);
    }
    let intent = simulator.create("pm_sim_reset_before_charge", "reset").await;
    in_vain(&simulator, &intent).await;
    assert_eq!(simulator.status(&intent).await, "requires_confirmation");
    simulator.confirm(&intent, &intent).await.expect(200);
}
