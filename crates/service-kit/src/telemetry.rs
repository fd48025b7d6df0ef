//! Logs to standard error and, where an endpoint is configured, traces by OTLP.
//! Metrics are a service's, not the process's: see [`crate::metrics`].
//!
//! The binary calls [`init`] once and keeps the [`TelemetryGuard`] to the end.
//! **Identity**: the resource's `service.name` is the process's, given in
//! [`TelemetryConfig::service_name`]. Where several services share a process
//! (`passline up`), each puts a field `service.name` on its root spans; it is
//! exported as a span attribute and printed with each log line inside.
//!
//! Telemetry never fails or holds up the service: spans go into a bounded
//! queue and are dropped when it is full; an endpoint that can't be used is a
//! warning; the flush at the end is bounded.
//!
//! The spans and events of the transport itself (hyper, h2, tonic, tower) are
//! not exported, or every export would cause another.
//!
//! Two things can be found from anywhere through the subscriber that [`init`]
//! installs, so that nobody has to hand them around: which new traces are
//! recorded ([`sampling`]), and the log filter, which can be changed while the
//! process runs ([`log_filter`]).

use std::io::IsTerminal as _;
use std::sync::LazyLock;
use std::time::Duration as StdDuration;

use opentelemetry::trace::TracerProvider as _;
use opentelemetry::{Key, KeyValue};
use opentelemetry_otlp::SpanExporter;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{
    BatchConfigBuilder, BatchSpanProcessor, IdGenerator as _, RandomIdGenerator, Sampler,
    SdkTracer, SdkTracerProvider,
};
use serde::{Deserialize, Deserializer, Serialize};
use tracing::level_filters::LevelFilter;
use tracing::{Metadata, Subscriber, dispatcher};
use tracing_opentelemetry::OpenTelemetryLayer;
use tracing_subscriber::filter::{FilterFn, filter_fn};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::{Layer, SubscriberExt as _};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{fmt, reload};

use crate::config::{self, Duration, Faults, Validate};
use crate::tls::{TlsClient, TlsClientConfig};

mod log_filter;
pub(crate) mod otlp;
mod sampling;
mod trace_context;

pub use log_filter::{LogFilter, LogFilterError, log_filter_routes};
pub use sampling::Sampling;
pub use trace_context::{current_traceparent, extract, inject, set_parent};

const FLUSH_TIMEOUT: StdDuration = StdDuration::from_secs(3);
const TRACER_NAME: &str = "passline";
/// Targets whose spans are never exported.
const TRANSPORT_TARGETS: [&str; 5] = ["h2", "hyper", "opentelemetry", "tonic", "tower"];

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people; coloured on a terminal.
    #[default]
    Text,
    /// One JSON object per line, fields at the top.
    Json,
}

/// Logs and traces of a process.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct TelemetryConfig {
    /// The process's name in traces, 1 to 64 bytes. Default `passline`.
    pub service_name: String,
    /// `text` or `json`. Default `text`.
    pub log_format: LogFormat,
    /// Levels by target, as `info,hyper=warn`; up to 1,024 bytes. Default `info`.
    /// Targets that would drown the rest are quieter unless they are named here:
    /// the NATS client, which tells each attempt of an outage, the notices of a
    /// PostgreSQL server, the exporters' own words.
    pub log_filter: String,
    /// The OTLP gRPC collector as `http://host:port` or `https://host:port`; absent means that traces and
    /// metrics are not pushed, unless `OTEL_EXPORTER_OTLP_ENDPOINT` (or the one
    /// for `TRACES` or `METRICS`) is set. Headers come from
    /// `OTEL_EXPORTER_OTLP_HEADERS`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub otlp_endpoint: Option<String>,
    /// TLS to a collector at `https://`; absent: the system's authorities.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<TlsClientConfig>,
    /// Share of new traces that is exported, 0 to 1. Default 1. Another service's
    /// decision comes first; a vendor's does not count.
    pub sample_ratio: f64,
    /// Spans that wait for export, 64 to 65,536; more are dropped.
    /// Default 2,048.
    pub queue_spans_max: usize,
    /// Time for one export, 100 ms to 60 s. Default 5 s.
    pub export_timeout: Duration,
    /// Whether metrics are kept and shown at `/metrics`. Default true.
    pub metrics: bool,
    /// Time between two pushes of metrics, 1 s to 10 min. Default 30 s, or what
    /// `OTEL_METRIC_EXPORT_INTERVAL` says in milliseconds.
    pub metrics_interval: Duration,
}

impl Default for TelemetryConfig {
    fn default() -> Self {
        Self {
            service_name: "passline".to_owned(),
            log_format: LogFormat::Text,
            log_filter: "info".to_owned(),
            otlp_endpoint: None,
            tls: None,
            sample_ratio: 1.0,
            queue_spans_max: 2048,
            export_timeout: Duration::from_secs(5),
            metrics: true,
            metrics_interval: Duration::from_secs(30),
        }
    }
}

