//! The rules of compose.yaml and of the Dockerfile.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::{Service, between, none, only, read, root, services, yaml};

const COMPOSE: &str = "compose.yaml";
const BINARIES: [&str; 5] = ["outbox-relay", "executor", "payment-service", "psp-simulator", "testbed"];
/// Which process may reach which server of a database. Whoever is asked for proof sees everything.
const DATABASES: [(&str, &[&str]); 3] = [
    (
        "postgres-payments",
        &["migrate-payments", "payment-service", "relay-payments-1", "relay-payments-2", "token", "demo"],
    ),
    ("postgres-executor", &["migrate-executor", "executor", "relay-executor-1", "relay-executor-2", "demo"]),
    ("postgres-registry", &["registry"]),
];
/// What a secret of somebody else's image is called in its environment.
const STRANGERS_SECRETS: [&str; 3] = ["PASSWORD", "SECRET", "KEY"];

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
            ("read_only", service.value["read_only"] == true),
            ("mem_limit", service.value["mem_limit"].is_string()),
            ("stop_grace_period", service.value["stop_grace_period"].is_string()),
            ("restart", service.is_job() || service.text("restart") == "unless-stopped"),
            ("healthcheck", service.is_job() || service.value["healthcheck"]["test"].is_array()),
        ];
        let failed = checks.iter().filter(|(_, kept)| !kept);
        problems.extend(failed.map(|(rule, _)| format!("{}: {rule}", service.name)));
        // Each of ours says itself whether it is well.
        let own = service.list("command").first().copied().unwrap_or_default();
        let test: Vec<&str> = texts(&service.value["healthcheck"]["test"]);
        if service.is_ours() && !service.is_job() && test != ["CMD", own, "healthcheck"] {
            problems.push(format!("{}: healthcheck", service.name));
        }
    }
    problems
}

/// The texts of a list.
fn texts(list: &Value) -> Vec<&str> {
    list.as_array().into_iter().flatten().filter_map(Value::as_str).collect()
}

/// A network each with its database, so that nobody reaches another's.
fn databases_are_apart(compose: &Value) -> Vec<String> {
    let all = services(compose);
    let mut problems = Vec::new();
    for (server, users) in DATABASES {
        let Some(database) = all.iter().find(|service| service.name == server) else {
            problems.push(format!("{server} is missing"));
            continue;
        };
        let networks = database.list("networks");
        let beside = |service: &&Service| service.list("networks").iter().any(|one| networks.contains(one));
        let found: BTreeSet<&str> =
            all.iter().filter(beside).map(|service| service.name).filter(|name| *name != server).collect();
        let wanted: BTreeSet<&str> = users.iter().copied().collect();
        problems
            .extend(found.symmetric_difference(&wanted).map(|name| format!("{name} and {server}: network")));
        let open = networks.iter().filter(|name| compose["networks"][**name]["internal"] != true);
        problems.extend(open.map(|name| format!("{server}: network {name} leads outside")));
    }
    for service in &all {
        let unknown =
            service.list("networks").into_iter().filter(|name| compose["networks"].get(name).is_none());
        problems.extend(unknown.map(|name| format!("{}: network {name} is nowhere", service.name)));
        // Without any, it would be in the default network, with everybody else.
        if service.list("networks").is_empty() {
            problems.push(format!("{}: network", service.name));
        }
        // A port is published through a network that leads outside.
        let outside = |name: &&str| compose["networks"][*name]["internal"] != true;
        if !service.list("ports").is_empty() && !service.list("networks").iter().any(outside) {
            problems.push(format!("{}: network, for its ports", service.name));
        }
    }
    problems
}

/// The names under which a container finds its secrets, and those that they have outside.
fn secrets_of(service: &Service) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let secrets = service.value["secrets"].as_array().into_iter().flatten();
    secrets
        .map(|secret| match secret {
            Value::Object(_) => (text(&secret["target"]), text(&secret["source"])),
            name => (text(name), text(name)),
        })
        .collect()
}

