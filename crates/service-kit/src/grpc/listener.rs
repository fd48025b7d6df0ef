//! Sockets for tonic: counted, timed and cuttable.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::{Stream, stream};
use http::{Request, Response};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio::time::{Instant, Sleep, sleep};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::transport::server::{Connected, Router};
use tower::{Layer, Service};

use super::GrpcLimits;
use crate::accept;
use crate::linger::Linger;
use crate::shutdown::Shutdown;
use crate::tls::{PeerNames, Stream as Socket, TlsServer};

/// Length of the HTTP/2 connection preface, in bytes.
const PREFACE_BYTES: usize = 24;

/// A bound socket that is not served yet; callers already queue.
#[derive(Debug)]
pub struct GrpcListener {
    listener: TcpListener,
    local_addr: SocketAddr,
    limits: GrpcLimits,
    tls: Option<TlsServer>,
    unauthorized_max: Option<Duration>,
}

impl GrpcListener {
    /// Binds `addr`; port 0 takes a free one.
    ///
    /// # Errors
    /// Fails if the address can't be bound.
    pub async fn bind(addr: SocketAddr, limits: GrpcLimits) -> io::Result<Self> {
        let listener = TcpListener::bind(addr).await?;
        let local_addr = listener.local_addr()?;
        Ok(Self {
            listener,
            local_addr,
            limits,
            tls: None,
            unauthorized_max: None,
        })
    }

    /// Speaks TLS, if there is any. Handshakes run side by side, each in the place
    /// of its connection; tonic sees a connection when its handshake is over.
    #[must_use]
    pub fn with_tls(mut self, tls: Option<TlsServer>) -> Self {
        self.tls = tls;
        self
    }

    /// Cuts a connection that is this old, from its HTTP/2 preface on, unless somebody said by
    /// [`Peer::authorize`] that a call on it may be made. Who answers pings and has no credential would hold
    /// its place up to the age otherwise.
    #[must_use]
    pub fn close_unauthorized_after(mut self, age: Duration) -> Self {
        self.unauthorized_max = Some(age);
        self
    }

    /// Returns the bound address.
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// Serves until `shutdown` stops, then finishes what is in flight.
    ///
    /// When stopping begins the socket closes, once those who are in the kernel's
    /// queue were let in, and every connection gets GOAWAY; services end their
    /// long-lived streams themselves on [`Shutdown::stopping`]. Returns when no connection is left: all ended,
    /// or were cut `drain_timeout` later, or at once when aborting. Dropping
    /// the future cuts all connections.
    ///
    /// # Errors
    /// Fails as [`Router::serve_with_incoming_shutdown`] does.
    pub async fn serve<L, B>(
        self,
        router: Router<L>,
        shutdown: Shutdown,
    ) -> Result<(), tonic::transport::Error>
    where
        L: Layer<tonic::service::Routes>,
        L::Service:
            Service<Request<tonic::body::Body>, Response = Response<B>> + Clone + Send + 'static,
        <L::Service as Service<Request<tonic::body::Body>>>::Future: Send,
        <L::Service as Service<Request<tonic::body::Body>>>::Error:
            Into<tonic::codegen::StdError> + Send + 'static,
        B: hyper::body::Body<Data = bytes::Bytes> + Send + 'static,
        B::Error: Into<tonic::codegen::StdError>,
    {
        let drain_timeout = self.limits.drain_timeout.get();
        let cut = CancellationToken::new();
        let _cut_on_drop = cut.clone().drop_guard();
        let closed = CancellationToken::new();
        let incoming = self.incoming(shutdown.clone(), closed.clone(), cut.clone());
        let serving = router.serve_with_incoming_shutdown(incoming, closed.cancelled_owned());
        let cutting = async {
            shutdown.stopping().await;
            tokio::select! {
                () = sleep(drain_timeout) => {}
                () = shutdown.aborting() => {}
            }
            tracing::warn!("cutting gRPC connections that did not finish in time");
            cut.cancel();
            std::future::pending::<Infallible>().await
        };
        tokio::select! {
            result = serving => result,
            never = cutting => match never {},
        }
    }

    /// Turns the listener into the stream of its connections. It closes when
    /// stopping begins; when the last one was taken from it, `closed` is
    /// cancelled. Cancelling `cut` ends all of them.
    fn incoming(
        self,
        shutdown: Shutdown,
        closed: CancellationToken,
        cut: CancellationToken,
    ) -> impl Stream<Item = io::Result<Connection>> + Send {
        let accepting = Accepting {
            places: Arc::new(Semaphore::new(self.limits.connections_max)),
            listener: Some(self.listener),
            limits: self.limits,
            tls: self.tls,
            unauthorized_max: self.unauthorized_max,
            shutdown,
            closed,
            cut,
            handshakes: JoinSet::new(),
        };
        stream::unfold(accepting, async |mut accepting| {
            let connection = accepting.next().await?;
            Some((Ok(connection), accepting))
        })
    }
}

/// The loop that takes connections in.
struct Accepting {
    /// Gone once stopping has begun.
    listener: Option<TcpListener>,
    limits: GrpcLimits,
    tls: Option<TlsServer>,
    unauthorized_max: Option<Duration>,
    places: Arc<Semaphore>,
    shutdown: Shutdown,
    closed: CancellationToken,
    cut: CancellationToken,
    /// Dropping it, which tonic does when it stops accepting, ends them.
    handshakes: JoinSet<Option<(Socket, Peer, OwnedSemaphorePermit)>>,
}

