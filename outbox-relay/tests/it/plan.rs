//! The plans of the tailing queries beside millions of old rows: they must touch what they return, not what was ever published.
//!
//! What is counted is blocks, never time. The last test step runs a form of a query that looks right and is not, so that the count is
//! known to tell them apart.

use outbox_relay::{
    store,
    window::{Cursor, Snapshot},
};
use sqlx::{Connection as _, PgConnection};

use crate::rig::Rig;

/// Rows published long ago, in seven of the ring's eight slots: one slot is the day that was truncated.
const OLD_SLOTS: i32 = 7;
const OLD_ROWS_PER_SLOT: i64 = 300_000;
/// Rows committed since the last look, by three transactions.
const BACKLOG: i64 = 120_000;
/// Transactions that began before the backlog and committed after it.
const LATE: i64 = 12;
const PAGE: usize = 500;

/// Blocks of tables and indexes of the outbox that a session has touched.
async fn blocks_touched(connection: &mut PgConnection) -> anyhow::Result<i64> {
    sqlx::query("SELECT pg_stat_force_next_flush()").execute(&mut *connection).await?;
    Ok(sqlx::query_scalar(
        "SELECT sum(heap_blks_read + heap_blks_hit + coalesce(idx_blks_read, 0) + coalesce(idx_blks_hit, 0))::bigint
         FROM pg_statio_user_tables WHERE schemaname = 'outbox'",
    )
    .fetch_one(connection)
    .await?)
}

/// Blocks of rows, without their indexes.
async fn heap_blocks(connection: &mut PgConnection) -> anyhow::Result<i64> {
    Ok(sqlx::query_scalar(
        "SELECT sum(pg_relation_size(relid))::bigint / 8192 FROM pg_partition_tree('outbox.events')",
    )
    .fetch_one(connection)
    .await?)
}

/// The ring as it is after a week, with the statistics of its first day.
async fn fill(owner: &mut PgConnection) -> anyhow::Result<()> {
    for slot in 0..=OLD_SLOTS {
        let sql = format!("ALTER TABLE outbox.events_{slot} SET (autovacuum_enabled = off)");
        sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).execute(&mut *owner).await?;
    }
    for slot in 0..OLD_SLOTS {
        // Event ids that ascend, as those of version 7 do.
        sqlx::query(
            "INSERT INTO outbox.events (slot, event_id, event_type, aggregate_id, payload)
             SELECT $1, lpad(to_hex($1 * $2 + n), 32, '0')::uuid, 'Stepped', 'k', '{}' FROM generate_series(1, $2) AS n",
        )
        .bind(slot)
        .bind(OLD_ROWS_PER_SLOT)
        .execute(&mut *owner)
        .await?;
        if slot == 0 {
            sqlx::query("ANALYZE outbox.events").execute(&mut *owner).await?;
        }
    }
    Ok(())
}

/// What the statements of the relay touched, and what they returned.
#[derive(Debug, Default)]
struct Touched {
    opening: i64,
    worst_page: i64,
    ids: Vec<i64>,
}

/// Opens the window after `from` and reads it to its end.
async fn read_window(relay: &mut PgConnection, from: Snapshot) -> anyhow::Result<(Touched, Snapshot)> {
    let mut touched = Touched::default();
    let start = blocks_touched(relay).await?;
    let opened = store::open_window(relay, &from).await?;
    touched.opening = blocks_touched(relay).await? - start;
    let done = Cursor { from: Snapshot::nothing(), to: from, floor: None, after: None };
    let mut cursor = done.open_next(opened.to.clone(), opened.floor);
    while !cursor.window_done() {
        let start = blocks_touched(relay).await?;
        let ids = &mut touched.ids;
        let end = store::page(relay, &cursor, PAGE, usize::MAX, |row| ids.push(row.id)).await?;
        touched.worst_page = touched.worst_page.max(blocks_touched(relay).await? - start);
        cursor = cursor.after_page(end.last_id, end.more);
    }
    Ok((touched, opened.to))
}