impl TelemetryConfig {
    /// The default of a service with this name.
    pub fn of(service_name: &str) -> Self {
        Self {
            service_name: service_name.to_owned(),
            ..Self::default()
        }
    }

    /// Reads a `[telemetry]` table; one that leaves the name out means this service's.
    ///
    /// # Errors
    /// If the table is no such configuration.
    pub fn read_of<'de, D: Deserializer<'de>>(
        service_name: &str,
        deserializer: D,
    ) -> Result<Self, D::Error> {
        let mut telemetry = Self::deserialize(deserializer)?;
        if telemetry.service_name == Self::default().service_name {
            service_name.clone_into(&mut telemetry.service_name);
        }
        Ok(telemetry)
    }
}

impl Validate for TelemetryConfig {
    fn validate(&self, faults: &mut Faults) {
        faults.in_range("sample_ratio", self.sample_ratio, 0.0..=1.0);
        faults.in_range("queue_spans_max", self.queue_spans_max, 64..=65_536);
        faults.in_range(
            "export_timeout",
            self.export_timeout,
            Duration::from_millis(100)..=Duration::from_secs(60),
        );
        if self.service_name.is_empty() || self.service_name.len() > 64 {
            faults.invalid(
                "service_name",
                format!("has {} bytes", self.service_name.len()),
                "1 to 64 bytes",
                "give the process a short name",
            );
        }
        faults.in_range(
            "metrics_interval",
            self.metrics_interval,
            Duration::from_secs(1)..=Duration::from_mins(10),
        );
        if let Err(error) = log_filter::parse(&self.log_filter) {
            faults.invalid(
                "log_filter",
                error.to_string(),
                "levels by target, as `info,hyper=warn`",
                "write a level, then `target=level` for exceptions",
            );
        }
        if let Some(endpoint) = &self.otlp_endpoint
            && let Err(problem) = otlp::check_endpoint(endpoint)
        {
            faults.invalid(
                "otlp_endpoint",
                problem,
                "http://host:port or https://host:port",
                "write nothing else; credentials belong in OTEL_EXPORTER_OTLP_HEADERS",
            );
        }
        if let Some(tls) = &self.tls {
            faults.part("tls", tls);
        }
    }
}

/// Keeps telemetry running; dropping it flushes, for at most 3 s.
#[derive(Debug)]
#[must_use = "telemetry ends when the guard is dropped"]
pub struct TelemetryGuard {
    provider: Option<SdkTracerProvider>,
}

impl TelemetryGuard {
    /// Flushes and ends telemetry without holding up the runtime; at most 3 s.
    pub async fn shutdown(mut self) {
        if let Some(provider) = self.provider.take() {
            let _ = tokio::task::spawn_blocking(move || flush(&provider)).await;
        }
    }
}

impl Drop for TelemetryGuard {
    fn drop(&mut self) {
        if let Some(provider) = self.provider.take() {
            flush(&provider);
        }
    }
}

fn flush(provider: &SdkTracerProvider) {
    if let Err(error) = provider.shutdown_with_timeout(FLUSH_TIMEOUT) {
        tracing::debug!(error = %error, "last traces were not exported");
    }
}

/// Installs logs and traces for the whole process.
///
/// Call it once, in the binary, within a tokio runtime (the exporter's
/// connection runs there). A second call changes nothing but warns.
pub fn init(config: &TelemetryConfig) -> TelemetryGuard {
    let (provider, tls, complaint) = match otlp::span_exporter(config, &config::process_env()) {
        Ok(Some((exporter, tls))) => (Some(provider(config, exporter)), tls, None),
        Ok(None) => (None, None, None),
        Err(complaint) => (None, None, Some(complaint)),
    };
    let guard = install(config, provider, tls);
    if let Some(complaint) = complaint {
        tracing::warn!(error = complaint, "traces are not exported");
    }
    guard
}

/// Installs logs as [`init`] does, but traces go to `provider`; for tests with
/// an exporter in memory.
pub fn init_with_tracer_provider(
    provider: SdkTracerProvider,
    config: &TelemetryConfig,
) -> TelemetryGuard {
    install(config, Some(provider), None)
}

