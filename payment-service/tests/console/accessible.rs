//! What the pages are to those who see, hear or point otherwise: axe-core finds nothing, in light and in dark, and nothing is wider than a
//! narrow screen.

use std::time::Duration;

use serde_json::{Value as Json, json};
use uuid::Uuid;

use crate::{
    browser::{Browser, Tools},
    site::Site,
};

/// The narrowest screen that WCAG 2.2 asks for (1.4.10, reflow), and a desk.
const NARROW: (u32, u32) = (320, 640);
const WIDE: (u32, u32) = (1280, 900);

pub(crate) async fn check(browser: &Browser, site: &Site, tools: &Tools, payment: Uuid) {
    let orders = [site
        .pay("a reference that is long and has no place to break: ".repeat(4).trim(), "pm_card_visa")
        .await];
    let created = &orders[0];
    site.settled(created.order, "SUCCESSFUL").await;
    site.tell(&created.order.to_string(), "FAILED", Some(("card_declined", "no"))).await;
    site.settled(created.order, "NEEDS_REVIEW").await;
    let orphan = Uuid::new_v4().to_string();
    site.tell(&orphan, "SUCCESSFUL", None).await;
    site.counts("SELECT count(*) FROM payments.quarantine WHERE settled_at IS NULL", 1).await;
    let key = Uuid::new_v4().to_string();
    site.tell(&key, "SUCESSFUL", None).await;
    site.counts_at_executor("SELECT count(*) FROM outbox.parked WHERE released_at IS NULL", 1).await;

    let axe = tools.axe.as_ref().map(|path| std::fs::read_to_string(path).unwrap());
    if axe.is_none() {
        println!(
            "SKIPPED: the pages are not looked at by axe-core: AXE names no file (make test-console sets it, where npm is)"
        );
    }
    let pages = [
        "/console/payments".to_owned(),
        "/console/payments?q=nothing+like+that".to_owned(),
        "/console/payments?from=soon".to_owned(),
        "/console/payments?live=on".to_owned(),
        format!("/console/payments/{payment}"),
        format!("/console/payments/{}", created.payment),
        "/console/attention".to_owned(),
        format!("/console/attention/review/{}", created.order),
        "/console/attention/quarantine/1/discard".to_owned(),
        "/console/outcomes/quarantine/1".to_owned(),
        "/console/nowhere".to_owned(),
        "/console/sign-in".to_owned(),
    ];
    for dark in [false, true] {
        for (width, height) in [WIDE, NARROW] {
            browser.size(width, height).await;
            browser.dark(dark).await;
            for page in &pages {
                browser.open(&site.page(page)).await;
                let scheme = if dark { "dark" } else { "light" };
                let place = format!("{page}, {scheme}, {width} wide");
                let ground = browser.script("return getComputedStyle(document.body).backgroundColor").await;
                assert_eq!(ground == "rgb(255, 255, 255)", !dark, "{place}: {ground}");
                let over = browser
                    .script(
                        "return document.documentElement.scrollWidth - document.documentElement.clientWidth",
                    )
                    .await;
                assert_eq!(over, 0, "{place}: wider than the screen by");
                if let Some(axe) = &axe {
                    let found = violations(browser, axe, page.contains("live=on")).await;
                    assert_eq!(found, json!([]), "{place}");
                }
            }
        }
    }
    if let Some(axe) = &axe {
        it_can_fail(browser, site, axe).await;
    }
    browser.size(WIDE.0, WIDE.1).await;
    browser.dark(false).await;
    site.resolve_by_api(created.order).await;
}

/// Every rule of axe-core, but one where a page asks for itself again: it does so because its reader has asked for that, and the link
/// that ends it stands there (WCAG 2.2.1 and 2.2.2).
async fn violations(browser: &Browser, axe: &str, refreshing: bool) -> Json {
    browser.driver.execute(axe, Vec::new()).await.unwrap();
    browser.driver.set_script_timeout(Duration::from_secs(30)).await.unwrap();
    let rules = if refreshing { json!({"rules": {"meta-refresh": {"enabled": false}}}) } else { json!({}) };
    let script = "const done = arguments[arguments.length - 1];
        axe.run(document, arguments[0]).then(
            r => done(r.violations.map(v => [v.id, v.help, v.nodes.map(n => n.target.join(' ') + ': ' + n.failureSummary)])),
            e => done(String(e)))";
    browser.driver.execute_async(script, vec![rules]).await.unwrap().json().clone()
}

/// A check that finds nothing is worth something only if it can find something.
async fn it_can_fail(browser: &Browser, site: &Site, axe: &str) {
    browser.dark(false).await;
    browser.open(&site.page("/console/payments")).await;
    browser
        .script("document.querySelector('label[for=q]').remove(); document.body.style.color = '#aaa'")
        .await;
    let found = violations(browser, axe, false).await.to_string();
    assert!(found.contains("label") && found.contains("color-contrast"), "{found}");
}
