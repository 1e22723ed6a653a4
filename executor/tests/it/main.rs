//! The executor against a real database, a real topic and a PSP that speaks Stripe's protocol.

mod atomicity;
mod claims;
mod doubt;
mod outcomes;
mod requests;
mod setup;
