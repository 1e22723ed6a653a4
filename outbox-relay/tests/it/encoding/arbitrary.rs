//! Arbitrary schemas, payloads that fit them, and texts of these payloads.

use std::collections::BTreeMap;

use apache_avro::{Schema, types::Value};
use serde_json::{Map, Value as Json, json};
use time::{Duration, OffsetDateTime, UtcOffset, format_description::well_known::Rfc3339};
use uuid::Uuid;

/// Numbers that decide everything. Proptest makes them fewer and smaller to find the simplest case: 0 is the simplest choice, and
/// goes on when there are no more.
pub(super) struct Choices {
    numbers: std::vec::IntoIter<u32>,
    /// Named types by full name, once they are complete.
    types: BTreeMap<String, Json>,
    /// Full names of the records that are being made.
    open: Vec<String>,
    named: usize,
}

const PRIMITIVES: [&str; 7] = ["string", "boolean", "int", "long", "float", "double", "null"];
/// Logical types: type, name.
const LOGICAL: [(&str, &str); 11] = [
    ("string", "uuid"),
    ("int", "date"),
    ("int", "time-millis"),
    ("long", "time-micros"),
    ("long", "timestamp-millis"),
    ("long", "timestamp-micros"),
    ("long", "timestamp-nanos"),
    ("long", "local-timestamp-millis"),
    ("long", "local-timestamp-micros"),
    ("long", "local-timestamp-nanos"),
    ("bytes", "uuid"),
];
const COMPLEX: [&str; 7] = ["record", "enum", "array", "map", "union", "fixed", "known"];
const SCALARS: usize = PRIMITIVES.len() + LOGICAL.len();

impl Choices {
    pub(super) fn new(numbers: Vec<u32>) -> Self {
        Self { numbers: numbers.into_iter(), types: BTreeMap::new(), open: Vec::new(), named: 0 }
    }

    pub(super) fn below(&mut self, limit: usize) -> usize {
        self.number() as usize % limit
    }

    fn number(&mut self) -> u32 {
        self.numbers.next().unwrap_or_default()
    }

    fn one_in(&mut self, count: usize) -> bool {
        self.below(count) == count - 1
    }

    fn long(&mut self) -> u64 {
        (u64::from(self.number()) << 32) | u64::from(self.number())
    }

    /// A name as a definition has it, and in full: some say their namespace, the others are in that of the record around them.
    fn name(&mut self) -> (String, String) {
        self.named += 1;
        let name = format!("Type{}", self.named);
        let around = self.open.last().and_then(|open| open.split_once('.'));
        match around {
            Some((namespace, _)) if !self.named.is_multiple_of(3) => {
                let full = format!("{namespace}.{name}");
                (name, full)
            }
            _ => {
                let full = format!("space{}.{name}", self.named % 2);
                (full.clone(), full)
            }
        }
    }

    // ------------------------------------------------------------------------------------------------------------ schemas

    /// A record, as most schemas of events are.
    pub(super) fn schema(&mut self) -> Json {
        let kind = if self.one_in(10) { self.below(6) } else { 0 };
        let mut schema = self.type_of(0, SCALARS + kind);
        // Apache's parser refuses some defaults of records that are in order.
        if Schema::parse(&schema).is_err() {
            without_defaults(&mut schema);
            self.types.values_mut().for_each(without_defaults);
        }
        schema
    }

    fn any_type(&mut self, depth: usize) -> Json {
        let kinds = if depth >= 4 { SCALARS } else { SCALARS + COMPLEX.len() };
        let kind = self.below(kinds);
        self.type_of(depth, kind)
    }

    fn type_of(&mut self, depth: usize, kind: usize) -> Json {
        if let Some(primitive) = PRIMITIVES.get(kind) {
            return json!(primitive);
        }
        if let Some((base, logical)) = LOGICAL.get(kind - PRIMITIVES.len()) {
            return json!({"type": base, "logicalType": logical});
        }
        match COMPLEX[kind - SCALARS] {
            "record" => self.record(depth),
            "enum" => {
                let ((name, full), count) = (self.name(), 1 + self.below(5));
                let symbols: Vec<_> = (0..count).map(|symbol| format!("S{}", symbol * 7 % 5)).collect();
                self.complete(full, json!({"type": "enum", "name": name, "symbols": symbols}))
            }
            "array" => json!({"type": "array", "items": self.any_type(depth + 1)}),
            "map" => json!({"type": "map", "values": self.any_type(depth + 1)}),
            "union" => self.union(depth),
            "fixed" => {
                let (name, full) = self.name();
                self.complete(full, json!({"type": "fixed", "name": name, "size": 16, "logicalType": "uuid"}))
            }
            _ => self.known(),
        }
    }

