//! Asking every task to stop, and waiting until each has.

use std::{
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Handed to everything that runs for long. Loops look at the token between batches; nothing is aborted.
#[derive(Clone, Debug, Default)]
pub struct Shutdown {
    token: CancellationToken,
    tasks: TaskTracker,
    failed: Arc<AtomicBool>,
}

impl Shutdown {
    /// A shutdown that nobody has asked for yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Asks everybody to finish.
    pub fn request(&self) {
        self.token.cancel();
    }

    /// True once somebody asked.
    pub fn requested(&self) -> bool {
        self.token.is_cancelled()
    }

    /// Returns when somebody asked. Cancel-safe.
    pub async fn wait(&self) {
        self.token.cancelled().await;
    }

    /// Sleeps, but not beyond the request to stop. False if that came first.
    pub async fn sleep(&self, duration: Duration) -> bool {
        tokio::select! {
            () = tokio::time::sleep(duration) => true,
            () = self.wait() => false,
        }
    }

    /// Runs a long-lived task. Whatever ends it, an error or a panic too, ends the process: a process that lost a part of itself
    /// must be restarted, not limp.
    pub fn spawn<F>(&self, name: &'static str, task: F)
    where
        F: Future<Output = anyhow::Result<()>> + Send + 'static,
    {
        let shutdown = self.clone();
        self.tasks.spawn(async move {
            let asked = shutdown.clone();
            let result = tokio::spawn(task).await;
            let clean = matches!(result, Ok(Ok(()))) && asked.requested();
            match result {
                Ok(Ok(())) if clean => tracing::debug!(task = name, "task finished"),
                Ok(Ok(())) => tracing::error!(task = name, "task ended although nobody asked it to"),
                Ok(Err(error)) => tracing::error!(task = name, error = format!("{error:#}"), "task failed"),
                Err(panic) => tracing::error!(task = name, error = %panic, "task panicked"),
            }
            if !clean {
                shutdown.failed.store(true, Ordering::Release);
            }
            shutdown.request();
        });
    }

    /// True once a spawned task has failed, panicked or ended unasked.
    pub fn failed(&self) -> bool {
        self.failed.load(Ordering::Acquire)
    }

    /// Waits for every spawned task, at most `limit`. False if some were still running then.
    pub async fn finished(&self, limit: Duration) -> bool {
        self.tasks.close();
        tokio::time::timeout(limit, self.tasks.wait()).await.is_ok()
    }
}
