//! What was asked for, what the PSP charged, what the executors recorded, and what is on the topic: every difference is a broken
//! promise. Pure.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use sqlx::FromRow;
use uuid::Uuid;

use super::super::report::{Counts, Verdict};
use crate::oracle::books::{Charge, OutboxEvent, PspResult, Record};
use crate::oracle::ending::{Ending, ending};
use crate::requests::Asked;

/// Examples that are kept of each finding.
const EXAMPLES: usize = 5;
/// States in which nothing is left to do.
const SETTLED: &str = "SETTLED";
const REVIEW: &str = "REVIEW";

/// What each witness says about the same orders.
#[derive(Clone, Debug, Default)]
pub struct Books {
    /// Requests that the broker has acknowledged.
    pub asked: Vec<Asked>,
    /// The PSP's ledger.
    pub charges: Vec<Charge>,
    /// The executors' inbox.
    pub inbox: Vec<Taken>,
    /// Their results.
    pub results: Vec<PspResult>,
    /// Their outbox, by id.
    pub outbox: Vec<OutboxEvent>,
    /// The topic of results in offset order per partition; None if it was not read.
    pub topic: Option<Vec<Record>>,
}

/// A request that was taken in.
#[derive(Clone, Debug, FromRow)]
pub struct Taken {
    /// Its order.
    pub payment_order_id: Uuid,
    /// QUEUED, IN_FLIGHT, RESOLVING, SETTLED or REVIEW.
    pub state: String,
    /// Calls that are written down as begun and not as ended, of an order that has come to an end.
    pub open_attempts: i64,
}

/// What the books come to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Orders that were asked for.
    pub orders: usize,
    /// Charges in the ledger.
    pub charges: usize,
    /// Requests, charges, results and events that have left no trace where they should.
    pub lost: usize,
    /// What stands somewhere without a cause.
    pub ghosts: usize,
    /// Facts that are recorded or published as more than one event.
    pub applied_twice: usize,
    /// Orders with more than one charge.
    pub double_charged: usize,
    /// Orders without an end.
    pub unsettled: usize,
    /// Orders whose end is not that of their token: what should have worked did not, or the reverse.
    pub wrong_ends: usize,
    /// Orders of which two witnesses say different things.
    pub contradictions: usize,
    /// First records of an event that came after a later event of its order.
    pub order_inversions: usize,
    /// Records of an event that was on the topic before: allowed.
    pub duplicates: usize,
    /// Some of what was found, for people.
    pub examples: Vec<String>,
}

