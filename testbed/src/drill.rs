//! `testbed drill`: every part is killed once, with all its instances, while Prometheus looks on; the alerts that the runbook names have to fire,
//! no others, and all of them have to end after the restart.
//!
//! ```text
//! own parts, circle, load, Prometheus ─▶ calm ─▶ kill ─▶ expected alerts fire ─▶ restart ─▶ calm ─▶ the next
//! ```
//! The rules are those of `observability/alerts.yml`. What they wait for is shortened, so that a drill takes minutes: `for` to a twelfth, ranges
//! to a minute at most. Thresholds stay: a minute that an event waits is a minute here, too.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use serde::Serialize;
use serde_json::{Value, json};
use tokio::time::{Instant, MissedTickBehavior};
use uuid::Uuid;

use crate::circle::{Circle, Options};
use crate::processes::Service;
use crate::prometheus::{Prometheus, document};
use crate::stack::home::Home;
use crate::stack::{Kafka, Postgres, Registry, Stack};

const RUNBOOK: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/runbook.md");
const TABLE_BEGINS: &str = "| killed | expected | may follow |\n| --- | --- | --- |\n";
const SCRAPE_EVERY: Duration = Duration::from_secs(1);
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// What `for` is divided by.
const SHORTER: u32 = 12;
/// No range is longer.
const RANGE_MAX: Duration = Duration::from_mins(1);
/// A payment each.
const PAY_EVERY: Duration = Duration::from_millis(100);
const PAYMENTS_OPEN_MAX: usize = 256;
const PAYMENT_LIMIT: Duration = Duration::from_secs(10);
/// Calm is nothing that fires or is about to, for so long.
const CALM_FOR: Duration = Duration::from_secs(15);
const CALM_LIMIT: Duration = Duration::from_mins(5);
/// For all that is expected to fire.
const FIRE_LIMIT: Duration = Duration::from_mins(4);
/// How long it is looked on after the last expected one: others may come.
const LINGER: Duration = Duration::from_secs(5);

/// One line of the runbook's table.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Plan {
    killed: String,
    expected: BTreeSet<String>,
    may_follow: BTreeSet<String>,
}

/// What came of one kill.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Drill {
    killed: String,
    expected: BTreeSet<String>,
    fired: BTreeSet<String>,
    /// From the restart until nothing fired any more; null if that did not come.
    resolved_s: Option<f64>,
    #[serde(skip)]
    unexpected: usize,
    #[serde(skip)]
    missing: usize,
}

/// What came of all.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    drills: Vec<Drill>,
    unexpected: usize,
    missing: usize,
}

impl Report {
    fn of(drills: Vec<Drill>) -> Report {
        let unexpected = drills.iter().map(|drill| drill.unexpected).sum();
        let missing = drills.iter().map(|drill| drill.missing).sum();
        Report { drills, unexpected, missing }
    }

    /// One line.
    pub fn json(&self) -> Result<String> {
        serde_json::to_string(self).context("encode the report")
    }

    /// Whether everything fired that had to, nothing else did, and all of it ended.
    pub fn as_expected(&self) -> bool {
        self.unexpected == 0
            && self.missing == 0
            && self.drills.iter().all(|drill| drill.resolved_s.is_some())
    }
}

/// Everything that can be killed.
struct Site {
    prometheus: Prometheus,
    circle: Circle,
    postgres: Postgres,
    kafka: Kafka,
    registry: Registry,
}

/// Carries out the drills of the runbook, or those for `only` these parts.
pub async fn run(only: &[String], say: &dyn Fn(&str)) -> Result<Report> {
    let plans = chosen(plans(&fs::read_to_string(RUNBOOK).context("read the runbook")?)?, only)?;
    let home = Home::locate()?;
    let evidence = Evidence { folder: home.private_folder("drill")?, keep: true };
    say("starting everything");
    let site = Site::start(&home, &evidence.folder).await?;
    let drilling = async {
        let mut drills = Vec::new();
        for plan in plans {
            drills.push(site.carry_out(plan, say).await?);
        }
        anyhow::Ok(Report::of(drills))
    };
    let report = tokio::select! {
        report = drilling => report,
        never = pay(&site.circle) => never,
    };
    let report = report.with_context(|| format!("the logs are in {}", evidence.folder.display()))?;
    // Before its logs.
    drop(site);
    if report.as_expected() {
        evidence.discard();
    } else {
        say(&format!("the logs are in {}", evidence.folder.display()));
    }
    Ok(report)
}