impl Accepting {
    async fn next(&mut self) -> Option<Connection> {
        loop {
            let is_last = self.handshakes.is_empty();
            let accepting = async {
                match &self.listener {
                    Some(listener) => {
                        // The semaphore is never closed.
                        let place = Arc::clone(&self.places).acquire_owned().await.ok()?;
                        let (stream, addr) = accept::next(listener).await;
                        Some((stream, addr, place))
                    }
                    None if is_last => None,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                Some(shaken) = self.handshakes.join_next() => {
                    if let Ok(Some((socket, peer, place))) = shaken {
                        return Some(self.connection(socket, peer, place));
                    }
                }
                accepted = accepting => match accepted {
                    Some((stream, addr, place)) => {
                        self.shake_hands(stream, addr, place);
                    }
                    None => {
                        self.closed.cancel();
                        std::future::pending::<Infallible>().await;
                    }
                },
                () = self.shutdown.stopping(), if self.listener.is_some() => self.close(),
            }
        }
    }

    /// Closes the listener and takes in whoever is in the kernel's queue, as far
    /// as there is a place.
    fn close(&mut self) {
        for (stream, addr) in self.listener.take().into_iter().flat_map(accept::last) {
            let Ok(place) = Arc::clone(&self.places).try_acquire_owned() else {
                return;
            };
            self.shake_hands(stream, addr, place);
        }
    }

    fn shake_hands(&mut self, stream: TcpStream, addr: SocketAddr, place: OwnedSemaphorePermit) {
        let tls = self.tls.clone();
        let shutdown = self.shutdown.clone();
        self.handshakes.spawn(async move {
            let (socket, names) = match tls {
                None => (Socket::Plain(stream), PeerNames::default()),
                Some(tls) => tokio::select! {
                    shaken = tls.accept(stream, addr) => shaken?,
                    () = accept::silence_at_end(&shutdown) => return None,
                },
            };
            Some((socket, Peer::new(addr, names), place))
        });
    }

    fn connection(&self, stream: Socket, peer: Peer, place: OwnedSemaphorePermit) -> Connection {
        let limits = &self.limits;
        let life = limits.connection_age_max.get() + limits.connection_grace.get();
        Connection {
            peer,
            stream,
            linger: Linger::default(),
            preface_left: PREFACE_BYTES,
            deadline: Box::pin(sleep(limits.preface_timeout.get())),
            unauthorized_max: self.unauthorized_max,
            end: Instant::now() + life,
            cut: Box::pin(self.cut.clone().cancelled_owned()),
            _place: place,
        }
    }
}

/// Who is on the other side; every request carries it as an extension.
#[derive(Clone, Debug)]
pub struct Peer {
    /// The address as the socket has it.
    pub addr: SocketAddr,
    /// The names of the client's certificate.
    pub names: PeerNames,
    /// Shared by all requests of the connection.
    authorized: Arc<AtomicBool>,
}

impl Peer {
    /// Makes the peer of a connection on which no call was authorized.
    pub fn new(addr: SocketAddr, names: PeerNames) -> Self {
        Self {
            addr,
            names,
            authorized: Arc::default(),
        }
    }

    /// Lets the connection live to its age; see [`GrpcListener::close_unauthorized_after`].
    pub fn authorize(&self) {
        self.authorized.store(true, Ordering::Relaxed);
    }

    /// Says whether it may.
    pub fn is_authorized(&self) -> bool {
        self.authorized.load(Ordering::Relaxed)
    }
}

/// An accepted connection: a stream that fails when its time is up.
pub struct Connection {
    peer: Peer,
    stream: Socket,
    linger: Linger,
    /// Bytes of the preface that have not come yet.
    preface_left: usize,
    /// Of the preface first, then of the first authorized call, then of the whole connection.
    deadline: Pin<Box<Sleep>>,
    unauthorized_max: Option<Duration>,
    end: Instant,
    cut: Pin<Box<WaitForCancellationFutureOwned>>,
    _place: OwnedSemaphorePermit,
}

impl Connection {
    /// Fails once the connection is over. Called in every direction, because a
    /// connection may wait in either.
    fn check(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        if self.cut.as_mut().poll(cx).is_ready() {
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        while self.deadline.as_mut().poll(cx).is_ready() {
            let may_stay = self.preface_left == 0 && self.peer.is_authorized();
            if !may_stay || self.end <= Instant::now() {
                return Err(io::ErrorKind::TimedOut.into());
            }
            let end = self.end;
            self.deadline.as_mut().reset(end);
        }
        Ok(())
    }
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection")
            .field("peer", &self.peer)
            .finish_non_exhaustive()
    }
}

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.check(cx)?;
        let before = buf.filled().len();
        let result = Pin::new(&mut self.stream).poll_read(cx, buf);
        if self.preface_left > 0 {
            let came = buf.filled().len() - before;
            self.preface_left = self.preface_left.saturating_sub(came);
            if self.preface_left == 0 {
                let first = (self.unauthorized_max)
                    .map_or(self.end, |age| self.end.min(Instant::now() + age));
                self.deadline.as_mut().reset(first);
                self.check(cx)?;
            }
        }
        result
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.check(cx)?;
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.check(cx)?;
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check(cx)?;
        let this = &mut *self;
        this.linger.poll_shutdown(&mut this.stream, cx)
    }
}
