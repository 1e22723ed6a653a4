//! `setup`, `migrate`, `status`, and what roles may do.

use std::time::Duration;

use crate::rig::{Rig, SCHEMA};

#[tokio::test(flavor = "multi_thread")]
async fn setup_and_migrate_can_be_repeated() -> anyhow::Result<()> {
    let rig = Rig::new("again").await?;
    rig.setup().await?;
    rig.migrate().await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_incompatible_schema_is_refused_by_setup() -> anyhow::Result<()> {
    let rig = Rig::new("incompatible").await?;
    let changed =
        SCHEMA.replace(r#"{"name": "step", "type": "long"}"#, r#"{"name": "step", "type": "string"}"#);
    assert_ne!(changed, SCHEMA);
    std::fs::write(rig.folder.join("stepped.avsc"), changed)?;
    let error = rig.setup().await.unwrap_err();
    assert!(format!("{error:#}").contains("refused by the schema registry"), "{error:#}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_may_append_and_nothing_else() -> anyhow::Result<()> {
    let rig = Rig::without_topic("grants").await?;
    let mut service = rig.connect("executor").await?;
    rig.append(&mut service, "k", 1).await?;
    assert!(outbox::inbox::once(&mut service, "c", uuid::Uuid::from_u128(1)).await?);
    assert!(!outbox::inbox::once(&mut service, "c", uuid::Uuid::from_u128(1)).await?);
    assert!(outbox::inbox::once(&mut service, "other", uuid::Uuid::from_u128(1)).await?);
    for (role, statement) in [
        ("executor", "SELECT * FROM outbox.events"),
        (
            "executor",
            "INSERT INTO outbox.events (slot, event_id, event_type, aggregate_id, payload) VALUES (0, gen_random_uuid(), 'a', 'b', '{}')",
        ),
        (
            "executor",
            "INSERT INTO outbox.events_0 (slot, event_id, event_type, aggregate_id, payload) VALUES (0, gen_random_uuid(), 'a', 'b', '{}')",
        ),
        ("executor", "SELECT * FROM outbox.batches"),
        ("executor", "SELECT outbox.grant_relay('executor')"),
        ("relay", "UPDATE outbox.events SET aggregate_id = 'x'"),
        ("relay", "DELETE FROM outbox.events"),
        ("relay", "UPDATE outbox.batches SET seq = 0"),
        ("relay", "DELETE FROM outbox.batches"),
        ("relay", "SELECT outbox.append('a', 'b', '{}')"),
        ("operator", "SELECT outbox.append('a', 'b', '{}')"),
        ("operator", "TRUNCATE outbox.events"),
        ("operator", "INSERT INTO outbox.inbox VALUES ('a', gen_random_uuid())"),
        ("payment_service", "SELECT outbox.append('a', 'b', '{}')"),
    ] {
        let mut connection = rig.connect(role).await?;
        let error = sqlx::query(statement).execute(&mut connection).await.unwrap_err();
        let code = error
            .as_database_error()
            .and_then(sqlx::error::DatabaseError::code)
            .unwrap_or_default()
            .into_owned();
        assert_eq!(code, "42501", "{role}: {statement}: {error}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn no_process_logs_in_with_more_than_a_plain_role() -> anyhow::Result<()> {
    let rig = Rig::new("roles").await?;
    let relay = Rig::relay(rig.run_config()?);
    rig.append(&mut rig.connect("executor").await?, "k", 1).await?;
    rig.drained(Duration::from_secs(10)).await?;
    let mut superuser = rig.connect("postgres").await?;
    let sessions: Vec<(String, bool)> = sqlx::query_as(
        "SELECT rolname::text, rolsuper FROM pg_stat_activity JOIN pg_roles ON rolname = usename
         WHERE datname = current_database() AND application_name LIKE 'outbox-relay%'",
    )
    .fetch_all(&mut superuser)
    .await?;
    relay.stop().await?;
    // Lock, read and save.
    assert!(sessions.len() >= 3, "{sessions:?}");
    assert!(sessions.iter().all(|session| *session == ("relay".to_owned(), false)), "{sessions:?}");
    for role in ["relay", "executor", "payment_service", "operator", "payment_outbox"] {
        let (privileged, memberships): (bool, i64) = sqlx::query_as(
            "SELECT rolsuper OR rolcreaterole OR rolcreatedb OR rolreplication OR rolbypassrls,
                    (SELECT count(*) FROM pg_auth_members WHERE member = pg_roles.oid)
             FROM pg_roles WHERE rolname = $1",
        )
        .bind(role)
        .fetch_one(&mut superuser)
        .await?;
        assert_eq!((privileged, memberships), (false, 0), "{role}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn append_refuses_what_could_not_be_published_reliably() -> anyhow::Result<()> {
    let rig = Rig::without_topic("refuse").await?;
    for (statement, code) in [
        ("SET synchronous_commit = off; SELECT outbox.append('a', 'b', '{}')", "55000"),
        ("SELECT outbox.append('', 'b', '{}')", "22023"),
        ("SELECT outbox.append('a', NULL, '{}')", "22023"),
        ("SELECT outbox.append('a', repeat('b', 256), '{}')", "22023"),
        ("SELECT outbox.append('a', 'b', '[]')", "22023"),
        ("SELECT outbox.append('a', 'b', NULL)", "22023"),
        ("SELECT outbox.append('a', 'b', '{}', 'not a traceparent')", "22023"),
    ] {
        let mut service = rig.connect("executor").await?;
        let error = sqlx::raw_sql(statement).execute(&mut service).await.unwrap_err();
        assert_eq!(
            error.as_database_error().and_then(sqlx::error::DatabaseError::code).as_deref(),
            Some(code),
            "{statement}: {error}"
        );
    }
    let mut service = rig.connect("executor").await?;
    rig.append(&mut service, "k", 1).await?;
    let mut operator = rig.connect("operator").await?;
    let (version, age): (String, f64) = sqlx::query_as(
        "SELECT substr(event_id::text, 15, 1),
                abs(extract(epoch FROM created_at) * 1000 - ('x' || substr(replace(event_id::text, '-', ''), 1, 12))::bit(48)::bigint)::float8
         FROM outbox.pending",
    )
    .fetch_one(&mut operator)
    .await?;
    assert_eq!(version, "7", "an event id drawn by the database is a UUIDv7");
    assert!(age < 2.0, "of the moment of the append: {age} ms");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_views_say_what_is_pending() -> anyhow::Result<()> {
    let rig = Rig::new("views").await?;
    let mut service = rig.connect("executor").await?;
    let mut operator = rig.connect("operator").await?;
    let pending = "SELECT count(*) FROM outbox.pending";
    rig.append(&mut service, "k", 1).await?;
    rig.append(&mut service, "k", 2).await?;
    assert_eq!(sqlx::query_scalar::<_, i64>(pending).fetch_one(&mut operator).await?, 2, "before any relay");
    let relay = Rig::relay(rig.run_config()?);
    rig.drained(Duration::from_secs(10)).await?;
    relay.stop().await?;
    rig.append(&mut service, "k", 3).await?;
    let (relay, waiting): (String, i64) =
        sqlx::query_as("SELECT relay, pending FROM outbox.status").fetch_one(&mut operator).await?;
    assert_eq!((relay.as_str(), waiting), ("relay", 1));
    let steps: Vec<i64> = sqlx::query_scalar("SELECT (payload->>'step')::bigint FROM outbox.pending")
        .fetch_all(&mut operator)
        .await?;
    assert_eq!(steps, [3]);
    Ok(())
}

#[tokio::test]
async fn the_producers_settings_are_printed_without_the_operators_own() -> anyhow::Result<()> {
    let arguments = [
        "run",
        "--print-producer",
        "--database-url",
        "postgres://nobody@127.0.0.1:1/none",
        "--kafka-bootstrap",
        "broker:9092",
        "--kafka-property",
        "sasl.password=hush",
        "--schema-registry-url",
        "http://127.0.0.1:1",
        "--in-flight-max-kib",
        "128",
    ];
    let program = std::path::Path::new(env!("CARGO_BIN_EXE_outbox-relay"));
    let printed = testbed::processes::run_once(program, &arguments, &[]).await?;
    let settings: std::collections::BTreeMap<String, String> = serde_json::from_str(&printed)?;
    for (name, value) in [
        ("bootstrap.servers", "broker:9092"),
        ("queue.buffering.max.kbytes", "128"),
        ("enable.idempotence", "true"),
        ("acks", "all"),
    ] {
        assert_eq!(settings.get(name).map(String::as_str), Some(value), "{printed}");
    }
    assert!(!printed.contains("hush"), "{printed}");
    Ok(())
}
