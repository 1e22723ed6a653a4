//! The places E1 to E7 of [`crate`], at which a test can end or stop this process. Nothing, unless built with the feature `failpoints`;
//! then set up by the environment variable `FAILPOINTS`, such as `E4=20*off->return(kill)`.

use sqlx::PgConnection;

/// Does what the environment asks for at this place.
pub(crate) fn reached(point: &'static str) {
    #[cfg(feature = "failpoints")]
    chassis::failpoints::strike(point);
    #[cfg(not(feature = "failpoints"))]
    let _ = point;
}

/// Makes a call; E2 is while its answer is awaited.
pub(crate) async fn called<F: Future>(call: F) -> F::Output {
    #[cfg(feature = "failpoints")]
    let call = chassis::failpoints::strike_while_pending(call, "E2");
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
    chassis::failpoints::strike_in_commit(tx, "E6").await?;
    #[cfg(not(feature = "failpoints"))]
    let _ = tx;
    Ok(())
}
