//! `testbed run`: everything is started and stays until Ctrl-C; every address is printed, with lines to paste.
//!
//! What it starts ends with it, the shared stack too if it was not running before. If it is killed, the next start of
//! anything here ends what it has left.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use testbed::circle::{Circle, Options};
use testbed::collector::Collector;
use testbed::prometheus::{Prometheus, document};
use testbed::stack::Stack;
use testbed::stack::home::Home;

use crate::signals::Signals;

const WATCH_EVERY: Duration = Duration::from_millis(500);
/// As in containers, see `observability/prometheus.yml`.
const SCRAPE_EVERY: Duration = Duration::from_secs(5);

/// With `observability`, Prometheus is started beside everything else.
pub(crate) async fn run(observability: bool) -> Result<()> {
    let home = Home::locate()?;
    let _only = home
        .lock("run", Duration::ZERO)
        .await
        .context("one `run` is enough: a second one would share its databases and topics")?;
    // Asked for before anything starts, so that a Ctrl-C during the start does not leave half of it.
    let mut signals = Signals::new()?;
    let (stack, started) = tokio::select! {
        up = Stack::up() => up?,
        () = signals.received() => return Ok(()),
    };
    let outcome = serve(&home, &stack, observability, &mut signals).await;
    if started {
        Stack::down().await?;
    }
    outcome
}

async fn serve(home: &Home, stack: &Stack, observability: bool, signals: &mut Signals) -> Result<()> {
    std::fs::create_dir_all(home.run()).context("make the folder of the logs")?;
    let collector = Collector::writing(&home.run().join("spans.jsonl")).await?;
    let otlp_endpoint = Some(collector.endpoint().to_owned());
    let folder = Some(home.run());
    let options = Options { isolated: false, relays: 2, folder, otlp_endpoint, ..Options::default() };
    let circle = tokio::select! {
        circle = Circle::start(stack, &options) => circle?,
        () = signals.received() => return Ok(()),
    };
    let prometheus = if observability {
        let rules = document("alerts.yml")?;
        Some(Prometheus::start(home, &home.run(), &circle, &rules, SCRAPE_EVERY).await?)
    } else {
        None
    };
    print(stack, &circle, prometheus.as_ref());
    let outcome = tokio::select! {
        outcome = trouble(stack, &circle) => outcome,
        () = signals.received() => Ok(()),
    };
    println!("stopping");
    let ended = circle.shutdown().await;
    outcome.and(ended)
}

/// Returns when something has ended that should not.
async fn trouble(stack: &Stack, circle: &Circle) -> Result<()> {
    loop {
        tokio::time::sleep(WATCH_EVERY).await;
        if !stack.lives() {
            bail!("the stack was stopped");
        }
        if let Some(service) = circle.services().find(|service| !service.running()) {
            bail!("{} has ended; its log is {}", service.name(), service.log().display());
        }
    }
}

fn print(stack: &Stack, circle: &Circle, prometheus: Option<&Prometheus>) {
    println!("\nThe parts");
    for (name, _, address) in stack.parts() {
        println!("  {name:<18} {address}");
    }
    for database in ["payments", "executor"] {
        println!("  {:<18} {}", format!("database {database}"), stack.postgres_url("operator", database));
    }
    println!("\nOur processes (each has /metrics, /readyz and /livez)");
    println!("  {:<18} {}/v1/payments", "API", circle.api_url);
    println!("  {:<18} {}/console", "console", circle.api_url);
    println!("  {:<18} {}/simulator/ledger", "PSP's ledger", circle.simulator_url);
    for service in circle.services() {
        println!("  {:<18} {}", service.name(), service.admin_url());
    }
    if let Some(prometheus) = prometheus {
        println!("  {:<18} {} (/targets, /alerts)", "Prometheus", prometheus.url());
    }
    println!("  {:<18} {}", "logs", circle.folder().display());
    println!("  {:<18} {}", "spans", circle.folder().join("spans.jsonl").display());
    println!("\nMake a payment, and look at it");
    println!(
        "  curl -s {}/v1/payments -H 'Authorization: Bearer {}' -H \"Idempotency-Key: $(date +%s%N)\" \\\n    \
         -H 'Content-Type: application/json' \\\n    \
         -d '{{\"amount_minor\":1234,\"currency\":\"EUR\",\"payment_method\":\"pm_card_visa\",\
         \"merchant_reference\":\"order-1\"}}'",
        circle.api_url, circle.api_token
    );
    println!(
        "  curl -s {}/v1/payment-orders/PAYMENT_ORDER_ID -H 'Authorization: Bearer {}'",
        circle.api_url, circle.api_token
    );
    println!("\nAn operator's token");
    println!("  {}", circle.operator_token);
    println!("\nLook inside");
    println!(
        "  make sql DB=payments Q=\"SELECT state, count(*) FROM payments.payment_orders GROUP BY state\""
    );
    println!(
        "  make sql DB=payments Q=\"SELECT to_state, decision, decided_at FROM payments.payment_order_transitions\""
    );
    println!("  make sql DB=executor Q=\"SELECT * FROM outbox.status\"");
    println!("\nCtrl-C stops everything.");
}
