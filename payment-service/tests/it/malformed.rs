//! One record in a hundred is malformed, in every way: they end up in quarantine, and nothing else does. `MALFORMED_OF=100000` is the
//! full size.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use axum::{Json, Router, extract::Path, http::StatusCode, routing::get};
use rdkafka::message::{Header, OwnedHeaders};
use schema::{decode::Event as _, psp_result_update::PspResultUpdateEvent, wire};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::world::{Result_, TRANSITIONS, World, result};

/// Records on the topic, unless the environment says otherwise.
const RECORDS: usize = 4_000;
/// Every so many is malformed.
const ONE_IN: usize = 100;
/// Largest value that fits into a record of the broker's default size.
const HUGE_BYTES: usize = 900_000;

/// Ids that no registry of ours gives.
const KNOWN_LATER: u32 = 1_900_000_001;
const FOREIGN: u32 = 1_900_000_002;
const NEVER_KNOWN: u32 = 1_900_000_003;

/// Ways of being malformed, in turn; the reasons say which.
const KINDS: [(&str, &str); 10] = [
    ("wrong magic", "magic byte is 0x01"),
    ("schema not known yet", "schema id 1900000001"),
    ("schema never known", "schema id 1900000003"),
    ("truncated", "not a valid Avro body"),
    ("tombstone", "tombstone"),
    ("huge", "magic byte is 0xff"),
    ("wrong key", "key is not its paymentOrderId"),
    ("foreign schema", "schema id 1900000002 is of elsewhere.Foreign"),
    ("empty", "0 bytes are too few"),
    ("one byte too many", "1 bytes too many"),
];

/// A registry that comes to know a schema when `mended` is set. Returns its address.
async fn registry(own: u32, mended: Arc<AtomicBool>) -> String {
    let foreign = r#"{"type":"record","name":"Foreign","namespace":"elsewhere","fields":[{"name":"a","type":"string"}]}"#;
    let schema = move |Path(id): Path<u32>| {
        let mended = mended.load(Ordering::Acquire);
        async move {
            match id {
                FOREIGN => Ok(Json(json!({ "schema": foreign }))),
                id if id == own || (id == KNOWN_LATER && mended) => {
                    Ok(Json(json!({ "schema": PspResultUpdateEvent::SCHEMA })))
                }
                _ => Err((
                    StatusCode::NOT_FOUND,
                    Json(json!({ "error_code": 40403, "message": "no such schema" })),
                )),
            }
        }
    };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let router = Router::new().route("/schemas/ids/{id}", get(schema));
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    format!("http://{address}")
}

/// Key and value of a malformed record, made of a good one.
fn malformed(kind: usize, good: &Result_, body: &[u8]) -> (Option<Vec<u8>>, Option<Vec<u8>>) {
    let framed = |id: u32| {
        let mut bytes = Vec::new();
        wire::begin_frame(id, &mut bytes);
        bytes.extend_from_slice(&body[wire::FRAME_BYTES..]);
        bytes
    };
    let key = Some(good.order.to_string().into_bytes());
    match kind {
        0 => (key, Some([&[1], &body[1..]].concat())),
        1 => (key, Some(framed(KNOWN_LATER))),
        2 => (key, Some(framed(NEVER_KNOWN))),
        3 => (key, Some(body[..body.len() - 3].to_vec())),
        4 => (key, None),
        5 => (key, Some(vec![0xff; HUGE_BYTES])),
        6 => (Some(Uuid::now_v7().to_string().into_bytes()), Some(body.to_vec())),
        7 => (key, Some(framed(FOREIGN))),
        8 => (key, Some(Vec::new())),
        _ => (key, Some([body, b"x"].concat())),
    }
}

