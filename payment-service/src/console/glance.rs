//! How everything stands, at a glance, on top of every page: each database is asked once, all at once.

use sqlx::PgPool;

use super::{
    Console,
    pages::{counted, lag, seconds},
};
use crate::store::console::{
    self as store, COUNTED_MAX, Standing,
    outbox::{PENDING_COUNTED_MAX, Relay},
};

/// One thing that is looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Card {
    pub(super) name: &'static str,
    pub(super) lines: Vec<String>,
    /// Somebody should look into it.
    pub(super) alarm: bool,
}

/// How everything stands.
pub(super) async fn look(console: &Console) -> Vec<Card> {
    let parts = &console.0;
    let (standing, requests, results) = tokio::join!(
        store::standing(&parts.payments),
        relays(Some(&parts.payments)),
        relays(parts.executor.as_ref())
    );
    let parked = [&requests, &results].into_iter().flatten().flatten();
    let (parked, held) =
        parked.flatten().fold((0, 0), |sum, relay| (sum.0 + relay.parked, sum.1 + relay.held));
    let mut cards =
        vec![outbox("Outbox of requests", requests.as_ref()), outbox("Outbox of results", results.as_ref())];
    match standing {
        Ok(standing) => cards.extend([flow(&standing), waiting(&standing, parked, held)]),
        Err(error) => {
            tracing::error!(error = %error, "the payment service's database did not say how it stands");
            cards.push(Card {
                name: "Payment service",
                lines: vec!["its database did not answer in time".to_owned()],
                alarm: true,
            });
        }
    }
    cards
}

/// None: no way to that database is set. Some(None): it did not answer.
async fn relays(pool: Option<&PgPool>) -> Option<Option<Vec<Relay>>> {
    Some(match store::outbox::relays(pool?).await {
        Ok(relays) => Some(relays),
        Err(error) => {
            tracing::error!(error = %error, "an outbox's database did not say how it stands");
            None
        }
    })
}

fn outbox(name: &'static str, relays: Option<&Option<Vec<Relay>>>) -> Card {
    let one = |line: &str, alarm| Card { name, lines: vec![line.to_owned()], alarm };
    match relays {
        None => one("not shown: no way to the executor's database is set", false),
        Some(None) => one("its database did not answer in time", true),
        Some(Some(relays)) if relays.is_empty() => one("no relay has ever run here", true),
        Some(Some(relays)) => Card {
            name,
            lines: relays.iter().flat_map(|relay| relay_lines(relay, relays.len() > 1)).collect(),
            alarm: relays.iter().any(|relay| !relay.led || relay.halted.is_some() || relay.parked > 0),
        },
    }
}

fn relay_lines(relay: &Relay, named: bool) -> Vec<String> {
    let name = if named { format!("{}: ", relay.name) } else { String::new() };
    let pending = counted(relay.pending, PENDING_COUNTED_MAX);
    let oldest = match relay.oldest_seconds {
        Some(age) if relay.pending > 0 => format!(", the oldest for {}", lag(&seconds(age))),
        _ => String::new(),
    };
    let mut lines = vec![format!("{name}{pending} pending{oldest}")];
    lines.push(match (&relay.halted, relay.led, &relay.leader) {
        (Some(reason), _, _) => format!("halted: {reason}"),
        (None, true, Some(leader)) => format!("led by {leader}"),
        (None, true, None) => "led by a process that has not saved yet".to_owned(),
        (None, false, _) => "nobody leads".to_owned(),
    });
    if relay.parked > 0 {
        let (parked, held) = (counted(relay.parked, COUNTED_MAX), counted(relay.held, COUNTED_MAX));
        lines.push(format!("{parked} parked, {held} held behind them"));
    }
    lines
}

fn flow(standing: &Standing) -> Card {
    // Whole results per minute are enough at a glance.
    #[expect(clippy::cast_precision_loss, reason = "a few thousand at most")]
    let per_minute = standing.results as f64 * 60.0 / standing.seconds;
    let late = standing.lag_p99.map_or_else(
        || "none in the last minutes".to_owned(),
        |p99| format!("99 in 100 applied within {}", lag(&seconds(p99))),
    );
    // The mission's own limit: what is later than this is late.
    let alarm = standing.lag_p99.is_some_and(|p99| p99 > 1.0);
    Card { name: "Results", lines: vec![format!("{per_minute:.0} per minute"), late], alarm }
}

fn waiting(standing: &Standing, parked: i64, held: i64) -> Card {
    let Standing { in_review, quarantined, .. } = *standing;
    let count = |count| counted(count, COUNTED_MAX);
    Card {
        name: "Waits for a person",
        lines: vec![
            format!("{} in review", count(in_review)),
            format!("{} in quarantine", count(quarantined)),
            format!("{} parked, {} held", count(parked), count(held)),
        ],
        alarm: in_review + quarantined + parked > 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn relay() -> Relay {
        Relay {
            name: "relay".into(),
            leader: Some("vm:1".into()),
            led: true,
            pending: 0,
            oldest_seconds: None,
            parked: 0,
            held: 0,
            halted: None,
        }
    }

    #[test]
    fn an_outbox_says_what_is_wrong_with_it() {
        let card = |relays: Vec<Relay>| outbox("x", Some(&Some(relays)));
        assert_eq!(card(vec![relay()]).lines, ["0 pending", "led by vm:1"]);
        assert!(!card(vec![relay()]).alarm);
        let behind = Relay { pending: 10_001, oldest_seconds: Some(1.5), ..relay() };
        assert_eq!(card(vec![behind]).lines[0], "more than 10000 pending, the oldest for 1.500 s");
        let headless = card(vec![Relay { led: false, ..relay() }]);
        assert!(headless.alarm && headless.lines[1] == "nobody leads");
        let halted = card(vec![Relay { halted: Some("another server".into()), ..relay() }]);
        assert!(halted.alarm && halted.lines[1] == "halted: another server");
        let parked = card(vec![Relay { parked: 1, held: 2, ..relay() }, relay()]);
        assert!(parked.alarm && parked.lines[2] == "1 parked, 2 held behind them" && parked.lines.len() == 5);
        assert!(card(Vec::new()).alarm);
        assert!(outbox("x", Some(&None)).alarm && !outbox("x", None).alarm);
    }

    #[test]
    fn late_results_are_an_alarm_and_none_are_not() {
        let standing =
            Standing { results: 500, seconds: 30.0, lag_p99: Some(0.0123), in_review: 0, quarantined: 0 };
        assert_eq!(flow(&standing).lines, ["1000 per minute", "99 in 100 applied within 12.3 ms"]);
        assert!(!flow(&standing).alarm && !waiting(&standing, 0, 0).alarm);
        assert!(flow(&Standing { lag_p99: Some(1.1), ..standing }).alarm);
        let none = Standing { results: 0, lag_p99: None, ..standing };
        assert_eq!(flow(&none).lines, ["0 per minute", "none in the last minutes"]);
        assert!(waiting(&Standing { in_review: 1, ..standing }, 0, 0).alarm);
        assert!(waiting(&standing, 1, 0).alarm);
    }
}
