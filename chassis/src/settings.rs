//! The command line of a process: settings from flags and the environment, and `--check-config`, which shows what they come to.
//!
//! What is shown is read off the command line's own description, so that no setting can be left out. A setting whose variable is hidden
//! from the help (`hide_env_values`) is a secret: of it nothing is shown but that it is set, and of a database URL all but the password.

use std::{
    fmt::Write as _, net::SocketAddr, ops::RangeInclusive, process::ExitCode, str::FromStr as _,
    time::Duration,
};

use anyhow::{Context as _, anyhow, bail, ensure};
use axum::http::Uri;
use clap::{Arg, ArgMatches, Args, Command, CommandFactory, FromArgMatches, parser::ValueSource};
use sqlx::postgres::PgConnectOptions;

use crate::{
    config::{KafkaConfig, PostgresConfig, RegistryConfig},
    postgres::connect_options,
    secrets,
};

/// What every command line has.
#[derive(Args, Clone, Copy, Debug)]
pub struct CheckConfig {
    /// Print the settings that the command would run with, secrets hidden, check them against each other, and end: exit code 0 if they
    /// fit, 2 and the reason if not. Connects to nothing.
    #[arg(long, global = true)]
    pub check_config: bool,
}

/// Reads the command line. With `--check-config` it is shown, and checked by `check`, and the exit code is the answer.
pub fn parse<A>(check: impl FnOnce(&A) -> anyhow::Result<()>) -> Result<A, ExitCode>
where
    A: CommandFactory + FromArgMatches,
{
    let (mut command, mut matches) = secrets::read_all(A::command());
    let shown = matches.get_flag("check_config").then(|| effective(&mut command, &matches));
    let arguments =
        A::from_arg_matches_mut(&mut matches).unwrap_or_else(|error| error.format(&mut command).exit());
    let Some(shown) = shown else { return Ok(arguments) };
    let code = match check(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(reason) => {
            #[expect(clippy::print_stderr, reason = "it is an answer, not a log")]
            {
                eprintln!("refused: {reason:#}");
            }
            ExitCode::from(2)
        }
    };
    #[expect(clippy::print_stdout, reason = "it is an answer, not a log")]
    {
        print!("{shown}");
    }
    Err(code)
}

/// The settings of the command that was named, one a line, as a shell or a container would set them, and where each comes from.
fn effective(command: &mut Command, matches: &ArgMatches) -> String {
    command.build();
    let (mut command, mut matches, mut words) = (&*command, matches, vec![command.get_name().to_owned()]);
    while let Some((name, inner)) = matches.subcommand() {
        let Some(found) = command.find_subcommand(name) else { break };
        (command, matches) = (found, inner);
        words.push(name.to_owned());
    }
    let mut text = format!("# {}\n", words.join(" "));
    for argument in command.get_arguments().filter(|argument| is_setting(argument)) {
        let name = argument
            .get_env()
            .map(|name| name.to_string_lossy().into_owned())
            .or_else(|| argument.get_long().map(|long| format!("--{long}")))
            .unwrap_or_else(|| argument.get_id().to_string());
        let id = argument.get_id().as_str();
        let values: Vec<String> = matches
            .try_get_raw(id)
            .ok()
            .flatten()
            .map(|values| values.map(|value| value.to_string_lossy().into_owned()).collect())
            .unwrap_or_default();
        let source = match matches.value_source(id) {
            _ if secrets::in_file(argument) => "file",
            Some(ValueSource::DefaultValue) => "default",
            Some(ValueSource::EnvVariable) => "environment",
            Some(ValueSource::CommandLine) => "flag",
            Some(_) | None => "not set",
        };
        let value = if argument.is_hide_env_values_set() { hidden(&values) } else { values.join(",") };
        // Writing to a string does not fail.
        writeln!(text, "{name}={value:<40} # {source}").ok();
    }
    text
}

/// What the help of `run` leaves open: settings without a word of explanation or a variable, and such that may be left out without it being
/// said what holds then. For tests: the help is the reference.
pub fn undocumented(mut command: Command) -> Vec<String> {
    command.build();
    let Some(run) = command.find_subcommand("run") else { return vec!["there is no run".to_owned()] };
    let says_what_holds = |argument: &Arg, help: &str| {
        let words = ["without", "default", "not given", "needed", "further"];
        argument.is_required_set()
            || !argument.get_default_values().is_empty()
            || !argument.get_action().takes_values()
            || words.iter().any(|word| help.to_lowercase().contains(word))
    };
    let settings = run.get_arguments().filter(|argument| is_setting(argument));
    let open = settings.filter_map(|argument| {
        let help = argument
            .get_long_help()
            .or_else(|| argument.get_help())
            .map(ToString::to_string)
            .unwrap_or_default();
        let missing = if help.is_empty() {
            "no explanation"
        } else if argument.get_env().is_none() && argument.get_action().takes_values() {
            "no variable"
        } else if !says_what_holds(argument, &help) {
            "no word on what holds without it"
        } else {
            return None;
        };
        Some(format!("{}: {missing}", argument.get_id()))
    });
    open.collect()
}

