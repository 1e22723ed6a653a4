//! Takes fields out of a JSON object one by one, each checked as Adyen checks it.

use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use super::errors::Refusal;

/// A value, or the refusal that Adyen would give.
pub(crate) type Checked<T> = Result<T, Refusal>;

const MAX_TEXT: usize = 4096;
const MAX_METADATA: usize = 20;
const MAX_METADATA_NAME: usize = 20;
const MAX_METADATA_VALUE: usize = 80;

/// The fields that are left of a structure.
#[derive(Debug)]
pub(crate) struct Reader {
    structure: &'static str,
    fields: Map<String, Value>,
}

impl Reader {
    /// `known` are the fields that are looked at or that change nothing, `not_simulated` those that Adyen acts on.
    pub(crate) fn new(
        structure: &'static str,
        fields: Map<String, Value>,
        known: &[&str],
        not_simulated: &[&str],
    ) -> Checked<Self> {
        let unknown: Vec<&str> = (fields.keys().map(String::as_str))
            .filter(|name| !known.contains(name) && !not_simulated.contains(name))
            .collect();
        if !unknown.is_empty() {
            return Err(Refusal::unknown_fields(structure, &unknown));
        }
        match fields.keys().find(|name| not_simulated.contains(&name.as_str())) {
            Some(name) => Err(Refusal::not_simulated(name)),
            None => Ok(Self { structure, fields }),
        }
    }

    fn wrong(&self, name: &str, expected: &str) -> Refusal {
        Refusal::unreadable(format!("{}.{name}: expected {expected}", self.structure))
    }

    /// Null and the empty text count as absent.
    pub(crate) fn text(&mut self, name: &str) -> Checked<Option<Box<str>>> {
        match self.fields.remove(name) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) if text.len() > MAX_TEXT => Err(self.wrong(name, "a shorter text")),
            Some(Value::String(text)) => Ok(Some(text).filter(|text| !text.is_empty()).map(Into::into)),
            Some(Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_)) => {
                Err(self.wrong(name, "a text"))
            }
        }
    }

    pub(crate) fn integer(&mut self, name: &str) -> Checked<Option<i64>> {
        match self.fields.remove(name) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::Number(number)) => {
                number.as_i64().map(Some).ok_or_else(|| self.wrong(name, "a whole number"))
            }
            Some(Value::String(_) | Value::Bool(_) | Value::Array(_) | Value::Object(_)) => {
                Err(self.wrong(name, "a whole number"))
            }
        }
    }

    pub(crate) fn object(&mut self, name: &str) -> Checked<Option<Map<String, Value>>> {
        match self.fields.remove(name) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::Object(object)) => Ok(Some(object)),
            Some(Value::String(_) | Value::Number(_) | Value::Bool(_) | Value::Array(_)) => {
                Err(self.wrong(name, "an object"))
            }
        }
    }

    pub(crate) fn choice(&mut self, name: &str, choices: &[&'static str]) -> Checked<Option<&'static str>> {
        let Some(text) = self.text(name)? else { return Ok(None) };
        let choice = choices.iter().find(|choice| ***choice == *text);
        choice.map(|choice| Some(*choice)).ok_or_else(|| self.wrong(name, &format!("one of {choices:?}")))
    }

    /// Metadata comes back in reports, which are not simulated; its limits hold.
    pub(crate) fn check_metadata(&mut self) -> Checked<()> {
        let Some(object) = self.object("metadata")? else { return Ok(()) };
        if object.len() > MAX_METADATA {
            return Err(Refusal::invalid("177", "Metadata size exceeds limit"));
        }
        for (name, value) in &object {
            let Value::String(value) = value else { return Err(self.wrong("metadata", "texts")) };
            if name.chars().count() > MAX_METADATA_NAME || value.chars().count() > MAX_METADATA_VALUE {
                return Err(Refusal::invalid("178", "Metadata key or value size exceeds limit"));
            }
        }
        Ok(())
    }
}

/// The same values give the same fingerprint, in whatever order and with whatever spaces they were sent.
pub(crate) fn fingerprint(fields: &Map<String, Value>) -> [u8; 32] {
    let mut hasher = Sha256::new();
    hash_object(&mut hasher, fields);
    hasher.finalize().into()
}

fn hash(hasher: &mut Sha256, value: &Value) {
    match value {
        Value::Null => hasher.update(b"n"),
        Value::Bool(bit) => hasher.update(if *bit { b"t" } else { b"f" }),
        Value::Number(number) => hash_text(hasher, b"0", &number.to_string()),
        Value::String(text) => hash_text(hasher, b"=", text),
        Value::Array(values) => {
            hasher.update(b"[");
            for value in values {
                hash(hasher, value);
            }
            hasher.update(b"]");
        }
        Value::Object(object) => hash_object(hasher, object),
    }
}

fn hash_object(hasher: &mut Sha256, object: &Map<String, Value>) {
    let mut fields: Vec<_> = object.iter().collect();
    fields.sort_unstable_by_key(|(name, _)| *name);
    hasher.update(b"{");
    for (name, value) in fields {
        hash_text(hasher, b":", name);
        hash(hasher, value);
    }
    hasher.update(b"}");
}

fn hash_text(hasher: &mut Sha256, kind: &[u8], text: &str) {
    hasher.update(kind);
    hasher.update(text.len().to_be_bytes());
    hasher.update(text.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fingerprints_see_values_and_not_their_order() {
        let print = |text: &str| fingerprint(&serde_json::from_str(text).unwrap());
        let one = print(r#"{"a":1,"b":{"c":"x","d":[true,null]}}"#);
        assert_eq!(one, print(r#"{ "b": {"d":[true, null],"c":"x"}, "a": 1 }"#));
        for other in [
            r#"{"a":"1","b":{"c":"x","d":[true,null]}}"#,
            r#"{"a":1,"b":{"c":"x","d":[null,true]}}"#,
            r#"{"a":1,"b":{"c":"x"},"d":[true,null]}"#,
        ] {
            assert_ne!(one, print(other), "{other}");
        }
    }
}
