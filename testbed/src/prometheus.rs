//! Prometheus, natively beside the stack: it scrapes every process of a circle, under the rules of `observability/alerts.yml`.
//!
//! Its settings are those of `observability/prometheus.yml`, with the addresses of this circle in the place of the containers' names: the jobs
//! and their labels, which the alerts know, are the same.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::circle::Circle;
use crate::processes::Service;
use crate::stack::home::Home;
use crate::stack::{Owner, Part, free_port};
use crate::yaml;

const PROGRAM: &str = "prometheus";
const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../observability");
const START_LIMIT: Duration = Duration::from_secs(30);
const CALL_LIMIT: Duration = Duration::from_secs(10);

/// The folder of rules, settings and dashboards.
pub fn folder() -> PathBuf {
    PathBuf::from(FOLDER)
}

/// A YAML document of that folder.
pub fn document(name: &str) -> Result<Value> {
    let path = folder().join(name);
    let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    yaml::read(&text).with_context(|| path.display().to_string())
}

/// A Prometheus that ends with this value.
#[derive(Debug)]
pub struct Prometheus {
    _part: Part,
    url: String,
    client: reqwest::Client,
}

/// A process that is scraped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Its name.
    pub instance: String,
    /// What is wrong, if anything is.
    pub trouble: Option<String>,
}

/// An alert that is not inactive.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Alert {
    /// Its name.
    pub name: String,
    /// Whether it fires, or only waits to.
    pub firing: bool,
}

impl Prometheus {
    /// Starts it: every process of the circle is scraped, and the rules are evaluated, as often as `every` says.
    pub async fn start(
        home: &Home,
        folder: &Path,
        circle: &Circle,
        rules: &Value,
        every: Duration,
    ) -> Result<Prometheus> {
        ensure!(
            installed(),
            "{PROGRAM} is missing: `make setup OBSERVABILITY=1` installs it, or the package prometheus of Debian and Ubuntu"
        );
        let folder = folder.join(PROGRAM);
        if folder.exists() {
            fs::remove_dir_all(&folder).with_context(|| format!("empty {}", folder.display()))?;
        }
        let part = Part::new(home, PROGRAM, Owner::own()?, &folder)?;
        let settings = settings(&document("prometheus.yml")?, circle, every)?;
        // JSON is YAML.
        for (name, value) in [("alerts.yml", rules), ("prometheus.yml", &settings)] {
            fs::write(folder.join(name), serde_json::to_vec_pretty(value)?)
                .with_context(|| format!("write {name}"))?;
        }
        let address = format!("127.0.0.1:{}", free_port()?);
        let mut command = Command::new(PROGRAM);
        command
            .arg(format!("--config.file={}", folder.join("prometheus.yml").display()))
            .arg(format!("--storage.tsdb.path={}", folder.join("data").display()))
            .arg("--storage.tsdb.retention.time=1d")
            .arg(format!("--web.listen-address={address}"))
            .arg("--log.level=warn")
            .current_dir(&folder)
            .stdin(Stdio::null());
        let client = reqwest::Client::builder().no_proxy().timeout(CALL_LIMIT).build()?;
        let url = format!("http://{address}");
        let probe = async || {
            let asked = client.get(format!("{url}/-/ready")).send().await;
            asked.is_ok_and(|response| response.status().is_success())
        };
        part.start(&mut command, START_LIMIT, probe).await?;
        Ok(Prometheus { _part: part, url, client })
    }

