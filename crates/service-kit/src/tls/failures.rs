//! Handshakes that fail: counted, and told to the log at most once a second.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Time between two lines in the log.
const LOG_INTERVAL: Duration = Duration::from_secs(1);

/// The failed handshakes of one listener.
#[derive(Debug, Default)]
pub(super) struct Failures {
    count: AtomicU64,
    log: Mutex<Log>,
}

#[derive(Debug, Default)]
struct Log {
    last: Option<Instant>,
    left_out: u64,
}

impl Failures {
    /// How many there were.
    pub(super) fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    /// Takes note of one; `key` says where the listener's TLS stands in the configuration.
    pub(super) fn add(&self, key: &str, peer: SocketAddr, error: &io::Error, now: Instant) {
        self.count.fetch_add(1, Ordering::Relaxed);
        if let Some(left_out) = self.to_be_told(now) {
            // With TLS 1.3 the client may learn no more than that the connection ended.
            tracing::info!(%peer, %error, listener = key, left_out, "TLS handshake failed");
        }
    }

    /// How many were left out before one that is to be told; `None` if that is left out too.
    fn to_be_told(&self, now: Instant) -> Option<u64> {
        let mut log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        if log.last.is_some_and(|last| now < last + LOG_INTERVAL) {
            log.left_out += 1;
            return None;
        }
        log.last = Some(now);
        Some(std::mem::take(&mut log.left_out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_failure_a_second_is_told_with_how_many_were_left_out() {
        let failures = Failures::default();
        let began = Instant::now();
        let told = [0, 0, 999, 1_000, 1_001, 2_000]
            .map(|at| failures.to_be_told(began + Duration::from_millis(at)));
        assert_eq!(told, [Some(0), None, None, Some(2), None, Some(1)]);
    }
}
