//! Sends payments at a fixed rate, and keeps asking until each has an answer.
//!
//! The first few payments go ahead, one after the other, each when the one before is settled: a circle that has just been started
//! has members to find, connections to open and statements to plan, and a crowd at its door would wait for all of that together.
//! They count like all others.
//!
//! Then an open loop: when a payment is sent depends on the clock alone, never on earlier answers, so that a service that stalls
//! is not asked less. A payment that gets no answer (connection refused or cut, time-out, 5xx) is asked for again under the same
//! Idempotency-Key, as a careful client does; after [`Load::give_up_after`] its outcome is unknown to the client.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use reqwest::StatusCode;
use serde::Deserialize;
use serde_json::json;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::Instant;
use uuid::Uuid;

use crate::oracle::books::{Sent, Told};

/// One payment in so many goes ahead of the load, up to a limit.
const AHEAD_ONE_IN: usize = 20;
const AHEAD_MAX: usize = 24;
/// Payments that wait for their answer at once. Beyond it the schedule slips.
const OPEN_MAX: usize = 4_096;
const ANSWER_LIMIT: Duration = Duration::from_secs(5);
/// Whose stored payment methods are used at Adyen: a token of ours names the shopper and what is stored for him.
const SHOPPER: &str = "shopper";
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// What to send, and where.
#[derive(Clone, Debug)]
pub struct Load {
    /// Base of the API.
    pub api_url: String,
    /// Bearer token.
    pub api_token: String,
    /// How many.
    pub payments: usize,
    /// Per second.
    pub rate: f64,
    /// The same seed draws the same payments.
    pub seed: u64,
    /// What they are drawn from.
    pub mixture: Mixture,
    /// How long a payment is asked for again.
    pub give_up_after: Duration,
}

/// How far the load is; read while it runs.
#[derive(Debug, Default)]
pub struct Progress {
    /// Payments sent at least once.
    pub sent: AtomicUsize,
    /// Payments with a 201.
    pub accepted: AtomicUsize,
    /// Requests sent again.
    pub repeated: AtomicUsize,
}

/// One payment to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wish {
    /// Idempotency-Key.
    pub key: String,
    /// The client's own id.
    pub merchant_reference: String,
    /// In minor units.
    pub amount_minor: i64,
    /// ISO 4217 code.
    pub currency: &'static str,
    /// Which PSP to ask.
    pub psp: &'static str,
    /// Token of the PSP: decides what will happen.
    pub payment_method: String,
}

/// What happens to payments at their PSPs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mixture {
    /// Stripe alone: about 80 % succeed, 15 % are declined, 5 % are ambiguous at first.
    Plain,
    /// Both PSPs alike: about half succeed, and the others take all of these tokens, each as often, in this order.
    Hostile(Arc<Tokens>),
}

/// The tokens of each PSP.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tokens {
    /// Of Stripe.
    pub stripe: Vec<String>,
    /// Of Adyen.
    pub adyen: Vec<String>,
}

impl Tokens {
    /// Every scenario that the simulator has, as it tells itself.
    pub async fn of_simulator(url: &str) -> Result<Tokens> {
        #[derive(Deserialize)]
        struct Listed {
            scenarios: Vec<Scenario>,
        }
        #[derive(Deserialize)]
        struct Scenario {
            name: String,
            tokens: HashMap<String, String>,
        }
        let answer = client()?.get(format!("{url}/simulator/scenarios")).send().await;
        let answer = answer.and_then(reqwest::Response::error_for_status).context("ask for the scenarios")?;
        let Listed { mut scenarios } = answer.json().await.context("read the scenarios")?;
        // What is charged after it was called off is told by a webhook alone: where those are dropped, nobody could know.
        scenarios.retain(|scenario| scenario.name != "action_then_authorised");
        let of =
            |psp: &str| scenarios.iter().filter_map(|one| one.tokens.get(psp).cloned()).collect::<Vec<_>>();
        let adyen = of("adyen").iter().map(|token| format!("{SHOPPER}-{token}")).collect();
        let tokens = Tokens { stripe: of("stripe"), adyen };
        ensure!(!tokens.stripe.is_empty() && !tokens.adyen.is_empty(), "the simulator has no scenarios");
        Ok(tokens)
    }
}

impl Load {
    /// How many payments go ahead.
    pub fn ahead(&self) -> usize {
        AHEAD_MAX.min(self.payments / AHEAD_ONE_IN)
    }

    /// Sends the payments that go ahead. After each it waits for what `settled` does with the number of them.
    pub async fn run_ahead(
        &self,
        progress: &Progress,
        settled: impl AsyncFn(usize) -> Result<()>,
    ) -> Result<Vec<Sent>> {
        let client = client()?;
        let mut sent = Vec::with_capacity(self.ahead());
        for number in 0..self.ahead() {
            sent.push(self.pay(&client, number, progress).await);
            settled(sent.len()).await?;
        }
        Ok(sent)
    }

