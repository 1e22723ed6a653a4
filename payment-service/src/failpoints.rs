//! The places C1 to C8 of [`crate`], at which a test can end or stop this process. Nothing, unless built with the feature `failpoints`;
//! then set up by the environment variable `FAILPOINTS`, such as `C3=20*off->return(kill)`.

use sqlx::PgConnection;

/// Does what the environment asks for at this place.
pub(crate) fn reached(point: &'static str) {
    #[cfg(feature = "failpoints")]
    struck::strike(point);
    #[cfg(not(feature = "failpoints"))]
    let _ = point;
}

/// C6: offsets were handed to the client, whose own thread sends them. A moment later they are on their way, or with the broker.
pub(crate) fn sent_offsets() {
    #[cfg(feature = "failpoints")]
    struck::strike_soon("C6");
}

/// At the end of the work of a transaction: C4 is after its COMMIT is sent and before the answer.
#[cfg_attr(
    not(feature = "failpoints"),
    expect(clippy::unused_async, reason = "waits for the COMMIT where there are failpoints")
)]
pub(crate) async fn committing(tx: &mut PgConnection) -> Result<(), sqlx::Error> {
    #[cfg(feature = "failpoints")]
    struck::at_commit(tx, "C4").await?;
    #[cfg(not(feature = "failpoints"))]
    let _ = tx;
    Ok(())
}

#[cfg(feature = "failpoints")]
mod struck {
    use std::{pin::pin, task::Poll, time::Duration};

    use rustix::process::{Signal, getpid, kill_process};
    use sqlx::PgConnection;

    /// About what a request to a broker on the same machine takes: some are answered by then, some are not.
    const UNDER_WAY: Duration = Duration::from_millis(1);

    /// `kill` and `stop` are SIGKILL and SIGSTOP of this very process.
    pub(super) fn strike(point: &'static str) {
        if let Some(signal) = due(point) {
            send(signal);
        }
    }

    pub(super) fn strike_soon(point: &'static str) {
        if let Some(signal) = due(point) {
            std::thread::sleep(UNDER_WAY);
            send(signal);
        }
    }

    /// Sends the COMMIT itself, and strikes before its answer is read. If the process lives on, the transaction's own COMMIT finds nothing
    /// to do.
    pub(super) async fn at_commit(tx: &mut PgConnection, point: &'static str) -> Result<(), sqlx::Error> {
        let Some(signal) = due(point) else { return Ok(()) };
        let mut committing = pin!(sqlx::raw_sql("COMMIT").execute(tx));
        let mut sent = false;
        std::future::poll_fn(move |context| {
            let polled = committing.as_mut().poll(context);
            if polled.is_pending() && !sent {
                sent = true;
                send(signal);
            }
            match polled {
                Poll::Ready(done) => Poll::Ready(done.map(|_| ())),
                Poll::Pending => Poll::Pending,
            }
        })
        .await
    }

    fn due(point: &'static str) -> Option<Signal> {
        fail::eval(point, |action| match action.as_deref() {
            Some("kill") => Signal::KILL,
            Some("stop") => Signal::STOP,
            other => panic!("a failpoint does not know the action {other:?}"),
        })
    }

    fn send(signal: Signal) {
        if let Err(error) = kill_process(getpid(), signal) {
            panic!("a failpoint could not signal its own process: {error}");
        }
    }
}