impl Tally {
    /// What has to be 0.
    pub fn findings(&self) -> [(&'static str, usize); 8] {
        [
            ("lost", self.lost),
            ("ghosts", self.ghosts),
            ("applied twice", self.applied_twice),
            ("double charged", self.double_charged),
            ("unsettled", self.unsettled),
            ("wrong ends", self.wrong_ends),
            ("contradictions", self.contradictions),
            ("order inversions", self.order_inversions),
        ]
    }

    /// What is reported of it. An order without an end counts as lost.
    pub fn verdict(self) -> Verdict {
        Verdict {
            counts: Counts {
                lost: self.lost + self.unsettled,
                applied_twice: self.applied_twice,
                double_charged: self.double_charged,
                duplicates: self.duplicates,
                order_inversions: self.order_inversions,
            },
            ghosts: self.ghosts,
            findings: self.findings().to_vec(),
            figures: vec![("payment orders", self.orders), ("charges at the PSP", self.charges)],
            examples: self.examples,
        }
    }
}

/// Findings by kind, each counted once per subject.
#[derive(Default)]
struct Findings(BTreeMap<&'static str, BTreeMap<String, String>>);

impl Findings {
    #[expect(clippy::needless_pass_by_value, reason = "ids and texts alike, without a sign at every call")]
    fn add(&mut self, kind: &'static str, subject: impl ToString, text: impl Into<String>) {
        self.0.entry(kind).or_default().entry(subject.to_string()).or_insert_with(|| text.into());
    }

    fn count(&self, kind: &str) -> usize {
        self.0.get(kind).map_or(0, BTreeMap::len)
    }

    fn examples(&self) -> Vec<String> {
        let some = |(kind, subjects): (&&str, &BTreeMap<String, String>)| {
            let lines = subjects.iter().take(EXAMPLES);
            lines.map(|(subject, text)| format!("{kind}: {subject}: {text}")).collect::<Vec<_>>()
        };
        self.0.iter().flat_map(some).collect()
    }
}

/// Compares the books.
pub fn examine(books: &Books) -> Tally {
    let mut findings = Findings::default();
    requests(books, &mut findings);
    charges(books, &mut findings);
    ends(books, &mut findings);
    results(books, &mut findings);
    let duplicates = books.topic.as_ref().map_or(0, |topic| published(&books.outbox, topic, &mut findings));
    Tally {
        orders: books.asked.len(),
        charges: books.charges.len(),
        lost: findings.count("lost"),
        ghosts: findings.count("ghost"),
        applied_twice: findings.count("applied twice"),
        double_charged: findings.count("double charged"),
        unsettled: findings.count("unsettled"),
        wrong_ends: findings.count("wrong end"),
        contradictions: findings.count("contradiction"),
        order_inversions: findings.count("order inversion"),
        duplicates,
        examples: findings.examples(),
    }
}

/// Every request was taken in, and has come to an end.
fn requests(books: &Books, findings: &mut Findings) {
    let asked: HashSet<Uuid> = books.asked.iter().map(|asked| asked.payment_order_id).collect();
    let taken: HashMap<Uuid, &Taken> =
        books.inbox.iter().map(|taken| (taken.payment_order_id, taken)).collect();
    for order in &asked {
        match taken.get(order) {
            None => findings.add("lost", order, "no executor has taken it in"),
            Some(taken) if !matches!(taken.state.as_str(), SETTLED | REVIEW) => {
                findings.add("unsettled", order, format!("it is still {}", taken.state));
            }
            Some(taken) if taken.open_attempts > 0 => {
                findings.add("unsettled", order, format!("{} of its calls have no end", taken.open_attempts));
            }
            Some(_) => {}
        }
    }
    for order in taken.keys().filter(|order| !asked.contains(order)) {
        findings.add("ghost", order, "taken in, and nobody has asked for it");
    }
}

/// The orders that have a result of this status.
fn of_status(books: &Books, status: &str) -> HashSet<String> {
    let results = books.results.iter().filter(|result| result.psp_status == status);
    results.map(|result| result.payment_order_id.to_string()).collect()
}

/// Every charge is one of one order, which knows of it or is before a person; and no order believes in one that was not made.
fn charges(books: &Books, findings: &mut Findings) {
    let asked: HashMap<String, &Asked> =
        books.asked.iter().map(|asked| (asked.payment_order_id.to_string(), asked)).collect();
    let (successful, failed) = (of_status(books, "SUCCESSFUL"), of_status(books, "FAILED"));
    let in_review: HashSet<String> = (books.inbox.iter())
        .filter(|taken| taken.state == REVIEW)
        .map(|taken| taken.payment_order_id.to_string())
        .collect();
    let mut charged: HashSet<&str> = HashSet::new();
    for charge in &books.charges {
        let order = charge.payment_order_id.as_deref().unwrap_or_default();
        let Some(asked) = asked.get(order) else {
            findings.add(
                "ghost",
                &charge.charge_id,
                format!("a charge of the order {order:?}, which nobody has asked for"),
            );
            continue;
        };
        if !charged.insert(order) {
            findings.add("double charged", order, format!("charged again as {}", charge.charge_id));
        }
        // Whether it may be before a person is seen with the ends.
        if !successful.contains(order) && !in_review.contains(order) {
            findings.add("lost", order, format!("charged as {}, and never SUCCESSFUL", charge.charge_id));
        }
        if failed.contains(order) {
            findings.add("contradiction", order, format!("FAILED, and charged as {}", charge.charge_id));
        }
        let (is, meant) = (
            (charge.amount_minor, charge.currency.to_uppercase()),
            (asked.amount_minor, asked.currency.to_owned()),
        );
        if is != meant {
            findings.add("contradiction", order, format!("charged {is:?}, asked for {meant:?}"));
        }
    }
    for order in successful.iter().filter(|order| !charged.contains(order.as_str())) {
        findings.add("ghost", order, "SUCCESSFUL, and never charged");
    }
}

/// Every order that has come to an end has come to that of its token.
fn ends(books: &Books, findings: &mut Findings) {
    let states: HashMap<Uuid, &str> =
        books.inbox.iter().map(|taken| (taken.payment_order_id, taken.state.as_str())).collect();
    let (successful, failed) = (of_status(books, "SUCCESSFUL"), of_status(books, "FAILED"));
    let charged: HashSet<&str> =
        books.charges.iter().filter_map(|charge| charge.payment_order_id.as_deref()).collect();
    for asked in &books.asked {
        let id = asked.payment_order_id.to_string();
        // One without an end is another finding.
        let Some(state) =
            states.get(&asked.payment_order_id).filter(|state| matches!(**state, SETTLED | REVIEW))
        else {
            continue;
        };
        let (in_review, charged) = (*state == REVIEW, charged.contains(id.as_str()));
        let (paid, declined) = (successful.contains(&id), failed.contains(&id));
        let right = match ending(asked.payment_method) {
            Some(_) if in_review => may_be_reviewed(asked),
            Some(Ending::Paid) => paid,
            Some(Ending::Declined) => declined && !paid && !charged,
            // Both are published, for a person to see.
            Some(Ending::Overtaken) => declined && paid,
            Some(Ending::Misstated | Ending::Untold) | None => false,
        };
        if !right {
            let results = match (paid, declined) {
                (true, true) => "SUCCESSFUL and FAILED",
                (true, false) => "SUCCESSFUL",
                (false, true) => "FAILED",
                (false, false) => "neither SUCCESSFUL nor FAILED",
            };
            let charged = if charged { "charged" } else { "never charged" };
            let text = format!("{} has ended as {state}, {results}, {charged}", asked.payment_method);
            findings.add("wrong end", id, text);
        }
    }
}

/// Stripe can be asked how a payment stands, and Adyen tells it: no webhook is dropped here. Only an error for ever tells nothing.
fn may_be_reviewed(asked: &Asked) -> bool {
    match ending(asked.payment_method) {
        Some(Ending::Misstated | Ending::Untold) => true,
        Some(Ending::Paid | Ending::Declined | Ending::Overtaken) | None => false,
    }
}

/// Every result is one event, and every event one result.
fn results(books: &Books, findings: &mut Findings) {
    let events: HashMap<Uuid, &OutboxEvent> =
        books.outbox.iter().map(|event| (event.event_id, event)).collect();
    let mut recorded: HashMap<Uuid, &PspResult> = HashMap::new();
    let mut facts: BTreeSet<(Uuid, &str, Option<&str>)> = BTreeSet::new();
    for result in &books.results {
        recorded.insert(result.event_id, result);
        let order = result.payment_order_id;
        let Some(event) = events.get(&result.event_id) else {
            findings.add("lost", order, format!("its result {} has no event", result.psp_status));
            continue;
        };
        let says = |field: &str| event.payload.get(field).and_then(|value| value.as_str());
        let of_event = (event.aggregate_id.as_str(), says("pspStatus"), says("pspReference"));
        let id = order.to_string();
        let of_result = (id.as_str(), Some(result.psp_status.as_str()), result.psp_reference.as_deref());
        if of_event != of_result {
            findings.add(
                "contradiction",
                order,
                format!("the event says {of_event:?}, the result {of_result:?}"),
            );
        }
        let final_one = matches!(result.psp_status.as_str(), "SUCCESSFUL" | "FAILED");
        if final_one && !facts.insert((order, result.psp_status.as_str(), result.psp_reference.as_deref())) {
            findings.add("applied twice", order, format!("{} is recorded twice", result.psp_status));
        }
    }
    let mut ids = HashSet::new();
    for event in &books.outbox {
        if !recorded.contains_key(&event.event_id) {
            findings.add(
                "ghost",
                event.event_id,
                format!("an event of {} without a result", event.aggregate_id),
            );
        }
        if !ids.insert(event.event_id) {
            findings.add("applied twice", event.event_id, "two rows of the outbox");
        }
    }
}

/// Every event is on the topic as it was written, in the order of its order's events; returns how many records came again.
fn published(outbox: &[OutboxEvent], topic: &[Record], findings: &mut Findings) -> usize {
    let rows: HashMap<Uuid, &OutboxEvent> = outbox.iter().map(|event| (event.event_id, event)).collect();
    let (mut firsts, mut newest) = (HashSet::new(), HashMap::new());
    let mut duplicates = 0;
    for record in topic {
        let Some((id, row)) = record.event_id().and_then(|id| Some((id, *rows.get(&id)?))) else {
            findings.add("ghost", record.place(), "a record that no row of the outbox stands for");
            continue;
        };
        if let Some(text) = difference(record, row) {
            findings.add("contradiction", id, text);
        }
        if !firsts.insert(id) {
            duplicates += 1;
            continue;
        }
        let newest = newest.entry(row.aggregate_id.as_str()).or_insert(row.id);
        if row.id < *newest {
            findings.add("order inversion", id, format!("row {} came after row {newest}", row.id));
        }
        *newest = row.id.max(*newest);
    }
    for row in outbox.iter().filter(|row| !firsts.contains(&row.event_id)) {
        findings.add(
            "lost",
            row.event_id,
            format!("an event of {} that is not on the topic", row.aggregate_id),
        );
    }
    duplicates
}

fn difference(record: &Record, row: &OutboxEvent) -> Option<String> {
    if record.key.as_deref() != Some(&row.aggregate_id) {
        return Some(format!("its record has the key {:?}", record.key));
    }
    let body = match &record.body {
        Ok(body) => body,
        Err(reason) => return Some(format!("its record cannot be decoded: {reason}")),
    };
    let differs = ["paymentOrderId", "pspStatus", "pspReference", "errorCode"].into_iter().find(|field| {
        let says =
            |value: &serde_json::Value| value.get(field).and_then(|value| value.as_str()).map(str::to_owned);
        says(body) != says(&row.payload)
    });
    differs.map(|field| format!("{field} of its record is not that of its row"))
}

#[cfg(test)]
mod tests;
