//! The HTTP/1.1 edge: an accept loop with the limits that a bare server lacks.
//!
//! | what | bound | what happens at it |
//! |---|---|---|
//! | connections | `connections_max` | no further accept; callers wait in the kernel's backlog, and idle connections make room |
//! | a TLS handshake | its `handshake_timeout` | closed |
//! | a request head | `header_read_timeout` from its first byte (from the accept or handshake for the first) | closed |
//! | an idle connection | `keep_alive_idle` | closed |
//! | age | `connection_age_max`, then `connection_grace` | `Connection: close` with the next answer, then cut |
//! | head size | `header_bytes_max`, `header_count_max` | 431 and closed |
//! | a body | [`read_body`] with [`BodyTimeouts`] | the service answers |
//! | a panic in the service | | 500, the connection lives on |
//! | the end | `drain_timeout` after [`Shutdown::stopping`] | cut |
//!
//! # No request is met by a close
//!
//! A sender may not send a POST again by itself when its connection breaks under it, so the end must give it no reason
//! to ask:
//!
//! - From [`Shutdown::draining`] on every answer says `Connection: close`: whoever goes on uses a new connection, which a
//!   balancer leads elsewhere. Nothing is refused.
//! - At [`Shutdown::stopping`] the socket closes, but those who are in the kernel's queue are served first.
//! - A connection that has begun a request gets its answer. One that is silent is closed once it has been so for half
//!   a second; one that was in use during the drain is not silent but gone.
//! - Every close is a farewell: what still comes in is read, so that no reset overtakes the answer (`linger.rs`).
//!
//! What is left is a request that a sender writes to a connection which was silent for longer than the drain, in the
//! same round trip in which this side closes it. So is one at `keep_alive_idle`, which should therefore be longer than
//! the time for which a proxy in front keeps its idle connections.
//!
//! Over the connection limit the listener stops accepting instead of accepting
//! and closing: a sender's connection then waits milliseconds, where a reset
//! would cost a retry minutes later. As long as no place is free, a connection
//! may be silent for one second only, before its first request as between two
//! (`listener/crowding.rs`). So nobody keeps others out by doing nothing; who does
//! something keeps a place by it: `header_read_timeout` for a slow head, the
//! service's time for a request, and up to the age for an answer that is not read.
//!
//! One small state per connection (head awaited, busy, idle; see
//! `listener/watch.rs`) gives the current deadline, because hyper's own header timer
//! also runs while a kept-alive connection is idle and so can't tell the two
//! apart. While a request is being served there is no deadline here: that
//! belongs to the service; an answer that nobody reads ends by the age.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use http::{Request, Response};
use hyper::body::Incoming;
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tower::Service;

use crate::accept;
use crate::config::{ByteSize, Duration, Faults, Validate};
use crate::shutdown::Shutdown;
use crate::tls::TlsServer;

mod body;
mod connection;
mod crowding;
mod watch;

pub use body::{BodyError, BodyTimeouts, read_body};

/// Limits of an HTTP listener. Every key has a default and a ceiling.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct HttpLimits {
    /// Connections open at once, 1 to 65,536. Default 4,096.
    pub connections_max: usize,
    /// Time for a request's head, up to 60 s. Default 5 s.
    pub header_read_timeout: Duration,
    /// How long a connection may wait for its next request, up to 10 min.
    /// Default 75 s, longer than the 60 s for which common proxies keep theirs.
    pub keep_alive_idle: Duration,
    /// Age at which a connection ends after its current request, up to 24 h.
    /// Default 10 min.
    pub connection_age_max: Duration,
    /// Time after `connection_age_max` until the connection is cut, up to
    /// 10 min. Default 30 s.
    pub connection_grace: Duration,
    /// Headers per request, 8 to 256. Default 64.
    pub header_count_max: usize,
    /// Size of a request's head and of the read buffer, 8 KiB to 256 KiB.
    /// Default 16 KiB.
    pub header_bytes_max: ByteSize,
    /// Time for requests in flight once stopping has begun, up to 5 min.
    /// Default 8 s. It is one part of the time that a process takes to end.
    pub drain_timeout: Duration,
    /// Time limits of [`read_body`].
    pub body: BodyTimeouts,
}

impl Default for HttpLimits {
    fn default() -> Self {
        Self {
            connections_max: 4096,
            header_read_timeout: Duration::from_secs(5),
            keep_alive_idle: Duration::from_secs(75),
            connection_age_max: Duration::from_mins(10),
            connection_grace: Duration::from_secs(30),
            header_count_max: 64,
            header_bytes_max: ByteSize::from_kib(16),
            drain_timeout: Duration::from_secs(8),
            body: BodyTimeouts::default(),
        }
    }
}

