//! A client for Adyen's side of the simulator.

use std::time::Instant;

use reqwest::{Method, RequestBuilder};
use serde_json::{Value, json};

pub(crate) use crate::running::{Reply, SLOW, Simulator, send};

/// A request that is in order.
pub(crate) fn payment(reference: &str, token: &str) -> Value {
    json!({
        "amount": { "currency": "EUR", "value": 1099 },
        "merchantAccount": "OutboxShop",
        "paymentMethod": { "type": "scheme", "storedPaymentMethodId": token },
        "reference": reference,
        "returnUrl": "https://shop.example/return",
        "shopperReference": "shopper-1",
        "shopperInteraction": "ContAuth",
        "recurringProcessingModel": "CardOnFile",
        "metadata": { "payment_order_id": reference },
    })
}

impl Simulator {
    pub(crate) async fn start() -> Self {
        Self::with(&[]).await
    }

    pub(crate) fn call(&self, path: &str, key: &str, body: &Value) -> RequestBuilder {
        self.request(Method::POST, path).header("Idempotency-Key", key).json(body)
    }

    pub(crate) async fn post(&self, path: &str, key: &str, body: &Value) -> Reply {
        send(self.call(path, key, body)).await
    }

    /// Pays an order named as its key.
    pub(crate) async fn pay(&self, order: &str, scenario: &str) -> Reply {
        let body = payment(order, &format!("adyen_sim_{scenario}"));
        self.post("/v71/payments", order, &body).await
    }

    /// Pays and hears no answer.
    pub(crate) async fn pay_in_vain(&self, order: &str, scenario: &str) -> reqwest::Error {
        let body = payment(order, &format!("adyen_sim_{scenario}"));
        match self.call("/v71/payments", order, &body).timeout(SLOW).send().await {
            Err(error) => error,
            Ok(response) => response.bytes().await.unwrap_err(),
        }
    }

    /// Waits until an order is charged.
    pub(crate) async fn until_charged(&self, order: &str) -> String {
        let deadline = Instant::now() + SLOW * 10;
        loop {
            if let Some(charge) = self.charged(order).await.pop() {
                return charge;
            }
            assert!(Instant::now() < deadline, "{order} is not charged");
            tokio::time::sleep(SLOW / 30).await;
        }
    }
}

impl Reply {
    pub(crate) fn psp_reference(&self) -> String {
        self.body["pspReference"].as_str().unwrap_or_else(|| panic!("none: {}", self.text)).to_owned()
    }

    #[track_caller]
    pub(crate) fn expect_result(self, result_code: &str) -> Self {
        let reply = self.expect(200);
        assert_eq!(reply.body["resultCode"], result_code, "{}", reply.text);
        reply
    }

    /// Status, code and whether the header advises to try again.
    #[track_caller]
    pub(crate) fn expect_error(self, status: u16, code: &str, transient: Option<&str>) -> Self {
        self.expect_either_error(&[status], code, transient)
    }

    #[track_caller]
    pub(crate) fn expect_either_error(self, statuses: &[u16], code: &str, transient: Option<&str>) -> Self {
        assert!(statuses.contains(&self.status.as_u16()), "{} {}", self.status, self.text);
        assert_eq!(self.body["errorCode"], code, "{}", self.text);
        assert_eq!(self.body["status"], self.status.as_u16());
        assert_eq!(self.header("transient-error"), transient, "{}", self.text);
        self
    }
}
