//! Several PSPs in one executor: each in its lane. And what adapters make of answers that no PSP should give.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use executor::psp::{Operation, Order, Psp, Verdict, adyen::Adyen, http::Site, stripe::Stripe};
use schema::payment_order_requested::PaymentOrderRequestedEvent;
use secrecy::SecretString;
use time::OffsetDateTime;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use uuid::Uuid;

use crate::setup::{World, request};

fn adyen_request(scenario: &str) -> PaymentOrderRequestedEvent {
    let payment_method = format!("shopper-1-adyen_sim_{scenario}");
    PaymentOrderRequestedEvent { psp: "ADYEN".to_owned(), payment_method, ..request("x") }
}

#[tokio::test(flavor = "multi_thread")]
async fn adyen_takes_one_call_and_its_results_are_published() {
    let world = World::new("adyen").await;
    let running = world.start(&[]);
    let rows = [
        ("success", "SUCCESSFUL", None, 1, &["CONFIRM"][..]),
        ("decline_insufficient_funds", "FAILED", Some("refused/not_enough_balance"), 0, &["CONFIRM"]),
        ("action_redirect", "FAILED", Some("AUTHENTICATION_REQUIRED"), 0, &["CONFIRM", "CANCEL"]),
    ];
    for (scenario, status, code, charges, calls) in rows {
        let event = adyen_request(scenario);
        world.send_all(std::slice::from_ref(&event)).await;
        let id = event.payment_order_id;
        world.wait_for_state(id, "SETTLED").await;
        let expected = (status.to_owned(), code.map(str::to_owned), "REPLY".to_owned());
        assert_eq!(world.results(id).await, [expected], "{scenario}");
        assert_eq!(world.charges(id).await, charges, "{scenario}");
        let made: Vec<String> = world.calls(id).await.into_iter().map(|(operation, _)| operation).collect();
        assert_eq!(made, calls, "{scenario}");
        assert_eq!(world.events(id).await.len(), 1);
    }
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_adyen_answered_to_nobody_is_settled_by_the_same_key_with_one_charge() {
    let world = World::new("adyen_doubt").await;
    let running = world.start(&["--psp-timeout=1s"]);
    let scenarios = ["timeout_after_charge", "timeout_before_charge", "garbled_after_charge"];
    let events: Vec<_> = scenarios.iter().cycle().take(12).map(|scenario| adyen_request(scenario)).collect();
    world.send_all(&events).await;
    for event in &events {
        let id = event.payment_order_id;
        world.wait_for_state(id, "SETTLED").await;
        let results = world.results(id).await;
        assert_eq!((results[0].0.as_str(), results[0].2.as_str()), ("UNKNOWN", "REPLY"), "{results:?}");
        let last = results.last().unwrap();
        assert_eq!((last.0.as_str(), last.2.as_str()), ("SUCCESSFUL", "RESOLVER"), "{results:?}");
        assert_eq!(world.charges(id).await, 1, "{}", event.payment_method);
    }
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_long_outage_orders_that_expired_meanwhile_hold_up_no_fresh_one() {
    let world = World::new("long_outage").await;
    let port = testbed::stack::free_port().unwrap();
    let config = world.config(&[
        &format!("--adyen-base-url=http://127.0.0.1:{port}/v71"),
        "--psp-timeout=2s",
        "--breaker-pause=500ms",
    ]);
    let clock = config.clock.clone();
    let running = World::start_with(config);
    let old: Vec<_> = (0..60).map(|_| adyen_request("success")).collect();
    world.send_all(&old).await;
    world.wait_for_count("SELECT count(*) FROM executor.inbox", 60).await;
    // So many failures open the circuit; from then on a probe goes out now and then, and fails.
    let failed = "SELECT (count(*) >= 24)::int::bigint FROM executor.psp_attempts WHERE verdict = 'LATER'";
    world.wait_for_count(failed, 1).await;
    // Two hours later the PSP is back. All that waits is too old to be begun, but for one.
    clock.advance(Duration::from_hours(2));
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", port)).await.unwrap();
    let stop = tokio_util::sync::CancellationToken::new();
    let psp = <psp_simulator::Config as clap::Parser>::parse_from(["psp-simulator"]);
    tokio::spawn(psp_simulator::run(listener, psp, stop.clone()));
    let mut fresh = adyen_request("success");
    fresh.expires_at += Duration::from_hours(2);
    world.send_all(std::slice::from_ref(&fresh)).await;
    world.wait_for_state(fresh.payment_order_id, "SETTLED").await;
    assert_eq!(world.results(fresh.payment_order_id).await[0].0, "SUCCESSFUL");
    let expired =
        "SELECT count(*) FROM executor.psp_results WHERE psp_status = 'UNKNOWN' AND error_code = 'EXPIRED'";
    world.wait_for_count(expired, 60).await;
    running.stop().await;
    stop.cancel();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_psp_that_stalls_holds_up_nobody_elses_orders() {
    let world = World::new("bulkhead").await;
    let running = world.start(&["--concurrency=4", "--psp-timeout=20s"]);
    let stalled: Vec<_> = (0..40).map(|_| request("pm_sim_timeout_before_charge")).collect();
    world.send_all(&stalled).await;
    let waiting =
        "SELECT count(*) FROM executor.psp_attempts WHERE status = 'STARTED' AND operation = 'CONFIRM'";
    world.wait_for_count(waiting, 4).await;
    let events: Vec<_> = (0..40).map(|_| adyen_request("success")).collect();
    world.send_all(&events).await;
    world
        .wait_for_count("SELECT count(*) FROM executor.inbox WHERE psp = 'ADYEN' AND state = 'SETTLED'", 40)
        .await;
    assert_eq!(world.count(waiting).await, 4, "Stripe still stalls");
    let queued = "SELECT count(*) FROM executor.inbox WHERE psp = 'STRIPE' AND state = 'QUEUED'";
    assert_eq!(world.count(queued).await, 36, "the others wait in the database");
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_psp_that_is_down_is_left_alone_while_its_orders_wait() {
    let world = World::new("breaker").await;
    let port = testbed::stack::free_port().unwrap();
    let url = format!("--stripe-base-url=http://127.0.0.1:{port}");
    let settings = [&*url, "--concurrency=8", "--breaker-pause=1h"];
    let running = world.start(&settings);
    let events: Vec<_> = (0..80).map(|_| request("pm_card_visa")).collect();
    world.send_all(&events).await;
    let queued = "SELECT count(*) FROM executor.inbox WHERE state = 'QUEUED'";
    let attempts = "SELECT count(*) FROM executor.psp_attempts";
    let tried = "SELECT count(*) FROM executor.psp_attempts WHERE verdict = 'LATER'";
    world
        .wait_for_count("SELECT least(count(*), 8) FROM executor.psp_attempts WHERE verdict = 'LATER'", 8)
        .await;
    // 24 failures open the circuit; what is under way then ends.
    world.wait_for_count(queued, 80).await;
    let made = world.count(attempts).await;
    assert!(made < 40, "{made} attempts");
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(
        (world.count(attempts).await, world.count(tried).await),
        (made, made),
        "none is made any more"
    );
    assert_eq!(world.count("SELECT count(*) FROM executor.psp_results").await, 0, "and nothing is failed");
    // Others are served meanwhile.
    let adyen = adyen_request("success");
    world.send_all(std::slice::from_ref(&adyen)).await;
    world.wait_for_state(adyen.payment_order_id, "SETTLED").await;
    running.stop().await;
    // It is there again, as the next executor finds.
    let running = world.start(&[]);
    world.wait_for_count("SELECT count(*) FROM executor.inbox WHERE state = 'SETTLED'", 81).await;
    assert_eq!(world.ledger().await.len(), 81);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_psp_does_not_take_fails_before_anything_is_sent() {
    let world = World::new("unsupported").await;
    let running = world.start(&[]);
    let mut gold = request("pm_card_visa");
    gold.currency = "XAU".to_owned();
    let mut thousandths = request("pm_card_visa");
    (thousandths.currency, thousandths.amount_minor) = ("KWD".to_owned(), 1234);
    let mut no_shopper = adyen_request("success");
    no_shopper.payment_method = "adyen_sim_success".to_owned();
    for event in [gold, thousandths, no_shopper] {
        world.send_all(std::slice::from_ref(&event)).await;
        let id = event.payment_order_id;
        world.wait_for_state(id, "SETTLED").await;
        let expected = ("FAILED".to_owned(), Some("UNSUPPORTED".to_owned()), "REPLY".to_owned());
        assert_eq!(world.results(id).await, [expected]);
        assert_eq!(world.calls(id).await, []);
    }
    running.stop().await;
}

/// Answers every request with these bytes; counts the requests.
async fn canned(response: String) -> (String, Arc<AtomicUsize>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (url, requests) =
        (format!("http://{}", listener.local_addr().unwrap()), Arc::new(AtomicUsize::new(0)));
    let counted = Arc::clone(&requests);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            counted.fetch_add(1, Ordering::SeqCst);
            let response = response.clone();
            tokio::spawn(async move {
                let mut request = [0; 8192];
                let _read = stream.read(&mut request).await;
                let _written = stream.write_all(response.as_bytes()).await;
                let _ended = stream.shutdown().await;
            });
        }
    });
    (url, requests)
}

fn http(status: u16, headers: &str, body: &str) -> String {
    let length = body.len();
    format!("HTTP/1.1 {status} X\r\ncontent-length: {length}\r\nconnection: close\r\n{headers}\r\n{body}")
}

fn both(url: &str) -> [Arc<dyn Psp>; 2] {
    let (site, key) = (Site::new(url, Duration::from_secs(5)), SecretString::from("sk_test_x"));
    let adyen = Adyen::new(&site, &key, "TestMerchant", "https://shop.example/").unwrap();
    [Arc::new(Stripe::new(&site, &key).unwrap()), Arc::new(adyen)]
}

async fn confirm(psp: &dyn Psp) -> executor::psp::Answer {
    let order = Order {
        payment_order_id: Uuid::new_v4(),
        psp: psp.name().to_owned(),
        amount_minor: 1,
        currency: "EUR".to_owned(),
        payment_method: SecretString::from("shopper-X"),
        merchant_reference: "m".to_owned(),
        expires_at: OffsetDateTime::now_utc(),
    };
    let call = psp.prepare(Operation::Confirm, &order, Some("pi_1")).unwrap();
    psp.send(&call, &order).await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_no_psp_should_answer_is_neither_paid_nor_failed() {
    let large = "x".repeat(2 << 20);
    for body in ["", "{}", "[]", "null", "\"succeeded\"", "{\"status\":\"succeeded\"}", "<html>", &large] {
        for status in [200, 201, 204, 404, 500] {
            let (url, _) = canned(http(status, "", body)).await;
            for psp in both(&url) {
                let answer = confirm(&*psp).await;
                let shown = body.chars().take(40).collect::<String>();
                assert_eq!(answer.verdict, Verdict::Unclear, "{} {status} {shown}: {answer:?}", psp.name());
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redirect_is_not_followed() {
    let (elsewhere, requests) = canned(http(200, "", "{}")).await;
    for status in [301, 302, 303, 307, 308] {
        let (url, _) = canned(http(status, &format!("location: {elsewhere}/\r\n"), "{}")).await;
        for psp in both(&url) {
            let answer = confirm(&*psp).await;
            assert_eq!((answer.verdict, answer.http_status), (Verdict::Unclear, Some(status)));
        }
    }
    assert_eq!(requests.load(Ordering::SeqCst), 0, "the key was carried elsewhere");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_psps_own_word_on_trying_again_is_read() {
    for (header, expected) in [("true", Some(true)), ("false", Some(false)), ("maybe", None)] {
        let headers = format!("stripe-should-retry: {header}\r\ntransient-error: {header}\r\n");
        let (url, _) = canned(http(503, &headers, "{}")).await;
        for psp in both(&url) {
            assert_eq!(confirm(&*psp).await.try_again, expected, "{} {header}", psp.name());
        }
    }
}
