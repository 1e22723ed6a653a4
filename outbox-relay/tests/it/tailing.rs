//! Snapshot-window tailing under concurrency, beside the two usual ways, which fail.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use outbox_relay::{store, window::Cursor};
use sqlx::Row as _;
use testbed::load::Random;

use crate::{
    rig::{Rig, eventually},
    workload::{self, Verdict, judge},
};

/// Enough for every way of committing to meet every other.
const EVENTS: usize = 2_500;

type Seen = Vec<(String, i64)>;

fn stepped(payload: &serde_json::Value) -> (String, i64) {
    (payload["key"].as_str().unwrap().to_owned(), payload["step"].as_i64().unwrap())
}

/// Ours, with pages so small that windows span many of them, progress saved after each page, and the connection cut now and then:
/// then everything in memory is dropped and the saved cursor is read again, as the relay does.
async fn by_windows(rig: &Rig, seed: u64, done: &AtomicBool) -> anyhow::Result<(Seen, u32)> {
    let (mut seen, mut random, mut cuts, mut seq) = (Seen::new(), Random::new(seed, 0), 0, 0);
    let signature = rig.signature("relay").await?;
    let mut connection = rig.connect("relay").await?;
    let mut cursor = Cursor::start();
    loop {
        let last_look = done.load(Ordering::Acquire);
        if cursor.window_done() {
            let opened = store::open_window(&mut connection, &cursor.to).await?;
            cursor = cursor.open_next(opened.to, opened.floor);
            if opened.floor.is_none() && !opened.late {
                cursor.after = None;
                if last_look {
                    return Ok((seen, cuts));
                }
                tokio::time::sleep(Duration::from_millis(3)).await;
                continue;
            }
        }
        let limit = 1 + random.below(40);
        let take = |row: &store::OutboxRow<'_>| {
            seen.push(stepped(&serde_json::from_str(row.payload).unwrap()));
        };
        let end = store::page(&mut connection, &cursor, limit, usize::MAX, take).await?;
        cursor = cursor.after_page(end.last_id, end.more);
        seq += 1;
        let progress = store::Progress { count: end.rows.try_into()?, ..store::Progress::at(cursor.clone()) };
        store::save(&mut connection, &signature, seq, &progress, &store::PartitionOffsets::default()).await?;
        if random.below(60) == 0 {
            cuts += 1;
            let mut other = rig.connect("relay").await?;
            let pid: i32 = sqlx::query_scalar("SELECT pg_backend_pid()").fetch_one(&mut connection).await?;
            sqlx::query("SELECT pg_terminate_backend($1)").bind(pid).execute(&mut other).await?;
            connection = rig.connect("relay").await?;
            let saved = store::load_cursor(&mut connection, "relay").await?.unwrap();
            (seq, cursor) = (saved.seq, saved.cursor);
        }
    }
}

/// Broken, first way: remember the highest id. Rows that commit late are never seen.
async fn by_highest_id(rig: &Rig, done: &AtomicBool) -> anyhow::Result<Seen> {
    let (mut seen, mut highest) = (Seen::new(), 0i64);
    let mut connection = rig.connect("relay").await?;
    loop {
        let last_look = done.load(Ordering::Acquire);
        let rows = sqlx::query("SELECT id, payload FROM outbox.events WHERE id > $1 ORDER BY id")
            .bind(highest)
            .fetch_all(&mut connection)
            .await?;
        for row in &rows {
            highest = row.try_get(0)?;
            seen.push(stepped(&row.try_get(1)?));
        }
        if last_look && rows.is_empty() {
            return Ok(seen);
        }
        tokio::time::sleep(Duration::from_millis(3)).await;
    }
}

