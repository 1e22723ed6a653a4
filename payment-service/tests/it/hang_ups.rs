//! Clients that hang up, anywhere and many at once: what was begun is done whole or not at all, and nothing is left behind.

use std::{sync::atomic::AtomicUsize, time::Duration};

use futures::StreamExt as _;
use serde_json::json;
use sqlx::AssertSqlSafe;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use uuid::Uuid;

use crate::{
    client::{pay, retry, send},
    world::{Running, TOKEN, World, order_body, result},
};

/// Hang-ups of one run; the long run sets API_TEST_HANG_UPS.
fn hang_ups() -> u64 {
    std::env::var("API_TEST_HANG_UPS").map_or(600, |text| text.parse().unwrap())
}

/// Clients at once: more than the service has connections to the database.
const AT_ONCE: usize = 32;

/// SplitMix64: the same cuts in every run.
fn random(seed: u64) -> u64 {
    let mut z = seed.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Sends a part of the request, or all of it, waits a moment, reads a part of the answer or none, and is gone: closed, or reset.
async fn hang_up(service: &Running, request: &[u8], seed: u64, answered: &AtomicUsize) {
    let mut stream = TcpStream::connect(service.api).await.unwrap();
    let (how, cut, wait) = (random(seed) % 10, random(seed + (1 << 40)), random(seed + (1 << 41)) % 8_000);
    // One in three is cut within the request.
    let sent = if how < 3 { usize::try_from(cut).unwrap() % request.len() } else { request.len() };
    stream.write_all(&request[..sent]).await.unwrap();
    // Somewhere between before the BEGIN and after the COMMIT.
    tokio::time::sleep(Duration::from_micros(wait)).await;
    if how >= 8 {
        let read = tokio::time::timeout(Duration::from_secs(10), stream.read(&mut [0; 16])).await;
        answered.fetch_add(
            usize::from(read.is_ok_and(|read| read.is_ok_and(|length| length > 0))),
            std::sync::atomic::Ordering::Relaxed,
        );
    }
    if how % 2 == 0 {
        stream.set_zero_linger().unwrap();
    }
}

fn request(path: &str, key: &str, body: &str) -> Vec<u8> {
    format!(
        "POST {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {TOKEN}\r\nidempotency-key: {key}\r\n\
         content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_hang_up_break_nothing() {
    let world = World::new().await;
    let service = world.start(&["--database-pool-size", "3", "--rate-per-token", "100000"]).await;
    let (body, answered) = (order_body().to_string(), AtomicUsize::new(0));
    // One in four tries a payment again that has failed.
    let failed: Vec<(Uuid, Uuid)> = futures::stream::iter(0..hang_ups() / 4)
        .map(|n| {
            let service = &service;
            async move { pay(service, &format!("failed-{n}")).await }
        })
        .buffered(AT_ONCE)
        .collect()
        .await;
    for (_, order) in &failed {
        world.send(&result(*order, "FAILED")).await;
    }
    world
        .until(
            "SELECT count(*) FROM payments.payments WHERE status = 'FAILED'",
            i64::try_from(failed.len()).unwrap(),
        )
        .await;
    let hanging = (0..hang_ups()).map(|n| {
        let (service, answered) = (&service, &answered);
        let of_retry = (n % 4 == 0).then(|| failed.get(usize::try_from(n / 4).unwrap())).flatten();
        let request = match of_retry {
            Some((payment, _)) => {
                request(&format!("/v1/payments/{payment}/retry"), &format!("retry-{n}"), "{}")
            }
            None => request("/v1/payments", &format!("hang-up-{n}"), &body),
        };
        async move { hang_up(service, &request, n, answered).await }
    });
    futures::stream::iter(hanging).buffer_unordered(AT_ONCE).for_each(|()| async {}).await;

    // What has been begun comes to its end; then no connection is in the middle of anything.
    let open = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND usename = 'payment_service'
                AND (state LIKE 'idle in transaction%' OR state = 'active' AND query NOT LIKE '%payments_in_review%' AND application_name = 'payment-service')";
    world.until(open, 0).await;
    let begun = world.count("SELECT count(*) FROM payments.idempotency_keys").await
        - i64::try_from(failed.len()).unwrap();
    // Nothing is half there.
    for half in [
        "SELECT count(*) FROM payments.payments p WHERE NOT EXISTS (SELECT FROM payments.payment_orders o WHERE o.payment_id = p.payment_id AND try = 1)",
        "SELECT count(*) FROM payments.payments p WHERE NOT EXISTS (SELECT FROM payments.idempotency_keys k WHERE k.payment_id = p.payment_id AND operation = 'create-payment')",
        "SELECT count(*) FROM payments.idempotency_keys k WHERE NOT EXISTS (SELECT FROM payments.payment_orders o WHERE o.payment_order_id = (response ->> 'payment_order_id')::uuid)",
        "SELECT count(*) FROM payments.payment_orders o WHERE 1 <> (SELECT count(*) FROM outbox.events e WHERE e.aggregate_id = o.payment_order_id::text)",
        "SELECT count(*) FROM payments.payment_orders o WHERE 1 <> (SELECT count(*) FROM payments.payment_order_transitions t WHERE t.payment_order_id = o.payment_order_id AND from_state IS NULL)",
        "SELECT count(*) FROM outbox.events e WHERE NOT EXISTS (SELECT FROM payments.payment_orders o WHERE o.payment_order_id::text = e.aggregate_id)",
    ] {
        let count: i64 = sqlx::query_scalar(AssertSqlSafe(half)).fetch_one(&world.pool).await.unwrap();
        assert_eq!(count, 0, "{half}");
    }
    world.audit_agrees().await;

    // Every key gets its one answer now, and the pool works; whoever had been answered finds what was made then.
    let service_ = &service;
    let again = (0..hang_ups()).map(|n| {
        let of_retry = (n % 4 == 0).then(|| failed.get(usize::try_from(n / 4).unwrap())).flatten().copied();
        async move {
            match of_retry {
                Some((payment, _)) => retry(service_, payment, &format!("retry-{n}"), json!({})).await.status,
                None => {
                    send(crate::client::post(service_, &format!("hang-up-{n}")).json(&order_body()))
                        .await
                        .status
                }
            }
        }
    });
    let statuses: Vec<u16> = futures::stream::iter(again).buffered(AT_ONCE).collect().await;
    assert!(statuses.iter().all(|status| *status == 201), "{statuses:?}");
    let all = i64::try_from(hang_ups() + u64::try_from(failed.len()).unwrap()).unwrap();
    assert_eq!(world.count("SELECT count(*) FROM payments.payment_orders").await, all);
    assert_eq!(world.count("SELECT count(*) FROM outbox.events").await, all);
    world.audit_agrees().await;
    println!(
        "{} hang-ups, {AT_ONCE} at once: {begun} requests carried out although nobody waited or before, {} answers begun to be read",
        hang_ups(),
        answered.into_inner()
    );
    service.stop().await;
}
