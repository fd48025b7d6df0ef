//! The metrics of one service: shown as Prometheus' text, pushed by OTLP.
//!
//! A value, not a global: `passline up` runs two services in one process, and each admin listener shows its own.
//! A service makes one [`Metrics`], hands it to its parts, merges [`Metrics::routes`] into its admin listener and
//! spawns [`Metrics::push`].
//!
//! Cost is kept off the paths that count. Whatever is an atomic already (books, gauges, positions) is read by a
//! callback when somebody looks ([`Metrics::counters`], [`Metrics::gauges`]); only durations are recorded as they
//! happen ([`Metrics::histogram`]). There is one reader for both outputs, or each measurement would be taken twice.
//!
//! Looking never waits for the service: callbacks only read memory, on a thread that may block. What has to be asked
//! of somebody first is asked before, by [`Metrics::refresh_by`], at most once a second; a look does not wait for it long.
//!
//! Names here are OpenTelemetry's (`passline.ack.duration`, unit `s`); Prometheus' follow from them
//! (`passline_ack_duration_seconds`). Units: `s`, `By`, or what is counted in braces.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex as StdMutex, OnceLock, PoisonError, Weak};
use std::time::Duration;

use axum::Router;
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use futures_util::future::BoxFuture;
use http::{StatusCode, header};
use opentelemetry::metrics::{AsyncInstrument, Histogram, Meter, MeterProvider as _};
use opentelemetry_otlp::MetricExporter;
use opentelemetry_prometheus::PrometheusExporter;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::metrics::data::ResourceMetrics;
use opentelemetry_sdk::metrics::exporter::PushMetricExporter as _;
use opentelemetry_sdk::metrics::reader::MetricReader;
use opentelemetry_sdk::metrics::{
    Instrument, InstrumentKind, Pipeline, SdkMeterProvider, Stream, Temporality,
};
use prometheus::{Registry, TextEncoder};
use tokio::sync::Mutex;
use tokio::time::{Instant, MissedTickBehavior, interval_at, timeout};
use tokio_util::sync::CancellationToken;

use crate::admin::{Readiness, Version};
use crate::config;
use crate::reload::ReloadStatus;
use crate::telemetry::otlp::{self, Exporter};
use crate::telemetry::{self, TelemetryConfig};
use crate::tls::TlsClient;

mod process;
pub mod rpc;

pub use opentelemetry::KeyValue;

/// What [`Metrics::refresh_by`] brings is this old at most when it is shown, if it can be had at all.
const REFRESH_INTERVAL: Duration = Duration::from_secs(1);
/// How long a look waits for it.
const REFRESH_WAIT: Duration = Duration::from_millis(250);
/// When it is given up and may be asked for again.
const REFRESH_TIMEOUT: Duration = Duration::from_secs(30);
/// Time for the last push.
const LAST_PUSH_TIMEOUT: Duration = Duration::from_secs(3);
const METER_NAME: &str = "passline";
/// The content type of the text.
const TEXT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Gives values of one instrument, with their labels, to whoever looks.
pub type Observe<'a, T> = &'a dyn AsyncInstrument<T>;

/// The one reader; both outputs collect from it.
#[derive(Clone, Debug)]
struct Reader(Arc<PrometheusExporter>);

impl MetricReader for Reader {
    fn register_pipeline(&self, pipeline: Weak<Pipeline>) {
        self.0.register_pipeline(pipeline);
    }

    fn collect(&self, metrics: &mut ResourceMetrics) -> OTelSdkResult {
        self.0.collect(metrics)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.0.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.0.shutdown_with_timeout(timeout)
    }

    fn temporality(&self, kind: InstrumentKind) -> Temporality {
        self.0.temporality(kind)
    }
}

type Refresh = Box<dyn Fn() -> BoxFuture<'static, ()> + Send + Sync>;
/// Most label sets of the instruments that need more than usual, by name.
type LabelSets = Arc<StdMutex<HashMap<&'static str, usize>>>;

