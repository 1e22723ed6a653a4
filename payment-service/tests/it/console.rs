//! The console without a browser: who gets in, what is refused, what the pages say and what they cost.

use std::time::Duration;

use reqwest::{Client, Response, StatusCode, header, redirect::Policy};
use uuid::Uuid;

use crate::world::{Running, World, result, with};

/// An operator's browser, as far as a server can tell.
struct Visitor {
    client: Client,
    base: String,
    cookie: String,
}

impl Visitor {
    fn new(service: &Running) -> Self {
        let client = Client::builder().redirect(Policy::none()).build().unwrap();
        Self { client, base: format!("http://{}", service.api), cookie: String::new() }
    }

    async fn signed_in(service: &Running, token: &str) -> Self {
        let mut visitor = Self::new(service);
        let answer = visitor.sign_in(token).await;
        assert_eq!(answer.status(), 303, "{}", answer.text().await.unwrap());
        let cookie = answer.headers()[header::SET_COOKIE].to_str().unwrap();
        visitor.cookie = cookie.split(';').next().unwrap().to_owned();
        visitor
    }

    async fn get(&self, path: &str) -> Response {
        let request = self.client.get(format!("{}{path}", self.base)).header(header::COOKIE, &self.cookie);
        request.send().await.unwrap()
    }

    /// The page's text. It has to be there.
    async fn page(&self, path: &str) -> String {
        let answer = self.get(path).await;
        let (status, text) = (answer.status(), answer.text().await.unwrap());
        assert_eq!(status, 200, "{path}: {text}");
        text
    }

    async fn post_from(&self, origin: Option<&str>, path: &str, form: &[(&str, &str)]) -> Response {
        let mut request =
            self.client.post(format!("{}{path}", self.base)).header(header::COOKIE, &self.cookie).form(form);
        if let Some(origin) = origin {
            request = request.header(header::ORIGIN, origin);
        }
        request.send().await.unwrap()
    }

    async fn post(&self, path: &str, form: &[(&str, &str)]) -> Response {
        self.post_from(Some(&self.base), path, form).await
    }

    async fn sign_in(&self, token: &str) -> Response {
        self.post("/console/sign-in", &[("token", token)]).await
    }

    /// What this session's forms have in them.
    async fn form_token(&self) -> String {
        let page = self.page("/console/payments").await;
        let (_, behind) = page.split_once(r#"name="form_token" value=""#).unwrap();
        behind.split('"').next().unwrap().to_owned()
    }
}

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

const ASKED: &str =
    "SELECT (SELECT count(*) FROM payments.commands) + (SELECT count(*) FROM outbox.commands)";

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