    fn complete(&mut self, full_name: String, definition: Json) -> Json {
        self.types.insert(full_name, definition.clone());
        definition
    }

    fn record(&mut self, depth: usize) -> Json {
        let (name, full) = self.name();
        self.open.push(full.clone());
        let count = if self.one_in(30) { 20 } else { self.below(6) };
        let mut fields = Vec::new();
        for place in 0..count {
            // Of any length, so that jsonb's order is not the schema's.
            let name = format!("{}{place}", &"field_name"[..=self.below(9)]);
            let schema = self.any_type(depth + 1);
            let mut field = json!({"name": name, "type": schema});
            if self.one_in(3)
                && let Some(default) = self.default(&schema, 0)
            {
                field["default"] = default;
            }
            fields.push(field);
        }
        self.open.pop();
        self.complete(full, json!({"type": "record", "name": name, "fields": fields}))
    }

    fn union(&mut self, depth: usize) -> Json {
        let (mut branches, mut taken) = (Vec::new(), Vec::new());
        for _ in 0..=self.below(4) {
            let mut kind = self.below(SCALARS + COMPLEX.len());
            if kind >= SCALARS && (depth >= 4 || COMPLEX[kind - SCALARS] == "union") {
                kind = PRIMITIVES.len() - 1;
            }
            // Avro allows each unnamed type once.
            let base = match kind.checked_sub(PRIMITIVES.len()) {
                None => PRIMITIVES[kind],
                Some(logical) => {
                    LOGICAL.get(logical).map_or_else(|| COMPLEX[kind - SCALARS], |(base, _)| *base)
                }
            };
            let named = ["record", "enum", "fixed"].contains(&base);
            if base == "known" || (!named && taken.contains(&base)) {
                continue;
            }
            taken.push(base);
            branches.push(self.type_of(depth + 1, kind));
        }
        // The record around it, perhaps, beside null, which ends that.
        if let Some(open) = self.open.last().cloned()
            && self.one_in(3)
        {
            branches.push(json!(open));
            if !taken.contains(&"null") {
                branches.push(json!("null"));
            }
        }
        if branches.is_empty() { json!(["null"]) } else { json!(branches) }
    }

    /// A type that has been defined before.
    fn known(&mut self) -> Json {
        let names: Vec<_> = self.types.keys().cloned().collect();
        if names.is_empty() { json!("string") } else { json!(names[self.below(names.len())]) }
    }

    // ----------------------------------------------------------------------------------------------------------- payloads

    /// Where a name is a type: the types themselves.
    pub(super) fn definition(&self, schema: &Json) -> Option<Json> {
        match schema.as_str() {
            Some(name) if !PRIMITIVES.contains(&name) => self.types.get(name).cloned(),
            _ => Some(schema.clone()),
        }
    }

    /// A default, in which dates and times are numbers. None for what has no sensible one.
    fn default(&mut self, schema: &Json, depth: usize) -> Option<Json> {
        let schema = self.definition(schema).filter(|_| depth < 6)?;
        match (name_of(&schema), schema["logicalType"].as_str()) {
            (Some("bytes" | "fixed"), _) => None,
            (Some("int"), Some(_)) => Some(json!(self.below(86_400_000))),
            (Some("long"), Some(_)) => Some(json!(self.long() >> 2)),
            (Some("record"), _) => {
                let mut object = Map::new();
                for field in schema["fields"].as_array().unwrap() {
                    if field.get("default").is_none() {
                        object.insert(text_of(&field["name"]), self.default(&field["type"], depth + 1)?);
                    }
                }
                Some(Json::Object(object))
            }
            (Some("array"), _) => Some(json!([])),
            (Some("map"), _) => Some(json!({})),
            // No object for a union: Apache's parser looks for its branch without end in types that contain themselves.
            _ if schema.is_array() => {
                let first = self.definition(&schema[0]).filter(|first| kind_of(first) != kind(&json!({})))?;
                self.default(&first, depth + 1)
            }
            _ => Some(self.payload(&schema, depth)),
        }
    }

