//! Whether the store works, as far as the last calls tell.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use service_kit::admin::Check;
use tokio::sync::Notify;
use tokio::time::Instant;

/// A read that succeeds this long after the last failure proves the store well again. A failed write may be
/// followed by reads that work (a full disk), so one alone is no proof.
const RECOVERY: Duration = Duration::from_secs(3);

/// The readiness check of the store, set by all who use it.
pub(crate) struct StoreHealth {
    check: Check,
    last_failure: Mutex<Option<Instant>>,
    found_away: Notify,
}

impl StoreHealth {
    /// Takes over the check.
    pub(crate) fn new(check: Check) -> Self {
        Self {
            check,
            last_failure: Mutex::new(None),
            found_away: Notify::new(),
        }
    }

    /// The store is not open yet, and why; shown to operators.
    pub(crate) fn waiting(&self, why: &str) {
        self.check.not_ready(why);
    }

    /// The same, and it is not known when it will be.
    pub(crate) fn away(&self, why: &str) {
        self.waiting(why);
        self.found_away.notify_one();
    }

    /// Waits until it is known that the store can't be opened yet. For one caller. Cancel safe.
    pub(crate) async fn found_away(&self) {
        self.found_away.notified().await;
    }

    /// A call failed.
    pub(crate) fn failed(&self, what: &str) {
        *self.lock() = Some(Instant::now());
        self.check.not_ready(what);
    }

    /// A write was committed: the store is well.
    pub(crate) fn wrote(&self) {
        *self.lock() = None;
        self.check.ok();
    }

    /// A read succeeded.
    pub(crate) fn has_read(&self) {
        let mut last = self.lock();
        if last.is_none_or(|at| at.elapsed() >= RECOVERY) {
            *last = None;
            self.check.ok();
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Instant>> {
        self.last_failure
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}
