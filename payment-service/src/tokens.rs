//! Who is asking: from a bearer token to the caller that it belongs to.
//!
//! A token is `po_` and 256 random bits in base64url. The database has its SHA-256 alone: it is found by its hash, so that the time of
//! an answer tells nothing about how near a guess was, and so much randomness needs neither salt nor a slow hash.
//!
//! What was found is remembered for [`REMEMBERED_FOR`]: a token that was revoked is refused everywhere after that at the latest, one
//! that was made works at once, and the database is not asked for every request.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use clap::ValueEnum;
use secrecy::SecretString;
use sha2::{Digest as _, Sha256};
use sqlx::PgPool;
use tokio::time::Instant;

use crate::store::tokens;

/// How long a token that was revoked may still be taken.
pub const REMEMBERED_FOR: Duration = Duration::from_secs(5);
/// Most tokens that are remembered. Those beyond are looked up each time.
const REMEMBERED_MAX: usize = 10_000;
/// What every token begins with: who finds one somewhere knows what it is.
const PREFIX: &str = "po_";
/// 256 bits in base64url, without padding.
const RANDOM_CHARS: usize = 43;

/// What a caller may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, ValueEnum)]
pub enum Role {
    /// Makes payments, and sees its own.
    Merchant,
    /// Sees every payment and resolves what needs a person; makes none.
    Operator,
}

impl Role {
    /// Every role.
    pub const ALL: [Self; 2] = [Self::Merchant, Self::Operator];

    /// The word in the database and on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Merchant => "merchant",
            Self::Operator => "operator",
        }
    }

    /// The role that a word stands for.
    pub fn from_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|role| role.as_str() == word)
    }
}

/// Whom a token belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// A merchant's payments bear it, and what an operator did.
    pub name: String,
    /// What it may do.
    pub role: Role,
}

/// A new token. Nobody but the caller is to see it, and nobody can read it again.
pub fn generate() -> Result<SecretString, getrandom::Error> {
    let mut random = [0; 32];
    getrandom::fill(&mut random)?;
    Ok(format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(random)).into())
}

/// What the database has of a token.
pub fn hash(token: &[u8]) -> [u8; 32] {
    Sha256::digest(token).into()
}

/// Could it be one of ours? What could not is refused without asking the database.
fn is_well_formed(presented: &[u8]) -> bool {
    presented.strip_prefix(PREFIX.as_bytes()).is_some_and(|random| {
        random.len() == RANDOM_CHARS
            && random.iter().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
    })
}

/// The tokens that there are.
#[derive(Clone, Debug)]
pub struct Tokens(Arc<Known>);

#[derive(Debug)]
struct Known {
    pool: PgPool,
    remembered: Mutex<HashMap<[u8; 32], Remembered>>,
}

#[derive(Clone, Debug)]
struct Remembered {
    caller: Caller,
    until: Instant,
}

impl Tokens {
    /// The tokens of this database.
    pub fn new(pool: PgPool) -> Self {
        Self(Arc::new(Known { pool, remembered: Mutex::default() }))
    }

    /// Whose token that is. None: nobody's, or one that was revoked. Err: the database did not say, which means nothing about the token.
    pub async fn find(&self, presented: &[u8]) -> Result<Option<Caller>, sqlx::Error> {
        if !is_well_formed(presented) {
            return Ok(None);
        }
        let hash = hash(presented);
        if let Some(caller) = self.remembered(&hash) {
            return Ok(Some(caller));
        }
        // From before the question on: what is answered late is not believed for longer.
        let until = Instant::now() + REMEMBERED_FOR;
        let found = tokens::find(&self.0.pool, &hash).await?;
        self.remember(hash, found.as_ref(), until);
        Ok(found)
    }

    fn remembered(&self, hash: &[u8; 32]) -> Option<Caller> {
        let remembered = self.0.remembered.lock().unwrap_or_else(PoisonError::into_inner);
        remembered.get(hash).filter(|known| Instant::now() < known.until).map(|known| known.caller.clone())
    }

    /// Of what is nobody's nothing is remembered: guesses take no memory.
    fn remember(&self, hash: [u8; 32], found: Option<&Caller>, until: Instant) {
        let mut remembered = self.0.remembered.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(caller) = found else {
            remembered.remove(&hash);
            return;
        };
        if remembered.len() >= REMEMBERED_MAX {
            let now = Instant::now();
            remembered.retain(|_, known| now < known.until);
        }
        if remembered.len() < REMEMBERED_MAX {
            remembered.insert(hash, Remembered { caller: caller.clone(), until });
        }
    }
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret;

    use super::*;

    #[test]
    fn every_token_is_another_and_looks_like_one() {
        let tokens: Vec<SecretString> = (0..100).map(|_| generate().unwrap()).collect();
        let different: std::collections::HashSet<&str> =
            tokens.iter().map(ExposeSecret::expose_secret).collect();
        assert_eq!(different.len(), 100);
        assert!(different.iter().all(|token| is_well_formed(token.as_bytes())));
        assert!(!format!("{:?}", tokens[0]).contains(tokens[0].expose_secret()));
    }

    #[test]
    fn what_cannot_be_a_token_is_not_looked_up() {
        let token = format!("po_{}", "a".repeat(43));
        assert!(is_well_formed(token.as_bytes()));
        for wrong in ["", "po_", "local-token", &token[..45], &format!("{token}a"), &token.replace('o', "O")]
        {
            assert!(!is_well_formed(wrong.as_bytes()), "{wrong}");
        }
        assert!(!is_well_formed(&[&token.as_bytes()[..45], b"\xff"].concat()));
        assert!(!is_well_formed(&[&token.as_bytes()[..45], b"+"].concat()));
    }

    #[test]
    fn a_role_is_one_word_everywhere() {
        for role in Role::ALL {
            assert_eq!(Role::from_word(role.as_str()), Some(role));
            assert_eq!(Role::from_str(role.as_str(), false), Ok(role));
        }
        assert_eq!(Role::from_word("admin"), None);
    }
}
