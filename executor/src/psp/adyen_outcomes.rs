//! What Adyen's answers mean: tables, without any network.
//!
//! The rule behind every row: FAILED needs the PSP's definite word. Whatever is not in a table is [`Verdict::Unclear`]. An HTTP status
//! of 200 says nothing by itself: `resultCode` does.

use serde_json::Value;

use super::{
    Answer, Operation, Order, Verdict,
    adyen::CURRENCIES,
    code,
    declines::{self, Kind},
};

/// `resultCode` -> meaning (docs.adyen.com/online-payments/build-your-integration/payment-result-codes).
const RESULT_CODES: [(&str, Verdict); 13] = [
    ("Authorised", Verdict::Succeeded),
    ("Refused", Verdict::Declined),
    ("Error", Verdict::Declined),
    ("Cancelled", Verdict::Cancelled),
    ("Pending", Verdict::Processing),
    ("Received", Verdict::Processing),
    ("AuthenticationNotRequired", Verdict::Processing),
    ("RedirectShopper", Verdict::ActionRequired),
    ("ChallengeShopper", Verdict::ActionRequired),
    ("IdentifyShopper", Verdict::ActionRequired),
    ("PresentToShopper", Verdict::ActionRequired),
    ("AuthenticationFinished", Verdict::ActionRequired),
    // Less than we asked for.
    ("PartiallyAuthorised", Verdict::AmountMismatch),
];

/// One row of the error table: None matches anything.
struct ErrorRow(u16, Option<&'static str>, Option<&'static str>, Verdict);

/// HTTP status, `errorType`, `errorCode` -> meaning. The first row that matches counts.
const ERRORS: [ErrorRow; 9] = [
    // The same key, and no transient error: the first request's answer is lost to us. Its webhook is not.
    ErrorRow(409, None, Some("704"), Verdict::Unclear),
    ErrorRow(422, None, Some("704"), Verdict::Unclear),
    // The key is wrong: an operator's matter, not the order's.
    ErrorRow(401, None, None, Verdict::Later),
    ErrorRow(429, None, None, Verdict::Later),
    ErrorRow(400, None, None, Verdict::Refused),
    ErrorRow(403, None, None, Verdict::Refused),
    ErrorRow(422, Some("internal"), None, Verdict::Unclear),
    ErrorRow(422, None, None, Verdict::Refused),
    ErrorRow(500, None, None, Verdict::Unclear),
];

/// What an answer with this HTTP status and body means for this order. `transient` is Adyen's word, if it gave one, on whether the same
/// request can bring another answer later.
pub(super) fn read(
    operation: Operation,
    http_status: u16,
    body: &[u8],
    transient: Option<bool>,
    order: &Order,
) -> Answer {
    let body: Option<Value> = serde_json::from_slice(body).ok();
    let mut answer = match (http_status, &body, operation) {
        (200..=299, Some(body), Operation::Cancel) => cancellation(body),
        (200..=299, Some(body), Operation::Create | Operation::Confirm | Operation::Get) => {
            payment(body, order)
        }
        (300.., Some(body), _) => error(http_status, body, transient),
        (500.., None, _) => {
            Answer::new(Verdict::Unclear).error(code::PSP_ERROR, &format!("HTTP status {http_status}"))
        }
        // Even without a readable body these two say that nothing was executed.
        (401 | 429, None, _) => Answer::new(Verdict::Later).error(&format!("HTTP_{http_status}"), ""),
        _ => Answer::new(Verdict::Unclear).error(code::PSP_UNREADABLE, &format!("HTTP status {http_status}")),
    };
    answer.http_status = Some(http_status);
    answer
}

