//! Parameters: from a form to what an operation means, or the refusal that Stripe would give.
//!
//! What is refused here never began to execute: it leaves no trace under its idempotency key. Parameters that Stripe
//! has and the simulator does not are refused too, in other words: ignoring them would be a lie.

use super::errors::Refusal;
use super::form::Form;
use super::objects::{Expand, Terms};
use super::reader::{Checked, Reader, currency};

const MAX_AMOUNT: i64 = 99_999_999;
const DEFAULT_PAGE: usize = 10;
const MAX_PAGE: usize = 100;

/// `POST /v1/payment_intents`
#[derive(Debug)]
pub(crate) struct Create {
    pub(crate) terms: Terms,
    pub(crate) payment_method: Option<String>,
    /// Given with `confirm=true`.
    pub(crate) confirm: Option<Confirmation>,
    pub(crate) expand: Expand,
}

/// `POST /v1/payment_intents/{id}/confirm`
#[derive(Debug)]
pub(crate) struct Confirm {
    pub(crate) payment_method: Option<String>,
    pub(crate) confirmation: Confirmation,
    pub(crate) expand: Expand,
}

/// How to confirm.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Confirmation {
    pub(crate) off_session: bool,
    pub(crate) error_on_requires_action: bool,
    pub(crate) has_return_url: bool,
}

/// `POST /v1/payment_intents/{id}/cancel`
#[derive(Debug)]
pub(crate) struct Cancel {
    pub(crate) reason: Option<&'static str>,
    pub(crate) expand: Expand,
}

/// `GET /v1/payment_intents/{id}`
#[derive(Debug)]
pub(crate) struct Retrieve {
    pub(crate) expand: Expand,
}

/// `GET /v1/payment_intents`
#[derive(Debug)]
pub(crate) struct List {
    pub(crate) limit: usize,
    pub(crate) starting_after: Option<String>,
    pub(crate) ending_before: Option<String>,
    pub(crate) expand: Expand,
}

impl Create {
    pub(crate) fn parse(form: Form) -> Checked<Self> {
        let mut reader = Reader::new(form, CREATE, CREATE_NOT_SIMULATED)?;
        let confirm = reader.boolean("confirm")?.unwrap_or(false);
        if !confirm {
            for name in ["off_session", "error_on_requires_action", "return_url"] {
                if reader.has(name) {
                    let message = format!("`{name}` can only be used with `confirm=true`.");
                    return Err(Refusal::invalid(None, message).about(name));
                }
            }
        }
        reader.text("use_stripe_sdk")?;
        let confirmation = reader.confirmation()?;
        Ok(Self {
            terms: terms(&mut reader)?,
            payment_method: reader.filled_text("payment_method")?,
            confirm: confirm.then_some(confirmation),
            expand: reader.expand("")?,
        })
    }
}

fn terms(reader: &mut Reader) -> Checked<Terms> {
    let amount = reader.integer("amount")?.ok_or_else(|| Refusal::missing("amount"))?;
    if amount < 1 {
        let message = "This value must be greater than or equal to 1.";
        return Err(Refusal::invalid(Some("parameter_invalid_integer"), message).about("amount"));
    }
    if amount > MAX_AMOUNT {
        let message = format!("Amount must be no more than {MAX_AMOUNT}.");
        return Err(Refusal::invalid(Some("amount_too_large"), message).about("amount"));
    }
    let currency = currency(&reader.required_text("currency")?)?;
    let types = reader.texts("payment_method_types")?;
    if types.iter().any(|kind| kind != "card") {
        return Err(Refusal::not_simulated("payment_method_types other than card"));
    }
    let capture_method = reader
        .choice("capture_method", &["automatic", "automatic_async", "manual"])?
        .unwrap_or("automatic_async");
    if capture_method == "manual" {
        return Err(Refusal::not_simulated("capture_method=manual"));
    }
    Ok(Terms {
        amount,
        currency: currency.into(),
        allow_redirects: reader.automatic_payment_methods(types.is_empty())?,
        capture_method,
        confirmation_method: reader
            .choice("confirmation_method", &["automatic", "manual"])?
            .unwrap_or("automatic"),
        customer: reader.text("customer")?,
        description: reader.text("description")?,
        receipt_email: reader.text("receipt_email")?,
        setup_future_usage: reader.choice("setup_future_usage", &["off_session", "on_session"])?,
        statement_descriptor: reader.text("statement_descriptor")?,
        statement_descriptor_suffix: reader.text("statement_descriptor_suffix")?,
        metadata: reader.metadata()?,
    })
}

