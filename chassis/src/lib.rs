//! What every process needs and that has no domain word in it.
//!
//! ```text
//! main: parse config -> telemetry -> signals -> run(config, shutdown) -> exit code        (process::main does all but `run`)
//! ```
//! [`config`] groups of settings, [`settings`] the command line and `--check-config`, [`telemetry`] JSON logs and the W3C trace context, [`trace`] spans, [`shutdown`] asking and waiting, [`admin`] the port with
//! `/metrics`, `/livez` and `/readyz`, [`healthcheck`] what asks there, [`mod@metrics`] declared once, [`needs`] what a process waits for, [`http`] a port that strangers send to, [`postgres`] pools and the one way to run a
//! transaction, [`kafka`] client settings, [`secrets`] files that hold what nobody may see, [`group`] writing in groups, [`backoff`] how long to wait before trying again; `failpoints`
//! where tests end a process.

pub mod admin;
pub mod backoff;
pub mod config;
#[cfg(feature = "failpoints")]
pub mod failpoints;
pub mod group;
pub mod healthcheck;
pub mod http;
pub mod kafka;
pub mod metrics;
pub mod needs;
pub mod postgres;
pub mod process;
pub mod secrets;
pub mod settings;
pub mod shutdown;
pub mod telemetry;
pub mod trace;

/// Whatever is read from a socket on one thread is freed on another, in Rust and within librdkafka: the system's allocator spends as much on
/// that as the work itself takes. This one stands in for both, in every process of ours (`docs/performance.md`).
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;
