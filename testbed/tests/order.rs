//! Start and stop in any order: whatever comes first waits for what it needs, says so once, and goes on by itself; it is ready when it can
//! work, and lives all the time.
#![allow(clippy::unwrap_used, reason = "what goes wrong in a test has to end it")]

use std::time::{Duration, Instant};

use reqwest::Client;
use serde_json::{Value, json};
use testbed::circle::{Circle, Ground, Options};
use testbed::processes::Service;
use testbed::stack::{Kafka, Postgres, Registry};

/// For a process to see that something has come or gone, and for a part to be up after a start on a busy machine.
const LIMIT: Duration = Duration::from_mins(1);

/// Parts of this test's own.
struct Parts {
    postgres: Postgres,
    kafka: Kafka,
    registry: Registry,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Part {
    Postgres,
    Kafka,
    Registry,
}

impl Parts {
    async fn stop(&self, part: Part) {
        match part {
            Part::Postgres => self.postgres.stop_immediately().await.unwrap(),
            Part::Kafka => self.kafka.kill9(),
            Part::Registry => self.registry.kill9(),
        }
    }

    async fn start(&self, part: Part) {
        match part {
            Part::Postgres => self.postgres.restart().await.unwrap(),
            Part::Kafka => self.kafka.restart().await.unwrap(),
            Part::Registry => self.registry.restart().await.unwrap(),
        }
    }
}

const ALL: [Part; 3] = [Part::Postgres, Part::Kafka, Part::Registry];

#[tokio::test]
async fn processes_and_parts_start_and_stop_in_any_order() {
    let (postgres, kafka, registry) =
        tokio::try_join!(Postgres::private("order"), Kafka::private("order"), Registry::private("order"))
            .unwrap();
    let ground = Ground {
        server: postgres.server(),
        kafka_bootstrap: kafka.bootstrap(),
        registry_url: registry.url(),
        suffix: String::new(),
    };
    let parts = Parts { postgres, kafka, registry };
    let circle = Circle::prepare(ground, &Options::default()).await.unwrap();
    let client = Client::builder().no_proxy().timeout(Duration::from_secs(10)).build().unwrap();
    circle.simulator.start().unwrap();

    // Nothing is there yet, and comes in one order and in the reverse one.
    let mut order = ALL;
    for round in 0..2 {
        for part in order {
            parts.stop(part).await;
        }
        for service in ours(&circle) {
            service.start().unwrap();
        }
        for service in ours(&circle) {
            says(service, "waiting for what is needed").await;
        }
        for part in order {
            for service in ours(&circle) {
                assert!(service.running() && !service.ready().await, "{} without {part:?}", service.name());
                assert!(lives(&client, service).await, "{} lives without {part:?}", service.name());
            }
            parts.start(part).await;
        }
        for service in ours(&circle) {
            becomes(&client, service, true).await;
        }
        let payment = pay(&client, &circle, &format!("round-{round}")).await;
        settled(&client, &circle, &payment).await;
        for service in ours(&circle) {
            waited_once(service);
            let ended = service.terminate(Duration::from_secs(20)).await.unwrap();
            assert!(ended.success(), "{}: {ended}", service.name());
            std::fs::write(service.log(), "").unwrap();
        }
        order.reverse();
    }

    // Each goes and comes back while they work.
    for service in ours(&circle) {
        service.start().unwrap();
        service.wait_ready().await.unwrap();
    }
    // A schema that is known needs no registry: a payment goes round without it, as one has gone before.
    let payment = pay(&client, &circle, "with-registry").await;
    settled(&client, &circle, &payment).await;
    parts.stop(Part::Registry).await;
    let payment = pay(&client, &circle, "without-registry").await;
    settled(&client, &circle, &payment).await;
    parts.start(Part::Registry).await;
    for part in [Part::Kafka, Part::Postgres] {
        parts.stop(part).await;
        for service in ours(&circle) {
            becomes(&client, service, false).await;
            assert!(lives(&client, service).await, "{} lives without {part:?}", service.name());
        }
        if part == Part::Kafka {
            // Payments are taken without the brokers, and go on when these are there.
            let url = format!("{}/readyz/requests", circle.payment_service.admin_url());
            assert_eq!(client.get(url).send().await.unwrap().status(), 200);
            pay(&client, &circle, "without-brokers").await;
        }
        parts.start(part).await;
        for service in ours(&circle) {
            becomes(&client, service, true).await;
        }
        let payment = pay(&client, &circle, &format!("after-{part:?}")).await;
        settled(&client, &circle, &payment).await;
    }
    circle.shutdown().await.unwrap();
}

/// All but the simulator, which needs nothing.
fn ours(circle: &Circle) -> impl Iterator<Item = &Service> {
    circle.services().filter(|service| service.name() != circle.simulator.name())
}

async fn lives(client: &Client, service: &Service) -> bool {
    let answer = client.get(format!("{}/livez", service.admin_url())).send().await;
    answer.is_ok_and(|answer| answer.status().is_success())
}

/// Waits until the process is ready, or is not.
async fn becomes(client: &Client, service: &Service, ready: bool) {
    let begun = Instant::now();
    while service.ready().await != ready {
        assert!(service.running(), "{} has ended; its log is {}", service.name(), service.log().display());
        if begun.elapsed() > LIMIT {
            let answer = client.get(format!("{}/readyz", service.admin_url())).send().await.unwrap();
            panic!("{} does not become ready={ready}: {}", service.name(), answer.text().await.unwrap());
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

async fn says(service: &Service, message: &str) {
    let begun = Instant::now();
    while !service.log_lines().unwrap().iter().any(|line| line["message"] == message) {
        assert!(begun.elapsed() < LIMIT, "{} does not say {message:?}", service.name());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// What was waited for was said when the wait began and when it ended, and not in between: neither by the need itself, nor in other words
/// over and over.
fn waited_once(service: &Service) {
    let lines = service.log_lines().unwrap();
    let said = |message: &str, need: &str| {
        lines.iter().filter(|line| line["message"] == message && line["need"] == need).count()
    };
    for need in ["postgresql", "kafka", "schema registry"] {
        let (begun, ended) =
            (said("waiting for what is needed", need), said("what was waited for is there", need));
        assert!(begun <= 2 && ended == begun, "{} waited for {need} {begun} times: {ended}", service.name());
    }
    let mut counts = std::collections::HashMap::<&str, usize>::new();
    // librdkafka's own complaints are rationed by itself.
    let own = |line: &&Value| line["target"].as_str().is_some_and(|target| !target.contains("librdkafka"));
    for line in lines.iter().filter(own).filter(|line| line["level"] == "WARN" || line["level"] == "ERROR") {
        *counts.entry(line["message"].as_str().unwrap_or_default()).or_default() += 1;
    }
    counts.retain(|message, count| {
        *count > 6 && !message.starts_with("librdkafka") && *message != "Kafka client" && *message != "Kafka"
    });
    assert!(counts.is_empty(), "{} repeats itself: {counts:?}", service.name());
}

async fn pay(client: &Client, circle: &Circle, key: &str) -> String {
    let body = json!({"amount_minor": 1_234, "currency": "EUR", "payment_method": "pm_card_visa", "merchant_reference": "order"});
    let request = client.post(format!("{}/v1/payments", circle.api_url)).bearer_auth(&circle.api_token);
    let answer = request.header("Idempotency-Key", key).json(&body).send().await.unwrap();
    assert_eq!(answer.status(), 201);
    answer.json::<Value>().await.unwrap()["payment_id"].as_str().unwrap().to_owned()
}

async fn settled(client: &Client, circle: &Circle, payment: &str) {
    let begun = Instant::now();
    loop {
        let request =
            client.get(format!("{}/v1/payments/{payment}", circle.api_url)).bearer_auth(&circle.api_token);
        let found: Value = request.send().await.unwrap().error_for_status().unwrap().json().await.unwrap();
        if found["status"] == "SUCCESSFUL" {
            return;
        }
        assert!(begun.elapsed() < LIMIT, "{found}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
