//! What Stripe's answers mean: tables and one exhaustive match, without any network.
//!
//! The rule behind every row: FAILED needs the PSP's definite word. Whatever is not in a table is [`Verdict::Unclear`].

use serde_json::Value;

use super::{
    Answer, Order, Verdict, code,
    declines::{self, Kind},
    stripe::CURRENCIES,
};

/// The status of a PaymentIntent, as far as it decides something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum IntentStatus {
    Succeeded,
    Processing,
    RequiresAction,
    RequiresCapture,
    RequiresConfirmation,
    RequiresPaymentMethod,
    Canceled,
    /// One that this version does not know.
    Other,
}

const INTENT_STATUSES: [(&str, IntentStatus); 7] = [
    ("succeeded", IntentStatus::Succeeded),
    ("processing", IntentStatus::Processing),
    ("requires_action", IntentStatus::RequiresAction),
    ("requires_capture", IntentStatus::RequiresCapture),
    ("requires_confirmation", IntentStatus::RequiresConfirmation),
    ("requires_payment_method", IntentStatus::RequiresPaymentMethod),
    ("canceled", IntentStatus::Canceled),
];

/// One row of the error table: None matches anything.
struct ErrorRow(u16, Option<&'static str>, Option<&'static str>, Verdict);

/// HTTP status, `error.type`, `error.code` -> meaning. The first row that matches counts.
const ERRORS: [ErrorRow; 15] = [
    ErrorRow(402, Some("card_error"), None, Verdict::Declined),
    ErrorRow(400, Some("idempotency_error"), None, Verdict::IdempotencyMismatch),
    ErrorRow(400, None, Some("payment_intent_unexpected_state"), Verdict::WrongState),
    ErrorRow(400, None, Some("intent_invalid_state"), Verdict::WrongState),
    ErrorRow(400, Some("card_error"), None, Verdict::Declined),
    ErrorRow(400, Some("invalid_request_error"), None, Verdict::Refused),
    ErrorRow(404, Some("invalid_request_error"), None, Verdict::Refused),
    // The key is wrong or lacks a right: an operator's matter, not the order's.
    ErrorRow(401, None, None, Verdict::Later),
    ErrorRow(403, None, None, Verdict::Later),
    // Another request with this key is still being executed.
    ErrorRow(409, None, Some("idempotency_key_in_use"), Verdict::BeingExecuted),
    ErrorRow(409, Some("idempotency_error"), None, Verdict::BeingExecuted),
    ErrorRow(429, None, None, Verdict::Later),
    ErrorRow(424, None, None, Verdict::Unclear),
    ErrorRow(500, None, None, Verdict::Unclear),
    ErrorRow(503, None, None, Verdict::Unclear),
];

/// What an answer with this HTTP status and body means for this order.
pub(super) fn read(http_status: u16, body: &[u8], order: &Order) -> Answer {
    let body: Option<Value> = serde_json::from_slice(body).ok();
    let mut answer = match (http_status, &body) {
        (200..=299, Some(body)) => intent(body, order),
        (300.., Some(body)) => error(http_status, body),
        (500.., None) => {
            Answer::new(Verdict::Unclear).error(code::PSP_ERROR, &format!("HTTP status {http_status}"))
        }
        // Even without a readable body these two say that nothing was executed.
        (401 | 403 | 429, None) => Answer::new(Verdict::Later).error(&format!("HTTP_{http_status}"), ""),
        _ => Answer::new(Verdict::Unclear).error(code::PSP_UNREADABLE, &format!("HTTP status {http_status}")),
    };
    answer.http_status = Some(http_status);
    answer
}

