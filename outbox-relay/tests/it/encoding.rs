//! JSON to Avro: byte for byte what another implementation writes, and a clear reason for what does not fit.

use std::path::Path;

use outbox_relay::{
    catalogue::Catalogue,
    encode::{EncodeError, Encoder},
};
use serde_json::{Value, json};

/// The catalogue of the product itself.
fn product() -> anyhow::Result<Encoder> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../schema/events.toml");
    Encoder::new(Box::leak(Box::new(Catalogue::read(&path)?)))
}

/// A catalogue of one event, `E`, with this schema.
fn encoder(schema: &str) -> anyhow::Result<Encoder> {
    let folder = std::env::temp_dir().join(format!("encoding-{}", uuid::Uuid::now_v7()));
    std::fs::create_dir_all(&folder)?;
    std::fs::write(folder.join("e.avsc"), schema)?;
    std::fs::write(
        folder.join("events.toml"),
        "[topics.t]\npartitions = 1\nretention = \"1d\"\n[events.E]\ntopic = \"t\"\nschema = \"e.avsc\"\n",
    )?;
    let catalogue = Catalogue::read(&folder.join("events.toml"))?;
    std::fs::remove_dir_all(folder)?;
    Encoder::new(Box::leak(Box::new(catalogue)))
}

#[test]
fn our_events_are_written_as_another_implementation_writes_them() -> anyhow::Result<()> {
    let encoder = product()?;
    let vectors: Vec<Value> = serde_json::from_str(include_str!("../../../schema/tests/vectors/avro.json"))?;
    assert!(vectors.len() >= 5);
    for vector in vectors {
        let mut body = Vec::new();
        encoder.encode(vector["event_type"].as_str().unwrap(), &vector["json"].to_string(), &mut body)?;
        let text = vector["body"].as_str().unwrap();
        let written = (0..text.len() / 2).map(|at| u8::from_str_radix(&text[2 * at..2 * at + 2], 16));
        assert_eq!(body, written.collect::<Result<Vec<u8>, _>>()?, "{}", vector["json"]);
    }
    Ok(())
}

const RICH: &str = r#"{"type": "record", "name": "E", "fields": [
  {"name": "flag", "type": "boolean"},
  {"name": "small", "type": "int"},
  {"name": "items", "type": {"type": "array", "items": {"type": "record", "name": "Item", "fields": [{"name": "sku", "type": "string"}]}}},
  {"name": "first", "type": ["null", "Item"], "default": null},
  {"name": "tags", "type": {"type": "map", "values": "double"}},
  {"name": "at", "type": {"type": "long", "logicalType": "timestamp-millis"}},
  {"name": "kind", "type": {"type": "enum", "name": "Kind", "symbols": ["A", "B"]}, "default": "B"},
  {"name": "either", "type": ["long", "string"]}
]}"#;

fn rich() -> Value {
    json!({
        "flag": true, "small": -3, "items": [{"sku": "x"}], "first": {"sku": "y"}, "tags": {"t": 0.5},
        "at": "2026-11-23T12:00:00.5+01:00", "either": "s"
    })
}

#[test]
fn nested_records_references_maps_defaults_and_unions_are_written() -> anyhow::Result<()> {
    let mut body = Vec::new();
    encoder(RICH)?.encode("E", &rich().to_string(), &mut body)?;
    let schema = apache_avro::Schema::parse_str(RICH)?;
    let value = apache_avro::reader::datum::GenericDatumReader::builder(&schema)
        .build()?
        .read_value(&mut &body[..])?;
    let read: Value = value.try_into()?;
    assert_eq!(
        read,
        json!({
            "flag": true, "small": -3, "items": [{"sku": "x"}], "first": {"sku": "y"}, "tags": {"t": 0.5},
            "at": 1_795_431_600_500_i64, "kind": "B", "either": "s"
        })
    );
    Ok(())
}

#[test]
fn what_does_not_fit_is_refused_with_its_place_and_reason() -> anyhow::Result<()> {
    let encoder = encoder(RICH)?;
    for (field, value, path, reason) in [
        ("flag", json!("true"), ".flag", "expected boolean, found a string"),
        ("small", json!(3_000_000_000_i64), ".small", "3000000000 is not a 32-bit integer"),
        ("small", json!(1.5), ".small", "1.5 is not a 32-bit integer"),
        ("items", json!([{"sku": "x"}, {"sku": 1}]), ".items[1].sku", "expected string, found a number"),
        ("items", json!([{}]), ".items[0].sku", "missing"),
        ("items", json!([{"sku": "x", "colour": 1}]), ".items[0].colour", "not a field of the schema"),
        ("first", json!({"sku": null}), ".first.sku", "expected string, found null"),
        ("tags", json!({"t": "high"}), ".tags.t", "expected double, found a string"),
        ("at", json!("yesterday"), ".at", "\"yesterday\" is not an RFC 3339 time"),
        ("at", json!(5), ".at", "expected an RFC 3339 time as string, found a number"),
        ("kind", json!("C"), ".kind", "\"C\" is not a symbol"),
        ("either", json!([]), ".either", "expected string, found an array"),
        ("surplus", json!(1), ".surplus", "not a field of the schema"),
    ] {
        let mut payload = rich();
        payload[field] = value;
        let expected = EncodeError::Payload { path: path.to_owned(), reason: reason.to_owned() };
        assert_eq!(encoder.encode("E", &payload.to_string(), &mut Vec::new()), Err(expected));
    }
    assert_eq!(
        encoder.encode("F", "{}", &mut Vec::new()),
        Err(EncodeError::UnknownEventType("F".to_owned()))
    );
    Ok(())
}
