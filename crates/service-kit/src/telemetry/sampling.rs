//! Which new traces are recorded, decided before anything is built.
//!
//! A span costs its fields' formatting, a place in the registry and an
//! allocation or ten, whether or not it is exported in the end. So where there is
//! one per request the coin is tossed first, and only who wins it gets a span.
//! The tracer is told of the decision through the context, or it would toss
//! again.

use std::cell::Cell;
use std::hash::{BuildHasher as _, RandomState};

use opentelemetry::trace::{
    Link, SpanContext, SpanKind, TraceContextExt as _, TraceFlags, TraceId,
};
use opentelemetry::{Context, KeyValue};
use opentelemetry_sdk::trace::{Sampler, SamplingResult, ShouldSample};
use tracing::Span;

use super::trace_context::set_parent;

/// Which requests get a span. Cheap to ask and to copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sampling {
    on: bool,
    /// Of 2^32 requests, so many are recorded.
    share: u64,
}

impl Sampling {
    /// No spans at all.
    pub const OFF: Self = Self {
        on: false,
        share: 0,
    };

    /// This share of requests, 0 to 1.
    pub fn of_ratio(ratio: f64) -> Self {
        Self {
            on: true,
            share: (ratio.clamp(0.0, 1.0) * 2_f64.powi(32)) as u64,
        }
    }

    /// Says whether spans go anywhere.
    pub fn is_on(self) -> bool {
        self.on
    }

    /// Makes the span of a request, if chance wants it. `parent` is the caller's
    /// context and becomes the span's parent. Whether the caller records the trace
    /// does not count: anybody could say so, and each span costs.
    pub fn span(self, parent: &Context, make: impl FnOnce() -> Span) -> Option<Span> {
        if !self.on || self.share <= random() >> 32 {
            return None;
        }
        let caller = parent.span().span_context().clone();
        if caller.is_valid() {
            let recorded = SpanContext::new(
                caller.trace_id(),
                caller.span_id(),
                TraceFlags::SAMPLED,
                true,
                caller.trace_state().clone(),
            );
            let span = make();
            set_parent(&span, Context::new().with_remote_span_context(recorded));
            return Some(span);
        }
        let _decided = Context::current_with_value(Recorded).attach();
        Some(make())
    }
}

/// In the context of a new trace that is to be recorded.
struct Recorded;

thread_local! {
    /// Random enough for a coin; nothing depends on nobody foreseeing it.
    static STATE: Cell<u64> = Cell::new(RandomState::new().hash_one(0_u8));
}

/// The next number of splitmix64.
fn random() -> u64 {
    STATE.with(|state| {
        let next = state.get().wrapping_add(0x9e37_79b9_7f4a_7c15);
        state.set(next);
        let mixed = (next ^ (next >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    })
}

/// Decides for spans without a parent that nobody has decided about yet.
#[derive(Clone, Debug)]
pub(super) struct RootSampler {
    by_ratio: Sampler,
}

impl RootSampler {
    pub(super) fn new(ratio: f64) -> Self {
        Self {
            by_ratio: Sampler::TraceIdRatioBased(ratio),
        }
    }
}

impl ShouldSample for RootSampler {
    fn should_sample(
        &self,
        parent: Option<&Context>,
        trace_id: TraceId,
        name: &str,
        kind: &SpanKind,
        attributes: &[KeyValue],
        links: &[Link],
    ) -> SamplingResult {
        let decided = parent.is_some_and(|context| context.get::<Recorded>().is_some());
        let sampler = if decided {
            &Sampler::AlwaysOn
        } else {
            &self.by_ratio
        };
        sampler.should_sample(parent, trace_id, name, kind, attributes, links)
    }
}

#[cfg(test)]
mod tests {
    use opentelemetry_sdk::trace::{InMemorySpanExporter, SdkTracerProvider};
    use tracing_subscriber::layer::SubscriberExt as _;

    use super::*;
    use crate::telemetry::{extract, tracing_layer};

    const RECORDED: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    const UNRECORDED: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00";

    /// How many of `count` requests get a span, and how many spans are exported.
    fn spans(ratio: f64, traceparent: Option<&str>, count: usize) -> (usize, usize) {
        let exporter = InMemorySpanExporter::default();
        let provider = SdkTracerProvider::builder()
            .with_simple_exporter(exporter.clone())
            .with_sampler(Sampler::ParentBased(Box::new(RootSampler::new(ratio))))
            .build();
        let subscriber = tracing_subscriber::registry().with(tracing_layer(&provider));
        let sampling = Sampling::of_ratio(ratio);
        let made = tracing::subscriber::with_default(subscriber, || {
            (0..count)
                .filter_map(|_| {
                    let parent = traceparent.map_or_else(Context::new, |text| extract(text, None));
                    sampling.span(&parent, || tracing::info_span!("request"))
                })
                .map(|span| drop(span.entered()))
                .count()
        });
        (made, exporter.get_finished_spans().unwrap().len())
    }

    #[test]
    fn what_the_coin_chose_is_exported_and_nothing_else_is_made() {
        let (made, exported) = spans(0.01, None, 20_000);
        assert_eq!(made, exported, "the tracer decided once more");
        // Ten standard deviations around 200.
        assert!((60..=340).contains(&made), "{made}");
        assert_eq!(spans(0.0, None, 100), (0, 0));
        assert_eq!(spans(1.0, None, 100), (100, 100));
    }

    #[test]
    fn the_callers_decision_does_not_count() {
        for caller in [RECORDED, UNRECORDED] {
            assert_eq!(spans(0.0, Some(caller), 10), (0, 0));
            assert_eq!(spans(1.0, Some(caller), 10), (10, 10));
        }
    }

    #[test]
    fn spans_that_nobody_decided_about_follow_the_ratio() {
        let exporter = InMemorySpanExporter::default();
        let provider = SdkTracerProvider::builder()
            .with_simple_exporter(exporter.clone())
            .with_sampler(Sampler::ParentBased(Box::new(RootSampler::new(0.0))))
            .build();
        let subscriber = tracing_subscriber::registry().with(tracing_layer(&provider));
        tracing::subscriber::with_default(subscriber, || {
            drop(tracing::info_span!("batch").entered());
        });
        assert!(exporter.get_finished_spans().unwrap().is_empty());
    }

    #[test]
    fn without_traces_no_span_is_made() {
        let made = Sampling::OFF.span(&extract(RECORDED, None), || tracing::info_span!("request"));
        assert!(made.is_none());
    }
}
