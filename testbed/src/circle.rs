//! The whole circle on the real parts: databases, topics, schemas, and every process of ours.
//!
//! ```text
//! migrate payments, make tokens | migrate executor | set up topics and schemas
//!   -> psp-simulator, executor, relays of both outboxes, payment-service -> all ready
//! ```
//!
//! A circle of a test has databases, topics and consumer groups of its own; the one of `testbed run` has the names that
//! an operator expects.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::processes::{Service, Spec, binary, run_once};
use crate::stack::home::Home;
use crate::stack::{OWNER, Server, Stack, TestDatabase, free_port};

const REQUESTS_TOPIC: &str = "payment-order-requests";
const RESULTS_TOPIC: &str = "psp-result-updates";
const STOP_LIMIT: Duration = Duration::from_secs(20);
/// Secrets of a circle, known to both sides of it and to nobody else.
const STRIPE_WEBHOOK_SECRET: &str = "whsec_bG9jYWwtdGVzdGJlZC1zZWNyZXQ";
const ADYEN_HMAC_KEY: &str = "44782DEF547AAA06C910C43932B1EB0C71FC68D9D0C057550C48EC2ACF6BA056";
const ADYEN_WEBHOOK_USER: &str = "adyen";
const ADYEN_WEBHOOK_PASSWORD: &str = "local-password";
const SCHEMA_FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../schema");

/// The real parts that a circle stands on: the shared ones, or some of a test's own, which it may take away and bring back.
#[derive(Clone, Debug)]
pub struct Ground {
    /// PostgreSQL.
    pub server: Server,
    /// `host:port` of the broker.
    pub kafka_bootstrap: String,
    /// The base of the registry's Confluent API.
    pub registry_url: String,
    /// Goes to the names of topics and groups.
    pub suffix: String,
}

/// What may differ between circles.
#[derive(Clone, Debug)]
pub struct Options {
    /// Databases, topics and groups of its own; otherwise the plain names.
    pub isolated: bool,
    /// Where logs go. Without one they are in a private folder, and go with the circle unless a test fails.
    pub folder: Option<PathBuf>,
    /// Relays per outbox: one leads, the others stand by.
    pub relays: usize,
    /// Executors, which share the orders.
    pub executors: usize,
    /// How long an executor waits for the PSP.
    pub psp_timeout: Duration,
    /// How long the simulator takes over its slow token.
    pub slow: Duration,
    /// Which log lines are written.
    pub log: String,
    /// Webhooks of the PSPs, on top of what is asked for and answered; with these tricks, see the simulator's `WEBHOOK_MODE`.
    pub webhooks: Option<String>,
    /// Where the processes export their spans to, if they are to.
    pub otlp_endpoint: Option<String>,
    /// Environment for single processes, on top of what the circle gives: `(process, variable, value)`. `executor` is all of them.
    pub environment: Vec<(String, String, String)>,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            isolated: true,
            folder: None,
            relays: 1,
            executors: 1,
            psp_timeout: Duration::from_secs(2),
            slow: Duration::from_millis(700),
            log: "info".to_owned(),
            webhooks: None,
            otlp_endpoint: None,
            environment: Vec::new(),
        }
    }
}

/// A running circle. Its processes end with it, at once; [`Circle::shutdown`] ends them in order.
#[derive(Debug)]
pub struct Circle {
    /// Speaks Stripe's and Adyen's protocols and keeps the ledger of charges, in memory: killing it loses the truth.
    pub simulator: Service,
    /// Take requests to the PSPs.
    pub executors: Vec<Service>,
    /// The HTTP API, and the consumer of results.
    pub payment_service: Service,
    /// Relays of the database `payments`: requests.
    pub request_relays: Vec<Service>,
    /// Relays of the database `executor`: results.
    pub result_relays: Vec<Service>,
    /// The payment service's database.
    pub payments: TestDatabase,
    /// The executor's database.
    pub executions: TestDatabase,
    /// The topic of requests.
    pub requests_topic: String,
    /// The topic of results.
    pub results_topic: String,
    /// The group that the payment service consumes results in.
    pub results_group: String,
    /// Base of the payment service's API.
    pub api_url: String,
    /// Base of the simulator.
    pub simulator_url: String,
    /// What a merchant sends to the API as its bearer token.
    pub api_token: String,
    /// What an operator sends.
    pub operator_token: String,
    folder: PathBuf,
    remove_folder: bool,
}

