//! Adyen's webhooks: the password of the request, the signature of every item, and what items mean.
//!
//! An item is signed by HMAC-SHA256 over eight of its fields joined by colons, nothing escaped; the signature is among the item's
//! `additionalData` (docs.adyen.com, "Verify HMAC signatures"). It covers neither dates nor reasons, and is valid for ever: what is
//! said again is known by its dedup key, and what is settled stays so.

use hmac::{Hmac, KeyInit as _, Mac as _};
use secrecy::{ExposeSecret as _, SecretString};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use subtle::{Choice, ConstantTimeEq as _};
use time::OffsetDateTime;
use uuid::Uuid;

use anyhow::anyhow;
use base64::{Engine as _, engine::general_purpose::STANDARD};

use super::{Meaning, Refusal, Sender, arrived::Arrived};
use crate::psp::{Answer, Order, Verdict, adyen::CURRENCIES, code};

/// Most items of one request. Adyen sends one, or a handful.
const ITEMS_MAX: usize = 100;

/// What verifies requests.
pub struct Keys {
    hmac: Vec<[u8; 32]>,
    /// SHA-256 of the whole header value of each user.
    credentials: Vec<[u8; 32]>,
}

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} HMAC keys, {} users", self.hmac.len(), self.credentials.len())
    }
}

/// An HMAC key as Adyen shows it: 32 bytes in hexadecimal.
pub fn hmac_key(text: &SecretString) -> anyhow::Result<[u8; 32]> {
    let mut key = [0; 32];
    // The error's text could repeat the key.
    hex::decode_to_slice(text.expose_secret(), &mut key)
        .map_err(|_| anyhow!("a key must be 64 hexadecimal digits"))?;
    Ok(key)
}

impl Keys {
    /// Any of these keys may have signed, and any of these users (`user:password`) may send.
    pub fn new(hmac: Vec<[u8; 32]>, credentials: &[&SecretString]) -> Self {
        let header = |pair: &&SecretString| {
            Sha256::digest(format!("Basic {}", STANDARD.encode(pair.expose_secret()))).into()
        };
        Self { hmac, credentials: credentials.iter().map(header).collect() }
    }

    /// Compares with every user, for as long whichever fits.
    pub fn authorise(&self, header: &[u8]) -> Result<(), Refusal> {
        let presented: [u8; 32] = Sha256::digest(header).into();
        let known = self.credentials.iter().map(|known| known.ct_eq(&presented));
        let known = known.fold(Choice::from(0), |any, one| any | one);
        if bool::from(known) { Ok(()) } else { Err(Refusal::Credentials) }
    }

    /// The items of a request, if every single one is signed.
    pub fn verify(&self, body: &[u8], received_at: OffsetDateTime) -> Result<Vec<Arrived>, Refusal> {
        let request: Value = serde_json::from_slice(body).map_err(|_| Refusal::Unreadable)?;
        let items = request["notificationItems"].as_array().ok_or(Refusal::Unreadable)?;
        if items.is_empty() || items.len() > ITEMS_MAX {
            return Err(Refusal::Unreadable);
        }
        let items = items.iter().map(|item| &item["NotificationRequestItem"]);
        for item in items.clone() {
            if !self.signed(item)? {
                return Err(Refusal::Signature);
            }
        }
        Ok(items.map(|item| arrived(&request["live"], item, received_at)).collect())
    }

    /// Whether one of the keys has signed the item; looks at all of them, for as long whichever fits.
    fn signed(&self, item: &Value) -> Result<bool, Refusal> {
        let message = signed_text(item).ok_or(Refusal::Unreadable)?;
        let signature = item["additionalData"]["hmacSignature"].as_str().unwrap_or_default();
        // 44 characters can be 33 bytes: those are compared, too, and differ.
        let signature = STANDARD.decode(signature).unwrap_or_default();
        let mut genuine = Choice::from(0);
        for key in &self.hmac {
            let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(key) else { continue };
            mac.update(message.as_bytes());
            let expected: [u8; 32] = mac.finalize().into_bytes().into();
            genuine |= expected.as_slice().ct_eq(&signature);
        }
        Ok(genuine.into())
    }
}

/// What the signature covers; None if a field is neither text nor number.
fn signed_text(item: &Value) -> Option<String> {
    let amount = &item["amount"];
    let fields = [
        &item["pspReference"],
        &item["originalReference"],
        &item["merchantAccountCode"],
        &item["merchantReference"],
        &amount["value"],
        &amount["currency"],
        &item["eventCode"],
        &item["success"],
    ];
    item.is_object().then_some(())?;
    let texts: Option<Vec<String>> = fields.into_iter().map(text).collect();
    Some(texts?.join(":"))
}

