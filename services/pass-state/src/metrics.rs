//! pass-state's metrics: what its parts count, and which instrument shows which figure. The table in
//! `deploy/README.md` says what each means.
//!
//! Parts count into [`Measures`]; everything else is read from the writer's queue, the tail and the store when
//! somebody looks. The books are one row of the database, read before a look and at most once a second: every replica
//! shows the true ones, whoever wrote them, or none if it could not read them for a minute.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use opentelemetry::metrics::Histogram;
use pass_domain::ids::SourceUid;
use pass_domain::kind::Kind;
use pass_store::{self as store, Books, Head, PassStore};
use service_kit::metrics::{KeyValue, Metrics};

use crate::tail::Tail;
use crate::writer::Writer;

/// The books are shown no longer than this after they were asked for, or they would seem to stand still.
const BOOKS_AGE_MAX: Duration = Duration::from_secs(60);
/// Most sources that events are counted by; what comes beyond is counted without its source.
const SOURCES_MAX: usize = 1_000;
const BATCH_DELIVERIES: [f64; 11] = [
    1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1_000.0, 2_000.0,
];
const APPLY_SECONDS: [f64; 14] = [
    0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0,
];

/// What the parts count. Shared by all of them.
pub(crate) struct Measures {
    batch_deliveries: Histogram<f64>,
    apply_duration: Histogram<f64>,
    apply_failures: [AtomicU64; CAUSES.len()],
    recorded: Mutex<HashMap<SourceUid, HashMap<Kind, u64>>>,
    /// Those of sources beyond the bound.
    recorded_beyond: Mutex<HashMap<Kind, u64>>,
    ingest_streams: AtomicU64,
    ingest_streams_open: AtomicU64,
    subscribers: Mutex<HashMap<u64, Arc<Place>>>,
    subscribers_total: AtomicU64,
    fell_behind: AtomicU64,
    stalled: AtomicU64,
    events_sent: AtomicU64,
    /// The books and the log's end beside them, as last read, and when they were asked for.
    books: Mutex<Option<(Instant, Head, Books)>>,
}

/// Where a subscriber stands.
#[derive(Debug, Default)]
pub(crate) struct Place {
    position: AtomicU64,
    live: AtomicBool,
}

impl Place {
    /// Tells that events up to here were considered, and queued where they are wanted.
    pub(crate) fn at(&self, position: u64, live: bool) {
        self.position.store(position, Ordering::Relaxed);
        self.live.store(live, Ordering::Relaxed);
    }
}

/// What the store says when it fails, as metrics spell it.
const CAUSES: [&str; 6] = [
    "unavailable",
    "outcome_unknown",
    "refused",
    "corrupt",
    "unfit",
    "not_migrated",
];

fn cause(error: &store::Error) -> usize {
    match error {
        store::Error::Unavailable(_) => 0,
        store::Error::OutcomeUnknown(_) => 1,
        store::Error::Refused(_) | store::Error::Untrusted => 2,
        store::Error::Corrupt(_) => 3,
        store::Error::Unfit(_) => 4,
        store::Error::NotMigrated { .. } => 5,
    }
}

impl Measures {
    pub(crate) fn new(metrics: &Metrics) -> Arc<Self> {
        Arc::new(Self {
            batch_deliveries: metrics.histogram(
                "passline.apply.batch_deliveries",
                "{delivery}",
                "Deliveries in one transaction.",
                &BATCH_DELIVERIES,
            ),
            apply_duration: metrics.histogram(
                "passline.apply.duration",
                "s",
                "From a batch's start to its commit, failed ones included.",
                &APPLY_SECONDS,
            ),
            apply_failures: std::array::from_fn(|_| AtomicU64::new(0)),
            recorded: Mutex::default(),
            recorded_beyond: Mutex::default(),
            ingest_streams: AtomicU64::new(0),
            ingest_streams_open: AtomicU64::new(0),
            subscribers: Mutex::default(),
            subscribers_total: AtomicU64::new(0),
            fell_behind: AtomicU64::new(0),
            stalled: AtomicU64::new(0),
            events_sent: AtomicU64::new(0),
            books: Mutex::default(),
        })
    }

    /// A batch was worked on, with or without success.
    pub(crate) fn applied(&self, deliveries: usize, took: Duration) {
        self.batch_deliveries.record(deliveries as f64, &[]);
        self.apply_duration.record(took.as_secs_f64(), &[]);
    }

    /// A transaction failed.
    pub(crate) fn apply_failed(&self, error: &store::Error) {
        self.apply_failures[cause(error)].fetch_add(1, Ordering::Relaxed);
    }