    /// A payload that fits. By which branch of its unions, the reference says.
    pub(super) fn payload(&mut self, schema: &Json, depth: usize) -> Json {
        let Some(schema) = self.definition(schema) else { return Json::Null };
        if let Some(branches) = schema.as_array() {
            let null = branches.iter().position(|branch| branch == "null");
            let place = if depth > 8 { null.unwrap_or_default() } else { self.below(branches.len()) };
            return self.payload(&branches[place], depth + 1);
        }
        if let Some(logical) = schema["logicalType"].as_str() {
            return json!(self.logical(logical));
        }
        match name_of(&schema).unwrap() {
            "null" => Json::Null,
            "boolean" => json!(self.below(2) == 1),
            "int" => json!(self.whole(i64::from(i32::MIN), i64::from(i32::MAX))),
            "long" => json!(self.whole(i64::MIN, i64::MAX)),
            "float" => match self.below(3) {
                0 => json!(self.below(1_000)),
                1 => json!(f64::from(f32::MAX)),
                _ => finite(f64::from(f32::from_bits(self.number()))),
            },
            "double" => match self.below(4) {
                0 => json!(self.below(1_000)),
                1 => json!(0.1),
                2 => json!(self.long().cast_signed()),
                _ => finite(f64::from_bits(self.long())),
            },
            "string" => json!(self.text()),
            "enum" => {
                let symbols = schema["symbols"].as_array().unwrap();
                symbols[self.below(symbols.len())].clone()
            }
            "array" => {
                // 70 items: their count takes two bytes.
                let count = if self.one_in(30) { 70 } else { self.below(4) };
                let count = if depth > 8 { 0 } else { count };
                (0..count).map(|_| self.payload(&schema["items"], depth + 1)).collect()
            }
            "map" => {
                let count = if depth > 8 { 0 } else { self.below(4) };
                let entry =
                    |choices: &mut Self| (choices.text(), choices.payload(&schema["values"], depth + 1));
                Json::Object((0..count).map(|_| entry(self)).collect())
            }
            "record" => {
                let mut object = Map::new();
                for field in schema["fields"].as_array().unwrap() {
                    let nullable =
                        field["type"].as_array().is_some_and(|branches| branches.contains(&json!("null")));
                    if !(nullable || field.get("default").is_some()) || self.below(2) == 1 {
                        object.insert(text_of(&field["name"]), self.payload(&field["type"], depth + 1));
                    }
                }
                Json::Object(object)
            }
            other => panic!("{other}"),
        }
    }

    fn whole(&mut self, min: i64, max: i64) -> i64 {
        match self.below(8) {
            0 => 0,
            1 => -1,
            2 => 63,
            3 => 64,
            4 => -65,
            5 => min,
            6 => max,
            _ => (self.long().cast_signed()).clamp(min, max),
        }
    }

    fn text(&mut self) -> String {
        const CHARACTERS: [char; 16] = [
            'a',
            'Z',
            '0',
            ' ',
            '"',
            '\\',
            '/',
            '\n',
            '\u{0}',
            '\u{1f}',
            '\u{7f}',
            'é',
            '漢',
            '\u{ffff}',
            '😀',
            '\u{10ffff}',
        ];
        let count = if self.one_in(20) { 100 } else { self.below(12) };
        (0..count).map(|_| CHARACTERS[self.below(CHARACTERS.len())]).collect()
    }

    fn logical(&mut self, logical: &str) -> String {
        if logical == "uuid" {
            let uuid = Uuid::from_u64_pair(self.long(), self.long());
            return match self.below(5) {
                0 => uuid.to_string(),
                1 => uuid.hyphenated().to_string().to_uppercase(),
                2 => uuid.simple().to_string(),
                3 => uuid.urn().to_string(),
                _ => uuid.braced().to_string(),
            };
        }
        // 1823 to 2116: nanoseconds in a long reach twice as far.
        let at = OffsetDateTime::UNIX_EPOCH + Duration::nanoseconds(self.long().cast_signed() / 2);
        let minutes = i32::try_from(self.below(49)).unwrap() * 30 - 12 * 60;
        let offset = UtcOffset::from_whole_seconds(minutes * 60).unwrap();
        let text = at.to_offset(offset).format(&Rfc3339).unwrap();
        match logical {
            "date" => text[..10].to_owned(),
            "time-millis" | "time-micros" => without_offset(&text)[11..].to_owned(),
            _ if logical.starts_with("local") => without_offset(&text).to_owned(),
            _ => text,
        }
    }

