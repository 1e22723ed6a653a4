use sqlx::{Connection as _, PgConnection};

use crate::world::World;

async fn refused(connection: &mut PgConnection, sql: &str, codes: &[&str]) {
    let error = sqlx::query(sqlx::AssertSqlSafe(sql.to_owned())).execute(connection).await.expect_err(sql);
    let code =
        error.as_database_error().and_then(sqlx::error::DatabaseError::code).unwrap_or_default().into_owned();
    assert!(codes.contains(&code.as_str()), "{sql}: {error}");
}

const DENIED: &[&str] = &["42501"];
const RAISED: &[&str] = &["P0001"];

#[tokio::test]
async fn the_audit_is_append_only_even_for_its_owner() {
    let world = World::new().await;
    world.order().await;
    let mut owner = world.pool.acquire().await.unwrap();
    for sql in [
        "UPDATE payments.payment_order_transitions SET decision = 'STALE'",
        "DELETE FROM payments.payment_order_transitions",
        "TRUNCATE payments.payment_order_transitions",
    ] {
        refused(&mut owner, sql, RAISED).await;
    }
}

#[tokio::test]
async fn the_database_refuses_illegal_transitions_too() {
    let world = World::new().await;
    let states = ["CREATED", "PENDING", "UNKNOWN", "SUCCESSFUL", "FAILED", "NEEDS_REVIEW"];
    for from in states {
        for to in states {
            let order = world.order().await;
            let set = |state: &str| {
                let reason = if state == "NEEDS_REVIEW" { "'EXPIRED'" } else { "NULL" };
                format!(
                    "UPDATE payments.payment_orders SET state = '{state}', review_reason = {reason}, settled_at = now()
                     WHERE payment_order_id = '{order}'"
                )
            };
            if from != "CREATED" {
                sqlx::query(sqlx::AssertSqlSafe(set(from))).execute(&world.pool).await.unwrap();
            }
            let open = ["CREATED", "PENDING", "UNKNOWN"].contains(&from) && to != "CREATED";
            let review = ["SUCCESSFUL", "FAILED"].contains(&from) && to == "NEEDS_REVIEW";
            let allowed = from == to || open || review;
            let outcome = sqlx::query(sqlx::AssertSqlSafe(set(to))).execute(&world.pool).await;
            assert_eq!(outcome.is_ok(), allowed, "{from} -> {to}: {outcome:?}");
        }
    }
}

/// What a role may do with a table; what is not here must be refused. `columns` are those that it may update.
struct Granted {
    role: &'static str,
    table: &'static str,
    verbs: &'static [&'static str],
    columns: &'static [&'static str],
}

const fn granted(
    role: &'static str,
    table: &'static str,
    verbs: &'static [&'static str],
    columns: &'static [&'static str],
) -> Granted {
    Granted { role, table, verbs, columns }
}

const ADDS: &[&str] = &["SELECT", "INSERT"];
const READS: &[&str] = &["SELECT"];

const GRANTED: &[Granted] = &[
    granted("payment_service", "payments", ADDS, &["status", "review_reason", "updated_at"]),
    granted(
        "payment_service",
        "payment_orders",
        ADDS,
        &[
            "state",
            "psp_reference",
            "error_code",
            "error_message",
            "review_reason",
            "updated_at",
            "settled_at",
        ],
    ),
    granted("payment_service", "payment_order_transitions", ADDS, &[]),
    granted("payment_service", "processed_events", ADDS, &[]),
    granted("payment_service", "idempotency_keys", ADDS, &[]),
    granted(
        "payment_service",
        "quarantine",
        ADDS,
        &["reason_code", "reason", "attempts", "settled_at", "outcome", "copy_leased_until", "copied_at"],
    ),
    granted("payment_service", "commands", READS, &[]),
    granted("payment_service", "command_items", READS, &["outcome", "reason", "finished_at"]),
    granted("payment_service", "api_tokens", READS, &[]),
    granted("operator", "api_tokens", READS, &[]),
    granted("operator", "console_sessions", READS, &[]),
    granted("operator", "payments", READS, &[]),
    granted("operator", "payment_orders", READS, &[]),
    granted("operator", "payment_order_transitions", READS, &[]),
    granted("operator", "processed_events", READS, &[]),
    granted("operator", "idempotency_keys", READS, &[]),
    granted("operator", "quarantine", READS, &[]),
    granted("operator", "commands", READS, &[]),
    granted("operator", "command_items", READS, &[]),
    granted("operator", "command_results", READS, &[]),
    granted("operator", "migrations", READS, &[]),
];