    /// Events were recorded.
    pub(crate) fn recorded(&self, events: &[(SourceUid, Kind, u64)]) {
        let mut sources = lock(&self.recorded);
        for (source, kind, count) in events {
            if sources.len() < SOURCES_MAX || sources.contains_key(source) {
                let kinds = sources.entry(source.clone()).or_default();
                *kinds.entry(*kind).or_default() += count;
            } else {
                *lock(&self.recorded_beyond).entry(*kind).or_default() += count;
            }
        }
    }

    /// A gateway connected; it is counted as open until this is dropped.
    pub(crate) fn ingest_stream(self: &Arc<Self>) -> IngestStream {
        self.ingest_streams.fetch_add(1, Ordering::Relaxed);
        self.ingest_streams_open.fetch_add(1, Ordering::Relaxed);
        IngestStream(Arc::clone(self))
    }

    /// A subscriber came; it is counted until this is dropped.
    pub(crate) fn subscriber(self: &Arc<Self>, position: u64) -> Subscriber {
        let number = self.subscribers_total.fetch_add(1, Ordering::Relaxed);
        let place = Arc::new(Place::default());
        place.at(position, false);
        lock(&self.subscribers).insert(number, Arc::clone(&place));
        Subscriber {
            measures: Arc::clone(self),
            number,
            place,
        }
    }

    /// A live subscriber has to catch up again.
    pub(crate) fn fell_behind(&self) {
        self.fell_behind.fetch_add(1, Ordering::Relaxed);
    }

    /// A subscriber took nothing for too long.
    pub(crate) fn stalled(&self) {
        self.stalled.fetch_add(1, Ordering::Relaxed);
    }

    /// The books were read.
    fn books_read(&self, asked: Instant, head: Head, books: Books) {
        *lock(&self.books) = Some((asked, head, books));
    }

    /// The books, unless they are too old.
    fn books(&self) -> Option<(Head, Books)> {
        let (asked, head, books) = (*lock(&self.books))?;
        (asked.elapsed() < BOOKS_AGE_MAX).then_some((head, books))
    }

    /// Events went to a subscriber.
    pub(crate) fn events_sent(&self, count: usize) {
        self.events_sent.fetch_add(count as u64, Ordering::Relaxed);
    }
}

/// An open ingest stream.
pub(crate) struct IngestStream(Arc<Measures>);

