//! All routes: those of the PSPs, and those of whoever watches them.

use std::sync::Arc;

use axum::Router;
use axum::http::{HeaderMap, Method, Uri};
use axum::middleware::from_fn_with_state;
use axum::response::Response;

use crate::{World, adyen, control, metrics, stripe};

pub(crate) fn router(world: Arc<World>) -> Router {
    Router::new()
        .merge(stripe::api::routes())
        .merge(adyen::api::routes())
        .merge(control::routes())
        .fallback(nowhere)
        .layer(from_fn_with_state(world.metrics.clone(), metrics::count))
        .with_state(world)
}

async fn nowhere(method: Method, uri: Uri, headers: HeaderMap) -> Response {
    if uri.path().starts_with("/v71/") {
        return adyen::api::unrecognized();
    }
    stripe::api::unrecognized(method, uri, headers).await
}