/// What every step of the start needs to know.
struct Plan<'a> {
    home: Home,
    ground: Ground,
    options: &'a Options,
    folder: PathBuf,
    suffix: String,
    events: PathBuf,
    payments: TestDatabase,
    executions: TestDatabase,
    simulator: String,
    /// Where the first executors receive webhooks of Stripe and of Adyen.
    webhooks: [String; 2],
    api: String,
}

/// Made by the payment service's own command, as anybody's are.
struct Tokens {
    merchant: String,
    operator: String,
}

impl Circle {
    /// Starts everything and waits until all of it is ready.
    pub async fn start(stack: &Stack, options: &Options) -> Result<Circle> {
        let ground = Ground {
            server: stack.server(),
            kafka_bootstrap: stack.kafka_bootstrap(),
            registry_url: stack.registry_url(),
            suffix: if options.isolated { stack.unique("") } else { String::new() },
        };
        let circle = Circle::prepare(ground, options).await?;
        for service in circle.services() {
            service.start()?;
        }
        futures::future::try_join_all(circle.services().map(Service::wait_ready)).await?;
        Ok(circle)
    }

    /// Makes databases, topics, schemas and tokens, for which the parts must be there; starts nothing.
    pub async fn prepare(ground: Ground, options: &Options) -> Result<Circle> {
        let plan = Plan::new(ground, options).await?;
        let ready = async {
            plan.migrate(&plan.payments, "payment-service", "payment_service").await?;
            plan.tokens().await
        };
        let (tokens, (), ()) =
            tokio::try_join!(ready, plan.migrate(&plan.executions, "executor", "executor"), plan.set_up())?;
        plan.services(tokens)
    }

    /// Every process, in the order in which data reaches them.
    pub fn services(&self) -> impl Iterator<Item = &Service> {
        std::iter::once(&self.simulator)
            .chain(std::iter::once(&self.payment_service))
            .chain(&self.request_relays)
            .chain(&self.executors)
            .chain(&self.result_relays)
    }

    /// Where the logs are.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// SIGTERM to all, and waits. Fails when one of them did not run any more, was slow, or did not end with status 0.
    pub async fn shutdown(&self) -> Result<()> {
        let stopping = self.services().map(|service| async move {
            if !service.running() {
                bail!("{} had ended before; its log is {}", service.name(), service.log().display());
            }
            let status = service.terminate(STOP_LIMIT).await?;
            if !status.success() {
                bail!("{} ended with {status}; its log is {}", service.name(), service.log().display());
            }
            Ok(())
        });
        let outcomes = futures::future::join_all(stopping).await;
        outcomes.into_iter().collect()
    }
}

impl Drop for Circle {
    fn drop(&mut self) {
        for service in self.services() {
            service.kill();
        }
        if self.remove_folder && !std::thread::panicking() {
            fs::remove_dir_all(&self.folder).ok();
        }
    }
}

