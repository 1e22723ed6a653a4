//! Both PSPs, every scenario, and a network that doubles, drops, delays, overtakes and lies: the books agree all the same.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use serde_json::Value;
use uuid::Uuid;

use crate::{
    sender::{ADYEN_KEY, ADYEN_USER, STRIPE_SECRET, start_at},
    setup::{World, request, simulator},
};

/// Answers that are true, false, late, lost, and none.
const SCENARIOS: [&str; 16] = [
    "success",
    "slow",
    "processing",
    "processing_then_failure",
    "received",
    "decline_generic",
    "decline_lost_card",
    "authentication_required",
    "cancelled",
    "timeout_before_charge",
    "timeout_after_charge",
    "timeout_while_processing",
    "reset_after_charge",
    "garbled_after_charge",
    "error_after_charge",
    "amount_mismatch",
];
const EACH: usize = 3;
const EVERY_TRICK: &str = "duplicate=30,reorder=20,delay_ms=200,drop=10,early=30,contradict_late=25";
/// For everything to come to rest; the machine may be busy.
const REST: Duration = Duration::from_mins(2);

/// A PSP that tells `receiver` everything, and plays these tricks on it.
async fn telling(receiver: &str, mode: &str) -> (String, tokio_util::sync::DropGuard) {
    let (user, password) = ADYEN_USER.split_once(':').unwrap();
    let arguments = [
        format!("--stripe-webhook-url={receiver}/webhooks/stripe"),
        format!("--stripe-webhook-secret={STRIPE_SECRET}"),
        format!("--adyen-webhook-url={receiver}/webhooks/adyen"),
        format!("--adyen-webhook-hmac-key={ADYEN_KEY}"),
        format!("--adyen-webhook-user={user}"),
        format!("--adyen-webhook-password={password}"),
        format!("--webhook-mode={mode}"),
        "--webhook-backoff=100ms".to_owned(),
        "--slow=700ms".to_owned(),
        "--seed=7".to_owned(),
    ];
    simulator(&arguments.iter().map(String::as_str).collect::<Vec<_>>()).await
}

