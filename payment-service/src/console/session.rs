//! Signing in and out, and the guard in front of every page.
//!
//! A session is 256 random bits. The browser has them in a cookie, the database has their hash. Each page looks the session up together
//! with its token, so that a token that is revoked ends its sessions at once. A form is taken only from this origin (`Origin`), and with
//! the session's form token in it: the browser's own rules for cookies (`SameSite=Strict`) are the third guard.

use std::{fmt, net::SocketAddr, time::Duration};

use anyhow::{Context as _, ensure};
use askama::Template;
use axum::{
    Extension, Form,
    body::{Body, to_bytes},
    extract::{
        ConnectInfo, Query, Request, State,
        rejection::{FormRejection, QueryRejection},
    },
    http::{HeaderMap, HeaderValue, Method, StatusCode, header},
    middleware::Next,
    response::{IntoResponse, Redirect, Response},
};
use cookie::{Cookie, SameSite};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

use super::{
    Console, FORM_MAX_BYTES,
    pages::{Frame, Room, Trouble, address, message, page},
};
use crate::{
    store::console as store,
    tokens::{Role, hash},
};

// -------------------------------------------------------------------------------------------------------------- origin

/// Where the console is reached: what browsers send as `Origin` with its forms.
#[derive(Clone, Debug)]
pub(super) struct Origin {
    accepted: Vec<String>,
    /// Over TLS: the cookie is for that alone.
    secure: bool,
}

impl Origin {
    /// The origin that is set; without one, loopback under its usual names.
    pub(super) fn new(set: Option<&str>, listen: SocketAddr) -> anyhow::Result<Self> {
        let Some(origin) = set else {
            ensure!(
                listen.ip().is_loopback(),
                "CONSOLE_ORIGIN is needed: the service listens on {listen}, and how browsers call that is not known"
            );
            let port = listen.port();
            let names = ["127.0.0.1", "localhost", "[::1]"];
            let accepted = names.iter().map(|name| format!("http://{name}:{port}")).collect();
            return Ok(Self { accepted, secure: false });
        };
        let uri: axum::http::Uri =
            origin.parse().context("CONSOLE_ORIGIN: expected something like https://console.example.com")?;
        let host = uri.host().unwrap_or_default();
        let scheme = uri.scheme_str().unwrap_or_default();
        ensure!(
            !host.is_empty() && uri.path_and_query().is_none_or(|path| path == "/") && !origin.ends_with('/'),
            "CONSOLE_ORIGIN: expected scheme, host and port alone, something like https://console.example.com"
        );
        let loopback = host == "localhost"
            || host.trim_matches(['[', ']']).parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback());
        ensure!(
            scheme == "https" || (scheme == "http" && loopback),
            "CONSOLE_ORIGIN: https, or http on loopback: whoever can read along would be signed in too"
        );
        Ok(Self { accepted: vec![origin.to_owned()], secure: scheme == "https" })
    }

    fn is(&self, headers: &HeaderMap) -> bool {
        let mut origins = headers.get_all(header::ORIGIN).iter();
        let (first, second) = (origins.next(), origins.next());
        second.is_none()
            && first.is_some_and(|origin| self.accepted.iter().any(|known| origin == known.as_str()))
    }

    fn cookie_name(&self) -> &'static str {
        // The prefix has browsers refuse the cookie unless it is of this host alone, and came over TLS.
        if self.secure { "__Host-console" } else { "console" }
    }

    /// The cookie of a session; without one, what makes the browser forget it.
    fn cookie(&self, session: Option<(&SessionId, Duration)>) -> HeaderValue {
        let (value, lifetime) = match session {
            Some((id, lifetime)) => (hex::encode(id.0), lifetime),
            None => (String::new(), Duration::ZERO),
        };
        let seconds = i64::try_from(lifetime.as_secs()).unwrap_or(i64::MAX);
        let cookie = Cookie::build((self.cookie_name(), value))
            .path(if self.secure { "/" } else { "/console" })
            .http_only(true)
            .same_site(SameSite::Strict)
            .secure(self.secure)
            .max_age(time::Duration::seconds(seconds));
        // Names and hexadecimal digits: always a header.
        HeaderValue::from_str(&cookie.to_string()).unwrap_or(HeaderValue::from_static(""))
    }

    /// The session in the cookie, if there is one that could be ours.
    fn session(&self, headers: &HeaderMap) -> Option<SessionId> {
        let texts = headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok());
        let mut cookies = texts.flat_map(Cookie::split_parse).flatten();
        let cookie = cookies.find(|cookie| cookie.name() == self.cookie_name())?;
        let mut id = [0; 32];
        hex::decode_to_slice(cookie.value(), &mut id).ok()?;
        Some(SessionId(id))
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.accepted.first().map_or("", String::as_str))
    }
}

