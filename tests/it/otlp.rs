//! What an OTLP collector gets of both services as real processes: one trace from the sender to the transaction, also
//! across a kill between the hops, and the metrics of each service.

use std::sync::Arc;
use std::time::Duration;

use pass_proto::v1;
use system_tests::callback::{Callback, standard};
use system_tests::client::{Caller, Outcome, Receipt};
use system_tests::collector::{Collector, Span};
use system_tests::stand::{Options, Stand};
use test_kit::wait_for;

use crate::programs;

/// Spans are exported every five seconds.
const EXPORTED: Duration = Duration::from_secs(40);
const SENDER_TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const SENDER_SPAN: &str = "00f067aa0ba902b7";

fn options(collector: &Collector, sample_ratio: f64) -> Options {
    let telemetry = format!(
        "[telemetry]\notlp_endpoint = \"{}\"\nsample_ratio = {sample_ratio:?}\nmetrics_interval = \"1s\"\n",
        collector.endpoint()
    );
    Options {
        gateway_tables: telemetry.clone(),
        state_tables: telemetry,
        ..Options::default()
    }
}

/// A callback with the sender's trace, which the sender records if `sampled`.
fn traced(pass: &str, sampled: bool) -> Arc<Callback> {
    let mut callback = (*standard("CREATED", pass, 0, None)).clone();
    let flags = if sampled { "01" } else { "00" };
    callback.headers.push((
        "traceparent".to_owned(),
        format!("00-{SENDER_TRACE}-{SENDER_SPAN}-{flags}"),
    ));
    Arc::new(callback)
}

async fn deliver(stand: &Stand, callback: &Arc<Callback>) -> Receipt {
    match Caller::new(stand.http())
        .deliver(callback, &stand.log)
        .await
    {
        Outcome::Stored(receipt) => receipt,
        other => panic!("{other:?}"),
    }
}

/// The one span of a name in a trace.
fn only(spans: &[Span], trace: &str, service: &str, name: &str) -> Result<Span, String> {
    let found: Vec<&Span> = spans
        .iter()
        .filter(|span| span.name == name && span.trace == trace)
        .collect();
    match found[..] {
        [span] if span.service == service => Ok(span.clone()),
        _ => Err(format!("{found:?} as spans {name:?} among {spans:?}")),
    }
}

/// Waits for the spans of one delivery's way, each below the one before.
async fn way(collector: &Collector, trace: &str, parent: &str) -> anyhow::Result<()> {
    wait_for("the spans of the trace", EXPORTED, async || {
        let spans = collector.spans();
        let received = only(&spans, trace, "webhook-gateway", "POST /webhooks/{source}")?;
        let forwarded = only(&spans, trace, "webhook-gateway", "forward")?;
        let applied = only(&spans, trace, "pass-state", "pass-state apply")?;
        assert_eq!(received.parent, parent);
        assert_eq!(forwarded.parent, received.id);
        assert_eq!(applied.parent, forwarded.id);
        Ok::<_, String>(())
    })
    .await
}

/// The `traceparent` of an event and of the delivery that brought it, which are the same.
async fn stored_traceparent(stand: &Stand, receipt: &Receipt) -> String {
    let reader = stand.reader();
    reader
        .wait_for_deliveries(1, Duration::from_secs(20))
        .await
        .unwrap();
    let request = v1::GetDeliveryRequest {
        name: format!("deliveries/{}", receipt.delivery),
        ..v1::GetDeliveryRequest::default()
    };
    let answered = reader.deliveries.clone().get_delivery(request).await;
    let delivery = answered.unwrap().into_inner().delivery.unwrap();
    let request = v1::GetEventRequest {
        name: delivery.events[0].clone(),
        ..v1::GetEventRequest::default()
    };
    let answered = reader.passes.clone().get_event(request).await;
    let event = answered.unwrap().into_inner().event.unwrap();
    let of_delivery = delivery.trace.unwrap_or_default().traceparent;
    assert_eq!(event.trace.unwrap_or_default().traceparent, of_delivery);
    of_delivery
}

