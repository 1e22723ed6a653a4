//! The parts' files: fetched once by Maven from `stack-pom.xml`, then never changed.
//!
//! They are put together in a folder of their own and renamed when complete, so a download that dies half-way is never
//! taken for a whole one. Maven checks every checksum (`-C`). Another pom is another folder.

use std::collections::VecDeque;
use std::fs;
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;
use uuid::Uuid;

use super::home::Home;
use super::java::Classes;
use super::kafka::Kafka;
use super::major::Major;
use super::postgres;
use super::records::Owner;
use super::registry::Registry;

const POM: &str = include_str!("../../stack-pom.xml");
/// Two downloads in a row on a slow line, for whoever waits for the first.
pub(super) const LOCK_LIMIT: Duration = Duration::from_hours(1);
/// The largest file has 142 MB: at 250 kB/s Maven is silent for this long.
const SILENCE_LIMIT: Duration = Duration::from_mins(10);
const REPORT_EVERY: Duration = Duration::from_secs(5);
const KEPT_LINES: usize = 40;

/// Where the files of the parts are.
#[derive(Clone, Debug)]
pub(super) struct Parts {
    folder: PathBuf,
}

impl Parts {
    /// The parts, downloaded now if they are not there yet.
    pub(super) async fn ready(home: &Home) -> Result<Parts> {
        let id = Uuid::new_v5(&Uuid::NAMESPACE_OID, POM.as_bytes()).simple().to_string();
        let parts = Parts { folder: home.parts().join(&id[..12]) };
        if parts.folder.exists() {
            return Ok(parts);
        }
        let _lock = home.lock("parts", LOCK_LIMIT).await?;
        if parts.folder.exists() {
            return Ok(parts);
        }
        postgres::check_enterable(&home.parts())?;
        require(&["mvn"], "maven", "Maven fetches PostgreSQL, Kafka and the registry").await?;
        require(&["xz", "tar"], "xz-utils", "the PostgreSQL archive is packed with xz").await?;
        let partial = home.parts().join(format!("{}.partial", &id[..12]));
        if partial.exists() {
            fs::remove_dir_all(&partial).context("remove a download that was cut off")?;
        }
        fs::create_dir_all(&partial).with_context(|| format!("create {}", partial.display()))?;
        fs::write(partial.join("pom.xml"), POM).context("write the pom")?;
        fetch(&partial, "PostgreSQL 15 and 18, Kafka 4.3 and Apicurio Registry 2.6", 231).await?;
        let complete = Parts { folder: partial.clone() };
        for major in Major::ALL {
            unpack_postgres(&complete.postgres(major)).await?;
        }
        complete.check()?;
        fs::rename(&partial, &parts.folder).context("move the parts to their place")?;
        if let Err(error) = parts.record_classes(home).await {
            say(&format!("every start will take some seconds longer: {error:#}"));
        }
        Ok(parts)
    }

    /// Starts and ends both JVMs once, so that every later start finds its classes loaded. The archive holds the paths of
    /// its jars, so it is made where they stay. Tried once: without it everything works, slower.
    async fn record_classes(&self, home: &Home) -> Result<()> {
        say("preparing a quick start of Kafka and the registry");
        let folder = home.private_folder("classes")?;
        let folders = ["kafka", "registry"].map(|part| folder.join(part));
        let owner = Owner::own()?;
        let archive = |part: &str| Classes::Record(self.folder.join(format!("{part}.jsa.partial")));
        let (kafka, registry) = tokio::try_join!(
            Kafka::start(home, self, &folders[0], owner, archive("kafka")),
            Registry::start(home, self, &folders[1], owner, archive("registry")),
        )?;
        tokio::try_join!(kafka.stop(), registry.stop())?;
        for part in ["kafka", "registry"] {
            let partial = self.folder.join(format!("{part}.jsa.partial"));
            fs::rename(partial, self.classes_path(part))
                .with_context(|| format!("no archive of {part}'s classes"))?;
        }
        drop((kafka, registry));
        fs::remove_dir_all(&folder).context("remove what the preparation has left")
    }

    /// The classes of a part as its JVM wants them.
    pub(super) fn classes(&self, part: &str) -> Classes {
        Classes::Use(self.classes_path(part))
    }

    fn classes_path(&self, part: &str) -> PathBuf {
        self.folder.join(format!("{part}.jsa"))
    }

    /// `initdb`, `postgres`, `pg_ctl`.
    pub(super) fn postgres_bin(&self, major: Major) -> PathBuf {
        self.postgres(major).join("bin")
    }

    fn postgres(&self, major: Major) -> PathBuf {
        self.folder.join(format!("postgres-{major}"))
    }

    /// The class path of the broker, for `java -cp`.
    pub(super) fn kafka_class_path(&self) -> String {
        format!("{}/*", self.folder.join("kafka/libs").display())
    }