/// Tables and views of the schema with their columns, from the catalogue: what is added later is in it by itself.
async fn relations(connection: &mut PgConnection) -> Vec<(String, Vec<String>)> {
    sqlx::query_as(
        "SELECT c.relname::text, array_agg(a.attname::text ORDER BY a.attnum) FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid
         WHERE c.relnamespace = 'payments'::regnamespace AND c.relkind IN ('r', 'p', 'v', 'm', 'f') AND a.attnum > 0 AND NOT a.attisdropped
         GROUP BY c.relname ORDER BY c.relname",
    )
    .fetch_all(connection)
    .await
    .unwrap()
}

/// Tries a statement and undoes it. True unless it was refused whoever asks, or for want of a privilege.
async fn may(connection: &mut PgConnection, sql: &str) -> bool {
    sqlx::query("BEGIN").execute(&mut *connection).await.unwrap();
    let outcome = sqlx::query(sqlx::AssertSqlSafe(sql.to_owned())).execute(&mut *connection).await;
    sqlx::query("ROLLBACK").execute(&mut *connection).await.unwrap();
    let denied = |error: sqlx::Error| {
        let code = error
            .as_database_error()
            .and_then(sqlx::error::DatabaseError::code)
            .unwrap_or_default()
            .into_owned();
        // No privilege; a view that takes nothing; no table; a column that always makes its own value.
        ["42501", "55000", "42809", "428C9"].contains(&code.as_str())
    };
    !outcome.is_err_and(denied)
}

#[tokio::test]
async fn every_verb_on_every_table_is_refused_unless_it_is_granted_here() {
    let world = World::new().await;
    let relations = relations(&mut world.pool.acquire().await.unwrap()).await;
    for granted in GRANTED {
        assert!(relations.iter().any(|(table, _)| table == granted.table), "no table {}", granted.table);
    }
    let mut tried = 0;
    // Another service's role is a stranger here.
    for role in ["payment_service", "operator", "relay"] {
        let mut session = PgConnection::connect(&world.db.url(role)).await.unwrap();
        for (table, columns) in &relations {
            let granted = GRANTED.iter().find(|granted| granted.role == role && granted.table == table);
            let (verbs, updates) =
                granted.map_or((&[][..], &[][..]), |granted| (granted.verbs, granted.columns));
            let attempts = [
                ("SELECT", format!("SELECT count(*) FROM payments.{table}")),
                ("INSERT", format!("INSERT INTO payments.{table} DEFAULT VALUES")),
                ("DELETE", format!("DELETE FROM payments.{table} WHERE false")),
                ("TRUNCATE", format!("TRUNCATE payments.{table} CASCADE")),
                ("ALTER", format!("ALTER TABLE payments.{table} OWNER TO {role}")),
                ("TRIGGERS OFF", format!("ALTER TABLE payments.{table} DISABLE TRIGGER ALL")),
                ("DROP", format!("DROP TABLE payments.{table} CASCADE")),
            ];
            for (verb, sql) in attempts {
                tried += 1;
                assert_eq!(may(&mut session, &sql).await, verbs.contains(&verb), "{role}: {sql}");
            }
            for column in columns {
                tried += 1;
                let sql = format!("UPDATE payments.{table} SET {column} = {column} WHERE false");
                assert_eq!(
                    may(&mut session, &sql).await,
                    updates.contains(&column.as_str()),
                    "{role}: {sql}"
                );
            }
        }
    }
    assert!(tried > 300, "{tried}");
}

