//! What the executor knows of a PSP: the trait that every adapter implements, and the words for what an answer means.
//!
//! An adapter turns an [`Operation`] into one request, deterministically, and an answer into a [`Verdict`]. It decides nothing: what
//! follows from a verdict is the same for every PSP (`course`), but for what its [`Capabilities`] say. docs/add-a-psp.md tells how to
//! add one.

pub mod adyen;
mod adyen_outcomes;
pub mod currency;
pub mod declines;
pub mod http;
pub mod settings;
pub mod stripe;
pub(crate) mod stripe_outcomes;

use std::{collections::HashMap, fmt, sync::Arc, time::Duration};

use futures::future::BoxFuture;
use schema::psp_result_update::sanitise_error_message;
use secrecy::SecretString;
use sha2::{Digest as _, Sha256};
use time::OffsetDateTime;
use uuid::Uuid;

use self::{currency::Currencies, declines::Kind};

/// Both databases keep so much of a reference.
const REFERENCE_MAX_CHARS: usize = 255;

/// A payment order as a PSP needs it.
#[derive(Clone, Debug)]
pub struct Order {
    /// The idempotency key of everything.
    pub payment_order_id: Uuid,
    /// Which PSP, as requests name it.
    pub psp: String,
    /// In minor units (ISO 4217).
    pub amount_minor: i64,
    /// ISO 4217, upper case.
    pub currency: String,
    /// The PSP's token: kept out of logs.
    pub payment_method: SecretString,
    /// The merchant's own id.
    pub merchant_reference: String,
    /// No try of a call that could be the first to move money begins after this. In two steps that is every confirmation. In one step it
    /// is not the replay of a call that may have been executed: only that can tell, and if the call never arrived, it charges late, once.
    pub expires_at: OffsetDateTime,
}

/// What can be asked of a PSP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Operation {
    /// Make the payment known to the PSP. No money moves. PSPs that work in one step have no such thing.
    Create,
    /// Take the money.
    Confirm,
    /// Ask how it stands.
    Get,
    /// Make sure that no money can move any more.
    Cancel,
}

impl Operation {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Create, Self::Confirm, Self::Get, Self::Cancel];

    /// As it stands in the database.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Create => "CREATE",
            Self::Confirm => "CONFIRM",
            Self::Get => "GET",
            Self::Cancel => "CANCEL",
        }
    }

    /// As it stands in metrics.
    pub fn label(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Confirm => "confirm",
            Self::Get => "get",
            Self::Cancel => "cancel",
        }
    }
}

/// What an answer, or the lack of one, means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// The money moved: exactly our amount in our currency.
    Succeeded,
    /// Accepted; the PSP will know later.
    Processing,
    /// The payment exists and nothing was begun: it can be confirmed.
    Unconfirmed,
    /// The shopper would have to act.
    ActionRequired,
    /// This try was declined; where PSPs work in two steps, the payment itself is still open.
    Declined,
    /// The payment is closed at the PSP: no money moved, and none can.
    Cancelled,
    /// The PSP has taken the order to cancel, and will carry it out by itself.
    CancelAccepted,
    /// The request is not acceptable and was not executed.
    Refused,
    /// The operation does not fit the payment's state: ask for that.
    WrongState,
    /// The PSP's amount or currency is not ours.
    AmountMismatch,
    /// The PSP has seen this idempotency key with another request.
    IdempotencyMismatch,
    /// It may have been executed, or not.
    Unclear,
    /// The same request is being executed already: the same again, later, for its answer.
    BeingExecuted,
    /// It was not executed: the same again, later.
    Later,
}

impl Verdict {
    /// As it stands in the database.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Succeeded => "SUCCEEDED",
            Self::Processing => "PROCESSING",
            Self::Unconfirmed => "UNCONFIRMED",
            Self::ActionRequired => "ACTION_REQUIRED",
            Self::Declined => "DECLINED",
            Self::Cancelled => "CANCELLED",
            Self::CancelAccepted => "CANCEL_ACCEPTED",
            Self::Refused => "REFUSED",
            Self::WrongState => "WRONG_STATE",
            Self::AmountMismatch => "AMOUNT_MISMATCH",
            Self::IdempotencyMismatch => "IDEMPOTENCY_MISMATCH",
            Self::Unclear => "UNCLEAR",
            Self::BeingExecuted => "BEING_EXECUTED",
            Self::Later => "LATER",
        }
    }
}

