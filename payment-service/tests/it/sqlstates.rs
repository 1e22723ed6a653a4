//! What the database's errors mean: most of them that it is not the record's fault.

use std::time::Duration;

use crate::world::{TRANSITIONS, World, result};

/// Raises `code` when an event is marked as taken: the first `times` times, or for ever; for every order or for one.
async fn trip(world: &World, code: &str, times: i64, order: &str) {
    let sql = format!(
        "CREATE SEQUENCE IF NOT EXISTS payments.tripped;
         ALTER SEQUENCE payments.tripped RESTART;
         CREATE OR REPLACE FUNCTION payments.trip() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
         BEGIN
             IF NEW.payment_order_id::text LIKE '{order}' AND nextval('payments.tripped') <= {times} THEN
                 RAISE EXCEPTION 'provoked' USING ERRCODE = '{code}';
             END IF;
             RETURN NEW;
         END $$;
         CREATE OR REPLACE TRIGGER trip BEFORE INSERT ON payments.processed_events FOR EACH ROW EXECUTE FUNCTION payments.trip();"
    );
    sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).execute(&world.pool).await.unwrap();
}

#[tokio::test]
async fn an_error_that_is_nobodys_fault_is_waited_for() {
    let world = World::new().await;
    let service = world.start(&[]).await;
    let codes = [
        "08000", "08006", "40001", "40P01", "53100", "53200", "53300", "57014", "57P01", "57P03", "55P03",
        "25006", // A person must look; the records wait all the same.
        "42501", "42P01", "0A000", "XX000", "XX001",
    ];
    for (number, code) in (1..).zip(codes) {
        trip(&world, code, 2, "%").await;
        world.send(&result(world.order().await, "SUCCESSFUL")).await;
        world.until(TRANSITIONS, number).await;
        let tripped = world.count("SELECT last_value FROM payments.tripped").await;
        assert!(tripped >= 3, "{code} was raised twice: {tripped}");
        assert_eq!(world.count("SELECT count(*) FROM payments.quarantine").await, 0, "{code}");
    }
    assert!(service.metric(r#"consumer_waits_total{reason="database"}"#).await > 33.0);
    service.stop().await;
    assert_eq!(world.committed().await, i64::try_from(codes.len()).unwrap());
}

#[tokio::test]
async fn an_error_of_one_record_isolates_that_one() {
    let world = World::new().await;
    let service = world.start(&[]).await;
    for (number, code) in (1..).zip(["22003", "22P05", "23502", "23505", "23514", "P0001"]) {
        let orders = world.orders(40).await;
        trip(&world, code, i64::MAX, &orders[17].to_string()).await;
        let events: Vec<_> = orders.iter().map(|order| result(*order, "SUCCESSFUL")).collect();
        world.send_all(&events).await;
        world.until(TRANSITIONS, 39 * number).await;
        world.until("SELECT count(*) FROM payments.quarantine WHERE reason_code = 'REFUSED'", number).await;
    }
    service.stop().await;
    assert_eq!(world.committed().await, 240);
}

#[tokio::test]
async fn a_server_that_goes_away_in_the_middle_is_waited_for() {
    let world = World::new().await;
    let orders = world.orders(400).await;
    let service = world.start(&["--batch-max", "20"]).await;
    let cutting = async {
        for _ in 0..12 {
            // Every session of this service, as a restart of the server would do.
            sqlx::query("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND usename = 'payment_service'")
                .execute(&mut <sqlx::PgConnection as sqlx::Connection>::connect(&world.db.url("postgres")).await.unwrap())
                .await
                .unwrap();
            tokio::time::sleep(Duration::from_millis(150)).await;
        }
    };
    let sending = async {
        for part in orders.chunks(20) {
            let events: Vec<_> = part.iter().map(|order| result(*order, "SUCCESSFUL")).collect();
            world.send_all(&events).await;
            tokio::time::sleep(Duration::from_millis(60)).await;
        }
    };
    tokio::join!(cutting, sending);
    world.until(TRANSITIONS, 400).await;
    assert_eq!(world.count("SELECT count(*) FROM payments.quarantine").await, 0);
    assert_eq!(world.applied_twice().await, 0);
    service.stop().await;
}
