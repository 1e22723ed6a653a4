//! YAML documents, read in JSON's terms: what of ours Prometheus and containers are configured with.

use anyhow::{Context, Result};
use serde_json::Value;
use yaml_rust2::{Yaml, YamlLoader};

/// The first document of a text, its anchors and merges resolved.
pub fn read(text: &str) -> Result<Value> {
    let documents = YamlLoader::load_from_str(text).context("no YAML")?;
    documents.first().map(plain).context("an empty document")
}

/// Keys of a map win over those that it merges in (`<<`).
fn plain(yaml: &Yaml) -> Value {
    match yaml {
        Yaml::Hash(map) => {
            let mut object = serde_json::Map::new();
            for (key, value) in map {
                let key = key.as_str().map_or_else(|| plain(key).to_string(), str::to_owned);
                match plain(value) {
                    Value::Object(merged) if key == "<<" => {
                        for (key, value) in merged {
                            object.entry(key).or_insert(value);
                        }
                    }
                    value => {
                        object.insert(key, value);
                    }
                }
            }
            Value::Object(object)
        }
        Yaml::Array(items) => items.iter().map(plain).collect(),
        Yaml::String(text) | Yaml::Real(text) => Value::from(text.as_str()),
        Yaml::Integer(number) => Value::from(*number),
        Yaml::Boolean(truth) => Value::from(*truth),
        Yaml::Null | Yaml::BadValue | Yaml::Alias(_) => Value::Null,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn anchors_and_merges_are_resolved() {
        let text =
            "a: &a {x: 1, y: &y [p, q]}\nb:\n  z: *y\n  <<: *a\n  x: 2.5\nc: {<<: *a, y: no}\n7: true\n";
        let read = read(text).unwrap();
        assert_eq!(read["b"], serde_json::json!({"x": "2.5", "y": ["p", "q"], "z": ["p", "q"]}));
        assert_eq!(read["c"], serde_json::json!({"x": 1, "y": "no"}));
        assert_eq!(read["7"], true);
    }
}
