//! The gateway's metrics: which instrument shows which figure. The table in `deploy/README.md` says what each means.
//!
//! All but two histograms are read from what the gateway keeps anyway, when somebody looks.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use opentelemetry::metrics::Histogram;
use pass_spool::{SpoolHealth, SpoolStatus, SyncObserver};
use service_kit::clock::Clock;
use service_kit::metrics::{KeyValue, Metrics, flag};
use service_kit::tls;

use crate::books::{BooksPage, Tally};
use crate::config::{AckMode, SOURCES_MAX};
use crate::forward::ForwardStatus;
use crate::gateway::Observer;
use crate::http::in_flight::InFlight;

/// From a fast disk to the longest that a sender waits.
const ACK_SECONDS: [f64; 15] = [
    0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0,
    10.0,
];
/// From a disk with a battery to one that is taken for stuck.
const SYNC_SECONDS: [f64; 15] = [
    0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5,
    1.0, 5.0,
];
/// Label sets of what is shown by source: more than all sources that may be configured at once need, with every reason.
const LABEL_SETS_MAX: usize = (SOURCES_MAX + 1) * Tally::ALL.len();
/// What is shown of a source before it happened, so that its first time is seen as a change.
const SHOWN_FROM_THE_START: [Tally; 2] = [Tally::Stored, Tally::Quarantined];

/// How long answers of 200 take, by how their source is acknowledged.
pub(crate) struct AckDuration {
    histogram: Histogram<f64>,
    durable: [KeyValue; 1],
    applied: [KeyValue; 1],
}

impl AckDuration {
    /// `None` if nobody looks.
    pub(crate) fn new(metrics: &Metrics) -> Option<Self> {
        metrics.is_on().then(|| Self {
            histogram: metrics.histogram(
                "passline.ack.duration",
                "s",
                "From the last byte of a delivery to its answer 200.",
                &ACK_SECONDS,
            ),
            durable: [KeyValue::new("ack", "durable")],
            applied: [KeyValue::new("ack", "applied")],
        })
    }

    pub(crate) fn record(&self, ack: AckMode, took: Duration) {
        let label = match ack {
            AckMode::Durable => &self.durable,
            AckMode::Applied => &self.applied,
        };
        self.histogram.record(took.as_secs_f64(), label);
    }
}

/// What tells the spool's syncs to the metrics.
pub(crate) fn sync_observer(metrics: &Metrics) -> SyncObserver {
    if !metrics.is_on() {
        return Arc::new(|_| {});
    }
    let histogram = metrics.histogram(
        "passline.spool.sync.duration",
        "s",
        "Time of one write and sync of the spool.",
        &SYNC_SECONDS,
    );
    Arc::new(move |took| histogram.record(took.as_secs_f64(), &[]))
}

/// Shows everything else.
pub(crate) fn observe(
    metrics: &Metrics,
    observer: &Arc<Observer>,
    in_flight: Arc<InFlight>,
    clock: Arc<dyn Clock>,
) {
    let certificates = Arc::clone(observer);
    metrics.observe_certificates(move || certificates.certificates().collect::<Vec<_>>());
    tls::observe_handshakes(metrics, observer.tls_listeners().to_vec());
    let seen = Arc::clone(observer);
    observe_books(metrics, move || seen.books().snapshot());
    observe_in_flight(metrics, in_flight);
    observe_silence(metrics, observer, clock);
    observe_spool(metrics, observer);
    observe_forward(metrics, observer);
}

