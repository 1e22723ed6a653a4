//! The model beside a real server: the same steps on both, and after every step the same snapshot, the same windows and the same pages,
//! through the product's own statements. The server is killed in between, with ids drawn that nothing durable has used.

use anyhow::{Context as _, ensure};
use outbox_relay::{
    store,
    window::{Cursor, Snapshot},
};
use sqlx::{AssertSqlSafe, Connection as _, PgConnection};
use testbed::stack::{Postgres, TestDatabase};

use super::{
    server::{Habits, Server},
    steps::{Act, SESSIONS, Step, act, steps},
    tails::{Tail as _, Windows, open_window, page},
};
use crate::rig::migrate;

const ROUNDS: u64 = 4;
const STEPS_PER_ROUND: usize = 250;

struct Sessions {
    writers: Vec<PgConnection>,
    /// Whether each is in a transaction.
    begun: Vec<bool>,
    elsewhere: PgConnection,
    reader: PgConnection,
    saver: PgConnection,
}

impl Sessions {
    async fn open(database: &TestDatabase) -> anyhow::Result<Self> {
        let (owner, relay) = (database.url("payment_outbox"), database.url("relay"));
        let mut writers = Vec::new();
        for _ in 0..SESSIONS {
            writers.push(PgConnection::connect(&owner).await?);
        }
        let mut reader = PgConnection::connect(&relay).await?;
        store::prepare_for_tailing(&mut reader).await?;
        Ok(Self {
            begun: vec![false; writers.len()],
            writers,
            elsewhere: PgConnection::connect(&owner).await?,
            reader,
            saver: PgConnection::connect(&relay).await?,
        })
    }

    async fn snapshot(&mut self) -> anyhow::Result<Snapshot> {
        sqlx::query_scalar::<_, String>("SELECT pg_current_snapshot()::text")
            .fetch_one(&mut self.reader)
            .await?
            .parse()
    }

    async fn say(&mut self, writer: usize, sql: &str) -> anyhow::Result<()> {
        if !std::mem::replace(&mut self.begun[writer], true) {
            sqlx::raw_sql("BEGIN").execute(&mut self.writers[writer]).await?;
        }
        sqlx::raw_sql(AssertSqlSafe(sql.to_owned()))
            .execute(&mut self.writers[writer])
            .await
            .with_context(|| sql.to_owned())?;
        Ok(())
    }

    /// Ends a transaction, which may be prepared.
    async fn end(&mut self, writer: usize, how: &str, prepared: bool) -> anyhow::Result<()> {
        if prepared {
            let sql = format!("{how} PREPARED 'writer-{writer}'");
            sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut self.writers[writer]).await?;
        } else if self.begun[writer] {
            self.say(writer, how).await?;
        }
        self.begun[writer] = false;
        Ok(())
    }

    async fn draw(&mut self, writer: usize) -> anyhow::Result<i64> {
        if !std::mem::replace(&mut self.begun[writer], true) {
            sqlx::raw_sql("BEGIN").execute(&mut self.writers[writer]).await?;
        }
        let drawn = "SELECT nextval(pg_get_serial_sequence('outbox.events', 'id'))";
        Ok(sqlx::query_scalar(drawn).fetch_one(&mut self.writers[writer]).await?)
    }
}

struct Both {
    model: Server,
    sessions: Sessions,
    /// The reader of both: the product's cursor.
    reader: Windows,
    saved: Option<Cursor>,
    seq: i64,
}

