//! `doctor`: everything that a relay needs, looked at one by one, with what to do about it.

use std::time::Duration;

use anyhow::ensure;
use chassis::postgres;
use rdkafka::{
    admin::{AdminClient, AdminOptions, ResourceSpecifier},
    client::DefaultClientContext,
    consumer::{BaseConsumer, Consumer as _},
};
use schema::{registry::Registry, wire::value_subject};
use serde::Serialize;
use sqlx::PgConnection;
use time::OffsetDateTime;

use crate::{
    catalogue::Catalogue,
    config::DoctorConfig,
    store::{self, checks, guards},
};

const CALL_LIMIT: Duration = Duration::from_secs(5);
/// Oldest server that the outbox is tested on, as `server_version_num`.
const VERSION_MIN: i32 = 150_000;
/// An older transaction keeps vacuum from its work, and its events from being published.
const TRANSACTION_MAX_SECONDS: f64 = 300.0;

/// How a check went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Health {
    /// As it should be.
    Ok,
    /// It works, but somebody should know.
    Warning,
    /// A relay cannot work so.
    Failure,
}

/// One check.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Finding {
    /// What was looked at.
    pub check: String,
    /// How it is.
    pub health: Health,
    /// What was found, and what to do.
    pub detail: String,
}

/// Looks at everything; an error if something would keep a relay from its work.
pub async fn doctor(config: &DoctorConfig) -> anyhow::Result<()> {
    let findings = examine(config).await;
    super::print(config.relay.json, &findings, || {
        let lines = findings.iter().map(|finding| {
            let mark = match finding.health {
                Health::Ok => "ok     ",
                Health::Warning => "warning",
                Health::Failure => "FAILURE",
            };
            format!("{mark}  {:<24} {}", finding.check, finding.detail)
        });
        lines.collect::<Vec<_>>().join("\n")
    })?;
    let failures = findings.iter().filter(|finding| finding.health == Health::Failure).count();
    ensure!(failures == 0, "{failures} checks failed");
    Ok(())
}

/// Looks at everything.
pub(super) async fn examine(config: &DoctorConfig) -> Vec<Finding> {
    let mut findings = Vec::new();
    match postgres::connect(&config.relay.database_url, "outbox-relay doctor").await {
        Ok(mut connection) => {
            if let Err(error) = database(&mut connection, &config.relay.name, &mut findings).await {
                note(
                    &mut findings,
                    "outbox",
                    Health::Failure,
                    format!("{error:#}; `outbox-relay migrate` creates it and grants its use"),
                );
            }
        }
        Err(error) => note(&mut findings, "PostgreSQL", Health::Failure, format!("{error:#}")),
    }
    let catalogue = match Catalogue::read(&config.catalogue.events) {
        Ok(catalogue) => catalogue,
        Err(error) => {
            note(&mut findings, "catalogue", Health::Failure, format!("{error:#}"));
            return findings;
        }
    };
    let events = catalogue.events.len();
    note(
        &mut findings,
        "catalogue",
        Health::Ok,
        format!("{events} event types, {} topics", catalogue.topics.len()),
    );
    if let Err(error) = brokers(config, &catalogue, &mut findings).await {
        note(&mut findings, "Kafka", Health::Failure, format!("{error:#}"));
    }
    registry(config, &catalogue, &mut findings).await;
    findings
}

fn note(findings: &mut Vec<Finding>, check: impl Into<String>, health: Health, detail: impl Into<String>) {
    findings.push(Finding { check: check.into(), health, detail: detail.into() });
}

async fn database(
    connection: &mut PgConnection,
    relay: &str,
    findings: &mut Vec<Finding>,
) -> anyhow::Result<()> {
    let facts = checks::server_facts(connection).await?;
    let good = |good: bool, otherwise: Health| if good { Health::Ok } else { otherwise };
    note(
        findings,
        "PostgreSQL version",
        good(facts.version >= VERSION_MIN, Health::Failure),
        format!("{}; 15 or later is needed", facts.version / 10_000),
    );
    let own = checks::session_is_own(connection).await?;
    note(
        findings,
        "session",
        good(own, Health::Failure),
        if own {
            "straight to the server"
        } else {
            "through a pooler that shares sessions: connect directly"
        },
    );
    let server = store::server_identity(connection).await?;
    note(
        findings,
        "primary",
        good(!server.in_recovery, Health::Failure),
        if server.in_recovery { "a standby: relay from the primary" } else { "can be written to" },
    );
    note(
        findings,
        "role",
        good(!facts.superuser, Health::Warning),
        if facts.superuser {
            "a superuser: a relay needs only outbox.grant_relay()"
        } else {
            "not a superuser"
        },
    );
    note(
        findings,
        "synchronous_commit",
        good(facts.synchronous_commit != "off", Health::Failure),
        format!("{} (append refuses off: a crash could forget what was published)", facts.synchronous_commit),
    );
    let apart = (facts.now - OffsetDateTime::now_utc()).as_seconds_f64().abs();
    note(
        findings,
        "clock",
        good(apart < 1.0, Health::Warning),
        format!(
            "server and this host lie {apart:.3} s apart; order does not depend on it, metrics of age do"
        ),
    );
    let wanted = super::migrations().iter().map(|migration| migration.version).max();
    note(
        findings,
        "migration",
        // A newer one is that of the next release, whose relays are about to take over: this one runs on it.
        good(facts.migrated >= wanted, Health::Failure),
        format!(
            "version {} of {} that this relay knows; `outbox-relay migrate` brings it up to date",
            facts.migrated.unwrap_or_default(),
            wanted.unwrap_or_default()
        ),
    );
    let missing = checks::missing_privileges(connection).await?;
    note(
        findings,
        "privileges",
        good(missing.is_empty(), Health::Failure),
        if missing.is_empty() {
            "as outbox.grant_relay() gives them".to_owned()
        } else {
            format!("missing: {}", missing.join(", "))
        },
    );
    let oldest = facts.oldest_transaction_seconds.unwrap_or_default();
    note(
        findings,
        "oldest transaction",
        good(oldest < TRANSACTION_MAX_SECONDS, Health::Warning),
        format!("{oldest:.0} s, as far as this role may see; its own events wait for it, nobody else's do"),
    );
    let halted = guards::halted(connection, relay).await?;
    note(
        findings,
        "halt",
        good(halted.is_none(), Health::Failure),
        halted.unwrap_or_else(|| "not halted".to_owned()),
    );
    Ok(())
}

