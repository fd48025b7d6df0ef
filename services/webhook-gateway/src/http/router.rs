//! The routes, and the outermost layer around a callback: its span, and what happens if it panics.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::routing::any;
use futures_util::FutureExt as _;
use http::Response;
use opentelemetry::Context;
use pass_spool::Spool;
use service_kit::clock::Clock;
use service_kit::listener::BodyTimeouts;
use service_kit::telemetry::{self, Sampling};
use tokio::sync::watch;
use tracing::field::Empty;
use tracing::{Instrument as _, Span};

use super::in_flight::InFlight;
use super::problem::Problem;
use super::receive;
use crate::books::Books;
use crate::config::{Http, SERVICE_NAME};
use crate::forward::ForwardStatus;
use crate::metrics::AckDuration;
use crate::policy::Live;
use crate::record::record_bytes_max;
use crate::waiters::Waiters;

/// What a callback needs on its way. Shared by all connections.
pub(crate) struct Edge {
    pub(super) live: Arc<Live>,
    pub(super) spool: Arc<dyn Spool>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) books: Arc<Books>,
    pub(super) waiters: Arc<Waiters>,
    /// Tells whether pass-state knows the spool as it is.
    pub(super) forward: watch::Receiver<ForwardStatus>,
    pub(super) in_flight: Arc<InFlight>,
    pub(super) body_bytes_max: usize,
    pub(super) record_bytes_max: usize,
    pub(super) body_timeouts: BodyTimeouts,
    /// Which requests get a span; for the others no work is done.
    pub(super) sampling: Sampling,
    /// Absent if nobody looks at metrics.
    pub(super) ack_duration: Option<AckDuration>,
}

impl Edge {
    #[expect(
        clippy::too_many_arguments,
        reason = "the one place where the parts of the edge come together"
    )]
    pub(crate) fn new(
        http: &Http,
        live: Arc<Live>,
        spool: Arc<dyn Spool>,
        clock: Arc<dyn Clock>,
        books: Arc<Books>,
        waiters: Arc<Waiters>,
        forward: watch::Receiver<ForwardStatus>,
        sampling: Sampling,
        ack_duration: Option<AckDuration>,
    ) -> Self {
        let body_bytes_max = http.body_bytes_max.as_usize();
        Self {
            live,
            spool,
            clock,
            books,
            waiters,
            forward,
            in_flight: Arc::new(InFlight::new(
                http.requests_in_flight_max,
                http.bytes_in_flight_max.as_usize(),
            )),
            body_bytes_max,
            record_bytes_max: record_bytes_max(body_bytes_max),
            body_timeouts: http.limits.body,
            sampling,
            ack_duration,
        }
    }

    /// How much is being handled.
    pub(crate) fn in_flight(&self) -> Arc<InFlight> {
        Arc::clone(&self.in_flight)
    }
}

/// Makes the service that takes callbacks. Paths are not logged here or below: they may hold a secret.
pub(crate) fn router(edge: Arc<Edge>) -> Router {
    Router::new()
        .route("/webhooks/{source}", any(callback))
        .route("/webhooks/{source}/{secret}", any(callback))
        .fallback(nothing_here)
        .with_state(edge)
}

async fn nothing_here(State(edge): State<Arc<Edge>>, request: Request) -> Response<Body> {
    let (parts, _) = request.into_parts();
    receive::nothing_here(&edge, &parts)
}

async fn callback(State(edge): State<Arc<Edge>>, request: Request) -> Response<Body> {
    let answering = AssertUnwindSafe(answer(&edge, request)).catch_unwind();
    match answering.await {
        Ok(response) => response,
        // The panic hook has told where; the request's ending has counted it.
        Err(_panic) => {
            tracing::error!("a callback's handler panicked; it was answered 500");
            Problem::Internal.response()
        }
    }
}

async fn answer(edge: &Edge, request: Request) -> Response<Body> {
    let Some(span) = span(edge.sampling, &request) else {
        return receive::receive(edge, request, None).await;
    };
    let response = receive::receive(edge, request, Some(&span))
        .instrument(span.clone())
        .await;
    span.record("http.response.status_code", response.status().as_u16());
    if response.status().is_server_error() {
        span.record("otel.status_code", "ERROR");
    }
    response
}

/// The request's span, if chance wants it.
fn span(sampling: Sampling, request: &Request) -> Option<Span> {
    if !sampling.is_on() {
        return None;
    }
    let header = |name: &str| {
        let value = request.headers().get(name);
        value.and_then(|value| value.to_str().ok())
    };
    let parent = header("traceparent").map_or_else(Context::new, |traceparent| {
        telemetry::extract(traceparent, header("tracestate"))
    });
    let method = known_method(request.method());
    sampling.span(&parent, || {
        tracing::info_span!(
            "callback",
            otel.name = format!("{method} /webhooks/{{source}}"),
            otel.kind = "server",
            otel.status_code = Empty,
            service.name = SERVICE_NAME,
            http.request.method = method,
            http.route = "/webhooks/{source}",
            http.response.status_code = Empty,
            source.name = Empty,
            delivery.id = Empty,
        )
    })
}

/// The method's name, for the few that exist; the sender can't put words into span names.
fn known_method(method: &http::Method) -> &'static str {
    match pass_sources::method_from_http(method) {
        Some(known) => known.name(),
        None if method == http::Method::GET => "GET",
        None => "_OTHER",
    }
}