/// Not what only asks for something else than running.
fn is_setting(argument: &Arg) -> bool {
    !matches!(argument.get_id().as_str(), "help" | "version" | "check_config")
}

/// What may be seen of secrets.
fn hidden(values: &[String]) -> String {
    let shown = values.iter().map(|value| match PgConnectOptions::from_str(value) {
        Ok(options) if value.starts_with("postgres") => format!(
            "postgres://{}:[hidden]@{}:{}/{}",
            options.get_username(),
            options.get_host(),
            options.get_port(),
            options.get_database().unwrap_or_default()
        ),
        // A librdkafka property: what it is called is no secret.
        _ => match value.split_once('=') {
            Some((name, _)) if name.contains('.') => format!("{name}=[hidden]"),
            _ if value.is_empty() => String::new(),
            _ => "[hidden]".to_owned(),
        },
    });
    shown.collect::<Vec<_>>().join(",")
}

/// Checks what PostgreSQL is reached by.
pub fn check_postgres(config: &PostgresConfig) -> anyhow::Result<()> {
    connect_options(&config.database_url, "check").context("DATABASE_URL")?;
    ensure!(
        (1..=1_000).contains(&config.database_pool_size),
        "DATABASE_POOL_SIZE is {}; it must be between 1 and 1000",
        config.database_pool_size
    );
    Ok(())
}

/// Checks what Kafka is reached by. `ours` are properties that no operator may set, each with the reason: what this process promises
/// rests on them.
pub fn check_kafka(config: &KafkaConfig, ours: &[(&str, &str)]) -> anyhow::Result<()> {
    let servers: Vec<&str> = config.bootstrap.split(',').map(str::trim).collect();
    for server in &servers {
        let port =
            server.rsplit_once(':').filter(|(host, _)| !host.is_empty()).map(|(_, port)| port.parse::<u16>());
        ensure!(
            matches!(port, Some(Ok(1..))),
            "KAFKA_BOOTSTRAP has {server:?}; expected host:port, several of them separated by commas"
        );
    }
    for property in &config.properties {
        if let Some((name, why)) = ours.iter().find(|(name, _)| *name == property.name) {
            bail!("KAFKA_PROPERTIES sets {name}: {why}");
        }
    }
    config.validate()
}

/// Checks what the schema registry is reached by.
pub fn check_registry(config: &RegistryConfig) -> anyhow::Result<()> {
    // The URL may have a password in it: it is not shown.
    let uri: Uri = config.schema_registry_url.parse().map_err(|_| {
        anyhow!("SCHEMA_REGISTRY_URL is not a URL; expected one such as http://registry:8081")
    })?;
    ensure!(
        matches!(uri.scheme_str(), Some("http" | "https")),
        "SCHEMA_REGISTRY_URL does not begin with http:// or https://"
    );
    config.credentials().map(drop)
}

/// Two ports of one process must not be the same. Port 0 is another one each time.
pub fn check_ports(one: (&str, SocketAddr), other: (&str, SocketAddr)) -> anyhow::Result<()> {
    let ((one, address), (other, beside)) = (one, other);
    let everywhere = address.ip().is_unspecified() || beside.ip().is_unspecified();
    let same =
        address.port() != 0 && address.port() == beside.port() && (address.ip() == beside.ip() || everywhere);
    ensure!(!same, "{one} and {other} are both {address}: a port is opened once");
    Ok(())
}

/// Checks that a time is within its bounds.
pub fn check_within(name: &str, value: Duration, bounds: RangeInclusive<Duration>) -> anyhow::Result<()> {
    ensure!(
        bounds.contains(&value),
        "{name} is {}; it must be between {} and {}",
        humantime::format_duration(value),
        humantime::format_duration(*bounds.start()),
        humantime::format_duration(*bounds.end())
    );
    Ok(())
}