/// The logs, which stay unless all went well.
struct Evidence {
    folder: PathBuf,
    keep: bool,
}

impl Evidence {
    fn discard(mut self) {
        self.keep = false;
    }
}

impl Drop for Evidence {
    fn drop(&mut self) {
        if !self.keep {
            fs::remove_dir_all(&self.folder).ok();
        }
    }
}

impl Site {
    async fn start(home: &Home, folder: &std::path::Path) -> Result<Site> {
        let (postgres, kafka, registry) = tokio::try_join!(
            Postgres::private("drill-postgres"),
            Kafka::private("drill-kafka"),
            Registry::private("drill-registry"),
        )?;
        let stack = Stack::of(&postgres, &kafka, &registry)?;
        let own = [("payment-service", "CONSUMER_INSTANCE", "payment-service-1")];
        let own = own.map(|(process, name, value)| (process.to_owned(), name.to_owned(), value.to_owned()));
        let options = Options {
            // The alerts know the topics by their plain names.
            isolated: false,
            relays: 2,
            folder: Some(folder.to_path_buf()),
            environment: own.to_vec(),
            ..Options::default()
        };
        let circle = Circle::start(&stack, &options).await.context("start the circle")?;
        let rules = shortened(document("alerts.yml")?)?;
        let prometheus = Prometheus::start(home, folder, &circle, &rules, SCRAPE_EVERY).await?;
        Ok(Site { prometheus, circle, postgres, kafka, registry })
    }

    async fn carry_out(&self, plan: Plan, say: &dyn Fn(&str)) -> Result<Drill> {
        let Plan { killed, expected, may_follow } = plan;
        ensure!(
            self.calm(&mut BTreeSet::new()).await?,
            "alerts fire before anything was killed: {:?}",
            self.prometheus.alerts().await?
        );
        let mut fired = BTreeSet::new();
        self.kill(&killed)?;
        let at = Instant::now();
        say(&format!("killed {killed}; expected: {}", list(&expected)));
        while !expected.is_subset(&fired) && at.elapsed() < FIRE_LIMIT {
            self.look(&mut fired, at, say).await?;
        }
        let last = Instant::now();
        while last.elapsed() < LINGER {
            self.look(&mut fired, at, say).await?;
        }
        self.restart(&killed).await.with_context(|| format!("restart {killed}"))?;
        let back = Instant::now();
        say(&format!("  {:>5.1} s  restarted", at.elapsed().as_secs_f64()));
        let resolved_s = self.calm(&mut fired).await?.then(|| {
            let seconds = (back.elapsed().saturating_sub(CALM_FOR)).as_secs_f64();
            (seconds * 10.0).round() / 10.0
        });
        let others = fired.difference(&expected).filter(|name| !may_follow.contains(*name));
        let (unexpected, missing) = (others.count(), expected.difference(&fired).count());
        let end = resolved_s.map_or_else(|| "not resolved".to_owned(), |s| format!("resolved after {s} s"));
        say(&format!("  {end}; {unexpected} unexpected, {missing} missing; fired: {}", list(&fired)));
        Ok(Drill { killed, expected, fired, resolved_s, unexpected, missing })
    }

    /// Notes what fires now.
    async fn look(&self, fired: &mut BTreeSet<String>, since: Instant, say: &dyn Fn(&str)) -> Result<()> {
        tokio::time::sleep(LOOK_EVERY).await;
        for alert in self.prometheus.alerts().await?.into_iter().filter(|alert| alert.firing) {
            if fired.insert(alert.name.clone()) {
                say(&format!("  {:>5.1} s  {}", since.elapsed().as_secs_f64(), alert.name));
            }
        }
        Ok(())
    }