    /// The registry's runnable jar.
    pub(super) fn registry_jar(&self) -> Result<PathBuf> {
        let entries = fs::read_dir(self.folder.join("registry")).context("list the registry's files")?;
        entries
            .filter_map(|entry| Some(entry.ok()?.path()))
            .find(|path| path.to_string_lossy().ends_with("-runner.jar"))
            .context("the registry's jar is not among the downloaded parts")
    }

    fn check(&self) -> Result<()> {
        self.registry_jar()?;
        let mut wanted = vec![self.folder.join("kafka/libs")];
        for major in Major::ALL {
            wanted.extend(["postgres", "initdb"].map(|program| self.postgres_bin(major).join(program)));
        }
        if let Some(missing) = wanted.iter().find(|path| !path.exists()) {
            bail!("the download lacks {}", missing.display());
        }
        postgres::check_readable(&self.postgres_bin(Major::NEWEST))
    }
}

/// Maven, on the folder's pom, and once more with `-U`: it remembers failed look-ups, and would repeat an old refusal for a day.
pub(super) async fn fetch(folder: &Path, what: &str, megabytes: u32) -> Result<()> {
    let begun = Instant::now();
    say(&format!("downloading {what} with Maven, about {megabytes} MB, once"));
    let mut lines = match maven(folder, false).await? {
        Ok(()) => VecDeque::new(),
        Err(lines) => lines,
    };
    if !lines.is_empty() {
        say("the download was refused; trying again without what Maven remembers of earlier failures (-U)");
        match maven(folder, true).await? {
            Ok(()) => lines.clear(),
            Err(again) => lines = again,
        }
    }
    if !lines.is_empty() {
        bail!("{}", explain(&Vec::from(lines)));
    }
    say(&format!("downloaded in {:.0} s", begun.elapsed().as_secs_f64()));
    Ok(())
}

/// One run of Maven. The inner error is what it complained about.
async fn maven(folder: &Path, update: bool) -> Result<Result<(), VecDeque<String>>> {
    let mut command = Command::new("mvn");
    command
        .args(["--batch-mode", "--strict-checksums", "-Dstyle.color=never", "-f"])
        .arg(folder.join("pom.xml"));
    command.arg(format!("-Dout={}", folder.display())).arg("process-resources");
    if update {
        command.arg("--update-snapshots");
    }
    let errors = folder.join("mvn.stderr");
    let stderr = fs::File::create(&errors).context("create a log of mvn")?;
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(stderr).kill_on_drop(true);
    let mut child = command.spawn().context("start mvn")?;
    let output = child.stdout.take().context("mvn has no output")?;
    let mut lines = BufReader::new(output).lines();
    let (mut kept, mut progress) = (VecDeque::new(), Progress::new());
    loop {
        let Ok(line) = tokio::time::timeout(SILENCE_LIMIT, progress.while_waiting(lines.next_line())).await
        else {
            child.kill().await.context("stop mvn")?;
            bail!("Maven has said nothing for {} s: the network stalls", SILENCE_LIMIT.as_secs());
        };
        let Some(line) = line.context("read what mvn says")? else { break };
        progress.see(&line);
        if tells_why(&line) && kept.len() < KEPT_LINES {
            kept.push_back(line);
        }
    }
    progress.end();
    if child.wait().await.context("wait for mvn")?.success() {
        return Ok(Ok(()));
    }
    // What the start script of mvn has to say, such as a JAVA_HOME that leads nowhere.
    kept.extend(fs::read_to_string(&errors).unwrap_or_default().lines().map(str::to_owned));
    kept.push_back("mvn has failed".to_owned());
    Ok(Err(kept))
}

/// What is being fetched now: one line that renews itself on a terminal, a line every few seconds elsewhere.
struct Progress {
    begun: Instant,
    files: usize,
    current: String,
    reported: Instant,
    terminal: bool,
}

impl Progress {
    fn new() -> Progress {
        let now = Instant::now();
        let terminal = std::io::stderr().is_terminal();
        Progress { begun: now, files: 0, current: "Maven is at work".to_owned(), reported: now, terminal }
    }

    fn see(&mut self, line: &str) {
        if line.contains("Downloaded from") {
            self.files += 1;
        } else if let Some((_, address)) = line.split_once("Downloading from") {
            address.rsplit('/').next().unwrap_or_default().clone_into(&mut self.current);
        } else if line.contains("Unpacking") || line.contains("Copying") {
            "unpacking".clone_into(&mut self.current);
        }
    }

    /// Reports at its own pace until the future is done: a large file is one long silence.
    async fn while_waiting<T>(&mut self, future: impl Future<Output = T>) -> T {
        let mut future = std::pin::pin!(future);
        let pace = if self.terminal { Duration::from_millis(200) } else { REPORT_EVERY };
        loop {
            let rest = pace.saturating_sub(self.reported.elapsed());
            tokio::select! {
                result = &mut future => return result,
                () = tokio::time::sleep(rest) => self.report(),
            }
        }
    }

