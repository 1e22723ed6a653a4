//! Every lock on, on the real parts: TLS with full verification, passwords, and no right too many. A payment goes through, and whoever has
//! the wrong credentials, the wrong authority or a right too few is told which setting it is.
#![allow(clippy::unwrap_used, reason = "what goes wrong in a test has to end it")]

use std::path::PathBuf;
use std::time::{Duration, Instant};

use futures::future::join_all;
use serde_json::{Value, json};
use sqlx::{Connection as _, PgConnection};
use testbed::circle::{Circle, Options};
use testbed::processes::{Service, Spec, binary, run_once};
use testbed::stack::Locked;
use testbed::stack::home::Home;

const LIMIT: Duration = Duration::from_secs(30);

#[tokio::test(flavor = "multi_thread")]
#[ignore = "not passed yet: with every lock on, a relay does not get to the end of a topic"]
async fn with_every_lock_on_a_payment_goes_through_and_whoever_lacks_a_key_is_told_which() {
    let begun = Instant::now();
    let locked = Locked::start().await.unwrap();
    println!("parts and rights after {:.1} s", begun.elapsed().as_secs_f64());
    let environment = locked.environment().unwrap();
    let options = Options { isolated: false, environment, ..Options::default() };
    let circle = Circle::start(locked.stack(), &options).await.unwrap();
    pays(&circle).await;
    encrypted(&locked).await;
    println!("paid after {:.1} s", begun.elapsed().as_secs_f64());
    circle.shutdown().await.unwrap();
    told(&locked, &circle, &options).await;
    println!("all told after {:.1} s", begun.elapsed().as_secs_f64());
}

