//! The wall clock as an argument, so that a test can own time.

use jiff::Timestamp;

/// Tells the time of day.
///
/// Durations and deadlines use tokio's monotonic timers and not this.
pub trait Clock: Send + Sync {
    /// Returns the current time; it may step backwards when the host's clock is
    /// set, so callers that need order must enforce it themselves.
    fn now(&self) -> Timestamp;
}

/// The host's clock; the only place that reads it.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    #[expect(clippy::disallowed_methods, reason = "this is the clock")]
    fn now(&self) -> Timestamp {
        Timestamp::now()
    }
}

impl<C: Clock + ?Sized> Clock for std::sync::Arc<C> {
    fn now(&self) -> Timestamp {
        (**self).now()
    }
}

#[cfg(any(test, feature = "testing"))]
pub use manual::ManualClock;

#[cfg(any(test, feature = "testing"))]
mod manual {
    use std::sync::{Arc, Mutex, PoisonError};
    use std::time::Duration;

    use jiff::Timestamp;

    /// A clock that stands still until a test moves it; clones share the time.
    #[derive(Clone, Debug)]
    pub struct ManualClock {
        now: Arc<Mutex<Timestamp>>,
    }

    impl ManualClock {
        /// Creates a clock that shows `now`.
        pub fn new(now: Timestamp) -> Self {
            Self {
                now: Arc::new(Mutex::new(now)),
            }
        }

        /// Sets the clock, also backwards.
        pub fn set(&self, now: Timestamp) {
            *self.now.lock().unwrap_or_else(PoisonError::into_inner) = now;
        }

        /// Moves the clock forward.
        pub fn advance(&self, by: Duration) {
            let mut now = self.now.lock().unwrap_or_else(PoisonError::into_inner);
            *now = now.saturating_add(by).unwrap_or(Timestamp::MAX);
        }
    }

    impl super::Clock for ManualClock {
        fn now(&self) -> Timestamp {
            *self.now.lock().unwrap_or_else(PoisonError::into_inner)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manual_clock_moves_only_when_told() {
        let clock = ManualClock::new(Timestamp::UNIX_EPOCH);
        let same = clock.clone();
        assert_eq!(clock.now(), Timestamp::UNIX_EPOCH);
        same.advance(std::time::Duration::from_millis(1500));
        assert_eq!(clock.now().as_millisecond(), 1500);
    }
}