/// Makes the layer that turns spans into traces, for a test's own subscriber.
pub fn tracing_layer<S>(provider: &SdkTracerProvider) -> impl Layer<S> + Send + Sync + use<S>
where
    S: Subscriber + for<'span> LookupSpan<'span> + Send + Sync,
{
    let layer: OpenTelemetryLayer<S, SdkTracer> =
        tracing_opentelemetry::layer().with_tracer(provider.tracer(TRACER_NAME));
    let exported: FilterFn<fn(&Metadata<'_>) -> bool> = filter_fn(is_exported);
    layer
        .with_location(false)
        .with_threads(false)
        .with_filter(exported)
        .with_filter(LevelFilter::INFO)
}

fn is_exported(metadata: &Metadata<'_>) -> bool {
    let root = metadata.target().split("::").next().unwrap_or_default();
    !TRANSPORT_TARGETS
        .iter()
        .any(|target| root.starts_with(target))
}

/// What is found through the subscriber; see the module's description.
struct Installed {
    log_filter: LogFilter,
    sampling: Sampling,
    tls: Option<TlsClient>,
}

impl<S: Subscriber> Layer<S> for Installed {}

/// Returns the handle to the process's log filter; `None` if [`init`] was not
/// called.
pub fn log_filter() -> Option<LogFilter> {
    dispatcher::get_default(|dispatch| {
        dispatch
            .downcast_ref::<Installed>()
            .map(|installed| installed.log_filter.clone())
    })
}

/// Says which new traces are recorded. Ask once and keep the answer; where a test
/// installed its own subscriber with a [`tracing_layer`], all are.
pub fn sampling() -> Sampling {
    let installed = dispatcher::get_default(|dispatch| {
        dispatch
            .downcast_ref::<Installed>()
            .map(|installed| installed.sampling)
    });
    installed.unwrap_or_else(|| {
        let span = tracing::info_span!("start");
        match current_traceparent(&span) {
            Some(_) => Sampling::of_ratio(1.0),
            None => Sampling::OFF,
        }
    })
}

/// The TLS of the exporter of traces, to be reloaded.
pub(crate) fn tls() -> Option<TlsClient> {
    dispatcher::get_default(|dispatch| {
        dispatch
            .downcast_ref::<Installed>()
            .and_then(|installed| installed.tls.clone())
    })
}

fn install(
    config: &TelemetryConfig,
    provider: Option<SdkTracerProvider>,
    tls: Option<TlsClient>,
) -> TelemetryGuard {
    // The configuration was validated; a caller who skipped that gets `info`.
    let text = match log_filter::parse(&config.log_filter) {
        Ok(_) => config.log_filter.as_str(),
        Err(_) => "info",
    };
    let filter = log_filter::parse(text).expect("checked just above, or a constant");
    let (filter, handle) = reload::Layer::new(filter);
    let installed = Installed {
        log_filter: LogFilter::new(text, handle),
        sampling: match &provider {
            Some(_) => Sampling::of_ratio(config.sample_ratio),
            None => Sampling::OFF,
        },
        tls,
    };
    let ansi = std::io::stderr().is_terminal();
    let logs = log_layer(config.log_format, ansi, std::io::stderr);
    let installed = tracing_subscriber::registry()
        .with(provider.as_ref().map(tracing_layer))
        .with(logs.with_filter(filter))
        // Sees nothing: a layer without a filter would have every span and event made.
        .with(installed.with_filter(LevelFilter::OFF))
        .try_init();
    if installed.is_err() {
        tracing::warn!("telemetry was initialised before; keeping that");
    }
    TelemetryGuard { provider }
}

fn log_layer<S, W>(format: LogFormat, ansi: bool, writer: W) -> Box<dyn Layer<S> + Send + Sync>
where
    S: Subscriber + for<'span> LookupSpan<'span>,
    W: for<'writer> MakeWriter<'writer> + Send + Sync + 'static,
{
    let layer = fmt::layer().with_writer(writer).with_ansi(ansi);
    match format {
        LogFormat::Text => layer.boxed(),
        LogFormat::Json => layer
            .json()
            .flatten_event(true)
            .with_current_span(true)
            .with_span_list(false)
            .boxed(),
    }
}

fn provider(config: &TelemetryConfig, exporter: SpanExporter) -> SdkTracerProvider {
    let batches = BatchSpanProcessor::builder(exporter)
        .with_batch_config(
            BatchConfigBuilder::default()
                .with_max_queue_size(config.queue_spans_max)
                .with_max_export_batch_size(config.queue_spans_max.min(512))
                .build(),
        )
        .build();
    SdkTracerProvider::builder()
        .with_span_processor(batches)
        .with_sampler(Sampler::ParentBased(Box::new(sampling::RootSampler::new(
            config.sample_ratio,
        ))))
        // All of the workspace has one version.
        .with_resource(resource(config, env!("CARGO_PKG_VERSION")))
        .build()
}

/// Tells this process from replicas and earlier ones, the same in its traces and its metrics.
static INSTANCE: LazyLock<String> =
    LazyLock::new(|| RandomIdGenerator::default().new_trace_id().to_string());

/// Whose the telemetry is.
pub(crate) fn resource(config: &TelemetryConfig, version: &'static str) -> Resource {
    // What OTEL_RESOURCE_ATTRIBUTES says comes on top of an instance that is only random.
    let detected = Resource::builder().build();
    let mut builder = Resource::builder()
        .with_service_name(config.service_name.clone())
        .with_attribute(KeyValue::new("service.version", version));
    let key = Key::from_static_str("service.instance.id");
    if detected.get(&key).is_none() {
        builder = builder.with_attribute(KeyValue::new(key, INSTANCE.as_str()));
    }
    builder.build()
}

#[cfg(test)]
mod tests;
