//! What the pages say, what is done from them, and what they cost.

use std::time::Duration;

use reqwest::header;
use uuid::Uuid;

use super::{ASKED, Visitor};
use crate::world::{World, result, with};

#[tokio::test]
async fn texts_of_strangers_are_shown_and_never_taken_for_html() {
    let world = World::new().await;
    let service = world.start_with_console(&[]).await;
    let grace = Visitor::signed_in(&service, &world.token("grace", "operator").await).await;
    let order = world.order().await;
    let hostile = "</bdi></td><script>alert(1)</script>\"'&{{ 7*7 }}\u{202e}";
    sqlx::query("UPDATE payments.payments SET merchant_reference = $1")
        .bind(hostile)
        .execute(&world.pool)
        .await
        .unwrap();
    world.send(&with(result(order, "SUCCESSFUL"), |event| event.reference = Some(hostile.to_owned()))).await;
    world.until(crate::world::TRANSITIONS, 1).await;
    world.send(&with(result(order, "FAILED"), |event| event.code = Some(hostile.to_owned()))).await;
    world.until(crate::world::TRANSITIONS, 2).await;
    let orphan = with(result(Uuid::new_v4(), "FAILED"), |event| event.message = Some(hostile.to_owned()));
    world.send(&orphan).await;
    world.until("SELECT count(*) FROM payments.quarantine", 1).await;
    sqlx::query("UPDATE payments.quarantine SET reason = $1")
        .bind(hostile)
        .execute(&world.pool)
        .await
        .unwrap();
    let payment: Uuid =
        sqlx::query_scalar("SELECT payment_id FROM payments.payments").fetch_one(&world.pool).await.unwrap();
    let query = form_urlencoded::Serializer::new(String::new()).append_pair("q", hostile).finish();
    for page in [
        "/console/payments".to_owned(),
        format!("/console/payments?{query}"),
        format!("/console/payments/{payment}"),
        "/console/attention".to_owned(),
        format!("/console/attention/review/{order}"),
        "/console/attention/quarantine/1/discard".to_owned(),
    ] {
        let text = grace.page(&page).await;
        assert!(!text.contains("<script") && !text.contains("</bdi></td><"), "{page}: {text}");
        assert!(text.contains("&#60;script&#62;"), "{page}: it is shown: {text}");
    }
    service.stop().await;
}