async fn brokers(
    config: &DoctorConfig,
    catalogue: &Catalogue,
    findings: &mut Vec<Finding>,
) -> anyhow::Result<()> {
    chassis::kafka::check(&config.kafka).await?;
    let client = || {
        chassis::kafka::finish(chassis::kafka::client(&config.kafka, "outbox-relay doctor"), &config.kafka)
    };
    let consumer: BaseConsumer = client().create()?;
    let metadata = tokio::task::spawn_blocking(move || consumer.fetch_metadata(None, CALL_LIMIT)).await??;
    let brokers = metadata.brokers().len();
    note(
        findings,
        "brokers",
        if brokers >= 3 { Health::Ok } else { Health::Warning },
        format!("{brokers}; with fewer than 3 an acknowledged record can be lost with one of them"),
    );
    let admin: AdminClient<DefaultClientContext> = client().create()?;
    for (name, topic) in &catalogue.topics {
        let check = format!("topic {name}");
        let Some(found) = metadata.topics().iter().find(|found| found.name() == name) else {
            note(findings, check, Health::Failure, "does not exist: `outbox-relay setup` creates it");
            continue;
        };
        let partitions = found.partitions().len();
        let replication =
            found.partitions().iter().map(|partition| partition.replicas().len()).min().unwrap_or(0);
        let options = AdminOptions::new().request_timeout(Some(CALL_LIMIT));
        let mut settings = std::collections::HashMap::new();
        for resource in admin.describe_configs([&ResourceSpecifier::Topic(name)], &options).await? {
            let entries = resource.map(|resource| resource.entries).unwrap_or_default();
            settings.extend(entries.into_iter().filter_map(|entry| Some((entry.name, entry.value?))));
        }
        let setting = |name: &str| settings.get(name).map_or("?", String::as_str);
        let kept_ms = setting("retention.ms").parse::<i128>().unwrap_or(-1);
        let kept_long_enough = kept_ms < 0 || kept_ms >= i128::try_from(topic.retention.as_millis())?;
        let partitions_fit = i32::try_from(partitions).is_ok_and(|partitions| partitions == topic.partitions);
        let sound = kept_long_enough
            && partitions_fit
            && !setting("cleanup.policy").contains("compact")
            && replication >= 3;
        note(
            findings,
            check,
            if sound { Health::Ok } else { Health::Warning },
            format!(
                "{partitions} partitions (catalogue: {}), replication {replication}, min.insync.replicas {}, retention.ms {} \
                 (catalogue: {}), cleanup.policy {}, max.message.bytes {}",
                topic.partitions,
                setting("min.insync.replicas"),
                setting("retention.ms"),
                topic.retention.as_millis(),
                setting("cleanup.policy"),
                setting("max.message.bytes")
            ),
        );
    }
    Ok(())
}

async fn registry(config: &DoctorConfig, catalogue: &Catalogue, findings: &mut Vec<Finding>) {
    let open = || {
        let access = &config.registry;
        Registry::with(
            &access.schema_registry_url,
            access.credentials()?,
            access.schema_registry_ca.as_deref(),
        )
    };
    let registry = match open() {
        Ok(registry) => registry,
        Err(error) => return note(findings, "schema registry", Health::Failure, format!("{error:#}")),
    };
    for (event_type, event) in &catalogue.events {
        let subject = value_subject(&event.topic);
        match registry.id_of(&subject, &event.schema_text).await {
            Ok(id) => note(
                findings,
                format!("schema {event_type}"),
                Health::Ok,
                format!("id {id} of subject {subject}"),
            ),
            Err(error) => note(
                findings,
                format!("schema {event_type}"),
                Health::Failure,
                format!("{error}; `outbox-relay setup` registers it"),
            ),
        }
    }
}
