//! What holds for every schema and every payload.

use apache_avro::Schema;
use outbox_relay::encode::EncodeError;
use proptest::{collection::vec, prelude::*};
use serde::de::IgnoredAny;
use serde_json::Value as Json;

use super::{arbitrary::Choices, encoder, reference};

/// Something is in the buffer already: another record.
const BEFORE: &[u8] = b"before";

fn choices() -> impl Strategy<Value = Choices> {
    vec(any::<u32>(), 0..400).prop_map(Choices::new)
}

impl std::fmt::Debug for Choices {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Choices")
    }
}

/// What is appended to a buffer; none if the payload is refused, which must leave the buffer alone.
fn appended(schema: &str, payload: &str) -> Result<Vec<u8>, EncodeError> {
    let mut buffer = BEFORE.to_vec();
    let result = encoder(schema).unwrap().encode("E", payload, &mut buffer);
    let appended = buffer.strip_prefix(BEFORE).unwrap();
    match result {
        Ok(()) => Ok(appended.to_vec()),
        Err(error) => {
            assert_eq!(appended, [0u8; 0], "{error}");
            Err(error)
        }
    }
}

/// A schema, a payload that fits it, its text, and the bytes that the reference writes.
fn fitting(choices: &mut Choices) -> (Json, Json, String, Vec<u8>) {
    let schema = choices.schema();
    let payload = choices.payload(&schema, 0);
    // From text, as the catalogue has it: the reader of JSON rounds a default's digits.
    let parsed = Schema::parse_str(&schema.to_string()).unwrap();
    let (value, bytes) = reference::written(&parsed, &payload).unwrap();
    let text = choices.print(&payload, &value);
    (schema, payload, text, bytes)
}

/// Takes characters out of a text and puts others in.
fn damaged(text: &str, damages: &[(usize, char, bool)]) -> String {
    let mut characters: Vec<char> = text.chars().collect();
    for (place, character, insert) in damages {
        let place = place % (characters.len() + 1);
        if *insert {
            characters.insert(place, *character);
        } else if place < characters.len() {
            characters.remove(place);
        }
    }
    characters.into_iter().collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_payload_that_fits_is_written_as_the_reference_writes_it(mut choices in choices()) {
        let (schema, payload, text, bytes) = fitting(&mut choices);
        prop_assert_eq!(appended(&schema.to_string(), &text), Ok(bytes), "{}\n{}\n{}", schema, payload, text);
    }

    #[test]
    fn every_payload_that_is_spoilt_is_refused_with_the_place(mut choices in choices()) {
        let (schema, mut payload, ..) = fitting(&mut choices);
        let Some(place) = choices.spoil(&schema, &mut payload, "") else { return Ok(()) };
        match appended(&schema.to_string(), &payload.to_string()) {
            Err(EncodeError::Payload { path, .. }) => prop_assert_eq!(path, place, "{}\n{}", schema, payload),
            other => prop_assert!(false, "{:?} at {}\n{}\n{}", other, place, schema, payload),
        }
    }

    #[test]
    fn no_text_is_taken_that_is_not_json(
        mut choices in choices(),
        damages in vec((any::<usize>(), prop::sample::select(r#"{}[]",:\/ulbnte0159.+-eE é😀"#.chars().collect::<Vec<_>>()), any::<bool>()), 1..4),
    ) {
        let (schema, _, text, _) = fitting(&mut choices);
        let text = damaged(&text, &damages);
        if appended(&schema.to_string(), &text).is_ok() {
            prop_assert!(serde_json::from_str::<IgnoredAny>(&text).is_ok(), "{}", text);
        }
    }

    #[test]
    fn any_text_is_refused_without_a_trace(text in ".*") {
        prop_assert!(appended(super::RICH, &text).is_err());
    }

    #[test]
    fn strings_are_what_another_reader_of_json_reads(text in r#"([ -~é漢😀\x00-\x1f]|\\["\\/bfnrtuxé]|\\u[0-9a-fA-F]{3,4}|\\u[dD][89a-fA-F][0-9a-fA-F]{2}){0,12}"#) {
        let text = format!("\"{text}\"");
        let read = serde_json::from_str::<String>(&text).ok();
        let written = appended(r#""string""#, &text).ok();
        prop_assert_eq!(written.map(|bytes| reference::read(&Schema::String, &bytes)), read.map(Into::into));
    }

    #[test]
    fn numbers_are_the_nearest_that_can_be_written(text in "-?[0-9]{0,20}(\\.[0-9]{0,25})?([eE][-+]?[0-9]{0,3})?") {
        let is_json = serde_json::from_str::<IgnoredAny>(&text).is_ok();
        let nearest = text.parse::<f64>().ok().filter(|double| is_json && double.is_finite());
        prop_assert_eq!(appended(r#""double""#, &text).ok(), nearest.map(|double| double.to_le_bytes().to_vec()));
        let nearest = text.parse::<f32>().ok().filter(|float| is_json && float.is_finite());
        prop_assert_eq!(appended(r#""float""#, &text).ok(), nearest.map(|float| float.to_le_bytes().to_vec()));
        let long = text.parse::<i64>().ok().filter(|_| is_json);
        let written = appended(r#""long""#, &text).ok();
        prop_assert_eq!(written.map(|bytes| reference::read(&Schema::Long, &bytes)), long.map(Into::into));
    }
}
