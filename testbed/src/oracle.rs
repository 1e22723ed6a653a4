//! The oracle: compares what every witness says, and reports each broken promise.
//!
//! ```text
//!  client's answers   PSPs' ledger   executor database   payments database   both topics
//!         └───────────────┴────────────── books ─────────────┴────────────────┘
//!                                           │ examine: pure
//!                                           ▼
//!                        verdict: findings by promise, and the figures
//! ```
//! It reads when everything has come to rest. No process is asked about itself: only what it has left behind counts. What it
//! compares is plain data, so that every check can be shown an anomaly that it must report.

pub mod books;
mod effects;
pub mod ending;
pub mod gather;
mod money;
mod review;
mod transport;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;

use uuid::Uuid;

use books::{Books, Charge, Order, OutboxEvent, Payment, Record, Transition};

/// What is promised.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Promise {
    /// Every accepted payment, every result and every charge has reached a payment state.
    NothingLost,
    /// Nothing is on a topic, and no state was changed, without a committed cause.
    NoGhost,
    /// No event has changed a payment twice.
    AppliedOnce,
    /// Nobody was charged twice.
    ChargedOnce,
    /// Per key, first occurrences lie on the topic in the order of the outbox.
    InOrder,
    /// Every order has come to an end, or to a person.
    Settled,
    /// The witnesses agree.
    Consistent,
    /// Every payment has the end that its token has; a contradiction is before a person, and nothing is that needs none.
    Reviewed,
}

impl Promise {
    /// All of them.
    pub const ALL: [Promise; 8] = [
        Promise::NothingLost,
        Promise::NoGhost,
        Promise::AppliedOnce,
        Promise::ChargedOnce,
        Promise::InOrder,
        Promise::Settled,
        Promise::Consistent,
        Promise::Reviewed,
    ];

    /// What a violation is called.
    pub fn violation(self) -> &'static str {
        match self {
            Promise::NothingLost => "lost",
            Promise::NoGhost => "ghost",
            Promise::AppliedOnce => "applied twice",
            Promise::ChargedOnce => "charged twice",
            Promise::InOrder => "out of order",
            Promise::Settled => "unsettled",
            Promise::Consistent => "contradiction",
            Promise::Reviewed => "wrong end",
        }
    }
}

/// One violation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The promise that is broken.
    pub promise: Promise,
    /// What it is broken for: violations are counted by this, so that one loss seen by three witnesses is one loss.
    pub subject: String,
    /// What was seen.
    pub text: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}: {}", self.promise.violation(), self.subject, self.text)
    }
}

/// What the books show.
#[derive(Clone, Debug, Default)]
pub struct Verdict {
    /// Every violation.
    pub findings: Vec<Finding>,
    /// Counts.
    pub figures: Figures,
}

/// Counts, for people.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// Payments in the database.
    pub payments: usize,
    /// Of them SUCCESSFUL.
    pub successful: usize,
    /// Of them FAILED.
    pub failed: usize,
    /// Of them NEEDS_REVIEW.
    pub needs_review: usize,
    /// Of them none of these.
    pub unsettled: usize,
    /// Charges in the ledger.
    pub psp_charges: usize,
    /// Different events on both topics.
    pub events_published: usize,
    /// Further records of events that were there already.
    pub duplicates_published: usize,
}

impl Verdict {
    /// How many subjects a promise is broken for.
    pub fn broken(&self, promise: Promise) -> usize {
        let subjects: BTreeSet<&str> =
            self.findings.iter().filter(|f| f.promise == promise).map(|f| f.subject.as_str()).collect();
        subjects.len()
    }

    /// Whether nothing is wrong.
    pub fn clean(&self) -> bool {
        self.findings.is_empty()
    }

    /// The violations for people, at most so many of each promise.
    pub fn describe(&self, most: usize) -> String {
        let mut lines = Vec::new();
        for promise in Promise::ALL {
            let findings: Vec<&Finding> = self.findings.iter().filter(|f| f.promise == promise).collect();
            lines.extend(findings.iter().take(most).map(ToString::to_string));
            if findings.len() > most {
                lines.push(format!("{}: and {} more", promise.violation(), findings.len() - most));
            }
        }
        lines.join("\n")
    }

    #[expect(clippy::needless_pass_by_value, reason = "ids and texts alike, without a sign at every call")]
    fn report(&mut self, promise: Promise, subject: impl ToString, text: impl Into<String>) {
        self.findings.push(Finding { promise, subject: subject.to_string(), text: text.into() });
    }
}

/// The books, by what they are looked up by.
struct Index<'a> {
    books: &'a Books,
    payments: HashMap<Uuid, &'a Payment>,
    orders: HashMap<Uuid, &'a Order>,
    requests: HashMap<Uuid, &'a OutboxEvent>,
    results: HashMap<Uuid, &'a OutboxEvent>,
    transitions_by_event: HashMap<Uuid, Vec<&'a Transition>>,
    charges_by_order: BTreeMap<&'a str, Vec<&'a Charge>>,
}

impl<'a> Index<'a> {
    fn new(books: &'a Books) -> Index<'a> {
        let by_event =
            |events: &'a [OutboxEvent]| events.iter().map(|event| (event.event_id, event)).collect();
        let mut transitions_by_event: HashMap<Uuid, Vec<&Transition>> = HashMap::new();
        for transition in &books.payments.transitions {
            if let Some(event_id) = transition.event_id {
                transitions_by_event.entry(event_id).or_default().push(transition);
            }
        }
        let mut charges_by_order: BTreeMap<&str, Vec<&Charge>> = BTreeMap::new();
        for charge in &books.charges {
            if let Some(order) = &charge.payment_order_id {
                charges_by_order.entry(order).or_default().push(charge);
            }
        }
        Index {
            books,
            payments: books.payments.payments.iter().map(|payment| (payment.payment_id, payment)).collect(),
            orders: books.payments.orders.iter().map(|order| (order.payment_order_id, order)).collect(),
            requests: by_event(&books.payments.outbox),
            results: by_event(&books.executor.outbox),
            transitions_by_event,
            charges_by_order,
        }
    }

    fn order(&self, id: &str) -> Option<&'a Order> {
        Uuid::try_parse(id).ok().and_then(|id| self.orders.get(&id).copied())
    }
}

/// Compares the books.
pub fn examine(books: &Books) -> Verdict {
    let index = Index::new(books);
    let mut verdict = Verdict { figures: figures(books), ..Verdict::default() };
    transport::examine(&index, &mut verdict);
    effects::examine(&index, &mut verdict);
    money::examine(&index, &mut verdict);
    review::examine(&index, &mut verdict);
    verdict
}

fn figures(books: &Books) -> Figures {
    let payments = &books.payments.payments;
    let count = |status: &str| payments.iter().filter(|payment| payment.status == status).count();
    let (successful, failed, needs_review) = (count("SUCCESSFUL"), count("FAILED"), count("NEEDS_REVIEW"));
    let events_published = different_events(&books.requests) + different_events(&books.results);
    Figures {
        payments: payments.len(),
        successful,
        failed,
        needs_review,
        unsettled: payments.len() - successful - failed - needs_review,
        psp_charges: books.charges.len(),
        events_published,
        duplicates_published: books.requests.len() + books.results.len() - events_published,
    }
}

/// A record without an id counts as an event of its own.
fn different_events(records: &[Record]) -> usize {
    let ids: BTreeSet<Uuid> = records.iter().filter_map(Record::event_id).collect();
    ids.len() + records.iter().filter(|record| record.event_id().is_none()).count()
}
