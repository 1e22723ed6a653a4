//! What there is to ask for: docs/metrics.md, and the same read from the processes themselves.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
};

use testbed::prometheus::document;

use super::{alerts::rules, dashboards, none, only, promql::names_in, read};

const BEGINS: &str = "<!-- The tables are written by testbed/tests/observability: begin. -->\n";
const ENDS: &str = "<!-- end. -->\n";
/// Metrics that nobody looks at by himself, with why not.
const UNUSED: &str = "## On no panel and in no alert";

/// One metric, as a process has declared it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Metric {
    pub(crate) kind: String,
    pub(crate) labels: String,
    pub(crate) help: String,
    /// The processes that have it.
    pub(crate) of: BTreeSet<String>,
}

/// Metrics by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Catalogue(pub(crate) BTreeMap<String, Metric>);

impl Catalogue {
    /// As docs/metrics.md has it.
    pub(crate) fn documented() -> Self {
        let text = read("docs/metrics.md");
        let (_, tables) = text.split_once(BEGINS).unwrap();
        let (tables, _) = tables.split_once(ENDS).unwrap();
        Self::of_tables(tables)
    }

    fn of_tables(tables: &str) -> Self {
        let (mut metrics, mut of) = (BTreeMap::new(), BTreeSet::new());
        for line in tables.lines() {
            if let Some(heading) = line.strip_prefix("## ") {
                of = heading.split(", ").map(str::to_owned).collect();
            }
            let cells: Vec<&str> =
                line.trim_matches('|').split(" | ").map(|cell| cell.trim().trim_matches('`')).collect();
            if let [name, kind, labels, help] = cells[..]
                && !["metric", "---"].contains(&name)
            {
                let [kind, labels, help] = [kind, labels, help].map(str::to_owned);
                metrics.insert(name.to_owned(), Metric { kind, labels, help, of: of.clone() });
            }
        }
        Self(metrics)
    }

    /// Adds what a process says at its `/metrics`. Says what is wrong with it: no help, or another one than a process before.
    pub(crate) fn add(&mut self, process: &str, scrape: &str) -> Vec<String> {
        let mut problems = Vec::new();
        let mut help = "";
        for line in scrape.lines() {
            if let Some(rest) = line.strip_prefix("# HELP ") {
                help = rest.split_once(' ').unwrap_or_default().1;
            } else if let Some((name, kind)) =
                line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' '))
            {
                let said = Metric {
                    kind: kind.to_owned(),
                    labels: labels_of(scrape, name),
                    help: help.to_owned(),
                    of: BTreeSet::from([process.to_owned()]),
                };
                if help.len() < 10 || (!help.ends_with('.') && !name.starts_with("process_")) {
                    problems.push(format!("{process}: {name} does not say what it is: {help:?}"));
                }
                let known = self.0.entry(name.to_owned()).or_insert_with(|| said.clone());
                if (&known.kind, &known.labels, &known.help) != (&said.kind, &said.labels, &said.help) {
                    problems.push(format!("{name} is not the same in {process}: {known:?}, {said:?}"));
                }
                known.of.extend(said.of);
                help = "";
            }
        }
        problems
    }

    /// The tables, one for each set of processes.
    pub(crate) fn tables(&self) -> String {
        type Named<'a> = (&'a String, &'a Metric);
        let mut groups: BTreeMap<(usize, Vec<&str>), Vec<Named<'_>>> = BTreeMap::new();
        for (name, metric) in &self.0 {
            let of: Vec<&str> = metric.of.iter().map(String::as_str).collect();
            groups.entry((usize::MAX - of.len(), of)).or_default().push((name, metric));
        }
        let mut text = String::new();
        for ((_, of), metrics) in groups {
            writeln!(text, "\n## {}\n\n| metric | type | labels | what it is |", of.join(", ")).unwrap();
            writeln!(text, "| --- | --- | --- | --- |").unwrap();
            for (name, Metric { kind, labels, help, .. }) in metrics {
                writeln!(text, "| `{name}` | {kind} | {labels} | {help} |").unwrap();
            }
        }
        text.push('\n');
        text
    }

    /// What an expression names and nobody has.
    pub(crate) fn unknown(&self, expression: &str) -> Vec<String> {
        let names = names_in(expression).into_iter().map(|(name, _)| name);
        names.filter(|name| name != "up" && self.base(name).is_none()).collect()
    }

    /// The metric that a series belongs to.
    pub(crate) fn base(&self, series: &str) -> Option<&str> {
        let histogram = |name: &str| self.0.get(name).is_some_and(|metric| metric.kind == "histogram");
        let (name, _) = match self.0.get_key_value(series) {
            Some(found) if !histogram(series) => found,
            _ => ["_bucket", "_sum", "_count"]
                .iter()
                .filter_map(|suffix| series.strip_suffix(suffix))
                .find(|base| histogram(base))
                .and_then(|base| self.0.get_key_value(base))?,
        };
        Some(name.as_str())
    }
}

