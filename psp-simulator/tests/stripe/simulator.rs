//! A running simulator, and a client for it.

use std::time::{Duration, Instant};

use clap::Parser;
use psp_simulator::Config;
use reqwest::header::HeaderMap;
use reqwest::{Client, Method, RequestBuilder, StatusCode};
use serde_json::Value;
use tokio::net::TcpListener;
use tokio_util::sync::{CancellationToken, DropGuard};

/// Long enough for a few requests meanwhile, also on a busy machine.
pub(crate) const SLOW: Duration = Duration::from_millis(1500);
/// What a client waits before it calls the outcome unknown.
pub(crate) const PATIENCE: Duration = Duration::from_secs(1);

pub(crate) struct Simulator {
    pub(crate) base: String,
    pub(crate) client: Client,
    _stop: DropGuard,
}

#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) text: String,
    pub(crate) body: Value,
}

impl Reply {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }

    pub(crate) fn id(&self) -> String {
        self.body["id"].as_str().unwrap_or_else(|| panic!("no id: {}", self.text)).to_owned()
    }

    #[track_caller]
    pub(crate) fn expect(self, status: u16) -> Self {
        assert_eq!(self.status.as_u16(), status, "{}", self.text);
        self
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

    pub(crate) async fn with(settings: &[&str]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        let slow = humantime::format_duration(SLOW).to_string();
        let settings = ["psp-simulator", "--slow", &slow].into_iter().chain(settings.iter().copied());
        let shutdown = CancellationToken::new();
        tokio::spawn(psp_simulator::run(listener, Config::parse_from(settings), shutdown.clone()));
        Self {
            base,
            client: Client::builder().timeout(SLOW * 10).build().unwrap(),
            _stop: shutdown.drop_guard(),
        }
    }

    pub(crate) fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.client.request(method, format!("{}{path}", self.base)).bearer_auth("sk_test_simulator")
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

    pub(crate) async fn get(&self, path: &str) -> Reply {
        send(self.request(Method::GET, path)).await
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

    /// The payment intents charged for an order, from the ledger.
    pub(crate) async fn charged(&self, order: &str) -> Vec<String> {
        let ledger = self.get("/simulator/ledger").await.expect(200);
        let charges = ledger.body["charges"].as_array().unwrap().iter();
        charges
            .filter(|charge| charge["payment_order_id"] == order)
            .map(|charge| charge["payment_intent"].as_str().unwrap().to_owned())
            .collect()
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

pub(crate) async fn send(request: RequestBuilder) -> Reply {
    let response = request.send().await.unwrap();
    let (status, headers) = (response.status(), response.headers().clone());
    let text = response.text().await.unwrap();
    let body = serde_json::from_str(&text).unwrap_or(Value::Null);
    Reply { status, headers, text, body }
}
