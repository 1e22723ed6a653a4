//! Stripe's webhooks: the signature over the raw bytes, and what its events mean.
//!
//! `Stripe-Signature: t=<unix seconds>,v1=<hex>[,v1=<hex>…]`, where v1 is HMAC-SHA256 under the whole secret, `whsec_` included, of
//! `<t>.<body>` (docs.stripe.com/webhooks/signature). Events come in any order and more than once: only those of final types are
//! evidence, by the status and amounts of the PaymentIntent in them; all others say that it is worth asking.

use std::time::Duration;

use hmac::{Hmac, KeyInit as _, Mac as _};
use secrecy::{ExposeSecret as _, SecretString};
use serde_json::Value;
use sha2::Sha256;
use subtle::{Choice, ConstantTimeEq as _};
use time::OffsetDateTime;
use uuid::Uuid;

use super::{Meaning, Refusal, Sender, arrived::Arrived};
use crate::psp::{Order, Verdict, stripe_outcomes};

/// Header of the signature.
pub(super) const SIGNATURE: &str = "stripe-signature";
/// More than Stripe sends, even while secrets are rotated.
const SIGNATURES_MAX: usize = 16;
/// A unix time needs no more for some thousands of years.
const TIME_MAX_DIGITS: usize = 12;

/// What verifies requests.
#[derive(Debug)]
pub struct Keys {
    secrets: Vec<SecretString>,
    tolerance: Duration,
}

/// A header that could be read.
struct Header<'h> {
    /// As it stands in the header: it is signed so.
    time: &'h str,
    unix_seconds: i64,
    signatures: Vec<[u8; 32]>,
}

impl Keys {
    /// Any of these secrets may have signed, not longer ago or further ahead than `tolerance`.
    pub fn new(secrets: Vec<SecretString>, tolerance: Duration) -> Self {
        Self { secrets, tolerance }
    }

    /// Looks at every secret and every signature, for as long whichever fits.
    pub fn verify(&self, header: &[u8], body: &[u8], now: OffsetDateTime) -> Result<(), Refusal> {
        let header = Header::read(header).ok_or(Refusal::Header)?;
        let mut genuine = Choice::from(0);
        for secret in &self.secrets {
            // HMAC takes keys of any length.
            let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(secret.expose_secret().as_bytes()) else {
                continue;
            };
            mac.update(header.time.as_bytes());
            mac.update(b".");
            mac.update(body);
            let expected: [u8; 32] = mac.finalize().into_bytes().into();
            for signature in &header.signatures {
                genuine |= expected.ct_eq(signature);
            }
        }
        if !bool::from(genuine) {
            return Err(Refusal::Signature);
        }
        let away_seconds = now.unix_timestamp().abs_diff(header.unix_seconds);
        if away_seconds > self.tolerance.as_secs() { Err(Refusal::Stale) } else { Ok(()) }
    }
}

impl<'h> Header<'h> {
    /// Signatures of other schemes, and such as cannot be one, are passed over; None if the rest is not as it must be.
    fn read(header: &'h [u8]) -> Option<Self> {
        let (mut time, mut signatures) = (None, Vec::new());
        for pair in std::str::from_utf8(header).ok()?.split(',') {
            let (name, value) = pair.split_once('=').filter(|(_, value)| !value.contains('='))?;
            match name {
                "t" if time.is_some() => return None,
                "t" => time = Some(value),
                "v1" if signatures.len() == SIGNATURES_MAX => return None,
                "v1" => signatures.extend(signature(value)),
                _ => {}
            }
        }
        let time = time.filter(|time| (1..=TIME_MAX_DIGITS).contains(&time.len()))?;
        let digits = time.bytes().all(|byte| byte.is_ascii_digit());
        Some(Self { time, unix_seconds: time.parse().ok().filter(|_| digits)?, signatures })
    }
}

/// As Stripe writes it: hexadecimal in lower case, so that there is one way to write a signature.
fn signature(text: &str) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    let lower = !text.bytes().any(|byte| byte.is_ascii_uppercase());
    hex::decode_to_slice(text, &mut bytes).ok().filter(|()| lower).map(|()| bytes)
}

