use reqwest::{Client, StatusCode};
use uuid::Uuid;

use crate::world::{OPERATOR_TOKEN, Running, TOKEN, World};

/// What a request for a payment that is not there is answered with this token.
async fn asked(service: &Running, token: &str) -> StatusCode {
    let url = format!("http://{}/v1/payments/{}", service.api, Uuid::now_v7());
    Client::new().get(url).bearer_auth(token).send().await.unwrap().status()
}

#[tokio::test]
async fn a_token_works_from_its_creation_to_its_revocation() {
    let world = World::new().await;
    let service = world.start(&[]).await;
    let (code, printed) = world
        .operate(&["token", "create", "--caller", "new-shop", "--role", "merchant", "--operator", "ada"])
        .await;
    assert_eq!((code, printed.lines().count()), (0, 1), "{printed}");
    let token = printed.trim_end();
    assert!(token.starts_with("po_") && token.len() == 46, "{token}");
    assert_eq!(asked(&service, token).await, StatusCode::NOT_FOUND);
    assert_eq!(asked(&service, &token.replace("po_", "po-")).await, StatusCode::UNAUTHORIZED);
    let mut guess = token.to_owned();
    guess.replace_range(45.., if token.ends_with('A') { "B" } else { "A" });
    assert_eq!(asked(&service, &guess).await, StatusCode::UNAUTHORIZED);

    // A second one of the same caller, of which the first knows nothing.
    let second = world.operate_json(&["token", "create", "--caller", "new-shop", "--role", "merchant"]).await;
    let second = (second["token_id"].to_string(), second["token"].as_str().unwrap().to_owned());
    assert_eq!(asked(&service, &second.1).await, StatusCode::NOT_FOUND);
    let listed = world.operate_json(&["token", "list", "--caller", "new-shop"]).await;
    let made_by: Vec<&str> =
        listed.as_array().unwrap().iter().map(|row| row["created_by"].as_str().unwrap()).collect();
    assert_eq!(made_by, ["ada", "operator"], "whoever says nothing is the database's role");
    let shown = world.operate(&["token", "list"]).await.1;
    for text in [shown, listed.to_string()] {
        assert!(!text.contains(token) && !text.contains(&second.1), "{text}");
    }

    assert_eq!(world.operate(&["token", "revoke", "--id", &second.0]).await.0, 0);
    for _ in 0..300 {
        if asked(&service, &second.1).await == StatusCode::UNAUTHORIZED {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    assert_eq!(asked(&service, &second.1).await, StatusCode::UNAUTHORIZED);
    assert_eq!(asked(&service, token).await, StatusCode::NOT_FOUND, "the other one goes on");
    assert_ne!(world.operate(&["token", "revoke", "--id", &second.0]).await.0, 0, "only once");
    assert_eq!(world.operate(&["token", "revoke", "--caller", "new-shop"]).await.0, 0);
    assert_ne!(world.operate(&["token", "revoke", "--caller", "new-shop"]).await.0, 0);
    for wrong in [
        &["token", "create", "--caller", "a/b", "--role", "merchant"][..],
        &["token", "create", "--caller", "shop", "--role", "admin"],
        &["token", "create", "--caller", "shop"],
        &["token", "revoke"],
    ] {
        assert_eq!(world.operate(wrong).await.0, 2, "{wrong:?}");
    }
    assert_eq!(world.count("SELECT count(*) FROM payments.api_tokens WHERE caller = 'new-shop'").await, 2);
    service.stop().await;
}

/// 401 would tell a client to throw its token away.
#[tokio::test]
async fn while_the_database_is_away_no_token_is_called_wrong() {
    let world = World::new().await;
    // Nobody listens there. Of an argument that is given twice the last one would be refused, so the first is replaced.
    let mut arguments = world.arguments(&[]);
    let url = arguments.iter().position(|argument| argument == "--database-url").unwrap() + 1;
    arguments[url] = "postgres://payment_service@127.0.0.1:9/payments".to_owned();
    let service = World::start_with(arguments).await;
    let answers = futures::future::join_all(
        [TOKEN, OPERATOR_TOKEN, &"po_".chars().chain("x".repeat(43).chars()).collect::<String>()]
            .map(|token| asked(&service, token)),
    )
    .await;
    assert_eq!(answers, [StatusCode::SERVICE_UNAVAILABLE; 3]);
    assert_eq!(asked(&service, "no token at all").await, StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn a_tokens_row_changes_once_and_is_never_forgotten() {
    let world = World::new().await;
    let mut owner = world.pool.acquire().await.unwrap();
    let refused = async |connection: &mut sqlx::PgConnection, sql: &'static str| {
        sqlx::query(sql).execute(connection).await.expect_err(sql).to_string()
    };
    for sql in [
        "UPDATE payments.api_tokens SET role = 'operator' WHERE caller = 'shop'",
        "UPDATE payments.api_tokens SET caller = 'other', revoked_at = now(), revoked_by = 'x' WHERE caller = 'shop'",
        "DELETE FROM payments.api_tokens",
        "TRUNCATE payments.api_tokens CASCADE",
    ] {
        assert!(refused(&mut owner, sql).await.contains("append-only"), "{sql}");
    }
    sqlx::query("SELECT payments.revoke_tokens(NULL, 'shop', 'ada')").execute(&mut *owner).await.unwrap();
    assert_eq!(world.count("SELECT count(*) FROM payments.api_tokens WHERE revoked_by = 'ada'").await, 1);
    let back = "UPDATE payments.api_tokens SET revoked_at = NULL, revoked_by = NULL WHERE caller = 'shop'";
    assert!(refused(&mut owner, back).await.contains("append-only"));
    sqlx::query("SELECT payments.revoke_tokens(NULL, NULL, 'ada')").execute(&mut *owner).await.unwrap();
    assert_eq!(
        world.count("SELECT count(*) FROM payments.api_tokens WHERE revoked_at IS NULL").await,
        2,
        "nothing named, nothing revoked"
    );
}