/// No secret in an environment, none in a file that is not mounted, none mounted that nobody makes or needs.
fn secrets_are_files(compose: &Value, script: &str) -> Vec<String> {
    let mut problems = Vec::new();
    let mut mounted = BTreeSet::new();
    for service in services(compose) {
        let secrets = secrets_of(&service);
        mounted.extend(secrets.iter().map(|(_, source)| source.clone()));
        for (name, value) in service.value["environment"].as_object().into_iter().flatten() {
            let is_file = name.ends_with("_FILE");
            let secret = if service.is_ours() {
                BINARIES.iter().any(|binary| secret_settings(binary).contains(name))
            } else {
                STRANGERS_SECRETS.iter().any(|word| name.ends_with(word))
            };
            if secret && !is_file {
                problems.push(format!("{}: {name} is a secret in the environment", service.name));
            }
            let text = value.as_str().unwrap_or_default();
            if let Some(file) = text.strip_prefix("/run/secrets/")
                && !secrets.iter().any(|(target, _)| target == file)
            {
                problems.push(format!("{}: {name} names a secret that is not mounted", service.name));
            } else if is_file && !text.starts_with("/run/secrets/") {
                problems.push(format!("{}: {name} names no secret", service.name));
            }
            if text.contains("://") && text.contains('@') {
                problems.push(format!("{}: {name} has a password in it", service.name));
            }
        }
    }
    let known: BTreeSet<String> =
        compose["secrets"].as_object().into_iter().flatten().map(|(name, _)| name.clone()).collect();
    problems.extend(
        known
            .symmetric_difference(&mounted)
            .map(|name| format!("secret {name} is not both known and mounted")),
    );
    for (name, secret) in compose["secrets"].as_object().into_iter().flatten() {
        let (stem, kind) = name.rsplit_once('_').unwrap_or((name, ""));
        let made = script.contains(&format!(" {name} "))
            || (kind == "password" && script.contains(&format!(" {stem} ")))
            || script.contains(&format!(" {stem};"));
        if secret["file"] != format!("./secrets/{name}") || !made {
            problems.push(format!("secret {name} is not made by the script"));
        }
    }
    problems
}