impl Both {
    async fn writer(&mut self, writer: usize, what: Act) -> anyhow::Result<()> {
        let (was_prepared, next_id) = (self.model.is_prepared(writer), self.model.next_id);
        if !act(&mut self.model, writer, what) {
            return Ok(());
        }
        let drawn_anew = self.model.next_id > next_id;
        if drawn_anew {
            let drawn = self.sessions.draw(writer).await?;
            ensure!(drawn == next_id, "the sequence gave {drawn}, the model {next_id}");
            // Every 32nd number is written ahead to the log, for which the sequence wants a transaction id.
            let assigned: Option<String> =
                sqlx::query_scalar("SELECT pg_current_xact_id_if_assigned()::text")
                    .fetch_one(&mut self.sessions.writers[writer])
                    .await?;
            if assigned.is_some() {
                self.model.take_xid(writer);
            }
        }
        match what {
            Act::TakeXid => self.sessions.say(writer, "SELECT pg_current_xact_id()").await?,
            Act::Append(_) => {
                let row = self.model.rows.last().context("a row")?;
                let sql = format!(
                    "INSERT INTO outbox.events (id, slot, event_id, event_type, aggregate_id, payload) OVERRIDING SYSTEM VALUE
                     VALUES ({}, {}, gen_random_uuid(), 'Stepped', 'key-{}', '{{}}')",
                    row.id,
                    row.id % 8,
                    row.key
                );
                self.sessions.say(writer, &sql).await?;
            }
            Act::Savepoint => self.sessions.say(writer, "SAVEPOINT s").await?,
            Act::RollbackTo => self.sessions.say(writer, "ROLLBACK TO SAVEPOINT s").await?,
            Act::Release => self.sessions.say(writer, "RELEASE SAVEPOINT s").await?,
            Act::Prepare => {
                self.sessions.say(writer, &format!("PREPARE TRANSACTION 'writer-{writer}'")).await?;
                self.sessions.begun[writer] = false;
            }
            Act::Commit => self.sessions.end(writer, "COMMIT", was_prepared).await?,
            Act::Rollback => self.sessions.end(writer, "ROLLBACK", was_prepared).await?,
            Act::Lock(_) | Act::Draw(_) | Act::Flush => {}
        }
        Ok(())
    }

    /// One statement of the reader on both, which must answer the same.
    async fn read(&mut self, limit: usize) -> anyhow::Result<()> {
        let cursor = &self.reader.0;
        if cursor.window_done() {
            let expected = open_window(&self.model, &cursor.to);
            let opened = store::open_window(&mut self.sessions.reader, &cursor.to).await?;
            ensure!(
                (&opened.to, opened.floor, opened.late) == (&expected.to, expected.floor, expected.late),
                "after {}: {opened:?}, the model: {expected:?}",
                cursor.to
            );
        } else {
            let rows = page(&self.model, cursor, limit);
            let expected: Vec<i64> = rows.iter().map(|row| self.model.rows[*row].id).collect();
            let mut ids = Vec::new();
            store::page(&mut self.sessions.reader, cursor, limit, usize::MAX, |row| ids.push(row.id)).await?;
            ensure!(ids == expected, "{cursor:?}: {ids:?}, the model: {expected:?}");
        }
        self.reader.statement(&self.model, limit);
        Ok(())
    }

    async fn save(&mut self) -> anyhow::Result<()> {
        let signature = store::Signature {
            relay: "relay".to_owned(),
            leader: "test:1".to_owned(),
            token: uuid::Uuid::nil(),
            server: store::server_identity(&mut self.sessions.saver).await?,
        };
        let progress = store::Progress::at(self.reader.0.clone());
        self.seq += 1;
        let offsets = store::PartitionOffsets::default();
        store::save(&mut self.sessions.saver, &signature, self.seq, &progress, &offsets).await?;
        self.model.save();
        self.saved = Some(progress.cursor);
        Ok(())
    }

    async fn read_back(&mut self) -> anyhow::Result<()> {
        let loaded = store::load_cursor(&mut self.sessions.saver, "relay").await?.map(|saved| saved.cursor);
        ensure!(loaded == self.saved, "{loaded:?} was saved as {:?}", self.saved);
        self.reader = loaded.map_or_else(Windows::start, Windows);
        Ok(())
    }