/// What the answer to `/payments` means.
fn payment(payment: &Value, order: &Order) -> Answer {
    let Some(text) = payment["resultCode"].as_str() else {
        return Answer::new(Verdict::Unclear).error(code::PSP_UNREADABLE, "the answer has no resultCode");
    };
    let named = payment["merchantReference"].as_str();
    if named.is_some_and(|named| named != order.payment_order_id.to_string()) {
        return Answer::new(Verdict::Unclear)
            .error(code::PSP_UNREADABLE, "the answer is about another payment order");
    }
    let verdict = RESULT_CODES.iter().find(|(name, _)| *name == text).map_or(Verdict::Unclear, |row| row.1);
    let mut answer = match verdict {
        Verdict::Unclear => {
            Answer::new(verdict).error(code::PSP_UNREADABLE, &format!("unknown resultCode {text:?}"))
        }
        Verdict::AmountMismatch => {
            Answer::new(verdict).error(code::AMOUNT_MISMATCH, &differs(payment, order))
        }
        _ if is_another_amount(payment, order) => {
            Answer::new(Verdict::AmountMismatch).error(code::AMOUNT_MISMATCH, &differs(payment, order))
        }
        Verdict::ActionRequired => Answer::new(verdict)
            .error(code::AUTHENTICATION_REQUIRED, &format!("the shopper would have to act ({text})")),
        Verdict::Declined | Verdict::Cancelled => refused(verdict, text, payment),
        _ => Answer::new(verdict),
    };
    answer.reference = reference(payment);
    answer
}

/// Adyen gives the amount back when it has authorised it. Where it says none, it is the one that was asked for.
fn is_another_amount(payment: &Value, order: &Order) -> bool {
    let amount = &payment["amount"];
    if amount.is_null() {
        return false;
    }
    let currency = amount["currency"].as_str().unwrap_or_default();
    let minor = amount["value"].as_i64().and_then(|value| CURRENCIES.to_minor(value, currency));
    currency != order.currency || minor != Some(order.amount_minor)
}

fn differs(payment: &Value, order: &Order) -> String {
    let amount = &payment["amount"];
    format!(
        "the PSP says {} {}, expected {} minor units of {}",
        amount["value"], amount["currency"], order.amount_minor, order.currency
    )
}

/// A refusal, with Adyen's reason as `resultCode/reason`. Schemes' own texts (`refusalReasonRaw`) change without notice: not read.
fn refused(verdict: Verdict, result: &str, payment: &Value) -> Answer {
    let number = payment["refusalReasonCode"].as_str().unwrap_or_default();
    let message = payment["refusalReason"].as_str().unwrap_or_default();
    let (kind, reason) = declines::adyen(number).unwrap_or((Kind::Other, number));
    let result = result.to_lowercase();
    let code = match kind {
        Kind::Authentication => code::AUTHENTICATION_REQUIRED.to_owned(),
        _ if reason.is_empty() || reason == result => result,
        _ => format!("{result}/{reason}"),
    };
    Answer { decline: Some(kind), ..Answer::new(verdict) }.error(&code, message)
}

/// What the answer to a cancellation means: the only one that Adyen gives is that it has taken it.
fn cancellation(body: &Value) -> Answer {
    // Its `pspReference` is the cancellation's; the payment's has another name.
    let reference = body["paymentPspReference"].as_str().map(str::to_owned);
    let answer = match body["status"].as_str() {
        Some("received") => Answer::new(Verdict::CancelAccepted),
        other => Answer::new(Verdict::Unclear)
            .error(code::PSP_UNREADABLE, &format!("unknown status {other:?} of a cancellation")),
    };
    Answer { reference, ..answer }
}

