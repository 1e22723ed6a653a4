//! The plans of the tailing queries beside a large table: they must touch what they return, not what was ever published.

use outbox_relay::{
    store,
    window::{Cursor, Snapshot},
};
use sqlx::{Connection as _, PgConnection, Row as _};

use crate::rig::Rig;

/// Blocks of tables and indexes of the outbox that a session touched.
async fn blocks_touched(connection: &mut PgConnection) -> anyhow::Result<i64> {
    sqlx::query("SELECT pg_stat_force_next_flush()").execute(&mut *connection).await?;
    Ok(sqlx::query_scalar(
        "SELECT sum(heap_blks_read + heap_blks_hit + coalesce(idx_blks_read, 0) + coalesce(idx_blks_hit, 0))::bigint
         FROM pg_statio_user_tables WHERE schemaname = 'outbox'",
    )
    .fetch_one(connection)
    .await?)
}

/// 300,000 published rows and old statistics; then a backlog of 60,000, read page by page, and one transaction that began before all
/// of it and committed late.
#[tokio::test(flavor = "multi_thread")]
async fn windows_and_pages_touch_what_they_return() -> anyhow::Result<()> {
    let rig = Rig::without_topic("plan").await?;
    let mut service = rig.connect("executor").await?;
    let mut relay = rig.connect("relay").await?;
    store::prepare_for_tailing(&mut relay).await?;
    let many = "SELECT count(outbox.append('Stepped', 'k', '{}')) FROM generate_series(1, $1)";
    for _ in 0..3 {
        sqlx::query(many).bind(100_000).execute(&mut service).await?;
    }
    // Statistics as they are after a while: of the past.
    let mut owner = rig.connect("payment_outbox").await?;
    sqlx::query("ANALYZE outbox.events").execute(&mut owner).await?;
    let mut late = rig.connect("executor").await?;
    sqlx::query("BEGIN").execute(&mut late).await?;
    let late_id = rig.append(&mut late, "late", 1).await?;
    sqlx::query(many).bind(1).execute(&mut service).await?;
    let from = store::open_window(&mut relay, &Snapshot::nothing()).await?.to;
    // A snapshot knows the transactions of all databases of the server: other tests' too.
    let running = i64::try_from(from.in_progress.len())?;
    assert!(running >= 1, "{from}");
    for _ in 0..3 {
        sqlx::query(many).bind(20_000).execute(&mut service).await?;
    }
    sqlx::query("COMMIT").execute(&mut late).await?;

    let start = blocks_touched(&mut relay).await?;
    let opened = store::open_window(&mut relay, &from).await?;
    assert!(opened.late);
    let opening = blocks_touched(&mut relay).await? - start;
    let done = Cursor { from: Snapshot::nothing(), to: from, floor: None, after: None };
    let mut cursor = done.open_next(opened.to, opened.floor);
    let (mut worst, mut ids) = (0, Vec::new());
    while !cursor.window_done() {
        let start = blocks_touched(&mut relay).await?;
        let rows = store::page(&mut relay, &cursor, 500).await?;
        worst = worst.max(blocks_touched(&mut relay).await? - start);
        cursor = cursor.after_page(rows.len(), rows.last().map(|row| row.id), 500);
        ids.extend(rows.iter().map(|row| row.id));
    }
    assert_eq!((ids.len(), ids[0]), (60_001, late_id));
    assert!(ids.is_sorted());
    let all: i64 = sqlx::query(
        "SELECT sum(pg_relation_size(relid))::bigint / 8192 FROM pg_partition_tree('outbox.events')",
    )
    .fetch_one(&mut owner)
    .await?
    .try_get(0)?;
    println!(
        "blocks touched: opening a window of 60,001 rows {opening}, a page of 500 at most {worst}; the table has {all}"
    );
    // A page: its own rows' blocks of heap and index, and the roots of eight partitions' indexes, once for the page and once per
    // transaction that was running.
    assert!(worst < 200 + 40 * running, "a page touched {worst} blocks");
    assert!(opening < all / 2, "opening a window touched {opening} blocks of {all}");
    relay.close().await?;
    Ok(())
}
