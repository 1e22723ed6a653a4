use reqwest::{Client, Url};
use serde_json::Value as Json;
use uuid::Uuid;

use crate::{
    client::{Answer, get, pay, post, send},
    world::{OPERATOR_TOKEN, OTHER_TOKEN, Running, TOKEN, TRANSITIONS, World, order_body, result, with},
};

fn ids(page: &Answer) -> Vec<Uuid> {
    assert_eq!(page.status, 200, "{page:?}");
    let payments = page.json["payments"].as_array().unwrap();
    payments.iter().map(|payment| payment["payment_id"].as_str().unwrap().parse().unwrap()).collect()
}

async fn found(service: &Running, token: &str, query: &[(&str, &str)]) -> Vec<Uuid> {
    let url = Url::parse_with_params(&format!("http://{}/v1/payments", service.api), query).unwrap();
    ids(&send(Client::new().get(url).bearer_auth(token)).await)
}

#[tokio::test]
async fn pages_show_every_payment_once_whatever_is_made_meanwhile() {
    let world = World::new().await;
    let service = world.start(&[]).await;
    let mut made = Vec::new();
    for number in 0..25 {
        made.push(pay(&service, &format!("key-{number}")).await.0);
    }
    // Several of one moment.
    sqlx::query("UPDATE payments.payments SET created_at = (SELECT min(created_at) FROM payments.payments) WHERE payment_id = ANY($1)")
        .bind(&made[..9])
        .execute(&world.pool)
        .await
        .unwrap();
    made[..9].sort_unstable();
    made.reverse();
    let mut seen = Vec::new();
    let mut path = "/v1/payments?limit=4".to_owned();
    for round in 0.. {
        let page = get(&service, &path, TOKEN).await;
        let here = ids(&page);
        assert!(here.len() <= 4);
        seen.extend(here);
        let Some(cursor) = page.json["next_cursor"].as_str() else { break };
        path = format!("/v1/payments?limit=4&cursor={cursor}");
        pay(&service, &format!("meanwhile-{round}")).await;
    }
    assert_eq!(seen, made, "newest first; of one moment by id");
    // Nothing is behind the last one, also where a page is just full.
    let page = get(&service, "/v1/payments?limit=200", TOKEN).await;
    assert_eq!(page.json["next_cursor"], Json::Null);
    let all = ids(&page).len();
    let page = get(&service, &format!("/v1/payments?limit={all}"), TOKEN).await;
    assert_eq!((page.json["next_cursor"].clone(), ids(&page).len()), (Json::Null, all));
    service.stop().await;
}

/// Which of the indexes have been used.
const USED: &str = "SELECT count(*) FROM pg_stat_user_indexes WHERE schemaname = 'payments' AND idx_scan > 0
        AND indexrelname IN ('payments_of_caller', 'payments_newest', 'payments_merchant_reference', 'payments_trace',
                             'payments_unsettled', 'payment_order_transitions_psp_reference')";

#[tokio::test]
async fn payments_are_found_by_what_people_know_of_them() {
    let world = World::new().await;
    let service = world.start(&[]).await;
    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    let mut body = order_body();
    body["merchant_reference"] = "Bestellung 1/ü".into();
    let request = post(&service, "one").header("traceparent", format!("00-{trace}-00f067aa0ba902b7-01"));
    let one = send(request.json(&body)).await;
    let (one, one_order) = (one.id("payment_id"), one.id("payment_order_id"));
    let (two, two_order) = pay(&service, "two").await;
    let others = send(post(&service, "three").json(&body).header("x", "y")).await.id("payment_id");
    let request = Client::new().post(format!("http://{}/v1/payments", service.api));
    let foreign = send(request.bearer_auth(OTHER_TOKEN).header("Idempotency-Key", "k").json(&body))
        .await
        .id("payment_id");

    for (order, status, reference) in [
        (one_order, "SUCCESSFUL", "pi_one"),
        (one_order, "SUCCESSFUL", "pi_second"),
        (two_order, "FAILED", "pi_two"),
    ] {
        let before = world.count(TRANSITIONS).await;
        world.send(&with(result(order, status), |event| event.reference = Some(reference.into()))).await;
        world.until(TRANSITIONS, before + 1).await;
    }
    let shop = async |query: &[(&str, &str)]| found(&service, TOKEN, query).await;
    let operator = async |query: &[(&str, &str)]| found(&service, OPERATOR_TOKEN, query).await;
    assert_eq!(operator(&[]).await, [foreign, others, two, one]);
    assert_eq!(shop(&[]).await, [others, two, one]);
    assert_eq!(shop(&[("psp_reference", "pi_one")]).await, [one]);
    assert_eq!(shop(&[("psp_reference", "pi_second")]).await, [one], "the second charge is found as well");
    assert_eq!(found(&service, OTHER_TOKEN, &[("psp_reference", "pi_one")]).await, Vec::<Uuid>::new());
    assert_eq!(shop(&[("psp_reference", "pi_")]).await, Vec::<Uuid>::new());
    assert_eq!(shop(&[("trace_id", trace)]).await, [one]);
    assert_eq!(operator(&[("trace_id", trace)]).await, [one]);
    assert_eq!(operator(&[("status", "NEEDS_REVIEW")]).await, [one]);
    assert_eq!(shop(&[("merchant_reference", "Bestellung 1/ü")]).await, [others, one]);
    assert_eq!(operator(&[("merchant_reference", "Bestellung 1/ü")]).await, [foreign, others, one]);
    assert_eq!(shop(&[("status", "NEEDS_REVIEW")]).await, [one]);
    assert_eq!(shop(&[("status", "FAILED")]).await, [two]);
    assert_eq!(shop(&[("status", "CREATED")]).await, [others]);
    assert_eq!(
        operator(&[("status", "CREATED"), ("merchant_reference", "Bestellung 1/ü")]).await,
        [foreign, others]
    );
    let at = get(&service, &format!("/v1/payments/{two}"), TOKEN).await.json["created_at"]
        .as_str()
        .unwrap()
        .to_owned();
    assert_eq!(shop(&[("created_from", &at)]).await, [others, two]);
    assert_eq!(shop(&[("created_to", &at)]).await, [one]);
    assert_eq!(shop(&[("created_from", &at), ("created_to", &at)]).await, Vec::<Uuid>::new());

    for query in [
        "status=PAID",
        "trace_id=xyz",
        "created_from=yesterday",
        "limit=0",
        "limit=201",
        "limit=x",
        "cursor=x",
        "unknown=1",
        "psp_reference=a&psp_reference=b",
        "merchant_reference=%00",
        "psp_reference=",
    ] {
        let answer = get(&service, &format!("/v1/payments?{query}"), TOKEN).await;
        assert_eq!((answer.status, answer.problem()), (422, "invalid-request"), "{query}: {answer:?}");
    }
    service.stop().await;

    // The statistics of sessions that have ended come soon.
    world.until(USED, 6).await;
}
