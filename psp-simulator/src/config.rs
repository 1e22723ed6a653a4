//! The settings of the process.

use std::time::Duration;

use clap::Parser;

/// Settings, from flags or from the environment.
#[derive(Debug, Clone, Parser)]
#[command(
    name = "psp-simulator",
    about = "Speaks the wire protocols of Stripe and Adyen and keeps a ledger of the charges made"
)]
pub struct Config {
    /// Address to listen on; port 0 takes a free one, which is logged.
    #[arg(long, env = "LISTEN", default_value = "127.0.0.1:12111")]
    pub listen: String,

    /// How long issuers take that do not answer at once, by the simulator's clock.
    #[arg(long, env = "SLOW", default_value = "3s", value_parser = humantime::parse_duration)]
    pub slow: Duration,

    /// How long a connection whose answer is withheld stays open before it is cut.
    #[arg(long, env = "HANG", default_value = "10m", value_parser = humantime::parse_duration)]
    pub hang: Duration,

    /// How many requests of a payment are refused by the scenarios that refuse several.
    #[arg(long, env = "REFUSALS", default_value_t = 3)]
    pub refusals: u32,

    /// How many payments each PSP keeps; further ones are answered 503.
    #[arg(long, env = "CAPACITY", default_value_t = 1_000_000)]
    pub capacity: usize,

    /// Requests worked on at once; further ones are answered 429, as PSPs do.
    #[arg(long, env = "CONCURRENCY", default_value_t = 1024)]
    pub concurrency: usize,

    /// The only API key that Adyen takes; any without this setting.
    #[arg(long, env = "ADYEN_API_KEY", hide_env_values = true)]
    pub adyen_api_key: Option<String>,

    /// The only merchant account that Adyen knows; any without this setting.
    #[arg(long, env = "ADYEN_MERCHANT_ACCOUNT")]
    pub adyen_merchant_account: Option<String>,

    /// Log filter, as `tracing_subscriber::EnvFilter` reads it.
    #[arg(long, env = "LOG", default_value = "info")]
    pub log: String,
}
