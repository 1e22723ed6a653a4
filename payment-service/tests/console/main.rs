//! The console in a real browser: headless Chromium, driven over WebDriver, and the whole circle behind it. `make test-console` installs
//! what is needed and runs this; without it, it says that it is skipped.
//!
//! One circle and one browser serve all of it, from a door that is closed to a list that is empty again.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    reason = "a test ends where something fails"
)]

mod accessible;
mod browser;
mod site;

use uuid::Uuid;

use crate::{browser::Browser, site::Site};

/// Text that would do something if it were taken for HTML, or turn around what follows it.
const HOSTILE: &str =
    "<script>document.title='owned'</script>\"'><img src=x onerror=alert(1)> \u{202e}evil\u{2067} &amp;";

#[tokio::test]
async fn an_operator_works_in_a_browser() {
    let Some(tools) = browser::Tools::find() else {
        println!(
            "SKIPPED: the console is not looked at in a browser: CHROMEDRIVER names no program (make test-console sets it)"
        );
        return;
    };
    let site = Site::start().await;
    let driver = tools.driver().await;
    let browser = driver.browser(&tools, true).await;
    println!("the door");
    the_door_is_for_operators(&browser, &site).await;
    println!("a payment");
    let payment = a_payment_appears_and_tells_every_step(&browser, &site).await;
    println!("hostile texts");
    hostile_texts_are_inert(&browser, &site).await;
    println!("a contradiction");
    a_contradiction_is_resolved(&browser, &site).await;
    println!("the quarantine");
    a_record_in_quarantine_is_redriven(&browser, &site).await;
    println!("a parked event");
    a_parked_event_is_discarded(&browser, &site).await;
    println!("the list, live");
    a_list_refreshes_itself(&browser, &site).await;
    println!("accessibility");
    accessible::check(&browser, &site, &tools, payment).await;
    println!("by keyboard alone");
    everything_can_be_done_by_keyboard(&browser, &site).await;
    if let Some(folder) = &tools.screenshots {
        println!("pictures");
        pictures(&browser, &site, payment, folder).await;
    }
    browser.quit().await;

    println!("without a script");
    let plain = driver.browser(&tools, false).await;
    without_a_script_all_of_it_works(&plain, &site).await;
    plain.quit().await;
    site.shutdown().await;
}

// ------------------------------------------------------------------------------------------------------------ the door

async fn the_door_is_for_operators(browser: &Browser, site: &Site) {
    browser.open(&site.page("/console/attention")).await;
    assert_eq!(browser.heading().await, "Sign in");
    for (token, words) in [
        ("po_0000000000000000000000000000000000000000000", "not a token that is valid here"),
        (site.circle.api_token.as_str(), "merchant's token"),
    ] {
        browser.sign_in(token).await;
        assert_eq!(browser.heading().await, "Sign in");
        let refused = browser.text("#refused").await;
        assert!(refused.contains(words), "{refused}");
        assert_eq!(browser.value("#token").await, "", "a token is not shown again");
    }
    browser.sign_in(&site.circle.operator_token).await;
    assert_eq!(browser.heading().await, "Needs attention", "where one wanted to go");
    let cookies = browser.driver.get_all_cookies().await.unwrap();
    let session = cookies.iter().find(|cookie| cookie.name == "console").unwrap();
    assert!(!format!("{session:?}").contains(&site.circle.operator_token));
    let seen = browser.script("return document.cookie").await;
    assert_eq!(seen, "", "no script can read the session");

    browser.press_button("Sign out").await;
    assert_eq!(browser.heading().await, "Sign in");
    browser.open(&site.page("/console/payments")).await;
    assert_eq!(browser.heading().await, "Sign in", "signed out");
    browser.sign_in(&site.circle.operator_token).await;
    assert_eq!(browser.heading().await, "Payments");
}

// ----------------------------------------------------------------------------------------------------------- a payment