async fn rest(world: &World) {
    let open = "SELECT (SELECT count(*) FROM executor.inbox WHERE state NOT IN ('SETTLED', 'REVIEW'))
                     + (SELECT count(*) FROM executor.webhooks WHERE processed_at IS NULL)";
    let begun = Instant::now();
    while world.count(open).await > 0 {
        assert!(begun.elapsed() < REST, "{} are still open", world.count(open).await);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Statuses and references of the results of each order.
async fn said(world: &World) -> HashMap<Uuid, Vec<(String, Option<String>)>> {
    let rows: Vec<(Uuid, String, Option<String>)> =
        sqlx::query_as("SELECT payment_order_id, psp_status, psp_reference FROM executor.psp_results")
            .fetch_all(&world.pool)
            .await
            .unwrap();
    let mut said = HashMap::<_, Vec<_>>::new();
    for (id, status, reference) in rows {
        said.entry(id).or_default().push((status, reference));
    }
    said
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hostile_network_loses_nothing_and_hides_nothing() {
    let mut world = World::new("hostile").await;
    let address = format!("127.0.0.1:{}", testbed::stack::free_port().unwrap());
    let (psp_url, _psp) = telling(&format!("http://{address}"), EVERY_TRICK).await;
    world.psp_url = psp_url;
    let running = start_at(
        &world,
        &address,
        &[
            "--psp-timeout=1500ms",
            "--resolve-after=200ms",
            "--resolve-then=300ms,500ms,1s,1s,2s,2s,2s,2s",
            "--webhook-orphans-for=10s",
        ],
    );
    let mut orders = HashMap::new();
    for scenario in SCENARIOS.iter().flat_map(|scenario| [*scenario; EACH]) {
        for psp in ["STRIPE", "ADYEN"] {
            let mut event = request(&format!("pm_sim_{scenario}"));
            if psp == "ADYEN" {
                event.psp = psp.to_owned();
                event.payment_method = format!("shopper-1-adyen_sim_{scenario}");
            }
            orders.insert(event.payment_order_id, (psp, scenario, event));
        }
    }
    world.send_all(&orders.values().map(|(_, _, event)| event.clone()).collect::<Vec<_>>()).await;
    let taken_in = i64::try_from(orders.len()).unwrap();
    world.wait_for_count("SELECT count(*) FROM executor.inbox", taken_in).await;
    rest(&world).await;
    // What contradicts comes up to a second after what it contradicts.
    tokio::time::sleep(Duration::from_secs(3)).await;
    rest(&world).await;

    let report: Value = world.psp_report().await;
    let lies: Vec<&Value> = report["contradictions"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|lie| lie["acknowledged"] == true)
        .collect();
    let said = said(&world).await;
    let mut charges = HashMap::<Uuid, usize>::new();
    for charge in world.ledger().await {
        *charges.entry(charge["payment_order_id"].as_str().unwrap().parse().unwrap()).or_default() += 1;
    }
    for (id, (psp, scenario, _)) in &orders {
        let of = || format!("{psp} {scenario} {id}: {:?}", said.get(id));
        let has = |status: &str| said.get(id).is_some_and(|said| said.iter().any(|(one, _)| one == status));
        let review = world.state(*id).await.as_deref() == Some("REVIEW");
        let lied = lies.iter().filter(|lie| lie["payment_order_id"] == id.to_string());
        let lied: Vec<&str> = lied.filter_map(|lie| lie["kind"].as_str()).collect();
        let charged = charges.get(id).copied().unwrap_or_default();
        assert!(charged <= 1, "charged {charged} times: {}", of());
        assert!(charged == 0 || has("SUCCESSFUL") || review, "charged, and nobody knows: {}", of());
        assert!(charged == 1 || !has("SUCCESSFUL") || !lied.is_empty(), "paid without a charge: {}", of());
        // No lie passes for the truth: beside it stands what it contradicts, or a person is called.
        let successes = said[id].iter().filter(|(status, _)| status == "SUCCESSFUL").count();
        for lie in lied {
            let shown = match lie {
                "second_success" => successes > 1,
                _ => has("SUCCESSFUL") && has("FAILED"),
            };
            assert!(shown || review, "{lie} was swallowed: {}", of());
        }
        assert_eq!(world.events(*id).await.len(), said[id].len(), "each result is one event");
    }
    assert!(lies.len() > 3, "the network lied {} times", lies.len());
    assert!(world.count("SELECT count(*) FROM executor.psp_results WHERE source = 'WEBHOOK'").await > 5);
    running.stop().await;
}

/// The assumption on which FAILED follows once Adyen has taken a cancellation, come out wrong: the shopper acts after all.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_called_off_and_is_authorised_after_all_is_published_as_both() {
    let mut world = World::new("after_all").await;
    let address = format!("127.0.0.1:{}", testbed::stack::free_port().unwrap());
    let (psp_url, _psp) = telling(&format!("http://{address}"), "calm").await;
    world.psp_url = psp_url;
    let running = start_at(&world, &address, &[]);
    let mut event = request("shopper-1-adyen_sim_action_then_authorised");
    event.psp = "ADYEN".to_owned();
    let id = event.payment_order_id;
    world.send_all(std::slice::from_ref(&event)).await;
    let paid = "SELECT count(*) FROM executor.psp_results WHERE psp_status = 'SUCCESSFUL'";
    world.wait_for_count(paid, 1).await;
    rest(&world).await;
    let operations: Vec<String> = world.calls(id).await.into_iter().map(|(operation, _)| operation).collect();
    assert_eq!(operations, ["CONFIRM", "CANCEL"], "the cancellation was taken, and did not stop it");
    let result = |status: &str, code: Option<&str>, source: &str| {
        (status.to_owned(), code.map(str::to_owned), source.to_owned())
    };
    let called_off = result("FAILED", Some("AUTHENTICATION_REQUIRED"), "REPLY");
    assert_eq!(world.results(id).await, [called_off, result("SUCCESSFUL", None, "WEBHOOK")]);
    assert_eq!((world.charges(id).await, world.events(id).await.len()), (1, 2));
    running.stop().await;
}
