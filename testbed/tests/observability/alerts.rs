//! Every alert has a section in the runbook, a case that fires and one that stays silent, and names metrics that exist.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use testbed::prometheus::document;

use super::{catalogue::Catalogue, none, only, promql::names_in, promtool, read};

const ALERTS: &str = "alerts.yml";
const CASES: &str = "alerts_test.yml";
const RUNBOOK: &str = "docs/runbook.md";
/// What a section of the runbook has to have.
const PARTS: [&str; 4] = ["- **At risk**: ", "- **Look**:\n  ```\n", "- **Do**: ", "- **Ends**: "];

/// Every rule of an alerts file.
pub(crate) fn rules(alerts: &Value) -> Vec<&Value> {
    alerts["groups"].as_array().unwrap().iter().flat_map(|group| group["rules"].as_array().unwrap()).collect()
}

fn alerts_are_complete(alerts: &Value, catalogue: &Catalogue) -> Vec<String> {
    let (mut problems, mut seen) = (Vec::new(), BTreeSet::new());
    for rule in rules(alerts) {
        let name = rule["alert"].as_str().unwrap_or_default();
        if !seen.insert(name) {
            problems.push(format!("{name}: twice"));
        }
        if !matches!(rule["labels"]["severity"].as_str(), Some("page" | "ticket")) {
            problems.push(format!("{name}: severity"));
        }
        if !rule["annotations"]["summary"].is_string() {
            problems.push(format!("{name}: summary"));
        }
        let address = format!("{RUNBOOK}#{}", name.to_lowercase());
        if rule["annotations"]["runbook_url"] != address.as_str() {
            problems.push(format!("{name}: runbook_url"));
        }
        let expression = rule["expr"].as_str().unwrap_or_default();
        problems.extend(catalogue.unknown(expression).into_iter().map(|metric| format!("{name}: {metric}")));
    }
    problems
}

/// Sections of the runbook whose heading is one word are alerts.
fn runbook_has_them_all(alerts: &Value, runbook: &str) -> Vec<String> {
    let mut problems = Vec::new();
    let sections: Vec<(&str, &str)> = runbook
        .split("\n### ")
        .skip(1)
        .map(|section| section.split("\n## ").next().unwrap().split_once('\n').unwrap())
        .collect();
    for rule in rules(alerts) {
        let name = rule["alert"].as_str().unwrap();
        let Some((_, section)) = sections.iter().find(|(heading, _)| *heading == name) else {
            problems.push(format!("{name}: no section"));
            continue;
        };
        let severity = format!("\n*{}.* ", rule["labels"]["severity"].as_str().unwrap());
        let missing = PARTS.into_iter().chain([severity.as_str()]).filter(|part| !section.contains(part));
        problems.extend(missing.map(|part| format!("{name}: {:?} is missing in its section", part.trim())));
    }
    let known: Vec<&str> = rules(alerts).iter().map(|rule| rule["alert"].as_str().unwrap()).collect();
    let others = sections.iter().filter(|(heading, _)| !known.contains(heading));
    problems.extend(others.map(|(heading, _)| format!("{heading}: a section, and no alert")));
    problems
}

fn cases_are_two_for_each(alerts: &Value, cases: &Value) -> Vec<String> {
    let mut problems = Vec::new();
    for rule in rules(alerts) {
        let name = rule["alert"].as_str().unwrap();
        let expected = cases["tests"].as_array().unwrap().iter().filter_map(|case| {
            let questions = case["alert_rule_test"].as_array().unwrap().iter();
            let about = questions.filter(|question| question["alertname"] == name).collect::<Vec<_>>();
            (!about.is_empty()).then(|| {
                let fires = |question: &&Value| !question["exp_alerts"].as_array().unwrap().is_empty();
                about.iter().any(fires)
            })
        });
        let expected: BTreeSet<bool> = expected.collect();
        if !expected.contains(&true) {
            problems.push(format!("{name}: no case in which it fires"));
        }
        if !expected.contains(&false) {
            problems.push(format!("{name}: no case in which it stays silent"));
        }
    }
    problems
}