/// Error codes of ours.
pub mod code {
    /// The PSP's amount or currency is not ours; asks for review.
    pub const AMOUNT_MISMATCH: &str = "AMOUNT_MISMATCH";
    /// The idempotency key was used for another request; asks for review.
    pub const IDEMPOTENCY_MISMATCH: &str = "IDEMPOTENCY_MISMATCH";
    /// The request was too old to begin; asks for review when nothing is known.
    pub const EXPIRED: &str = "EXPIRED";
    /// The PSP was asked as often as it makes sense; asks for review.
    pub const RESOLUTION_EXHAUSTED: &str = "RESOLUTION_EXHAUSTED";
    /// This PSP takes no such currency or amount, or the token is none of its own: nothing was sent.
    pub const UNSUPPORTED: &str = "UNSUPPORTED";
    /// The shopper would have to act: a decline here.
    pub const AUTHENTICATION_REQUIRED: &str = "AUTHENTICATION_REQUIRED";
    /// The payment was cancelled at the PSP.
    pub const CANCELLED: &str = "CANCELLED";
    /// No answer within the limit.
    pub const PSP_TIMEOUT: &str = "PSP_TIMEOUT";
    /// The connection broke after the request was sent.
    pub const PSP_CONNECTION_LOST: &str = "PSP_CONNECTION_LOST";
    /// The PSP answered that it failed.
    pub const PSP_ERROR: &str = "PSP_ERROR";
    /// The answer could not be understood.
    pub const PSP_UNREADABLE: &str = "PSP_UNREADABLE";
    /// The PSP was not reached.
    pub const PSP_UNREACHABLE: &str = "PSP_UNREACHABLE";
}

/// An answer of a PSP, or the lack of one.
#[derive(Clone, Debug)]
pub struct Answer {
    /// What it means.
    pub verdict: Verdict,
    /// The PSP's id of the payment.
    pub reference: Option<String>,
    /// The PSP's machine code, or one of [`code`].
    pub error_code: Option<String>,
    /// Text for people.
    pub error_message: Option<String>,
    /// What kind of decline it is, if it is one.
    pub decline: Option<Kind>,
    /// HTTP status, if there was an answer.
    pub http_status: Option<u16>,
    /// The PSP's id of the request.
    pub request_id: Option<String>,
    /// When it was obtained.
    pub obtained_at: OffsetDateTime,
    /// How long the call took.
    pub took: Duration,
    /// The PSP's own word on trying the same again at once; it counts more than ours.
    pub try_again: Option<bool>,
    /// An earlier try of the same request may have been executed.
    pub in_doubt: bool,
}

impl Answer {
    /// An answer of this moment that says nothing but its meaning.
    pub fn new(verdict: Verdict) -> Self {
        Self {
            verdict,
            reference: None,
            error_code: None,
            error_message: None,
            decline: None,
            http_status: None,
            request_id: None,
            obtained_at: OffsetDateTime::now_utc(),
            took: Duration::ZERO,
            try_again: None,
            in_doubt: false,
        }
    }

    /// The PSP did not do its part: no answer, an error of its own, or a key that it does not take. It says nothing about the order.
    pub fn is_technical_failure(&self) -> bool {
        self.http_status.is_none_or(|status| status == 401 || status >= 500)
    }

    /// The same request is worth another try within a second or so.
    pub fn is_worth_another_try(&self) -> bool {
        self.try_again.unwrap_or_else(|| match self.verdict {
            // A key that is not taken, or has no right to it, is not taken a second later either.
            Verdict::Later => !matches!(self.http_status, Some(401 | 403)),
            Verdict::BeingExecuted => true,
            // What was said and not understood will be said again.
            Verdict::Unclear => self.http_status.is_none_or(|status| status >= 500),
            Verdict::Succeeded
            | Verdict::Processing
            | Verdict::Unconfirmed
            | Verdict::ActionRequired
            | Verdict::Declined
            | Verdict::Cancelled
            | Verdict::CancelAccepted
            | Verdict::Refused
            | Verdict::WrongState
            | Verdict::AmountMismatch
            | Verdict::IdempotencyMismatch => false,
        })
    }

    /// Every `outcome` in metrics.
    pub const LABELS: [&str; 6] = ["success", "declined", "timeout", "error", "unknown", "retry"];

    /// The `outcome` in metrics.
    pub fn label(&self) -> &'static str {
        match self.verdict {
            Verdict::Succeeded
            | Verdict::Processing
            | Verdict::Unconfirmed
            | Verdict::Cancelled
            | Verdict::CancelAccepted => "success",
            Verdict::Declined | Verdict::ActionRequired => "declined",
            Verdict::Refused
            | Verdict::WrongState
            | Verdict::AmountMismatch
            | Verdict::IdempotencyMismatch => "error",
            Verdict::Unclear if self.error_code.as_deref() == Some(code::PSP_TIMEOUT) => "timeout",
            Verdict::Unclear => "unknown",
            Verdict::BeingExecuted | Verdict::Later => "retry",
        }
    }

    /// The same without references that cannot be kept. Every answer goes through this, whoever brought it.
    #[must_use]
    pub fn keepable(mut self) -> Self {
        self.reference = self.reference.filter(|text| is_keepable(text));
        self.request_id = self.request_id.filter(|text| is_keepable(text));
        self
    }

    /// The same with an error code and a text, sanitised here.
    #[must_use]
    pub fn error(mut self, code: &str, message: &str) -> Self {
        // Both databases keep 1 to 255 characters of it.
        let code: String = sanitise_error_message(code).chars().take(255).collect();
        self.error_code = Some(code).filter(|code| !code.is_empty());
        self.error_message = Some(sanitise_error_message(message)).filter(|text| !text.is_empty());
        self
    }
}

