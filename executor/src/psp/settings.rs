//! Which PSPs this process talks to, with which keys, and the checks that keep test and live apart.

use std::{sync::Arc, time::Duration};

use anyhow::{Context as _, bail, ensure};
use clap::{Args, ValueEnum};
use reqwest::Url;
use secrecy::{ExposeSecret as _, SecretString};

use super::{
    Psp, Psps,
    adyen::Adyen,
    http::{self, Site},
    stripe::Stripe,
};

/// Where every address of Adyen's live platform ends: a prefix of the merchant's own comes before it.
const ADYEN_LIVE: &str = "-checkout-live.adyenpayments.com";

/// Whether real money moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    /// None does: live keys and live addresses are refused.
    Test,
    /// It does: test keys and test addresses are refused.
    Live,
}

/// Settings of the PSPs. A PSP whose key is not given is not talked to.
#[derive(Args, Clone, Debug)]
pub struct PspConfig {
    /// Whether real money moves. Keys and addresses have to fit.
    #[arg(long, env = "MODE", value_enum, default_value_t = Mode::Test)]
    pub mode: Mode,
    /// Where Stripe's API is.
    #[arg(long, env = "STRIPE_BASE_URL", default_value = "https://api.stripe.com")]
    pub stripe_base_url: String,
    /// Stripe's secret key, or a restricted one that may write PaymentIntents. Without it Stripe is not talked to.
    #[arg(long, env = "STRIPE_SECRET_KEY", hide_env_values = true)]
    pub stripe_secret_key: Option<SecretString>,
    /// Where Adyen's Checkout API is, version included. Live: `https://{prefix}-checkout-live.adyenpayments.com/checkout/v71`.
    #[arg(long, env = "ADYEN_BASE_URL", default_value = "https://checkout-test.adyen.com/v71")]
    pub adyen_base_url: String,
    /// Adyen's API key. Without it Adyen is not talked to.
    #[arg(long, env = "ADYEN_API_KEY", hide_env_values = true)]
    pub adyen_api_key: Option<SecretString>,
    /// Adyen's merchant account; needed with the key.
    #[arg(long, env = "ADYEN_MERCHANT_ACCOUNT")]
    pub adyen_merchant_account: Option<String>,
    /// Where Adyen would send shoppers back to. It wants to know, although nobody is ever sent.
    #[arg(long, env = "ADYEN_RETURN_URL", default_value = "https://payment-outbox.invalid/")]
    pub adyen_return_url: String,
    /// Plain HTTP to PSPs on other machines is allowed: for a simulator in a network of containers. Never in live mode.
    #[arg(long, env = "PSP_PLAIN_HTTP", default_value_t = false, action = clap::ArgAction::Set)]
    pub psp_plain_http: bool,
    /// Limit of connecting to a PSP.
    #[arg(long, env = "PSP_CONNECT_TIMEOUT", default_value = "3s", value_parser = humantime::parse_duration)]
    pub psp_connect_timeout: Duration,
}

impl PspConfig {
    /// Checks what can be checked without a call.
    pub fn validate(&self) -> anyhow::Result<()> {
        ensure!(
            self.stripe_secret_key.is_some() || self.adyen_api_key.is_some(),
            "no PSP is configured: STRIPE_SECRET_KEY or ADYEN_API_KEY"
        );
        let live = self.mode == Mode::Live;
        ensure!(!(live && self.psp_plain_http), "PSP_PLAIN_HTTP is for simulators: not in live mode");
        if let Some(key) = &self.stripe_secret_key {
            check_stripe_key(key.expose_secret(), self.mode)?;
            self.check_site(&self.stripe_base_url).context("STRIPE_BASE_URL")?;
        }
        if let Some(key) = &self.adyen_api_key {
            ensure!(!key.expose_secret().is_empty(), "ADYEN_API_KEY is empty");
            let account = self.adyen_merchant_account.as_deref().unwrap_or_default();
            ensure!(!account.is_empty(), "ADYEN_API_KEY needs ADYEN_MERCHANT_ACCOUNT beside it");
            let url = self.check_site(&self.adyen_base_url).context("ADYEN_BASE_URL")?;
            // Adyen's keys do not show what they are for; its addresses do.
            let host = url.host_str().unwrap_or_default();
            let is_adyens = host.ends_with(".adyenpayments.com") || host.ends_with(".adyen.com");
            let fits = match self.mode {
                Mode::Live => host.ends_with(ADYEN_LIVE),
                Mode::Test => !is_adyens || host.ends_with("-test.adyen.com"),
            };
            ensure!(fits, "ADYEN_BASE_URL is {host}: not an address for this mode");
        }
        Ok(())
    }

    /// The adapters. Makes no call yet.
    pub fn build(&self, timeout: Duration, connections: usize) -> anyhow::Result<Psps> {
        let site = |base_url: &str| Site {
            base_url: base_url.to_owned(),
            plain_http: self.psp_plain_http,
            connect_timeout: self.psp_connect_timeout,
            timeout,
            connections,
        };
        let mut psps: Vec<Arc<dyn Psp>> = Vec::new();
        if let Some(key) = &self.stripe_secret_key {
            psps.push(Arc::new(Stripe::new(&site(&self.stripe_base_url), key)?));
        }
        if let Some(key) = &self.adyen_api_key {
            let account = self.adyen_merchant_account.as_deref().unwrap_or_default();
            psps.push(Arc::new(Adyen::new(
                &site(&self.adyen_base_url),
                key,
                account,
                &self.adyen_return_url,
            )?));
        }
        Ok(Psps::new(psps))
    }

