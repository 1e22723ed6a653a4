//! Servers on which a relay must not run, and the ways out; and what doctor says.

use std::{os::unix::fs::MetadataExt as _, time::Duration};

use anyhow::Context as _;
use futures::TryStreamExt as _;
use sqlx::PgConnection;
use testbed::stack::Postgres;

use crate::{
    rig::{Operator, Rig, eventually},
    tailing::step_of,
};

/// Copies the rows of one table to another database, as a logical dump and load would.
async fn copy(
    from: &mut PgConnection,
    to: &mut PgConnection,
    table: &str,
    columns: &str,
) -> anyhow::Result<()> {
    let rows = from
        .copy_out_raw(&format!("COPY (SELECT {columns} FROM {table}) TO STDOUT"))
        .await?
        .try_fold(Vec::new(), async |mut all, chunk| {
            all.extend_from_slice(&chunk);
            Ok(all)
        })
        .await?;
    let mut load = to.copy_in_raw(&format!("COPY {table} ({columns}) FROM STDIN")).await?;
    load.send(rows).await?;
    load.finish().await?;
    Ok(())
}

const EVENTS: &str =
    "id, slot, xid, event_id, event_type, aggregate_id, payload, traceparent, tracestate, created_at";
const BATCHES: &str = "relay, seq, leader_token, leader, window_from, window_to, floor_id, after_id, count, first_id, last_id, ranges, \
                       partition_offsets, system_identifier, database_oid, timeline, saved_at";