/// Missing is empty. `success` is a text, and an amount a number: whoever writes them otherwise means the same.
fn text(value: &Value) -> Option<String> {
    match value {
        Value::Null => Some(String::new()),
        Value::Bool(value) => Some(value.to_string()),
        Value::Number(number) => Some(number.to_string()),
        Value::String(text) => Some(text.clone()),
        Value::Array(_) | Value::Object(_) => None,
    }
}

/// A verified item as it is stored: alone in its envelope.
fn arrived(live: &Value, item: &Value, received_at: OffsetDateTime) -> Arrived {
    let field = |name: &str| text(&item[name]).unwrap_or_default();
    let (kind, order) = (field("eventCode"), field("merchantReference"));
    let key = json!([field("pspReference"), kind, field("success"), field("originalReference")]);
    let alone = json!({"live": live, "notificationItems": [{"NotificationRequestItem": item}]});
    let payment_order_id = Uuid::try_parse(&order).ok();
    Arrived::event(Sender::Adyen, &key.to_string(), &kind, payment_order_id, alone, None, received_at)
}

/// Whether it is of the live platform; None if it does not say.
pub(super) fn live(event: &Value) -> Option<bool> {
    text(&event["live"])?.parse().ok()
}

/// Whether events of this code are about how a payment stands. Refunds and disputes are not: they are about another day.
pub(super) fn concerns(event_code: &str) -> bool {
    matches!(
        event_code,
        "AUTHORISATION"
            | "PENDING"
            | "CANCELLATION"
            | "TECHNICAL_CANCEL"
            | "CAPTURE_FAILED"
            | "EXPIRE"
            | "OFFER_CLOSED"
    )
}

/// What an event means for its order.
pub(super) fn meaning(event: &Value, order: &Order) -> Meaning {
    let item = &event["notificationItems"][0]["NotificationRequestItem"];
    let (kind, success) = (item["eventCode"].as_str().unwrap_or_default(), text(&item["success"]));
    let success = success.as_deref() == Some("true");
    let of = |verdict, reference: &Value| Answer {
        reference: reference.as_str().filter(|text| !text.is_empty()).map(str::to_owned),
        ..Answer::new(verdict)
    };
    // What is said about a payment's cancellation or capture has a reference of its own beside that of the payment.
    let (own, original) = (&item["pspReference"], &item["originalReference"]);
    match (kind, success) {
        ("AUTHORISATION", true) => Meaning::Evidence(match mismatch(item, order) {
            Some(text) => of(Verdict::AmountMismatch, own).error(code::AMOUNT_MISMATCH, &text),
            None => of(Verdict::Succeeded, own),
        }),
        ("AUTHORISATION", false) => Meaning::Evidence(refused(of(Verdict::Cancelled, own), item)),
        ("CANCELLATION" | "TECHNICAL_CANCEL", true) => {
            Meaning::Evidence(of(Verdict::Cancelled, original).error(code::CANCELLED, "cancelled at the PSP"))
        }
        // The money was promised and did not come: a contradiction, if success was recorded.
        ("CAPTURE_FAILED" | "EXPIRE" | "OFFER_CLOSED", true) => {
            let reason = item["reason"].as_str().unwrap_or_default();
            Meaning::Evidence(of(Verdict::Cancelled, original).error(&kind.to_lowercase(), reason))
        }
        ("PENDING", _) => Meaning::Hint(of(Verdict::Processing, own)),
        _ => Meaning::Nothing,
    }
}

/// Adyen's amount or currency is not ours.
fn mismatch(item: &Value, order: &Order) -> Option<String> {
    let (value, currency) =
        (text(&item["amount"]["value"]).unwrap_or_default(), item["amount"]["currency"].as_str());
    let minor = value.parse().ok().and_then(|value| CURRENCIES.to_minor(value, currency?));
    if minor == Some(order.amount_minor) && currency == Some(order.currency.as_str()) {
        return None;
    }
    let (ours, currency) = (order.amount_minor, currency.unwrap_or_default());
    Some(format!("the PSP says {value} {currency}, expected {ours} minor units of {}", order.currency))
}