impl Validate for HttpLimits {
    fn validate(&self, faults: &mut Faults) {
        let least = Duration::from_millis(1);
        faults.in_range("connections_max", self.connections_max, 1..=65_536);
        faults.in_range(
            "header_read_timeout",
            self.header_read_timeout,
            least..=Duration::from_secs(60),
        );
        faults.in_range(
            "keep_alive_idle",
            self.keep_alive_idle,
            least..=Duration::from_mins(10),
        );
        faults.in_range(
            "connection_age_max",
            self.connection_age_max,
            least..=Duration::from_hours(24),
        );
        faults.in_range(
            "connection_grace",
            self.connection_grace,
            least..=Duration::from_mins(10),
        );
        faults.in_range("header_count_max", self.header_count_max, 8..=256);
        faults.in_range(
            "header_bytes_max",
            self.header_bytes_max,
            ByteSize::from_kib(8)..=ByteSize::from_kib(256),
        );
        faults.in_range(
            "drain_timeout",
            self.drain_timeout,
            least..=Duration::from_mins(5),
        );
        faults.part("body", &self.body);
    }
}

/// The peer's address as the socket has it; every request carries it as an
/// extension.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerAddr(pub SocketAddr);

/// A bound socket that is not served yet; callers already queue.
#[derive(Debug)]
pub struct HttpListener {
    listener: TcpListener,
    local_addr: SocketAddr,
    limits: HttpLimits,
    tls: Option<TlsServer>,
}

impl HttpListener {
    /// Binds `addr`; port 0 takes a free one.
    ///
    /// # Errors
    /// Fails if the address can't be bound.
    pub async fn bind(addr: SocketAddr, limits: HttpLimits) -> io::Result<Self> {
        let listener = TcpListener::bind(addr).await?;
        let local_addr = listener.local_addr()?;
        Ok(Self {
            listener,
            local_addr,
            limits,
            tls: None,
        })
    }

    /// Speaks TLS, if there is any. Handshakes run side by side, each in the place
    /// of its connection.
    #[must_use]
    pub fn with_tls(mut self, tls: Option<TlsServer>) -> Self {
        self.tls = tls;
        self
    }

    /// Returns the bound address.
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// Serves until `shutdown` stops, then finishes what is in flight.
    ///
    /// Returns when no connection is left: all ended by themselves, or were
    /// cut `drain_timeout` after stopping began, or at once when aborting.
    /// Dropping the future closes the socket and cuts all connections.
    pub async fn serve<S>(self, service: S, shutdown: Shutdown)
    where
        S: Service<Request<Incoming>, Response = Response<axum::body::Body>, Error = Infallible>
            + Clone
            + Send
            + 'static,
        S::Future: Send,
    {
        let Self {
            listener,
            limits,
            tls,
            ..
        } = self;
        // A connection holds a permit as long as its task lives, so all
        // permits free means all tasks are over.
        let places = Arc::new(Semaphore::new(limits.connections_max));
        let all = u32::try_from(limits.connections_max).unwrap_or(u32::MAX);
        let cut = CancellationToken::new();
        let _cut_on_drop = cut.clone().drop_guard();
        let connections = connection::Settings::new(&limits, tls);

        let serve_one = |(stream, peer), place| {
            let serving = connections.serve(
                stream,
                PeerAddr(peer),
                service.clone(),
                shutdown.clone(),
                cut.clone(),
            );
            tokio::spawn(async move {
                serving.await;
                drop(place);
            });
        };
        let accepting = async {
            loop {
                let Some(place) = connections.crowding.place(&places).await else {
                    return;
                };
                serve_one(accept::next(&listener).await, place);
            }
        };
        tokio::select! {
            () = accepting => {}
            () = shutdown.stopping() => {}
        }
        for accepted in accept::last(listener) {
            match Arc::clone(&places).try_acquire_owned() {
                Ok(place) => serve_one(accepted, place),
                // No place was free before either; whoever waits has to be sent away now.
                Err(_) => break,
            }
        }

        let in_time = tokio::select! {
            _ = places.acquire_many(all) => true,
            () = tokio::time::sleep(limits.drain_timeout.get()) => false,
            () = shutdown.aborting() => false,
        };
        if !in_time {
            let left = limits.connections_max - places.available_permits();
            tracing::warn!(
                connections = left,
                "cutting connections that did not finish in time"
            );
            cut.cancel();
            let _ = places.acquire_many(all).await;
        }
    }
}
