//! Our own processes under full control: start, SIGTERM, SIGKILL, SIGSTOP, SIGCONT, restart, and what they say.
//!
//! The binaries are those beside the running executable, so that tests run what cargo has just built. Each process gets
//! the environment it is given and nothing of the shell's, an admin port that stays its own across restarts, and a
//! file for its log. A process ends with its [`Service`].

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::Signal;
use serde_json::Value;

use crate::stack::home::Home;
use crate::stack::{Owner, Part};

const READY_LIMIT: Duration = Duration::from_secs(30);
const ONCE_LIMIT: Duration = Duration::from_mins(2);
/// Of our environment: what a process needs to run at all, and what makes a panic readable.
const INHERITED: [&str; 4] = ["PATH", "HOME", "RUST_BACKTRACE", "LLVM_PROFILE_FILE"];

/// How to start one process.
#[derive(Clone, Debug)]
pub struct Spec {
    /// Names the process in messages, and its log file.
    pub name: String,
    /// Its executable, see [`binary`].
    pub program: PathBuf,
    /// Arguments.
    pub arguments: Vec<String>,
    /// Environment.
    pub environment: Vec<(String, String)>,
    /// Answers 200 when the process is ready.
    pub ready_url: String,
}

/// A process that can be killed and started again.
#[derive(Debug)]
pub struct Service {
    spec: Spec,
    part: Part,
}

impl Service {
    /// A process that logs into the folder. It is not started yet.
    pub fn new(home: &Home, folder: &Path, spec: Spec) -> Result<Service> {
        let part = Part::new(home, &spec.name, Owner::own()?, folder)?;
        Ok(Service { spec, part })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        self.part.name()
    }

    /// Starts it; [`Service::wait_ready`] says when it is ready.
    pub fn start(&self) -> Result<()> {
        self.start_with(&[])
    }

    /// Starts it with a further environment for this one life.
    pub fn start_with(&self, environment: &[(String, String)]) -> Result<()> {
        let mut command = command(&self.spec.program, &self.spec.arguments, &self.spec.environment);
        command.envs(environment.iter().map(|(name, value)| (name, value)));
        self.part.spawn(&mut command)?;
        Ok(())
    }

    /// Waits until it is ready. Fails with the end of its log when it ends before, or takes longer than 30 s.
    pub async fn wait_ready(&self) -> Result<()> {
        let daemon = self.part.current().with_context(|| format!("{} was never started", self.name()))?;
        let client = client()?;
        daemon.ready(READY_LIMIT, || answers(&client, &self.spec.ready_url)).await
    }

    /// Whether it says at this moment that it is ready.
    pub async fn ready(&self) -> bool {
        match client() {
            Ok(client) => answers(&client, &self.spec.ready_url).await,
            Err(_) => false,
        }
    }

    /// Whether it runs.
    pub fn running(&self) -> bool {
        self.part.running().is_some()
    }

    /// Whether it stands still after a SIGSTOP.
    pub fn stopped(&self) -> bool {
        self.part.running().is_some_and(|daemon| daemon.identity().stopped())
    }

    /// How its last life has ended; None while it runs, or if it was never started.
    pub fn ended(&self) -> Option<ExitStatus> {
        self.part.current()?.exited()
    }

    /// Its pid.
    pub fn pid(&self) -> Result<i32> {
        self.part.identity().map(|identity| identity.pid)
    }

    /// SIGTERM, and waits for its orderly end. The caller judges the status.
    pub async fn terminate(&self, limit: Duration) -> Result<ExitStatus> {
        self.part.stop(Signal::TERM, limit).await
    }

    /// SIGKILL. It is gone when this returns. Nothing happens when it does not run.
    pub fn kill(&self) {
        self.part.kill();
    }

    /// SIGSTOP: it stands still, and keeps its connections and locks.
    pub fn pause(&self) -> Result<()> {
        self.part.signal(Signal::STOP)
    }

    /// SIGCONT.
    pub fn resume(&self) -> Result<()> {
        self.part.signal(Signal::CONT)
    }

