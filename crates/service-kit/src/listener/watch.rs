//! What a connection is waiting for, and until when.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use hyper::body::{Frame, SizeHint};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

use crate::linger::Linger;
use crate::tls::Stream;

/// The state of one connection, shared by its socket, its service and its
/// response bodies; all of them run on the connection's task, so the lock is
/// never contended.
#[derive(Clone, Debug)]
pub(super) struct Watch {
    state: Arc<Mutex<State>>,
}

/// How long a connection may be in a state that it is not cut in at once.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patience {
    /// For a whole head, from its first byte; from the accept for the first.
    pub(super) head: Duration,
    /// For the first byte after the accept, and for the next request's.
    pub(super) silence: Duration,
}

#[derive(Clone, Copy, Debug)]
enum State {
    /// Accepted at that time, and nothing has come since.
    Fresh(Instant),
    /// A head is half read, and has been expected since then.
    Head(Instant),
    /// A request is being served or its answer written.
    Busy,
    /// An answer is out and nothing has come since then.
    Idle(Instant),
}

impl Watch {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            state: Arc::new(Mutex::new(State::Fresh(now))),
        }
    }

    fn update(&self, change: impl FnOnce(State) -> State) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        *state = change(*state);
    }

    pub(super) fn busy(&self) {
        self.update(|_| State::Busy);
    }

    fn idle(&self) {
        self.update(|_| State::Idle(Instant::now()));
    }

    fn bytes_came(&self) {
        self.update(|state| match state {
            State::Fresh(since) => State::Head(since),
            State::Idle(_) => State::Head(Instant::now()),
            other => other,
        });
    }

    fn state(&self) -> State {
        *self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says whether an answer is out and no further request has begun.
    pub(super) fn is_idle(&self) -> bool {
        matches!(self.state(), State::Idle(_))
    }

    /// Returns when the connection is to be closed if nothing changes.
    pub(super) fn deadline(&self, patience: Patience) -> Option<Instant> {
        match self.state() {
            State::Fresh(since) => Some(since + patience.head.min(patience.silence)),
            State::Head(since) => Some(since + patience.head),
            State::Idle(since) => Some(since + patience.silence),
            State::Busy => None,
        }
    }

    /// Wraps an answer's body: the connection is idle once hyper has taken all
    /// of it (or dropped it).
    pub(super) fn until_written(&self, body: Body) -> Body {
        Body::new(WatchedBody {
            body,
            watch: self.clone(),
        })
    }
}

struct WatchedBody {
    body: Body,
    watch: Watch,
}

impl Drop for WatchedBody {
    fn drop(&mut self) {
        self.watch.idle();
    }
}

impl HttpBody for WatchedBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A connection that tells its [`Watch`] about bytes that came in, with TLS those
/// that were sealed in it, and that closes with care.
pub(super) struct WatchedStream {
    stream: Stream,
    watch: Watch,
    linger: Linger,
}

impl WatchedStream {
    pub(super) fn new(stream: Stream, watch: Watch) -> Self {
        Self {
            stream,
            watch,
            linger: Linger::default(),
        }
    }
}

impl AsyncRead for WatchedStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let before = buf.filled().len();
        let result = Pin::new(&mut self.stream).poll_read(cx, buf);
        if buf.filled().len() > before {
            self.watch.bytes_came();
        }
        result
    }
}

impl AsyncWrite for WatchedStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[std::io::IoSlice<'_>],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        let this = &mut *self;
        this.linger.poll_shutdown(&mut this.stream, cx)
    }
}
