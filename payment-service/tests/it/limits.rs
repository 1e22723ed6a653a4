//! What strangers and clients may take: bodies, heads, time, connections, requests at once, requests per second.

use std::time::Duration;

use futures::future::join_all;
use reqwest::Client;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

use crate::{
    client::{expect_problem, get, post, send},
    world::{OPERATOR_TOKEN, OTHER_TOKEN, Running, TOKEN, World, order_body},
};

/// Sends this and reads until the other side closes, at most 10 s.
async fn raw(service: &Running, head: &str) -> String {
    let mut stream = TcpStream::connect(service.api).await.unwrap();
    // It may be closed before all of it is sent.
    stream.write_all(head.as_bytes()).await.ok();
    let mut answer = Vec::new();
    // A reset after the answer ends it as well.
    timeout(Duration::from_secs(10), stream.read_to_end(&mut answer))
        .await
        .expect("it is answered or closed")
        .ok();
    String::from_utf8(answer).unwrap()
}

/// A head with as much more as is given.
fn head(more: &str) -> String {
    format!(
        "GET /v1/payments HTTP/1.1\r\nhost: x\r\nconnection: close\r\nauthorization: Bearer {TOKEN}\r\n{more}\r\n"
    )
}

#[tokio::test]
async fn bodies_and_heads_have_a_size() {
    let world = World::new().await;
    let service = world.start(&[]).await;
    let fits = format!("{}{}", order_body(), " ".repeat(60 * 1024));
    let json = |body: String| post(&service, "key").header("content-type", "application/json").body(body);
    assert_eq!(send(json(fits)).await.status, 201);
    for length in [65 * 1024, 3_000_000] {
        expect_problem(json(format!("{}{}", order_body(), " ".repeat(length))), 413, "body-too-large").await;
    }
    assert!(raw(&service, &head("")).await.starts_with("HTTP/1.1 200 "));
    let headers = |count: u32| (0..count).fold(String::new(), |head, n| head + &format!("x-{n}: y\r\n"));
    assert!(raw(&service, &head(&headers(90))).await.starts_with("HTTP/1.1 200 "), "90 headers are taken");
    assert!(raw(&service, &head(&headers(110))).await.starts_with("HTTP/1.1 431 "), "110 headers are not");
    let long = format!("x: {}\r\n", "y".repeat(512 * 1024));
    // The connection is closed while the rest of the head still comes, so that the answer may be lost on its way.
    let answer = raw(&service, &head(&long)).await;
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 431 "), "nor one of 512 KiB: {answer}");
    service.stop().await;
}

#[tokio::test]
async fn a_head_and_a_body_that_never_end_are_not_waited_for() {
    let world = World::new().await;
    let service = world.start(&["--headers-timeout", "500ms", "--request-timeout", "1s"]).await;
    assert_eq!(
        raw(&service, "GET /v1/payments HTTP/1.1\r\nhost: x\r\nx-slow").await,
        "",
        "closed without an answer"
    );
    // One byte at a time does not help: it is the whole head that has a deadline.
    let mut stream = TcpStream::connect(service.api).await.unwrap();
    let drip = async {
        for byte in head("x-slow: 1\r\n").bytes().cycle() {
            if stream.write_all(&[byte]).await.is_err() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(Duration::from_secs(10), drip).await.expect("closed while it drips");

    let begun = "POST /v1/payments HTTP/1.1\r\nhost: x\r\nidempotency-key: k\r\ncontent-type: application/json\r\ncontent-length: 100\r\n";
    let answer =
        raw(&service, &format!("{begun}connection: close\r\nauthorization: Bearer {TOKEN}\r\n\r\n{{")).await;
    assert!(answer.starts_with("HTTP/1.1 408 ") && answer.contains("application/problem+json"), "{answer}");
    assert_eq!(world.count("SELECT count(*) FROM payments.idempotency_keys").await, 0);
    service.stop().await;
}

#[tokio::test]
async fn connections_beyond_the_limit_wait_their_turn() {
    let world = World::new().await;
    let service = world.start(&["--connections-max", "2", "--headers-timeout", "1s"]).await;
    let idle = join_all((0..2).map(|_| TcpStream::connect(service.api))).await;
    assert!(idle.iter().all(Result::is_ok));
    // It is answered once those that say nothing have been closed.
    assert!(raw(&service, &head("")).await.starts_with("HTTP/1.1 200 "));
    service.stop().await;
}

#[tokio::test]
async fn requests_beyond_the_limit_are_asked_to_come_again() {
    let world = World::new().await;
    let service = world.start(&["--requests-max", "1"]).await;
    let mut stream = TcpStream::connect(service.api).await.unwrap();
    let head = format!(
        "POST /v1/payments HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {TOKEN}\r\nidempotency-key: k\r\n\
         content-type: application/json\r\ncontent-length: 100\r\n\r\n{{"
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut last = get(&service, "/v1/payments", TOKEN).await;
    for _ in 0..50 {
        if last.status == 503 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
        last = get(&service, "/v1/payments", TOKEN).await;
    }
    assert_eq!((last.status, last.header("retry-after")), (503, Some("1")));
    drop(stream);
    service.stop().await;
}

#[tokio::test]
async fn a_token_that_asks_too_often_is_told_when_to_come_again() {
    let world = World::new().await;
    let service = world.start(&["--rate-per-token", "20"]).await;
    let client = Client::new();
    let ask = |token: &'static str| {
        send(client.get(format!("http://{}/v1/payments", service.api)).bearer_auth(token))
    };
    let answers = join_all((0..60).map(|_| ask(TOKEN))).await;
    let refused: Vec<_> = answers.iter().filter(|answer| answer.status == 429).collect();
    assert!(!refused.is_empty() && answers.iter().filter(|answer| answer.status == 200).count() >= 20);
    for answer in refused {
        assert_eq!((answer.problem(), answer.header("retry-after")), ("too-many-requests", Some("1")));
    }
    assert_eq!(ask(OTHER_TOKEN).await.status, 200, "it is that token's affair");
    assert_eq!(ask(OPERATOR_TOKEN).await.status, 200);
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(ask(TOKEN).await.status, 200, "after the time it was told");
    service.stop().await;
}