    /// Sends all others at the rate. Returns when each has its answer, in the order of sending.
    pub async fn run(&self, progress: &Arc<Progress>) -> Result<Vec<Sent>> {
        let client = client()?;
        let room = Arc::new(Semaphore::new(OPEN_MAX));
        let begun = Instant::now();
        let mut asking = JoinSet::new();
        for (number, due) in (self.ahead()..self.payments).zip(schedule(self.rate)) {
            tokio::time::sleep_until(begun + due).await;
            let permit = Arc::clone(&room).acquire_owned().await.context("wait for room")?;
            let (load, client, progress) = (self.clone(), client.clone(), Arc::clone(progress));
            asking.spawn(async move {
                let sent = load.pay(&client, number, &progress).await;
                drop(permit);
                (number, sent)
            });
        }
        let mut sent = Vec::with_capacity(self.payments);
        while let Some(answered) = asking.join_next().await {
            sent.push(answered.context("send a payment")?);
        }
        sent.sort_by_key(|(number, _)| *number);
        Ok(sent.into_iter().map(|(_, sent)| sent).collect())
    }

    async fn pay(&self, client: &reqwest::Client, number: usize, progress: &Progress) -> Sent {
        progress.sent.fetch_add(1, Ordering::Relaxed);
        let wish = draw(self.seed, number, &self.mixture);
        let outcome = self.ask(client, &wish, progress).await;
        if matches!(outcome, Told::Accepted { .. }) {
            progress.accepted.fetch_add(1, Ordering::Relaxed);
        }
        let Wish { merchant_reference, amount_minor, currency, psp, payment_method, .. } = wish;
        let (currency, psp) = (currency.to_owned(), psp.to_owned());
        Sent { merchant_reference, amount_minor, currency, psp, payment_method, outcome }
    }

