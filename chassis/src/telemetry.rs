//! JSON logs on stderr, and the W3C trace context that ties the processes together.
//!
//! A trace begins with a payment and is *stored* with it, so that what happens hours later (a webhook, a resolver) continues the
//! same trace. Log lines carry `trace_id` and `span_id` as fields of their own.

use anyhow::Context as _;
use tracing_subscriber::{EnvFilter, layer::SubscriberExt as _, util::SubscriberInitExt as _};
use uuid::Uuid;

use crate::{config::TelemetryConfig, trace};

/// Starts logging, one JSON object per line on stderr, and the export of spans, if there is somewhere to export to.
pub fn init(service: &'static str, config: &TelemetryConfig) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(&config.log).with_context(|| format!("log filter {:?}", config.log))?;
    let json = tracing_subscriber::fmt::layer()
        .json()
        .flatten_event(true)
        .with_current_span(true)
        .with_span_list(false)
        .with_writer(std::io::stderr);
    tracing_subscriber::registry().with(filter).with(json).try_init().context("logging was started twice")?;
    tracing::info!(service, version = env!("CARGO_PKG_VERSION"), pid = std::process::id(), "starting");
    trace::init(service, config)
}

/// A W3C `traceparent` (version 00): which trace, and which span of it is the parent of what follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceContext {
    trace_id: u128,
    span_id: u64,
    flags: u8,
}

impl TraceContext {
    /// Begins a new, sampled trace.
    pub fn new_trace() -> Self {
        Self { trace_id: Uuid::new_v4().as_u128(), span_id: new_span_id(), flags: 1 }
    }

    /// The context of these ids and flags; None if an id is 0, which means that there is none.
    pub fn new(trace_id: u128, span_id: u64, flags: u8) -> Option<Self> {
        (trace_id != 0 && span_id != 0).then_some(Self { trace_id, span_id, flags })
    }

    /// Trace id, span id and flags.
    pub fn parts(&self) -> (u128, u64, u8) {
        (self.trace_id, self.span_id, self.flags)
    }

    /// Whether whoever began the trace wants its spans kept.
    pub fn sampled(&self) -> bool {
        self.flags & 1 == 1
    }

    /// A new span in the same trace.
    #[must_use]
    pub fn child(self) -> Self {
        Self { span_id: new_span_id(), ..self }
    }

    /// Reads a `traceparent`; None if it is not a valid one (W3C Trace Context, section 3.2).
    pub fn parse(text: &str) -> Option<Self> {
        let bytes = text.as_bytes();
        if !text.is_ascii() || bytes.len() < 55 || bytes[2] != b'-' || bytes[35] != b'-' || bytes[52] != b'-'
        {
            return None;
        }
        let hex = |part: &str| part.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        let (version, trace, span, flags) = (&text[..2], &text[3..35], &text[36..52], &text[53..55]);
        // A later version may append fields after another dash; version 00 has exactly 55 characters, and ff is forbidden.
        let length_fits =
            if version == "00" { bytes.len() == 55 } else { bytes.len() == 55 || bytes[55] == b'-' };
        if !length_fits || version == "ff" || ![version, trace, span, flags].into_iter().all(hex) {
            return None;
        }
        Self::new(
            u128::from_str_radix(trace, 16).ok()?,
            u64::from_str_radix(span, 16).ok()?,
            u8::from_str_radix(flags, 16).ok()?,
        )
    }

    /// The `traceparent` header.
    pub fn traceparent(&self) -> String {
        format!("00-{:032x}-{:016x}-{:02x}", self.trace_id, self.span_id, self.flags)
    }

    /// The trace id as 32 hexadecimal digits, as it stands in logs.
    pub fn trace_id(&self) -> String {
        format!("{:032x}", self.trace_id)
    }

    /// The span id as 16 hexadecimal digits, as it stands in logs.
    pub fn span_id(&self) -> String {
        format!("{:016x}", self.span_id)
    }
}

fn new_span_id() -> u64 {
    // The low half of a v4 uuid holds 62 random bits beside its fixed variant bits, so that it is never 0.
    Uuid::new_v4().as_u64_pair().1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn traceparent_is_read_and_written_as_w3c_says() {
        let text = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let context = TraceContext::parse(text).unwrap();
        assert_eq!(context.traceparent(), text);
        assert_eq!(context.trace_id(), "4bf92f3577b34da6a3ce929d0e0e4736");
        let child = context.child();
        assert_eq!(child.trace_id(), context.trace_id());
        assert_ne!(child.traceparent(), text);
        assert!(
            TraceContext::parse(&format!("cc{}-more", &text[2..])).is_some(),
            "a later version may have more fields"
        );
    }

    #[test]
    fn what_is_not_a_traceparent_is_refused() {
        for text in [
            "",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4bf92f3577b34da6a3ce929d0e0e473é-0f067aa0ba902b7-01",
            "00-+bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        ] {
            assert_eq!(TraceContext::parse(text), None, "{text:?}");
        }
    }
}
