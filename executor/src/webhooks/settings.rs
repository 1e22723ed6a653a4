//! Who may send webhooks, and the limits of receiving and keeping them.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context as _, ensure};
use clap::Args;
use secrecy::{ExposeSecret as _, SecretString};

use super::{adyen, stripe};

/// Settings of webhooks. During a rotation both the old and the new secret are given.
#[derive(Args, Clone, Debug)]
pub struct WebhookConfig {
    /// Where PSPs send webhooks to: `/webhooks/stripe`, `/webhooks/adyen`. Opened only for PSPs whose secrets are given.
    #[arg(long, env = "WEBHOOKS_LISTEN", default_value = "127.0.0.1:9300")]
    pub webhooks_listen: SocketAddr,
    /// Stripe's signing secrets (`whsec_…`), one, or two separated by a comma. Without any, nothing is received from Stripe.
    #[arg(long, env = "STRIPE_WEBHOOK_SECRETS", value_delimiter = ',', hide_env_values = true)]
    pub stripe_webhook_secrets: Vec<SecretString>,
    /// Adyen's HMAC keys in hexadecimal, one, or two separated by a comma. Without any, nothing is received from Adyen.
    #[arg(long, env = "ADYEN_HMAC_KEYS", value_delimiter = ',', hide_env_values = true)]
    pub adyen_hmac_keys: Vec<SecretString>,
    /// Adyen's `user:password` for Basic authentication, one, or two separated by a comma. Needed with the keys.
    #[arg(long, env = "ADYEN_WEBHOOK_AUTH", value_delimiter = ',', hide_env_values = true)]
    pub adyen_webhook_auth: Vec<SecretString>,
    /// How far the time in a signature of Stripe's may be from ours, in both directions.
    #[arg(long, env = "WEBHOOK_TOLERANCE", default_value = "300s", value_parser = humantime::parse_duration)]
    pub webhook_tolerance: Duration,
    /// Requests received at once; beyond that they are answered 503, and the PSP sends them again.
    #[arg(long, env = "WEBHOOKS_CONCURRENCY", default_value_t = 256)]
    pub webhooks_concurrency: usize,
    /// How long an event waits for its order.
    #[arg(long, env = "WEBHOOK_ORPHANS_FOR", default_value = "24h", value_parser = humantime::parse_duration)]
    pub webhook_orphans_for: Duration,
    /// How many events of a PSP may wait for orders that are not known, as those of another system on the same account are; beyond that the
    /// oldest are given up sooner.
    #[arg(long, env = "WEBHOOK_STRANGERS_MAX", default_value_t = 10_000)]
    pub webhook_strangers_max: u32,
    /// How long events are kept after they were worked off.
    #[arg(long, env = "WEBHOOK_RETENTION", default_value = "45days", value_parser = humantime::parse_duration)]
    pub webhook_retention: Duration,
}

/// Most secrets of one kind: the old and the new.
const SECRETS_MAX: usize = 2;

impl WebhookConfig {
    /// Checks what no single setting can.
    pub fn validate(&self) -> anyhow::Result<()> {
        self.stripe()?;
        self.adyen()?;
        ensure!(
            (1..=4096).contains(&self.webhooks_concurrency),
            "WEBHOOKS_CONCURRENCY must be between 1 and 4096"
        );
        ensure!(
            self.webhook_tolerance <= Duration::from_hours(1),
            "WEBHOOK_TOLERANCE is {:?}; with more than an hour it protects from nothing",
            self.webhook_tolerance
        );
        Ok(())
    }

    /// Whether any PSP may send.
    pub fn enabled(&self) -> bool {
        given(&self.stripe_webhook_secrets).next().is_some() || given(&self.adyen_hmac_keys).next().is_some()
    }

    /// What verifies Stripe's requests; None if it may not send.
    pub(crate) fn stripe(&self) -> anyhow::Result<Option<stripe::Keys>> {
        let secrets: Vec<SecretString> = given(&self.stripe_webhook_secrets).cloned().collect();
        ensure!(secrets.len() <= SECRETS_MAX, "STRIPE_WEBHOOK_SECRETS has more than {SECRETS_MAX} secrets");
        Ok((!secrets.is_empty()).then(|| stripe::Keys::new(secrets, self.webhook_tolerance)))
    }

    /// What verifies Adyen's requests; None if it may not send.
    pub(crate) fn adyen(&self) -> anyhow::Result<Option<adyen::Keys>> {
        let keys: Vec<&SecretString> = given(&self.adyen_hmac_keys).collect();
        let credentials: Vec<&SecretString> = given(&self.adyen_webhook_auth).collect();
        ensure!(
            keys.is_empty() == credentials.is_empty(),
            "ADYEN_HMAC_KEYS and ADYEN_WEBHOOK_AUTH belong together: one is given and the other is not"
        );
        ensure!(
            keys.len() <= SECRETS_MAX && credentials.len() <= SECRETS_MAX,
            "ADYEN_HMAC_KEYS or ADYEN_WEBHOOK_AUTH has more than {SECRETS_MAX} secrets"
        );
        if keys.is_empty() {
            return Ok(None);
        }
        ensure!(
            credentials
                .iter()
                .all(|pair| pair.expose_secret().split_once(':').is_some_and(|(user, _)| !user.is_empty())),
            "ADYEN_WEBHOOK_AUTH must be user:password"
        );
        let keys = keys.into_iter().map(|key| adyen::hmac_key(key).context("ADYEN_HMAC_KEYS"));
        Ok(Some(adyen::Keys::new(keys.collect::<Result<_, _>>()?, &credentials)))
    }
}

/// A variable that is set to nothing gives one empty text.
fn given(secrets: &[SecretString]) -> impl Iterator<Item = &SecretString> {
    secrets.iter().filter(|secret| !secret.expose_secret().is_empty())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        config: WebhookConfig,
    }

    fn config(arguments: &[&str]) -> WebhookConfig {
        Cli::parse_from(std::iter::once(&"test").chain(arguments)).config
    }

    #[test]
    fn without_secrets_nobody_may_send() {
        for nothing in
            [&[][..], &["--stripe-webhook-secrets="], &["--adyen-hmac-keys=", "--adyen-webhook-auth="]]
        {
            let config = config(nothing);
            config.validate().unwrap();
            assert!(!config.enabled(), "{nothing:?}");
        }
    }

    #[test]
    fn secrets_that_cannot_be_some_are_refused_and_never_shown() {
        let key = "44782DEF547AAA06C910C43932B1EB0C71FC68D9D0C057550C48EC2ACF6BA056";
        let keys = format!("--adyen-hmac-keys={key}");
        for wrong in [
            &["--stripe-webhook-secrets=planted_1,planted_2,planted_3"][..],
            &[&keys],
            &["--adyen-webhook-auth=planted:planted"],
            &["--adyen-hmac-keys=BadKeyplanted", "--adyen-webhook-auth=planted:planted"],
            &["--adyen-hmac-keys=4478", "--adyen-webhook-auth=planted:planted"],
            &[&keys, "--adyen-webhook-auth=planted"],
            &["--webhook-tolerance=2h"],
            &["--webhooks-concurrency=0"],
        ] {
            let config = config(wrong);
            let error = config.validate().unwrap_err();
            let shown = format!("{error:#} {config:?}");
            assert!(!shown.contains("planted") && !shown.contains(key), "{shown}");
        }
        let both = [&keys, "--adyen-webhook-auth=a:b,c:d", "--stripe-webhook-secrets=one,two"];
        config(&both).validate().unwrap();
        assert!(config(&both).enabled());
    }
}