/// The names of a metric's labels, from its series.
fn labels_of(scrape: &str, name: &str) -> String {
    let labels: BTreeSet<&str> = scrape
        .lines()
        .filter_map(|line| line.strip_prefix(name))
        .filter_map(|rest| rest.split_once('{'))
        .filter(|(suffix, _)| ["", "_bucket", "_sum", "_count"].contains(suffix))
        .flat_map(|(_, labels)| labels.split("=\"").collect::<Vec<_>>())
        .filter_map(|part| part.rsplit(['{', ',', '"']).next())
        .filter(|label| label.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_') && *label != "le")
        .filter(|label| !label.is_empty())
        .collect();
    labels.into_iter().collect::<Vec<_>>().join(", ")
}

/// The document with other tables.
pub(crate) fn rewritten(document: &str, tables: &str) -> String {
    let (before, rest) = document.split_once(BEGINS).unwrap();
    let (_, after) = rest.split_once(ENDS).unwrap();
    format!("{before}{BEGINS}{tables}{ENDS}{after}")
}

/// Every metric is looked at by an alert or on a panel, or the document says why not.
fn all_are_looked_at(catalogue: &Catalogue, expressions: &[String], document: &str) -> Vec<String> {
    let (_, reasons) = document.split_once(UNUSED).unwrap();
    let excused: BTreeSet<&str> =
        reasons.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next()).collect();
    let named = expressions.iter().flat_map(|expression| names_in(expression));
    let used: BTreeSet<String> =
        named.filter_map(|(name, _)| catalogue.base(&name).map(str::to_owned)).collect();
    let mut problems = Vec::new();
    for name in catalogue.0.keys().filter(|name| !used.contains(*name) && !excused.contains(name.as_str())) {
        problems.push(format!("{name} is on no panel, in no alert, and not among those that need not be"));
    }
    for name in excused {
        if used.contains(name) || !catalogue.0.contains_key(name) {
            problems.push(format!("{name} needs no excuse: it is looked at, or there is none"));
        }
    }
    problems
}

fn every_expression() -> Vec<String> {
    let alerts = document("alerts.yml").unwrap();
    let alerts = rules(&alerts).into_iter().map(|rule| rule["expr"].as_str().unwrap().to_owned());
    alerts.chain(dashboards::all().iter().flat_map(|(_, board)| dashboards::expressions(board))).collect()
}

#[test]
fn every_metric_is_looked_at() {
    let (catalogue, expressions) = (Catalogue::documented(), every_expression());
    let document = read("docs/metrics.md");
    none(&all_are_looked_at(&catalogue, &expressions, &document));
    let mut more = catalogue.clone();
    more.0.insert("new_total".to_owned(), catalogue.0["relay_leader"].clone());
    only(&all_are_looked_at(&more, &expressions, &document), "new_total is on no panel");
    let excused = format!("{document}| `relay_leader` | - |\n");
    only(&all_are_looked_at(&catalogue, &expressions, &excused), "relay_leader needs no excuse");
}

#[test]
fn a_scrape_becomes_a_catalogue_and_tables_read_back() {
    let scrape = "# HELP a_total How many there were.\n# TYPE a_total counter\na_total{x=\"1, {y=\\\"\",z=\"b\"} 2\n\
        # HELP c_seconds How long it took.\n# TYPE c_seconds histogram\nc_seconds_bucket{of=\"m\",le=\"1\"} 3\nc_seconds_sum{of=\"m\"} 1\n";
    let mut catalogue = Catalogue::default();
    none(&catalogue.add("one", scrape));
    none(&catalogue.add("two", scrape));
    only(&catalogue.add("three", "# HELP a_total Another.\n# TYPE a_total counter\na_total 1\n"), "a_total");
    only(&catalogue.add("two", "# TYPE d gauge\nd 1\n"), "d does not say what it is");
    catalogue.0.remove("d");
    assert_eq!(catalogue.0["a_total"].labels, "x, z");
    assert_eq!(catalogue.0["c_seconds"].labels, "of");
    assert_eq!(Catalogue::of_tables(&catalogue.tables()), catalogue);
    assert_eq!(catalogue.unknown("rate(c_seconds_count[1h]) + b"), ["b"]);
    assert_eq!(catalogue.unknown("c_seconds + a_total_bucket + up"), ["c_seconds", "a_total_bucket"]);
}