    /// Starts it again under the same addresses, after SIGKILL if it still runs, and waits until it is ready.
    pub async fn restart(&self) -> Result<()> {
        self.kill();
        self.start()?;
        self.wait_ready().await
    }

    /// What its own `healthcheck` says, under the same settings. An error has the reason that it gave.
    pub async fn healthcheck(&self) -> Result<()> {
        run_once(&self.spec.program, &["healthcheck"], &self.spec.environment).await.map(drop)
    }

    /// The file that it logs into. Restarts append to it.
    pub fn log(&self) -> &Path {
        self.part.log()
    }

    /// The base of the port that it is asked on: `/metrics`, `/readyz`.
    pub fn admin_url(&self) -> &str {
        self.spec.ready_url.rsplit_once('/').map_or(&self.spec.ready_url, |(base, _)| base)
    }

    /// What it has logged: every line that is JSON.
    pub fn log_lines(&self) -> Result<Vec<Value>> {
        let text =
            fs::read_to_string(self.log()).with_context(|| format!("read {}", self.log().display()))?;
        Ok(text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect())
    }

    /// A value of its `/metrics`, summed over the labels. `None` when there is no such metric.
    pub async fn metric(&self, name: &str) -> Result<Option<f64>> {
        let response =
            client()?.get(format!("{}/metrics", self.admin_url())).send().await.context("ask for metrics")?;
        let text =
            response.error_for_status().context("ask for metrics")?.text().await.context("read metrics")?;
        Ok(sum(&text, name))
    }
}

/// Runs a process to its end and returns what it wrote to stdout. Fails with what it wrote to stderr.
pub async fn run_once(
    program: &Path,
    arguments: &[&str],
    environment: &[(String, String)],
) -> Result<String> {
    let arguments: Vec<String> = arguments.iter().map(|&argument| argument.to_owned()).collect();
    let what = format!("{} {}", program.display(), arguments.join(" "));
    let mut command = tokio::process::Command::from(command(program, &arguments, environment));
    let run = command.stdin(Stdio::null()).kill_on_drop(true).output();
    let output = tokio::time::timeout(ONCE_LIMIT, run)
        .await
        .with_context(|| format!("{what} has not ended within {} s", ONCE_LIMIT.as_secs()))?
        .with_context(|| format!("start {what}"))?;
    if !output.status.success() {
        bail!("{what} failed ({})\n{}", output.status, String::from_utf8_lossy(&output.stderr).trim_end());
    }
    String::from_utf8(output.stdout).with_context(|| format!("{what} wrote something that is not text"))
}

/// One of our executables, from the folder that the running one was built into.
pub fn binary(name: &str) -> Result<PathBuf> {
    let own = env::current_exe().context("find the running executable")?;
    find_beside(&own, name).with_context(|| {
        format!(
            "the binary {name} is not built beside {}: run `cargo build --workspace --bins`",
            own.display()
        )
    })
}

/// Tests run from `debug/deps`, commands from `debug`.
fn find_beside(executable: &Path, name: &str) -> Option<PathBuf> {
    executable.ancestors().skip(1).take(2).map(|folder| folder.join(name)).find(|path| path.is_file())
}

fn command(program: &Path, arguments: &[String], environment: &[(String, String)]) -> Command {
    let mut command = Command::new(program);
    command.args(arguments).env_clear();
    command.envs(INHERITED.iter().filter_map(|name| Some((name, env::var_os(name)?))));
    command.envs(environment.iter().map(|(name, value)| (name, value)));
    command
}

fn client() -> Result<reqwest::Client> {
    reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(2)).build().context("build a client")
}

async fn answers(client: &reqwest::Client, url: &str) -> bool {
    client.get(url).send().await.is_ok_and(|response| response.status().is_success())
}

