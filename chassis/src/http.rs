//! A port that strangers send to: every connection has a deadline for its headers, which are bounded too, and counts against a limit;
//! beyond it, senders wait in the listen queue.

use std::{sync::Arc, time::Duration};

use anyhow::Context as _;
use axum::{Router, body::Body, extract::ConnectInfo};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
};
use tokio_util::task::TaskTracker;
use tower::ServiceExt as _;

use crate::shutdown::Shutdown;

const GRACE: Duration = Duration::from_secs(10);
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// What connections may take.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Most connections at once.
    pub connections_max: usize,
    /// Largest head of a request: its first line and its headers. A larger one is answered 431.
    pub head_max_bytes: usize,
    /// Most headers of a request. More are answered 431.
    pub headers_max: usize,
    /// How long a sender may take over the head. Also how long an idle connection is kept.
    pub headers_within: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections_max: 1_024,
            head_max_bytes: 64 << 10,
            headers_max: 100,
            headers_within: Duration::from_secs(30),
        }
    }
}

/// Serves connections until asked to stop, then lets the open ones finish.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    limits: Limits,
    shutdown: Shutdown,
) -> anyhow::Result<()> {
    let slots = Arc::new(Semaphore::new(limits.connections_max));
    let connections = TaskTracker::new();
    while let Some((stream, slot)) = accept(&listener, &slots, &shutdown).await {
        let (router, shutdown) = (router.clone(), shutdown.clone());
        connections.spawn(async move {
            converse(stream, router, limits, shutdown).await;
            drop(slot);
        });
    }
    connections.close();
    tokio::time::timeout(GRACE, connections.wait())
        .await
        .context("requests were still being answered at the end")
}

async fn accept(
    listener: &TcpListener,
    slots: &Arc<Semaphore>,
    shutdown: &Shutdown,
) -> Option<(TcpStream, OwnedSemaphorePermit)> {
    loop {
        let next = async {
            let slot = Arc::clone(slots).acquire_owned().await.ok()?;
            Some((listener.accept().await, slot))
        };
        let (accepted, slot) = tokio::select! {
            next = next => next?,
            () = shutdown.wait() => return None,
        };
        match accepted {
            Ok((stream, _)) => return Some((stream, slot)),
            Err(error) => {
                // Out of descriptors, or the sender is gone already: neither is cured by asking at once again.
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn converse(stream: TcpStream, router: Router, limits: Limits, shutdown: Shutdown) {
    let peer = stream.peer_addr().ok().map(ConnectInfo);
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "setting TCP_NODELAY failed");
    }
    let service = service_fn(move |request: hyper::Request<Incoming>| {
        let mut request = request.map(Body::new);
        // Who it is that sends, as far as a network can tell.
        if let Some(peer) = peer {
            request.extensions_mut().insert(peer);
        }
        router.clone().oneshot(request)
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.headers_within)
        .max_buf_size(limits.head_max_bytes)
        .max_headers(limits.headers_max)
        .serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = shutdown.wait() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection ended early");
    }
}