/// Broken, second way: everything below the oldest running transaction, in transaction order. Nothing is lost, but keys are out of
/// order, and all waits for the longest transaction.
async fn by_transaction_order(rig: &Rig, done: &AtomicBool) -> anyhow::Result<Seen> {
    let (mut seen, mut last) = (Seen::new(), ("0".to_owned(), 0i64));
    let mut give_up_at = None;
    let mut connection = rig.connect("relay").await?;
    loop {
        let last_look = done.load(Ordering::Acquire);
        let rows = sqlx::query(
            "SELECT xid::text, id, payload FROM outbox.events
             WHERE (xid, id) > ($1::xid8, $2) AND xid < pg_snapshot_xmin(pg_current_snapshot()) ORDER BY xid, id",
        )
        .bind(&last.0)
        .bind(last.1)
        .fetch_all(&mut connection)
        .await?;
        for row in &rows {
            last = (row.try_get(0)?, row.try_get(1)?);
            seen.push(stepped(&row.try_get(2)?));
        }
        // The oldest running transaction may be of any database of the server: it is waited for, but not for ever.
        if last_look {
            let written: i64 =
                sqlx::query_scalar("SELECT count(*) FROM outbox.events").fetch_one(&mut connection).await?;
            if seen.len() >= usize::try_from(written)? || give_up_at.is_some_and(|at| Instant::now() >= at) {
                return Ok(seen);
            }
            give_up_at.get_or_insert_with(|| Instant::now() + Duration::from_secs(30));
        }
        tokio::time::sleep(Duration::from_millis(3)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_committed_row_is_seen_once_in_order_per_key_where_the_usual_ways_fail() -> anyhow::Result<()> {
    let rig = Rig::without_topic("tailing").await?;
    let seed = u64::from(std::process::id());
    println!("seed {seed}");
    let done = AtomicBool::new(false);
    let writing = async {
        let committed = workload::write(&rig, 16, seed, EVENTS).await?;
        done.store(true, Ordering::Release);
        anyhow::Ok(committed)
    };
    let (committed, (ours, cuts), highest_id, transaction_order) = tokio::try_join!(
        writing,
        by_windows(&rig, seed, &done),
        by_highest_id(&rig, &done),
        by_transaction_order(&rig, &done),
    )?;
    let verdicts = [&ours, &highest_id, &transaction_order].map(|seen| judge(&committed, seen));
    println!(
        "committed {}, connection cut {cuts} times; ours, by id, by xid: {verdicts:?}",
        committed.total()
    );
    assert!(cuts > 0, "the connection was never cut");
    assert_eq!(verdicts[0], Verdict::default(), "ours, seed {seed}");
    assert!(verdicts[1].lost > 0, "the control must lose rows: {:?}", verdicts[1]);
    assert!(verdicts[2].inversions > 0, "the control must put keys out of order: {:?}", verdicts[2]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_relay_publishes_every_committed_row_in_order_per_key_while_its_sessions_are_cut()
-> anyhow::Result<()> {
    let rig = Rig::new("stress").await?;
    let relay = Rig::relay(rig.run_config()?);
    let seed = u64::from(std::process::id()) + 1;
    let done = AtomicBool::new(false);
    let writing = async {
        let committed = workload::write(&rig, 12, seed, EVENTS).await?;
        done.store(true, Ordering::Release);
        anyhow::Ok(committed)
    };
    let cutting = async {
        let mut superuser = rig.connect("postgres").await?;
        let (mut random, mut cut) = (Random::new(seed, 0), 0i64);
        while !done.load(Ordering::Acquire) {
            tokio::time::sleep(Duration::from_millis(300) + random.milliseconds(900)).await;
            // One session of the relay at a time: lock, read or save.
            cut += sqlx::query_scalar::<_, i64>(
                "SELECT count(pg_terminate_backend(pid)) FROM (
                     SELECT pid FROM pg_stat_activity WHERE usename = 'relay' AND datname = current_database() ORDER BY random() LIMIT 1
                 ) AS victim",
            )
            .fetch_one(&mut superuser)
            .await?;
        }
        anyhow::Ok(cut)
    };
    let (committed, cut) = tokio::try_join!(writing, cutting)?;
    rig.drained(Duration::from_secs(30)).await?;
    relay.stop().await?;
    let seen: Seen =
        rig.records().await?.iter().map(|record| (record.key.clone(), step_of(&record.value))).collect();
    let verdict = judge(&committed, &seen);
    println!("committed {}, sessions cut {cut}, {verdict:?}", committed.total());
    assert!(cut > 0, "no session was cut");
    assert_eq!(Verdict { duplicates: 0, ..verdict }, Verdict::default(), "seed {seed}");
    Ok(())
}

/// The long after the string in an Avro body of [`crate::rig::SCHEMA`], behind the frame.
pub(crate) fn step_of(record: &[u8]) -> i64 {
    let schema = apache_avro::Schema::parse_str(crate::rig::SCHEMA).unwrap();
    let reader = apache_avro::reader::datum::GenericDatumReader::builder(&schema).build().unwrap();
    match reader.read_value(&mut &record[schema::wire::FRAME_BYTES..]).unwrap() {
        apache_avro::types::Value::Record(fields) => match fields[1].1 {
            apache_avro::types::Value::Long(step) => step,
            ref other => panic!("{other:?}"),
        },
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_transaction_delays_nobody_and_is_published_when_it_commits() -> anyhow::Result<()> {
    let rig = Rig::new("long").await?;
    let relay = Rig::relay(rig.run_config()?);
    let mut slow = rig.connect("executor").await?;
    sqlx::query("BEGIN").execute(&mut slow).await?;
    rig.append(&mut slow, "slow", 1).await?;
    let mut quick = rig.connect("executor").await?;
    for step in 1..=20 {
        rig.append(&mut quick, "quick", step).await?;
    }
    eventually(Duration::from_secs(10), "the quick ones are published", async || {
        Ok(rig.records().await?.len() == 20)
    })
    .await?;
    sqlx::query("COMMIT").execute(&mut slow).await?;
    eventually(Duration::from_secs(10), "the slow one is published", async || {
        Ok(rig.records().await?.len() == 21)
    })
    .await?;
    relay.stop().await?;
    assert_eq!(rig.records().await?.iter().filter(|record| record.key == "slow").count(), 1);
    Ok(())
}
