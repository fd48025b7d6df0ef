//! W3C trace context across HTTP headers and stored deliveries.
//!
//! Reading is strict because the text comes from strangers: a header that is
//! not exactly to the standard is as good as none.

use std::str::FromStr as _;

use opentelemetry::Context;
use opentelemetry::trace::{
    SpanContext, SpanId, TraceContextExt as _, TraceFlags, TraceId, TraceState,
};
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

/// Length of a version 00 `traceparent`, in bytes.
const TRACEPARENT_BYTES: usize = 55;
/// Longest `traceparent` of a later version that is looked at, in bytes.
const TRACEPARENT_BYTES_MAX: usize = 256;
/// Longest `tracestate` that is kept, in bytes.
const TRACESTATE_BYTES_MAX: usize = 512;

/// Reads a `traceparent` and its `tracestate`; an empty context if the former
/// is not valid.
///
/// Exactly `version-traceid-parentid-flags` in lower-case hex, ids not zero,
/// version not `ff`; later versions may carry more after a dash. A
/// `tracestate` that is invalid or over 512 bytes is dropped alone.
pub fn extract(traceparent: &str, tracestate: Option<&str>) -> Context {
    let Some((trace_id, span_id, flags)) = parse(traceparent) else {
        return Context::new();
    };
    let state = tracestate
        .filter(|state| state.len() <= TRACESTATE_BYTES_MAX)
        .and_then(|state| TraceState::from_str(state).ok())
        .unwrap_or_default();
    let remote = SpanContext::new(trace_id, span_id, flags, true, state);
    Context::new().with_remote_span_context(remote)
}

/// Writes the `traceparent` of a context; `None` if it has no valid span.
pub fn inject(context: &Context) -> Option<String> {
    let span = context.span();
    let span = span.span_context();
    span.is_valid().then(|| {
        format!(
            "00-{}-{}-{:02x}",
            span.trace_id(),
            span.span_id(),
            span.trace_flags() & TraceFlags::SAMPLED
        )
    })
}

/// Makes `parent` the parent of a span that has not been entered yet.
///
/// Does nothing without traces, for an entered span, or for an empty context.
pub fn set_parent(span: &tracing::Span, parent: Context) {
    if parent.span().span_context().is_valid() {
        // Fails exactly in the cases named above.
        let _ = span.set_parent(parent);
    }
}

/// Returns the `traceparent` that names `span` as parent; `None` without
/// traces.
pub fn current_traceparent(span: &tracing::Span) -> Option<String> {
    inject(&span.context())
}

fn parse(text: &str) -> Option<(TraceId, SpanId, TraceFlags)> {
    if text.len() < TRACEPARENT_BYTES || text.len() > TRACEPARENT_BYTES_MAX || !text.is_ascii() {
        return None;
    }
    let (head, more) = text.split_at(TRACEPARENT_BYTES);
    let mut parts = head.split('-');
    let version = hex(parts.next()?, 2)?;
    let trace_id = hex(parts.next()?, 32)?;
    let span_id = u64::try_from(hex(parts.next()?, 16)?).ok()?;
    let flags = u8::try_from(hex(parts.next()?, 2)?).ok()?;
    let more_is_fine = match version {
        0 => more.is_empty(),
        0xff => false,
        _ => more.is_empty() || more.starts_with('-'),
    };
    if parts.next().is_some() || !more_is_fine || trace_id == 0 || span_id == 0 {
        return None;
    }
    Some((
        TraceId::from(trace_id),
        SpanId::from(span_id),
        TraceFlags::new(flags) & TraceFlags::SAMPLED,
    ))
}

fn hex(text: &str, digits: usize) -> Option<u128> {
    let lower = text
        .bytes()
        .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    (lower && text.len() == digits)
        .then(|| u128::from_str_radix(text, 16).ok())
        .flatten()
}

#[cfg(test)]
mod tests {
    use opentelemetry_sdk::trace::{InMemorySpanExporter, SdkTracerProvider};
    use tracing_subscriber::layer::SubscriberExt as _;

    use super::*;
    use crate::telemetry::tracing_layer;

    const GOOD: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn a_valid_traceparent_goes_in_and_out() {
        let context = extract(GOOD, Some("vendor=1"));
        assert_eq!(inject(&context).as_deref(), Some(GOOD));
        let span = context.span();
        assert!(span.span_context().is_remote());
        assert_eq!(span.span_context().trace_state().header(), "vendor=1");
        // Unknown flags are not passed on.
        let context = extract(&format!("{}ff", &GOOD[..53]), None);
        assert_eq!(inject(&context).as_deref(), Some(GOOD));
        // A later version may carry more.
        let later = format!("01{}-extra", &GOOD[2..]);
        assert_eq!(inject(&extract(&later, None)).as_deref(), Some(GOOD));
    }

    #[test]
    fn anything_not_to_the_standard_is_no_context() {
        let upper = GOOD.to_uppercase();
        let cases = [
            "",
            "00",
            &GOOD[..54],
            upper.as_str(),
            &format!("{GOOD}-"),
            &format!("{GOOD} "),
            &format!(" {GOOD}"),
            &format!("ff{}", &GOOD[2..]),
            &format!("01{}x", &GOOD[2..]),
            &GOOD.replace('-', "_"),
            &GOOD.replace("0af7", "+af7"),
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "00-0af7651916cd43dd8448eb211c80319c0b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c8031é-b7ad6b7169203331-01",
        ];
        for case in cases {
            assert_eq!(inject(&extract(case, None)), None, "{case:?}");
        }
    }

    #[test]
    fn a_bad_tracestate_is_dropped_alone() {
        let long = format!("k={}", "v".repeat(600));
        for state in ["nonsense", long.as_str()] {
            let context = extract(GOOD, Some(state));
            assert_eq!(inject(&context).as_deref(), Some(GOOD));
            assert_eq!(context.span().span_context().trace_state().header(), "");
        }
    }

    #[test]
    fn a_span_continues_the_remote_trace_and_names_itself() {
        let exporter = InMemorySpanExporter::default();
        let provider = SdkTracerProvider::builder()
            .with_simple_exporter(exporter.clone())
            .build();
        let subscriber = tracing_subscriber::registry().with(tracing_layer(&provider));
        let traceparent = tracing::subscriber::with_default(subscriber, || {
            let transport = tracing::info_span!(target: "hyper::proto", "transport");
            drop(transport.entered());
            let span = tracing::info_span!("receive", service.name = "kit");
            set_parent(&span, extract(GOOD, None));
            let traceparent = current_traceparent(&span).unwrap();
            drop(span.entered());
            traceparent
        });
        assert_eq!(traceparent[..36], GOOD[..36]);
        assert_ne!(traceparent, GOOD);
        let spans = exporter.get_finished_spans().unwrap();
        assert_eq!(spans.len(), 1, "transport spans are not exported");
        assert_eq!(spans[0].name, "receive");
        assert_eq!(spans[0].parent_span_id.to_string(), "b7ad6b7169203331");
        assert_eq!(
            spans[0].span_context.span_id().to_string(),
            traceparent[36..52]
        );
    }

    #[test]
    fn without_traces_there_is_no_traceparent() {
        let span = tracing::info_span!("receive");
        set_parent(&span, extract(GOOD, None));
        assert_eq!(current_traceparent(&span), None);
    }
}
