//! Any language, any table: an event type that no code here knows, added by two files while the relay's binary stays what it is, and
//! appended by programs that are not ours, each in one transaction with a table of its own.

use std::{path::Path, time::Duration};

use anyhow::Context as _;
use schema::wire::{header, value_subject};
use testbed::processes::run_once;

use crate::rig::{Operator, Record, Rig, eventually};

const SHIPPED: &str = r#"{
  "type": "record", "name": "OrderShipped", "namespace": "shop",
  "fields": [
    {"name": "order", "type": "string"},
    {"name": "parcels", "type": "int"},
    {"name": "express", "type": "boolean"},
    {"name": "carrier", "type": {"type": "enum", "name": "Carrier", "symbols": ["POST", "BIKE"]}},
    {"name": "weights", "type": {"type": "array", "items": "long"}},
    {"name": "note", "type": ["null", "string"], "default": null},
    {"name": "shippedAt", "type": {"type": "long", "logicalType": "timestamp-micros"}}
  ]
}"#;

const TRACEPARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

/// What a shop would write by hand: one transaction that commits, one that rolls back, and one that takes back only its savepoint.
const SCRIPT: &str = r#"
BEGIN;
INSERT INTO shop.orders VALUES ('o-1', 2);
SELECT outbox.append('OrderShipped', number,
                     json_build_object('order', number, 'parcels', parcels, 'express', true, 'carrier', 'BIKE',
                                        'weights', '[7, -3]'::jsonb, 'shippedAt', '1970-01-01T00:00:01Z'),
                     '00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01')
FROM shop.orders WHERE number = 'o-1';
COMMIT;

BEGIN;
INSERT INTO shop.orders VALUES ('taken-back', 1);
SELECT outbox.append('OrderShipped', 'taken-back', '{"order": "taken-back"}');
ROLLBACK;

BEGIN;
INSERT INTO shop.orders VALUES ('o-2', 0);
SAVEPOINT attempt;
SELECT outbox.append('OrderShipped', 'o-2', '{"order": "taken-back-too"}');
ROLLBACK TO SAVEPOINT attempt;
SELECT outbox.append('OrderShipped', 'o-2',
                     '{"order": "o-2", "parcels": 0, "express": false, "carrier": "POST", "weights": [], "note": "é",
                       "shippedAt": "1970-01-01T01:00:00+01:00"}',
                     event_id => '01890000-0000-7000-8000-000000000002');
COMMIT;
"#;

/// The one record of this key: its body behind the frame.
fn body<'a>(records: &'a [Record], key: &str, schema_id: u32) -> (&'a Record, &'a [u8]) {
    let mut of_key = records.iter().filter(|record| record.key == key);
    let (Some(record), None) = (of_key.next(), of_key.next()) else { panic!("{key}: {records:?}") };
    let frame = [&[0u8][..], &schema_id.to_be_bytes()].concat();
    assert!(record.value.starts_with(&frame), "{key}: {:?}", record.value);
    (record, &record.value[frame.len()..])
}

