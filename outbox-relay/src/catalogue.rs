//! The catalogue (`events.toml`): which event type goes to which topic, by which Avro schema.

use std::{collections::BTreeMap, path::Path, time::Duration};

use anyhow::{Context as _, ensure};
use apache_avro::Schema;
use serde::Deserialize;

/// The catalogue, read and checked.
#[derive(Debug)]
pub struct Catalogue {
    /// Topics by name.
    pub topics: BTreeMap<String, Topic>,
    /// Events by type.
    pub events: BTreeMap<String, EventType>,
}

/// A topic that `setup` creates.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Topic {
    /// Number of partitions; never lowered, and raising it moves keys.
    pub partitions: i32,
    /// How long records are kept.
    #[serde(deserialize_with = "duration")]
    pub retention: Duration,
}

/// Where one type of event goes.
#[derive(Debug)]
pub struct EventType {
    /// Topic, one of [`Catalogue::topics`].
    pub topic: String,
    /// Text of the `.avsc`, as it is registered.
    pub schema_text: String,
    /// The same, parsed.
    pub schema: Schema,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    topics: BTreeMap<String, Topic>,
    events: BTreeMap<String, Entry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    topic: String,
    schema: String,
}

impl Catalogue {
    /// Reads the catalogue and the schemas that it names, whose paths are relative to it.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("catalogue {} could not be read", path.display()))?;
        let file: File =
            toml::from_str(&text).with_context(|| format!("catalogue {} is not valid", path.display()))?;
        for (name, topic) in &file.topics {
            ensure!((1..=10_000).contains(&topic.partitions), "topic {name}: partitions must be 1 to 10000");
            ensure!(
                (1..=249).contains(&name.len())
                    && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b)),
                "{name:?} cannot be the name of a topic"
            );
        }
        let folder = path.parent().unwrap_or_else(|| Path::new("."));
        let mut events = BTreeMap::new();
        for (event_type, entry) in file.events {
            ensure!(
                file.topics.contains_key(&entry.topic),
                "event {event_type}: topic {} is not in the catalogue",
                entry.topic
            );
            let file = folder.join(&entry.schema);
            let schema_text = std::fs::read_to_string(&file).with_context(|| {
                format!("event {event_type}: schema {} could not be read", file.display())
            })?;
            let schema = Schema::parse_str(&schema_text)
                .with_context(|| format!("event {event_type}: {} is not an Avro schema", file.display()))?;
            events.insert(event_type, EventType { topic: entry.topic, schema_text, schema });
        }
        ensure!(!events.is_empty(), "catalogue {} names no event", path.display());
        Ok(Self { topics: file.topics, events })
    }

    /// The topics that events go to. The others are only made.
    pub fn published_topics(&self) -> Vec<String> {
        let goes_to = |name: &&String| self.events.values().any(|event| event.topic == **name);
        self.topics.keys().filter(goes_to).cloned().collect()
    }
}

fn duration<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(deserializer)?;
    humantime::parse_duration(&text)
        .map_err(|error| serde::de::Error::custom(format!("duration {text:?}: {error}")))
}
