//! Payloads that fit but for one place.

use serde_json::{Value as Json, json};

use super::arbitrary::{Choices, kind, kind_of, name_of};

impl Choices {
    /// Spoils a payload in one place, and says where. None if nothing about it can be spoilt.
    pub(super) fn spoil(&mut self, schema: &Json, payload: &mut Json, path: &str) -> Option<String> {
        let schema = self.definition(schema)?;
        let branches = match &schema {
            Json::Array(branches) => branches.clone(),
            other => vec![other.clone()],
        };
        let branches: Vec<Json> = branches.iter().filter_map(|branch| self.definition(branch)).collect();
        let mut fitting = branches.iter().filter(|branch| kind_of(branch) == kind(payload));
        if let (Some(branch), None) = (fitting.next(), fitting.next())
            && self.below(5) > 0
            && let Some(path) = self.spoil_within(branch, payload, path)
        {
            return Some(path);
        }
        let others = [json!(null), json!(true), json!(7), json!("?"), json!([]), json!({})];
        let mut others =
            others.into_iter().filter(|other| branches.iter().all(|branch| kind_of(branch) != kind(other)));
        let skipped = self.below(6);
        *payload = others.clone().nth(skipped).or_else(|| others.next())?;
        Some(path.to_owned())
    }

    fn spoil_within(&mut self, schema: &Json, payload: &mut Json, path: &str) -> Option<String> {
        let here = Some(path.to_owned());
        match (name_of(schema)?, payload) {
            ("int", payload @ Json::Number(_)) => *payload = json!(3_000_000_000_i64),
            ("long", payload @ Json::Number(_)) => *payload = json!(18_000_000_000_000_000_000_u64),
            ("float", payload @ Json::Number(_)) => *payload = json!(1e39),
            ("enum", payload) => *payload = json!("S9"),
            (_, payload @ Json::String(_)) if schema["logicalType"].is_string() => {
                *payload = json!("2026-02-30T00:00:00Z");
            }
            ("array", Json::Array(items)) if !items.is_empty() => {
                let place = self.below(items.len());
                return self.spoil(&schema["items"], &mut items[place], &format!("{path}[{place}]"));
            }
            ("map", Json::Object(entries)) if !entries.is_empty() => {
                let place = self.below(entries.len());
                let (key, value) = entries.iter_mut().nth(place).unwrap();
                return self.spoil(&schema["values"], value, &format!("{path}.{key}"));
            }
            ("record", Json::Object(object)) => {
                let fields = schema["fields"].as_array()?;
                let field = if fields.is_empty() { &Json::Null } else { &fields[self.below(fields.len())] };
                let name = field["name"].as_str().unwrap_or("unknown");
                let path = format!("{path}.{name}");
                match object.get_mut(name) {
                    Some(value) if self.below(3) > 0 => return self.spoil(&field["type"], value, &path),
                    Some(_) if field.get("default").is_none() && !field["type"].is_array() => {
                        object.remove(name);
                        return Some(path);
                    }
                    _ => {
                        object.insert("unknown".to_owned(), json!(1));
                        return here.map(|here| here + ".unknown");
                    }
                }
            }
            _ => return None,
        }
        here
    }
}
