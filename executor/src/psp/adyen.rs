//! Adyen: one `/payments` call per payment order, on a stored card, with nobody there to act.
//!
//! There is no step in which no money moves, and no way to ask how a payment stands: whatever is in doubt is settled by sending the same
//! request under the same Idempotency-Key, to which Adyen gives the first answer again for 31 days, and by webhooks. Adyen's
//! `reference` is our payment order id: it comes back as `merchantReference`, also where an answer was never read.
//!
//! **Cancelling** is asynchronous: Adyen takes the order (`received`), and tells the outcome by a TECHNICAL_CANCEL webhook, as we cancel
//! by our own reference. It is asked for where the answer is that the shopper would have to act. `course` says on what assumption
//! FAILED follows at once.
//!
//! **Capture** is the merchant account's setting, and has to be automatic (Adyen's default): `Authorised` counts as paid.
//!
//! **Tokens.** Adyen keeps stored cards per shopper, and wants both: a payment method of ours is the shopper's reference and the
//! stored payment method's id, joined by the last `-` (`shopper-42-M5N7TQ4TG5PFWR50`).

use std::time::{Duration, Instant};

use anyhow::ensure;
use futures::future::BoxFuture;
use reqwest::header::HeaderMap;
use secrecy::{ExposeSecret as _, SecretString};
use serde_json::json;

use super::{
    Answer, Call, Capabilities, Operation, Order, Psp, Unsendable, adyen_outcomes,
    currency::Currencies,
    http::{Http, Site, secret_header},
};

/// Adyen keeps keys for at least 31 days.
const REMEMBERS_KEYS_FOR: Duration = Duration::from_hours(30 * 24);
/// Adyen's limit of a value in `metadata`.
const METADATA_MAX_CHARS: usize = 80;
/// Adyen's limits of a shopper's reference.
const SHOPPER_CHARS: std::ops::RangeInclusive<usize> = 3..=256;

/// What Adyen processes (docs.adyen.com/development-resources/currency-codes), as that page counts it: CLP and ISK have two decimals
/// there, CVE and IDR none, whatever ISO 4217 says.
pub const CURRENCIES: Currencies = Currencies {
    zero: &[
        "CVE", "DJF", "GNF", "IDR", "JPY", "KMF", "KRW", "PYG", "RWF", "UGX", "VND", "VUV", "XAF", "XOF",
        "XPF",
    ],
    two: &[
        "AED", "ALL", "AMD", "AOA", "ARS", "AUD", "AWG", "AZN", "BAM", "BBD", "BDT", "BMD", "BND", "BOB",
        "BRL", "BSD", "BWP", "BYN", "BZD", "CAD", "CHF", "CLP", "CNY", "COP", "CRC", "CUP", "CZK", "DKK",
        "DOP", "DZD", "EGP", "ETB", "EUR", "FJD", "FKP", "GBP", "GEL", "GHS", "GIP", "GMD", "GTQ", "GYD",
        "HKD", "HNL", "HTG", "HUF", "ILS", "INR", "ISK", "JMD", "KES", "KGS", "KHR", "KYD", "KZT", "LAK",
        "LBP", "LKR", "MAD", "MDL", "MKD", "MMK", "MNT", "MOP", "MUR", "MVR", "MWK", "MXN", "MYR", "MZN",
        "NAD", "NGN", "NIO", "NOK", "NPR", "NZD", "PAB", "PEN", "PGK", "PHP", "PKR", "PLN", "QAR", "RON",
        "RSD", "RUB", "SAR", "SBD", "SCR", "SEK", "SGD", "SHP", "SLE", "SOS", "SRD", "SZL", "THB", "TOP",
        "TRY", "TTD", "TWD", "TZS", "UAH", "USD", "UYU", "UZS", "WST", "XCD", "YER", "ZAR", "ZMW",
    ],
    three: &["BHD", "IQD", "JOD", "KWD", "LYD", "OMR", "TND"],
    three_step: 1,
};

/// The adapter.
#[derive(Debug)]
pub struct Adyen {
    http: Http,
    merchant_account: String,
    return_url: String,
}

