//! Named places where a test can end or stop this process. Built only with the feature `failpoints`, which no build that is installed has;
//! set up by the environment variable `FAILPOINTS`, such as `E4=20*off->return(kill)`. Which places there are is for each process to say.

use std::{pin::pin, task::Poll, time::Duration};

use rustix::process::{Signal, getpid, kill_process};
use sqlx::PgConnection;

pub use fail::FailScenario;

/// What is not done by then is on its way, or with whoever it was sent to.
const UNDER_WAY: Duration = Duration::from_millis(1);

/// Does what the environment asks for at this place: `kill` and `stop` are SIGKILL and SIGSTOP of this very process.
pub fn strike(point: &'static str) {
    if let Some(signal) = due(point) {
        send(signal);
    }
}

/// Strikes a moment later: what another thread was given to send is on its way by then, or has arrived.
pub fn strike_soon(point: &'static str) {
    if let Some(signal) = due(point) {
        std::thread::sleep(UNDER_WAY);
        send(signal);
    }
}

/// Strikes once the call has been under way for a moment. One that is answered sooner does not count as a pass.
pub async fn strike_while_pending<F: Future>(call: F, point: &'static str) -> F::Output {
    let mut call = pin!(call);
    if let Ok(answer) = tokio::time::timeout(UNDER_WAY, call.as_mut()).await {
        return answer;
    }
    strike(point);
    call.await
}

/// Strikes when the request is sent and its answer not read.
pub async fn strike_once_sent<F: Future>(request: F, point: &'static str) -> F::Output {
    once_sent(request, || strike(point)).await
}

/// At the end of the work of a transaction: sends the COMMIT itself, and strikes before its answer is read. If the process lives on, the
/// transaction's own COMMIT finds nothing to do.
///
/// # Errors
/// The database's own, of the COMMIT.
pub async fn strike_in_commit(tx: &mut PgConnection, point: &'static str) -> Result<(), sqlx::Error> {
    let Some(signal) = due(point) else { return Ok(()) };
    once_sent(sqlx::raw_sql("COMMIT").execute(tx), || send(signal)).await.map(drop)
}

async fn once_sent<F: Future>(request: F, strike: impl FnOnce()) -> F::Output {
    let mut request = pin!(request);
    let mut strike = Some(strike);
    std::future::poll_fn(move |context| {
        let polled = request.as_mut().poll(context);
        if polled.is_pending()
            && let Some(strike) = strike.take()
        {
            strike();
        }
        match polled {
            Poll::Ready(output) => Poll::Ready(output),
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