fn observe_books(
    metrics: &Metrics,
    pages: impl Fn() -> Vec<BooksPage> + Clone + Send + Sync + 'static,
) {
    for name in [
        "passline.deliveries",
        "passline.facts",
        "passline.committed_deliveries",
        "passline.source.last_delivery_timestamp",
    ] {
        metrics.label_sets_max(name, LABEL_SETS_MAX);
    }
    let snapshot = pages.clone();
    metrics.counters(
        "passline.deliveries",
        "{delivery}",
        "Requests by source and how they ended.",
        move |shown| {
            for page in snapshot() {
                for tally in Tally::ALL {
                    let Some(outcome) = tally.outcome() else {
                        continue;
                    };
                    let from_the_start =
                        !page.source.is_empty() && SHOWN_FROM_THE_START.contains(&tally);
                    let count = page.get(tally);
                    if count > 0 || from_the_start {
                        let labels = [
                            KeyValue::new("source", page.source.clone()),
                            KeyValue::new("outcome", outcome),
                            KeyValue::new("reason", tally.name()),
                        ];
                        shown.observe(count, &labels);
                    }
                }
            }
        },
    );
    let snapshot = pages.clone();
    metrics.counters(
        "passline.facts",
        "{fact}",
        "Facts in deliveries that were answered 200.",
        move |shown| {
            for page in snapshot() {
                if !page.source.is_empty() {
                    shown.observe(page.facts, &[KeyValue::new("source", page.source)]);
                }
            }
        },
    );
    let snapshot = pages.clone();
    metrics.counters(
        "passline.committed_deliveries",
        "{delivery}",
        "Forwarded deliveries by what pass-state said of them.",
        move |shown| {
            for page in snapshot() {
                for tally in Tally::ALL {
                    if let Some(outcome) = tally.name().strip_prefix("committed_")
                        && page.get(tally) > 0
                    {
                        let labels = [
                            KeyValue::new("source", page.source.clone()),
                            KeyValue::new("outcome", outcome),
                        ];
                        shown.observe(page.get(tally), &labels);
                    }
                }
            }
        },
    );
    metrics.gauges(
        "passline.source.last_delivery_timestamp",
        "s",
        "Receive time of a source's last delivery that was answered 200, Unix time.",
        move |shown| {
            for page in pages() {
                if let Some(delivered) = page.delivered {
                    let labels = [KeyValue::new("source", page.source)];
                    shown.observe(unix_seconds(delivered), &labels);
                }
            }
        },
    );
}

fn observe_in_flight(metrics: &Metrics, in_flight: Arc<InFlight>) {
    let requests = Arc::clone(&in_flight);
    metrics.gauge(
        "passline.requests_in_flight",
        "{request}",
        "Callbacks being handled.",
        move || requests.now().0 as f64,
    );
    metrics.gauge(
        "passline.request_body_in_flight",
        "By",
        "Bytes reserved for the bodies of callbacks being handled.",
        move || in_flight.now().1 as f64,
    );
}

fn observe_silence(metrics: &Metrics, observer: &Arc<Observer>, clock: Arc<dyn Clock>) {
    let seen = Arc::clone(observer);
    metrics.gauges(
        "passline.source.silence",
        "s",
        "Time since then, or since the source was configured if that is later.",
        move |shown| {
            let now = unix_seconds(clock.now());
            let pages = seen.books().snapshot();
            for entry in seen.policy().iter() {
                let delivered = pages.get(entry.page()).and_then(|page| page.delivered);
                let silence = delivered.map_or(f64::INFINITY, |time| now - unix_seconds(time));
                let silence = silence.clamp(0.0, entry.age().as_secs_f64());
                let labels = [KeyValue::new("source", entry.source.name().to_owned())];
                shown.observe(silence, &labels);
            }
        },
    );
}

fn observe_spool(metrics: &Metrics, observer: &Arc<Observer>) {
    let gauge = |name, unit, about, value: fn(&SpoolStatus) -> f64| {
        let seen = Arc::clone(observer);
        metrics.gauge(name, unit, about, move || value(&seen.spool()));
    };
    gauge(
        "passline.spool.records",
        "{record}",
        "Durable records that pass-state has not acknowledged.",
        |spool| spool.unsettled_records as f64,
    );
    gauge("passline.spool", "By", "Bytes of those records.", |spool| {
        spool.unsettled_bytes as f64
    });
    gauge(
        "passline.spool.oldest_age",
        "s",
        "Age of the oldest of them.",
        |spool| {
            spool
                .oldest_unsettled_age
                .map_or(0.0, |age| age.as_secs_f64())
        },
    );
    gauge(
        "passline.spool.disk",
        "By",
        "Bytes of the whole spool, with what is kept for a restore.",
        |spool| spool.disk_bytes as f64,
    );
    gauge(
        "passline.spool.disk_limit",
        "By",
        "The ceiling of the spool's bytes.",
        |spool| spool.disk_bytes_max as f64,
    );
    gauge(
        "passline.spool.last_sequence",
        "{record}",
        "The last durable record.",
        |spool| spool.last_durable.0 as f64,
    );
    gauge(
        "passline.spool.settled_sequence",
        "{record}",
        "The last record that pass-state has acknowledged.",
        |spool| spool.settled.0 as f64,
    );
    gauge(
        "passline.spool.unproven",
        "",
        "1 while callbacks are answered 200 without proof of a sync.",
        |spool| flag(spool.unproven.is_some()),
    );
    let seen = Arc::clone(observer);
    metrics.gauges(
        "passline.spool.info",
        "",
        "Always 1; which spool it is, and what keeps it.",
        move |shown| {
            let labels = [
                KeyValue::new("backend", seen.spool_backend().name()),
                KeyValue::new("spool", seen.spool_id().to_string()),
            ];
            shown.observe(1.0, &labels);
        },
    );
    let seen = Arc::clone(observer);
    metrics.gauge(
        "passline.spool.accepting",
        "",
        "1 if a callback would be stored now.",
        move || {
            let well = match seen.spool().health {
                SpoolHealth::Ok | SpoolHealth::Slow => true,
                SpoolHealth::Stuck
                | SpoolHealth::Full
                | SpoolHealth::Poisoned(_)
                | SpoolHealth::Unavailable(_) => false,
            };
            flag(well && !seen.forward().spool_restored)
        },
    );
}

