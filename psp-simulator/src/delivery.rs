//! How an answer travels: as it is, or not at all, or broken on the way.

use std::time::Duration;

use axum::body::{Body, Bytes, to_bytes};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures::StreamExt;
use futures::stream;

use crate::World;
use crate::scenario::Delivery;
use crate::server::{Cut, Severed};

/// Long enough for what was written before to leave, if the machine is not busy; if it is, the client sees less of it.
const BREAK_AFTER: Duration = Duration::from_millis(20);

const PAGE: &str = "<html>\r\n<head><title>200 OK</title></head>\r\n<body>\r\n<center><h1>We will be back \
                    soon</h1></center>\r\n<hr><center>edge</center>\r\n</body>\r\n</html>\r\n";

/// Sends the first answer of a request on its way. `place` is what the request holds of those that are worked on:
/// withheld ones must not use them up.
pub(crate) async fn deliver<P>(world: &World, response: Response, delivery: Delivery, place: P) -> Response {
    match delivery {
        Delivery::Sent | Delivery::ErrorKept | Delivery::ErrorOnce => response,
        Delivery::Withheld => {
            drop(place);
            withhold(world).await
        }
        Delivery::Reset => reset(),
        Delivery::Truncated => truncate(response).await,
        Delivery::Garbled => {
            ([(header::CONTENT_TYPE, HeaderValue::from_static("text/html"))], PAGE).into_response()
        }
    }
}

/// Says nothing until the client has given up, or for as long as the settings say; then the connection is cut.
pub(crate) async fn withhold(world: &World) -> Response {
    world.shutdown.run_until_cancelled(tokio::time::sleep(world.config.hang)).await;
    cut(Cut::Closed)
}

/// The client gets a TCP reset.
pub(crate) fn reset() -> Response {
    cut(Cut::Reset)
}

fn cut(cut: Cut) -> Response {
    let mut response = StatusCode::GATEWAY_TIMEOUT.into_response();
    response.extensions_mut().insert(cut);
    response
}

/// Promises the whole body and sends its first half.
async fn truncate(response: Response) -> Response {
    let (mut parts, body) = response.into_parts();
    let Ok(whole) = to_bytes(body, usize::MAX).await else { return reset() };
    parts.headers.insert(header::CONTENT_LENGTH, whole.len().into());
    let half = stream::iter([Ok::<Bytes, Severed>(whole.slice(..whole.len() / 2))]);
    let end = stream::once(async {
        tokio::time::sleep(BREAK_AFTER).await;
        Err(Severed)
    });
    Response::from_parts(parts, Body::from_stream(half.chain(end)))
}