#[tokio::test(flavor = "multi_thread")]
async fn a_strangers_event_is_added_by_two_files_and_appended_from_psql_and_python() -> anyhow::Result<()> {
    let rig = Rig::new("strangers").await?;
    let operator = Operator::new(&rig, &[("EVENT_SOURCE", "/shop")]);
    let relay = operator.relay("relay")?;
    relay.start()?;
    relay.wait_ready().await?;
    rig.append(&mut rig.connect("executor").await?, "ours", 1).await?;
    rig.drained(Duration::from_secs(20)).await?;

    // The stranger's own table, and its event: two files, `setup`, and the same binary started again.
    let mut owner = rig.connect("payment_outbox").await?;
    sqlx::raw_sql(
        "CREATE SCHEMA shop; CREATE TABLE shop.orders (number text PRIMARY KEY, parcels int NOT NULL);
         GRANT USAGE ON SCHEMA shop TO executor; GRANT SELECT, INSERT ON shop.orders TO executor",
    )
    .execute(&mut owner)
    .await?;
    let topic = rig.stack.unique("shop-orders");
    std::fs::write(rig.folder.join("shipped.avsc"), SHIPPED)?;
    let catalogue = std::fs::read_to_string(rig.events())?;
    let added = format!(
        "[topics.{topic}]\npartitions = 2\nretention = \"30d\"\n[events.OrderShipped]\ntopic = \"{topic}\"\nschema = \"shipped.avsc\"\n"
    );
    std::fs::write(rig.events(), catalogue + &added)?;
    operator.setup().await?;
    assert!(relay.terminate(Duration::from_secs(20)).await?.success());
    relay.start()?;
    relay.wait_ready().await?;

    let script = rig.folder.join("orders.sql");
    std::fs::write(&script, SCRIPT)?;
    let (script, url) = (script.display().to_string(), rig.database.url("executor"));
    run_once(Path::new("psql"), &["-X", "-q", "-v", "ON_ERROR_STOP=1", "-f", &script, &url], &[])
        .await
        .context("psql (package postgresql-client)")?;
    let port = rig.stack.server().port.to_string();
    let program = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/strangers.py");
    run_once(Path::new("python3"), &[program, &port, "executor", &rig.database.name], &[])
        .await
        .context("python3 (package python3)")?;

    rig.drained(Duration::from_secs(20)).await?;
    eventually(Duration::from_secs(10), "three records", async || {
        Ok(rig.records_of(&topic).await?.len() >= 3)
    })
    .await?;
    assert!(relay.terminate(Duration::from_secs(20)).await?.success());

    let records = rig.records_of(&topic).await?;
    let mut keys: Vec<&str> = records.iter().map(|record| record.key.as_str()).collect();
    keys.sort_unstable();
    assert_eq!(keys, ["o-1", "o-2", "o-3"], "what was rolled back is not there");
    let mut orders: Vec<String> =
        sqlx::query_scalar("SELECT number FROM shop.orders").fetch_all(&mut owner).await?;
    orders.sort_unstable();
    assert_eq!(orders, keys, "the stranger's table says the same");

    let registry = schema::registry::Registry::new(&rig.stack.registry_url())?;
    let id = registry.id_of(&value_subject(&topic), SHIPPED).await?;
    // Golden bytes: string, int, boolean, symbol, a block of two longs, null, a million microseconds.
    let (record, avro) = body(&records, "o-1", id);
    assert_eq!(avro, [&[6u8][..], b"o-1", &[4, 1, 2, 4, 14, 5, 0, 0, 0x80, 0x89, 0x7a]].concat());
    for (name, value) in [
        (header::CE_SPECVERSION, "1.0"),
        (header::CE_TYPE, "OrderShipped"),
        (header::CE_SOURCE, "/shop"),
        (header::CONTENT_TYPE, "application/avro"),
        (header::TRACEPARENT, TRACEPARENT),
    ] {
        assert_eq!(record.header(name), Some(value), "{name}");
    }
    let (record, avro) = body(&records, "o-2", id);
    assert_eq!(avro, [&[6u8][..], b"o-2", &[0, 0, 0, 0, 2, 4], "é".as_bytes(), &[0]].concat());
    assert_eq!(record.header(header::CE_ID), Some("01890000-0000-7000-8000-000000000002"));
    assert_eq!(record.header(header::TRACEPARENT), None);
    // By Python: a negative number, a long array, a time before 1970.
    let (record, avro) = body(&records, "o-3", id);
    let weights: Vec<u8> = (1..=20).map(|weight| 2 * weight).collect();
    assert_eq!(
        avro,
        [&[6u8][..], b"o-3", &[1, 0, 0, 40], &weights, &[0, 2, 2], b"x", &[1]].concat(),
        "parcels -1, 20 weights, note x, a microsecond before 1970"
    );
    assert_eq!(record.header(header::CE_TYPE), Some("OrderShipped"));
    Ok(())
}