/// A verified body as it is stored.
pub(super) fn arrived(body: Vec<u8>, received_at: OffsetDateTime) -> Arrived {
    let Ok(event @ Value::Object(_)) = serde_json::from_slice::<Value>(&body) else {
        return Arrived::unreadable(Sender::Stripe, &body, received_at);
    };
    let Some(id) = event["id"].as_str().filter(|id| !id.is_empty()).map(str::to_owned) else {
        return Arrived::unreadable(Sender::Stripe, &body, received_at);
    };
    let kind = event["type"].as_str().unwrap_or_default().to_owned();
    let order = event["data"]["object"]["metadata"]["payment_order_id"].as_str();
    let payment_order_id = order.and_then(|id| Uuid::try_parse(id).ok());
    Arrived::event(Sender::Stripe, &id, &kind, payment_order_id, event, Some(body), received_at)
}

/// Whether it is of the live mode; None if it does not say.
pub(super) fn live(event: &Value) -> Option<bool> {
    event["livemode"].as_bool()
}

/// Whether events of this type are about how a payment stands.
pub(super) fn concerns(event_type: &str) -> bool {
    event_type.starts_with("payment_intent.")
}

/// What an event means for its order.
pub(super) fn meaning(event: &Value, order: &Order) -> Meaning {
    let kind = event["type"].as_str().unwrap_or_default();
    if !concerns(kind) {
        return Meaning::Nothing;
    }
    let answer = stripe_outcomes::intent(&event["data"]["object"], order);
    match (kind, answer.verdict) {
        ("payment_intent.succeeded", Verdict::Succeeded | Verdict::AmountMismatch)
        | ("payment_intent.canceled", Verdict::Cancelled | Verdict::AmountMismatch) => {
            Meaning::Evidence(answer)
        }
        _ => Meaning::Hint(answer),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::psp::code;

    /// stripe-dotnet, `event_test_signature.json`, and its test's signature.
    const S1_BODY: &str = "{\n  \"id\": \"evt_123\",\n  \"object\": \"event\",\n  \"account\": \"acct_123\",\n  \"api_version\": \"2017-05-25\",\n  \"created\": 1533204620,\n  \"data\": {\n    \"object\": {\n      \"id\": \"cus_123\",\n      \"object\": \"customer\",\n      \"created\": 123456789,\n      \"email\": \"test@stripe.com\",\n      \"livemode\": false,\n      \"metadata\": {}\n    }\n  },\n  \"livemode\": false,\n  \"pending_webhooks\": 1,\n  \"request\": {\n    \"id\": \"req_123\",\n    \"idempotency_key\": \"idempotency-key-123\"\n  },\n  \"type\": \"customer.created\"\n}\n";
    const S1: (&str, i64, &str) =
        ("webhook_secret", 1_533_204_620, "2220f87ef101a04665f11cdf770523143f875572008577fa0f20882ddb9cc3c7");
    /// stripe-python, `DUMMY_WEBHOOK_PAYLOAD`.
    const S2_BODY: &str = "{\n  \"id\": \"evt_test_webhook\",\n  \"object\": \"event\",\n  \"data\": { \"object\": { \"id\": \"rdr_123\", \"object\": \"terminal.reader\" } }\n}";
    const S2: (&str, i64, &str) =
        ("whsec_test_secret", 12_345, "07b1ede164afb7b5de91267ffa656f568c65d6e0783ce0ac55ee094643578eda");

    fn at(unix_seconds: i64) -> OffsetDateTime {
        OffsetDateTime::from_unix_timestamp(unix_seconds).unwrap()
    }

    fn keys(secrets: &[&str], tolerance_seconds: u64) -> Keys {
        let secrets = secrets.iter().map(|secret| SecretString::from(*secret)).collect();
        Keys::new(secrets, Duration::from_secs(tolerance_seconds))
    }

    #[test]
    fn the_published_vectors_verify() {
        use sha2::Digest as _;
        assert_eq!(S1_BODY.len(), 484);
        let hash = hex::encode(Sha256::digest(S1_BODY));
        assert_eq!(hash, "98cc89412549ca7faf118fca984763bdb6f81e13d1ce8c528dbbb5be602ec1be");
        for ((secret, t, v1), body) in [(S1, S1_BODY), (S2, S2_BODY)] {
            let header = format!("t={t},v1={v1}");
            let verify =
                |seconds| keys(&[secret], 300).verify(header.as_bytes(), body.as_bytes(), at(t + seconds));
            assert_eq!(verify(100), Ok(()));
            assert_eq!((verify(300), verify(-300)), (Ok(()), Ok(())));
            // Both ways: what was signed in the future is no better.
            assert_eq!(
                (verify(400), verify(301), verify(-301)),
                (Err(Refusal::Stale), Err(Refusal::Stale), Err(Refusal::Stale))
            );
            let other = keys(&["whsec_other"], 300).verify(header.as_bytes(), body.as_bytes(), at(t));
            assert_eq!(other, Err(Refusal::Signature));
            let changed = body.replace("evt", "evu");
            assert_eq!(
                keys(&[secret], 300).verify(header.as_bytes(), changed.as_bytes(), at(t)),
                Err(Refusal::Signature)
            );
        }
    }

    #[test]
    fn headers_that_must_be_refused_are() {
        let (secret, t, v1) = S2;
        let upper = v1.to_uppercase();
        for (header, refusal) in [
            ("", Refusal::Header),
            ("bad_header", Refusal::Header),
            ("i'm not even a real signature header", Refusal::Header),
            ("v1,t=1", Refusal::Header),
            ("t=", Refusal::Header),
            (&format!("t=,v1={v1}"), Refusal::Header),
            ("t,v1=,v0=", Refusal::Header),
            ("t,v1=,", Refusal::Header),
            ("t,,", Refusal::Header),
            (",,", Refusal::Header),
            ("t", Refusal::Header),
            (&format!("v1={v1}"), Refusal::Header),
            (&format!("t={t},t={t},v1={v1}"), Refusal::Header),
            (&format!("t=+{t},v1={v1}"), Refusal::Header),
            (&format!("t= {t},v1={v1}"), Refusal::Header),
            (&format!("t=0{t},v1={v1}"), Refusal::Signature),
            (&format!("t={t}"), Refusal::Signature),
            (&format!("t={t},v0={v1}"), Refusal::Signature),
            (&format!("t={t},v1=deadbeef"), Refusal::Signature),
            (&format!("t={t},v1={upper}"), Refusal::Signature),
            (&format!("t={t}{}", format!(",v1={v1}").repeat(17)), Refusal::Header),
        ] {
            let found = keys(&[secret], 300).verify(header.as_bytes(), S2_BODY.as_bytes(), at(t));
            assert_eq!(found, Err(refusal), "{header:?}");
        }
        let header = format!("t={t},v1={v1}");
        let verify =
            |tolerance| keys(&[secret], tolerance).verify(header.as_bytes(), S2_BODY.as_bytes(), at(t + 15));
        assert_eq!((verify(10), verify(20)), (Err(Refusal::Stale), Ok(())));
        assert_eq!(keys(&[secret], 300).verify(b"\xff", S2_BODY.as_bytes(), at(t)), Err(Refusal::Header));
    }

    #[test]
    fn headers_that_must_be_accepted_are_also_during_a_rotation() {
        let (secret, t, v1) = S2;
        let mut mac = Hmac::<Sha256>::new_from_slice(b"whsec_new").unwrap();
        mac.update(format!("{t}.{S2_BODY}").as_bytes());
        let new = hex::encode(mac.finalize().into_bytes());
        let bad = format!("t={t},v1={v1},v1=bad_signature");
        let both = format!("t={t},v1={v1},v1={new}");
        let only_new = format!("t={t},v1={new}");
        for (header, secrets, accepted) in [
            (&bad, &[secret][..], true),
            (&both, &[secret], true),
            (&both, &["whsec_new"], true),
            (&both, &["whsec_third"], false),
            (&only_new, &[secret, "whsec_new"], true),
            (&only_new, &["whsec_new", secret], true),
            (&only_new, &[secret], false),
        ] {
            let found = keys(secrets, 300).verify(header.as_bytes(), S2_BODY.as_bytes(), at(t));
            assert_eq!(found.is_ok(), accepted, "{header} {secrets:?}");
        }
    }

    #[test]
    fn a_real_header_can_be_read() {
        let header = b"t=1492774577,v1=5257a869e7ecebeda32affa62cdca3fa51cad7e77a0e56ff536d0ce8e108d8bd";
        let header = Header::read(header).unwrap();
        assert_eq!((header.unix_seconds, header.signatures.len()), (1_492_774_577, 1));
    }

    #[test]
    fn an_event_is_known_by_its_id_and_belongs_to_the_order_in_its_metadata() {
        let id = Uuid::from_u128(7);
        let event = json!({"id": "evt_1", "type": "payment_intent.succeeded",
            "data": {"object": {"metadata": {"payment_order_id": id.to_string()}}}});
        let stored = arrived(event.to_string().into_bytes(), at(1));
        assert_eq!((stored.dedup_key.as_str(), stored.payment_order_id), ("evt_1", Some(id)));
        for not_an_event in ["", "[]", "{}", "{\"id\":7}", "{\"id\":\"\"}", "\"4111111111111111\""] {
            let stored = arrived(not_an_event.as_bytes().to_vec(), at(1));
            assert!(stored.dedup_key.starts_with("sha256:"), "{not_an_event}");
            assert!(!stored.body.windows(16).any(|part| part == b"4111111111111111"));
        }
    }

    #[test]
    fn only_final_types_with_their_status_are_evidence() {
        let order = Order::sample("STRIPE");
        let event = |kind: &str, status: &str, amount: i64| {
            json!({"id": "evt_1", "type": kind, "data": {"object": {"object": "payment_intent", "id": "pi_1", "status": status,
                "amount": amount, "amount_received": amount, "currency": "eur", "last_payment_error": null}}})
        };
        let told = |kind: &str, status: &str, amount: i64| match meaning(&event(kind, status, amount), &order)
        {
            Meaning::Evidence(answer) => Some((true, answer.verdict, answer.reference)),
            Meaning::Hint(answer) => Some((false, answer.verdict, answer.reference)),
            Meaning::Nothing => None,
        };
        let pi = || Some("pi_1".to_owned());
        for (kind, status, amount, evidence, verdict) in [
            ("payment_intent.succeeded", "succeeded", 1234, true, Verdict::Succeeded),
            ("payment_intent.succeeded", "succeeded", 1235, true, Verdict::AmountMismatch),
            ("payment_intent.succeeded", "processing", 1234, false, Verdict::Processing),
            ("payment_intent.canceled", "canceled", 1234, true, Verdict::Cancelled),
            ("payment_intent.canceled", "succeeded", 1234, false, Verdict::Succeeded),
            ("payment_intent.processing", "processing", 1234, false, Verdict::Processing),
            ("payment_intent.payment_failed", "requires_payment_method", 1234, false, Verdict::Unconfirmed),
            ("payment_intent.of_2030", "of_2030", 1234, false, Verdict::Unclear),
        ] {
            assert_eq!(told(kind, status, amount), Some((evidence, verdict, pi())), "{kind} {status}");
        }
        for kind in ["charge.succeeded", "customer.created", "", "payment_intents.succeeded"] {
            assert_eq!(told(kind, "succeeded", 1234), None, "{kind}");
        }
        let Meaning::Evidence(answer) = meaning(&event("payment_intent.succeeded", "succeeded", 1), &order)
        else {
            panic!("no evidence");
        };
        assert_eq!(answer.error_code.as_deref(), Some(code::AMOUNT_MISMATCH));
    }
}
