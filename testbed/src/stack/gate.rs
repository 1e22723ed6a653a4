//! A gate before the registry: TLS, and a user with a password (HTTP's basic authentication), of whom one may read, the other write too.
//!
//! Apicurio leaves both to what stands before it, as do most registries that somebody runs for himself; this is that proxy.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::serve::Listener;
use base64::Engine as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::server::TlsStream;

const HANDSHAKE_LIMIT: Duration = Duration::from_secs(5);
const CALL_LIMIT: Duration = Duration::from_secs(30);

/// A gate that stands until this value goes.
#[derive(Debug)]
pub(super) struct Gate {
    url: String,
    served: JoinHandle<()>,
}

/// Who may do what: `user:password`.
#[derive(Clone, Debug)]
pub(super) struct Keys {
    pub(super) reader: String,
    pub(super) writer: String,
}

#[derive(Clone)]
struct Behind {
    upstream: Arc<str>,
    keys: Arc<Keys>,
    client: reqwest::Client,
}

struct Tls {
    listener: TcpListener,
    acceptor: TlsAcceptor,
}

impl Gate {
    /// Opens a gate before the registry with this base URL.
    pub(super) async fn open(
        upstream: &str,
        keys: Keys,
        certificate: CertificateDer<'static>,
        key: PrivateKeyDer<'static>,
    ) -> Result<Gate> {
        let tls = ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(vec![certificate], key)
            .context("the gate's certificate")?;
        let listener = TcpListener::bind("127.0.0.1:0").await.context("the gate's port")?;
        let port = listener.local_addr()?.port();
        let client = reqwest::Client::builder().no_proxy().timeout(CALL_LIMIT).build()?;
        let behind = Behind { upstream: upstream.into(), keys: Arc::new(keys), client };
        let app = Router::new().fallback(pass).with_state(behind);
        let tls = Tls { listener, acceptor: TlsAcceptor::from(Arc::new(tls)) };
        let served = tokio::spawn(async move {
            if let Err(error) = axum::serve(tls, app).await {
                tracing::error!(%error, "the registry's gate");
            }
        });
        Ok(Gate { url: format!("https://127.0.0.1:{port}"), served })
    }

    pub(super) fn url(&self) -> &str {
        &self.url
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        #[expect(clippy::disallowed_methods, reason = "it holds nothing that could be cut in the middle")]
        self.served.abort();
    }
}

/// Passes on what its sender may ask for.
async fn pass(
    State(behind): State<Behind>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let Keys { reader, writer } = &*behind.keys;
    let is = |who: &str| {
        let wanted = format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(who));
        headers.get(header::AUTHORIZATION).is_some_and(|given| given.as_bytes() == wanted.as_bytes())
    };
    // A look-up of a schema's id is a POST that changes nothing.
    let writes = method == Method::PUT
        || method == Method::DELETE
        || (method == Method::POST && uri.path().ends_with("/versions"));
    match (is(writer), is(reader)) {
        (false, false) => return StatusCode::UNAUTHORIZED.into_response(),
        (false, true) if writes => return StatusCode::FORBIDDEN.into_response(),
        _ => {}
    }
    let url = format!("{}{}", behind.upstream, uri.path_and_query().map_or("", |path| path.as_str()));
    let mut request = behind.client.request(method, url).body(body);
    for name in [header::ACCEPT, header::CONTENT_TYPE] {
        if let Some(value) = headers.get(&name) {
            request = request.header(name, value);
        }
    }
    let Ok(answer) = request.send().await else { return StatusCode::BAD_GATEWAY.into_response() };
    let (status, kind) = (answer.status(), answer.headers().get(header::CONTENT_TYPE).cloned());
    let Ok(body) = answer.bytes().await else { return StatusCode::BAD_GATEWAY.into_response() };
    let mut response = (status, Body::from(body)).into_response();
    if let Some(kind) = kind {
        response.headers_mut().insert(header::CONTENT_TYPE, kind);
    }
    response
}

impl Listener for Tls {
    type Io = TlsStream<TcpStream>;
    type Addr = SocketAddr;

    /// Whoever does not come to terms is let go: an authority that is not trusted is found by the client.
    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        loop {
            let Ok((stream, address)) = self.listener.accept().await else {
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            };
            let agreed = tokio::time::timeout(HANDSHAKE_LIMIT, self.acceptor.accept(stream)).await;
            if let Ok(Ok(stream)) = agreed {
                return (stream, address);
            }
        }
    }

    fn local_addr(&self) -> std::io::Result<Self::Addr> {
        self.listener.local_addr()
    }
}
