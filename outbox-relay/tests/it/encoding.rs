//! JSON to Avro: byte for byte what other implementations write, and a clear reason for what does not fit.

mod arbitrary;
mod misfits;
mod properties;
mod reference;

use std::{collections::BTreeMap, path::Path};

use apache_avro::Schema;
use outbox_relay::{
    catalogue::{Catalogue, EventType},
    encode::{EncodeError, Encoder},
};
use serde_json::{Value, json};

use crate::rig::Rig;

/// The catalogue of the product itself.
fn product() -> anyhow::Result<Encoder> {
    Encoder::new(&Catalogue::read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../schema/events.toml"))?)
}

/// A catalogue of one event, `E`, with this schema.
fn encoder(schema: &str) -> anyhow::Result<Encoder> {
    let event = EventType {
        topic: "t".to_owned(),
        schema_text: schema.to_owned(),
        schema: Schema::parse_str(schema)?,
    };
    Encoder::new(&Catalogue { topics: BTreeMap::new(), events: BTreeMap::from([("E".to_owned(), event)]) })
}

fn bytes(schema: &str, payload: &str) -> Result<Vec<u8>, EncodeError> {
    let mut body = Vec::new();
    encoder(schema).unwrap().encode("E", payload, &mut body).map(|()| body)
}

fn misfit(path: &str, reason: &str) -> EncodeError {
    EncodeError::Payload { path: path.to_owned(), reason: reason.to_owned() }
}

/// A record with one field, `f`.
fn with_field(field_type: &str) -> String {
    format!(r#"{{"type": "record", "name": "E", "fields": [{{"name": "f", "type": {field_type}}}]}}"#)
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
    let value = reference::read(&Schema::parse_str(RICH)?, &bytes(RICH, &rich().to_string())?);
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
        ("items", json!({}), ".items", "expected an array, found an object"),
        ("first", json!({"sku": null}), ".first.sku", "expected string, found null"),
        ("first", json!("x"), ".first", "expected an object for record Item, found a string"),
        ("tags", json!({"t": "high"}), ".tags.t", "expected double, found a string"),
        ("at", json!("yesterday"), ".at", "\"yesterday\" is not an RFC 3339 time"),
        ("at", json!(5), ".at", "expected an RFC 3339 time as string, found a number"),
        ("kind", json!("C"), ".kind", "\"C\" is not a symbol"),
        ("either", json!([]), ".either", "expected string, found an array"),
        ("either", json!(1.5), ".either", "1.5 is not a 64-bit integer"),
        ("surplus", json!(1), ".surplus", "not a field of the schema"),
    ] {
        let mut payload = rich();
        payload[field] = value;
        let mut buffer = vec![7];
        assert_eq!(encoder.encode("E", &payload.to_string(), &mut buffer), Err(misfit(path, reason)));
        assert_eq!(buffer, [7]);
    }
    assert_eq!(
        encoder.encode("F", "{}", &mut Vec::new()),
        Err(EncodeError::UnknownEventType("F".to_owned()))
    );
    Ok(())
}

#[test]
fn a_reason_quotes_no_more_of_a_payload_than_a_person_reads() {
    let Err(EncodeError::Payload { reason, .. }) =
        bytes(r#"{"type": "string", "logicalType": "uuid"}"#, &format!("\"{}\"", "é".repeat(1_000_000)))
    else {
        panic!("no misfit")
    };
    assert_eq!(reason, format!("\"{}…\" is not a uuid", "é".repeat(100)));
}

#[test]
fn what_json_cannot_express_is_refused_before_there_is_a_row() {
    for (kind, field_type) in [
        ("bytes", r#""bytes""#),
        ("fixed", r#"{"type": "fixed", "name": "F", "size": 4}"#),
        ("decimal", r#"{"type": "bytes", "logicalType": "decimal", "precision": 9, "scale": 2}"#),
        ("decimal", r#"{"type": "fixed", "name": "D", "size": 8, "logicalType": "decimal", "precision": 9}"#),
        ("decimal", r#"{"type": "bytes", "logicalType": "big-decimal"}"#),
        ("duration", r#"{"type": "fixed", "name": "T", "size": 12, "logicalType": "duration"}"#),
    ] {
        for (around, path) in [
            (field_type.to_owned(), ".f"),
            (format!(r#"["null", {field_type}]"#), ".f"),
            (format!(r#"{{"type": "array", "items": {field_type}}}"#), ".f[]"),
            (
                format!(
                    r#"{{"type": "map", "values": {}}}"#,
                    with_field(field_type).replace("\"E\"", "\"I\"")
                ),
                ".f.*.f",
            ),
        ] {
            let error = format!("{:#}", encoder(&with_field(&around)).unwrap_err());
            let expected =
                format!("event E: field {path} is of type {kind}, which a JSON payload cannot express");
            assert_eq!(error, expected);
        }
    }
    let error = format!("{:#}", encoder(r#""bytes""#).unwrap_err());
    assert_eq!(error, "event E: the schema is of type bytes, which a JSON payload cannot express");
}

#[test]
fn a_default_is_as_avro_has_it_and_fits() -> anyhow::Result<()> {
    let schema = |field_type: &str, default: &str| {
        format!(
            r#"{{"type": "record", "name": "E", "fields": [{{"name": "f", "type": {field_type}, "default": {default}}}]}}"#
        )
    };
    // Dates and times are numbers there.
    let timestamp = r#"{"type": "long", "logicalType": "timestamp-micros"}"#;
    assert_eq!(bytes(&schema(timestamp, "-2"), "{}")?, [3]);
    assert_eq!(bytes(&schema(&format!("[{timestamp}, \"null\"]"), "1"), "{}")?, [0, 2]);
    assert_eq!(bytes(&schema(&format!("[{timestamp}, \"null\"]"), "null"), "{}")?, [2]);
    // A record's default may rely on the defaults of its own fields, and on a type that contains itself.
    let inner = r#"{"type": "record", "name": "I", "fields": [
        {"name": "a", "type": {"type": "int", "logicalType": "date"}, "default": 5},
        {"name": "b", "type": ["null", "I"], "default": null}]}"#;
    assert_eq!(bytes(&schema(inner, r#"{"b": {"a": 6}}"#), "{}")?, [10, 2, 12, 0]);
    let error = format!("{:#}", encoder(&schema("\"double\"", "\"NaN\"")).unwrap_err());
    assert_eq!(error, "event E: field .f: the default does not fit: expected double, found a string");
    Ok(())
}

#[test]
fn what_is_ambiguous_is_refused() {
    assert_eq!(bytes(&with_field("\"int\""), r#"{"f": 1, "f": 1}"#), Err(misfit(".f", "given twice")));
    assert_eq!(bytes(&with_field("\"int\""), r#"{"f": 1, "\u0066": 1}"#), Err(misfit(".f", "given twice")));
    let map = r#"{"type": "map", "values": "int"}"#;
    assert_eq!(bytes(map, r#"{"a": 1, "b": 2, "a": 3}"#), Err(misfit(".a", "given twice")));
    assert_eq!(
        bytes(map, r#"{"b": 1, "aa": 2, "a": 3}"#),
        Ok([&[6, 2][..], b"b", &[2, 4], b"aa", &[4, 2], b"a", &[6, 0]].concat())
    );
}

#[test]
fn numbers_are_exact_or_refused() {
    for (kind, number, reason) in [
        ("int", "1.0", "1.0 is not a 32-bit integer"),
        ("long", "1.0", "1.0 is not a 64-bit integer"),
        ("long", "1e3", "1e3 is not a 64-bit integer"),
        ("long", "9223372036854775808", "9223372036854775808 is not a 64-bit integer"),
        ("float", "1e39", "1e39 is out of range"),
        ("double", "-1e400", "-1e400 is out of range"),
        ("double", "\"NaN\"", "expected double, found a string"),
        ("double", "NaN", "not JSON at byte 0: a value was expected"),
        ("double", "01", "not JSON at byte 1: the end was expected"),
        ("double", "1.", "not JSON at byte 2: a digit was expected"),
        ("double", "-", "not JSON at byte 1: a digit was expected"),
    ] {
        assert_eq!(bytes(&format!("\"{kind}\""), number), Err(misfit("", reason)));
    }
    // What is not JSON fits no branch either, but that is not what is wrong with it.
    let reason = "not JSON at byte 2: a digit was expected";
    assert_eq!(bytes(r#"["int", "long", "double"]"#, "1."), Err(misfit("", reason)));
    // As PostgreSQL prints 1e5000.
    let huge = format!("1{}", "0".repeat(5_000));
    let reason = format!("1{}… is out of range", "0".repeat(99));
    assert_eq!(bytes("\"double\"", &huge), Err(misfit("", &reason)));
    assert_eq!(bytes("\"long\"", "-9223372036854775808"), Ok([&[0xff; 9][..], &[1]].concat()));
    assert_eq!(bytes("\"long\"", "-0"), Ok(vec![0]));
    assert_eq!(bytes("\"double\"", "0.1"), Ok(0.1f64.to_le_bytes().to_vec()));
    // The nearest 32-bit float, not the nearest to the nearest 64-bit one.
    assert_eq!(
        bytes("\"float\"", "1.00000017881393432617187499"),
        Ok(1.000_000_1_f32.to_le_bytes().to_vec())
    );
    // The first branch that fits.
    assert_eq!(bytes(r#"["int", "long", "double"]"#, "3000000000").map(|bytes| bytes[0]), Ok(2));
    assert_eq!(bytes(r#"["int", "long", "double"]"#, "3.0").map(|bytes| bytes[0]), Ok(4));
}

#[test]
fn strings_are_what_their_escapes_mean() {
    let string = |text: &str| [&[u8::try_from(2 * text.len()).unwrap()], text.as_bytes()].concat();
    assert_eq!(
        bytes("\"string\"", r#""\"\\\/\b\f\n\r\t\u00e9\uD83D\ude00\u0000""#),
        Ok(string("\"\\/\u{8}\u{c}\n\r\té😀\0"))
    );
    for (text, at, reason) in [
        (r#""\ud83d""#, 2, "a surrogate without its other half"),
        (r#""\ud83d\u0041""#, 2, "a surrogate without its other half"),
        (r#""\ude00""#, 2, "a surrogate without its other half"),
        (r#""\u12g4""#, 2, "\\u without four digits"),
        (r#""\x""#, 2, "no such escape"),
        ("\"a\nb\"", 2, "a control character in a string"),
        (r#""a"#, 2, "the text ends too early"),
        (r#""a\"#, 3, "the text ends too early"),
    ] {
        assert_eq!(bytes("\"string\"", text), Err(misfit("", &format!("not JSON at byte {at}: {reason}"))));
    }
}

#[test]
fn uuids_dates_and_times_are_checked_and_written_in_one_form() {
    const ID: &str = "0190a6f0-5b1e-7c3a-9f00-0123456789ab";
    let uuid = r#"{"type": "string", "logicalType": "uuid"}"#;
    let written = Ok([&[72][..], ID.as_bytes()].concat());
    assert_eq!(bytes(uuid, &format!("\"{ID}\"")), written);
    assert_eq!(bytes(uuid, &format!("\"{{{}}}\"", ID.to_uppercase())), written);
    assert_eq!(bytes(uuid, "\"0190a6f0\""), Err(misfit("", "\"0190a6f0\" is not a uuid")));
    let logical = |base: &str, name: &str, text: &str| {
        let schema = format!(r#"{{"type": "{base}", "logicalType": "{name}"}}"#);
        bytes(&schema, &format!("\"{text}\"")).map(|bytes| reference::read(&Schema::Long, &bytes))
    };
    for (base, name, text, number) in [
        ("long", "timestamp-micros", "2026-11-18T11:06:40.123456Z", 1_795_000_000_123_456),
        ("long", "timestamp-micros", "2026-11-18T16:36:40.123456+05:30", 1_795_000_000_123_456),
        ("long", "timestamp-millis", "1969-12-31T23:59:59.9999Z", -1),
        ("long", "timestamp-nanos", "1969-12-31T23:59:59.999999999Z", -1),
        ("long", "local-timestamp-millis", "2026-11-18T11:06:40.1234", 1_795_000_000_123),
        ("int", "date", "1969-12-31", -1),
        ("int", "time-millis", "23:59:59.9999", 86_399_999),
        ("long", "time-micros", "00:00:01", 1_000_000),
    ] {
        assert_eq!(logical(base, name, text), Ok(apache_avro::types::Value::Long(number)), "{text}");
    }
    for (base, name, text, reason) in [
        ("long", "timestamp-nanos", "2500-01-01T00:00:00Z", "2500-01-01T00:00:00Z is out of range"),
        (
            "long",
            "timestamp-millis",
            "2026-11-18T11:06:40",
            "\"2026-11-18T11:06:40\" is not an RFC 3339 time",
        ),
        ("int", "date", "2026-02-30", "\"2026-02-30\" is not a date (YYYY-MM-DD)"),
        ("int", "date", "+12026-02-03", "\"+12026-02-03\" is not a date (YYYY-MM-DD)"),
        ("int", "time-millis", "24:00:00", "\"24:00:00\" is not a time of day (HH:MM:SS)"),
        (
            "long",
            "local-timestamp-millis",
            "2026-11-18T11:06:40Z",
            "\"2026-11-18T11:06:40Z\" is not a time without offset (YYYY-MM-DDTHH:MM:SS)",
        ),
    ] {
        assert_eq!(logical(base, name, text), Err(misfit("", reason)));
    }
}

const LIST: &str = r#"{"type": "record", "name": "L", "fields": [{"name": "n", "type": ["null", "L"]}]}"#;

#[test]
fn nesting_is_followed_to_a_limit() {
    let nested = |depth: usize| format!("{}null{}", r#"{"n": "#.repeat(depth), "}".repeat(depth));
    assert_eq!(bytes(LIST, &nested(128)).map(|bytes| bytes.len()), Ok(128));
    for depth in [129, 1_000_000] {
        let reason = "more than 128 arrays and objects within each other";
        assert_eq!(bytes(LIST, &nested(depth)), Err(misfit(&".n".repeat(128), reason)));
    }
}

#[test]
fn unions_within_unions_are_not_tried_for_ever() {
    // Every object could be an A or a B until its last character, and so could each in it: 2^100 ways.
    let schema = r#"{"type": "record", "name": "A", "fields": [
        {"name": "n", "type": ["null", "A", {"type": "record", "name": "B", "fields": [
            {"name": "n", "type": ["null", "A", "B"]}, {"name": "b", "type": "int"}]}]},
        {"name": "a", "type": "int"}]}"#;
    let text = format!("{}null{}", r#"{"n": "#.repeat(100), r#", "c": 1}"#.repeat(100));
    let reason = "the unions of the schema leave too many ways to read it";
    match bytes(schema, &text) {
        Err(EncodeError::Payload { reason: given, .. }) => assert_eq!(given, reason),
        other => panic!("{other:?}"),
    }
    // Few ways are tried.
    let text = r#"{"n": {"n": {"n": null, "a": 1}, "b": 2}, "a": 3}"#;
    assert_eq!(bytes(schema, text), Ok(vec![4, 2, 0, 2, 4, 6]));
}

#[test]
fn names_are_found_in_their_namespaces() {
    let schema = r#"{"type": "record", "name": "E", "namespace": "one", "fields": [
        {"name": "a", "type": {"type": "enum", "name": "K", "symbols": ["X", "Y"]}},
        {"name": "b", "type": {"type": "record", "name": "two.R", "fields": [
            {"name": "c", "type": {"type": "enum", "name": "K", "symbols": ["Z", "Y"]}}, {"name": "d", "type": "K"}]}},
        {"name": "e", "type": "K"}, {"name": "f", "type": "two.K"}]}"#;
    let payload = r#"{"a": "X", "b": {"c": "Z", "d": "Z"}, "e": "X", "f": "Z"}"#;
    assert_eq!(bytes(schema, payload), Ok(vec![0; 5]));
}

#[test]
fn an_encoder_is_shared_by_threads() {
    fn shared<T: Send + Sync>() {}
    shared::<Encoder>();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_postgresql_prints_is_read() -> anyhow::Result<()> {
    let rig = Rig::without_topic("jsonb").await?;
    let mut service = rig.connect("executor").await?;
    let schema = r#"{"type": "record", "name": "E", "fields": [
        {"name": "long_name", "type": "string"}, {"name": "b", "type": "long"}, {"name": "a", "type": "double"},
        {"name": "m", "type": {"type": "map", "values": ["null", "int"]}}]}"#;
    let given = r#"{"b": 0, "long_name": "\u00e9\ud83d\ude00\u0001\"\\/\n", "a": -1.50e-7, "m": {"bb": 1, "c": null, "a": 2}, "b": 12e2}"#;
    let text: String =
        sqlx::query_scalar("SELECT $1::jsonb::text").bind(given).fetch_one(&mut service).await?;
    let parts = [
        &[2 * 11][..],
        "é😀\u{1}\"\\/\n".as_bytes(),
        &[0xe0, 0x12],
        &(-1.5e-7f64).to_le_bytes(),
        &[6, 2],
        b"a",
        &[2, 4],
        &[2],
        b"c",
        &[0],
        &[4],
        b"bb",
        &[2, 2],
        &[0],
    ];
    assert_eq!(bytes(schema, &text)?, parts.concat(), "{text}");
    Ok(())
}
