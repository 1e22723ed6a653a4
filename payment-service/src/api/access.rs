//! Who asks, how often, and what their role allows.

use std::num::NonZeroU32;

use axum::{
    extract::{FromRequestParts, Request, State},
    http::{HeaderValue, header, request::Parts},
    middleware::Next,
    response::{IntoResponse as _, Response},
};
use governor::{
    Quota, RateLimiter,
    clock::{Clock as _, DefaultClock},
    state::keyed::DefaultKeyedStateStore,
};

use super::{Api, answers::database_problem};
use crate::{
    problem::Problem,
    tokens::{Caller, Role, hash},
};

/// Of tokens that are at rest nothing needs to be remembered; they are forgotten when there are so many.
const RATES_REMEMBERED: usize = 1_024;

/// How often each token may ask. Tokens that are nobody's have no place here: what is remembered is bounded by how many there are.
#[derive(Debug)]
pub(super) struct Rates {
    limiter: RateLimiter<[u8; 32], DefaultKeyedStateStore<[u8; 32]>, DefaultClock>,
    clock: DefaultClock,
}

impl Rates {
    /// So many requests per second, and as many at once.
    pub(super) fn new(per_second: NonZeroU32) -> Self {
        let clock = DefaultClock::default();
        Self { limiter: RateLimiter::keyed(Quota::per_second(per_second)), clock }
    }

    /// Err: after how many seconds this token may ask again.
    fn take(&self, token: &[u8; 32]) -> Result<(), u64> {
        if self.limiter.len() > RATES_REMEMBERED {
            self.limiter.retain_recent();
        }
        self.limiter.check_key(token).map_err(|until| {
            let wait = until.wait_time_from(self.clock.now());
            wait.as_secs() + u64::from(wait.subsec_nanos() > 0)
        })
    }
}

/// Lets those pass whose token is known and has not asked too often.
pub(super) async fn authenticate(State(Api(api)): State<Api>, mut request: Request, next: Next) -> Response {
    let token = request.headers().get(header::AUTHORIZATION).and_then(bearer_token);
    let Some(token) = token else { return Problem::unauthorized().into_response() };
    match api.tokens.find(token).await {
        Ok(Some(caller)) => {
            if let Err(seconds) = api.rates.take(&hash(token)) {
                return Problem::too_many_requests(seconds).into_response();
            }
            request.extensions_mut().insert(caller);
            next.run(request).await
        }
        Ok(None) => Problem::unauthorized().into_response(),
        // Whose token it is nobody knows: that is not to say that it is nobody's.
        Err(error) => database_problem(&error, "").into_response(),
    }
}

fn bearer_token(header: &HeaderValue) -> Option<&[u8]> {
    let (scheme, token) = header.as_bytes().split_at_checked("Bearer ".len())?;
    scheme.eq_ignore_ascii_case(b"Bearer ").then(|| token.trim_ascii())
}

/// Whoever asks, whatever the role.
#[derive(Clone, Debug)]
pub(super) struct Anyone(pub(super) Caller);

impl Anyone {
    /// Whose payments alone may be shown; None: everybody's.
    pub(super) fn sees(&self) -> Option<&str> {
        match self.0.role {
            Role::Merchant => Some(&self.0.name),
            Role::Operator => None,
        }
    }
}

/// A merchant, by name: the only ones who make payments.
#[derive(Clone, Debug)]
pub(super) struct Merchant(pub(super) String);

/// An operator, by name: the only ones who resolve what needs a person.
#[derive(Clone, Debug)]
pub(super) struct Operator(pub(super) String);

/// Without a caller the route is not behind [`authenticate`]: closed, rather than open to all.
fn caller(parts: &Parts) -> Result<Caller, Problem> {
    parts.extensions.get().cloned().ok_or_else(Problem::unauthorized)
}

impl<S: Sync> FromRequestParts<S> for Anyone {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        caller(parts).map(Self)
    }
}

impl<S: Sync> FromRequestParts<S> for Merchant {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let Caller { name, role } = caller(parts)?;
        match role {
            Role::Merchant => Ok(Self(name)),
            Role::Operator => Err(Problem::forbidden("an operator makes no payments: that is a merchant's")),
        }
    }
}

impl<S: Sync> FromRequestParts<S> for Operator {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let Caller { name, role } = caller(parts)?;
        match role {
            Role::Operator => Ok(Self(name)),
            Role::Merchant => Err(Problem::forbidden("what needs a person is resolved by an operator")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scheme_is_bearer_in_any_case() {
        let header = HeaderValue::from_static;
        assert_eq!(bearer_token(&header("Bearer x")), Some(b"x".as_slice()));
        assert_eq!(bearer_token(&header("bearer  x ")), Some(b"x".as_slice()));
        assert_eq!(bearer_token(&header("Basic eDp4")), None);
        assert_eq!(bearer_token(&header("Bearer")), None);
    }

    #[test]
    fn a_token_has_its_share_and_no_other_pays_for_it() {
        let rates = Rates::new(NonZeroU32::new(3).unwrap());
        for _ in 0..3 {
            assert_eq!(rates.take(&[1; 32]), Ok(()));
        }
        assert_eq!(rates.take(&[1; 32]), Err(1), "a third of a second is a whole one in the header");
        assert_eq!(rates.take(&[2; 32]), Ok(()));
    }
}
