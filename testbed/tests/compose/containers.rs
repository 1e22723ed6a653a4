//! The rules of compose.yaml and of the Dockerfile.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::{Service, between, none, only, read, root, services, yaml};

const COMPOSE: &str = "compose.yaml";
const BINARIES: [&str; 4] = ["outbox-relay", "executor", "payment-service", "psp-simulator"];
/// Its start script writes the broker's settings beside its program.
const WRITES_INTO_ITS_IMAGE: [&str; 1] = ["kafka"];

fn images_are_pinned(compose: &Value) -> Vec<String> {
    let tag = |image: &str| {
        image.rsplit('/').next().and_then(|last| last.split_once(':')).map(|(_, tag)| tag.to_owned())
    };
    let pinned =
        |service: &Service| tag(service.text("image")).is_some_and(|tag| !tag.is_empty() && tag != "latest");
    let problems = services(compose).into_iter().filter(|service| !pinned(service));
    problems
        .map(|service| format!("{}: image {:?} has no tag", service.name, service.text("image")))
        .collect()
}

fn ports_are_local(compose: &Value) -> Vec<String> {
    let mut problems = Vec::new();
    for service in services(compose) {
        for port in service.list("ports").iter().filter(|port| !port.starts_with("127.0.0.1:")) {
            problems.push(format!("{}: port {port} is open to the network", service.name));
        }
    }
    problems
}

/// In the text, because the variables are gone from nothing there: comments, anchors and all.
fn variables_are_documented(text: &str) -> Vec<String> {
    let header: Vec<&str> = text.lines().take_while(|line| line.starts_with('#')).collect();
    let words: BTreeSet<&str> =
        header.iter().flat_map(|line| line.split(|c: char| !c.is_ascii_uppercase() && c != '_')).collect();
    let (mut problems, mut defaults) = (Vec::new(), BTreeMap::new());
    for variable in between(text, "${", "}") {
        let Some((name, default)) = variable.split_once(":-") else {
            problems.push(format!("${{{variable}}} has no default"));
            continue;
        };
        if !words.contains(name) {
            problems.push(format!("{name} is not explained at the top"));
        }
        if *defaults.entry(name).or_insert(default) != default {
            problems.push(format!("{name} has two defaults"));
        }
    }
    problems
}

fn mounts_exist(compose: &Value) -> Vec<String> {
    let mut problems = Vec::new();
    for service in services(compose) {
        for mount in service.list("volumes") {
            let source = mount.split(':').next().unwrap_or_default();
            let there = match source.strip_prefix("./") {
                Some(path) => root().join(path).exists() && mount.ends_with(":ro"),
                None => compose["volumes"].get(source).is_some(),
            };
            if !there {
                problems.push(format!(
                    "{}: {mount} names nothing, or is a file of ours that can be written",
                    service.name
                ));
            }
        }
    }
    problems
}

fn dependencies_exist(compose: &Value) -> Vec<String> {
    let all: BTreeMap<&str, Service> =
        services(compose).into_iter().map(|service| (service.name, service)).collect();
    let mut problems = Vec::new();
    for service in all.values() {
        for target in service.list("depends_on") {
            let fits = match (all.get(target), service.value["depends_on"][target]["condition"].as_str()) {
                (Some(target), Some("service_healthy")) => target.value["healthcheck"].is_object(),
                (Some(target), Some("service_completed_successfully")) => target.is_job(),
                _ => false,
            };
            if !fits {
                problems.push(format!("{} cannot wait for {target} in that way", service.name));
            }
        }
    }
    problems
}

fn containers_are_hardened(compose: &Value) -> Vec<String> {
    let mut problems = Vec::new();
    for service in services(compose) {
        let user = service.text("user").split(':').next().unwrap_or_default();
        let checks = [
            ("cap_drop", service.list("cap_drop") == ["ALL"]),
            ("security_opt", service.list("security_opt") == ["no-new-privileges:true"]),
            ("user", user.parse::<u32>().is_ok_and(|user| user > 0)),
            (
                "read_only",
                service.value["read_only"] == true || WRITES_INTO_ITS_IMAGE.contains(&service.name),
            ),
            ("mem_limit", service.value["mem_limit"].is_string()),
            ("stop_grace_period", service.value["stop_grace_period"].is_string()),
            ("restart", service.is_job() || service.text("restart") == "unless-stopped"),
            ("healthcheck", service.is_job() || service.value["healthcheck"]["test"].is_array()),
        ];
        let failed = checks.iter().filter(|(_, kept)| !kept);
        problems.extend(failed.map(|(rule, _)| format!("{}: {rule}", service.name)));
    }
    problems
}