/// What a PaymentIntent means.
pub(crate) fn intent(intent: &Value, order: &Order) -> Answer {
    let (Some("payment_intent"), Some(id)) = (intent["object"].as_str(), intent["id"].as_str()) else {
        return Answer::new(Verdict::Unclear)
            .error(code::PSP_UNREADABLE, "the answer is not a PaymentIntent");
    };
    let text = intent["status"].as_str().unwrap_or_default();
    let status = INTENT_STATUSES
        .iter()
        .find(|(name, _)| *name == text)
        .map_or(IntentStatus::Other, |(_, status)| *status);
    let named = intent["metadata"]["payment_order_id"].as_str();
    if named.is_some_and(|named| named != order.payment_order_id.to_string()) {
        return Answer::new(Verdict::Unclear)
            .error(code::PSP_UNREADABLE, &format!("the answer is about another payment order, in {id:?}"));
    }
    let mut answer = mismatch(intent, order, status).unwrap_or_else(|| match status {
        IntentStatus::Succeeded => Answer::new(Verdict::Succeeded),
        IntentStatus::Processing => Answer::new(Verdict::Processing),
        // We capture automatically: somebody has changed the account's settings.
        IntentStatus::RequiresCapture => {
            Answer::new(Verdict::Processing).error("requires_capture", "authorised, not captured")
        }
        IntentStatus::RequiresAction => Answer::new(Verdict::ActionRequired)
            .error(code::AUTHENTICATION_REQUIRED, "the shopper would have to authenticate"),
        IntentStatus::RequiresPaymentMethod if intent["last_payment_error"].is_object() => {
            declined(Verdict::Declined, &intent["last_payment_error"])
        }
        IntentStatus::RequiresConfirmation | IntentStatus::RequiresPaymentMethod => {
            Answer::new(Verdict::Unconfirmed)
        }
        IntentStatus::Canceled if intent["last_payment_error"].is_object() => {
            declined(Verdict::Cancelled, &intent["last_payment_error"])
        }
        IntentStatus::Canceled => Answer::new(Verdict::Cancelled),
        IntentStatus::Other => Answer::new(Verdict::Unclear)
            .error(code::PSP_UNREADABLE, &format!("unknown PaymentIntent status {text:?}")),
    });
    answer.reference = Some(id.to_owned());
    answer
}

/// The PSP's amount or currency is not ours. What was received counts only once it was received.
fn mismatch(intent: &Value, order: &Order, status: IntentStatus) -> Option<Answer> {
    let currency = intent["currency"].as_str().unwrap_or_default().to_uppercase();
    let minor = |name: &str| intent[name].as_i64().and_then(|amount| CURRENCIES.to_minor(amount, &currency));
    let (ours, theirs, received) = (Some(order.amount_minor), minor("amount"), minor("amount_received"));
    let same = theirs == ours && currency == order.currency;
    if same && (status != IntentStatus::Succeeded || received == ours) {
        return None;
    }
    let text = format!(
        "the PSP says {} {currency} (received {}), expected {} minor units of {}",
        intent["amount"], intent["amount_received"], order.amount_minor, order.currency
    );
    Some(Answer::new(Verdict::AmountMismatch).error(code::AMOUNT_MISMATCH, &text))
}

/// What an error body means.
fn error(http_status: u16, body: &Value) -> Answer {
    let error = &body["error"];
    let (kind, error_code) = (error["type"].as_str(), error["code"].as_str());
    let matches = |expected: Option<&str>, found: Option<&str>| expected.is_none() || expected == found;
    let row = ERRORS.iter().find(|ErrorRow(status, row_kind, row_code, _)| {
        *status == http_status && matches(*row_kind, kind) && matches(*row_code, error_code)
    });
    let verdict = row.map_or(Verdict::Unclear, |row| row.3);
    let message = error["message"].as_str().unwrap_or_default();
    let mut answer = match verdict {
        Verdict::Declined => declined(verdict, error),
        Verdict::IdempotencyMismatch => Answer::new(verdict).error(code::IDEMPOTENCY_MISMATCH, message),
        Verdict::Unclear => {
            Answer::new(verdict).error(code::PSP_ERROR, &format!("HTTP status {http_status}: {message}"))
        }
        _ => Answer::new(verdict).error(error_code.or(kind).unwrap_or(code::PSP_ERROR), message),
    };
    answer.reference = error["payment_intent"]["id"].as_str().map(str::to_owned);
    answer
}

/// A decline, with Stripe's code as `code/decline_code`.
fn declined(verdict: Verdict, error: &Value) -> Answer {
    let (outer, inner) = (error["code"].as_str(), error["decline_code"].as_str());
    let message = error["message"].as_str().unwrap_or_default();
    let kind = declines::stripe(inner, outer);
    let code = match (kind, outer, inner) {
        (Kind::Authentication, ..) => code::AUTHENTICATION_REQUIRED.to_owned(),
        (_, Some(outer), Some(inner)) if outer != inner => format!("{outer}/{inner}"),
        (_, Some(only), _) | (_, None, Some(only)) => only.to_owned(),
        (_, None, None) => "card_declined".to_owned(),
    };
    Answer { decline: Some(kind), ..Answer::new(verdict) }.error(&code, message)
}

#[cfg(test)]
mod tests {

    use serde_json::json;

    use uuid::Uuid;

    use super::*;

    fn order() -> Order {
        Order::sample("STRIPE")
    }

    fn read_json(status: u16, body: &Value) -> Answer {
        read(status, &serde_json::to_vec(body).unwrap(), &order())
    }

    fn payment_intent(status: &str, changed: &Value) -> Value {
        let received = if status == "succeeded" { 1234 } else { 0 };
        let mut intent = json!({"object": "payment_intent", "id": "pi_1", "status": status, "amount": 1234,
            "amount_received": received, "currency": "eur", "last_payment_error": null});
        for (name, value) in changed.as_object().unwrap() {
            intent[name] = value.clone();
        }
        intent
    }

