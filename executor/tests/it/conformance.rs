//! What every adapter must do, whatever its PSP calls it: one suite, run for each of them against a PSP that really answers.
//!
//! To add a PSP, add it to [`subjects`]; docs/add-a-psp.md has the rest. Orders are driven by `course`, as the executor does it, without
//! a database: what is checked is what would be published, and what the PSP's own ledger says.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use executor::{
    course::{self, Known, Next, Situation},
    psp::{Answer, Call, Operation, Order, Psp, Verdict, adyen::Adyen, code, http::Site, stripe::Stripe},
};
use schema::psp_result_update::PspStatus;
use secrecy::{ExposeSecret as _, SecretString};
use serde_json::Value;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::setup::simulator;

/// A secret that must not be seen anywhere.
const KEY: &str = "sk_test_hunter2";
/// How long the PSP may take in these tests.
const TIMEOUT: Duration = Duration::from_millis(1500);
/// Looks at an order before the suite gives up on it.
const ROUNDS: usize = 12;

/// An adapter under test.
struct Subject {
    psp: Arc<dyn Psp>,
    /// The simulator's token of a scenario.
    token: fn(&str) -> String,
    url: String,
    _simulator: tokio_util::sync::DropGuard,
}

/// Each adapter, at a PSP of its own.
async fn subjects() -> Vec<Subject> {
    let (stripe, adyen) = (simulator(&["--slow=400ms"]).await, simulator(&["--slow=400ms"]).await);
    let key = SecretString::from(KEY);
    let at_stripe = Stripe::new(&Site::new(&stripe.0, TIMEOUT), &key).unwrap();
    let site = Site::new(&format!("{}/v71", adyen.0), TIMEOUT);
    let at_adyen = Adyen::new(&site, &key, "TestMerchant", "https://shop.example/").unwrap();
    vec![
        Subject {
            psp: Arc::new(at_stripe),
            token: |scenario| format!("pm_sim_{scenario}"),
            url: stripe.0,
            _simulator: stripe.1,
        },
        Subject {
            psp: Arc::new(at_adyen),
            token: |scenario| format!("shopper-1-adyen_sim_{scenario}"),
            url: adyen.0,
            _simulator: adyen.1,
        },
    ]
}

/// What an order came to.
#[derive(Debug)]
struct Settled {
    /// Each result that would be published, and its error code; the same twice in a row is one.
    said: Vec<(PspStatus, Option<String>)>,
    /// Charges in the PSP's ledger.
    charges: Vec<Value>,
    calls: Vec<(Operation, Verdict)>,
}

impl Subject {
    fn order(&self, scenario: &str) -> Order {
        Order {
            payment_order_id: Uuid::new_v4(),
            psp: self.psp.name().to_owned(),
            amount_minor: 1999,
            currency: "EUR".to_owned(),
            payment_method: SecretString::from((self.token)(scenario)),
            merchant_reference: "order-1".to_owned(),
            expires_at: OffsetDateTime::now_utc() + Duration::from_hours(1),
        }
    }

