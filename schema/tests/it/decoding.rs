//! What other implementations write is read; what is cut, or foreign, is refused; what is newer is understood as far as can be.

use std::sync::Arc;

use schema::{
    decode::{DecodeError, Decoder, Event},
    payment_order_requested::PaymentOrderRequestedEvent,
    psp_result_update::{ERROR_MESSAGE_MAX_CHARS, PspResultUpdateEvent, PspStatus, sanitise_error_message},
    registry::Registry,
    wire::begin_frame,
};
use serde::{Deserialize, de::DeserializeOwned};
use testbed::stack::Stack;

/// Bodies written by fastavro: see `vectors/make.py`.
#[derive(Deserialize)]
struct Vector {
    event_type: String,
    json: serde_json::Value,
    body: String,
}

fn vectors<E: Event>() -> Vec<(serde_json::Value, Vec<u8>)> {
    let all: Vec<Vector> = serde_json::from_str(include_str!("../vectors/avro.json")).unwrap();
    let ours = all.into_iter().filter(|vector| vector.event_type == E::TYPE);
    let bytes = |hex: &str| {
        (0..hex.len() / 2).map(|at| u8::from_str_radix(&hex[2 * at..2 * at + 2], 16).unwrap()).collect()
    };
    ours.map(|vector| (vector.json, bytes(&vector.body))).collect()
}

fn framed(id: u32, body: &[u8]) -> Vec<u8> {
    let mut record = Vec::new();
    begin_frame(id, &mut record);
    record.extend_from_slice(body);
    record
}

async fn registered(schema: &str) -> anyhow::Result<(Arc<Registry>, u32)> {
    let stack = Stack::get().await?;
    let registry = Arc::new(Registry::new(&stack.registry_url())?);
    let id = registry.register(&stack.unique("decoding"), schema).await?;
    Ok((registry, id))
}

async fn reads_what_fastavro_wrote<E: Event + DeserializeOwned + PartialEq + std::fmt::Debug>()
-> anyhow::Result<()> {
    let (registry, id) = registered(E::SCHEMA).await?;
    let decoder = Decoder::<E>::new(registry)?;
    let vectors = vectors::<E>();
    assert!(!vectors.is_empty());
    for (json, body) in vectors {
        let expected: E = serde_json::from_value(json)?;
        assert_eq!(decoder.decode(Some(&framed(id, &body))).await?, expected);
        for cut in 0..body.len() {
            let result = decoder.decode(Some(&framed(id, &body[..cut]))).await;
            assert!(matches!(result, Err(DecodeError::Undecodable(_))), "cut at {cut}: {result:?}");
        }
        let longer = [&body[..], &[0]].concat();
        assert!(matches!(decoder.decode(Some(&framed(id, &longer))).await, Err(DecodeError::Undecodable(_))));
    }
    Ok(())
}

#[tokio::test]
async fn results_of_another_implementation_are_read_and_cut_ones_refused() -> anyhow::Result<()> {
    reads_what_fastavro_wrote::<PspResultUpdateEvent>().await
}

#[tokio::test]
async fn requests_of_another_implementation_are_read_and_cut_ones_refused() -> anyhow::Result<()> {
    reads_what_fastavro_wrote::<PaymentOrderRequestedEvent>().await
}