/// What an error body means.
fn error(http_status: u16, body: &Value, transient: Option<bool>) -> Answer {
    let (kind, number) = (body["errorType"].as_str(), body["errorCode"].as_str());
    let matches = |expected: Option<&str>, found: Option<&str>| expected.is_none() || expected == found;
    let row = ERRORS.iter().find(|ErrorRow(status, row_kind, row_code, _)| {
        *status == http_status && matches(*row_kind, kind) && matches(*row_code, number)
    });
    let verdict = match row.map_or(Verdict::Unclear, |row| row.3) {
        // It passes, Adyen says: so it is not the request.
        Verdict::Unclear if transient == Some(true) && number == Some("704") => Verdict::BeingExecuted,
        Verdict::Refused if transient == Some(true) => Verdict::Unclear,
        verdict => verdict,
    };
    let message = body["message"].as_str().unwrap_or_default();
    let answer = match verdict {
        Verdict::Unclear => {
            Answer::new(verdict).error(code::PSP_ERROR, &format!("HTTP status {http_status}: {message}"))
        }
        _ => Answer::new(verdict).error(number.or(kind).unwrap_or(code::PSP_ERROR), message),
    };
    // An error's `pspReference` is the request's, for their support: it is no payment.
    Answer { request_id: reference(body), ..answer }
}

fn reference(body: &Value) -> Option<String> {
    body["pspReference"].as_str().filter(|text| !text.is_empty()).map(str::to_owned)
}

#[cfg(test)]
mod tests {

    use serde_json::json;

    use uuid::Uuid;

    use super::*;

    fn order() -> Order {
        Order::sample("ADYEN")
    }

    fn read_json(operation: Operation, status: u16, body: &Value, transient: Option<bool>) -> Answer {
        read(operation, status, &serde_json::to_vec(body).unwrap(), transient, &order())
    }

    fn pay(body: &Value) -> Answer {
        read_json(Operation::Confirm, 200, body, None)
    }

    fn result(code: &str) -> Value {
        json!({"pspReference": "993617895204576J", "resultCode": code, "merchantReference": Uuid::nil().to_string(),
            "amount": {"currency": "EUR", "value": 1234}})
    }

    #[test]
    fn each_result_code_has_one_meaning() {
        let rows = [
            ("Authorised", Verdict::Succeeded, None),
            ("Refused", Verdict::Declined, Some("refused")),
            ("Error", Verdict::Declined, Some("error")),
            ("Cancelled", Verdict::Cancelled, Some("cancelled")),
            ("Pending", Verdict::Processing, None),
            ("Received", Verdict::Processing, None),
            ("AuthenticationNotRequired", Verdict::Processing, None),
            ("RedirectShopper", Verdict::ActionRequired, Some(code::AUTHENTICATION_REQUIRED)),
            ("ChallengeShopper", Verdict::ActionRequired, Some(code::AUTHENTICATION_REQUIRED)),
            ("IdentifyShopper", Verdict::ActionRequired, Some(code::AUTHENTICATION_REQUIRED)),
            ("PresentToShopper", Verdict::ActionRequired, Some(code::AUTHENTICATION_REQUIRED)),
            ("AuthenticationFinished", Verdict::ActionRequired, Some(code::AUTHENTICATION_REQUIRED)),
            ("PartiallyAuthorised", Verdict::AmountMismatch, Some(code::AMOUNT_MISMATCH)),
            ("Success", Verdict::Unclear, Some(code::PSP_UNREADABLE)),
            ("authorised", Verdict::Unclear, Some(code::PSP_UNREADABLE)),
            ("SomethingOf2030", Verdict::Unclear, Some(code::PSP_UNREADABLE)),
        ];
        for (text, verdict, error_code) in rows {
            let answer = pay(&result(text));
            assert_eq!((answer.verdict, answer.error_code.as_deref()), (verdict, error_code), "{text}");
            assert_eq!(
                (answer.reference.as_deref(), answer.http_status),
                (Some("993617895204576J"), Some(200))
            );
        }
        assert!(
            RESULT_CODES.iter().all(|(name, _)| rows.iter().any(|(row, ..)| row == name)),
            "a row has no test"
        );
    }

