//! Stripe: PaymentIntents, created first and then confirmed off-session.
//!
//! A PaymentIntent succeeds at most once, whatever is sent and however often: there is one per payment order, and its id is stored
//! before it is confirmed. What becomes of it can be asked at any time.

use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderValue};
use secrecy::{ExposeSecret as _, SecretString};

use super::{
    Answer, Call, Capabilities, Operation, Order, Psp, Unsendable,
    currency::Currencies,
    http::{Http, Site, secret_header},
    stripe_outcomes,
};

/// The version of Stripe's API that this adapter was written against.
const STRIPE_VERSION: &str = "2026-07-29.dahlia";
/// Stripe keeps keys for at least 24 hours.
const REMEMBERS_KEYS_FOR: Duration = Duration::from_hours(23);

/// What Stripe presents to cardholders (docs.stripe.com/currencies). ISK and UGX have two decimals there although nothing is charged
/// in them but whole units, MGA has none; with three decimals the last must be 0.
pub const CURRENCIES: Currencies = Currencies {
    zero: &[
        "BIF", "CLP", "DJF", "GNF", "JPY", "KMF", "KRW", "MGA", "PYG", "RWF", "VND", "VUV", "XAF", "XOF",
        "XPF",
    ],
    two: &[
        "AED", "AFN", "ALL", "AMD", "AOA", "ARS", "AUD", "AWG", "AZN", "BAM", "BBD", "BDT", "BMD", "BND",
        "BOB", "BRL", "BSD", "BWP", "BYN", "BZD", "CAD", "CDF", "CHF", "CNY", "COP", "CRC", "CVE", "CZK",
        "DKK", "DOP", "DZD", "EGP", "ETB", "EUR", "FJD", "FKP", "GBP", "GEL", "GIP", "GMD", "GTQ", "GYD",
        "HKD", "HNL", "HTG", "HUF", "IDR", "ILS", "INR", "ISK", "JMD", "KES", "KGS", "KHR", "KYD", "KZT",
        "LAK", "LBP", "LKR", "LRD", "LSL", "MAD", "MDL", "MKD", "MMK", "MNT", "MOP", "MUR", "MVR", "MWK",
        "MXN", "MYR", "MZN", "NAD", "NGN", "NIO", "NOK", "NPR", "NZD", "PAB", "PEN", "PGK", "PHP", "PKR",
        "PLN", "QAR", "RON", "RSD", "RUB", "SAR", "SBD", "SCR", "SEK", "SGD", "SHP", "SLE", "SOS", "SRD",
        "SZL", "THB", "TJS", "TOP", "TRY", "TTD", "TWD", "TZS", "UAH", "UGX", "USD", "UYU", "UZS", "WST",
        "XCD", "XCG", "YER", "ZAR", "ZMW",
    ],
    three: &["BHD", "JOD", "KWD", "OMR", "TND"],
    three_step: 10,
};

/// The adapter.
#[derive(Debug)]
pub struct Stripe {
    http: Http,
}

impl Stripe {
    /// An adapter that sends to `site`. Makes no call yet.
    pub fn new(site: &Site, secret_key: &SecretString) -> anyhow::Result<Self> {
        let bearer = format!("Bearer {}", secret_key.expose_secret());
        let mut headers = HeaderMap::new();
        headers.insert(AUTHORIZATION, secret_header(&bearer, "Stripe's secret key")?);
        headers.insert("stripe-version", HeaderValue::from_static(STRIPE_VERSION));
        Ok(Self { http: Http::new(site, "application/x-www-form-urlencoded", headers)? })
    }

    async fn exchange(&self, call: &Call, order: &Order) -> Answer {
        let reply = match self.http.exchange(call).await {
            Ok(reply) => reply,
            Err(answer) => return answer,
        };
        let mut answer = stripe_outcomes::read(reply.status, &reply.body, order);
        answer.request_id = reply.header("request-id").map(str::to_owned);
        if reply.status >= 400 {
            answer.try_again = reply.header("stripe-should-retry").and_then(|text| text.parse().ok());
        }
        answer
    }
}

impl Psp for Stripe {
    fn name(&self) -> &'static str {
        "STRIPE"
    }

    fn label(&self) -> &'static str {
        "stripe"
    }

    fn base_url(&self) -> Option<&str> {
        Some(self.http.base_url())
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { two_step: true, looks_up: true, remembers_keys_for: REMEMBERS_KEYS_FOR }
    }

    fn currencies(&self) -> &'static Currencies {
        &CURRENCIES
    }

    fn prepare(
        &self,
        operation: Operation,
        order: &Order,
        reference: Option<&str>,
    ) -> Result<Call, Unsendable> {
        let id = order.payment_order_id.to_string();
        let intent = |suffix: &str| match reference {
            // It becomes part of a path.
            Some(reference) if is_plain(reference) => Ok(format!("/v1/payment_intents/{reference}{suffix}")),
            other => Err(Unsendable(format!("{other:?} is not the id of a PaymentIntent"))),
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
            let answer = self.exchange(call, order).await;
            Answer { took: begun.elapsed(), ..answer }
        })
    }
}

/// True for what cannot leave its place in a path.
fn is_plain(reference: &str) -> bool {
    !reference.is_empty() && reference.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
}

/// Nothing in here may differ between two tries of one order: Stripe would refuse the second under the same key.
fn create_parameters(order: &Order, id: &str) -> Result<Vec<(&'static str, String)>, Unsendable> {
    let amount = CURRENCIES
        .to_psp(order.amount_minor, &order.currency)
        .map_err(|error| Unsendable(format!("Stripe: {error}")))?;
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

#[cfg(test)]
mod tests {
    use time::OffsetDateTime;
    use uuid::Uuid;

    use super::*;
    use crate::psp::{Verdict, code};

    fn stripe() -> Stripe {
        let site = Site::new("http://127.0.0.1:1/", Duration::from_secs(1));
        Stripe::new(&site, &SecretString::from("sk_test_x")).unwrap()
    }

    fn order() -> Order {
        Order {
            payment_order_id: Uuid::from_u128(7),
            amount_minor: 500,
            merchant_reference: "order & 1".into(),
            ..Order::sample("STRIPE")
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

    #[test]
    fn what_stripe_cannot_charge_is_not_sent() {
        for (currency, minor) in [("XYZ", 1), ("KWD", 1234), ("ISK", i64::MAX)] {
            let order = Order { amount_minor: minor, currency: currency.into(), ..order() };
            let refused = stripe().prepare(Operation::Create, &order, None).unwrap_err();
            assert!(refused.to_string().contains(currency), "{refused}");
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
