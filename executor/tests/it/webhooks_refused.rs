//! Ten thousand ways to be wrong, and none gets in.

use axum::{
    Router,
    body::Body,
    http::{HeaderValue, Method, Request, StatusCode, header},
};
use proptest::{
    prelude::*,
    sample::Index,
    strategy::ValueTree as _,
    test_runner::{Config as ProptestConfig, RngAlgorithm, TestRng, TestRunner},
};
use tower::ServiceExt as _;
use uuid::Uuid;

use crate::{
    sender::{
        ADYEN_KEY, ADYEN_USER, STRIPE_SECRET, adyen_item, adyen_request, basic, router, stripe_event,
        stripe_signature,
    },
    setup::World,
};

/// A request as it goes over the wire.
#[derive(Clone, Debug)]
struct Wire {
    path: &'static str,
    headers: Vec<(&'static str, Vec<u8>)>,
    body: Vec<u8>,
}

fn stripe(id: Uuid) -> Wire {
    let body = stripe_event("evt_1", "payment_intent.succeeded", "succeeded", id, "pi_1", 1999);
    let signature = stripe_signature(STRIPE_SECRET, 0, &body);
    Wire { path: "/webhooks/stripe", headers: vec![("stripe-signature", signature.into_bytes())], body }
}

fn adyen(id: Uuid) -> Wire {
    let body = adyen_request(&[adyen_item("PSP1", "AUTHORISATION", "true", id, 1999)]);
    let headers = vec![("authorization", basic(ADYEN_USER).into_bytes())];
    Wire { path: "/webhooks/adyen", headers, body }
}

/// One way of being wrong.
#[derive(Clone, Debug)]
enum Wrong {
    BodyBit(Index, u8),
    HeaderBit(Index, u8),
    HeaderMissing,
    HeaderTwice,
    BodyCut(Index),
    BodyMore(u8),
    OtherKey(u64),
    /// Signed so many seconds before or after now.
    Stale(i64),
    UnsignedItem,
}

fn wrong() -> impl Strategy<Value = Wrong> {
    prop_oneof![
        6 => (any::<Index>(), 0..8_u8).prop_map(|(at, bit)| Wrong::BodyBit(at, bit)),
        6 => (any::<Index>(), 0..8_u8).prop_map(|(at, bit)| Wrong::HeaderBit(at, bit)),
        1 => Just(Wrong::HeaderMissing),
        1 => Just(Wrong::HeaderTwice),
        2 => any::<Index>().prop_map(Wrong::BodyCut),
        1 => any::<u8>().prop_map(Wrong::BodyMore),
        2 => any::<u64>().prop_map(Wrong::OtherKey),
        1 => prop_oneof![330..1_000_000_i64, -1_000_000..-301_i64].prop_map(Wrong::Stale),
        1 => Just(Wrong::UnsignedItem),
    ]
}

/// What of an Adyen request is signed: the rest of an item may say anything, and decides nothing.
fn signed_parts(body: &[u8]) -> Vec<usize> {
    let text = std::str::from_utf8(body).unwrap();
    let names = [
        "pspReference",
        "merchantAccountCode",
        "merchantReference",
        "value",
        "currency",
        "eventCode",
        "success",
        "hmacSignature",
    ];
    let mut bytes = Vec::new();
    for name in names {
        let start = text.find(&format!("\"{name}\":")).unwrap() + name.len() + 3;
        let end = start + text[start..].find([',', '}']).unwrap();
        bytes.extend(start..end);
    }
    bytes
}

fn flip(bytes: &mut [u8], at: usize, bit: u8) {
    bytes[at] ^= 1 << bit;
}

/// The request made wrong; None if nothing can be wrong about it in this way.
fn spoil(mut wire: Wire, wrong: &Wrong, id: Uuid) -> Option<Wire> {
    let is_stripe = wire.path == "/webhooks/stripe";
    match wrong {
        Wrong::BodyBit(at, bit) if is_stripe => {
            let at = at.index(wire.body.len());
            flip(&mut wire.body, at, *bit);
        }
        Wrong::BodyBit(at, bit) => {
            let signed = signed_parts(&wire.body);
            flip(&mut wire.body, signed[at.index(signed.len())], *bit);
        }
        Wrong::HeaderBit(at, bit) => {
            let value = &mut wire.headers[0].1;
            let at = at.index(value.len());
            flip(value, at, *bit);
            // What no header may have never arrives.
            HeaderValue::from_bytes(value).ok()?;
        }
        Wrong::HeaderMissing => wire.headers.clear(),
        Wrong::HeaderTwice => wire.headers.push(wire.headers[0].clone()),
        Wrong::BodyCut(at) => wire.body.truncate(at.index(wire.body.len())),
        Wrong::BodyMore(byte) if is_stripe => wire.body.push(*byte),
        // Blanks around JSON are no part of what is signed.
        Wrong::BodyMore(byte) if byte.is_ascii_whitespace() => return None,
        Wrong::BodyMore(byte) => wire.body.push(*byte),
        Wrong::OtherKey(key) if is_stripe => {
            let signature = stripe_signature(&format!("whsec_{key}"), 0, &wire.body);
            wire.headers[0].1 = signature.into_bytes();
        }
        Wrong::OtherKey(key) => wire.headers[0].1 = basic(&format!("adyen:{key}")).into_bytes(),
        Wrong::Stale(seconds) if is_stripe => {
            wire.headers[0].1 = stripe_signature(STRIPE_SECRET, *seconds, &wire.body).into_bytes();
        }
        Wrong::UnsignedItem if !is_stripe => {
            let mut unsigned = adyen_item("PSP2", "AUTHORISATION", "true", id, 1999);
            unsigned["additionalData"] = serde_json::json!({});
            wire.body = adyen_request(&[adyen_item("PSP1", "AUTHORISATION", "true", id, 1999), unsigned]);
        }
        Wrong::Stale(_) | Wrong::UnsignedItem => return None,
    }
    Some(wire)
}

async fn send(router: &Router, wire: Wire) -> StatusCode {
    let mut request = Request::builder().method(Method::POST).uri(wire.path);
    for (name, value) in wire.headers {
        request = request.header(name, HeaderValue::from_bytes(&value).unwrap());
    }
    router.clone().oneshot(request.body(Body::from(wire.body)).unwrap()).await.unwrap().status()
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_mutations_of_valid_requests_are_refused_and_none_is_stored() {
    let world = World::new("mutations").await;
    let router = router(&world, &[]).await;
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &[7; 32]);
    let mut runner = TestRunner::new_with_rng(ProptestConfig::default(), rng);
    let (id, mut sent) = (Uuid::from_u128(0x1234_5678), 0);
    while sent < 10_000 {
        let valid = if sent % 2 == 0 { stripe(id) } else { adyen(id) };
        let wrong = wrong().new_tree(&mut runner).unwrap().current();
        let Some(wire) = spoil(valid, &wrong, id) else { continue };
        let status = send(&router, wire.clone()).await;
        assert!(status.is_client_error(), "{status} for {wrong:?}: {wire:?}");
        sent += 1;
    }
    assert_eq!(world.count("SELECT count(*) FROM executor.webhooks").await, 0);
    // The same requests unspoilt are taken.
    assert_eq!(send(&router, stripe(id)).await, StatusCode::OK);
    assert_eq!(send(&router, adyen(id)).await, StatusCode::OK);
    assert_eq!(world.count("SELECT count(*) FROM executor.webhooks").await, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_have_limits() {
    let world = World::new("webhook_limits").await;
    let strict = router(&world, &[]).await;
    let (id, mut large) = (Uuid::nil(), stripe(Uuid::nil()));
    large.body = vec![b' '; (64 << 10) + 1];
    large.headers[0].1 = stripe_signature(STRIPE_SECRET, 0, &large.body).into_bytes();
    assert_eq!(send(&strict, large).await, StatusCode::PAYLOAD_TOO_LARGE);
    let mut large = adyen(id);
    large.body.resize((1 << 20) + 1, b' ');
    assert_eq!(send(&strict, large).await, StatusCode::PAYLOAD_TOO_LARGE);
    let mut unsigned = adyen(id);
    unsigned.headers.clear();
    assert_eq!(send(&strict, unsigned).await, StatusCode::UNAUTHORIZED);
    let elsewhere = Wire { path: "/webhooks/nobody", ..stripe(id) };
    assert_eq!(send(&strict, elsewhere).await, StatusCode::NOT_FOUND);
    let get = Request::get("/webhooks/stripe").body(Body::empty()).unwrap();
    assert_eq!(strict.clone().oneshot(get).await.unwrap().status(), StatusCode::METHOD_NOT_ALLOWED);
    // A PSP without secrets has no route.
    let only_stripe = router(&world, &["--adyen-hmac-keys=", "--adyen-webhook-auth="]).await;
    assert_eq!(send(&only_stripe, adyen(id)).await, StatusCode::NOT_FOUND);
    // One at a time: while one is being read, the next is told to come back.
    let narrow = router(&world, &["--webhooks-concurrency=1"]).await;
    let (hold, held) = tokio::sync::oneshot::channel::<()>();
    let (begin, begun) = tokio::sync::oneshot::channel::<()>();
    let slow = futures::stream::once(async move {
        begin.send(()).unwrap();
        held.await.ok();
        Ok::<_, std::io::Error>("late")
    });
    let request = Request::post("/webhooks/stripe").header("stripe-signature", "t=1,v1=00");
    let reading = tokio::spawn(narrow.clone().oneshot(request.body(Body::from_stream(slow)).unwrap()));
    begun.await.unwrap();
    assert_eq!(send(&narrow, stripe(id)).await, StatusCode::SERVICE_UNAVAILABLE);
    hold.send(()).unwrap();
    assert_eq!(reading.await.unwrap().unwrap().status(), StatusCode::BAD_REQUEST);
    assert_eq!(send(&narrow, stripe(id)).await, StatusCode::OK);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rotation_takes_the_old_and_the_new_secret_and_adyen_gets_its_word() {
    let world = World::new("rotation").await;
    let old_key = "00".repeat(32);
    let router = router(
        &world,
        &[
            &format!("--stripe-webhook-secrets=whsec_old,{STRIPE_SECRET}"),
            &format!("--adyen-hmac-keys={old_key},{ADYEN_KEY}"),
            &format!("--adyen-webhook-auth=old:user,{ADYEN_USER}"),
        ],
    )
    .await;
    let id = Uuid::nil();
    for secret in ["whsec_old", STRIPE_SECRET] {
        let mut wire = stripe(id);
        wire.headers[0].1 = stripe_signature(secret, 0, &wire.body).into_bytes();
        assert_eq!(send(&router, wire).await, StatusCode::OK, "{secret}");
    }
    let wire = adyen(id);
    for user in ["old:user", ADYEN_USER] {
        let request = Request::post("/webhooks/adyen").header(header::AUTHORIZATION, basic(user));
        let answer =
            router.clone().oneshot(request.body(Body::from(wire.body.clone())).unwrap()).await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK);
        let body = axum::body::to_bytes(answer.into_body(), 100).await.unwrap();
        assert_eq!(&body[..], b"[accepted]");
    }
    assert_eq!(world.count("SELECT count(*) FROM executor.webhooks").await, 2, "each event once");
}
