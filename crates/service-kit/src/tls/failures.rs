//! Handshakes that fail: counted, and told to the log at most once a second.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::time::Instant;

use crate::seldom::Seldom;

/// The failed handshakes of one listener.
#[derive(Debug, Default)]
pub(super) struct Failures {
    count: AtomicU64,
    lines: Seldom,
}

impl Failures {
    /// How many there were.
    pub(super) fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    /// Takes note of one; `key` says where the listener's TLS stands in the configuration.
    pub(super) fn add(&self, key: &str, peer: SocketAddr, error: &io::Error, now: Instant) {
        self.count.fetch_add(1, Ordering::Relaxed);
        if let Some(left_out) = self.lines.due(now) {
            // With TLS 1.3 the client may learn no more than that the connection ended.
            tracing::info!(%peer, %error, key, left_out, "TLS handshake failed");
        }
    }
}
