//! Accepting TCP connections without dying of it; shared by both edges.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};

use crate::shutdown::Shutdown;

const BACKOFF_MIN: Duration = Duration::from_millis(10);
const BACKOFF_MAX: Duration = Duration::from_secs(1);

/// Accepts the next connection with `TCP_NODELAY` set.
///
/// A connection that died in the backlog is skipped. Anything else (out of
/// descriptors or memory) is waited out with a growing pause, because the
/// listener itself is still good and a busy loop would only make it worse.
/// Cancel safe.
pub(crate) async fn next(listener: &TcpListener) -> (TcpStream, SocketAddr) {
    let mut pause = BACKOFF_MIN;
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                // Only fails on a socket that is dead already; its reader will tell.
                let _ = stream.set_nodelay(true);
                return (stream, peer);
            }
            Err(error) if is_of_the_connection(&error) => {}
            Err(error) => {
                tracing::warn!(error = %error, pause_ms = pause.as_millis(), "accept failed; pausing");
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(BACKOFF_MAX);
            }
        }
    }
}

/// Most connections that are taken out of the kernel's queue at the end; no system queues more.
const BACKLOG_MAX: usize = 65_536;

/// Closes a listener and returns, without waiting, the connections that were made before: the kernel has greeted their
/// peers, who may have sent a request by now, and would reset all of them with the socket.
pub(crate) fn last(listener: TcpListener) -> impl Iterator<Item = (TcpStream, SocketAddr)> + Send {
    let listener = listener.into_std().ok();
    let queue = std::iter::from_fn(move || {
        let listener = listener.as_ref()?;
        loop {
            match listener.accept() {
                Ok(accepted) => return Some(accepted),
                Err(error) if is_of_the_connection(&error) => {}
                // The queue is empty, or there is nothing left to accept with.
                Err(_) => return None,
            }
        }
    });
    queue.fuse().take(BACKLOG_MAX).filter_map(|(stream, peer)| {
        stream.set_nonblocking(true).ok()?;
        let stream = TcpStream::from_std(stream).ok()?;
        let _ = stream.set_nodelay(true);
        Some((stream, peer))
    })
}

/// Once stopping has begun, how long a connection must have been silent to be closed: a request may be on its way.
pub(crate) const SILENCE_AT_END: Duration = Duration::from_millis(500);

/// Waits until stopping has begun and whoever has asked for nothing by then had a last chance to. Cancel safe.
pub(crate) async fn silence_at_end(shutdown: &Shutdown) {
    shutdown.stopping().await;
    tokio::time::sleep(SILENCE_AT_END).await;
}

fn is_of_the_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::Interrupted
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn whoever_was_let_in_by_the_kernel_is_not_reset_with_the_socket() {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut waiting = Vec::new();
        for _ in 0..3 {
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.write_all(b"?").await.unwrap();
            waiting.push(stream);
        }
        let accepted: Vec<_> = last(listener).collect();
        assert_eq!(accepted.len(), 3);
        for (mut stream, _) in accepted {
            assert_eq!(stream.read_u8().await.unwrap(), b'?');
            stream.write_all(b"!").await.unwrap();
        }
        for mut stream in waiting {
            assert_eq!(stream.read_u8().await.unwrap(), b'!');
        }
        assert!(TcpStream::connect(address).await.is_err());
    }

    #[test]
    fn running_out_of_descriptors_is_not_blamed_on_the_connection() {
        const EMFILE: i32 = 24;
        assert!(!is_of_the_connection(&io::Error::from_raw_os_error(EMFILE)));
        assert!(is_of_the_connection(
            &io::ErrorKind::ConnectionAborted.into()
        ));
    }
}
