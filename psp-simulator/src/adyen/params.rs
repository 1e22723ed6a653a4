//! Requests: from JSON to what an operation means, or the refusal that Adyen would give.
//!
//! What is refused here never began to execute: it leaves no trace under its idempotency key. Fields that Adyen acts on
//! and the simulator does not are refused too, in other words; fields that only inform (of the shopper, his browser or
//! what he bought) are taken and change nothing.

use serde_json::{Map, Value};

use super::TOKEN_PREFIX;
use super::errors::Refusal;
use super::reader::{Checked, Reader};
use crate::scenario::{Course, Decline, Psp, Verdict, by_token};

const MAX_REFERENCE: usize = 80;
/// As the OpenAPI document has it.
const MIN_SHOPPER_REFERENCE: usize = 3;

/// `POST /v71/payments`
#[derive(Debug)]
pub(crate) struct Pay {
    pub(crate) terms: Terms,
    /// With the off-session case decided.
    pub(crate) course: Course,
}

/// What a payment was made with.
#[derive(Debug)]
pub(crate) struct Terms {
    pub(crate) merchant_account: Box<str>,
    pub(crate) reference: Box<str>,
    pub(crate) amount: i64,
    pub(crate) currency: Box<str>,
    pub(crate) recurring_processing_model: Option<&'static str>,
}

/// `POST /v71/cancels` and `POST /v71/payments/{pspReference}/cancels`
#[derive(Debug)]
pub(crate) struct Cancel {
    pub(crate) merchant_account: Box<str>,
    /// Of the payment; the first of the two asks for it.
    pub(crate) payment_reference: Option<Box<str>>,
    /// Of the cancel itself.
    pub(crate) reference: Option<Box<str>>,
}

impl Pay {
    pub(crate) fn parse(fields: Map<String, Value>) -> Checked<Self> {
        let mut reader = Reader::new("PaymentRequest", fields, PAY, PAY_NOT_SIMULATED)?;
        let amount =
            reader.object("amount")?.ok_or_else(|| Refusal::invalid("100", "No amount specified"))?;
        let (amount, currency) = money(amount)?;
        let reference =
            reader.text("reference")?.ok_or_else(|| Refusal::invalid("130", "Reference Missing"))?;
        if reference.chars().count() > MAX_REFERENCE {
            return Err(Refusal::invalid("132", "Reference is too long: at most 80 characters"));
        }
        if reader.text("returnUrl")?.is_none() {
            return Err(Refusal::invalid("14_030", "Return URL is missing."));
        }
        let merchant_account = reader.text("merchantAccount")?.ok_or_else(Refusal::merchant_account)?;
        let method = reader
            .object("paymentMethod")?
            .ok_or_else(|| Refusal::invalid("14_004", "Missing payment method details"))?;
        match reader.text("shopperReference")? {
            None => return Err(Refusal::invalid("14_018", "Required field 'shopperReference' is missing.")),
            Some(shopper) if shopper.chars().count() < MIN_SHOPPER_REFERENCE => {
                return Err(Refusal::invalid("14_018", "Field 'shopperReference' is not valid: too short."));
            }
            Some(_) => {}
        }
        let models = ["CardOnFile", "Subscription", "UnscheduledCardOnFile"];
        let recurring_processing_model = reader.choice("recurringProcessingModel", &models)?;
        let interactions = ["Ecommerce", "ContAuth", "Moto", "POS"];
        let off_session = match reader.choice("shopperInteraction", &interactions)? {
            Some("POS") => return Err(Refusal::not_simulated("shopperInteraction POS")),
            interaction => interaction == Some("ContAuth"),
        };
        reader.check_metadata()?;
        let mut course = stored_method(method)?;
        if course.verdict == Verdict::Authenticate && off_session {
            course.verdict = Verdict::Declined(Decline::AuthenticationRequired);
        }
        let terms = Terms { merchant_account, reference, amount, currency, recurring_processing_model };
        Ok(Self { terms, course })
    }
}

fn money(fields: Map<String, Value>) -> Checked<(i64, Box<str>)> {
    let mut reader = Reader::new("Amount", fields, &["currency", "value"], &[])?;
    let value =
        reader.integer("value")?.ok_or_else(|| Refusal::invalid("137", "Invalid amount specified"))?;
    if value < 1 {
        return Err(Refusal::invalid("137", "Invalid amount specified"));
    }
    let currency = reader.text("currency")?.unwrap_or_default();
    if !CURRENCIES.split(' ').any(|known| known == &*currency) {
        return Err(Refusal::invalid("138", "Unsupported currency specified"));
    }
    Ok((value, currency))
}

fn stored_method(fields: Map<String, Value>) -> Checked<Course> {
    let mut reader = Reader::new("PaymentDetails", fields, METHOD, METHOD_NOT_SIMULATED)?;
    match reader.text("type")?.as_deref() {
        None | Some("scheme") => {}
        Some(_) => return Err(Refusal::not_simulated("payment methods other than stored cards (scheme)")),
    }
    let token = reader
        .text("storedPaymentMethodId")?
        .ok_or_else(|| Refusal::invalid("14_004", "Missing payment method details"))?;
    by_token(Psp::Adyen, TOKEN_PREFIX, &token)
        .ok_or_else(|| Refusal::invalid("803", "PaymentDetail not found"))
}