impl Adyen {
    /// An adapter that sends to `site`, for this merchant account. Makes no call yet. Adyen wants a `return_url` for shoppers that it
    /// would redirect; none of ours is.
    pub fn new(
        site: &Site,
        api_key: &SecretString,
        merchant_account: &str,
        return_url: &str,
    ) -> anyhow::Result<Self> {
        ensure!(!merchant_account.is_empty(), "Adyen's merchant account is empty");
        let mut headers = HeaderMap::new();
        headers.insert("x-api-key", secret_header(api_key.expose_secret(), "Adyen's API key")?);
        Ok(Self {
            http: Http::new(site, "application/json", headers)?,
            merchant_account: merchant_account.to_owned(),
            return_url: return_url.to_owned(),
        })
    }

    async fn exchange(&self, call: &Call, order: &Order) -> Answer {
        let reply = match self.http.exchange(call).await {
            Ok(reply) => reply,
            Err(answer) => return answer,
        };
        // Present where Adyen knows whether the same request can bring another answer.
        let transient = reply.header("transient-error").and_then(|text| text.parse().ok());
        let mut answer = adyen_outcomes::read(call.operation, reply.status, &reply.body, transient, order);
        answer.request_id = reply.header("pspreference").map(str::to_owned).or(answer.request_id);
        if reply.status >= 400 {
            answer.try_again = transient;
        }
        answer
    }

    /// Nothing in here may differ between two tries of one order, but for what an operator changed meanwhile.
    fn payment(&self, order: &Order, id: &str) -> Result<String, Unsendable> {
        let amount = CURRENCIES
            .to_psp(order.amount_minor, &order.currency)
            .map_err(|error| Unsendable(format!("Adyen: {error}")))?;
        let token = order.payment_method.expose_secret();
        let (shopper, stored) = token
            .rsplit_once('-')
            .filter(|(shopper, stored)| SHOPPER_CHARS.contains(&shopper.len()) && !stored.is_empty())
            .ok_or_else(|| {
                Unsendable("Adyen: the token is not a shopper's reference, -, and a stored id".to_owned())
            })?;
        let reference: String = order.merchant_reference.chars().take(METADATA_MAX_CHARS).collect();
        Ok(json!({
            "amount": { "currency": order.currency, "value": amount },
            "merchantAccount": self.merchant_account,
            "metadata": { "merchant_reference": reference },
            "paymentMethod": { "storedPaymentMethodId": stored, "type": "scheme" },
            "recurringProcessingModel": "UnscheduledCardOnFile",
            "reference": id,
            "returnUrl": self.return_url,
            "shopperInteraction": "ContAuth",
            "shopperReference": shopper,
        })
        .to_string())
    }

    /// By our reference, always: Adyen's id may be learnt between two tries, and another request under the same key would be refused. The
    /// answer to a payment that waits for the shopper may have none, either.
    fn cancellation(&self, id: &str) -> String {
        let own = format!("{id}-cancel");
        json!({ "merchantAccount": self.merchant_account, "paymentReference": id, "reference": own })
            .to_string()
    }
}