/// Prometheus text: `name{labels} value` or `name value`.
fn sum(text: &str, name: &str) -> Option<f64> {
    text.lines()
        .filter_map(|line| line.strip_prefix(name))
        .filter(|rest| rest.starts_with(['{', ' ']))
        .filter_map(|rest| rest.rsplit_once(' ')?.1.parse::<f64>().ok())
        .reduce(|total, value| total + value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn binaries_are_found_from_tests_and_commands_alike() {
        let folder = env::temp_dir().join(format!("testbed-bin-{}", uuid::Uuid::now_v7()));
        fs::create_dir_all(folder.join("deps")).unwrap();
        fs::write(folder.join("executor"), "").unwrap();
        for executable in ["deps/stack-1234", "testbed"] {
            assert_eq!(find_beside(&folder.join(executable), "executor"), Some(folder.join("executor")));
            assert_eq!(find_beside(&folder.join(executable), "relay"), None);
        }
        fs::remove_dir_all(folder).unwrap();
        let error = binary("never-built").unwrap_err().to_string();
        assert!(error.contains("cargo build --workspace --bins"), "{error}");
    }

    #[test]
    fn metrics_are_summed_over_labels_and_names_are_whole() {
        let text = "# HELP a_total x\na_total{s=\"x y\"} 2\na_total{s=\"z\"} 3\na_total_other 7\nb 1.5\n";
        assert_eq!(sum(text, "a_total"), Some(5.0));
        assert_eq!(sum(text, "b"), Some(1.5));
        assert_eq!(sum(text, "c"), None);
    }

    #[tokio::test]
    async fn a_failed_run_shows_what_it_said() {
        let error = run_once(Path::new("/bin/sh"), &["-c", "echo oh no >&2; exit 3"], &[]).await.unwrap_err();
        assert!(error.to_string().contains("oh no"), "{error}");
        let said = run_once(Path::new("/bin/sh"), &["-c", "echo $X"], &[("X".into(), "yes".into())]).await;
        assert_eq!(said.unwrap(), "yes\n");
    }

    fn shell(script: &str) -> (Service, PathBuf) {
        let folder = env::temp_dir().join(format!("testbed-service-{}", uuid::Uuid::now_v7()));
        let spec = Spec {
            name: "shell".to_owned(),
            program: "/bin/sh".into(),
            arguments: vec!["-c".to_owned(), script.to_owned()],
            environment: vec![("GIVEN".to_owned(), "yes".to_owned())],
            ready_url: "http://127.0.0.1:9/readyz".to_owned(),
        };
        (Service::new(&Home::at(&folder).unwrap(), &folder, spec).unwrap(), folder)
    }

    async fn said(service: &Service, count: usize) -> Vec<Value> {
        for _ in 0..500 {
            let lines = if service.log().exists() { service.log_lines().unwrap() } else { Vec::new() };
            if lines.len() >= count {
                return lines;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("{count} lines did not come");
    }

    #[tokio::test]
    async fn a_service_is_terminated_killed_paused_and_started_again() {
        let (service, folder) = shell(
            "trap 'exit 3' TERM; echo \"{\\\"given\\\":\\\"$GIVEN\\\",\\\"user\\\":\\\"$USER\\\"}\" >&2; \
             while :; do sleep 0.01; done",
        );
        assert!(service.pause().is_err() && service.pid().is_err());
        service.start().unwrap();
        let lines = said(&service, 1).await;
        assert_eq!((lines[0]["given"].as_str(), lines[0]["user"].as_str()), (Some("yes"), Some("")));
        assert!(service.start().is_err(), "two of them would fight over one port");
        service.pause().unwrap();
        assert!(service.running());
        service.resume().unwrap();
        assert_eq!(service.terminate(Duration::from_secs(20)).await.unwrap().code(), Some(3));
        assert!(!service.running());

        service.start().unwrap();
        said(&service, 2).await;
        let first = service.pid().unwrap();
        service.kill();
        service.kill();
        assert!(!service.running());
        service.start().unwrap();
        assert_ne!(service.pid().unwrap(), first);
        drop(service);
        fs::remove_dir_all(folder).unwrap();
    }

    #[tokio::test]
    async fn a_service_that_ends_early_is_reported_with_its_log() {
        let (service, folder) = shell("echo cannot bind >&2; exit 1");
        service.start().unwrap();
        let error = service.wait_ready().await.unwrap_err().to_string();
        assert!(error.contains("cannot bind") && error.contains("exit status: 1"), "{error}");
        drop(service);
        fs::remove_dir_all(folder).unwrap();
    }
}
