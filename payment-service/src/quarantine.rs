//! Trying records of the quarantine again: a result whose payment order did not exist when it came is applied once it does, and any
//! record is tried once more when an operator asks for it.
//!
//! Such a record has no row in `processed_events` until then, so that it is applied like any other result, in a transaction that also
//! closes its row of the quarantine and that of the command. Several instances do this beside each other: the rows are locked in that
//! transaction, and whoever comes second finds them settled.

use std::{sync::Arc, time::Duration};

use chassis::{needs::Need, shutdown::Shutdown};
use schema::{decode::Decoder, psp_result_update::PspResultUpdateEvent};
use sqlx::PgPool;
use tokio::time::Instant;

use crate::{
    intake::{Again, QuarantineReason, RawRecord, Taken, take},
    metrics::Metrics,
    processing::{Batch, ProcessPaymentService},
    store::{quarantine, results},
    watchdog::{Heartbeat, STALLED_AFTER},
};

/// Most records in one transaction, and most bytes of their values.
const AGAIN_MAX: (i64, i64) = (100, 4 * 1024 * 1024);
/// How often operators' commands are looked for: somebody waits for the answer.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// What the periodic task works with.
#[derive(Debug)]
pub(crate) struct Housekeeping {
    pub(crate) pool: PgPool,
    pub(crate) decoder: Arc<Decoder<PspResultUpdateEvent>>,
    pub(crate) service: ProcessPaymentService,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) database: Need,
    pub(crate) consuming: Need,
    pub(crate) heartbeat: Heartbeat,
    pub(crate) every: Duration,
}

impl Housekeeping {
    /// Looks after the quarantine until asked to stop. What fails is tried again the next time.
    pub(crate) async fn run(self, shutdown: Shutdown) -> anyhow::Result<()> {
        let mut wait = Duration::ZERO;
        let mut next_look = Instant::now();
        while shutdown.sleep(wait).await {
            let look = Instant::now() >= next_look;
            let result = self.once(look, &shutdown).await;
            let age = self.heartbeat.age();
            if age < STALLED_AFTER {
                self.consuming.met();
            } else {
                self.consuming.missing(format!("the consumer has not come round for {} s", age.as_secs()));
            }
            if look && result.is_ok() {
                next_look = Instant::now() + self.every;
            }
            match result {
                Ok(()) => self.database.met(),
                Err(error) => {
                    let refused = error.downcast_ref().map(chassis::postgres::explain);
                    let error = refused.unwrap_or_else(|| format!("{error:#}"));
                    self.database.missing(format!("the quarantine could not be looked after: {error}"));
                }
            }
            wait = self.every.min(LOOK_EVERY);
        }
        Ok(())
    }

    /// Tries what operators ask for; with `look` also looks for orphans whose payment order is there by now, and counts.
    async fn once(&self, look: bool, shutdown: &Shutdown) -> anyhow::Result<()> {
        while !shutdown.requested() {
            let records = quarantine::to_try_again(&self.pool, look, AGAIN_MAX).await?;
            if records.is_empty() {
                break;
            }
            self.try_again(records).await?;
        }
        if !look {
            return Ok(());
        }
        self.metrics.payments_in_review.set(results::payments_in_review(&self.pool).await?);
        let counts = quarantine::unsettled(&self.pool).await?;
        for reason in QuarantineReason::ALL.map(QuarantineReason::as_str) {
            let count = counts.iter().find(|(found, _)| found == reason).map_or(0, |(_, count)| *count);
            self.metrics.quarantine.with_label_values(&[reason]).set(count);
        }
        self.metrics.quarantine_uncopied.set(quarantine::uncopied(&self.pool).await?);
        self.metrics.gauges_read.set(chassis::metrics::timestamp_seconds());
        Ok(())
    }

    /// Each of them is settled afterwards, or its row says why it is there still.
    async fn try_again(&self, records: Vec<(Again, RawRecord)>) -> anyhow::Result<()> {
        tracing::info!(count = records.len(), "records of the quarantine are tried again");
        // Whoever asks for it may have mended the registry a moment ago.
        self.decoder.forget_missing();
        let mut batch = Batch::default();
        for (again, record) in records {
            match take(&self.decoder, Arc::new(record)).await.map_err(anyhow::Error::msg)? {
                Taken::Update(mut update) => {
                    update.again = Some(again);
                    batch.updates.push(Arc::new(update));
                }
                Taken::Aside(mut aside) => {
                    aside.quarantine_id = Some(again.quarantine_id);
                    batch.aside.push(aside);
                }
            }
        }
        self.service.process_psp_result(batch).await?;
        Ok(())
    }
}