impl Cancel {
    pub(crate) fn by_reference(fields: Map<String, Value>) -> Checked<Self> {
        let mut reader =
            Reader::new("StandalonePaymentCancelRequest", fields, CANCEL_BY_REFERENCE, CANCEL_NOT_SIMULATED)?;
        let payment_reference =
            reader.text("paymentReference")?.ok_or_else(|| Refusal::invalid("130", "Reference Missing"))?;
        Self::parse(reader, Some(payment_reference))
    }

    pub(crate) fn of_payment(fields: Map<String, Value>) -> Checked<Self> {
        Self::parse(Reader::new("PaymentCancelRequest", fields, CANCEL, CANCEL_NOT_SIMULATED)?, None)
    }

    fn parse(mut reader: Reader, payment_reference: Option<Box<str>>) -> Checked<Self> {
        let merchant_account = reader.text("merchantAccount")?.ok_or_else(Refusal::merchant_account)?;
        Ok(Self { merchant_account, payment_reference, reference: reader.text("reference")? })
    }
}

const CANCEL_BY_REFERENCE: &[&str] = &["applicationInfo", "merchantAccount", "paymentReference", "reference"];
const CANCEL: &[&str] = &["applicationInfo", "merchantAccount", "reference"];
const CANCEL_NOT_SIMULATED: &[&str] = &["enhancedSchemeData"];

/// Those with a meaning here, and those that only inform.
const PAY: &[&str] = &[
    "amount",
    "merchantAccount",
    "metadata",
    "paymentMethod",
    "recurringProcessingModel",
    "reference",
    "returnUrl",
    "shopperInteraction",
    "shopperReference",
    "accountInfo",
    "applicationInfo",
    "billingAddress",
    "browserInfo",
    "channel",
    "checkoutAttemptId",
    "company",
    "conversionId",
    "countryCode",
    "dateOfBirth",
    "deliverAt",
    "deliveryAddress",
    "deliveryDate",
    "deviceFingerprint",
    "lineItems",
    "localizedShopperStatement",
    "mcc",
    "merchantOrderReference",
    "merchantRiskIndicator",
    "orderReference",
    "origin",
    "redirectFromIssuerMethod",
    "redirectToIssuerMethod",
    "shopperConversionId",
    "shopperEmail",
    "shopperIP",
    "shopperLocale",
    "shopperName",
    "shopperStatement",
    "socialSecurityNumber",
    "telephoneNumber",
];

const PAY_NOT_SIMULATED: &[&str] = &[
    "additionalAmount",
    "additionalData",
    "authenticationData",
    "bankAccount",
    "captureDelayHours",
    "dccQuote",
    "enableOneClick",
    "enablePayOut",
    "enableRecurring",
    "enhancedSchemeData",
    "entityType",
    "fraudOffset",
    "fundOrigin",
    "fundRecipient",
    "industryUsage",
    "installments",
    "mandate",
    "mpiData",
    "order",
    "paymentValidations",
    "platformChargebackLogic",
    "recurringExpiry",
    "recurringFrequency",
    "riskData",
    "sessionValidity",
    "shopperTaxInfo",
    "splits",
    "store",
    "storePaymentMethod",
    "subMerchants",
    "surcharge",
    "threeDS2RequestData",
    "threeDSAuthenticationOnly",
    "trustedShopper",
];

const METHOD: &[&str] =
    &["brand", "checkoutAttemptId", "fundingSource", "holderName", "storedPaymentMethodId", "type"];

const METHOD_NOT_SIMULATED: &[&str] = &[
    "billingSequenceNumber",
    "cupsecureplus.smscode",
    "cvc",
    "encryptedCard",
    "encryptedCardNumber",
    "encryptedExpiryMonth",
    "encryptedExpiryYear",
    "encryptedPassword",
    "encryptedSecurityCode",
    "expiryMonth",
    "expiryYear",
    "fastlaneData",
    "networkPaymentReference",
    "number",
    "recurringDetailReference",
    "sdkData",
    "shopperNotificationReference",
    "srcCorrelationId",
    "srcDigitalCardId",
    "srcScheme",
    "srcTokenReference",
    "threeDS2SdkVersion",
];

const CURRENCIES: &str = "AED ALL AMD ANG AOA ARS AUD AWG AZN BAM BBD BDT BGN BHD BMD BND BOB BRL BSD BWP BYN BZD CAD \
    CHF CLP CNH CNY COP CRC CUP CVE CZK DJF DKK DOP DZD EGP ETB EUR FJD FKP GBP GEL GHS GIP GMD GNF GTQ GYD HKD HNL HTG \
    HUF IDR ILS INR IQD ISK JMD JOD JPY KES KGS KHR KMF KRW KWD KYD KZT LAK LBP LKR LYD MAD MDL MKD MMK MNT MOP MRU MUR \
    MVR MWK MXN MYR MZN NAD NGN NIO NOK NPR NZD OMR PAB PEN PGK PHP PKR PLN PYG QAR RON RSD RUB RWF SAR SBD SCR SEK SGD \
    SHP SLE SOS SRD STN SVC SZL THB TND TOP TRY TTD TWD TZS UAH UGX USD UYU UZS VND VUV WST XAF XCD XOF XPF YER ZAR ZMW";