async fn a_payment_appears_and_tells_every_step(browser: &Browser, site: &Site) -> Uuid {
    let created = site.pay("order-1", "pm_card_visa").await;
    site.settled(created.order, "SUCCESSFUL").await;
    browser.open(&site.page("/console/payments")).await;
    browser.follow("order-1").await;
    assert!(browser.heading().await.contains("order-1"));
    assert_eq!(browser.text("#status").await, "SUCCESSFUL");
    assert_eq!(browser.text("#trace").await, created.trace_id);
    let page = site.page(&format!("/console/payments/{}", created.payment));
    browser.open(&page).await;
    // Published is what the relays have saved as published: a moment after the state, as a rule.
    let steps =
        browser.until(&page, "table.timeline", |text| text.matches("saved as published").count() == 2).await;
    let mut behind = 0;
    for step in [
        "Request accepted",
        "Request written to the outbox",
        "Request taken in",
        "PSP called: CREATE, try 1",
        "PSP answered: CREATE, try 1",
        "PSP called: CONFIRM, try 1",
        "PSP answered: CONFIRM, try 1",
        "Result recorded: SUCCESSFUL",
        "Result written to the outbox",
        "APPLIED: CREATED → SUCCESSFUL",
    ] {
        let found =
            steps[behind..].find(step).unwrap_or_else(|| panic!("{step} behind {behind} in\n{steps}"));
        behind += found;
    }
    for detail in [
        "Request saved as published",
        "Result saved as published",
        "partition",
        "offset",
        "since the PSP's answer",
    ] {
        assert!(steps.contains(detail), "{detail} in\n{steps}");
    }
    let reference = site.reference(created.order).await;
    assert!(steps.contains(&reference), "{reference} in\n{steps}");
    // Each of these finds it, and it alone.
    for text in [
        created.payment.to_string(),
        created.order.to_string(),
        created.trace_id,
        reference,
        "order-1".to_owned(),
    ] {
        browser.open(&site.page("/console/payments")).await;
        browser.fill("#q", &text).await;
        browser.press_button("Show").await;
        let rows = browser.all("tbody tr").await;
        assert_eq!(rows.len(), 1, "{text}: {rows:?}");
        assert!(rows[0].contains("order-1"), "{text}: {rows:?}");
    }
    browser.open(&site.page("/console/payments?status=FAILED")).await;
    assert_eq!(browser.text("#none").await, "No payment is like that.");
    created.payment
}

async fn hostile_texts_are_inert(browser: &Browser, site: &Site) {
    let created = site.pay(HOSTILE, "pm_card_visa").await;
    site.settled(created.order, "SUCCESSFUL").await;
    // A PSP's words are a stranger's too: this result contradicts, and its text is kept in the quarantine's reason or with the order.
    site.tell(&created.order.to_string(), "FAILED", Some(("card_declined", HOSTILE))).await;
    site.settled(created.order, "NEEDS_REVIEW").await;
    for page in [
        "/console/payments".to_owned(),
        format!("/console/payments/{}", created.payment),
        "/console/attention".to_owned(),
    ] {
        browser.open(&site.page(&page)).await;
        let title = browser.driver.title().await.unwrap();
        assert!(title.ends_with("payment-outbox console"), "{page}: {title}");
        assert_eq!(
            browser.script("return document.querySelectorAll('script, img').length").await,
            0,
            "{page}"
        );
        let text = browser.text("main").await;
        assert!(text.contains("<script>document.title='owned'</script>"), "{page}: shown as it is: {text}");
        // What turns text around ends with the element that it is in.
        let inside =
            "return [...document.querySelectorAll('bdi')].some(e => e.textContent.includes('\\u202e'))";
        assert_eq!(browser.script(inside).await, true, "{page}");
    }
    site.resolve_by_api(created.order).await;
}

// --------------------------------------------------------------------------------------------------- what needs a person

