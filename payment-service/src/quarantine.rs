//! Trying orphans again: a result whose payment order did not exist when it came is applied once it does.
//!
//! An orphan has no row in `processed_events` until then, so that it is applied like any other result, in a transaction that also
//! closes its row of the quarantine.

use std::{sync::Arc, time::Duration};

use chassis::{admin::Readiness, shutdown::Shutdown};
use schema::{decode::Decoder, psp_result_update::PspResultUpdateEvent};
use sqlx::PgPool;

use crate::{
    intake::{Taken, take},
    metrics::Metrics,
    processing::{Batch, ProcessPaymentService},
    store::results,
};

/// Most orphans in one transaction.
const ORPHANS_MAX: i64 = 100;

/// What the periodic task works with.
#[derive(Debug)]
pub(crate) struct Housekeeping {
    pub(crate) pool: PgPool,
    pub(crate) decoder: Arc<Decoder<PspResultUpdateEvent>>,
    pub(crate) service: ProcessPaymentService,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) readiness: Readiness,
    pub(crate) every: Duration,
}

impl Housekeeping {
    /// Looks after the quarantine until asked to stop. What fails is tried again the next time.
    pub(crate) async fn run(self, shutdown: Shutdown) -> anyhow::Result<()> {
        let mut wait = Duration::ZERO;
        while shutdown.sleep(wait).await {
            let result = self.once().await;
            self.readiness.set(result.is_ok());
            wait = self.every;
            if let Err(error) = result {
                tracing::warn!(error = format!("{error:#}"), "the quarantine could not be looked after");
                wait = self.every.min(Duration::from_secs(1));
            }
        }
        self.readiness.set(false);
        Ok(())
    }

    async fn once(&self) -> anyhow::Result<()> {
        self.retry_orphans().await?;
        self.metrics.payments_in_review.set(results::payments_in_review(&self.pool).await?);
        let counts = results::quarantined(&self.pool).await?;
        for reason in crate::intake::QuarantineReason::ALL.map(crate::intake::QuarantineReason::as_str) {
            let count = counts.iter().find(|(found, _)| found == reason).map_or(0, |(_, count)| *count);
            self.metrics.quarantine.with_label_values(&[reason]).set(count);
        }
        Ok(())
    }

    async fn retry_orphans(&self) -> anyhow::Result<()> {
        loop {
            let found = results::found_orphans(&self.pool, ORPHANS_MAX).await?;
            let full = i64::try_from(found.len())? == ORPHANS_MAX;
            let mut batch = Batch::default();
            for (quarantine_id, record) in found {
                match take(&self.decoder, Arc::new(record)).await.map_err(anyhow::Error::msg)? {
                    Taken::Update(mut update) => {
                        update.quarantine_id = Some(quarantine_id);
                        batch.updates.push(Arc::new(update));
                    }
                    // It was a result when it came; the registry must have forgotten its schema.
                    Taken::Aside(aside) => tracing::error!(
                        reason = aside.reason,
                        quarantine_id,
                        "an orphan cannot be read any more"
                    ),
                }
            }
            if batch.updates.is_empty() {
                return Ok(());
            }
            tracing::info!(count = batch.updates.len(), "payment orders of orphans were found");
            self.service.process_psp_result(batch).await?;
            if !full {
                return Ok(());
            }
        }
    }
}
