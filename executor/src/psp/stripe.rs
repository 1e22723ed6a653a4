//! Stripe: PaymentIntents, created first and then confirmed off-session.
//!
//! A PaymentIntent succeeds at most once, whatever is sent and however often: there is one per payment order, and its id is stored
//! before it is confirmed. What becomes of it can be asked at any time.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use futures::future::BoxFuture;
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use secrecy::{ExposeSecret as _, SecretString};

use super::{Answer, Call, Capabilities, Operation, Order, Psp, Verdict, code, stripe_outcomes};

/// The version of Stripe's API that this adapter was written against.
const STRIPE_VERSION: &str = "2026-07-29.dahlia";
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// A PaymentIntent has some kilobytes.
const BODY_MAX_BYTES: usize = 1 << 20;
/// Stripe keeps keys for at least 24 hours.
const REMEMBERS_KEYS_FOR: Duration = Duration::from_hours(23);
static IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// The adapter.
#[derive(Debug)]
pub struct Stripe {
    base_url: String,
    http: reqwest::Client,
}

impl Stripe {
    /// An adapter that sends to `base_url`. Makes no call yet.
    pub fn new(
        base_url: &str,
        secret_key: &SecretString,
        timeout: Duration,
        concurrency: usize,
    ) -> anyhow::Result<Self> {
        let mut authorization = HeaderValue::from_str(&format!("Bearer {}", secret_key.expose_secret()))
            .map_err(|_| anyhow::anyhow!("Stripe's secret key has characters that no header may have"))?;
        authorization.set_sensitive(true);
        let mut headers = HeaderMap::new();
        headers.insert(AUTHORIZATION, authorization);
        headers.insert("stripe-version", HeaderValue::from_static(STRIPE_VERSION));
        let http = reqwest::Client::builder()
            .user_agent(concat!("payment-outbox-executor/", env!("CARGO_PKG_VERSION")))
            .default_headers(headers)
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(timeout)
            .pool_max_idle_per_host(concurrency)
            // A redirect would carry the key and the payment elsewhere.
            .redirect(reqwest::redirect::Policy::none())
            .retry(reqwest::retry::never())
            .no_proxy()
            .build()?;
        let base_url = base_url.trim_end_matches('/').to_owned();
        reqwest::Url::parse(&base_url).context("Stripe's base URL")?;
        Ok(Self { base_url, http })
    }

    async fn exchange(&self, call: &Call, order: &Order) -> Result<Answer, reqwest::Error> {
        let url = format!("{}{}", self.base_url, call.path);
        let mut request = match call.operation {
            Operation::Get => self.http.get(url),
            Operation::Create | Operation::Confirm | Operation::Cancel => self
                .http
                .post(url)
                .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
                .body(call.body.clone()),
        };
        if let Some(key) = &call.idempotency_key {
            request = request.header(&IDEMPOTENCY_KEY, key);
        }
        let mut response = request.send().await?;
        let status = response.status().as_u16();
        let request_id =
            response.headers().get("request-id").and_then(|id| id.to_str().ok()).map(str::to_owned);
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await? {
            body.extend_from_slice(&chunk);
            if body.len() > BODY_MAX_BYTES {
                let answer =
                    Answer { http_status: Some(status), request_id, ..Answer::new(Verdict::Unclear) };
                return Ok(answer.error(code::PSP_UNREADABLE, "the answer is too large"));
            }
        }
        Ok(Answer { request_id, ..stripe_outcomes::read(status, &body, order) })
    }
}

impl Psp for Stripe {
    fn name(&self) -> &'static str {
        "STRIPE"
    }

    fn label(&self) -> &'static str {
        "stripe"
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { looks_up: true, remembers_keys_for: REMEMBERS_KEYS_FOR }
    }

    fn prepare(&self, operation: Operation, order: &Order, reference: Option<&str>) -> anyhow::Result<Call> {
        let id = order.payment_order_id.to_string();
        let intent = |suffix: &str| {
            let reference = reference.context("the PaymentIntent is not known")?;
            // It becomes part of a path.
            let plain = reference.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
            ensure!(plain && !reference.is_empty(), "{reference:?} is not the id of a PaymentIntent");
            Ok(format!("/v1/payment_intents/{reference}{suffix}"))
        };
        let (method, path, parameters) = match operation {
            Operation::Create => ("POST", "/v1/payment_intents".to_owned(), create_parameters(order, &id)?),
            Operation::Confirm => (
                "POST",
                intent("/confirm")?,
                // A PSP that asks the shopper to act is a decline here: nobody is there.
                vec![("error_on_requires_action", "true".to_owned()), ("off_session", "true".to_owned())],
            ),
            Operation::Get => ("GET", intent("")?, vec![]),
            Operation::Cancel => {
                ("POST", intent("/cancel")?, vec![("cancellation_reason", "abandoned".to_owned())])
            }
        };
        let idempotency_key = (operation != Operation::Get).then(|| format!("po:{id}:{}", operation.label()));
        Ok(Call { operation, method, path, body: form(parameters), idempotency_key })
    }

    fn send<'a>(&'a self, call: &'a Call, order: &'a Order) -> BoxFuture<'a, Answer> {
        Box::pin(async move {
            let begun = Instant::now();
            let mut answer = match self.exchange(call, order).await {
                Ok(answer) => answer,
                Err(error) => failed(&error),
            };
            answer.took = begun.elapsed();
            answer
        })
    }
}