async fn a_contradiction_is_resolved(browser: &Browser, site: &Site) {
    let created = site.pay("contradicted", "pm_card_visa").await;
    site.settled(created.order, "SUCCESSFUL").await;
    site.tell(&created.order.to_string(), "FAILED", Some(("card_declined", "no"))).await;
    site.settled(created.order, "NEEDS_REVIEW").await;
    browser.open(&site.page("/console/attention")).await;
    let list = browser.text("#review-list").await;
    assert!(list.contains("contradicted") && list.contains("FAILURE_AFTER_SUCCESS"), "{list}");
    assert!(browser.text("aside").await.contains("1 in review"));
    browser.follow("Resolve payment contradicted").await;
    // Nothing happens without a decision and a reason: the browser asks for both.
    browser.press_in_vain("Resolve it").await;
    assert_eq!(site.state(created.order).await, "NEEDS_REVIEW");
    browser.choose("SUCCESSFUL").await;
    browser.fill("#note", "the PSP's dashboard shows the charge").await;
    browser.press_button("Resolve it").await;
    let verdict = browser.text("#verdict").await;
    assert!(verdict.contains("SUCCESSFUL"), "{verdict}");
    assert_eq!(site.state(created.order).await, "SUCCESSFUL");
    assert!(browser.text("main").await.contains("local-operator"));
    browser.follow("Back to what needs attention").await;
    assert!(!browser.text("main").await.contains("contradicted"), "it has left the list");
    let audit: (String, String) = site.transition(created.order, "RESOLVED").await;
    assert_eq!(audit, ("local-operator".to_owned(), "the PSP's dashboard shows the charge".to_owned()));
    browser.open(&site.page(&format!("/console/payments/{}", created.payment))).await;
    let steps = browser.text("table.timeline").await;
    assert!(
        steps.contains("NEEDS_REVIEW → SUCCESSFUL") && steps.contains("the PSP's dashboard shows"),
        "{steps}"
    );
}

async fn a_record_in_quarantine_is_redriven(browser: &Browser, site: &Site) {
    site.as_owner(
        "ALTER TABLE payments.payment_orders ADD CONSTRAINT too_strict CHECK (error_code IS NULL) NOT VALID",
    )
    .await;
    let created = site.pay("too strict", "pm_card_chargeDeclined").await;
    site.counts("SELECT count(*) FROM payments.quarantine WHERE settled_at IS NULL", 1).await;
    browser.open(&site.page("/console/attention")).await;
    let list = browser.text("#quarantine-list").await;
    assert!(list.contains("REFUSED") && list.contains("too_strict"), "{list}");
    // Before the cause is mended: it is refused again, and the page says so.
    browser.follow("Redrive record 1").await;
    browser.fill("#note", "trying").await;
    browser.press_button("Redrive it").await;
    let verdict = browser.settled_verdict().await;
    assert!(verdict.contains("Refused again") && verdict.contains("too_strict"), "{verdict}");
    site.as_owner("ALTER TABLE payments.payment_orders DROP CONSTRAINT too_strict").await;
    browser.open(&site.page("/console/attention")).await;
    browser.follow("Redrive record 1").await;
    browser.fill("#note", "the constraint is gone").await;
    browser.press_button("Redrive it").await;
    let verdict = browser.settled_verdict().await;
    assert!(verdict.contains("has left the quarantine"), "{verdict}");
    assert_eq!(site.state(created.order).await, "FAILED");
    browser.follow("See the payment").await;
    assert!(browser.heading().await.contains("too strict"));
    let steps = browser.text("table.timeline").await;
    assert!(steps.contains("Record 1 set aside: REFUSED") && steps.contains("local-operator"), "{steps}");
    let asked = "SELECT count(*) FROM payments.commands WHERE operator = 'local-operator' AND requested_by = 'console'";
    site.counts(asked, 2).await;
    // Again, from the address: it is not there to be redriven any more.
    browser.open(&site.page("/console/attention/quarantine/1/redrive")).await;
    assert!(browser.text("#refused").await.contains("has left the quarantine"));
}

async fn a_parked_event_is_discarded(browser: &Browser, site: &Site) {
    let key = Uuid::new_v4().to_string();
    site.tell(&key, "SUCESSFUL", None).await;
    site.counts_at_executor("SELECT count(*) FROM outbox.parked WHERE released_at IS NULL", 1).await;
    browser.open(&site.page("/console/attention")).await;
    let list = browser.text("#parked-results-list").await;
    assert!(list.contains("is not a symbol") && list.contains(&key), "{list}");
    assert!(browser.text("aside").await.contains("1 parked, 0 held"));
    browser.follow_starting("Discard event").await;
    assert!(browser.heading().await.starts_with("Discard event"));
    browser.fill("#note", "misspelt by hand").await;
    browser.press_button("Discard it for good").await;
    let verdict = browser.settled_verdict().await;
    assert!(verdict.contains("1 discarded"), "{verdict}");
    browser.follow("Back to what needs attention").await;
    assert!(browser.text("main").await.matches("No event is parked.").count() == 2);
}