// ------------------------------------------------------------------------------------------------------------- session

/// What the browser knows. Never written anywhere.
#[derive(Clone, Copy)]
pub(super) struct SessionId([u8; 32]);

impl SessionId {
    fn new() -> Result<Self, getrandom::Error> {
        let mut id = [0; 32];
        getrandom::fill(&mut id)?;
        Ok(Self(id))
    }

    /// What the database knows.
    fn hash(&self) -> [u8; 32] {
        Sha256::digest(self.0).into()
    }

    /// What a form of this session has in it: made of the session, so that it need not be stored, and says nothing about it.
    fn form_token(&self) -> String {
        hex::encode(Sha256::new_with_prefix(b"payment-outbox console form\0").chain_update(self.0).finalize())
    }
}

impl fmt::Debug for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[set]")
    }
}

/// Who is looking.
#[derive(Clone, Debug)]
pub(super) struct SignedIn {
    /// What an action is recorded under.
    pub(super) operator: String,
    pub(super) form_token: String,
    session: SessionId,
}

/// Lets through whoever is signed in, and forms that were made for that.
pub(super) async fn require(State(console): State<Console>, mut request: Request, next: Next) -> Response {
    let parts = &console.0;
    let reads = matches!(*request.method(), Method::GET | Method::HEAD);
    if !reads && !parts.origin.is(request.headers()) {
        return from_elsewhere(&console);
    }
    let Some(session) = parts.origin.session(request.headers()) else {
        return not_signed_in(&console, &request);
    };
    let operator = match store::operator_of(&parts.payments, session.hash()).await {
        Ok(Some(operator)) => operator,
        Ok(None) => return not_signed_in(&console, &request),
        Err(error) => {
            let trouble = Trouble::of(&error);
            return message(&console, StatusCode::SERVICE_UNAVAILABLE, "Not now", trouble.words());
        }
    };
    let who = SignedIn { operator, form_token: session.form_token(), session };
    if !reads {
        let (head, body) = request.into_parts();
        let Ok(bytes) = to_bytes(body, FORM_MAX_BYTES).await else {
            return message(
                &console,
                StatusCode::PAYLOAD_TOO_LARGE,
                "The form is too large",
                "Nothing was done.",
            );
        };
        let mut tokens = form_urlencoded::parse(&bytes).filter(|(name, _)| name == "form_token");
        let (first, second) = (tokens.next(), tokens.next());
        let equal = first.is_some_and(|(_, token)| token.as_bytes().ct_eq(who.form_token.as_bytes()).into());
        if !equal || second.is_some() {
            return from_elsewhere(&console);
        }
        request = Request::from_parts(head, Body::from(bytes));
    }
    request.extensions_mut().insert(who);
    next.run(request).await
}

fn from_elsewhere(console: &Console) -> Response {
    tracing::warn!("a form was refused: it is not the console's own, or of another session");
    let text = "The form was not one of this session, or the browser did not say where it came from. Nothing was done.";
    message(console, StatusCode::FORBIDDEN, "Refused", text)
}

fn not_signed_in(console: &Console, request: &Request) -> Response {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let text = "You are not signed in any more. Nothing was done: sign in, and do it again.";
        return message(console, StatusCode::UNAUTHORIZED, "Sign in first", text);
    }
    let wanted = request.uri().path_and_query().map_or("", axum::http::uri::PathAndQuery::as_str);
    Redirect::to(&address("/console/sign-in", &[("next", wanted)])).into_response()
}

// ---------------------------------------------------------------------------------------------------------- in and out

#[derive(Template)]
#[template(path = "console/sign_in.html")]
struct SignInPage {
    frame: Frame,
    refused: Option<&'static str>,
    next: String,
}

fn sign_in_page(
    console: &Console,
    status: StatusCode,
    refused: Option<&'static str>,
    next: &str,
) -> Response {
    let frame = Frame::new(console, None, Room::Outside, Vec::new());
    page(status, &SignInPage { frame, refused, next: own_page(next).unwrap_or_default().to_owned() })
}

