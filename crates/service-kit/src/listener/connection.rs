//! One connection from accept to close.

use std::convert::Infallible;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;
use std::time::Duration;

use axum::body::Body;
use futures_util::FutureExt as _;
use http::{HeaderValue, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tower::{Service, ServiceExt as _};

use super::crowding::{Crowding, SILENCE_WHEN_CROWDED};
use super::watch::{Patience, Watch, WatchedStream};
use super::{HttpLimits, PeerAddr};
use crate::accept::{SILENCE_AT_END, silence_at_end};
use crate::shutdown::Shutdown;
use crate::tls::{Stream, TlsServer};

/// How long an orderly close may take.
const CLOSE_MAX: Duration = Duration::from_secs(1);

/// What all connections of a listener share.
#[derive(Clone)]
pub(super) struct Settings {
    http: http1::Builder,
    header_read_timeout: Duration,
    keep_alive_idle: Duration,
    age_max: Duration,
    grace: Duration,
    tls: Option<TlsServer>,
    pub(super) crowding: Arc<Crowding>,
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
            crowding: Arc::default(),
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
            shaken = tls.accept(stream, peer.0) => shaken.map(|(stream, _)| stream),
            () = silence_at_end(shutdown) => None,
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
            let io = TokioIo::new(WatchedStream::new(stream, watch.clone()));
            // Tells the answers that they are the last ones. Set once, by this task.
            let aged = Arc::new(AtomicBool::new(false));
            let answering = service_fn({
                let (watch, shutdown) = (watch.clone(), shutdown.clone());
                let aged = Arc::clone(&aged);
                move |mut request: Request<Incoming>| {
                    watch.busy();
                    request.extensions_mut().insert(peer);
                    let answer = AssertUnwindSafe(service.clone().oneshot(request));
                    let (watch, shutdown) = (watch.clone(), shutdown.clone());
                    let aged = Arc::clone(&aged);
                    async move {
                        let mut response = match answer.catch_unwind().await {
                            Ok(response) => response?,
                            Err(_panic) => internal_error(),
                        };
                        if aged.load(Ordering::Relaxed) || shutdown.is_draining() {
                            let close = HeaderValue::from_static("close");
                            response.headers_mut().insert(header::CONNECTION, close);
                        }
                        Ok::<_, Infallible>(response.map(|body| watch.until_written(body)))
                    }
                }
            });
            let mut connection = pin!(settings.http.serve_connection(io, answering));
            let mut age = pin!(tokio::time::sleep(settings.age_max));
            let mut stopping = pin!(shutdown.stopping());
            let mut stopped = false;
            let mut crowded = pin!(settings.crowding.begun());
            let mut cut = pin!(cut.cancelled());
            // When the connection is cut whatever it does.
            let mut end: Option<Instant> = None;
            let mut closing = false;
            let mut timer = pin!(sleep_until(Instant::now() + settings.header_read_timeout));
            let mut armed = true;

            let ended = std::future::poll_fn(|cx| {
                if cut.as_mut().poll(cx).is_ready() {
                    return Poll::Ready(Ended::Cut);
                }
                if !aged.load(Ordering::Relaxed) && age.as_mut().poll(cx).is_ready() {
                    aged.store(true, Ordering::Relaxed);
                    end = Some(Instant::now() + settings.grace);
                }
                // The listener's drain deadline cuts those that take too long.
                stopped = stopped || stopping.as_mut().poll(cx).is_ready();
                while crowded.as_mut().poll(cx).is_ready() {
                    crowded.set(settings.crowding.begun());
                }
                let silence_max = if stopped {
                    SILENCE_AT_END
                } else if settings.crowding.is_now() {
                    SILENCE_WHEN_CROWDED
                } else {
                    Duration::MAX
                };
                let patience = Patience {
                    head: settings.header_read_timeout,
                    silence: settings.keep_alive_idle.min(silence_max),
                };
                loop {
                    if let Poll::Ready(result) = connection.as_mut().poll(cx) {
                        if let Err(error) = result {
                            tracing::debug!(peer = %peer.0, error = %error, "connection failed");
                        }
                        return Poll::Ready(Ended::ByPeerOrAnswer);
                    }
                    // Only an earlier deadline moves the timer at once; a later one is noticed when the timer
                    // fires. So a busy connection does not touch the timer wheel for each request.
                    let silent = watch.deadline(patience).filter(|_| !closing);
                    let Some(deadline) = silent.into_iter().chain(end).min() else {
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
                    let now = Instant::now();
                    if now < deadline {
                        continue;
                    }
                    if closing || end.is_some_and(|end| end <= now) || !watch.is_idle() {
                        return Poll::Ready(Ended::TooLong);
                    }
                    // Nothing is owed to an idle peer but a farewell instead of a reset.
                    closing = true;
                    end = Some(end.map_or(now + CLOSE_MAX, |end| end.min(now + CLOSE_MAX)));
                    connection.as_mut().graceful_shutdown();
                }
            })
            .await;
            tracing::trace!(peer = %peer.0, ended = ?ended, "connection closed");
        }
    }
}