fn observe_forward(metrics: &Metrics, observer: &Arc<Observer>) {
    let gauge = |name, unit, about, value: fn(&ForwardStatus) -> f64| {
        let seen = Arc::clone(observer);
        metrics.gauge(name, unit, about, move || value(&seen.forward()));
    };
    gauge(
        "passline.forward.connected",
        "",
        "1 while a stream to pass-state is open.",
        |forward| flag(forward.connected),
    );
    gauge(
        "passline.forward.waiting_for_turn",
        "",
        "1 while another gateway forwards the shared spool.",
        |forward| flag(forward.waiting_for_turn),
    );
    gauge(
        "passline.forward.in_flight_deliveries",
        "{delivery}",
        "Deliveries sent and not acknowledged.",
        |forward| forward.in_flight_deliveries as f64,
    );
    gauge(
        "passline.forward.in_flight",
        "By",
        "Bytes of those deliveries.",
        |forward| forward.in_flight_bytes as f64,
    );
    gauge(
        "passline.forward.window_deliveries",
        "{delivery}",
        "Most deliveries that may be in flight.",
        |forward| forward.window.0 as f64,
    );
    gauge(
        "passline.forward.window",
        "By",
        "Most bytes that may be in flight.",
        |forward| forward.window.1 as f64,
    );
    gauge(
        "passline.forward.blocked",
        "",
        "1 while forwarding needs a person.",
        |forward| flag(forward.blocked.is_some()),
    );
    gauge(
        "passline.forward.missing_records",
        "{record}",
        "Records of the last range that pass-state lacks and the spool no longer keeps.",
        |forward| {
            let count = |range: &std::ops::RangeInclusive<u64>| range.end() - range.start() + 1;
            forward
                .missing
                .as_ref()
                .map_or(0.0, |range| count(range) as f64)
        },
    );
    let seen = Arc::clone(observer);
    metrics.counters(
        "passline.forward.streams",
        "{stream}",
        "Streams that pass-state accepted.",
        move |shown| shown.observe(seen.forward().streams, &[]),
    );
}

fn unix_seconds(time: Timestamp) -> f64 {
    time.as_millisecond() as f64 / 1e3
}

#[cfg(test)]
mod tests {
    use service_kit::admin::Version;
    use service_kit::telemetry::TelemetryConfig;

    use super::*;
    use crate::books::Books;

    #[tokio::test]
    async fn every_source_that_may_be_configured_is_shown_with_every_reason() {
        let version = Version {
            service: "test",
            version: "0",
        };
        let metrics = Metrics::new(&TelemetryConfig::default(), version);
        let books = Arc::new(Books::new());
        for at in 0..SOURCES_MAX {
            let page = books.enroll(&format!("s{at}"));
            for tally in Tally::ALL {
                books.add(page, tally);
            }
        }
        observe_books(&metrics, move || books.snapshot());
        let text = metrics.text().await.unwrap();
        let sets = |name| text.lines().filter(|line| line.starts_with(name)).count();
        let committed = Tally::ALL.iter().filter(|tally| tally.outcome().is_none());
        let committed = SOURCES_MAX * committed.count();
        assert_eq!(sets("passline_committed_deliveries_total{"), committed);
        let all = SOURCES_MAX * Tally::ALL.len();
        assert_eq!(sets("passline_deliveries_total{"), all - committed);
        assert_eq!(sets("passline_facts_total{"), SOURCES_MAX);
        assert!(!text.contains("otel_metric_overflow"));
    }
}
