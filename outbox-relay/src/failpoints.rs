//! Named places where a test can end or stop this process: built only with the feature `failpoints`, set up by the environment
//! variable `FAILPOINTS`, such as `R3=20*off->return(kill)`.

use std::{pin::pin, task::Poll};

use rustix::process::{Signal, getpid, kill_process};

/// Does what the environment asks for at this place: `kill` and `stop` are SIGKILL and SIGSTOP of this very process.
pub(crate) fn strike(name: &'static str) {
    fail::eval(name, |action| {
        let signal = match action.as_deref() {
            Some("kill") => Signal::KILL,
            Some("stop") => Signal::STOP,
            other => panic!("a failpoint does not know the action {other:?}"),
        };
        if let Err(error) = kill_process(getpid(), signal) {
            panic!("a failpoint could not signal its own process: {error}");
        }
    });
}

/// Strikes at R6: the request is sent, the answer not read.
pub(crate) async fn struck_once_sent<F: Future>(saving: F, armed: bool) -> F::Output {
    let mut saving = pin!(saving);
    let mut asked = !armed;
    std::future::poll_fn(move |context| {
        let polled = saving.as_mut().poll(context);
        if polled.is_pending() && !asked {
            asked = true;
            strike("R6");
        }
        match polled {
            Poll::Ready(output) => Poll::Ready(output),
            Poll::Pending => Poll::Pending,
        }
    })
    .await
}