    /// Its address.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Every process that it scrapes.
    pub async fn targets(&self) -> Result<Vec<Target>> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Targets {
            active_targets: Vec<Active>,
        }
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Active {
            labels: std::collections::BTreeMap<String, String>,
            health: String,
            last_error: String,
        }
        let targets: Targets = self.ask("targets", &[]).await?;
        let target = |active: Active| Target {
            instance: active.labels.get("instance").cloned().unwrap_or_default(),
            trouble: (active.health != "up").then(|| format!("{}: {}", active.health, active.last_error)),
        };
        Ok(targets.active_targets.into_iter().map(target).collect())
    }

    /// How many series an expression has now; fails if it cannot be evaluated.
    pub async fn series(&self, expression: &str) -> Result<usize> {
        #[derive(Deserialize)]
        struct Answer {
            result: Vec<Value>,
        }
        let answer: Answer =
            self.ask("query", &[("query", expression)]).await.with_context(|| expression.to_owned())?;
        Ok(answer.result.len())
    }

    /// The alerts that fire or are about to.
    pub async fn alerts(&self) -> Result<Vec<Alert>> {
        #[derive(Deserialize)]
        struct Alerts {
            alerts: Vec<Active>,
        }
        #[derive(Deserialize)]
        struct Active {
            labels: std::collections::BTreeMap<String, String>,
            state: String,
        }
        let alerts: Alerts = self.ask("alerts", &[]).await?;
        let alert = |active: Active| Alert {
            name: active.labels.get("alertname").cloned().unwrap_or_default(),
            firing: active.state == "firing",
        };
        Ok(alerts.alerts.into_iter().map(alert).collect())
    }

    async fn ask<T: serde::de::DeserializeOwned>(&self, path: &str, form: &[(&str, &str)]) -> Result<T> {
        #[derive(Deserialize)]
        struct Answer {
            status: String,
            error: Option<String>,
            data: Option<Value>,
        }
        let url = format!("{}/api/v1/{path}", self.url);
        let request = if form.is_empty() { self.client.get(url) } else { self.client.post(url).form(form) };
        let answer: Answer = request.send().await.context("ask Prometheus")?.json().await?;
        let Some(data) = answer.data.filter(|_| answer.status == "success") else {
            bail!("Prometheus refuses {path}: {}", answer.error.unwrap_or_default());
        };
        serde_json::from_value(data).context("what Prometheus answers")
    }
}

/// Whether there is one on this machine.
pub fn installed() -> bool {
    let asked = Command::new(PROGRAM).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    asked.is_ok_and(|status| status.success())
}

/// The same jobs and labels, the addresses of this circle.
fn settings(given: &Value, circle: &Circle, every: Duration) -> Result<Value> {
    let interval = format!("{}ms", every.as_millis());
    let jobs = given["scrape_configs"].as_array().context("prometheus.yml has no scrape_configs")?;
    let jobs = jobs.iter().map(|job| {
        let name = job["job_name"].as_str().context("a job without a name")?;
        let groups = job["static_configs"].as_array().context("a job without static_configs")?;
        let groups = groups.iter().map(|group| {
            let labels = group["labels"].as_object().cloned().unwrap_or_default();
            let outbox = labels.get("outbox").and_then(Value::as_str);
            let processes = processes(circle, name, outbox)?.into_iter().map(|service| {
                let mut labels = labels.clone();
                labels.insert("instance".to_owned(), service.name().into());
                let address = service.admin_url().trim_start_matches("http://");
                json!({ "targets": [address], "labels": labels })
            });
            anyhow::Ok(processes.collect::<Vec<_>>())
        });
        let groups = groups.collect::<Result<Vec<_>>>()?.concat();
        anyhow::Ok(json!({ "job_name": name, "static_configs": groups }))
    });
    Ok(json!({
        "global": { "scrape_interval": interval, "scrape_timeout": interval, "evaluation_interval": interval },
        "rule_files": ["alerts.yml"],
        "scrape_configs": jobs.collect::<Result<Vec<_>>>()?,
    }))
}

fn processes<'a>(circle: &'a Circle, job: &str, outbox: Option<&str>) -> Result<Vec<&'a Service>> {
    Ok(match (job, outbox) {
        ("payment-service", None) => vec![&circle.payment_service],
        ("executor", None) => circle.executors.iter().collect(),
        ("relay", Some("payments")) => circle.request_relays.iter().collect(),
        ("relay", Some("executor")) => circle.result_relays.iter().collect(),
        _ => bail!("prometheus.yml has a job {job} {outbox:?}, and the circle no such process"),
    })
}
