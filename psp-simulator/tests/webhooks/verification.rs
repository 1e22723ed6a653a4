//! Verifies signatures, by the algorithms that the PSPs publish, from SHA-256 upwards: nothing of the simulator is in it.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;
use sha2::{Digest, Sha256};

/// RFC 2104 with a block of 64 bytes.
fn hmac_sha256(key: &[u8], message: &[u8]) -> [u8; 32] {
    let mut block = [0_u8; 64];
    if key.len() > block.len() {
        block[..32].copy_from_slice(&Sha256::digest(key));
    } else {
        block[..key.len()].copy_from_slice(key);
    }
    let pad = |byte: u8| block.map(|key| key ^ byte);
    let inner = Sha256::new().chain_update(pad(0x36)).chain_update(message).finalize();
    Sha256::new().chain_update(pad(0x5c)).chain_update(inner).finalize().into()
}

/// `Stripe-Signature` over the raw body; gives the time of signing.
pub(crate) fn stripe(secret: &str, header: &str, body: &[u8]) -> Option<i64> {
    let mut signed_at = None;
    let mut signatures = Vec::new();
    for part in header.split(',') {
        match part.split_once('=')? {
            ("t", text) => signed_at = text.parse::<i64>().ok(),
            ("v1", text) => signatures.push(hex::decode(text).ok()?),
            _ => {}
        }
    }
    let signed_at = signed_at?;
    let message = [format!("{signed_at}.").as_bytes(), body].concat();
    let expected = hmac_sha256(secret.as_bytes(), &message);
    signatures.iter().any(|signature| signature[..] == expected).then_some(signed_at)
}

/// One `NotificationRequestItem`.
pub(crate) fn adyen(hex_key: &str, item: &Value) -> bool {
    let text = |value: &Value| match value {
        Value::String(text) => text.clone(),
        Value::Number(number) => number.to_string(),
        _ => String::new(),
    };
    let fields = [
        &item["pspReference"],
        &item["originalReference"],
        &item["merchantAccountCode"],
        &item["merchantReference"],
        &item["amount"]["value"],
        &item["amount"]["currency"],
        &item["eventCode"],
        &item["success"],
    ];
    let message = fields.map(text).join(":");
    let signature = item["additionalData"]["hmacSignature"].as_str();
    let signature = signature.and_then(|signature| STANDARD.decode(signature).ok());
    signature
        .is_some_and(|signature| signature == hmac_sha256(&hex::decode(hex_key).unwrap(), message.as_bytes()))
}

const STRIPE_DOTNET: &str = r#"{
  "id": "evt_123",
  "object": "event",
  "account": "acct_123",
  "api_version": "2017-05-25",
  "created": 1533204620,
  "data": {
    "object": {
      "id": "cus_123",
      "object": "customer",
      "created": 123456789,
      "email": "test@stripe.com",
      "livemode": false,
      "metadata": {}
    }
  },
  "livemode": false,
  "pending_webhooks": 1,
  "request": {
    "id": "req_123",
    "idempotency_key": "idempotency-key-123"
  },
  "type": "customer.created"
}
"#;

#[test]
fn the_vectors_of_stripes_sdks_hold() {
    assert_eq!(STRIPE_DOTNET.len(), 484);
    let good = "t=1533204620,v1=2220f87ef101a04665f11cdf770523143f875572008577fa0f20882ddb9cc3c7";
    assert_eq!(stripe("webhook_secret", good, STRIPE_DOTNET.as_bytes()), Some(1_533_204_620));
    assert_eq!(stripe("webhook_secret", good, STRIPE_DOTNET.trim_end().as_bytes()), None);
    assert_eq!(stripe("other", good, STRIPE_DOTNET.as_bytes()), None);
    let later = good.replace("1533204620", "1533204621");
    assert_eq!(stripe("webhook_secret", &later, STRIPE_DOTNET.as_bytes()), None);
}

#[test]
fn the_vectors_of_adyens_sdks_hold() {
    let key = "44782DEF547AAA06C910C43932B1EB0C71FC68D9D0C057550C48EC2ACF6BA056";
    let mut item = serde_json::json!({
        "pspReference": "7914073381342284", "merchantAccountCode": "TestMerchant",
        "merchantReference": "TestPayment-1407325143704", "amount": { "value": 1130, "currency": "EUR" },
        "eventCode": "AUTHORISATION", "success": "true",
        "additionalData": { "hmacSignature": "coqCmt/IZ4E3CzPvMY8zTjQVL5hYJUiBRg8UU+iCWo0=" },
    });
    assert!(adyen(key, &item));
    item["amount"]["value"] = 1131.into();
    assert!(!adyen(key, &item));
}
