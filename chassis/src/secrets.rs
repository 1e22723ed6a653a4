//! Secrets from files: every setting whose value is never shown (`hide_env_values`) can stand in a file instead, which `NAME_FILE` names.
//!
//! A secret in the environment is read by whoever may look at the process or its container; a file has an owner and a mode, and is what
//! orchestrators hand secrets over in.

use std::{ffi::OsString, io::Read as _, path::Path};

use clap::{Arg, ArgMatches, Command, Parser};

/// A secret is a line; a file that is larger is another one.
const FILE_MAX_BYTES: u64 = 64 * 1024;

/// Reads the command line, the environment, and the files that the environment names. Ends the process with a message if they do not fit,
/// as `clap` does.
pub fn parse<C: Parser>() -> C {
    let (mut command, matches) = read_all(C::command());
    C::from_arg_matches(&matches).unwrap_or_else(|error| error.format(&mut command).exit())
}

/// The same, before anything is made of it.
pub(crate) fn read_all(command: Command) -> (Command, ArgMatches) {
    let command = explained(command);
    let given: Vec<OsString> = std::env::args_os().collect();
    let given = match with_files(&command, given, &|name| std::env::var_os(name)) {
        Ok(given) => given,
        Err(problem) => command.clone().error(clap::error::ErrorKind::ValueValidation, problem).exit(),
    };
    let matches = command.clone().get_matches_from(given);
    (command, matches)
}

/// Whether the setting stands in a file, which the environment names.
pub(crate) fn in_file(argument: &Arg) -> bool {
    let named = |name| std::env::var_os(format!("{name}_FILE")).is_some_and(|path| !path.is_empty());
    secret(argument).is_some_and(named)
}

/// The environment variable of a setting that may stand in a file.
fn secret(argument: &Arg) -> Option<&str> {
    argument.get_env().filter(|_| argument.is_hide_env_values_set())?.to_str()
}

/// Says so in the help.
fn explained(command: Command) -> Command {
    let explain = |argument: Arg| {
        let Some(name) = secret(&argument).map(str::to_owned) else { return argument };
        let help = argument.get_help().map(ToString::to_string).unwrap_or_default();
        let help = format!("{}. A file can hold it, which {name}_FILE names", help.trim_end_matches('.'));
        argument.help(help)
    };
    command.mut_args(explain).mut_subcommands(explained)
}

/// The arguments, and behind them the secrets of the subcommand that they choose, read from their files. They are arguments within this
/// process alone: nobody else sees them.
fn with_files(
    command: &Command,
    mut given: Vec<OsString>,
    variable: &dyn Fn(&str) -> Option<OsString>,
) -> Result<Vec<OsString>, String> {
    let mut chosen = command;
    for word in given.iter().skip(1) {
        chosen = word.to_str().and_then(|word| chosen.find_subcommand(word)).unwrap_or(chosen);
    }
    for argument in chosen.get_arguments() {
        let (Some(name), Some(flag)) = (secret(argument), argument.get_long()) else { continue };
        let file = format!("{name}_FILE");
        let Some(path) = variable(&file).filter(|path| !path.is_empty()) else { continue };
        if variable(name).is_some() {
            return Err(format!("both {name} and {file} are set: one of them is enough"));
        }
        let path = Path::new(&path);
        let text = read(path).map_err(|reason| format!("{file} names {}: {reason}", path.display()))?;
        given.push(format!("--{flag}={text}").into());
    }
    Ok(given)
}

/// The text of the file, without the line end that editors leave.
fn read(path: &Path) -> Result<String, String> {
    let mut text = String::new();
    let file = std::fs::File::open(path).map_err(|error| error.to_string())?;
    let read = file.take(FILE_MAX_BYTES + 1).read_to_string(&mut text).map_err(|error| error.to_string())?;
    if u64::try_from(read).is_ok_and(|read| read > FILE_MAX_BYTES) {
        return Err(format!("more than {FILE_MAX_BYTES} bytes are no secret"));
    }
    let text = text.trim_end_matches(['\r', '\n']);
    if text.is_empty() { Err("it is empty".to_owned()) } else { Ok(text.to_owned()) }
}