async fn a_list_refreshes_itself(browser: &Browser, site: &Site) {
    browser.open(&site.page("/console/payments")).await;
    browser.follow("Refresh every 5 seconds").await;
    site.pay("arrives by itself", "pm_card_visa").await;
    let found = browser.appears("main", "arrives by itself").await;
    assert!(found, "without a click");
    browser.follow("Stop refreshing").await;
    assert_eq!(browser.script("return document.querySelectorAll('meta[http-equiv]').length").await, 0);
}

// ----------------------------------------------------------------------------------------------------------- otherwise

async fn everything_can_be_done_by_keyboard(browser: &Browser, site: &Site) {
    let created = site.pay("by keyboard", "pm_card_visa").await;
    site.settled(created.order, "SUCCESSFUL").await;
    site.tell(&created.order.to_string(), "FAILED", Some(("card_declined", "no"))).await;
    site.settled(created.order, "NEEDS_REVIEW").await;
    browser.driver.delete_all_cookies().await.unwrap();
    browser.open(&site.page("/console/payments")).await;
    // The first stop leads past everything that is the same on every page.
    browser.press_tab().await;
    assert_eq!(browser.focused().await, "Skip to the content");
    browser.tab_to("Operator token").await;
    browser.type_keys(&site.circle.operator_token).await;
    browser.press_enter().await;
    browser.tab_to("Needs attention").await;
    browser.press_enter().await;
    browser.tab_to("Resolve payment by keyboard").await;
    browser.press_enter().await;
    browser.tab_to("SUCCESSFUL").await;
    browser.press_space().await;
    browser.tab_to("Why").await;
    browser.type_keys("seen at the PSP").await;
    browser.tab_to("Resolve it").await;
    browser.press_enter().await;
    assert!(browser.text("#verdict").await.contains("SUCCESSFUL"));
    assert_eq!(site.state(created.order).await, "SUCCESSFUL");
}

async fn without_a_script_all_of_it_works(browser: &Browser, site: &Site) {
    // This browser runs none: the page that proves it would change its own title.
    browser.open("data:text/html,<title>none</title><script>document.title='ran'</script>").await;
    assert_eq!(browser.driver.title().await.unwrap(), "none");
    let created = site.pay("no script", "pm_card_visa").await;
    site.settled(created.order, "SUCCESSFUL").await;
    site.tell(&created.order.to_string(), "FAILED", Some(("card_declined", "no"))).await;
    site.settled(created.order, "NEEDS_REVIEW").await;
    browser.open(&site.page("/console")).await;
    browser.sign_in(&site.circle.operator_token).await;
    browser.fill("#q", "no script").await;
    browser.press_button("Show").await;
    browser.follow("no script").await;
    browser.follow("Resolve this payment order").await;
    browser.choose("FAILED").await;
    browser.fill("#note", "refunded at the PSP").await;
    browser.press_button("Resolve it").await;
    assert!(browser.text("#verdict").await.contains("FAILED"));
    assert_eq!(site.state(created.order).await, "FAILED");
    browser.press_button("Sign out").await;
    assert_eq!(browser.heading().await, "Sign in");
}

/// What stands in the README.
async fn pictures(browser: &Browser, site: &Site, payment: Uuid, folder: &std::path::Path) {
    std::fs::create_dir_all(folder).unwrap();
    for reference in ["order-2", "order-3", "order-4"] {
        site.pay(reference, "pm_card_visa").await;
    }
    let declined = site.pay("order-5", "pm_card_chargeDeclined").await;
    site.settled(declined.order, "FAILED").await;
    browser.size(1060, 760).await;
    browser.dark(false).await;
    for (name, page) in
        [("payment", format!("/console/payments/{payment}")), ("payments", "/console/payments".to_owned())]
    {
        browser.open(&site.page(&page)).await;
        // The timeline is what the page is for.
        browser
            .script("const order = document.getElementById('order-1'); if (order) order.scrollIntoView()")
            .await;
        let picture = browser.picture().await;
        assert!(picture.len() <= 60_000, "{name}: {} bytes are too many for a README", picture.len());
        std::fs::write(folder.join(format!("console-{name}.webp")), picture).unwrap();
    }
}