    #[test]
    fn each_status_of_a_payment_intent_has_one_meaning() {
        let decline = json!({"last_payment_error": {"code": "card_declined", "decline_code": "lost_card", "message": "no"}});
        let plain = json!({});
        let rows = [
            ("succeeded", &plain, Verdict::Succeeded, None),
            ("processing", &plain, Verdict::Processing, None),
            ("requires_capture", &plain, Verdict::Processing, Some("requires_capture")),
            ("requires_action", &plain, Verdict::ActionRequired, Some(code::AUTHENTICATION_REQUIRED)),
            ("requires_confirmation", &plain, Verdict::Unconfirmed, None),
            ("requires_payment_method", &plain, Verdict::Unconfirmed, None),
            ("requires_payment_method", &decline, Verdict::Declined, Some("card_declined/lost_card")),
            ("canceled", &plain, Verdict::Cancelled, None),
            ("canceled", &decline, Verdict::Cancelled, Some("card_declined/lost_card")),
            ("something_of_2030", &plain, Verdict::Unclear, Some(code::PSP_UNREADABLE)),
        ];
        for (status, changed, verdict, error_code) in rows {
            let answer = read_json(200, &payment_intent(status, changed));
            assert_eq!(
                (answer.verdict, answer.error_code.as_deref()),
                (verdict, error_code),
                "{status} {changed}"
            );
            assert_eq!((answer.reference.as_deref(), answer.http_status), (Some("pi_1"), Some(200)));
        }
    }

    #[test]
    fn each_error_has_one_meaning() {
        let error = |kind: &str, code: &str| json!({"error": {"type": kind, "code": code, "message": "m"}});
        let rows = [
            (402, error("card_error", "expired_card"), Verdict::Declined, "expired_card"),
            (402, error("api_error", ""), Verdict::Unclear, code::PSP_ERROR),
            (400, error("idempotency_error", ""), Verdict::IdempotencyMismatch, code::IDEMPOTENCY_MISMATCH),
            (
                400,
                error("invalid_request_error", "payment_intent_unexpected_state"),
                Verdict::WrongState,
                "payment_intent_unexpected_state",
            ),
            (
                400,
                error("invalid_request_error", "intent_invalid_state"),
                Verdict::WrongState,
                "intent_invalid_state",
            ),
            (400, error("card_error", "incorrect_number"), Verdict::Declined, "incorrect_number"),
            (400, error("invalid_request_error", "parameter_missing"), Verdict::Refused, "parameter_missing"),
            (404, error("invalid_request_error", "resource_missing"), Verdict::Refused, "resource_missing"),
            (404, error("", ""), Verdict::Unclear, code::PSP_ERROR),
            (401, error("invalid_request_error", "x"), Verdict::Later, "x"),
            (403, error("invalid_request_error", "x"), Verdict::Later, "x"),
            (409, error("idempotency_error", "x"), Verdict::BeingExecuted, "x"),
            (
                409,
                error("invalid_request_error", "idempotency_key_in_use"),
                Verdict::BeingExecuted,
                "idempotency_key_in_use",
            ),
            (409, error("invalid_request_error", "other"), Verdict::Unclear, code::PSP_ERROR),
            (429, error("invalid_request_error", "rate_limit"), Verdict::Later, "rate_limit"),
            (429, error("invalid_request_error", "lock_timeout"), Verdict::Later, "lock_timeout"),
            (424, error("api_error", ""), Verdict::Unclear, code::PSP_ERROR),
            (500, error("api_error", ""), Verdict::Unclear, code::PSP_ERROR),
            (502, error("api_error", ""), Verdict::Unclear, code::PSP_ERROR),
            (503, error("api_error", ""), Verdict::Unclear, code::PSP_ERROR),
            (504, error("api_error", ""), Verdict::Unclear, code::PSP_ERROR),
            (500, error("card_error", "card_declined"), Verdict::Unclear, code::PSP_ERROR),
            (302, error("invalid_request_error", "x"), Verdict::Unclear, code::PSP_ERROR),
            (418, json!({}), Verdict::Unclear, code::PSP_ERROR),
        ];
        for (status, body, verdict, error_code) in rows {
            let answer = read_json(status, &body);
            assert_eq!(
                (answer.verdict, answer.error_code.as_deref()),
                (verdict, Some(error_code)),
                "{status} {body}"
            );
        }
    }