/// Both of the usual machines.
fn the_image_is_for_both_machines(compose: &Value) -> Vec<String> {
    let built = services(compose).into_iter().filter(|service| service.value["build"].is_object());
    let lacking =
        built.filter(|service| texts(&service.value["build"]["platforms"]) != ["linux/amd64", "linux/arm64"]);
    lacking.map(|service| format!("{}: platforms", service.name)).collect()
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

/// The settings of a binary, as their sources are.
fn sources_of(binary: &str) -> String {
    // A stage with many settings of its own has them in a file beside it.
    let mut sources: String = ["config.rs", "psp/settings.rs", "webhooks/settings.rs"]
        .map(|file| format!("{binary}/src/{file}"))
        .into_iter()
        .filter(|path| root().join(path).exists())
        .map(|path| read(&path))
        .collect();
    if binary == "testbed" {
        sources = read("testbed/src/demo/elsewhere.rs");
    }
    if sources.contains("chassis::") {
        sources.push_str(&read("chassis/src/config.rs"));
    }
    sources
}

/// Names that a binary knows, from the attributes of its settings: `env = "NAME"`, `long = "name"`.
fn settings(binary: &str, attribute: &str) -> BTreeSet<String> {
    let sources = sources_of(binary);
    between(&sources, &format!("{attribute} = \""), "\"").into_iter().map(str::to_owned).collect()
}

/// Those whose values are never shown: each of them can stand in a file, `NAME_FILE`.
fn secret_settings(binary: &str) -> BTreeSet<String> {
    let sources = sources_of(binary);
    let attributes =
        between(&sources, "#[arg(", ")]").into_iter().filter(|one| one.contains("hide_env_values"));
    attributes.flat_map(|one| between(one, "env = \"", "\"")).map(str::to_owned).collect()
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
            let secret = name.strip_suffix("_FILE");
            let known = |binary: &&str| {
                settings(binary, "env").contains(name)
                    || secret.is_some_and(|secret| secret_settings(binary).contains(secret))
            };
            if !binaries.iter().all(known) {
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
            let url = service.value["environment"]["DATABASE_URL_FILE"].as_str().unwrap_or_default();
            let database = url.strip_prefix("/run/secrets/relay_").and_then(|rest| rest.strip_suffix("_url"));
            *relays.entry(database.unwrap_or_default()).or_default() += 1;
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

/// Everything that roles.sql asks psql for is given to a server that runs it.
fn passwords_are_given(compose: &Value, sql: &str) -> Vec<String> {
    let given: BTreeSet<String> = services(compose)
        .iter()
        .filter(|service| service.text("image").starts_with("postgres:"))
        .flat_map(secrets_of)
        .map(|(target, _)| target.to_uppercase())
        .collect();
    let asked = sql.lines().filter_map(|line| line.strip_prefix("\\getenv ")?.split(' ').nth(1));
    asked
        .filter(|name| name.ends_with("_PASSWORD") && !given.contains(*name))
        .map(|name| format!("no server is given {name}"))
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
        databases_are_apart,
        the_image_is_for_both_machines,
    ] {
        none(&rule(&compose));
    }
    none(&secrets_are_files(&compose, &read("security/secrets.sh")));
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
    only(
        &settings_are_known(&with(
            "/services/setup/environment/KAFKA_BOOTSTRAP_FILE",
            json!("/run/secrets/x"),
        )),
        "no KAFKA_BOOTSTRAP_FILE",
    );
    let elsewhere = with("/services/relay-executor-2/environment/DATABASE_URL_FILE", json!("/run/secrets/x"));
    only(&every_outbox_has_two_relays(&elsewhere), "1 relays on the database");
    let beside =
        |service: &str, network: &str| with(&format!("/services/{service}/networks"), json!([network]));
    let reached = databases_are_apart(&beside("executor", "payments-db"));
    assert!(reached.iter().any(|one| one == "executor and postgres-payments: network"), "{reached:?}");
    only(&databases_are_apart(&with("/services/kafka/networks", Value::Null)), "kafka: network");
    only(&databases_are_apart(&beside("kafka", "gone")), "kafka: network gone");
    only(&databases_are_apart(&beside("psp-simulator", "backbone")), "psp-simulator: network, for its ports");
    only(&databases_are_apart(&with("/networks/registry-db/internal", json!(false))), "leads outside");
    let secrets = |compose: &Value| secrets_are_files(compose, &read("security/secrets.sh"));
    let shown = with("/services/executor/environment/ADYEN_API_KEY", json!("x"));
    only(&secrets(&shown), "executor: ADYEN_API_KEY is a secret in the environment");
    only(
        &secrets(&with("/services/grafana/environment/GF_SECURITY_ADMIN_PASSWORD", json!("x"))),
        "GF_SECURITY_ADMIN_PASSWORD",
    );
    only(
        &secrets(&with("/services/setup/environment/X", json!("postgres://a:b@c/d"))),
        "setup: X has a password",
    );
    only(&secrets(&with("/services/setup/environment/X_FILE", json!("/run/secrets/gone"))), "is not mounted");
    only(&secrets(&with("/services/setup/environment/X_FILE", json!("/etc/gone"))), "names no secret");
    only(&secrets(&with("/secrets/more", json!({"file": "./secrets/more"}))), "secret more");
    only(&secrets(&with("/secrets/executor_url/file", json!("./elsewhere"))), "secret executor_url");
    let only_one = with("/services/psp-simulator/build/platforms", json!(["linux/amd64"]));
    only(&the_image_is_for_both_machines(&only_one), "psp-simulator: platforms");
    only(
        &containers_are_hardened(&with("/services/executor/healthcheck/test", json!(["CMD", "true"]))),
        "executor: healthcheck",
    );
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
