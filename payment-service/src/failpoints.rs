//! The places C1 to C8 of [`crate`], at which a test can end or stop this process. Nothing, unless built with the feature `failpoints`;
//! then set up by the environment variable `FAILPOINTS`, such as `C3=20*off->return(kill)`.

use sqlx::PgConnection;

/// Does what the environment asks for at this place.
pub(crate) fn reached(point: &'static str) {
    #[cfg(feature = "failpoints")]
    chassis::failpoints::strike(point);
    #[cfg(not(feature = "failpoints"))]
    let _ = point;
}

/// C6: offsets were handed to the client, whose own thread sends them. A moment later they are on their way, or with the broker.
pub(crate) fn sent_offsets() {
    #[cfg(feature = "failpoints")]
    chassis::failpoints::strike_soon("C6");
}

/// At the end of the work of a transaction: C4 is after its COMMIT is sent and before the answer.
#[cfg_attr(
    not(feature = "failpoints"),
    expect(clippy::unused_async, reason = "waits for the COMMIT where there are failpoints")
)]
pub(crate) async fn committing(tx: &mut PgConnection) -> Result<(), sqlx::Error> {
    #[cfg(feature = "failpoints")]
    chassis::failpoints::strike_in_commit(tx, "C4").await?;
    #[cfg(not(feature = "failpoints"))]
    let _ = tx;
    Ok(())
}