async fn send(world: &World, orders: &[Uuid]) {
    for (chunk_number, chunk) in orders.chunks(1_000).enumerate() {
        let sends = chunk.iter().enumerate().map(|(index, order)| {
            let number = chunk_number * 1_000 + index;
            async move {
                let event = result(*order, "SUCCESSFUL");
                if number % ONE_IN != ONE_IN - 1 {
                    world.send(&event).await;
                    return;
                }
                let (key, value) = malformed(number / ONE_IN % KINDS.len(), &event, &world.body(&event));
                let id = event.id.to_string();
                let headers =
                    OwnedHeaders::new().insert(Header { key: wire::header::CE_ID, value: Some(&id) });
                world.send_raw(key.as_deref(), value.as_deref(), headers).await;
            }
        });
        futures::future::join_all(sends).await;
    }
}

#[tokio::test]
async fn of_many_records_exactly_the_malformed_ones_are_set_aside() {
    let records = std::env::var("MALFORMED_OF").map_or(RECORDS, |text| text.parse().unwrap());
    let bad = records / ONE_IN;
    let good = records - bad;
    let mut world = World::new().await;
    let mended = Arc::new(AtomicBool::new(false));
    world.registry_url = registry(world.schema_id, Arc::clone(&mended)).await;
    let orders = world.orders(i32::try_from(records).unwrap()).await;
    let service = world.start(&[]).await;
    let began = std::time::Instant::now();
    let memory_before = service.metric("process_resident_memory_bytes").await;
    send(&world, &orders).await;
    let patience = records / 100;
    for _ in 0..patience.max(600) {
        let applied = usize::try_from(world.count(TRANSITIONS).await).unwrap();
        let aside = usize::try_from(world.count("SELECT count(*) FROM payments.quarantine").await).unwrap();
        if applied >= good && aside >= bad {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    let took = began.elapsed();
    let memory = service.metric("process_resident_memory_bytes").await - memory_before;
    eprintln!(
        "{records} records sent and dealt with in {took:.1?}; {:.1} MiB more in memory",
        memory / 1_048_576.0
    );

    let count = |number: usize| i64::try_from(number).unwrap();
    assert_eq!(world.count(TRANSITIONS).await, count(good));
    assert_eq!(
        world.count("SELECT count(*) FROM payments.payment_orders WHERE state = 'SUCCESSFUL'").await,
        count(good)
    );
    assert_eq!(world.count("SELECT count(*) FROM payments.quarantine").await, count(bad));
    assert_eq!(world.applied_twice().await, 0);
    for (kind, reason) in KINDS {
        let found: i64 =
            sqlx::query_scalar("SELECT count(*) FROM payments.quarantine WHERE reason LIKE '%' || $1 || '%' AND (reason NOT LIKE '%too many' OR $1 LIKE '%too many')")
                .bind(reason)
                .fetch_one(&world.pool)
                .await
                .unwrap();
        assert_eq!(found, count(bad / KINDS.len()), "{kind}");
    }

    // One kind can be mended: its schema is registered. The rest is tried too, and stays.
    mended.store(true, Ordering::Release);
    let by = ["--execute", "--operator", "ada", "--note", "the schema is registered now", "--wait", "5min"];
    let redriven = world.operate_json(&[&["quarantine", "redrive", "--all"][..], &by].concat()).await;
    let outcome =
        |name: &str| redriven["result"][name].as_u64().map(|number| usize::try_from(number).unwrap());
    let mendable = bad / KINDS.len();
    assert_eq!(
        (outcome("applied"), outcome("refused")),
        (Some(mendable), Some(bad - mendable)),
        "{redriven}"
    );
    assert_eq!(world.count(TRANSITIONS).await, count(good + mendable));
    assert_eq!(world.applied_twice().await, 0);
    world.audit_agrees().await;
    service.stop().await;
    assert_eq!(world.committed().await, count(records), "all of them are behind us");
    let listed: Value = world.operate_json(&["quarantine", "list", "--limit", "10000"]).await;
    assert_eq!(listed.as_array().unwrap().len(), bad - mendable);
}