/// Where nobody builds it, or somebody would ask a registry for it, it is missing or not ours.
fn one_builds_the_image(compose: &Value) -> Vec<String> {
    let ours: Vec<Service> = services(compose).into_iter().filter(Service::is_ours).collect();
    let builds =
        |service: &&Service| service.value["build"].is_object() && service.text("pull_policy") == "build";
    let mut problems = Vec::new();
    if ours.iter().filter(builds).count() != 1 {
        problems.push("not exactly one service builds the image".to_owned());
    }
    let others = ours.iter().filter(|service| !builds(service) && service.text("pull_policy") != "never");
    problems.extend(others.map(|service| format!("{}: pull_policy", service.name)));
    problems
}

/// Names that a binary knows, from the attributes of its settings: `env = "NAME"`, `long = "name"`.
fn settings(binary: &str, attribute: &str) -> BTreeSet<String> {
    // A stage with many settings of its own has them in a file beside it.
    let mut sources: String = ["config.rs", "psp/settings.rs", "webhooks/settings.rs"]
        .map(|file| format!("{binary}/src/{file}"))
        .into_iter()
        .filter(|path| root().join(path).exists())
        .map(|path| read(&path))
        .collect();
    if read(&format!("{binary}/Cargo.toml")).contains("chassis") {
        sources.push_str(&read("chassis/src/config.rs"));
    }
    between(&sources, &format!("{attribute} = \""), "\"").into_iter().map(str::to_owned).collect()
}

fn settings_are_known(compose: &Value) -> Vec<String> {
    let mut problems = Vec::new();
    for service in services(compose).into_iter().filter(Service::is_ours) {
        let command = service.command();
        let binaries: Vec<&str> = BINARIES.into_iter().filter(|binary| command.contains(binary)).collect();
        if binaries.is_empty() {
            problems.push(format!("{}: its command names no binary of ours", service.name));
        }
        for name in service.list("environment") {
            // A job with two binaries: what is set is meant for both.
            if !binaries.iter().all(|binary| settings(binary, "env").contains(name)) {
                problems.push(format!("{}: {binaries:?} know no {name}", service.name));
            }
        }
        for flag in command.iter().filter_map(|word| word.strip_prefix("--")) {
            if !binaries.iter().any(|binary| settings(binary, "long").contains(flag)) {
                problems.push(format!("{}: {binaries:?} know no --{flag}", service.name));
            }
        }
    }
    problems
}

fn every_outbox_has_two_relays(compose: &Value) -> Vec<String> {
    let mut relays: BTreeMap<&str, usize> = BTreeMap::from([("payments", 0), ("executor", 0)]);
    for service in services(compose) {
        if service.command() == ["outbox-relay", "run"] {
            let url = service.value["environment"]["DATABASE_URL"].as_str().unwrap_or_default();
            *relays.entry(url.rsplit('/').next().unwrap_or_default()).or_default() += 1;
        }
    }
    let wrong = relays.into_iter().filter(|(_, count)| *count != 2);
    wrong.map(|(database, count)| format!("{count} relays on the database {database}")).collect()
}

fn dockerfile_is_plain(dockerfile: &str) -> Vec<String> {
    let mut problems = Vec::new();
    for forbidden in ["<<", "# syntax=", ":latest"] {
        if dockerfile.contains(forbidden) {
            problems.push(format!("Dockerfile has {forbidden}"));
        }
    }
    let rust = between(&read("Cargo.toml"), "rust-version = \"", "\"")[0].to_owned();
    let build = between(dockerfile, "cargo build", "\\").concat();
    let runtime = dockerfile.rsplit("\nFROM ").next().unwrap_or_default();
    let mut expected = vec![
        ("the compiler of Cargo.toml", dockerfile.contains(&format!("FROM rust:{rust}-bookworm"))),
        ("--locked --release", build.contains("--locked --release")),
        ("a user that is not root", runtime.contains("\nUSER 65532:65532\n")),
    ];
    expected.extend(BINARIES.map(|binary| (binary, build.contains(&format!("-p {binary}")))));
    let missing = expected.into_iter().filter(|(_, there)| !there);
    problems.extend(missing.map(|(what, _)| format!("Dockerfile lacks {what}")));
    for copied in dockerfile.lines().filter_map(|line| line.strip_prefix("COPY ")) {
        let source = copied.split(' ').next().unwrap_or_default();
        if !source.starts_with("--from=") && source != "dist/" && !root().join(source).exists() {
            problems.push(format!("Dockerfile copies {source}, which does not exist"));
        }
    }
    problems
}

/// Everything that roles.sql asks psql for is given to the container that runs it.
fn passwords_are_given(compose: &Value, sql: &str) -> Vec<String> {
    let given = &compose["services"]["postgres"]["environment"];
    let asked = sql.lines().filter_map(|line| line.strip_prefix("\\getenv ")?.split(' ').nth(1));
    asked
        .filter(|name| given.get(name).is_none())
        .map(|name| format!("postgres is not given {name}"))
        .collect()
}

