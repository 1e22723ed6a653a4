//! Stripe's objects on the wire: fields and order as in Stripe's answers.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::{Value, json};

use super::declines::words;
use super::ids;
use super::objects::{Charge, Expand, Intent, Method, Snapshot, Status, Terms};
use crate::scenario::{Action, Statement, Verdict};

/// The PaymentIntent on the wire.
#[derive(Debug, Serialize)]
pub(crate) struct IntentBody<'a> {
    id: &'a str,
    object: &'static str,
    amount: i64,
    amount_capturable: i64,
    amount_details: Value,
    amount_received: i64,
    application: Option<()>,
    application_fee_amount: Option<()>,
    automatic_payment_methods: Option<AutomaticBody>,
    canceled_at: Option<i64>,
    cancellation_reason: Option<&'static str>,
    capture_method: &'static str,
    client_secret: String,
    confirmation_method: &'static str,
    created: i64,
    currency: &'a str,
    customer: Option<&'a str>,
    customer_account: Option<()>,
    description: Option<&'a str>,
    excluded_payment_method_types: Option<()>,
    last_payment_error: Option<Value>,
    latest_charge: Option<Value>,
    livemode: bool,
    metadata: &'a BTreeMap<Box<str>, Box<str>>,
    next_action: Option<Value>,
    on_behalf_of: Option<()>,
    payment_method: Option<Value>,
    payment_method_configuration_details: Option<()>,
    payment_method_options: Value,
    payment_method_types: [&'static str; 1],
    processing: Option<()>,
    receipt_email: Option<&'a str>,
    review: Option<()>,
    setup_future_usage: Option<&'static str>,
    shipping: Option<()>,
    statement_descriptor: Option<&'a str>,
    statement_descriptor_suffix: Option<&'a str>,
    status: Status,
    transfer_data: Option<()>,
    transfer_group: Option<()>,
}

#[derive(Debug, Serialize)]
struct AutomaticBody {
    allow_redirects: &'static str,
    enabled: bool,
}

/// What is said to have been taken, and in which currency.
fn stated(terms: &Terms, statement: Statement, taken: i64) -> (i64, &str) {
    match statement {
        Statement::OtherAmount if taken > 0 => (taken + 1, &terms.currency),
        Statement::OtherCurrency if taken > 0 => {
            (taken, if &*terms.currency == "eur" { "usd" } else { "eur" })
        }
        Statement::True | Statement::OtherAmount | Statement::OtherCurrency => (taken, &terms.currency),
    }
}

impl Snapshot {
    fn stated(&self) -> (i64, &str) {
        let taken = self.state.latest_charge.as_ref().map_or(0, |charge| charge.taken);
        stated(&self.intent.terms, self.state.statement, taken)
    }

    pub(crate) fn body(&self, expand: Expand) -> IntentBody<'_> {
        let (intent, terms, state) = (&self.intent, &self.intent.terms, &self.state);
        let (received, currency) = self.stated();
        IntentBody {
            id: &intent.id,
            object: "payment_intent",
            amount: terms.amount,
            amount_capturable: 0,
            amount_details: json!({ "tip": {} }),
            amount_received: received,
            application: None,
            application_fee_amount: None,
            automatic_payment_methods: terms
                .allow_redirects
                .map(|allow_redirects| AutomaticBody { allow_redirects, enabled: true }),
            canceled_at: state.canceled_at,
            cancellation_reason: state.cancellation_reason,
            capture_method: terms.capture_method,
            client_secret: ids::client_secret(&intent.id),
            confirmation_method: terms.confirmation_method,
            created: intent.created,
            currency,
            customer: terms.customer.as_deref(),
            customer_account: None,
            description: terms.description.as_deref(),
            excluded_payment_method_types: None,
            last_payment_error: state.failure.as_deref().map(Charge::last_payment_error),
            latest_charge: state.latest_charge.as_deref().map(|charge| {
                if expand.latest_charge {
                    charge.body(intent, state.statement)
                } else {
                    charge.id.as_ref().into()
                }
            }),
            livemode: false,
            metadata: &terms.metadata,
            next_action: self.next_action(),
            on_behalf_of: None,
            payment_method: state
                .method
                .as_ref()
                .map(|method| if expand.payment_method { method.body() } else { method.id.as_ref().into() }),
            payment_method_configuration_details: None,
            payment_method_options: json!({ "card": {
                "installments": null, "mandate_options": null, "network": null, "request_three_d_secure": "automatic",
            } }),
            payment_method_types: ["card"],
            processing: None,
            receipt_email: terms.receipt_email.as_deref(),
            review: None,
            setup_future_usage: terms.setup_future_usage,
            shipping: None,
            statement_descriptor: terms.statement_descriptor.as_deref(),
            statement_descriptor_suffix: terms.statement_descriptor_suffix.as_deref(),
            status: state.status,
            transfer_data: None,
            transfer_group: None,
        }
    }
}