async fn pays(circle: &Circle) {
    let client = reqwest::Client::builder().no_proxy().timeout(LIMIT).build().unwrap();
    let body = json!({"amount_minor": 1_234, "currency": "EUR", "payment_method": "pm_card_visa", "merchant_reference": "order-1"});
    let request = client.post(format!("{}/v1/payments", circle.api_url)).bearer_auth(&circle.api_token);
    let answer = request.header("Idempotency-Key", "key-1").json(&body).send().await.unwrap();
    assert_eq!(answer.status(), 201);
    let created: Value = answer.json().await.unwrap();
    let url = format!("{}/v1/payments/{}", circle.api_url, created["payment_id"].as_str().unwrap());
    let begun = Instant::now();
    loop {
        let request = client.get(&url).bearer_auth(&circle.api_token);
        let payment: Value = request.send().await.unwrap().json().await.unwrap();
        if payment["status"] == "SUCCESSFUL" {
            return;
        }
        assert!(begun.elapsed() < LIMIT, "{payment}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn administrator(locked: &Locked, database: &str) -> PgConnection {
    PgConnection::connect(&locked.stack().postgres_url("postgres", database)).await.unwrap()
}

/// Not only asked for: no session of ours is without TLS.
async fn encrypted(locked: &Locked) {
    let mut connection = administrator(locked, "postgres").await;
    let sessions: Vec<(String, bool)> = sqlx::query_as(
        "SELECT a.usename::text, s.ssl FROM pg_stat_activity AS a JOIN pg_stat_ssl AS s USING (pid) \
         WHERE a.usename <> 'postgres'",
    )
    .fetch_all(&mut connection)
    .await
    .unwrap();
    let roles: std::collections::BTreeSet<&str> = sessions.iter().map(|(role, _)| role.as_str()).collect();
    for role in ["payment_service", "executor", "relay"] {
        assert!(roles.contains(role), "{roles:?}");
    }
    assert!(sessions.iter().all(|(_, tls)| *tls), "{sessions:?}");
}

/// What a process is given in place of what is right, and what it has to say about that.
type Case<'a> = (&'a str, Vec<(&'a str, String)>, &'a str);

#[expect(clippy::too_many_lines, reason = "one wrong key after the other")]
async fn told(locked: &Locked, circle: &Circle, options: &Options) {
    let wrong = || locked.wrong_secret().unwrap();
    let url = |role: &str, database: &str, settings: &str| {
        vec![("DATABASE_URL_FILE", locked.url_file(role, database, settings).unwrap())]
    };
    let verified = |authority: &str| format!("sslmode=verify-full&sslrootcert={authority}");
    let server = locked.postgres().server().port;
    let unknown = format!("postgres://relay:wrong@127.0.0.1:{server}/payments?{}", locked.verified());
    let doctor: Vec<Case<'_>> = vec![
        ("relay-requests", vec![("DATABASE_URL", unknown)], "refuses the password of DATABASE_URL"),
        ("relay-requests", url("relay", "payments", "sslmode=disable"), "or not with its sslmode"),
        (
            "relay-requests",
            url("relay", "payments", &verified(&locked.stranger())),
            "the sslrootcert of DATABASE_URL",
        ),
        // It has no business there.
        (
            "relay-requests",
            url("relay", "registry", &locked.verified()),
            "does not let the user of DATABASE_URL in",
        ),
        ("relay-requests", vec![("KAFKA_PASSWORD_FILE", wrong())], "KAFKA_USERNAME with KAFKA_PASSWORD"),
        ("relay-requests", vec![("KAFKA_CA", locked.stranger())], "KAFKA_CA must hold the authority"),
        (
            "relay-requests",
            vec![
                ("KAFKA_SECURITY_PROTOCOL", "PLAINTEXT".to_owned()),
                ("KAFKA_CA", String::new()),
                ("KAFKA_USERNAME", String::new()),
                ("KAFKA_PASSWORD_FILE", String::new()),
            ],
            "otherwise than KAFKA_SECURITY_PROTOCOL says",
        ),
        (
            "relay-requests",
            vec![("SCHEMA_REGISTRY_PASSWORD_FILE", wrong())],
            "SCHEMA_REGISTRY_USERNAME with SCHEMA_REGISTRY_PASSWORD",
        ),
        (
            "relay-requests",
            vec![("SCHEMA_REGISTRY_CA", locked.stranger())],
            "SCHEMA_REGISTRY_CA must hold the authority",
        ),
        ("relay-requests", vec![("KAFKA_PASSWORD_FILE", String::new())], "KAFKA_PASSWORD is not"),
    ];
    // Each of them is one process for a few seconds.
    join_all(doctor.into_iter().map(|case| refused(options, &["doctor"], case))).await;
    // Without a change, it is content: each of the above was refused for its one fault.
    let content = environment(options, "relay-requests", &[]);
    run_once(&binary("outbox-relay").unwrap(), &["doctor"], &with_catalogue(circle, content)).await.unwrap();
    let reader = vec![
        ("SCHEMA_REGISTRY_USERNAME", "services".to_owned()),
        ("SCHEMA_REGISTRY_PASSWORD_FILE", value_of(options, "executor", "SCHEMA_REGISTRY_PASSWORD_FILE")),
    ];
    let fewer: Vec<Case<'_>> = vec![
        // May read schemas, and may not register any.
        ("setup", reader, "SCHEMA_REGISTRY_USERNAME"),
        // May not make topics.
        (
            "setup",
            vec![
                ("KAFKA_USERNAME", "executor".to_owned()),
                ("KAFKA_PASSWORD_FILE", kafka_secret_of(options, "executor")),
            ],
            "lacks an ACL",
        ),
    ];
    join_all(fewer.into_iter().map(|case| refused(options, &["setup"], case))).await;

    // Something to publish, for a relay that may read its topic and not write to it.
    let mut executor = administrator(locked, "executor").await;
    let event = json!({"paymentOrderId": "018f0000-0000-7000-8000-000000000001", "pspStatus": "PENDING", "eventTime": "2026-01-01T00:00:00Z"});
    sqlx::query("SELECT outbox.append('PspResultUpdateEvent', $1 ->> 'paymentOrderId', $1::json)")
        .bind(event)
        .execute(&mut executor)
        .await
        .unwrap();
    let borrowed = |user: &str| {
        vec![("KAFKA_USERNAME", user.to_owned()), ("KAFKA_PASSWORD_FILE", kafka_secret_of(options, user))]
    };
    // Under another name, so that the two do not wait for each other's lock.
    let mut relay_of_results = borrowed("payment-service");
    relay_of_results.push(("RELAY_NAME", "another".to_owned()));
    relay_of_results.push(("DATABASE_URL_FILE", value_of(options, "relay-results", "DATABASE_URL_FILE")));
    let processes: Vec<(&str, &str, Case<'_>)> = vec![
        (
            "executor",
            "wrong-password",
            ("executor", vec![("KAFKA_PASSWORD_FILE", wrong())], "KAFKA_USERNAME with KAFKA_PASSWORD"),
        ),
        (
            "executor",
            "other-topic",
            ("executor", vec![("REQUESTS_TOPIC", circle.results_topic.clone())], "lacks an ACL"),
        ),
        (
            "payment-service",
            "wrong-authority",
            ("payment-service", vec![("KAFKA_CA", locked.stranger())], "KAFKA_CA must hold"),
        ),
        (
            "payment-service",
            "other-group",
            ("payment-service", vec![("CONSUMER_GROUP", "another".to_owned())], "lacks an ACL"),
        ),
        ("outbox-relay", "may-not-read", ("relay-results", borrowed("executor"), "lacks an ACL")),
        ("outbox-relay", "may-not-write", ("relay-requests", relay_of_results, "lacks an ACL")),
    ];
    join_all(processes.into_iter().map(|(program, name, case)| says(circle, options, program, name, case)))
        .await;
}

