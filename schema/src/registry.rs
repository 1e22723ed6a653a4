//! The schema registry: schemas by id for readers, ids and registration for the relay.
//!
//! It neither hangs (every call ends after 3 s) nor remembers a passing error: only answers are kept. That a schema id does not
//! exist is remembered for half a minute, so that a flood of records with a foreign id does not become a flood of requests.

use std::{
    collections::HashMap,
    path::Path,
    sync::{PoisonError, RwLock},
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
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
/// What to look at when the registry does not let us in, or we do not believe that it is the registry.
const DENIED: &str = "the registry refuses SCHEMA_REGISTRY_USERNAME with SCHEMA_REGISTRY_PASSWORD";
const DISTRUSTED: &str = "SCHEMA_REGISTRY_CA must hold the authority of the registry's certificate, which must name the host of SCHEMA_REGISTRY_URL";
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
    credentials: Option<(String, String)>,
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
    /// A client for the registry at `url`, which asks nobody who they are. Makes no call yet.
    pub fn new(url: &str) -> anyhow::Result<Self> {
        Self::with(url, None, None)
    }

    /// As [`Registry::new`], with user and password (HTTP's basic authentication), and with the authorities (a file of PEM certificates)
    /// that alone may have signed the registry's certificate; those of the system if none is given.
    pub fn with(
        url: &str,
        credentials: Option<(&str, &str)>,
        authorities: Option<&Path>,
    ) -> anyhow::Result<Self> {
        let url = url.trim_end_matches('/').to_owned();
        let parsed =
            reqwest::Url::parse(&url).with_context(|| format!("SCHEMA_REGISTRY_URL is no URL: {url:?}"))?;
        // What is in the URL would be in every error.
        ensure!(
            parsed.username().is_empty() && parsed.password().is_none(),
            "SCHEMA_REGISTRY_URL has a user or a password in it: they belong into SCHEMA_REGISTRY_USERNAME and SCHEMA_REGISTRY_PASSWORD"
        );
        let plain = parsed.scheme() == "http";
        ensure!(
            authorities.is_none() || !plain,
            "SCHEMA_REGISTRY_CA is set and would not be used: SCHEMA_REGISTRY_URL does not begin with https"
        );
        let loopback = matches!(parsed.host_str(), Some("localhost" | "127.0.0.1" | "[::1]"));
        if credentials.is_some() && plain && !loopback {
            tracing::warn!(
                url,
                "the schema registry's password goes over the network in the clear: use https"
            );
        }
        let authorities = match authorities {
            None => None,
            Some(path) => Some(certificates(path).with_context(|| {
                format!("SCHEMA_REGISTRY_CA names {}, which holds no certificates (PEM)", path.display())
            })?),
        };
        let client = || {
            let mut client =
                reqwest::Client::builder().timeout(CALL_TIMEOUT).connect_timeout(CALL_TIMEOUT).no_proxy();
            if let Some(authorities) = &authorities {
                client = client.tls_certs_only(authorities.clone());
            }
            client
        };
        let mut settings = SrSettings::new_builder(url.clone());
        settings.no_proxy().set_timeout(CALL_TIMEOUT);
        if let Some((user, password)) = credentials {
            settings.set_basic_authorization(user, Some(password));
        }
        let settings = settings.build_with(client())?;
        let credentials = credentials.map(|(user, password)| (user.to_owned(), password.to_owned()));
        Ok(Self { url, settings, http: client().build()?, credentials, known: RwLock::default() })
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

    /// Whether the registry answers, and has what every registry has.
    pub async fn answers(&self) -> Result<(), RegistryError> {
        let request = self.http.get(format!("{}/config", self.url));
        self.send(request, "config").await.map(drop)
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
        let request = match &self.credentials {
            Some((user, password)) => request.basic_auth(user, Some(password)),
            None => request,
        };
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
            status @ (401 | 403) => {
                Err(RegistryError::Unavailable(format!("subject {subject}: HTTP status {status}; {DENIED}")))
            }
            status => Err(RegistryError::Unavailable(format!("subject {subject}: HTTP status {status}"))),
        }
    }
}

#[expect(clippy::needless_pass_by_value, reason = "used as map_err(unavailable)")]
fn unavailable(error: reqwest::Error) -> RegistryError {
    RegistryError::Unavailable(reasons(&error))
}

/// The error with its causes (connection refused, timed out, certificate unknown), which are what an operator needs: reqwest's own text
/// only names the URL.
fn reasons(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    let text = causes.fold(error.to_string(), |text, cause| {
        let cause = cause.to_string();
        if text.ends_with(&cause) { text } else { format!("{text}: {cause}") }
    });
    if text.contains("certificate") { format!("{text}; {DISTRUSTED}") } else { text }
}

/// The certificates in a file.
fn certificates(path: &Path) -> anyhow::Result<Vec<reqwest::Certificate>> {
    let certificates = reqwest::Certificate::from_pem_bundle(&std::fs::read(path)?)?;
    ensure!(!certificates.is_empty(), "none found");
    Ok(certificates)
}

/// The converter crate gives the HTTP status only within its text.
#[expect(clippy::needless_pass_by_value, reason = "used as map_err(classify)")]
fn classify(error: SRCError) -> RegistryError {
    let mut text = match (std::error::Error::source(&error), &error.cause) {
        (Some(source), _) => format!("{}: {}", error.error, reasons(source)),
        (None, Some(cause)) => format!("{}: {cause}", error.error),
        (None, None) => error.error.clone(),
    };
    if error.error.contains("status 401") || error.error.contains("status 403") {
        text = format!("{text}; {DENIED}");
    }
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
