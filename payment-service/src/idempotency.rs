//! A request that changes anything is carried out once per caller, operation and Idempotency-Key, and answered alike each time.
//!
//! | first request with the key | the same again | another request under the key |
//! | --- | --- | --- |
//! | was carried out | the stored answer, `Idempotency-Replayed: true` | 422, `idempotency-key-reused` |
//! | was refused for what the payment is (409) | the stored refusal | 422 |
//! | was not accepted: 400 to 415, 422, 429; or failed: 5xx | it is tried as if it were the first | it is tried |
//! | is being worked on | waits for it, 5 s at most, then 409, `request-in-flight` | waits, then 422 |
//!
//! A refusal of what a payment *is* is stored, although nothing was done: a copy of the request that arrives late, when the payment has
//! become something else, must not charge whoever was told no. What could not be accepted began nothing and depends on nothing but the
//! request: it is not stored, and a client that mends its request may keep its key.

use std::collections::HashSet;

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use sqlx::PgConnection;
use uuid::Uuid;

use crate::store::idempotency::{self, StoredAnswer};

/// What a key is good for: the same key may be used once for each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// `POST /v1/payments`
    CreatePayment,
    /// `POST /v1/payments/{id}/retry`
    RetryPayment,
    /// `POST /v1/payment-orders/{id}/resolve`
    ResolvePaymentOrder,
}

impl Operation {
    /// The word in the database.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::CreatePayment => "create-payment",
            Self::RetryPayment => "retry-payment",
            Self::ResolvePaymentOrder => "resolve-payment-order",
        }
    }
}

/// A key as it came with a request.
#[derive(Clone, Debug)]
pub struct Key {
    /// Whose it is.
    pub caller: String,
    /// What it is good for.
    pub operation: Operation,
    /// What the client has chosen.
    pub key: String,
    /// SHA-256 over what was asked for, however it was written.
    pub fingerprint: [u8; 32],
}

/// What came of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome<T> {
    /// It was carried out now.
    New(T),
    /// It had been carried out before.
    Replayed(T),
    /// The key belongs to another request.
    KeyReused,
}

impl<T> Outcome<T> {
    /// The answer, if the key was not another request's.
    pub fn answer(&self) -> Option<&T> {
        match self {
            Self::New(answer) | Self::Replayed(answer) => Some(answer),
            Self::KeyReused => None,
        }
    }

    /// The same with the answer made into something else.
    pub fn map<U>(self, make: impl FnOnce(T) -> U) -> Outcome<U> {
        match self {
            Self::New(answer) => Outcome::New(make(answer)),
            Self::Replayed(answer) => Outcome::Replayed(make(answer)),
            Self::KeyReused => Outcome::KeyReused,
        }
    }
}

/// Why the state of a payment does not allow what was asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    /// For people.
    pub detail: String,
}

/// Why nothing of a transaction may stay.
#[derive(Debug)]
pub(crate) enum Undone {
    Database(sqlx::Error),
    /// The key was taken for something else, while this was at work.
    KeyTaken,
}

impl From<sqlx::Error> for Undone {
    fn from(error: sqlx::Error) -> Self {
        Self::Database(error)
    }
}

impl Undone {
    /// What came of the request after all.
    pub(crate) fn outcome<T>(self) -> Result<Option<Outcome<T>>, sqlx::Error> {
        match self {
            Self::Database(error) => Err(error),
            Self::KeyTaken => Ok(Some(Outcome::KeyReused)),
        }
    }
}

/// Stores the answer under its key. False if the key is taken; waits for a transaction that is taking it.
pub(crate) async fn take<T: Serialize>(
    tx: &mut PgConnection,
    key: &Key,
    payment_id: Uuid,
    (status_code, answer): (i32, &T),
) -> Result<bool, sqlx::Error> {
    let response = serde_json::to_value(answer).map_err(|error| sqlx::Error::Encode(error.into()))?;
    let stored = StoredAnswer { fingerprint: key.fingerprint.to_vec(), status_code, response };
    idempotency::take_key(tx, key, payment_id, &stored).await
}

/// Stores answers, each made for a payment, under their keys. Returns the payments whose key was free; waits for transactions that are
/// taking one.
pub(crate) async fn take_all<T: Serialize>(
    tx: &mut PgConnection,
    status_code: i32,
    keyed: &[(&Key, Uuid, &T)],
) -> Result<HashSet<Uuid>, sqlx::Error> {
    let mut new = Vec::with_capacity(keyed.len());
    for (key, payment_id, answer) in keyed {
        let response = serde_json::to_value(answer).map_err(|error| sqlx::Error::Encode(error.into()))?;
        let fingerprint = key.fingerprint.to_vec();
        new.push((*key, *payment_id, StoredAnswer { fingerprint, status_code, response }));
    }
    // Whoever takes several keys takes them in this order, and nobody waits in a circle.
    new.sort_by(|(a, ..), (b, ..)| (&a.caller, &a.key).cmp(&(&b.caller, &b.key)));
    idempotency::take_keys(tx, &new).await.map(|taken| taken.into_iter().collect())
}

/// For each key, in their order, what [`replay`] returns for one.
pub(crate) async fn replay_all<T>(
    tx: &mut PgConnection,
    keys: &[&Key],
    read: impl Fn(StoredAnswer) -> Result<T, sqlx::Error>,
) -> Result<Vec<Option<Outcome<T>>>, sqlx::Error> {
    // Few: a client that asks again, or two that share a key.
    let mut outcomes = Vec::with_capacity(keys.len());
    for key in keys {
        outcomes.push(replay(tx, key, &read).await?);
    }
    Ok(outcomes)
}

/// The answer that was given to the first request with this key, if there was one. `read` makes it out of status and JSON.
pub(crate) async fn replay<T>(
    tx: &mut PgConnection,
    key: &Key,
    read: impl FnOnce(StoredAnswer) -> Result<T, sqlx::Error>,
) -> Result<Option<Outcome<T>>, sqlx::Error> {
    let Some(first) = idempotency::answer_of_key(tx, key).await? else { return Ok(None) };
    if first.fingerprint != key.fingerprint {
        return Ok(Some(Outcome::KeyReused));
    }
    read(first).map(|answer| Some(Outcome::Replayed(answer)))
}

/// Reads an answer that is always the same kind of thing.
pub(crate) fn done<T: DeserializeOwned>(stored: StoredAnswer) -> Result<T, sqlx::Error> {
    serde_json::from_value(stored.response).map_err(|error| sqlx::Error::Decode(error.into()))
}

/// Status of an answer to what made something.
pub(crate) const CREATED: i32 = 201;
/// Status of an answer to what changed something.
pub(crate) const OK: i32 = 200;
/// Status of a stored refusal.
const CONFLICT: i32 = 409;

/// Reads an answer that may have been a refusal.
pub(crate) fn done_or_refused<T: DeserializeOwned>(
    stored: StoredAnswer,
) -> Result<Result<T, Refused>, sqlx::Error> {
    if stored.status_code == CONFLICT { done(stored).map(Err) } else { done(stored).map(Ok) }
}

/// Stores an answer that may be a refusal.
pub(crate) async fn take_either<T: Serialize>(
    tx: &mut PgConnection,
    key: &Key,
    payment_id: Uuid,
    (status_code, answer): (i32, &Result<T, Refused>),
) -> Result<bool, sqlx::Error> {
    match answer {
        Ok(done) => take(tx, key, payment_id, (status_code, done)).await,
        Err(refused) => take(tx, key, payment_id, (CONFLICT, refused)).await,
    }
}