    #[test]
    fn each_refusal_says_why() {
        for (kind, reasons) in declines::ADYEN {
            for (number, name) in reasons {
                let mut body = result("Refused");
                body["refusalReasonCode"] = json!(number);
                body["refusalReason"] = json!("as Adyen says it");
                let answer = pay(&body);
                let code = match (kind, *name) {
                    (Kind::Authentication, _) => code::AUTHENTICATION_REQUIRED.to_owned(),
                    (_, "refused") => "refused".to_owned(),
                    (_, name) => format!("refused/{name}"),
                };
                assert_eq!((answer.verdict, answer.decline), (Verdict::Declined, Some(kind)), "{number}");
                assert_eq!(answer.error_code, Some(code), "{number}");
                assert_eq!(answer.error_message.as_deref(), Some("as Adyen says it"));
            }
        }
        let mut unknown = result("Refused");
        unknown["refusalReasonCode"] = json!("2030");
        let answer = pay(&unknown);
        assert_eq!((answer.decline, answer.error_code.as_deref()), (Some(Kind::Other), Some("refused/2030")));
    }

    #[test]
    fn each_error_has_one_meaning() {
        let error = |kind: &str, code: &str| json!({"status": 0, "errorType": kind, "errorCode": code, "message": "m"});
        let (plain, internal, duplicate) =
            (error("validation", "14_0408"), error("internal", "702"), error("validation", "704"));
        let rows = [
            (400, &plain, None, Verdict::Refused, "14_0408"),
            (403, &plain, None, Verdict::Refused, "14_0408"),
            (422, &plain, None, Verdict::Refused, "14_0408"),
            (422, &plain, Some(false), Verdict::Refused, "14_0408"),
            (422, &plain, Some(true), Verdict::Unclear, code::PSP_ERROR),
            (422, &internal, None, Verdict::Unclear, code::PSP_ERROR),
            (422, &duplicate, Some(true), Verdict::BeingExecuted, "704"),
            (409, &duplicate, Some(true), Verdict::BeingExecuted, "704"),
            (422, &duplicate, Some(false), Verdict::Unclear, code::PSP_ERROR),
            (422, &duplicate, None, Verdict::Unclear, code::PSP_ERROR),
            (409, &duplicate, None, Verdict::Unclear, code::PSP_ERROR),
            (401, &plain, None, Verdict::Later, "14_0408"),
            (429, &plain, None, Verdict::Later, "14_0408"),
            (500, &internal, None, Verdict::Unclear, code::PSP_ERROR),
            (500, &internal, Some(true), Verdict::Unclear, code::PSP_ERROR),
            (502, &internal, None, Verdict::Unclear, code::PSP_ERROR),
            (503, &internal, None, Verdict::Unclear, code::PSP_ERROR),
            (404, &plain, None, Verdict::Unclear, code::PSP_ERROR),
            (302, &plain, None, Verdict::Unclear, code::PSP_ERROR),
        ];
        for (status, body, transient, verdict, error_code) in rows {
            let answer = read_json(Operation::Confirm, status, body, transient);
            let found = (answer.verdict, answer.error_code.as_deref());
            assert_eq!(found, (verdict, Some(error_code)), "{status} {body} {transient:?}");
        }
    }

    #[test]
    fn an_error_names_a_request_and_no_payment() {
        for operation in [Operation::Confirm, Operation::Cancel] {
            for status in [400, 401, 403, 409, 422, 429, 500, 503] {
                let body = json!({"status": status, "errorType": "internal", "errorCode": "905", "message": "m",
                    "pspReference": "881234567890123A"});
                let answer = read_json(operation, status, &body, None);
                assert_eq!(
                    (answer.reference, answer.request_id.as_deref()),
                    (None, Some("881234567890123A")),
                    "{status}"
                );
            }
        }
    }

