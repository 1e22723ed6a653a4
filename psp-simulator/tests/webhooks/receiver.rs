//! A receiver of webhooks, and a simulator that sends them to it.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use serde_json::Value;
use tokio::net::TcpListener;

use crate::running::{Reply, Simulator, send};
use crate::verification;

pub(crate) const STRIPE_SECRET: &str = "whsec_webhook_tests";
pub(crate) const ADYEN_KEY: &str = "44782DEF547AAA06C910C43932B1EB0C71FC68D9D0C057550C48EC2ACF6BA056";
const ADYEN_USER: &str = "adyen-user";
const ADYEN_PASSWORD: &str = "adyen-password";
/// "adyen-user:adyen-password"
const ADYEN_LOGIN: &str = "Basic YWR5ZW4tdXNlcjphZHllbi1wYXNzd29yZA==";
/// How long issuers take here that do not answer at once.
pub(crate) const SLOW: Duration = Duration::from_millis(300);
const PATIENCE: Duration = Duration::from_secs(20);

#[derive(Debug, Clone)]
pub(crate) struct Received {
    pub(crate) body: Bytes,
    pub(crate) json: Value,
}

/// What came, and how the next ones are answered (200 when nothing is said).
#[derive(Debug, Default)]
pub(crate) struct Mail {
    received: Mutex<Vec<Received>>,
    answers: Mutex<VecDeque<u16>>,
}

pub(crate) struct Office {
    pub(crate) simulator: Simulator,
    pub(crate) mail: Arc<Mail>,
}

impl Office {
    pub(crate) async fn with(settings: &[&str]) -> Self {
        let mail = Arc::new(Mail::default());
        let router = Router::new()
            .route("/stripe", post(stripe))
            .route("/adyen", post(adyen))
            .with_state(Arc::clone(&mail));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { simulator: simulator(&base, settings).await, mail }
    }

    pub(crate) async fn calm() -> Self {
        Self::with(&[]).await
    }

    /// Pays at Stripe in one request; the key is the order.
    pub(crate) async fn pay_stripe(&self, order: &str, scenario: &str) -> Reply {
        let token = format!("pm_sim_{scenario}");
        let form = [
            ("amount", "1099"),
            ("currency", "eur"),
            ("payment_method", token.as_str()),
            ("payment_method_types[]", "card"),
            ("confirm", "true"),
            ("off_session", "true"),
            ("metadata[payment_order_id]", order),
        ];
        let request = self.simulator.request(reqwest::Method::POST, "/v1/payment_intents").form(&form);
        send(request.header("Idempotency-Key", order)).await
    }

    pub(crate) async fn pay_adyen(&self, order: &str, scenario: &str) -> Reply {
        let body = serde_json::json!({
            "amount": { "currency": "EUR", "value": 1099 },
            "merchantAccount": "OutboxShop",
            "paymentMethod": { "type": "scheme", "storedPaymentMethodId": format!("adyen_sim_{scenario}") },
            "reference": order,
            "returnUrl": "https://shop.example/return",
            "shopperReference": "shopper-1",
            "shopperInteraction": "ContAuth",
        });
        self.post_json("/v71/payments", order, &body).await
    }

    pub(crate) async fn post_json(&self, path: &str, key: &str, body: &Value) -> Reply {
        let request = self.simulator.request(reqwest::Method::POST, path).json(body);
        send(request.header("Idempotency-Key", key)).await
    }

    /// What `GET /simulator/webhooks` says.
    pub(crate) async fn report(&self) -> Value {
        self.simulator.get("/simulator/webhooks").await.expect(200).body
    }

    /// Waits for a report.
    pub(crate) async fn until_report(&self, wanted: impl Fn(&Value) -> bool) -> Value {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let report = self.report().await;
            if wanted(&report) {
                return report;
            }
            assert!(Instant::now() < deadline, "{report:#}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// A simulator that sends both PSPs' webhooks to `base`.
pub(crate) async fn simulator(base: &str, settings: &[&str]) -> Simulator {
    let (stripe, adyen) = (format!("{base}/stripe"), format!("{base}/adyen"));
    let slow = format!("{}ms", SLOW.as_millis());
    let mut all = vec!["--slow", &slow];
    if !settings.contains(&"--webhook-backoff") {
        all.extend(["--webhook-backoff", "20ms"]);
    }
    all.extend(["--stripe-webhook-url", &stripe, "--stripe-webhook-secret", STRIPE_SECRET]);
    all.extend(["--adyen-webhook-url", &adyen, "--adyen-webhook-hmac-key", ADYEN_KEY]);
    all.extend(["--adyen-webhook-user", ADYEN_USER, "--adyen-webhook-password", ADYEN_PASSWORD]);
    all.extend(settings);
    Simulator::with(&all).await
}

impl Mail {
    /// How the next ones are answered.
    pub(crate) fn answer(&self, statuses: impl IntoIterator<Item = u16>) {
        self.answers.lock().unwrap().extend(statuses);
    }

    pub(crate) fn all(&self) -> Vec<Received> {
        self.received.lock().unwrap().clone()
    }

    /// Waits for this many, and gives all that came.
    pub(crate) async fn until(&self, count: usize) -> Vec<Received> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let all = self.all();
            if all.len() >= count {
                return all;
            }
            assert!(Instant::now() < deadline, "{count} wanted: {all:#?}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    fn take(&self, body: Bytes) -> StatusCode {
        let json = serde_json::from_slice(&body).unwrap();
        self.received.lock().unwrap().push(Received { body, json });
        let answer = self.answers.lock().unwrap().pop_front().unwrap_or(200);
        StatusCode::from_u16(answer).unwrap()
    }
}

impl Received {
    /// Type and PaymentIntent of a Stripe event.
    pub(crate) fn event(&self) -> (&str, &Value) {
        (self.json["type"].as_str().unwrap(), &self.json["data"]["object"])
    }

    /// The items of an Adyen notification.
    pub(crate) fn items(&self) -> Vec<Value> {
        let items = self.json["notificationItems"].as_array().unwrap();
        items.iter().map(|item| item["NotificationRequestItem"].clone()).collect()
    }
}

/// Nothing that is not genuine gets in.
async fn stripe(State(mail): State<Arc<Mail>>, headers: HeaderMap, body: Bytes) -> StatusCode {
    let header = headers["stripe-signature"].to_str().unwrap();
    let now = time::OffsetDateTime::now_utc().unix_timestamp();
    match verification::stripe(STRIPE_SECRET, header, &body) {
        Some(signed_at) if (now - signed_at).abs() <= 300 => mail.take(body),
        _ => StatusCode::UNAUTHORIZED,
    }
}

async fn adyen(State(mail): State<Arc<Mail>>, headers: HeaderMap, body: Bytes) -> StatusCode {
    let notification: Value = serde_json::from_slice(&body).unwrap();
    let items = notification["notificationItems"].as_array().unwrap();
    let genuine = !items.is_empty()
        && items.iter().all(|item| verification::adyen(ADYEN_KEY, &item["NotificationRequestItem"]));
    if headers.get("authorization").is_some_and(|login| login == ADYEN_LOGIN) && genuine {
        mail.take(body)
    } else {
        StatusCode::UNAUTHORIZED
    }
}
