//! From an outbox to the other side: is every committed event on its topic, once or more, as it was written and in order; and
//! is nothing there that was never committed?

use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use uuid::Uuid;

use super::books::{OutboxEvent, Record};
use super::{Index, Promise, Verdict};

pub(super) fn examine(index: &Index<'_>, verdict: &mut Verdict) {
    let books = index.books;
    topic("request", &books.payments.outbox, &books.requests, &index.requests, verdict);
    topic("result", &books.executor.outbox, &books.results, &index.results, verdict);
}

fn topic(
    what: &str,
    outbox: &[OutboxEvent],
    records: &[Record],
    rows: &HashMap<Uuid, &OutboxEvent>,
    verdict: &mut Verdict,
) {
    let mut firsts: HashMap<Uuid, &Record> = HashMap::new();
    let mut by_key: BTreeMap<&str, Vec<(&Record, &OutboxEvent)>> = BTreeMap::new();
    for record in records {
        let Some(event_id) = record.event_id() else {
            let text = format!("a {what} record without ce_id in {}", record.place());
            verdict.report(Promise::NoGhost, format!("{what} {}", record.place()), text);
            continue;
        };
        let Some(&row) = rows.get(&event_id) else {
            let text = format!("a {what} event in {} that no row of the outbox stands for", record.place());
            verdict.report(Promise::NoGhost, event_id, text);
            continue;
        };
        if let Some(text) = difference(record, row) {
            verdict.report(Promise::Consistent, event_id, format!("the {what} in {} {text}", record.place()));
        }
        if firsts.contains_key(&event_id) {
            continue;
        }
        firsts.insert(event_id, record);
        by_key.entry(&row.aggregate_id).or_default().push((record, row));
    }
    for row in outbox.iter().filter(|row| !firsts.contains_key(&row.event_id)) {
        let text = format!("its {what} event {} (outbox row {}) is not on the topic", row.event_id, row.id);
        verdict.report(Promise::NothingLost, &row.aggregate_id, text);
    }
    for (key, occurrences) in by_key {
        order_of_key(what, key, &occurrences, verdict);
    }
}

/// First occurrences of a key: all in one partition, and in the order of the outbox.
fn order_of_key(what: &str, key: &str, occurrences: &[(&Record, &OutboxEvent)], verdict: &mut Verdict) {
    let partitions: BTreeSet<i32> = occurrences.iter().map(|(record, _)| record.partition).collect();
    if partitions.len() > 1 {
        let text = format!("its {what} events lie in the partitions {partitions:?}");
        verdict.report(Promise::InOrder, key, text);
    }
    for pair in occurrences.windows(2) {
        let [(earlier, first), (later, second)] = pair else { continue };
        if earlier.partition == later.partition && first.id > second.id {
            let text = format!(
                "the {what} event of outbox row {} lies in {}, before that of row {} at offset {}",
                first.id,
                earlier.place(),
                second.id,
                later.offset
            );
            verdict.report(Promise::InOrder, key, text);
        }
    }
}

/// What a record says otherwise than its row.
fn difference(record: &Record, row: &OutboxEvent) -> Option<String> {
    if record.key.as_deref() != Some(&row.aggregate_id) {
        return Some(format!("has the key {:?}, its row {:?}", record.key, row.aggregate_id));
    }
    let traceparent = record.header("traceparent");
    if traceparent != row.traceparent.as_deref() {
        return Some(format!("has the traceparent {traceparent:?}, its row {:?}", row.traceparent));
    }
    match &record.body {
        Err(reason) => Some(format!("cannot be decoded: {reason}")),
        Ok(body) if canonical(body) != canonical(&row.payload) => {
            Some(format!("says {body}, its row {}", row.payload))
        }
        Ok(_) => None,
    }
}

/// A flat JSON object without its nulls, and with times in one notation: in the outbox a field without a value is absent, and a
/// time may have any number of digits.
fn canonical(object: &Value) -> BTreeMap<&str, Value> {
    let fields = object.as_object().into_iter().flatten();
    fields
        .filter(|(_, value)| !value.is_null())
        .map(|(name, value)| {
            let at = value.as_str().and_then(|text| OffsetDateTime::parse(text, &Rfc3339).ok());
            let value = at.map_or_else(|| value.clone(), |at| at.unix_timestamp_nanos().to_string().into());
            (name.as_str(), value)
        })
        .collect()
}
