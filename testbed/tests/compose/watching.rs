//! The rules of what Prometheus and Grafana are given: targets, alerts and the dashboard.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
};

use serde_json::{Value, json};

use super::{none, only, read, root, services, yaml};

const PROMETHEUS: &str = "observability/prometheus.yml";
const ALERTS: &str = "observability/alerts.yml";
const DASHBOARD: &str = "observability/grafana/dashboards/payment-outbox.json";

/// What is scraped is exactly what has an admin port.
fn targets_are_the_admin_ports(prometheus: &Value, compose: &Value) -> Vec<String> {
    let targets: BTreeSet<String> = texts(prometheus, "targets").into_iter().collect();
    let ports = services(compose).into_iter().filter_map(|service| {
        let listen = service.value["environment"]["ADMIN_LISTEN"].as_str()?;
        Some(format!("{}:{}", service.name, listen.rsplit(':').next()?))
    });
    let ports: BTreeSet<String> = ports.collect();
    targets
        .symmetric_difference(&ports)
        .map(|target| format!("{target} is not both open and scraped"))
        .collect()
}

/// Every text under a key, at any depth.
fn texts(value: &Value, wanted: &str) -> Vec<String> {
    match value {
        Value::Array(items) => items.iter().flat_map(|item| texts(item, wanted)).collect(),
        Value::Object(map) => map
            .iter()
            .flat_map(|(key, value)| match value {
                Value::String(text) if key == wanted => vec![text.clone()],
                Value::Array(items) if key == wanted => {
                    items.iter().filter_map(Value::as_str).map(str::to_owned).collect()
                }
                _ => texts(value, wanted),
            })
            .collect(),
        _ => Vec::new(),
    }
}

// --------------------------------------------------------------------------------------------------------- metric names

/// Metrics by name, and whether they are histograms: a name is followed by its help, wherever one is made.
fn metrics_of(source: &str) -> BTreeMap<String, bool> {
    let code: String = source.lines().filter(|line| !line.trim_start().starts_with("//")).collect();
    let parts: Vec<&str> = code.split('"').collect();
    let mut metrics = BTreeMap::new();
    for at in (1..parts.len().saturating_sub(2)).step_by(2) {
        let (before, name, gap, help) = (parts[at - 1], parts[at], parts[at + 1], parts[at + 2]);
        let is_name = !name.is_empty()
            && name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_' || b.is_ascii_digit());
        if is_name && gap.trim() == "," && (help.contains(' ') || help.ends_with('.')) {
            let made_by =
                before.trim_end().trim_end_matches('(').rsplit([' ', '(', ',']).next().unwrap_or_default();
            metrics.insert(name.to_owned(), made_by.to_lowercase().contains("histogram"));
        }
    }
    metrics
}

/// The metrics of all processes.
fn metrics() -> BTreeMap<String, bool> {
    let mut metrics = metrics_of(&read("chassis/src/admin.rs"));
    for folder in fs::read_dir(root()).unwrap() {
        let source = folder.unwrap().path().join("src/metrics.rs");
        if source.exists() {
            metrics.extend(metrics_of(&fs::read_to_string(source).unwrap()));
        }
    }
    metrics.insert("up".to_owned(), false);
    metrics
}

/// The metrics that a PromQL expression names, each with the function that it is the argument of.
fn names_in(expression: &str) -> Vec<(String, String)> {
    const WORDS: [&str; 10] = ["sum", "min", "max", "avg", "count", "and", "or", "unless", "bool", "offset"];
    const GROUPINGS: [&str; 6] = ["by", "without", "on", "ignoring", "group_left", "group_right"];
    let (mut names, mut function, mut rest) = (Vec::new(), String::new(), expression);
    while let Some(first) = rest.chars().next() {
        let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':' || c == '.';
        let end = rest.find(|c| !is_word(c)).unwrap_or(rest.len());
        let (word, after) = rest.split_at(end);
        rest = match first {
            '"' => rest[1..].split_once('"').map_or("", |(_, after)| after),
            '{' => past_the_selector(rest),
            '[' => rest.split_once(']').map_or("", |(_, after)| after),
            _ if word.is_empty() => {
                if !first.is_whitespace() && first != '(' {
                    function.clear();
                }
                &rest[first.len_utf8()..]
            }
            _ if GROUPINGS.contains(&word) => match after.trim_start().strip_prefix('(') {
                Some(labels) => labels.split_once(')').map_or("", |(_, after)| after),
                None => after,
            },
            _ if after.trim_start().starts_with('(') => {
                word.clone_into(&mut function);
                after
            }
            _ => {
                if !first.is_ascii_digit() && !WORDS.contains(&word) {
                    names.push((word.to_owned(), function.clone()));
                }
                after
            }
        };
    }
    names
}

