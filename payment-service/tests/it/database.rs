use sqlx::{Connection as _, PgConnection};

use crate::world::{TRANSITIONS, World, result};

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

#[tokio::test]
async fn roles_can_do_what_they_need_and_nothing_else() {
    let world = World::new().await;
    let order = world.order().await;
    world.send(&result(order, "SUCCESSFUL")).await;
    let running = world.start(&[]).await;
    world.until(TRANSITIONS, 1).await;
    running.stop().await;
    let tables = [
        "payments",
        "payment_orders",
        "payment_order_transitions",
        "processed_events",
        "quarantine",
        "idempotency_keys",
    ];

    let mut service = PgConnection::connect(&world.db.url("payment_service")).await.unwrap();
    for table in tables {
        refused(&mut service, &format!("DELETE FROM payments.{table}"), DENIED).await;
        refused(&mut service, &format!("TRUNCATE payments.{table}"), DENIED).await;
        refused(&mut service, &format!("ALTER TABLE payments.{table} DISABLE TRIGGER ALL"), DENIED).await;
    }
    for sql in [
        "UPDATE payments.payment_order_transitions SET decision = 'STALE'",
        "UPDATE payments.processed_events SET payment_order_id = gen_random_uuid()",
        "UPDATE payments.payments SET amount_minor = 1",
        "UPDATE payments.payment_orders SET expires_at = now()",
        "UPDATE payments.quarantine SET record_value = NULL",
        "UPDATE payments.idempotency_keys SET status_code = 1",
        "INSERT INTO outbox.events (slot, event_id, event_type, aggregate_id, payload) VALUES (0, gen_random_uuid(), 'x', 'x', '{}')",
        "SELECT * FROM outbox.events",
        "CREATE TABLE payments.mine (a int)",
        "SELECT payments.grant_service('payment_service')",
    ] {
        refused(&mut service, sql, DENIED).await;
    }

    let mut reader = PgConnection::connect(&world.db.url("operator")).await.unwrap();
    for table in tables {
        sqlx::query(sqlx::AssertSqlSafe(format!("SELECT count(*) FROM payments.{table}")))
            .execute(&mut reader)
            .await
            .unwrap();
        refused(&mut reader, &format!("DELETE FROM payments.{table}"), DENIED).await;
        refused(&mut reader, &format!("INSERT INTO payments.{table} DEFAULT VALUES"), DENIED).await;
    }
    let mut stranger = PgConnection::connect(&world.db.url("relay")).await.unwrap();
    refused(&mut stranger, "SELECT * FROM payments.payments", DENIED).await;
}
