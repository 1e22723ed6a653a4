//! Asks for payment orders all the while, and is held between two episodes.
//!
//! Both PSPs get as many. What happens to each order is a matter of its token, and that of the seed: most are charged at once, some are
//! declined, and about one in six loses an answer on the way, at the PSP itself, whatever else is broken.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::{CancellationToken, DropGuard};
use uuid::Uuid;

use crate::load::Random;
use crate::requests::{Asked, Requests};

/// Between two orders, on average half of it.
const PAUSE_MS: usize = 24;
/// So many orders after a fault tell whether executors are back.
const FIRST: usize = 500;
/// For the broker to acknowledge what it was sent, when it has been away.
const HOLD_LIMIT: Duration = Duration::from_mins(1);

/// What happens to orders at one PSP.
#[derive(Clone, Copy)]
struct Tokens {
    psp: &'static str,
    paid: &'static str,
    declined: &'static [&'static str],
    ambiguous: &'static [&'static str],
}

/// The last four of the ambiguous ones are worth another try in the same process, where there is time for it.
const STRIPE: Tokens = Tokens {
    psp: "STRIPE",
    paid: "pm_card_visa",
    declined: &[
        "pm_card_chargeDeclined",
        "pm_card_chargeDeclinedInsufficientFunds",
        "pm_card_chargeDeclinedExpiredCard",
        "pm_card_authenticationRequired",
    ],
    ambiguous: &[
        "pm_sim_timeout_after_charge",
        "pm_sim_error_after_charge",
        "pm_sim_timeout_before_charge",
        "pm_sim_slow",
        "pm_sim_processing",
        "pm_sim_error_once_after_charge",
        "pm_sim_reset_before_charge",
        "pm_sim_reset_after_charge",
        "pm_sim_unavailable",
    ],
};

/// Nobody can look at a payment there: what became of `error_after_charge`, `processing` and `received` is told by webhooks alone.
const ADYEN: Tokens = Tokens {
    psp: "ADYEN",
    paid: "shopper-1-adyen_sim_success",
    declined: &[
        "shopper-1-adyen_sim_decline_generic",
        "shopper-1-adyen_sim_decline_insufficient_funds",
        "shopper-1-adyen_sim_decline_expired_card",
        "shopper-1-adyen_sim_authentication_required",
        "shopper-1-adyen_sim_action_redirect",
    ],
    ambiguous: &[
        "shopper-1-adyen_sim_timeout_after_charge",
        "shopper-1-adyen_sim_error_after_charge",
        "shopper-1-adyen_sim_timeout_before_charge",
        "shopper-1-adyen_sim_slow",
        "shopper-1-adyen_sim_processing",
        "shopper-1-adyen_sim_received_then_failure",
        "shopper-1-adyen_sim_error_once_after_charge",
        "shopper-1-adyen_sim_reset_before_charge",
        "shopper-1-adyen_sim_reset_after_charge",
        "shopper-1-adyen_sim_unavailable",
    ],
};

/// Asks until it is dropped.
#[derive(Debug)]
pub(super) struct Asker {
    open: watch::Sender<bool>,
    /// Requests without an acknowledgement.
    unanswered: watch::Sender<usize>,
    asked: Arc<Mutex<Vec<(Asked, Instant)>>>,
    failure: Arc<Mutex<Option<String>>>,
    _stop: DropGuard,
}

impl Asker {
    /// Starts it; it is held.
    pub(super) fn start(requests: Requests, seed: u64) -> Asker {
        let (open, unanswered) = (watch::Sender::new(false), watch::Sender::new(0));
        let (asked, failure) = (Arc::default(), Arc::default());
        let stop = CancellationToken::new();
        let asking = Asking {
            requests,
            open: open.subscribe(),
            unanswered: unanswered.clone(),
            asked: Arc::clone(&asked),
            failure: Arc::clone(&failure),
            random: Random::new(seed, usize::MAX / 2),
        };
        let stopped = stop.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = asking.ask() => {}
                () = stopped.cancelled() => {}
            }
        });
        Asker { open, unanswered, asked, failure, _stop: stop.drop_guard() }
    }

    /// Lets it ask.
    pub(super) fn go(&self) {
        self.open.send_replace(true);
    }

    /// Lets it ask for nothing more, and waits until the broker has acknowledged everything.
    pub(super) async fn hold(&self) -> Result<()> {
        self.open.send_replace(false);
        let mut unanswered = self.unanswered.subscribe();
        let all = unanswered.wait_for(|unanswered| *unanswered == 0);
        tokio::time::timeout(HOLD_LIMIT, all).await.context("a request is not acknowledged")??;
        if let Some(failure) = locked(&self.failure).take() {
            bail!("a request could not be sent: {failure}");
        }
        Ok(())
    }

    /// How many were acknowledged until now.
    pub(super) fn count(&self) -> usize {
        locked(&self.asked).len()
    }

    /// What was acknowledged, but for the first so many.
    pub(super) fn since(&self, place: usize) -> Vec<Asked> {
        locked(&self.asked).iter().skip(place).map(|(asked, _)| asked.clone()).collect()
    }

    /// The first orders that were sent after this moment.
    pub(super) fn after(&self, moment: Instant) -> Vec<Uuid> {
        let asked = locked(&self.asked);
        let after = asked.iter().filter(|(_, at)| *at > moment).take(FIRST);
        after.map(|(asked, _)| asked.payment_order_id).collect()
    }
}

struct Asking {
    requests: Requests,
    open: watch::Receiver<bool>,
    unanswered: watch::Sender<usize>,
    asked: Arc<Mutex<Vec<(Asked, Instant)>>>,
    failure: Arc<Mutex<Option<String>>>,
    random: Random,
}

impl Asking {
    async fn ask(mut self) {
        let mut sends = JoinSet::new();
        loop {
            while sends.try_join_next().is_some() {}
            if self.open.wait_for(|open| *open).await.is_err() {
                return;
            }
            let asked = draw(&mut self.random);
            let (requests, unanswered) = (self.requests.clone(), self.unanswered.clone());
            let (list, failure) = (Arc::clone(&self.asked), Arc::clone(&self.failure));
            unanswered.send_modify(|unanswered| *unanswered += 1);
            sends.spawn(async move {
                let sent_at = Instant::now();
                match requests.send(&asked).await {
                    Ok(()) => locked(&list).push((asked, sent_at)),
                    Err(error) => {
                        locked(&failure).get_or_insert(format!("{error:#}"));
                    }
                }
                unanswered.send_modify(|unanswered| *unanswered -= 1);
            });
            tokio::time::sleep(self.random.milliseconds(PAUSE_MS)).await;
        }
    }
}

fn draw(random: &mut Random) -> Asked {
    let tokens = [STRIPE, ADYEN][random.below(2)];
    let payment_method = match random.below(100) {
        0..70 => tokens.paid,
        70..83 => tokens.declined[random.below(tokens.declined.len())],
        _ => tokens.ambiguous[random.below(tokens.ambiguous.len())],
    };
    let amount_minor = 100 + i64::try_from(random.below(99_900)).unwrap_or_default();
    Asked { psp: tokens.psp, amount_minor, ..Asked::new(payment_method) }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