/// Where to go on after signing in: a page of ours, and nowhere else.
fn own_page(next: &str) -> Option<&str> {
    let plain = next.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'\\');
    let ours = next == "/console" || next.starts_with("/console/") || next.starts_with("/console?");
    (plain && ours && next.len() <= 2_000).then_some(next)
}

#[derive(Deserialize)]
pub(super) struct Asked {
    #[serde(default)]
    next: String,
}

/// The page to sign in at.
pub(super) async fn ask(
    State(console): State<Console>,
    asked: Result<Query<Asked>, QueryRejection>,
) -> Response {
    let next = asked.map(|Query(asked)| asked.next).unwrap_or_default();
    sign_in_page(&console, StatusCode::OK, None, &next)
}

#[derive(Deserialize)]
pub(super) struct Shown {
    token: String,
    #[serde(default)]
    next: String,
}

/// Begins a session, if the token is an operator's.
pub(super) async fn sign_in(
    State(console): State<Console>,
    peer: Option<Extension<ConnectInfo<SocketAddr>>>,
    headers: HeaderMap,
    shown: Result<Form<Shown>, FormRejection>,
) -> Response {
    let parts = &console.0;
    let Ok(Form(shown)) = shown else {
        return message(&console, StatusCode::BAD_REQUEST, "The form could not be read", "Nothing was done.");
    };
    let refuse = |status, words| sign_in_page(&console, status, Some(words), &shown.next);
    if !parts.origin.is(&headers) {
        return from_elsewhere(&console);
    }
    let address = peer.map(|Extension(ConnectInfo(address))| address.ip());
    if let Err(wait) = parts.attempts.admit(address) {
        tracing::warn!(?address, "too many tries to sign in to the console");
        let mut response =
            refuse(StatusCode::TOO_MANY_REQUESTS, "Too many tries. Wait a moment, then try again.");
        let seconds = HeaderValue::from(wait.as_secs() + 1);
        response.headers_mut().insert(header::RETRY_AFTER, seconds);
        return response;
    }
    let token = shown.token.trim();
    let role = match parts.tokens.find(token.as_bytes()).await {
        Ok(caller) => caller.map(|caller| caller.role),
        Err(error) => return refuse(StatusCode::SERVICE_UNAVAILABLE, Trouble::of(&error).words()),
    };
    match role {
        Some(Role::Operator) => {}
        Some(Role::Merchant) => {
            tracing::warn!(?address, "a merchant's token was shown to the console");
            return refuse(
                StatusCode::FORBIDDEN,
                "That is a merchant's token. The console is for operators.",
            );
        }
        None => {
            tracing::warn!(?address, "an unknown token was shown to the console");
            return refuse(StatusCode::FORBIDDEN, "That is not a token that is valid here.");
        }
    }
    let Ok(session) = SessionId::new() else {
        return refuse(
            StatusCode::INTERNAL_SERVER_ERROR,
            "The system gave no randomness. Nothing was begun.",
        );
    };
    let lifetime = parts.session_lifetime;
    match store::begin_session(&parts.payments, session.hash(), hash(token.as_bytes()), lifetime).await {
        Ok(Some(operator)) => {
            tracing::info!(operator, ?address, "signed in to the console");
            let cookie = parts.origin.cookie(Some((&session, lifetime)));
            let next = own_page(&shown.next).unwrap_or("/console/payments");
            ([(header::SET_COOKIE, cookie)], Redirect::to(next)).into_response()
        }
        // Revoked since it was remembered.
        Ok(None) => refuse(StatusCode::FORBIDDEN, "That is not a token that is valid here."),
        Err(error) => refuse(StatusCode::SERVICE_UNAVAILABLE, Trouble::of(&error).words()),
    }
}

