//! What the adapters send, held against contracts that we did not write: Stripe's own mock server, which checks requests by Stripe's
//! OpenAPI document, and Adyen's OpenAPI document, by Prism. `make test-contracts` installs both and runs this; without it, both parts
//! say that they are skipped.
//!
//! Neither of them has any state: it is the shape of requests that is checked, not what comes of them. Each part first proves that
//! its checker refuses a request with a fault.

#![expect(clippy::unwrap_used, reason = "a test ends where something fails")]

use std::{
    net::TcpStream,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use executor::psp::{Call, Operation, Order, Psp, adyen::Adyen, http::Site, stripe::Stripe};
use secrecy::SecretString;
use time::OffsetDateTime;
use uuid::Uuid;

/// How long a checker may take to start: Prism reads a document of a megabyte.
const START_MAX: Duration = Duration::from_mins(1);

/// A checker that runs as long as the test.
struct Checker(Child);

impl Checker {
    fn start(command: &mut Command, port: u16) -> Self {
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
        let (mut checker, begun) = (Self(child), Instant::now());
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(checker.0.try_wait().unwrap().is_none(), "{command:?} ended");
            assert!(begun.elapsed() < START_MAX, "{command:?} does not listen on {port}");
            std::thread::sleep(Duration::from_millis(50));
        }
        checker
    }
}

impl Drop for Checker {
    fn drop(&mut self) {
        let _killed = self.0.kill();
        let _ended = self.0.wait();
    }
}

fn order(psp: &str, currency: &str, payment_method: &str) -> Order {
    Order {
        payment_order_id: Uuid::new_v4(),
        psp: psp.to_owned(),
        amount_minor: 1230,
        currency: currency.to_owned(),
        payment_method: SecretString::from(payment_method),
        merchant_reference: "order \"1\" & more: é".to_owned(),
        expires_at: OffsetDateTime::now_utc(),
    }
}

/// Sends what an adapter sends, and returns the HTTP status with the text of a refusal.
async fn sent(psp: &dyn Psp, call: &Call, order: &Order) -> (Option<u16>, Option<String>) {
    let answer = psp.send(call, order).await;
    (answer.http_status, answer.error_message)
}

fn path_of(variable: &str) -> Option<String> {
    std::env::var(variable).ok().filter(|text| !text.is_empty())
}

#[tokio::test]
async fn stripe_takes_every_request_that_we_make() {
    let Some(program) = path_of("STRIPE_MOCK") else {
        println!(
            "SKIPPED: Stripe's requests are not checked: STRIPE_MOCK names no program (make test-contracts sets it)"
        );
        return;
    };
    let (port, tls_port) = (testbed::stack::free_port().unwrap(), testbed::stack::free_port().unwrap());
    // Both addresses: without the second it would listen on all interfaces.
    let mut command = Command::new(program);
    command.args([
        "-http-addr",
        &format!("127.0.0.1:{port}"),
        "-https-addr",
        &format!("127.0.0.1:{tls_port}"),
    ]);
    let _checker = Checker::start(&mut command, port);
    let site = Site::new(&format!("http://127.0.0.1:{port}"), Duration::from_secs(10));
    let stripe = Stripe::new(&site, &SecretString::from("sk_test_123")).unwrap();

    let order = order("STRIPE", "EUR", "pm_card_visa");
    let mut wrong = stripe.prepare(Operation::Create, &order, None).unwrap();
    wrong.body.push_str("&surprise=1");
    assert_eq!(sent(&stripe, &wrong, &order).await.0, Some(400), "it refuses what Stripe does not know");
    for currency in ["EUR", "JPY", "ISK", "KWD"] {
        let order = self::order("STRIPE", currency, "pm_card_visa");
        for operation in Operation::ALL {
            let call = stripe.prepare(operation, &order, Some("pi_1")).unwrap();
            let (status, refusal) = sent(&stripe, &call, &order).await;
            assert_eq!(status, Some(200), "{operation:?} {currency}: {refusal:?}");
        }
    }
}

#[tokio::test]
async fn adyens_document_has_every_request_that_we_make() {
    let Some(document) = path_of("ADYEN_OPENAPI") else {
        println!(
            "SKIPPED: Adyen's requests are not checked: ADYEN_OPENAPI names no document (CheckoutService-v71.json)"
        );
        return;
    };
    let program = path_of("PRISM").expect("PRISM names the program: make test-contracts sets it");
    let port = testbed::stack::free_port().unwrap();
    let mut command = Command::new(program);
    command.args(["mock", "--host", "127.0.0.1", "--port", &port.to_string(), &document]);
    let _checker = Checker::start(&mut command, port);
    let site = Site::new(&format!("http://127.0.0.1:{port}"), Duration::from_secs(30));
    let adyen =
        Adyen::new(&site, &SecretString::from("AQE_test"), "TestMerchant", "https://shop.example/").unwrap();

    let order = order("ADYEN", "EUR", "shopper-42-M5N7TQ4TG5PFWR50");
    let mut wrong = adyen.prepare(Operation::Confirm, &order, None).unwrap();
    wrong.body = wrong.body.replace("shopper-42", "s1");
    assert_eq!(
        sent(&adyen, &wrong, &order).await.0,
        Some(422),
        "it refuses a shopper's reference that is too short"
    );
    for currency in ["EUR", "JPY", "ISK", "KWD"] {
        let order = self::order("ADYEN", currency, "shopper-42-M5N7TQ4TG5PFWR50");
        let calls = [
            (adyen.prepare(Operation::Confirm, &order, None), 200),
            (adyen.prepare(Operation::Cancel, &order, None), 201),
        ];
        for (call, expected) in calls {
            let call = call.unwrap();
            let (status, refusal) = sent(&adyen, &call, &order).await;
            assert_eq!(status, Some(expected), "{call:?} {currency}: {refusal:?}");
        }
    }
}
