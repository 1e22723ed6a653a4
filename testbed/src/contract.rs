//! `testbed test-api`: schemathesis asks the running service whatever its own document allows, and what it does not, and holds every answer against
//! the document.
//!
//! ```text
//! the whole circle ─▶ payments of every sort, so that there is something to find ─▶ schemathesis as a merchant ─▶ as an operator,
//!                  who resolves a payment order that needs a person ─▶ is it resolved?
//! ```

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::circle::{Circle, Options};
use crate::stack::Stack;

/// What must hold of every answer. What is refused by rules that a schema cannot say (a card number, an unknown currency) is not among
/// it: such a request fits the document, and is answered 422.
const CHECKS: &str = "not_a_server_error,status_code_conformance,content_type_conformance,response_headers_conformance,\
                      response_schema_conformance,unsupported_method,allow_header_conformance,ignored_auth";
const LIMIT: Duration = Duration::from_mins(8);
/// What becomes of the payments that are there already.
const METHODS: [&str; 3] = ["pm_card_visa", "pm_card_chargeDeclined", "pm_sim_slow"];
/// The PSP states another amount than was asked for: that needs a person.
const NEEDS_A_PERSON: &str = "pm_sim_amount_mismatch";
const IN_REVIEW_LIMIT: Duration = Duration::from_secs(30);

/// What to run.
#[derive(Clone, Debug)]
pub struct Contract {
    /// The program.
    pub schemathesis: PathBuf,
    /// Most cases per operation.
    pub examples: u32,
    /// The same seed draws the same cases.
    pub seed: u64,
}

/// Runs on the shared stack, which is started, and ended again, if it does not run. Fails if any answer is not as documented.
pub async fn run(contract: &Contract) -> Result<()> {
    let ran_before = Stack::running().await?.is_some();
    let (stack, _) = Stack::up().await?;
    let outcome = on(contract, &stack).await;
    if !ran_before {
        Stack::down().await?;
    }
    outcome
}

async fn on(contract: &Contract, stack: &Stack) -> Result<()> {
    // Everything that one client may do within a second is asked for here.
    let rate = ("payment-service".to_owned(), "RATE_PER_TOKEN".to_owned(), "100000".to_owned());
    let circle = Circle::start(stack, &Options { environment: vec![rate], ..Options::default() }).await?;
    for (number, method) in METHODS.iter().cycle().take(12).enumerate() {
        pay(&circle, number, method).await?;
    }
    let payment = pay(&circle, METHODS.len() * 12, NEEDS_A_PERSON).await?;
    let order = in_review(&circle, &payment).await?;
    // An id that is drawn is of no payment order: without this one nothing could ever be resolved.
    let resolve = format!(
        "[[operations]]\ninclude-name = \"POST /v1/payment-orders/{{payment_order_id}}/resolve\"\n\
         parameters = {{ payment_order_id = \"{order}\" }}\n"
    );
    fs::write(circle.folder().join("schemathesis.toml"), resolve)
        .context("write the settings of schemathesis")?;
    for (role, token) in [("merchant", &circle.api_token), ("operator", &circle.operator_token)] {
        hold(contract, &circle, token).await.with_context(|| format!("as a {role}"))?;
    }
    let state = get(&circle, &format!("payment-orders/{order}")).await?["state"].clone();
    ensure!(
        state == "SUCCESSFUL" || state == "FAILED",
        "no request has resolved the payment order, it is {state}"
    );
    circle.shutdown().await
}

async fn get(circle: &Circle, path: &str) -> Result<Value> {
    let request = reqwest::Client::builder().no_proxy().build()?.get(format!("{}/v1/{path}", circle.api_url));
    let answer = request.bearer_auth(&circle.operator_token).send().await?;
    Ok(answer.error_for_status()?.json().await?)
}

/// The payment's only order, as soon as a person has to decide about it.
async fn in_review(circle: &Circle, payment: &str) -> Result<String> {
    let until = Instant::now() + IN_REVIEW_LIMIT;
    loop {
        let answer = get(circle, &format!("payments/{payment}")).await?;
        let order = &answer["payment_orders"][0];
        match (order["state"].as_str(), order["payment_order_id"].as_str()) {
            (Some("NEEDS_REVIEW"), Some(id)) => return Ok(id.to_owned()),
            _ if Instant::now() < until => sleep(Duration::from_millis(50)).await,
            _ => bail!("the payment needs no person after {IN_REVIEW_LIMIT:?}: {answer}"),
        }
    }
}

async fn pay(circle: &Circle, number: usize, method: &str) -> Result<String> {
    let body = json!({"amount_minor": 1_000 + number, "currency": "EUR", "payment_method": method, "merchant_reference": "order"});
    let request =
        reqwest::Client::builder().no_proxy().build()?.post(format!("{}/v1/payments", circle.api_url));
    let request =
        request.bearer_auth(&circle.api_token).header("Idempotency-Key", format!("contract-{number}"));
    let answer: Value = request.json(&body).send().await?.error_for_status()?.json().await?;
    answer["payment_id"].as_str().map(str::to_owned).with_context(|| format!("no payment was made: {answer}"))
}

async fn hold(contract: &Contract, circle: &Circle, token: &str) -> Result<()> {
    let folder = circle.folder();
    let mut command = tokio::process::Command::new(program(&contract.schemathesis)?);
    command
        .arg("run")
        .arg(format!("{}/v1/openapi.json", circle.api_url))
        .args(["--header", &format!("Authorization: Bearer {token}")])
        .args(["--checks", CHECKS, "--phases", "examples,coverage,fuzzing,stateful"])
        .args(["--max-examples", &contract.examples.to_string(), "--seed", &contract.seed.to_string()])
        .args(["--workers", "2", "--request-timeout", "10", "--no-color", "--continue-on-failure"])
        // It keeps what it has found in the folder that it is in.
        .current_dir(folder)
        .stdin(Stdio::null())
        .kill_on_drop(true);
    let ended = tokio::time::timeout(LIMIT, command.status())
        .await
        .with_context(|| format!("schemathesis has not ended within {LIMIT:?}"))?
        .context("start schemathesis")?;
    if !ended.success() {
        bail!("schemathesis has found something ({ended})");
    }
    Ok(())
}

/// Its place from here, as it is started elsewhere.
fn program(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).with_context(|| format!("find {}", path.display()))
}
