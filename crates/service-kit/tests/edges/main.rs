//! The two edges over real sockets, with limits short enough to wait for.

#![expect(
    clippy::unwrap_used,
    reason = "all of this crate is tests; clippy knows only the marked functions"
)]

mod channel;
mod grpc;
mod http;
mod tls;

use std::future::Future;
use std::time::Duration;

/// Far above what any step takes; only a hang reaches it.
const PATIENCE: Duration = Duration::from_secs(10);

async fn soon<T>(what: &str, step: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, step)
        .await
        .unwrap_or_else(|_| panic!("{what} did not happen within {PATIENCE:?}"))
}
