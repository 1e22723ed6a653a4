//! The contracts between the processes, and all that they share: two events, how they lie on the wire, and where their schemas are
//! kept.
//!
//! ```text
//! JSON payload (outbox row) --relay, by .avsc--> 0x00 | schema id | Avro body (Kafka record) --Decoder--> typed event
//! ```
//!
//! Rules of evolution (the registry enforces FULL_TRANSITIVE per subject):
//! - a new field has a default; a field is never removed, renamed or given another type;
//! - an enum only gains symbols, and has a default that means "not known", never success or failure. A reader that lacks a symbol
//!   sees the default;
//! - readers decode with the *writer's* schema and resolve to their own, so that both directions of an upgrade work.

pub mod card_numbers;
pub mod decode;
pub mod payment_order_requested;
pub mod psp_result_update;
pub mod registry;
pub mod wire;
