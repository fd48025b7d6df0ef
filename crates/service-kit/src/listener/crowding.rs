//! No place is free: told to a listener's connections, so that idle ones make room.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::futures::Notified;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

/// How long all places must have been taken; a listener that is merely busy frees one sooner.
const PATIENCE: Duration = Duration::from_millis(100);
/// How long a connection may be silent while no place is free.
pub(super) const SILENCE_WHEN_CROWDED: Duration = Duration::from_secs(1);

/// Whether a listener is crowded. Shared by its connections.
#[derive(Debug, Default)]
pub(super) struct Crowding {
    now: AtomicBool,
    begun: Notify,
}

impl Crowding {
    /// Waits for a place; while that takes long the listener is crowded. `None` only if the semaphore is closed.
    pub(super) async fn place(&self, places: &Arc<Semaphore>) -> Option<OwnedSemaphorePermit> {
        if let Ok(place) = Arc::clone(places).try_acquire_owned() {
            return Some(place);
        }
        if let Ok(place) = timeout(PATIENCE, Arc::clone(places).acquire_owned()).await {
            return place.ok();
        }
        self.now.store(true, Ordering::Release);
        self.begun.notify_waiters();
        let place = Arc::clone(places).acquire_owned().await;
        self.now.store(false, Ordering::Release);
        place.ok()
    }

    /// Says whether idle connections are to make room.
    pub(super) fn is_now(&self) -> bool {
        self.now.load(Ordering::Acquire)
    }

    /// Waits until the listener gets crowded, from this call on.
    pub(super) fn begun(&self) -> Notified<'_> {
        self.begun.notified()
    }
}