struct Inner {
    meter: Meter,
    reader: Option<Reader>,
    registry: Registry,
    refresh: OnceLock<Refresh>,
    /// When it ended last; locked while it runs.
    refreshed: Arc<Mutex<Option<Instant>>>,
    label_sets: LabelSets,
    exporter: Option<Exporter<MetricExporter>>,
    push_interval: Duration,
    push_timeout: Duration,
    // The instruments work as long as it lives.
    _provider: SdkMeterProvider,
}

/// The metrics of one service; clones are the same ones.
#[derive(Clone)]
pub struct Metrics {
    inner: Arc<Inner>,
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics")
            .field("on", &self.is_on())
            .finish_non_exhaustive()
    }
}

impl Metrics {
    /// Makes the metrics of a service, with those of its process and build. Where metrics are to be pushed this must be
    /// called within a tokio runtime; an endpoint that can't be used is a warning.
    pub fn new(config: &TelemetryConfig, version: Version) -> Self {
        let variables = config::process_env();
        let registry = Registry::new();
        let label_sets = LabelSets::default();
        let mut provider = SdkMeterProvider::builder()
            .with_resource(telemetry::resource(config, version.version))
            .with_view(with_label_sets(Arc::clone(&label_sets)));
        let (mut reader, mut exporter) = (None, None);
        if config.metrics {
            let prometheus = opentelemetry_prometheus::exporter()
                .with_registry(registry.clone())
                .scope_info_enabled(false)
                .build()
                .expect("the registry is new, so nothing in it has the same name");
            let new = Reader(Arc::new(prometheus));
            provider = provider.with_reader(new.clone());
            reader = Some(new);
            exporter = otlp::metric_exporter(config, &variables).unwrap_or_else(|complaint| {
                tracing::warn!(error = complaint, "metrics are not pushed");
                None
            });
        }
        let provider = provider.build();
        let metrics = Self {
            inner: Arc::new(Inner {
                meter: provider.meter(METER_NAME),
                reader,
                registry,
                refresh: OnceLock::new(),
                refreshed: Arc::default(),
                label_sets,
                exporter,
                push_interval: otlp::metrics_interval(config, &variables),
                push_timeout: config.export_timeout.get(),
                _provider: provider,
            }),
        };
        metrics.gauges(
            "passline.build_info",
            "",
            "Always 1; the version that runs.",
            move |seen| seen.observe(1.0, &[KeyValue::new("version", version.version)]),
        );
        process::observe(&metrics);
        metrics
    }

    /// The TLS to collectors, of these metrics and of the process's traces; to be registered with what is reloaded.
    pub fn tls_clients(&self) -> impl Iterator<Item = TlsClient> {
        let own = self.inner.exporter.as_ref();
        let own = own.and_then(|(_, tls)| tls.clone());
        own.into_iter().chain(telemetry::tls())
    }

    /// Says whether anybody will ever look: what costs something to measure can be left out otherwise.
    pub fn is_on(&self) -> bool {
        self.inner.reader.is_some()
    }

    /// Lets an instrument have this many label sets instead of OpenTelemetry's 2,000; to be called before it is made. What
    /// is beyond is shown as one, `otel_metric_overflow`.
    pub fn label_sets_max(&self, name: &'static str, most: usize) {
        let mut label_sets = self
            .inner
            .label_sets
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        label_sets.insert(name, most);
    }