/// True for a reference that both databases and the event keep as it is: 1 to 255 characters, none of them a control character.
fn is_keepable(reference: &str) -> bool {
    (1..=REFERENCE_MAX_CHARS).contains(&reference.chars().count()) && !reference.contains(char::is_control)
}

/// A request, ready to be sent. Made twice for the same order it is the same, byte by byte.
#[derive(Clone, PartialEq, Eq)]
pub struct Call {
    /// Which operation it is.
    pub operation: Operation,
    /// HTTP method.
    pub method: &'static str,
    /// Path below the PSP's base URL.
    pub path: String,
    /// Body; empty for a GET.
    pub body: String,
    /// One per operation and order; None for a GET.
    pub idempotency_key: Option<String>,
}

impl Call {
    /// SHA-256 of method, path and body, in hexadecimal.
    pub fn hash(&self) -> String {
        let mut hasher = Sha256::new();
        for part in [self.method, " ", &self.path, "\n", &self.body] {
            hasher.update(part.as_bytes());
        }
        hex::encode(hasher.finalize())
    }
}

impl fmt::Debug for Call {
    // The body holds the payment method.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.method, self.path)
    }
}

/// What a PSP can do, where PSPs differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// A payment is created first, without moving money, and confirmed then; it stays open after a decline, until it is cancelled.
    /// Otherwise the confirmation is all there is, and what it says is final.
    pub two_step: bool,
    /// A payment can be looked up. Otherwise doubt is settled by sending the same again, and by webhooks.
    pub looks_up: bool,
    /// How long an idempotency key is certain to be remembered; after that the same request would be a new one.
    pub remembers_keys_for: Duration,
}

/// No request can be made of an order or a reference.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Unsendable(pub String);

/// An adapter to one PSP.
pub trait Psp: fmt::Debug + Send + Sync {
    /// As requests name it.
    fn name(&self) -> &'static str;
    /// As metrics name it.
    fn label(&self) -> &'static str;
    /// Where it is reached, without a slash at the end, if it is reached by a URL.
    fn base_url(&self) -> Option<&str> {
        None
    }
    /// What it can do.
    fn capabilities(&self) -> Capabilities;
    /// How it counts amounts.
    fn currencies(&self) -> &'static Currencies;
    /// The request for an operation: for the same order and reference the same, byte by byte. `reference` is the PSP's id of the
    /// payment, if it is known.
    fn prepare(
        &self,
        operation: Operation,
        order: &Order,
        reference: Option<&str>,
    ) -> Result<Call, Unsendable>;
    /// Sends the request, once, and says what the answer means. Ends within the PSP timeout. Whatever is not understood is
    /// [`Verdict::Unclear`].
    fn send<'a>(&'a self, call: &'a Call, order: &'a Order) -> BoxFuture<'a, Answer>;
}

/// The PSPs that this process talks to.
#[derive(Clone, Debug)]
pub struct Psps(HashMap<&'static str, Arc<dyn Psp>>);

impl Psps {
    /// These, by their names.
    pub fn new(psps: impl IntoIterator<Item = Arc<dyn Psp>>) -> Self {
        Self(psps.into_iter().map(|psp| (psp.name(), psp)).collect())
    }

    /// The one that requests name so.
    pub fn get(&self, name: &str) -> Option<&Arc<dyn Psp>> {
        self.0.get(name)
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<dyn Psp>> {
        self.0.values()
    }
}

#[cfg(test)]
impl Order {
    /// An order of 12.34 EUR, for tests.
    pub(crate) fn sample(psp: &str) -> Self {
        Self {
            payment_order_id: Uuid::nil(),
            psp: psp.to_owned(),
            amount_minor: 1234,
            currency: "EUR".to_owned(),
            payment_method: SecretString::from("pm_card_visa"),
            merchant_reference: "m".to_owned(),
            expires_at: OffsetDateTime::UNIX_EPOCH,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reference_is_kept_as_it_is_or_not_at_all() {
        let (longest, too_long) = ("é".repeat(255), "é".repeat(256));
        for (reference, kept) in [
            ("pi_1", true),
            (&*longest, true),
            ("", false),
            (&*too_long, false),
            ("pi_\0", false),
            ("pi_1\n", false),
            ("pi_\u{85}", false),
        ] {
            let answer = Answer {
                reference: Some(reference.to_owned()),
                request_id: Some(reference.to_owned()),
                ..Answer::new(Verdict::Succeeded)
            };
            let expected = kept.then_some(reference);
            let found = answer.keepable();
            assert_eq!((found.reference.as_deref(), found.request_id.as_deref()), (expected, expected));
        }
    }
}