    fn check_site(&self, base_url: &str) -> anyhow::Result<Url> {
        let plain_http = self.psp_plain_http;
        let url = http::checked(&Site { plain_http, ..Site::new(base_url, Duration::from_secs(1)) })?;
        ensure!(self.mode == Mode::Test || url.scheme() == "https", "live keys are sent by https only");
        Ok(url)
    }
}

/// Stripe's keys say what they are for.
fn check_stripe_key(key: &str, mode: Mode) -> anyhow::Result<()> {
    ensure!(!key.is_empty(), "STRIPE_SECRET_KEY is empty");
    let is = |prefixes: [&str; 2]| prefixes.into_iter().any(|prefix| key.starts_with(prefix));
    match mode {
        Mode::Test if is(["sk_test_", "rk_test_"]) => Ok(()),
        Mode::Test if is(["sk_live_", "rk_live_"]) => {
            bail!("STRIPE_SECRET_KEY is a live key: it is taken in live mode only (MODE=live)")
        }
        Mode::Live if is(["sk_live_", "rk_live_"]) => Ok(()),
        Mode::Live if is(["sk_test_", "rk_test_"]) => {
            bail!("STRIPE_SECRET_KEY is a test key: nothing would be charged in live mode")
        }
        Mode::Test | Mode::Live => bail!("STRIPE_SECRET_KEY is not a secret key of Stripe's (sk_…, rk_…)"),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        psps: PspConfig,
    }

    fn config(more: &[&str]) -> PspConfig {
        Cli::parse_from(["executor"].iter().chain(more)).psps
    }

    fn refused(more: &[&str]) -> String {
        match config(more).validate() {
            Ok(()) => panic!("{more:?} was taken"),
            Err(error) => format!("{error:#}"),
        }
    }

    const ADYEN: [&str; 2] = ["--adyen-api-key=AQEhunter2", "--adyen-merchant-account=Shop"];
    const ADYEN_AT_LIVE: &str =
        "--adyen-base-url=https://1797a841fbb37ca7-Shop-checkout-live.adyenpayments.com/checkout/v71";

    #[test]
    fn a_psp_is_talked_to_if_its_key_is_there() {
        assert!(refused(&[]).contains("no PSP is configured"));
        let names = |more: &[&str]| {
            let config = config(more);
            config.validate().unwrap();
            let psps = config.build(Duration::from_secs(1), 1).unwrap();
            let mut names: Vec<_> = psps.iter().map(|psp| psp.name()).collect();
            names.sort_unstable();
            names
        };
        assert_eq!(names(&["--stripe-secret-key=sk_test_x"]), ["STRIPE"]);
        assert_eq!(names(&ADYEN), ["ADYEN"]);
        assert_eq!(names(&["--stripe-secret-key=rk_test_x", ADYEN[0], ADYEN[1]]), ["ADYEN", "STRIPE"]);
        assert!(refused(&ADYEN[..1]).contains("ADYEN_MERCHANT_ACCOUNT"));
    }

    #[test]
    fn live_keys_are_refused_in_test_mode_and_test_keys_in_live_mode() {
        for (key, test, live) in [
            ("sk_test_hunter2", true, false),
            ("rk_test_hunter2", true, false),
            ("sk_live_hunter2", false, true),
            ("rk_live_hunter2", false, true),
            ("pk_live_hunter2", false, false),
            ("whsec_hunter2", false, false),
            ("", false, false),
        ] {
            let key = format!("--stripe-secret-key={key}");
            for (mode, allowed) in [("test", test), ("live", live)] {
                let config = config(&[&key, &format!("--mode={mode}")]);
                let found = config.validate();
                assert_eq!(found.is_ok(), allowed, "{key} {mode}");
                let shown = format!("{config:?} {found:?}");
                assert!(!shown.contains("hunter2"), "{shown}");
            }
        }
    }

    #[test]
    fn adyen_is_reached_where_the_mode_says() {
        for (base_url, test, live) in [
            ("--adyen-base-url=https://checkout-test.adyen.com/v71", true, false),
            ("--adyen-base-url=http://127.0.0.1:1/v71", true, false),
            ("--adyen-base-url=https://x.example.com/-checkout-live.adyenpayments.com", true, false),
            ("--adyen-base-url=https://pal-live.adyen.com/v71", false, false),
            (ADYEN_AT_LIVE, false, true),
        ] {
            for (mode, allowed) in [("--mode=test", test), ("--mode=live", live)] {
                let config = config(&[ADYEN[0], ADYEN[1], base_url, mode]);
                assert_eq!(config.validate().is_ok(), allowed, "{base_url} {mode}");
                assert!(!format!("{config:?}").contains("hunter2"));
            }
        }
    }

    #[test]
    fn live_keys_leave_the_machine_encrypted_or_not_at_all() {
        let live = ["--mode=live", "--stripe-secret-key=sk_live_x"];
        assert!(config(&live).validate().is_ok());
        for more in ["--stripe-base-url=http://127.0.0.1:1", "--psp-plain-http=true"] {
            refused(&[live[0], live[1], more]);
        }
        let test = ["--stripe-secret-key=sk_test_x", "--stripe-base-url=http://psp-simulator:12111"];
        refused(&test);
        assert!(config(&[test[0], test[1], "--psp-plain-http=true"]).validate().is_ok());
    }
}
