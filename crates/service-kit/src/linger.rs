//! Closing a connection so that what was written last arrives; shared by both edges.
//!
//! A socket that is closed with bytes unread, or that gets more of them afterwards, answers with a reset, and a reset
//! throws away what the peer has not received yet: the answer to a request whose body was refused, or the last frames
//! of a stream whose client was just granting more window. So the own direction is closed first, and then the peer is
//! read, for a while and without looking, until it closes too.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

/// How long a peer may take to close its side.
const WAIT_MAX: Duration = Duration::from_millis(500);
/// How much is read from a peer that goes on sending, in bytes.
const BYTES_MAX: usize = 256 << 10;
const CHUNK_BYTES: usize = 4 << 10;

/// How far the end of one connection has come.
#[derive(Debug, Default)]
pub(crate) enum Linger {
    /// Not begun.
    #[default]
    Open,
    /// Our side is closed.
    Reading { end: Pin<Box<Sleep>>, left: usize },
    /// Nothing more is waited for.
    Over,
}

impl Linger {
    /// To be called for every `poll_shutdown` of a connection, with the stream below. Takes 500 ms at most once the
    /// stream has taken our farewell.
    pub(crate) fn poll_shutdown<S>(
        &mut self,
        stream: &mut S,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        loop {
            match self {
                Self::Open => {
                    ready!(Pin::new(&mut *stream).poll_shutdown(cx))?;
                    *self = Self::Reading {
                        end: Box::pin(sleep(WAIT_MAX)),
                        left: BYTES_MAX,
                    };
                }
                Self::Reading { end, left } => {
                    let mut chunk = [0; CHUNK_BYTES];
                    let mut chunk = ReadBuf::new(&mut chunk);
                    let over = match Pin::new(&mut *stream).poll_read(cx, &mut chunk) {
                        Poll::Ready(Ok(())) if !chunk.filled().is_empty() => {
                            *left = left.saturating_sub(chunk.filled().len());
                            *left == 0
                        }
                        // Whatever the error, there is nobody left to be careful with.
                        Poll::Ready(Ok(()) | Err(_)) => true,
                        Poll::Pending => {
                            ready!(end.as_mut().poll(cx));
                            true
                        }
                    };
                    if over {
                        *self = Self::Over;
                    }
                }
                Self::Over => return Poll::Ready(Ok(())),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};
    use tokio::time::Instant;

    use super::*;

    async fn close<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S) {
        let mut linger = Linger::default();
        poll_fn(|cx| linger.poll_shutdown(stream, cx))
            .await
            .unwrap();
    }

    #[tokio::test]
    async fn what_the_peer_still_sends_is_read_until_it_closes() {
        let (mut ours, mut theirs) = duplex(16);
        let closing = tokio::spawn(async move { close(&mut ours).await });
        // Our farewell comes first; more than the pipe holds goes through nevertheless.
        assert_eq!(theirs.read(&mut [0; 8]).await.unwrap(), 0);
        theirs.write_all(&[0; 100]).await.unwrap();
        drop(theirs);
        closing.await.unwrap();
    }

    #[tokio::test]
    async fn a_peer_that_stays_is_waited_for_half_a_second() {
        let (mut ours, _theirs) = duplex(16);
        let began = Instant::now();
        close(&mut ours).await;
        assert!(began.elapsed() >= WAIT_MAX);
    }

    #[tokio::test]
    async fn a_peer_that_sends_without_end_is_left() {
        let (mut ours, mut theirs) = duplex(CHUNK_BYTES);
        let flooding = tokio::spawn(async move {
            let mut sent = 0;
            while let Ok(count) = theirs.write(&[0; CHUNK_BYTES]).await {
                sent += count;
            }
            sent
        });
        close(&mut ours).await;
        drop(ours);
        assert!(flooding.await.unwrap() <= BYTES_MAX + 2 * CHUNK_BYTES);
    }
}