    // -------------------------------------------------------------------------------------------------------------- texts

    /// The payload as JSON text. Keys of a map are in the order in which the reference writes them; nothing else is in any order.
    pub(super) fn print(&mut self, payload: &Json, value: &Value) -> String {
        let style = self.below(3);
        let mut text = String::new();
        self.print_value(payload, value, style, &mut text);
        text
    }

    fn print_value(&mut self, payload: &Json, value: &Value, style: usize, text: &mut String) {
        self.space(style, text);
        match (payload, value) {
            (payload, Value::Union(_, value)) => self.print_value(payload, value, style, text),
            (Json::Array(items), Value::Array(values)) => {
                text.push('[');
                for (place, (item, value)) in items.iter().zip(values).enumerate() {
                    text.push_str(if place == 0 { "" } else { "," });
                    self.print_value(item, value, style, text);
                }
                self.space(style, text);
                text.push(']');
            }
            (Json::Object(entries), value) => {
                let mut keys: Vec<&String> = entries.keys().collect();
                match (value, style) {
                    (Value::Map(values), _) => keys = values.keys().collect(),
                    (_, 0) => keys.sort_by_key(|key| (key.len(), *key)),
                    _ => {
                        let first = self.below(keys.len().max(1));
                        keys.rotate_left(first);
                    }
                }
                text.push('{');
                for (place, key) in keys.into_iter().enumerate() {
                    text.push_str(if place == 0 { "" } else { "," });
                    self.space(if place == 0 { 1 } else { style }, text);
                    print_string(key, style, text);
                    text.push(':');
                    let value = match value {
                        Value::Map(values) => &values[key],
                        Value::Record(fields) => &fields.iter().find(|(name, _)| name == key).unwrap().1,
                        other => panic!("{other:?}"),
                    };
                    self.print_value(&entries[key], value, style, text);
                }
                self.space(style, text);
                text.push('}');
            }
            (Json::String(string), _) => print_string(string, style, text),
            // PostgreSQL prints no exponents.
            (Json::Number(number), _)
                if style == 0 && number.as_f64().is_some_and(|double| double.abs() > 1e20) =>
            {
                text.push_str(&number.as_f64().unwrap().to_string());
            }
            (scalar, _) => text.push_str(&scalar.to_string()),
        }
    }

    /// In style 0 one space, as PostgreSQL has it after colons and commas; in style 1 none; in style 2 any.
    fn space(&mut self, style: usize, text: &mut String) {
        match style {
            0 => text.push(' '),
            1 => {}
            _ => text.push_str(["", " ", "\t\r\n ", "\n"][self.below(4)]),
        }
    }
}

/// The name of a type: its own, or what it is.
pub(super) fn name_of(schema: &Json) -> Option<&str> {
    schema.as_str().or_else(|| schema["type"].as_str())
}

/// What kind of value a schema has in a payload: an example's kind.
pub(super) fn kind_of(schema: &Json) -> std::mem::Discriminant<Json> {
    kind(&match (name_of(schema), schema["logicalType"].as_str()) {
        (_, Some(_)) | (Some("string" | "enum"), _) => json!(""),
        (Some("null"), _) => json!(null),
        (Some("boolean"), _) => json!(true),
        (Some("array"), _) => json!([]),
        (Some("record" | "map"), _) => json!({}),
        _ => json!(1),
    })
}

pub(super) fn kind(payload: &Json) -> std::mem::Discriminant<Json> {
    std::mem::discriminant(payload)
}

fn finite(double: f64) -> Json {
    json!(if double.is_finite() { double } else { -0.0 })
}

fn without_defaults(schema: &mut Json) {
    match schema {
        Json::Array(items) => items.iter_mut().for_each(without_defaults),
        Json::Object(entries) => {
            entries.remove("default");
            entries.values_mut().for_each(without_defaults);
        }
        _ => {}
    }
}

fn text_of(json: &Json) -> String {
    json.as_str().unwrap().to_owned()
}

fn without_offset(rfc3339: &str) -> &str {
    rfc3339.strip_suffix('Z').unwrap_or_else(|| &rfc3339[..rfc3339.len() - "+00:00".len()])
}

fn print_string(string: &str, style: usize, text: &mut String) {
    if style == 2 {
        text.push('"');
        text.extend(string.encode_utf16().map(|unit| format!("\\u{unit:04x}")));
        text.push('"');
    } else {
        *text += &serde_json::to_string(string).unwrap();
    }
}
