//! Who gets in, what is refused, and what every answer tells a browser.

use reqwest::{Client, StatusCode, header, redirect::Policy};

use super::{ASKED, Visitor};
use crate::world::World;

/// Every page that needs a session.
const PAGES: [&str; 12] = [
    "/console",
    "/console/",
    "/console/payments",
    "/console/payments/0198f1e4-0000-7000-8000-000000000000",
    "/console/attention",
    "/console/attention/review/0198f1e4-0000-7000-8000-000000000000",
    "/console/attention/quarantine/1/redrive",
    "/console/attention/outbox/requests/0198f1e4-0000-7000-8000-000000000000/discard?relay=relay",
    "/console/outcomes/review/0198f1e4-0000-7000-8000-000000000000",
    "/console/outcomes/quarantine/1",
    "/console/outcomes/outbox/requests/1",
    "/console/nowhere",
];

/// Every form that needs one.
const FORMS: [&str; 4] = [
    "/console/attention/review/0198f1e4-0000-7000-8000-000000000000",
    "/console/attention/quarantine/1/redrive",
    "/console/attention/outbox/requests/0198f1e4-0000-7000-8000-000000000000/discard",
    "/console/sign-out",
];

#[tokio::test]
async fn nobody_sees_or_does_anything_without_a_session() {
    let world = World::new().await;
    let service = world.start_with_console(&[]).await;
    let token = world.token("grace", "operator").await;
    let expired = Visitor::signed_in(&service, &token).await;
    sqlx::query("UPDATE payments.console_sessions SET expires_at = now()")
        .execute(&world.pool)
        .await
        .unwrap();
    let of_a_revoked_token = Visitor::signed_in(&service, &world.token("eve", "operator").await).await;
    assert_eq!(of_a_revoked_token.get("/console/payments").await.status(), 200);
    sqlx::query("SELECT payments.revoke_tokens(NULL, 'eve', 'test')").execute(&world.pool).await.unwrap();
    let signed_out = Visitor::signed_in(&service, &token).await;
    let form_token = signed_out.form_token().await;
    let form_token = form_token.as_str();
    let answer = signed_out.post("/console/sign-out", &[("form_token", form_token)]).await;
    assert!(answer.headers()[header::SET_COOKIE].to_str().unwrap().contains("Max-Age=0"));
    let stranger = Visitor::new(&service);
    let forger = Visitor { cookie: format!("console={}", "ab".repeat(32)), ..Visitor::new(&service) };
    let scribbler = Visitor { cookie: "console=nonsense".to_owned(), ..Visitor::new(&service) };
    // A bearer token is for the API: it opens no page.
    let bearer = Client::builder()
        .redirect(Policy::none())
        .default_headers(
            [(header::AUTHORIZATION, format!("Bearer {token}").parse().unwrap())].into_iter().collect(),
        )
        .build()
        .unwrap();
    let bearer = Visitor { client: bearer, ..Visitor::new(&service) };
    for (who, visitor) in [
        ("expired", &expired),
        ("revoked", &of_a_revoked_token),
        ("signed out", &signed_out),
        ("no cookie", &stranger),
        ("guessed", &forger),
        ("nonsense", &scribbler),
        ("bearer", &bearer),
    ] {
        for page in PAGES {
            let answer = visitor.get(page).await;
            assert_eq!(answer.status(), 303, "{who} {page}");
            let location = answer.headers()[header::LOCATION].to_str().unwrap();
            assert!(location.starts_with("/console/sign-in?next=%2Fconsole"), "{who} {page}: {location}");
            assert_eq!(answer.text().await.unwrap(), "", "{who} {page}");
        }
        for form in FORMS {
            let fields = [("form_token", form_token), ("note", "x"), ("decision", "FAILED")];
            let answer = visitor.post(form, &fields).await;
            assert_eq!(answer.status(), 401, "{who} {form}");
        }
    }
    assert_eq!(world.count(ASKED).await, 0);
    service.stop().await;
}

#[tokio::test]
async fn a_form_of_another_origin_or_session_does_nothing() {
    let world = World::new().await;
    let service = world.start_with_console(&[]).await;
    let token = world.token("grace", "operator").await;
    let (grace, other) =
        (Visitor::signed_in(&service, &token).await, Visitor::signed_in(&service, &token).await);
    let (form_token, others) = (grace.form_token().await, other.form_token().await);
    assert_ne!(form_token, others, "another session of the same token");
    let (form_token, others) = (form_token.as_str(), others.as_str());
    let over_tls = grace.base.replace("http", "https");
    let note = ("note", "x");
    for form in FORMS {
        let right = [("form_token", form_token), note];
        for origin in
            [None, Some("null"), Some("https://evil.example"), Some("http://127.0.0.1"), Some(&over_tls)]
        {
            assert_eq!(grace.post_from(origin, form, &right).await.status(), 403, "{form} from {origin:?}");
        }
        let halved = &form_token[..32];
        for wrong in [
            vec![note],
            vec![("form_token", ""), note],
            vec![("form_token", others), note],
            vec![("form_token", halved), note],
            vec![("form_token", form_token), ("form_token", form_token), note],
        ] {
            assert_eq!(grace.post(form, &wrong).await.status(), 403, "{form} with {wrong:?}");
        }
        // The token is taken from the form alone.
        let in_address =
            format!("{form}{}form_token={form_token}", if form.contains('?') { '&' } else { '?' });
        assert_eq!(grace.post(&in_address, &[note]).await.status(), 403, "{form}");
        let large = "x".repeat(17_000);
        assert_eq!(
            grace.post(form, &[("form_token", form_token), ("note", large.as_str())]).await.status(),
            413,
            "{form}"
        );
    }
    assert_eq!(world.count(ASKED).await, 0);
    assert_eq!(grace.get("/console/payments").await.status(), 200, "nobody was signed out either");
    // A form cannot be asked for as a page, nor a page sent to.
    assert_eq!(grace.get("/console/sign-out").await.status(), 405);
    assert_eq!(grace.post("/console/payments", &[("form_token", form_token)]).await.status(), 405);
    service.stop().await;
}