/// What follows `{…}`, in whose strings there may be braces.
fn past_the_selector(text: &str) -> &str {
    let mut quoted = false;
    let end = text.find(|c| {
        quoted ^= c == '"';
        c == '}' && !quoted
    });
    end.map_or("", |end| &text[end + 1..])
}

fn metrics_exist(expression: &str, metrics: &BTreeMap<String, bool>) -> Vec<String> {
    let exists = |name: &str| match metrics.get(name) {
        Some(histogram) => !histogram,
        None => ["_bucket", "_sum", "_count"]
            .iter()
            .filter_map(|suffix| name.strip_suffix(suffix))
            .any(|base| metrics.get(base) == Some(&true)),
    };
    let unknown = names_in(expression).into_iter().filter(|(name, _)| !exists(name));
    unknown.map(|(name, _)| format!("{name}: no process has that metric")).collect()
}

// ------------------------------------------------------------------------------------------------------------- documents

fn alerts_are_complete(alerts: &Value) -> Vec<String> {
    let (mut problems, mut seen, metrics) = (Vec::new(), BTreeSet::new(), metrics());
    let groups = alerts["groups"].as_array().unwrap();
    for rule in groups.iter().flat_map(|group| group["rules"].as_array().unwrap()) {
        let name = rule["alert"].as_str().unwrap_or_default();
        if !seen.insert(name) {
            problems.push(format!("{name}: twice"));
        }
        if !matches!(rule["labels"]["severity"].as_str(), Some("page" | "ticket")) {
            problems.push(format!("{name}: severity"));
        }
        let missing =
            ["summary", "description"].into_iter().filter(|key| !rule["annotations"][key].is_string());
        problems.extend(missing.map(|key| format!("{name}: {key}")));
        let expression = rule["expr"].as_str().unwrap_or_default();
        problems
            .extend(metrics_exist(expression, &metrics).iter().map(|problem| format!("{name}: {problem}")));
    }
    problems
}

fn dashboard_is_complete(dashboard: &Value) -> Vec<String> {
    let (mut problems, metrics) = (Vec::new(), metrics());
    if dashboard["editable"] != false || dashboard["uid"] != "payment-outbox" {
        problems.push("editable or uid".to_owned());
    }
    let panels = dashboard["panels"].as_array().unwrap();
    for panel in panels.iter().filter(|panel| panel["type"] != "row") {
        let title = panel["title"].as_str().unwrap_or_default();
        let targets = panel["targets"].as_array().map_or(&[][..], Vec::as_slice);
        let checks = [
            ("description", panel["description"].as_str().is_some_and(|text| text.ends_with('.'))),
            ("unit", panel["fieldConfig"]["defaults"]["unit"].is_string()),
            ("datasource", panel["datasource"]["uid"] == "${datasource}"),
            ("targets", !targets.is_empty()),
        ];
        let failed = checks.iter().filter(|(_, kept)| !kept);
        problems.extend(failed.map(|(rule, _)| format!("{title}: {rule}")));
        for expression in targets.iter().filter_map(|target| target["expr"].as_str()) {
            problems.extend(
                metrics_exist(expression, &metrics).iter().map(|problem| format!("{title}: {problem}")),
            );
            let bare = |(name, function): &(String, String)| {
                name.ends_with("_total") && !["rate", "increase"].contains(&function.as_str())
            };
            if names_in(expression).iter().any(bare) {
                problems.push(format!("{title}: a counter without rate or increase"));
            }
            if expression.matches('[').count() != expression.matches("[$__rate_interval]").count() {
                problems.push(format!("{title}: a range that is not $__rate_interval"));
            }
        }
    }
    problems
}

// ----------------------------------------------------------------------------------------------------------------- tests