impl<'a> Plan<'a> {
    async fn new(ground: Ground, options: &'a Options) -> Result<Plan<'a>> {
        let home = Home::locate()?;
        let folder = match &options.folder {
            Some(folder) => folder.clone(),
            None => home.private_folder("circle")?,
        };
        fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
        let (server, suffix) = (ground.server, ground.suffix.clone());
        let (payments, executions) = if options.isolated {
            let databases = tokio::try_join!(server.database("payments"), server.database("executor"))?;
            (databases.0, databases.1)
        } else {
            // One after the other: two CREATE DATABASE at once read the same template.
            let payments = server.named_database("payments").await?;
            (payments, server.named_database("executor").await?)
        };
        let catalogue = Path::new(SCHEMA_FOLDER).join("events.toml");
        let text = fs::read_to_string(&catalogue).with_context(|| format!("read {}", catalogue.display()))?;
        let events = folder.join("events.toml");
        fs::write(&events, catalogue_for(&text, &suffix)).context("write events.toml")?;
        Ok(Plan {
            home,
            ground,
            options,
            folder,
            suffix,
            events,
            payments,
            executions,
            simulator: format!("127.0.0.1:{}", free_port()?),
            webhooks: [format!("127.0.0.1:{}", free_port()?), format!("127.0.0.1:{}", free_port()?)],
            api: format!("127.0.0.1:{}", free_port()?),
        })
    }

    /// The outbox first: the service's own migration builds on it.
    async fn migrate(&self, database: &TestDatabase, service: &str, role: &str) -> Result<()> {
        let environment =
            self.environment(&format!("migrate-{service}"), &[("DATABASE_URL", database.url(OWNER))]);
        let outbox = [
            "migrate",
            "--writer",
            role,
            "--relay",
            "relay",
            "--operator",
            "operator",
            "--operator",
            "console",
        ];
        run_once(&binary("outbox-relay")?, &outbox, &environment).await?;
        // Each knows its readers; the payment service knows who of them may ask for something, too.
        let (operator, console) =
            if service == "payment-service" { ("--operator", "--console") } else { ("--reader", "--reader") };
        let own = ["migrate", "--service", role, operator, "operator", console, "console"];
        run_once(&binary(service)?, &own, &environment).await?;
        Ok(())
    }

    /// New tokens; those of an earlier circle on the same database are revoked.
    async fn tokens(&self) -> Result<Tokens> {
        let environment = self.environment("token", &[("DATABASE_URL", self.payments.url("operator"))]);
        let program = binary("payment-service")?;
        let token = async |caller: &str, role: &str| {
            if !self.options.isolated {
                let known =
                    run_once(&program, &["token", "list", "--caller", caller, "--json"], &environment)
                        .await?;
                let known: Vec<serde_json::Value> =
                    serde_json::from_str(&known).context("the tokens' list")?;
                if known.iter().any(|token| token["revoked_at"].is_null()) {
                    run_once(&program, &["token", "revoke", "--caller", caller], &environment).await?;
                }
            }
            let create = ["token", "create", "--caller", caller, "--role", role];
            let printed = run_once(&program, &create, &environment).await?;
            anyhow::Ok(printed.trim_end().to_owned())
        };
        let (merchant, operator) =
            tokio::try_join!(token("local", "merchant"), token("local-operator", "operator"))?;
        Ok(Tokens { merchant, operator })
    }

    async fn set_up(&self) -> Result<()> {
        let environment = self.environment("setup", &self.kafka_and_registry());
        run_once(&binary("outbox-relay")?, &["setup"], &environment).await.map(|_| ())
    }

    fn services(self, tokens: Tokens) -> Result<Circle> {
        let (requests_topic, results_topic) =
            (format!("{REQUESTS_TOPIC}{}", self.suffix), format!("{RESULTS_TOPIC}{}", self.suffix));
        let results_group = format!("payment-service{}", self.suffix);
        Ok(Circle {
            simulator: self.simulator()?,
            executors: self.executors(&requests_topic)?,
            payment_service: self.payment_service(&results_topic, &results_group)?,
            request_relays: self.relays("requests", &self.payments, "/payment-service")?,
            result_relays: self.relays("results", &self.executions, "/executor")?,
            requests_topic,
            results_topic,
            results_group,
            api_url: format!("http://{}", self.api),
            simulator_url: format!("http://{}", self.simulator),
            api_token: tokens.merchant,
            operator_token: tokens.operator,
            payments: self.payments,
            executions: self.executions,
            remove_folder: self.options.folder.is_none(),
            folder: self.folder,
        })
    }

    fn simulator(&self) -> Result<Service> {
        let slow = format!("{}ms", self.options.slow.as_millis());
        let mut environment = vec![("LISTEN", self.simulator.clone()), ("SLOW", slow)];
        if let Some(mode) = &self.options.webhooks {
            // The PSPs send to one executor each, whoever has made the call. A second one, where there is one, takes Adyen's.
            let [stripe, adyen] = &self.webhooks;
            let adyen = if self.options.executors > 1 { adyen } else { stripe };
            environment.extend([
                ("STRIPE_WEBHOOK_URL", format!("http://{stripe}/webhooks/stripe")),
                ("STRIPE_WEBHOOK_SECRET", STRIPE_WEBHOOK_SECRET.to_owned()),
                ("ADYEN_WEBHOOK_URL", format!("http://{adyen}/webhooks/adyen")),
                ("ADYEN_WEBHOOK_HMAC_KEY", ADYEN_HMAC_KEY.to_owned()),
                ("ADYEN_WEBHOOK_USER", ADYEN_WEBHOOK_USER.to_owned()),
                ("ADYEN_WEBHOOK_PASSWORD", ADYEN_WEBHOOK_PASSWORD.to_owned()),
                ("WEBHOOK_MODE", mode.clone()),
            ]);
        }
        let ready = format!("http://{}/livez", self.simulator);
        self.service("psp-simulator", "psp-simulator", &[], &environment, ready)
    }

    fn executors(&self, requests_topic: &str) -> Result<Vec<Service>> {
        let count = self.options.executors;
        // One alone needs no number.
        let name = |number| if count == 1 { "executor".to_owned() } else { format!("executor-{number}") };
        (1..=count).map(|number| self.executor(&name(number), number, requests_topic)).collect()
    }

    fn executor(&self, name: &str, number: usize, requests_topic: &str) -> Result<Service> {
        let mut environment = self.kafka_and_registry();
        environment.extend([
            ("DATABASE_URL", self.executions.url("executor")),
            ("REQUESTS_TOPIC", requests_topic.to_owned()),
            ("CONSUMER_GROUP", format!("executor{}", self.suffix)),
            // It comes back under the same name: its partitions are its own again at once.
            ("KAFKA_PROPERTIES", format!("group.instance.id={name}")),
            ("STRIPE_BASE_URL", format!("http://{}", self.simulator)),
            ("STRIPE_SECRET_KEY", "sk_test_local".to_owned()),
            ("ADYEN_BASE_URL", format!("http://{}/v71", self.simulator)),
            ("ADYEN_API_KEY", "local-key".to_owned()),
            ("ADYEN_MERCHANT_ACCOUNT", "LocalMerchant".to_owned()),
            ("PSP_TIMEOUT", format!("{}ms", self.options.psp_timeout.as_millis())),
        ]);
        if let Some(listen) = self.webhooks.get(number - 1).filter(|_| self.options.webhooks.is_some()) {
            environment.extend([
                ("WEBHOOKS_LISTEN", listen.clone()),
                ("STRIPE_WEBHOOK_SECRETS", STRIPE_WEBHOOK_SECRET.to_owned()),
                ("ADYEN_HMAC_KEYS", ADYEN_HMAC_KEY.to_owned()),
                ("ADYEN_WEBHOOK_AUTH", format!("{ADYEN_WEBHOOK_USER}:{ADYEN_WEBHOOK_PASSWORD}")),
            ]);
        }
        self.with_admin(name, "executor", environment)
    }

    fn payment_service(&self, results_topic: &str, results_group: &str) -> Result<Service> {
        let mut environment = self.kafka_and_registry();
        environment.extend([
            ("DATABASE_URL", self.payments.url("payment_service")),
            ("CONSOLE_DATABASE_URL", self.payments.url("console")),
            ("EXECUTOR_DATABASE_URL", self.executions.url("console")),
            ("LISTEN", self.api.clone()),
            ("RESULTS_TOPIC", results_topic.to_owned()),
            ("CONSUMER_GROUP", results_group.to_owned()),
        ]);
        self.with_admin("payment-service", "payment-service", environment)
    }

    fn relays(&self, what: &str, database: &TestDatabase, source: &str) -> Result<Vec<Service>> {
        let relay = |number| {
            let mut environment = self.kafka_and_registry();
            environment.push(("DATABASE_URL", database.url("relay")));
            environment.push(("EVENT_SOURCE", source.to_owned()));
            self.with_admin(&format!("relay-{what}-{number}"), "outbox-relay", environment)
        };
        (1..=self.options.relays).map(relay).collect()
    }

    fn kafka_and_registry(&self) -> Vec<(&'static str, String)> {
        vec![
            ("KAFKA_BOOTSTRAP", self.ground.kafka_bootstrap.clone()),
            ("SCHEMA_REGISTRY_URL", self.ground.registry_url.clone()),
            ("EVENTS", self.events.display().to_string()),
        ]
    }

    fn with_admin(
        &self,
        name: &str,
        program: &str,
        mut environment: Vec<(&'static str, String)>,
    ) -> Result<Service> {
        let admin = format!("127.0.0.1:{}", free_port()?);
        let ready = format!("http://{admin}/readyz");
        environment.push(("ADMIN_LISTEN", admin));
        if let Some(endpoint) = &self.options.otlp_endpoint {
            environment.push(("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.clone()));
            // Whoever looks at them does not want to wait for five seconds.
            environment.push(("OTEL_BSP_SCHEDULE_DELAY", "200".to_owned()));
        }
        self.service(name, program, &["run"], &environment, ready)
    }

    fn service(
        &self,
        name: &str,
        program: &str,
        arguments: &[&str],
        environment: &[(&'static str, String)],
        ready_url: String,
    ) -> Result<Service> {
        let spec = Spec {
            name: name.to_owned(),
            program: binary(program)?,
            arguments: arguments.iter().map(|&argument| argument.to_owned()).collect(),
            environment: self.environment(name, environment),
            ready_url,
        };
        Service::new(&self.home, &self.folder, spec)
    }

    fn environment(&self, process: &str, given: &[(&str, String)]) -> Vec<(String, String)> {
        let common = [("LOG", self.options.log.clone())];
        let given = common.iter().chain(given).map(|(name, value)| ((*name).to_owned(), value.clone()));
        let meant = |wanted: &str| {
            process.strip_prefix(wanted).is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
        };
        let special: Vec<_> =
            self.options.environment.iter().filter(|(wanted, _, _)| meant(wanted)).collect();
        // A secret in a file stands for the one that the circle would give.
        let in_a_file =
            |name: &str| special.iter().any(|(_, other, _)| other.strip_suffix("_FILE") == Some(name));
        let given = given.filter(|(name, _)| !in_a_file(name));
        given.chain(special.iter().map(|(_, name, value)| (name.clone(), value.clone()))).collect()
    }
}

/// The catalogue with topics of this circle. Its schemas stay where they are.
fn catalogue_for(text: &str, suffix: &str) -> String {
    text.replace(REQUESTS_TOPIC, &format!("{REQUESTS_TOPIC}{suffix}"))
        .replace(RESULTS_TOPIC, &format!("{RESULTS_TOPIC}{suffix}"))
        .replace("\"avro/", &format!("\"{SCHEMA_FOLDER}/avro/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_circle_has_topics_of_its_own_and_the_schemas_of_all() {
        let text = "[topics.psp-result-updates]\n[topics.\"psp-result-updates.dlq\"]\n[events.E]\ntopic = \"payment-order-requests\"\nschema = \"avro/x.avsc\"\n";
        let own = catalogue_for(text, "-7");
        assert!(own.contains("[topics.psp-result-updates-7]"), "{own}");
        assert!(own.contains("[topics.\"psp-result-updates-7.dlq\"]"), "{own}");
        assert!(own.contains("topic = \"payment-order-requests-7\""), "{own}");
        assert!(own.contains(&format!("schema = \"{SCHEMA_FOLDER}/avro/x.avsc\"")), "{own}");
        assert_eq!(catalogue_for("topic = \"psp-result-updates\"", ""), "topic = \"psp-result-updates\"");
    }
}