#[tokio::test]
async fn operators_sign_in_and_others_do_not() {
    let world = World::new().await;
    let service = world.start_with_console(&[]).await;
    let (operator, merchant) =
        (world.token("grace", "operator").await, world.token("shop-9", "merchant").await);
    let visitor = Visitor::new(&service);
    let refused = async |token: &str| {
        let answer = visitor.sign_in(token).await;
        let status = answer.status();
        assert!(answer.headers().get(header::SET_COOKIE).is_none());
        (status, answer.text().await.unwrap())
    };
    let (status, page) = refused(&merchant).await;
    assert!(
        status == StatusCode::FORBIDDEN && page.contains("merchant") && !page.contains(&merchant),
        "{page}"
    );
    let (status, page) = refused("po_nobodys").await;
    assert!(status == StatusCode::FORBIDDEN && !page.contains("po_nobodys"), "{page}");
    for origin in [None, Some("https://evil.example")] {
        let answer = visitor.post_from(origin, "/console/sign-in", &[("token", &operator)]).await;
        assert_eq!(answer.status(), 403, "{origin:?}");
        assert!(answer.headers().get(header::SET_COOKIE).is_none());
    }
    assert_eq!(visitor.post("/console/sign-in", &[("tok", "x")]).await.status(), 400);

    let answer =
        visitor.post("/console/sign-in", &[("token", &operator), ("next", "/console/attention?x=1")]).await;
    assert_eq!(
        (answer.status(), answer.headers()[header::LOCATION].to_str().unwrap()),
        (StatusCode::SEE_OTHER, "/console/attention?x=1")
    );
    let cookie = answer.headers()[header::SET_COOKIE].to_str().unwrap();
    for part in ["HttpOnly", "SameSite=Strict", "Path=/console", "Max-Age=28800"] {
        assert!(cookie.contains(part), "{part} in {cookie}");
    }
    let id = cookie.split(['=', ';']).nth(1).unwrap();
    assert_eq!(id.len(), 64);
    let stored: Vec<u8> = sqlx::query_scalar("SELECT session_sha256 FROM payments.console_sessions")
        .fetch_one(&world.pool)
        .await
        .unwrap();
    assert_ne!(hex::encode(&stored), id, "the database does not know it");
    let away = visitor
        .post("/console/sign-in", &[("token", &operator), ("next", "https://evil.example/console/")])
        .await;
    assert_eq!(away.headers()[header::LOCATION], "/console/payments");
    // One token has a bounded number of sessions; the oldest go.
    for number in 0..25 {
        sqlx::query(
            "INSERT INTO payments.console_sessions (session_sha256, token_id, expires_at)
             SELECT sha256($1::text::bytea), token_id, now() + interval '1 hour' FROM payments.api_tokens WHERE caller = 'grace'",
        )
        .bind(number.to_string())
        .execute(&world.pool)
        .await
        .unwrap();
    }
    Visitor::signed_in(&service, &operator).await;
    assert_eq!(world.count("SELECT count(*) FROM payments.console_sessions").await, 20);
    service.stop().await;
}

#[tokio::test]
async fn whoever_tries_to_sign_in_again_and_again_has_to_wait() {
    let world = World::new().await;
    let service = world.start_with_console(&[]).await;
    let operator = world.token("grace", "operator").await;
    let visitor = Visitor::new(&service);
    for _ in 0..10 {
        assert_eq!(visitor.sign_in("po_nobodys").await.status(), 403);
    }
    let answer = visitor.sign_in(&operator).await;
    assert_eq!(answer.status(), 429);
    let wait: u64 = answer.headers()[header::RETRY_AFTER].to_str().unwrap().parse().unwrap();
    assert!((1..=7).contains(&wait), "{wait}");
    service.stop().await;
}