/// An outbox with three events published and two that wait, and a copy of it on a server whose transaction ids begin anew.
async fn copied(postgres: &Postgres) -> anyhow::Result<Rig> {
    let mut rig = Rig::new("copied").await?;
    let mut service = rig.connect("executor").await?;
    // The ids of the old server are far ahead of the new one's.
    for step in 1..=3 {
        rig.append(&mut service, "k", step).await?;
    }
    let relay = Rig::relay(rig.run_config()?);
    rig.drained(Duration::from_secs(20)).await?;
    relay.stop().await?;
    for step in 4..=5 {
        rig.append(&mut service, "k", step).await?;
    }
    let mut before = rig.connect("payment_outbox").await?;
    rig.database = postgres.database("copy").await?;
    rig.migrate().await?;
    let mut after = rig.connect("payment_outbox").await?;
    copy(&mut before, &mut after, "outbox.events", EVENTS).await?;
    copy(&mut before, &mut after, "outbox.batches", BATCHES).await?;
    sqlx::query(
        "SELECT setval(pg_get_serial_sequence('outbox.events', 'id'), (SELECT max(id) FROM outbox.events))",
    )
    .execute(&mut after)
    .await?;
    Ok(rig)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_loaded_from_a_copy_is_refused_until_it_is_rebased() -> anyhow::Result<()> {
    let postgres = Postgres::private("relay-copy").await?;
    let rig = copied(&postgres).await?;
    let operator = Operator::new(&rig, &[]);
    let relay = operator.relay("refusing")?;
    relay.start()?;
    let mut reader = rig.connect("operator").await?;
    eventually(Duration::from_secs(20), "the relay halts", async || {
        Ok(sqlx::query_scalar::<_, i64>(
            "SELECT count(*) FROM outbox.stuck WHERE what = 'relay' AND why LIKE '%copied%'",
        )
        .fetch_one(&mut reader)
        .await?
            == 1)
    })
    .await?;
    eventually(Duration::from_secs(5), "the metric says so", async || {
        Ok(relay.metric("relay_halted").await?.is_some_and(|halted| halted > 0.5))
    })
    .await?;
    // Burning transaction ids cures nothing: the flag is sticky.
    rig.append(&mut rig.connect("executor").await?, "k", 6).await?;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(rig.records().await?.len(), 3, "nothing is published meanwhile");
    relay.terminate(Duration::from_secs(20)).await?;

    let refused =
        operator.ask_as("payment_outbox", &["adopt", "--execute", "--operator", "ada"]).await.unwrap_err();
    assert!(format!("{refused:#}").contains("use rebase"), "{refused:#}");
    let unprivileged =
        operator.ask_as("relay", &["rebase", "--execute", "--operator", "ada"]).await.unwrap_err();
    assert!(format!("{unprivileged:#}").contains("owner"), "{unprivileged:#}");
    let rebased = operator.ask_as("payment_outbox", &["rebase", "--execute", "--operator", "ada"]).await?;
    assert_eq!((rebased["published"].as_i64(), rebased["pending"].as_i64()), (Some(3), Some(3)), "{rebased}");
    relay.start()?;
    relay.wait_ready().await?;
    rig.append(&mut rig.connect("executor").await?, "k", 7).await?;
    rig.drained(Duration::from_secs(20)).await?;
    relay.terminate(Duration::from_secs(20)).await?;
    let steps: Vec<i64> = rig.records().await?.iter().map(|record| step_of(&record.value)).collect();
    assert_eq!(steps, [1, 2, 3, 4, 5, 6, 7], "nothing twice, nothing lost");
    let cleared: (String, String) =
        sqlx::query_as("SELECT cleared_by, cleared_how FROM outbox.halts").fetch_one(&mut reader).await?;
    assert_eq!(cleared, ("ada".to_owned(), "rebase".to_owned()));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_whose_transaction_ids_go_on_is_adopted() -> anyhow::Result<()> {
    let rig = Rig::new("adopted").await?;
    let mut service = rig.connect("executor").await?;
    rig.append(&mut service, "k", 1).await?;
    let relay = Rig::relay(rig.run_config()?);
    rig.drained(Duration::from_secs(20)).await?;
    relay.stop().await?;
    // What pg_upgrade does: another system identifier, the same transaction ids.
    let mut owner = rig.connect("payment_outbox").await?;
    sqlx::query("UPDATE outbox.batches SET system_identifier = system_identifier + 1")
        .execute(&mut owner)
        .await?;
    let relay = Rig::relay(rig.run_config()?);
    rig.append(&mut service, "k", 2).await?;
    eventually(Duration::from_secs(20), "the relay halts", async || {
        Ok(sqlx::query_scalar::<_, i64>("SELECT count(*) FROM outbox.halts").fetch_one(&mut owner).await?
            == 1)
    })
    .await?;
    let operator = Operator::new(&rig, &[]);
    // A halted relay holds the lock for moments only.
    eventually(Duration::from_secs(20), "adopted", async || {
        match operator.ask_as("payment_outbox", &["adopt", "--execute", "--operator", "ada"]).await {
            Ok(adopted) => Ok(adopted["adopted"] == true),
            Err(error) if format!("{error:#}").contains("a relay leads") => Ok(false),
            Err(error) => Err(error),
        }
    })
    .await?;
    rig.drained(Duration::from_secs(20)).await?;
    relay.stop().await?;
    let steps: Vec<i64> = rig.records().await?.iter().map(|record| step_of(&record.value)).collect();
    assert_eq!(steps, [1, 2]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn doctor_finds_a_sound_relay_sound_and_names_what_is_missing() -> anyhow::Result<()> {
    let rig = Rig::new("doctor").await?;
    let operator = Operator::new(&rig, &[]);
    let findings = operator.ask_as("relay", &["doctor"]).await?;
    let findings = findings.as_array().context("findings")?;
    let health = |check: &str| {
        let found = findings
            .iter()
            .find(|finding| finding["check"].as_str().is_some_and(|name| name.starts_with(check)));
        found.map(|finding| finding["health"].as_str().unwrap_or_default().to_owned())
    };
    for check in [
        "PostgreSQL version",
        "session",
        "primary",
        "role",
        "synchronous_commit",
        "migration",
        "privileges",
        "halt",
        "schema Stepped",
    ] {
        assert_eq!(health(check).as_deref(), Some("ok"), "{check}: {findings:?}");
    }
    assert_eq!(health("brokers").as_deref(), Some("warning"), "one broker is too few");
    // Something is wrong with each of these.
    let failing = |error: anyhow::Error| format!("{error:#}");
    let service = failing(operator.ask_as("executor", &["doctor"]).await.unwrap_err());
    assert!(service.contains("checks failed"), "{service}");
    let elsewhere = Operator::new(&rig, &[("SCHEMA_REGISTRY_URL", "http://127.0.0.1:9")]);
    let registry = failing(elsewhere.ask_as("relay", &["doctor"]).await.unwrap_err());
    assert!(registry.contains("checks failed"), "{registry}");
    Ok(())
}

/// PgBouncer in transaction mode before the server of a rig. It ends with this value.
struct Pooler {
    process: std::process::Child,
    port: u16,
}

impl Pooler {
    async fn start(rig: &Rig) -> anyhow::Result<Self> {
        let port = testbed::stack::free_port()?;
        let users = rig.folder.join("users.txt");
        let settings = rig.folder.join("pgbouncer.ini");
        std::fs::write(&users, "\"relay\" \"\"\n")?;
        std::fs::write(
            &settings,
            format!(
                "[databases]\n* = host=127.0.0.1 port={}\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\n\
                 auth_type = trust\nauth_file = {}\npool_mode = transaction\nignore_startup_parameters = options,extra_float_digits\n",
                rig.stack.server().port,
                users.display()
            ),
        )?;
        let mut command = std::process::Command::new("pgbouncer");
        // It refuses to run as root.
        if users.metadata()?.uid() == 0 {
            command.args(["-u", "nobody"]);
        }
        let process = command
            .arg("-q")
            .arg(&settings)
            .spawn()
            .context("pgbouncer could not be started: `make setup` installs it")?;
        let pooler = Self { process, port };
        eventually(Duration::from_secs(10), "the pooler listens", async || {
            Ok(tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_ok())
        })
        .await?;
        Ok(pooler)
    }
}

impl Drop for Pooler {
    fn drop(&mut self) {
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pooler_that_shares_sessions_is_refused() -> anyhow::Result<()> {
    let rig = Rig::new("pooler").await?;
    let pooler = Pooler::start(&rig).await?;
    let url = format!("postgres://relay@127.0.0.1:{}/{}", pooler.port, rig.database.name);
    let operator = Operator::new(&rig, &[("DATABASE_URL", &url)]);
    let relay = operator.relay("pooled")?;
    relay.start()?;
    eventually(Duration::from_secs(20), "the relay says why it does not lead", async || {
        Ok(relay
            .log_lines()?
            .iter()
            .any(|line| line.to_string().contains("through a pooler that shares sessions")))
    })
    .await?;
    rig.append(&mut rig.connect("executor").await?, "k", 1).await?;
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(rig.records().await?.len(), 0, "it publishes nothing");
    assert!(relay.running(), "and waits for somebody to mend it");
    relay.terminate(Duration::from_secs(20)).await?;
    Ok(())
}
