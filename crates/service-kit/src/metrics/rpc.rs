//! How long gRPC calls take and how they end: a layer around everything that a server serves.
//!
//! A call lasts until its answer's last byte, so a stream's whole life counts. Its code comes from the head (an answer of
//! trailers only), else from the trailers; a call that ends before either was cancelled by its caller. Labels are of
//! methods that exist: what else a caller may name is `_OTHER`.
//!
//! Names are those of OpenTelemetry's semantic conventions for RPC (1.38 and later). Its `error.type` is left out, which
//! for gRPC would only repeat the code.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{HeaderMap, Request, Response};
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use opentelemetry::StringValue;
use opentelemetry::metrics::Histogram;
use tokio::time::Instant;
use tonic::body::Body;
use tonic::{Code, Status};
use tower::{Layer, Service};

use super::{KeyValue, Metrics};

/// As the semantic conventions say.
const SECONDS: [f64; 14] = [
    0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
];
const STATUS_HEADER: &str = "grpc-status";
const OTHER: &str = "_OTHER";

/// Measures every call; put it outside of all other layers.
#[derive(Clone, Debug)]
pub struct RpcLayer {
    rpc: Option<Arc<Rpc>>,
}

#[derive(Debug)]
struct Rpc {
    histogram: Histogram<f64>,
    /// Methods, each with its service, by path.
    methods: HashMap<String, StringValue>,
}

impl RpcLayer {
    /// Measures calls of `methods`, each a service's full name and a method's. Does nothing if metrics are off.
    pub fn new(metrics: &Metrics, methods: impl IntoIterator<Item = (String, String)>) -> Self {
        let rpc = metrics.is_on().then(|| {
            let histogram = metrics.histogram(
                "rpc.server.call.duration",
                "s",
                "Time of a gRPC call from its head to the end of its answer.",
                &SECONDS,
            );
            let methods = methods.into_iter().map(|(service, method)| {
                let method = format!("{service}/{method}");
                (format!("/{method}"), method.into())
            });
            Arc::new(Rpc {
                histogram,
                methods: methods.collect(),
            })
        });
        Self { rpc }
    }
}

impl<S> Layer<S> for RpcLayer {
    type Service = Measured<S>;

    fn layer(&self, inner: S) -> Measured<S> {
        Measured {
            rpc: self.rpc.clone(),
            inner,
        }
    }
}

/// A service of which each call is measured.
#[derive(Clone, Debug)]
pub struct Measured<S> {
    rpc: Option<Arc<Rpc>>,
    inner: S,
}

impl<S, B> Service<Request<B>> for Measured<S>
where
    S: Service<Request<B>, Response = Response<Body>>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<Response<Body>, S::Error>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let call = self.rpc.as_ref().map(|rpc| Call {
            method: rpc.methods.get(request.uri().path()).cloned(),
            rpc: Arc::clone(rpc),
            began: Instant::now(),
            code: None,
        });
        let answering = self.inner.call(request);
        Box::pin(async move {
            let response = answering.await?;
            let Some(mut call) = call else {
                return Ok(response);
            };
            if let Some(code) = code_in(response.headers()) {
                call.code = Some(code);
            }
            Ok(response.map(|inner| Body::new(Watched { inner, call })))
        })
    }
}

/// A call that is recorded when this is dropped.
struct Call {
    rpc: Arc<Rpc>,
    method: Option<StringValue>,
    began: Instant,
    code: Option<Code>,
}

impl Drop for Call {
    fn drop(&mut self) {
        let method = self.method.take().unwrap_or_else(|| OTHER.into());
        let labels = [
            KeyValue::new("rpc.system.name", "grpc"),
            KeyValue::new("rpc.method", method),
            KeyValue::new(
                "rpc.response.status_code",
                name(self.code.unwrap_or(Code::Cancelled)),
            ),
        ];
        let took = self.began.elapsed().as_secs_f64();
        self.rpc.histogram.record(took, &labels);
    }
}

/// An answer on its way, watched for its code.
struct Watched {
    inner: Body,
    call: Call,
}

impl HttpBody for Watched {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let frame = Pin::new(&mut self.inner).poll_frame(cx);
        match &frame {
            Poll::Ready(Some(Ok(frame))) => {
                if let Some(code) = frame.trailers_ref().and_then(code_in) {
                    self.call.code = Some(code);
                }
            }
            Poll::Ready(Some(Err(status))) => self.call.code = Some(status.code()),
            Poll::Ready(None) | Poll::Pending => {}
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

fn code_in(headers: &HeaderMap) -> Option<Code> {
    let value = headers.get(STATUS_HEADER)?;
    Some(Code::from_bytes(value.as_bytes()))
}

/// The code as the specification spells it.
fn name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use http_body_util::{BodyExt as _, StreamBody};
    use tower::{ServiceExt as _, service_fn};

    use super::*;
    use crate::admin::Version;
    use crate::telemetry::TelemetryConfig;

    fn trailers(code: &'static str) -> Frame<Bytes> {
        let mut trailers = HeaderMap::new();
        trailers.insert(STATUS_HEADER, code.parse().unwrap());
        Frame::trailers(trailers)
    }

    /// What `/metrics` counts after calls of these paths.
    async fn counted(calls: &[&str]) -> String {
        let version = Version {
            service: "kit",
            version: "0",
        };
        let metrics = Metrics::new(&TelemetryConfig::default(), version);
        let known = ("kit.v1.Kit".to_owned(), "Get".to_owned());
        let layer = RpcLayer::new(&metrics, [known]);
        let service = layer.layer(service_fn(async |request: Request<()>| {
            let mut response = Response::new(Body::empty());
            if request.uri().query() == Some("refused") {
                response
                    .headers_mut()
                    .insert(STATUS_HEADER, "5".parse().unwrap());
            } else {
                let frames = [Frame::data(Bytes::from_static(b"x")), trailers("0")];
                let frames = frames.map(Ok::<_, Status>);
                *response.body_mut() =
                    Body::new(StreamBody::new(futures_util::stream::iter(frames)));
            }
            Ok::<_, Infallible>(response)
        }));
        for call in calls {
            let request = Request::get(*call).body(()).unwrap();
            let response = service.clone().oneshot(request).await.unwrap();
            if !call.ends_with("dropped") {
                response.into_body().collect().await.unwrap();
            }
        }
        let text = metrics.text().await.unwrap();
        let lines = text.lines();
        let lines =
            lines.filter_map(|line| line.strip_prefix("rpc_server_call_duration_seconds_count"));
        lines.collect::<Vec<_>>().join("\n")
    }

    #[tokio::test]
    async fn calls_are_counted_by_method_and_by_how_their_answer_ended() {
        let counted = counted(&[
            "/kit.v1.Kit/Get",
            "/kit.v1.Kit/Get",
            "/kit.v1.Kit/Get?refused",
            "/kit.v1.Kit/Get?dropped",
            "/made.Up/By_a_caller?refused",
        ])
        .await;
        let labels = |code, method| {
            format!(
                "{{rpc_method=\"{method}\",rpc_response_status_code=\"{code}\",rpc_system_name=\"grpc\"}}"
            )
        };
        let mut lines: Vec<&str> = counted.lines().collect();
        lines.sort_unstable();
        assert_eq!(
            lines,
            [
                format!("{} 1", labels("NOT_FOUND", "_OTHER")),
                format!("{} 1", labels("CANCELLED", "kit.v1.Kit/Get")),
                format!("{} 1", labels("NOT_FOUND", "kit.v1.Kit/Get")),
                format!("{} 2", labels("OK", "kit.v1.Kit/Get")),
            ]
        );
    }
}
