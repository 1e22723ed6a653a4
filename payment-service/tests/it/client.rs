//! A client of the API. It holds every answer that it gets against the served OpenAPI document.

use reqwest::{Client, Method, RequestBuilder, StatusCode, header::HeaderMap};
use serde_json::{Value as Json, json};
use tokio::sync::OnceCell;
use uuid::Uuid;

use crate::world::{OPERATOR_TOKEN, Running, TOKEN, order_body};

/// What came back.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) text: String,
    pub(crate) json: Json,
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }

    pub(crate) fn id(&self, field: &str) -> Uuid {
        self.json[field].as_str().unwrap_or_else(|| panic!("no {field}: {self:?}")).parse().unwrap()
    }

    /// The last part of a problem's type.
    pub(crate) fn problem(&self) -> &str {
        self.json["type"]
            .as_str()
            .and_then(|urn| urn.strip_prefix("urn:payment-outbox:problem:"))
            .unwrap_or_default()
    }
}

/// Sends it, and checks that the document knows such an answer.
pub(crate) async fn send(request: RequestBuilder) -> Answer {
    let (client, request) = request.build_split();
    let request = request.unwrap();
    let (method, url) = (request.method().clone(), request.url().clone());
    let response = client.execute(request).await.unwrap();
    let (status, headers) = (response.status(), response.headers().clone());
    let text = response.text().await.unwrap();
    let json = serde_json::from_str(&text).unwrap_or_default();
    let document = document(url.origin().ascii_serialization()).await;
    check(document, &method, url.path(), status, &headers, &json);
    Answer { status: status.as_u16(), headers, text, json }
}

pub(crate) async fn get(service: &Running, path: &str, token: &str) -> Answer {
    send(Client::new().get(format!("http://{}{path}", service.api)).bearer_auth(token)).await
}

/// A POST with a key, still without a body.
pub(crate) fn post_to(service: &Running, path: &str, token: &str, key: &str) -> RequestBuilder {
    let request = Client::new().post(format!("http://{}{path}", service.api));
    request.bearer_auth(token).header("Idempotency-Key", key)
}

/// A new payment, still without a body.
pub(crate) fn post(service: &Running, key: &str) -> RequestBuilder {
    post_to(service, "/v1/payments", TOKEN, key)
}

/// Makes a payment of the shop: its id and that of its order.
pub(crate) async fn pay(service: &Running, key: &str) -> (Uuid, Uuid) {
    let created = send(post(service, key).json(&order_body())).await;
    assert_eq!(created.status, 201, "{created:?}");
    (created.id("payment_id"), created.id("payment_order_id"))
}

pub(crate) async fn retry(service: &Running, payment: Uuid, key: &str, body: Json) -> Answer {
    send(post_to(service, &format!("/v1/payments/{payment}/retry"), TOKEN, key).json(&body)).await
}

pub(crate) async fn resolve(service: &Running, order: Uuid, key: &str, decision: &str) -> Answer {
    let path = format!("/v1/payment-orders/{order}/resolve");
    let body = json!({"decision": decision, "reason": "the bank says so"});
    send(post_to(service, &path, OPERATOR_TOKEN, key).json(&body)).await
}

pub(crate) async fn expect_problem(request: RequestBuilder, status: u16, kind: &str) -> Answer {
    let answer = send(request).await;
    assert_eq!((answer.status, answer.problem()), (status, kind), "{answer:?}");
    answer
}

// ------------------------------------------------------------------------------------------------------- the document

/// The served document. All services of the suite are of one build.
pub(crate) async fn document(origin: String) -> &'static Json {
    static DOCUMENT: OnceCell<Json> = OnceCell::const_new();
    DOCUMENT
        .get_or_init(|| async move {
            let answer = Client::new().get(format!("{origin}/v1/openapi.json")).send().await.unwrap();
            answer.json().await.unwrap()
        })
        .await
}

/// The path of the document that this one is of.
fn template<'a>(document: &'a Json, path: &str) -> Option<(&'a String, &'a Json)> {
    let fits = |template: &str| {
        let (mut there, mut here) = (template.split('/'), path.split('/'));
        loop {
            match (there.next(), here.next()) {
                (None, None) => return true,
                (Some(named), Some(part)) if named == part || named.starts_with('{') && !part.is_empty() => {}
                (_, _) => return false,
            }
        }
    };
    document["paths"].as_object().unwrap().iter().find(|(template, _)| fits(template))
}

fn check(document: &Json, method: &Method, path: &str, status: StatusCode, headers: &HeaderMap, body: &Json) {
    let what = format!("{method} {path}: {status} {body}");
    let content_type = headers.get("content-type").map_or("", |value| value.to_str().unwrap());
    if !status.is_success() {
        assert_eq!(content_type, "application/problem+json", "{what}");
        assert_eq!(body["status"], status.as_u16(), "{what}");
        conforms(document, &json!({"$ref": "#/components/schemas/Problem"}), body, &what);
    }
    let operation = template(document, path).map(|(_, item)| &item[method.as_str().to_ascii_lowercase()]);
    let Some(operation) = operation.filter(|operation| operation.is_object()) else {
        assert!([404, 405].contains(&status.as_u16()), "what is not in the document is not there: {what}");
        return;
    };
    let documented = &operation["responses"][status.as_str()]["content"][content_type]["schema"];
    assert!(documented.is_object(), "an answer that is not in the document: {what} ({content_type})");
    conforms(document, documented, body, &what);
}

fn conforms(document: &Json, schema: &Json, body: &Json, what: &str) {
    // Nothing beside what is documented, either; in the document itself may stand anything.
    let open = schema.get("$ref").is_none();
    let schema =
        json!({"allOf": [schema], "unevaluatedProperties": open, "components": document["components"]});
    let validator = jsonschema::options().should_validate_formats(true).build(&schema).unwrap();
    let errors: Vec<String> =
        validator.iter_errors(body).map(|error| format!("{}: {error}", error.instance_path())).collect();
    assert!(errors.is_empty(), "{what}\n{}", errors.join("\n"));
}
