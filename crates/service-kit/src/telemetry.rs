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
use std::time::Duration as StdDuration;

use opentelemetry::trace::TracerProvider as _;
use opentelemetry_otlp::SpanExporter;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{
    BatchConfigBuilder, BatchSpanProcessor, Sampler, SdkTracer, SdkTracerProvider,
};
use serde::{Deserialize, Serialize};
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
    /// The OTLP gRPC collector as `http://host:port`; absent means that traces and
    /// metrics are not pushed, unless `OTEL_EXPORTER_OTLP_ENDPOINT` (or the one
    /// for `TRACES` or `METRICS`) is set. Headers come from
    /// `OTEL_EXPORTER_OTLP_HEADERS`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub otlp_endpoint: Option<String>,
    /// Share of new traces that is exported, 0 to 1; the caller's decision
    /// comes first. Default 1.
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
            sample_ratio: 1.0,
            queue_spans_max: 2048,
            export_timeout: Duration::from_secs(5),
            metrics: true,
            metrics_interval: Duration::from_secs(30),
        }
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
            && !endpoint.starts_with("http://")
        {
            faults.invalid(
                "otlp_endpoint",
                "not the URI of a plaintext collector",
                "http://host:port",
                "run the collector beside the service",
            );
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
    let (provider, complaint) = match otlp::span_exporter(config, &config::process_env()) {
        Ok(Some(exporter)) => (Some(provider(config, exporter)), None),
        Ok(None) => (None, None),
        Err(complaint) => (None, Some(complaint)),
    };
    let guard = install(config, provider);
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
    install(config, Some(provider))
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

fn install(config: &TelemetryConfig, provider: Option<SdkTracerProvider>) -> TelemetryGuard {
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
        .with_resource(
            Resource::builder()
                .with_service_name(config.service_name.clone())
                .build(),
        )
        .build()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span_to(endpoint: String) -> TelemetryGuard {
        let config = TelemetryConfig {
            service_name: "kit-under-test".to_owned(),
            otlp_endpoint: Some(endpoint),
            ..TelemetryConfig::default()
        };
        let exporter = otlp::span_exporter(&config, &[]).unwrap().unwrap();
        let provider = provider(&config, exporter);
        let subscriber = tracing_subscriber::registry().with(tracing_layer(&provider));
        tracing::subscriber::with_default(subscriber, || {
            tracing::info_span!("span-under-test").in_scope(|| {});
        });
        TelemetryGuard {
            provider: Some(provider),
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn spans_reach_a_collector_at_the_latest_when_telemetry_ends() {
        let (sender, mut received) = tokio::sync::mpsc::unbounded_channel();
        let export = async move |body: axum::body::Bytes| {
            let _ = sender.send(String::from_utf8_lossy(&body).into_owned());
            [("content-type", "application/grpc"), ("grpc-status", "0")]
        };
        let collector = axum::Router::new().route(
            "/opentelemetry.proto.collector.trace.v1.TraceService/Export",
            axum::routing::post(export),
        );
        let limits = crate::grpc::GrpcLimits::default();
        let listener = crate::grpc::GrpcListener::bind(([127, 0, 0, 1], 0).into(), limits.clone())
            .await
            .unwrap();
        let endpoint = format!("http://{}", listener.local_addr());
        let router = crate::grpc::server(&limits).add_routes(collector.into());
        tokio::spawn(listener.serve(router, crate::shutdown::Shutdown::new()));

        span_to(endpoint).shutdown().await;
        let body = received
            .try_recv()
            .expect("exported before shutdown returned");
        assert!(body.contains("span-under-test"));
        assert!(body.contains("kit-under-test"));
    }

    #[tokio::test]
    async fn a_collector_that_is_away_holds_nobody_up() {
        let began = std::time::Instant::now();
        let guard = span_to("http://127.0.0.1:1".to_owned());
        assert!(
            began.elapsed() < StdDuration::from_secs(1),
            "a span waited for its export"
        );
        guard.shutdown().await;
        assert!(began.elapsed() < FLUSH_TIMEOUT * 2);
    }

    #[derive(Clone, Default)]
    struct Lines(std::sync::Arc<std::sync::Mutex<Vec<u8>>>);

    impl std::io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn json_lines_have_their_fields_at_the_top() {
        let lines = Lines::default();
        let writer = lines.clone();
        let layer = log_layer(LogFormat::Json, false, move || writer.clone());
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
            let span = tracing::info_span!("receive", service.name = "kit");
            span.in_scope(|| tracing::info!(request.id = 7, "received"));
        });
        let bytes = lines.0.lock().unwrap();
        let line: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
        assert_eq!(line["message"], "received");
        assert_eq!(line["request.id"], 7);
        assert_eq!(line["span"]["service.name"], "kit");
        assert_eq!(line["level"], "INFO");
    }

    #[test]
    fn control_characters_do_not_forge_lines() {
        let lines = Lines::default();
        let writer = lines.clone();
        let layer = log_layer(LogFormat::Text, false, move || writer.clone());
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
            tracing::info!("one \u{1b}[31mred");
        });
        let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
        assert!(!text.contains('\u{1b}'), "{text:?}");
    }

    #[test]
    fn a_bad_filter_and_ratio_are_faults() {
        let config = TelemetryConfig {
            log_filter: "a=b=c".to_owned(),
            sample_ratio: 1.5,
            otlp_endpoint: Some("https://x".to_owned()),
            ..TelemetryConfig::default()
        };
        let mut faults = Faults::default();
        config.validate(&mut faults);
        assert_eq!(faults.len(), 3, "{faults}");
        let mut faults = Faults::default();
        TelemetryConfig::default().validate(&mut faults);
        assert!(faults.is_empty(), "{faults}");
    }
}