/// Ends the session.
pub(super) async fn sign_out(
    State(console): State<Console>,
    Extension(who): Extension<SignedIn>,
) -> Response {
    let parts = &console.0;
    if let Err(error) = store::end_session(&parts.payments, who.session.hash()).await {
        return Trouble::of(&error).page(&console, &who);
    }
    tracing::info!(operator = who.operator, "signed out of the console");
    let cookie = parts.origin.cookie(None);
    ([(header::SET_COOKIE, cookie)], Redirect::to("/console/sign-in")).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.parse().unwrap(), HeaderValue::from_static(value))).collect()
    }

    #[test]
    fn an_origin_is_https_or_loopback() {
        let loopback: SocketAddr = "127.0.0.1:8080".parse().unwrap();
        let everywhere: SocketAddr = "0.0.0.0:8080".parse().unwrap();
        assert!(!Origin::new(None, loopback).unwrap().secure);
        assert!(Origin::new(None, everywhere).unwrap_err().to_string().contains("CONSOLE_ORIGIN"));
        for (origin, secure) in [
            ("https://console.example.com", true),
            ("https://console.example.com:8443", true),
            ("http://127.0.0.1:8080", false),
            ("http://localhost:8080", false),
            ("http://[::1]:8080", false),
        ] {
            assert_eq!(Origin::new(Some(origin), everywhere).unwrap().secure, secure, "{origin}");
        }
        for wrong in [
            "",
            "console.example.com",
            "http://console.example.com",
            "http://127.0.0.1.example.com",
            "ftp://127.0.0.1",
            "https://console.example.com/",
            "https://console.example.com/console",
            "https://",
        ] {
            assert!(Origin::new(Some(wrong), loopback).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_form_is_of_this_origin_or_refused() {
        let origin = Origin::new(None, "127.0.0.1:8080".parse().unwrap()).unwrap();
        assert!(origin.is(&headers(&[("origin", "http://127.0.0.1:8080")])));
        assert!(origin.is(&headers(&[("origin", "http://localhost:8080")])));
        for wrong in [
            "null",
            "",
            "http://127.0.0.1:8081",
            "https://127.0.0.1:8080",
            "http://127.0.0.1:8080/",
            "http://evil.example",
        ] {
            assert!(!origin.is(&headers(&[("origin", wrong)])), "{wrong}");
        }
        assert!(!origin.is(&HeaderMap::new()));
        let mut twice = headers(&[("origin", "http://127.0.0.1:8080")]);
        twice.append("origin", HeaderValue::from_static("http://evil.example"));
        assert!(!origin.is(&twice));
    }

    #[test]
    fn a_cookie_is_for_this_host_alone_and_comes_back() {
        let lifetime = Duration::from_hours(8);
        let id = SessionId([7; 32]);
        let secure = Origin::new(Some("https://c.example"), "127.0.0.1:1".parse().unwrap()).unwrap();
        let cookie = secure.cookie(Some((&id, lifetime)));
        let cookie = cookie.to_str().unwrap();
        let value = hex::encode([7; 32]);
        assert!(cookie.starts_with(&format!("__Host-console={value};")), "{cookie}");
        for part in ["HttpOnly", "SameSite=Strict", "Secure", "Path=/;", "Max-Age=28800"] {
            assert!(format!("{cookie};").contains(part), "{part} in {cookie}");
        }
        let plain = Origin::new(None, "127.0.0.1:1".parse().unwrap()).unwrap();
        let cookie = plain.cookie(Some((&id, lifetime)));
        assert!(!cookie.to_str().unwrap().contains("Secure"));
        let mut sent = headers(&[("cookie", "other=1; console=zz")]);
        assert!(plain.session(&sent).is_none());
        sent.insert("cookie", HeaderValue::from_str(&format!("other=1; console={value}")).unwrap());
        assert_eq!(plain.session(&sent).unwrap().0, [7; 32]);
        assert!(secure.session(&sent).is_none(), "another name");
        assert!(plain.cookie(None).to_str().unwrap().contains("Max-Age=0"));
    }

    #[test]
    fn a_form_token_is_of_one_session_and_neither_it_nor_its_hash() {
        let (one, other) = (SessionId::new().unwrap(), SessionId::new().unwrap());
        assert_eq!(one.form_token(), one.form_token());
        assert_ne!(one.form_token(), other.form_token());
        assert_ne!(one.form_token(), hex::encode(one.0));
        assert_ne!(one.form_token(), hex::encode(one.hash()));
        assert_eq!(format!("{one:?}"), "[set]");
    }

    #[test]
    fn after_signing_in_one_stays_here() {
        for page in ["/console", "/console/payments?q=a%20b&live=on", "/console/attention"] {
            assert_eq!(own_page(page), Some(page));
        }
        for page in [
            "",
            "/",
            "//evil.example",
            "https://evil.example",
            "/consolex",
            "/console/\\evil",
            "/console/ x",
            "/console/\n",
        ] {
            assert_eq!(own_page(page), None, "{page:?}");
        }
    }
}