/// Nothing in here may differ between two tries of one order: Stripe would refuse the second under the same key.
fn create_parameters(order: &Order, id: &str) -> anyhow::Result<Vec<(&'static str, String)>> {
    let amount = stripe_outcomes::stripe_amount(order).context("the amount is too large for Stripe")?;
    Ok(vec![
        ("amount", amount.to_string()),
        ("automatic_payment_methods[allow_redirects]", "never".to_owned()),
        ("automatic_payment_methods[enabled]", "true".to_owned()),
        ("capture_method", "automatic".to_owned()),
        ("currency", order.currency.to_lowercase()),
        ("metadata[merchant_reference]", order.merchant_reference.clone()),
        ("metadata[payment_order_id]", id.to_owned()),
        ("payment_method", order.payment_method.expose_secret().to_owned()),
    ])
}

/// Parameters in the order of their names, so that the same request is the same bytes.
fn form(mut parameters: Vec<(&'static str, String)>) -> String {
    parameters.sort_unstable();
    let mut form = form_urlencoded::Serializer::new(String::new());
    form.extend_pairs(parameters);
    form.finish()
}

/// Without an answer: only a connection that never came about proves that nothing was executed.
fn failed(error: &reqwest::Error) -> Answer {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text = cause.to_string();
        source = cause.source();
    }
    let (verdict, code) = if error.is_connect() || error.is_builder() {
        (Verdict::Later, code::PSP_UNREACHABLE)
    } else if error.is_timeout() {
        (Verdict::Unclear, code::PSP_TIMEOUT)
    } else {
        (Verdict::Unclear, code::PSP_CONNECTION_LOST)
    };
    Answer::new(verdict).error(code, &text)
}

#[cfg(test)]
mod tests {
    use time::OffsetDateTime;
    use uuid::Uuid;

    use super::*;

    fn stripe() -> Stripe {
        Stripe::new("http://127.0.0.1:1/", &SecretString::from("sk_test_x"), Duration::from_secs(1), 4)
            .unwrap()
    }

    fn order() -> Order {
        Order {
            payment_order_id: Uuid::from_u128(7),
            psp: "STRIPE".into(),
            amount_minor: 500,
            currency: "EUR".into(),
            payment_method: SecretString::from("pm_card_visa"),
            merchant_reference: "order & 1".into(),
            expires_at: OffsetDateTime::UNIX_EPOCH,
        }
    }

    #[test]
    fn a_request_is_the_same_bytes_each_time_and_sorted() {
        let (stripe, order) = (stripe(), order());
        let call = stripe.prepare(Operation::Create, &order, None).unwrap();
        let id = "00000000-0000-0000-0000-000000000007";
        assert_eq!((call.method, call.path.as_str()), ("POST", "/v1/payment_intents"));
        assert_eq!(
            call.body,
            format!(
                "amount=500&automatic_payment_methods%5Ballow_redirects%5D=never&automatic_payment_methods%5Benabled%5D=true\
                 &capture_method=automatic&currency=eur&metadata%5Bmerchant_reference%5D=order+%26+1\
                 &metadata%5Bpayment_order_id%5D={id}&payment_method=pm_card_visa"
            )
        );
        assert_eq!(call.idempotency_key.as_deref(), Some(format!("po:{id}:create").as_str()));
        let later = Order { expires_at: OffsetDateTime::now_utc(), ..order.clone() };
        assert_eq!(stripe.prepare(Operation::Create, &later, None).unwrap().hash(), call.hash());
        let other = Order { amount_minor: 501, ..order };
        assert_ne!(stripe.prepare(Operation::Create, &other, None).unwrap().hash(), call.hash());
        assert!(!format!("{call:?}").contains("pm_card_visa"));
    }

    #[test]
    fn each_operation_has_its_path_and_its_key() {
        for (operation, method, path, key) in [
            (Operation::Confirm, "POST", "/v1/payment_intents/pi_1/confirm", Some("confirm")),
            (Operation::Cancel, "POST", "/v1/payment_intents/pi_1/cancel", Some("cancel")),
            (Operation::Get, "GET", "/v1/payment_intents/pi_1", None),
        ] {
            let call = stripe().prepare(operation, &order(), Some("pi_1")).unwrap();
            assert_eq!((call.method, call.path.as_str()), (method, path));
            assert_eq!(call.idempotency_key, key.map(|key| format!("po:{}:{key}", order().payment_order_id)));
            for wrong in [None, Some(""), Some("pi_1/../../v1/refunds"), Some("pi?x")] {
                assert!(stripe().prepare(operation, &order(), wrong).is_err(), "{wrong:?}");
            }
        }
    }

    #[tokio::test]
    async fn a_connection_that_never_came_about_is_tried_again_later() {
        let call = stripe().prepare(Operation::Create, &order(), None).unwrap();
        let answer = stripe().send(&call, &order()).await;
        assert_eq!(
            (answer.verdict, answer.error_code.as_deref()),
            (Verdict::Later, Some(code::PSP_UNREACHABLE))
        );
    }

    #[test]
    fn the_key_is_not_in_any_debug_text() {
        assert!(!format!("{:?}", stripe()).contains("sk_test_x"));
    }
}
