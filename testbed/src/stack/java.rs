//! The JVM under Kafka and the registry.

use std::env;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// Kafka 4 and the registry need this much.
const OLDEST: u32 = 17;
const ADVICE: &str = "install a JRE 17 or newer (apt-get install openjdk-17-jre-headless)";

/// The archive of loaded and verified classes: with it Kafka needs 2.1 s of a core to start instead of 3.5, and the
/// registry 2.2 instead of 5.6.
#[derive(Clone, Debug)]
pub(super) enum Classes {
    /// Use it. Where it is missing, or of another JVM, the JVM goes on without.
    Use(PathBuf),
    /// Write it when the JVM ends in an orderly way.
    Record(PathBuf),
}

/// `java`, with a heap between the two sizes in MiB. Tuned for a quick start and little memory: the C1 compiler alone
/// starts Kafka in half the time, and is fast enough for all but benchmarks.
pub(super) fn command(heap_min_mib: u32, heap_max_mib: u32, classes: &Classes) -> Command {
    let mut command = sustained(heap_min_mib, heap_max_mib);
    command.args(["-XX:TieredStopAtLevel=1", "-Xshare:auto"]);
    command.arg(match classes {
        Classes::Use(path) => format!("-XX:SharedArchiveFile={}", path.display()),
        Classes::Record(path) => format!("-XX:ArchiveClassesAtExit={}", path.display()),
    });
    command
}

/// `java` for benchmarks: both compilers, so that it is slow to start and fast once it is warm.
pub(super) fn sustained(heap_min_mib: u32, heap_max_mib: u32) -> Command {
    let mut command = Command::new(program());
    command.arg(format!("-Xms{heap_min_mib}m")).arg(format!("-Xmx{heap_max_mib}m"));
    command.args(["-XX:+UseSerialGC", "-XX:-UsePerfData"]);
    command.env_remove("JAVA_TOOL_OPTIONS").env_remove("CLASSPATH");
    command
}

/// Fails with what to install when there is no JVM that is new enough.
pub(super) async fn check() -> Result<()> {
    let program = program();
    let mut command = tokio::process::Command::new(&program);
    command.arg("-version").stdin(Stdio::null());
    let Ok(output) = command.output().await else {
        bail!("{} is missing: Kafka and the registry need it; {ADVICE}", program.display());
    };
    let said = String::from_utf8_lossy(&output.stderr);
    let version = major_version(&said).with_context(|| format!("{} said: {said}", program.display()))?;
    if version < OLDEST {
        bail!("{} is Java {version}, which is too old for Kafka; {ADVICE}", program.display());
    }
    Ok(())
}

fn program() -> PathBuf {
    let home = env::var_os("JAVA_HOME").filter(|value| !value.is_empty()).map(PathBuf::from);
    home.map(|home| home.join("bin/java")).filter(|java| java.exists()).unwrap_or_else(|| "java".into())
}

/// `openjdk version "17.0.15" 2025-04-15`, `java version "1.8.0_392"`, `openjdk version "25" 2025-09-16`.
fn major_version(said: &str) -> Option<u32> {
    let quoted = said.lines().find_map(|line| line.split_once("version \"")?.1.split('"').next())?;
    let mut numbers = quoted.split(['.', '_', '-', '+']);
    let first = numbers.next()?.parse().ok()?;
    if first == 1 { numbers.next()?.parse().ok() } else { Some(first) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_in_every_spelling() {
        assert_eq!(major_version("openjdk version \"17.0.15\" 2025-04-15"), Some(17));
        assert_eq!(major_version("java version \"1.8.0_392\""), Some(8));
        assert_eq!(
            major_version("Picked up JAVA_TOOL_OPTIONS: -Dx\nopenjdk version \"25\" 2025-09-16"),
            Some(25)
        );
        assert_eq!(major_version("openjdk version \"21-ea\""), Some(21));
        assert_eq!(major_version("bash: no"), None);
    }
}