#[tokio::test]
async fn every_function_is_refused_unless_it_is_granted_here() {
    let world = World::new().await;
    let functions: Vec<(String, String)> = sqlx::query_as(
        "SELECT p.oid::regprocedure::text, p.proname::text FROM pg_proc p WHERE p.pronamespace = 'payments'::regnamespace",
    )
    .fetch_all(&world.pool)
    .await
    .unwrap();
    assert!(functions.len() > 6, "{functions:?}");
    for role in ["payment_service", "operator", "relay"] {
        for (function, name) in &functions {
            let may: bool = sqlx::query_scalar("SELECT has_function_privilege($1, $2, 'EXECUTE')")
                .bind(role)
                .bind(function)
                .fetch_one(&world.pool)
                .await
                .unwrap();
            let operators = ["request", "selected", "create_token", "revoke_tokens"];
            let granted = role == "operator" && operators.contains(&name.as_str());
            assert_eq!(may, granted, "{role}: {function}");
        }
    }
}

#[tokio::test]
async fn no_role_makes_anything_or_reads_what_is_the_outboxs() {
    let world = World::new().await;
    for role in ["payment_service", "operator", "relay"] {
        let mut session = PgConnection::connect(&world.db.url(role)).await.unwrap();
        for sql in
            ["CREATE TABLE payments.mine (a int)", "CREATE SCHEMA mine", "CREATE TABLE public.mine (a int)"]
        {
            refused(&mut session, sql, DENIED).await;
        }
    }
    let mut service = PgConnection::connect(&world.db.url("payment_service")).await.unwrap();
    for sql in [
        "INSERT INTO outbox.events (slot, event_id, event_type, aggregate_id, payload) VALUES (0, gen_random_uuid(), 'x', 'x', '{}')",
        "SELECT * FROM outbox.events",
    ] {
        refused(&mut service, sql, DENIED).await;
    }
}

#[tokio::test]
async fn what_operators_asked_for_is_append_only_even_for_the_owner() {
    let world = World::new().await;
    let mut owner = world.pool.acquire().await.unwrap();
    sqlx::query(
        "INSERT INTO payments.quarantine (topic, partition, record_offset, digest, reason_code, reason, headers)
         VALUES ('t', 0, 0, sha256(''), 'UNDECODABLE', 'r', '[]')",
    )
    .execute(&mut *owner)
    .await
    .unwrap();
    sqlx::query("SELECT payments.request('discard', '{}', 'ada', 'nonsense')")
        .execute(&mut *owner)
        .await
        .unwrap();
    for sql in [
        "UPDATE payments.commands SET operator = 'bob'",
        "DELETE FROM payments.commands",
        "TRUNCATE payments.commands CASCADE",
        "UPDATE payments.command_items SET outcome = 'APPLIED'",
        "DELETE FROM payments.command_items",
        "TRUNCATE payments.command_items",
    ] {
        refused(&mut owner, sql, RAISED).await;
    }
    for nobody in ["''", "'  '", "repeat('x', 101)"] {
        let sql = format!("SELECT payments.request('redrive', '{{}}', {nobody}, 'note')");
        refused(&mut owner, &sql, &["23514"]).await;
    }
}

#[tokio::test]
async fn a_payment_leaves_success_for_review_alone_and_review_for_what_its_orders_say() {
    let world = World::new().await;
    let states = ["CREATED", "PENDING", "UNKNOWN", "SUCCESSFUL", "FAILED", "NEEDS_REVIEW"];
    for from in states {
        for to in states {
            world.order().await;
            let set = |state: &str| {
                let reason = if state == "NEEDS_REVIEW" { "'DOUBLE_CHARGE'" } else { "NULL" };
                sqlx::AssertSqlSafe(format!(
                    "UPDATE payments.payments SET status = '{state}', review_reason = {reason}
                     WHERE payment_id = (SELECT payment_id FROM payments.payments ORDER BY created_at DESC LIMIT 1)"
                ))
            };
            if from != "CREATED" {
                sqlx::query(set(from)).execute(&world.pool).await.unwrap();
            }
            // Its order is CREATED: that alone may follow a review which nothing calls for any more.
            let allowed = from == to
                || match from {
                    "SUCCESSFUL" => to == "NEEDS_REVIEW",
                    "NEEDS_REVIEW" => to == "CREATED",
                    _ => true,
                };
            let outcome = sqlx::query(set(to)).execute(&world.pool).await;
            assert_eq!(outcome.is_ok(), allowed, "{from} -> {to}: {outcome:?}");
        }
    }
}