impl Confirm {
    pub(crate) fn parse(form: Form) -> Checked<Self> {
        let mut reader = Reader::new(form, CONFIRM, CONFIRM_NOT_SIMULATED)?;
        reader.text("use_stripe_sdk")?;
        Ok(Self {
            payment_method: reader.filled_text("payment_method")?,
            confirmation: reader.confirmation()?,
            expand: reader.expand("")?,
        })
    }
}

impl Cancel {
    pub(crate) fn parse(form: Form) -> Checked<Self> {
        let mut reader = Reader::new(form, &["cancellation_reason", "expand"], &[])?;
        let reasons = ["duplicate", "fraudulent", "requested_by_customer", "abandoned"];
        Ok(Self { reason: reader.choice("cancellation_reason", &reasons)?, expand: reader.expand("")? })
    }
}

impl Retrieve {
    pub(crate) fn parse(form: Form) -> Checked<Self> {
        let mut reader = Reader::new(form, &["client_secret", "expand"], &[])?;
        reader.text("client_secret")?;
        Ok(Self { expand: reader.expand("")? })
    }
}

impl List {
    pub(crate) fn parse(form: Form) -> Checked<Self> {
        let mut reader = Reader::new(
            form,
            &["limit", "starting_after", "ending_before", "expand"],
            &["created", "customer", "customer_account"],
        )?;
        let limit = match reader.integer("limit")? {
            None => DEFAULT_PAGE,
            Some(limit) => usize::try_from(limit)
                .ok()
                .filter(|limit| (1..=MAX_PAGE).contains(limit))
                .ok_or_else(|| {
                    let message = format!("Invalid limit: must be between 1 and {MAX_PAGE}.");
                    Refusal::invalid(Some("parameter_invalid_integer"), message).about("limit")
                })?,
        };
        Ok(Self {
            limit,
            starting_after: reader.filled_text("starting_after")?,
            ending_before: reader.filled_text("ending_before")?,
            expand: reader.expand("data.")?,
        })
    }
}

const CREATE: &[&str] = &[
    "amount",
    "automatic_payment_methods",
    "capture_method",
    "confirm",
    "confirmation_method",
    "currency",
    "customer",
    "description",
    "error_on_requires_action",
    "expand",
    "metadata",
    "off_session",
    "payment_method",
    "payment_method_types",
    "receipt_email",
    "return_url",
    "setup_future_usage",
    "statement_descriptor",
    "statement_descriptor_suffix",
    "use_stripe_sdk",
];

const CREATE_NOT_SIMULATED: &[&str] = &[
    "allowed_payment_method_types",
    "amount_details",
    "application_fee_amount",
    "confirmation_token",
    "customer_account",
    "excluded_payment_method_types",
    "hooks",
    "mandate",
    "mandate_data",
    "on_behalf_of",
    "payment_details",
    "payment_method_configuration",
    "payment_method_data",
    "payment_method_options",
    "radar_options",
    "shipping",
    "transfer_data",
    "transfer_group",
];

const CONFIRM: &[&str] =
    &["error_on_requires_action", "expand", "off_session", "payment_method", "return_url", "use_stripe_sdk"];

const CONFIRM_NOT_SIMULATED: &[&str] = &[
    "allowed_payment_method_types",
    "amount_details",
    "amount_to_confirm",
    "capture_method",
    "client_secret",
    "confirmation_token",
    "excluded_payment_method_types",
    "hooks",
    "mandate",
    "mandate_data",
    "payment_details",
    "payment_method_data",
    "payment_method_options",
    "payment_method_types",
    "radar_options",
    "receipt_email",
    "setup_future_usage",
    "shipping",
];
