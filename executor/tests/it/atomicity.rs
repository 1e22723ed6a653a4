//! A result and its event: both or neither.

use crate::setup::World;

#[tokio::test]
async fn a_result_whose_event_cannot_be_written_is_not_written_either() {
    let world = World::new("atomic").await;
    let revoke =
        "REVOKE EXECUTE ON FUNCTION outbox.append(text, text, jsonb, text, text, uuid) FROM executor";
    sqlx::query(revoke).execute(&world.pool).await.unwrap();
    let running = world.start(&["--lease=2500ms"]);
    let id = world.request("pm_card_visa").await;
    // The PSP has charged, and nothing of it can be recorded.
    world.wait_for_count("SELECT count(*) FROM executor.psp_attempts WHERE operation = 'CONFIRM'", 1).await;
    world
        .wait_for_count("SELECT count(*) FROM executor.psp_attempts WHERE operation = 'GET' AND try = 1", 1)
        .await;
    assert_eq!(world.charges(id).await, 1);
    assert_eq!(world.results(id).await, []);
    assert_eq!(world.state(id).await.as_deref(), Some("IN_FLIGHT"));
    let grant = "SELECT outbox.grant_writer('executor')";
    sqlx::query(grant).execute(&world.pool).await.unwrap();
    world.wait_for_state(id, "SETTLED").await;
    assert_eq!(world.results(id).await, [("SUCCESSFUL".to_owned(), None, "RESOLVER".to_owned())]);
    assert_eq!((world.events(id).await.len(), world.charges(id).await), (1, 1));
    running.stop().await;
}

#[tokio::test]
async fn results_can_only_be_added_and_only_through_their_role() {
    let world = World::new("append_only").await;
    let running = world.start(&[]);
    let id = world.request("pm_card_visa").await;
    world.wait_for_state(id, "SETTLED").await;
    running.stop().await;
    for change in [
        "UPDATE executor.psp_results SET psp_status = 'FAILED'",
        "DELETE FROM executor.psp_results",
        "TRUNCATE executor.psp_results",
    ] {
        let refused = sqlx::query(change).execute(&world.pool).await.unwrap_err();
        assert_eq!(refused.as_database_error().unwrap().code().as_deref(), Some("23001"), "{change}");
    }
    let service = sqlx::PgPool::connect(&world.database.url("executor")).await.unwrap();
    let operator = sqlx::PgPool::connect(&world.database.url("operator")).await.unwrap();
    let stranger = sqlx::PgPool::connect(&world.database.url("relay")).await.unwrap();
    let denied = async |pool: &sqlx::PgPool, sql: &'static str| {
        let code = sqlx::query(sql)
            .execute(pool)
            .await
            .unwrap_err()
            .as_database_error()
            .unwrap()
            .code()
            .map(String::from);
        assert_eq!(code.as_deref(), Some("42501"), "{sql}");
    };
    denied(&service, "UPDATE executor.psp_results SET psp_status = 'FAILED'").await;
    denied(&service, "DELETE FROM executor.inbox").await;
    denied(&service, "INSERT INTO outbox.events (slot) VALUES (0)").await;
    denied(&operator, "UPDATE executor.inbox SET state = 'QUEUED'").await;
    denied(&stranger, "SELECT FROM executor.inbox").await;
    sqlx::query("SELECT FROM executor.psp_results").execute(&operator).await.unwrap();
}