impl Psp for Adyen {
    fn name(&self) -> &'static str {
        "ADYEN"
    }

    fn label(&self) -> &'static str {
        "adyen"
    }

    fn base_url(&self) -> Option<&str> {
        Some(self.http.base_url())
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { two_step: false, looks_up: false, remembers_keys_for: REMEMBERS_KEYS_FOR }
    }

    fn currencies(&self) -> &'static Currencies {
        &CURRENCIES
    }

    fn prepare(&self, operation: Operation, order: &Order, _: Option<&str>) -> Result<Call, Unsendable> {
        let id = order.payment_order_id.to_string();
        let (path, body) = match operation {
            Operation::Confirm => ("/payments".to_owned(), self.payment(order, &id)?),
            Operation::Cancel => ("/cancels".to_owned(), self.cancellation(&id)),
            Operation::Create | Operation::Get => {
                return Err(Unsendable(format!("Adyen knows no {}", operation.label())));
            }
        };
        // At most 64 characters.
        let idempotency_key = Some(format!("po:{id}:{}", operation.label()));
        Ok(Call { operation, method: "POST", path, body, idempotency_key })
    }

    fn send<'a>(&'a self, call: &'a Call, order: &'a Order) -> BoxFuture<'a, Answer> {
        Box::pin(async move {
            let begun = Instant::now();
            let answer = self.exchange(call, order).await;
            Answer { took: begun.elapsed(), ..answer }
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;
    use time::OffsetDateTime;
    use uuid::Uuid;

    use super::*;

    fn adyen() -> Adyen {
        let site = Site::new("http://127.0.0.1:1/v71/", Duration::from_secs(1));
        Adyen::new(&site, &SecretString::from("AQEsecret"), "TestMerchant", "https://shop.example/return")
            .unwrap()
    }

    fn order() -> Order {
        Order {
            payment_order_id: Uuid::from_u128(7),
            amount_minor: 500,
            payment_method: SecretString::from("shopper-42-M5N7TQ4TG5PFWR50"),
            merchant_reference: "order \"1\"".into(),
            ..Order::sample("ADYEN")
        }
    }

    const ID: &str = "00000000-0000-0000-0000-000000000007";

    #[test]
    fn a_payment_is_the_same_bytes_each_time() {
        let call = adyen().prepare(Operation::Confirm, &order(), None).unwrap();
        assert_eq!((call.method, call.path.as_str()), ("POST", "/payments"));
        assert_eq!(
            call.body,
            r#"{"amount":{"currency":"EUR","value":500},"merchantAccount":"TestMerchant","#.to_owned()
                + r#""metadata":{"merchant_reference":"order \"1\""},"#
                + r#""paymentMethod":{"storedPaymentMethodId":"M5N7TQ4TG5PFWR50","type":"scheme"},"#
                + r#""recurringProcessingModel":"UnscheduledCardOnFile","#
                + &format!(r#""reference":"{ID}","returnUrl":"https://shop.example/return","#)
                + r#""shopperInteraction":"ContAuth","shopperReference":"shopper-42"}"#
        );
        assert_eq!(call.idempotency_key.as_deref(), Some(format!("po:{ID}:confirm").as_str()));
        // What is learnt meanwhile changes nothing.
        let later = Order { expires_at: OffsetDateTime::now_utc(), ..order() };
        assert_eq!(adyen().prepare(Operation::Confirm, &later, Some("X")).unwrap().hash(), call.hash());
        assert!(!format!("{call:?}").contains("M5N7"));
    }

    #[test]
    fn a_payment_is_cancelled_by_our_reference_whatever_was_learnt_of_it() {
        let call = adyen().prepare(Operation::Cancel, &order(), None).unwrap();
        assert_eq!((call.method, call.path.as_str()), ("POST", "/cancels"));
        let body: Value = serde_json::from_str(&call.body).unwrap();
        let expected = json!({"merchantAccount": "TestMerchant", "paymentReference": ID, "reference": format!("{ID}-cancel")});
        assert_eq!(body, expected);
        let key = call.idempotency_key.clone().unwrap();
        assert_eq!(key, format!("po:{ID}:cancel"));
        assert!(key.len() <= 64);
        // One key is one request.
        for learnt in ["993617895204576J", "", "../payments"] {
            let later = adyen().prepare(Operation::Cancel, &order(), Some(learnt)).unwrap();
            assert_eq!((later.hash(), &later.idempotency_key), (call.hash(), &call.idempotency_key));
        }
    }

    #[test]
    fn what_adyen_cannot_charge_is_not_sent_and_the_token_is_not_shown() {
        for token in ["M5N7TQ4TG5PFWR50", "ab-M5N7TQ4TG5PFWR50", "shopper-", "-x"] {
            let order = Order { payment_method: SecretString::from(token), ..order() };
            let refused = adyen().prepare(Operation::Confirm, &order, None).unwrap_err();
            assert!(!refused.to_string().contains("M5N7"), "{refused}");
        }
        let order = Order { currency: "MGA".into(), ..order() };
        assert!(adyen().prepare(Operation::Confirm, &order, None).is_err());
        for operation in [Operation::Create, Operation::Get] {
            assert!(adyen().prepare(operation, &self::order(), Some("X")).is_err());
        }
    }

    #[test]
    fn what_is_too_long_for_adyen_is_cut() {
        let order = Order { merchant_reference: "é".repeat(500), ..order() };
        let call = adyen().prepare(Operation::Confirm, &order, None).unwrap();
        let body: Value = serde_json::from_str(&call.body).unwrap();
        assert_eq!(
            body["metadata"]["merchant_reference"].as_str().map(|text| text.chars().count()),
            Some(80)
        );
    }

    #[test]
    fn the_key_is_not_in_any_debug_text() {
        assert!(!format!("{:?}", adyen()).contains("AQEsecret"));
    }
}