    fn report(&mut self) {
        self.reported = Instant::now();
        let text =
            format!("{} files, {:.0} s: {}", self.files, self.begun.elapsed().as_secs_f64(), self.current);
        if self.terminal {
            write!(std::io::stderr(), "\r\x1b[2K  {text}").ok();
        } else {
            say(&format!("  {text}"));
        }
    }

    fn end(&self) {
        if self.terminal {
            write!(std::io::stderr(), "\r\x1b[2K").ok();
        }
    }
}

async fn unpack_postgres(folder: &Path) -> Result<()> {
    let archive = fs::read_dir(folder)
        .context("list the downloaded PostgreSQL")?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.extension().is_some_and(|extension| extension == "txz"))
        .context("the downloaded PostgreSQL holds no archive")?;
    let status = Command::new("tar").arg("xJf").arg(&archive).arg("-C").arg(folder).status().await;
    if !status.context("start tar")?.success() {
        bail!("tar could not unpack {}", archive.display());
    }
    fs::remove_file(archive).context("remove the unpacked archive")
}

/// Fails with the name of the Debian package when one of the programs is missing.
pub(super) async fn require(programs: &[&str], package: &str, why: &str) -> Result<()> {
    for program in programs {
        let mut command = Command::new(program);
        command.arg("--version").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        if command.status().await.is_err() {
            bail!("{program} is missing: {why}. Install the package {package} (apt-get install {package})");
        }
    }
    Ok(())
}

/// An error of Maven, without its invitations to read more.
fn tells_why(line: &str) -> bool {
    let noise = ["Re-run Maven", "re-run Maven", "For more information", "[Help"];
    line.contains("ERROR") && line.trim() != "[ERROR]" && !noise.iter().any(|words| line.contains(words))
}

/// The words of Maven, after one sentence that says what to do.
fn explain(lines: &[String]) -> String {
    let said = lines.join("\n");
    let lower = said.to_lowercase();
    let network =
        ["unknown host", "connection refused", "timed out", "network is unreachable", "no route to host"];
    let advice = if lower.contains("checksum") {
        "a downloaded file does not have its checksum: the repository or a proxy between is broken"
    } else if lower.contains("java_home") {
        "JAVA_HOME does not name a Java installation"
    } else if lower.contains("no space left") {
        "the disk is full"
    } else if network.iter().any(|word| lower.contains(word)) || lower.contains("name resolution") {
        "Maven Central cannot be reached. Without a network the parts cannot be downloaded; behind a proxy or a mirror, \
         name it in ~/.m2/settings.xml"
    } else {
        "Maven could not fetch the parts. A mirror in ~/.m2/settings.xml may lack one of them"
    };
    format!("{advice}. Maven said:\n{said}")
}

/// Straight to stderr: the tests' harness swallows what the print macros write, and a silent download looks stuck.
pub(super) fn say(text: &str) {
    writeln!(std::io::stderr(), "testbed: {text}").ok();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_explained_by_its_cause() {
        let of = |line: &str| explain(&[format!("[ERROR] {line}")]);
        assert!(
            of("repo.maven.apache.org: Name or service not known: Unknown host")
                .contains("cannot be reached")
        );
        assert!(of("Checksum validation failed, expected a but is b").contains("checksum"));
        assert!(of("The JAVA_HOME environment variable is not defined correctly").contains("does not name"));
        assert!(of("No space left on device").contains("disk is full"));
        let refused = of("was not found in https://repo during a previous attempt");
        assert!(refused.contains("mirror") && refused.contains("previous attempt"), "{refused}");
    }

    #[test]
    fn of_what_maven_says_the_reasons_are_kept() {
        assert!(tells_why("[ERROR] Could not transfer artifact a:b:1 from central"));
        for noise in [
            "[INFO] Downloading",
            "[ERROR] ",
            "[ERROR] Re-run Maven using the -X switch",
            "[ERROR] [Help 1] http",
        ] {
            assert!(!tells_why(noise), "{noise}");
        }
    }

    #[test]
    fn progress_follows_what_maven_says() {
        let mut progress = Progress::new();
        progress.see("[INFO] Downloading from central: https://repo.maven.apache.org/maven2/a/b/1/b-1.jar");
        assert_eq!((progress.files, progress.current.as_str()), (0, "b-1.jar"));
        progress.see("[INFO] Downloaded from central: https://repo.maven.apache.org/maven2/a/b/1/b-1.jar (1 MB at 1 MB/s)");
        assert_eq!(progress.files, 1);
    }

    #[tokio::test]
    async fn a_missing_program_names_its_package() {
        let error = require(&["no-such-program"], "some-package", "it is needed").await.unwrap_err();
        assert!(error.to_string().contains("apt-get install some-package"), "{error}");
    }
}
