//! What comes with a POST: the key, and the bytes of a JSON body, both within their limits.

use std::time::Duration;

use axum::{
    body::Body,
    http::{HeaderMap, HeaderValue, header},
};
use futures::StreamExt as _;
use tokio::time::timeout;

use crate::{problem::Problem, request::check_idempotency_key};

/// Largest body that is read.
pub const BODY_MAX_BYTES: usize = 64 * 1024;
/// A larger body is read on and thrown away up to here, so that its sender gets to read the answer.
const BODY_DISCARDED_MAX_BYTES: usize = 4 * 1024 * 1024;

/// The key and the body of a POST.
pub(super) async fn keyed_body(
    headers: &HeaderMap,
    body: Body,
    within: Duration,
) -> Result<(String, Vec<u8>), Problem> {
    let mut keys = headers.get_all("idempotency-key").iter();
    let key = check_idempotency_key(keys.next().map(HeaderValue::as_bytes))?;
    if keys.next().is_some() {
        return Err(Problem::malformed("the header Idempotency-Key must occur once"));
    }
    if !is_json(headers) {
        return Err(Problem::not_json());
    }
    let body = timeout(within, read_body(body)).await.map_err(|_| Problem::body_too_slow())??;
    Ok((key, body))
}

fn is_json(headers: &HeaderMap) -> bool {
    let content_type =
        headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let media_type = content_type.split(';').next().unwrap_or_default().trim();
    media_type.eq_ignore_ascii_case("application/json")
}

async fn read_body(body: Body) -> Result<Vec<u8>, Problem> {
    let mut stream = body.into_data_stream();
    let (mut bytes, mut length) = (Vec::new(), 0_usize);
    while let Some(chunk) = stream.next().await {
        let chunk = chunk.map_err(|_| Problem::malformed("the body ended before its announced length"))?;
        length = length.saturating_add(chunk.len());
        if length <= BODY_MAX_BYTES {
            bytes.extend_from_slice(&chunk);
        } else if length > BODY_DISCARDED_MAX_BYTES {
            break;
        }
    }
    if length > BODY_MAX_BYTES { Err(Problem::too_large(BODY_MAX_BYTES)) } else { Ok(bytes) }
}
