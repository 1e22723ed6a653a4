//! The subcommand `healthcheck`: asks the simulator beside it whether it answers.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use anyhow::Context;
use tokio::net::lookup_host;

const LIMIT: Duration = Duration::from_secs(2);

/// Ok if a simulator that listens there says that it lives.
pub async fn healthcheck(listen: &str) -> anyhow::Result<()> {
    let address = lookup_host(listen).await.with_context(|| format!("LISTEN is {listen}"))?.next();
    let address = reachable(address.with_context(|| format!("LISTEN is {listen}, which has no address"))?);
    let client = reqwest::Client::builder().no_proxy().timeout(LIMIT).build()?;
    let answer = client.get(format!("http://{address}/livez")).send().await?;
    answer.error_for_status()?;
    Ok(())
}

/// Where a process can be asked that listens there.
fn reachable(listen: SocketAddr) -> SocketAddr {
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    SocketAddr::new(ip, listen.port())
}
