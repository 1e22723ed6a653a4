//! The executor against a real database, a real topic and a PSP that speaks Stripe's protocol and Adyen's.

#![expect(clippy::unwrap_used, reason = "a test ends where something fails")]

mod adapters;
mod atomicity;
mod claims;
mod conformance;
mod crowd;
mod doubt;
mod expiry;
mod outcomes;
mod requests;
mod secrets;
mod sender;
mod setup;
mod webhooks;
mod webhooks_hostile;
mod webhooks_refused;
