//! The subcommand `healthcheck`: asks the process beside it whether it is ready. For images that hold no HTTP client.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context as _, ensure};
use axum::{body::Body, http::StatusCode};
use clap::Args;
use futures::TryFutureExt as _;
use hyper::{Request, client::conn::http1};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use crate::config::AdminConfig;

/// Settings of `healthcheck`: those that the process itself was given.
#[derive(Args, Clone, Debug)]
pub struct HealthcheckConfig {
    /// The port to ask.
    #[command(flatten)]
    pub admin: AdminConfig,
    /// How long the answer may take. Shorter than what calls this waits itself, so that the reason is still said.
    #[arg(long, env = "HEALTHCHECK_TIMEOUT", default_value = "2s", value_parser = humantime::parse_duration)]
    pub healthcheck_timeout: Duration,
}

/// Asks for `/readyz`: exit code 0 if the process is ready, 1 if it is not or cannot be asked, with the reason on stderr.
pub async fn main(config: &HealthcheckConfig) -> ExitCode {
    match ask(config).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(reason) => {
            #[expect(clippy::print_stderr, reason = "it is an answer, not a log")]
            {
                eprintln!("{reason:#}");
            }
            ExitCode::FAILURE
        }
    }
}

/// Ok if the process answers that it is ready.
pub async fn ask(config: &HealthcheckConfig) -> anyhow::Result<()> {
    let address = reachable(config.admin.admin_listen)?;
    let limit = config.healthcheck_timeout;
    let status = tokio::time::timeout(limit, get(address, "/readyz"))
        .await
        .with_context(|| format!("{address} did not answer within {limit:?}"))?
        .with_context(|| format!("{address} could not be asked"))?;
    ensure!(status == StatusCode::OK, "not ready: {address} answers {status}");
    Ok(())
}

/// Where a process can be asked that listens there.
fn reachable(listen: SocketAddr) -> anyhow::Result<SocketAddr> {
    ensure!(
        listen.port() != 0,
        "ADMIN_LISTEN has port 0, which is another one each time: give the process and its healthcheck a port of their own"
    );
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    Ok(SocketAddr::new(ip, listen.port()))
}

async fn get(address: SocketAddr, path: &str) -> anyhow::Result<StatusCode> {
    let stream = TcpStream::connect(address).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let request = Request::get(path).header("host", address.to_string()).body(Body::empty())?;
    let answer = async { Ok(sender.send_request(request).await?.status()) };
    // The connection ends without an answer only if it fails, and says why.
    let ended = connection.map_err(anyhow::Error::from).and_then(async |()| anyhow::bail!("it hung up"));
    tokio::select! {
        biased;
        status = answer => status,
        ended = ended => ended,
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use tokio::net::TcpListener;

    use super::*;
    use crate::{
        admin::{self, Readiness},
        shutdown::Shutdown,
    };

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        config: HealthcheckConfig,
    }

    fn config(address: SocketAddr) -> HealthcheckConfig {
        let (listen, timeout) =
            (format!("--admin-listen={address}"), "--healthcheck-timeout=500ms".to_owned());
        Cli::parse_from(["x".to_owned(), listen, timeout]).config
    }

    #[tokio::test]
    async fn it_says_what_readyz_says() {
        let (shutdown, readiness) = (Shutdown::new(), Readiness::default());
        let any = AdminConfig { admin_listen: "127.0.0.1:0".parse().unwrap() };
        let registry = admin::new_metrics_registry("0").unwrap();
        let address = admin::serve(&any, registry, readiness.clone(), &shutdown).await.unwrap();
        for ready in [false, true, false] {
            readiness.set(ready);
            assert_eq!(ask(&config(address)).await.is_ok(), ready);
            let everywhere = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), address.port());
            assert_eq!(ask(&config(everywhere)).await.is_ok(), ready);
        }
        shutdown.request();
    }

    #[tokio::test]
    async fn who_cannot_be_asked_is_not_ready() {
        let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = silent.local_addr().unwrap();
        let reason = format!("{:#}", ask(&config(address)).await.unwrap_err());
        assert!(reason.contains("did not answer within 500ms"), "{reason}");
        drop(silent);
        let reason = format!("{:#}", ask(&config(address)).await.unwrap_err());
        assert!(reason.contains("could not be asked"), "{reason}");
        let reason = format!("{:#}", ask(&config("127.0.0.1:0".parse().unwrap())).await.unwrap_err());
        assert!(reason.contains("ADMIN_LISTEN"), "{reason}");
    }
}
