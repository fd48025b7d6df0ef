//! Senders that are slow on purpose, byte by byte over a bare socket.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};

/// How a slow sender's connection ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    /// What the server sent before closing.
    pub answer: String,
    /// How long it took from connecting.
    pub after: Duration,
}

impl Ended {
    /// The status of the answer; `None` if the connection was just closed.
    pub fn status(&self) -> Option<u16> {
        self.answer
            .strip_prefix("HTTP/1.1 ")?
            .get(..3)?
            .parse()
            .ok()
    }
}

/// Sends `start` at once, then `drip` again and again with `pause` between, until the server closes the
/// connection; at most for `limit`.
///
/// # Errors
/// If the server still has the connection open after `limit`, or can't be reached.
pub async fn drip(
    address: SocketAddr,
    start: &[u8],
    drip: &[u8],
    pause: Duration,
    limit: Duration,
) -> anyhow::Result<Ended> {
    let began = Instant::now();
    let mut socket = TcpStream::connect(address).await?;
    socket.write_all(start).await?;
    let (mut incoming, mut outgoing) = socket.split();
    let mut answer = Vec::new();
    let dripping = async {
        // The pause is what makes this sender slow. Where there is nothing to drip, it stays silent.
        while !drip.is_empty() {
            tokio::time::sleep(pause).await;
            if outgoing.write_all(drip).await.is_err() {
                break;
            }
        }
        std::future::pending::<()>().await;
    };
    let reading = timeout_at(began + limit, incoming.read_to_end(&mut answer));
    let read = tokio::select! {
        () = dripping => unreachable!("it never ends"),
        read = reading => read,
    };
    // A reset is an end, too.
    anyhow::ensure!(
        read.is_ok(),
        "still open after {limit:?}, having got {:?}",
        String::from_utf8_lossy(&answer)
    );
    Ok(Ended {
        answer: String::from_utf8_lossy(&answer).into_owned(),
        after: began.elapsed(),
    })
}

/// Sends bytes and reads until the server closes or `limit` passes; what came is the answer either way.
///
/// # Errors
/// If the server can't be reached.
pub async fn exchange(
    address: SocketAddr,
    request: &[u8],
    limit: Duration,
) -> anyhow::Result<Ended> {
    let began = Instant::now();
    let mut socket = TcpStream::connect(address).await?;
    let (mut incoming, mut outgoing) = socket.split();
    let mut answer = vec![0; 64 << 10];
    let mut filled = 0;
    // An early answer may close the way in before all is sent, so both at once.
    let sending = async {
        let _ = outgoing.write_all(request).await;
        std::future::pending::<()>().await;
    };
    let reading = async {
        while filled < answer.len() {
            match timeout_at(began + limit, incoming.read(&mut answer[filled..])).await {
                Ok(Ok(0) | Err(_)) | Err(_) => break,
                Ok(Ok(bytes)) => filled += bytes,
            }
            if answer[..filled]
                .windows(4)
                .any(|window| window == b"\r\n\r\n")
            {
                break;
            }
        }
    };
    tokio::select! {
        () = sending => unreachable!("it never ends"),
        () = reading => {}
    }
    Ok(Ended {
        answer: String::from_utf8_lossy(&answer[..filled]).into_owned(),
        after: began.elapsed(),
    })
}