#[tokio::test(flavor = "multi_thread")]
async fn beside_millions_of_old_rows_windows_and_pages_touch_what_they_return() -> anyhow::Result<()> {
    let rig = Rig::without_topic("plan").await?;
    let mut owner = rig.connect("payment_outbox").await?;
    fill(&mut owner).await?;
    let mut service = rig.connect("executor").await?;
    let mut relay = rig.connect("relay").await?;
    store::prepare_for_tailing(&mut relay).await?;
    let all = heap_blocks(&mut owner).await?;

    // Transactions that have begun before the last look, and one that was finished by then: it lifts xmax above theirs.
    let (mut late, mut late_ids) = (Vec::new(), Vec::new());
    for number in 0..LATE {
        let mut writer = rig.connect("executor").await?;
        sqlx::query("BEGIN").execute(&mut writer).await?;
        late_ids.push(rig.append(&mut writer, &format!("late-{number}"), 1).await?);
        late.push(writer);
    }
    rig.append(&mut service, "k", 1).await?;
    let from = store::open_window(&mut relay, &Snapshot::nothing()).await?.to;
    // A snapshot knows the transactions of all databases of the server: other tests' too.
    let running = i64::try_from(from.in_progress.len())?;
    assert!(running >= LATE, "{from}");

    let (idle, _) = read_window(&mut relay, from.clone()).await?;
    assert!(idle.ids.is_empty(), "nothing has committed since");
    for _ in 0..3 {
        sqlx::query("SELECT count(outbox.append('Stepped', 'k', '{}')) FROM generate_series(1, $1)")
            .bind(BACKLOG / 3)
            .execute(&mut service)
            .await?;
    }
    for mut writer in late {
        sqlx::query("COMMIT").execute(&mut writer).await?;
    }
    let backlog_blocks = heap_blocks(&mut owner).await? - all;
    let (touched, to) = read_window(&mut relay, from.clone()).await?;
    let (after, _) = read_window(&mut relay, to).await?;

    let start = blocks_touched(&mut relay).await?;
    sqlx::query("SELECT min(id) FROM outbox.events WHERE xid >= pg_snapshot_xmax($1::pg_snapshot)")
        .bind(from.to_string())
        .execute(&mut relay)
        .await?;
    let naive = blocks_touched(&mut relay).await? - start;

    println!(
        "{} old rows in {all} blocks; {running} transactions were running. Blocks touched: a look that finds nothing {} and {}, opening a \
         window of {} rows in {backlog_blocks} blocks {}, a page of {PAGE} at most {}; a plain min(id) {naive}",
        OLD_ROWS_PER_SLOT * i64::from(OLD_SLOTS),
        idle.opening,
        after.opening,
        touched.ids.len(),
        touched.opening,
        touched.worst_page,
    );
    assert_eq!(touched.ids.len(), usize::try_from(BACKLOG + LATE)?);
    assert_eq!(touched.ids[..late_ids.len()], late_ids);
    assert!(touched.ids.is_sorted());
    // Eight partitions' indexes, three or four blocks deep, once per look and once per transaction that was running.
    let looks = 40 * (1 + running);
    assert!(
        idle.opening < looks && after.opening < looks,
        "a look touched {} and {} blocks",
        idle.opening,
        after.opening
    );
    // A page: its own rows' blocks of heap and index besides.
    assert!(touched.worst_page < 200 + looks, "a page touched {} blocks", touched.worst_page);
    // Opening: the range of the index (xid, id) that is new, and the heap behind it, once.
    assert!(
        touched.opening < 4 * backlog_blocks + looks,
        "opening a window touched {} blocks",
        touched.opening
    );
    assert!(naive > all / 2, "the plain form touched {naive} blocks of {all}: this check tells nothing");
    relay.close().await?;
    Ok(())
}