    /// Carries an order out, and asks again until the result is final or nothing new is to be learnt.
    async fn settle(&self, order: &Order) -> Settled {
        let (mut said, mut calls) = (Vec::new(), Vec::new());
        let (mut reference, mut first_attempt_at, mut in_doubt) = (None::<String>, None, false);
        'rounds: for _ in 0..ROUNDS {
            let known = Known {
                has_reference: reference.is_some(),
                first_attempt_at,
                in_doubt,
                expires_at: order.expires_at,
            };
            first_attempt_at.get_or_insert_with(OffsetDateTime::now_utc);
            let mut cancelling = None;
            let mut next = course::first(known, self.psp.capabilities(), OffsetDateTime::now_utc());
            for _ in 0..6 {
                match next {
                    Next::Call(operation) => {
                        let call = self.psp.prepare(operation, order, reference.as_deref()).unwrap();
                        let answer = self.psp.send(&call, order).await;
                        calls.push((operation, answer.verdict));
                        reference = answer.reference.clone().or(reference);
                        let psp = self.psp.capabilities();
                        let situation = Situation { psp, expired: false, in_doubt };
                        next = course::next(situation, operation, &answer, &mut cancelling);
                        in_doubt |= answer.verdict != Verdict::Later;
                    }
                    Next::Conclude(status, reason) => {
                        let result = (status, reason.code);
                        let review = result.1.as_deref() == Some(code::AMOUNT_MISMATCH);
                        let ended = matches!(status, PspStatus::Successful | PspStatus::Failed) || review;
                        if said.last() != Some(&result) {
                            said.push(result);
                        }
                        if ended {
                            break 'rounds;
                        }
                        break;
                    }
                    Next::Nothing | Next::Later => break,
                }
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        Settled { said, charges: self.charges(order).await, calls }
    }

    async fn charges(&self, order: &Order) -> Vec<Value> {
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        let ledger = http.get(format!("{}/simulator/ledger", self.url)).send().await.unwrap();
        let ledger: Value = ledger.json().await.unwrap();
        let id = order.payment_order_id.to_string();
        let ours = |charge: &&Value| charge["payment_order_id"] == id;
        ledger["charges"].as_array().unwrap().iter().filter(ours).cloned().collect()
    }

    /// The request that takes the money: what has to come before it is done.
    async fn paying(&self, order: &Order) -> Call {
        let mut reference = None;
        if self.psp.capabilities().two_step {
            let create = self.psp.prepare(Operation::Create, order, None).unwrap();
            reference = self.psp.send(&create, order).await.reference;
        }
        self.psp.prepare(Operation::Confirm, order, reference.as_deref()).unwrap()
    }
}

/// What a scenario must come to. `blind` is the last word on it where a payment cannot be looked up.
struct Row {
    scenario: &'static str,
    last: (PspStatus, Option<&'static str>),
    blind: PspStatus,
    charges: usize,
}

const fn row(scenario: &'static str, status: PspStatus, charges: usize) -> Row {
    Row { scenario, last: (status, None), blind: status, charges }
}

const fn coded(scenario: &'static str, status: PspStatus, code: &'static str, charges: usize) -> Row {
    Row { scenario, last: (status, Some(code)), blind: status, charges }
}

const fn blind(scenario: &'static str, status: PspStatus, blind: PspStatus, charges: usize) -> Row {
    Row { scenario, last: (status, None), blind, charges }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_scenario_ends_as_it_must_and_charges_at_most_once() {
    use PspStatus::{Failed, Pending, Successful, Unknown};
    let rows = [
        row("success", Successful, 1),
        row("slow", Successful, 1),
        // Hard, soft, technical, and one that nobody knows.
        row("decline_lost_card", Failed, 0),
        row("decline_insufficient_funds", Failed, 0),
        row("decline_processing_error", Failed, 0),
        row("decline_unlisted", Failed, 0),
        row("cancelled", Failed, 0),
        coded("authentication_required", Failed, code::AUTHENTICATION_REQUIRED, 0),
        coded("action_redirect", Failed, code::AUTHENTICATION_REQUIRED, 0),
        coded("action_challenge", Failed, code::AUTHENTICATION_REQUIRED, 0),
        // The answer is lost, or another one comes.
        row("timeout_before_charge", Successful, 1),
        row("timeout_after_charge", Successful, 1),
        row("reset_before_charge", Successful, 1),
        row("reset_after_charge", Successful, 1),
        row("truncated_after_charge", Successful, 1),
        row("garbled_after_charge", Successful, 1),
        row("error_once_after_charge", Successful, 1),
        // The error is all that the key will ever say again: only who can look sees more.
        blind("error_after_charge", Successful, Unknown, 1),
        row("error_before_charge", Unknown, 0),
        row("rate_limited", Successful, 1),
        row("unavailable", Successful, 1),
        row("unavailable_do_not_retry", Successful, 1),
        // No outcome yet. Who cannot look waits for the webhook.
        blind("processing", Successful, Pending, 1),
        blind("unknown_status", Successful, Unknown, 1),
        coded("amount_mismatch", Unknown, code::AMOUNT_MISMATCH, 1),
        coded("currency_mismatch", Unknown, code::AMOUNT_MISMATCH, 1),
        coded("partially_authorised", Unknown, code::AMOUNT_MISMATCH, 1),
    ];
    for subject in subjects().await {
        let (name, looks_up) = (subject.psp.name(), subject.psp.capabilities().looks_up);
        let one = async |row: &Row| {
            let settled = subject.settle(&subject.order(row.scenario)).await;
            let (status, code) = settled.said.last().unwrap();
            let expected = if looks_up { row.last.0 } else { row.blind };
            assert_eq!(*status, expected, "{name} {}: {settled:?}", row.scenario);
            if row.last.1.is_some() {
                assert_eq!(code.as_deref(), row.last.1, "{name} {}: {settled:?}", row.scenario);
            }
            assert_eq!(settled.charges.len(), row.charges, "{name} {}: {settled:?}", row.scenario);
            // A failure is the last word, and never said of what was charged.
            let failures = settled.said.iter().filter(|(status, _)| *status == Failed).count();
            assert_eq!(failures, usize::from(expected == Failed), "{name} {}: {settled:?}", row.scenario);
            // What waits for the shopper is cancelled before it is called a failure.
            if row.scenario.starts_with("action_") {
                let last = settled.calls.last().unwrap();
                let cancelled = matches!(last.1, Verdict::Cancelled | Verdict::CancelAccepted);
                assert!(last.0 == Operation::Cancel && cancelled, "{name} {}: {settled:?}", row.scenario);
            }
        };
        futures::future::join_all(rows.iter().map(one)).await;
    }
}

/// Where a payment is made known first, that can fail, too. No money has moved then, so it is never a failure of the payment.
#[tokio::test(flavor = "multi_thread")]
async fn a_creation_that_fails_is_made_again_under_its_key_and_charges_once() {
    use PspStatus::{Successful, Unknown};
    for subject in subjects().await.iter().filter(|subject| subject.psp.capabilities().two_step) {
        let one = async |(scenario, last, charges): (&str, PspStatus, usize)| {
            let settled = subject.settle(&subject.order(scenario)).await;
            assert_eq!(settled.said.last().unwrap().0, last, "{scenario}: {settled:?}");
            assert!(settled.said.iter().all(|(status, _)| *status != PspStatus::Failed), "{settled:?}");
            assert_eq!(settled.charges.len(), charges, "{scenario}: {settled:?}");
            let created = settled.calls.iter().filter(|(operation, _)| *operation == Operation::Create);
            assert!(created.count() > 1, "{scenario}: {settled:?}");
        };
        let rows = [
            ("create_timeout_before", Successful, 1),
            ("create_timeout_after", Successful, 1),
            ("create_reset_before", Successful, 1),
            ("create_reset_after", Successful, 1),
            ("create_error_once_after", Successful, 1),
            // The error is all that the key will ever say, made or not.
            ("create_error_before", Unknown, 0),
            ("create_error_after", Unknown, 0),
        ];
        futures::future::join_all(rows.map(one)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_decline_says_what_kind_it_is() {
    use executor::psp::declines::Kind;
    for subject in subjects().await {
        for (scenario, kind) in [
            ("decline_lost_card", None),
            ("decline_expired_card", Some(Kind::Hard)),
            ("decline_fraud", Some(Kind::Hard)),
            ("decline_insufficient_funds", Some(Kind::Soft)),
            ("authentication_required", Some(Kind::Authentication)),
            ("decline_unlisted", Some(Kind::Other)),
        ] {
            let order = subject.order(scenario);
            let call = subject.paying(&order).await;
            let answer = subject.psp.send(&call, &order).await;
            let found = (answer.verdict, answer.decline.is_some());
            assert_eq!(found, (Verdict::Declined, true), "{} {scenario}: {answer:?}", subject.psp.name());
            if kind.is_some() {
                assert_eq!(answer.decline, kind, "{} {scenario}: {answer:?}", subject.psp.name());
            }
            assert!(answer.error_code.is_some_and(|code| !code.is_empty()));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_request_charges_once_however_often_it_is_sent() {
    for subject in subjects().await {
        let order = subject.order("success");
        let call = subject.paying(&order).await;
        let all = futures::future::join_all((0..8).map(|_| subject.psp.send(&call, &order))).await;
        let again = subject.psp.send(&call, &order).await;
        assert_eq!(again.verdict, Verdict::Succeeded, "{again:?}");
        for answer in all {
            let waits = matches!(answer.verdict, Verdict::BeingExecuted | Verdict::Later);
            let same = answer.verdict == Verdict::Succeeded && answer.reference == again.reference;
            assert!(waits || same, "{}: {answer:?}", subject.psp.name());
        }
        assert_eq!(subject.charges(&order).await.len(), 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_order_is_the_same_bytes_under_one_short_key_per_operation() {
    for subject in subjects().await {
        let order = subject.order("success");
        let later = Order { expires_at: OffsetDateTime::now_utc(), ..order.clone() };
        let mut keys = Vec::new();
        for operation in Operation::ALL {
            let Ok(call) = subject.psp.prepare(operation, &order, Some("pi_1")) else { continue };
            let again = subject.psp.prepare(operation, &later, Some("pi_1")).unwrap();
            assert!(call == again && call.hash() == again.hash(), "{call:?}");
            assert_eq!(call.idempotency_key.is_none(), operation == Operation::Get);
            keys.extend(call.idempotency_key);
        }
        assert!(keys.iter().all(|key| key.contains(&order.payment_order_id.to_string()) && key.len() <= 64));
        let all = keys.len();
        keys.dedup();
        assert_eq!(keys.len(), all, "one key for two operations");
        let capabilities = subject.psp.capabilities();
        for (operation, can) in
            [(Operation::Create, capabilities.two_step), (Operation::Get, capabilities.looks_up)]
        {
            assert_eq!(subject.psp.prepare(operation, &order, Some("pi_1")).is_ok(), can, "{operation:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn amounts_are_charged_as_the_psp_counts_them() {
    for subject in subjects().await {
        for (currency, minor) in [("JPY", 500), ("ISK", 500), ("CLP", 700), ("KWD", 1230), ("EUR", 1)] {
            let order =
                Order { currency: currency.to_owned(), amount_minor: minor, ..subject.order("success") };
            let settled = subject.settle(&order).await;
            assert_eq!(settled.said, [(PspStatus::Successful, None)], "{} {currency}", subject.psp.name());
            let theirs = settled.charges[0]["amount_minor"].as_i64().unwrap();
            assert_eq!(subject.psp.currencies().to_psp(minor, currency), Ok(theirs), "{currency}");
        }
        let order = Order { currency: "XAU".to_owned(), ..subject.order("success") };
        let begin = if subject.psp.capabilities().two_step { Operation::Create } else { Operation::Confirm };
        assert!(subject.psp.prepare(begin, &order, None).is_err(), "gold is not money here");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn secrets_are_in_no_debug_text() {
    for subject in subjects().await {
        let order = subject.order("decline_lost_card");
        let token = order.payment_method.expose_secret().to_owned();
        let call = subject.paying(&order).await;
        let answer: Answer = subject.psp.send(&call, &order).await;
        let shown = format!("{:?} {order:?} {call:?} {answer:?}", subject.psp);
        assert!(!shown.contains("hunter2") && !shown.contains(&token), "{shown}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_listening_is_later_and_a_call_ends_within_the_limit() {
    for subject in subjects().await {
        let order = subject.order("timeout_before_charge");
        let call = subject.paying(&order).await;
        let begun = Instant::now();
        let answer = subject.psp.send(&call, &order).await;
        assert!(begun.elapsed() < TIMEOUT * 10, "it hangs");
        let found = (answer.verdict, answer.error_code.as_deref(), answer.is_technical_failure());
        assert_eq!(found, (Verdict::Unclear, Some(code::PSP_TIMEOUT), true));
    }
    let port = testbed::stack::free_port().unwrap();
    let site = Site::new(&format!("http://127.0.0.1:{port}"), TIMEOUT);
    let key = SecretString::from(KEY);
    let nobody: [Arc<dyn Psp>; 2] = [
        Arc::new(Stripe::new(&site, &key).unwrap()),
        Arc::new(Adyen::new(&site, &key, "TestMerchant", "https://shop.example/").unwrap()),
    ];
    for (psp, subject) in nobody.into_iter().zip(subjects().await) {
        let order = subject.order("success");
        let call = subject.paying(&order).await;
        let answer = psp.send(&call, &order).await;
        let found = (answer.verdict, answer.error_code.as_deref(), answer.is_technical_failure());
        assert_eq!(found, (Verdict::Later, Some(code::PSP_UNREACHABLE), true), "{}", psp.name());
    }
}
