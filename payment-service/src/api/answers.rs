//! From what came of a request to its answer.

use axum::{
    Json,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse as _, Response},
};
use chassis::postgres::{Disposition, disposition};
use serde::Serialize;

use super::Api;
use crate::{
    idempotency::{Outcome, Refused},
    problem::Problem,
};

impl Api {
    fn count(&self, result: &str) {
        self.0.metrics.idempotency.with_label_values(&[result]).inc();
    }

    /// The answer to a POST that was carried out, now or before.
    pub(super) fn keyed_answer<T: Serialize>(
        &self,
        status: StatusCode,
        outcome: Outcome<Result<T, Refused>>,
        refused: fn(String) -> Problem,
    ) -> Response {
        let (answer, replayed) = match outcome {
            Outcome::New(answer) => (answer, false),
            Outcome::Replayed(answer) => (answer, true),
            Outcome::KeyReused => {
                self.count("mismatch");
                return Problem::key_reused().into_response();
            }
        };
        self.count(if replayed { "replay" } else { "new" });
        let mut response = match answer {
            Ok(done) => (status, Json(done)).into_response(),
            Err(Refused { detail }) => refused(detail).into_response(),
        };
        if replayed {
            response.headers_mut().insert("idempotency-replayed", HeaderValue::from_static("true"));
        }
        response
    }

    /// Why a POST was not carried out.
    pub(super) fn keyed_problem(&self, error: &sqlx::Error, trace_id: &str) -> Problem {
        let database = error.as_database_error();
        let constraint = database.and_then(sqlx::error::DatabaseError::constraint);
        match database.and_then(sqlx::error::DatabaseError::code).as_deref() {
            // The row of the key, or of the payment, is locked by the first request.
            Some("55P03") => {
                self.count("in_flight");
                Problem::in_flight()
            }
            Some("23505") if constraint == Some("payment_orders_pkey") => Problem::key_used_up(),
            _ => database_problem(error, trace_id),
        }
    }
}

/// Adds where the thing is that was made.
pub(super) fn located(mut response: Response, path: &str) -> Response {
    if let (true, Ok(path)) = (response.status() == StatusCode::CREATED, HeaderValue::from_str(path)) {
        response.headers_mut().insert(header::LOCATION, path);
    }
    response
}

/// What a client hears of a database that did not do what a request needed. The log hears all of it.
pub(super) fn database_problem(error: &sqlx::Error, trace_id: &str) -> Problem {
    tracing::error!(trace_id, error = %error, "the database did not do what a request needed");
    match disposition(error) {
        Disposition::Wait => Problem::unavailable("the database cannot be reached or is busy"),
        Disposition::Culprit | Disposition::Fault => Problem::internal(),
    }
}
