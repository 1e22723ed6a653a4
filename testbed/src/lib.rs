//! What development needs and no production process does: the real parts, started natively, and our own processes under
//! full control.
//!
//! - [`stack`]: PostgreSQL, Kafka and a schema registry, shared by all tests; or one of them alone, to be crashed.
//! - [`processes`]: one of our binaries, to be started, killed, paused and asked.
//! - [`circle`]: all of them together, from the API to the settled payment.
//! - [`collector`]: takes the spans that our processes export.
//! - [`load`]: payments at a fixed rate, by a client that asks again until it has an answer.
//! - [`oracle`]: compares what every witness says when all has come to rest, and reports each broken promise. [`topic`] and
//!   [`store`] read for it.
//! - [`faults`]: one family of faults after the other, in episodes that a seed draws, behind a [`proxy`]; [`workload`] are its writers.
//! - [`prometheus`]: watches a circle, natively; [`drill`] kills one part after the other under its eyes.
//! - [`demo`]: all of that together while processes are killed; [`report`] says what came of it.
//! - [`mod@bench`]: what the relay can do and what it costs, beside a raw producer and a rival; and the executor, for which
//!   [`requests`] asks. [`results`] tells the payment service what the executor would.

pub mod bench;
pub mod circle;
pub mod collector;
pub mod contract;
pub mod demo;
pub mod drill;
pub mod faults;
pub mod load;
pub mod oracle;
pub mod processes;
pub mod prometheus;
pub mod proxy;
pub mod report;
pub mod requests;
pub mod results;
pub mod stack;
pub mod store;
pub mod topic;
pub mod workload;
pub mod yaml;
