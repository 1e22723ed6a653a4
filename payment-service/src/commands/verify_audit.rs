//! `verify-audit`: folds `payment_order_transitions` and compares the outcome with the states. Reads only; may run beside everything.

use anyhow::{Context as _, bail};
use chassis::postgres;
use serde::Serialize;
use uuid::Uuid;

use crate::{
    config::VerifyAuditConfig,
    decision::{ReviewReason, State, payment_state},
    store::audit::{self, AuditedPayment},
};

/// Payments looked at in one snapshot: a long one would keep vacuum from its work.
const PAGE: i64 = 500;
/// Findings that are told one by one; beyond, they are counted.
const FINDINGS_MAX: usize = 100;

/// What was looked at, and what does not add up.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Audited {
    /// Payments looked at.
    pub payments: u64,
    /// Payment orders looked at.
    pub orders: u64,
    /// Lines of the audit that were folded.
    pub transitions: u64,
    /// Those of them that were made by hand.
    pub by_hand: u64,
    /// Those by which a person ended a review.
    pub resolved: u64,
    /// Findings, told or not.
    pub findings_total: u64,
    /// The first of them.
    pub findings: Vec<Finding>,
}

/// Something that does not add up.
#[derive(Clone, Debug, Serialize)]
pub struct Finding {
    /// `payment`, `payment-order` or `event`.
    pub what: &'static str,
    /// Its id.
    pub id: Uuid,
    /// What is wrong with it.
    pub text: String,
}

impl Audited {
    fn found(&mut self, what: &'static str, id: Uuid, text: String) {
        self.findings_total += 1;
        if self.findings.len() < FINDINGS_MAX {
            self.findings.push(Finding { what, id, text });
        }
    }

    fn payment(&mut self, payment: AuditedPayment) {
        self.payments += 1;
        let states: Vec<(State, Option<ReviewReason>)> =
            payment.orders.iter().map(|audited| (audited.order.state, audited.order.review_reason)).collect();
        let (state, reason) = payment_state(&states);
        if (state, reason) != payment.status {
            let words = |(state, reason): (State, Option<ReviewReason>)| {
                reason.map_or_else(
                    || state.as_str().to_owned(),
                    |reason| format!("{} ({})", state.as_str(), reason.as_str()),
                )
            };
            let text = format!(
                "it is {}, from its orders follows {}",
                words(payment.status),
                words((state, reason))
            );
            self.found("payment", payment.payment_id, text);
        }
        for audited in payment.orders {
            self.orders += 1;
            self.transitions += audited.lines;
            self.by_hand += audited.by_hand;
            self.resolved += audited.resolved;
            if let Some(text) = audited.fold.finish(&audited.order) {
                self.found("payment-order", audited.payment_order_id, text);
            }
        }
    }
}

/// Looks at everything. An error if anything does not add up, after it was printed.
pub async fn verify_audit(config: &VerifyAuditConfig) -> anyhow::Result<Audited> {
    let mut connection =
        postgres::connect(&config.common.database_url, "payment-service verify-audit").await?;
    // The events are compared as a whole: that takes as long as it takes.
    sqlx::query("SET statement_timeout = 0").execute(&mut connection).await?;
    let mut audited = Audited::default();
    let mut after = Uuid::nil();
    loop {
        audit::begin_look(&mut connection).await?;
        let page = audit::payments_after(&mut connection, after, PAGE).await.context("read the audit")?;
        audit::end_look(&mut connection).await?;
        let Some(last) = page.last() else { break };
        after = last.payment_id;
        for payment in page {
            audited.payment(payment);
        }
    }
    let limit = i64::try_from(FINDINGS_MAX)?;
    for (event_id, text) in
        audit::events_out_of_step(&mut connection, limit).await.context("compare the events")?
    {
        audited.found("event", event_id, text);
    }
    super::print(config.common.json, &audited, || words(&audited))?;
    if audited.findings_total > 0 {
        bail!("the audit and the states differ: {} findings", audited.findings_total);
    }
    Ok(audited)
}

fn words(audited: &Audited) -> String {
    let line = |Finding { what, id, text }: &Finding| format!("{what} {id}: {text}\n");
    let found: String = audited.findings.iter().map(line).collect();
    let Audited { payments, orders, transitions, by_hand, resolved, findings_total, .. } = audited;
    let verdict = match findings_total {
        0 => "the audit and the states agree".to_owned(),
        total => format!("{total} findings"),
    };
    format!(
        "{found}{payments} payments, {orders} payment orders, {transitions} transitions ({by_hand} by hand, {resolved} resolved): {verdict}"
    )
}