    #[test]
    fn what_cannot_be_read_is_never_a_failure() {
        let whole = serde_json::to_vec(&result("Refused")).unwrap();
        for operation in [Operation::Confirm, Operation::Cancel] {
            for status in [200, 201, 302, 404, 409, 500, 503] {
                for body in [
                    &b""[..],
                    b"<html>",
                    b"null",
                    b"[]",
                    b"{}",
                    b"{\"resultCode\":7}",
                    &whole[..whole.len() - 1],
                ] {
                    let answer = read(operation, status, body, None, &order());
                    let text = String::from_utf8_lossy(body);
                    assert_eq!(answer.verdict, Verdict::Unclear, "{operation:?} {status} {text:?}");
                }
            }
        }
        for status in [400, 403, 422] {
            assert_eq!(read(Operation::Confirm, status, b"<html>", None, &order()).verdict, Verdict::Unclear);
        }
        for status in [401, 429] {
            assert_eq!(read(Operation::Confirm, status, b"<html>", None, &order()).verdict, Verdict::Later);
        }
    }

    #[test]
    fn another_amount_or_currency_is_a_mismatch() {
        for (currency, value) in
            [("EUR", json!(1235)), ("USD", json!(1234)), ("EUR", json!("1234")), ("EUR", json!(null))]
        {
            let mut body = result("Authorised");
            body["amount"] = json!({"currency": currency, "value": value});
            let answer = pay(&body);
            let found = (answer.verdict, answer.error_code.as_deref());
            assert_eq!(found, (Verdict::AmountMismatch, Some(code::AMOUNT_MISMATCH)), "{body}");
            assert_eq!(answer.reference.as_deref(), Some("993617895204576J"));
        }
        let mut silent = result("Authorised");
        silent["amount"] = Value::Null;
        assert_eq!(pay(&silent).verdict, Verdict::Succeeded);
    }

    #[test]
    fn amounts_in_answers_are_counted_as_adyen_counts_them() {
        for (currency, minor, theirs, verdict) in [
            ("JPY", 500, 500, Verdict::Succeeded),
            ("ISK", 500, 50_000, Verdict::Succeeded),
            ("ISK", 500, 500, Verdict::AmountMismatch),
            ("CLP", 700, 70_000, Verdict::Succeeded),
            ("CLP", 700, 700, Verdict::AmountMismatch),
            ("KWD", 1234, 1234, Verdict::Succeeded),
            ("IDR", 12_300, 123, Verdict::Succeeded),
        ] {
            let order = Order { amount_minor: minor, currency: currency.into(), ..order() };
            let mut body = result("Authorised");
            body["amount"] = json!({"currency": currency, "value": theirs});
            let answer = read(Operation::Confirm, 200, &serde_json::to_vec(&body).unwrap(), None, &order);
            assert_eq!(answer.verdict, verdict, "{theirs} {currency}");
        }
    }

    #[test]
    fn an_answer_about_another_payment_order_says_nothing_about_this_one() {
        let mut body = result("Authorised");
        body["merchantReference"] = json!(Uuid::max().to_string());
        let answer = pay(&body);
        assert_eq!((answer.verdict, answer.reference), (Verdict::Unclear, None));
    }

    #[test]
    fn a_cancellation_is_taken_or_it_is_not_known_what_became_of_it() {
        let taken = json!({"status": "received", "pspReference": "CANCEL", "paymentPspReference": "PAYMENT"});
        let answer = read_json(Operation::Cancel, 201, &taken, None);
        assert_eq!((answer.verdict, answer.reference.as_deref()), (Verdict::CancelAccepted, Some("PAYMENT")));
        let by_ours = json!({"status": "received", "pspReference": "CANCEL", "paymentReference": "ours"});
        let answer = read_json(Operation::Cancel, 201, &by_ours, None);
        assert_eq!((answer.verdict, answer.reference), (Verdict::CancelAccepted, None));
        for other in
            [json!({"status": "of 2030"}), json!({"resultCode": "Cancelled"}), json!({"status": true})]
        {
            assert_eq!(read_json(Operation::Cancel, 201, &other, None).verdict, Verdict::Unclear, "{other}");
        }
    }
}
