//! The console without a browser: who gets in, what is refused, what the pages say and what they cost.

mod access;
mod pages;

use reqwest::{Client, Response, header, redirect::Policy};

use crate::world::Running;

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

/// How much operators have asked for.
const ASKED: &str =
    "SELECT (SELECT count(*) FROM payments.commands) + (SELECT count(*) FROM outbox.commands)";
