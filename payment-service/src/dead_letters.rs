//! The topic beside the results' topic, `.dlq`: a copy of every record that came into quarantine.
//!
//! ```text
//! lease rows without a copy -> produce -> delivery reports -> mark those that were delivered, let go of the others
//! ```
//! For those who watch topics; the table is the authority. At least once: if the process dies in between, the lease runs out and the
//! copy is made again. Brokers that are away, or a topic that is missing, stop nobody: the consumer does not know of this.

use std::{sync::Arc, time::Duration};

use anyhow::Context as _;
use chassis::{backoff::Backoff, config::KafkaConfig, shutdown::Shutdown};
use futures::{StreamExt as _, stream};
use rdkafka::{
    error::{KafkaError, RDKafkaErrorCode},
    message::{Header, Headers as _, OwnedHeaders},
    producer::{FutureProducer, FutureRecord},
    util::Timeout,
};
use sqlx::PgPool;

use crate::{
    metrics::Metrics,
    store::quarantine::{self, Uncopied},
};

/// Most records, and most bytes of their values, in memory for copying.
const COPIES_MAX: (i64, i64) = (100, 4 * 1024 * 1024);
/// Most of them on their way at once.
const IN_FLIGHT_MAX: usize = 100;
/// How often rows without a copy are looked for.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Longest wait for the brokers' acknowledgement; a request to stop is seen after it.
const DELIVERY_TIMEOUT_MS: &str = "4000";

/// Copies the quarantine to a topic.
pub(crate) struct DeadLetters {
    pool: PgPool,
    producer: FutureProducer,
    topic: String,
    metrics: Arc<Metrics>,
}

impl DeadLetters {
    pub(crate) fn new(
        kafka: &KafkaConfig,
        topic: String,
        pool: PgPool,
        metrics: Arc<Metrics>,
    ) -> anyhow::Result<Self> {
        let mut client = chassis::kafka::client(kafka, "payment-service dead letters");
        client
            .set("enable.idempotence", "true")
            .set("message.timeout.ms", DELIVERY_TIMEOUT_MS)
            // How much is too much is for the broker to say: it says it of one record alone.
            .set("message.max.bytes", "100000000");
        let producer =
            chassis::kafka::finish(client, kafka).create().context("the Kafka producer could not be made")?;
        Ok(Self { pool, producer, topic, metrics })
    }

    /// Copies until asked to stop.
    pub(crate) async fn run(self, shutdown: Shutdown) -> anyhow::Result<()> {
        let mut backoff = Backoff::new(LOOK_EVERY, Duration::from_secs(30));
        let mut wait = Duration::ZERO;
        while shutdown.sleep(wait).await {
            wait = match self.once().await {
                Ok(0) => {
                    backoff.reset();
                    LOOK_EVERY
                }
                Ok(_) => Duration::ZERO,
                Err(error) => {
                    self.metrics.quarantine_copy_failures.inc();
                    tracing::warn!(
                        error = format!("{error:#}"),
                        topic = self.topic,
                        "the quarantine was not copied to its topic; it will be tried again"
                    );
                    backoff.next_delay()
                }
            };
        }
        Ok(())
    }

    /// How many records were copied.
    async fn once(&self) -> anyhow::Result<usize> {
        let rows = quarantine::lease_uncopied(&self.pool, COPIES_MAX).await?;
        let sent = stream::iter(rows).map(|row| async move { (row.id, self.send(&row).await) });
        let sent: Vec<(i64, Result<(), KafkaError>)> = sent.buffered(IN_FLIGHT_MAX).collect().await;
        let of = |delivered: bool| -> Vec<i64> {
            sent.iter().filter(|(_, result)| result.is_ok() == delivered).map(|(id, _)| *id).collect()
        };
        let (copied, failed) = (of(true), of(false));
        if !sent.is_empty() {
            quarantine::mark_copied(&self.pool, &copied, &failed).await?;
            self.metrics.quarantine_copies.inc_by(u64::try_from(copied.len())?);
        }
        match sent.into_iter().find_map(|(_, result)| result.err()) {
            None => Ok(copied.len()),
            Some(error) => Err(error).with_context(|| format!("{} records were not delivered", failed.len())),
        }
    }

    async fn send(&self, row: &Uncopied) -> Result<(), KafkaError> {
        match self.deliver(row, row.record.value.as_deref(), None).await {
            // The source takes larger records than this topic, or our headers were too much for it.
            Err(KafkaError::MessageProduction(RDKafkaErrorCode::MessageSizeTooLarge)) => {
                let bytes = row.record.bytes();
                let omitted =
                    format!("{bytes} bytes are too many for this topic; payments.quarantine has them");
                self.deliver(row, None, Some(&omitted)).await
            }
            sent => sent,
        }
    }

    async fn deliver(
        &self,
        row: &Uncopied,
        value: Option<&[u8]>,
        omitted: Option<&str>,
    ) -> Result<(), KafkaError> {
        let record = &row.record;
        let own = [
            ("quarantine_id", row.id.to_string()),
            ("quarantine_reason_code", row.reason_code.clone()),
            ("quarantine_reason", row.reason.clone()),
            ("quarantine_topic", record.topic.to_string()),
            ("quarantine_partition", record.partition.to_string()),
            ("quarantine_offset", record.offset.to_string()),
        ];
        let mut headers = OwnedHeaders::new();
        if omitted.is_none() {
            for header in record.headers.iter().flat_map(|headers| headers.iter()) {
                headers = headers.insert(header);
            }
        }
        for (key, value) in &own {
            headers = headers.insert(Header { key, value: Some(value) });
        }
        if let Some(why) = omitted {
            headers = headers.insert(Header { key: "quarantine_value_omitted", value: Some(why) });
        }
        let mut copy: FutureRecord<'_, [u8], [u8]> = FutureRecord::to(&self.topic).headers(headers);
        copy.key = if omitted.is_none() { record.key.as_deref() } else { None };
        copy.payload = value;
        self.producer.send(copy, Timeout::After(LOOK_EVERY)).await.map(drop).map_err(|(error, _)| error)
    }
}
