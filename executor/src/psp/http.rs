//! One HTTP exchange with a PSP: what all adapters have in common, and nothing of what an answer means.

use std::{error::Error as _, net::IpAddr, time::Duration};

use anyhow::{Context as _, bail, ensure};
use reqwest::{
    Url,
    header::{CONTENT_TYPE, HeaderMap, HeaderValue},
};

use super::{Answer, Call, Verdict, code};

/// An answer of a PSP has some kilobytes.
const BODY_MAX_BYTES: usize = 1 << 20;

/// How a PSP is reached.
#[derive(Clone, Debug)]
pub struct Site {
    /// Base URL, without a slash at its end.
    pub base_url: String,
    /// Plain HTTP to another machine is allowed: for a simulator in a network of containers.
    pub plain_http: bool,
    /// Limit of connecting.
    pub connect_timeout: Duration,
    /// Limit of one exchange, connecting included.
    pub timeout: Duration,
    /// Connections kept open.
    pub connections: usize,
}

impl Site {
    /// At `base_url`, which answers within `timeout`, with what is usual for the rest.
    pub fn new(base_url: &str, timeout: Duration) -> Self {
        let (connect_timeout, connections) = (Duration::from_secs(3), 64);
        Self { base_url: base_url.to_owned(), plain_http: false, connect_timeout, timeout, connections }
    }
}

/// A client of one PSP.
#[derive(Debug)]
pub(super) struct Http {
    base_url: String,
    content_type: &'static str,
    client: reqwest::Client,
}

/// An answer, whole.
pub(super) struct Reply {
    pub(super) status: u16,
    pub(super) headers: HeaderMap,
    pub(super) body: Vec<u8>,
}

impl Reply {
    /// A header as text.
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }
}

impl Http {
    /// A client that sends `headers` with each request. Makes no call yet.
    pub(super) fn new(site: &Site, content_type: &'static str, headers: HeaderMap) -> anyhow::Result<Self> {
        let client = reqwest::Client::builder()
            .user_agent(concat!("payment-outbox-executor/", env!("CARGO_PKG_VERSION")))
            .default_headers(headers)
            .connect_timeout(site.connect_timeout)
            .timeout(site.timeout)
            .pool_max_idle_per_host(site.connections)
            // A redirect would carry the key and the payment elsewhere.
            .redirect(reqwest::redirect::Policy::none())
            // Who tries again is decided in one place only.
            .retry(reqwest::retry::never())
            .no_proxy()
            .build()?;
        checked(site)?;
        let base_url = site.base_url.trim_end_matches('/').to_owned();
        Ok(Self { base_url, content_type, client })
    }

    /// Where requests go, without a slash at the end.
    pub(super) fn base_url(&self) -> &str {
        &self.base_url
    }

    /// Sends one request. An error is an answer, too: that there was none.
    pub(super) async fn exchange(&self, call: &Call) -> Result<Reply, Answer> {
        let url = format!("{}{}", self.base_url, call.path);
        let mut request = match call.method {
            "GET" => self.client.get(url),
            _ => self.client.post(url).header(CONTENT_TYPE, self.content_type).body(call.body.clone()),
        };
        if let Some(key) = &call.idempotency_key {
            request = request.header("idempotency-key", key);
        }
        let mut response = request.send().await.map_err(|error| failed(&error))?;
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|error| failed(&error))? {
            body.extend_from_slice(&chunk);
            if body.len() > BODY_MAX_BYTES {
                let answer = Answer { http_status: Some(status), ..Answer::new(Verdict::Unclear) };
                return Err(answer.error(code::PSP_UNREADABLE, "the answer is too large"));
            }
        }
        Ok(Reply { status, headers, body })
    }
}

/// A header that holds a secret.
pub(super) fn secret_header(text: &str, what: &str) -> anyhow::Result<HeaderValue> {
    let mut value = HeaderValue::from_str(text)
        .map_err(|_| anyhow::anyhow!("{what} has characters that no header may have"))?;
    value.set_sensitive(true);
    Ok(value)
}

/// The base URL, if keys and payments may be sent there.
pub(super) fn checked(site: &Site) -> anyhow::Result<Url> {
    let text = &site.base_url;
    // The URL itself may have a password in it: it is not shown.
    let url = Url::parse(text).context("the PSP's base URL is not a URL")?;
    let plain = url.username().is_empty()
        && url.password().is_none()
        && url.query().is_none()
        && url.fragment().is_none();
    ensure!(plain, "the PSP's base URL has more than scheme, host, port and path");
    match url.scheme() {
        "https" => {}
        "http" if site.plain_http || is_loopback(&url) => {}
        "http" => bail!(
            "{text}: a PSP on another machine is reached by https only (PSP_PLAIN_HTTP, for simulators)"
        ),
        other => bail!("{other} is not a way to reach a PSP"),
    }
    Ok(url)
}

/// True if it is on this machine.
fn is_loopback(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default();
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || bare.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// Without an answer: only a connection that never came about proves that nothing was executed.
fn failed(error: &reqwest::Error) -> Answer {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = cause.to_string();
        source = cause.source();
    }
    let (verdict, code) = if error.is_connect() || error.is_builder() {
        (Verdict::Later, code::PSP_UNREACHABLE)
    } else if error.is_timeout() {
        (Verdict::Unclear, code::PSP_TIMEOUT)
    } else {
        (Verdict::Unclear, code::PSP_CONNECTION_LOST)
    };
    Answer::new(verdict).error(code, &text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn site(base_url: &str, plain_http: bool) -> Site {
        Site { plain_http, ..Site::new(base_url, Duration::from_secs(1)) }
    }

    #[test]
    fn keys_are_sent_by_https_or_stay_on_this_machine() {
        for allowed in [
            "https://api.stripe.com",
            "https://checkout-test.adyen.com/v71/",
            "http://127.0.0.1:12111",
            "http://127.1.2.3",
            "http://localhost:1",
            "http://[::1]:1/v71",
        ] {
            assert!(checked(&site(allowed, false)).is_ok(), "{allowed}");
        }
        for refused in [
            "",
            "api.stripe.com",
            "ftp://127.0.0.1",
            "file:///etc/passwd",
            "http://api.stripe.com",
            "http://127.0.0.1.example.com",
            "http://localhost.example.com",
            "https://key@api.stripe.com",
            "https://user:key@api.stripe.com",
            "https://api.stripe.com?x=1",
            "https://api.stripe.com#x",
        ] {
            assert!(checked(&site(refused, false)).is_err(), "{refused}");
        }
        assert!(checked(&site("http://psp-simulator:12111", true)).is_ok());
        assert!(checked(&site("http://user:x@psp-simulator:12111", true)).is_err());
        let shown = format!("{:?}", checked(&site("https://user:hunter2@[", false)).unwrap_err());
        assert!(!shown.contains("hunter2"), "{shown}");
    }
}