    /// Returns how many ids were handed out before and will be again.
    async fn crash(&mut self, postgres: &Postgres, database: &TestDatabase) -> anyhow::Result<u64> {
        // Nothing durable will know this id.
        self.writer(0, Act::Commit).await?;
        self.writer(0, Act::TakeXid).await?;
        let (lowest_xid, lowest_id) = self.model.lowest_after_crash();
        let before = self.model.next_xid();
        postgres.kill9();
        postgres.restart().await?;
        self.sessions = Sessions::open(database).await?;
        let xid = self.sessions.snapshot().await?.xmax;
        let id: i64 = sqlx::query_scalar("SELECT last_value + is_called::int FROM outbox.events_id_seq")
            .fetch_one(&mut self.sessions.elsewhere)
            .await?;
        ensure!(
            (lowest_xid..=before).contains(&xid),
            "goes on with {xid}, the model: {lowest_xid} to {before}"
        );
        let highest_id = self.model.next_id.max(lowest_id) + 32;
        ensure!(
            (lowest_id..=highest_id).contains(&id),
            "goes on with the number {id}, the model: {lowest_id} to {highest_id}"
        );
        self.model.crash(xid, id);
        self.read_back().await?;
        Ok(before - xid)
    }

    async fn step(&mut self, step: Step) -> anyhow::Result<()> {
        match step {
            // Durable and not yet visible: nobody can hold a real server there. The rest does not concern the server.
            Step::Writer(_, Act::Flush) | Step::Publish | Step::ZombieSends | Step::CrashServer { .. } => {}
            Step::Writer(writer, what) => self.writer(writer, what).await?,
            Step::Elsewhere { writes } => {
                let sql = if writes {
                    "INSERT INTO elsewhere DEFAULT VALUES"
                } else {
                    "SELECT pg_current_xact_id()"
                };
                sqlx::raw_sql(sql).execute(&mut self.sessions.elsewhere).await?;
                self.model.elsewhere(writes);
            }
            Step::Read { limit } => self.read(limit).await?,
            Step::Save => self.save().await?,
            Step::LoseMemory { .. } => self.read_back().await?,
        }
        let (real, model) = (self.sessions.snapshot().await?, self.model.snapshot());
        ensure!(real == model, "the snapshot is {real}, the model's {model}");
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_model_answers_as_postgresql_does() -> anyhow::Result<()> {
    // Nobody else may draw transaction ids here, not even the server for itself.
    let settings = [("autovacuum", "off"), ("max_prepared_transactions", "20")];
    let postgres = Postgres::private_with("model", &settings).await?;
    let database = postgres.database("model").await?;
    migrate(&database).await?;
    let mut sessions = Sessions::open(&database).await?;
    sqlx::raw_sql("CREATE TABLE elsewhere (n int)").execute(&mut sessions.elsewhere).await?;
    let next_xid = sessions.snapshot().await?.xmax;
    let habits = Habits { writers_lock: true, commits_are_durable: true };
    let mut both = Both {
        model: Server::new(SESSIONS, next_xid, habits),
        sessions,
        reader: Windows::start(),
        saved: None,
        seq: 0,
    };
    let first = super::first_seed();
    let (mut seed, mut ids_again) = (first, 0);
    for _ in 0..ROUNDS {
        let mut done = 0;
        while done < STEPS_PER_ROUND {
            for step in steps(seed) {
                both.step(step)
                    .await
                    .with_context(|| format!("from seed {first} on: {step:?} of seed {seed}"))?;
                done += 1;
            }
            seed += 1;
        }
        ids_again += both.crash(&postgres, &database).await?;
    }
    let committed: Vec<i64> = sqlx::query_scalar("SELECT id FROM outbox.events ORDER BY id")
        .fetch_all(&mut both.sessions.reader)
        .await?;
    let mut expected: Vec<i64> = both.model.visible().map(|(_, row)| row.id).collect();
    expected.sort_unstable();
    assert_eq!(committed, expected);
    println!(
        "from seed {first} on: {} rows committed; {ROUNDS} crashes, after which {ids_again} transaction ids were handed out again",
        committed.len()
    );
    assert!(ids_again > 0, "a crash hands out unused ids again");
    Ok(())
}
