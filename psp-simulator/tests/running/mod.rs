//! A running simulator, and what its answers are read into.

use std::time::Duration;

use clap::Parser;
use psp_simulator::Config;
use reqwest::header::HeaderMap;
use reqwest::{Client, Method, RequestBuilder, StatusCode};
use serde_json::Value;
use tokio::net::TcpListener;
use tokio_util::sync::{CancellationToken, DropGuard};

/// Long enough for a few requests meanwhile, also on a busy machine.
pub(crate) const SLOW: Duration = Duration::from_millis(1500);

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

    #[track_caller]
    pub(crate) fn expect(self, status: u16) -> Self {
        assert_eq!(self.status.as_u16(), status, "{}", self.text);
        self
    }
}

impl Simulator {
    pub(crate) async fn with(settings: &[&str]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        let slow = humantime::format_duration(SLOW).to_string();
        let slow = if settings.contains(&"--slow") { vec![] } else { vec!["--slow", &slow] };
        let settings = ["psp-simulator"].into_iter().chain(slow).chain(settings.iter().copied());
        let shutdown = CancellationToken::new();
        tokio::spawn(psp_simulator::run(listener, Config::parse_from(settings), shutdown.clone()));
        Self {
            base,
            client: Client::builder().timeout(SLOW * 10).build().unwrap(),
            _stop: shutdown.drop_guard(),
        }
    }

    /// With the credentials of both PSPs.
    pub(crate) fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let request = self.client.request(method, format!("{}{path}", self.base));
        request.bearer_auth("sk_test_simulator").header("X-API-Key", "test_simulator")
    }

    pub(crate) async fn get(&self, path: &str) -> Reply {
        send(self.request(Method::GET, path)).await
    }

    /// Moves the simulator's clock on.
    pub(crate) async fn advance(&self, seconds: i64) -> Reply {
        let body = serde_json::json!({ "advance_seconds": seconds });
        send(self.request(Method::POST, "/simulator/clock").json(&body)).await
    }

    /// The references charged for an order, from the ledger.
    pub(crate) async fn charged(&self, order: &str) -> Vec<String> {
        let ledger = self.get("/simulator/ledger").await.expect(200);
        let charges = ledger.body["charges"].as_array().unwrap().iter();
        charges
            .filter(|charge| charge["payment_order_id"] == order)
            .map(|charge| charge["reference"].as_str().unwrap().to_owned())
            .collect()
    }
}

pub(crate) async fn send(request: RequestBuilder) -> Reply {
    let response = request.send().await.unwrap();
    let (status, headers) = (response.status(), response.headers().clone());
    let text = response.text().await.unwrap();
    let body = serde_json::from_str(&text).unwrap_or(Value::Null);
    Reply { status, headers, text, body }
}
