//! The places E1 to E7 of [`crate`], at which a test can end or stop this process. Nothing, unless built with the feature `failpoints`;
//! then set up by the environment variable `FAILPOINTS`, such as `E4=20*off->return(kill)`.

use sqlx::PgConnection;

/// Does what the environment asks for at this place.
pub(crate) fn reached(point: &'static str) {
    #[cfg(feature = "failpoints")]
    struck::strike(point);
    #[cfg(not(feature = "failpoints"))]
    let _ = point;
}

/// Makes a call; E2 is while its answer is awaited.
pub(crate) async fn called<F: Future>(call: F) -> F::Output {
    #[cfg(feature = "failpoints")]
    let call = struck::while_pending(call, "E2");
    call.await
}

/// At the end of the work of a transaction: E5 is before its COMMIT is sent, E6 is between that and the answer.
#[cfg_attr(
    not(feature = "failpoints"),
    expect(clippy::unused_async, reason = "waits for the COMMIT where there are failpoints")
)]
pub(crate) async fn committing(tx: &mut PgConnection) -> Result<(), sqlx::Error> {
    reached("E5");
    #[cfg(feature = "failpoints")]
    struck::at_commit(tx, "E6").await?;
    #[cfg(not(feature = "failpoints"))]
    let _ = tx;
    Ok(())
}

#[cfg(feature = "failpoints")]
mod struck {
    use std::{pin::pin, task::Poll, time::Duration};

    use rustix::process::{Signal, getpid, kill_process};
    use sqlx::PgConnection;

    /// A call that is not answered by then is on its way, or with the PSP.
    const UNDER_WAY: Duration = Duration::from_millis(1);

    /// `kill` and `stop` are SIGKILL and SIGSTOP of this very process.
    pub(super) fn strike(point: &'static str) {
        if let Some(signal) = due(point) {
            send(signal);
        }
    }

    /// Strikes once the call has been under way for a moment. One that is answered sooner does not count as a pass.
    pub(super) async fn while_pending<F: Future>(call: F, point: &'static str) -> F::Output {
        let mut call = pin!(call);
        if let Ok(answer) = tokio::time::timeout(UNDER_WAY, call.as_mut()).await {
            return answer;
        }
        strike(point);
        call.await
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
