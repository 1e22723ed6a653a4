//! The schema registry: schemas by id for readers, ids and registration for the relay.
//!
//! It neither hangs (every call ends after 3 s) nor remembers a passing error: only answers are kept. That a schema id does not
//! exist is remembered for half a minute, so that a flood of records with a foreign id does not become a flood of requests.

use std::{
    collections::HashMap,
    sync::{PoisonError, RwLock},
    time::{Duration, Instant},
};

use apache_avro::Schema;
use schema_registry_converter::{
    async_impl::schema_registry::{SrSettings, get_schema_by_id, post_schema},
    error::SRCError,
    schema_registry_common::{SchemaType, SuppliedSchema},
};
use serde::Deserialize;

/// Limit of one call, connecting included.
const CALL_TIMEOUT: Duration = Duration::from_secs(3);
/// How long "there is no such schema" is believed.
const MISSING_FOR: Duration = Duration::from_secs(30);
/// How often a registration is tried; it is part of setting up, often right after the registry was started.
pub const REGISTER_TRIES: u32 = 6;
const REGISTER_PAUSE: Duration = Duration::from_secs(2);
/// Most schemas, and most missing ids, that are kept. Resolved schemas stay for the life of the process.
const CACHE_MAX: usize = 1_000;

/// Why the registry did not give what was asked for.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// It could not be asked, or could not answer: ask again later. Never a reason to give up on a record.
    #[error("schema registry unavailable: {0}")]
    Unavailable(String),
    /// It answered that there is no such schema or subject.
    #[error("not in the schema registry: {0}")]
    NotFound(String),
    /// It answered that the schema is not acceptable: incompatible (409) or not valid (422).
    #[error("refused by the schema registry: {0}")]
    Refused(String),
}

/// A client of one registry with Confluent's API.
pub struct Registry {
    url: String,
    settings: SrSettings,
    http: reqwest::Client,
    known: RwLock<Known>,
}

#[derive(Default)]
struct Known {
    schemas: HashMap<u32, &'static Schema>,
    missing: HashMap<u32, Instant>,
}

impl std::fmt::Debug for Registry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Registry").field("url", &self.url).finish_non_exhaustive()
    }
}

impl Registry {
    /// A client for the registry at `url`. Makes no call yet.
    pub fn new(url: &str) -> anyhow::Result<Self> {
        let url = url.trim_end_matches('/').to_owned();
        let client =
            || reqwest::Client::builder().timeout(CALL_TIMEOUT).connect_timeout(CALL_TIMEOUT).no_proxy();
        let settings =
            SrSettings::new_builder(url.clone()).no_proxy().set_timeout(CALL_TIMEOUT).build_with(client())?;
        Ok(Self { url, settings, http: client().build()?, known: RwLock::default() })
    }

