//! The ledger: one entry per charge that was really made, appended before the charge's answer is given or withheld.
//!
//! It is the ground truth that others compare their books with, so nothing is ever changed or removed.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};

use serde::{Serialize, Serializer};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::held;
use crate::scenario::Psp;

/// One charge.
#[derive(Debug, Serialize)]
pub(crate) struct Charge {
    /// Position in the ledger, from 1: what `?after=` takes.
    pub(crate) sequence: usize,
    #[serde(rename = "charge_id", serialize_with = "text")]
    pub(crate) id: Arc<str>,
    pub(crate) psp: Psp,
    /// The PSP's reference of the payment: the PaymentIntent's id, or Adyen's pspReference.
    #[serde(serialize_with = "text")]
    pub(crate) reference: Arc<str>,
    /// The same under the name that it had when Stripe was alone here.
    #[serde(serialize_with = "text")]
    pub(crate) payment_intent: Arc<str>,
    /// Stripe's `metadata[payment_order_id]`, Adyen's `reference`.
    pub(crate) payment_order_id: Option<Box<str>>,
    /// What was taken, as the PSP counts: its exponent of a currency can differ from ISO 4217.
    pub(crate) amount_minor: i64,
    /// As it was sent: Stripe's are lower case.
    #[serde(serialize_with = "text")]
    pub(crate) currency: Arc<str>,
    #[serde(serialize_with = "rfc3339")]
    pub(crate) charged_at: OffsetDateTime,
}

fn rfc3339<S: Serializer>(at: &OffsetDateTime, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&at.format(&Rfc3339).map_err(serde::ser::Error::custom)?)
}

fn text<S: Serializer>(text: &Arc<str>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(text)
}

fn charges<S: Serializer>(charges: &[Arc<Charge>], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(charges.iter().map(AsRef::as_ref))
}

/// A part of the ledger.
#[derive(Debug, Serialize)]
pub(crate) struct Page {
    #[serde(serialize_with = "charges")]
    pub(crate) charges: Vec<Arc<Charge>>,
    pub(crate) has_more: bool,
}

/// Totals of the ledger.
#[derive(Debug, Serialize)]
pub(crate) struct Summary {
    pub(crate) charges: usize,
    /// Different payment orders charged, whoever charged them.
    pub(crate) payment_orders: usize,
    /// Payment orders charged more than once, by one PSP or by both.
    pub(crate) double_charged: usize,
    /// Charges that name no payment order.
    pub(crate) without_payment_order: usize,
    pub(crate) amount_minor_by_currency: BTreeMap<String, i128>,
    pub(crate) charges_by_psp: BTreeMap<&'static str, usize>,
}

#[derive(Debug, Default)]
pub(crate) struct Ledger(Mutex<Book>);

#[derive(Debug, Default)]
struct Book {
    charges: Vec<Arc<Charge>>,
    charges_by_order: HashMap<Box<str>, usize>,
    double_charged: usize,
    without_payment_order: usize,
    amounts: BTreeMap<String, i128>,
    by_psp: BTreeMap<&'static str, usize>,
}

impl Ledger {
    /// Appends a charge; the sequence is given here.
    pub(crate) fn append(&self, mut charge: Charge) {
        let mut guard = held(&self.0);
        let book = &mut *guard;
        charge.sequence = book.charges.len() + 1;
        match &charge.payment_order_id {
            Some(order) => {
                let count = book.charges_by_order.entry(order.clone()).or_default();
                *count += 1;
                book.double_charged += usize::from(*count == 2);
            }
            None => book.without_payment_order += 1,
        }
        let amount = i128::from(charge.amount_minor);
        match book.amounts.get_mut(&*charge.currency) {
            Some(total) => *total += amount,
            None => drop(book.amounts.insert(charge.currency.to_string(), amount)),
        }
        *book.by_psp.entry(charge.psp.name()).or_default() += 1;
        book.charges.push(Arc::new(charge));
    }

    /// The charges after position `after`, at most `limit`: all of them without a limit.
    pub(crate) fn page(&self, after: usize, limit: Option<usize>) -> Page {
        let book = held(&self.0);
        let rest = book.charges.get(after..).unwrap_or_default();
        let count = limit.unwrap_or(rest.len()).min(rest.len());
        Page { charges: rest[..count].to_vec(), has_more: count < rest.len() }
    }

    pub(crate) fn summary(&self) -> Summary {
        let book = held(&self.0);
        Summary {
            charges: book.charges.len(),
            payment_orders: book.charges_by_order.len(),
            double_charged: book.double_charged,
            without_payment_order: book.without_payment_order,
            amount_minor_by_currency: book.amounts.clone(),
            charges_by_psp: book.by_psp.clone(),
        }
    }
}
