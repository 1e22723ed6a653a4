//! What development needs and no production process does: the real parts, started natively, and our own processes under
//! full control.
//!
//! - [`stack`]: PostgreSQL, Kafka and a schema registry, shared by all tests; or one of them alone, to be crashed.
//! - [`processes`]: one of our binaries, to be started, killed, paused and asked.
//! - [`circle`]: all of them together, from the API to the settled payment.

pub mod circle;
pub mod demo;
pub mod load;
pub mod oracle;
pub mod processes;
pub mod report;
pub mod stack;
pub mod store;
pub mod topic;