impl Drop for IngestStream {
    fn drop(&mut self) {
        self.0.ingest_streams_open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// An open subscription.
pub(crate) struct Subscriber {
    measures: Arc<Measures>,
    number: u64,
    place: Arc<Place>,
}

impl std::ops::Deref for Subscriber {
    type Target = Place;

    fn deref(&self) -> &Place {
        &self.place
    }
}

impl Drop for Subscriber {
    fn drop(&mut self) {
        lock(&self.measures.subscribers).remove(&self.number);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing that holds one of these can panic half-way through a change.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Shows everything that needs no store, so that a process that waits for its store is seen to do so.
pub(crate) fn observe(metrics: &Metrics, measures: &Arc<Measures>) {
    observe_writes(metrics, measures);
    observe_streams(metrics, measures);
}

/// Shows everything that needs the store, once it is open.
pub(crate) fn observe_store(
    metrics: &Metrics,
    measures: &Arc<Measures>,
    store: &Arc<dyn PassStore>,
    tail: &Arc<Tail>,
    writer: &Writer,
) {
    observe_books(metrics, measures, store);
    observe_queue(metrics, writer);
    observe_lag(metrics, measures, tail);
    observe_connections(metrics, store);
}

fn observe_books(metrics: &Metrics, measures: &Arc<Measures>, store: &Arc<dyn PassStore>) {
    let (asked, kept) = (Arc::clone(store), Arc::clone(measures));
    metrics.refresh_by(move || {
        let (store, measures) = (Arc::clone(&asked), Arc::clone(&kept));
        Box::pin(async move {
            let asked = Instant::now();
            // Who can't be asked has said so at /readyz; the last books stay for a while.
            if let Ok((head, books)) = store.books().await {
                measures.books_read(asked, head, books);
            }
        })
    });
    let gauges = |name, unit, about, values: Values| {
        let measures = Arc::clone(measures);
        metrics.gauges(name, unit, about, move |shown| {
            let Some((head, books)) = measures.books() else {
                return;
            };
            for (value, label) in values(&head, &books) {
                shown.observe(value, label.as_slice());
            }
        });
    };
    gauges(
        "passline.books.deliveries",
        "{delivery}",
        "The books: deliveries recorded by all replicas ever.",
        |_, books| {
            vec![
                outcome(books.applied, "applied"),
                outcome(books.duplicate, "duplicate"),
                outcome(books.control, "control"),
                outcome(books.quarantined, "quarantined"),
            ]
        },
    );
    gauges(
        "passline.books.facts",
        "{fact}",
        "The books: facts in them.",
        |_, books| {
            vec![
                outcome(books.events, "event"),
                outcome(books.duplicate_facts, "duplicate"),
                outcome(books.quarantined_facts, "quarantined"),
            ]
        },
    );
    gauges(
        "passline.books.differing_duplicates",
        "{fact}",
        "The books: facts that came again with other content.",
        |_, books| vec![(books.differing_duplicates as f64, None)],
    );
    gauges(
        "passline.quarantine.open_deliveries",
        "{delivery}",
        "Deliveries in quarantine now.",
        |_, books| vec![(books.quarantine_open as f64, None)],
    );
    gauges(
        "passline.log.head_position",
        "{event}",
        "Position of the log's last event.",
        |head, _| vec![(head.position.0 as f64, None)],
    );
    gauges(
        "passline.log.head_record_timestamp",
        "s",
        "When the log was written last, Unix time; the last transaction may have brought no event.",
        |head, _| match head.position.0 {
            0 => Vec::new(),
            _ => vec![(unix_seconds(head.record_time), None)],
        },
    );
}

fn observe_writes(metrics: &Metrics, measures: &Arc<Measures>) {
    let counted = Arc::clone(measures);
    metrics.label_sets_max(
        "passline.events_recorded",
        (SOURCES_MAX + 1) * Kind::ALL.len(),
    );
    metrics.counters(
        "passline.events_recorded",
        "{event}",
        "Events that this process recorded.",
        move |shown| {
            let show = |source: &str, kinds: &HashMap<Kind, u64>| {
                for (kind, count) in kinds {
                    let labels = [
                        KeyValue::new("source", source.to_owned()),
                        KeyValue::new("kind", kind.name()),
                    ];
                    shown.observe(*count, &labels);
                }
            };
            for (source, kinds) in lock(&counted.recorded).iter() {
                show(source.as_str(), kinds);
            }
            show("", &lock(&counted.recorded_beyond));
        },
    );
    let counted = Arc::clone(measures);
    metrics.counters(
        "passline.apply.failures",
        "{transaction}",
        "Transactions that failed, by what the store said.",
        move |shown| {
            for (count, cause) in counted.apply_failures.iter().zip(CAUSES) {
                shown.observe(
                    count.load(Ordering::Relaxed),
                    &[KeyValue::new("cause", cause)],
                );
            }
        },
    );
}

fn observe_queue(metrics: &Metrics, writer: &Writer) {
    let queue = writer.depth();
    metrics.gauge(
        "passline.apply.queue_batches",
        "{batch}",
        "Batches that wait for the writer.",
        move || queue.now() as f64,
    );
}

fn observe_streams(metrics: &Metrics, measures: &Arc<Measures>) {
    let counter = |name, unit, about, value: fn(&Measures) -> &AtomicU64| {
        let counted = Arc::clone(measures);
        metrics.counters(name, unit, about, move |shown| {
            shown.observe(value(&counted).load(Ordering::Relaxed), &[]);
        });
    };
    counter(
        "passline.ingest.streams",
        "{stream}",
        "Streams that sent a valid hello.",
        |measures| &measures.ingest_streams,
    );
    counter(
        "passline.subscribers_fell_behind",
        "{time}",
        "Times that a live subscriber had to catch up from the database again.",
        |measures| &measures.fell_behind,
    );
    counter(
        "passline.subscribers_stalled",
        "{subscription}",
        "Subscriptions ended because they took nothing for too long.",
        |measures| &measures.stalled,
    );
    counter(
        "passline.subscription_events",
        "{event}",
        "Events sent to subscribers.",
        |measures| &measures.events_sent,
    );
    let counted = Arc::clone(measures);
    metrics.gauge(
        "passline.ingest_streams",
        "{stream}",
        "Gateways connected.",
        move || counted.ingest_streams_open.load(Ordering::Relaxed) as f64,
    );
    let counted = Arc::clone(measures);
    metrics.gauges(
        "passline.subscribers",
        "{subscription}",
        "Open subscriptions.",
        move |shown| {
            let subscribers = lock(&counted.subscribers);
            let is_live = |place: &&Arc<Place>| place.live.load(Ordering::Relaxed);
            let live = subscribers.values().filter(is_live).count();
            let label = |state| [KeyValue::new("state", state)];
            shown.observe(live as f64, &label("live"));
            shown.observe((subscribers.len() - live) as f64, &label("catching_up"));
        },
    );
}

fn observe_lag(metrics: &Metrics, measures: &Arc<Measures>, tail: &Arc<Tail>) {
    let (counted, tail) = (Arc::clone(measures), Arc::clone(tail));
    metrics.gauge(
        "passline.subscriber_lag_events_max",
        "{event}",
        "How far the subscriber furthest behind is from the log's end.",
        move || {
            // In this order nobody is ahead of the end.
            let places = lock(&counted.subscribers);
            let last = places
                .values()
                .map(|place| place.position.load(Ordering::Relaxed));
            match last.min() {
                Some(last) => tail.head().position.0.saturating_sub(last) as f64,
                None => 0.0,
            }
        },
    );
}

fn observe_connections(metrics: &Metrics, store: &Arc<dyn PassStore>) {
    let asked = Arc::clone(store);
    metrics.gauges(
        "passline.database.connections",
        "{connection}",
        "Connections of the pool of readers.",
        move |shown| {
            let connections = asked.connections();
            let label = |state| [KeyValue::new("state", state)];
            shown.observe(connections.idle.into(), &label("idle"));
            shown.observe(connections.used.into(), &label("used"));
        },
    );
    let asked = Arc::clone(store);
    metrics.gauge(
        "passline.database.connections_max",
        "{connection}",
        "Most connections of the pool of readers.",
        move || asked.connections().max.into(),
    );
}

/// Takes a gauge's values, each with its label if it has one, out of what was read.
type Values = fn(&Head, &Books) -> Vec<(f64, Option<KeyValue>)>;

/// One of several values of a gauge.
fn outcome(value: u64, name: &'static str) -> (f64, Option<KeyValue>) {
    (value as f64, Some(KeyValue::new("outcome", name)))
}

fn unix_seconds(time: Timestamp) -> f64 {
    time.as_millisecond() as f64 / 1e3
}

#[cfg(test)]
mod tests {
    use pass_domain::event::Position;
    use service_kit::admin::Version;
    use service_kit::telemetry::TelemetryConfig;

    use super::*;

    fn measures() -> Arc<Measures> {
        let version = Version {
            service: "test",
            version: "0",
        };
        Measures::new(&Metrics::new(&TelemetryConfig::default(), version))
    }

    #[test]
    fn sources_beyond_the_bound_are_counted_together() {
        let measures = measures();
        for at in 0..SOURCES_MAX + 10 {
            let source = SourceUid::new(&format!("s{at}")).unwrap();
            measures.recorded(&[(source, Kind::Created, 2)]);
        }
        let known = SourceUid::new("s0").unwrap();
        measures.recorded(&[(known.clone(), Kind::Created, 1)]);
        assert_eq!(lock(&measures.recorded).len(), SOURCES_MAX);
        assert_eq!(lock(&measures.recorded)[&known][&Kind::Created], 3);
        assert_eq!(lock(&measures.recorded_beyond)[&Kind::Created], 20);
    }

    #[tokio::test]
    async fn every_source_and_kind_within_the_bound_is_shown() {
        let version = Version {
            service: "test",
            version: "0",
        };
        let metrics = Metrics::new(&TelemetryConfig::default(), version);
        let measures = Measures::new(&metrics);
        observe(&metrics, &measures);
        for at in 0..=SOURCES_MAX {
            let source = SourceUid::new(&format!("s{at}")).unwrap();
            let events: Vec<_> = Kind::ALL.map(|kind| (source.clone(), kind, 1)).to_vec();
            measures.recorded(&events);
        }
        let text = metrics.text().await.unwrap();
        let sets = text
            .lines()
            .filter(|line| line.starts_with("passline_events_recorded_total{kind="));
        assert_eq!(sets.count(), (SOURCES_MAX + 1) * Kind::ALL.len());
        assert!(!text.contains("otel_metric_overflow"));
    }

    #[test]
    fn books_that_are_too_old_are_not_shown() {
        let measures = measures();
        let head = Head {
            epoch: 1,
            position: Position(1),
            digest: 1,
            record_time: Timestamp::UNIX_EPOCH,
        };
        assert!(measures.books().is_none());
        measures.books_read(Instant::now(), head, Books::default());
        assert!(measures.books().is_some());
        let asked = Instant::now().checked_sub(BOOKS_AGE_MAX).unwrap();
        measures.books_read(asked, head, Books::default());
        assert!(measures.books().is_none());
    }

    #[test]
    fn who_is_gone_is_counted_no_more() {
        let measures = measures();
        let (stream, subscriber) = (measures.ingest_stream(), measures.subscriber(7));
        subscriber.at(9, true);
        assert_eq!(lock(&measures.subscribers).len(), 1);
        drop((stream, subscriber));
        assert!(lock(&measures.subscribers).is_empty());
        assert_eq!(measures.ingest_streams_open.load(Ordering::Relaxed), 0);
        assert_eq!(measures.ingest_streams.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn every_failure_of_the_store_has_its_own_cause() {
        let text = String::new;
        let errors = [
            store::Error::Unavailable(text()),
            store::Error::OutcomeUnknown(text()),
            store::Error::Refused(text()),
            store::Error::Corrupt(text()),
            store::Error::Unfit(text()),
            store::Error::NotMigrated { lacking: 1 },
        ];
        for (at, error) in errors.iter().enumerate() {
            assert_eq!(cause(error), at, "{error}");
        }
    }
}
