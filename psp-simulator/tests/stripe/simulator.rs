//! A client for Stripe's side of the simulator.

use std::time::{Duration, Instant};

use reqwest::{Method, RequestBuilder};

pub(crate) use crate::running::{Reply, SLOW, Simulator, send};

/// What a client waits before it calls the outcome unknown.
pub(crate) const PATIENCE: Duration = Duration::from_secs(1);

impl Reply {
    pub(crate) fn id(&self) -> String {
        self.body["id"].as_str().unwrap_or_else(|| panic!("no id: {}", self.text)).to_owned()
    }

    /// Status, type and code of an error.
    #[track_caller]
    pub(crate) fn expect_error(self, status: u16, kind: &str, code: Option<&str>) -> Self {
        let reply = self.expect(status);
        assert_eq!(reply.body["error"]["type"], kind, "{}", reply.text);
        assert_eq!(reply.body["error"]["code"].as_str(), code, "{}", reply.text);
        reply
    }
}

impl Simulator {
    pub(crate) async fn start() -> Self {
        Self::with(&[]).await
    }

    /// A POST of a form with bracket keys.
    pub(crate) fn form(&self, path: &str, form: &[(&str, &str)]) -> RequestBuilder {
        self.request(Method::POST, path).form(form)
    }

    pub(crate) async fn post(&self, path: &str, form: &[(&str, &str)]) -> Reply {
        send(self.form(path, form)).await
    }

    pub(crate) async fn post_with_key(&self, path: &str, key: &str, form: &[(&str, &str)]) -> Reply {
        send(self.form(path, form).header("Idempotency-Key", key)).await
    }

    /// A PaymentIntent that only has to be confirmed.
    pub(crate) async fn create(&self, token: &str, order: &str) -> String {
        let order = [("metadata[payment_order_id]", order), ("payment_method", token)];
        let form = [&TERMS[..], &order].concat();
        let reply = self.post("/v1/payment_intents", &form).await.expect(200);
        assert_eq!(reply.body["status"], "requires_confirmation");
        reply.id()
    }

    pub(crate) async fn confirm(&self, intent: &str, key: &str) -> Reply {
        send(self.confirmation(intent, key)).await
    }

    /// Confirms and gives up before the simulator does.
    pub(crate) async fn confirm_in_vain(&self, intent: &str, key: &str) {
        let error = self.confirmation(intent, key).timeout(PATIENCE).send().await.unwrap_err();
        assert!(error.is_timeout(), "{error:?}");
    }

    fn confirmation(&self, intent: &str, key: &str) -> RequestBuilder {
        let form = [("off_session", "true"), ("error_on_requires_action", "true")];
        self.form(&confirm_path(intent), &form).header("Idempotency-Key", key)
    }

    pub(crate) async fn status(&self, intent: &str) -> String {
        let reply = self.get(&format!("/v1/payment_intents/{intent}")).await.expect(200);
        reply.body["status"].as_str().unwrap().to_owned()
    }

    /// Waits until a PaymentIntent has this status.
    pub(crate) async fn until(&self, intent: &str, status: &str) {
        let deadline = Instant::now() + SLOW * 10;
        while self.status(intent).await != status {
            assert!(Instant::now() < deadline, "{intent} is still {}", self.status(intent).await);
            tokio::time::sleep(SLOW / 30).await;
        }
    }
}

/// Enough to create a PaymentIntent that can be confirmed without a `return_url`.
pub(crate) const TERMS: [(&str, &str); 4] = [
    ("amount", "1099"),
    ("currency", "eur"),
    ("automatic_payment_methods[enabled]", "true"),
    ("automatic_payment_methods[allow_redirects]", "never"),
];

pub(crate) fn confirm_path(intent: &str) -> String {
    format!("/v1/payment_intents/{intent}/confirm")
}

pub(crate) fn cancel_path(intent: &str) -> String {
    format!("/v1/payment_intents/{intent}/cancel")
}