#[tokio::test]
async fn a_status_that_this_reader_lacks_is_unknown_and_new_fields_are_passed_over() -> anyhow::Result<()> {
    let newer = PspResultUpdateEvent::SCHEMA
        .replace(
            r#""symbols": ["SUCCESSFUL", "FAILED", "PENDING", "UNKNOWN"]"#,
            r#""symbols": ["REVERSED", "SUCCESSFUL", "FAILED", "PENDING", "UNKNOWN"]"#,
        )
        .replace(r#""fields": ["#, r#""fields": [{"name": "attempt", "type": "int", "default": 1},"#);
    assert_ne!(newer, PspResultUpdateEvent::SCHEMA);
    let (registry, id) = registered(&newer).await?;
    let decoder = Decoder::<PspResultUpdateEvent>::new(registry)?;
    let (json, body) = vectors::<PspResultUpdateEvent>().swap_remove(0);
    let expected: PspResultUpdateEvent = serde_json::from_value(json)?;
    // attempt 3, then the uuid (length byte and 36 characters), then the symbol's number.
    for (symbol, status) in [(0, PspStatus::Unknown), (2, PspStatus::Successful), (4, PspStatus::Failed)] {
        let newer_body = [&[6], &body[..37], &[symbol], &body[38..]].concat();
        let event = decoder.decode(Some(&framed(id, &newer_body))).await?;
        assert_eq!(event, PspResultUpdateEvent { psp_status: status, ..expected.clone() });
    }
    Ok(())
}

#[tokio::test]
async fn what_is_not_ours_is_refused_with_the_reason() -> anyhow::Result<()> {
    let (registry, id) = registered(PspResultUpdateEvent::SCHEMA).await?;
    let (_, foreign) = registered(PaymentOrderRequestedEvent::SCHEMA).await?;
    let decoder = Decoder::<PspResultUpdateEvent>::new(registry)?;
    let (_, body) = vectors::<PspResultUpdateEvent>().swap_remove(0);
    let mut huge = framed(id, &body);
    // A string that says it has two gigabytes.
    huge.splice(5..6, [0xfe, 0xff, 0xff, 0xff, 0x0f]);
    for (record, reason) in [
        (None, "tombstone"),
        (Some(Vec::new()), "too few"),
        (Some([&[1][..], &framed(id, &body)[1..]].concat()), "magic byte is 0x01"),
        (Some(framed(0x00ff_fff0, &body)), "not in the schema registry"),
        (Some(framed(foreign, &body)), "expected payment.outbox.PspResultUpdateEvent"),
        (Some(huge), "not a valid Avro body"),
    ] {
        match decoder.decode(record.as_deref()).await {
            Err(DecodeError::Undecodable(text)) => {
                assert!(text.contains(reason), "{text:?} does not say {reason:?}");
            }
            other => panic!("{reason}: {other:?}"),
        }
    }
    Ok(())
}

#[test]
fn the_json_of_the_outbox_is_what_the_vectors_say() -> anyhow::Result<()> {
    for (json, _) in vectors::<PspResultUpdateEvent>() {
        assert_eq!(
            serde_json::to_value(serde_json::from_value::<PspResultUpdateEvent>(json.clone())?)?,
            json
        );
    }
    for (json, _) in vectors::<PaymentOrderRequestedEvent>() {
        assert_eq!(
            serde_json::to_value(serde_json::from_value::<PaymentOrderRequestedEvent>(json.clone())?)?,
            json
        );
    }
    Ok(())
}

#[test]
fn an_error_message_is_one_line_of_bounded_length() {
    assert_eq!(sanitise_error_message(" a\r\nb\u{7}c "), "a  b c");
    assert_eq!(sanitise_error_message(&"ä".repeat(700)).chars().count(), ERROR_MESSAGE_MAX_CHARS);
}

#[test]
fn a_record_without_an_id_has_the_same_id_each_time_and_another_for_other_content() -> anyhow::Result<()> {
    let event: PspResultUpdateEvent =
        serde_json::from_value(vectors::<PspResultUpdateEvent>().swap_remove(0).0)?;
    assert_eq!(event.fallback_event_id("t"), event.fallback_event_id("t"));
    let others = [
        event.fallback_event_id("u"),
        PspResultUpdateEvent { psp_status: PspStatus::Failed, ..event.clone() }.fallback_event_id("t"),
        PspResultUpdateEvent { psp_reference: None, ..event.clone() }.fallback_event_id("t"),
        PspResultUpdateEvent { error_code: Some("x".into()), ..event.clone() }.fallback_event_id("t"),
        PspResultUpdateEvent {
            event_time: event.event_time + std::time::Duration::from_micros(1),
            ..event.clone()
        }
        .fallback_event_id("t"),
    ];
    assert!(!others.contains(&event.fallback_event_id("t")));
    Ok(())
}