#[tokio::test]
async fn every_answer_says_what_a_browser_may_do_with_it() {
    let world = World::new().await;
    let service = world.start_with_console(&[]).await;
    let grace = Visitor::signed_in(&service, &world.token("grace", "operator").await).await;
    let stranger = Visitor::new(&service);
    let sheet = {
        let page = grace.page("/console/payments").await;
        page.split_once(r#"<link rel="stylesheet" href=""#).unwrap().1.split('"').next().unwrap().to_owned()
    };
    for page in PAGES.into_iter().chain(["/console/sign-in", &sheet]) {
        for visitor in [&grace, &stranger] {
            let answer = visitor.get(page).await;
            let headers = answer.headers();
            let policy = headers["content-security-policy"].to_str().unwrap();
            assert!(
                policy.starts_with("default-src 'none'; style-src 'self'; form-action 'self'"),
                "{page}: {policy}"
            );
            assert!(!policy.contains("unsafe") && !policy.contains("script"), "{page}: {policy}");
            assert_eq!(headers["x-content-type-options"], "nosniff", "{page}");
            assert_eq!(headers["x-frame-options"], "DENY", "{page}");
            assert_eq!(headers["referrer-policy"], "same-origin", "{page}");
            let kept = if page == sheet { "public, max-age=31536000, immutable" } else { "no-store" };
            assert_eq!(headers["cache-control"], kept, "{page}");
        }
    }
    let answer = grace.get(&sheet).await;
    assert_eq!(answer.headers()["content-type"], "text/css; charset=utf-8");
    assert!(answer.text().await.unwrap().contains("prefers-color-scheme"));
    let answer = grace.get("/console/nowhere").await;
    assert_eq!(answer.status(), 404);
    assert!(answer.text().await.unwrap().contains("<h1>Not found</h1>"));
    for missing in [
        "payments/x",
        "payments/0198f1e4-0000-7000-8000-000000000000",
        "outcomes/quarantine/1",
        "outcomes/quarantine/x",
        "attention/quarantine/1/redrive",
        "attention/quarantine/1/replay",
        "attention/outbox/other/x/redrive",
        "attention/review/0198f1e4-0000-7000-8000-000000000000",
        "attention/review/x",
        "attention/outbox/results/0198f1e4-0000-7000-8000-000000000000/redrive",
    ] {
        let answer = grace.get(&format!("/console/{missing}")).await;
        assert_eq!(answer.status(), 404, "{missing}");
        assert!(answer.headers()["content-type"].to_str().unwrap().starts_with("text/html"), "{missing}");
    }
    service.stop().await;
}

#[tokio::test]
async fn without_a_way_to_its_database_there_is_no_console() {
    let world = World::new().await;
    let service = world.start(&[]).await;
    let stranger = Visitor::new(&service);
    for page in PAGES.into_iter().chain(["/console/sign-in"]) {
        let answer = stranger.get(page).await;
        assert_eq!(answer.status(), 404, "{page}");
        assert_eq!(answer.headers()["content-type"], "application/problem+json", "{page}");
    }
    service.stop().await;
}

#[tokio::test]
async fn the_consoles_role_may_do_what_the_console_does_and_nothing_else() {
    let world = World::new().await;
    let console = world.as_role("console").await;
    for forbidden in [
        "SELECT payments.create_token('x', 'operator', sha256('x'), NULL)",
        "SELECT payments.revoke_tokens(1, NULL, NULL)",
        "UPDATE payments.payments SET status = 'FAILED'",
        "UPDATE payments.payment_orders SET state = 'FAILED'",
        "UPDATE payments.quarantine SET outcome = 'DISCARDED', settled_at = now()",
        "INSERT INTO payments.commands (kind, selection, operator, note, requested_by) VALUES ('redrive', '{}', 'x', 'x', 'x')",
        "DELETE FROM payments.payment_order_transitions",
        "UPDATE payments.console_sessions SET expires_at = 'infinity'",
        "INSERT INTO outbox.events (slot, event_id, event_type, aggregate_id, payload) VALUES (0, gen_random_uuid(), 'x', 'x', '{}')",
        "SELECT outbox.append('x', 'x', '{}')",
        "CREATE TABLE payments.mine ()",
    ] {
        let error = sqlx::query(forbidden).execute(&console).await.unwrap_err();
        let code = error.as_database_error().and_then(|error| error.code().map(std::borrow::Cow::into_owned));
        assert_eq!(code.as_deref(), Some("42501"), "{forbidden}: {error}");
    }
    for allowed in [
        "SELECT payments.request('discard', '{\"ids\": [1]}', 'x', 'x')",
        "SELECT outbox.request('relay', 'redrive', '{}', 'x', 'x')",
    ] {
        sqlx::query(allowed).execute(&console).await.unwrap();
    }
    // Sessions are made by the console alone: who reads everything, or owns the service's login, cannot let himself in.
    for role in ["operator", "payment_service"] {
        let other = world.as_role(role).await;
        let forged = "INSERT INTO payments.console_sessions SELECT sha256('x'), token_id, now(), now() + interval '1 day' FROM payments.api_tokens";
        let error = sqlx::query(forged).execute(&other).await.unwrap_err();
        assert!(error.to_string().contains("permission denied"), "{role}: {error}");
    }
}