#[tokio::test]
async fn payments_are_found_and_listed_page_by_page() {
    let world = World::new().await;
    let service = world.start_with_console(&[]).await;
    let grace = Visitor::signed_in(&service, &world.token("grace", "operator").await).await;
    // All of one moment: the id decides.
    let orders = world.orders(120).await;
    let ids = |page: &str| -> Vec<String> {
        let links = page.split(r#"<a href="/console/payments/"#).skip(1);
        links.map(|rest| rest[..36].to_owned()).collect()
    };
    let (mut path, mut seen, mut pages) = ("/console/payments?status=CREATED".to_owned(), Vec::new(), 0);
    loop {
        let page = grace.page(&path).await;
        seen.extend(ids(&page));
        pages += 1;
        let Some((before, _)) = page.split_once(r#"">Older payments</a>"#) else { break };
        path = before.rsplit_once("href=\"").unwrap().1.replace("&#38;", "&").replace("&amp;", "&");
    }
    assert_eq!((pages, seen.len()), (3, 120));
    assert!(seen.is_sorted_by(|a, b| a > b), "each once, in order");

    sqlx::query("UPDATE payments.payment_orders SET state = 'SUCCESSFUL', settled_at = now(), psp_reference = 'pi_found' WHERE payment_order_id = $1")
        .bind(orders[7])
        .execute(&world.pool)
        .await
        .unwrap();
    sqlx::query("UPDATE payments.payments SET trace_id = $2, merchant_reference = 'a b%' WHERE payment_id = (SELECT payment_id FROM payments.payment_orders WHERE payment_order_id = $1)")
        .bind(orders[7])
        .bind("0af7651916cd43dd8448eb211c80319c")
        .execute(&world.pool)
        .await
        .unwrap();
    let payment: Uuid =
        sqlx::query_scalar("SELECT payment_id FROM payments.payment_orders WHERE payment_order_id = $1")
            .bind(orders[7])
            .fetch_one(&world.pool)
            .await
            .unwrap();
    for text in [
        payment.to_string(),
        orders[7].to_string(),
        orders[7].simple().to_string(),
        "pi_found".into(),
        "0AF7651916CD43DD8448EB211C80319C".into(),
        "a+b%25".into(),
        "++a+b%25+".into(),
    ] {
        assert_eq!(
            ids(&grace.page(&format!("/console/payments?q={text}")).await),
            [payment.to_string()],
            "{text}"
        );
    }
    for text in ["a%25", "pi_", "a+b", "%27+OR+true+--", "_"] {
        assert!(
            grace.page(&format!("/console/payments?q={text}")).await.contains("No payment is like that."),
            "{text}"
        );
    }
    for (query, count) in [
        ("from=2000-01-01T00:00", 50),
        ("until=2000-01-01T00:00", 0),
        ("from=2000-01-01T00:00&until=2999-01-01T00:00:00&status=FAILED", 0),
    ] {
        assert_eq!(ids(&grace.page(&format!("/console/payments?{query}")).await).len(), count, "{query}");
    }
    for wrong in ["from=soon", "status=LOST", "after=1.2", "until=2026-13-01T00:00"] {
        let answer = grace.get(&format!("/console/payments?{wrong}")).await;
        assert_eq!(answer.status(), 400, "{wrong}");
        assert!(answer.text().await.unwrap().contains("role=\"alert\""), "{wrong}");
    }
    service.stop().await;
}

#[tokio::test]
async fn what_is_asked_for_bears_a_name_and_a_reason_and_is_done_once() {
    let world = World::new().await;
    let service = world.start_with_console(&[]).await;
    let grace = Visitor::signed_in(&service, &world.token("grace", "operator").await).await;
    let form_token = grace.form_token().await;
    let form_token = form_token.as_str();
    for _ in 0..2 {
        world.send(&result(Uuid::new_v4(), "FAILED")).await;
    }
    world.until("SELECT count(*) FROM payments.quarantine", 2).await;
    let form = "/console/attention/quarantine/1/discard";
    for note in ["", "  ", &"x".repeat(1_001)] {
        let answer = grace.post(form, &[("form_token", form_token), ("note", note)]).await;
        assert_eq!(answer.status(), 422, "{note:?}");
    }
    assert_eq!(world.count(ASKED).await, 0);
    let answer = grace.post(form, &[("form_token", form_token), ("note", "not ours, ticket 17")]).await;
    assert_eq!(answer.status(), 303);
    let outcome = grace.page(answer.headers()[header::LOCATION].to_str().unwrap()).await;
    assert!(
        outcome.contains("Discarded") && outcome.contains("ticket 17") && outcome.contains(">grace<"),
        "{outcome}"
    );
    let (operator, role, note): (String, String, String) =
        sqlx::query_as("SELECT operator, requested_by, note FROM payments.commands")
            .fetch_one(&world.pool)
            .await
            .unwrap();
    assert_eq!(
        (operator.as_str(), role.as_str(), note.as_str()),
        ("grace", "console", "not ours, ticket 17")
    );
    // Twice is once.
    assert_eq!(grace.post(form, &[("form_token", form_token), ("note", "again")]).await.status(), 422);
    assert_eq!(world.count(ASKED).await, 1);
    let list = grace.page("/console/attention").await;
    assert!(
        !list.contains("/console/attention/quarantine/1/")
            && list.contains("/console/attention/quarantine/2/redrive"),
        "{list}"
    );
    // A redrive that is refused again stays, and says why.
    let answer = grace
        .post("/console/attention/quarantine/2/redrive", &[("form_token", form_token), ("note", "trying")])
        .await;
    let outcome = grace.page(answer.headers()[header::LOCATION].to_str().unwrap()).await;
    assert!(outcome.contains("Refused again"), "{outcome}");
    service.stop().await;
}

#[tokio::test]
async fn a_database_that_is_away_takes_no_page_with_it() {
    let world = World::new().await;
    let port = testbed::stack::free_port().unwrap();
    let away = format!("postgres://console@127.0.0.1:{port}/executor");
    let service = world.start_with_console(&["--executor-database-url", &away]).await;
    let grace = Visitor::signed_in(&service, &world.token("grace", "operator").await).await;
    let order = world.order().await;
    world.send(&result(order, "SUCCESSFUL")).await;
    world.until(crate::world::TRANSITIONS, 1).await;
    let payment: Uuid =
        sqlx::query_scalar("SELECT payment_id FROM payments.payments").fetch_one(&world.pool).await.unwrap();
    let page = grace.page(&format!("/console/payments/{payment}")).await;
    for words in [
        "its database did not answer in time",
        "APPLIED: CREATED → SUCCESSFUL",
        "answer obtained: SUCCESSFUL",
        "partition",
    ] {
        assert!(page.contains(words), "{words} in {page}");
    }
    let page = grace.page("/console/attention").await;
    assert!(page.contains("did not answer in time") && page.contains("No record is set aside."), "{page}");
    service.stop().await;

    let service = world.start_with_console(&[]).await;
    let grace = Visitor::signed_in(&service, &world.token("grace", "operator").await).await;
    let page = grace.page(&format!("/console/payments/{payment}")).await;
    assert!(
        page.contains("EXECUTOR_DATABASE_URL") && page.contains("APPLIED: CREATED → SUCCESSFUL"),
        "{page}"
    );
    service.stop().await;
}

#[tokio::test]
async fn pages_walk_along_indexes_however_many_rows_there_are() {
    let world = World::new().await;
    let service = world.start_with_console(&[]).await;
    let grace = Visitor::signed_in(&service, &world.token("grace", "operator").await).await;
    for _ in 0..4 {
        world.orders(25_000).await;
    }
    // As if it had been for days, half of it before anybody came to see.
    sqlx::query("UPDATE payments.payments SET created_at = now() - random() * interval '30 days', merchant_reference = 'order ' || (random() * 1e9)::bigint")
        .execute(&world.pool)
        .await
        .unwrap();
    sqlx::query(
        "SELECT count(outbox.append('PaymentOrderRequestedEvent', n::text, '{}')) FROM generate_series(1, 30000) AS n",
    )
    .execute(&world.pool)
    .await
    .unwrap();
    sqlx::query("VACUUM ANALYZE").execute(&world.pool).await.unwrap();
    let payment: Uuid = sqlx::query_scalar("SELECT payment_id FROM payments.payments LIMIT 1")
        .fetch_one(&world.pool)
        .await
        .unwrap();
    let read = async || -> i64 {
        // Other sessions report what they have read within a second of being idle.
        tokio::time::sleep(Duration::from_millis(1_500)).await;
        world
            .count(
                "SELECT (sum(coalesce(seq_tup_read, 0)) + sum(coalesce(idx_tup_fetch, 0)))::bigint FROM pg_stat_user_tables
                 WHERE schemaname IN ('payments', 'outbox')",
            )
            .await
    };
    // Statistics of what has been made are there.
    let mut before = read().await;
    for page in [
        "/console/payments".to_owned(),
        "/console/payments?status=NEEDS_REVIEW".to_owned(),
        "/console/payments?status=CREATED&until=2999-01-01T00:00".to_owned(),
        "/console/payments?q=nothing".to_owned(),
        format!("/console/payments?q={payment}"),
        format!("/console/payments?q={}", "f".repeat(32)),
        format!("/console/payments/{payment}"),
        "/console/attention".to_owned(),
    ] {
        grace.page(&page).await;
        let after = read().await;
        // At a glance: 5,000 rows of the audit, 1,000 of each list that is counted; and a session may report several pages at once. 100,000
        // would be a table.
        assert!(after - before < 60_000, "{page} has read {} rows", after - before);
        before = after;
    }
    service.stop().await;
}

/// The answers of pages are counted like any other.
#[tokio::test]
async fn pages_are_measured() {
    let world = World::new().await;
    let service = world.start_with_console(&[]).await;
    let grace = Visitor::signed_in(&service, &world.token("grace", "operator").await).await;
    grace.page("/console/payments").await;
    let line =
        r#"http_server_request_duration_seconds_count{method="GET",route="/console/payments",status="200"}"#;
    assert!(service.metric(line).await >= 1.0);
    service.stop().await;
}