#[test]
fn compose_keeps_its_rules() {
    let compose = yaml(COMPOSE);
    for rule in [
        images_are_pinned,
        one_builds_the_image,
        ports_are_local,
        mounts_exist,
        dependencies_exist,
        containers_are_hardened,
        settings_are_known,
        every_outbox_has_two_relays,
    ] {
        none(&rule(&compose));
    }
    none(&variables_are_documented(&read(COMPOSE)));
    none(&passwords_are_given(&compose, &read("migrations/roles.sql")));
}

#[test]
fn a_fault_in_compose_is_found() {
    let with = |pointer: &str, value: Value| {
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        let mut compose = yaml(COMPOSE);
        let parent = compose.pointer_mut(parent).unwrap().as_object_mut().unwrap();
        parent.insert(key.to_owned(), value);
        compose
    };
    only(&images_are_pinned(&with("/services/kafka/image", json!("host:5000/apache/kafka"))), "kafka");
    only(&images_are_pinned(&with("/services/kafka/image", json!("apache/kafka:latest"))), "kafka");
    only(
        &one_builds_the_image(&with("/services/executor/pull_policy", Value::Null)),
        "executor: pull_policy",
    );
    only(
        &one_builds_the_image(&with("/services/psp-simulator/pull_policy", json!("never"))),
        "not exactly one",
    );
    only(&ports_are_local(&with("/services/kafka/ports", json!(["9092:9092"]))), "9092");
    only(&mounts_exist(&with("/services/kafka/volumes", json!(["./gone.yml:/x:ro"]))), "gone.yml");
    only(&mounts_exist(&with("/services/kafka/volumes", json!(["./Cargo.toml:/x"]))), "Cargo.toml");
    only(&mounts_exist(&with("/services/kafka/volumes", json!(["gone:/x"]))), "gone");
    let wait = |on: &str, condition: &str| {
        with("/services/executor/depends_on", json!({on: {"condition": condition}}))
    };
    only(&dependencies_exist(&wait("gone", "service_healthy")), "executor cannot wait for gone");
    only(&dependencies_exist(&wait("setup", "service_healthy")), "executor cannot wait for setup");
    only(
        &dependencies_exist(&wait("kafka", "service_completed_successfully")),
        "executor cannot wait for kafka",
    );
    only(&containers_are_hardened(&with("/services/executor/user", json!("0:0"))), "executor: user");
    for key in [
        "cap_drop",
        "security_opt",
        "user",
        "read_only",
        "mem_limit",
        "stop_grace_period",
        "restart",
        "healthcheck",
    ] {
        let compose = with(&format!("/services/executor/{key}"), Value::Null);
        only(&containers_are_hardened(&compose), &format!("executor: {key}"));
    }
    only(&settings_are_known(&with("/services/setup/environment/RELAYNAME", json!("x"))), "no RELAYNAME");
    only(
        &settings_are_known(&with("/services/psp-simulator/environment/DATABASE_URL", json!("x"))),
        "no DATABASE_URL",
    );
    only(
        &settings_are_known(&with("/services/setup/command", json!(["outbox-relay", "setup", "--force"]))),
        "no --force",
    );
    let elsewhere = with("/services/relay-executor-2/environment/DATABASE_URL", json!("postgres://x/other"));
    only(&every_outbox_has_two_relays(&elsewhere), "1 relays on the database");
    only(&passwords_are_given(&yaml(COMPOSE), "\\getenv x OTHER_PASSWORD\n"), "OTHER_PASSWORD");
}

#[test]
fn a_fault_in_a_variable_is_found() {
    let text = |body: &str| format!("# A, B_C explained\nname: x\n{body}\n");
    none(&variables_are_documented(&text("a: ${A:-1} ${A:-1} ${B_C:-}")));
    only(&variables_are_documented(&text("a: ${A}")), "${A} has no default");
    only(&variables_are_documented(&text("a: ${B:-1}")), "B is not explained");
    only(&variables_are_documented(&text("a: ${A:-1} ${A:-2}")), "A has two defaults");
}

#[test]
fn the_dockerfile_keeps_its_rules() {
    let dockerfile = read("Dockerfile");
    none(&dockerfile_is_plain(&dockerfile));
    for (good, bad, fault) in [
        ("USER 65532:65532\n", "", "not root"),
        (" -p executor", "", "executor"),
        ("rust:1.95", "rust:1.70", "compiler"),
        ("COPY schema/avro/", "COPY schemas/", "schemas/"),
        ("FROM debian:bookworm-slim", "FROM debian:latest", ":latest"),
        (" --locked", "", "--locked"),
    ] {
        only(&dockerfile_is_plain(&dockerfile.replace(good, bad)), fault);
    }
}