impl Snapshot {
    fn next_action(&self) -> Option<Value> {
        if self.state.status != Status::RequiresAction {
            return None;
        }
        let verdict = self.state.method.as_ref().map(|method| method.test.course.verdict);
        Some(if verdict == Some(Verdict::Action(Action::Redirect)) {
            json!({
                "type": "redirect_to_url",
                "redirect_to_url": { "return_url": null, "url": "https://hooks.stripe.com/redirect/authenticate" },
            })
        } else {
            json!({ "type": "use_stripe_sdk", "use_stripe_sdk": { "type": "three_d_secure_redirect" } })
        })
    }
}

impl Method {
    pub(crate) fn body(&self) -> Value {
        let mut card = self.card();
        card["display_brand"] = "visa".into();
        card["generated_from"] = Value::Null;
        card["networks"] = json!({ "available": ["visa"], "preferred": null });
        card["three_d_secure_usage"] = json!({ "supported": true });
        json!({
            "id": &*self.id,
            "object": "payment_method",
            "allow_redisplay": "unspecified",
            "billing_details": billing_details(),
            "card": card,
            "created": self.created,
            "customer": null,
            "livemode": false,
            "metadata": {},
            "type": "card",
        })
    }

    fn card(&self) -> Value {
        json!({
            "brand": "visa",
            "checks": { "address_line1_check": null, "address_postal_code_check": null, "cvc_check": null },
            "country": "US",
            "exp_month": 12,
            "exp_year": 2034,
            "fingerprint": "Xt5EWLLDS7FJjR1c",
            "funding": "credit",
            "last4": self.test.last4,
            "wallet": null,
        })
    }
}

fn billing_details() -> Value {
    let address = json!({
        "city": null, "country": null, "line1": null, "line2": null, "postal_code": null, "state": null,
    });
    json!({ "address": address, "email": null, "name": null, "phone": null, "tax_id": null })
}

impl Charge {
    fn last_payment_error(&self) -> Value {
        let Some(words) = self.decline.map(words) else { return Value::Null };
        let mut error = json!({
            "charge": &*self.id,
            "code": words.code,
            "doc_url": doc_url(words.code),
            "message": words.message,
            "payment_method": self.method.body(),
            "type": "card_error",
        });
        for (name, value) in
            [("decline_code", words.decline_code), ("param", words.param), ("advice_code", words.advice_code)]
        {
            if let Some(value) = value {
                error[name] = value.into();
            }
        }
        error
    }

    fn body(&self, intent: &Intent, statement: Statement) -> Value {
        let (terms, paid) = (&intent.terms, self.decline.is_none());
        let (captured, currency) = stated(terms, statement, self.taken);
        let words = self.decline.map(words);
        json!({
            "id": &*self.id,
            "object": "charge",
            "amount": terms.amount,
            "amount_captured": captured,
            "amount_refunded": 0,
            "application": null,
            "application_fee": null,
            "application_fee_amount": null,
            "balance_transaction": null,
            "billing_details": billing_details(),
            "calculated_statement_descriptor": null,
            "captured": paid,
            "created": self.created,
            "currency": currency,
            "customer": &terms.customer,
            "description": &terms.description,
            "disputed": false,
            "failure_balance_transaction": null,
            "failure_code": words.as_ref().map(|words| words.code),
            "failure_message": words.as_ref().map(|words| words.message),
            "fraud_details": {},
            "livemode": false,
            "metadata": &terms.metadata,
            "on_behalf_of": null,
            "outcome": outcome(words.as_ref().map(|words| words.decline_code.unwrap_or(words.code))),
            "paid": paid,
            "payment_intent": &*intent.id,
            "payment_method": &*self.method.id,
            "payment_method_details": { "card": self.method.card(), "type": "card" },
            "receipt_email": &terms.receipt_email,
            "receipt_number": null,
            "receipt_url": null,
            "refunded": false,
            "review": null,
            "shipping": null,
            "source_transfer": null,
            "statement_descriptor": &terms.statement_descriptor,
            "statement_descriptor_suffix": &terms.statement_descriptor_suffix,
            "status": if paid { "succeeded" } else { "failed" },
            "transfer_data": null,
            "transfer_group": null,
        })
    }
}

fn outcome(reason: Option<&str>) -> Value {
    let (network_status, kind, seller_message) = match reason {
        None => ("approved_by_network", "authorized", "Payment complete."),
        Some(_) => ("declined_by_network", "issuer_declined", "The bank declined the payment."),
    };
    json!({
        "advice_code": null, "network_advice_code": null, "network_decline_code": null,
        "network_status": network_status, "reason": reason, "risk_level": "normal", "risk_score": 12,
        "seller_message": seller_message, "type": kind,
    })
}

/// Where Stripe explains an error code.
pub(crate) fn doc_url(code: &str) -> String {
    format!("https://stripe.com/docs/error-codes/{}", code.replace('_', "-"))
}
