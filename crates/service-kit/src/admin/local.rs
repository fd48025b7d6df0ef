//! The admin listener asked from the command line, by the same program with the
//! same configuration.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use http::{Method, StatusCode};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::timeout;

use crate::tls::{self, TlsServerConfig};

/// Time for the whole exchange.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// Most bytes of an answer.
const ANSWER_BYTES_MAX: u64 = 64 << 10;

/// Asks the admin listener at `addr`, which is on this machine and has the TLS of
/// `tls`; returns the status and the body, at most 64 KiB, within 5 s.
///
/// # Errors
/// Nobody listens there, or what answers is no HTTP server.
pub async fn ask(
    addr: SocketAddr,
    tls: Option<&TlsServerConfig>,
    method: Method,
    path: &str,
    body: &str,
) -> io::Result<(StatusCode, String)> {
    let asking = async {
        let mut stream = tls::local::connect(addr, tls).await?;
        let length = body.len();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}"
        );
        stream.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        stream
            .take(ANSWER_BYTES_MAX)
            .read_to_end(&mut answer)
            .await?;
        parse(&answer).ok_or_else(|| io::Error::other("the answer is no HTTP"))
    };
    timeout(ANSWER_TIMEOUT, asking)
        .await
        .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "no answer within 5 s"))?
}

/// Asks whether the service is ready; tells why if it isn't.
///
/// # Errors
/// It is not ready, or can't be asked.
pub async fn healthcheck(addr: SocketAddr, tls: Option<&TlsServerConfig>) -> io::Result<()> {
    let (status, body) = ask(addr, tls, Method::GET, "/readyz", "").await?;
    if status == StatusCode::OK {
        return Ok(());
    }
    Err(io::Error::other(format!("not ready: {body}")))
}

/// Puts a log filter in force in the running service.
///
/// # Errors
/// The filter is refused, with what to write instead, or the service can't be asked.
pub async fn log_filter(
    addr: SocketAddr,
    tls: Option<&TlsServerConfig>,
    filter: &str,
) -> io::Result<()> {
    let (status, body) = ask(addr, tls, Method::PUT, "/log-filter", filter).await?;
    if status == StatusCode::NO_CONTENT {
        return Ok(());
    }
    Err(io::Error::other(format!("refused: {}", body.trim_end())))
}

fn parse(answer: &[u8]) -> Option<(StatusCode, String)> {
    let text = std::str::from_utf8(answer).ok()?;
    let (head, body) = text.split_once("\r\n\r\n")?;
    let code = head.strip_prefix("HTTP/1.1 ")?.get(..3)?;
    Some((code.parse().ok()?, body.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_http_is_an_answer() {
        assert_eq!(
            parse(b"HTTP/1.1 503 Service Unavailable\r\na: b\r\n\r\n{}\r\n\r\n"),
            Some((StatusCode::SERVICE_UNAVAILABLE, "{}\r\n\r\n".to_owned()))
        );
        for text in ["", "HTTP/1.1", "SSH-2.0\r\n\r\n", "HTTP/1.1 2\r\n\r\n"] {
            assert_eq!(parse(text.as_bytes()), None, "{text:?}");
        }
    }
}