#[cfg(test)]
mod tests {
    use clap::{Args, CommandFactory as _, Subcommand};
    use secrecy::{ExposeSecret as _, SecretString};

    use super::*;

    #[derive(Parser, Debug)]
    struct Cli {
        #[command(subcommand)]
        command: Sub,
    }

    #[derive(Subcommand, Debug)]
    enum Sub {
        Run(Settings),
        Stop,
    }

    #[derive(Args, Debug)]
    struct Settings {
        /// Where it is.
        #[arg(long, env = "SECRETS_TEST_URL", hide_env_values = true)]
        url: SecretString,
        /// Several.
        #[arg(long = "key", env = "SECRETS_TEST_KEYS", value_delimiter = ',', hide_env_values = true)]
        keys: Vec<String>,
        /// Known to all.
        #[arg(long, env = "SECRETS_TEST_NAME", default_value = "x")]
        name: String,
    }

    fn parsed(words: &[&str], variables: &[(&str, &str)]) -> Result<Cli, String> {
        let variable = |name: &str| {
            variables.iter().find(|(known, _)| *known == name).map(|(_, value)| OsString::from(value))
        };
        let given = words.iter().map(OsString::from).collect();
        let given = with_files(&Cli::command(), given, &variable)?;
        Cli::try_parse_from(given).map_err(|error| error.to_string())
    }

    fn file(text: &str) -> String {
        let path = std::env::temp_dir().join(format!("secret-{}", uuid::Uuid::now_v7()));
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    }

    #[test]
    fn a_secret_stands_in_the_file_that_the_environment_names() {
        let (url, keys) = (file("postgres://u:p=x y@h/d\r\n"), file("a,b\n"));
        let files = [("SECRETS_TEST_URL_FILE", url.as_str()), ("SECRETS_TEST_KEYS_FILE", keys.as_str())];
        let Sub::Run(settings) = parsed(&["x", "run", "--name", "n"], &files).unwrap().command else {
            panic!("run was chosen")
        };
        assert_eq!(settings.url.expose_secret(), "postgres://u:p=x y@h/d");
        assert_eq!((settings.keys, settings.name.as_str()), (vec!["a".to_owned(), "b".to_owned()], "n"));
        // What the other subcommand does not know is not given to it.
        parsed(&["x", "stop"], &files).unwrap();
    }

    #[test]
    fn what_does_not_fit_is_named_and_never_shown() {
        let (secret, empty) = (file("hunter2"), file("\n"));
        let refused = |variables: &[(&str, &str)]| parsed(&["x", "run"], variables).unwrap_err();
        for (variables, wanted) in [
            (
                vec![("SECRETS_TEST_URL_FILE", secret.as_str()), ("SECRETS_TEST_URL", "y")],
                "both SECRETS_TEST_URL",
            ),
            (
                vec![("SECRETS_TEST_URL_FILE", "/none/such")],
                "SECRETS_TEST_URL_FILE names /none/such: No such file",
            ),
            (vec![("SECRETS_TEST_URL_FILE", empty.as_str())], "it is empty"),
            // Only what is never shown anyway may be read from a file.
            (vec![("SECRETS_TEST_NAME_FILE", secret.as_str())], "--url"),
        ] {
            let problem = refused(&variables);
            assert!(problem.contains(wanted) && !problem.contains("hunter2"), "{wanted}: {problem}");
        }
    }

    #[test]
    fn the_help_says_where_a_secret_may_stand() {
        let mut run = explained(Cli::command()).find_subcommand("run").unwrap().clone();
        let help = run.render_long_help().to_string();
        assert!(help.contains("SECRETS_TEST_URL_FILE") && !help.contains("SECRETS_TEST_NAME_FILE"), "{help}");
    }
}
