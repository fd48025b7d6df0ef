//! Traces of applying: a span per delivery whose sender wants it traced, and one for the batch that links
//! to them.

use opentelemetry::trace::TraceContextExt as _;
use service_kit::telemetry;
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

use super::{Part, PartReply};

/// Most links of one batch, as OpenTelemetry's default limit.
const LINKS_MAX: usize = 128;

/// The spans of a batch; they end when this is dropped.
pub(super) struct BatchSpans {
    /// The batch's own.
    pub(super) batch: Span,
    _deliveries: Vec<Span>,
}

/// Opens the spans. Without sampled deliveries this costs one span per batch.
pub(super) fn of_batch(batch: &[(Part, PartReply)]) -> BatchSpans {
    let count: usize = batch.iter().map(|(part, _)| part.deliveries.len()).sum();
    let span = tracing::info_span!(
        "pass-state append",
        otel.kind = "internal",
        service.name = "pass-state",
        messaging.operation.type = "process",
        messaging.batch.message_count = count,
    );
    let mut deliveries = Vec::new();
    for (part, _) in batch {
        for (sequence, delivery) in &part.deliveries {
            let trace = &delivery.trace;
            if trace.traceparent.is_empty() {
                continue;
            }
            let parent = telemetry::extract(&trace.traceparent, Some(&trace.tracestate));
            let stored = parent.span().span_context().clone();
            if !stored.is_sampled() {
                continue;
            }
            if deliveries.len() < LINKS_MAX {
                span.add_link(stored);
            }
            let own = tracing::info_span!(
                "pass-state apply",
                otel.kind = "consumer",
                service.name = "pass-state",
                messaging.operation.type = "process",
                messaging.message.id = %delivery.id,
                source.name = %delivery.source,
                spool.sequence = sequence,
            );
            telemetry::set_parent(&own, parent);
            deliveries.push(own);
        }
    }
    BatchSpans {
        batch: span,
        _deliveries: deliveries,
    }
}
