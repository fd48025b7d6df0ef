//! An OTLP collector in the test's own process: takes traces and metrics over gRPC, as a real one would, and keeps
//! what a test asks about.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::Context as _;
use opentelemetry_proto::tonic::collector::metrics::v1::metrics_service_server::{
    MetricsService, MetricsServiceServer,
};
use opentelemetry_proto::tonic::collector::metrics::v1::{
    ExportMetricsServiceRequest, ExportMetricsServiceResponse,
};
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::resource::v1::Resource;
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::metadata::MetadataMap;
use tonic::transport::Server;
use tonic::{Request, Response, Status};

/// Largest message, in bytes.
const MESSAGE_BYTES_MAX: usize = 64 << 20;

/// A span that was received.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    /// The resource's `service.name`.
    pub service: String,
    /// Its name.
    pub name: String,
    /// The trace, in hex.
    pub trace: String,
    /// Its id, in hex.
    pub id: String,
    /// The span above it, in hex; empty if there is none.
    pub parent: String,
}

/// What was received.
#[derive(Debug, Default)]
struct Received {
    spans: Mutex<Vec<Span>>,
    metrics: Mutex<BTreeSet<(String, String)>>,
    headers: Mutex<BTreeSet<(String, String)>>,
    spans_text: Mutex<String>,
    metrics_text: Mutex<String>,
    spans_total: AtomicU64,
    exports: AtomicU64,
    /// Whether spans are kept, or only counted.
    keeps: bool,
}

/// A running collector; it ends when this is dropped.
#[derive(Debug)]
pub struct Collector {
    received: Arc<Received>,
    address: SocketAddr,
    serving: tokio::task::JoinHandle<()>,
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl Collector {
    /// Starts one on a free port that keeps what it gets.
    ///
    /// # Errors
    /// If no port can be bound.
    pub async fn start() -> anyhow::Result<Self> {
        Self::serve(true).await
    }

    /// Starts one that only counts: for long runs.
    ///
    /// # Errors
    /// If no port can be bound.
    pub async fn sink() -> anyhow::Result<Self> {
        Self::serve(false).await
    }

    async fn serve(keeps: bool) -> anyhow::Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0))
            .await
            .context("no port for the collector")?;
        let address = listener.local_addr()?;
        let received = Arc::new(Received {
            keeps,
            ..Received::default()
        });
        let server = Server::builder()
            .add_service(
                TraceServiceServer::from_arc(Arc::clone(&received))
                    .max_decoding_message_size(MESSAGE_BYTES_MAX),
            )
            .add_service(
                MetricsServiceServer::from_arc(Arc::clone(&received))
                    .max_decoding_message_size(MESSAGE_BYTES_MAX),
            );
        let serving = tokio::spawn(async move {
            let incoming = TcpListenerStream::new(listener);
            if let Err(error) = server.serve_with_incoming(incoming).await {
                eprintln!("the collector ended: {error}");
            }
        });
        Ok(Self {
            received,
            address,
            serving,
        })
    }

    /// What `telemetry.otlp_endpoint` is to be.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The spans received so far.
    pub fn spans(&self) -> Vec<Span> {
        lock(&self.received.spans).clone()
    }

    /// Service and name of each metric received so far.
    pub fn metrics(&self) -> BTreeSet<(String, String)> {
        lock(&self.received.metrics).clone()
    }

    /// The headers of all exports so far.
    pub fn headers(&self) -> BTreeSet<(String, String)> {
        lock(&self.received.headers).clone()
    }

    /// The content of all exports of spans so far, without their headers, as `Debug` writes it.
    pub fn spans_text(&self) -> String {
        lock(&self.received.spans_text).clone()
    }

    /// The same of metrics.
    pub fn metrics_text(&self) -> String {
        lock(&self.received.metrics_text).clone()
    }

    /// How many spans, and how many exports of any kind, came so far.
    pub fn counts(&self) -> (u64, u64) {
        (
            self.received.spans_total.load(Ordering::Relaxed),
            self.received.exports.load(Ordering::Relaxed),
        )
    }
}

impl Received {
    /// Keeps an export's whole content, as text.
    fn keep_text(&self, text: &Mutex<String>, export: &dyn std::fmt::Debug) {
        if self.keeps {
            lock(text).push_str(&format!("{export:?}\n"));
        }
    }

    fn export(&self, metadata: &MetadataMap) {
        self.exports.fetch_add(1, Ordering::Relaxed);
        let mut headers = lock(&self.headers);
        for (name, value) in metadata.as_ref() {
            if let Ok(value) = value.to_str() {
                headers.insert((name.to_string(), value.to_owned()));
            }
        }
    }
}

#[tonic::async_trait]
impl TraceService for Received {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        self.export(request.metadata());
        self.keep_text(&self.spans_text, request.get_ref());
        for of_resource in request.into_inner().resource_spans {
            let service = service_name(of_resource.resource.as_ref());
            for span in of_resource
                .scope_spans
                .into_iter()
                .flat_map(|of_scope| of_scope.spans)
            {
                self.spans_total.fetch_add(1, Ordering::Relaxed);
                if self.keeps {
                    lock(&self.spans).push(Span {
                        service: service.clone(),
                        name: span.name,
                        trace: hex(&span.trace_id),
                        id: hex(&span.span_id),
                        parent: hex(&span.parent_span_id),
                    });
                }
            }
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

#[tonic::async_trait]
impl MetricsService for Received {
    async fn export(
        &self,
        request: Request<ExportMetricsServiceRequest>,
    ) -> Result<Response<ExportMetricsServiceResponse>, Status> {
        self.export(request.metadata());
        self.keep_text(&self.metrics_text, request.get_ref());
        for of_resource in request.into_inner().resource_metrics {
            let service = service_name(of_resource.resource.as_ref());
            let scopes = of_resource.scope_metrics.into_iter();
            for metric in scopes.flat_map(|of_scope| of_scope.metrics) {
                lock(&self.metrics).insert((service.clone(), metric.name));
            }
        }
        Ok(Response::new(ExportMetricsServiceResponse::default()))
    }
}

fn service_name(resource: Option<&Resource>) -> String {
    let text = |attribute: &KeyValue| match &attribute.value.as_ref()?.value {
        Some(Value::StringValue(text)) => Some(text.clone()),
        Some(_) | None => None,
    };
    resource
        .into_iter()
        .flat_map(|resource| &resource.attributes)
        .find(|attribute| attribute.key == "service.name")
        .and_then(text)
        .unwrap_or_default()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