#[test]
fn alerts_keep_their_rules() {
    let (alerts, catalogue) = (document(ALERTS).unwrap(), Catalogue::documented());
    none(&alerts_are_complete(&alerts, &catalogue));
    let with = |key: &str, value: Value| {
        let mut alerts = alerts.clone();
        alerts["groups"][1]["rules"][0][key] = value;
        alerts_are_complete(&alerts, &catalogue)
    };
    let url = "docs/runbook.md#norelayleader";
    only(&with("labels", json!({"severity": "maybe"})), "NoRelayLeader: severity");
    only(&with("annotations", json!({"runbook_url": url})), "NoRelayLeader: summary");
    only(&with("annotations", json!({"summary": "x"})), "NoRelayLeader: runbook_url");
    let twice = json!({"alert": "TwoRelayLeaders", "labels": {"severity": "page"}, "expr": "up == 0",
        "annotations": {"summary": "x", "runbook_url": "docs/runbook.md#tworelayleaders"}});
    let mut again = alerts.clone();
    again["groups"][1]["rules"][0] = twice;
    only(&alerts_are_complete(&again, &catalogue), "TwoRelayLeaders: twice");
    only(&with("expr", json!("relay_leaders == 0")), "NoRelayLeader: relay_leaders");
}

#[test]
fn every_alert_has_a_section_in_the_runbook() {
    let (alerts, runbook) = (document(ALERTS).unwrap(), read(RUNBOOK));
    none(&runbook_has_them_all(&alerts, &runbook));
    let with = |from: &str, to: &str| {
        assert!(runbook.contains(from));
        runbook_has_them_all(&alerts, &runbook.replace(from, to))
    };
    only(&with("### ProcessDown\n", "### ProcessGone\n"), "Process");
    only(&with("*page.* No relay of this", "*ticket.* No relay of this"), "NoRelayLeader: \"*page.*\"");
    only(&with("- **Ends**: When one leads.", ""), "NoRelayLeader: \"- **Ends**:\"");
}

#[test]
fn every_alert_has_a_case_that_fires_and_one_that_is_silent() {
    let (alerts, cases) = (document(ALERTS).unwrap(), document(CASES).unwrap());
    none(&cases_are_two_for_each(&alerts, &cases));
    let without = |fires: bool| {
        let mut cases = cases.clone();
        cases["tests"].as_array_mut().unwrap().retain(|case| {
            let question = &case["alert_rule_test"][0];
            question["alertname"] != "OutboxStalled"
                || question["exp_alerts"].as_array().unwrap().is_empty() == fires
        });
        cases_are_two_for_each(&alerts, &cases)
    };
    only(&without(true), "OutboxStalled: no case in which it fires");
    only(&without(false), "OutboxStalled: no case in which it stays silent");
}

#[test]
fn prometheus_takes_the_rules_and_they_do_what_their_cases_say() {
    promtool(&["check", "rules", "observability/alerts.yml"], None);
    promtool(&["test", "rules", "observability/alerts_test.yml"], None);
}

#[test]
fn a_counter_is_looked_at_by_what_it_has_grown() {
    // The exceptions are sticky on purpose: they stand until the process is started again.
    let sticky = ["kafka_consumer_offsets_out_of_range_total", "kafka_consumer_offsets_missing_total"];
    for rule in rules(&document(ALERTS).unwrap()) {
        for (name, function) in names_in(rule["expr"].as_str().unwrap()) {
            let grown = ["rate", "increase"].contains(&function.as_str());
            assert!(
                grown || !name.ends_with("_total") || sticky.contains(&name.as_str()),
                "{}: {name} without rate or increase",
                rule["alert"]
            );
        }
    }
}
