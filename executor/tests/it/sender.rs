//! PSPs as senders of webhooks, and executors that receive them. Signatures are made here, by code that is not the executor's.

use std::{sync::Arc, time::Duration};

use axum::Router;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use executor::{metrics::Metrics, psp::Psps, webhooks::Webhooks};
use hmac::{Hmac, KeyInit as _, Mac as _};
use reqwest::StatusCode;
use serde_json::{Value, json};
use sha2::Sha256;
use sqlx::PgPool;
use time::OffsetDateTime;
use tokio::sync::Notify;
use uuid::Uuid;

use crate::setup::{Running, World};

pub(crate) const STRIPE_SECRET: &str = "whsec_of_these_tests";
pub(crate) const ADYEN_KEY: &str = "44782DEF547AAA06C910C43932B1EB0C71FC68D9D0C057550C48EC2ACF6BA056";
pub(crate) const ADYEN_USER: &str = "adyen:password";

/// With the secrets of these tests; `more` comes last.
pub(crate) fn with_secrets(more: &[&str]) -> Vec<String> {
    let mut all = vec![
        format!("--stripe-webhook-secrets={STRIPE_SECRET}"),
        format!("--adyen-hmac-keys={ADYEN_KEY}"),
        format!("--adyen-webhook-auth={ADYEN_USER}"),
    ];
    for one in more {
        let name = one.split('=').next().unwrap();
        all.retain(|argument| argument.split('=').next() != Some(name));
        all.push((*one).to_owned());
    }
    all
}

/// The receiving side alone: nothing that it stores is worked off.
pub(crate) async fn router(world: &World, more: &[&str]) -> Router {
    let arguments = with_secrets(more);
    let config = world.config(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
    config.validate().unwrap();
    let pool = PgPool::connect(&world.database.url("executor")).await.unwrap();
    let metrics = Metrics::new(&prometheus::Registry::new(), &Psps::new([])).unwrap();
    let (clock, wake) = (config.clock.clone(), Arc::new(Notify::new()));
    Webhooks::new(&config.webhooks, clock, pool, metrics, wake).unwrap().router()
}

/// An executor with a port for webhooks, and where that is.
pub(crate) fn start(world: &World, more: &[&str]) -> (Running, String) {
    let address = format!("127.0.0.1:{}", testbed::stack::free_port().unwrap());
    (start_at(world, &address, more), format!("http://{address}"))
}

/// An executor that receives webhooks here.
pub(crate) fn start_at(world: &World, address: &str, more: &[&str]) -> Running {
    let mut arguments = with_secrets(more);
    arguments.push(format!("--webhooks-listen={address}"));
    world.start(&arguments.iter().map(String::as_str).collect::<Vec<_>>())
}

fn hmac(key: &[u8], parts: &[&[u8]]) -> Vec<u8> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).unwrap();
    for part in parts {
        mac.update(part);
    }
    mac.finalize().into_bytes().to_vec()
}

/// Signed so many seconds from now.
pub(crate) fn stripe_signature(secret: &str, seconds: i64, body: &[u8]) -> String {
    let t = (OffsetDateTime::now_utc().unix_timestamp() + seconds).to_string();
    format!("t={t},v1={}", hex::encode(hmac(secret.as_bytes(), &[t.as_bytes(), b".", body])))
}

pub(crate) fn stripe_event(
    event: &str,
    kind: &str,
    status: &str,
    id: Uuid,
    intent: &str,
    amount: i64,
) -> Vec<u8> {
    let error =
        json!({"code": "card_declined", "decline_code": "lost_card", "message": "Your card was declined."});
    let declined = kind == "payment_intent.payment_failed";
    let received = if status == "succeeded" { amount } else { 0 };
    let event = json!({"id": event, "object": "event", "livemode": false, "type": kind, "data": {"object": {
        "object": "payment_intent", "id": intent, "status": status, "amount": amount, "amount_received": received,
        "currency": "eur", "metadata": {"payment_order_id": id.to_string()},
        "last_payment_error": if declined { error } else { Value::Null }}}});
    event.to_string().into_bytes()
}

pub(crate) fn basic(user: &str) -> String {
    format!("Basic {}", STANDARD.encode(user))
}

pub(crate) fn adyen_item(reference: &str, kind: &str, success: &str, id: Uuid, value: i64) -> Value {
    let text = format!("{reference}::TestMerchant:{id}:{value}:EUR:{kind}:{success}");
    let signature = STANDARD.encode(hmac(&hex::decode(ADYEN_KEY).unwrap(), &[text.as_bytes()]));
    json!({"pspReference": reference, "merchantAccountCode": "TestMerchant", "merchantReference": id.to_string(),
        "amount": {"value": value, "currency": "EUR"}, "eventCode": kind, "success": success,
        "eventDate": "2026-11-25T08:00:00+01:00", "additionalData": {"hmacSignature": signature}})
}

pub(crate) fn adyen_request(items: &[Value]) -> Vec<u8> {
    let items: Vec<Value> = items.iter().map(|item| json!({"NotificationRequestItem": item})).collect();
    json!({"live": "false", "notificationItems": items}).to_string().into_bytes()
}

/// A sender of webhooks.
pub(crate) struct Psp {
    url: String,
    http: reqwest::Client,
}

impl Psp {
    /// Sends to an executor, once that is there.
    pub(crate) async fn to(url: &str) -> Self {
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        for _ in 0..3000 {
            if http.get(url).send().await.is_ok() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Self { url: url.to_owned(), http }
    }

    pub(crate) async fn stripe(&self, body: Vec<u8>) -> StatusCode {
        let signature = stripe_signature(STRIPE_SECRET, 0, &body);
        let request = self.http.post(format!("{}/webhooks/stripe", self.url));
        request.header("stripe-signature", signature).body(body).send().await.unwrap().status()
    }

    pub(crate) async fn adyen(&self, items: &[Value]) -> StatusCode {
        let request = self.http.post(format!("{}/webhooks/adyen", self.url));
        let request = request.header("authorization", basic(ADYEN_USER));
        request.body(adyen_request(items)).send().await.unwrap().status()
    }
}
