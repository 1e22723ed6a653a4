//! Poison: parked alone, its key held, everything else flows; and the ways out of it.

use std::{collections::BTreeSet, time::Duration};

use sqlx::Row as _;

use crate::{
    rig::{Operator, Record, Rig, eventually},
    tailing::step_of,
};

const AUDIT: [&str; 5] = ["--execute", "--operator", "ada", "--note", "the schema is there now"];

/// Appends `steps` events for each of `keys` keys, key by key in turn; some of them of a type that the catalogue lacks.
async fn fill(rig: &Rig, keys: i64, steps: i64, poison: &[(i64, i64)]) -> anyhow::Result<()> {
    let mut service = rig.connect("executor").await?;
    let (poison_keys, poison_steps): (Vec<i64>, Vec<i64>) = poison.iter().copied().unzip();
    sqlx::query(
        "SELECT count(outbox.append(
             CASE WHEN (k, s) IN (SELECT * FROM unnest($3::bigint[], $4::bigint[])) THEN 'Unheard' ELSE 'Stepped' END,
             'k-' || k, json_build_object('key', 'k-' || k, 'step', s)))
         FROM generate_series(1, $2::bigint) s, generate_series(1, $1::bigint) k",
    )
    .bind(keys)
    .bind(steps)
    .bind(poison_keys)
    .bind(poison_steps)
    .execute(&mut service)
    .await?;
    Ok(())
}

fn steps_of(records: &[Record], key: &str) -> Vec<i64> {
    records.iter().filter(|record| record.key == key).map(|record| step_of(&record.value)).collect()
}

/// As `steps_of`, each only where it occurs first.
fn first_steps_of(records: &[Record], key: &str) -> Vec<i64> {
    let mut seen = BTreeSet::new();
    steps_of(records, key).into_iter().filter(|step| seen.insert(*step)).collect()
}

/// Adds the missing type to the catalogue, as its developers would have done before.
async fn mend(rig: &Rig) -> anyhow::Result<()> {
    let catalogue = std::fs::read_to_string(rig.events())?;
    let added =
        format!("{catalogue}[events.Unheard]\ntopic = \"{}\"\nschema = \"stepped.avsc\"\n", rig.topic);
    std::fs::write(rig.events(), added)?;
    rig.setup().await
}

async fn count(rig: &Rig, of: &'static str) -> anyhow::Result<i64> {
    let mut operator = rig.connect("operator").await?;
    Ok(sqlx::query_scalar(of).fetch_one(&mut operator).await?)
}

const PARKED: &str = "SELECT count(*) FROM outbox.stuck WHERE what = 'parked'";
const HELD: &str = "SELECT count(*) FROM outbox.stuck WHERE what = 'held'";