    /// Shows counters that are kept elsewhere; `observe` gives the present totals. A counter that goes back is a new one.
    pub fn counters(
        &self,
        name: &'static str,
        unit: &'static str,
        about: &'static str,
        observe: impl Fn(Observe<'_, u64>) + Send + Sync + 'static,
    ) {
        let builder = self.inner.meter.u64_observable_counter(name);
        let _ = builder
            .with_unit(unit)
            .with_description(about)
            .with_callback(observe)
            .build();
    }

    /// Shows one counter without labels that counts in fractions.
    fn float_counter(
        &self,
        name: &'static str,
        unit: &'static str,
        about: &'static str,
        value: impl Fn() -> f64 + Send + Sync + 'static,
    ) {
        let builder = self.inner.meter.f64_observable_counter(name);
        let _ = builder
            .with_unit(unit)
            .with_description(about)
            .with_callback(move |seen| seen.observe(value(), &[]))
            .build();
    }

    /// Shows what goes up and down; `observe` gives the present values.
    pub fn gauges(
        &self,
        name: &'static str,
        unit: &'static str,
        about: &'static str,
        observe: impl Fn(Observe<'_, f64>) + Send + Sync + 'static,
    ) {
        let builder = self.inner.meter.f64_observable_gauge(name);
        let _ = builder
            .with_unit(unit)
            .with_description(about)
            .with_callback(observe)
            .build();
    }

    /// Shows one value without labels.
    pub fn gauge(
        &self,
        name: &'static str,
        unit: &'static str,
        about: &'static str,
        value: impl Fn() -> f64 + Send + Sync + 'static,
    ) {
        self.gauges(name, unit, about, move |seen| seen.observe(value(), &[]));
    }

    /// Makes a histogram with these upper bounds of buckets. A record costs about a tenth of a microsecond.
    pub fn histogram(
        &self,
        name: &'static str,
        unit: &'static str,
        about: &'static str,
        bounds: &[f64],
    ) -> Histogram<f64> {
        let builder = self.inner.meter.f64_histogram(name);
        builder
            .with_unit(unit)
            .with_description(about)
            .with_boundaries(bounds.to_vec())
            .build()
    }

    /// Shows whether a service is ready, check by check, and whether it drains.
    pub fn observe_readiness(&self, readiness: &Readiness) {
        let checks = readiness.clone();
        self.gauges(
            "passline.ready",
            "",
            "1 if this part of /readyz is well.",
            move |seen| {
                for (check, ready) in checks.checks() {
                    seen.observe(flag(ready), &[KeyValue::new("check", check)]);
                }
            },
        );
        let readiness = readiness.clone();
        self.gauge(
            "passline.draining",
            "",
            "1 from the first signal to the end.",
            move || flag(readiness.is_draining()),
        );
    }

    /// Shows when the certificates of a service's listeners expire: each listener's name, and Unix seconds.
    pub fn observe_certificates<I>(&self, certificates: impl Fn() -> I + Send + Sync + 'static)
    where
        I: IntoIterator<Item = (&'static str, i64)>,
    {
        self.gauges(
            "passline.tls.certificate_expiry_timestamp",
            "s",
            "When the certificate in use expires, Unix time.",
            move |seen| {
                for (listener, expires) in certificates() {
                    seen.observe(expires as f64, &[KeyValue::new("listener", listener)]);
                }
            },
        );
    }

    /// Shows what came of reloading files.
    pub fn observe_reloads(&self, status: Arc<ReloadStatus>) {
        let counted = Arc::clone(&status);
        self.counters(
            "passline.config.reloads",
            "{reload}",
            "Changed files that were taken over or refused.",
            move |seen| {
                seen.observe(counted.ok(), &[KeyValue::new("outcome", "applied")]);
                seen.observe(counted.refused(), &[KeyValue::new("outcome", "refused")]);
            },
        );
        self.gauge(
            "passline.config.reload_failed",
            "",
            "1 while what lies on disk is refused and the old state is in use.",
            move || flag(status.failed_now()),
        );
    }

    /// Has something asked before each look, at most once a second and one at a time. A look waits for it 250 ms at most;
    /// what takes longer goes on, up to 30 s, and is there for a later look. Only the first call counts.
    pub fn refresh_by(&self, refresh: impl Fn() -> BoxFuture<'static, ()> + Send + Sync + 'static) {
        let _ = self.inner.refresh.set(Box::new(refresh));
    }

    async fn refresh(&self) {
        let Some(refresh) = self.inner.refresh.get() else {
            return;
        };
        let refreshing = async {
            let mut refreshed = Arc::clone(&self.inner.refreshed).lock_owned().await;
            if refreshed.is_none_or(|at| at.elapsed() >= REFRESH_INTERVAL) {
                let asked = refresh();
                // On its own, since a look that waits no longer must not end it.
                let asking = tokio::spawn(async move {
                    let _ = timeout(REFRESH_TIMEOUT, asked).await;
                    *refreshed = Some(Instant::now());
                });
                let _ = asking.await;
            }
        };
        let _ = timeout(REFRESH_WAIT, refreshing).await;
    }

    /// Returns all metrics as Prometheus' text; `None` if metrics are off or the text can't be made.
    pub async fn text(&self) -> Option<String> {
        if !self.is_on() {
            return None;
        }
        self.refresh().await;
        let registry = self.inner.registry.clone();
        let made = tokio::task::spawn_blocking(move || {
            TextEncoder::new().encode_to_string(&registry.gather())
        });
        match made.await {
            Ok(Ok(text)) => Some(text),
            Ok(Err(error)) => {
                tracing::warn!(error = %error, "the metrics can't be written");
                None
            }
            Err(error) => {
                tracing::error!(error = %error, "a metric can't be read");
                None
            }
        }
    }

    /// Makes the route `GET /metrics`, to be merged into an admin listener's; none if metrics are off.
    pub fn routes(&self) -> Router {
        if !self.is_on() {
            return Router::new();
        }
        let metrics = self.clone();
        let show = async move || -> Response {
            match metrics.text().await {
                Some(text) => ([(header::CONTENT_TYPE, TEXT_TYPE)], text).into_response(),
                None => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
            }
        };
        Router::new().route("/metrics", get(show))
    }

    /// Pushes by OTLP until `stop`, then once more, within 3 s. Without an endpoint it only waits. That a collector is
    /// away, or there again, is logged once.
    pub async fn push(self, stop: CancellationToken) {
        let (Some((exporter, _)), Some(reader)) = (&self.inner.exporter, &self.inner.reader) else {
            return stop.cancelled().await;
        };
        let interval = self.inner.push_interval;
        let mut due = interval_at(Instant::now() + interval, interval);
        due.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut failing = false;
        loop {
            let (last, limit) = tokio::select! {
                _ = due.tick() => (false, self.inner.push_timeout),
                () = stop.cancelled() => (true, LAST_PUSH_TIMEOUT.min(self.inner.push_timeout)),
            };
            let pushed = timeout(limit, self.push_once(exporter, reader)).await;
            let pushed = pushed.unwrap_or_else(|_| Err(format!("no answer within {limit:?}")));
            match pushed {
                Err(error) if !failing => {
                    tracing::warn!(error, "metrics can't be pushed; trying on");
                    failing = true;
                }
                Ok(()) if failing => {
                    tracing::info!("metrics are pushed again");
                    failing = false;
                }
                Ok(()) | Err(_) => {}
            }
            if last {
                return;
            }
        }
    }

    async fn push_once(&self, exporter: &MetricExporter, reader: &Reader) -> Result<(), String> {
        self.refresh().await;
        let reader = reader.clone();
        let collecting = tokio::task::spawn_blocking(move || {
            let mut metrics = ResourceMetrics::default();
            reader.collect(&mut metrics).map(|()| metrics)
        });
        let metrics = collecting
            .await
            .map_err(|error| error.to_string())?
            .map_err(|error| error.to_string())?;
        exporter
            .export(&metrics)
            .await
            .map_err(|error| error.to_string())
    }
}

/// 1 for true.
pub fn flag(value: bool) -> f64 {
    f64::from(u8::from(value))
}

/// Gives instruments the label sets that they asked for; all others are as usual.
fn with_label_sets(
    label_sets: LabelSets,
) -> impl Fn(&Instrument) -> Option<Stream> + Send + Sync + 'static {
    move |instrument| {
        let label_sets = label_sets.lock().unwrap_or_else(PoisonError::into_inner);
        let most = *label_sets.get(instrument.name())?;
        Stream::builder().with_cardinality_limit(most).build().ok()
    }
}

#[cfg(test)]
mod tests;
