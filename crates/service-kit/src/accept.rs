//! Accepting TCP connections without dying of it; shared by both edges.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};

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

    #[test]
    fn running_out_of_descriptors_is_not_blamed_on_the_connection() {
        const EMFILE: i32 = 24;
        assert!(!is_of_the_connection(&io::Error::from_raw_os_error(EMFILE)));
        assert!(is_of_the_connection(
            &io::ErrorKind::ConnectionAborted.into()
        ));
    }
}
