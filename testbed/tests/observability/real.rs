//! The whole circle at work under a Prometheus of its own: what the processes really say, and what every alert, panel and query of the
//! runbook is answered.

use std::time::{Duration, Instant};

use sqlx::{AssertSqlSafe, Connection as _, PgConnection};
use testbed::{
    circle::{Circle, Options},
    load::{Load, Mixture, Progress},
    prometheus::{Prometheus, document},
    stack::{Stack, home::Home},
};

use super::{
    alerts::rules,
    catalogue::{Catalogue, rewritten},
    dashboards::{all, asked, expressions},
    none,
    promql::names_in,
    promtool, read, root,
};

const PAYMENTS: usize = 40;
const SETTLED_LIMIT: Duration = Duration::from_mins(1);
const SCRAPE_EVERY: Duration = Duration::from_secs(1);
const ANSWERED_LIMIT: Duration = Duration::from_secs(15);

#[tokio::test]
async fn every_metric_is_documented_and_every_question_is_answered() {
    let stack = Stack::get().await.unwrap();
    let folder = Home::locate().unwrap().private_folder("observability").unwrap();
    // An outcome that is unknown is asked for soon, so that nobody waits for it here.
    let soon = ("executor".to_owned(), "RESOLVE_AFTER".to_owned(), "1s".to_owned());
    let options =
        Options { relays: 2, folder: Some(folder.clone()), environment: vec![soon], ..Options::default() };
    let circle = Circle::start(&stack, &options).await.unwrap();
    let rules = document("alerts.yml").unwrap();
    let home = Home::locate().unwrap();
    let prometheus = Prometheus::start(&home, &folder, &circle, &rules, SCRAPE_EVERY).await.unwrap();
    pay(&circle, &prometheus).await;
    metrics_are_documented(&circle).await;
    questions_are_answered(&prometheus).await;
    queries_of_the_runbook_run(&circle).await;
    drop(prometheus);
    circle.shutdown().await.unwrap();
    std::fs::remove_dir_all(folder).unwrap();
}

async fn pay(circle: &Circle, prometheus: &Prometheus) {
    let load = Load {
        api_url: circle.api_url.clone(),
        api_token: circle.api_token.clone(),
        payments: PAYMENTS,
        rate: 20.0,
        seed: 8,
        mixture: Mixture::Plain,
        give_up_after: Duration::from_secs(30),
    };
    load.run(&std::sync::Arc::new(Progress::default())).await.unwrap();
    let begun = Instant::now();
    let settled =
        format!("sum(psp_results_total{{status=~\"SUCCESSFUL|FAILED\"}}) >= {}", PAYMENTS - load.ahead());
    while prometheus.series(&settled).await.unwrap() == 0 {
        assert!(begun.elapsed() < SETTLED_LIMIT, "payments are not settled after {SETTLED_LIMIT:?}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

async fn metrics_are_documented(circle: &Circle) {
    let (mut found, mut problems) = (Catalogue::default(), Vec::new());
    for service in circle.services() {
        let scrape = reqwest::get(format!("{}/metrics", service.admin_url())).await.unwrap();
        let scrape = scrape.error_for_status().unwrap().text().await.unwrap();
        promtool(&["check", "metrics"], Some(&scrape));
        // The simulator is for development, and belongs to no installation.
        if service.name() != circle.simulator.name() {
            let process = if service.name().starts_with("relay") { "relay" } else { service.name() };
            problems.extend(found.add(process, &scrape));
        }
    }
    none(&problems);
    let path = root().join("docs/metrics.md");
    if std::env::var_os("WRITE_TABLE").is_some() {
        std::fs::write(&path, rewritten(&read("docs/metrics.md"), &found.tables())).unwrap();
    }
    let documented = Catalogue::documented();
    let differing = |from: &Catalogue, other: &Catalogue, what: &str| {
        let names = from.0.iter().filter(|(name, metric)| other.0.get(*name) != Some(*metric));
        names.map(|(name, metric)| format!("{name} {what}: {metric:?}")).collect::<Vec<_>>()
    };
    let mut problems = differing(&documented, &found, "is documented, and not what the processes say");
    problems.extend(differing(&found, &documented, "is not documented so (WRITE_TABLE=1 writes it down)"));
    none(&problems);
}

async fn questions_are_answered(prometheus: &Prometheus) {
    let (mut problems, begun) = (Vec::new(), Instant::now());
    for target in prometheus.targets().await.unwrap() {
        problems.extend(target.trouble.map(|trouble| format!("{}: {trouble}", target.instance)));
    }
    for (name, board) in all() {
        for expression in expressions(&board) {
            // A rate needs two scrapes of what has happened.
            while prometheus.series(&asked(&expression)).await.unwrap() == 0 {
                if begun.elapsed() > ANSWERED_LIMIT {
                    problems.push(format!("dashboard {name}: no data for {expression}"));
                    break;
                }
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        }
    }
    for rule in rules(&document("alerts.yml").unwrap()) {
        let expression = rule["expr"].as_str().unwrap();
        prometheus.series(expression).await.unwrap();
        for (name, _) in names_in(expression) {
            if prometheus.series(&name).await.unwrap() == 0 {
                problems.push(format!("{}: nobody has {name}", rule["alert"]));
            }
        }
    }
    none(&problems);
}

/// The queries that an operator is told to paste.
async fn queries_of_the_runbook_run(circle: &Circle) {
    let runbook = read("docs/runbook.md");
    let queries: Vec<(&str, &str)> = runbook
        .lines()
        .filter_map(|line| line.trim().strip_prefix("make sql DB=")?.split_once(" Q=\""))
        .map(|(database, query)| (database, query.strip_suffix('"').unwrap()))
        .collect();
    assert!(queries.len() > 20, "{}", queries.len());
    let (mut payments, mut executor) = (
        PgConnection::connect(&circle.payments.url("operator")).await.unwrap(),
        PgConnection::connect(&circle.executions.url("operator")).await.unwrap(),
    );
    for (database, query) in queries {
        let connection = if database == "payments" { &mut payments } else { &mut executor };
        if let Err(error) = sqlx::raw_sql(AssertSqlSafe(query.to_owned())).fetch_all(connection).await {
            panic!("{query}\n{error}");
        }
    }
}
