//! Connections: reads from the network, writes to it, and bounds both.
//!
//! Every connection has a deadline for its headers and counts against a limit; beyond it, clients wait in the listen
//! queue. An answer marked [`Withheld`] is not sent: the connection is cut instead, as a lost network would do it.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt;

const MAX_CONNECTIONS: usize = 4096;
const MAX_HEAD_BYTES: usize = 64 * 1024;
/// Also how long an idle connection is kept: longer than the 90 s after which clients usually give theirs up.
const HEADER_TIMEOUT: Duration = Duration::from_secs(100);
const GRACE: Duration = Duration::from_secs(10);
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Put into a response's extensions: this answer never reaches its client.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Withheld;

#[derive(Debug)]
struct Cut;

impl std::fmt::Display for Cut {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the answer is withheld")
    }
}

impl std::error::Error for Cut {}

/// Accepts connections until `shutdown`, then lets the open ones finish.
pub(crate) async fn serve(listener: TcpListener, router: Router, shutdown: CancellationToken) {
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let connections = TaskTracker::new();
    while let Some(stream) = accept(&listener, &slots, &shutdown).await {
        let (stream, slot) = stream;
        let (router, shutdown) = (router.clone(), shutdown.clone());
        connections.spawn(async move {
            converse(stream, router, shutdown).await;
            drop(slot);
        });
    }
    connections.close();
    if tokio::time::timeout(GRACE, connections.wait()).await.is_err() {
        tracing::warn!(open = connections.len(), "connections were still open at the end");
    }
}

async fn accept(
    listener: &TcpListener,
    slots: &Arc<Semaphore>,
    shutdown: &CancellationToken,
) -> Option<(TcpStream, tokio::sync::OwnedSemaphorePermit)> {
    loop {
        let slot = shutdown.run_until_cancelled(Arc::clone(slots).acquire_owned()).await?.ok()?;
        match shutdown.run_until_cancelled(listener.accept()).await? {
            Ok((stream, _)) => return Some((stream, slot)),
            Err(error) => {
                // Out of descriptors, or the client is gone already: neither is cured by asking at once again.
                tracing::warn!(%error, "accepting a connection failed");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn converse(stream: TcpStream, router: Router, shutdown: CancellationToken) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "setting TCP_NODELAY failed");
    }
    let service = service_fn(move |request: hyper::Request<Incoming>| {
        let router = router.clone();
        async move {
            let response = match router.oneshot(request.map(Body::new)).await {
                Ok(response) => response,
                Err(never) => match never {},
            };
            if response.extensions().get::<Withheld>().is_some() { Err(Cut) } else { Ok(response) }
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(MAX_HEAD_BYTES)
        .serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = shutdown.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection ended early");
    }
}
