//! Who leads: a session-level advisory lock on a connection of its own, and proof that it is still held.
//!
//! ```text
//! thread "leader-lock":  try lock every 200 ms  ->  held: ping every second  ->  released | lost
//!                          (standby)                 each ping proves in pg_locks that this very session holds the lock
//! ```
//! The thread and its runtime are its own, so that a busy relay cannot starve the pings. Without proof for [`PROOF_MAX_AGE`] nothing
//! more is produced. The server ends the session, and with it the lock, when it has heard nothing for five seconds: a leader
//! that is stopped (SIGSTOP) or cut off loses its lock without any TCP tuning, and finds no fresh proof when it wakes up.
//!
//! If the process dies, the kernel closes the connection and the server frees the lock at once.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use chassis::{backoff::Backoff, postgres, shutdown::Shutdown};
use secrecy::SecretString;
use sqlx::{Connection as _, PgConnection};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::store;

/// How often a standby tries.
const TRY_EVERY: Duration = Duration::from_millis(200);
/// How often the leader proves that it leads.
const PING_EVERY: Duration = Duration::from_secs(1);
/// Older proof is no proof.
pub const PROOF_MAX_AGE: Duration = Duration::from_secs(2);
/// The server ends a lock session that is silent for so long.
const SESSION_IDLE_MAX: Duration = Duration::from_secs(5);
// A leader must know that it may no longer produce before the server can give the lock to another.
const _: () = assert!(PROOF_MAX_AGE.as_secs() < SESSION_IDLE_MAX.as_secs());

/// The leader lock, held by this process.
#[derive(Debug)]
pub struct LeaderLock {
    /// Names this term of leadership in everything that it saves.
    pub token: Uuid,
    /// Cancelled when the lock is lost.
    pub lost: CancellationToken,
    proof: ProofOfLock,
    release: CancellationToken,
    thread: JoinHandle<()>,
}

/// What is asked before anything is produced.
#[derive(Clone, Debug)]
pub struct ProofOfLock {
    last: Arc<Proof>,
    lost: CancellationToken,
}

/// When the lock was last proven to be held, in milliseconds since `base`, by the monotonic clock.
#[derive(Debug)]
struct Proof {
    base: Instant,
    at_ms: AtomicU64,
}

impl Proof {
    fn record(&self, asked_at: Instant) {
        // The moment of the question, not of the answer: the server may have answered long before we read it.
        let at_ms = u64::try_from(asked_at.duration_since(self.base).as_millis()).unwrap_or(u64::MAX);
        self.at_ms.store(at_ms, Ordering::Release);
    }

    fn age(&self) -> Duration {
        self.base.elapsed().saturating_sub(Duration::from_millis(self.at_ms.load(Ordering::Acquire)))
    }
}

impl ProofOfLock {
    /// Fails unless the lock was proven to be held within the last [`PROOF_MAX_AGE`].
    pub fn ensure_proven(&self) -> anyhow::Result<()> {
        let age = self.last.age();
        ensure!(!self.lost.is_cancelled(), "the leader lock is lost");
        ensure!(age < PROOF_MAX_AGE, "no proof of the leader lock for {} ms", age.as_millis());
        Ok(())
    }
}

impl LeaderLock {
    /// The proof, for those who produce.
    pub fn proof(&self) -> ProofOfLock {
        self.proof.clone()
    }

    /// Gives the lock back, so that a standby has it at its next try.
    pub async fn release(self) {
        self.release.cancel();
        let thread = self.thread;
        if tokio::task::spawn_blocking(move || thread.join()).await.is_err() {
            tracing::error!("the leader-lock thread panicked");
        }
    }
}

/// Stands by until this process leads. None if shutdown was asked for first. `stands` is told, again and again, that the session to stand by
/// or to lead in is there, or why it is not.
pub async fn acquire(
    url: &SecretString,
    relay: &str,
    shutdown: &Shutdown,
    stands: impl Fn(Result<(), &anyhow::Error>) + Send + 'static,
) -> anyhow::Result<Option<LeaderLock>> {
    let (acquired, mut acquisition) = oneshot::channel();
    let (lost, release) = (CancellationToken::new(), CancellationToken::new());
    let proof = Arc::new(Proof { base: Instant::now(), at_ms: AtomicU64::new(0) });
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("runtime of the leader lock")?;
    let thread = {
        let (url, relay, lost, release, proof) =
            (url.clone(), relay.to_owned(), lost.clone(), release.clone(), Arc::clone(&proof));
        std::thread::Builder::new().name("leader-lock".to_owned()).spawn(move || {
            let held = hold(&url, &relay, &release, &proof, acquired, &stands);
            if let Err(error) = runtime.block_on(held) {
                stands(Err(&error));
                tracing::warn!(relay, error = format!("{error:#}"), "leader lock lost");
            }
            lost.cancel();
        })?
    };
    let proof = ProofOfLock { last: proof, lost: lost.clone() };
    let lock = LeaderLock { token: Uuid::now_v7(), lost, proof, release, thread };
    tokio::select! {
        answer = &mut acquisition => {
            answer.context("the leader-lock thread ended before it had the lock")?;
            Ok(Some(lock))
        }
        () = shutdown.wait() => {
            lock.release().await;
            Ok(None)
        }
    }
}