#[test]
fn prometheus_scrapes_every_process() {
    let (prometheus, compose) = (yaml(PROMETHEUS), yaml("compose.yaml"));
    none(&targets_are_the_admin_ports(&prometheus, &compose));
    let mounts = texts(&compose["services"]["prometheus"], "volumes");
    for file in texts(&prometheus, "rule_files") {
        let mount = format!("./observability/{file}:/etc/prometheus/{file}:ro");
        assert!(mounts.contains(&mount), "{mount} is missing in {mounts:?}");
    }
    let source = yaml("observability/grafana/provisioning/datasources/prometheus.yml");
    assert_eq!(texts(&source, "url"), ["http://prometheus:9090"]);
    let provider = yaml("observability/grafana/provisioning/dashboards/dashboards.yml");
    let grafana = texts(&compose["services"]["grafana"], "volumes");
    for folder in texts(&provider, "path") {
        assert!(grafana.contains(&format!("./observability/grafana/dashboards:{folder}:ro")), "{grafana:?}");
    }

    let other = json!([{"static_configs": [{"targets": ["gone:9100"]}]}]);
    let mut more = prometheus;
    more["scrape_configs"] = other;
    assert!(targets_are_the_admin_ports(&more, &compose).len() > 5);
}

#[test]
fn alerts_keep_their_rules() {
    let alerts = yaml(ALERTS);
    none(&alerts_are_complete(&alerts));
    let with = |key: &str, value: Value| {
        let mut alerts = alerts.clone();
        alerts["groups"][1]["rules"][0][key] = value;
        alerts_are_complete(&alerts)
    };
    only(&with("labels", json!({"severity": "maybe"})), "NoRelayLeader: severity");
    only(&with("annotations", json!({"summary": "x"})), "NoRelayLeader: description");
    only(&with("alert", json!("TwoRelayLeaders")), "TwoRelayLeaders: twice");
    only(&with("expr", json!("relay_leaders == 0")), "NoRelayLeader: relay_leaders");
}

#[test]
fn the_dashboard_keeps_its_rules() {
    let dashboard: Value = serde_json::from_str(&read(DASHBOARD)).unwrap();
    none(&dashboard_is_complete(&dashboard));
    let with = |pointer: &str, value: Value| {
        let mut dashboard = dashboard.clone();
        *dashboard.pointer_mut(pointer).unwrap() = value;
        dashboard_is_complete(&dashboard)
    };
    only(&with("/editable", json!(true)), "editable");
    only(&with("/panels/1/description", Value::Null), "description");
    only(&with("/panels/1/fieldConfig/defaults/unit", Value::Null), "unit");
    only(&with("/panels/1/datasource/uid", json!("x")), "datasource");
    only(&with("/panels/1/targets", json!([])), "targets");
    let expression = |text: &str| with("/panels/1/targets/0/expr", json!(text));
    only(&expression("sum(payments_created_total)"), "a counter without rate");
    only(&expression("rate(payments_created_total[5m])"), "$__rate_interval");
    only(&expression("rate(payments_made_total[$__rate_interval])"), "payments_made_total");
}

#[test]
fn metrics_are_found_in_sources_and_expressions() {
    let source = "// (\"b\", \"Not this.\")\ncounter(\"a_total\", \"How many.\")?,\nof.histogram(\n  \"c_seconds\",\n \"How long it took.\",\n B)?,\n\
        HistogramVec::new(HistogramOpts::new(\"d_seconds\", \"Of d.\"), &[\"label\", \"other\"])?, IntGauge::new(\"e\", \"E of it.\")?";
    let found = metrics_of(source);
    let expected = [("a_total", false), ("c_seconds", true), ("d_seconds", true), ("e", false)];
    assert_eq!(found, expected.map(|(name, histogram)| (name.to_owned(), histogram)).into());

    let expression = "1 - sum by (x, on) (rate(c_seconds_bucket{le=~\"1|{2}\",y=\"}\"}[1h])) / on (x) group_left e offset 5m > 0.5 and max(a_total) or up == 1";
    let names: Vec<String> =
        names_in(expression).into_iter().map(|(name, function)| format!("{function}({name})")).collect();
    assert_eq!(names, ["rate(c_seconds_bucket)", "(e)", "max(a_total)", "(up)"]);
    none(&metrics_exist("rate(c_seconds_count[1h]) + e", &found));
    only(&metrics_exist("e_bucket", &found), "e_bucket");
    only(&metrics_exist("c_seconds", &found), "c_seconds");
}
