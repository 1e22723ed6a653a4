//! The dashboards: what Grafana is given is whole, and can be read without asking anybody.

use std::{collections::BTreeSet, fs};

use serde_json::{Value, json};

use super::{catalogue::Catalogue, none, only, promql::names_in, promtool, root};

const FOLDER: &str = "observability/grafana/dashboards";
/// The first is where Grafana opens.
const EXPECTED: [&str; 4] = ["overview", "payment-service", "executor", "relay"];

/// Every dashboard, by the name of its file.
pub(crate) fn all() -> Vec<(String, Value)> {
    let mut boards: Vec<(String, Value)> = fs::read_dir(root().join(FOLDER))
        .unwrap()
        .map(|entry| {
            let path = entry.unwrap().path();
            let board = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
            (path.file_stem().unwrap().to_str().unwrap().to_owned(), board)
        })
        .collect();
    boards.sort_by(|(left, _), (right, _)| left.cmp(right));
    boards
}

fn panels(board: &Value) -> impl Iterator<Item = &Value> {
    board["panels"].as_array().unwrap().iter().filter(|panel| panel["type"] != "row")
}

/// What a dashboard asks Prometheus, as it is written.
pub(crate) fn expressions(board: &Value) -> Vec<String> {
    let targets = panels(board).flat_map(|panel| panel["targets"].as_array().into_iter().flatten());
    targets.map(|target| target["expr"].as_str().unwrap_or_default().to_owned()).collect()
}

/// The same with everything that Grafana puts in.
pub(crate) fn asked(expression: &str) -> String {
    expression.replace("$__rate_interval", "1m").replace("$__range", "1h").replace("\"$instance\"", "\".*\"")
}

fn board_is_complete(name: &str, board: &Value, catalogue: &Catalogue) -> Vec<String> {
    let mut problems = Vec::new();
    let variables = board["templating"]["list"].as_array().map_or(&[][..], Vec::as_slice);
    let source = |variable: &Value| variable["type"] == "datasource" && variable["query"] == "prometheus";
    let checks = [
        ("editable", board["editable"] == false),
        ("uid", board["uid"] == format!("payment-outbox-{name}")),
        ("title", board["title"].is_string()),
        ("description", board["description"].as_str().is_some_and(|text| text.ends_with('.'))),
        ("schemaVersion", board["schemaVersion"] == 41),
        ("tags", board["tags"] == json!(["payment-outbox"])),
        ("datasource", variables.iter().any(source)),
    ];
    problems.extend(checks.iter().filter(|(_, kept)| !kept).map(|(rule, _)| format!("{name}: {rule}")));
    let (mut ids, mut cells) = (BTreeSet::new(), BTreeSet::new());
    for panel in panels(board) {
        let title = panel["title"].as_str().unwrap_or_default();
        let targets = panel["targets"].as_array().map_or(&[][..], Vec::as_slice);
        let of_source = |value: &Value| value["datasource"]["uid"] == "${datasource}";
        let checks = [
            ("title", !title.is_empty()),
            ("description", panel["description"].as_str().is_some_and(|text| text.ends_with('.'))),
            ("unit", panel["fieldConfig"]["defaults"]["unit"].is_string()),
            ("datasource", of_source(panel) && targets.iter().all(of_source)),
            ("targets", !targets.is_empty()),
            ("legend", targets.len() < 2 || targets.iter().all(|target| target["legendFormat"].is_string())),
            ("id", ids.insert(panel["id"].as_u64())),
            ("place", fits(&panel["gridPos"], &mut cells)),
        ];
        problems.extend(
            checks.iter().filter(|(_, kept)| !kept).map(|(rule, _)| format!("{name}, {title}: {rule}")),
        );
        for expression in targets.iter().filter_map(|target| target["expr"].as_str()) {
            problems.extend(
                expression_is_sound(expression, catalogue).map(|it| format!("{name}, {title}: {it}")),
            );
        }
    }
    problems
}

/// On the grid, and on nobody else's cells.
fn fits(place: &Value, cells: &mut BTreeSet<(u64, u64)>) -> bool {
    let [Some(x), Some(y), Some(w), Some(h)] = ["x", "y", "w", "h"].map(|key| place[key].as_u64()) else {
        return false;
    };
    let free = (x..x + w).flat_map(|x| (y..y + h).map(move |y| (x, y))).all(|cell| cells.insert(cell));
    free && x + w <= 24 && w > 0 && h > 0
}

fn expression_is_sound(expression: &str, catalogue: &Catalogue) -> impl Iterator<Item = String> {
    let mut problems = catalogue.unknown(expression);
    let bare = |(name, function): &(String, String)| {
        name.ends_with("_total") && !["rate", "increase"].contains(&function.as_str())
    };
    if names_in(expression).iter().any(bare) {
        problems.push("a counter without rate or increase".to_owned());
    }
    let ranges = expression.matches('[').count();
    let by_grafana = ["[$__rate_interval]", "[$__range]"].map(|range| expression.matches(range).count());
    if ranges != by_grafana.iter().sum::<usize>() {
        problems.push(
            "a range that is not $__rate_interval, or of a figure for the whole time, $__range".to_owned(),
        );
    }
    problems.into_iter()
}

#[test]
fn dashboards_keep_their_rules() {
    let catalogue = Catalogue::documented();
    let boards = all();
    let names: BTreeSet<&str> = boards.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, BTreeSet::from(EXPECTED));
    for (name, board) in &boards {
        none(&board_is_complete(name, board, &catalogue));
    }
    let (name, board) = &boards[0];
    let first = board["panels"].as_array().unwrap().iter().position(|panel| panel["type"] != "row").unwrap();
    let with = |pointer: &str, value: Value| {
        let mut board = board.clone();
        *board.pointer_mut(&pointer.replace("PANEL", &format!("/panels/{first}"))).unwrap() = value;
        board_is_complete(name, &board, &catalogue)
    };
    only(&with("/editable", json!(true)), "editable");
    only(&with("/uid", json!("x")), "uid");
    only(&with("/templating/list", json!([])), "datasource");
    only(&with("PANEL/title", json!("")), "title");
    only(&with("PANEL/description", Value::Null), "description");
    only(&with("PANEL/fieldConfig/defaults/unit", Value::Null), "unit");
    only(&with("PANEL/datasource/uid", json!("x")), "datasource");
    only(&with("PANEL/targets/0/datasource/uid", json!("x")), "datasource");
    only(&with("PANEL/targets", json!([])), "targets");
    only(&with("PANEL/gridPos/x", json!(20)), "place");
    let expression = |text: &str| with("PANEL/targets/0/expr", json!(text));
    only(&expression("sum(payments_created_total)"), "a counter without rate");
    only(&expression("rate(payments_created_total[5m])"), "$__rate_interval");
    only(&expression("rate(payments_made_total[$__rate_interval])"), "payments_made_total");
}

#[test]
fn prometheus_reads_every_expression() {
    let mut rules = Vec::new();
    for (name, board) in all() {
        for (number, expression) in expressions(&board).into_iter().enumerate() {
            let record = format!("board:{}:{number}", name.replace('-', "_"));
            rules.push(json!({"record": record, "expr": asked(&expression)}));
        }
    }
    assert!(rules.len() > 40, "{}", rules.len());
    let document = json!({"groups": [{"name": "dashboards", "rules": rules}]}).to_string();
    let file = std::env::temp_dir().join(format!("dashboards-{}.yml", uuid::Uuid::now_v7()));
    fs::write(&file, document).unwrap();
    promtool(&["check", "rules", file.to_str().unwrap()], None);
    fs::remove_file(file).unwrap();
}