    /// Asks until there is an answer that says yes or no.
    async fn ask(&self, client: &reqwest::Client, wish: &Wish, progress: &Progress) -> Told {
        let begun = Instant::now();
        let mut pause = FIRST_PAUSE;
        loop {
            let why = match self.ask_once(client, wish).await {
                Ok(told) => return told,
                Err(why) => why,
            };
            if begun.elapsed() + pause > self.give_up_after {
                return Told::Unknown(why);
            }
            tokio::time::sleep(pause).await;
            pause = LONGEST_PAUSE.min(pause * 2);
            progress.repeated.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Err: no answer, or one that asks to come again.
    async fn ask_once(&self, client: &reqwest::Client, wish: &Wish) -> Result<Told, String> {
        #[derive(Deserialize)]
        struct Created {
            payment_id: Uuid,
            payment_order_id: Uuid,
        }
        let body = json!({
            "amount_minor": wish.amount_minor,
            "currency": wish.currency,
            "payment_method": wish.payment_method,
            "merchant_reference": wish.merchant_reference,
            "psp": wish.psp,
        });
        let request = client
            .post(format!("{}/v1/payments", self.api_url))
            .bearer_auth(&self.api_token)
            .header("Idempotency-Key", &wish.key)
            .json(&body);
        let response = request.send().await.map_err(|error| error.to_string())?;
        let status = response.status();
        let text = response.text().await.map_err(|error| error.to_string())?;
        match status {
            StatusCode::OK | StatusCode::CREATED => {
                let Created { payment_id, payment_order_id } =
                    serde_json::from_str(&text).map_err(|error| format!("{status}: {error}"))?;
                Ok(Told::Accepted { payment_id, payment_order_id })
            }
            // 409: the first request with this key is still being worked on.
            StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS | StatusCode::CONFLICT => {
                Err(format!("{status}: {text}"))
            }
            status if status.is_client_error() => Ok(Told::Refused(format!("{status}: {text}"))),
            status => Err(format!("{status}: {text}")),
        }
    }
}

fn client() -> Result<reqwest::Client> {
    let builder = reqwest::Client::builder().no_proxy().timeout(ANSWER_LIMIT).pool_max_idle_per_host(256);
    builder.build().context("build a client")
}

/// When each payment is due, counted from the beginning.
pub(crate) fn schedule(rate: f64) -> impl Iterator<Item = Duration> {
    (0_u32..).map(move |number| Duration::from_secs_f64(f64::from(number) / rate))
}

/// The payment of this number.
pub fn draw(seed: u64, number: usize, mixture: &Mixture) -> Wish {
    const CURRENCIES: [&str; 6] = ["EUR", "USD", "GBP", "CHF", "SEK", "JPY"];
    let mut random = Random::new(seed, number);
    let (psp, payment_method) = match mixture {
        Mixture::Plain => ("STRIPE", plain(&mut random).to_owned()),
        Mixture::Hostile(tokens) => hostile(&mut random, number, tokens),
    };
    Wish {
        // Letters in between: nothing here may look like a card number.
        key: format!("s{seed:x}n{number}"),
        merchant_reference: format!("order-{number}"),
        amount_minor: 100 + i64::try_from(random.below(99_900)).unwrap_or_default(),
        currency: CURRENCIES[random.below(CURRENCIES.len())],
        psp,
        payment_method,
    }
}

fn plain(random: &mut Random) -> &'static str {
    const DECLINES: [&str; 5] = [
        "pm_card_chargeDeclined",
        "pm_card_chargeDeclinedInsufficientFunds",
        "pm_card_chargeDeclinedLostCard",
        "pm_card_chargeDeclinedExpiredCard",
        "pm_card_authenticationRequired",
    ];
    const AMBIGUOUS: [&str; 3] = ["pm_sim_timeout_after_charge", "pm_sim_error_after_charge", "pm_sim_slow"];
    match random.below(100) {
        0..80 => "pm_card_visa",
        80..95 => DECLINES[random.below(DECLINES.len())],
        _ => AMBIGUOUS[random.below(AMBIGUOUS.len())],
    }
}

fn hostile(random: &mut Random, number: usize, tokens: &Tokens) -> (&'static str, String) {
    let (psp, tokens, success) = if random.below(2) == 0 {
        ("STRIPE", &tokens.stripe, "pm_sim_success")
    } else {
        ("ADYEN", &tokens.adyen, "shopper-adyen_sim_success")
    };
    // By number, so that a few hundred payments bring every token.
    let token = tokens.get(number % tokens.len().max(1)).filter(|_| random.below(2) == 0);
    (psp, token.map_or(success, String::as_str).to_owned())
}

/// SplitMix64: the same numbers from the same seed, on every machine.
#[derive(Debug)]
pub struct Random(u64);

impl Random {
    /// A sequence of its own for every stream of a seed.
    pub fn new(seed: u64, stream: usize) -> Random {
        let mut random = Random(seed);
        let mixed = random.next();
        Random(mixed ^ u64::try_from(stream).unwrap_or_default().wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    /// A number below `limit`.
    pub fn below(&mut self, limit: usize) -> usize {
        let limit = u64::try_from(limit.max(1)).unwrap_or(1);
        usize::try_from(self.next() % limit).unwrap_or_default()
    }

    /// A time below so many milliseconds.
    pub fn milliseconds(&mut self, limit: usize) -> Duration {
        Duration::from_millis(u64::try_from(self.below(limit)).unwrap_or_default())
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn a_seed_draws_the_same_payments_and_another_seed_others() {
        let drawn = |seed| (0..200).map(|number| draw(seed, number, &Mixture::Plain)).collect::<Vec<_>>();
        assert_eq!(drawn(1), drawn(1));
        let (one, two) = (drawn(1), drawn(2));
        assert!(one.iter().zip(&two).filter(|(a, b)| a.amount_minor == b.amount_minor).count() < 5);
        let keys: HashSet<_> = one.iter().chain(&two).map(|wish| &wish.key).collect();
        assert_eq!(keys.len(), 400);
    }

    #[test]
    fn most_succeed_some_are_declined_a_few_are_ambiguous() {
        let drawn: Vec<Wish> = (0..10_000).map(|number| draw(7, number, &Mixture::Plain)).collect();
        let share = |what: fn(&Wish) -> bool| drawn.iter().filter(|wish| what(wish)).count();
        let paid = share(|wish| wish.payment_method == "pm_card_visa");
        let ambiguous = share(|wish| wish.payment_method.starts_with("pm_sim_"));
        assert!((7_800..8_200).contains(&paid), "{paid}");
        assert!((400..600).contains(&ambiguous), "{ambiguous}");
        assert!(drawn.iter().all(|wish| (100..100_000).contains(&wish.amount_minor)));
        let methods: HashSet<_> = drawn.iter().map(|wish| wish.payment_method.as_str()).collect();
        assert_eq!(methods.len(), 9);
    }

    #[test]
    fn hostile_payments_bring_every_token_of_both_psps() {
        let some = |prefix: &str| (0..40).map(|n| format!("{prefix}{n}")).collect::<Vec<_>>();
        let tokens = Tokens { stripe: some("pm_sim_"), adyen: some("shopper-adyen_sim_") };
        let mixture = Mixture::Hostile(Arc::new(tokens));
        let drawn: Vec<Wish> = (0..5_000).map(|number| draw(1, number, &mixture)).collect();
        let methods: HashSet<_> = drawn.iter().map(|wish| &wish.payment_method).collect();
        assert_eq!(methods.len(), 82);
        for wish in &drawn {
            let prefix = if wish.psp == "STRIPE" { "pm_sim_" } else { "shopper-adyen_sim_" };
            assert!(wish.payment_method.starts_with(prefix), "{wish:?}");
        }
        let paid = drawn.iter().filter(|wish| wish.payment_method.ends_with("_success")).count();
        assert!((2_300..2_700).contains(&paid), "{paid}");
    }

    #[test]
    fn the_schedule_is_a_matter_of_the_clock_alone() {
        let due: Vec<Duration> = schedule(200.0).take(401).collect();
        assert_eq!(
            (due[0], due[200], due[400]),
            (Duration::ZERO, Duration::from_secs(1), Duration::from_secs(2))
        );
    }
}
