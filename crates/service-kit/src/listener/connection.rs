//! One connection from accept to close.

use std::convert::Infallible;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use axum::body::Body;
use futures_util::FutureExt as _;
use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tower::{Service, ServiceExt as _};

use super::watch::{Watch, WatchedStream};
use super::{HttpLimits, PeerAddr};
use crate::shutdown::Shutdown;
use crate::tls::{Stream, TlsServer};

/// What all connections of a listener share.
#[derive(Clone)]
pub(super) struct Settings {
    http: http1::Builder,
    header_read_timeout: Duration,
    keep_alive_idle: Duration,
    age_max: Duration,
    grace: Duration,
    tls: Option<TlsServer>,
}

/// The answer to a request whose handler panicked. The panic hook has printed
/// the panic; this says that it cost a request.
fn internal_error() -> Response<Body> {
    tracing::error!("a request handler panicked");
    let mut response = Response::new(Body::from("internal error"));
    *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
    response
}

/// Why a connection was ended by us.
#[derive(Clone, Copy, Debug)]
enum Ended {
    ByPeerOrAnswer,
    TooLong,
    Cut,
}

impl Settings {
    pub(super) fn new(limits: &HttpLimits, tls: Option<TlsServer>) -> Self {
        let mut http = http1::Builder::new();
        http.timer(TokioTimer::new())
            // Our own watch knows idle from half a head; hyper's timer doesn't.
            .header_read_timeout(None)
            .max_headers(limits.header_count_max)
            .max_header_size(limits.header_bytes_max.as_usize())
            .max_buf_size(limits.header_bytes_max.as_usize())
            .half_close(false)
            .keep_alive(true);
        Self {
            http,
            header_read_timeout: limits.header_read_timeout.get(),
            keep_alive_idle: limits.keep_alive_idle.get(),
            age_max: limits.connection_age_max.get(),
            grace: limits.connection_grace.get(),
            tls,
        }
    }

    /// Shakes hands if there is TLS. `None` if that fails or there is no time.
    async fn begin(
        &self,
        stream: TcpStream,
        peer: PeerAddr,
        shutdown: &Shutdown,
        cut: &CancellationToken,
    ) -> Option<Stream> {
        let Some(tls) = &self.tls else {
            return Some(Stream::Plain(stream));
        };
        tokio::select! {
            shaken = tls.accept(stream) => match shaken {
                Ok((stream, _)) => Some(stream),
                Err(error) => {
                    tracing::debug!(peer = %peer.0, error = %error, "TLS handshake failed");
                    None
                }
            },
            // Nothing was asked yet; later handshakes are refused as well.
            () = shutdown.stopping() => None,
            () = cut.cancelled() => None,
        }
    }

    /// Serves one connection to its end.
    pub(super) fn serve<S>(
        &self,
        stream: TcpStream,
        peer: PeerAddr,
        service: S,
        shutdown: Shutdown,
        cut: CancellationToken,
    ) -> impl Future<Output = ()> + Send + use<S>
    where
        S: Service<Request<Incoming>, Response = Response<Body>, Error = Infallible>
            + Clone
            + Send
            + 'static,
        S::Future: Send,
    {
        let settings = self.clone();
        async move {
            let Some(stream) = settings.begin(stream, peer, &shutdown, &cut).await else {
                return;
            };
            let watch = Watch::new(Instant::now());
            let io = TokioIo::new(WatchedStream {
                stream,
                watch: watch.clone(),
            });
            let answering = service_fn({
                let watch = watch.clone();
                move |mut request: Request<Incoming>| {
                    watch.busy();
                    request.extensions_mut().insert(peer);
                    let answer = AssertUnwindSafe(service.clone().oneshot(request));
                    let watch = watch.clone();
                    async move {
                        let response = match answer.catch_unwind().await {
                            Ok(response) => response?,
                            Err(_panic) => internal_error(),
                        };
                        Ok::<_, Infallible>(response.map(|body| watch.until_written(body)))
                    }
                }
            });
            let mut connection = pin!(settings.http.serve_connection(io, answering));
            let mut closing = false;
            let mut leave = pin!(async {
                tokio::select! {
                    () = tokio::time::sleep(settings.age_max) => Some(settings.grace),
                    // The listener's drain deadline cuts these.
                    () = shutdown.stopping() => None,
                }
            });
            let mut cut = pin!(cut.cancelled());
            let mut grace_end: Option<Instant> = None;
            let mut timer = pin!(sleep_until(Instant::now() + settings.header_read_timeout));
            let mut armed = true;

            let ended = std::future::poll_fn(|cx| {
                if cut.as_mut().poll(cx).is_ready() {
                    return Poll::Ready(Ended::Cut);
                }
                if !closing && let Poll::Ready(grace) = leave.as_mut().poll(cx) {
                    closing = true;
                    grace_end = grace.map(|grace| Instant::now() + grace);
                    connection.as_mut().graceful_shutdown();
                }
                if let Poll::Ready(result) = connection.as_mut().poll(cx) {
                    if let Err(error) = result {
                        tracing::debug!(peer = %peer.0, error = %error, "connection failed");
                    }
                    return Poll::Ready(Ended::ByPeerOrAnswer);
                }
                // Only an earlier deadline moves the timer at once; a later
                // one is noticed when the timer fires. So a busy connection
                // does not touch the timer wheel for each request.
                let deadline = watch
                    .deadline(settings.header_read_timeout, settings.keep_alive_idle)
                    .into_iter()
                    .chain(grace_end)
                    .min();
                loop {
                    let Some(deadline) = deadline else {
                        return Poll::Pending;
                    };
                    if !armed || deadline < timer.deadline() {
                        timer.as_mut().reset(deadline);
                        armed = true;
                    }
                    if timer.as_mut().poll(cx).is_pending() {
                        return Poll::Pending;
                    }
                    armed = false;
                    if Instant::now() >= deadline {
                        return Poll::Ready(Ended::TooLong);
                    }
                }
            })
            .await;
            tracing::trace!(peer = %peer.0, ended = ?ended, "connection closed");
        }
    }
}