    #[test]
    fn what_cannot_be_read_is_never_a_failure() {
        let whole = serde_json::to_vec(&payment_intent("succeeded", &json!({}))).unwrap();
        for status in [200, 201, 302, 400, 402, 404, 409, 500, 503] {
            for body in
                [&b""[..], b"<html>", b"null", b"[]", b"{}", b"{\"error\":7}", &whole[..whole.len() - 1]]
            {
                let answer = read(status, body, &order());
                assert_eq!(answer.verdict, Verdict::Unclear, "{status} {:?}", String::from_utf8_lossy(body));
            }
        }
        for status in [401, 403, 429] {
            assert_eq!(read(status, b"<html>", &order()).verdict, Verdict::Later, "{status}");
        }
    }

    #[test]
    fn another_amount_or_currency_is_a_mismatch_whatever_the_status() {
        for (status, changed) in [
            ("succeeded", json!({"amount": 1235})),
            ("succeeded", json!({"amount_received": 1233})),
            ("succeeded", json!({"amount_received": null})),
            ("succeeded", json!({"currency": "usd"})),
            ("requires_confirmation", json!({"amount": 123_400})),
            ("canceled", json!({"amount": null})),
        ] {
            let answer = read_json(200, &payment_intent(status, &changed));
            assert_eq!(
                (answer.verdict, answer.error_code.as_deref()),
                (Verdict::AmountMismatch, Some(code::AMOUNT_MISMATCH)),
                "{changed}"
            );
            assert_eq!(answer.reference.as_deref(), Some("pi_1"));
        }
    }

    #[test]
    fn each_decline_code_is_published_and_has_its_kind() {
        for (kind, codes) in declines::STRIPE {
            for inner in codes {
                let answer =
                    declined(Verdict::Declined, &json!({"code": "card_declined", "decline_code": inner}));
                let code = match kind {
                    Kind::Authentication => code::AUTHENTICATION_REQUIRED.to_owned(),
                    _ => format!("card_declined/{inner}"),
                };
                assert_eq!((answer.error_code, answer.decline), (Some(code), Some(kind)));
            }
        }
    }

    #[test]
    fn a_decline_says_why() {
        let rows = [
            (
                json!({"code": "card_declined", "decline_code": "generic_decline"}),
                "card_declined/generic_decline",
            ),
            (
                json!({"code": "card_declined", "decline_code": "insufficient_funds"}),
                "card_declined/insufficient_funds",
            ),
            (json!({"code": "expired_card", "decline_code": "expired_card"}), "expired_card"),
            (json!({"code": "expired_card"}), "expired_card"),
            (json!({"decline_code": "do_not_honor"}), "do_not_honor"),
            (json!({}), "card_declined"),
            (
                json!({"code": "authentication_required", "decline_code": "authentication_required"}),
                code::AUTHENTICATION_REQUIRED,
            ),
            (
                json!({"code": "authentication_required", "decline_code": "authentication_not_handled"}),
                code::AUTHENTICATION_REQUIRED,
            ),
            (
                json!({"code": "card_declined", "decline_code": "authentication_required"}),
                code::AUTHENTICATION_REQUIRED,
            ),
        ];
        for (error, expected) in rows {
            assert_eq!(declined(Verdict::Declined, &error).error_code.as_deref(), Some(expected), "{error}");
        }
    }

    #[test]
    fn amounts_in_answers_are_counted_as_stripe_counts_them() {
        for (currency, minor, theirs, verdict) in [
            ("JPY", 500, 500, Verdict::Succeeded),
            ("JPY", 500, 50_000, Verdict::AmountMismatch),
            ("ISK", 500, 50_000, Verdict::Succeeded),
            ("ISK", 500, 500, Verdict::AmountMismatch),
            ("ISK", 500, 50_050, Verdict::AmountMismatch),
            ("CLP", 700, 700, Verdict::Succeeded),
            ("KWD", 1230, 1230, Verdict::Succeeded),
        ] {
            let order = Order { amount_minor: minor, currency: currency.into(), ..order() };
            let changed =
                json!({"amount": theirs, "amount_received": theirs, "currency": currency.to_lowercase()});
            let body = serde_json::to_vec(&payment_intent("succeeded", &changed)).unwrap();
            assert_eq!(read(200, &body, &order).verdict, verdict, "{theirs} {currency}");
        }
    }

    #[test]
    fn an_answer_about_another_payment_order_says_nothing_about_this_one() {
        let theirs = |id: &str| json!({"metadata": {"payment_order_id": id}});
        let ours = read_json(200, &payment_intent("succeeded", &theirs(&Uuid::nil().to_string())));
        assert_eq!(ours.verdict, Verdict::Succeeded);
        let other = read_json(200, &payment_intent("succeeded", &theirs(&Uuid::max().to_string())));
        assert_eq!((other.verdict, other.reference), (Verdict::Unclear, None));
    }
}
