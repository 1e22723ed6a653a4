use std::collections::BTreeSet;

use reqwest::{Client, Method};
use serde_json::json;
use uuid::Uuid;

use crate::{
    client::{document, expect_problem, get, pay, post_to, send},
    world::{OPERATOR_TOKEN, OTHER_TOKEN, Running, TOKEN, World, order_body},
};

/// Every route, and who may use it: a merchant, an operator. What is open to all is beside it.
const ROUTES: &[(&str, &str, bool, bool)] = &[
    ("GET", "/v1/payments", true, true),
    ("POST", "/v1/payments", true, false),
    ("GET", "/v1/payments/{payment_id}", true, true),
    ("POST", "/v1/payments/{payment_id}/retry", true, false),
    ("GET", "/v1/payment-orders/{payment_order_id}", true, true),
    ("POST", "/v1/payment-orders/{payment_order_id}/resolve", false, true),
];
const OPEN: &[(&str, &str)] = &[("GET", "/v1/openapi.json")];

async fn new_token(world: &World, caller: &str, role: &str, token: &str) {
    sqlx::query("SELECT payments.create_token($1, $2, sha256($3), 'test')")
        .bind(caller)
        .bind(role)
        .bind(token.as_bytes())
        .execute(&world.pool)
        .await
        .unwrap();
}

#[tokio::test]
async fn every_route_is_closed_to_everybody_but_those_whose_it_is() {
    let world = World::new().await;
    let service = world.start(&[]).await;
    let origin = format!("http://{}", service.api);
    let mut documented = BTreeSet::new();
    for (path, item) in document(origin.clone()).await["paths"].as_object().unwrap() {
        documented.extend(
            item.as_object().unwrap().keys().map(|method| (method.to_ascii_uppercase(), path.clone())),
        );
    }
    let listed = ROUTES.iter().map(|(method, path, ..)| (*method, *path)).chain(OPEN.iter().copied());
    let listed: BTreeSet<_> = listed.map(|(method, path)| (method.to_owned(), path.to_owned())).collect();
    assert_eq!(documented, listed, "the document and this table name the same routes");

    let revoked = format!("po_{}", "r".repeat(43));
    for role in ["merchant", "operator"] {
        new_token(&world, &format!("revoked-{role}"), role, &revoked.replace('r', &role[..1])).await;
        sqlx::query("SELECT payments.revoke_tokens(NULL, $1, 'test')")
            .bind(format!("revoked-{role}"))
            .execute(&world.pool)
            .await
            .unwrap();
    }
    let unknown = format!("po_{}", "u".repeat(43));
    for (method, path, merchant, operator) in ROUTES {
        let path = path.replace("{payment_id}", &Uuid::now_v7().to_string());
        let path = path.replace("{payment_order_id}", &Uuid::now_v7().to_string());
        let method: Method = method.parse().unwrap();
        let request = || {
            let request = Client::new().request(method.clone(), format!("{origin}{path}"));
            if method == Method::POST {
                request.header("Idempotency-Key", "k").json(&json!({}))
            } else {
                request
            }
        };
        expect_problem(request(), 401, "unauthorized").await;
        let merchants = revoked.replace('r', "m");
        let operators = revoked.replace('r', "o");
        for wrong in ["", "wrong", "local-token", &unknown, &merchants, &operators] {
            let answer = expect_problem(request().bearer_auth(wrong), 401, "unauthorized").await;
            assert_eq!(answer.header("www-authenticate"), Some("Bearer"));
        }
        expect_problem(request().basic_auth("x", Some(TOKEN)), 401, "unauthorized").await;
        for (token, allowed) in [(TOKEN, merchant), (OPERATOR_TOKEN, operator)] {
            let answer = send(request().bearer_auth(token)).await;
            assert_ne!(answer.status, 401, "{method} {path}");
            assert_eq!(answer.problem() != "forbidden", *allowed, "{method} {path}: {answer:?}");
        }
    }
    for (_, path) in OPEN {
        assert_eq!(send(Client::new().get(format!("{origin}{path}"))).await.status, 200);
    }
    service.stop().await;
}

/// Who sees what of a payment: status of payment, of order, of list with so many payments in it.
async fn seen(service: &Running, (payment, order): (Uuid, Uuid), token: &str) -> (u16, u16, usize) {
    let listed = get(service, "/v1/payments", token).await;
    (
        get(service, &format!("/v1/payments/{payment}"), token).await.status,
        get(service, &format!("/v1/payment-orders/{order}"), token).await.status,
        listed.json["payments"].as_array().unwrap().len(),
    )
}

#[tokio::test]
async fn a_merchant_sees_its_own_payments_and_an_operator_sees_all() {
    let world = World::new().await;
    let service = world.start(&[]).await;
    let paid = pay(&service, "key").await;
    assert_eq!(seen(&service, paid, TOKEN).await, (200, 200, 1));
    assert_eq!(seen(&service, paid, OTHER_TOKEN).await, (404, 404, 0));
    assert_eq!(seen(&service, paid, OPERATOR_TOKEN).await, (200, 200, 1));
    let shown = get(&service, &format!("/v1/payments/{}", paid.0), OPERATOR_TOKEN).await;
    assert_eq!(shown.json["caller"], "shop");
    // Nor does anybody act upon another's.
    let retry = format!("/v1/payments/{}/retry", paid.0);
    expect_problem(post_to(&service, &retry, OTHER_TOKEN, "k").json(&json!({})), 404, "not-found").await;
    expect_problem(
        post_to(&service, "/v1/payments", OPERATOR_TOKEN, "k").json(&order_body()),
        403,
        "forbidden",
    )
    .await;
    assert_eq!(world.count("SELECT count(*) FROM payments.payment_orders").await, 1);
    service.stop().await;
}

#[tokio::test]
async fn tokens_do_not_go_over_the_network_by_an_oversight() {
    let world = World::new().await;
    for address in ["0.0.0.0:0", "[::]:0", "192.0.2.1:80"] {
        let refused = World::try_start(world.arguments(&["--listen", address])).await.expect_err(address);
        assert!(refused.to_string().contains("--allow-plaintext"), "{refused:#}");
    }
    let service = World::start_with(world.arguments(&["--listen", "0.0.0.0:0", "--allow-plaintext"])).await;
    service.stop().await;
    world.start(&["--listen", "127.0.0.2:0"]).await.stop().await;
}