    /// The schema with this id, from memory or from the registry.
    pub async fn schema_by_id(&self, id: u32) -> Result<&'static Schema, RegistryError> {
        {
            let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
            if let Some(schema) = known.schemas.get(&id) {
                return Ok(schema);
            }
            if known.missing.get(&id).is_some_and(|since| since.elapsed() < MISSING_FOR) {
                return Err(RegistryError::NotFound(format!("schema id {id}")));
            }
        }
        let fetched = match get_schema_by_id(id, &self.settings).await.map_err(classify) {
            Err(RegistryError::NotFound(_)) => None,
            Err(other) => return Err(other),
            Ok(found) => Some(found),
        };
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        let Some(found) = fetched else {
            if known.missing.len() >= CACHE_MAX {
                known.missing.clear();
            }
            known.missing.insert(id, Instant::now());
            return Err(RegistryError::NotFound(format!("schema id {id}")));
        };
        if let Some(schema) = known.schemas.get(&id) {
            return Ok(schema);
        }
        if known.schemas.len() >= CACHE_MAX {
            return Err(RegistryError::Refused(format!(
                "more than {CACHE_MAX} schemas in use; schema id {id} is one too many"
            )));
        }
        let schema = Schema::parse_str(&found.schema).map_err(|error| {
            RegistryError::Refused(format!("schema id {id} is not a valid Avro schema: {}", brief(&error)))
        })?;
        // Leaked on purpose: readers hold the schema for the life of the process, and CACHE_MAX bounds how many there are.
        let schema: &'static Schema = Box::leak(Box::new(schema));
        known.schemas.insert(id, schema);
        Ok(schema)
    }

    /// Forgets which ids do not exist: somebody says that they do now.
    pub fn forget_missing(&self) {
        self.known.write().unwrap_or_else(PoisonError::into_inner).missing.clear();
    }

    /// The id under which `schema` is registered for `subject`. Registers nothing.
    pub async fn id_of(&self, subject: &str, schema: &str) -> Result<u32, RegistryError> {
        #[derive(Deserialize)]
        struct Registered {
            id: u32,
        }
        let request = self.http.post(format!("{}/subjects/{subject}", self.url));
        let answer = self.send(request.json(&serde_json::json!({ "schema": schema })), subject).await?;
        let registered: Registered = answer.json().await.map_err(unavailable)?;
        Ok(registered.id)
    }

    /// Whether the registry answers at all, be it that it does not know this schema; if not, why.
    pub async fn answers(&self, subject: &str, schema: &str) -> Result<(), String> {
        match self.id_of(subject, schema).await {
            Ok(_) | Err(RegistryError::NotFound(_) | RegistryError::Refused(_)) => Ok(()),
            Err(RegistryError::Unavailable(reason)) => Err(reason),
        }
    }

    /// Registers `schema` for `subject` under FULL_TRANSITIVE compatibility and returns its id. Doing it again changes nothing. A
    /// registry that cannot answer yet is asked [`REGISTER_TRIES`] times.
    pub async fn register(&self, subject: &str, schema: &str) -> Result<u32, RegistryError> {
        let mut tries_left = REGISTER_TRIES;
        loop {
            tries_left -= 1;
            match self.register_once(subject, schema).await {
                Err(RegistryError::Unavailable(reason)) if tries_left > 0 => {
                    tracing::warn!(subject, reason, tries_left, "the schema registry cannot answer yet");
                    tokio::time::sleep(REGISTER_PAUSE).await;
                }
                result => return result,
            }
        }
    }

    async fn register_once(&self, subject: &str, schema: &str) -> Result<u32, RegistryError> {
        let request = self.http.put(format!("{}/config/{subject}", self.url));
        self.send(request.json(&serde_json::json!({ "compatibility": "FULL_TRANSITIVE" })), subject).await?;
        let supplied = SuppliedSchema::new(None, SchemaType::Avro, schema.to_owned());
        post_schema(&self.settings, subject.to_owned(), supplied)
            .await
            .map(|registered| registered.id)
            .map_err(classify)
    }

    async fn send(
        &self,
        request: reqwest::RequestBuilder,
        subject: &str,
    ) -> Result<reqwest::Response, RegistryError> {
        let answer = request
            .header("Accept", "application/vnd.schemaregistry.v1+json")
            .header("Content-Type", "application/vnd.schemaregistry.v1+json")
            .send()
            .await
            .map_err(unavailable)?;
        match answer.status().as_u16() {
            200..300 => Ok(answer),
            404 => Err(RegistryError::NotFound(format!("subject {subject}"))),
            409 | 422 => Err(RegistryError::Refused(format!(
                "subject {subject}: {}",
                answer.text().await.map_err(unavailable)?
            ))),
            status => Err(RegistryError::Unavailable(format!("subject {subject}: HTTP status {status}"))),
        }
    }
}

#[expect(clippy::needless_pass_by_value, reason = "used as map_err(unavailable)")]
fn unavailable(error: reqwest::Error) -> RegistryError {
    // The cause (connection refused, timed out) is what an operator needs; reqwest's own text only names the URL.
    let cause = std::error::Error::source(&error).map(|source| format!(": {source}")).unwrap_or_default();
    RegistryError::Unavailable(format!("{error}{cause}"))
}

/// The converter crate gives the HTTP status only within its text.
#[expect(clippy::needless_pass_by_value, reason = "used as map_err(classify)")]
fn classify(error: SRCError) -> RegistryError {
    let text = match &error.cause {
        Some(cause) => format!("{}: {cause}", error.error),
        None => error.error.clone(),
    };
    if error.error.contains("status 404") {
        RegistryError::NotFound(text)
    } else if error.error.contains("status 409") || error.error.contains("status 422") {
        RegistryError::Refused(text)
    } else {
        RegistryError::Unavailable(text)
    }
}

/// The first line of an Avro error: the rest can be the whole schema.
pub(crate) fn brief(error: &apache_avro::Error) -> String {
    error.to_string().lines().next().unwrap_or_default().chars().take(300).collect()
}