/// The environment of a process of the circle, with changes; an empty value takes a setting away.
fn environment(options: &Options, process: &str, changes: &[(&str, String)]) -> Vec<(String, String)> {
    let own = options.environment.iter().filter(|(name, _, _)| name == process);
    let kept = own.filter(|(_, name, _)| {
        !changes.iter().any(|(change, _)| name == change || name.strip_suffix("_FILE") == Some(*change))
    });
    let kept = kept.map(|(_, name, value)| (name.clone(), value.clone()));
    let changed = changes
        .iter()
        .filter(|(_, value)| !value.is_empty())
        .map(|(name, value)| ((*name).to_owned(), value.clone()));
    kept.chain(changed).collect()
}

fn value_of(options: &Options, process: &str, wanted: &str) -> String {
    let found = options.environment.iter().find(|(name, setting, _)| name == process && setting == wanted);
    found.unwrap().2.clone()
}

fn kafka_secret_of(options: &Options, process: &str) -> String {
    value_of(options, process, "KAFKA_PASSWORD_FILE")
}

fn with_catalogue(circle: &Circle, mut environment: Vec<(String, String)>) -> Vec<(String, String)> {
    environment.push(("EVENTS".to_owned(), circle.folder().join("events.toml").display().to_string()));
    environment
}

/// A command of the relay fails, and says why.
async fn refused(options: &Options, arguments: &[&str], (process, changes, wanted): Case<'_>) {
    let mut environment = environment(options, process, &changes);
    let events = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../schema/events.toml"));
    environment.push(("EVENTS".to_owned(), events.display().to_string()));
    let mut command = tokio::process::Command::new(binary("outbox-relay").unwrap());
    let run = command.args(arguments).env_clear().envs(environment).kill_on_drop(true).output();
    let output = tokio::time::timeout(LIMIT * 2, run).await.unwrap().unwrap();
    let said = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    assert!(!output.status.success() && said.contains(wanted), "{changes:?}: {wanted} is not in: {said}");
}

/// A process goes on waiting, is not ready for it, and says why.
async fn says(
    circle: &Circle,
    options: &Options,
    program: &str,
    name: &str,
    (process, changes, wanted): Case<'_>,
) {
    let admin = format!("127.0.0.1:{}", testbed::stack::free_port().unwrap());
    let mut environment = with_catalogue(circle, environment(options, process, &changes));
    for (name, value) in [
        ("ADMIN_LISTEN", admin.as_str()),
        ("LISTEN", "127.0.0.1:0"),
        ("STRIPE_SECRET_KEY", "sk_test_local"),
        ("STRIPE_BASE_URL", "http://127.0.0.1:9"),
    ] {
        environment.push((name.to_owned(), value.to_owned()));
    }
    let spec = Spec {
        name: format!("{program}-{name}"),
        program: binary(program).unwrap(),
        arguments: vec!["run".to_owned()],
        environment,
        ready_url: format!("http://{admin}/readyz"),
    };
    let service = Service::new(&Home::locate().unwrap(), circle.folder(), spec).unwrap();
    service.start().unwrap();
    let begun = Instant::now();
    loop {
        let lines = service.log_lines().unwrap_or_default();
        if lines.iter().any(|line| line.to_string().contains(wanted)) {
            break;
        }
        assert!(begun.elapsed() < LIMIT, "{program} {changes:?}: {wanted} is not in: {lines:#?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    service.kill();
}
