//! Notices when the consumer's thread does not come round any more: a call of the client that never returns, a deadlock. Nothing inside
//! the process cures that, so the process says so, stops being ready, and then ends, to be started again.
//!
//! A consumer that waits, for the database, the registry or the brokers, does come round: that is `consumer_waiting`.

use std::{sync::Arc, time::Duration};

use anyhow::bail;
use chassis::{needs::Pulse, shutdown::Shutdown};

use crate::metrics::Metrics;

/// Without a sign of life for so long, the process is not ready. Longer than a statement may take.
pub(crate) const STALLED_AFTER: Duration = Duration::from_secs(45);
/// Without one for so long, it ends: before the group gives it up (`max.poll.interval.ms`, 90 seconds).
pub(crate) const DEAD_AFTER: Duration = Duration::from_secs(75);

/// The consumer's last sign of life.
pub(crate) type Heartbeat = Pulse;

/// Watches until asked to stop. An error once there was no sign of life for `dead_after`.
pub(crate) async fn watch(
    heartbeat: Heartbeat,
    metrics: Arc<Metrics>,
    dead_after: Duration,
    shutdown: Shutdown,
) -> anyhow::Result<()> {
    while shutdown.sleep(Duration::from_secs(1).min(dead_after / 4)).await {
        let age = heartbeat.age();
        metrics.consumer_beat_age.set(age.as_secs_f64());
        if age > dead_after {
            bail!("the consumer has not come round for {} s", age.as_secs());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn watched(dead_after: Duration, alive: bool) -> anyhow::Result<()> {
        let metrics = Metrics::new(&prometheus::Registry::new()).unwrap();
        let heartbeat = chassis::needs::Readiness::default().pulse("consumer", dead_after);
        let shutdown = Shutdown::new();
        let watching = tokio::spawn(watch(heartbeat.clone(), metrics, dead_after, shutdown.clone()));
        for _ in 0..30 {
            if alive {
                heartbeat.beat();
            }
            tokio::time::sleep(dead_after / 10).await;
        }
        shutdown.request();
        watching.await.unwrap()
    }

    #[tokio::test]
    async fn a_consumer_that_does_not_come_round_ends_the_process() {
        let dead_after = Duration::from_secs(1);
        let (dead, alive) = tokio::join!(watched(dead_after, false), watched(dead_after, true));
        assert!(dead.unwrap_err().to_string().contains("not come round"));
        alive.unwrap();
    }
}
