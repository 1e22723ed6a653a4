//! What Prometheus and Grafana are given in containers: targets, and files where they are looked for.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::{none, services, yaml};

const PROMETHEUS: &str = "observability/prometheus.yml";

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