#[tokio::test(flavor = "multi_thread")]
async fn poison_among_ten_thousand_holds_its_keys_alone_and_a_redrive_survives_a_kill() -> anyhow::Result<()>
{
    let rig = Rig::new("poison").await?;
    fill(&rig, 5, 2_000, &[(1, 3), (2, 400), (2, 500), (3, 2_000)]).await?;
    // Retention runs all the while.
    let operator =
        Operator::new(&rig, &[("RETENTION", "1h"), ("RETENTION_EVERY", "50ms"), ("PAGE_ROWS", "700")]);
    let relay = operator.relay("relay")?;
    relay.start()?;
    relay.wait_ready().await?;
    rig.drained(Duration::from_mins(1)).await?;
    let records = rig.records().await?;
    let all: Vec<i64> = (1..=2_000).collect();
    for (key, published) in [("k-1", 2), ("k-2", 399), ("k-3", 1_999), ("k-4", 2_000), ("k-5", 2_000)] {
        assert_eq!(steps_of(&records, key), all[..published], "{key}");
    }
    // Of k-2 the second poison is behind the first: held, as nobody has tried it.
    assert_eq!((count(&rig, PARKED).await?, count(&rig, HELD).await?), (3, 1_997 + 1_600));
    assert_eq!(relay.metric("outbox_parked_total").await?, Some(3.0));
    assert!(relay.log_lines()?.iter().any(|line| line.to_string().contains("is not in the catalogue")));
    // What comes later is held as well, and other keys go on.
    let mut service = rig.connect("executor").await?;
    rig.append(&mut service, "k-1", 2_001).await?;
    rig.append(&mut service, "k-4", 2_001).await?;
    rig.drained(Duration::from_secs(20)).await?;
    assert_eq!(count(&rig, HELD).await?, 1_997 + 1_600 + 1);

    // Nothing is mended yet: a redrive refuses again and holds on.
    let tried = operator.ask(&[&["redrive", "--key", "k-1"][..], &AUDIT].concat()).await?;
    assert_eq!(tried["published"], 0, "{tried}");
    assert!(tried["result"].as_str().unwrap().contains("1 refused"), "{tried}");
    assert_eq!(count(&rig, "SELECT sum(attempts) FROM outbox.stuck WHERE what = 'parked'").await?, 4);
    relay.terminate(Duration::from_secs(20)).await?;

    mend(&rig).await?;
    let relay = operator.relay("mended")?;
    relay.start()?;
    relay.wait_ready().await?;
    let dry = operator.ask(&["redrive", "--all"]).await?;
    assert_eq!((dry["command"].as_i64(), dry["preview"]["selected"].as_i64()), (None, Some(3)), "{dry}");
    // A kill in the middle of the redrive.
    let killing = async {
        eventually(Duration::from_secs(30), "the redrive has begun", async || {
            Ok(count(&rig, "SELECT count(*) FROM outbox.commands WHERE after_id > 0 AND finished_at IS NULL")
                .await?
                > 0)
        })
        .await?;
        relay.kill();
        let unfinished =
            count(&rig, "SELECT count(*) FROM outbox.commands WHERE finished_at IS NULL").await?;
        relay.start()?;
        anyhow::Ok(unfinished)
    };
    let all_of_it = [&["redrive", "--all"][..], &AUDIT].concat();
    let (unfinished, redriven) = tokio::try_join!(killing, operator.ask(&all_of_it))?;
    assert_eq!(unfinished, 1, "the kill came too late to prove anything");
    assert_eq!(redriven["published"], 3 + 1_997 + 1_600 + 1, "{redriven}");
    assert_eq!((count(&rig, PARKED).await?, count(&rig, HELD).await?), (0, 0));
    // The keys are open again.
    rig.append(&mut service, "k-1", 2_002).await?;
    rig.drained(Duration::from_secs(20)).await?;
    relay.terminate(Duration::from_secs(20)).await?;
    let records = rig.records().await?;
    for (key, last) in [("k-1", 2_002), ("k-2", 2_000), ("k-3", 2_000), ("k-4", 2_001), ("k-5", 2_000)] {
        assert_eq!(first_steps_of(&records, key), (1..=last).collect::<Vec<i64>>(), "{key}");
    }
    println!("published again: {}", records.len() - 10_003);
    let audited: (String, String, String) = sqlx::query_as(
        "SELECT operator, requested_by, note FROM outbox.commands WHERE finished_at IS NOT NULL ORDER BY id DESC LIMIT 1",
    )
    .fetch_one(&mut rig.connect("operator").await?)
    .await?;
    assert_eq!(audited, ("ada".to_owned(), "operator".to_owned(), "the schema is there now".to_owned()));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_payload_is_published_as_it_was_written_or_not_at_all() -> anyhow::Result<()> {
    let rig = Rig::new("as-written").await?;
    let mut service = rig.connect("executor").await?;
    for (key, payload) in [
        ("twice", r#"{"key": "twice", "step": 1, "step": 2}"#),
        ("half", r#"{"key": "half", "step": 1, "note": "\ud83d"}"#),
        ("fraction", r#"{"key": "fraction", "step": 1.0}"#),
        ("spaced", "\t{ \"step\" : 7 ,\r\n \"key\":\"spaced\" } "),
    ] {
        sqlx::query("SELECT outbox.append('Stepped', $1, $2::json)")
            .bind(key)
            .bind(payload)
            .execute(&mut service)
            .await?;
    }
    let _relay = Rig::relay(rig.run_config()?);
    rig.drained(Duration::from_secs(20)).await?;
    let mut operator = rig.connect("operator").await?;
    let why: Vec<String> =
        sqlx::query_scalar("SELECT why FROM outbox.stuck ORDER BY id").fetch_all(&mut operator).await?;
    assert_eq!(why.len(), 3, "{why:?}");
    for (why, part) in why.iter().zip(["given twice", "surrogate", "1.0 is not"]) {
        assert!(why.contains(part), "{why}");
    }
    assert_eq!(steps_of(&rig.records().await?, "spaced"), [7]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_discarded_event_is_given_up_and_what_it_held_is_published() -> anyhow::Result<()> {
    let rig = Rig::new("discard").await?;
    let mut service = rig.connect("executor").await?;
    rig.append(&mut service, "k", 1).await?;
    // One that fits no schema, one too large for the topic, and sound ones behind each.
    let unfit: i64 =
        sqlx::query_scalar("SELECT outbox.append('Stepped', 'k', '{\"key\": \"k\", \"step\": \"two\"}')")
            .fetch_one(&mut service)
            .await?;
    rig.append(&mut service, "k", 3).await?;
    sqlx::query(
        "SELECT outbox.append('Stepped', 'large', json_build_object('key', 'large', 'step', 1, 'note', repeat('x', 1048588)))",
    )
    .execute(&mut service)
    .await?;
    rig.append(&mut service, "large", 2).await?;
    let relay = Rig::relay(rig.run_config()?);
    rig.drained(Duration::from_secs(20)).await?;
    let mut operator_session = rig.connect("operator").await?;
    let stuck: Vec<(String, String, String)> =
        sqlx::query_as("SELECT aggregate_id, what, why FROM outbox.stuck ORDER BY id")
            .fetch_all(&mut operator_session)
            .await?;
    let what: Vec<_> = stuck.iter().map(|(key, what, _)| (key.as_str(), what.as_str())).collect();
    assert_eq!(what, [("k", "parked"), ("k", "held"), ("large", "parked"), ("large", "held")]);
    assert!(stuck[0].2.contains(".step"), "the field is named: {}", stuck[0].2);
    assert!(stuck[1].2.starts_with("behind event"), "{}", stuck[1].2);
    assert!(stuck[2].2.contains("takes 1048588"), "{}", stuck[2].2);

    let operator = Operator::new(&rig, &[]);
    let (from, to) = (unfit.to_string(), unfit.to_string());
    let selection = ["discard", "--from-id", &from, "--to-id", &to];
    let discarded = operator.ask(&[&selection[..], &AUDIT].concat()).await?;
    assert_eq!(
        (discarded["result"].as_str(), discarded["published"].as_i64()),
        (Some("1 discarded"), Some(1)),
        "{discarded}"
    );
    let records = rig.records().await?;
    assert_eq!(steps_of(&records, "k"), [1, 3]);
    assert_eq!(steps_of(&records, "large"), [0i64; 0], "the other key is still held");
    let outcome: (String, Option<i64>) =
        sqlx::query_as("SELECT outcome, command_id FROM outbox.parked WHERE id = $1")
            .bind(unfit)
            .fetch_one(&mut operator_session)
            .await?;
    assert_eq!(outcome.0, "discarded");
    let never = operator.ask(&["replay", "--from-id", &from, "--to-id", &to]).await?;
    assert_eq!(never["preview"]["selected"], 0, "what was given up is not published by a replay: {never}");
    rig.append(&mut service, "k", 4).await?;
    eventually(Duration::from_secs(10), "the key is open", async || {
        Ok(steps_of(&rig.records().await?, "k") == [1, 3, 4])
    })
    .await?;
    relay.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_publishes_a_selection_again_under_the_same_ids() -> anyhow::Result<()> {
    let rig = Rig::new("replay").await?;
    fill(&rig, 3, 400, &[]).await?;
    let relay = Rig::relay(rig.run_config()?);
    rig.drained(Duration::from_secs(20)).await?;
    let operator = Operator::new(&rig, &[]);
    let dry = operator.ask(&["replay", "--key", "k-2"]).await?;
    assert_eq!(dry["preview"]["selected"], 400, "{dry}");
    assert_eq!(rig.records().await?.len(), 1_200, "nothing was done");
    assert!(operator.ask(&["replay", "--all"]).await.is_err(), "everything is no selection");
    assert!(operator.ask(&["redrive"]).await.is_err(), "nothing is no selection either");
    assert!(
        operator.ask(&["replay", "--key", "k-2", "--execute"]).await.is_err(),
        "nobody does it without a name"
    );
    let replayed = operator.ask(&[&["replay", "--key", "k-2"][..], &AUDIT].concat()).await?;
    assert_eq!(replayed["published"], 400, "{replayed}");
    // More than one slice, by id.
    let all = operator.ask(&[&["replay", "--from-id", "1"][..], &AUDIT].concat()).await?;
    assert_eq!(all["published"], 1_200, "{all}");
    relay.stop().await?;
    let records = rig.records().await?;
    assert_eq!(records.len(), 1_200 + 400 + 1_200);
    let ids: BTreeSet<_> = records.iter().map(|record| record.header("ce_id").unwrap().to_owned()).collect();
    assert_eq!(ids.len(), 1_200);
    // The next leader publishes nothing: what is on the topic is behind its cursor.
    let next = Rig::relay(rig.run_config()?);
    rig.append(&mut rig.connect("executor").await?, "k-1", 401).await?;
    rig.drained(Duration::from_secs(20)).await?;
    next.stop().await?;
    assert_eq!(rig.records().await?.len(), 2_801);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_nobody_understands_is_refused_and_stops_nothing() -> anyhow::Result<()> {
    let rig = Rig::new("nonsense").await?;
    let mut operator = rig.connect("operator").await?;
    let command: i64 = sqlx::query_scalar(
        "SELECT outbox.request('relay', 'replay', '{\"colour\": \"red\"}', 'ada', 'why not')",
    )
    .fetch_one(&mut operator)
    .await?;
    let relay = Rig::relay(rig.run_config()?);
    eventually(Duration::from_secs(10), "the command is refused", async || {
        let row = sqlx::query("SELECT coalesce(result, '') FROM outbox.commands WHERE id = $1")
            .bind(command)
            .fetch_one(&mut operator)
            .await?;
        Ok(row.try_get::<String, _>(0)?.starts_with("refused"))
    })
    .await?;
    rig.append(&mut rig.connect("executor").await?, "k", 1).await?;
    rig.drained(Duration::from_secs(10)).await?;
    relay.stop().await
}
