//! Names for what Stripe would have named.

use sha2::{Digest, Sha256};
use uuid::Uuid;

const ALPHABET: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
/// 62^22 > 2^128.
const DIGITS: usize = 22;
const REQUEST_DIGITS: usize = 14;

/// A new id: the prefix, a version digit as in Stripe's ids, and 22 characters that sort by time.
pub(crate) fn new(prefix: &str) -> String {
    let mut id = String::with_capacity(prefix.len() + 1 + DIGITS);
    id.push_str(prefix);
    id.push('3');
    id.push_str(&base62(Uuid::now_v7().as_u128()));
    id
}

/// The id of one HTTP request.
pub(crate) fn request() -> String {
    let digits = base62(Uuid::now_v7().as_u128());
    format!("req_{}", &digits[DIGITS - REQUEST_DIGITS..])
}

/// The secret of a PaymentIntent: always the same for the same one, so it need not be kept.
pub(crate) fn client_secret(intent: &str) -> String {
    let digest = Sha256::digest(intent.as_bytes());
    format!("{intent}_secret_{}", &hex::encode(digest)[..25])
}

fn base62(mut number: u128) -> String {
    let mut digits = [b'0'; DIGITS];
    for digit in digits.iter_mut().rev() {
        *digit = ALPHABET[usize::try_from(number % 62).unwrap_or(0)];
        number /= 62;
    }
    digits.iter().map(|digit| char::from(*digit)).collect()
}