    /// Waits for calm, and notes what fires until then. False if it does not come.
    async fn calm(&self, fired: &mut BTreeSet<String>) -> Result<bool> {
        let begun = Instant::now();
        let mut since = begun;
        while since.elapsed() < CALM_FOR {
            tokio::time::sleep(LOOK_EVERY).await;
            let alerts = self.prometheus.alerts().await?;
            let up = self.prometheus.targets().await?.iter().all(|target| target.trouble.is_none());
            if !alerts.is_empty() || !up {
                since = Instant::now();
            }
            fired.extend(alerts.into_iter().filter(|alert| alert.firing).map(|alert| alert.name));
            if begun.elapsed() > CALM_LIMIT {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The processes of this name; none if it is a part.
    fn processes(&self, killed: &str) -> Result<Vec<&Service>> {
        Ok(match killed {
            "payment-service" => vec![&self.circle.payment_service],
            "executor" => self.circle.executors.iter().collect(),
            "relays of payments" => self.circle.request_relays.iter().collect(),
            "relays of executor" => self.circle.result_relays.iter().collect(),
            "broker" | "PostgreSQL" | "registry" => Vec::new(),
            unknown => bail!("the runbook wants {unknown:?} killed, which is nothing here"),
        })
    }

    fn kill(&self, killed: &str) -> Result<()> {
        for process in self.processes(killed)? {
            process.kill();
        }
        match killed {
            "broker" => self.kafka.kill9(),
            "PostgreSQL" => self.postgres.kill9(),
            "registry" => self.registry.kill9(),
            _ => {}
        }
        Ok(())
    }

    async fn restart(&self, killed: &str) -> Result<()> {
        for process in self.processes(killed)? {
            process.start()?;
        }
        for process in self.processes(killed)? {
            process.wait_ready().await?;
        }
        match killed {
            "broker" => self.kafka.restart().await,
            "PostgreSQL" => self.postgres.restart().await,
            "registry" => self.registry.restart().await,
            _ => Ok(()),
        }
    }
}

/// A steady load, whatever becomes of it: payments that succeed at once where all is well.
async fn pay<T>(circle: &Circle) -> Result<T> {
    let client = reqwest::Client::builder().no_proxy().timeout(PAYMENT_LIMIT).build()?;
    let url = format!("{}/v1/payments", circle.api_url);
    let mut clock = tokio::time::interval(PAY_EVERY);
    clock.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut open = FuturesUnordered::new();
    loop {
        tokio::select! {
            _ = clock.tick() => if open.len() < PAYMENTS_OPEN_MAX {
                let body = json!({
                    "amount_minor": 1_234, "currency": "EUR", "payment_method": "pm_card_visa", "merchant_reference": "drill",
                });
                let request = client.post(&url).bearer_auth(&circle.api_token).json(&body);
                open.push(request.header("Idempotency-Key", Uuid::now_v7().to_string()).send());
            },
            Some(_) = open.next() => {}
        }
    }
}

fn list(names: &BTreeSet<String>) -> String {
    names.iter().map(String::as_str).collect::<Vec<_>>().join(", ")
}

/// The table of the runbook.
fn plans(runbook: &str) -> Result<Vec<Plan>> {
    let (_, table) = runbook.split_once(TABLE_BEGINS).context("the runbook has no table of drills")?;
    let lines = table.lines().take_while(|line| line.starts_with('|'));
    let names = |cell: &str| {
        cell.split(',').map(|name| name.trim().to_owned()).filter(|name| !name.is_empty()).collect()
    };
    let plan = |line: &str| {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let [killed, expected, may_follow] = cells[..] else { bail!("not three cells: {line}") };
        Ok(Plan { killed: killed.to_owned(), expected: names(expected), may_follow: names(may_follow) })
    };
    lines.map(plan).collect()
}

fn chosen(plans: Vec<Plan>, only: &[String]) -> Result<Vec<Plan>> {
    if only.is_empty() {
        return Ok(plans);
    }
    let known: Vec<String> = plans.iter().map(|plan| plan.killed.clone()).collect();
    if let Some(unknown) = only.iter().find(|part| !known.contains(part)) {
        bail!("{unknown:?} is not among {known:?}");
    }
    Ok(plans.into_iter().filter(|plan| only.contains(&plan.killed)).collect())
}

/// The same rules, that need not wait so long.
fn shortened(mut rules: Value) -> Result<Value> {
    let groups = rules["groups"].as_array_mut().context("rules without groups")?;
    for rule in groups.iter_mut().filter_map(|group| group["rules"].as_array_mut()).flatten() {
        if let Some(given) = rule["for"].as_str() {
            rule["for"] = format!("{}s", (duration(given)? / SHORTER).as_secs().max(1)).into();
        }
        let expression = rule["expr"].as_str().context("a rule without an expression")?;
        rule["expr"] = with_short_ranges(expression)?.into();
    }
    Ok(rules)
}

/// Ranges are all that brackets are used for.
fn with_short_ranges(expression: &str) -> Result<String> {
    let mut parts = expression.split('[');
    let mut short = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (range, rest) = part.split_once(']').context("a bracket that is not closed")?;
        let range = duration(range)?.min(RANGE_MAX);
        write!(short, "[{}s]{rest}", range.as_secs())?;
    }
    Ok(short)
}

/// As Prometheus writes them, with one unit.
fn duration(text: &str) -> Result<Duration> {
    let unit = text.trim_start_matches(|digit: char| digit.is_ascii_digit());
    let number: u64 =
        text[..text.len() - unit.len()].parse().with_context(|| format!("no duration: {text:?}"))?;
    let seconds = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3_600,
        "d" => 86_400,
        _ => bail!("no duration: {text:?}"),
    };
    Ok(Duration::from_secs(number * seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(list: &[&str]) -> BTreeSet<String> {
        list.iter().map(|&name| name.to_owned()).collect()
    }

    #[test]
    fn the_runbook_says_what_is_killed_and_names_alerts_that_there_are() {
        let plans = plans(&fs::read_to_string(RUNBOOK).unwrap()).unwrap();
        let rules = document("alerts.yml").unwrap();
        let known: BTreeSet<String> = rules["groups"]
            .as_array()
            .unwrap()
            .iter()
            .flat_map(|group| group["rules"].as_array().unwrap())
            .map(|rule| rule["alert"].as_str().unwrap().to_owned())
            .collect();
        assert_eq!(plans.len(), 7);
        for plan in &plans {
            assert!(!plan.expected.is_empty(), "{plan:?}");
            assert!(plan.expected.is_disjoint(&plan.may_follow), "{plan:?}");
            assert!(plan.expected.union(&plan.may_follow).all(|name| known.contains(name)), "{plan:?}");
        }
        let only = chosen(plans.clone(), &["executor".to_owned()]).unwrap();
        assert_eq!(only.len(), 1);
        assert!(chosen(plans, &["nothing".to_owned()]).is_err());
    }

    #[test]
    fn a_table_is_read_to_its_end() {
        let text = format!("# x\n{TABLE_BEGINS}| a b | X, Y | |\n| c | Z | V |\n\n| d | W | |\n");
        let expected = [
            Plan { killed: "a b".to_owned(), expected: names(&["X", "Y"]), may_follow: names(&[]) },
            Plan { killed: "c".to_owned(), expected: names(&["Z"]), may_follow: names(&["V"]) },
        ];
        assert_eq!(plans(&text).unwrap(), expected);
        assert!(plans("no table").is_err());
    }

    #[test]
    fn rules_are_shortened_and_stay_what_they_are() {
        let rules = json!({"groups": [{"name": "g", "rules": [
            {"alert": "A", "for": "2m", "expr": "rate(a[6h]) > 60 and b[30s] > 1"},
            {"alert": "B", "expr": "c > 0"},
        ]}]});
        let short = shortened(rules).unwrap();
        let rules = &short["groups"][0]["rules"];
        assert_eq!(rules[0], json!({"alert": "A", "for": "10s", "expr": "rate(a[60s]) > 60 and b[30s] > 1"}));
        assert_eq!(rules[1], json!({"alert": "B", "expr": "c > 0"}));
        assert!(with_short_ranges("a[5x]").is_err() && with_short_ranges("a[5m").is_err());
    }

    #[test]
    fn a_report_is_as_expected_only_if_nothing_is_open() {
        let drill = Drill {
            killed: "executor".to_owned(),
            expected: names(&["ProcessDown"]),
            fired: names(&["ProcessDown"]),
            resolved_s: Some(4.2),
            unexpected: 0,
            missing: 0,
        };
        let report = Report::of(vec![drill.clone()]);
        assert!(report.as_expected());
        let line = r#"{"drills":[{"killed":"executor","expected":["ProcessDown"],"fired":["ProcessDown"],"resolved_s":4.2}],"unexpected":0,"missing":0}"#;
        assert_eq!(report.json().unwrap(), line);
        for broken in [
            Drill { resolved_s: None, ..drill.clone() },
            Drill { unexpected: 1, ..drill.clone() },
            Drill { missing: 1, ..drill },
        ] {
            assert!(!Report::of(vec![broken]).as_expected());
        }
    }
}