/// A refusal with its reason, which is a text here: the number that answers have beside it is missing.
fn refused(answer: Answer, item: &Value) -> Answer {
    let reason = item["reason"].as_str().unwrap_or_default();
    answer.error("refused", reason)
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY_A1: &str = "44782DEF547AAA06C910C43932B1EB0C71FC68D9D0C057550C48EC2ACF6BA056";
    const KEY_A2: &str = "DFB1EB5485895CFA84146406857104ABB4CBCABDC8AAF103A624C8F6A3EAAB00";
    const KEY_A5: &str = "74F490DD33F7327BAECC88B2947C011FC02D014A473AAA33A8EC93E4DC069174";

    fn key(text: &str) -> [u8; 32] {
        hmac_key(&SecretString::from(text)).unwrap()
    }

    fn keys(hmac: &[&str]) -> Keys {
        Keys::new(hmac.iter().map(|text| key(text)).collect(), &[&SecretString::from("user:password")])
    }

    /// An item from its text to sign, where that has no colons inside its fields.
    fn item(text: &str, signature: &str) -> Value {
        let f: Vec<&str> = text.split(':').collect();
        json!({"pspReference": f[0], "originalReference": f[1], "merchantAccountCode": f[2], "merchantReference": f[3],
            "amount": {"value": f[4].parse::<i64>().unwrap(), "currency": f[5]}, "eventCode": f[6], "success": f[7],
            "additionalData": {"hmacSignature": signature}})
    }

    fn a1() -> Value {
        item(
            "7914073381342284::TestMerchant:TestPayment-1407325143704:1130:EUR:AUTHORISATION:true",
            "coqCmt/IZ4E3CzPvMY8zTjQVL5hYJUiBRg8UU+iCWo0=",
        )
    }

    fn request(items: &[Value]) -> Vec<u8> {
        let items: Vec<Value> = items.iter().map(|item| json!({"NotificationRequestItem": item})).collect();
        json!({"live": "false", "notificationItems": items}).to_string().into_bytes()
    }

    #[test]
    fn the_published_vectors_verify() {
        let a2 = item(
            "pspReference:originalReference:merchantAccount:reference:1000:EUR:EVENT:true",
            "ipnxGCaUZ4l8TUW75a71/ghd2Fe5ffvX0pV4TLTntIc=",
        );
        let a5 = json!({"pspReference": "ZVWN7D3WSMK2WN82", "merchantAccountCode": "AntoniStroinski",
            "merchantReference": "\\:/\\/slashes are fun", "amount": {"value": 1000, "currency": "EUR"},
            "eventCode": "AUTHORISATION", "success": "true",
            "additionalData": {"hmacSignature": "CZErGCNQaSsxbaQfZaJlakqo7KPP+mIa8a+wx3yNs9A="}});
        for (hex, item) in [(KEY_A1, a1()), (KEY_A2, a2), (KEY_A5, a5)] {
            assert_eq!(keys(&[hex]).signed(&item), Ok(true), "{item}");
            // The old and the new key while they are rotated.
            assert_eq!(keys(&[&"00".repeat(32), hex]).signed(&item), Ok(true), "{item}");
            assert_eq!(keys(&[&"00".repeat(32)]).signed(&item), Ok(false), "{item}");
        }
        assert_eq!(
            signed_text(
                &json!({"pspReference": "test_REPORT_AVAILABLE", "merchantAccountCode": "Magento2Rik",
                "merchantReference": "testMerchantRef1", "eventCode": "REPORT_AVAILABLE", "success": "true"})
            )
            .unwrap(),
            "test_REPORT_AVAILABLE::Magento2Rik:testMerchantRef1:::REPORT_AVAILABLE:true"
        );
    }

    #[test]
    fn what_must_be_refused_is() {
        for bad in ["BadKey", "", "4478"] {
            assert!(hmac_key(&SecretString::from(bad)).is_err(), "{bad}");
        }
        let signed = |change: &dyn Fn(&mut Value)| {
            let mut item = a1();
            change(&mut item);
            keys(&[KEY_A1]).signed(&item)
        };
        assert_eq!(signed(&|_| {}), Ok(true));
        assert_eq!(signed(&|i| i["amount"]["value"] = "1130".into()), Ok(true), "as a text");
        assert_eq!(signed(&|i| i["amount"]["value"] = 1131.into()), Ok(false));
        assert_eq!(signed(&|i| i["additionalData"] = json!({})), Ok(false));
        for signature in
            ["", "x", &"A".repeat(44), &"A".repeat(43), "coqCmt/IZ4E3CzPvMY8zTjQVL5hYJUiBRg8UU+iCWo1="]
        {
            assert_eq!(
                signed(&|i| i["additionalData"]["hmacSignature"] = signature.into()),
                Ok(false),
                "{signature}"
            );
        }
        assert_eq!(signed(&|i| i["eventCode"] = json!(["AUTHORISATION"])), Err(Refusal::Unreadable));
    }

    #[test]
    fn one_bad_item_refuses_all_and_nothing_unsigned_gets_in() {
        let at = OffsetDateTime::UNIX_EPOCH;
        let verify = |body: &[u8]| keys(&[KEY_A1]).verify(body, at).map(|items| items.len());
        let mut bad = a1();
        bad["success"] = "false".into();
        assert_eq!(verify(&request(&[a1()])), Ok(1));
        assert_eq!(verify(&request(&[a1(), a1()])), Ok(2));
        assert_eq!(verify(&request(&[a1(), bad.clone()])), Err(Refusal::Signature));
        assert_eq!(verify(&request(&[bad, a1()])), Err(Refusal::Signature));
        assert_eq!(verify(&request(&[Value::Null])), Err(Refusal::Unreadable));
        for body in [
            &request(&[])[..],
            b"",
            b"{}",
            b"[]",
            b"{\"notificationItems\":{}}",
            b"{\"notificationItems\":[1]}",
        ] {
            assert_eq!(verify(body), Err(Refusal::Unreadable), "{}", String::from_utf8_lossy(body));
        }
        assert_eq!(verify(&request(&vec![a1(); 101])), Err(Refusal::Unreadable));
    }

    #[test]
    fn only_known_users_may_send() {
        let keys =
            Keys::new(vec![], &[&SecretString::from("user:password"), &SecretString::from("new:secret")]);
        let header = |pair: &str| format!("Basic {}", STANDARD.encode(pair));
        for (value, accepted) in [
            (header("user:password"), true),
            (header("new:secret"), true),
            (header("user:secret"), false),
            (header("user:"), false),
            (String::new(), false),
            ("Basic".to_owned(), false),
            ("user:password".to_owned(), false),
            (header("user:password").to_lowercase(), false),
        ] {
            assert_eq!(keys.authorise(value.as_bytes()).is_ok(), accepted, "{value}");
        }
        assert!(!format!("{keys:?}").contains("password"));
    }

    #[test]
    fn an_item_is_known_by_what_it_says_about_which_payment() {
        let at = OffsetDateTime::UNIX_EPOCH;
        let stored = &keys(&[KEY_A1]).verify(&request(&[a1()]), at).unwrap()[0];
        assert_eq!(stored.dedup_key, r#"["7914073381342284","AUTHORISATION","true",""]"#);
        assert_eq!((stored.event_type.as_str(), stored.payment_order_id), ("AUTHORISATION", None));
        assert!(!stored.body_masked);
        let body: Value = serde_json::from_slice(&stored.body).unwrap();
        assert_eq!(live(&body), Some(false));
        assert_eq!(body["notificationItems"][0]["NotificationRequestItem"], a1());
    }

    #[test]
    fn each_event_code_has_one_meaning() {
        let order = Order { amount_minor: 1130, ..Order::sample("ADYEN") };
        let told = |kind: &str, success: &str, value: i64, currency: &str| {
            let order =
                Order { currency: if currency == "ISK" { "ISK" } else { "EUR" }.into(), ..order.clone() };
            let item = json!({"pspReference": "PSP1", "originalReference": "ORIG1", "eventCode": kind, "success": success,
                "reason": "why", "amount": {"value": value, "currency": currency}});
            let event = json!({"live": "false", "notificationItems": [{"NotificationRequestItem": item}]});
            match meaning(&event, &order) {
                Meaning::Evidence(answer) => {
                    format!("{:?} {:?} {:?}", answer.verdict, answer.reference, answer.error_code)
                }
                Meaning::Hint(answer) => format!("hint {:?}", answer.verdict),
                Meaning::Nothing => String::new(),
            }
        };
        let psp1 = |verdict: &str, code: &str| format!("{verdict} Some(\"PSP1\") {code}");
        let mismatch = psp1("AmountMismatch", "Some(\"AMOUNT_MISMATCH\")");
        assert_eq!(told("AUTHORISATION", "true", 1130, "EUR"), psp1("Succeeded", "None"));
        assert_eq!(told("AUTHORISATION", "true", 1131, "EUR"), mismatch);
        // Adyen counts it in hundredths, which ISO 4217 does not.
        assert_eq!(told("AUTHORISATION", "true", 113_000, "ISK"), psp1("Succeeded", "None"));
        assert_eq!(told("AUTHORISATION", "true", 1130, "ISK"), mismatch);
        assert_eq!(told("AUTHORISATION", "true", 1130, "USD"), mismatch);
        assert_eq!(told("AUTHORISATION", "false", 1130, "EUR"), psp1("Cancelled", "Some(\"refused\")"));
        for kind in ["CANCELLATION", "TECHNICAL_CANCEL"] {
            assert_eq!(told(kind, "true", 0, ""), "Cancelled Some(\"ORIG1\") Some(\"CANCELLED\")");
            assert_eq!(told(kind, "false", 0, ""), "");
        }
        assert_eq!(
            told("CAPTURE_FAILED", "true", 0, ""),
            "Cancelled Some(\"ORIG1\") Some(\"capture_failed\")"
        );
        assert_eq!(told("PENDING", "true", 0, ""), "hint Processing");
        for kind in ["CAPTURE", "REFUND", "CHARGEBACK", "REPORT_AVAILABLE", "OF_2030", ""] {
            assert_eq!(told(kind, "true", 1130, "EUR"), "", "{kind}");
            assert!(!concerns(kind), "{kind}");
        }
    }
}