/// What the options of a consumer may not be: offsets are committed after the database, and never by the client itself.
pub const OURS_OF_CONSUMERS: [(&str, &str); 4] = [
    (
        "enable.auto.commit",
        "offsets are committed once the database has what they stand for, and not by the client",
    ),
    (
        "enable.auto.offset.store",
        "offsets are committed once the database has what they stand for, and not by the client",
    ),
    (
        "auto.offset.reset",
        "where a group begins, and what an offset means that points nowhere, is not a matter of settings",
    ),
    ("group.id", "the group has a setting of its own, CONSUMER_GROUP"),
];

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    #[command(name = "process")]
    struct Cli {
        #[command(flatten)]
        check: CheckConfig,
        #[command(subcommand)]
        command: Sub,
    }

    #[derive(clap::Subcommand)]
    enum Sub {
        Run(Settings),
    }

    #[derive(Args)]
    struct Settings {
        #[command(flatten)]
        postgres: PostgresConfig,
        #[command(flatten)]
        kafka: KafkaConfig,
        #[command(flatten)]
        registry: RegistryConfig,
        #[arg(long, env = "PO_TEST_PAUSE", default_value = "5s", value_parser = humantime::parse_duration)]
        pause: Duration,
        #[arg(long, env = "PO_TEST_TOKEN", hide_env_values = true)]
        token: Option<String>,
    }

    fn arguments<'a>(more: &[&'a str]) -> Vec<&'a str> {
        let base = [
            "process",
            "run",
            "--database-url=postgres://ada:hunter2@db:5433/payments?sslpassword=hunter2",
            "--kafka-bootstrap=a:1,b:2",
            "--schema-registry-url=http://r:8081",
        ];
        base.into_iter().chain(more.iter().copied()).collect()
    }

    #[test]
    fn what_is_shown_is_everything_but_secrets() {
        let given = [
            "--check-config",
            "--token=hunter2",
            "--kafka-property=sasl.password=hunter2,client.rack=hunter2",
        ];
        let matches = Cli::command().get_matches_from(arguments(&given));
        assert!(matches.get_flag("check_config"));
        let shown = effective(&mut Cli::command(), &matches);
        assert!(!shown.contains("hunter2"), "{shown}");
        for line in [
            "# process run",
            "DATABASE_URL=postgres://ada:[hidden]@db:5433/payments # flag",
            "DATABASE_POOL_SIZE=10 # default",
            "KAFKA_BOOTSTRAP=a:1,b:2 # flag",
            "KAFKA_PROPERTIES=sasl.password=[hidden],client.rack=[hidden] # flag",
            "SCHEMA_REGISTRY_URL=http://r:8081 # flag",
            "PO_TEST_PAUSE=5s # default",
            "PO_TEST_TOKEN=[hidden] # flag",
        ] {
            let found =
                shown.lines().any(|shown| shown.split_whitespace().collect::<Vec<_>>().join(" ") == line);
            assert!(found, "no {line} in {shown}");
        }
        assert!(!shown.contains("check_config") && !shown.contains("help"), "{shown}");
    }

    #[test]
    fn what_cannot_be_reached_is_refused_by_its_name_and_without_its_password() {
        let settings = |more: &[&str]| {
            // Later flags do not replace earlier ones; so each is given once.
            let named =
                |flag: &&str| !more.iter().any(|more| more.split('=').next() == flag.split('=').next());
            let base: Vec<&str> = arguments(&[]).into_iter().filter(named).collect();
            let Cli { command: Sub::Run(settings), .. } =
                Cli::parse_from(base.into_iter().chain(more.iter().copied()));
            settings
        };
        let checked = |more: &[&str]| -> anyhow::Result<()> {
            let settings = settings(more);
            check_postgres(&settings.postgres)?;
            check_kafka(&settings.kafka, &OURS_OF_CONSUMERS)?;
            check_registry(&settings.registry)
        };
        checked(&["--kafka-property=group.instance.id=x"]).unwrap();
        for (wrong, named) in [
            ("--database-url=hunter2", "DATABASE_URL"),
            ("--database-pool-size=0", "DATABASE_POOL_SIZE"),
            ("--kafka-bootstrap=broker", "KAFKA_BOOTSTRAP"),
            ("--kafka-bootstrap=broker:9092,", "KAFKA_BOOTSTRAP"),
            ("--kafka-bootstrap=broker:0", "KAFKA_BOOTSTRAP"),
            ("--kafka-property=enable.auto.commit=true", "enable.auto.commit"),
            ("--kafka-property=group.id=x", "CONSUMER_GROUP"),
            ("--schema-registry-url=registry:8081", "SCHEMA_REGISTRY_URL"),
            ("--schema-registry-url=http://ada:hunter2@ x", "SCHEMA_REGISTRY_URL"),
        ] {
            let refused = format!("{:#}", checked(&[wrong]).unwrap_err());
            assert!(refused.contains(named) && !refused.contains("hunter2"), "{wrong}: {refused}");
        }
    }

    #[test]
    fn a_port_is_opened_once() {
        let at = |text: &str| text.parse::<SocketAddr>().unwrap();
        for (one, other, fits) in [
            ("127.0.0.1:1", "127.0.0.1:2", true),
            ("127.0.0.1:0", "127.0.0.1:0", true),
            ("127.0.0.1:1", "127.0.0.2:1", true),
            ("127.0.0.1:1", "127.0.0.1:1", false),
            ("0.0.0.0:1", "127.0.0.1:1", false),
        ] {
            assert_eq!(check_ports(("A", at(one)), ("B", at(other))).is_ok(), fits, "{one} {other}");
        }
    }
}
