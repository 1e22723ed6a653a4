//! The settings of the process.

use std::time::Duration;

use clap::Parser;
use secrecy::SecretString;

use crate::webhooks::Mischief;

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
    pub adyen_api_key: Option<SecretString>,

    /// The only merchant account that Adyen knows; any without this setting.
    #[arg(long, env = "ADYEN_MERCHANT_ACCOUNT")]
    pub adyen_merchant_account: Option<String>,

    /// Where Stripe's events are sent; nowhere without this setting.
    #[arg(long, env = "STRIPE_WEBHOOK_URL", requires = "stripe_webhook_secret")]
    pub stripe_webhook_url: Option<String>,

    /// What Stripe's events are signed with (`whsec_…`).
    #[arg(long, env = "STRIPE_WEBHOOK_SECRET", hide_env_values = true)]
    pub stripe_webhook_secret: Option<SecretString>,

    /// Where Adyen's notifications are sent; nowhere without this setting.
    #[arg(long, env = "ADYEN_WEBHOOK_URL", requires = "adyen_webhook_hmac_key")]
    pub adyen_webhook_url: Option<String>,

    /// What Adyen's notifications are signed with, in hexadecimal.
    #[arg(long, env = "ADYEN_WEBHOOK_HMAC_KEY", hide_env_values = true)]
    pub adyen_webhook_hmac_key: Option<SecretString>,

    /// The user that Adyen's notifications log in as (Basic auth).
    #[arg(long, env = "ADYEN_WEBHOOK_USER", requires = "adyen_webhook_password")]
    pub adyen_webhook_user: Option<String>,

    /// The password of that user.
    #[arg(long, env = "ADYEN_WEBHOOK_PASSWORD", hide_env_values = true)]
    pub adyen_webhook_password: Option<SecretString>,

    /// The tricks played on webhooks: `calm`, `hostile`, or shares in percent such as
    /// `duplicate=10,reorder=10,delay_ms=200,drop=5,early=10,contradict_late=1`.
    #[arg(long, env = "WEBHOOK_MODE", default_value = "calm")]
    pub webhook_mode: Mischief,

    /// What the tricks are drawn from.
    #[arg(long, env = "SEED", default_value_t = 1)]
    pub seed: u64,

    /// Messages that each PSP keeps for its receiver; when there are more, the one due longest is lost.
    #[arg(long, env = "WEBHOOK_QUEUE", default_value_t = 100_000)]
    pub webhook_queue: usize,

    /// The wait after the first failed delivery, by the simulator's clock; it doubles with every further one.
    #[arg(long, env = "WEBHOOK_BACKOFF", default_value = "500ms", value_parser = humantime::parse_duration)]
    pub webhook_backoff: Duration,

    /// The longest wait between two deliveries.
    #[arg(long, env = "WEBHOOK_BACKOFF_MAX", default_value = "30s", value_parser = humantime::parse_duration)]
    pub webhook_backoff_max: Duration,

    /// How often a message is tried.
    #[arg(long, env = "WEBHOOK_ATTEMPTS", default_value_t = 20)]
    pub webhook_attempts: u32,

    /// Log filter, as `tracing_subscriber::EnvFilter` reads it.
    #[arg(long, env = "LOG", default_value = "info")]
    pub log: String,
}