/// Takes the lock and holds it until released. An error means that it was lost.
async fn hold(
    url: &SecretString,
    relay: &str,
    release: &CancellationToken,
    proof: &Proof,
    acquired: oneshot::Sender<()>,
    stands: &impl Fn(Result<(), &anyhow::Error>),
) -> anyhow::Result<()> {
    let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(2));
    let (mut connection, key, session) = loop {
        tokio::select! {
            attempt = take(url, relay, proof, stands) => match attempt {
                Ok(taken) => break taken,
                Err(error) => {
                    stands(Err(&error));
                    tokio::time::sleep(backoff.next_delay()).await;
                }
            },
            () = release.cancelled() => return Ok(()),
        }
    };
    stands(Ok(()));
    if acquired.send(()).is_err() {
        return Ok(());
    }
    loop {
        tokio::select! {
            () = tokio::time::sleep(PING_EVERY) => {}
            () = release.cancelled() => {
                store::unlock(&mut connection, key).await.context("unlock")?;
                connection.close().await.context("close")?;
                return Ok(());
            }
        }
        match tokio::time::timeout(PING_EVERY, prove(&mut connection, key, proof))
            .await
            .context("the ping was not answered")??
        {
            Some(pid) if pid == session => stands(Ok(())),
            Some(pid) => {
                bail!("the session moved from server process {session} to {pid}: is a pooler in between?")
            }
            None => bail!("this session no longer holds the lock"),
        }
    }
}

/// Stands by until the lock is there, and proven. Returns the session that holds it, its number, and the server process behind it. A
/// session that ends between the two is like one that ends before: somebody else may lead by now.
async fn take(
    url: &SecretString,
    relay: &str,
    proof: &Proof,
    stands: &impl Fn(Result<(), &anyhow::Error>),
) -> anyhow::Result<(PgConnection, i64, i32)> {
    let (mut connection, key) = stand_by(url, relay, stands).await?;
    let session =
        prove(&mut connection, key, proof).await?.context("the lock just taken is not in pg_locks")?;
    Ok((connection, key, session))
}

/// Tries for the lock until it is there. Returns the session that holds it, and its number.
async fn stand_by(
    url: &SecretString,
    relay: &str,
    stands: &impl Fn(Result<(), &anyhow::Error>),
) -> anyhow::Result<(PgConnection, i64)> {
    let mut connection = postgres::connect(url, "outbox-relay lock").await?;
    refuse_pooler(&mut connection).await?;
    let server = store::server_identity(&mut connection).await?;
    ensure!(
        !server.in_recovery,
        "the server is a standby (in recovery): the outbox can only be relayed from the primary"
    );
    let key = store::lock_key(&mut connection, relay).await?;
    store::limit_idle_session(&mut connection, SESSION_IDLE_MAX.as_secs()).await?;
    while !store::try_lock(&mut connection, key).await? {
        stands(Ok(()));
        tokio::time::sleep(TRY_EVERY).await;
    }
    Ok((connection, key))
}

/// A lock of the session needs a session of its own. A pooler that shares server connections between transactions drops the settings
/// that a session begins with, or answers from another server process; the pings would find the latter, but only after the fact.
pub(crate) async fn refuse_pooler(connection: &mut PgConnection) -> anyhow::Result<()> {
    ensure!(
        store::checks::session_is_own(connection).await?,
        "this connection goes through a pooler that shares sessions (transaction or statement mode): leader lock and session settings do \
         not hold there; connect to PostgreSQL directly, or through a pool in session mode"
    );
    Ok(())
}

async fn prove(connection: &mut PgConnection, key: i64, proof: &Proof) -> anyhow::Result<Option<i32>> {
    let asked_at = Instant::now();
    let holder = store::lock_holder(connection, key).await?;
    if holder.is_some() {
        proof.record(asked_at);
    }
    Ok(holder)
}