/// The trace of a `traceparent`.
fn trace_of(traceparent: &str) -> &str {
    traceparent.split('-').nth(1).unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collector_gets_one_trace_of_both_services_and_the_metrics_of_each() {
    let collector = Collector::start().await.unwrap();
    let stand = Stand::started(&programs(), &options(&collector, 1.0))
        .await
        .unwrap();
    let receipt = deliver(&stand, &standard("CREATED", "own", 0, None)).await;
    let traceparent = stored_traceparent(&stand, &receipt).await;
    assert!(traceparent.ends_with("-01"), "{traceparent:?}");
    way(&collector, trace_of(&traceparent), "").await.unwrap();
    wait_for("metrics of both services", EXPORTED, async || {
        let metrics = collector.metrics();
        let has = |service: &str, name: &str| {
            let pair = (service.to_owned(), name.to_owned());
            metrics.contains(&pair)
        };
        let both = has("webhook-gateway", "passline.ack.duration")
            && has("webhook-gateway", "passline.deliveries")
            && has("pass-state", "passline.apply.duration")
            && has("pass-state", "passline.books.deliveries")
            && has("pass-state", "process.cpu");
        if both {
            Ok(())
        } else {
            Err(format!("{metrics:?}"))
        }
    })
    .await
    .unwrap();
    assert!(
        !collector
            .metrics()
            .contains(&("pass-state".to_owned(), "passline.deliveries".to_owned())),
        "each service pushes its own"
    );
    stand.finish().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_trace_goes_on_after_the_gateway_was_killed_between_the_hops() {
    let collector = Collector::start().await.unwrap();
    let mut stand = Stand::new(&programs(), &options(&collector, 1.0)).unwrap();
    stand.start_gateway().await.unwrap();
    let receipt = deliver(&stand, &traced("killed", true)).await;
    // What was not exported dies with the process.
    wait_for("the first span", EXPORTED, async || {
        let spans = collector.spans();
        only(
            &spans,
            SENDER_TRACE,
            "webhook-gateway",
            "POST /webhooks/{source}",
        )
    })
    .await
    .unwrap();
    stand.take_gateway().kill().await.unwrap();
    stand.start_state().await.unwrap();
    stand.start_gateway().await.unwrap();
    way(&collector, SENDER_TRACE, SENDER_SPAN).await.unwrap();
    let traceparent = stored_traceparent(&stand, &receipt).await;
    assert_eq!(trace_of(&traceparent), SENDER_TRACE);
    stand.finish().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_sampled_makes_no_span_and_keeps_the_senders_trace() {
    let collector = Collector::start().await.unwrap();
    let stand = Stand::started(&programs(), &options(&collector, 0.0))
        .await
        .unwrap();
    let receipt = deliver(&stand, &traced("unsampled", false)).await;
    let traceparent = stored_traceparent(&stand, &receipt).await;
    assert_eq!(traceparent, format!("00-{SENDER_TRACE}-{SENDER_SPAN}-00"));
    // Ending flushes what there is.
    stand.finish().await.unwrap();
    let spans = collector.spans();
    assert!(
        spans.iter().all(|span| span.trace != SENDER_TRACE),
        "{spans:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn headers_of_the_environment_go_with_every_export() {
    let collector = Collector::start().await.unwrap();
    let mut stand = Stand::new(&programs(), &options(&collector, 1.0)).unwrap();
    stand.gateways[0].set_environment(
        "OTEL_EXPORTER_OTLP_HEADERS",
        "authorization=Bearer%20marker-otlp",
    );
    stand.start_state().await.unwrap();
    stand.start_gateway().await.unwrap();
    let wanted = ("authorization".to_owned(), "Bearer marker-otlp".to_owned());
    wait_for("an export with the header", EXPORTED, async || {
        let headers = collector.headers();
        if headers.contains(&wanted) {
            Ok(())
        } else {
            Err(format!("{headers:?}"))
        }
    })
    .await
    .unwrap();
    let logs = stand.logs().unwrap();
    assert!(!logs.contains("marker-otlp"), "{logs}");
    stand.finish().await.unwrap();
}
